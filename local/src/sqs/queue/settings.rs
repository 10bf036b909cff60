//! Settings of a queue, limits of the service, and the figures that a queue counts.

use super::Millis;

/// Settings of a queue, as `SetQueueAttributes` changes them.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::sqs) struct Settings {
    pub visibility_seconds: u64,
    pub delay_seconds: u64,
    pub wait_seconds: u64,
    pub retention_seconds: u64,
    /// Maximum size of a message in bytes, with its attributes.
    pub max_message_bytes: usize,
    pub redrive: Option<Redrive>,
}

/// The dead-letter queue, and the number of receives after which a message goes there.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::sqs) struct Redrive {
    /// ARN of the dead-letter queue.
    pub target: String,
    pub max_receives: u32,
}

impl Default for Settings {
    /// The settings of a queue that is created without attributes.
    fn default() -> Self {
        Self {
            visibility_seconds: 30,
            delay_seconds: 0,
            wait_seconds: 0,
            retention_seconds: 4 * 24 * 3600,
            max_message_bytes: 1_048_576,
            redrive: None,
        }
    }
}

/// Limits and delays of the service, which no attribute of a queue changes.
#[derive(Debug, Clone, Copy)]
pub(in crate::sqs) struct Service {
    pub max_in_flight: usize,
    /// How long a group must have too many messages in flight before it counts as noisy.
    pub noisy_after: Millis,
}

/// Figures of a queue since it was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    pub sent: u64,
    pub received: u64,
    pub deleted: u64,
    /// Largest number of messages that were in flight at the same time.
    pub peak_in_flight: usize,
    /// Messages that went to the dead-letter queue.
    pub redriven: u64,
    /// Messages that were dropped because they were older than the retention period.
    pub expired: u64,
    /// Visibility timeouts that ended although the consumer had neither deleted the message nor changed the timeout.
    pub timed_out: u64,
    /// Deletions that did nothing, because the message had been received again meanwhile.
    pub stale_deletions: u64,
    /// Receives of a message that stayed visible, so that it is received once more.
    pub delivered_twice: u64,
}
