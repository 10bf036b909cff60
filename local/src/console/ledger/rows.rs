//! The rows and numbers that the page shows.

use serde::Serialize;

use crate::emulator::StoredEvent;

/// An event in a hub, with its place in the order of arrival.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Arrival {
    /// Position in the order of arrival, counted from 0.
    pub number: u64,
    #[serde(flatten)]
    pub event: StoredEvent,
    /// Size of the whole body in bytes; `body` may be its first part.
    pub body_bytes: usize,
}

#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowCounts {
    /// Number of requests.
    pub webhooks: u64,
    /// Number of handled queue records.
    pub records: u64,
    /// Number of messages that were delivered or parked.
    pub accepted: u64,
    /// Number of events that the flow's options filter.
    pub filtered: u64,
    /// Number of events that can never be delivered.
    pub rejected: u64,
    /// Number of requests that got a 4xx or 5xx and of which nothing was stored.
    pub refused: u64,
}

/// Parked messages of one envelope, or of several with the same kind, flow, hub and reason.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Parked {
    pub kind: String,
    pub flow: String,
    pub hub: String,
    pub messages: usize,
    pub reason: String,
    /// Time at which the oldest message was parked, in RFC 3339.
    pub since: String,
    /// Largest number of receives of an envelope.
    pub attempts: u64,
}

/// A rejected event, or the rejected elements of one request.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejected {
    /// Time of the log line, in RFC 3339.
    pub time: String,
    pub kind: String,
    pub flow: String,
    pub by: &'static str,
    pub reason: String,
    pub detail: String,
}

/// Numbers of messages; `rejected` is a number of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Messages whose sender got a 2xx, or whose queue record was handled.
    pub accepted: u64,
    /// Distinct messages in the hubs, by id.
    pub in_hub: u64,
    /// Duplicates in the hubs.
    pub repeated: u64,
    pub parked: u64,
    pub rejected: u64,
    pub lost: u64,
}

/// Numbers of messages in the queues, visible or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueCounts {
    pub parking: u64,
    pub dead_letters: u64,
    pub rejected: u64,
}
