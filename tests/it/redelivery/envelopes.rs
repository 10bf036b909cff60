//! Envelopes: their groups, sizes and ages, how they are gathered, and when they are stored again.

use super::*;

/// Text that hardly compresses.
fn noise(length: usize) -> String {
    std::iter::repeat_with(|| fastrand::char('#'..'[')).take(length).collect()
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
        assert_eq!(response_of(function, &request(&event_of(profile))).await.status, 202);
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
    // Compressing larger envelopes takes a debug build too long.
    for limit in [4_096, 16_384, 65_536] {
        let stack = Stack::with_maximum_message_size(&[HUB], limit).await;
        stack.hub.script([lasting(status(404, None, "40400"))]);
        let function = stack.function("audience-change", &[]);
        // A compressed message is a little larger than its text.
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

        // A message that does not fit alone fails alone.
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
async fn envelopes_that_compress_well_are_hidden_and_not_stored_again() {
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
        assert_eq!(stack.parked().len(), if is_renewed { 2 } else { 1 }, "Lambda deletes the original");
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
    assert_eq!(subjects, [["a", "c"], ["b", "d"]], "no message expires days too early");
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
