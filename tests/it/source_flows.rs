//! Flows from a hub by the control API: from the hub to the inlet through the emulator of Lambda's calls.

mod consumer_groups;
mod lambda_calls;
mod mappings;
mod partial_failures;
mod refusals;

use std::time::Duration;

use local::emulator::Emulator;
use local::inlet::{Config, Inlet};
use local::lambda_api::{Fault, LambdaApi};
use local::runner::{Function, FunctionConfig};
use serde_json::{Value, json};
use shared::aws::Service;
use tests::faults::proxy::{AwsFault, Proxy};
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::cloud::*;
use crate::control::{
    Caller, EVENT_HUBS, FLOW_FROM_HUB, ORGANISATION, Response, attribute, control_with, host, spec, text,
};
use crate::harness::{HUB, System, binary, delivered, event_of};

const DATA_LAKE: &str = "c604ff05-7f1a-43c0-8e18-33bf874cb11c";
const CLIENT: (&str, &str) = ("client-1", "client-secret-1");
const SECRET: &str = "eventhubs-relay/flows/ims/acme@AdobeOrg/client";
const OTHER_HUB: &str = "leads";
const TRANSACT: &str = "DynamoDB_20120810.TransactWriteItems";
const UNAVAILABLE: (u16, &str) = (503, "ServiceException");
const IN_USE: (u16, &str) = (400, "ResourceInUseException");
/// More failures than a call has retries.
const ALWAYS: u32 = 100;

/// All services that a flow from a hub needs.
struct World {
    cloud: Cloud,
    hub: Emulator,
    inlet: Inlet,
    lambda: LambdaApi,
    /// A proxy in front of the table.
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
            // The function may look up a flow that is already deleted.
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

    /// Creates a source connection that uses `connection`. Returns its id.
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

    async fn create(&self, source: &str, target: &str) -> Response {
        let flow = json!({
            "name": "flow", "flowSpec": spec(FLOW_FROM_HUB), "sourceConnectionIds": [source], "targetConnectionIds": [target],
        });
        self.api.post("/flows", &flow).await
    }

    /// Creates source, target and flow. Returns the ids of source and flow.
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

    /// Changes all pending calls as if they had begun long ago.
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
