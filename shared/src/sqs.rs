//! SQS queues that functions write to.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::aws::{Aws, Service};

/// The largest message, its attributes included, and also the largest batch.
pub const MAX_BYTES: usize = 1_048_576;
/// The most entries of one batch.
const MAX_ENTRIES: usize = 10;
/// Batches in flight together.
const IN_FLIGHT: usize = 8;
/// Calls for one entry.
const ATTEMPTS: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(50);

/// A queue by its URL.
#[derive(Clone)]
pub struct Queue {
    aws: Aws,
    url: String,
}

/// The answer to a batch call, which comes with status 200 also when entries failed.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BatchAnswer {
    #[serde(default)]
    successful: Vec<Entry>,
    #[serde(default)]
    failed: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    id: String,
    /// A repeat would fail too.
    #[serde(default)]
    sender_fault: bool,
}

impl Queue {
    pub fn new(aws: Aws, url: String) -> Self {
        Self { aws, url }
    }

    /// Stores messages; tells of each whether it was stored, in their order.
    ///
    /// One of more than [`MAX_BYTES`] is not stored. One that is told as not stored may be stored all the same, after a timeout or a lost connection.
    pub async fn send(&self, bodies: &[String], deadline: Instant) -> Vec<bool> {
        let mut stored = vec![false; bodies.len()];
        // What is too large would be refused with its whole batch.
        let mut sendings = stream::iter(batches(bodies))
            .map(|positions| async move {
                let entry = |position: usize| json!({ "MessageBody": bodies[position] });
                let failed = self.batch("SendMessageBatch", positions.clone(), &entry, deadline).await;
                positions.into_iter().filter(move |position| !failed.contains(position))
            })
            .buffer_unordered(IN_FLIGHT);
        while let Some(sent) = sendings.next().await {
            for position in sent {
                stored[position] = true;
            }
        }
        stored
    }

    /// Hides received messages for a time of their own, by receipt handle. What that fails for comes again after the
    /// queue's own visibility timeout.
    pub async fn postpone(&self, messages: &[(&str, Duration)], deadline: Instant) {
        let positions: Vec<usize> = (0..messages.len()).collect();
        let entry = |position: usize| {
            let (receipt_handle, delay) = messages[position];
            json!({ "ReceiptHandle": receipt_handle, "VisibilityTimeout": delay.as_secs() })
        };
        for positions in positions.chunks(MAX_ENTRIES) {
            self.batch("ChangeMessageVisibilityBatch", positions.to_vec(), &entry, deadline).await;
        }
    }

    /// Makes a batch call for the entries at `positions`, and again for those that failed. Gives those left over.
    async fn batch(
        &self,
        operation: &'static str,
        positions: Vec<usize>,
        entry: &(dyn Fn(usize) -> Value + Sync),
        deadline: Instant,
    ) -> Vec<usize> {
        let (mut waiting, mut failed, mut attempt) = (positions, Vec::new(), 0);
        let problem = loop {
            attempt += 1;
            let entries = waiting.iter().map(|position| {
                let mut entry = entry(*position);
                entry["Id"] = position.to_string().into();
                entry
            });
            let body = json!({ "QueueUrl": self.url, "Entries": entries.collect::<Vec<_>>() });
            let answer = match self.aws.call(Service::Sqs, operation, &body, deadline).await {
                Ok(answer) => answer,
                Err(error) => break error.to_string(),
            };
            let Ok(answer) = serde_json::from_slice::<BatchAnswer>(&answer) else {
                break "the answer can't be read".to_owned();
            };
            waiting.retain(|position| {
                let id = position.to_string();
                if answer.failed.iter().any(|entry| entry.id == id && entry.sender_fault) {
                    failed.push(*position);
                    return false;
                }
                !answer.successful.iter().any(|entry| entry.id == id)
            });
            let wait = FIRST_WAIT.mul_f64(f64::from(1 << attempt) * fastrand::f64());
            if waiting.is_empty() || attempt == ATTEMPTS || Instant::now() + wait >= deadline {
                break "entries of a batch failed".to_owned();
            }
            sleep(wait).await;
        };
        failed.extend(waiting);
        if !failed.is_empty() {
            tracing::warn!(operation, entries = failed.len(), problem, "a queue call failed");
        }
        failed
    }
}

/// Positions of messages that fit one batch together.
fn batches(bodies: &[String]) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut bytes = 0;
    for (position, body) in bodies.iter().enumerate().filter(|(_, body)| body.len() <= MAX_BYTES) {
        match batches.last_mut() {
            Some(batch) if batch.len() < MAX_ENTRIES && bytes + body.len() <= MAX_BYTES => {
                batch.push(position);
                bytes += body.len();
            }
            _ => {
                batches.push(vec![position]);
                bytes = body.len();
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_ten_entries_and_a_mebibyte_at_most() {
        let bodies = |sizes: &[usize]| sizes.iter().map(|size| "x".repeat(*size)).collect::<Vec<_>>();
        let lengths = |sizes: &[usize]| batches(&bodies(sizes)).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lengths(&[1; 25]), [10, 10, 5]);
        assert_eq!(lengths(&[MAX_BYTES, 1, MAX_BYTES - 1, 1, MAX_BYTES + 1]), [1, 2, 1]);
        assert!(lengths(&[]).is_empty());
    }
}
