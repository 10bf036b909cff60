//! The parked messages for one destination: sent as far as the hub accepts them; the rest is held.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use shared::contract::Unreadable;
use shared::contract::parked::{Envelope, unpacked};
use shared::contract::rejected::{RejectedEvent, Source};
use shared::event_hubs::circuit::Admission;
use shared::event_hubs::response::Cause;
use shared::event_hubs::{EventHub, Outcome, Report};
use shared::trigger::sqs_event::Record;
use shared::undelivered::parking::MAX_MESSAGES;
use shared::{Message, Reason, Rejection};

use crate::destinations::{Unresolved, Way};
use crate::hold::{FULL_BYTES, Held, UNREADABLE, Wait};
use crate::redelivery::{Delivered, Ending, Item, Redelivery, Times};

/// Maximum size of what one invocation unpacks, in bytes. It fits a function of 512 MB together with the requests.
const MAX_UNPACKED: usize = 48_000_000;
/// Maximum number of messages of the first request to a hub that is not known to respond, to one that failed, and to one
/// that did not respond in time: there the request may have been stored.
const FIRST_CONTACT: usize = 100;
const PROBE: usize = 50;
const PROBE_AFTER_TIMEOUT: usize = 1;
/// Size of an envelope's JSON from which it is full, in bytes: text that packs well never becomes 64 KiB.
const FULL_JSON: usize = 500_000;
/// Time for which a hub that responded counts as responding.
const KNOWN_FOR: Duration = Duration::from_secs(10);
/// Maximum age of an envelope that shows that new events are being throttled.
const FRESH: Duration = Duration::from_secs(10);
/// Maximum time between the first parking of new events and the sending of their envelope.
const PARKED_AT_ONCE: Duration = Duration::from_secs(2);
/// Time that messages wait for which there was no memory.
const NO_ROOM: Duration = Duration::from_secs(1);
/// Maximum number of unreadable envelopes that get a log line of their own.
const MAX_LINES: usize = 10;
/// Minimum time between two looks at a disabled flow.
const DISABLED: Duration = Duration::from_secs(300);

/// The memory for unpacked envelopes.
#[derive(Default)]
pub(crate) struct Budget(AtomicUsize);

impl Budget {
    fn has_room(&self) -> bool {
        self.0.load(Ordering::Relaxed) < MAX_UNPACKED
    }

    fn take(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What to do with the messages of a way.
enum Plan {
    Send {
        hub: std::sync::Arc<EventHub>,
        admission: Admission,
    },
    Hold(Wait),
    /// The flow was deleted.
    Reject,
}

/// The JSON of an envelope, or why there is none.
enum Unpacked {
    Json(String),
    /// It is not needed: the envelope stays as it is.
    NotNeeded,
    NoRoom,
    Unreadable(Unreadable),
}

/// The messages of a way's envelopes, each once.
struct Load<'e> {
    messages: Vec<Message<'e>>,
    /// The item and the place in its envelope from which each message is.
    origins: Vec<(usize, usize)>,
    /// Positions of each item's messages, by their place in the envelope; empty if it was not unpacked.
    of_items: Vec<Vec<usize>>,
}

impl<'e> Load<'e> {
    /// A message that equals the last one of its subject is a copy of it: an envelope is stored again before it is
    /// deleted. An equal message further ahead may be a state that was reached again.
    fn of(envelopes: &'e [Option<Envelope<'e>>]) -> Self {
        let mut load = Self { messages: Vec::new(), origins: Vec::new(), of_items: Vec::new() };
        let mut last_of: HashMap<Cow<'e, str>, usize> = HashMap::new();
        for (item, envelope) in envelopes.iter().enumerate() {
            let mut positions = Vec::new();
            for (place, message) in envelope.iter().flat_map(Envelope::messages).enumerate() {
                let last = last_of.get(&message.subject).copied();
                let position = match last {
                    Some(last) if load.messages[last].id == message.id => last,
                    _ => {
                        let position = load.messages.len();
                        last_of.insert(message.subject.clone(), position);
                        load.messages.push(message);
                        load.origins.push((item, place));
                        position
                    }
                };
                positions.push(position);
            }
            load.of_items.push(positions);
        }
        load
    }
}

impl Redelivery {
    /// Sends the messages of `items`, which share a way, and holds what can't be sent.
    pub(crate) async fn deliver(&self, way: Way, mut items: Vec<Item<'_>>, times: Times, budget: &Budget) -> Delivered {
        items.sort_by_key(|item| item.first_seen);
        let mut delivered = Delivered::default();
        let plan = self.plan(&way, &items, times).await;

        let unpacked: Vec<Unpacked> =
            items.iter().map(|item| self.unpacked(item, matches!(plan, Plan::Hold(_)), budget)).collect();
        let mut unreadable = Vec::new();
        let mut envelopes: Vec<Option<Envelope<'_>>> = Vec::new();
        for (item, unpacked) in items.iter().zip(&unpacked) {
            let parsed = match unpacked {
                Unpacked::Json(json) => Envelope::parse(json).map(Some),
                Unpacked::Unreadable(problem) => Err(*problem),
                Unpacked::NotNeeded | Unpacked::NoRoom => Ok(None),
            };
            envelopes.push(parsed.unwrap_or_else(|problem| {
                unreadable.push((item.record, problem));
                None
            }));
        }
        report_unreadable(&unreadable);
        let load = Load::of(&envelopes);

        let mut rejected = vec![false; items.len()];
        let (outcomes, wait) = match plan {
            Plan::Send { hub, admission } => {
                let (report, wait) = self.send(&way, &hub, admission, &items, &load.messages, times).await;
                delivered.probe = (admission == Admission::Probe && report.requests > 0)
                    .then_some(report.stopped.is_some_and(|cause| cause != Cause::Throttled));
                delivered.units = (report.requests > 0).then(|| self.pace(&wait.host).units());
                let outcomes = report.outcomes.iter().map(|outcome| Some(*outcome)).collect();
                delivered.report = Some(report);
                (outcomes, wait.wait)
            }
            Plan::Hold(wait) => (vec![wait.cause.map(Outcome::Unsent); load.messages.len()], wait),
            Plan::Reject => {
                rejected = self.reject_all(&items, &unpacked, &envelopes, times).await;
                (vec![None; load.messages.len()], Wait::default())
            }
        };

        let refused = self.store_refused(&items, &envelopes, &load, &outcomes, times).await;
        let mut endings: Vec<Ending> = Vec::new();
        let mut held: Vec<Held<'_, '_>> = Vec::new();
        for (place, item) in items.iter().enumerate() {
            let positions = &load.of_items[place];
            let mut ending =
                Ending { position: item.position, flow: Some(item.head.flow.to_string()), ..Ending::default() };
            if rejected[place] {
                ending.rejected.push(Reason::UnknownFlow);
                endings.push(ending);
                continue;
            }
            let mut left = Vec::new();
            for (in_envelope, position) in positions.iter().enumerate() {
                let is_copy = load.origins[*position] != (place, in_envelope);
                match (outcomes[*position], refused.get(position)) {
                    (Some(Outcome::Delivered), _) => ending.delivered += usize::from(!is_copy),
                    (_, Some(reason)) => ending.rejected.extend((!is_copy).then_some(*reason)),
                    _ => left.push(*position),
                }
            }
            let delay = match unpacked[place] {
                Unpacked::NoRoom => Some(NO_ROOM),
                Unpacked::NotNeeded => None,
                Unpacked::Json(_) if envelopes[place].is_some() => None,
                Unpacked::Json(_) | Unpacked::Unreadable(_) => Some(UNREADABLE),
            };
            let is_full = item.text.len() >= FULL_BYTES
                || positions.len() >= MAX_MESSAGES / 2
                || matches!(&unpacked[place], Unpacked::Json(json) if json.len() >= FULL_JSON);
            if !left.is_empty() || envelopes[place].is_none() {
                held.push(Held { place, item, is_whole: left.len() == positions.len(), is_full, left, delay });
            }
            endings.push(ending);
        }
        self.expire(&mut held, &mut endings, &envelopes, &load.origins, times).await;
        self.hold(&held, &mut endings, &load.messages, &outcomes, wait, times).await;
        delivered.endings = endings;
        delivered
    }

    async fn plan(&self, way: &Way, items: &[Item<'_>], times: Times) -> Plan {
        let hub = match self.destinations.resolve(&self.services, way, times.looking_up_ends).await {
            Ok(hub) => hub,
            Err(Unresolved::Deleted) => return Plan::Reject,
            Err(problem) => {
                let (flow, envelopes) = (items.first().map_or("", |item| item.head.flow.as_ref()), items.len());
                let is_disabled = matches!(problem, Unresolved::Disabled);
                if is_disabled {
                    tracing::info!(flow, envelopes, %problem, "an envelope stays parked");
                } else {
                    tracing::warn!(flow, envelopes, %problem, "an envelope stays parked");
                }
                let at_least = if is_disabled { DISABLED } else { Duration::ZERO };
                return Plan::Hold(Wait { at_least, ..Wait::default() });
            }
        };
        match self.admit(way, &hub.destination().await) {
            Admission::Open(open) => {
                Plan::Hold(Wait { cause: Some(open.cause), until: Some(open.next_probe), ..Wait::default() })
            }
            admission @ (Admission::Closed | Admission::Probe) => Plan::Send { hub, admission },
        }
    }

    /// Unpacks an envelope if its messages are needed: to be sent, to be gathered because they are few, or to be rejected
    /// because they are old.
    fn unpacked(&self, item: &Item<'_>, is_held: bool, budget: &Budget) -> Unpacked {
        if is_held && item.text.len() >= FULL_BYTES && !self.is_expired(item) {
            return Unpacked::NotNeeded;
        }
        if !budget.has_room() {
            return Unpacked::NoRoom;
        }
        match unpacked(item.text) {
            Ok(json) => {
                budget.take(json.len());
                Unpacked::Json(json)
            }
            Err(problem) => Unpacked::Unreadable(problem),
        }
    }

    /// Sends at the pace of the hub's namespace, and records how it went.
    async fn send(
        &self,
        way: &Way,
        hub: &EventHub,
        admission: Admission,
        items: &[Item<'_>],
        messages: &[Message<'_>],
        times: Times,
    ) -> (Report, Sent) {
        let destination = hub.destination().await;
        let pace = self.pace(&destination.host);
        if items.iter().any(|item| self.shows_throttled_live_traffic(item)) {
            pace.live_traffic_is_throttled();
        }
        let probe = match admission {
            Admission::Probe if self.open_cause(way, &destination) == Some(Cause::Timeout) => Some(PROBE_AFTER_TIMEOUT),
            // Any number, so that an event at which the hub fails is not in each probe.
            Admission::Probe => Some(fastrand::usize(1..=PROBE)),
            _ if self.responded_within(way, KNOWN_FOR) => None,
            _ => Some(FIRST_CONTACT),
        };
        let report = hub.send_paced(messages, probe, &pace, times.sending_ends, times.responses_end).await;
        let oldest = items.first().map_or_else(|| self.now(), |item| item.first_seen);
        let until = self.record(way, &destination, &report, oldest);
        if matches!(report.stopped, Some(Cause::Unauthorized | Cause::TokenExpired)) {
            self.destinations.forget(way);
        }
        (report, Sent { host: destination.host, wait: Wait { until, ..Wait::default() } })
    }

    /// Whether an envelope was parked a moment ago, straight from a sender, because its hub was throttled.
    fn shows_throttled_live_traffic(&self, item: &Item<'_>) -> bool {
        let sent_at = item.record.sent_at().map(|sent_at| SystemTime::UNIX_EPOCH + Duration::from_millis(sent_at));
        item.head.reason == Cause::Throttled.word()
            && item.record.receive_count() <= 1
            && self.now().duration_since(item.first_seen).is_ok_and(|age| age < FRESH)
            && sent_at.and_then(|at| at.duration_since(item.first_seen).ok()).unwrap_or_default() < PARKED_AT_ONCE
    }

    pub(crate) fn is_expired(&self, item: &Item<'_>) -> bool {
        self.now().duration_since(item.first_seen).is_ok_and(|age| age > self.waiting.max_age)
    }

    /// Stores the messages that the hub refused. Returns those that are stored, by their position.
    async fn store_refused(
        &self,
        items: &[Item<'_>],
        envelopes: &[Option<Envelope<'_>>],
        load: &Load<'_>,
        outcomes: &[Option<Outcome>],
        times: Times,
    ) -> HashMap<usize, Reason> {
        let mut positions = Vec::new();
        let mut rejects = Vec::new();
        for (position, outcome) in outcomes.iter().enumerate() {
            let (Some(Outcome::Refused(refusal)), (item, place)) = (outcome, load.origins[position]) else { continue };
            let Some(envelope) = &envelopes[item] else { continue };
            positions.push(position);
            rejects.push((&items[item], refusal.rejection(), envelope.with_messages([place])));
        }
        let kept = self.store_rejects(&rejects, times).await;
        let stored = positions.into_iter().zip(&rejects).zip(kept).filter(|(_, kept)| *kept);
        stored.map(|((position, (_, rejection, _)), _)| (position, rejection.reason)).collect()
    }

    /// Stores what is older than the maximum age as rejected.
    async fn expire(
        &self,
        held: &mut Vec<Held<'_, '_>>,
        endings: &mut [Ending],
        envelopes: &[Option<Envelope<'_>>],
        origins: &[(usize, usize)],
        times: Times,
    ) {
        let mut rejects = Vec::new();
        let mut of_held = Vec::new();
        for (index, held) in held.iter().enumerate().filter(|(_, held)| self.is_expired(held.item)) {
            let Some(envelope) = &envelopes[held.place] else { continue };
            let places = held.left.iter().filter(|position| origins[**position].0 == held.place);
            let json = envelope.with_messages(places.map(|position| origins[*position].1));
            let detail = "parked for longer than PARKING_MAX_AGE; the body is the envelope of the messages";
            rejects.push((held.item, Rejection { reason: Reason::Expired, detail: detail.into() }, json));
            of_held.push(index);
        }
        let kept = self.store_rejects(&rejects, times).await;
        for index in of_held.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(index, _)| index).rev() {
            let Held { place, left, .. } = held.remove(index);
            endings[place].rejected.extend(left.iter().map(|_| Reason::Expired));
        }
    }

    /// Stores all envelopes of a deleted flow as rejected. Returns for each whether it is stored.
    async fn reject_all(
        &self,
        items: &[Item<'_>],
        unpacked: &[Unpacked],
        envelopes: &[Option<Envelope<'_>>],
        times: Times,
    ) -> Vec<bool> {
        let detail = "the flow was deleted while its messages were parked; the body is their envelope";
        let rejection = Rejection { reason: Reason::UnknownFlow, detail: detail.into() };
        let (mut places, mut rejects) = (Vec::new(), Vec::new());
        for (place, item) in items.iter().enumerate() {
            if let (Unpacked::Json(json), Some(_)) = (&unpacked[place], &envelopes[place]) {
                places.push(place);
                rejects.push((item, rejection.clone(), json.clone()));
            }
        }
        let mut stored = vec![false; items.len()];
        for (place, kept) in places.into_iter().zip(self.store_rejects(&rejects, times).await) {
            stored[place] = kept;
        }
        stored
    }

    async fn store_rejects(&self, rejects: &[(&Item<'_>, Rejection, String)], times: Times) -> Vec<bool> {
        let rejects: Vec<RejectedEvent<'_>> = rejects
            .iter()
            .map(|(item, rejection, json)| {
                let head = &item.head;
                let (source, first_seen) = (Source::Parking, head.first_seen.as_ref());
                RejectedEvent::new(&head.kind, &head.flow, rejection.clone(), source, json.as_bytes(), first_seen)
            })
            .collect();
        self.services.store_rejected(&rejects, times.storing_ends).await
    }
}

/// Logs envelopes that are not readable, each of the first few with its problem.
pub(crate) fn report_unreadable(records: &[(&Record<'_>, Unreadable)]) {
    for (record, problem) in records.iter().take(MAX_LINES) {
        let message_id = record.message_id.0.as_ref();
        tracing::warn!(message_id, %problem, unreadable = records.len(), "an envelope is not readable; it stays parked");
    }
}

/// How sending to a host went, for what is left.
struct Sent {
    host: String,
    wait: Wait,
}

#[cfg(test)]
mod tests {
    use shared::contract::parked::Destination;
    use shared::contract::parked::Head;

    use super::*;

    /// An envelope's JSON with messages of these subjects and ids.
    fn json(messages: &[(&str, &str)]) -> String {
        let destination = Destination { host: "ns.example".into(), hub: "h".into(), secret_id: None };
        let head = Head::new("k", "f", &destination, "2026-01-02T03:04:05.678Z", "timeout");
        let mut json = serde_json::to_value(&head).unwrap();
        let message = |(subject, id): &(&str, &str)| serde_json::json!({ "id": id, "subject": subject, "body": "", "properties": {} });
        json["messages"] = messages.iter().map(message).collect();
        json.to_string()
    }

    #[test]
    fn copies_are_sent_once_and_states_that_come_back_are_not_copies() {
        let jsons = [json(&[("p", "Bern"), ("q", "Oslo")]), json(&[("p", "Bern"), ("p", "Rome"), ("p", "Bern")])];
        let envelopes: Vec<_> = jsons.iter().map(|json| Envelope::parse(json).ok()).collect();
        assert!(envelopes.iter().all(Option::is_some));
        let load = Load::of(&envelopes);
        let ids: Vec<_> = load.messages.iter().map(|message| message.id.as_str()).collect();
        assert_eq!(ids, ["Bern", "Oslo", "Rome", "Bern"]);
        assert_eq!(load.of_items, [vec![0, 1], vec![0, 2, 3]]);
        assert_eq!(load.origins, [(0, 0), (0, 1), (1, 1), (1, 2)]);
    }
}
