//! Hubs that fail: probes, the circuit of each hub, and the time that is left.

use local::emulator::Action;
use local::runner::FunctionConfig;

use super::*;

#[tokio::test]
async fn an_event_at_which_the_hub_fails_does_not_stop_the_others() {
    let stack = Stack::start(&[HUB]).await;
    let subjects: Vec<String> = (0..40).map(|n| format!("p{n}")).collect();
    for subject in std::iter::once("fails").chain(subjects.iter().map(String::as_str)) {
        stack.park(60, &[subject], json!({}));
    }
    // The hub accepts requests without that event.
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
        // A new instance begins with a probe.
        function.invoke(json!({ "Records": records }).to_string().into_bytes()).await.unwrap();
        function.kill().await;
        let stored = stored.lock().unwrap();
        stored.iter().collect::<std::collections::BTreeSet<_>>().len() >= 30
    };
    until("all events but those that follow it on its route", delivered).await;
    assert!(!stored.lock().unwrap().contains(&"fails".to_owned()));
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
async fn a_flow_with_a_wrong_key_does_not_delay_another_flow_of_its_hub() {
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
        assert_eq!(response_of(&function, &event).await.status, 202);
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
async fn webhooks_are_parked_at_once_while_the_hub_is_known_not_to_respond() {
    let stack = Stack::start(&[HUB]).await;
    let function = stack.function("audience-change", &[]);
    stack.hub.script([lasting(fault(Action::Hang))]);
    for n in 0..20 {
        let response = response_of(&function, &request(&event_of(&format!("p{n}")))).await;
        assert_eq!((response.status, &response.body["status"]), (202, &json!("parked")), "{n}");
    }
    assert_eq!(stack.parked().len(), 20);
    // Two attempts for each of the first three events; then one per second, while the others take tenths of seconds.
    let requests = stack.hub.requests().len();
    assert!(requests <= 10, "{requests} requests");
    let reasons: Vec<Value> = stack.parked().iter().map(|message| envelope(message)["reason"].clone()).collect();
    assert!(reasons.iter().all(|reason| reason == "timeout"), "{reasons:?}");
    stack.hub.clear_faults();
    until("delivery", async || response_of(&function, &request(DOCUMENTED)).await.body["status"] == "delivered").await;
    assert_eq!(response_of(&function, &request(DOCUMENTED)).await, delivered(1));
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
        assert_eq!(response_of(&function, &request(&event_of(&format!("p{n}")))).await.status, 202);
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
    assert!(stack.hub.requests().len() <= before + 1, "at most one request finds out whether the hub responds");
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
        assert_eq!(system.stored(), if is_sent { 5 } else { 0 }, "{timeout}: every handled record is stored");
        let hints = lines(&system.function, "less time than is reserved");
        assert_eq!(hints.is_empty(), is_sent, "{hints:?}");
        assert!(
            hints.iter().all(|line| line["level"] == "ERROR" && line["hint"].as_str().unwrap().contains("timeout"))
        );
        let batches = lines(&system.function, "queue batch handled");
        assert_eq!(batches.iter().all(|line| line.get("Requests").is_some()), is_sent, "{batches:?}");
    }
}
