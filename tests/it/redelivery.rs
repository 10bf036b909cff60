//! Parked messages stay parked until their hub accepts them, and reach it once.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use local::emulator::{Action, Emulator};
use local::queue_source::{self, Mapping};
use local::runner::{Function, FunctionConfig};
use local::sqs::{Config, Sqs, Stored};
use serde_json::{Value, json};
use shared::aws::{Aws, Service};
use shared::clock::Clock;
use shared::contract::codec::pack;
use shared::contract::parked::unpacked;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cloud::{REGION, emulator, until};
use crate::harness::*;

/// A hub, the queues, and what functions need to use both.
struct Stack {
    hub: Emulator,
    sqs: Sqs,
    aws: Aws,
    parking: String,
    rejected: String,
}

/// The mapping of the parking queue. It ends with this.
struct Redelivery {
    function: Function,
    mapping: JoinHandle<()>,
}

impl Drop for Redelivery {
    fn drop(&mut self) {
        self.mapping.abort();
    }
}

impl Stack {
    async fn start(hubs: &[&str]) -> Self {
        Self::with_maximum_message_size(hubs, 1_048_576).await
    }

    async fn with_maximum_message_size(hubs: &[&str], bytes: usize) -> Self {
        let sqs = Sqs::start(Config::default(), TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
        let http = shared::build_http_client(None).unwrap();
        let aws = local::run::local_aws(http, sqs.url().to_owned(), REGION.to_owned());
        let mut stack = Self { hub: emulator(hubs).await, sqs, aws, parking: String::new(), rejected: String::new() };
        for (name, url) in [("parking", &mut stack.parking), ("rejected", &mut stack.rejected)] {
            let attributes = json!({ "VisibilityTimeout": "600", "MaximumMessageSize": bytes.to_string() });
            let created = call(&stack.aws, "CreateQueue", json!({ "QueueName": name, "Attributes": attributes })).await;
            *url = created["QueueUrl"].as_str().unwrap().to_owned();
        }
        stack
    }

    async fn call(&self, operation: &'static str, body: Value) -> Value {
        call(&self.aws, operation, body).await
    }

    fn connection_string(&self) -> String {
        self.hub.connection_string(&hub_config().keys[0].name, Some(HUB))
    }

    /// A function with the default flow to `HUB`; `more` is added, or replaces what is there.
    fn function(&self, name: &str, more: &[(&str, &str)]) -> Function {
        let connection_string = self.connection_string();
        let mut environment = vec![
            ("EVENT_HUBS_CONNECTION_STRING", connection_string.as_str()),
            ("SENDER_AUTH", SENDER_AUTH),
            ("PARKING_QUEUE_URL", &self.parking),
            ("REJECTED_QUEUE_URL", &self.rejected),
            ("AWS_ENDPOINT_URL", self.sqs.url()),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", "local"),
            ("AWS_SECRET_ACCESS_KEY", "local"),
        ];
        environment.extend(more);
        function_of(name, &environment)
    }

    fn redeliver(&self, more: &[(&str, &str)]) -> Redelivery {
        let quick = [("REDELIVERY_DELAY", "1"), ("REDELIVERY_MAX_DELAY", "5"), ("REDELIVERY_CONCURRENCY", "2")];
        let function = self.function("redelivery", &[&quick, more].concat());
        let mapping = Mapping { batch_size: 1000, ..Mapping::new(&self.parking, REGION) };
        let mapping = tokio::spawn(queue_source::run(self.aws.clone(), function.clone(), mapping));
        Redelivery { function, mapping }
    }

    /// Parks one envelope of messages for `HUB` that were first seen some seconds ago. The hub refuses the one with the
    /// subject `poison`, whose properties are not an object.
    fn park(&self, seconds_ago: u64, subjects: &[&str], change: Value) {
        let first_seen = Clock::system().now().duration_since(UNIX_EPOCH).unwrap() - Duration::from_secs(seconds_ago);
        let message = |subject: &&str| {
            let properties = json!({ "cloudEvents:id": format!("id-{subject}"), "cloudEvents:subject": subject });
            let properties = if *subject == "poison" { json!([]) } else { properties };
            json!({ "id": format!("id-{subject}"), "subject": subject, "body": "{}", "properties": properties })
        };
        let mut envelope = json!({
            "v": 1, "kind": "audience-change", "flow": "default", "hub": HUB,
            "host": self.hub.url().replace("http://", ""),
            "firstSeen": shared::rfc3339(i64::try_from(first_seen.as_millis()).unwrap()).unwrap(),
            "reason": "timeout", "messages": subjects.iter().map(message).collect::<Vec<_>>(),
        });
        for (name, value) in change.as_object().unwrap() {
            envelope[name] = value.clone();
        }
        self.sqs.put("parking", &pack(envelope.to_string().as_bytes()), None);
    }

    fn parked(&self) -> Vec<Stored> {
        self.sqs.messages("parking")
    }

    fn rejects(&self) -> Vec<Value> {
        self.sqs.messages("rejected").iter().map(|message| serde_json::from_str(&message.body).unwrap()).collect()
    }

    /// Number of copies of each message in the hub, by subject.
    fn copies(&self) -> BTreeMap<String, usize> {
        let mut copies = BTreeMap::new();
        for event in self.hub.events(HUB) {
            let subject = event.properties["cloudEvents:subject"].as_str().unwrap().to_owned();
            *copies.entry(subject).or_default() += 1;
        }
        copies
    }

    async fn until_nothing_is_parked(&self) {
        until("an empty parking queue", async || self.parked().is_empty()).await;
    }
}

async fn call(aws: &Aws, operation: &'static str, body: Value) -> Value {
    let response = aws.call(Service::Sqs, operation, &body, Instant::now() + Duration::from_secs(10)).await.unwrap();
    serde_json::from_slice(&response).unwrap_or_default()
}

fn envelope(message: &Stored) -> Value {
    serde_json::from_str(&unpacked(&message.body).unwrap()).unwrap()
}

/// Text that packs badly.
fn noise(length: usize) -> String {
    std::iter::repeat_with(|| fastrand::char('#'..'[')).take(length).collect()
}

fn lines(function: &Function, message: &str) -> Vec<Value> {
    let logs = function.logs();
    let lines = logs.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"].as_str().is_some_and(|text| text.contains(message))).collect()
}

#[tokio::test]
async fn parked_messages_share_a_group_per_destination() {
    let stack = Stack::start(&[HUB, "other"]).await;
    stack.hub.script([lasting(status(404, None, "40400"))]);
    let function = stack.function("audience-change", &[]);
    let other = stack.function(
        "audience-change",
        &[("EVENT_HUBS_CONNECTION_STRING", &stack.hub.connection_string(&hub_config().keys[0].name, Some("other")))],
    );
    for (function, profile) in [(&function, "a"), (&function, "b"), (&other, "c")] {
        assert_eq!(answer(function, &request(&event_of(profile))).await.status, 202);
    }
    let groups: Vec<String> =
        stack.parked().iter().map(|message| message.group.as_deref().unwrap().to_owned()).collect();
    // printf '127.0.0.1:PORT/profiles' | sha256sum | cut -c1-32
    let host = stack.hub.url().replace("http://", "");
    let group = |hub: &str| shared::digest(format!("{host}/{hub}").as_bytes())[..32].to_owned();
    assert_eq!(groups, [group(HUB), group(HUB), group("other")]);
}

#[tokio::test]
async fn a_queue_that_accepts_less_gets_smaller_envelopes_and_one_hint() {
    // Larger ones take a debug build too long to pack.
    for limit in [4_096, 16_384, 65_536] {
        let stack = Stack::with_maximum_message_size(&[HUB], limit).await;
        stack.hub.script([lasting(status(404, None, "40400"))]);
        let function = stack.function("audience-change", &[]);
        // Packed, a message takes a little more than its text.
        let event = |n: usize| event_of(&format!("p{n:02}")).replace("value1", &noise(limit / 3));
        let records: Vec<Value> = (0..20).map(|n| record(&format!("m{n}"), &event(n))).collect();
        let system = System { hub: emulator(&[HUB]).await, function };
        assert!(system.failures(&records).await.is_empty(), "{limit}: every record is parked");
        let body = format!("[{},{},{}]", event(20), event(21), event(22));
        assert_eq!(system.post(&body).await.status, 202, "{limit}");
        let parked = stack.parked();
        let mut subjects: Vec<String> = parked
            .iter()
            .flat_map(|message| envelope(message)["messages"].as_array().unwrap().clone())
            .map(|message| message["subject"].as_str().unwrap().to_owned())
            .collect();
        subjects.sort_unstable();
        assert_eq!(subjects, (0..23).map(|n| format!("p{n:02}")).collect::<Vec<_>>(), "{limit}: each once");
        let hints = lines(&system.function, "accepts less than 1 MiB");
        assert_eq!(hints.len(), 1, "{limit}: {hints:?}");
        assert!(hints[0]["hint"].as_str().unwrap().contains("MaximumMessageSize"));

        // One that does not fit alone fails alone.
        let mut records = records[..2].to_vec();
        records[0]["body"] = event_of("large").replace("value1", &noise(2 * limit)).into();
        assert_eq!(system.failures(&records).await, ["m0"], "{limit}");
        let body = event_of("large").replace("value1", &noise(2 * limit));
        system.post(&body).await.problem(503);
        assert_eq!(system.post("{").await.problem(400), system.post("{").await.problem(400));
        let long = format!("{{{}", noise(2 * limit));
        system.post(&long).await.problem(400);
        assert!(stack.rejects().iter().any(|reject| reject["truncated"] == true), "{limit}");
    }
}

#[tokio::test]
async fn a_refused_event_is_rejected_alone_and_its_neighbours_arrive_once() {
    for partitioning in ["keys:16", "partitions:4"] {
        let stack = Stack::start(&[HUB]).await;
        let mut subjects: Vec<String> = (0..99).map(|n| format!("p{n}")).collect();
        subjects.insert(50, "poison".to_owned());
        stack.park(60, &subjects.iter().map(String::as_str).collect::<Vec<_>>(), json!({}));
        let redelivery = stack.redeliver(&[("PARTITIONING", partitioning)]);
        stack.until_nothing_is_parked().await;
        let copies = stack.copies();
        assert_eq!(copies.len(), 99, "{partitioning}");
        assert!(copies.values().all(|copies| *copies == 1), "{partitioning}: {copies:?}");
        let rejects = stack.rejects();
        assert_eq!(rejects.len(), 1, "{partitioning}");
        assert_eq!((&rejects[0]["reason"], &rejects[0]["source"]), (&json!("refused"), &json!("parking")));
        let body: Value = serde_json::from_str(&unpacked(rejects[0]["body"].as_str().unwrap()).unwrap()).unwrap();
        assert_eq!(body["messages"].as_array().unwrap().len(), 1);
        assert_eq!(body["messages"][0]["subject"], "poison");
        drop(redelivery);
    }
}

#[tokio::test]
async fn a_wrong_partition_count_rejects_nothing_and_is_hinted_at() {
    let stack = Stack::start(&[HUB]).await;
    let subjects: Vec<String> = (0..40).map(|n| format!("p{n}")).collect();
    stack.park(60, &subjects.iter().map(String::as_str).collect::<Vec<_>>(), json!({}));
    let redelivery = stack.redeliver(&[("PARTITIONING", "partitions:8")]);
    until("the rest to be held", async || !lines(&redelivery.function, "parked batch handled").is_empty()).await;
    until("a second look", async || lines(&redelivery.function, "parked batch handled").len() > 1).await;
    assert!(stack.rejects().is_empty());
    let copies = stack.copies();
    assert!(copies.len() > 5 && copies.len() < 35 && copies.values().all(|copies| *copies == 1), "{copies:?}");
    let left: usize = stack.parked().iter().map(|one| envelope(one)["messages"].as_array().unwrap().len()).sum();
    assert_eq!(copies.len() + left, 40);
    let hints = lines(&redelivery.function, "failed to send to an event hub");
    assert!(hints[0]["hint"].as_str().unwrap().contains("PARTITIONING"), "{hints:?}");
}

#[tokio::test]
async fn what_is_older_than_the_maximum_age_is_rejected_as_expired() {
    let stack = Stack::start(&[HUB]).await;
    stack.hub.script([lasting(status(503, None, "50004"))]);
    stack.park(2 * 3600, &["old", "older"], json!({}));
    stack.park(60, &["young"], json!({}));
    let _redelivery = stack.redeliver(&[("PARKING_MAX_AGE", "3600")]);
    until("a reject", async || !stack.rejects().is_empty()).await;
    let rejects = stack.rejects();
    assert_eq!((rejects.len(), &rejects[0]["reason"]), (1, &json!("expired")));
    stack.hub.clear_faults();
    stack.until_nothing_is_parked().await;
    assert_eq!(stack.copies(), BTreeMap::from([("young".to_owned(), 1)]));
}

#[tokio::test]
async fn an_unusable_setting_stops_redelivery_by_its_name() {
    let stack = Stack::start(&[HUB]).await;
    for (variable, value) in [("REDELIVERY_DELAY", "31"), ("REDELIVERY_MAX_DELAY", "3"), ("PARKING_MAX_AGE", "60")] {
        let queue = ("PARKING_QUEUE_URL", stack.parking.as_str());
        let aws = [("AWS_REGION", REGION), ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")];
        let environment = [&[queue, (variable, value)][..], &aws].concat();
        assert_eq!(init_failure_of("redelivery", &environment).await["variable"], variable);
    }
}

#[tokio::test]
async fn small_envelopes_are_gathered_and_delivered_once() {
    let stack = Stack::start(&[HUB]).await;
    stack.hub.script([lasting(status(503, None, "50004"))]);
    for n in 0..300 {
        stack.park(60, &[&format!("p{n:03}")], json!({}));
    }
    let redelivery = stack.redeliver(&[]);
    until("gathered envelopes", async || stack.parked().len() < 10).await;
    let parked: Vec<Value> = stack.parked().iter().map(envelope).collect();
    assert!(parked.iter().all(|envelope| envelope["reason"] == "unavailable" && envelope["v"] == 1));
    assert!(stack.parked().iter().all(|message| message.group.is_some()));
    let subjects = parked.iter().flat_map(|envelope| envelope["messages"].as_array().unwrap());
    assert_eq!(subjects.count(), 300);
    stack.hub.clear_faults();
    stack.until_nothing_is_parked().await;
    let copies = stack.copies();
    assert!(copies.len() == 300 && copies.values().all(|copies| *copies == 1), "{copies:?}");
    for (message, cause) in [("circuit opened", "unavailable"), ("circuit closed", "unavailable")] {
        let lines = lines(&redelivery.function, message);
        assert_eq!(lines.len(), 1, "{message}: {lines:?}");
        assert_eq!((&lines[0]["hub"], &lines[0]["cause"]), (&json!(HUB), &json!(cause)));
        assert!(lines[0]["oldest_event_age_s"].as_u64().unwrap() >= 60, "{lines:?}");
    }
}

#[tokio::test]
async fn an_event_at_which_the_hub_fails_does_not_stop_the_others() {
    let stack = Stack::start(&[HUB]).await;
    let subjects: Vec<String> = (0..40).map(|n| format!("p{n}")).collect();
    for subject in std::iter::once("fails").chain(subjects.iter().map(String::as_str)) {
        stack.park(60, &[subject], json!({}));
    }
    // The hub accepts what has no such event in it.
    let stored: std::sync::Arc<std::sync::Mutex<Vec<String>>> = Default::default();
    let kept = stored.clone();
    let host = serve(move |_, body| {
        let elements: Vec<Value> = serde_json::from_slice(&body).unwrap_or_default();
        let subject = |one: &Value| one["UserProperties"]["cloudEvents:subject"].as_str().unwrap().to_owned();
        let subjects: Vec<String> = elements.iter().map(subject).collect();
        if subjects.contains(&"fails".to_owned()) {
            return (500, "<Error><Code>500</Code></Error>".to_owned());
        }
        kept.lock().unwrap().extend(subjects);
        (201, String::new())
    })
    .await;
    let connection_string = stack.connection_string().replace(&stack.hub.url().replace("http://", ""), &host);
    for message in stack.parked() {
        let mut envelope = envelope(&message);
        envelope["host"] = host.as_str().into();
        stack.sqs.put("parking", &pack(envelope.to_string().as_bytes()), None);
    }
    let function = stack.function("redelivery", &[("EVENT_HUBS_CONNECTION_STRING", connection_string.as_str())]);
    let messages = stack.parked().into_iter().filter(|message| envelope(message)["host"] == host);
    let records: Vec<Value> = messages.map(|message| record(&message.id, &message.body)).collect();
    let delivered = async || {
        // Each instance begins with a probe.
        function.invoke(json!({ "Records": records }).to_string().into_bytes()).await.unwrap();
        function.kill().await;
        let stored = stored.lock().unwrap();
        stored.iter().collect::<std::collections::BTreeSet<_>>().len() >= 30
    };
    until("all but those behind it on its route", delivered).await;
    assert!(!stored.lock().unwrap().contains(&"fails".to_owned()));
}

/// Serves at a free port: each response is the status and body that `respond` returns for the `x-amz-target` and body of a
/// request. Returns host and port.
async fn serve(respond: impl Fn(String, Vec<u8>) -> (u16, String) + Clone + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let respond = respond.clone();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let respond = respond.clone();
                async move {
                    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
                    let target = target.unwrap_or_default().to_owned();
                    let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
                    let (status, body) = respond(target, body.to_vec());
                    let body = http_body_util::Full::new(bytes::Bytes::from(body));
                    Ok::<_, std::convert::Infallible>(http::Response::builder().status(status).body(body).unwrap())
                }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    host
}

#[tokio::test]
async fn envelopes_are_stored_again_while_very_many_messages_are_in_flight() {
    for (in_flight, is_stored) in [("59999", false), ("60000", true)] {
        let stack = Stack::start(&[HUB]).await;
        stack.hub.script([lasting(status(503, None, "50004"))]);
        stack.park(60, &["a"], json!({}));
        let calls: std::sync::Arc<std::sync::Mutex<Vec<(String, Value)>>> = Default::default();
        let seen = calls.clone();
        let sqs = serve(move |target, body| {
            let body: Value = serde_json::from_slice(&body).unwrap();
            seen.lock().unwrap().push((target.clone(), body));
            let counts = json!({
                "ApproximateNumberOfMessagesNotVisible": in_flight, "MessageRetentionPeriod": "1209600",
            });
            let response = match target.as_str() {
                "AmazonSQS.GetQueueAttributes" => json!({ "Attributes": counts }),
                _ => json!({ "Successful": [{ "Id": "0" }] }),
            };
            (200, response.to_string())
        })
        .await;
        let more = [("AWS_ENDPOINT_URL_SQS", format!("http://{sqs}"))];
        let more: Vec<(&str, &str)> = more.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let system = System { function: stack.function("redelivery", &more), hub: emulator(&[HUB]).await };
        let mut one = record("m", &stack.parked()[0].body);
        let now = Clock::system().now().duration_since(UNIX_EPOCH).unwrap();
        one["attributes"]["SentTimestamp"] = now.as_millis().to_string().into();
        assert_eq!(system.failures(&[one]).await.is_empty(), is_stored, "{in_flight}");
        let calls = calls.lock().unwrap();
        let sent = calls.iter().find(|(target, _)| target == "AmazonSQS.SendMessageBatch");
        assert_eq!(sent.is_some(), is_stored, "{calls:?}");
        assert_eq!(calls.iter().any(|(target, _)| target == "AmazonSQS.ChangeMessageVisibilityBatch"), !is_stored);
        if let Some((_, body)) = sent {
            let entry = &body["Entries"][0];
            assert!(entry["DelaySeconds"].as_u64().unwrap() >= 1 && entry["MessageGroupId"].is_string(), "{entry}");
        }
    }
}

#[tokio::test]
async fn envelopes_that_pack_well_are_hidden_and_not_stored_again_and_again() {
    let stack = Stack::start(&[HUB]).await;
    stack.hub.script([lasting(status(503, None, "50004"))]);
    for subject in ["a", "b", "c", "d"] {
        let message = json!({ "id": subject, "subject": subject, "body": "x".repeat(600_000), "properties": {} });
        stack.park(60, &[], json!({ "messages": [message] }));
    }
    let redelivery = stack.redeliver(&[]);
    until("three rounds", async || lines(&redelivery.function, "parked batch handled").len() >= 3).await;
    assert_eq!(stack.sqs.figures("parking").sent, 4, "none of them is sent again");
}

#[tokio::test]
async fn an_absurd_retry_after_does_not_end_the_invocation() {
    let stack = Stack::start(&[HUB]).await;
    stack.park(60, &["a"], json!({}));
    stack.hub.script([lasting(status(429, Some(u64::MAX), ""))]);
    let record = record("m", &stack.parked()[0].body);
    let system = System { function: stack.function("redelivery", &[]), hub: emulator(&[HUB]).await };
    system.failures(&[record]).await;
    assert!(lines(&system.function, "parked batch handled").len() == 1, "{:?}", system.function.logs());
}

#[tokio::test]
async fn a_deleted_flows_messages_are_held_while_they_can_not_be_stored_as_rejected() {
    let cloud = crate::cloud::Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    cloud.flow("gone", "audience-change", &hub, HUB, json!({})).await;
    hub.script([lasting(status(404, None, "40400"))]);
    let function = cloud.function("audience-change", &hub, &[]);
    let mut event = request(DOCUMENTED);
    event["rawPath"] = "/gone".into();
    assert_eq!(answer(&function, &event).await.status, 202);
    cloud.delete_flow("gone").await;
    let quick = [("REDELIVERY_DELAY", "1"), ("REDELIVERY_MAX_DELAY", "5"), ("REJECTED_QUEUE_URL", "")];
    let function = cloud.function("redelivery", &hub, &quick);
    let mapping =
        tokio::spawn(queue_source::run(cloud.aws.clone(), function.clone(), Mapping::new(&cloud.parking, REGION)));
    // The queue's own visibility timeout is ten minutes.
    until("a second look", async || lines(&function, "parked batch handled").len() >= 2).await;
    mapping.abort();
}

#[tokio::test]
async fn an_envelope_is_renewed_before_its_queue_deletes_it() {
    const DAY: u64 = 24 * 3600;
    for (days, retention_days, is_renewed) in [(6, 14, false), (8, 14, true), (1, 4, false), (3, 4, true)] {
        let stack = Stack::start(&[HUB]).await;
        let attributes = json!({ "MessageRetentionPeriod": (retention_days * DAY).to_string() });
        stack.call("SetQueueAttributes", json!({ "QueueUrl": stack.parking, "Attributes": attributes })).await;
        stack.hub.script([lasting(status(503, None, "50004"))]);
        stack.park(days * DAY, &["a"], json!({}));
        let stored = stack.parked().remove(0);
        let mut record = record(&stored.id, &stored.body);
        let sent_at = Clock::system().now().duration_since(UNIX_EPOCH).unwrap() - Duration::from_secs(days * DAY);
        record["attributes"]["SentTimestamp"] = sent_at.as_millis().to_string().into();
        let system = System { function: stack.function("redelivery", &[]), hub: emulator(&[HUB]).await };
        assert_eq!(system.failures(&[record]).await.is_empty(), is_renewed, "{days} of {retention_days} days");
        assert_eq!(stack.parked().len(), if is_renewed { 2 } else { 1 }, "the original is Lambda's to delete");
        assert!(stack.parked().iter().all(|message| message.body == stored.body));
    }
}

#[tokio::test]
async fn envelopes_of_very_different_age_are_not_gathered() {
    let stack = Stack::start(&[HUB]).await;
    stack.hub.script([lasting(status(503, None, "50004"))]);
    let days = 24 * 3600;
    for (age, subject) in [(10 * days, "a"), (60, "b"), (10 * days - 60, "c"), (30, "d")] {
        stack.park(age, &[subject], json!({}));
    }
    let _redelivery = stack.redeliver(&[]);
    until("two envelopes", async || stack.parked().len() == 2).await;
    let mut subjects: Vec<Vec<Value>> = stack
        .parked()
        .iter()
        .map(|message| envelope(message)["messages"].as_array().unwrap().iter().map(|m| m["subject"].clone()).collect())
        .collect();
    subjects.sort_by_key(|subjects| subjects[0].to_string());
    assert_eq!(subjects, [["a", "c"], ["b", "d"]], "one does not expire days before its time");
}

#[tokio::test]
async fn the_oldest_envelope_is_sent_first() {
    let stack = Stack::start(&[HUB]).await;
    for age in [10, 30, 20] {
        // One subject, so that all of them go to one partition.
        let message = json!({ "id": format!("{age}"), "subject": "s", "body": format!("{age}"), "properties": {} });
        stack.park(age, &[], json!({ "messages": [message] }));
    }
    let redelivery = stack.function("redelivery", &[]);
    let records: Vec<Value> = stack.parked().iter().map(|message| record(&message.id, &message.body)).collect();
    let system = System { function: redelivery, hub: stack.hub };
    assert!(system.failures(&records).await.is_empty());
    let bodies: Vec<String> = system.hub.events(HUB).into_iter().map(|event| event.body).collect();
    assert_eq!(bodies, ["30", "20", "10"]);
}

#[tokio::test]
async fn a_flow_with_a_bad_key_does_not_delay_another_flow_of_its_hub() {
    let cloud = crate::cloud::Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    for flow in ["good", "bad", "off"] {
        cloud.flow(flow, "audience-change", &hub, HUB, json!({})).await;
    }
    let function = cloud.function("audience-change", &hub, &[]);
    hub.script([lasting(status(404, None, "40400"))]);
    for (n, flow) in ["bad", "good", "off", "bad", "good"].into_iter().enumerate() {
        let mut event = request(&event_of(&format!("{flow}-{n}")));
        event["rawPath"] = format!("/{flow}").into();
        assert_eq!(answer(&function, &event).await.status, 202);
    }
    hub.clear_faults();
    let wrong = format!("{};", hub.connection_string(&hub_config().keys[0].name, None));
    let wrong = wrong.replace("SharedAccessKey=", "SharedAccessKey=wrong");
    cloud.change_secret("connection-bad", &wrong).await;
    cloud.put_flow("off", "audience-change", HUB, json!({ "state": "disabled" })).await;
    let redelivery = cloud.redeliver(&hub);
    until("the good flow's events", async || hub.events(HUB).len() >= 2).await;
    until("a refused key", async || !lines(&redelivery.function, "circuit opened").is_empty()).await;
    let subjects: Vec<_> =
        hub.events(HUB).iter().map(|event| event.properties["cloudEvents:subject"].clone()).collect();
    assert_eq!(subjects, ["good-1", "good-4"]);
    // The key is corrected, and the flow enabled.
    cloud.change_secret("connection-bad", &hub.connection_string(&hub_config().keys[0].name, None)).await;
    until("the corrected flow's events", async || hub.events(HUB).len() == 4).await;
}

#[tokio::test]
async fn another_secret_for_the_same_hub_delivers_where_the_envelopes_is_gone() {
    let cloud = crate::cloud::Cloud::start().await;
    let (hub, elsewhere) = (emulator(&[HUB, "other"]).await, emulator(&[HUB]).await);
    let key_name = hub_config().keys[0].name.clone();
    for (secret, hub, name) in [("same", &hub, HUB), ("other-hub", &hub, "other"), ("other-host", &elsewhere, HUB)] {
        cloud.secret(secret, &hub.connection_string(&key_name, Some(name))).await;
    }
    let stack_envelope = json!({
        "v": 1, "kind": "audience-change", "flow": "default", "hub": HUB, "host": hub.url().replace("http://", ""),
        "secretId": "deleted", "firstSeen": "2026-01-02T03:04:05.678Z", "reason": "timeout",
        "messages": [{ "id": "a", "subject": "s", "body": "{}", "properties": {} }],
    });
    let body = pack(stack_envelope.to_string().as_bytes());
    let redeliver = async |secret: &str| {
        let mut record = record("m", &body);
        let now = Clock::system().now().duration_since(UNIX_EPOCH).unwrap();
        record["attributes"]["SentTimestamp"] = now.as_millis().to_string().into();
        let more =
            [("EVENT_HUBS_CONNECTION_STRING", ""), ("EVENT_HUBS_SECRET_ID", secret), ("PARKING_MAX_AGE", "4294967295")];
        let function = cloud.function("redelivery", &hub, &more);
        let system = System { hub: emulator(&[HUB]).await, function };
        let failures = system.failures(&[record]).await;
        let problem = lines(&system.function, "stays parked").first().map(|line| line["problem"].to_string());
        (failures, problem)
    };
    let (failures, problem) = redeliver("other-hub").await;
    assert_eq!(failures, ["m"]);
    assert!(
        problem.as_ref().is_some_and(|problem| problem.contains("deleted") || problem.contains("NotFound")),
        "{problem:?}"
    );
    assert!(problem.is_some_and(|problem| problem.contains("another hub")));
    let (failures, problem) = redeliver("other-host").await;
    assert_eq!(failures, ["m"]);
    assert!(problem.is_some_and(|problem| problem.contains("another host")));
    assert!(hub.events(HUB).is_empty() && hub.events("other").is_empty() && elsewhere.events(HUB).is_empty());
    assert!(redeliver("same").await.0.is_empty());
    assert_eq!(hub.events(HUB).len(), 1);
}

#[tokio::test]
async fn webhooks_are_parked_at_once_while_the_hub_is_known_to_hang() {
    let stack = Stack::start(&[HUB]).await;
    let function = stack.function("audience-change", &[]);
    stack.hub.script([lasting(fault(Action::Hang))]);
    for n in 0..20 {
        let answer = answer(&function, &request(&event_of(&format!("p{n}")))).await;
        assert_eq!((answer.status, &answer.body["status"]), (202, &json!("parked")), "{n}");
    }
    assert_eq!(stack.parked().len(), 20);
    // Two attempts each of the first three; afterwards one a second, for the tenths of seconds that the others take.
    let requests = stack.hub.requests().len();
    assert!(requests <= 10, "{requests} requests");
    let reasons: Vec<Value> = stack.parked().iter().map(|message| envelope(message)["reason"].clone()).collect();
    assert!(reasons.iter().all(|reason| reason == "timeout"), "{reasons:?}");
    stack.hub.clear_faults();
    until("delivery", async || answer(&function, &request(DOCUMENTED)).await.body["status"] == "delivered").await;
    assert_eq!(answer(&function, &request(DOCUMENTED)).await, delivered(1));
    for message in ["circuit opened", "circuit closed"] {
        let lines = lines(&function, message);
        assert_eq!((lines.len(), &lines[0]["cause"], &lines[0]["hub"]), (1, &json!("timeout"), &json!(HUB)));
    }
}

#[tokio::test]
async fn throttling_never_opens_the_circuit_of_new_events() {
    let stack = Stack::start(&[HUB]).await;
    let function = stack.function("audience-change", &[]);
    stack.hub.script([lasting(status(503, None, "Error code : 50002. Please wait 4 seconds and try again."))]);
    for n in 0..6 {
        assert_eq!(answer(&function, &request(&event_of(&format!("p{n}")))).await.status, 202);
    }
    assert_eq!(stack.hub.requests().len(), 6, "each is tried");
    assert!(lines(&function, "circuit").is_empty());
}

#[tokio::test]
async fn fifo_records_return_at_once_while_the_hub_is_known_to_fail() {
    let stack = Stack::start(&[HUB]).await;
    let function = stack.function("audience-change", &[("PARTITIONING", "subject")]);
    stack.hub.script([lasting(status(500, None, ""))]);
    let mut records: Vec<Value> = (0..50).map(|n| record(&format!("m{n}"), &event_of(&format!("p{n}")))).collect();
    // The first record of each group is tried, and three failures in a row open the circuit.
    for (n, record) in records.iter_mut().enumerate() {
        record["eventSourceARN"] = "arn:aws:sqs:eu-central-1:123456789012:audience-change.fifo".into();
        record["attributes"]["MessageGroupId"] = format!("group-{}", n % 5).into();
    }
    let system = System { hub: emulator(&[HUB]).await, function };
    assert_eq!(system.failures(&records).await.len(), 50);
    let before = stack.hub.requests().len();
    assert_eq!(system.failures(&records).await.len(), 50);
    assert!(stack.hub.requests().len() <= before + 1, "at most one finds out whether the hub responds");
    assert!(stack.parked().is_empty());
}

#[tokio::test]
async fn nothing_is_sent_when_no_time_is_left_and_the_log_names_the_timeout() {
    for (timeout, is_sent) in [(2_000, false), (1_900, false), (3_000, true)] {
        let stack = Stack::start(&[HUB]).await;
        let function = stack.function("audience-change", &[("PARKING_QUEUE_URL", "")]);
        let config = FunctionConfig { timeout: Duration::from_millis(timeout), ..function.config().clone() };
        let function = Function::new(config);
        let system = System { function, hub: stack.hub };
        for n in 0..5 {
            let failures = system.failures(&[record(&format!("m{n}"), &event_of(&format!("p{n}")))]).await;
            assert_eq!(failures.is_empty(), is_sent, "{timeout}");
        }
        assert_eq!(system.stored(), if is_sent { 5 } else { 0 }, "{timeout}: stored is what was handled");
        let hints = lines(&system.function, "less time than is reserved");
        assert_eq!(hints.is_empty(), is_sent, "{hints:?}");
        assert!(
            hints.iter().all(|line| line["level"] == "ERROR" && line["hint"].as_str().unwrap().contains("timeout"))
        );
        let batches = lines(&system.function, "queue batch handled");
        assert_eq!(batches.iter().all(|line| line.get("Requests").is_some()), is_sent, "{batches:?}");
    }
}
