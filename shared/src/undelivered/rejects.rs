//! The queue of rejected events.

use tokio::time::Instant;

use crate::aws::sqs::{Outgoing, Queue, Stored};
use crate::contract::rejected::RejectedEvent;

/// The queue that keeps them.
pub struct Rejects {
    queue: Queue,
}

impl Rejects {
    pub fn new(queue: Queue) -> Self {
        Self { queue }
    }

    /// Stores copies. Returns for each whether it is stored, in their order. A copy of a queue's message counts only if it is
    /// complete.
    pub async fn store(&self, rejects: &[RejectedEvent<'_>], deadline: Instant) -> Vec<bool> {
        let mut kept = vec![false; rejects.len()];
        let mut waiting: Vec<usize> = (0..rejects.len()).collect();
        // A queue that refuses a size gets smaller parts of the bodies, until its refusals have shown what it accepts.
        while !waiting.is_empty() {
            let max_bytes = self.queue.max_bytes();
            let mut envelopes: Vec<String> = Vec::with_capacity(waiting.len());
            waiting.retain(|position| {
                let reject = &rejects[*position];
                let Some(envelope) = reject.to_json(max_bytes) else {
                    tracing::warn!(
                        kind = reject.kind.as_ref(),
                        reason = reject.reason.as_ref(),
                        bytes = reject.body().map_or(0, |body| body.len()),
                        "a rejected event is too large to be stored whole; its message is returned to its queue"
                    );
                    return false;
                };
                envelopes.push(envelope);
                true
            });
            let outgoing: Vec<Outgoing<'_>> = envelopes.iter().map(|envelope| Outgoing::new(envelope)).collect();
            let stored = self.queue.send(&outgoing, deadline).await;
            for (position, stored) in waiting.iter().zip(&stored) {
                kept[*position] = *stored == Stored::Yes;
            }
            if self.queue.max_bytes() == max_bytes {
                break;
            }
            let mut stored = stored.iter();
            waiting.retain(|_| stored.next() == Some(&Stored::TooLarge));
        }
        kept
    }
}
