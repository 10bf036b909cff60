//! Feeds an SQS queue to a function as Lambda's event source does, with partial batch answers. Batching windows,
//! scaling and FIFO queues are not played.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use shared::aws::{Aws, AwsError, Service};
use tokio::time::{Instant, sleep};

use crate::runner::Function;

/// Longer than any call here takes, its repeats included.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// A receive call waits this long for a message. [`Aws::call`] gives an attempt more.
const WAIT_SECONDS: u32 = 1;
/// After a call that failed.
const PAUSE: Duration = Duration::from_millis(500);
/// 14 days, the longest that there is, in seconds.
const RETENTION_SECONDS: &str = "1209600";
/// The most messages of one receive or delete call.
const MAX_PER_CALL: usize = 10;
/// A batch that has as many is not made larger: an event has 6 MB at most.
const ENOUGH_BYTES: usize = 3_000_000;

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

/// Receives, invokes `function` and deletes what it handled, until the future is dropped. What it did not handle comes
/// again after the queue's visibility timeout.
pub async fn poll(aws: Aws, queue_url: String, region: String, function: Function, batch_size: usize) {
    let arn = arn(&queue_url, &region);
    loop {
        if let Err(problem) = poll_once(&aws, &queue_url, &arn, &region, &function, batch_size).await {
            if function.config().print_failures {
                eprintln!("{}: queue: {problem}", function.config().name);
            }
            sleep(PAUSE).await;
        }
    }
}

/// One batch.
async fn poll_once(
    aws: &Aws,
    queue_url: &str,
    arn: &str,
    region: &str,
    function: &Function,
    batch_size: usize,
) -> Result<(), String> {
    let mut messages = Vec::new();
    loop {
        let received = receive(aws, queue_url, batch_size - messages.len(), None).await;
        let received = match received {
            Ok(received) => received,
            // What is in hand is handled first.
            Err(_) if !messages.is_empty() => break,
            Err(error) => return Err(error.to_string()),
        };
        let more = received.len() == MAX_PER_CALL;
        messages.extend(received);
        let bytes: usize = messages.iter().map(|message: &Message| message.body.len()).sum();
        if !more || messages.len() >= batch_size || bytes > ENOUGH_BYTES {
            break;
        }
    }
    if messages.is_empty() {
        return Ok(());
    }
    let answer = function.invoke(event(&messages, arn, region).to_string().into_bytes()).await;
    let answer = answer.map_err(|error| error.to_string())?;
    let ids: BTreeSet<&str> = messages.iter().map(|message| message.message_id.as_str()).collect();
    let failed = failed(&answer, &ids).ok_or("the answer is no list of failed messages: all of them come again")?;
    let handled: Vec<&Message> = messages.iter().filter(|message| !failed.contains(&message.message_id)).collect();
    delete(aws, queue_url, &handled).await.map_err(|error| error.to_string())?;
    Ok(())
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
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Deleted {
        failed: Vec<Value>,
    }
    let mut failed = 0;
    for messages in messages.chunks(MAX_PER_CALL) {
        let handles = messages.iter().map(|message| &message.receipt_handle).enumerate();
        let entries: Vec<Value> =
            handles.map(|(id, handle)| json!({ "Id": id.to_string(), "ReceiptHandle": handle })).collect();
        let body = json!({ "QueueUrl": queue_url, "Entries": entries });
        failed += call::<Deleted>(aws, "DeleteMessageBatch", &body).await?.failed.len();
    }
    Ok(failed)
}

pub(crate) async fn call<T: for<'de> Deserialize<'de>>(
    aws: &Aws,
    operation: &'static str,
    body: &Value,
) -> Result<T, AwsError> {
    let answer = aws.call(Service::Sqs, operation, body, Instant::now() + CALL_TIMEOUT).await?;
    // Some calls answer with nothing at all.
    let answer = if answer.trim_ascii().is_empty() { b"{}".to_vec() } else { answer };
    serde_json::from_slice(&answer).map_err(|_| AwsError::Answer {
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

fn event(messages: &[Message], arn: &str, region: &str) -> Value {
    let record = |message: &Message| {
        json!({
            "messageId": message.message_id,
            "receiptHandle": message.receipt_handle,
            "body": message.body,
            "attributes": message.attributes,
            "messageAttributes": message
                .message_attributes
                .iter()
                .map(|(name, attribute)| (name.clone(), message_attribute(attribute)))
                .collect::<Map<_, _>>(),
            "md5OfBody": message.md5_of_body,
            "eventSource": "aws:sqs",
            "eventSourceARN": arn,
            "awsRegion": region,
        })
    };
    json!({ "Records": messages.iter().map(record).collect::<Vec<_>>() })
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
    use super::*;

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
        let expected = json!({"Records": [{
            "messageId": "m", "receiptHandle": "r", "body": "{}", "md5OfBody": "5",
            "attributes": {"ApproximateReceiveCount": "1"},
            "messageAttributes": {
                "flow": {"stringValue": "crm", "dataType": "String", "stringListValues": [], "binaryListValues": []},
                "bytes": {"binaryValue": "AA==", "dataType": "Binary", "stringListValues": [], "binaryListValues": []},
            },
            "eventSource": "aws:sqs", "eventSourceARN": "arn:aws:sqs:eu-central-1:123456789012:changes",
            "awsRegion": "eu-central-1",
        }]});
        assert_eq!(event(&received.messages, &arn, "eu-central-1"), expected);
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
