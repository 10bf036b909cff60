//! The calls of Lambda, compared with those of boto3.

use super::*;
use crate::aws::boto3;

/// Compares through botocore, which checks requests and responses against the service's own model.
#[tokio::test(flavor = "multi_thread")]
async fn boto3_makes_the_same_calls_and_reads_the_same_responses() {
    let world = World::start().await;
    let (_, id) = world.flow(json!({ "eventHubName": HUB, "consumerGroup": "readers" })).await;
    world.api.post(&format!("/flows/{id}/action?op=disable"), &Value::Null).await.expect(200);
    let calls = world.lambda.calls();
    let sent = |operation: &str| calls.iter().find(|(name, _)| name == operation).unwrap().1.clone();
    let (alias, mapping) = (sent("CreateAlias"), sent("CreateEventSourceMapping"));
    let update = sent("UpdateEventSourceMapping");
    assert_eq!(world.api.delete(&format!("/flows/{id}")).await.status, 204);
    let script = format!(
        r#"
import boto3, botocore.exceptions, json
from botocore.validate import ParamValidator
lambda_ = boto3.client("lambda", config=boto3.session.Config(parameter_validation=True))
model = lambda_.meta.service_model

def unknown(shape, value, place=""):
    "Members that the model does not have: botocore's parser drops them in silence."
    if shape.type_name == "structure":
        for name, inner in value.items():
            if name not in shape.members:
                yield f"{{place}}.{{name}}"
            else:
                yield from unknown(shape.members[name], inner, f"{{place}}.{{name}}")
    elif shape.type_name == "list":
        for inner in value:
            yield from unknown(shape.member, inner, place)

raw = {{}}
def keep(http_response, model, **_):
    if http_response.content and http_response.status_code < 300:
        raw[model.name] = list(unknown(model.output_shape, json.loads(http_response.content)))

lambda_.meta.events.register("after-call.lambda", keep)

alias, mapping, update = json.loads(r'''{alias}'''), json.loads(r'''{mapping}'''), json.loads(r'''{update}''')
for operation, sent, more in [
    ("CreateAlias", alias, {{"FunctionName": "platform-ingest"}}), ("CreateEventSourceMapping", mapping, {{}}),
    ("UpdateEventSourceMapping", update, {{"UUID": "0" * 36}}),
]:
    report = ParamValidator().validate(sent | more, model.operation_model(operation).input_shape)
    assert not report.has_errors(), report.generate_report()
made = lambda_.create_alias(FunctionName="platform-ingest", **alias)
assert made["AliasArn"] == lambda_.get_alias(FunctionName="platform-ingest", Name=alias["Name"])["AliasArn"]
created = lambda_.create_event_source_mapping(**mapping)
listed = lambda_.list_event_source_mappings(FunctionName=made["AliasArn"])["EventSourceMappings"]
updated = lambda_.update_event_source_mapping(UUID=created["UUID"], **update)
got = lambda_.get_event_source_mapping(UUID=created["UUID"])
refused = []
for call in [
    lambda: lambda_.create_alias(FunctionName="platform-ingest", **alias),
    lambda: lambda_.create_event_source_mapping(**mapping),
    lambda: lambda_.get_alias(FunctionName="other", Name="x"),
    lambda: lambda_.get_event_source_mapping(UUID="0" * 36),
    lambda: lambda_.create_event_source_mapping(**(mapping | {{
        "SelfManagedKafkaEventSourceConfig": {{"ConsumerGroupId": "$Default"}}}})),
]:
    try:
        call()
    except botocore.exceptions.ClientError as error:
        refused.append(error.response["Error"]["Code"])
deleted = lambda_.delete_event_source_mapping(UUID=created["UUID"])
lambda_.delete_alias(FunctionName="platform-ingest", Name=alias["Name"])
print(json.dumps({{
    "states": [created["State"], updated["State"], got["State"], deleted["State"]],
    "listed": [one["UUID"] for one in listed] == [created["UUID"]],
    "modified": got["LastModified"].year > 2000, "arn": got["FunctionArn"] == made["AliasArn"],
    "refused": refused, "unknown": raw,
}}))
"#
    );
    let results = boto3(&world.lambda.url(), &script);
    assert_eq!(results["states"], json!(["Creating", "Disabling", "Disabled", "Deleting"]));
    assert_eq!((&results["listed"], &results["modified"], &results["arn"]), (&json!(true), &json!(true), &json!(true)));
    let (conflict, gone, invalid) =
        ("ResourceConflictException", "ResourceNotFoundException", "InvalidParameterValueException");
    assert_eq!(results["refused"], json!([conflict, conflict, gone, gone, invalid]));
    let unknown = results["unknown"].as_object().unwrap();
    assert!(unknown.len() >= 6 && unknown.values().all(|members| *members == json!([])), "{unknown:?}");
}
