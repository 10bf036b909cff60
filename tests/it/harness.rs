//! A function's built binary under the local Lambda runner, with the Event Hubs emulator behind it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use local::emulator::{Action, Config, Emulator, Fault};
use local::runner::{Function, FunctionConfig, InvokeError};
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub const HUB: &str = "profiles";
pub const SENDER_TOKEN: &str = "sender-token-1";
pub const SENDER_AUTH: &str = r#"[{"type":"bearer","secret":"sender-token-1"}]"#;
pub const DOCUMENTED: &str = include_str!("../fixtures/audience-change/new_audience_documented.json");

/// A built binary of this workspace.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join(name);
    assert!(path.exists(), "{} is not built: run `make test`, or `cargo build --workspace` first", path.display());
    path
}

/// A function and the hub it sends to.
pub struct System {
    pub hub: Emulator,
    pub function: Function,
}

/// The response that the sender of a webhook receives.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    pub status: u64,
    pub content_type: String,
    pub body: Value,
}

pub fn hub_config() -> Config {
    Config { hubs: vec![(HUB.to_owned(), 4)], ..Config::default() }
}

/// Starts `audience-change` with a sender's bearer token. `variables` adds or replaces variables.
pub async fn start(variables: &[(&str, &str)]) -> System {
    start_with(hub_config(), variables).await
}

pub async fn start_with(config: Config, variables: &[(&str, &str)]) -> System {
    start_kind("audience-change", config, variables).await
}

pub async fn start_kind(kind: &str, config: Config, variables: &[(&str, &str)]) -> System {
    let key_name = config.keys[0].name.clone();
    let hub = Emulator::start(config, TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
    let connection_string = hub.connection_string(&key_name, Some(HUB));
    let mut environment =
        vec![("EVENT_HUBS_CONNECTION_STRING", connection_string.as_str()), ("SENDER_AUTH", SENDER_AUTH)];
    environment.extend(variables);
    System { function: function_of(kind, &environment), hub }
}

/// `audience-change` with only the variables of `environment`. Later ones replace earlier ones.
pub fn function(environment: &[(&str, &str)]) -> Function {
    function_of("audience-change", environment)
}

pub fn function_of(kind: &str, environment: &[(&str, &str)]) -> Function {
    Function::new(FunctionConfig {
        environment: environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        timeout: Duration::from_secs(30),
        ..FunctionConfig::new(kind, binary(kind))
    })
}

/// An HTTP API event, payload 2.0, from the sender that `SENDER_AUTH` accepts.
pub fn request(body: &str) -> Value {
    json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/",
        "rawQueryString": "",
        "headers": { "authorization": format!("Bearer {SENDER_TOKEN}"), "content-type": "application/json" },
        "requestContext": {
            "accountId": "123456789012", "apiId": "a1", "stage": "$default", "requestId": "r1",
            "http": { "method": "POST", "path": "/", "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1" },
        },
        "body": body,
        "isBase64Encoded": false,
    })
}

/// An SQS record.
pub fn record(id: &str, body: &str) -> Value {
    json!({
        "messageId": id, "receiptHandle": "AQEB", "body": body,
        "attributes": { "ApproximateReceiveCount": "1", "SentTimestamp": "1545082649183" },
        "messageAttributes": {}, "md5OfBody": "", "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:eu-central-1:123456789012:audience-change", "awsRegion": "eu-central-1",
    })
}

/// The documented event, for another profile.
pub fn event_of(profile: &str) -> String {
    let mut event: Value = serde_json::from_str(DOCUMENTED).unwrap();
    event["profileId"] = profile.into();
    event.to_string()
}

/// One scripted response.
pub fn status(status: u16, retry_after: Option<u64>, detail: &str) -> Fault {
    fault(Action::Status { status, retry_after, detail: Some(detail.to_owned()) })
}

pub fn fault(action: Action) -> Fault {
    Fault { hub: None, times: 1, action }
}

/// The same fault, until the faults are cleared.
pub fn lasting(fault: Fault) -> Fault {
    Fault { times: 0, ..fault }
}

impl System {
    /// Posts a body as the known sender.
    pub async fn post(&self, body: &str) -> Response {
        self.response_to(&request(body)).await
    }

    /// Invokes the function with an HTTP event.
    pub async fn response_to(&self, event: &Value) -> Response {
        response_of(&self.function, event).await
    }

    /// Invokes the function with a batch. Returns the ids of the records that must be redelivered.
    pub async fn failures(&self, records: &[Value]) -> Vec<String> {
        let batch = json!({ "Records": records }).to_string();
        let response = self.function.invoke(batch.into_bytes()).await.unwrap();
        let response: Value = serde_json::from_slice(&response).unwrap();
        let failures = response["batchItemFailures"].as_array().unwrap();
        failures.iter().map(|failure| failure["itemIdentifier"].as_str().unwrap().to_owned()).collect()
    }

    /// Number of requests that the hub received.
    pub fn requests(&self) -> usize {
        self.hub.requests().len()
    }

    /// Number of events in the hub.
    pub fn stored(&self) -> usize {
        self.hub.events(HUB).len()
    }
}

pub async fn response_of(function: &Function, event: &Value) -> Response {
    let response = function.invoke(event.to_string().into_bytes()).await.unwrap();
    let response: Value = serde_json::from_slice(&response).unwrap();
    assert_eq!(response["isBase64Encoded"], false);
    Response {
        status: response["statusCode"].as_u64().unwrap(),
        content_type: response["headers"]["content-type"].as_str().unwrap().to_owned(),
        body: serde_json::from_str(response["body"].as_str().unwrap()).unwrap(),
    }
}

/// The ERROR line of a function that does not start.
pub async fn init_failure(environment: &[(&str, &str)]) -> Value {
    init_failure_of("audience-change", environment).await
}

pub async fn init_failure_of(kind: &str, environment: &[(&str, &str)]) -> Value {
    let function = function_of(kind, environment);
    match function.invoke(request(DOCUMENTED).to_string().into_bytes()).await {
        Err(InvokeError::Init(_)) => {}
        other => panic!("expected a failed init, got {other:?}"),
    }
    let errors: Vec<Value> = function
        .logs()
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["level"] == "ERROR")
        .collect();
    assert_eq!(errors.len(), 1, "one ERROR line: {errors:?}");
    errors[0].clone()
}

impl Response {
    /// Asserts that this is a problem document with that status. Returns its detail.
    pub fn problem(&self, status: u64) -> &str {
        assert_eq!((self.status, self.content_type.as_str()), (status, "application/problem+json"), "{self:?}");
        for member in ["type", "title", "detail", "requestId"] {
            assert!(self.body[member].is_string(), "{member} of {self:?}");
        }
        assert_eq!(self.body["status"], status);
        self.body["detail"].as_str().unwrap()
    }
}

pub fn delivered(messages: u64) -> Response {
    handled("delivered", messages)
}

pub fn handled(status: &str, messages: u64) -> Response {
    Response {
        status: 200,
        content_type: "application/json".to_owned(),
        body: json!({ "status": status, "messages": messages }),
    }
}

/// The Python tools of `make setup`.
pub fn virtual_environment() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.venv"))
}

/// A port on which no process listens, and that no other test received.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}

/// Time of the fastest of several runs: other work on the machine delays it least.
pub fn fastest_of<T>(input: &T, run: impl Fn(&T)) -> std::time::Duration {
    let times = (0..5).map(|_| {
        let start = std::time::Instant::now();
        run(input);
        start.elapsed()
    });
    times.min().unwrap()
}
