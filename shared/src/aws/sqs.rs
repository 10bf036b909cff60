//! SQS queues that functions write to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::aws::{Aws, AwsError, Service};
use crate::http::{Attempts, RetryPolicy};

/// Maximum size of a message with its attributes, and of a batch, in bytes. A queue may be set to accept less.
pub const MAX_BYTES: usize = 1_048_576;
/// Maximum number of entries of one batch.
const MAX_ENTRIES: usize = 10;
/// Number of batches in flight concurrently.
const IN_FLIGHT: usize = 8;
/// Retries of entries that failed while their call succeeded. The calls themselves have retries of their own.
const RETRY: RetryPolicy = RetryPolicy::DEFAULT;

/// A queue by its URL.
#[derive(Clone)]
pub struct Queue {
    aws: Aws,
    url: String,
    limit: Arc<Limit>,
}

/// The size that this queue accepts, as far as its refusals have shown. No function may read a queue's attributes only
/// for this.
struct Limit {
    bytes: AtomicUsize,
    reported: AtomicBool,
}

/// A message to store.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'m> {
    pub body: &'m str,
    /// Messages of one group share the queue fairly with those of other groups.
    pub group: Option<&'m str>,
    /// Time until it can be received, 15 minutes at most.
    pub delay: Duration,
}

impl<'m> Outgoing<'m> {
    /// A message without a group or a delay.
    pub fn new(body: &'m str) -> Self {
        Self { body, group: None, delay: Duration::ZERO }
    }
}

/// The outcome of storing a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    Yes,
    /// Not confirmed. It may be stored all the same, after a timeout or a lost connection.
    No,
    /// The queue accepts only smaller messages.
    TooLarge,
}

/// The counts and settings of a queue that its consumer acts on.
#[derive(Debug, Clone, Copy)]
pub struct Depth {
    /// Number of messages that were received and not deleted. SQS delivers no more messages at 120,000.
    pub in_flight: u64,
    /// Time that a message is stored.
    pub retention: Duration,
}

/// The response to a batch call, which has status 200 also if entries failed.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BatchResponse {
    #[serde(default)]
    successful: Vec<Entry>,
    #[serde(default)]
    failed: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    id: String,
    /// Whether a retry would fail too.
    #[serde(default)]
    sender_fault: bool,
    #[serde(default)]
    message: String,
}

impl Entry {
    /// SQS reports it as one of many invalid parameters; only the text names the size.
    fn is_too_large(&self) -> bool {
        self.sender_fault && self.message.contains("shorter than")
    }
}

/// A batch call that SQS refused as a whole because of its size.
struct BatchTooLong;

impl Queue {
    pub fn new(aws: Aws, url: String) -> Self {
        let limit = Limit { bytes: AtomicUsize::new(MAX_BYTES), reported: AtomicBool::new(false) };
        Self { aws, url, limit: Arc::new(limit) }
    }

    /// Maximum size of a message that this queue is not known to refuse, in bytes.
    pub fn max_bytes(&self) -> usize {
        self.limit.bytes.load(Ordering::Relaxed)
    }

    /// Stores messages. Returns the outcome of each, in their order.
    pub async fn send(&self, messages: &[Outgoing<'_>], deadline: Instant) -> Vec<Stored> {
        let max_bytes = self.max_bytes();
        let too_large =
            |message: &Outgoing<'_>| if message.body.len() > max_bytes { Stored::TooLarge } else { Stored::No };
        let mut stored: Vec<Stored> = messages.iter().map(too_large).collect();
        let mut sendings = stream::iter(batches(messages, max_bytes))
            .map(|positions| self.send_batch(messages, positions, deadline))
            .buffer_unordered(IN_FLIGHT);
        while let Some(sent) = sendings.next().await {
            for (position, outcome) in sent {
                stored[position] = outcome;
            }
        }
        stored
    }

    /// Stores messages in one call; in more if SQS refuses the call because of its size.
    async fn send_batch(
        &self,
        messages: &[Outgoing<'_>],
        positions: Vec<usize>,
        deadline: Instant,
    ) -> Vec<(usize, Stored)> {
        let entry = |position: usize| {
            let Outgoing { body, group, delay } = messages[position];
            let mut entry = json!({ "MessageBody": body });
            if let Some(group) = group {
                entry["MessageGroupId"] = group.into();
            }
            if !delay.is_zero() {
                entry["DelaySeconds"] = delay.as_secs().into();
            }
            entry
        };
        let (mut waiting, mut sent) = (vec![positions], Vec::new());
        while let Some(positions) = waiting.pop() {
            match self.batch("SendMessageBatch", &positions, &entry, deadline).await {
                Ok(failed) => {
                    for position in positions {
                        let failure = failed.iter().find(|(failed, _)| *failed == position);
                        let outcome = failure.map_or(Stored::Yes, |(_, outcome)| *outcome);
                        if outcome == Stored::TooLarge {
                            self.refused(messages[position].body.len());
                        }
                        sent.push((position, outcome));
                    }
                }
                Err(BatchTooLong) => {
                    self.refused(positions.iter().map(|position| messages[*position].body.len()).sum());
                    match positions[..] {
                        [position] => sent.push((position, Stored::TooLarge)),
                        _ => {
                            let (first, second) = positions.split_at(positions.len() / 2);
                            waiting.extend([second.to_vec(), first.to_vec()]);
                        }
                    }
                }
            }
        }
        sent
    }

    /// Records that the queue refused a message or a batch of that size.
    fn refused(&self, bytes: usize) {
        self.limit.bytes.fetch_min(bytes.saturating_sub(1), Ordering::Relaxed);
        if !self.limit.reported.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                queue_url = self.url,
                refused_bytes = bytes,
                hint = "set the queue's MaximumMessageSize to 1048576",
                "the queue accepts less than 1 MiB; messages are stored in smaller parts, and a single message that does not fit is not stored"
            );
        }
    }

    /// Extends the visibility timeout of received messages, by receipt handle. A message for which that fails becomes
    /// visible after the queue's own visibility timeout.
    pub async fn postpone(&self, messages: &[(&str, Duration)], deadline: Instant) {
        let positions: Vec<usize> = (0..messages.len()).collect();
        let entry = |position: usize| {
            let (receipt_handle, delay) = messages[position];
            json!({ "ReceiptHandle": receipt_handle, "VisibilityTimeout": delay.as_secs() })
        };
        let calls = positions.chunks(MAX_ENTRIES).map(|positions| {
            // A failure needs no handling: the message stays in the queue.
            async { drop(self.batch("ChangeMessageVisibilityBatch", positions, &entry, deadline).await) }
        });
        stream::iter(calls).buffer_unordered(IN_FLIGHT).collect::<Vec<()>>().await;
    }

    /// Reads how full the queue is.
    ///
    /// # Errors
    /// Fails if the call fails, or its response lacks these attributes.
    pub async fn depth(&self, deadline: Instant) -> Result<Depth, AwsError> {
        const OPERATION: &str = "GetQueueAttributes";
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Response {
            attributes: Attributes,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Attributes {
            approximate_number_of_messages_not_visible: String,
            message_retention_period: String,
        }
        let names = ["ApproximateNumberOfMessagesNotVisible", "MessageRetentionPeriod"];
        let body = json!({ "QueueUrl": self.url, "AttributeNames": names });
        let response = self.aws.call(Service::Sqs, OPERATION, &body, deadline).await?;
        let read = |response: &[u8]| {
            let Response { attributes } = serde_json::from_slice(response).ok()?;
            Some(Depth {
                in_flight: attributes.approximate_number_of_messages_not_visible.parse().ok()?,
                retention: Duration::from_secs(attributes.message_retention_period.parse().ok()?),
            })
        };
        read(&response).ok_or_else(|| AwsError::Response {
            operation: OPERATION,
            status: 200,
            code: "unreadable".to_owned(),
        })
    }

    /// Makes a batch call for the entries at `positions`, and retries the entries that failed. Returns the entries that are not
    /// confirmed.
    async fn batch(
        &self,
        operation: &'static str,
        positions: &[usize],
        entry: &(dyn Fn(usize) -> Value + Sync),
        deadline: Instant,
    ) -> Result<Vec<(usize, Stored)>, BatchTooLong> {
        let (mut waiting, mut failed) = (positions.to_vec(), Vec::new());
        let mut attempts = Attempts::new(RETRY, deadline);
        let problem = loop {
            if attempts.begin().is_none() {
                break "no time is left".to_owned();
            }
            let entries = waiting.iter().map(|position| {
                let mut entry = entry(*position);
                entry["Id"] = position.to_string().into();
                entry
            });
            let body = json!({ "QueueUrl": self.url, "Entries": entries.collect::<Vec<_>>() });
            let response = match self.aws.call(Service::Sqs, operation, &body, deadline).await {
                Ok(response) => response,
                Err(AwsError::Response { code, .. }) if code.ends_with("BatchRequestTooLong") => {
                    return Err(BatchTooLong);
                }
                Err(error) => break error.to_string(),
            };
            let Ok(response) = serde_json::from_slice::<BatchResponse>(&response) else {
                break "the response is not readable".to_owned();
            };
            waiting.retain(|position| {
                let id = position.to_string();
                if let Some(entry) = response.failed.iter().find(|entry| entry.id == id && entry.sender_fault) {
                    failed.push((*position, if entry.is_too_large() { Stored::TooLarge } else { Stored::No }));
                    return false;
                }
                !response.successful.iter().any(|entry| entry.id == id)
            });
            if waiting.is_empty() || !attempts.again(false, None).await {
                break "SQS reported failed entries".to_owned();
            }
        };
        failed.extend(waiting.into_iter().map(|position| (position, Stored::No)));
        // A refusal because of the size has a line of its own.
        let entries = failed.iter().filter(|(_, outcome)| *outcome == Stored::No).count();
        if entries > 0 {
            tracing::warn!(
                operation,
                entries,
                problem,
                "SQS batch call failed for one or more entries; returning them as failed"
            );
        }
        Ok(failed)
    }
}

/// Positions of messages that fit one batch together.
fn batches(messages: &[Outgoing<'_>], max_bytes: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut bytes = 0;
    let sizes = messages.iter().map(|message| message.body.len()).enumerate();
    for (position, size) in sizes.filter(|(_, size)| *size <= max_bytes) {
        match batches.last_mut() {
            Some(batch) if batch.len() < MAX_ENTRIES && bytes + size <= max_bytes => {
                batch.push(position);
                bytes += size;
            }
            _ => {
                batches.push(vec![position]);
                bytes = size;
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_at_most_ten_entries_and_one_mebibyte() {
        let bodies = |sizes: &[usize]| sizes.iter().map(|size| "x".repeat(*size)).collect::<Vec<_>>();
        let lengths = |sizes: &[usize]| {
            let bodies = bodies(sizes);
            let messages: Vec<_> = bodies.iter().map(|body| Outgoing::new(body)).collect();
            batches(&messages, MAX_BYTES).iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&[1; 25]), [10, 10, 5]);
        assert_eq!(lengths(&[MAX_BYTES, 1, MAX_BYTES - 1, 1, MAX_BYTES + 1]), [1, 2, 1]);
        assert!(lengths(&[]).is_empty());
    }
}
