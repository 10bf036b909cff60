//! Mappings of the local SQS on functions that are shell scripts.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::run::local_aws;
use crate::runner::tests::function;
use crate::sqs::{Config, Sqs};

const REGION: &str = "eu-central-1";
const HANDLED: &str = r#"answer response '{"batchItemFailures":[]}'"#;

async fn queue() -> (Sqs, Aws, String) {
    let sqs = Sqs::start(Config::default(), TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
    let aws = local_aws(shared::build_http_client(None).unwrap(), sqs.url().to_owned(), REGION.to_owned());
    let (url, _) = create_queue(&aws, "queue", Duration::from_secs(60), 100).await.unwrap();
    (sqs, aws, url)
}

/// Runs a mapping until `done`. Returns the lines that the function wrote.
async fn batches(sqs: &Sqs, aws: &Aws, function: &Function, mapping: Mapping, done: impl Fn() -> bool) -> Vec<String> {
    let running = tokio::spawn(run(aws.clone(), function.clone(), mapping));
    timeout(Duration::from_secs(30), async {
        while !done() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("still {:?} after 30 s", sqs.depth("queue")));
    running.abort();
    function.logs()
}

#[tokio::test]
async fn a_batch_is_gathered_over_several_receives_within_the_window() {
    let (sqs, aws, url) = queue().await;
    for n in 0..250 {
        sqs.put("queue", &n.to_string(), None);
    }
    let count = format!("grep -o messageId <<<\"$event\" | wc -l; {HANDLED}");
    let function = function("counts", &count, 1);
    let mapping = Mapping { batch_size: 100, window: Duration::from_secs(1), ..Mapping::new(url, REGION) };
    let began = Instant::now();
    let sizes = batches(&sqs, &aws, &function, mapping, || sqs.depth("queue").total() == 0).await;
    assert_eq!(sizes, ["100", "100", "50"]);
    assert!(began.elapsed() >= Duration::from_secs(1), "the last one waited for more");
    assert_eq!(sqs.figures("queue").deleted, 250);
}

#[tokio::test]
async fn a_batch_has_at_most_six_megabytes() {
    let (sqs, aws, url) = queue().await;
    for _ in 0..8 {
        sqs.put("queue", &"x".repeat(1_000_000), None);
    }
    let count = format!("tr -d x <<<\"$event\" | grep -o messageId | wc -l; {HANDLED}");
    let function = function("measures", &count, 1);
    let mapping = Mapping { batch_size: 1000, window: Duration::from_secs(1), ..Mapping::new(url, REGION) };
    let sizes = batches(&sqs, &aws, &function, mapping, || sqs.depth("queue").total() == 0).await;
    assert_eq!(sizes, ["6", "2"], "messages that did not fit are in the next batch");
}

#[tokio::test]
async fn pollers_handle_one_batch_each_at_the_same_time() {
    let (sqs, aws, url) = queue().await;
    for n in 0..30 {
        sqs.put("queue", &n.to_string(), None);
    }
    let function = function("waits", &format!("sleep 0.5; {HANDLED}"), 10);
    let mapping = Mapping { pollers: 3, ..Mapping::new(url, REGION) };
    batches(&sqs, &aws, &function, mapping, || sqs.depth("queue").total() == 0).await;
    assert_eq!((function.instances(), sqs.figures("queue").peak_in_flight), (3, 30));
}

#[tokio::test]
async fn only_handled_messages_are_deleted_and_repeats_are_reported() {
    let (sqs, aws, url) = queue().await;
    for n in 0..3 {
        sqs.put("queue", &n.to_string(), None);
    }
    let last = r#"id_of=$(sed 's/.*"messageId":"\([^"]*\)".*/\1/' <<<"$event");
        answer response "{\"batchItemFailures\":[{\"itemIdentifier\":\"$id_of\"}]}""#;
    let mapping = Mapping::new(&url, REGION);
    let partly = function("fails-the-last", last, 1);
    batches(&sqs, &aws, &partly, mapping.clone(), || sqs.depth("queue").total() == 1).await;
    assert_eq!(sqs.depth("queue").in_flight, 1);
    assert_eq!(&*sqs.messages("queue")[0].body, "2");

    let (observer, mut observed) = mpsc::unbounded_channel();
    let dying = function("dies", "exit 1", 1);
    let mapping = Mapping { observer: Some(observer), ..mapping };
    let running = tokio::spawn(run(aws, dying, mapping));
    let repeat = loop {
        // A receive of the aborted mapping may still be in flight and hide the message.
        sqs.advance(Duration::from_secs(60));
        match timeout(Duration::from_secs(2), observed.recv()).await {
            Ok(repeat) => break repeat.unwrap(),
            Err(_) => assert!(sqs.messages("queue")[0].receives < 10, "the lost invocation was not reported"),
        }
    };
    running.abort();
    assert_eq!((repeat.cause, repeat.bodies), (Cause::Invocation(InvokeError::Exited), vec!["2".to_owned()]));
}
