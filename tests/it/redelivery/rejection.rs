//! Messages that are rejected or held: refused, expired, without a flow, or without a connection.

use super::*;

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
async fn a_wrong_partition_count_rejects_nothing_and_logs_a_hint() {
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
async fn messages_older_than_the_maximum_age_are_rejected_as_expired() {
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
async fn an_unusable_setting_of_redelivery_is_named_at_start_up() {
    let stack = Stack::start(&[HUB]).await;
    for (variable, value) in [("REDELIVERY_DELAY", "31"), ("REDELIVERY_MAX_DELAY", "3"), ("PARKING_MAX_AGE", "60")] {
        let queue = ("PARKING_QUEUE_URL", stack.parking.as_str());
        let aws = [("AWS_REGION", REGION), ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")];
        let environment = [&[queue, (variable, value)][..], &aws].concat();
        assert_eq!(init_failure_of("redelivery", &environment).await["variable"], variable);
    }
}

#[tokio::test]
async fn a_deleted_flows_messages_are_held_while_they_cannot_be_stored_as_rejected() {
    let cloud = crate::cloud::Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    cloud.flow("gone", "audience-change", &hub, HUB, json!({})).await;
    hub.script([lasting(status(404, None, "40400"))]);
    let function = cloud.function("audience-change", &hub, &[]);
    let mut event = request(DOCUMENTED);
    event["rawPath"] = "/gone".into();
    assert_eq!(response_of(&function, &event).await.status, 202);
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
async fn a_message_whose_secret_is_gone_is_delivered_with_another_one_for_the_same_hub() {
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
