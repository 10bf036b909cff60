//! The queue of parked messages.

use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use crate::aws::sqs::{Outgoing, Queue, Stored};
use crate::contract::parked::{Head, is_intact, seal};
use crate::message::Message;

/// Target size of an envelope's messages in bytes, so that a batch of envelopes fits redelivery's memory. One large
/// message may exceed it.
const TARGET_BYTES: usize = 1_000_000;
/// Maximum number of messages of an envelope.
pub const MAX_MESSAGES: usize = 1_000;
/// Number of bytes that an envelope leaves free of the queue's maximum, for what is put around it if it is rejected.
const MARGIN: usize = 2048;

/// The queue of parked messages.
pub struct Parking {
    queue: Queue,
}

impl Parking {
    pub fn new(queue: Queue) -> Self {
        Self { queue }
    }

    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Parks messages of one flow. Returns for each whether it is stored, in their order.
    pub async fn park(&self, head: &Head<'_>, messages: &[&Message<'_>], deadline: Instant) -> Vec<bool> {
        self.store(head, messages, Duration::ZERO, |_, _| true, deadline).await
    }

    /// Parks messages that are parked already, for `delay`. What was packed is unpacked and compared before it is stored,
    /// since the originals are deleted then.
    pub async fn park_again(
        &self,
        head: &Head<'_>,
        messages: &[&Message<'_>],
        delay: Duration,
        deadline: Instant,
    ) -> Vec<bool> {
        self.store(head, messages, delay, is_intact, deadline).await
    }

    /// `check` is a parameter, so that functions that never park again do not contain the code that reads envelopes.
    async fn store(
        &self,
        head: &Head<'_>,
        messages: &[&Message<'_>],
        delay: Duration,
        check: fn(&str, &[&Message<'_>]) -> bool,
        deadline: Instant,
    ) -> Vec<bool> {
        let group = head.group();
        let mut stored = vec![false; messages.len()];
        let mut waiting = chunks(messages);
        while !waiting.is_empty() {
            let max_bytes = self.queue.max_bytes().saturating_sub(MARGIN);
            // Reversed, so that the first comes off the end.
            waiting.reverse();
            let mut packed: Vec<(Range<usize>, String)> = Vec::new();
            while let Some(range) = waiting.pop() {
                let part = &messages[range.clone()];
                let text = seal(head, part);
                if text.len() > max_bytes && part.len() > 1 {
                    let [first, second] = halves(range);
                    waiting.extend([second, first]);
                } else if check(&text, part) {
                    packed.push((range, text));
                } else {
                    tracing::error!("a packed envelope did not unpack to its messages; it is not stored");
                }
            }
            let outgoing: Vec<Outgoing<'_>> =
                packed.iter().map(|(_, text)| Outgoing { body: text, group: Some(&group), delay }).collect();
            let outcomes = self.queue.send(&outgoing, deadline).await;
            for ((range, _), outcome) in packed.into_iter().zip(outcomes) {
                match outcome {
                    Stored::Yes => stored[range].fill(true),
                    Stored::TooLarge if range.len() > 1 => waiting.extend(halves(range)),
                    Stored::TooLarge | Stored::No => {}
                }
            }
        }
        stored
    }
}

fn halves(range: Range<usize>) -> [Range<usize>; 2] {
    let middle = range.start + range.len() / 2;
    [range.start..middle, middle..range.end]
}

/// Positions of messages that make an envelope each.
fn chunks(messages: &[&Message<'_>]) -> Vec<Range<usize>> {
    let (mut chunks, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (position, message) in messages.iter().enumerate() {
        let size = message.body.len() + message.properties.as_bytes().len();
        if position > start && (bytes + size > TARGET_BYTES || position - start == MAX_MESSAGES) {
            chunks.push(start..position);
            (start, bytes) = (position, 0);
        }
        bytes += size;
    }
    if start < messages.len() {
        chunks.push(start..messages.len());
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::messages;

    #[test]
    fn envelopes_have_at_most_a_thousand_messages_and_a_megabyte() {
        let lengths = |count, body: &str| {
            let messages = messages(count, body);
            let messages: Vec<_> = messages.iter().collect();
            chunks(&messages).iter().map(|chunk| chunk.len()).collect::<Vec<_>>()
        };
        assert_eq!(lengths(2_500, "x"), [1_000, 1_000, 500]);
        assert_eq!(lengths(5, &"x".repeat(400_000)), [2, 2, 1]);
    }
}
