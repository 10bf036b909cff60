//! The SQS calls that local parts make.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::aws::{Aws, AwsError, Service};
use tokio::time::Instant;

use super::records::{Message, Received};

/// Timeout of a call, its retries included.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Number of seconds that a receive waits for a message.
const WAIT_SECONDS: u32 = 1;
/// Retention of a queue in seconds: 14 days, the maximum.
const RETENTION_SECONDS: &str = "1209600";
/// Maximum number of messages of one receive or delete call.
pub(super) const MAX_PER_CALL: usize = 10;
/// Number of delete calls of one batch that are made at the same time.
const DELETES: usize = 8;

/// Receives up to `max` messages, but no more than [`MAX_PER_CALL`].
pub(super) async fn receive(aws: &Aws, queue_url: &str, max: usize) -> Result<Vec<Message>, AwsError> {
    let body = json!({
        "QueueUrl": queue_url,
        "MaxNumberOfMessages": max.clamp(1, MAX_PER_CALL),
        "WaitTimeSeconds": WAIT_SECONDS,
        "AttributeNames": ["All"],
        "MessageSystemAttributeNames": ["All"],
        "MessageAttributeNames": ["All"],
    });
    let received: Received = call(aws, "ReceiveMessage", &body).await?;
    Ok(received.messages)
}

/// Deletes messages. Returns those that were not deleted, and the first error of a call.
pub(super) async fn delete<'m>(
    aws: &Aws,
    queue_url: &str,
    messages: &[&'m Message],
) -> (Vec<&'m Message>, Option<AwsError>) {
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

/// Calls SQS and parses the response.
pub(crate) async fn call<T: for<'de> Deserialize<'de>>(
    aws: &Aws,
    operation: &'static str,
    body: &Value,
) -> Result<T, AwsError> {
    let response = aws.call(Service::Sqs, operation, body, Instant::now() + CALL_TIMEOUT).await?;
    // Some calls have an empty response.
    let response = if response.trim_ascii().is_empty() { b"{}".to_vec() } else { response };
    serde_json::from_slice(&response).map_err(|_| AwsError::Response {
        operation,
        status: 200,
        code: "with an unreadable body".to_owned(),
    })
}

/// Creates a queue with a dead-letter queue `{name}-dead-letters`. Returns the URLs of both.
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
    let dead_letters = create_storage_queue(aws, &format!("{name}-dead-letters")).await?;
    let body = json!({ "QueueUrl": dead_letters, "AttributeNames": ["QueueArn"] });
    let described: Described = call(aws, "GetQueueAttributes", &body).await?;
    // SQS requires the counts as text, and the policy as JSON in text.
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

/// Creates a queue without a consumer. Returns its URL.
pub async fn create_storage_queue(aws: &Aws, name: &str) -> Result<String, AwsError> {
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
