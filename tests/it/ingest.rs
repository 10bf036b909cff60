//! Ingest into Adobe Experience Platform: Kafka batches through the built function into the emulator of the inlet.

mod flows;
mod inlet;
mod records;
mod retention;
mod tokens;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use local::emulator::ROOT_KEY_NAME;
use local::inlet::{Action, Config, Fault, Inlet};
use local::poller::{Polled, Poller};
use local::runner::{Function, InvokeError};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::cloud::{Cloud, emulator};
use crate::harness::{HUB, System, event_of, function_of, record as queue_record};

const CLIENT: (&str, &str) = ("client-1", "p-secret & 1");

async fn inlet(client: Option<(&str, &str)>) -> Inlet {
    let client = client.map(|(id, secret)| (id.to_owned(), secret.to_owned()));
    Inlet::start(Config { client, ..Config::default() }, TcpListener::bind("127.0.0.1:0").await.unwrap()).await
}

/// The variables with which the function uses `inlet`, and `more`.
fn variables(inlet: &Inlet, format: &str, more: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    let config = Config::default();
    let mut variables = vec![
        ("INLET_URL", inlet.url()),
        ("EMULATOR_HOSTS", inlet.host()),
        ("INLET_FLOW_ID", config.flow_id),
        ("INLET_FORMAT", format.to_owned()),
        ("INLET_SANDBOX", config.sandbox),
    ];
    if format == "xdm" {
        variables.extend([
            ("INLET_SCHEMA_ID", config.schema_id),
            ("INLET_DATASET_ID", config.dataset_id),
            ("INLET_ORG_ID", config.org_id),
        ]);
    }
    variables.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    variables
}

fn function(variables: &[(&str, String)]) -> Function {
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    function_of("platform-ingest", &variables)
}

/// The function with its own variables, and the queues, the table and the secrets of `cloud`.
fn in_cloud(cloud: &Cloud, mut own: Vec<(&'static str, String)>) -> Function {
    own.extend(cloud.variables());
    function(&own)
}

fn record(partition: u32, offset: u64, value: &str) -> Value {
    json!({
        "topic": HUB, "partition": partition, "offset": offset, "timestamp": 1_545_084_650_987_u64,
        "timestampType": "CREATE_TIME", "key": null, "value": STANDARD.encode(value), "headers": [],
    })
}

fn event(records: &[Value]) -> Value {
    let mut partitions = BTreeMap::<String, Vec<Value>>::new();
    for record in records {
        partitions.entry(format!("{HUB}-{}", record["partition"])).or_default().push(record.clone());
    }
    json!({ "eventSource": "SelfManagedKafka", "bootstrapServers": "ns.servicebus.windows.net:9093", "records": partitions })
}

/// Records `from..to` of a partition: entities with an `_id`.
fn entities(partition: u32, from: u64, to: u64) -> Vec<Value> {
    (from..to)
        .map(|n| record(partition, n, &json!({ "_id": format!("{partition}/{n}"), "n": n }).to_string()))
        .collect()
}

/// The first record of each partition that must be redelivered.
async fn failures(function: &Function, event: &Value) -> Vec<(String, u64)> {
    failures_of(function, None, event).await
}

async fn failures_of(function: &Function, alias: Option<&str>, event: &Value) -> Vec<(String, u64)> {
    let response = function.invoke_alias(alias, event.to_string().into_bytes()).await.unwrap();
    let response: Value = serde_json::from_slice(&response).unwrap();
    let failures = response["batchItemFailures"].as_array().unwrap().iter().map(|failure| &failure["itemIdentifier"]);
    failures.map(|item| (item["partition"].as_str().unwrap().to_owned(), item["offset"].as_u64().unwrap())).collect()
}

fn of(partition: u32, offset: u64) -> (String, u64) {
    (format!("{HUB}-{partition}"), offset)
}

fn ids(inlet: &Inlet) -> Vec<String> {
    inlet.taken().iter().map(|taken| taken.record["_id"].as_str().unwrap().to_owned()).collect()
}

fn lasting(action: Action) -> Fault {
    Fault { times: 0, ..Fault::from(action) }
}

fn respond_with(status: u16) -> Action {
    Action::Status { status, retry_after: None }
}

/// Reason, detail and body of each message in the rejected queue, sorted by detail.
async fn rejected(cloud: &Cloud) -> Vec<(String, String, String)> {
    let envelope = |message: &Value| {
        let envelope: Value = serde_json::from_str(message["Body"].as_str().unwrap()).unwrap();
        assert_eq!((&envelope["kind"], &envelope["source"]), (&json!("platform-ingest"), &json!("kafka")));
        let text = |name: &str| envelope[name].as_str().unwrap().to_owned();
        let body = String::from_utf8(crate::cloud::unpacked(&text("body"))).unwrap();
        (text("reason"), text("detail"), body)
    };
    let mut rejected: Vec<_> = cloud.take(&cloud.rejected).await.iter().map(envelope).collect();
    rejected.sort_by(|a, b| a.1.cmp(&b.1));
    rejected
}

/// The lines of a function's log, once the line of its last invocation is there, and the hints of its ERROR lines.
async fn lines_and_hints(function: &Function, invocations: usize) -> (Vec<Value>, Vec<String>) {
    crate::cloud::until("the line of the invocation", async || {
        function.logs().iter().filter(|line| line.contains("batch ingested")).count() >= invocations
    })
    .await;
    let lines: Vec<Value> = function.logs().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let errors = lines.iter().filter(|line| line["level"] == "ERROR");
    let hints = errors.map(|line| line["hint"].as_str().unwrap_or_default().to_owned()).collect();
    (lines, hints)
}

/// A hub of one partition with `events` events.
async fn filled_hub(events: usize) -> local::emulator::Emulator {
    let hub = emulator(&[HUB]).await;
    let connection = hub.connection_string(ROOT_KEY_NAME, Some(HUB));
    let variables = [
        ("EVENT_HUBS_CONNECTION_STRING", connection.as_str()),
        ("SENDER_AUTH", "none"),
        ("PARTITIONING", "partitions:1"),
    ];
    let system = System { function: function_of("audience-change", &variables), hub: hub.clone() };
    let records: Vec<Value> = (0..events).map(|n| queue_record(&n.to_string(), &event_of(&format!("p{n}")))).collect();
    assert!(system.failures(&records).await.is_empty());
    hub
}

/// Polls until the hub has no new records.
async fn drain(poller: &mut Poller) {
    for _ in 0..20 {
        if poller.poll().await == Polled::Nothing {
            return;
        }
    }
    panic!("records are still returned");
}

/// Number of records that reach an inlet configured as in `sam local`, except for its address.
pub async fn ingested(event: &Value, environment: &Value) -> usize {
    let config = Config { id: "local".to_owned(), ..Config::default() };
    let inlet = Inlet::start(config, TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
    let local = environment["EMULATOR_HOSTS"].as_str().unwrap();
    let variables = environment.as_object().unwrap().iter();
    let variables: Vec<(&str, String)> =
        variables.map(|(name, value)| (name.as_str(), value.as_str().unwrap().replace(local, &inlet.host()))).collect();
    assert!(failures(&function(&variables), event).await.is_empty());
    inlet.taken().len()
}
