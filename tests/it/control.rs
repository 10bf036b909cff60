//! The control API through its built binary: the documented sequences, tenants, and what the data plane makes of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use local::emulator::Emulator;
use local::runner::{Function, FunctionConfig};
use local::tokens::Tokens;
use serde_json::{Value, json};
use shared::aws::Service;
use shared::clock::Clock;
use shared::json::{Object, from_config};
use tests::faults::proxy::{AwsFault, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::cloud::*;
use crate::harness::{DOCUMENTED, HUB, binary, delivered, hub_config, request as webhook, virtual_environment};

pub const DATA_ACTIVATION: &str = "5d0f6a3e-8c41-4f0b-9a57-2b1de6c7f984";
const DATAVERSE: &str = "e3b7c1d2-46a9-4d8e-b05f-7c92a1f4836d";
/// No 5xx, and nothing outside of the document.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
const ABSENT: &str = "ca5c6e9a-8559-4a08-97a5-f15b756da600";

/// What a caller sees.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u64,
    pub headers: Value,
    pub body: Value,
}

impl Answer {
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

/// The API's function over a cloud, allowed to reach these hubs.
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
    Caller { function, organisation: "acme@AdobeOrg", sandbox: "prod" }
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

    async fn invoke(&self, event: &Value) -> Answer {
        let answer = self.function.invoke(event.to_string().into_bytes()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let body = answer["body"].as_str().unwrap();
        Answer {
            status: answer["statusCode"].as_u64().unwrap(),
            headers: answer["headers"].clone(),
            body: if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() },
        }
    }

    pub async fn call(&self, method: &str, target: &str, body: &Value) -> Answer {
        self.invoke(&self.event(method, target, body)).await
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.call("GET", target, &Value::Null).await
    }

    pub async fn post(&self, target: &str, body: &Value) -> Answer {
        self.call("POST", target, body).await
    }

    pub async fn delete(&self, target: &str) -> Answer {
        self.call("DELETE", target, &Value::Null).await
    }

    pub async fn patch(&self, target: &str, if_match: &str, patch: &Value) -> Answer {
        let mut event = self.event("PATCH", target, patch);
        event["headers"]["if-match"] = if_match.into();
        self.invoke(&event).await
    }

    /// The one item of a read.
    pub async fn item(&self, target: &str) -> Value {
        let mut body = self.get(target).await.expect(200);
        assert_eq!(body["items"].as_array().unwrap().len(), 1, "a list even by id");
        body["items"][0].take()
    }

    /// A connection to an emulator; gives its id.
    pub async fn connection(&self, hub: &Emulator) -> String {
        let connection = json!({
            "name": "hub", "connectionSpec": spec("bf9f5905-92b7-48bf-bf20-455bc6b60a4e"),
            "auth": {
                "specName": "Azure EventHub authentication credentials",
                "params": { "connectionString": hub.connection_string(&hub_config().keys[0].name, None) },
            },
        });
        self.post("/connections", &connection).await.id()
    }

    /// A flow of a sender to a hub; gives the answer to its creation.
    pub async fn flow(&self, sender: &str, params: Value, connection: &str, hub: &str) -> Value {
        let source =
            json!({ "name": "sender", "connectionSpec": spec(sender), "data": { "format": "json" }, "params": params });
        let source = self.post("/sourceConnections", &source).await.id();
        let target = json!({
            "name": "target", "connectionSpec": spec("bf9f5905-92b7-48bf-bf20-455bc6b60a4e"), "baseConnectionId": connection,
            "params": { "eventHubName": hub, "partitioning": "partitions:4" },
        });
        let target = self.post("/targetConnections", &target).await.id();
        let flow = json!({
            "name": "flow", "flowSpec": spec("71471eba-b620-49e4-90fd-23f1fa0174d8"),
            "sourceConnectionIds": [source], "targetConnectionIds": [target],
        });
        self.post("/flows", &flow).await.expect(201)
    }
}

/// The API's function with a proxy before its secrets.
async fn control_with_proxy(cloud: &Cloud, hub: &Emulator) -> (Caller, Proxy) {
    let proxy = Proxy::start(cloud.endpoint(), shared::build_http_client(None).unwrap().client()).await;
    let secrets = format!("http://{}", proxy.address());
    let api = control_with(
        cloud,
        &[("EMULATOR_HOSTS", host(hub).as_str()), ("AWS_ENDPOINT_URL_SECRETS_MANAGER", secrets.as_str())],
    );
    (api, proxy)
}

/// An attribute of an item of the table that is text.
pub async fn attribute(cloud: &Cloud, pk: &str, name: &str) -> Option<String> {
    let key = json!({ "TableName": TABLE, "Key": { "pk": { "S": pk } }, "ConsistentRead": true });
    let item = cloud.call(Service::DynamoDb, "GetItem", key).await;
    item["Item"][name]["S"].as_str().map(str::to_owned)
}

/// The text of a tenant's secret that is in force.
async fn in_force(cloud: &Cloud, path: &str) -> String {
    let pk = format!("TENANT#acme@AdobeOrg#prod#{}", path.trim_start_matches('/').replace('/', "#"));
    let name = attribute(cloud, &pk, "secretId").await.unwrap();
    let get = json!({ "SecretId": name, "VersionStage": "AWSCURRENT" });
    text(&cloud.call(Service::SecretsManager, "GetSecretValue", get).await["SecretString"])
}

pub fn spec(id: &str) -> Value {
    json!({ "id": id, "version": "1.0" })
}

/// A documented body with its placeholders filled in.
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
        ("CONSUMER_GROUP", "ours".to_owned()),
        ("TENANT_ID", "acme".to_owned()),
        ("SEGMENT_ID", "5114d758-ce71-43ba-b53e-e2a91d67b67f".to_owned()),
    ]
}

/// Posts an event to a flow's webhook, with the credential that was shown.
pub async fn send(function: &Function, created: &Value, event: &str) -> crate::harness::Answer {
    let mut request = webhook(event);
    let url = text(&created["webhookUrl"]);
    request["rawPath"] = url.splitn(4, '/').nth(3).map(|path| format!("/{path}")).unwrap().into();
    let token = created["senderAuth"][0]["secret"].as_str().unwrap_or_default();
    request["headers"]["authorization"] = format!("Bearer {token}").into();
    crate::harness::answer(function, &request).await
}

#[tokio::test]
async fn the_documented_sequence_for_a_destination() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let values = credentials(&hub);
    let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let base = api.post("/connections", &body("1-connections.post.profile-store", &values)).await.id();
    let mut source = body("2-sourceConnections.post.profile-store", &values);
    source["baseConnectionId"] = base.as_str().into();
    let source = api.post("/sourceConnections", &source).await.id();
    let connection = api.post("/connections", &body("3-connections.post.eventhub", &values)).await.id();
    let mut target = body("4-targetConnections.post.eventhub", &values);
    target["baseConnectionId"] = connection.as_str().into();
    let target = api.post("/targetConnections", &target).await.id();
    let mut flow = body("5-flows.post", &values);
    flow["sourceConnectionIds"] = json!([source]);
    flow["targetConnectionIds"] = json!([target]);
    let created = api.post("/flows", &flow).await.expect(201);
    let path = format!("/flows/{}", text(&created["id"]));
    assert_eq!(created["webhookUrl"], format!("https://api.example.net/profile-export/{}", text(&created["id"])));
    let activate = body("6-flows.patch.activate", &values);
    let patched = api.patch(&path, &text(&created["etag"]), &activate).await.expect(200);
    assert_eq!(patched["id"], created["id"]);
    assert_ne!(patched["etag"], created["etag"]);

    let read = api.item(&path).await;
    assert_eq!(
        (&read["state"], &read["etag"], &read["version"]),
        (&json!("enabled"), &patched["etag"], &patched["etag"])
    );
    let selectors = |flow: &Value, list: &str| flow["transformations"][0]["params"][list]["selectors"].clone();
    assert_eq!(selectors(&read, "segmentSelectors")[0], activate[0]["value"]);
    assert_eq!(selectors(&read, "profileSelectors")[0], activate[1]["value"]);
    let inherited = &read["inheritedAttributes"]["targetConnections"][0];
    assert_eq!(inherited["connectionSpec"]["id"], "bf9f5905-92b7-48bf-bf20-455bc6b60a4e");
    assert_eq!(inherited["baseConnection"]["id"], connection.as_str());
    assert_eq!((&read["imsOrgId"], &read["sandboxName"]), (&json!("acme@AdobeOrg"), &json!("prod")));

    // The selected audience alone passes.
    let function = cloud.function("profile-export", &hub, &[]);
    let event = |audience: &str| {
        json!({
            "identityMap": { "ecid": [{ "id": "1" }] },
            "segmentMembership": { "ups": { audience: { "status": "realized" } } },
        })
        .to_string()
    };
    assert_eq!(send(&function, &created, &event("5114d758-ce71-43ba-b53e-e2a91d67b67f")).await, delivered(1));
    assert_eq!(send(&function, &created, &event("other")).await.body["status"], "filtered");

    // Removing, and the same etag again.
    let remove = body("7-flows.patch.remove-segment", &values);
    let etag = text(&patched["etag"]);
    api.patch(&path, &etag, &remove).await.expect(200);
    let current = text(&api.item(&path).await["etag"]);
    let stale = api.patch(&path, &etag, &remove).await.expect(412);
    let told = format!("Supplied version=[{etag}] does not match the current version on entity=[{current}]");
    assert_eq!(stale, json!({ "errorMessage": told, "errorDetails": told }));
    api.patch(&path, current.trim_matches('"'), &remove).await.expect(412);
    assert_eq!(selectors(&api.item(&path).await, "segmentSelectors"), json!([]));

    // From the end to the beginning; what is in use stays.
    for in_use in
        [format!("/connections/{connection}"), format!("/connections/{base}"), format!("/sourceConnections/{source}")]
    {
        let problem = api.delete(&in_use).await.expect(409);
        assert!(text(&problem["errorMessage"]).contains("in use"));
    }
    for unused in [path.clone(), format!("/targetConnections/{target}"), format!("/connections/{connection}/")] {
        let answer = api.delete(&unused).await;
        assert_eq!((answer.status, &answer.body), (204, &Value::Null), "{unused}");
        let missing = api.get(&unused).await.expect(404);
        let mut segments = unused.split('/').skip(1);
        let text = format!("{} not found with id = [{}]", segments.next().unwrap(), segments.next().unwrap());
        assert_eq!(missing, json!({ "errorMessage": text, "errorDetails": text }));
    }
    assert_eq!(
        api.post("/connections", &body("3-connections.post.kinesis", &values)).await.expect(400)["message"],
        "Please provide a valid spec id"
    );
}

#[tokio::test]
async fn the_documented_sequence_for_a_source() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB, "other"]).await);
    let api = control(&cloud, &[&hub]);
    let values = credentials(&hub);
    let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for refused in ["connections.post.aad", "connections.post.aad-scoped"] {
        api.post("/connections", &body(refused, &values)).await.expect(400);
    }
    let scoped = api.post("/connections", &body("connections.post.sas-scoped", &values)).await.id();
    let connection = api.post("/connections", &body("connections.post.standard", &values)).await.id();
    let read = api.item(&format!("/connections/{connection}")).await;
    assert_eq!(read["auth"]["params"]["sasKey"], "********");
    let key = hub_config().keys[0].key.clone();
    assert!(!read.to_string().contains(&key));
    let hubs = |names: &[&str]| -> Value {
        let file = |name: &&str| json!({ "type": "file", "name": name, "path": format!("/{name}"), "canPreview": false, "canFetchSchema": false });
        names.iter().map(file).collect()
    };
    let explore = |id: &str| format!("/connections/{id}/explore?objectType=root");
    assert_eq!(api.get(&explore(&connection)).await.expect(200), hubs(&[HUB, "other"]));
    assert_eq!(api.get(&explore(&scoped)).await.expect(200), hubs(&[HUB]));
    assert_eq!(api.get(&format!("/connections/{connection}/test")).await.expect(200)["result"], true);

    let mut source = body("sourceConnections.post", &values);
    source["baseConnectionId"] = connection.as_str().into();
    let source = api.post("/sourceConnections", &source).await.id();
    let target = api.post("/targetConnections", &body("targetConnections.post", &values)).await.id();
    let mut flow = body("flows.post", &values);
    flow["sourceConnectionIds"] = json!([source]);
    flow["targetConnectionIds"] = json!([target]);
    let created = api.post("/flows", &flow).await.expect(201);
    let path = format!("/flows/{}", text(&created["id"]));
    let mapping = body("flows.patch.mapping", &values);
    api.patch(&path, &text(&created["etag"]), &mapping).await.expect(200);
    assert_eq!(api.item(&path).await["transformations"][0], mapping[0]["value"]);
    assert_eq!(
        api.get(&format!("/runs?property=flowId=={}", text(&created["id"]))).await.expect(200),
        json!({ "items": [] })
    );
    // No function serves it: there is no item for one.
    let item = format!("FLOW#{}", text(&created["id"]));
    assert_eq!(attribute(&cloud, &item, "kind").await, None);
    let read = api.item(&format!("/sourceConnections/{source}")).await;
    let event_hubs = spec("bf9f5905-92b7-48bf-bf20-455bc6b60a4e");
    assert_eq!(
        read["inheritedAttributes"],
        json!({ "baseConnection": { "id": connection, "connectionSpec": event_hubs } })
    );
    assert_eq!(api.item(&format!("/targetConnections/{target}")).await["inheritedAttributes"], json!({}));
    for op in ["disable", "enable"] {
        api.post(&format!("{path}/action?op={op}"), &Value::Null).await.expect(200);
        assert_eq!(api.item(&path).await["state"], format!("{op}d"));
        assert_eq!(attribute(&cloud, &item, "state").await, None);
    }
    // The ends fit the flow spec.
    flow["flowSpec"]["id"] = "71471eba-b620-49e4-90fd-23f1fa0174d8".into();
    api.post("/flows", &flow).await.expect(400);

    // Lists, filtered.
    let count = async |target: &str| api.get(target).await.expect(200)["items"].as_array().unwrap().len();
    assert_eq!(count("/connections").await, 2);
    assert_eq!(count(&format!("/connections?property=id=={connection}")).await, 1);
    let by_spec = "/flows?property=inheritedAttributes.sourceConnections[].connectionSpec.id==bf9f5905-92b7-48bf-bf20-455bc6b60a4e";
    assert_eq!(count(by_spec).await, 1);
    assert_eq!(count("/flows?property=state==disabled").await, 0);
    // A sandbox has one id.
    let sandbox = api.item(&path).await["sandboxId"].clone();
    assert_eq!((text(&sandbox).len(), &sandbox), (36, &read["sandboxId"]));
    let other = Caller { sandbox: "dev", ..api.clone() };
    let body = json!({ "name": "n", "connectionSpec": spec("8a9c3494-9708-43d7-ae3f-cda01e5030e1") });
    let id = other.post("/connections", &body).await.id();
    assert_ne!(other.item(&format!("/connections/{id}")).await["sandboxId"], sandbox);
    let page = api.get("/connections?limit=1&count=true").await.expect(200);
    assert_eq!((&page["items"][0]["id"], &page["count"]), (&json!(connection), &json!(2)), "newest first");
    let next = api.get(&text(&page["_links"]["next"]["href"])).await.expect(200);
    assert_eq!(next["items"][0]["id"], scoped.as_str());
    assert!(api.get("/connectionSpecs").await.expect(200)["items"].as_array().unwrap().len() >= 5);
    assert_eq!(api.item("/flowSpecs/d69717ba-71b4-4313-b654-49f9cf126d7a").await["version"], "1.0");
    for unused in [&path, &format!("/targetConnections/{target}"), &format!("/sourceConnections/{source}")] {
        assert_eq!(api.delete(unused).await.status, 204, "{unused}");
        api.get(unused).await.expect(404);
    }
    for kind in local::kinds::KINDS {
        let spec = api.item(&format!("/connectionSpecs/{}", kind.sender_spec)).await;
        assert_eq!(spec["attributes"]["kind"], kind.name, "every kind has its spec");
    }
}

#[tokio::test]
async fn requests_are_checked_in_the_documented_order() {
    let cloud = Cloud::start().await;
    let api = control(&cloud, &[]);
    let mut event = api.event("POST", "/flows", &Value::Null);
    event["body"] = "{ // a comment\n}".into();
    let full = event["headers"].clone();
    let claims = event["requestContext"]["authorizer"].clone();
    event["headers"] = json!({});
    event["requestContext"]["authorizer"] = Value::Null;
    assert_eq!(api.invoke(&event).await.expect(403)["error_code"], "403010");
    event["headers"]["authorization"] = full["authorization"].clone();
    assert_eq!(api.invoke(&event).await.expect(401)["error_code"], "401013");
    event["requestContext"]["authorizer"] = claims;
    assert_eq!(api.invoke(&event).await.expect(403)["error_code"], "403000");
    event["headers"]["x-api-key"] = full["x-api-key"].clone();
    assert_eq!(api.invoke(&event).await.expect(400)["error_code"], "400003");
    event["headers"]["x-gw-ims-org-id"] = "stranger".into();
    assert_eq!(api.invoke(&event).await.expect(403)["error_code"], "403025");
    event["headers"]["x-gw-ims-org-id"] = full["x-gw-ims-org-id"].clone();
    assert_eq!(api.invoke(&event).await.expect(400)["detail"], "A valid content-type must be specified");
    event["headers"]["content-type"] = "application/json; charset=utf-8".into();
    assert!(text(&api.invoke(&event).await.expect(400)["detail"]).contains("no JSON"));
    let flow = |spec: Value| json!({ "name": "n", "sourceConnectionIds": [ABSENT], "targetConnectionIds": [ABSENT], "flowSpec": spec });
    api.post("/flows", &json!({ "flowSpec": spec("x") })).await.expect(400);
    assert_eq!(api.post("/flows", &flow(spec("x"))).await.expect(400)["message"], "Please provide a valid spec id");
    let unversioned = json!({ "id": "71471eba-b620-49e4-90fd-23f1fa0174d8" });
    assert_eq!(
        api.post("/flows", &flow(unversioned)).await.expect(422)["message"],
        "flowSpec.version 'version' is required for spec info"
    );
    let known = spec("71471eba-b620-49e4-90fd-23f1fa0174d8");
    assert!(text(&api.post("/flows", &flow(known)).await.expect(400)["message"]).contains("sourceConnectionIds"));
    let large = json!({ "name": "n", "description": "x".repeat(200_000) });
    api.post("/connections", &large).await.expect(413);
    for (method, target, status) in [("GET", "/search", 404), ("PUT", "/flows", 405), ("GET", "/runs/7", 404)] {
        api.call(method, target, &json!({})).await.expect(status);
    }
    let path = format!("/flows/{ABSENT}");
    let rename = json!([{ "op": "replace", "path": "/name", "value": "b" }]);
    // What is referred to comes before the etag.
    api.call("PATCH", &path, &rename).await.expect(404);
    api.patch(&path, "\"x\"", &rename).await.expect(404);
    let there = json!({ "name": "n", "connectionSpec": spec(DATAVERSE) });
    let there = format!("/connections/{}", api.post("/connections", &there).await.id());
    assert!(text(&api.call("PATCH", &there, &rename).await.expect(400)["detail"]).contains("If-Match"));
    let tilde = json!([{ "op": "add", "path": "/x~y", "value": 1 }]);
    api.patch(&there, "*", &tilde).await.expect(400);
    let precise = json!([{ "op": "add", "path": "/x", "value": 0 }]);
    let mut event = api.event("PATCH", &there, &precise);
    event["headers"]["if-match"] = "*".into();
    event["body"] = r#"[{"op":"add","path":"/x","value":12345678901234567890123}]"#.into();
    assert!(text(&api.invoke(&event).await.expect(400)["detail"]).contains("digits"));
    assert!(api.item(&there).await.get("x").is_none());
    api.post(&format!("{path}/action?op=pause"), &Value::Null).await.expect(400);
    api.post(&format!("{path}/action?op=ENABLE"), &Value::Null).await.expect(404);
    assert_eq!(api.get("/openapi.json").await.expect(200)["openapi"], "3.1.0");
}

#[tokio::test]
async fn a_connection_is_checked_as_it_is_created() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let key = hub_config().keys[0].clone();
    let with = |params: Value| {
        json!({
            "name": "c", "connectionSpec": spec("bf9f5905-92b7-48bf-bf20-455bc6b60a4e"),
            "auth": { "specName": "Azure EventHub authentication credentials", "params": params },
        })
    };
    let good = json!({ "sasKeyName": key.name, "sasKey": key.key, "namespace": host(&hub) });
    let changed = |name: &str, value: &str| {
        let mut params = good.clone();
        params[name] = value.into();
        with(params)
    };
    for (body, told) in [
        (changed("sasKey", "d3Jvbmc="), "wrong key"),
        (changed("sasKeyName", "nobody"), "wrong key"),
        (changed("eventHubName", "nowhere"), "no such event hub"),
        (changed("namespace", "evil.example"), "not an Event Hubs namespace"),
        (changed("namespace", "127.0.0.1:1"), "not an Event Hubs namespace"),
        (changed("sasKey", "********"), "mask"),
    ] {
        let message = text(&api.post("/connections", &body).await.expect(400)["message"]);
        assert!(message.contains(told), "{message}");
    }
    let wrong = api.post("/connections?validate=false", &changed("sasKey", "d3Jvbmc=")).await.id();
    let test = api.get(&format!("/connections/{wrong}/test")).await.expect(200);
    assert_eq!(test["result"], false);
    api.get(&format!("/connections/{wrong}/explore")).await.expect(403);
    // Unreachable is no refusal, unless it is asked for.
    let gone = emulator(&[HUB]).await;
    let elsewhere = control(&cloud, &[&gone]);
    gone.shutdown().await;
    let body = changed("namespace", &host(&gone));
    elsewhere.post("/connections?validate=true", &body).await.expect(400);
    let id = elsewhere.post("/connections", &body).await.id();
    assert_eq!(elsewhere.get(&format!("/connections/{id}/test")).await.expect(200)["result"], false);
    elsewhere.get(&format!("/connections/{id}/explore")).await.expect(400);

    // Patched: the key anew, a mask never, the type never.
    let path = format!("/connections/{wrong}");
    let params = |value: Value| json!([{ "op": "replace", "path": "/auth/params", "value": value }]);
    api.patch(&path, "*", &params(json!({ "sasKeyName": key.name, "sasKey": "********", "namespace": host(&hub) })))
        .await
        .expect(400);
    api.patch(&path, "*", &params(json!({ "sasKeyName": key.name, "namespace": host(&hub) }))).await.expect(400);
    api.patch(&path, "*", &json!([{ "op": "replace", "path": "/auth/specName", "value": "x" }])).await.expect(400);
    api.patch(&path, "*", &params(good.clone())).await.expect(200);
    assert_eq!(api.get(&format!("{path}/test")).await.expect(200)["result"], true);
    // Everything that the functions wrote and answered holds no key.
    for function in [&api.function, &elsewhere.function] {
        assert!(!function.logs().join("\n").contains(&key.key));
    }
    let items = cloud.call(Service::DynamoDb, "Scan", json!({ "TableName": TABLE })).await;
    assert!(!items.to_string().contains(&key.key));
}

#[tokio::test]
async fn tenants_see_nothing_of_each_other() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let ours = control(&cloud, &[&hub]);
    let by_text = control_with(&cloud, &[("EMULATOR_HOSTS", &host(&hub)), ("ORG_CLAIM_TYPE", "text")]);
    let connection = ours.connection(&hub).await;
    let created = ours.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
    let flow = ours.item(&format!("/flows/{}", text(&created["id"]))).await;
    let (source, target) = (text(&flow["sourceConnectionIds"][0]), text(&flow["targetConnectionIds"][0]));
    let others = [
        Caller { organisation: "other", ..ours.clone() },
        Caller { sandbox: "dev", ..ours.clone() },
        // An organisation that looks like a part of our keys. A list can't name it.
        Caller { organisation: "acme@AdobeOrg#prod#flows", ..by_text },
    ];
    for other in &others {
        for (collection, id) in [
            ("connections", &connection),
            ("sourceConnections", &source),
            ("targetConnections", &target),
            ("flows", &text(&created["id"])),
        ] {
            assert_eq!(other.get(&format!("/{collection}")).await.expect(200), json!({ "items": [] }));
            let path = format!("/{collection}/{id}");
            let missing = other.get(&path).await.expect(404);
            assert!(!missing.to_string().contains("etag"));
            let rename = json!([{ "op": "replace", "path": "/name", "value": "mine" }]);
            other.patch(&path, "*", &rename).await.expect(404);
            other.delete(&path).await.expect(404);
        }
        for suffix in ["test", "explore"] {
            other.get(&format!("/connections/{connection}/{suffix}")).await.expect(404);
        }
        let id = text(&created["id"]);
        other.post(&format!("/flows/{id}/action?op=disable"), &Value::Null).await.expect(404);
        let body = json!({
            "name": "n", "connectionSpec": spec("bf9f5905-92b7-48bf-bf20-455bc6b60a4e"), "baseConnectionId": connection,
            "params": { "eventHubName": HUB },
        });
        for ends in ["/sourceConnections", "/targetConnections"] {
            other.post(ends, &body).await.expect(400);
        }
        let body = json!({
            "name": "n", "flowSpec": spec("71471eba-b620-49e4-90fd-23f1fa0174d8"),
            "sourceConnectionIds": [source], "targetConnectionIds": [target],
        });
        other.post("/flows", &body).await.expect(400);
    }
    assert_eq!(ours.item(&format!("/flows/{}", text(&created["id"]))).await, flow, "nothing has changed");
}

#[tokio::test]
async fn of_two_hundred_updates_with_one_etag_one_wins() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let created = api.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
    let path = format!("/flows/{}", text(&created["id"]));
    let flow = api.item(&path).await;
    let ends = [("source", "sourceConnections"), ("target", "targetConnections")];
    let [source, target] = ends.map(|(end, name)| format!("/{name}/{}", text(&flow[format!("{end}ConnectionIds")][0])));
    // One collection in full, and the others by the same way.
    for (path, count) in [(path, 200), (source, 50), (target, 50), (format!("/connections/{connection}"), 50)] {
        let etag = text(&api.item(&path).await["etag"]);
        let updates: Vec<_> = (0..count)
            .map(|n| {
                let (api, path, etag) = (api.clone(), path.clone(), etag.clone());
                tokio::spawn(async move {
                    let rename = json!([{ "op": "replace", "path": "/name", "value": format!("name {n}") }]);
                    (n, api.patch(&path, &etag, &rename).await)
                })
            })
            .collect();
        let mut winners = Vec::new();
        for update in updates {
            let (n, answer) = update.await.unwrap();
            match answer.status {
                200 => winners.push((n, answer.body)),
                _ => drop(answer.expect(412)),
            }
        }
        assert_eq!(winners.len(), 1, "{path} {winners:?}");
        let item = api.item(&path).await;
        assert_eq!((&item["name"], &item["etag"]), (&json!(format!("name {}", winners[0].0)), &winners[0].1["etag"]));
    }
}

#[tokio::test]
async fn changes_that_many_flows_depend_on_may_come_together() {
    const FLOWS: usize = 60;
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB, "other"]).await);
    let mut api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let created = api.flow(DATA_ACTIVATION, json!({ "options": {} }), &connection, HUB).await;
    let flow = api.item(&format!("/flows/{}", text(&created["id"]))).await;
    let again = json!({
        "name": "again", "flowSpec": flow["flowSpec"], "sourceConnectionIds": flow["sourceConnectionIds"],
        "targetConnectionIds": flow["targetConnectionIds"],
    });
    let mut last = String::new();
    for _ in 1..FLOWS {
        last = api.post("/flows", &again).await.id();
    }
    let source = format!("/sourceConnections/{}", text(&flow["sourceConnectionIds"][0]));
    let target = format!("/targetConnections/{}", text(&flow["targetConnectionIds"][0]));
    api = control_in(&cloud, &[("EMULATOR_HOSTS", &host(&hub))], Duration::from_secs(10));
    let together = async |path: &str, patch: &dyn Fn(usize) -> Value| {
        let patches = (0..4).map(|n| {
            let (api, path, patch) = (api.clone(), path.to_owned(), patch(n));
            tokio::spawn(async move { api.patch(&path, "*", &patch).await })
        });
        let mut statuses = Vec::new();
        for patched in patches.collect::<Vec<_>>() {
            statuses.push(patched.await.unwrap().status);
        }
        statuses
    };
    // What no flow's item has of it is written alone: all succeed.
    let item = format!("FLOW#{last}");
    let rename = |n: usize| json!([{ "op": "replace", "path": "/name", "value": format!("name {n}") }]);
    let senders = |n: usize| json!([{ "op": "add", "path": "/params/senderAuth", "value": [{ "type": "bearer", "secret": format!("s{n}") }] }]);
    let version = async || {
        let key = json!({ "TableName": TABLE, "Key": { "pk": { "S": item } }, "ConsistentRead": true });
        cloud.call(Service::DynamoDb, "GetItem", key).await["Item"]["version"]["N"].clone()
    };
    let before = version().await;
    assert_eq!(together(&source, &rename).await, [200; 4]);
    assert_eq!(together(&target, &rename).await, [200; 4]);
    assert_eq!(together(&source, &senders).await, [200; 4]);
    assert_eq!(version().await, before);
    // What reaches all of them takes its turn, or says that it is busy.
    let options = |n: usize| json!([{ "op": "add", "path": "/params/options/partnerNumber", "value": 50 + n }]);
    let statuses = together(&source, &options).await;
    assert!(statuses.contains(&200) && statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    let stands = api.item(&source).await["params"]["options"]["partnerNumber"].to_string();
    assert!(attribute(&cloud, &item, "options").await.unwrap().contains(&stands), "{stands}");
}

#[tokio::test]
async fn what_takes_longer_than_the_function_has_is_answered_all_the_same() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let proxy = Proxy::start(cloud.endpoint(), shared::build_http_client(None).unwrap().client()).await;
    let table = format!("http://{}", proxy.address());
    let variables = [("EMULATOR_HOSTS", host(&hub)), ("AWS_ENDPOINT_URL_DYNAMODB", table)];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let api = control_in(&cloud, &variables, Duration::from_secs(4));
    let path = format!("/connections/{}", api.connection(&hub).await);
    let rename = json!([{ "op": "replace", "path": "/name", "value": "late" }]);
    proxy.fail("DynamoDB_20120810.TransactWriteItems", AwsFault::Hang);
    for answer in [api.patch(&path, "*", &rename).await, api.delete(&path).await] {
        assert!(text(&answer.expect(503)["message"]).contains("send it again"));
    }
    proxy.heal("DynamoDB_20120810.TransactWriteItems");
    api.patch(&path, "*", &rename).await.expect(200);
    assert_eq!(api.item(&path).await["name"], "late");
}

#[tokio::test]
async fn a_flow_made_while_its_target_changes_leads_where_the_target_does() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB, "other"]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    for round in 0..8 {
        let created = api.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
        let flow = api.item(&format!("/flows/{}", text(&created["id"]))).await;
        let (source, target) = (text(&flow["sourceConnectionIds"][0]), text(&flow["targetConnectionIds"][0]));
        api.delete(&format!("/flows/{}", text(&created["id"]))).await;
        let again = json!({
            "name": "again", "flowSpec": spec("71471eba-b620-49e4-90fd-23f1fa0174d8"),
            "sourceConnectionIds": [source], "targetConnectionIds": [target],
        });
        let path = format!("/targetConnections/{target}");
        let moved = json!([{ "op": "replace", "path": "/params/eventHubName", "value": "other" }]);
        let (created, patched) = tokio::join!(api.post("/flows", &again), api.patch(&path, "*", &moved));
        let id = text(&created.expect(201)["id"]);
        patched.expect(200);
        let key = json!({ "TableName": TABLE, "Key": { "pk": { "S": format!("FLOW#{id}") } } });
        let item = cloud.call(Service::DynamoDb, "GetItem", key).await;
        assert_eq!(item["Item"]["hub"]["S"], "other", "round {round}");
    }
}

#[tokio::test]
async fn no_member_and_no_patch_makes_an_object_that_nobody_can_remove() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let odd = json!({
        "name": "odd", "connectionSpec": spec("8a9c3494-9708-43d7-ae3f-cda01e5030e1"),
        "baseConnectionId": ABSENT, "sourceConnectionIds": [ABSENT], "targetConnectionIds": [ABSENT],
    });
    let path = format!("/connections/{}", api.post("/connections", &odd).await.id());
    let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
    let add = |path: String, levels: usize| json!([{ "op": "add", "path": path, "value": nested(levels) }]);
    api.patch(&path, "*", &add("/x".to_owned(), 90)).await.expect(200);
    api.patch(&path, "*", &add(format!("/x{}/-", "/0".repeat(80)), 90)).await.expect(400);
    api.item(&path).await;
    let deleted = api.delete(&path).await;
    assert!(deleted.status < 300, "{deleted:?}");
    api.get(&path).await.expect(404);
}

#[tokio::test]
async fn a_flow_carries_events_and_obeys() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB, "second"]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let created = api.flow(DATA_ACTIVATION, json!({ "options": {} }), &connection, HUB).await;
    let path = format!("/flows/{}", text(&created["id"]));
    let function = || cloud.function("audience-change", &hub, &[]);
    let long_lived = function();
    assert_eq!(send(&long_lived, &created, DOCUMENTED).await, delivered(1));
    assert_eq!(hub.events(HUB).len(), 1);
    let mut stranger = created.clone();
    stranger["senderAuth"] = json!([]);
    send(&function(), &stranger, DOCUMENTED).await.problem(401);

    // The credential is shown once.
    let flow = api.item(&path).await;
    let source = format!("/sourceConnections/{}", text(&flow["sourceConnectionIds"][0]));
    assert_eq!(api.item(&source).await["params"]["senderAuth"], json!([{ "type": "bearer" }]));
    let again = json!({
        "name": "again", "flowSpec": flow["flowSpec"], "sourceConnectionIds": flow["sourceConnectionIds"],
        "targetConnectionIds": flow["targetConnectionIds"],
    });
    let again = api.post("/flows", &again).await.expect(201);
    assert_eq!(again["senderAuth"], json!([{ "type": "bearer" }]));
    api.delete(&format!("/flows/{}", text(&again["id"]))).await.expect(204);

    // The options are the kind's.
    let options = |value: Value| json!([{ "op": "add", "path": "/params/options", "value": value }]);
    api.patch(&source, "*", &options(json!({ "unknown": 1 }))).await.expect(400);
    api.patch(&source, "*", &options(json!({ "partnerNumber": 44 }))).await.expect(200);
    assert_eq!(send(&function(), &created, DOCUMENTED).await.body["status"], "filtered");
    api.patch(&source, "*", &options(json!({}))).await.expect(200);

    // The target's hub.
    let target = format!("/targetConnections/{}", text(&flow["targetConnectionIds"][0]));
    let hub_name = json!([{ "op": "replace", "path": "/params/eventHubName", "value": "second" }]);
    api.patch(&target, "*", &hub_name).await.expect(200);
    assert_eq!(send(&function(), &created, DOCUMENTED).await, delivered(1));
    assert_eq!(hub.events("second").len(), 1);

    // Another credential beside none of the old.
    let senders =
        json!([{ "op": "replace", "path": "/params/senderAuth", "value": [{ "type": "bearer", "secret": "mine" }] }]);
    api.patch(&source, "*", &senders).await.expect(200);
    let mut known = created.clone();
    send(&function(), &known, DOCUMENTED).await.problem(401);
    known["senderAuth"] = json!([{ "type": "bearer", "secret": "mine" }]);
    assert_eq!(send(&function(), &known, DOCUMENTED).await, delivered(1));

    let disabled = api.post(&format!("{path}/action?op=disable"), &Value::Null).await.expect(200);
    assert_eq!(disabled["id"], created["id"]);
    assert_eq!(api.item(&path).await["state"], "disabled");
    send(&function(), &known, DOCUMENTED).await.problem(409);
    // The one that has cached it follows within a minute.
    let deadline = Instant::now() + Duration::from_secs(70);
    while send(&long_lived, &known, DOCUMENTED).await.status != 409 {
        assert!(Instant::now() < deadline, "a change takes effect within the cache time");
        sleep(Duration::from_secs(1)).await;
    }
    api.post(&format!("{path}/action?op=enable"), &Value::Null).await.expect(200);
    assert_eq!(send(&function(), &known, DOCUMENTED).await, delivered(1));
    api.delete(&path).await.expect(204);
    send(&function(), &known, DOCUMENTED).await.problem(404);
}

#[tokio::test]
async fn a_connection_moves_with_its_flows() {
    let (cloud, old, new) = (Cloud::start().await, emulator(&[HUB]).await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&old, &new]);
    let connection = api.connection(&old).await;
    let created = api.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
    let disabled = api.flow(DATAVERSE, json!({}), &connection, HUB).await;
    let action = format!("/flows/{}/action?op=disable", text(&disabled["id"]));
    api.post(&action, &Value::Null).await.expect(200);
    let path = format!("/connections/{connection}");
    let string = |hub: &Emulator| hub.connection_string(&hub_config().keys[0].name, None);
    let moves = [
        (&new, json!([{ "op": "replace", "path": "/auth/params/namespace", "value": host(&new) }])),
        (&old, json!([{ "op": "replace", "path": "/auth/params", "value": { "connectionString": string(&old) } }])),
        (&new, json!([{ "op": "add", "path": "/auth/params/namespace", "value": format!("sb://{}/", host(&new)) }])),
        // The same place in other words.
        (&new, json!([{ "op": "replace", "path": "/auth/params/namespace", "value": host(&new) }])),
    ];
    for (to, patch) in moves {
        api.patch(&path, "*", &patch).await.expect(200);
        let secret =
            attribute(&cloud, &format!("TENANT#acme@AdobeOrg#prod#connections#{connection}"), "secretId").await;
        for (flow, state) in [(&created, "enabled"), (&disabled, "disabled")] {
            let item = format!("FLOW#{}", text(&flow["id"]));
            assert_eq!(attribute(&cloud, &item, "host").await, Some(host(to)), "{patch}");
            assert_eq!(attribute(&cloud, &item, "connectionSecretId").await, secret, "{patch}");
            assert_eq!(attribute(&cloud, &item, "state").await.as_deref(), Some(state));
        }
        assert!(in_force(&cloud, &path).await.contains(&format!("sb://{}/", host(to))), "{patch}");
    }
    let function = cloud.function("audience-change", &old, &[]);
    assert_eq!(send(&function, &created, DOCUMENTED).await, delivered(1));
    assert_eq!((old.events(HUB).len(), new.events(HUB).len()), (0, 1));
    let scope = json!([{ "op": "add", "path": "/auth/params/eventHubName", "value": "another" }]);
    api.patch(&path, "*", &scope).await.expect(400);
}

#[tokio::test]
async fn of_two_crossing_rotations_the_last_is_in_force() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let (api, proxy) = control_with_proxy(&cloud, &hub).await;
    let path = format!("/connections/{}", api.connection(&hub).await);
    let change = |name: &str| {
        json!([
            { "op": "replace", "path": "/auth/params/sasKeyName", "value": name },
            { "op": "replace", "path": "/auth/params/sasKey", "value": format!("key-of-{name}") },
        ])
    };
    for step in ["PutSecretValue", "UpdateSecretVersionStage"] {
        let mut held = proxy.hold(&format!("secretsmanager.{step}"));
        let (one, one_path, patch) = (api.clone(), path.clone(), change("one"));
        let one = tokio::spawn(async move { one.patch(&one_path, "*", &patch).await });
        held.came().await;
        api.patch(&path, "*", &change("two")).await.expect(200);
        drop(held);
        one.await.unwrap().expect(200);
        let name = text(&api.item(&path).await["auth"]["params"]["sasKeyName"]);
        let secret = in_force(&cloud, &path).await;
        let expected = format!("SharedAccessKeyName={name};SharedAccessKey=key-of-{name};");
        assert!(secret.contains(&expected), "{step}: the table says {name}, in force is {secret}");
    }
}

#[tokio::test]
async fn a_change_that_ended_halfway_is_mended_by_repeating_it() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let (api, proxy) = control_with_proxy(&cloud, &hub).await;
    let connection = api.connection(&hub).await;
    let created = api.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
    let source = text(&api.item(&format!("/flows/{}", text(&created["id"]))).await["sourceConnectionIds"][0]);
    let (connection, source) = (format!("/connections/{connection}"), format!("/sourceConnections/{source}"));
    for step in ["PutSecretValue", "UpdateSecretVersionStage"] {
        let step = format!("secretsmanager.{step}");
        let name = format!("after-{step}");
        let renamed = json!([{ "op": "replace", "path": "/auth/params/sasKeyName", "value": name }]);
        let senders =
            json!([{ "op": "add", "path": "/params/senderAuth", "value": [{ "type": "bearer", "secret": name }] }]);
        for (path, patch) in [(&connection, &renamed), (&source, &senders)] {
            proxy.fail(&step, AwsFault::Unavailable);
            api.patch(path, "*", patch).await.expect(503);
            proxy.heal(&step);
            assert!(!in_force(&cloud, path).await.contains(&name), "{step} {path}");
            api.patch(path, "*", patch).await.expect(200);
            assert!(in_force(&cloud, path).await.contains(&name), "{step} {path}");
        }
    }
    // A test of the connection mends it too: it would tell of a key that nobody uses.
    let key = hub_config().keys[0].clone();
    let good = json!([{ "op": "replace", "path": "/auth/params/sasKeyName", "value": key.name }]);
    proxy.fail("secretsmanager.UpdateSecretVersionStage", AwsFault::Unavailable);
    api.patch(&connection, "*", &good).await.expect(503);
    proxy.heal("secretsmanager.UpdateSecretVersionStage");
    assert_eq!(api.get(&format!("{connection}/test")).await.expect(200)["result"], true);
    assert!(in_force(&cloud, &connection).await.contains(&format!("SharedAccessKeyName={};", key.name)));
    let mut known = created.clone();
    known["senderAuth"] = json!([{ "type": "bearer", "secret": "after-secretsmanager.UpdateSecretVersionStage" }]);
    let function = cloud.function("audience-change", &hub, &[]);
    assert_eq!(send(&function, &known, DOCUMENTED).await, delivered(1), "functions read what is in force");
}

/// The versions of a tenant's secret.
async fn versions(cloud: &Cloud, path: &str) -> usize {
    let pk = format!("TENANT#acme@AdobeOrg#prod#{}", path.trim_start_matches('/').replace('/', "#"));
    let name = attribute(cloud, &pk, "secretId").await.unwrap();
    let list = json!({ "SecretId": name, "IncludeDeprecated": true });
    cloud.call(Service::SecretsManager, "ListSecretVersionIds", list).await["Versions"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_secret_is_stored_once_and_only_by_what_is_done() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB, "other"]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let created = api.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
    let source = text(&api.item(&format!("/flows/{}", text(&created["id"]))).await["sourceConnectionIds"][0]);
    let (connection, source) = (format!("/connections/{connection}"), format!("/sourceConnections/{source}"));
    // Another key, with a scope that the target's hub is not of; another credential, with options that are none.
    let scope = json!([
        { "op": "replace", "path": "/auth/params/sasKey", "value": "another" },
        { "op": "add", "path": "/auth/params/eventHubName", "value": "other" },
    ]);
    let senders = |secret: &str| json!([{ "type": "bearer", "secret": secret }]);
    let options = json!([
        { "op": "add", "path": "/params/senderAuth", "value": senders("mine") },
        { "op": "add", "path": "/params/options", "value": { "unknown": 1 } },
    ]);
    for (path, patch) in [(&connection, &scope), (&source, &options)] {
        for _ in 0..3 {
            api.patch(path, "*", patch).await.expect(400);
        }
        assert_eq!(versions(&cloud, path).await, 1, "{path}");
    }
    // Four at once: each stores its own, however often it must begin again.
    let patches = (0..4).map(|n| {
        let (api, path) = (api.clone(), source.clone());
        let patch = json!([{ "op": "add", "path": "/params/senderAuth", "value": senders(&format!("s{n}")) }]);
        tokio::spawn(async move { api.patch(&path, "*", &patch).await })
    });
    for patched in patches.collect::<Vec<_>>() {
        patched.await.unwrap().expect(200);
    }
    assert!(versions(&cloud, &source).await <= 5);
    // A hub's name is the same in any case.
    let scope = json!([{ "op": "add", "path": "/auth/params/eventHubName", "value": HUB.to_uppercase() }]);
    api.patch(&connection, "*", &scope).await.expect(200);
}

#[tokio::test]
async fn a_connection_string_may_replace_what_a_connection_had() {
    let (cloud, old, new) = (Cloud::start().await, emulator(&[HUB]).await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&old, &new]);
    let path = format!("/connections/{}", api.connection(&old).await);
    for hub in [&old, &new] {
        let string = hub.connection_string(&hub_config().keys[0].name, None);
        let patch = json!([{ "op": "add", "path": "/auth/params/connectionString", "value": string }]);
        api.patch(&path, "*", &patch).await.expect(200);
        assert!(in_force(&cloud, &path).await.contains(&host(hub)));
        let params = api.item(&path).await["auth"]["params"].clone();
        assert_eq!((&params["namespace"], &params["sasKey"]), (&json!(host(hub)), &json!("********")));
    }
    // What the same patch says otherwise is a contradiction.
    let string = new.connection_string(&hub_config().keys[0].name, None);
    let patch = json!([
        { "op": "add", "path": "/auth/params/connectionString", "value": string },
        { "op": "replace", "path": "/auth/params/sasKeyName", "value": "another" },
    ]);
    api.patch(&path, "*", &patch).await.expect(400);
}

#[tokio::test]
async fn a_test_tells_also_of_what_is_stored_and_of_no_use() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let path = format!("/connections/{}", api.connection(&hub).await);
    // A namespace that was allowed once.
    let test = control(&cloud, &[]).get(&format!("{path}/test")).await.expect(200);
    assert_eq!(test["result"], false);
    assert!(text(&test["detail"]).contains("namespace"), "{test}");
    let pk = format!("TENANT#acme@AdobeOrg#prod#{}", path.trim_start_matches('/').replace('/', "#"));
    let name = attribute(&cloud, &pk, "secretId").await.unwrap();
    cloud.call(Service::SecretsManager, "DeleteSecret", json!({ "SecretId": name })).await;
    let test = api.get(&format!("{path}/test")).await.expect(200);
    assert_eq!(test["result"], false);
    assert!(text(&test["detail"]).contains("restore it"), "{test}");
}

#[tokio::test]
async fn a_flow_that_gets_another_source_shows_its_credential() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let created = api.flow(DATAVERSE, json!({}), &connection, HUB).await;
    let path = format!("/flows/{}", text(&created["id"]));
    let source =
        json!({ "name": "new", "connectionSpec": spec(DATA_ACTIVATION), "params": { "senderAuth": "generate" } });
    let source = api.post("/sourceConnections", &source).await.id();
    let before = text(&api.item(&path).await["sourceConnectionIds"][0]);
    let lead = |to: &str| json!([{ "op": "replace", "path": "/sourceConnectionIds", "value": [to] }]);
    let changed = api.patch(&path, "*", &lead(&source)).await.expect(200);
    assert!(text(&changed["webhookUrl"]).contains("/audience-change/"));
    let function = cloud.function("audience-change", &hub, &[]);
    assert_eq!(send(&function, &changed, DOCUMENTED).await, delivered(1));
    // Once.
    api.patch(&path, "*", &lead(&before)).await.expect(200);
    let again = api.patch(&path, "*", &lead(&source)).await.expect(200);
    assert_eq!(again["senderAuth"], json!([{ "type": "bearer" }]));
    let rename = json!([{ "op": "replace", "path": "/name", "value": "n" }]);
    assert!(api.patch(&path, "*", &rename).await.expect(200).get("senderAuth").is_none());
}

#[tokio::test]
async fn options_and_objects_have_sizes_that_the_table_takes() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let audiences = |count: usize| -> Vec<String> { (0..count).map(|n| format!("{n:036}")).collect() };
    let source = |count: usize| {
        json!({
            "name": "s", "connectionSpec": spec("8a9c3494-9708-43d7-ae3f-cda01e5030e1"),
            "params": { "options": { "audiences": audiences(count) } },
        })
    };
    let message = text(&api.post("/sourceConnections", &source(1_100)).await.expect(400)["message"]);
    assert!(message.contains("42915 bytes") && message.contains("40000 at most"), "{message}");
    let params = source(900)["params"].clone();
    let created = api.flow("8a9c3494-9708-43d7-ae3f-cda01e5030e1", params, &connection, HUB).await;
    let path = format!("/flows/{}", text(&created["id"]));
    let selectors = |count: usize| -> Value {
        audiences(count).iter().map(|id| json!({ "type": "PLATFORM_SEGMENT", "value": { "id": id } })).collect()
    };
    let select = |count: usize| {
        json!([{ "op": "add", "path": "/transformations", "value": [
            { "name": "GeneralTransform", "params": { "segmentSelectors": { "selectors": selectors(count) } } },
        ] }])
    };
    api.patch(&path, "*", &select(900)).await.expect(200);
    let message = text(&api.patch(&path, "*", &select(1_100)).await.expect(400)["message"]);
    assert!(message.contains("42915 bytes"), "{message}");
    // Objects grow by patches.
    let grow = |n: usize| json!([{ "op": "add", "path": format!("/more{n}"), "value": "x".repeat(100_000) }]);
    let sizes = async |path: &str| {
        for n in 0..5 {
            let answer = api.patch(path, "*", &grow(n)).await;
            if answer.status != 200 {
                return (n, answer.status);
            }
        }
        (5, 200)
    };
    assert_eq!(sizes(&path).await, (1, 413));
    api.post(&format!("{path}/action?op=disable"), &Value::Null).await.expect(200);
    assert_eq!(sizes(&format!("/connections/{connection}")).await, (0, 413));
}

#[tokio::test]
async fn a_change_reaches_what_one_transaction_takes() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let audiences: Vec<String> = (0..1_000).map(|n| format!("{n:036}")).collect();
    let params = json!({ "options": { "audiences": audiences } });
    let created = api.flow("8a9c3494-9708-43d7-ae3f-cda01e5030e1", params, &connection, HUB).await;
    let first = api.item(&format!("/flows/{}", text(&created["id"]))).await;
    let again = json!({
        "name": "again", "flowSpec": first["flowSpec"], "sourceConnectionIds": first["sourceConnectionIds"],
        "targetConnectionIds": first["targetConnectionIds"],
    });
    let mut last = String::new();
    for _ in 1..80 {
        last = api.post("/flows", &again).await.id();
    }
    api.post("/flows", &again).await.expect(409);
    let source = format!("/sourceConnections/{}", text(&first["sourceConnectionIds"][0]));
    let split = json!([{ "op": "add", "path": "/params/options/split", "value": "membership" }]);
    api.patch(&source, "*", &split).await.expect(200);
    assert!(attribute(&cloud, &format!("FLOW#{last}"), "options").await.unwrap().contains("membership"));
    // Of a connection with so many and so large ends the key can change, and not the place.
    let other = api.connection(&hub).await;
    let target = json!({
        "name": "t", "connectionSpec": spec("bf9f5905-92b7-48bf-bf20-455bc6b60a4e"), "baseConnectionId": other,
        "params": { "eventHubName": HUB }, "note": "x".repeat(60_000),
    });
    for _ in 0..70 {
        api.post("/targetConnections?validate=false", &target).await.id();
    }
    let path = format!("/connections/{other}");
    let namespace =
        json!([{ "op": "replace", "path": "/auth/params/namespace", "value": format!("sb://{}", host(&hub)) }]);
    let problem = api.patch(&path, "*", &namespace).await.expect(409);
    assert!(text(&problem["errorMessage"]).contains("70 objects of 4"), "{problem}");
    let key = json!([{ "op": "replace", "path": "/auth/params/sasKey", "value": "another" }]);
    api.patch(&path, "*", &key).await.expect(200);
}

#[tokio::test]
async fn a_page_fits_the_answer_of_a_function() {
    const COUNT: usize = 60;
    let cloud = Cloud::start().await;
    let api = control(&cloud, &[]);
    // Each quote is two bytes of JSON, and four of the answer.
    let body = json!({
        "name": "n", "connectionSpec": spec("8a9c3494-9708-43d7-ae3f-cda01e5030e1"), "note": "\"".repeat(30_000),
    });
    for _ in 0..COUNT {
        api.post("/connections", &body).await.id();
    }
    let (mut next, mut ids, mut pages) = ("/connections".to_owned(), BTreeSet::new(), 0);
    while !next.is_empty() {
        let answer = api.function.invoke(api.event("GET", &next, &Value::Null).to_string().into_bytes()).await.unwrap();
        assert!(answer.len() < 6 * 1024 * 1024, "{} bytes", answer.len());
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let page: Value = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
        ids.extend(page["items"].as_array().unwrap().iter().map(|item| text(&item["id"])));
        next = page["_links"]["next"]["href"].as_str().unwrap_or_default().to_owned();
        pages += 1;
    }
    assert_eq!((ids.len(), pages), (COUNT, 2));
    let names = api.get("/connections?property=name").await.expect(200);
    assert_eq!(names["items"].as_array().unwrap().len(), COUNT, "what is not shown does not count");
}

#[tokio::test]
async fn a_flow_can_be_disabled_whatever_it_says() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let created = api.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
    let (id, source) = (text(&created["id"]), "sourceConnections");
    let path = format!("/flows/{id}");
    let before = api.item(&path).await;
    // An option of old, which the kind's schema has no more.
    let end = text(&before["sourceConnectionIds"][0]);
    let pk = format!("TENANT#acme@AdobeOrg#prod#{source}#{end}");
    let mut document: Value = serde_json::from_str(&attribute(&cloud, &pk, "document").await.unwrap()).unwrap();
    document["params"]["options"] = json!({ "formerly": true });
    let update = json!({
        "TableName": TABLE, "Key": { "pk": { "S": pk } }, "UpdateExpression": "SET document = :d",
        "ExpressionAttributeValues": { ":d": { "S": document.to_string() } },
    });
    cloud.call(Service::DynamoDb, "UpdateItem", update).await;
    let function = || cloud.function("audience-change", &hub, &[]);
    let disabled = api.post(&format!("{path}/action?op=disable"), &Value::Null).await.expect(200);
    send(&function(), &created, DOCUMENTED).await.problem(409);
    let mut after = api.item(&path).await;
    assert_eq!((&after["state"], &after["etag"]), (&json!("disabled"), &disabled["etag"]));
    assert!(after["updatedAt"].as_u64() >= before["updatedAt"].as_u64());
    for member in ["state", "etag", "version", "updatedAt", "lastOperation"] {
        after[member] = before[member].clone();
    }
    assert_eq!(after, before, "nothing else has changed");
    api.post(&format!("{path}/action?op=enable"), &Value::Null).await.expect(200);
    assert_eq!(send(&function(), &created, DOCUMENTED).await, delivered(1));
}

#[tokio::test]
async fn credentials_in_the_wrong_place_are_refused_by_their_place() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let connection = api.connection(&hub).await;
    let created = api.flow(DATA_ACTIVATION, json!({}), &connection, HUB).await;
    let flow = api.item(&format!("/flows/{}", text(&created["id"]))).await;
    let (source, target) = (text(&flow["sourceConnectionIds"][0]), text(&flow["targetConnectionIds"][0]));
    let key = hub_config().keys[0].clone();
    let event_hubs = spec("bf9f5905-92b7-48bf-bf20-455bc6b60a4e");
    let bodies = [
        (
            "connections",
            &connection,
            json!({
                "name": "n", "connectionSpec": event_hubs, "auth": {
                    "specName": "Azure EventHub authentication credentials",
                    "params": { "sasKeyName": key.name, "sasKey": key.key, "namespace": host(&hub) },
                },
            }),
        ),
        ("sourceConnections", &source, json!({ "name": "n", "connectionSpec": spec(DATAVERSE) })),
        (
            "sourceConnections",
            &source,
            json!({
                "name": "n", "connectionSpec": event_hubs, "baseConnectionId": connection, "params": { "eventHubName": HUB },
            }),
        ),
        (
            "targetConnections",
            &target,
            json!({
                "name": "n", "connectionSpec": event_hubs, "baseConnectionId": connection, "params": { "eventHubName": HUB },
            }),
        ),
        (
            "flows",
            &text(&flow["id"]),
            json!({
                "name": "n", "flowSpec": flow["flowSpec"], "sourceConnectionIds": [source], "targetConnectionIds": [target],
            }),
        ),
    ];
    let secrets = [
        "senderAuth",
        "sasKey",
        "connectionString",
        "clientSecretValue",
        "secretKey",
        "SASKEY",
        "primaryKey",
        "secondaryKey",
        "primaryConnectionString",
        "secondaryConnectionString",
        "SharedAccessKey",
        "clientSecret",
    ];
    for (collection, id, body) in &bodies {
        api.post(&format!("/{collection}?validate=false"), body).await.expect(201);
        for name in secrets {
            for place in ["", "/params", "/more", "/transformations/0/params"] {
                let is_sender = *collection == "sourceConnections" && body["baseConnectionId"].is_null();
                if is_sender && (place, name) == ("/params", "senderAuth") {
                    continue;
                }
                let mut body = body.clone();
                let mut parent = &mut body;
                for step in place.split('/').skip(1) {
                    let next = if step == "0" { &mut parent[0] } else { &mut parent[step] };
                    if next.is_null() {
                        *next = if step == "transformations" { json!([{}]) } else { json!({}) };
                    }
                    parent = next;
                }
                parent[name] = "topsecret".into();
                let refused = api.post(&format!("/{collection}?validate=false"), &body).await.expect(400).to_string();
                assert!(refused.contains(&format!("{place}/{name}:")) && !refused.contains("topsecret"), "{refused}");
            }
            let patch = json!([{ "op": "add", "path": "/more", "value": [{ "x": { name: "topsecret" } }] }]);
            let refused = api.patch(&format!("/{collection}/{id}"), "*", &patch).await.expect(400).to_string();
            assert!(refused.contains(&format!("/more/0/x/{name}:")) && !refused.contains("topsecret"), "{refused}");
        }
    }
    // Whatever it is called, a connection string is one.
    for text in [
        "Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=topsecret",
        "sb://x;sharedaccesssignature=topsecret",
        "SharedAccessSignature sr=x&sig=topsecret",
    ] {
        for (collection, id, body) in &bodies {
            let patch = json!([{ "op": "add", "path": "/more", "value": ["plain", { "x": text }] }]);
            let refused = api.patch(&format!("/{collection}/{id}"), "*", &patch).await.expect(400).to_string();
            assert!(refused.contains("/more/1/x:") && !refused.contains("topsecret"), "{refused}");
            let mut body = body.clone();
            body["more"] = json!({ text: 1 });
            let refused = api.post(&format!("/{collection}?validate=false"), &body).await.expect(400).to_string();
            assert!(refused.contains("/more:") && !refused.contains("topsecret"), "{refused}");
        }
    }
    let named = json!({ "name": "n", "connectionSpec": spec(DATAVERSE), "more": { "sharedAccessKeyName": "n" } });
    api.post("/connections", &named).await.expect(201);
    // A name that only looks like the right place.
    let odd = json!({ "name": "n", "connectionSpec": spec(DATAVERSE), "auth/params": { "sasKey": "topsecret" } });
    api.post("/connections", &odd).await.expect(400);
    let items = cloud.call(Service::DynamoDb, "Scan", json!({ "TableName": TABLE })).await;
    assert!(!items.to_string().contains("topsecret"));
}

/// A namespace that gives the same full page of hubs, whichever is asked for.
async fn stubborn_namespace() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let entries: String = (0..100).map(|n| format!("<entry><title>hub-{n}</title></entry>")).collect();
    let feed = format!("<feed xmlns=\"http://www.w3.org/2005/Atom\">{entries}</feed>");
    let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{feed}", feed.len());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.unwrap() > 0 {}
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    host
}

#[tokio::test]
async fn hubs_are_looked_for_on_all_pages() {
    let names: Vec<String> = (0..250).map(|n| format!("hub-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (cloud, hub, stubborn) = (Cloud::start().await, emulator(&names).await, stubborn_namespace().await);
    let api = control_with(&cloud, &[("EMULATOR_HOSTS", &format!("{},{stubborn}", host(&hub)))]);
    let key = hub_config().keys[0].clone();
    let with = |host: &str, hub: &str| {
        json!({
            "name": "c", "connectionSpec": spec("bf9f5905-92b7-48bf-bf20-455bc6b60a4e"),
            "auth": {
                "specName": "Azure EventHub authentication credentials",
                "params": { "sasKeyName": key.name, "sasKey": key.key, "namespace": host, "eventHubName": hub },
            },
        })
    };
    api.post("/connections", &with(&host(&hub), "hub-249")).await.id();
    api.post("/connections", &with(&host(&hub), "hub-250")).await.expect(400);
    let connection = api.connection(&hub).await;
    let explored = api.get(&format!("/connections/{connection}/explore?objectType=root")).await.expect(200);
    let listed: Vec<&str> = explored.as_array().unwrap().iter().map(|hub| hub["name"].as_str().unwrap()).collect();
    assert_eq!(listed, names);
    // One of a full page is known, of another nothing.
    let known = api.post("/connections", &with(&stubborn, "hub-7")).await.expect(201);
    assert!(known.get("detail").is_none(), "{known}");
    let created = api.post("/connections", &with(&stubborn, "unlisted")).await.expect(201);
    let test = api.get(&format!("/connections/{}/test", text(&created["id"]))).await.expect(200);
    assert_eq!(test["result"], true);
    for told in [&created, &test] {
        assert!(text(&told["detail"]).contains("more event hubs than it lists"), "{told}");
    }
    let mut body = with(&stubborn, "hub-7");
    body["auth"]["params"].as_object_mut().unwrap().remove("eventHubName");
    let wide = api.post("/connections", &body).await.id();
    let target = json!({
        "name": "t", "connectionSpec": spec("bf9f5905-92b7-48bf-bf20-455bc6b60a4e"), "baseConnectionId": wide,
        "params": { "eventHubName": "unlisted" },
    });
    let target = api.post("/targetConnections", &target).await.expect(201);
    assert!(text(&target["detail"]).contains("more event hubs than it lists"), "{target}");
    let explored = api.get(&format!("/connections/{wide}/explore")).await.expect(200);
    assert_eq!(explored.as_array().unwrap().len(), 100, "the page that there is");
}

#[tokio::test]
async fn keys_are_rotated_while_events_flow() {
    const EVENTS: usize = 60;
    let cloud = Cloud::start().await;
    let (here, there) = (emulator(&["a"]).await, emulator(&["b"]).await);
    let key_name = hub_config().keys[0].name.clone();
    there.set_key(&key_name, "dGhlcmUgMQ==");
    let api = control(&cloud, &[&here, &there]);
    let connections = [api.connection(&here).await, api.connection(&there).await];
    let audience = api.flow(DATA_ACTIVATION, json!({}), &connections[0], "a").await;
    let dataverse = api.flow(DATAVERSE, json!({}), &connections[1], "b").await;
    let functions = [cloud.function("audience-change", &here, &[]), cloud.function("dataverse-event", &here, &[])];
    let _redelivery = cloud.redeliver(&here);
    let context = include_str!("../fixtures/dataverse-event/create_lead_sync.json");
    let parsed: Value = serde_json::from_str(context).unwrap();
    let entity_id = text(&parsed["PrimaryEntityId"]);
    let sending = async {
        for n in 0..EVENTS {
            let subject = format!("00000000-0000-0000-0000-{n:012}");
            let (one, other) = (crate::harness::event_of(&subject), context.replace(&entity_id, &subject));
            let (one, other) =
                tokio::join!(send(&functions[0], &audience, &one), send(&functions[1], &dataverse, &other));
            for answer in [one, other] {
                assert!([200, 202].contains(&answer.status), "{answer:?}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let rotating = async {
        for round in 0..3 {
            sleep(Duration::from_millis(900)).await;
            for (hub, connection) in [&here, &there].into_iter().zip(&connections) {
                let key = format!("key-{round}-{}", host(hub));
                hub.set_key(&key_name, &key);
                let patch = json!([{ "op": "replace", "path": "/auth/params/sasKey", "value": key }]);
                api.patch(&format!("/connections/{connection}"), "*", &patch).await.expect(200);
            }
        }
    };
    tokio::join!(sending, rotating);
    let subjects = |hub: &Emulator, name: &str| -> BTreeSet<String> {
        hub.events(name).iter().map(|event| text(&event.properties["cloudEvents:subject"])).collect()
    };
    until("all events", async || subjects(&here, "a").len() == EVENTS && subjects(&there, "b").len() == EVENTS).await;
    let kinds = |hub: &Emulator, name: &str| -> BTreeSet<String> {
        hub.events(name).iter().map(|event| text(&event.properties["cloudEvents:source"])[..10].to_owned()).collect()
    };
    assert_eq!(kinds(&here, "a"), BTreeSet::from(["/audience-".to_owned()]), "nothing crossed");
    assert_eq!(kinds(&there, "b"), BTreeSet::from(["/dataverse".to_owned()]), "nothing crossed");
}

/// The API behind the gateway, as its document says it is, tried by somebody else.
#[tokio::test]
async fn answers_are_those_of_the_document() {
    let (cloud, hub) = (Cloud::start().await, emulator(&[HUB]).await);
    let api = control(&cloud, &[&hub]);
    let tokens = Arc::new(Tokens::new(Clock::system()).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = local::gateway::control_router(api.function.clone(), tokens.clone());
    tokio::spawn(local::gateway::serve(listener, router));
    let http = shared::build_http_client(None).unwrap().client();
    let status = http.get(format!("{url}/flows")).send().await.unwrap().status();
    assert_eq!(status, 401, "the authorizer's");
    let own = |target: &str| {
        http.get(format!("{url}{target}"))
            .bearer_auth(tokens.token().unwrap())
            .header("x-api-key", "key")
            .header("x-gw-ims-org-id", local::tokens::ORGANISATION)
    };
    for target in ["/flows/", "/connections/?limit=1"] {
        assert_eq!(own(target).send().await.unwrap().status(), 200, "{target}");
    }
    let mut schemathesis = Command::new(virtual_environment().join("bin/schemathesis"));
    schemathesis.args(["run", &format!("{url}/openapi.json"), "--no-color", "--seed", "1", "--max-examples", "8"]);
    schemathesis.args(["--checks", CHECKS, "--phases", "examples,coverage,fuzzing,stateful"]);
    schemathesis.args(["--generation-database", "none", "--suppress-health-check", "all", "--continue-on-failure"]);
    for header in [
        format!("authorization: Bearer {}", tokens.token().unwrap()),
        "x-api-key: key".to_owned(),
        format!("x-gw-ims-org-id: {}", local::tokens::ORGANISATION),
    ] {
        schemathesis.args(["-H", &header]);
    }
    let ran = schemathesis.current_dir(std::env::temp_dir()).kill_on_drop(true).output().await.unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
}

#[tokio::test]
async fn the_kinds_can_read_all_options_that_are_taken() {
    type Reads = fn(&str) -> Result<(), String>;
    let cloud = Cloud::start().await;
    let api = control(&cloud, &[]);
    let kinds: [(&str, Reads, &[&str]); 3] = [
        (
            DATA_ACTIVATION,
            |text| from_config::<Object<audience_change::Options>>(text).map(drop),
            &["partnerNumber", "profileVars", "sourceName", "data", "sources", "defaultCallType"],
        ),
        (
            "8a9c3494-9708-43d7-ae3f-cda01e5030e1",
            |text| from_config::<Object<profile_export::Options>>(text).map(drop),
            &["audiences", "partitionBy", "split"],
        ),
        (
            DATAVERSE,
            |text| from_config::<Object<dataverse_event::Options>>(text).map(drop),
            &["messageFormat", "steps", "maxBytes", "userClaim"],
        ),
    ];
    let step = |message: &str| json!([{ "message": message }]);
    let values = [
        json!(null),
        json!(0),
        json!(-1),
        json!(42),
        json!(7.0),
        json!(1e30),
        json!(u64::MAX),
        json!(""),
        json!("\u{85}"),
        json!("journey"),
        json!("membership"),
        json!("xml"),
        json!("XML"),
        json!("userId"),
        json!([]),
        json!(["a"]),
        json!([""]),
        json!([null]),
        json!({}),
        json!({ "a": null }),
        json!({ "a": {} }),
        json!({ "a": { "sourceName": null, "data": { "x": 1 } } }),
        json!({ "a": { "unknown": 1 } }),
        step("Update"),
        step("\u{85}\u{feff}"),
        step("\u{a0}\u{85}\u{2003}"),
        json!([{ "message": "Update", "entity": null, "filteringAttributes": null }]),
        json!([{ "message": "Update", "entity": "\u{85}", "filteringAttributes": ["\u{85}"] }]),
        json!([{ "message": "Update", "filteringAttributes": [] }]),
        json!([["Update", null, null]]),
    ];
    let mut taken = 0;
    for (sender, reads, names) in kinds {
        for (name, value) in names.iter().flat_map(|name| values.iter().map(move |value| (name, value))) {
            let options = json!({ *name: value });
            let source = json!({ "name": "s", "connectionSpec": spec(sender), "params": { "options": options } });
            let answer = api.post("/sourceConnections", &source).await;
            if answer.status != 201 {
                answer.expect(400);
                continue;
            }
            taken += 1;
            assert_eq!(reads(&options.to_string()), Ok(()), "{options}");
        }
    }
    assert!(taken > 13, "each option has a value that is taken: {taken}");
}
