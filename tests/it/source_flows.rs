//! Flows from a hub by the control API: hub to inlet through the stand-in of Lambda's calls, and what stays of flows that were
//! made or deleted by halves.

use std::time::Duration;

use local::emulator::{Emulator, ROOT_KEY_NAME};
use local::inlet::{Config, Inlet};
use local::lambda_api::{Fault, LambdaApi};
use local::runner::{Function, FunctionConfig};
use serde_json::{Value, json};
use shared::aws::Service;
use tests::faults::proxy::{AwsFault, Proxy};
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::aws::boto3;
use crate::cloud::*;
use crate::control::{Answer, Caller, attribute, control_with, host, spec, text};
use crate::harness::{HUB, System, binary, delivered, event_of};
use crate::stack::Stack;

const EVENT_HUBS: &str = "bf9f5905-92b7-48bf-bf20-455bc6b60a4e";
const DATA_LAKE: &str = "c604ff05-7f1a-43c0-8e18-33bf874cb11c";
const FROM_HUB: &str = "d69717ba-71b4-4313-b654-49f9cf126d7a";
const ORGANISATION: &str = "acme@AdobeOrg";
const CLIENT: (&str, &str) = ("client-1", "client-secret-1");
const SECRET: &str = "eventhubs-relay/flows/ims/acme@AdobeOrg/client";
const OTHER_HUB: &str = "leads";
const TRANSACT: &str = "DynamoDB_20120810.TransactWriteItems";
const UNAVAILABLE: (u16, &str) = (503, "ServiceException");
const IN_USE: (u16, &str) = (400, "ResourceInUseException");
/// More often than a call is repeated.
const ALWAYS: u32 = 100;

/// Everything that a flow from a hub needs.
struct World {
    cloud: Cloud,
    hub: Emulator,
    inlet: Inlet,
    lambda: LambdaApi,
    /// Before the table.
    table: Proxy,
    api: Caller,
    sender: System,
    ingest: Function,
}

impl World {
    async fn start() -> Self {
        let cloud = Cloud::start().await;
        let hub = emulator(&[HUB, OTHER_HUB]).await;
        let client = Some((CLIENT.0.to_owned(), CLIENT.1.to_owned()));
        let config = Config { client, org_id: ORGANISATION.to_owned(), ..Config::default() };
        let inlet = Inlet::start(config, listener().await).await;
        cloud.secret(SECRET, &json!({ "client_id": CLIENT.0, "client_secret": CLIENT.1 }).to_string()).await;
        let mut environment: Vec<(String, String)> =
            cloud.variables().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        environment.push(("EMULATOR_HOSTS".to_owned(), inlet.host()));
        let ingest = Function::new(FunctionConfig {
            environment,
            timeout: Duration::from_secs(10),
            // Flows that come and go are asked for in vain.
            print_failures: false,
            ..FunctionConfig::new("platform-ingest", binary("platform-ingest"))
        });
        let lambda = LambdaApi::start(hub.clone(), ingest.clone(), listener().await).await;
        let table = Proxy::start(cloud.endpoint(), shared::build_http_client(None).unwrap().client()).await;
        let hosts = format!("{},{}", host(&hub), inlet.host());
        let api = control_with(
            &cloud,
            &[
                ("EMULATOR_HOSTS", &hosts),
                ("PLATFORM_INGEST_FUNCTION", "platform-ingest"),
                ("AWS_ENDPOINT_URL_LAMBDA", &lambda.url()),
                ("AWS_ENDPOINT_URL_DYNAMODB", &format!("http://{}", table.address())),
            ],
        );
        let sender = System { function: cloud.function("audience-change", &hub, &[]), hub: hub.clone() };
        Self { cloud, hub, inlet, lambda, table, api, sender, ingest }
    }

    /// A source connection that reads by `connection`; gives its id.
    async fn source(&self, connection: &str, params: Value) -> String {
        let source = json!({
            "name": "source", "connectionSpec": spec(EVENT_HUBS), "baseConnectionId": connection,
            "data": { "format": "json" }, "params": params,
        });
        self.api.post("/sourceConnections", &source).await.id()
    }

    fn target(&self, more: Value) -> Value {
        let config = Config::default();
        let mut params = json!({
            "dataSetId": config.dataset_id, "inletUrl": self.inlet.url(), "inletFlowId": config.flow_id,
            "imsSecretId": SECRET, "imsTokenUrl": self.inlet.token_url(),
        });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let schema =
            json!({ "id": config.schema_id, "version": "application/vnd.adobe.xed-full-notext+json; version=1.0" });
        json!({
            "name": "target", "connectionSpec": spec(DATA_LAKE), "data": { "format": "parquet_xdm", "schema": schema },
            "params": params,
        })
    }

    async fn create(&self, source: &str, target: &str) -> Answer {
        let flow = json!({
            "name": "flow", "flowSpec": spec(FROM_HUB), "sourceConnectionIds": [source], "targetConnectionIds": [target],
        });
        self.api.post("/flows", &flow).await
    }

    /// Source, target and flow; gives the ids of source and flow.
    async fn flow(&self, params: Value) -> (String, String) {
        let connection = self.api.connection(&self.hub).await;
        let source = self.source(&connection, params).await;
        let target = self.api.post("/targetConnections", &self.target(json!({}))).await.id();
        let created = self.create(&source, &target).await.expect(201);
        (source, text(&created["id"]))
    }

    async fn send(&self, profile: &str) {
        assert_eq!(self.sender.post(&event_of(profile)).await, delivered(1));
    }

    /// Whether the inlet has an event of that profile.
    fn has(&self, profile: &str) -> bool {
        self.inlet.taken().iter().any(|taken| taken.record.to_string().contains(&format!("\"{profile}\"")))
    }

    async fn arrives(&self, profile: &str) {
        until(profile, async || self.has(profile)).await;
    }

    fn mapping(&self) -> Value {
        let mappings = self.lambda.mappings();
        assert_eq!(mappings.len(), 1, "{mappings:?}");
        mappings[0].clone()
    }

    fn fail(&self, operation: &'static str, (status, code): (u16, &'static str), times: u32, done: bool) {
        self.lambda.script([Fault { operation, times, status, code, done }]);
    }

    /// Keys of the table's items that are neither objects nor flows.
    async fn groups(&self) -> Vec<String> {
        let scan =
            self.cloud.call(Service::DynamoDb, "Scan", json!({ "TableName": TABLE, "ConsistentRead": true })).await;
        let keys = scan["Items"].as_array().unwrap().iter().map(|item| text(&item["pk"]["S"]));
        keys.filter(|key| !key.starts_with("TENANT#") && !key.starts_with("FLOW#")).collect()
    }

    async fn nothing_is_left(&self) {
        assert_eq!(self.lambda.mappings(), [] as [Value; 0]);
        assert_eq!(self.lambda.aliases(), [] as [String; 0]);
        assert_eq!(self.groups().await, [] as [String; 0]);
        let flows = self.api.get("/flows").await.expect(200);
        assert_eq!(flows["items"], json!([]));
    }

    /// As if all that is pending were begun an hour ago.
    async fn age(&self) {
        for key in self.groups().await {
            let update = json!({
                "TableName": TABLE, "Key": { "pk": { "S": key } }, "UpdateExpression": "SET since = :s",
                "ExpressionAttributeValues": { ":s": { "N": "1700000000000" } },
            });
            self.cloud.call(Service::DynamoDb, "UpdateItem", update).await;
        }
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

#[tokio::test]
async fn a_hubs_events_reach_the_inlet_until_the_flow_is_disabled_or_deleted() {
    let world = World::start().await;
    world.send("before").await;
    let connection = world.api.connection(&world.hub).await;
    let source = world.source(&connection, json!({ "eventHubName": HUB })).await;
    let target = world.api.post("/targetConnections", &world.target(json!({}))).await.id();
    let created = world.create(&source, &target).await.expect(201);
    let id = text(&created["id"]);
    assert_eq!(created["consumerGroup"], format!("platform-ingest-{HUB}"), "what $Default stands for");
    assert_eq!(created.get("webhookUrl"), None);
    world.arrives("before").await;
    world.send("enabled").await;
    world.arrives("enabled").await;

    // In the order that is asked for, with all that the mapping needs.
    let made: Vec<String> =
        world.lambda.calls().into_iter().map(|(name, _)| name).filter(|name| name.starts_with("Create")).collect();
    assert_eq!(made, ["CreateAlias", "CreateEventSourceMapping"]);
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
    // A parameter of the template may be a text.
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
async fn the_templates_mapping_and_those_of_flows_keep_records_as_long_as_the_hub_does() {
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
        // The flow is enabled already: nothing else of it changes.
        world.api.post(&format!("/flows/{id}/action?op=enable"), &Value::Null).await.expect(200);
        assert_eq!(settings(&world.mapping()), current, "{older}");
        assert_eq!(world.mapping()["State"], "Enabled");
    }
}

#[tokio::test]
async fn latest_begins_with_new_events_and_xdm_has_its_envelope() {
    let world = World::start().await;
    world.send("before").await;
    world.flow(json!({ "eventHubName": HUB, "reset": "latest", "consumerGroup": "ours", "dataType": "xdm" })).await;
    assert_eq!(world.mapping()["SelfManagedKafkaEventSourceConfig"], json!({ "ConsumerGroupId": "ours" }));
    world.send("after").await;
    world.arrives("after").await;
    assert!(!world.has("before"));
    assert!(world.inlet.taken().iter().all(|taken| taken.xdm), "the inlet compares organisation, schema and dataset");
}

#[tokio::test]
async fn a_consumer_group_serves_one_flow_of_one_tenant() {
    let world = World::start().await;
    let (source, id) = world.flow(json!({ "eventHubName": HUB, "consumerGroup": "ours" })).await;
    let target = world.api.post("/targetConnections", &world.target(json!({}))).await.id();
    let connection = world.api.connection(&world.hub).await;
    let same = world.source(&connection, json!({ "eventHubName": HUB, "consumerGroup": "OURS" })).await;
    for source in [&source, &same] {
        let refused = world.create(source, &target).await.expect(409);
        assert!(text(&refused["errorMessage"]).contains("consumer group"), "{refused}");
    }
    // Nobody's words about another tenant's flow, and no hold of it.
    let other = Caller { sandbox: "dev", ..world.api.clone() };
    for (path, op) in [("", "GET"), ("", "DELETE"), ("/action?op=disable", "POST")] {
        other.call(op, &format!("/flows/{id}{path}"), &Value::Null).await.expect(404);
    }
    let theirs = World { api: Caller { organisation: "globex@AdobeOrg", ..world.api.clone() }, ..world };
    let secret = theirs.target(json!({}));
    let refused = theirs.api.post("/targetConnections", &secret).await.expect(400);
    assert!(text(&refused["message"]).contains("params.imsSecretId"), "another organisation's client: {refused}");
    let mut open = secret;
    for member in ["imsSecretId", "imsTokenUrl"] {
        open["params"].as_object_mut().unwrap().remove(member);
    }
    let target = theirs.api.post("/targetConnections", &open).await.id();
    let connection = theirs.api.connection(&theirs.hub).await;
    let source = theirs.source(&connection, json!({ "eventHubName": HUB, "consumerGroup": "ours" })).await;
    let refused = theirs.create(&source, &target).await.expect(409);
    assert!(!refused.to_string().contains(&id), "{refused}");
    assert_eq!((theirs.lambda.mappings().len(), theirs.lambda.aliases().len()), (1, 1));
    // Another hub's group of that name is another one.
    let source = theirs.source(&connection, json!({ "eventHubName": OTHER_HUB, "consumerGroup": "ours" })).await;
    theirs.create(&source, &target).await.expect(201);
}

#[tokio::test]
async fn a_consumer_group_is_claimed_only_with_a_key_that_the_namespace_accepts() {
    let world = World::start().await;
    // An attacker knows the namespace, and invents a key.
    let attacker = World { api: Caller { organisation: "globex@AdobeOrg", ..world.api.clone() }, ..world };
    let invented = json!({
        "name": "invented", "connectionSpec": spec(EVENT_HUBS),
        "auth": { "specName": "Azure EventHub authentication credentials", "params": {
            "sasKeyName": ROOT_KEY_NAME, "sasKey": "aW52ZW50ZWQ=", "namespace": host(&attacker.hub),
        } },
    });
    let connection = attacker.api.post("/connections?validate=false", &invented).await.id();
    let source = json!({
        "name": "source", "connectionSpec": spec(EVENT_HUBS), "baseConnectionId": connection,
        "data": { "format": "json" }, "params": { "eventHubName": HUB },
    });
    let source = attacker.api.post("/sourceConnections?validate=false", &source).await.id();
    let mut target = attacker.target(json!({}));
    for member in ["imsSecretId", "imsTokenUrl"] {
        target["params"].as_object_mut().unwrap().remove(member);
    }
    let target = attacker.api.post("/targetConnections", &target).await.id();
    let refused = attacker.create(&source, &target).await.expect(400);
    assert!(text(&refused["message"]).contains("refuses the key"), "{refused}");
    attacker.nothing_is_left().await;

    // Whoever holds the key gets the default group, and the attacker does not learn of it.
    let owner = World { api: Caller { organisation: ORGANISATION, ..attacker.api.clone() }, ..attacker };
    let (own_source, own_flow) = owner.flow(json!({ "eventHubName": HUB })).await;
    let attacker = World { api: Caller { organisation: "globex@AdobeOrg", ..owner.api.clone() }, ..owner };
    assert_eq!(attacker.create(&source, &target).await.expect(400), refused);

    // A group is also claimed by a change, of the source or of the flow.
    let owner = World { api: Caller { organisation: ORGANISATION, ..attacker.api.clone() }, ..attacker };
    let path = format!("/sourceConnections/{own_source}");
    let connection = text(&owner.api.item(&path).await["baseConnectionId"]);
    let key = json!([{ "op": "replace", "path": "/auth/params/sasKey", "value": "another" }]);
    owner.api.patch(&format!("/connections/{connection}"), "*", &key).await.expect(200);
    let group = json!([{ "op": "add", "path": "/params/consumerGroup", "value": "theirs" }]);
    let refused_key = |refused: Value| assert!(text(&refused["message"]).contains("refuses the key"), "{refused}");
    refused_key(owner.api.patch(&path, "*", &group).await.expect(400));
    let other = json!({
        "name": "source", "connectionSpec": spec(EVENT_HUBS), "baseConnectionId": connection,
        "data": { "format": "json" }, "params": { "eventHubName": OTHER_HUB },
    });
    let other = owner.api.post("/sourceConnections?validate=false", &other).await.id();
    let by_flow = json!([{ "op": "replace", "path": "/sourceConnectionIds", "value": [other] }]);
    refused_key(owner.api.patch(&format!("/flows/{own_flow}"), "*", &by_flow).await.expect(400));
    assert_eq!(owner.groups().await, [format!("GROUP#{}#{HUB}#platform-ingest-{HUB}", host(&owner.hub))]);

    // A namespace that can't be reached proves nothing either.
    owner.hub.shutdown().await;
    owner.api.patch(&path, "*", &group).await.expect(503);
}

#[tokio::test]
async fn a_changed_source_is_followed() {
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

    // Lambda fails after the table was written: the same again mends it.
    let back = json!([{ "op": "replace", "path": "/params/consumerGroup", "value": "three" }]);
    world.fail("CreateEventSourceMapping", UNAVAILABLE, ALWAYS, false);
    world.api.patch(&path, "*", &back).await.expect(503);
    world.lambda.clear_faults();
    world.api.patch(&path, "*", &back).await.expect(200);
    assert_eq!(world.mapping()["SelfManagedKafkaEventSourceConfig"]["ConsumerGroupId"], "three");
    assert_eq!(world.groups().await, [format!("GROUP#{}#{HUB}#three", host(&world.hub))]);
    // The table fails: nothing has changed.
    world.table.fail(TRANSACT, AwsFault::Unavailable);
    world.api.patch(&path, "*", &moved).await.expect(503);
    world.table.heal(TRANSACT);
    assert_eq!(world.mapping()["SelfManagedKafkaEventSourceConfig"]["ConsumerGroupId"], "three");
    assert_eq!(world.groups().await, [format!("GROUP#{}#{HUB}#three", host(&world.hub))]);

    // Another source of the same connection, by the flow.
    let connection = text(&world.api.item(&path).await["baseConnectionId"]);
    let other = world.source(&connection, json!({ "eventHubName": OTHER_HUB })).await;
    let by_flow = json!([{ "op": "replace", "path": "/sourceConnectionIds", "value": [other] }]);
    world.api.patch(&format!("/flows/{id}"), "*", &by_flow).await.expect(200);
    assert_eq!(world.mapping()["Topics"], json!([OTHER_HUB]));
    assert_eq!(world.groups().await.len(), 1);
    // A connection that is read by does not move; its key may change.
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
async fn a_flow_that_is_half_made_is_undone_or_kept_whole() {
    let world = World::start().await;
    let connection = world.api.connection(&world.hub).await;
    let source = world.source(&connection, json!({ "eventHubName": HUB })).await;
    let target = world.api.post("/targetConnections", &world.target(json!({}))).await.id();
    for (operation, done) in [
        ("CreateAlias", false),
        ("CreateAlias", true),
        ("CreateEventSourceMapping", false),
        ("CreateEventSourceMapping", true),
    ] {
        world.fail(operation, UNAVAILABLE, ALWAYS, done);
        world.create(&source, &target).await.expect(503);
        world.lambda.clear_faults();
        world.nothing_is_left().await;
    }
    world.fail("CreateEventSourceMapping", (400, "InvalidParameterValueException"), 1, false);
    world.create(&source, &target).await.expect(400);
    world.nothing_is_left().await;
    // The table fails after the mapping was made.
    world.table.fail(TRANSACT, AwsFault::Unavailable);
    world.create(&source, &target).await.expect(503);
    world.table.heal(TRANSACT);
    world.nothing_is_left().await;
    // It writes, and does not say so.
    world.table.fail(TRANSACT, AwsFault::ResetAfter);
    let created = world.create(&source, &target).await.expect(201);
    world.table.heal(TRANSACT);
    let id = text(&created["id"]);
    world.api.item(&format!("/flows/{id}")).await;
    assert_eq!(world.lambda.aliases(), [format!("flow-{id}")]);
    assert_eq!(world.mapping()["State"], "Enabled");
    // Deleted by halves, and then wholly.
    for (operation, done) in [
        ("DeleteEventSourceMapping", false),
        ("DeleteEventSourceMapping", true),
        ("DeleteAlias", false),
        ("DeleteAlias", true),
    ] {
        world.fail(operation, UNAVAILABLE, ALWAYS, done);
        // A repeat finds it gone, as it was asked for.
        let status = world.api.delete(&format!("/flows/{id}")).await.status;
        world.lambda.clear_faults();
        assert!(status == 503 || (done && status == 204), "{operation}: {status}");
        if status == 503 {
            assert_eq!(attribute(&world.cloud, &format!("FLOW#{id}"), "state").await.unwrap(), "disabled");
        }
    }
    let answer = world.api.delete(&format!("/flows/{id}")).await.status;
    assert!(matches!(answer, 204 | 404), "{answer}");
    world.nothing_is_left().await;
}

#[tokio::test]
async fn what_a_killed_call_has_left_is_found_by_the_next() {
    let world = World::start().await;
    let connection = world.api.connection(&world.hub).await;
    let source = world.source(&connection, json!({ "eventHubName": HUB })).await;
    let target = world.api.post("/targetConnections", &world.target(json!({}))).await.id();
    let abandon = async || {
        let mut held = world.table.hold(TRANSACT);
        tokio::select! {
            _ = world.create(&source, &target) => panic!("it waits for the table"),
            () = held.came() => {}
        }
        assert_eq!((world.lambda.mappings().len(), world.groups().await.len()), (1, 1));
        // The instance was killed with the call: what it had sent is not passed on.
        world.table.fail(TRANSACT, AwsFault::Reset);
        drop(held);
        sleep(Duration::from_millis(200)).await;
        world.table.heal(TRANSACT);
    };
    abandon().await;
    let refused = world.create(&source, &target).await.expect(409);
    assert!(text(&refused["errorMessage"]).contains("send it again in a minute"), "{refused}");
    world.age().await;
    let created = world.create(&source, &target).await.expect(201);
    assert_eq!(world.lambda.aliases(), [format!("flow-{}", text(&created["id"]))]);
    world.mapping();
    assert_eq!(world.groups().await.len(), 1);
    assert_eq!(world.api.delete(&format!("/flows/{}", text(&created["id"]))).await.status, 204);
    world.nothing_is_left().await;
    // Also where nobody wants that group again.
    abandon().await;
    world.age().await;
    let other = world.source(&connection, json!({ "eventHubName": OTHER_HUB })).await;
    let created = world.create(&other, &target).await.expect(201);
    assert_eq!(world.lambda.aliases(), [format!("flow-{}", text(&created["id"]))]);
    assert_eq!((world.lambda.mappings().len(), world.groups().await.len()), (1, 1));
}

#[tokio::test]
async fn a_mapping_that_is_being_changed_is_waited_for() {
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
        "it stops all the same"
    );
    world.lambda.clear_faults();
    world.api.post(&disable, &Value::Null).await.expect(200);
    assert_eq!(world.mapping()["State"], "Disabled");
}

#[tokio::test]
async fn what_could_not_be_served_is_refused_by_name() {
    let world = World::start().await;
    let connection = world.api.connection(&world.hub).await;
    for (member, value) in [
        ("inletUrl", json!("https://example.com/collection/a")),
        ("inletUrl", json!("http://dcs.adobedc.net/collection/a")),
        ("inletUrl", json!("https://dcs.adobedc.net/collection/batch/a")),
        ("inletUrl", json!("https://user@dcs.adobedc.net/collection/a")),
        ("imsTokenUrl", json!("https://example.com/ims/token/v3")),
        ("imsSecretId", json!("eventhubs-relay/flows/ims/other@AdobeOrg/client")),
        ("imsSecretId", json!("eventhubs-relay/flows/ims/acme@AdobeOrg/x/client")),
        ("inletFlowId", json!("a b")),
        ("batchMax", json!(0)),
        ("imsScope", json!(7)),
    ] {
        let refused = world.api.post("/targetConnections", &world.target(json!({ member: value }))).await.expect(400);
        assert!(text(&refused["message"]).contains(&format!("params.{member}")), "{refused}");
    }
    for group in ["a b", "ours$", "ä", &"x".repeat(201)] {
        let source = json!({
            "name": "source", "connectionSpec": spec(EVENT_HUBS), "baseConnectionId": connection,
            "params": { "eventHubName": HUB, "consumerGroup": group },
        });
        let refused = world.api.post("/sourceConnections", &source).await.expect(400);
        assert!(text(&refused["message"]).contains("params.consumerGroup"), "{refused}");
    }
    // Raw records have no batches: known only with both ends.
    let source = world.source(&connection, json!({ "eventHubName": HUB })).await;
    let target = world.api.post("/targetConnections", &world.target(json!({ "batchMax": 10 }))).await.id();
    world.create(&source, &target).await.expect(400);
    // Without an inlet a flow is kept, and nothing serves it.
    let mut kept = world.target(json!({}));
    kept["params"] = json!({ "dataSetId": "d" });
    let target = world.api.post("/targetConnections", &kept).await.id();
    let created = world.create(&source, &target).await.expect(201);
    assert_eq!(created.get("consumerGroup"), None);
    assert!(world.lambda.calls().is_empty());
}

/// botocore checks requests and answers against the service's own model.
#[tokio::test(flavor = "multi_thread")]
async fn boto3_makes_the_same_calls_and_reads_the_same_answers() {
    let world = World::start().await;
    let (_, id) = world.flow(json!({ "eventHubName": HUB, "consumerGroup": "ours" })).await;
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
    let told = boto3(&world.lambda.url(), &script);
    assert_eq!(told["states"], json!(["Creating", "Disabling", "Disabled", "Deleting"]));
    assert_eq!((&told["listed"], &told["modified"], &told["arn"]), (&json!(true), &json!(true), &json!(true)));
    let (there, gone, wrong) =
        ("ResourceConflictException", "ResourceNotFoundException", "InvalidParameterValueException");
    assert_eq!(told["refused"], json!([there, there, gone, gone, wrong]));
    let unknown = told["unknown"].as_object().unwrap();
    assert!(unknown.len() >= 6 && unknown.values().all(|members| *members == json!([])), "{unknown:?}");
}
