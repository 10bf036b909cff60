use super::*;
use crate::queue_source;
use crate::sqs::queue::{HandleError, Received, Settings};

const SERVICE: Service = Service { max_in_flight: 120_000, noisy_after: 0 };
const SECOND: Millis = 1000;

fn queue(settings: Settings, service: Service) -> Queue {
    Queue::new(settings, service, 0)
}

fn send(queue: &mut Queue, body: &str, group: Option<&str>, now: Millis) {
    queue.send(body.into(), serde_json::Map::new(), group, None, now);
}

fn bodies(received: &[Received]) -> Vec<String> {
    received.iter().map(|message| message.content.body.to_string()).collect()
}

/// Receives until no message is visible. Returns the bodies.
fn take(queue: &mut Queue, max: usize, now: Millis) -> Vec<String> {
    let mut taken = Vec::new();
    while taken.len() < max {
        let received = queue.receive((max - taken.len()).min(10), None, false, now).messages;
        if received.is_empty() {
            break;
        }
        taken.extend(bodies(&received));
    }
    taken
}

#[test]
fn a_message_is_received_again_after_its_visibility_timeout_until_it_is_deleted() {
    let mut queue = queue(Settings::default(), SERVICE);
    send(&mut queue, "a", None, 0);
    let first = queue.receive(10, None, false, 0).messages;
    assert_eq!((first.len(), first[0].receives), (1, 1));
    assert!(queue.receive(10, None, false, 29 * SECOND).messages.is_empty());
    assert_eq!(queue.next_due(), Some(30 * SECOND));
    let second = queue.receive(10, Some(5), false, 30 * SECOND).messages;
    assert_eq!((second[0].receives, second[0].first_received), (2, 0));
    assert_eq!(queue.delete(&first[0].handle, 31 * SECOND).unwrap().map(drop), None, "an old handle deletes nothing");
    assert_eq!(queue.depth(31 * SECOND), Depth { in_flight: 1, ..Depth::default() });
    assert!(queue.delete(&second[0].handle, 31 * SECOND).unwrap().is_some());
    assert!(queue.delete(&second[0].handle, 31 * SECOND).unwrap().is_none(), "it is gone already");
    assert_eq!(queue.delete("nonsense", 0).unwrap_err(), HandleError::Invalid);
    assert_eq!(queue.depth(31 * SECOND).total(), 0);
    assert_eq!((queue.figures.timed_out, queue.figures.stale_deletions, queue.figures.deleted), (1, 1, 1));
}

#[test]
fn visibility_can_be_changed_while_a_message_is_in_flight() {
    let mut queue = queue(Settings::default(), SERVICE);
    send(&mut queue, "a", None, 0);
    let handle = queue.receive(1, None, false, 0).messages.remove(0).handle;
    queue.change_visibility(&handle, 100, 10 * SECOND).unwrap();
    assert!(queue.receive(1, None, false, 109 * SECOND).messages.is_empty());
    queue.change_visibility(&handle, 0, 109 * SECOND).unwrap();
    assert_eq!(queue.change_visibility(&handle, 0, 109 * SECOND), Err(HandleError::NotInFlight));
    let again = queue.receive(1, None, false, 109 * SECOND).messages.remove(0);
    assert_eq!(queue.change_visibility(&handle, 1, 109 * SECOND), Err(HandleError::Gone), "an older receive's");
    assert_eq!((again.receives, queue.figures.timed_out), (2, 0));
}

#[test]
fn delayed_messages_are_not_in_flight() {
    let mut queue = queue(Settings::default(), Service { max_in_flight: 1, ..SERVICE });
    for delay in [900, 1, 2] {
        queue.send("a".into(), serde_json::Map::new(), None, Some(delay), 0);
    }
    assert_eq!(queue.depth(0), Depth { delayed: 3, ..Depth::default() });
    assert_eq!(queue.receive(10, None, false, SECOND).messages.len(), 1);
    let receipt = queue.receive(10, None, false, 2 * SECOND);
    assert!(receipt.messages.is_empty() && receipt.over_limit, "the limit blocks the second one");
    assert_eq!(queue.depth(2 * SECOND), Depth { visible: 1, in_flight: 1, delayed: 1 });
    assert_eq!(queue.figures.peak_in_flight, 1);
}

#[test]
fn a_message_goes_to_the_dead_letters_when_its_receives_exceed_the_maximum() {
    let redrive = Some(queue::Redrive { target: "dead".into(), max_receives: 2 });
    let mut queue = queue(Settings { redrive, visibility_seconds: 1, ..Settings::default() }, SERVICE);
    send(&mut queue, "a", None, 0);
    assert_eq!(queue.receive(1, None, false, 0).messages.len(), 1);
    assert_eq!(queue.receive(1, None, false, SECOND).messages.len(), 1);
    let receipt = queue.receive(1, None, false, 2 * SECOND);
    assert_eq!((receipt.messages.len(), receipt.dead.len()), (0, 1));
    assert_eq!(queue.depth(2 * SECOND).total(), 0);
}

#[test]
fn messages_are_dropped_after_the_retention_period() {
    let mut queue = queue(Settings { retention_seconds: 60, ..Settings::default() }, SERVICE);
    send(&mut queue, "a", Some("g"), 0);
    send(&mut queue, "b", Some("g"), SECOND);
    assert_eq!(queue.receive(1, Some(600), false, 0).messages.len(), 1);
    assert_eq!(queue.depth(60 * SECOND), Depth { visible: 1, ..Depth::default() });
    assert_eq!(queue.depth(61 * SECOND).total(), 0);
    assert_eq!(queue.figures.expired, 2);
}

#[test]
fn quiet_groups_come_before_a_noisy_one() {
    let mut queue = queue(Settings::default(), SERVICE);
    for n in 0..200 {
        send(&mut queue, &format!("noisy-{n}"), Some("noisy"), 0);
    }
    // Thirty of its messages in flight make a group noisy: until then it is served in the order of sending.
    assert_eq!(take(&mut queue, 30, 0).len(), 30);
    send(&mut queue, "quiet", Some("quiet"), 1);
    send(&mut queue, "none", None, 1);
    assert_eq!(bodies(&queue.receive(3, None, false, 1).messages), ["quiet", "none", "noisy-30"]);
    // The limit of a tenth: 31 of 310 and more are noisy.
    for n in 0..300 {
        send(&mut queue, &format!("without-{n}"), None, 1);
    }
    assert_eq!(take(&mut queue, 300, 1).len(), 300);
    assert_eq!(queue.depth(1).in_flight, 333);
    send(&mut queue, "late", Some("quiet"), 2);
    let next = queue.receive(2, None, false, 2).messages;
    assert_eq!(bodies(&next), ["late", "noisy-31"], "a group stays noisy until its backlog is consumed");
}

#[test]
fn among_noisy_groups_the_one_with_the_fewest_in_flight_is_next_and_idle_ones_are_quiet_again() {
    let mut queue = queue(Settings::default(), SERVICE);
    for group in ["a", "b"] {
        for n in 0..100 {
            send(&mut queue, &format!("{group}-{n}"), Some(group), 0);
        }
    }
    let first = take(&mut queue, 100, 0);
    let of = |group: &str| first.iter().filter(|body| body.starts_with(group)).count();
    assert!(of("a") >= 30 && of("b") >= 30, "both are served once the first is noisy");
    assert!(of("a").abs_diff(of("b")) <= 2, "{} and {}", of("a"), of("b"));
    // Both are idle from second 30 on. Five minutes later they are quiet again, and served in their order.
    queue.depth(30 * SECOND);
    send(&mut queue, "c", Some("c"), 330 * SECOND);
    assert_ne!(bodies(&queue.receive(1, None, false, 330 * SECOND).messages), ["c"]);
}

#[test]
fn fairness_may_start_late() {
    let mut queue = queue(Settings::default(), Service { noisy_after: 10 * SECOND, ..SERVICE });
    for n in 0..200 {
        send(&mut queue, &format!("noisy-{n}"), Some("noisy"), 0);
    }
    take(&mut queue, 50, 0);
    send(&mut queue, "quiet", Some("quiet"), 0);
    assert_eq!(bodies(&queue.receive(1, None, false, 5 * SECOND).messages), ["noisy-50"]);
    queue.receive(1, None, false, 10 * SECOND);
    assert_eq!(bodies(&queue.receive(1, None, false, 10 * SECOND).messages), ["quiet"]);
}

#[test]
fn two_hundred_thousand_messages_are_handled_quickly() {
    let mut queue = queue(Settings::default(), Service { max_in_flight: 500_000, ..SERVICE });
    let began = Instant::now();
    for n in 0..200_000 {
        send(&mut queue, "a", (n % 3 > 0).then_some(if n % 3 == 1 { "b" } else { "c" }), 0);
    }
    assert_eq!(take(&mut queue, 200_000, 0).len(), 200_000);
    assert_eq!(queue.depth(31 * SECOND).visible, 200_000);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

async fn started(config: Config) -> (Sqs, shared::aws::Aws, String) {
    let sqs = Sqs::start(config, TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
    let http = shared::build_http_client(None).unwrap();
    let aws = crate::run::local_aws(http, sqs.url().to_owned(), REGION.to_owned());
    let (url, _) = queue_source::create_queue(&aws, "queue", Duration::from_secs(30), 100).await.unwrap();
    (sqs, aws, url)
}

async fn call(aws: &shared::aws::Aws, operation: &'static str, body: Value) -> Result<Value, String> {
    queue_source::call(aws, operation, &body).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_receive_waits_for_a_message_and_the_clock_can_be_advanced() {
    let (sqs, aws, url) = started(Config::default()).await;
    let receive = async || {
        let received = call(&aws, "ReceiveMessage", json!({ "QueueUrl": url, "WaitTimeSeconds": 1 })).await.unwrap();
        received["Messages"].as_array().map_or(0, Vec::len)
    };
    let later = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        sqs.put("queue", "a", None);
    };
    let began = Instant::now();
    assert_eq!(tokio::join!(receive(), later).0, 1);
    assert!(began.elapsed() < Duration::from_millis(900));
    assert_eq!(receive().await, 0);
    let later = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        sqs.advance(Duration::from_secs(30));
    };
    assert_eq!(tokio::join!(receive(), later).0, 1);
    assert_eq!(sqs.messages(&url)[0].receives, 2);
}

#[tokio::test]
async fn above_the_limit_in_flight_only_short_polling_gets_an_error() {
    let (sqs, aws, url) = started(Config { max_in_flight: 1, ..Config::default() }).await;
    sqs.put("queue", "a", None);
    sqs.put("queue", "b", None);
    let receive = async |wait: u32| {
        call(&aws, "ReceiveMessage", json!({ "QueueUrl": url, "MaxNumberOfMessages": 10, "WaitTimeSeconds": wait }))
            .await
    };
    assert_eq!(receive(0).await.unwrap()["Messages"].as_array().unwrap().len(), 1);
    assert_eq!(receive(1).await.unwrap(), json!({}));
    let error = receive(0).await.unwrap_err();
    assert!(error.contains("OverLimit"), "{error}");
}

#[tokio::test]
async fn sizes_and_group_names_are_checked_for_each_entry_alone() {
    let (_sqs, aws, url) = started(Config { max_batch_bytes: 5000, ..Config::default() }).await;
    let set = json!({ "QueueUrl": url, "Attributes": { "MaximumMessageSize": "2000" } });
    call(&aws, "SetQueueAttributes", set).await.unwrap();
    let entry = |id: &str, length: usize, group: &str| json!({ "Id": id, "MessageBody": "x".repeat(length), "MessageGroupId": group });
    let send = async |entries: Vec<Value>| {
        call(&aws, "SendMessageBatch", json!({ "QueueUrl": url, "Entries": entries })).await
    };
    let sent = send(vec![entry("a", 2001, "g"), entry("b", 2000, "g"), entry("c", 1, &"g".repeat(129))]).await.unwrap();
    assert_eq!(sent["Successful"].as_array().unwrap().len(), 1);
    let failed: Vec<_> = sent["Failed"].as_array().unwrap().iter().map(|one| (&one["Id"], &one["Code"])).collect();
    let (a, c, code) = (json!("a"), json!("c"), json!("InvalidParameterValue"));
    assert_eq!(failed, [(&a, &code), (&c, &code)]);
    assert_eq!(sent["Failed"][0]["SenderFault"], true);
    let error = send(vec![entry("a", 2000, "g"), entry("b", 2000, "g"), entry("c", 2000, "g")]).await.unwrap_err();
    assert!(error.contains("BatchRequestTooLong"), "{error}");
}

#[tokio::test]
async fn faults_affect_the_calls_they_name_and_are_counted() {
    let (sqs, aws, url) = started(Config::default()).await;
    let send = || json!({ "QueueUrl": url, "Entries": [{ "Id": "1", "MessageBody": "a" }, { "Id": "2", "MessageBody": "b" }] });
    let once = |operation, action| Fault { operation, times: 1, action };
    // The client retries a lost connection.
    sqs.script([once("SendMessage", Action::LoseResponse)]);
    call(&aws, "SendMessageBatch", send()).await.unwrap();
    assert_eq!((sqs.depth("queue").visible, sqs.lost_responses()), (4, 1));
    assert_eq!(sqs.take_repeats().iter().map(|body| body.to_string()).collect::<Vec<_>>(), ["a", "b"]);

    sqs.script([once("SendMessage", Action::FailEntries)]);
    let sent = call(&aws, "SendMessageBatch", send()).await.unwrap();
    assert_eq!((&sent["Failed"][0]["Id"], &sent["Successful"][0]["Id"]), (&json!("1"), &json!("2")));

    sqs.script([once("ReceiveMessage", Action::DeliverTwice)]);
    let receive = json!({ "QueueUrl": url, "MaxNumberOfMessages": 10 });
    for _ in 0..2 {
        let received = call(&aws, "ReceiveMessage", receive.clone()).await.unwrap();
        assert_eq!(received["Messages"].as_array().unwrap().len(), 5);
    }
    assert_eq!((sqs.figures("queue").delivered_twice, sqs.take_repeats().len()), (5, 5));

    sqs.script([once("", Action::Refuse { status: 400, code: "InvalidAddress" })]);
    let error = call(&aws, "PurgeQueue", json!({ "QueueUrl": url })).await.unwrap_err();
    assert!(error.contains("InvalidAddress"), "{error}");
    assert_eq!((sqs.calls("SendMessageBatch"), sqs.calls("PurgeQueue")), (3, 1));
}

#[tokio::test]
async fn a_hook_runs_at_a_named_call() {
    let (sqs, aws, url) = started(Config::default()).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    for (nth, moment) in [(2, Moment::Arrived), (2, Moment::Done)] {
        let (seen, looking) = (seen.clone(), sqs.clone());
        sqs.at("SendMessage", nth, moment, move || async move {
            seen.lock().unwrap().push((moment, looking.depth("queue").visible));
        });
    }
    for _ in 0..3 {
        call(&aws, "SendMessage", json!({ "QueueUrl": url, "MessageBody": "a" })).await.unwrap();
    }
    assert_eq!(*seen.lock().unwrap(), [(Moment::Arrived, 1), (Moment::Done, 2)]);
}
