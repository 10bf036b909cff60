//! Event source mappings of flows, and the records that they bring to the inlet.

use super::*;
use crate::stack::Stack;

#[tokio::test]
async fn a_hubs_events_reach_the_inlet_until_the_flow_is_disabled_or_deleted() {
    let world = World::start().await;
    world.send("before").await;
    let connection = world.api.connection(&world.hub).await;
    let source = world.source(&connection, json!({ "eventHubName": HUB })).await;
    let target = world.api.post("/targetConnections", &world.target(json!({}))).await.id();
    let created = world.create(&source, &target).await.expect(201);
    let id = text(&created["id"]);
    assert_eq!(created["consumerGroup"], format!("platform-ingest-{HUB}"), "the group for $Default");
    assert_eq!(created.get("webhookUrl"), None);
    world.arrives("before").await;
    world.send("enabled").await;
    world.arrives("enabled").await;

    // The calls are made in the required order, with all that the mapping needs.
    let calls: Vec<String> =
        world.lambda.calls().into_iter().map(|(name, _)| name).filter(|name| name.starts_with("Create")).collect();
    assert_eq!(calls, ["CreateAlias", "CreateEventSourceMapping"]);
    assert_eq!(world.lambda.aliases(), [format!("flow-{id}")]);
    let mapping = world.mapping();
    assert!(text(&mapping["FunctionArn"]).ends_with(&format!(":function:platform-ingest:flow-{id}")));
    assert_eq!(
        mapping["SelfManagedEventSource"],
        json!({ "Endpoints": { "KAFKA_BOOTSTRAP_SERVERS": ["127.0.0.1:9093"] } })
    );
    assert_eq!((&mapping["StartingPosition"], &mapping["Topics"]), (&json!("TRIM_HORIZON"), &json!([HUB])));
    let access = &mapping["SourceAccessConfigurations"][0];
    assert_eq!(access["Type"], "BASIC_AUTH");
    assert!(text(&access["URI"]).contains(":secret:eventhubs-relay/flows/connections/"), "{access}");

    let path = format!("/flows/{id}");
    world.api.post(&format!("{path}/action?op=disable"), &Value::Null).await.expect(200);
    assert_eq!(world.mapping()["State"], "Disabled");
    assert_eq!(attribute(&world.cloud, &format!("FLOW#{id}"), "state").await.unwrap(), "disabled");
    world.send("disabled").await;
    sleep(Duration::from_millis(500)).await;
    assert!(!world.has("disabled"));
    let invocations = world.ingest.logs().len();
    world.api.post(&format!("{path}/action?op=enable"), &Value::Null).await.expect(200);
    assert_eq!(world.mapping()["State"], "Enabled");
    until("the function is invoked again", async || world.ingest.logs().len() > invocations).await;

    assert_eq!(world.api.delete(&path).await.status, 204);
    world.nothing_is_left().await;
    assert_eq!(attribute(&world.cloud, &format!("FLOW#{id}"), "kind").await, None);
    for unused in [format!("/targetConnections/{target}"), format!("/sourceConnections/{source}")] {
        assert_eq!(world.api.delete(&unused).await.status, 204, "{unused}");
    }
}

/// The settings that decide which records a mapping discards or retries.
fn settings(mapping: &Value) -> Value {
    // Parameters of the template may be text.
    let number = |name: &str| match &mapping[name] {
        Value::String(text) => text.parse::<i64>().unwrap().into(),
        other => other.clone(),
    };
    json!({
        "retries": number("MaximumRetryAttempts"), "age": number("MaximumRecordAgeInSeconds"),
        "destination": mapping["DestinationConfig"]["OnFailure"]["Destination"],
        "batch": number("BatchSize"), "bisect": mapping["BisectBatchOnFunctionError"],
        "responses": mapping["FunctionResponseTypes"],
        "pollers": mapping["ProvisionedPollerConfig"]["MinimumPollers"],
    })
}

#[tokio::test]
async fn mappings_of_the_template_and_of_flows_never_discard_records() {
    let world = World::start().await;
    world.flow(json!({ "eventHubName": HUB })).await;
    let expected = json!({
        "retries": -1, "age": -1, "destination": null, "batch": 1000, "bisect": true,
        "responses": ["ReportBatchItemFailures"], "pollers": 1,
    });
    assert_eq!(settings(&world.mapping()), expected);
    let stack = Stack::new(&[("SourceHub", HUB)]);
    let resources = stack.resources();
    assert_eq!(settings(&resources["PlatformIngestHub"]["Properties"]), expected);
}

#[tokio::test]
async fn the_next_change_of_a_flow_removes_the_limits_of_an_older_mapping() {
    let world = World::start().await;
    let (_, id) = world.flow(json!({ "eventHubName": HUB })).await;
    let current = settings(&world.mapping());
    let destination = json!({ "OnFailure": { "Destination": "arn:aws:sqs:eu-central-1:123456789012:given-up" } });
    let url = format!("{}/2015-03-31/event-source-mappings/{}", world.lambda.url(), text(&world.mapping()["UUID"]));
    let http = shared::build_http_client(None).unwrap().client();
    for older in [
        json!({ "MaximumRecordAgeInSeconds": 86_400 }),
        json!({ "MaximumRetryAttempts": 10 }),
        json!({ "DestinationConfig": destination }),
        json!({ "MaximumRecordAgeInSeconds": 86_400, "DestinationConfig": destination }),
    ] {
        assert!(http.put(&url).body(older.to_string()).send().await.unwrap().status().is_success());
        assert_ne!(settings(&world.mapping()), current, "{older}");
        // The flow is already enabled: no other setting changes.
        world.api.post(&format!("/flows/{id}/action?op=enable"), &Value::Null).await.expect(200);
        assert_eq!(settings(&world.mapping()), current, "{older}");
        assert_eq!(world.mapping()["State"], "Enabled");
    }
}

#[tokio::test]
async fn reset_latest_skips_older_events_and_xdm_records_have_their_envelope() {
    let world = World::start().await;
    world.send("before").await;
    world.flow(json!({ "eventHubName": HUB, "reset": "latest", "consumerGroup": "readers", "dataType": "xdm" })).await;
    assert_eq!(world.mapping()["SelfManagedKafkaEventSourceConfig"], json!({ "ConsumerGroupId": "readers" }));
    world.send("after").await;
    world.arrives("after").await;
    assert!(!world.has("before"));
    assert!(world.inlet.taken().iter().all(|taken| taken.xdm), "the inlet compares organisation, schema and dataset");
}

#[tokio::test]
async fn a_changed_source_changes_the_mapping_of_its_flow() {
    let world = World::start().await;
    let (source, id) = world.flow(json!({ "eventHubName": OTHER_HUB, "consumerGroup": "one" })).await;
    let path = format!("/sourceConnections/{source}");
    let moved = json!([
        { "op": "replace", "path": "/params/eventHubName", "value": HUB },
        { "op": "replace", "path": "/params/consumerGroup", "value": "two" },
    ]);
    world.send("moved").await;
    world.api.patch(&path, "*", &moved).await.expect(200);
    let mapping = world.mapping();
    assert_eq!((&mapping["Topics"], &mapping["State"]), (&json!([HUB]), &json!("Enabled")));
    assert_eq!(world.groups().await, [format!("GROUP#{}#{HUB}#two", host(&world.hub))]);
    world.arrives("moved").await;

    // Lambda fails after the table was written: repeating the change completes it.
    let back = json!([{ "op": "replace", "path": "/params/consumerGroup", "value": "three" }]);
    world.fail("CreateEventSourceMapping", UNAVAILABLE, ALWAYS, false);
    world.api.patch(&path, "*", &back).await.expect(503);
    world.lambda.clear_faults();
    world.api.patch(&path, "*", &back).await.expect(200);
    assert_eq!(world.mapping()["SelfManagedKafkaEventSourceConfig"]["ConsumerGroupId"], "three");
    assert_eq!(world.groups().await, [format!("GROUP#{}#{HUB}#three", host(&world.hub))]);
    // The table fails: nothing changes.
    world.table.fail(TRANSACT, AwsFault::Unavailable);
    world.api.patch(&path, "*", &moved).await.expect(503);
    world.table.recover(TRANSACT);
    assert_eq!(world.mapping()["SelfManagedKafkaEventSourceConfig"]["ConsumerGroupId"], "three");
    assert_eq!(world.groups().await, [format!("GROUP#{}#{HUB}#three", host(&world.hub))]);

    // A patch of the flow selects another source of the same connection.
    let connection = text(&world.api.item(&path).await["baseConnectionId"]);
    let other = world.source(&connection, json!({ "eventHubName": OTHER_HUB })).await;
    let by_flow = json!([{ "op": "replace", "path": "/sourceConnectionIds", "value": [other] }]);
    world.api.patch(&format!("/flows/{id}"), "*", &by_flow).await.expect(200);
    assert_eq!(world.mapping()["Topics"], json!([OTHER_HUB]));
    assert_eq!(world.groups().await.len(), 1);
    // A connection with a mapping cannot move to another namespace; its key may change.
    let elsewhere = emulator(&[HUB, OTHER_HUB]).await;
    let secret = world.mapping()["SourceAccessConfigurations"].clone();
    let patch = |member: &str, value: &str| json!([{ "op": "replace", "path": format!("/auth/params/{member}"), "value": value }]);
    let path = format!("/connections/{connection}");
    world.api.patch(&path, "*", &patch("namespace", &host(&elsewhere))).await.expect(400);
    world.api.patch(&path, "*", &patch("namespace", "contoso")).await.expect(409);
    world.api.patch(&path, "*", &patch("sasKey", "another")).await.expect(200);
    assert_eq!(world.mapping()["SourceAccessConfigurations"], secret);
}

#[tokio::test]
async fn a_change_waits_for_a_mapping_that_is_being_changed() {
    let world = World::start().await;
    let (_, id) = world.flow(json!({ "eventHubName": HUB })).await;
    world.fail("UpdateEventSourceMapping", IN_USE, 1, false);
    let disable = format!("/flows/{id}/action?op=disable");
    world.api.post(&disable, &Value::Null).await.expect(200);
    assert_eq!(world.mapping()["State"], "Disabled");
    world.api.post(&format!("/flows/{id}/action?op=enable"), &Value::Null).await.expect(200);
    world.fail("UpdateEventSourceMapping", IN_USE, ALWAYS, false);
    let busy = world.api.post(&disable, &Value::Null).await.expect(503);
    assert!(text(&busy["message"]).contains("again in a minute"), "{busy}");
    assert_eq!(
        attribute(&world.cloud, &format!("FLOW#{id}"), "state").await.unwrap(),
        "disabled",
        "the flow is disabled nevertheless"
    );
    world.lambda.clear_faults();
    world.api.post(&disable, &Value::Null).await.expect(200);
    assert_eq!(world.mapping()["State"], "Disabled");
}
