//! The control API through its built binary. This module has the caller and the fixtures; each module below has one topic.

mod concurrency;
mod connections;
mod credentials;
mod flows;
mod limits;
mod openapi;
mod options;
mod requests;
mod sequences;
mod tenants;

use std::time::Duration;

use local::emulator::Emulator;
use local::runner::{Function, FunctionConfig};
use serde_json::{Value, json};
use shared::aws::Service;
use tests::faults::proxy::{AwsFault, Proxy};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use crate::cloud::*;
use crate::harness::{DOCUMENTED, HUB, binary, delivered, hub_config, request as webhook};

/// Connection specs of senders, by what they send.
pub const DATA_ACTIVATION: &str = "5d0f6a3e-8c41-4f0b-9a57-2b1de6c7f984";
pub const DATAVERSE: &str = "e3b7c1d2-46a9-4d8e-b05f-7c92a1f4836d";
pub const PROFILE_STORE: &str = "8a9c3494-9708-43d7-ae3f-cda01e5030e1";
/// Connection spec of Azure Event Hubs.
pub const EVENT_HUBS: &str = "bf9f5905-92b7-48bf-bf20-455bc6b60a4e";
pub const EVENT_HUBS_AUTH: &str = "Azure EventHub authentication credentials";
/// Flow specs: to a hub, and from a hub.
pub const FLOW_TO_HUB: &str = "71471eba-b620-49e4-90fd-23f1fa0174d8";
pub const FLOW_FROM_HUB: &str = "d69717ba-71b4-4313-b654-49f9cf126d7a";
/// An id that no object has.
pub const UNKNOWN_ID: &str = "ca5c6e9a-8559-4a08-97a5-f15b756da600";
/// The tenant of a test, and parts of other tenants.
pub const ORGANISATION: &str = "acme@AdobeOrg";
pub const SANDBOX: &str = "prod";
pub const OTHER_ORGANISATION: &str = "globex@AdobeOrg";
pub const OTHER_SANDBOX: &str = "dev";
/// The audience of the documented bodies.
const AUDIENCE_ID: &str = "5114d758-ce71-43ba-b53e-e2a91d67b67f";

/// The response that a caller receives.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u64,
    pub headers: Value,
    pub body: Value,
}

impl Response {
    #[track_caller]
    pub fn expect(self, status: u64) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.body
    }

    #[track_caller]
    pub fn id(self) -> String {
        assert_eq!(self.status, 201, "{self:?}");
        let (id, etag) = (text(&self.body["id"]), text(&self.body["etag"]));
        assert!(etag.starts_with('"') && etag.ends_with('"'), "{etag}");
        assert!(text(&self.headers["location"]).ends_with(&id));
        id
    }
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("text: {value}")).to_owned()
}

/// A caller of one tenant.
#[derive(Clone)]
pub struct Caller {
    pub function: Function,
    pub organisation: &'static str,
    pub sandbox: &'static str,
}

/// The API's function in a cloud, allowed to reach these hubs.
fn control(cloud: &Cloud, hubs: &[&Emulator]) -> Caller {
    let hosts: Vec<String> = hubs.iter().map(|hub| host(hub)).collect();
    control_with(cloud, &[("EMULATOR_HOSTS", &hosts.join(","))])
}

pub fn control_with(cloud: &Cloud, more: &[(&str, &str)]) -> Caller {
    control_in(cloud, more, Duration::from_secs(30))
}

fn control_in(cloud: &Cloud, more: &[(&str, &str)], timeout: Duration) -> Caller {
    let mut environment: Vec<(String, String)> =
        cloud.variables().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    environment.push(("ORG_CLAIM_TYPE".to_owned(), "list".to_owned()));
    environment.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let function = Function::new(FunctionConfig {
        environment,
        timeout,
        max_instances: 20,
        ..FunctionConfig::new("flow-service", binary("flow-service"))
    });
    Caller { function, organisation: ORGANISATION, sandbox: SANDBOX }
}

pub fn host(hub: &Emulator) -> String {
    hub.url().replace("http://", "")
}

impl Caller {
    fn event(&self, method: &str, target: &str, body: &Value) -> Value {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let is_text = self.function.config().environment.contains(&("ORG_CLAIM_TYPE".to_owned(), "text".to_owned()));
        let claim = if is_text { self.organisation.to_owned() } else { format!("[{} other]", self.organisation) };
        let mut event = json!({
            "version": "2.0", "rawPath": path, "rawQueryString": query,
            "headers": {
                "authorization": "Bearer token", "x-api-key": "key", "x-gw-ims-org-id": self.organisation,
                "x-sandbox-name": self.sandbox, "content-type": "application/json", "host": "api.example.net",
            },
            "requestContext": {
                "stage": "$default", "http": { "method": method, "path": path },
                "authorizer": { "jwt": { "claims": { "org": claim, "sub": "me" }, "scopes": null } },
            },
            "isBase64Encoded": false,
        });
        if !body.is_null() {
            event["body"] = body.to_string().into();
        }
        event
    }

    async fn invoke(&self, event: &Value) -> Response {
        let response = self.function.invoke(event.to_string().into_bytes()).await.unwrap();
        let response: Value = serde_json::from_slice(&response).unwrap();
        let body = response["body"].as_str().unwrap();
        Response {
            status: response["statusCode"].as_u64().unwrap(),
            headers: response["headers"].clone(),
            body: if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() },
        }
    }

    pub async fn call(&self, method: &str, target: &str, body: &Value) -> Response {
        self.invoke(&self.event(method, target, body)).await
    }

    pub async fn get(&self, target: &str) -> Response {
        self.call("GET", target, &Value::Null).await
    }

    pub async fn post(&self, target: &str, body: &Value) -> Response {
        self.call("POST", target, body).await
    }

    pub async fn delete(&self, target: &str) -> Response {
        self.call("DELETE", target, &Value::Null).await
    }

    pub async fn patch(&self, target: &str, if_match: &str, patch: &Value) -> Response {
        let mut event = self.event("PATCH", target, patch);
        event["headers"]["if-match"] = if_match.into();
        self.invoke(&event).await
    }

    /// The single item of a list.
    pub async fn item(&self, target: &str) -> Value {
        let mut body = self.get(target).await.expect(200);
        assert_eq!(body["items"].as_array().unwrap().len(), 1, "a read by id is a list too");
        body["items"][0].take()
    }

    /// Creates a connection to an emulator. Returns its id.
    pub async fn connection(&self, hub: &Emulator) -> String {
        let connection = json!({
            "name": "hub", "connectionSpec": spec(EVENT_HUBS),
            "auth": {
                "specName": EVENT_HUBS_AUTH,
                "params": { "connectionString": hub.connection_string(&hub_config().keys[0].name, None) },
            },
        });
        self.post("/connections", &connection).await.id()
    }

    /// Creates a flow from a sender to a hub. Returns the response to its creation.
    pub async fn flow(&self, sender: &str, params: Value, connection: &str, hub: &str) -> Value {
        let source =
            json!({ "name": "sender", "connectionSpec": spec(sender), "data": { "format": "json" }, "params": params });
        let source = self.post("/sourceConnections", &source).await.id();
        let target = json!({
            "name": "target", "connectionSpec": spec(EVENT_HUBS), "baseConnectionId": connection,
            "params": { "eventHubName": hub, "partitioning": "partitions:4" },
        });
        let target = self.post("/targetConnections", &target).await.id();
        let flow = json!({
            "name": "flow", "flowSpec": spec(FLOW_TO_HUB),
            "sourceConnectionIds": [source], "targetConnectionIds": [target],
        });
        self.post("/flows", &flow).await.expect(201)
    }
}

/// The API's function with a proxy in front of Secrets Manager.
async fn control_with_proxy(cloud: &Cloud, hub: &Emulator) -> (Caller, Proxy) {
    let proxy = Proxy::start(cloud.endpoint(), shared::build_http_client(None).unwrap().client()).await;
    let secrets = format!("http://{}", proxy.address());
    let api = control_with(
        cloud,
        &[("EMULATOR_HOSTS", host(hub).as_str()), ("AWS_ENDPOINT_URL_SECRETS_MANAGER", secrets.as_str())],
    );
    (api, proxy)
}

/// A text attribute of an item of the table.
pub async fn attribute(cloud: &Cloud, pk: &str, name: &str) -> Option<String> {
    let key = json!({ "TableName": TABLE, "Key": { "pk": { "S": pk } }, "ConsistentRead": true });
    let item = cloud.call(Service::DynamoDb, "GetItem", key).await;
    item["Item"][name]["S"].as_str().map(str::to_owned)
}

/// The key of an object's item in the table, by the path of the object.
fn tenant_key(path: &str) -> String {
    format!("TENANT#{ORGANISATION}#{SANDBOX}#{}", path.trim_start_matches('/').replace('/', "#"))
}

/// The text of the current secret of an object.
async fn current_secret(cloud: &Cloud, path: &str) -> String {
    let name = attribute(cloud, &tenant_key(path), "secretId").await.unwrap();
    let get = json!({ "SecretId": name, "VersionStage": "AWSCURRENT" });
    text(&cloud.call(Service::SecretsManager, "GetSecretValue", get).await["SecretString"])
}

pub fn spec(id: &str) -> Value {
    json!({ "id": id, "version": "1.0" })
}

/// A documented body with values for its placeholders.
fn body(name: &str, values: &[(&str, &str)]) -> Value {
    let path = format!("{}/fixtures/flow-service/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let text = values.iter().fold(text, |text, (name, value)| text.replace(&format!("{{{name}}}"), value));
    serde_json::from_str(&text).unwrap()
}

fn credentials(hub: &Emulator) -> Vec<(&'static str, String)> {
    let key = hub_config().keys[0].clone();
    vec![
        ("SAS_KEY_NAME", key.name),
        ("SAS_KEY", key.key),
        ("NAMESPACE", host(hub)),
        ("EVENT_HUB_NAMESPACE", host(hub)),
        ("EVENT_HUB_NAME", HUB.to_owned()),
        ("CONSUMER_GROUP", "readers".to_owned()),
        ("TENANT_ID", "acme".to_owned()),
        ("SEGMENT_ID", AUDIENCE_ID.to_owned()),
    ]
}

/// Posts an event to a flow's webhook, with the credential in the response to its creation.
pub async fn send(function: &Function, created: &Value, event: &str) -> crate::harness::Response {
    let mut request = webhook(event);
    let url = text(&created["webhookUrl"]);
    request["rawPath"] = url.splitn(4, '/').nth(3).map(|path| format!("/{path}")).unwrap().into();
    let token = created["senderAuth"][0]["secret"].as_str().unwrap_or_default();
    request["headers"]["authorization"] = format!("Bearer {token}").into();
    crate::harness::response_of(function, &request).await
}
