//! The queue trigger: the response to a batch lists exactly the records that must be redelivered.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use local::emulator::{Action, Config, Emulator, Fault, StoredEvent};
use serde_json::{Value, json};

use crate::cloud::{Cloud, emulator};
use crate::harness::*;

fn distinct(count: usize) -> Vec<serde_json::Value> {
    (0..count).map(|n| record(&format!("m{n}"), &event_of(&format!("profile-{n}")))).collect()
}

#[tokio::test]
async fn one_unreadable_record_fails_alone() {
    for unreadable in ["", "{", "not JSON", "[", "{\"profileId\":\"only\"}", "null"] {
        let system = start(&[]).await;
        let mut records = distinct(10);
        records[3]["body"] = unreadable.into();
        assert_eq!(system.failures(&records).await, ["m3"], "{unreadable}");
        assert_eq!(system.stored(), 9);
    }
}

#[tokio::test]
async fn a_record_with_an_odd_member_fails_alone() {
    for (member, odd) in [
        ("body", json!(123)),
        ("body", json!({})),
        ("messageAttributes", json!([])),
        ("messageAttributes", json!({ "flow": { "binaryValue": "eA==", "dataType": "Binary" } })),
        ("messageAttributes", json!({ "flow": null })),
    ] {
        let system = start(&[]).await;
        let mut records = distinct(3);
        records[1][member] = odd.clone();
        assert_eq!(system.failures(&records).await, ["m1"], "{member}: {odd}");
        assert_eq!(system.stored(), 2);
    }
    let system = start(&[]).await;
    let half_a_character = json!({ "Records": distinct(2) }).to_string().replacen("profile-0", "\\ud800", 1);
    let response = system.function.invoke(half_a_character.into_bytes()).await.unwrap();
    assert_eq!(response, br#"{"batchItemFailures":[{"itemIdentifier":"m0"}]}"#);
}

#[tokio::test]
async fn an_event_that_a_partition_refuses_does_not_delay_its_neighbours() {
    for partitioning in ["partitions:1", "keys:1"] {
        let small_hub = Config { max_bytes: 4000, ..hub_config() };
        let system = start_with(small_hub, &[("PARTITIONING", partitioning)]).await;
        let mut records = distinct(8);
        records[0]["body"] = event_of("p").replace("value1", &"x".repeat(5000)).into();
        assert_eq!(system.failures(&records).await, ["m0"], "{partitioning}");
        assert_eq!(system.stored(), 7);
    }
    let system = start(&[("PARTITIONING", "partitions:1")]).await;
    // The batch, its first half, and the first event of that.
    system.hub.script([status(400, None, ""), status(400, None, ""), status(400, None, "")]);
    assert_eq!(system.failures(&distinct(4)).await, ["m0"]);
    assert_eq!(system.stored(), 3);
}

#[tokio::test]
async fn a_refused_key_is_not_tried_by_every_request() {
    let system = start(&[("PARTITIONING", "subject")]).await;
    system.hub.script([lasting(status(401, None, "40103"))]);
    assert_eq!(system.failures(&distinct(100)).await.len(), 100);
    assert!(system.requests() <= 2 * 16, "{} requests", system.requests());
}

#[tokio::test]
async fn a_thousand_profiles_take_few_requests_and_each_keeps_its_partition() {
    for (partitioning, most) in [("keys:16", 16), ("partitions:4", 4), ("none", 1)] {
        let system = start(&[("PARTITIONING", partitioning)]).await;
        assert!(system.failures(&distinct(1000)).await.is_empty());
        assert_eq!(system.stored(), 1000);
        let requests = system.requests();
        assert!(requests <= most, "{partitioning}: {requests} requests");
        if partitioning == "none" {
            continue;
        }
        assert!(system.failures(&distinct(1000)).await.is_empty());
        let mut partitions: HashMap<String, HashSet<u32>> = HashMap::new();
        for event in system.hub.events(HUB) {
            let profile = event.properties["cloudEvents:subject"].as_str().unwrap().to_owned();
            partitions.entry(profile).or_default().insert(event.partition);
        }
        assert_eq!(partitions.len(), 1000);
        assert!(partitions.values().all(|partitions| partitions.len() == 1), "{partitioning}");
        let used: HashSet<u32> = partitions.values().flatten().copied().collect();
        assert_eq!(used.len(), 4, "{partitioning}: all partitions are used");
    }
}

#[tokio::test]
async fn events_of_a_profile_keep_their_order() {
    let system = start(&[("PARTITIONING", "partitions:4"), ("EVENT_HUBS_MAX_BATCH_BYTES", "3000")]).await;
    let records: Vec<_> =
        (0..40).map(|n| record(&format!("m{n}"), &event_of("p").replace("\"value1\"", &n.to_string()))).collect();
    assert!(system.failures(&records).await.is_empty());
    assert!(system.requests() > 1);
    let order: Vec<_> = system
        .hub
        .events(HUB)
        .iter()
        .map(|event| {
            serde_json::from_str::<serde_json::Value>(&event.body).unwrap()["data"]["mycustomproperty1"]
                .as_u64()
                .unwrap()
        })
        .collect();
    assert_eq!(order, (0..40).collect::<Vec<_>>());
}

#[tokio::test]
async fn nothing_counts_as_handled_while_the_hub_is_down() {
    let system = start(&[]).await;
    system.hub.script([lasting(status(404, None, "40400"))]);
    let mut records = distinct(5);
    records[1]["body"] = event_of("x").replace("[\"4\"]", "[]").into();
    assert_eq!(system.failures(&records).await, ["m0", "m2", "m3", "m4"], "m1 has nothing to send");
    system.hub.clear_faults();
    assert!(system.failures(&records).await.is_empty());
    assert_eq!(system.stored(), 4);
}

#[tokio::test]
async fn a_record_for_an_unknown_flow_is_returned() {
    let system = start(&[]).await;
    let mut records = distinct(3);
    let flow = |name: &str| json!({ "flow": { "stringValue": name, "dataType": "String", "stringListValues": [] } });
    records[0]["messageAttributes"] = flow("default");
    records[1]["messageAttributes"] = flow("unknown");
    records[2]["messageAttributes"] = serde_json::Value::Null;
    assert_eq!(system.failures(&records).await, ["m1"]);
    assert_eq!(system.stored(), 2);
}

#[tokio::test]
async fn on_a_fifo_queue_nothing_overtakes_a_failed_record_of_its_group() {
    let system = start(&[]).await;
    let mut records = distinct(6);
    for (n, record) in records.iter_mut().enumerate() {
        record["eventSourceARN"] = "arn:aws:sqs:eu-central-1:123456789012:audience-change.fifo".into();
        record["attributes"]["MessageGroupId"] = format!("group-{}", n % 2).into();
    }
    records[2]["body"] = "unreadable".into();
    assert_eq!(system.failures(&records).await, ["m2", "m4"]);
    assert_eq!(system.stored(), 4);
    let small_hub = Config { max_bytes: 4000, ..hub_config() };
    let system = start_with(small_hub, &[]).await;
    records[2]["body"] = event_of("p").replace("value1", &"x".repeat(5000)).into();
    assert_eq!(system.failures(&records).await, ["m2", "m4"]);
    assert_eq!(system.stored(), 4, "m0, and all of the other group; m4 is not sent before m2 is stored somewhere");
    let mut filtered: Value = serde_json::from_str(&event_of("q")).unwrap();
    filtered["partnerIds"] = json!([]);
    records[4]["body"] = filtered.to_string().into();
    assert_eq!(system.failures(&records).await, ["m2", "m4"], "also a record without a message waits");
}

/// A record in a group of a FIFO queue, for a flow.
fn in_group(mut record: Value, group: &str, flow: &str) -> Value {
    record["eventSourceARN"] = "arn:aws:sqs:eu-central-1:123456789012:audience-change.fifo".into();
    record["attributes"]["MessageGroupId"] = group.into();
    record["messageAttributes"] = json!({ "flow": { "stringValue": flow, "dataType": "String" } });
    record
}

fn profiles(hub: &Emulator, name: &str) -> Vec<String> {
    let profile = |event: &StoredEvent| serde_json::from_str::<Value>(&event.body).unwrap()["profileId"].clone();
    hub.events(name).iter().map(|event| profile(event).as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_record_of_a_group_is_sent_only_after_those_before_it_whatever_their_subject_or_flow() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB, "other"]).await;
    cloud.flow("flow-a", "audience-change", &hub, "other", json!({})).await;
    let system = System { function: cloud.function("audience-change", &hub, &[]), hub };
    let record = |n: usize, group: &str, flow: &str| {
        in_group(record(&format!("m{n}"), &event_of(&format!("profile-{n}"))), group, flow)
    };
    let records = [
        record(0, "g", "flow-a"),
        record(1, "g", "default"),
        record(2, "h", "default"),
        record(3, "g", "flow-a"),
        record(4, "h", "default"),
    ];
    let stored = |name: &str| {
        let mut profiles = profiles(&system.hub, name);
        profiles.sort_unstable();
        profiles
    };
    // The hub of the first record is down.
    system.hub.script([lasting(Fault { hub: Some("other".to_owned()), ..status(500, None, "") })]);
    assert_eq!(system.failures(&records).await, ["m0", "m1", "m3"]);
    assert_eq!(stored(HUB), ["profile-2", "profile-4"], "the other group is delivered at once");
    assert!(stored("other").is_empty());
    assert!(cloud.take(&cloud.parking).await.is_empty());
    system.hub.clear_faults();
    let again: Vec<Value> = [0, 1, 3].map(|n| records[n].clone()).to_vec();
    assert!(system.failures(&again).await.is_empty());
    assert_eq!(stored(HUB), ["profile-1", "profile-2", "profile-4"]);
    assert_eq!(stored("other"), ["profile-0", "profile-3"]);

    // Filtered or rejected records do not stop the records after them.
    let mut records: Vec<Value> = (10..14).map(|n| record(n, "g", "default")).collect();
    records[0]["body"] = "unreadable".into();
    records[1]["body"] = event_of("x").replace("[\"4\"]", "[]").into();
    system.hub.script([status(400, None, "")]);
    assert!(system.failures(&records).await.is_empty());
    assert_eq!(stored(HUB), ["profile-1", "profile-13", "profile-2", "profile-4"], "the hub has refused profile-12");
    assert_eq!(cloud.take(&cloud.rejected).await.len(), 2);
}

#[tokio::test]
async fn groups_are_sent_concurrently_and_to_the_partitions_of_their_subjects() {
    let system = start(&[("PARTITIONING", "partitions:4")]).await;
    let records = distinct(10);
    assert!(system.failures(&records).await.is_empty());
    let partitions = |hub: &Emulator| -> HashMap<String, u32> {
        let events = hub.events(HUB);
        profiles(hub, HUB).into_iter().zip(events.iter().map(|event| event.partition)).collect()
    };
    let expected = partitions(&system.hub);
    system.hub.clear();
    system.hub.script([lasting(fault(Action::Delay { ms: 500 }))]);
    let records: Vec<Value> =
        records.into_iter().enumerate().map(|(n, record)| in_group(record, &format!("g{n}"), "default")).collect();
    let began = Instant::now();
    assert!(system.failures(&records).await.is_empty());
    assert!(began.elapsed() < Duration::from_secs(4), "one after another would take 5 s");
    assert_eq!(partitions(&system.hub), expected);
}

#[tokio::test]
async fn a_record_without_an_id_returns_the_whole_batch() {
    let system = start(&[]).await;
    let mut records = distinct(2);
    for id in [json!(""), json!(null), json!(7)] {
        records[1]["messageId"] = id;
        let response = system.function.invoke(json!({ "Records": records }).to_string().into_bytes()).await;
        assert!(matches!(response, Err(local::runner::InvokeError::Function { .. })), "{response:?}");
    }
    assert_eq!(system.stored(), 0);
}

#[tokio::test]
async fn a_record_in_the_envelope_of_another_service_is_rejected_with_the_remedy() {
    let system = start(&[]).await;
    let sns = json!({
        "Type": "Notification", "MessageId": "m", "TopicArn": "arn:aws:sns:eu-central-1:1:t", "Message": DOCUMENTED,
    });
    let event_bridge = json!({
        "version": "0", "id": "i", "detail-type": "change", "source": "crm",
        "detail": serde_json::from_str::<serde_json::Value>(DOCUMENTED).unwrap(),
    });
    let records = [record("sns", &sns.to_string()), record("bridge", &event_bridge.to_string())];
    assert_eq!(system.failures(&records).await, ["sns", "bridge"]);
    let logs = system.function.logs();
    for remedy in ["SNS envelope: enable raw message delivery", "EventBridge envelope: set the target's input path"] {
        assert!(logs.iter().any(|line| line.contains("unmappable") && line.contains(remedy)), "{remedy}");
    }
}
