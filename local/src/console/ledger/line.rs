//! The functions' log lines that the ledger reads.

use serde::Deserialize;
use serde_json::{Map, Value};
use shared::contract::log_line::message;
use shared::contract::metrics::{DELIVERED, FILTERED, Metric, PARKED, RECEIVED, REDELIVERED, REJECTED};

/// Metrics that are added up when an invocation writes several summary lines.
const SUMMED: [Metric; 6] = [RECEIVED, FILTERED, REJECTED, DELIVERED, REDELIVERED, PARKED];

/// A log line that summarises an invocation, or reports a rejected event.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Line {
    pub timestamp: String,
    message: String,
    pub request_id: String,
    /// Number of lines that the invocation writes; 0 means one.
    pub lines: u64,
    pub message_id: String,
    pub reason: String,
    pub detail: String,
    /// The metrics among them, by name.
    #[serde(flatten)]
    members: Map<String, Value>,
}

/// What a line reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Webhook,
    QueueBatch,
    ParkedBatch,
    /// One rejected event of a batch.
    RejectedEvent,
}

impl Line {
    /// `None`: a line about something else.
    pub fn subject(&self) -> Option<Subject> {
        match self.message.as_str() {
            message::WEBHOOK => Some(Subject::Webhook),
            message::QUEUE_BATCH => Some(Subject::QueueBatch),
            message::PARKED_BATCH => Some(Subject::ParkedBatch),
            message::REJECTED_EVENT => Some(Subject::RejectedEvent),
            _ => None,
        }
    }

    pub fn count(&self, metric: Metric) -> u64 {
        self.members.get(metric.name).and_then(Value::as_u64).unwrap_or_default()
    }

    /// Adds the metrics of another summary line of the same invocation.
    pub fn add(&mut self, other: &Self) {
        for metric in SUMMED {
            let sum = self.count(metric) + other.count(metric);
            self.members.insert(metric.name.to_owned(), sum.into());
        }
    }
}
