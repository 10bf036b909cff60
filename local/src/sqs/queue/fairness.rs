//! Fair queues: which message group a receive serves next. A group with too many messages in flight is noisy, and quiet
//! groups are served before it.

use std::collections::VecDeque;

use super::{Millis, Queue, State};

/// A message group is noisy only with at least this many messages in flight.
const NOISY_FROM: usize = 30;
/// A message group is noisy only with more than one tenth of all messages in flight.
const NOISY_PART: usize = 10;
/// A noisy group without messages in flight is quiet again after this time.
const QUIET_AFTER: Millis = 5 * 60 * 1000;
/// Place of the line of all messages without a group. It is never noisy, since each of them counts as a group of its own.
pub(super) const WITHOUT_GROUP: usize = 0;

/// Visible messages of one group in their order.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Places in the order, and keys. Entries of messages that were removed or are no longer visible are skipped.
    pub waiting: VecDeque<(u64, u64)>,
    pub in_flight: usize,
    noisy: bool,
    /// Time since which too many messages are in flight.
    over_since: Option<Millis>,
    /// Time since which no message is in flight.
    pub idle_since: Millis,
    rank: Option<Rank>,
}

/// Which line is received from next: quiet ones by the place of their first message, noisy ones by messages in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rank {
    Quiet(u64),
    Noisy(usize),
}

impl Queue {
    /// Decides whether a line is noisy, and updates its place among the others.
    pub(super) fn rank(&mut self, index: usize, now: Millis) {
        let line = &mut self.lines[index];
        while let Some((place, key)) = line.waiting.front() {
            if self.messages.get(key).is_some_and(|message| message.state == State::Visible(*place)) {
                break;
            }
            line.waiting.pop_front();
        }
        let first = line.waiting.front().map(|(place, _)| *place);
        let over = index != WITHOUT_GROUP
            && line.in_flight >= NOISY_FROM
            && line.in_flight * NOISY_PART > self.depth.in_flight
            && first.is_some();
        let idle = line.in_flight == 0 && line.idle_since + QUIET_AFTER <= now;
        if line.noisy && (first.is_none() || idle) {
            line.noisy = false;
        }
        if !over {
            line.over_since = None;
        } else if now >= *line.over_since.get_or_insert(now) + self.service.noisy_after {
            line.noisy = true;
        }
        let rank = first.map(|place| if line.noisy { Rank::Noisy(line.in_flight) } else { Rank::Quiet(place) });
        if rank == line.rank {
            return;
        }
        match std::mem::replace(&mut line.rank, rank) {
            Some(Rank::Quiet(place)) => drop(self.quiet.remove(&(place, index))),
            Some(Rank::Noisy(in_flight)) => drop(self.noisy.remove(&(in_flight, index))),
            None => {}
        }
        match rank {
            Some(Rank::Quiet(place)) => drop(self.quiet.insert((place, index))),
            Some(Rank::Noisy(in_flight)) => drop(self.noisy.insert((in_flight, index))),
            None => {}
        }
    }
}
