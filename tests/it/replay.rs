//! `relayctl replay` sends rejected events again, for example once an option is corrected.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use shared::aws::Service;
use shared::aws::sqs::{Outgoing, Queue, Stored};
use shared::contract::codec::pack;
use tokio::time::Instant;

use crate::cloud::*;
use crate::harness::*;

const KIND: &str = "audience-change";

/// The documented event of a profile, from a sender that leaves `callType` out.
fn without_call_type(profile: &str) -> String {
    let mut event: Value = serde_json::from_str(&event_of(profile)).unwrap();
    event.as_object_mut().unwrap().remove("callType");
    event.to_string()
}

/// Runs `relayctl replay` on the queues of `cloud`.
async fn replay(cloud: &Cloud, inbound: &str, options: &[&str]) -> Output {
    let mut command = Command::new(binary("relayctl"));
    command
        .args(["replay", "--rejected-queue-url", &cloud.rejected, "--parking-queue-url", &cloud.parking])
        .args(["--queue", &format!("{KIND}={inbound}")])
        .args(options)
        .envs(cloud.variables());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

async fn count(cloud: &Cloud, queue: &str) -> String {
    let asked = json!({ "QueueUrl": queue, "AttributeNames": ["All"] });
    let reported = cloud.call(Service::Sqs, "GetQueueAttributes", asked).await;
    let attribute = |name: &str| reported["Attributes"][name].as_str().unwrap().to_owned();
    format!("{}+{}", attribute("ApproximateNumberOfMessages"), attribute("ApproximateNumberOfMessagesNotVisible"))
}

/// Invokes a function with the messages of a queue, at most ten.
async fn feed(cloud: &Cloud, inbound: &str, system: &System) -> Vec<Value> {
    let receive = json!({ "QueueUrl": inbound, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"] });
    let received = cloud.call(Service::Sqs, "ReceiveMessage", receive).await;
    let records: Vec<Value> = received["Messages"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(n, message)| {
            let flow = &message["MessageAttributes"]["flow"];
            assert_eq!((&flow["DataType"], &flow["StringValue"]), (&json!("String"), &json!("default")));
            let mut record = record(&format!("m{n}"), message["Body"].as_str().unwrap());
            record["messageAttributes"] = json!({ "flow": { "stringValue": "default", "dataType": "String" } });
            record
        })
        .collect();
    assert!(system.failures(&records).await.is_empty());
    records
}

#[tokio::test]
async fn rejected_events_are_delivered_once_an_option_is_corrected() {
    let cloud = Cloud::start().await;
    let inbound = cloud.queue("inbound").await;
    let hub = emulator(&[HUB]).await;
    let system = System { function: cloud.function(KIND, &hub, &[]), hub: hub.clone() };
    let bodies: Vec<String> = ["secret-profile-1", "secret-profile-2"].map(without_call_type).to_vec();
    assert_eq!(system.post(&bodies[0]).await.problem(400), "callType: missing or empty");
    assert!(system.failures(&[record("a", &bodies[1])]).await.is_empty(), "stored, and so handled");
    system.post("no JSON").await.problem(400);
    assert_eq!(count(&cloud, &cloud.rejected).await, "3+0");

    let shown = replay(&cloud, &inbound, &["--dry-run", "--reason", "unmappable"]).await;
    assert!(shown.status.success(), "{shown:?}");
    let lines = text(&shown);
    assert!(lines.contains("would be replayed: unmappable audience-change of flow default, 2"), "{lines}");
    assert!(lines.contains(&format!(", {} bytes: callType: missing or empty", bodies[0].len())), "{lines}");
    assert!(lines.contains("2 would be replayed; 0 could not be; 1 left by the options"), "{lines}");
    assert!(!lines.contains("secret-profile"), "no bodies");
    assert_eq!(count(&cloud, &cloud.rejected).await, "3+0", "all messages are still there, and visible");
    assert_eq!(count(&cloud, &inbound).await, "0+0");

    let one = replay(&cloud, &inbound, &["--limit", "1", "--kind", KIND, "--reason", "unmappable"]).await;
    assert!(one.status.success(), "{one:?}");
    assert!(text(&one).contains("1 replayed; 0 could not be"), "{}", text(&one));
    let none = replay(&cloud, &inbound, &["--flow", "another"]).await;
    assert!(text(&none).contains("0 replayed; 0 could not be; 2 left by the options"), "{}", text(&none));
    let rest = replay(&cloud, &inbound, &[]).await;
    assert!(rest.status.success(), "{rest:?}");
    assert_eq!(count(&cloud, &cloud.rejected).await, "0+0");
    assert_eq!(count(&cloud, &inbound).await, "3+0");

    let corrected = cloud.function(KIND, &hub, &[("FLOW_OPTIONS", r#"{"defaultCallType":"NEW"}"#)]);
    let records = feed(&cloud, &inbound, &System { function: corrected, hub: hub.clone() }).await;
    assert!(bodies.iter().all(|body| records.iter().any(|record| record["body"] == **body)), "bodies as received");
    let stored = hub.events(HUB);
    assert_eq!(stored.len(), 2);
    for profile in ["secret-profile-1", "secret-profile-2"] {
        assert!(stored.iter().any(|event| event.properties["cloudEvents:subject"] == profile), "{profile}");
    }
    assert_eq!(count(&cloud, &cloud.rejected).await, "1+0", "the body that is not JSON is rejected again");
}

#[tokio::test]
async fn messages_that_cannot_be_replayed_stay_and_are_reported() {
    let cloud = Cloud::start().await;
    let inbound = cloud.queue("inbound").await;
    let hub = emulator(&[HUB]).await;
    let system = System { function: cloud.function(KIND, &hub, &[]), hub };
    system.post(&"x".repeat(1_048_576)).await.problem(400);
    system.post("control \u{1} character").await.problem(400);
    let mut latin = request("");
    latin["body"] = "eyJhIjoi/yJ9".into();
    latin["isBase64Encoded"] = true.into();
    system.response_to(&latin).await.problem(400);
    system.post("no JSON, and a queue takes it").await.problem(400);
    let other = cloud.function("profile-export", &system.hub, &[]);
    response_of(&other, &request("{}")).await.problem(400);
    let first_part = json!({
        "v": 1, "kind": KIND, "flow": "default", "reason": "unreadable", "detail": "", "source": "webhook",
        "receivedAt": "2026-01-01T00:00:00Z", "body": pack(b"["), "truncated": true,
    });
    let queue = Queue::new(cloud.aws.clone(), cloud.rejected.clone());
    let odd = [first_part.to_string(), "something else".to_owned()];
    let odd = odd.each_ref().map(|body| Outgoing::new(body));
    assert_eq!(queue.send(&odd, Instant::now() + Duration::from_secs(30)).await, [Stored::Yes, Stored::Yes]);

    let replayed = replay(&cloud, &inbound, &[]).await;
    assert_eq!(replayed.status.code(), Some(1));
    let lines = text(&replayed);
    for line in [
        "left (only the first part of its body was stored): unreadable",
        "left (it is larger than SQS accepts): unreadable",
        "left (its body has characters that SQS does not accept): unreadable",
        "left (its body is not UTF-8): unreadable",
        "left (give its kind's queue with --queue KIND=URL): unmappable profile-export",
        "is not a reject envelope",
        "1 replayed; 6 could not be; 0 left by the options, 0 rejected meanwhile",
    ] {
        assert!(lines.contains(line), "{line}: {lines}");
    }
    assert_eq!((count(&cloud, &cloud.rejected).await, count(&cloud, &inbound).await), ("6+0".into(), "1+0".into()));

    // A message that could not be sent is not deleted.
    let nowhere = format!("{inbound}-gone");
    system.post("again no JSON").await.problem(400);
    let failed = replay(&cloud, &nowhere, &["--reason", "unreadable"]).await;
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(&failed).contains("left (SendMessage failed for"), "{}", text(&failed));
    assert_eq!(count(&cloud, &cloud.rejected).await, "7+0");
}

#[tokio::test]
async fn replayed_parked_messages_return_to_the_parking_queue() {
    let cloud = Cloud::start().await;
    let inbound = cloud.queue("inbound").await;
    let hub = emulator(&[HUB]).await;
    cloud.flow("crm", KIND, &hub, HUB, json!({})).await;
    hub.script([lasting(status(404, None, "40400"))]);
    let mut event = request(DOCUMENTED);
    event["rawPath"] = "/crm".into();
    assert_eq!(response_of(&cloud.function(KIND, &hub, &[]), &event).await.status, 202);
    hub.clear_faults();
    cloud.delete_flow("crm").await;
    let redeliver = async || {
        let parked = cloud.take(&cloud.parking).await;
        let records: Vec<Value> = parked.iter().map(|parked| record("a", parked["Body"].as_str().unwrap())).collect();
        assert_eq!(records.len(), 1);
        let system = System { function: cloud.function("redelivery", &hub, &[]), hub: hub.clone() };
        assert!(system.failures(&records).await.is_empty());
    };
    redeliver().await;
    assert_eq!(count(&cloud, &cloud.rejected).await, "1+0");
    cloud.put_flow("crm", KIND, HUB, json!({})).await;

    let replayed = replay(&cloud, &inbound, &["--reason", "unknown_flow", "--flow", "crm"]).await;
    assert!(replayed.status.success(), "{replayed:?}");
    assert_eq!(count(&cloud, &cloud.rejected).await, "0+0");
    redeliver().await;
    assert_eq!(hub.events(HUB).len(), 1);
}
