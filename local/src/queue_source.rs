//! Feeds an SQS queue to a function as Lambda's event source mapping does for standard queues: several pollers, batches
//! that are gathered over several receives, partial batch responses. Scaling and FIFO queues are not part of it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use shared::aws::{Aws, AwsError, Service};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::runner::{Function, InvokeError, MAX_PAYLOAD};

/// Timeout of a call, its retries included.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Timeout of one attempt of a call. A receive that is given up leaves its messages hidden, so it must not be short.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of seconds that a receive waits for a message.
const WAIT_SECONDS: u32 = 1;
/// Pause after a call that failed.
const PAUSE: Duration = Duration::from_millis(500);
/// Retention of a queue in seconds: 14 days, the maximum.
const RETENTION_SECONDS: &str = "1209600";
/// Maximum number of messages of one receive or delete call.
const MAX_PER_CALL: usize = 10;
/// Maximum number of bytes of an event: what a synchronous invocation accepts, less the list around the records.
const MAX_EVENT: usize = MAX_PAYLOAD - 64;
/// Number of delete calls of one batch that are made at the same time.
const DELETES: usize = 8;

/// An event source mapping: which queue a function consumes, and how.
#[derive(Debug, Clone)]
pub struct Mapping {
    pub queue_url: String,
    pub region: String,
    /// Maximum number of messages of one invocation (`BatchSize`), up to 10,000.
    pub batch_size: usize,
    /// Time that a poller gathers messages after the first one (`MaximumBatchingWindowInSeconds`). Without it a batch ends
    /// with the first receive that brings fewer messages than it may.
    pub window: Duration,
    /// Number of batches that are handled at the same time (`MaximumConcurrency`).
    pub pollers: usize,
    /// Receives an account of everything after which messages are handled once more.
    pub observer: Option<mpsc::UnboundedSender<Repeat>>,
}

impl Mapping {
    /// One poller, ten messages at most, no window: what a mapping has by default.
    pub fn new(queue_url: impl Into<String>, region: impl Into<String>) -> Self {
        Self {
            queue_url: queue_url.into(),
            region: region.into(),
            batch_size: MAX_PER_CALL,
            window: Duration::ZERO,
            pollers: 1,
            observer: None,
        }
    }
}

/// Messages that are handled once more although a function has, or may have, handled them already.
#[derive(Debug)]
pub struct Repeat {
    pub cause: Cause,
    pub bodies: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The invocation that had them has no response.
    Invocation(InvokeError),
    /// The queue delivered them while another invocation was still handling them.
    DeliveredTwice,
    /// They were handled, and then the queue did not delete them.
    NotDeleted,
}

/// A message as `ReceiveMessage` gives it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Message {
    pub message_id: String,
    pub receipt_handle: String,
    #[serde(default)]
    pub body: String,
    #[serde(rename = "MD5OfBody", default)]
    md5_of_body: String,
    #[serde(default)]
    pub attributes: Map<String, Value>,
    #[serde(default)]
    message_attributes: Map<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Received {
    messages: Vec<Message>,
}

/// Receives, invokes `function` and deletes what it handled, until the future is dropped. What the function did not handle
/// is received again after its visibility timeout.
pub async fn run(aws: Aws, function: Function, mapping: Mapping) {
    let aws = aws.with_attempt_timeout(ATTEMPT_TIMEOUT);
    let under_way = Arc::default();
    let mut pollers = JoinSet::new();
    for _ in 0..mapping.pollers.max(1) {
        let poller = Poller {
            aws: aws.clone(),
            arn: arn(&mapping.queue_url, &mapping.region),
            mapping: mapping.clone(),
            function: function.clone(),
            next: Vec::new(),
            under_way: Arc::clone(&under_way),
        };
        pollers.spawn(poller.run());
    }
    // They end with this future only.
    pollers.join_all().await;
}

/// Handles one batch after another.
struct Poller {
    aws: Aws,
    arn: String,
    mapping: Mapping,
    function: Function,
    /// Messages that did not fit the last event.
    next: Vec<Record>,
    /// Number of receives of all pollers that are not dealt with, by message id: from the receive until the message is
    /// deleted or left to the queue.
    under_way: Arc<Mutex<HashMap<String, usize>>>,
}

/// A message and its JSON in an event.
struct Record {
    message: Message,
    json: String,
}

impl Poller {
    async fn run(mut self) {
        loop {
            if let Err(problem) = self.handle_batch().await {
                if self.function.config().print_failures {
                    eprintln!("{}: queue: {problem}", self.function.config().name);
                }
                sleep(PAUSE).await;
            }
        }
    }

    async fn handle_batch(&mut self) -> Result<(), String> {
        let records = self.gather().await.map_err(|error| error.to_string())?;
        if records.is_empty() {
            return Ok(());
        }
        let event = format!(
            "{{\"Records\":[{}]}}",
            records.iter().map(|record| record.json.as_str()).collect::<Vec<_>>().join(",")
        );
        let dealt_with = self.deal_with(&records, event).await;
        self.end(&records);
        dealt_with
    }

    async fn deal_with(&self, records: &[Record], event: String) -> Result<(), String> {
        let response = self.function.invoke(event.into_bytes()).await;
        let response = response.map_err(|error| {
            self.tell(Cause::Invocation(error.clone()), records.iter().map(|record| &record.message));
            error.to_string()
        })?;
        let ids: BTreeSet<&str> = records.iter().map(|record| record.message.message_id.as_str()).collect();
        let failed = failed(&response, &ids)
            .ok_or("the response is not a list of failed messages: all of them are redelivered")?;
        let handled = || records.iter().filter(|record| !failed.contains(&record.message.message_id));
        let messages: Vec<&Message> = handled().map(|record| &record.message).collect();
        let (undeleted, error) = delete_each(&self.aws, &self.mapping.queue_url, &messages).await;
        if undeleted.is_empty() {
            return Ok(());
        }
        let number = undeleted.len();
        self.tell(Cause::NotDeleted, undeleted);
        Err(format!("{number} messages were not deleted: {}", error.map_or(String::new(), |error| error.to_string())))
    }

    /// Messages for one event. Empty if there are none.
    async fn gather(&mut self) -> Result<Vec<Record>, AwsError> {
        let mut records = std::mem::take(&mut self.next);
        let mut bytes: usize = records.iter().map(|record| record.json.len()).sum();
        let began = Instant::now();
        loop {
            let most = (self.mapping.batch_size - records.len()).min(MAX_PER_CALL);
            let received = match receive(&self.aws, &self.mapping.queue_url, most, None).await {
                Ok(received) => received,
                // What was received before is handled first.
                Err(_) if !records.is_empty() => break,
                Err(error) => return Err(error),
            };
            let is_full = received.len() == most;
            self.begin(&received);
            for message in received {
                let json = record(&message, &self.arn, &self.mapping.region).to_string();
                let record = Record { message, json };
                bytes += record.json.len() + 1;
                let fits = bytes <= MAX_EVENT || records.is_empty();
                if fits { records.push(record) } else { self.next.push(record) }
            }
            let window = self.mapping.window;
            let is_over = if window.is_zero() { !is_full } else { records.is_empty() || began.elapsed() >= window };
            if is_over || !self.next.is_empty() || records.len() >= self.mapping.batch_size {
                break;
            }
        }
        Ok(records)
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, messages: &[Message]) {
        let mut again = Vec::new();
        {
            let mut under_way = self.under_way();
            for message in messages {
                let receives = under_way.entry(message.message_id.clone()).or_default();
                *receives += 1;
                if *receives > 1 {
                    again.push(message);
                }
            }
        }
        self.tell(Cause::DeliveredTwice, again);
    }

    fn end(&self, records: &[Record]) {
        let mut under_way = self.under_way();
        for record in records {
            let id = &record.message.message_id;
            match under_way.get_mut(id) {
                Some(receives) if *receives > 1 => *receives -= 1,
                _ => drop(under_way.remove(id)),
            }
        }
    }

    fn tell<'m>(&self, cause: Cause, messages: impl IntoIterator<Item = &'m Message>) {
        let Some(observer) = &self.mapping.observer else { return };
        let bodies: Vec<String> = messages.into_iter().map(|message| message.body.clone()).collect();
        if !bodies.is_empty() {
            // The observer may be gone.
            let _ = observer.send(Repeat { cause, bodies });
        }
    }
}

/// At most [`MAX_PER_CALL`] messages, hidden for `visibility_timeout` or else for the queue's own.
pub(crate) async fn receive(
    aws: &Aws,
    queue_url: &str,
    most: usize,
    visibility_timeout: Option<Duration>,
) -> Result<Vec<Message>, AwsError> {
    let mut body = json!({
        "QueueUrl": queue_url,
        "MaxNumberOfMessages": most.clamp(1, MAX_PER_CALL),
        "WaitTimeSeconds": WAIT_SECONDS,
        "AttributeNames": ["All"],
        "MessageSystemAttributeNames": ["All"],
        "MessageAttributeNames": ["All"],
    });
    if let Some(timeout) = visibility_timeout {
        body["VisibilityTimeout"] = timeout.as_secs().into();
    }
    let received: Received = call(aws, "ReceiveMessage", &body).await?;
    Ok(received.messages)
}

/// Deletes messages; gives how many of them the queue did not delete.
pub(crate) async fn delete(aws: &Aws, queue_url: &str, messages: &[&Message]) -> Result<usize, AwsError> {
    let (undeleted, error) = delete_each(aws, queue_url, messages).await;
    error.map_or(Ok(undeleted.len()), Err)
}

/// Deletes messages; gives those that were not deleted, and why a call failed.
async fn delete_each<'m>(aws: &Aws, queue_url: &str, messages: &[&'m Message]) -> (Vec<&'m Message>, Option<AwsError>) {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Failed {
        id: String,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Deleted {
        failed: Vec<Failed>,
    }
    let batch = |messages: &[&Message]| {
        let handles = messages.iter().map(|message| &message.receipt_handle).enumerate();
        let entries: Vec<Value> =
            handles.map(|(id, handle)| json!({ "Id": id.to_string(), "ReceiptHandle": handle })).collect();
        json!({ "QueueUrl": queue_url, "Entries": entries })
    };
    let batches: Vec<Value> = messages.chunks(MAX_PER_CALL).map(batch).collect();
    let deletions = stream::iter(batches)
        .map(|body| async move { call::<Deleted>(aws, "DeleteMessageBatch", &body).await })
        .buffered(DELETES)
        .collect::<Vec<_>>()
        .await;
    let (mut undeleted, mut first_error) = (Vec::new(), None);
    for (deleted, messages) in deletions.into_iter().zip(messages.chunks(MAX_PER_CALL)) {
        match deleted {
            Ok(Deleted { failed }) => {
                let places = failed.iter().filter_map(|failed| failed.id.parse::<usize>().ok());
                undeleted.extend(places.filter_map(|place| messages.get(place).copied()));
            }
            Err(error) => {
                undeleted.extend(messages);
                first_error = first_error.or(Some(error));
            }
        }
    }
    (undeleted, first_error)
}

pub(crate) async fn call<T: for<'de> Deserialize<'de>>(
    aws: &Aws,
    operation: &'static str,
    body: &Value,
) -> Result<T, AwsError> {
    let answer = aws.call(Service::Sqs, operation, body, Instant::now() + CALL_TIMEOUT).await?;
    // Some calls answer with nothing at all.
    let answer = if answer.trim_ascii().is_empty() { b"{}".to_vec() } else { answer };
    serde_json::from_slice(&answer).map_err(|_| AwsError::Response {
        operation,
        status: 200,
        code: "with something unreadable".to_owned(),
    })
}

/// `http://host/account/name` -> `arn:aws:sqs:region:account:name`.
fn arn(queue_url: &str, region: &str) -> String {
    let mut segments = queue_url.trim_end_matches('/').rsplit('/');
    let (name, account) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
    format!("arn:aws:sqs:{region}:{account}:{name}")
}

fn record(message: &Message, arn: &str, region: &str) -> Value {
    let attributes = message.message_attributes.iter();
    json!({
        "messageId": message.message_id,
        "receiptHandle": message.receipt_handle,
        "body": message.body,
        "attributes": message.attributes,
        "messageAttributes":
            attributes.map(|(name, attribute)| (name.clone(), message_attribute(attribute))).collect::<Map<_, _>>(),
        "md5OfBody": message.md5_of_body,
        "eventSource": "aws:sqs",
        "eventSourceARN": arn,
        "awsRegion": region,
    })
}

fn message_attribute(attribute: &Value) -> Value {
    let mut record = json!({ "stringListValues": [], "binaryListValues": [], "dataType": attribute["DataType"] });
    for (from, to) in [("StringValue", "stringValue"), ("BinaryValue", "binaryValue")] {
        if let Some(value) = attribute.get(from).filter(|value| !value.is_null()) {
            record[to] = value.clone();
        }
    }
    record
}

/// The ids that failed; `None`: all of them, since the answer can't be trusted.
fn failed(answer: &[u8], ids: &BTreeSet<&str>) -> Option<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Failure {
        #[serde(rename = "itemIdentifier")]
        id: String,
    }
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "batchItemFailures", default)]
        failures: Option<Vec<Failure>>,
    }
    if answer.trim_ascii().is_empty() {
        return Some(BTreeSet::new());
    }
    let answer: Option<Answer> = serde_json::from_slice(answer).ok()?;
    let failures = answer.and_then(|answer| answer.failures).unwrap_or_default();
    let failed: BTreeSet<String> = failures.into_iter().map(|failure| failure.id).collect();
    failed.iter().all(|id| ids.contains(id.as_str())).then_some(failed)
}

/// Creates a queue with a dead-letter queue `{name}-dead-letters`; gives the URLs of both.
pub async fn create_queue(
    aws: &Aws,
    name: &str,
    visibility_timeout: Duration,
    max_receive_count: u32,
) -> Result<(String, String), AwsError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Described {
        attributes: Arn,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Arn {
        queue_arn: String,
    }
    let dead_letters = create_keeping_queue(aws, &format!("{name}-dead-letters")).await?;
    let body = json!({ "QueueUrl": dead_letters, "AttributeNames": ["QueueArn"] });
    let described: Described = call(aws, "GetQueueAttributes", &body).await?;
    // SQS wants the counts as text, and the policy as JSON in text.
    let redrive = json!({
        "deadLetterTargetArn": described.attributes.queue_arn,
        "maxReceiveCount": max_receive_count.to_string(),
    });
    let visibility_timeout = visibility_timeout.as_secs().to_string();
    let queue =
        create(aws, name, json!({ "VisibilityTimeout": visibility_timeout, "RedrivePolicy": redrive.to_string() }))
            .await?;
    Ok((queue, dead_letters))
}

/// Creates a queue that nobody consumes; gives its URL.
pub async fn create_keeping_queue(aws: &Aws, name: &str) -> Result<String, AwsError> {
    create(aws, name, json!({})).await
}

async fn create(aws: &Aws, name: &str, mut attributes: Value) -> Result<String, AwsError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Created {
        queue_url: String,
    }
    attributes["MessageRetentionPeriod"] = RETENTION_SECONDS.into();
    let created: Created = call(aws, "CreateQueue", &json!({ "QueueName": name, "Attributes": attributes })).await?;
    Ok(created.queue_url)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::time::timeout;

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

    /// Runs a mapping until the queue is empty, or holds only what is in flight; gives what the function logged.
    async fn batches(
        sqs: &Sqs,
        aws: &Aws,
        function: &Function,
        mapping: Mapping,
        done: impl Fn() -> bool,
    ) -> Vec<String> {
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
    async fn a_batch_has_six_megabytes_at_most() {
        let (sqs, aws, url) = queue().await;
        for _ in 0..8 {
            sqs.put("queue", &"x".repeat(1_000_000), None);
        }
        let count = format!("tr -d x <<<\"$event\" | grep -o messageId | wc -l; {HANDLED}");
        let function = function("measures", &count, 1);
        let mapping = Mapping { batch_size: 1000, window: Duration::from_secs(1), ..Mapping::new(url, REGION) };
        let sizes = batches(&sqs, &aws, &function, mapping, || sqs.depth("queue").total() == 0).await;
        assert_eq!(sizes, ["6", "2"], "what did not fit begins the next batch");
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
    async fn only_what_a_function_handled_is_deleted_and_what_is_repeated_is_told() {
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
            // A receive of the aborted mapping may still be under way and take the message.
            sqs.advance(Duration::from_secs(60));
            match timeout(Duration::from_secs(2), observed.recv()).await {
                Ok(repeat) => break repeat.unwrap(),
                Err(_) => assert!(sqs.messages("queue")[0].receives < 10, "no account of the lost invocation"),
            }
        };
        running.abort();
        assert_eq!((repeat.cause, repeat.bodies), (Cause::Invocation(InvokeError::Exited), vec!["2".to_owned()]));
    }

    #[test]
    fn messages_become_records() {
        let received: Received = serde_json::from_value(json!({"Messages": [{
            "MessageId": "m", "ReceiptHandle": "r", "Body": "{}", "MD5OfBody": "5",
            "Attributes": {"ApproximateReceiveCount": "1"},
            "MessageAttributes": {"flow": {"StringValue": "crm", "DataType": "String"},
                "bytes": {"BinaryValue": "AA==", "DataType": "Binary"}},
        }]}))
        .unwrap();
        let arn = arn("http://127.0.0.1:5566/123456789012/changes", "eu-central-1");
        let expected = json!({
            "messageId": "m", "receiptHandle": "r", "body": "{}", "md5OfBody": "5",
            "attributes": {"ApproximateReceiveCount": "1"},
            "messageAttributes": {
                "flow": {"stringValue": "crm", "dataType": "String", "stringListValues": [], "binaryListValues": []},
                "bytes": {"binaryValue": "AA==", "dataType": "Binary", "stringListValues": [], "binaryListValues": []},
            },
            "eventSource": "aws:sqs", "eventSourceARN": "arn:aws:sqs:eu-central-1:123456789012:changes",
            "awsRegion": "eu-central-1",
        });
        assert_eq!(record(&received.messages[0], &arn, "eu-central-1"), expected);
    }

    #[test]
    fn answers_follow_the_documented_rules() {
        let ids = BTreeSet::from(["a", "b"]);
        let failed = |answer: &str| failed(answer.as_bytes(), &ids).map(|ids| ids.into_iter().collect::<Vec<_>>());
        for success in ["", "null", "{}", r#"{"batchItemFailures":null}"#, r#"{"batchItemFailures":[]}"#] {
            assert_eq!(failed(success), Some(Vec::new()), "{success}");
        }
        assert_eq!(failed(r#"{"batchItemFailures":[{"itemIdentifier":"b"}]}"#), Some(vec!["b".to_owned()]));
        for failure in [
            "{",
            r#""ok""#,
            r#"{"batchItemFailures":{}}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":""}]}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":null}]}"#,
            r#"{"batchItemFailures":[{"id":"a"}]}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":"a"},{"itemIdentifier":"c"}]}"#,
        ] {
            assert_eq!(failed(failure), None, "{failure}");
        }
    }
}
