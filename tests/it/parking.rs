//! Events that a hub does not accept now are parked and delivered later; events that can never be delivered are stored with
//! the reason.

use std::collections::BTreeSet;

use local::emulator::Action;
use serde_json::{Value, json};

use crate::cloud::*;
use crate::harness::*;

fn flow_attribute(name: &str) -> Value {
    json!({ "flow": { "stringValue": name, "dataType": "String", "stringListValues": [] } })
}

fn ids(events: &[local::emulator::StoredEvent]) -> BTreeSet<String> {
    events.iter().map(|event| event.properties["cloudEvents:id"].as_str().unwrap().to_owned()).collect()
}

fn parked(messages: &[Value]) -> Vec<Value> {
    let body = |message: &Value| unpacked(message["Body"].as_str().unwrap());
    messages.iter().map(|message| serde_json::from_slice(&body(message)).unwrap()).collect()
}

fn rejected(messages: &[Value]) -> Vec<Value> {
    messages.iter().map(|message| serde_json::from_str(message["Body"].as_str().unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn events_that_the_hub_does_not_accept_are_parked_with_the_reason() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let system = System { function: cloud.function("audience-change", &hub, &[]), hub };
    for problem in [
        fault(Action::Hang),
        fault(Action::Reset),
        status(401, None, "40103"),
        status(403, None, "quota"),
        status(404, None, "40400"),
        status(503, None, "50004"),
        status(503, None, "Error code : 50002. Please wait 4 seconds and try again."),
        status(429, None, ""),
    ] {
        system.hub.script([lasting(problem.clone())]);
        let response = system.post(DOCUMENTED).await;
        assert_eq!(
            (response.status, &response.body),
            (202, &json!({ "status": "parked", "messages": 1 })),
            "{problem:?}"
        );
        system.hub.clear_faults();
    }
    assert_eq!(system.stored(), 0);
    assert!(system.failures(&[record("a", DOCUMENTED)]).await.is_empty());
    let direct = system.hub.events(HUB);

    let envelopes = parked(&cloud.take(&cloud.parking).await);
    assert_eq!(envelopes.len(), 8);
    let host = system.hub.url().replace("http://", "");
    let reasons = [
        "timeout",
        "connection_lost",
        "unauthorized",
        "forbidden",
        "not_found",
        "unavailable",
        "throttled",
        "throttled",
    ];
    for (envelope, reason) in envelopes.iter().zip(reasons) {
        let message = &envelope["messages"][0];
        assert_eq!(message["body"], direct[0].body);
        assert_eq!(message["id"], direct[0].properties["cloudEvents:id"]);
        assert_eq!(message["subject"], direct[0].properties["cloudEvents:subject"]);
        assert_eq!(message["properties"], Value::Object(direct[0].properties.clone()));
        let mut rest = envelope.clone();
        rest.as_object_mut().unwrap().remove("messages");
        let first_seen = rest.as_object_mut().unwrap().remove("firstSeen").unwrap();
        assert!(first_seen.as_str().unwrap().ends_with('Z'), "{first_seen}");
        assert_eq!(
            rest,
            json!({ "v": 1, "kind": "audience-change", "flow": "default", "hub": HUB, "host": host, "reason": reason })
        );
    }
}

#[tokio::test]
async fn parked_queue_records_are_all_redelivered() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let system = System { function: cloud.function("audience-change", &hub, &[]), hub };
    let records: Vec<Value> = (0..200).map(|n| record(&format!("m{n}"), &event_of(&format!("profile-{n}")))).collect();
    assert!(system.failures(&records).await.is_empty());
    let expected = ids(&system.hub.events(HUB));
    assert_eq!(expected.len(), 200);
    system.hub.clear();

    system.hub.script([lasting(status(503, None, "50004"))]);
    assert!(system.failures(&records).await.is_empty(), "parked records are handled");
    let at_first = system.requests();
    let redelivery = cloud.redeliver(&system.hub);
    until("a failed redelivery", async || redelivery.function.logs().iter().any(|line| line.contains("unavailable")))
        .await;
    assert_eq!(system.stored(), 0);
    let batches = redelivery.function.logs().iter().filter(|line| line.contains("parked batch handled")).count();
    let at_the_hub = system.requests();
    assert!(at_the_hub - at_first <= batches + 1, "one request per batch finds out that the hub is still down");
    system.hub.clear_faults();
    until("redelivery", async || system.stored() >= 200).await;
    assert_eq!(ids(&system.hub.events(HUB)), expected);
    let requests = system.requests() - at_the_hub;
    // One request for each of 16 keys, and the probe, which may cause a second request for its key.
    assert!(requests <= 18, "as many events per request as without parking: {requests} requests");
    until("an empty queue", async || {
        let asked = json!({ "QueueUrl": cloud.parking, "AttributeNames": ["All"] });
        let reported = cloud.call(shared::aws::Service::Sqs, "GetQueueAttributes", asked).await;
        ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
            .iter()
            .all(|count| reported["Attributes"][count] == "0")
    })
    .await;
}

#[tokio::test]
async fn messages_larger_than_a_queue_accepts_are_split() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let system = System { function: cloud.function("profile-export", &hub, &[]), hub };
    // Text that hardly compresses: two of them fit the target size of an envelope, but not the queue's limit.
    let noise = || {
        std::iter::repeat_with(|| fastrand::char('!'..'z'))
            .filter(|c| !"\\\"".contains(*c))
            .take(480_000)
            .collect::<String>()
    };
    let profiles: Vec<Value> = (0..5)
        .map(
            |n| json!({ "identityMap": { "ecid": [{ "id": format!("{n}") }] }, "segmentMembership": {}, "x": noise() }),
        )
        .collect();
    system.hub.script([lasting(status(404, None, "40400"))]);
    // Through the queue: compressing this much takes a debug build longer than a webhook may take.
    assert!(system.failures(&[record("a", &Value::from(profiles).to_string())]).await.is_empty());
    system.hub.clear_faults();
    let _redelivery = cloud.redeliver(&system.hub);
    until("redelivery", async || system.stored() == 5).await;
}

#[tokio::test]
async fn without_a_parking_queue_that_accepts_it_the_sender_gets_503() {
    let hub = emulator(&[HUB]).await;
    let cloud = Cloud::start().await;
    let gone = format!("{}-gone", cloud.parking);
    for url in ["", &gone] {
        hub.clear_faults();
        hub.script([lasting(status(503, None, "50004"))]);
        let function = cloud.function("audience-change", &hub, &[("PARKING_QUEUE_URL", url)]);
        response_of(&function, &request(DOCUMENTED)).await.problem(503);
        let batch = json!({ "Records": [record("a", DOCUMENTED)] }).to_string();
        let response = function.invoke(batch.into_bytes()).await.unwrap();
        assert_eq!(response, br#"{"batchItemFailures":[{"itemIdentifier":"a"}]}"#);
    }
}

#[tokio::test]
async fn each_flow_of_the_table_delivers_to_its_own_hub() {
    let cloud = Cloud::start().await;
    let (here, there) = (emulator(&[HUB, "a"]).await, emulator(&["b", "c"]).await);
    cloud.flow("flow-a", "audience-change", &here, "a", json!({})).await;
    cloud.flow("flow-b", "audience-change", &there, "b", json!({ "options": r#"{"partnerNumber":44}"# })).await;
    cloud.flow("flow-c", "audience-change", &there, "c", json!({ "state": "disabled" })).await;
    cloud.flow("flow-d", "profile-export", &there, "c", json!({})).await;
    let function = cloud.function("audience-change", &here, &[]);
    let post = async |flow: &str| {
        let mut event = request(DOCUMENTED);
        event["rawPath"] = format!("/audience-change/{flow}").into();
        response_of(&function, &event).await
    };
    assert_eq!(post("flow-a").await, delivered(1));
    assert_eq!(post("flow-b").await, handled("filtered", 0), "the flow's own options");
    assert!(post("flow-c").await.problem(409).contains("disabled"));
    for unknown in ["flow-d", "flow-x", "a%20b", "default%00"] {
        assert_eq!(post(unknown).await.problem(404), "no such flow", "{unknown}");
    }
    let mut stranger = request(DOCUMENTED);
    stranger["rawPath"] = "/audience-change/flow-c".into();
    stranger["headers"] = json!({});
    response_of(&function, &stranger).await.problem(401);
    assert_eq!((here.events("a").len(), there.events("b").len(), there.events("c").len()), (1, 0, 0));

    // One batch with records of all flows.
    let mut records: Vec<Value> = ["default", "flow-a", "flow-b", "flow-c", "flow-x"]
        .into_iter()
        .map(|flow| {
            let mut record = record(flow, DOCUMENTED);
            record["messageAttributes"] = flow_attribute(flow);
            record
        })
        .collect();
    records[2]["body"] = DOCUMENTED.replace("\"partnerNumber\": 33", "\"partnerNumber\": 44").into();
    let batch = json!({ "Records": records }).to_string();
    let failures = function.invoke(batch.clone().into_bytes()).await.unwrap();
    assert_eq!(failures, br#"{"batchItemFailures":[{"itemIdentifier":"flow-c"}]}"#, "records of a disabled flow wait");
    assert_eq!((here.events(HUB).len(), here.events("a").len(), there.events("b").len()), (1, 2, 1));
    let rejects = rejected(&cloud.take(&cloud.rejected).await);
    assert_eq!(rejects.len(), 1);
    assert_eq!((&rejects[0]["flow"], &rejects[0]["reason"]), (&json!("flow-x"), &json!("unknown_flow")));

    // The same while no hub responds: the messages are parked by flow, and delivered to their own hub.
    for hub in [&here, &there] {
        hub.clear();
        hub.script([lasting(status(500, None, ""))]);
    }
    let failures = function.invoke(batch.into_bytes()).await.unwrap();
    assert_eq!(failures, br#"{"batchItemFailures":[{"itemIdentifier":"flow-c"}]}"#);
    here.clear_faults();
    there.clear_faults();
    let _redelivery = cloud.redeliver(&here);
    until("redelivery", async || {
        !here.events(HUB).is_empty() && !here.events("a").is_empty() && !there.events("b").is_empty()
    })
    .await;
    assert_eq!((here.events(HUB).len(), here.events("a").len(), there.events("b").len()), (1, 1, 1));
    assert!(there.events("c").is_empty());
}

#[tokio::test]
async fn parked_messages_follow_a_flow_that_was_moved_disabled_or_deleted() {
    let cloud = Cloud::start().await;
    let (here, there) = (emulator(&[HUB]).await, emulator(&["old", "new"]).await);
    let there_connection = json!({ "host": there.url().replace("http://", "") });
    for flow in ["moved", "disabled", "deleted"] {
        cloud.flow(flow, "audience-change", &there, "old", there_connection.clone()).await;
    }
    there.script([lasting(status(404, None, "40400"))]);
    let function = cloud.function("audience-change", &here, &[]);
    for flow in ["moved", "disabled", "deleted"] {
        let mut event = request(DOCUMENTED);
        event["rawPath"] = format!("/{flow}").into();
        assert_eq!(response_of(&function, &event).await.status, 202);
    }
    there.clear_faults();
    cloud.put_flow("moved", "audience-change", "new", json!({})).await;
    cloud.put_flow("disabled", "audience-change", "old", json!({ "state": "disabled" })).await;
    cloud.delete_flow("deleted").await;
    let redelivery = cloud.redeliver(&here);
    until("redelivery", async || there.events("new").len() == 1).await;
    until("a copy of what was for the deleted flow", async || {
        let asked = json!({ "QueueUrl": cloud.rejected, "AttributeNames": ["All"] });
        let reported = cloud.call(shared::aws::Service::Sqs, "GetQueueAttributes", asked).await;
        reported["Attributes"]["ApproximateNumberOfMessages"] == "1"
    })
    .await;
    let rejects = rejected(&cloud.take(&cloud.rejected).await);
    assert_eq!((&rejects[0]["source"], &rejects[0]["reason"]), (&json!("parking"), &json!("unknown_flow")));
    let envelope: Value = serde_json::from_slice(&unpacked(rejects[0]["body"].as_str().unwrap())).unwrap();
    assert_eq!(envelope["flow"], "deleted");
    until("a look at the disabled flow", async || {
        redelivery.function.logs().iter().any(|line| line.contains("the flow is disabled"))
    })
    .await;
    assert!(there.events("old").is_empty() && here.events(HUB).is_empty());
}

#[tokio::test]
async fn a_default_flow_is_redelivered_only_to_the_very_same_hub() {
    let cloud = Cloud::start().await;
    let (here, elsewhere) = (emulator(&[HUB, "other"]).await, emulator(&[HUB]).await);
    here.script([lasting(status(404, None, "40400"))]);
    let function = cloud.function("audience-change", &here, &[]);
    assert_eq!(response_of(&function, &request(DOCUMENTED)).await.status, 202);
    here.clear_faults();
    let said = async |redelivery: &Redelivery, text: &str| {
        until(text, async || redelivery.function.logs().iter().any(|line| line.contains(text))).await;
    };
    let redelivery = cloud.redeliver(&elsewhere);
    said(&redelivery, "another host").await;
    // This line is written once the message is visible again after a short time.
    said(&redelivery, "parked batch handled").await;
    drop(redelivery);
    assert!(elsewhere.events(HUB).is_empty());
    let _redelivery = cloud.redeliver(&here);
    until("redelivery", async || here.events(HUB).len() == 1).await;
}

#[tokio::test]
async fn what_the_hub_refuses_of_a_record_that_is_returned_is_stored_and_counted_once_the_record_is_done() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let without_parking = [("PARKING_QUEUE_URL", ""), ("EVENT_HUBS_MAX_BATCH_BYTES", "2000")];
    let system = System { function: cloud.function("audience-change", &hub, &without_parking), hub };
    let too_large = event_of("large").replace("value1", &"x".repeat(3000));
    let batch = [record("m0", &format!("[{},{too_large}]", event_of("small")))];
    system.hub.script([lasting(status(503, None, "50004"))]);
    assert_eq!(system.failures(&batch).await, ["m0"]);
    assert!(cloud.take(&cloud.rejected).await.is_empty(), "the record is redelivered as a whole");
    system.hub.clear_faults();
    assert!(system.failures(&batch).await.is_empty());
    let rejects = rejected(&cloud.take(&cloud.rejected).await);
    assert_eq!(rejects.iter().map(|reject| &reject["reason"]).collect::<Vec<_>>(), ["too_large"]);
    assert_eq!(system.stored(), 1);
    let lines = system.function.logs();
    let rejected: u64 =
        lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["RejectedTooLarge"].as_u64()).sum();
    assert_eq!(rejected, 1);
}

#[tokio::test]
async fn of_a_thousand_records_three_invalid_ones_are_rejected_each_with_its_reason() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let system = System { function: cloud.function("audience-change", &hub, &[]), hub };
    let mut records: Vec<Value> =
        (0..1000).map(|n| record(&format!("m{n}"), &event_of(&format!("profile-{n}")))).collect();
    records[10]["body"] = "{\"profileId\": \u{1F4A9}".into();
    let oversize = event_of("p").replace("value1", &"x".repeat(1_040_000));
    records[500]["body"] = oversize.as_str().into();
    records[999]["messageAttributes"] = flow_attribute("nowhere");
    assert!(system.failures(&records).await.is_empty(), "all are handled");
    assert_eq!(system.stored(), 997);
    let mut rejects = rejected(&cloud.take(&cloud.rejected).await);
    rejects.sort_by_key(|reject| reject["reason"].to_string());
    let reasons: Vec<&Value> = rejects.iter().map(|reject| &reject["reason"]).collect();
    assert_eq!(reasons, ["too_large", "unknown_flow", "unreadable"]);
    assert_eq!(unpacked(rejects[0]["body"].as_str().unwrap()), oversize.as_bytes());
    assert_eq!(unpacked(rejects[2]["body"].as_str().unwrap()), "{\"profileId\": \u{1F4A9}".as_bytes());
    assert_eq!(
        (&rejects[1]["flow"], &rejects[1]["kind"], &rejects[1]["source"]),
        (&json!("nowhere"), &json!("audience-change"), &json!("queue"))
    );
    assert!(
        rejects
            .iter()
            .all(|reject| reject["v"] == 1 && reject["receivedAt"].is_string() && reject["detail"].is_string())
    );

    // While the rejected queue accepts no message, those three records are returned and the others are delivered.
    let gone = format!("{}-gone", cloud.rejected);
    let function = cloud.function("audience-change", &system.hub, &[("REJECTED_QUEUE_URL", &gone)]);
    let again = System { function, hub: system.hub };
    assert_eq!(again.failures(&records).await, ["m10", "m500", "m999"]);
    assert_eq!(again.stored(), 2 * 997);
}

#[tokio::test]
async fn valid_elements_of_an_array_are_delivered_if_the_invalid_ones_can_be_stored() {
    const GOOD: &str = r#"{"identityMap":{"ecid":[{"id":"1"}]},"segmentMembership":{}}"#;
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let system = System { function: cloud.function("profile-export", &hub, &[]), hub };
    let mixed = format!(r#"[{GOOD},{{"neither":"\u00e9"}},{GOOD}]"#);
    let response = system.post(&mixed).await;
    assert_eq!((response.status, response.body), (200, json!({ "status": "delivered", "messages": 2, "rejected": 1 })));
    let rejects = rejected(&cloud.take(&cloud.rejected).await);
    assert_eq!((&rejects[0]["source"], &rejects[0]["reason"]), (&json!("webhook"), &json!("unmappable")));
    assert_eq!(
        unpacked(rejects[0]["body"].as_str().unwrap()),
        r#"{"neither":"\u00e9"}"#.as_bytes(),
        "the element as received"
    );

    system.hub.script([lasting(status(404, None, "40400"))]);
    let response = system.post(&mixed).await;
    assert_eq!((response.status, response.body), (202, json!({ "status": "parked", "messages": 2, "rejected": 1 })));
    system.hub.clear_faults();
    system.post("[{},{}]").await.problem(400);
    assert_eq!(
        cloud.take(&cloud.rejected).await.len(),
        2,
        "one element of the parked array, and the whole invalid array"
    );
    let mut stranger = request("[{}]");
    stranger["headers"] = json!({});
    system.response_to(&stranger).await.problem(401);
    assert!(cloud.take(&cloud.rejected).await.is_empty(), "nothing of an unknown sender is stored");

    let before = system.stored();
    let nowhere = cloud.function("profile-export", &system.hub, &[("REJECTED_QUEUE_URL", "")]);
    crate::harness::response_of(&nowhere, &request(&mixed)).await.problem(400);
    let gone = format!("{}-gone", cloud.rejected);
    let not_now = cloud.function("profile-export", &system.hub, &[("REJECTED_QUEUE_URL", &gone)]);
    crate::harness::response_of(&not_now, &request(&mixed)).await.problem(503);
    crate::harness::response_of(&not_now, &request("{}")).await.problem(400);
    assert_eq!(system.stored(), before, "nothing was sent");
}

#[tokio::test]
async fn a_large_rejected_body_of_a_webhook_is_stored_in_part_and_that_of_a_record_whole_or_returned() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let system = System { function: cloud.function("audience-change", &hub, &[]), hub };
    let body: String = std::iter::repeat_with(|| fastrand::char('!'..'~')).take(3_000_000).collect();
    // The queue has the only complete copy of the record, and good records are not affected.
    assert_eq!(system.failures(&[record("a", &body[..1_000_000]), record("b", DOCUMENTED)]).await, ["a"]);
    assert_eq!(system.stored(), 1);
    let mut to_no_flow = record("a", &event_of("p").replace("value1", &body[..990_000].replace(['"', '\\'], "x")));
    to_no_flow["messageAttributes"] = flow_attribute("gone");
    assert_eq!(system.failures(&[to_no_flow]).await, ["a"]);
    assert!(cloud.take(&cloud.rejected).await.is_empty());
    let whole = &body[..500_000];
    assert!(system.failures(&[record("a", whole)]).await.is_empty());
    let rejects = rejected(&cloud.take(&cloud.rejected).await);
    assert_eq!((rejects.len(), rejects[0].get("truncated")), (1, None));
    assert_eq!(unpacked(rejects[0]["body"].as_str().unwrap()), whole.as_bytes());

    system.post(&body).await.problem(400);
    let rejects = rejected(&cloud.take(&cloud.rejected).await);
    assert_eq!(rejects[0]["truncated"], true);
    let part = unpacked(rejects[0]["body"].as_str().unwrap());
    assert!(part.len() > 700_000 && body.as_bytes().starts_with(&part), "{} bytes", part.len());
}

#[tokio::test]
async fn a_record_with_a_very_long_flow_name_is_rejected_with_the_start_of_it() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let system = System { function: cloud.function("audience-change", &hub, &[]), hub };
    let mut endless = record("a", DOCUMENTED);
    endless["messageAttributes"] = flow_attribute(&"\u{1}".repeat(200_000));
    assert!(system.failures(&[endless]).await.is_empty());
    let rejects = rejected(&cloud.take(&cloud.rejected).await);
    assert_eq!((rejects.len(), &rejects[0]["reason"]), (1, &json!("unknown_flow")));
    assert_eq!(rejects[0]["flow"].as_str().unwrap().chars().count(), 256);
    assert_eq!(unpacked(rejects[0]["body"].as_str().unwrap()), DOCUMENTED.as_bytes());
}

#[tokio::test]
async fn a_changed_secret_of_a_sender_is_used_without_a_deployment() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    cloud.flow("flow-a", "audience-change", &hub, HUB, json!({})).await;
    cloud.secret("senders", SENDER_AUTH).await;
    let function =
        cloud.function("audience-change", &hub, &[("SENDER_AUTH", ""), ("SENDER_AUTH_SECRET_ID", "senders")]);
    let post = async |path: &str, token: &str| {
        let mut event = request(DOCUMENTED);
        event["rawPath"] = path.into();
        event["headers"]["authorization"] = format!("Bearer {token}").into();
        response_of(&function, &event).await.status
    };
    for (path, secret) in [("/", "senders"), ("/flow-a", "senders-flow-a")] {
        assert_eq!(post(path, SENDER_TOKEN).await, 200);
        assert_eq!(post(path, "sender-token-2").await, 401);
        cloud.change_secret(secret, r#"[{"type":"bearer","secret":"sender-token-2"}]"#).await;
        assert_eq!(post(path, "sender-token-2").await, 200);
        assert_eq!(post(path, SENDER_TOKEN).await, 401);
        cloud.change_secret(secret, "not a list").await;
        assert_eq!(post(path, "sender-token-3").await, 503, "it may be a new token");
        assert_eq!(post(path, "sender-token-2").await, 503, "an invalid list accepts no sender");
        cloud.change_secret(secret, r#"[{"type":"bearer","secret":"sender-token-2"}]"#).await;
        until("the list is read again", async || post(path, "sender-token-2").await == 200).await;
    }
    assert_eq!(function.instances(), 1);
}

#[tokio::test]
async fn a_missing_aws_credential_makes_start_up_fail() {
    for variable in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        let line = init_failure(&[
            (
                "EVENT_HUBS_CONNECTION_STRING",
                "Endpoint=sb://a.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=k;EntityPath=h",
            ),
            ("PARKING_QUEUE_URL", "https://sqs.eu-central-1.amazonaws.com/123456789012/parking"),
            (variable, ""),
        ])
        .await;
        assert_eq!(line["variable"], "PARKING_QUEUE_URL");
        assert!(line["problem"].as_str().unwrap().contains(variable), "{line}");
    }
    let line = init_failure_of("redelivery", &[]).await;
    assert_eq!(line["variable"], "PARKING_QUEUE_URL");
}

#[tokio::test]
async fn records_of_a_fifo_queue_are_returned_instead_of_parked() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let system = System { function: cloud.function("audience-change", &hub, &[]), hub };
    system.hub.script([lasting(status(404, None, "40400"))]);
    let mut records: Vec<Value> = (0..3).map(|n| record(&format!("m{n}"), &event_of("p"))).collect();
    for record in &mut records {
        record["eventSourceARN"] = "arn:aws:sqs:eu-central-1:123456789012:audience-change.fifo".into();
        record["attributes"]["MessageGroupId"] = "group".into();
    }
    assert_eq!(system.failures(&records).await, ["m0", "m1", "m2"]);
    assert!(cloud.take(&cloud.parking).await.is_empty());
}

#[tokio::test]
async fn an_array_with_only_invalid_elements_is_stored_once_and_returns_400() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let system = System { function: cloud.function("profile-export", &hub, &[]), hub };
    let body = format!("[{}1]", "1,".repeat(49_999));
    assert!(system.post(&body).await.problem(400).contains("and 49990 more"));
    let rejects = rejected(&cloud.take(&cloud.rejected).await);
    assert_eq!(rejects.len(), 1);
    assert_eq!(unpacked(rejects[0]["body"].as_str().unwrap()), body.as_bytes());
}

/// An address that accepts connections and never responds.
async fn silence() -> (String, tokio::net::TcpListener) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    (format!("http://{}", listener.local_addr().unwrap()), listener)
}

#[tokio::test]
async fn a_service_that_does_not_respond_never_causes_a_function_timeout() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    cloud.flow("flow-a", "audience-change", &hub, HUB, json!({})).await;
    cloud.secret("senders", SENDER_AUTH).await;
    let (silent, _listener) = silence().await;
    let mut to_flow = request(DOCUMENTED);
    to_flow["rawPath"] = "/flow-a".into();
    let mut stranger = request(DOCUMENTED);
    stranger["headers"] = json!({});
    hub.script([lasting(fault(Action::Hang))]);
    let sqs = cloud.function("audience-change", &hub, &[("AWS_ENDPOINT_URL_SQS", &silent)]);
    response_of(&sqs, &request(DOCUMENTED)).await.problem(503);
    response_of(&sqs, &request("{")).await.problem(400);
    response_of(&sqs, &stranger).await.problem(401);
    let table = cloud.function("audience-change", &hub, &[("AWS_ENDPOINT_URL_DYNAMODB", &silent)]);
    response_of(&table, &to_flow).await.problem(503);
    assert_eq!(response_of(&table, &request(DOCUMENTED)).await.status, 202);
    let secrets = cloud.function("audience-change", &hub, &[("AWS_ENDPOINT_URL_SECRETS_MANAGER", &silent)]);
    response_of(&secrets, &to_flow).await.problem(503);

    // Records of one flow do not wait for those of another flow.
    hub.clear_faults();
    let mut records: Vec<Value> =
        (0..2).map(|n| record(&format!("m{n}"), &event_of(&format!("profile-{n}")))).collect();
    records[0]["messageAttributes"] = flow_attribute("flow-a");
    let batch = json!({ "Records": records }).to_string();
    let failures = table.invoke(batch.into_bytes()).await.unwrap();
    assert_eq!(failures, br#"{"batchItemFailures":[{"itemIdentifier":"m0"}]}"#);
    assert_eq!(hub.events(HUB).len(), 1);
    for function in [&sqs, &table, &secrets] {
        assert_eq!(function.instances(), 1, "no invocation reached the function's timeout");
    }
}

#[tokio::test]
async fn a_flow_whose_secret_names_another_host_is_not_used() {
    let cloud = Cloud::start().await;
    let (here, there) = (emulator(&[HUB]).await, emulator(&[HUB]).await);
    let elsewhere = json!({ "host": here.url().replace("http://", "") });
    cloud.flow("flow-a", "audience-change", &there, HUB, elsewhere).await;
    let function = cloud.function("audience-change", &here, &[]);
    let mut event = request(DOCUMENTED);
    event["rawPath"] = "/flow-a".into();
    response_of(&function, &event).await.problem(503);
    assert!(here.events(HUB).is_empty() && there.events(HUB).is_empty());
    assert!(function.logs().iter().any(|line| line.contains("another host")));
}
