//! The way back: Kafka batches through the built function into the inlet's stand-in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use local::emulator::ROOT_KEY_NAME;
use local::inlet::{Action, Config, Fault, Inlet};
use local::poller::{Discarded, Limits, Polled, Poller};
use local::runner::{Function, InvokeError};
use serde_json::{Value, json};
use shared::clock::Clock;
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::cloud::{Cloud, emulator};
use crate::harness::{HUB, System, event_of, function_of, init_failure_of, record as queue_record};
use crate::peer::{Peer, respond};

const CLIENT: (&str, &str) = ("client-1", "p-secret & 1");

async fn inlet(client: Option<(&str, &str)>) -> Inlet {
    let client = client.map(|(id, secret)| (id.to_owned(), secret.to_owned()));
    Inlet::start(Config { client, ..Config::default() }, TcpListener::bind("127.0.0.1:0").await.unwrap()).await
}

/// What leads to `inlet`; `more` is added.
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

/// With the queues, the table and the secrets of `cloud`.
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

/// Records `from..to` of a partition, entities with an `_id`.
fn entities(partition: u32, from: u64, to: u64) -> Vec<Value> {
    (from..to)
        .map(|n| record(partition, n, &json!({ "_id": format!("{partition}/{n}"), "n": n }).to_string()))
        .collect()
}

/// The first record of each partition that must come again.
async fn failures(function: &Function, event: &Value) -> Vec<(String, u64)> {
    failures_of(function, None, event).await
}

async fn failures_of(function: &Function, alias: Option<&str>, event: &Value) -> Vec<(String, u64)> {
    let answer = function.invoke_alias(alias, event.to_string().into_bytes()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    let failures = answer["batchItemFailures"].as_array().unwrap().iter().map(|failure| &failure["itemIdentifier"]);
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

fn answers(status: u16) -> Action {
    Action::Status { status, retry_after: None }
}

/// What the rejected queue holds: reason, detail and body of each, by detail.
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

#[tokio::test]
async fn raw_records_are_posted_as_they_are_each_by_itself_in_order() {
    let inlet = inlet(None).await;
    let function = function(&variables(&inlet, "raw", &[]));
    let bodies = ["{\"price\" : 19.9900}", "{\"b\":\"\\u00e9\"}", "{\"c\":[1]}"];
    let records: Vec<Value> = bodies.iter().enumerate().map(|(n, body)| record(2, n as u64, body)).collect();
    assert!(failures(&function, &event(&records)).await.is_empty());
    let taken = inlet.taken();
    assert!(taken.iter().all(|taken| !taken.xdm));
    let expected: Vec<Value> = bodies.iter().map(|body| serde_json::from_str(body).unwrap()).collect();
    assert_eq!(taken.into_iter().map(|taken| taken.record).collect::<Vec<_>>(), expected);
    assert_eq!(inlet.statuses(), [200; 3]);
}

#[tokio::test]
async fn xdm_entities_share_requests_and_keep_their_ids() {
    let inlet = inlet(None).await;
    let records = [entities(0, 0, 250), entities(1, 7, 8), vec![record(2, 5, r#"{"eventType":"x"}"#)]].concat();
    let by_default = function(&variables(&inlet, "xdm", &[]));
    assert!(failures(&by_default, &event(&records)).await.is_empty());
    assert_eq!(inlet.statuses(), [207; 5], "three requests for 250 records, and one for each other partition");
    let taken = inlet.taken();
    assert!(taken.iter().all(|taken| taken.xdm));
    let first: Vec<_> = ids(&inlet).into_iter().filter(|id| id.starts_with("0/")).collect();
    assert_eq!(first, (0..250).map(|n| format!("0/{n}")).collect::<Vec<_>>());
    let event_2 = &taken.iter().find(|taken| taken.record["eventType"] == "x").unwrap().record;
    let place = shared::deterministic_id([HUB, "2", "5"]);
    assert_eq!(*event_2, json!({ "_id": place, "timestamp": "2018-12-17T22:10:50.987Z", "eventType": "x" }));

    let singly = function(&variables(&inlet, "xdm", &[("INLET_BATCH_MAX", "1")]));
    assert!(failures(&singly, &event(&entities(0, 0, 3))).await.is_empty());
    assert_eq!(inlet.statuses()[5..], [200; 3]);
    assert_eq!(ids(&inlet)[252..], ["0/0", "0/1", "0/2"]);
}

#[tokio::test]
async fn the_inlets_size_limit_is_kept() {
    let cloud = Cloud::start().await;
    let inlet = inlet(None).await;
    let function = in_cloud(&cloud, variables(&inlet, "xdm", &[]));
    let sized =
        |n: u64, size: usize| record(0, n, &json!({ "_id": format!("{n}"), "x": "x".repeat(size) }).to_string());
    let mut records: Vec<Value> = (0..12).map(|n| sized(n, 240_000)).collect();
    records.push(sized(12, 1_000_000));
    assert!(failures(&function, &event(&records)).await.is_empty());
    assert_eq!(inlet.statuses(), [207; 3], "four of them fit a request");
    assert_eq!(ids(&inlet).len(), 12);
    let rejected = rejected(&cloud).await;
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].0, "too_large");
    assert!(rejected[0].1.starts_with("profiles-0 at 12: "), "{}", rejected[0].1);
}

#[tokio::test]
async fn events_of_both_spellings_and_odd_records_are_read() {
    let cloud = Cloud::start().await;
    let inlet = inlet(None).await;
    let function = in_cloud(&cloud, variables(&inlet, "raw", &[]));
    for (fixture, taken) in [
        (include_str!("../fixtures/kafka/documented.json"), vec![json!({ "a": 1 })]),
        (include_str!("../fixtures/kafka/aws-sample.json"), vec![]),
        (include_str!("../fixtures/kafka/odd.json"), (0..4).map(|n| json!({ "n": n })).collect()),
    ] {
        let before = inlet.taken().len();
        let fixture: Value = serde_json::from_str(fixture).unwrap();
        assert!(failures(&function, &fixture).await.is_empty());
        let mut records: Vec<Value> = inlet.taken()[before..].iter().map(|taken| taken.record.clone()).collect();
        records.sort_by_key(|record| record["n"].as_u64());
        assert_eq!(records, taken);
    }
    let rejected = rejected(&cloud).await;
    let reasons: Vec<_> = rejected.iter().map(|(reason, detail, _)| (reason.as_str(), detail.as_str())).collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(matches!(reasons[0], ("unreadable", detail) if detail.starts_with("mytopic-0 at 15: not valid JSON")));
    assert_eq!(rejected[0].2, "Hello, this is a test.");
    assert!(
        matches!(reasons[1], ("unmappable", detail) if detail.starts_with("profiles-0 at 3: the record has no value"))
    );
    for (other, word) in [(json!({ "Records": [] }), "UnknownEvent"), (json!([1]), "UnknownEvent")] {
        let answer = function.invoke(other.to_string().into_bytes()).await;
        assert!(matches!(&answer, Err(InvokeError::Function { error_type, .. }) if error_type == word), "{answer:?}");
    }
}

#[tokio::test]
async fn one_bad_record_holds_nothing_back_and_is_kept() {
    let cloud = Cloud::start().await;
    let inlet = inlet(None).await;
    let mut records = entities(0, 0, 1000);
    records[500] = record(0, 500, r#"{"_id":"broken""#);
    let function_ = in_cloud(&cloud, variables(&inlet, "xdm", &[]));
    assert!(failures(&function_, &event(&records)).await.is_empty());
    assert_eq!(ids(&inlet).len(), 999);
    let rejected = rejected(&cloud).await;
    assert_eq!(rejected.len(), 1);
    assert_eq!((rejected[0].0.as_str(), rejected[0].2.as_str()), ("unreadable", r#"{"_id":"broken""#));

    let without_queue = function(&variables(&inlet, "xdm", &[]));
    assert_eq!(failures(&without_queue, &event(&records)).await, [of(0, 500)], "what nobody keeps stays in the hub");
    let logs = [function_.logs(), without_queue.logs()].concat();
    let line: Value = serde_json::from_str(logs.iter().find(|line| line.contains("batch ingested")).unwrap()).unwrap();
    let counts = ["Received", "Delivered", "Rejected", "records.failed"].map(|name| line[name].as_u64());
    assert_eq!(counts, [Some(1000), Some(999), Some(1), Some(0)]);
    assert_eq!((&line["Kind"], &line["Flow"]), (&json!("platform-ingest"), &json!("default")));
    assert!(logs.iter().any(|line| line.contains("profiles-0 at 500") && line.contains("it blocks its partition")));
    assert!(!logs.iter().any(|line| line.contains("broken")), "no log shows a record");
}

#[tokio::test]
async fn every_element_of_a_207_is_read() {
    let cloud = Cloud::start().await;
    let inlet = inlet(None).await;
    let function = in_cloud(&cloud, variables(&inlet, "xdm", &[]));
    let elements = |status: u16, places: &[usize], as_documented: bool| {
        Fault::from(Action::Elements { status, places: places.to_vec(), as_documented })
    };
    // One not now, one never.
    inlet.script([elements(503, &[3], false), elements(422, &[4], false)]);
    assert!(failures(&function, &event(&entities(0, 0, 10))).await.is_empty());
    let taken = ids(&inlet);
    assert_eq!(taken[..3], ["0/0", "0/1", "0/2"]);
    let last: Vec<_> = taken[taken.len() - 6..].to_vec();
    assert_eq!(last, ["0/3", "0/4", "0/5", "0/6", "0/8", "0/9"], "from the failed one on, again and in order");
    let kept = rejected(&cloud).await;
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(kept[0].0, "refused");
    assert!(kept[0].1.starts_with("profiles-0 at 7: the inlet responds with 422"), "{}", kept[0].1);

    // As the documentation prints it, where failures have no id.
    inlet.script([elements(400, &[0, 2], true)]);
    assert!(failures(&function, &event(&entities(1, 0, 4))).await.is_empty());
    let details: Vec<String> = rejected(&cloud).await.into_iter().map(|(_, detail, _)| detail).collect();
    assert_eq!(details.len(), 2);
    assert!(details[0].starts_with("profiles-1 at 0: ") && details[1].starts_with("profiles-1 at 2: "), "{details:?}");
}

#[tokio::test]
async fn throttling_and_outages_are_waited_for() {
    let inlet = inlet(None).await;
    let function = function(&variables(&inlet, "xdm", &[]));
    for (n, action) in [
        Action::Status { status: 503, retry_after: Some(1) },
        answers(429),
        answers(500),
        answers(502),
        Action::Reset,
        Action::ResetAfterTaking,
        Action::Delay { ms: 300 },
    ]
    .into_iter()
    .enumerate()
    {
        let n = n as u64;
        inlet.script([Fault::from(action.clone())]);
        assert!(failures(&function, &event(&entities(0, n, n + 1))).await.is_empty(), "{action:?}");
        assert_eq!(*ids(&inlet).last().unwrap(), format!("0/{n}"), "{action:?}");
    }
    assert!(inlet.statuses().starts_with(&[503, 207, 429, 207, 500, 207, 502, 207, 0, 207, 0, 207]));

    // Longer than the function has.
    inlet.script([lasting(Action::Status { status: 503, retry_after: Some(3600) })]);
    let asked = inlet.statuses().len();
    let records = [entities(0, 100, 300), entities(3, 7, 9)].concat();
    assert_eq!(failures(&function, &event(&records)).await, [of(0, 100), of(3, 7)]);
    assert_eq!(inlet.statuses().len(), asked + 2, "what does not fit the time is not waited for");
    for action in [Action::Reset, answers(500), answers(404)] {
        inlet.clear_faults();
        inlet.script([lasting(action)]);
        assert_eq!(failures(&function, &event(&records)).await, [of(0, 100), of(3, 7)]);
    }
    inlet.clear_faults();
    assert!(failures(&function, &event(&records)).await.is_empty());
}

#[tokio::test]
async fn what_the_inlet_fails_at_alone_is_told_from_an_outage() {
    let cloud = Cloud::start().await;
    let inlet = inlet(None).await;
    let function = in_cloud(&cloud, variables(&inlet, "xdm", &[("INLET_BATCH_MAX", "1")]));
    inlet.script([Fault { times: 4, ..Fault::from(answers(500)) }]);
    assert!(failures(&function, &event(&entities(0, 0, 3))).await.is_empty());
    assert_eq!(ids(&inlet), ["0/1", "0/2"]);
    let kept = rejected(&cloud).await;
    assert_eq!(kept.len(), 1);
    assert!(kept[0].1.starts_with("profiles-0 at 0: the inlet responds with 500"), "{}", kept[0].1);
    // The last one: nothing shows that the inlet works.
    inlet.script([Fault { times: 4, ..Fault::from(answers(500)) }]);
    assert_eq!(failures(&function, &event(&entities(0, 3, 4))).await, [of(0, 3)]);
    assert!(rejected(&cloud).await.is_empty());
}

#[tokio::test]
async fn a_request_that_is_refused_is_halved_down_to_the_bad_record() {
    let cloud = Cloud::start().await;
    let inlet = inlet(None).await;
    let function = in_cloud(&cloud, variables(&inlet, "xdm", &[]));
    // 8, 4, 2, 1: the first record is refused, alone.
    inlet.script([Fault { times: 4, ..Fault::from(answers(400)) }]);
    assert!(failures(&function, &event(&entities(0, 0, 8))).await.is_empty());
    assert_eq!(ids(&inlet), (1..8).map(|n| format!("0/{n}")).collect::<Vec<_>>());
    assert_eq!(rejected(&cloud).await.len(), 1);
}

#[tokio::test]
async fn tokens_are_cached_and_renewed_once() {
    let cloud = Cloud::start().await;
    let inlet = inlet(Some(CLIENT)).await;
    let secret = |secret: &str| json!({ "client_id": CLIENT.0, "client_secret": secret }).to_string();
    cloud.secret("ims", &secret(CLIENT.1)).await;
    let token_url = inlet.token_url();
    let own = variables(&inlet, "xdm", &[("IMS_SECRET_ID", "ims"), ("IMS_TOKEN_URL", &token_url)]);
    let function = in_cloud(&cloud, own);
    let records = |n: u64| event(&[entities(0, n, n + 2), entities(1, n, n + 2)].concat());
    assert!(failures(&function, &records(0)).await.is_empty());
    assert!(failures(&function, &records(2)).await.is_empty());
    assert_eq!(inlet.tokens_given(), 1, "for two invocations of two partitions");

    inlet.revoke_tokens();
    assert!(failures(&function, &records(4)).await.is_empty());
    assert_eq!(inlet.tokens_given(), 2, "one renewal for both partitions");

    // The token and the client's secret are changed together.
    inlet.set_client_secret("another");
    cloud.change_secret("ims", &secret("another")).await;
    inlet.revoke_tokens();
    assert!(failures(&function, &records(6)).await.is_empty());

    // Refused although it is new, or none to be had: an operator's matter, the records stay.
    inlet.script([lasting(answers(401))]);
    assert_eq!(failures(&function, &records(8)).await, [of(0, 8), of(1, 8)]);
    inlet.clear_faults();
    inlet.set_client_secret("a third");
    inlet.revoke_tokens();
    assert_eq!(failures(&function, &records(8)).await, [of(0, 8), of(1, 8)]);
    assert!(function.logs().iter().any(|line| line.contains("check IMS_SECRET_ID")));
    cloud.change_secret("ims", &secret("a third")).await;
    inlet.script([Fault { token: true, ..Fault::from(answers(503)) }]);
    assert!(failures(&function, &records(8)).await.is_empty());
    assert!(rejected(&cloud).await.is_empty());
    let logs = function.logs();
    for word in [CLIENT.1, "another", "a third"] {
        assert!(!logs.iter().any(|line| line.contains(word)), "no log shows a secret");
    }
}

#[tokio::test]
async fn the_alias_tells_the_flow() {
    let cloud = Cloud::start().await;
    let (here, there) = (inlet(None).await, inlet(Some(CLIENT)).await);
    cloud.secret("ims-b", &json!({ "client_id": CLIENT.0, "client_secret": CLIENT.1 }).to_string()).await;
    let config = Config::default();
    let options = json!({
        "inletUrl": there.url(), "inletFlowId": config.flow_id, "format": "xdm", "schemaId": config.schema_id,
        "schemaContentType": "application/vnd.adobe.xed-full-notext+json; version=1.0", "datasetId": config.dataset_id,
        "orgId": config.org_id, "sandbox": config.sandbox, "batchMax": 10, "imsTokenUrl": there.token_url(),
        "imsSecretId": "ims-b",
    });
    let foreign = json!({ "inletUrl": "https://example.com/collection/a", "inletFlowId": "f" });
    for (id, kind, change) in [
        ("flow-b", "platform-ingest", json!({ "options": options.to_string() })),
        ("flow-c", "platform-ingest", json!({ "options": options.to_string(), "state": "disabled" })),
        ("flow-d", "profile-export", json!({})),
        ("flow-e", "platform-ingest", json!({ "options": foreign.to_string() })),
    ] {
        cloud.put_flow(id, kind, HUB, change).await;
    }
    let mut own = variables(&here, "xdm", &[]);
    own.retain(|(name, _)| *name != "EMULATOR_HOSTS");
    own.push(("EMULATOR_HOSTS", format!("{},{}", here.host(), there.host())));
    let function = in_cloud(&cloud, own);
    let batch = event(&[entities(0, 5, 7), entities(1, 1, 2)].concat());
    assert!(failures_of(&function, Some("flow-flow-b"), &batch).await.is_empty());
    assert_eq!((there.taken().len(), here.taken().len()), (3, 0));
    assert!(failures_of(&function, Some("live"), &batch).await.is_empty());
    assert!(failures(&function, &batch).await.is_empty());
    assert_eq!((there.taken().len(), here.taken().len()), (3, 6));
    for (alias, problem) in [
        ("flow-flow-c", "the flow is disabled"),
        ("flow-flow-d", "the flow is one of profile-export"),
        ("flow-flow-e", "`inletUrl`: expected https"),
        ("flow-unknown", "there is no such flow"),
    ] {
        assert_eq!(failures_of(&function, Some(alias), &batch).await, [of(0, 5), of(1, 1)], "{alias}");
        assert!(function.logs().iter().any(|line| line.contains(problem)), "{alias}");
    }
    assert_eq!((there.taken().len(), here.taken().len()), (3, 6));
    assert!(rejected(&cloud).await.is_empty());
}

#[tokio::test]
async fn a_mapping_that_reads_no_partial_answers_gets_an_error() {
    let inlet = inlet(None).await;
    let function = function(&variables(&inlet, "xdm", &[("BATCH_FAILURES", "whole")]));
    let batch = event(&entities(0, 0, 2)).to_string().into_bytes();
    inlet.script([Fault::from(answers(404))]);
    let answer = function.invoke(batch.clone()).await;
    assert!(
        matches!(&answer, Err(InvokeError::Function { error_type, .. }) if error_type == "RecordsFailed"),
        "{answer:?}"
    );
    assert_eq!(function.invoke(batch).await.unwrap(), br#"{"batchItemFailures":[]}"#);
}

#[tokio::test]
async fn each_unusable_setting_of_the_way_back_is_named() {
    for (variable, problem, environment) in [
        ("INLET_URL", "missing", vec![]),
        ("INLET_URL", "adobedc.net", vec![("INLET_URL", "https://example.com/collection/a")]),
        ("INLET_FLOW_ID", "missing", vec![("INLET_URL", "https://dcs.adobedc.net/collection/a")]),
        ("BATCH_FAILURES", "partial or whole", vec![("BATCH_FAILURES", "some")]),
    ] {
        let line = init_failure_of("platform-ingest", &environment).await;
        assert_eq!(line["fields"]["variable"].as_str().or(line["variable"].as_str()), Some(variable), "{line}");
        assert!(line.to_string().contains(problem), "{line}");
    }
}

#[tokio::test]
async fn records_wait_in_the_hub_until_the_client_secret_can_be_read() {
    let cloud = Cloud::start().await;
    let inlet = inlet(Some(CLIENT)).await;
    let token_url = inlet.token_url();
    let own = variables(&inlet, "xdm", &[("IMS_SECRET_ID", "ims"), ("IMS_TOKEN_URL", &token_url)]);
    let function = in_cloud(&cloud, own);
    let batch = event(&entities(0, 0, 2));
    for _ in 0..10 {
        assert_eq!(failures(&function, &batch).await, [of(0, 0)]);
    }
    let named = function.logs().iter().filter(|line| line.contains(r#""variable":"IMS_SECRET_ID""#)).count();
    assert_eq!(named, 1);
    cloud.secret("ims", &json!({ "client_id": CLIENT.0, "client_secret": CLIENT.1 }).to_string()).await;
    crate::cloud::until("the secret is read again", async || failures(&function, &batch).await.is_empty()).await;
    assert_eq!((inlet.taken().len(), function.instances()), (2, 1));
}

/// The lines of a function's log, once that of its last invocation is there, and the hints of its ERROR lines.
async fn told(function: &Function, invocations: usize) -> (Vec<Value>, Vec<String>) {
    crate::cloud::until("the line of the invocation", async || {
        function.logs().iter().filter(|line| line.contains("batch ingested")).count() >= invocations
    })
    .await;
    let lines: Vec<Value> = function.logs().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let errors = lines.iter().filter(|line| line["level"] == "ERROR");
    let hints = errors.map(|line| line["hint"].as_str().unwrap_or_default().to_owned()).collect();
    (lines, hints)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_200_that_is_not_the_inlets_own_leaves_the_records_in_the_hub() {
    const SINGLE: &str = r#"{"inletId":"abc","xactionId":"1555445493896:8600:8","receivedTimeMs":1555445493932}"#;
    const BATCH: &str = r#"{"inletId":"abc","batchId":"b","responses":[{"xactionId":"b:0"},{"xactionId":"b:1"}]}"#;
    let xdm = [("INLET_SCHEMA_ID", "s"), ("INLET_DATASET_ID", "d"), ("INLET_ORG_ID", "o@AdobeOrg")];
    let forms = [
        ("raw", vec![], 200, SINGLE),
        ("xdm", [xdm.as_slice(), &[("INLET_BATCH_MAX", "1")]].concat(), 200, SINGLE),
        ("xdm", xdm.to_vec(), 207, BATCH),
    ];
    for (format, more, status, documented) in &forms {
        let odd = [
            "<html><body>Access to this site is blocked.</body></html>",
            "",
            "{}",
            "[]",
            "null",
            "\"inletId\"",
            r#"{"xactionId":"1:2:3","receivedTimeMs":1}"#,
            r#"{"inletId":"abc","receivedTimeMs":1}"#,
            r#"{"inletId":"","xactionId":"1:2:3"}"#,
            r#"{"inletId":"abc","xactionId":""}"#,
            r#"{"inletId":7,"xactionId":"1:2:3"}"#,
            r#"{"inletId":"abc","xactionId":["1:2:3"]}"#,
            r#"{"inletId":"abc","xactionId":null}"#,
        ];
        for (body, is_taken) in odd.iter().map(|body| (*body, false)).chain([(*documented, true)]) {
            let (status, text) = (if is_taken { *status } else { 200 }, body.to_owned());
            let peer = Peer::start(move |_| respond(status, &text)).await;
            let (host, url) = (peer.address.to_string(), format!("http://{}/collection/abc", peer.address));
            let base = [
                ("INLET_URL", url.as_str()),
                ("EMULATOR_HOSTS", &host),
                ("INLET_FLOW_ID", "f"),
                ("INLET_FORMAT", format),
            ];
            let function = function_of("platform-ingest", &[base.as_slice(), more].concat());
            let failed = failures(&function, &event(&entities(0, 7, 9))).await;
            let (lines, hints) = told(&function, 1).await;
            let line = lines.iter().find(|line| line["message"] == "batch ingested").unwrap();
            if is_taken {
                assert_eq!((failed.len(), line["Delivered"].as_u64(), hints.len()), (0, Some(2), 0), "{format} {body}");
                continue;
            }
            assert_eq!(failed, [of(0, 7)], "{format} {body}");
            assert_eq!(line["Delivered"].as_u64().unwrap_or(0), 0, "{format} {body}");
            assert!(line["inlet.problem"].as_str().unwrap().contains("not the inlet's own"), "{line}");
            assert!(hints.len() == 1 && hints[0].contains("check INLET_URL"), "{format} {body}: {hints:?}");
            assert_eq!(peer.requests().len(), 1, "{format} {body}: nothing behind it is sent");
        }
    }
}

#[tokio::test]
async fn an_inlet_that_refuses_everything_leaves_the_records_in_the_hub() {
    let cloud = Cloud::start().await;
    let inlet = inlet(None).await;
    let function = in_cloud(&cloud, variables(&inlet, "raw", &[]));
    inlet.script([lasting(answers(400))]);
    assert_eq!(failures(&function, &event(&entities(0, 0, 150))).await, [of(0, 100)]);
    let (_, hints) = told(&function, 1).await;
    assert_eq!(hints.len(), 1);
    for variable in ["INLET_FLOW_ID", "INLET_ORG_ID", "INLET_SCHEMA_ID"] {
        assert!(hints[0].contains(variable), "{hints:?}");
    }
    let asked = inlet.statuses().len();
    assert_eq!(failures(&function, &event(&entities(0, 100, 150))).await, [of(0, 100)]);
    assert_eq!(inlet.statuses().len(), asked + 1, "one record finds out whether that has changed");
    inlet.clear_faults();
    assert!(failures(&function, &event(&entities(0, 100, 150))).await.is_empty());
    // Refusals are about records again.
    inlet.script([answers(400).into()]);
    assert!(failures(&function, &event(&entities(0, 150, 152))).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_used_whatever_their_response_says_of_their_lifetime() {
    const TAKEN: &str = r#"{"inletId":"abc","xactionId":"1:2:3","receivedTimeMs":1}"#;
    const SECRET: &str = r#"{"SecretString":"{\"client_id\":\"c\",\"client_secret\":\"s\"}"}"#;
    for (token, is_usable) in [
        (r#"{"access_token":"t","expires_in":86399}"#, true),
        (r#"{"access_token":"t","expires_in":"86399"}"#, true),
        (r#"{"access_token":"t","expires_in":86399.0}"#, true),
        (r#"{"access_token":"t"}"#, true),
        ("<html>sign in</html>", false),
        (r#"{"token":"t"}"#, false),
    ] {
        let peer = Peer::start(move |request| match request.line.split(' ').nth(1).unwrap() {
            "/ims/token/v3" => respond(200, token),
            "/" => respond(200, SECRET),
            _ => respond(200, TAKEN),
        })
        .await;
        let (host, base) = (peer.address.to_string(), format!("http://{}", peer.address));
        let (inlet_url, token_url) = (format!("{base}/collection/abc"), format!("{base}/ims/token/v3"));
        let function = function_of(
            "platform-ingest",
            &[
                ("INLET_URL", &inlet_url),
                ("EMULATOR_HOSTS", &host),
                ("INLET_FLOW_ID", "f"),
                ("IMS_SECRET_ID", "ims"),
                ("IMS_TOKEN_URL", &token_url),
                ("AWS_ENDPOINT_URL", &base),
                ("AWS_REGION", "eu-central-1"),
                ("AWS_ACCESS_KEY_ID", "local"),
                ("AWS_SECRET_ACCESS_KEY", "local"),
            ],
        );
        for n in 0..2 {
            let failed = failures(&function, &event(&entities(0, n, n + 1))).await;
            assert_eq!(failed.is_empty(), is_usable, "{token}");
        }
        let tokens = peer.requests().iter().filter(|request| request.line.contains("token")).count();
        let (_, hints) = told(&function, 2).await;
        match is_usable {
            true => assert_eq!(tokens, 1, "{token}"),
            false => {
                assert!(hints.iter().all(|hint| hint.contains("check IMS_TOKEN_URL")), "{hints:?}");
                assert_eq!(hints.len(), 2);
            }
        }
    }
}

/// Webhook to hub to inlet, while everything fails in turns.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_in_the_hub_is_lost_on_the_way_back() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let sender = cloud.function("audience-change", &hub, &[("PARTITIONING", "partitions:4")]);
    let system = System { function: sender, hub: hub.clone() };
    let records: Vec<Value> = (0..800).map(|n| queue_record(&n.to_string(), &event_of(&format!("p{n}")))).collect();
    assert!(system.failures(&records).await.is_empty());

    let inlet = inlet(Some(CLIENT)).await;
    cloud.secret("ims", &json!({ "client_id": CLIENT.0, "client_secret": CLIENT.1 }).to_string()).await;
    let token_url = inlet.token_url();
    let ims = [("IMS_SECRET_ID", "ims"), ("IMS_TOKEN_URL", token_url.as_str()), ("INLET_BATCH_MAX", "7")];
    let mut config = in_cloud(&cloud, variables(&inlet, "xdm", &ims)).config().clone();
    config.timeout = Duration::from_secs(5);
    let function = Function::new(config);
    let mut poller = Poller::new(hub.clone(), HUB, function.clone(), None, 60);

    let elements = |status, places: &[usize]| Action::Elements { status, places: places.to_vec(), as_documented: true };
    let mut faults = vec![
        Fault { token: true, ..Fault::from(answers(503)) },
        Fault::from(Action::Hang),
        Fault { times: 12, ..Fault::from(answers(503)) },
    ];
    for action in [
        elements(503, &[0, 3]),
        elements(429, &[6]),
        Action::Reset,
        Action::ResetAfterTaking,
        elements(400, &[2]),
        answers(500),
        Action::Delay { ms: 200 },
        Action::Status { status: 429, retry_after: Some(1) },
    ] {
        faults.extend([Fault::from(action), Fault::from(Action::Delay { ms: 5 })]);
    }
    inlet.script(faults);
    let mut rounds = 0;
    loop {
        rounds += 1;
        assert!(rounds < 500, "it makes progress");
        // In the middle of a batch: instances die, tokens expire, commits are lost.
        let strike = async {
            sleep(Duration::from_millis(fastrand::u64(..60))).await;
            match rounds % 5 {
                1 => drop(function.kill().await),
                3 => inlet.revoke_tokens(),
                _ => {}
            }
        };
        let (polled, ()) = tokio::join!(poller.poll(), strike);
        if polled == Polled::Nothing {
            break;
        }
        if rounds % 7 == 0 && rounds < 60 {
            poller.rewind(5);
        }
    }
    let rejected: BTreeSet<String> = rejected(&cloud).await.into_iter().map(|(_, detail, _)| place(&detail)).collect();
    let mut last = BTreeMap::new();
    for taken in inlet.taken() {
        last.insert(taken.record["_id"].as_str().unwrap().to_owned(), taken.number);
    }
    let mut order = BTreeMap::<u32, u64>::new();
    let events = hub.events(HUB);
    for event in &events {
        let id = event.properties["cloudEvents:id"].as_str().unwrap();
        match last.remove(id) {
            Some(number) => {
                let before = order.insert(event.partition, number);
                assert!(before.is_none_or(|before| before < number), "the last word of a partition is in order");
            }
            None => assert!(
                rejected.contains(&format!("{HUB}-{} at {}", event.partition, event.sequence_number)),
                "lost: {} of {}",
                event.sequence_number,
                event.partition,
            ),
        }
    }
    assert!(last.is_empty(), "nothing but the hub's events, each by its own id: {last:?}");
    assert_eq!(events.len(), 800);
    assert!(inlet.tokens_given() > 2 && inlet.taken().len() > 800, "the faults have struck");
    assert!(rejected.len() < 20, "{rejected:?}");
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

/// Polls until the hub has nothing new.
async fn drain(poller: &mut Poller) {
    for _ in 0..20 {
        if poller.poll().await == Polled::Nothing {
            return;
        }
    }
    panic!("records are still returned");
}

#[tokio::test]
async fn records_wait_in_the_hub_through_any_number_of_failed_invocations() {
    let hub = filled_hub(20).await;
    let inlet = inlet(None).await;
    let function = function(&variables(&inlet, "raw", &[]));
    let mut poller = Poller::new(hub.clone(), HUB, function.clone(), None, 1000);
    inlet.script([lasting(answers(404))]);
    for attempt in 0..50 {
        assert_eq!(poller.poll().await, Polled::Batch { records: 20, again: 20 }, "{attempt}");
    }
    inlet.clear_faults();
    drain(&mut poller).await;
    assert_eq!(inlet.taken().len(), 20);
    assert_eq!(poller.discarded(), []);

    // An on-failure destination without a number of retries: the batch is skipped after ten of them.
    let limits = Limits::of(&json!({ "DestinationConfig": { "OnFailure": { "Destination": "arn:aws:sqs:a:1:b" } } }));
    let mut limited = Poller::new(hub, HUB, function, None, 1000).with_limits(limits, Clock::system());
    inlet.forget();
    inlet.script([lasting(answers(404))]);
    for _ in 0..11 {
        assert!(matches!(limited.poll().await, Polled::Batch { records: 20, .. }));
    }
    assert_eq!(limited.poll().await, Polled::Nothing);
    assert_eq!(limited.discarded(), [Discarded { partition: 0, first: 0, last: 19 }]);
    assert!(inlet.taken().is_empty());
}

#[tokio::test]
async fn a_disabled_flow_loses_no_record_while_its_mapping_is_still_polling() {
    let cloud = Cloud::start().await;
    let hub = filled_hub(5).await;
    let inlet = inlet(None).await;
    let config = Config::default();
    let options =
        json!({ "inletUrl": inlet.url(), "inletFlowId": config.flow_id, "sandbox": config.sandbox }).to_string();
    let put = async |state: &str| {
        cloud.put_flow("flow-a", "platform-ingest", HUB, json!({ "options": options, "state": state })).await;
    };
    let function = in_cloud(&cloud, vec![("EMULATOR_HOSTS", inlet.host())]);
    let mut poller = Poller::new(hub, HUB, function.clone(), Some("flow-flow-a"), 1000);
    put("disabled").await;
    for _ in 0..20 {
        assert_eq!(poller.poll().await, Polled::Batch { records: 5, again: 5 });
    }
    put("enabled").await;
    // Another instance: this one may use the item that it has read for a minute.
    function.kill().await;
    drain(&mut poller).await;
    assert_eq!(inlet.taken().len(), 5);
    assert_eq!(poller.discarded(), []);
}

#[tokio::test]
async fn records_of_any_age_are_ingested_unless_an_age_is_set() {
    let hub = filled_hub(5).await;
    let inlet = inlet(None).await;
    let function = function(&variables(&inlet, "raw", &[]));
    let now = Clock::system();
    let in_two_days = Clock::from_fn(move || now.now() + Duration::from_secs(2 * 86_400));
    let poller = |age: i64| {
        let limits = Limits::of(&json!({ "MaximumRecordAgeInSeconds": age }));
        Poller::new(hub.clone(), HUB, function.clone(), None, 1000).with_limits(limits, in_two_days.clone())
    };
    let mut limited = poller(86_400);
    assert_eq!(limited.poll().await, Polled::Nothing);
    assert_eq!(limited.discarded(), [Discarded { partition: 0, first: 0, last: 4 }]);
    assert!(inlet.taken().is_empty());
    let mut unlimited = poller(-1);
    drain(&mut unlimited).await;
    assert_eq!(inlet.taken().len(), 5);
}

/// Where a reject comes from, by its detail.
fn place(detail: &str) -> String {
    detail.split(": ").next().unwrap().to_owned()
}

/// How many records reach an inlet that is configured as `sam local` does, but for its address.
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
