//! Feeds an SQS queue to a function as Lambda's event source mapping does for standard queues: several pollers, batches
//! that are gathered over several receives, partial batch responses. It does not support scaling or FIFO queues.

mod calls;
mod poller;
mod records;

use std::sync::Arc;
use std::time::Duration;

use shared::aws::Aws;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::calls::MAX_PER_CALL;
pub(crate) use self::calls::call;
pub use self::calls::{create_queue, create_storage_queue};
use self::poller::Poller;
use crate::runner::{Function, InvokeError};

/// Timeout of one attempt of a call. The messages of an abandoned receive stay hidden, so it must not be short.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// An event source mapping: which queue a function consumes, and how.
#[derive(Debug, Clone)]
pub struct Mapping {
    pub queue_url: String,
    pub region: String,
    /// Maximum number of messages of one invocation (`BatchSize`), up to 10,000.
    pub batch_size: usize,
    /// Time for which a poller gathers messages after the first one (`MaximumBatchingWindowInSeconds`). With zero, a batch
    /// ends at the first receive that returns fewer messages than it may.
    pub window: Duration,
    /// Number of batches that are handled concurrently (`MaximumConcurrency`).
    pub pollers: usize,
    /// Receives a report of everything after which messages are handled once more.
    pub observer: Option<mpsc::UnboundedSender<Repeat>>,
}

impl Mapping {
    /// A mapping with the defaults: one poller, at most ten messages, no window.
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
    /// Their invocation has no response.
    Invocation(InvokeError),
    /// The queue delivered them while another invocation was still handling them.
    DeliveredTwice,
    /// They were handled, and then the queue did not delete them.
    NotDeleted,
}

/// Receives messages, invokes `function` and deletes the messages that it handled, until the future is dropped. The other
/// messages are redelivered after their visibility timeout.
pub async fn run(aws: Aws, function: Function, mapping: Mapping) {
    let aws = aws.with_attempt_timeout(ATTEMPT_TIMEOUT);
    let under_way = Arc::default();
    let mut pollers = JoinSet::new();
    for _ in 0..mapping.pollers.max(1) {
        pollers.spawn(Poller::new(aws.clone(), function.clone(), mapping.clone(), Arc::clone(&under_way)).run());
    }
    // They end only with this future.
    pollers.join_all().await;
}

#[cfg(test)]
mod tests;
