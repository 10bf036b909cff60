//! What can't be sent now stays in the parking queue: hidden as it is, or gathered into fuller envelopes.
//!
//! Hidden messages count as in flight, of which a queue has 120,000 at most, so that small envelopes are packed together.
//! A stored copy is confirmed before its original is deleted, so that nothing is lost in between.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use shared::Message;
use shared::aws::sqs::{Depth, Outgoing, Stored};
use shared::contract::Unreadable;
use shared::contract::parked::Head;
use shared::event_hubs::Outcome;
use shared::event_hubs::response::Cause;
use shared::trigger::sqs_event::Record;
use tokio::time::{Instant, sleep};

use crate::redelivery::{Ending, Item, Redelivery, Times};

/// Size from which a packed envelope is full, in characters: SQS charges for 64 KiB at least.
pub(crate) const FULL_BYTES: usize = 65_536;
/// Number of receives after which an envelope is stored again. The queue moves it to the dead letters after a hundred.
const RENEW_AFTER_RECEIVES: u32 = 50;
/// Number of messages in flight from which envelopes are stored again instead of hidden: half of what a queue has.
const MANY_IN_FLIGHT: u64 = 60_000;
/// The longest retention of a queue, for when its own can't be read.
const RETENTION: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// Maximum delay of a message that is stored again.
const MAX_DELAY: Duration = Duration::from_secs(900);
/// Maximum time by which a probe is awaited longer than its instance needs, so that envelopes do not return in step.
const SPREAD: Duration = Duration::from_secs(3);
/// Pause before messages are stored again that SQS did not accept.
const PAUSE: Duration = Duration::from_millis(500);
/// Envelopes whose oldest messages are further apart are not gathered: an envelope expires with its oldest message.
const GATHER_SPAN: u32 = 14;
/// Time between two looks at an unreadable envelope.
pub(crate) const UNREADABLE: Duration = MAX_DELAY;

/// Why the messages of a way wait, and for how long.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wait {
    pub cause: Option<Cause>,
    /// Time of the next probe.
    pub until: Option<SystemTime>,
    pub at_least: Duration,
}

/// A record with messages that stay parked.
pub(crate) struct Held<'i, 'r> {
    /// Position among the endings.
    pub place: usize,
    pub item: &'i Item<'r>,
    /// Positions of the messages that are left; empty if the envelope was not unpacked.
    pub left: Vec<usize>,
    /// Whether nothing of it was delivered or rejected.
    pub is_whole: bool,
    /// Whether it gains nothing from being packed together with others.
    pub is_full: bool,
    /// Time that it waits, where that does not depend on the hub.
    pub delay: Option<Duration>,
}

impl Redelivery {
    /// Keeps the messages of a way in the queue. Part of an envelope is always stored again, alone if need be: hidden as a
    /// whole, what was delivered would be sent again.
    pub(crate) async fn hold(
        &self,
        held: &[Held<'_, '_>],
        endings: &mut [Ending],
        messages: &[Message<'_>],
        outcomes: &[Option<Outcome>],
        wait: Wait,
        times: Times,
    ) {
        if held.is_empty() {
            return;
        }
        let depth = self.depth(times.storing_ends).await;
        // What has equal heads is gathered: of one kind, flow and destination.
        let mut loose: BTreeMap<_, Vec<&Held<'_, '_>>> = BTreeMap::new();
        let mut whole: Vec<&Held<'_, '_>> = Vec::new();
        for one in held {
            if one.is_whole && (one.is_full || one.left.is_empty()) {
                whole.push(one);
            } else {
                let Head { kind, flow, hub, host, secret_id, .. } = &one.item.head;
                loose.entry((kind, flow, hub, host, secret_id)).or_default().push(one);
            }
        }
        for of_head in loose.into_values() {
            for gathered in together(of_head, self.waiting.max_age / GATHER_SPAN) {
                whole.extend(self.gather(&gathered, endings, messages, outcomes, wait, times).await);
            }
        }
        let waiting: Vec<_> = whole
            .iter()
            .map(|one| {
                let delay = one.delay.unwrap_or_else(|| self.delay(one.item.record.receive_count(), wait));
                (one.item.record, one.item.head.group(), delay)
            })
            .collect();
        let stay = self.keep_as_they_are(&waiting, depth, times).await;
        for (one, stays) in whole.iter().zip(stay) {
            endings[one.place].stays = stays;
        }
    }

    /// Hides records, or stores them again where that is due. Returns for each whether it stays in its record.
    async fn keep_as_they_are(
        &self,
        records: &[(&Record<'_>, String, Duration)],
        depth: Option<Depth>,
        times: Times,
    ) -> Vec<bool> {
        let due: Vec<bool> = records.iter().map(|(record, ..)| self.is_to_be_renewed(record, depth)).collect();
        let outgoing: Vec<Outgoing<'_>> = records
            .iter()
            .zip(&due)
            .filter(|(_, due)| **due)
            .map(|((record, group, delay), _)| Outgoing {
                body: record.body().unwrap_or_default(),
                group: Some(group.as_str()).filter(|group| !group.is_empty()),
                delay: *delay,
            })
            .collect();
        let stored = self.parking().queue().send(&outgoing, times.storing_ends).await;
        report_unstored(stored.iter().filter(|stored| **stored != Stored::Yes).count());
        let mut stored = stored.into_iter();
        let stay: Vec<bool> = due.iter().map(|due| !due || stored.next() != Some(Stored::Yes)).collect();
        let handles: Vec<_> = records
            .iter()
            .zip(&stay)
            .filter(|(_, stays)| **stays)
            .map(|((record, _, delay), _)| (record.receipt_handle(), *delay))
            .filter(|(handle, _)| !handle.is_empty())
            .collect();
        let handles: Vec<(&str, Duration)> = handles.iter().map(|(handle, delay)| (handle.as_ref(), *delay)).collect();
        self.parking().queue().postpone(&handles, times.hiding_ends).await;
        stay
    }

    /// Keeps records in the queue whose envelopes are not readable, for a version that reads them or an operator.
    pub(crate) async fn hold_unreadable(
        &self,
        records: &[(usize, &Record<'_>, Unreadable)],
        times: Times,
    ) -> Vec<Ending> {
        if records.is_empty() {
            return Vec::new();
        }
        let depth = self.depth(times.storing_ends).await;
        let waiting: Vec<_> =
            records.iter().map(|(_, record, _)| (*record, record.group().unwrap_or_default(), UNREADABLE)).collect();
        let stay = self.keep_as_they_are(&waiting, depth, times).await;
        let positions = records.iter().map(|(position, ..)| *position);
        positions.zip(stay).map(|(position, stays)| Ending { position, stays, ..Ending::default() }).collect()
    }

    /// Packs envelopes together. Returns those that stay as they are: packing them would not at least double the largest,
    /// or the queue did not store them.
    async fn gather<'h, 'i, 'r>(
        &self,
        held: &[&'h Held<'i, 'r>],
        endings: &mut [Ending],
        messages: &[Message<'_>],
        outcomes: &[Option<Outcome>],
        wait: Wait,
        times: Times,
    ) -> Vec<&'h Held<'i, 'r>> {
        let count: usize = held.iter().map(|held| held.left.len()).sum();
        let largest = held.iter().filter(|held| held.is_whole).map(|held| held.left.len()).max().unwrap_or_default();
        let (packed, alone): (Vec<&Held<'_, '_>>, Vec<_>) =
            held.iter().copied().partition(|held| count >= 2 * largest || !held.is_whole);
        let mut positions: Vec<usize> = packed.iter().flat_map(|held| held.left.iter().copied()).collect();
        positions.sort_unstable();
        positions.dedup();
        let Some(oldest) = packed.iter().map(|held| held.item).min_by_key(|item| item.first_seen) else { return alone };
        let mut head = oldest.head.clone();
        if let Some(Outcome::Unsent(cause)) = positions.last().and_then(|last| outcomes[*last]) {
            head.reason = cause.word().into();
        }
        let delay = self.delay(1, wait).min(MAX_DELAY);
        let must_be_stored = packed.iter().any(|held| !held.is_whole);
        let mut stored = vec![false; messages.len()];
        loop {
            let waiting: Vec<usize> = positions.iter().copied().filter(|position| !stored[*position]).collect();
            let parts: Vec<&Message<'_>> = waiting.iter().map(|position| &messages[*position]).collect();
            let done = self.parking().park_again(&head, &parts, delay, times.storing_ends).await;
            for (position, done) in waiting.iter().zip(&done) {
                stored[*position] = *done;
            }
            let is_over = Instant::now() + PAUSE >= times.storing_ends;
            if !done.contains(&false) || !must_be_stored || is_over {
                break;
            }
            sleep(PAUSE).await;
        }
        report_unstored(positions.iter().filter(|position| !stored[**position]).count());
        let mut stay = alone;
        for held in packed {
            if held.left.iter().all(|position| stored[*position]) {
                endings[held.place].gathered = held.left.len();
            } else {
                stay.push(held);
            }
        }
        stay
    }

    fn is_to_be_renewed(&self, record: &Record<'_>, depth: Option<Depth>) -> bool {
        let retention = depth.map_or(RETENTION, |depth| depth.retention);
        let sent_at = record.sent_at().map(|sent_at| SystemTime::UNIX_EPOCH + Duration::from_millis(sent_at));
        let age = sent_at.and_then(|sent_at| self.now().duration_since(sent_at).ok()).unwrap_or_default();
        record.receive_count() >= RENEW_AFTER_RECEIVES
            || age >= retention / 2
            || depth.is_some_and(|depth| depth.in_flight >= MANY_IN_FLIGHT)
    }

    /// Time that a message waits: longer after each receive, and until this instance probes its hub again.
    fn delay(&self, receive_count: u32, wait: Wait) -> Duration {
        let longest = self.waiting.max_delay.max(wait.at_least);
        let doublings = receive_count.saturating_sub(1).min(16);
        let usual = self.waiting.delay.saturating_mul(1 << doublings).min(longest).mul_f64(0.8 + 0.2 * fastrand::f64());
        let probe = wait.until.map(|until| until.duration_since(self.now()).unwrap_or_default());
        let probe = probe.map_or(Duration::ZERO, |probe| (probe + SPREAD.mul_f64(fastrand::f64())).min(longest));
        // SQS takes whole seconds.
        Duration::from_secs(usual.max(probe).max(wait.at_least).as_secs().max(1))
    }
}

/// Reports what the queue did not store. The originals stay in it, so that nothing is lost.
fn report_unstored(count: usize) {
    if count > 0 {
        tracing::error!(
            count,
            hint = "check that redelivery may send to the parking queue, and that SQS responds",
            "failed to store parked messages again; their originals are hidden instead, and count as in flight"
        );
    }
}

/// Divides envelopes by the age of their oldest messages, so that none expires much earlier than its newest message
/// should.
fn together<'h, 'i, 'r>(mut held: Vec<&'h Held<'i, 'r>>, span: Duration) -> Vec<Vec<&'h Held<'i, 'r>>> {
    held.sort_by_key(|held| held.item.first_seen);
    let mut groups: Vec<Vec<&Held<'_, '_>>> = Vec::new();
    for held in held {
        match groups.last_mut() {
            Some(group) if held.item.first_seen <= group[0].item.first_seen + span => group.push(held),
            _ => groups.push(vec![held]),
        }
    }
    groups
}
