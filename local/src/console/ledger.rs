//! The outcome of every message, as it can be observed from outside: the functions' responses and log lines on one side, the
//! contents of hubs and queues on the other. It lives as long as the system, and stores the newest of the single events.

mod invocations;
mod line;
mod rows;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;
use shared::DEFAULT_FLOW;
use shared::contract::metrics::{DELIVERED, FILTERED, PARKED, RECEIVED, REDELIVERED, REJECTED};
use shared::contract::parked::{Envelope, unpacked};

use self::invocations::{Invocation, Invocations};
use self::line::{Line, Subject};
pub use self::rows::QueueCounts;
use self::rows::{Arrival, Counts, FlowCounts, Parked, Rejected};
use crate::emulator::Emulator;
use crate::runner::Observed;

/// Maximum number of events that are retained for the page.
const MAX_ARRIVALS: usize = 500;
/// Maximum number of bytes of a body that the page shows.
const MAX_BODY: usize = 16 * 1024;
/// Maximum number of rows of a list.
pub const MAX_ROWS: usize = 100;
/// Maximum number of flows that are counted separately: callers choose the paths. Further flows count for [`OTHERS`].
const MAX_FLOWS: usize = 200;
const OTHERS: &str = "(others)";
/// Name for the flows of a batch with records of several flows, whose messages the functions count together.
const SEVERAL: &str = "(several)";
const ID: &str = "cloudEvents:id";

#[derive(Default)]
pub struct Ledger {
    next: BTreeMap<(String, u32), u64>,
    arrivals: VecDeque<Arrival>,
    arrived: u64,
    /// Hashes of hub and id of the events in the hubs.
    ids: HashSet<u64>,
    invocations: Invocations,
    flows: BTreeMap<(String, String), FlowCounts>,
    accepted: u64,
    /// Messages that functions report as delivered.
    reported_delivered: u64,
    /// Messages that redelivery reports as delivered.
    redelivered: u64,
    /// Messages that responses count and log lines do not.
    unaccounted: u64,
    parked_ever: u64,
    /// Messages of the envelopes that redelivery received.
    seen_parked: u64,
    /// Envelopes that stay parked, by the id of their queue message.
    parked: BTreeMap<String, Parked>,
    /// Hashes of the ids without the hub: a flow may have another hub when its parked messages are sent.
    ids_of_any_hub: HashSet<u64>,
    /// Messages of deleted envelopes that are neither in a hub nor rejected.
    missing: HashSet<u64>,
    rejected: VecDeque<Rejected>,
    rejected_ever: u64,
    /// The parking queue is empty although it should hold messages.
    parking_vanished: bool,
}

impl Ledger {
    /// Records the events that the hubs hold by now.
    pub fn collect(&mut self, emulator: &Emulator) {
        let mut events = emulator.events_from(&mut self.next);
        events.sort_by(|a, b| a.enqueued_time.cmp(&b.enqueued_time));
        for mut event in events {
            let id = match event.properties.get(ID).and_then(Value::as_str) {
                Some(id) => hash((&event.hub, id)),
                None => hash((&event.hub, event.partition, event.sequence_number)),
            };
            self.ids.insert(id);
            if let Some(id) = event.properties.get(ID).and_then(Value::as_str) {
                self.ids_of_any_hub.insert(hash(id));
                self.missing.remove(&hash(id));
            }
            let body_bytes = event.body.len();
            event.body.truncate(event.body.floor_char_boundary(MAX_BODY));
            self.arrivals.push_back(Arrival { number: self.arrived, event, body_bytes });
            self.arrived += 1;
        }
        self.arrivals.drain(..self.arrivals.len().saturating_sub(MAX_ARRIVALS));
    }

    /// The retained events from `number` on, and the number that the next event gets.
    pub fn arrivals(&self, number: u64) -> (Vec<Arrival>, u64) {
        (self.arrivals.iter().filter(|arrival| arrival.number >= number).cloned().collect(), self.arrived)
    }

    /// Records what an instance did. The hubs' events must have been collected after the observation was sent.
    pub fn observe(&mut self, observed: Observed) {
        let Some(invocation) = self.invocations.add(observed) else { return };
        match invocation.subject {
            Subject::Webhook => self.webhook(&invocation),
            Subject::QueueBatch => self.batch(&invocation),
            Subject::ParkedBatch | Subject::RejectedEvent => self.redelivery(&invocation),
        }
    }

    fn flow(&mut self, kind: &str, flow: &str) -> &mut FlowCounts {
        let key = (kind.to_owned(), flow.to_owned());
        let key = if self.flows.len() < MAX_FLOWS || self.flows.contains_key(&key) {
            key
        } else {
            (kind.to_owned(), OTHERS.to_owned())
        };
        self.flows.entry(key).or_default()
    }

    fn reject(&mut self, rejected: Rejected) {
        self.rejected.push_front(rejected);
        self.rejected.truncate(MAX_ROWS);
    }

    fn webhook(&mut self, invocation: &Invocation) {
        let Invocation { function: kind, line, payload, response, .. } = invocation;
        let Summary { delivered, parked, filtered, rejected } = Summary::of(line);
        let flow = payload["pathParameters"]["flow"].as_str().unwrap_or(DEFAULT_FLOW);
        let status = response["statusCode"].as_u64().unwrap_or_default();
        let body: Value =
            response["body"].as_str().and_then(|body| serde_json::from_str(body).ok()).unwrap_or_default();
        let is_success = (200..300).contains(&status);
        let accepted = if is_success { body["messages"].as_u64().unwrap_or_default() } else { 0 };
        let counts = self.flow(kind, flow);
        counts.webhooks += 1;
        counts.accepted += accepted;
        counts.filtered += filtered;
        counts.rejected += rejected;
        counts.refused += u64::from(!is_success && rejected == 0);
        self.accepted += accepted;
        self.unaccounted += accepted.saturating_sub(delivered + parked);
        self.reported_delivered += delivered;
        self.parked_ever += parked;
        self.rejected_ever += rejected;
        if rejected > 0 {
            let detail = match body["detail"].as_str() {
                Some(detail) => detail.to_owned(),
                None => format!("{} of {} elements", rejected, line.count(RECEIVED)),
            };
            self.reject(Rejected {
                time: line.timestamp.clone(),
                kind: kind.to_owned(),
                flow: flow.to_owned(),
                by: "webhook",
                reason: line.reason.clone(),
                detail,
            });
        }
    }

    fn batch(&mut self, invocation: &Invocation) {
        let Invocation { function: kind, line, rejects, payload, response, .. } = invocation;
        let Summary { delivered, parked, filtered, rejected } = Summary::of(line);
        let failed = failed(response);
        let flow_of = |record: &Value| {
            record["messageAttributes"]["flow"]["stringValue"].as_str().unwrap_or(DEFAULT_FLOW).to_owned()
        };
        let mut flows = BTreeMap::new();
        for (id, record) in records(payload) {
            *flows.entry(flow_of(record)).or_insert(0) += u64::from(!failed.contains(id));
        }
        for (flow, handled) in &flows {
            self.flow(kind, flow).records += handled;
        }
        let flow = match flows.len() {
            1 => flows.into_keys().next().unwrap_or_default(),
            _ => SEVERAL.to_owned(),
        };
        let accepted = delivered + parked;
        let counts = self.flow(kind, &flow);
        counts.accepted += accepted;
        counts.filtered += filtered;
        counts.rejected += rejected;
        self.accepted += accepted;
        self.reported_delivered += delivered;
        self.parked_ever += parked;
        self.rejected_ever += rejected;
        for reject in rejects {
            let record = records(payload).find(|(id, _)| *id == reject.message_id);
            self.reject(Rejected {
                time: reject.timestamp.clone(),
                kind: kind.to_owned(),
                flow: record.map_or_else(|| flow.clone(), |(_, record)| flow_of(record)),
                by: "queue",
                reason: reject.reason.clone(),
                detail: reject.detail.clone(),
            });
        }
    }

    fn redelivery(&mut self, invocation: &Invocation) {
        let Invocation { line, payload, response, .. } = invocation;
        let Summary { delivered, rejected, .. } = Summary::of(line);
        self.redelivered += delivered;
        self.rejected_ever += rejected;
        let failed = failed(response);
        for (id, record) in records(payload) {
            let attempts =
                record["attributes"]["ApproximateReceiveCount"].as_str().and_then(|count| count.parse().ok());
            if let Some(parked) = self.parked.get_mut(id)
                && failed.contains(id)
            {
                parked.attempts = attempts.unwrap_or_default();
                continue;
            }
            let Ok(json) = unpacked(record["body"].as_str().unwrap_or_default()) else { continue };
            let Ok(envelope) = Envelope::parse(&json) else { continue };
            let messages: Vec<u64> = envelope.messages().map(|message| hash(&*message.id)).collect();
            let parked = Parked {
                kind: envelope.head.kind.clone().into_owned(),
                flow: envelope.head.flow.clone().into_owned(),
                hub: envelope.head.hub.clone().into_owned(),
                messages: messages.len(),
                reason: envelope.head.reason.clone().into_owned(),
                since: envelope.head.first_seen.clone().into_owned(),
                attempts: attempts.unwrap_or_default(),
            };
            if self.parked.remove(id).is_none() {
                self.seen_parked += messages.len() as u64;
            }
            if failed.contains(id) {
                self.parked.insert(id.to_owned(), parked);
                continue;
            }
            let missing: Vec<u64> =
                messages.into_iter().filter(|message| !self.ids_of_any_hub.contains(message)).collect();
            if rejected == 0 {
                self.missing.extend(missing);
            } else if !missing.is_empty() {
                self.reject(Rejected {
                    time: line.timestamp.clone(),
                    kind: parked.kind,
                    flow: parked.flow,
                    by: "redelivery",
                    reason: "after parking".to_owned(),
                    detail: "its flow was deleted, or the hub refused it: see the reason in the rejected queue"
                        .to_owned(),
                });
            }
        }
    }

    /// Number of messages that wait in the parking queue.
    fn parked_now(&self) -> u64 {
        let known: usize = self.parked.values().map(|parked| parked.messages).sum();
        known as u64 + self.parked_ever.saturating_sub(self.seen_parked)
    }

    /// Changes with everything that enters or leaves the parking queue.
    pub fn parking_mark(&self) -> (u64, u64, u64) {
        (self.parked_ever, self.seen_parked, self.parked_now())
    }

    /// Compares with the counts of the parking queue, which were read after `mark`.
    pub fn compare(&mut self, mark: (u64, u64, u64), queues: QueueCounts) {
        let is_empty = queues.parking + queues.dead_letters == 0;
        if mark == self.parking_mark() || !is_empty {
            self.parking_vanished = is_empty;
        }
    }

    /// The numbers for the page. `confirmed`: number of messages that got a 201 from the hubs.
    ///
    /// Lost are messages that a function reports as delivered and no hub confirmed, messages that only a response counts, and
    /// messages that left the parking queue without being in a hub. A line is always written after what it reports, so no
    /// message counts as lost in between.
    pub fn counts(&self, confirmed: u64) -> Counts {
        let parked = self.parked_now();
        let (parked, vanished) = if self.parking_vanished { (0, parked) } else { (parked, 0) };
        let unconfirmed = (self.reported_delivered + self.redelivered).saturating_sub(confirmed);
        Counts {
            accepted: self.accepted,
            in_hub: self.ids.len() as u64,
            repeated: self.arrived - self.ids.len() as u64,
            parked,
            rejected: self.rejected_ever,
            lost: unconfirmed + self.unaccounted + self.missing.len() as u64 + vanished,
        }
    }

    /// Number of events that a partition received.
    pub fn partition(&self, hub: &str, partition: u32) -> u64 {
        self.next.get(&(hub.to_owned(), partition)).copied().unwrap_or_default()
    }

    /// Numbers by kind and flow.
    pub fn flows(&self) -> &BTreeMap<(String, String), FlowCounts> {
        &self.flows
    }

    /// Parked messages, the oldest first.
    pub fn parked(&self) -> Vec<Parked> {
        let mut groups = BTreeMap::<_, Parked>::new();
        for parked in self.parked.values() {
            let row = groups
                .entry((&parked.kind, &parked.flow, &parked.hub, &parked.reason))
                .or_insert_with(|| Parked { messages: 0, ..parked.clone() });
            row.messages += parked.messages;
            row.attempts = row.attempts.max(parked.attempts);
            if parked.since < row.since {
                row.since.clone_from(&parked.since);
            }
        }
        let mut rows: Vec<Parked> = groups.into_values().collect();
        rows.sort_by(|a, b| a.since.cmp(&b.since));
        rows.truncate(MAX_ROWS);
        rows
    }

    /// Rejected events, the newest first.
    pub fn rejected(&self) -> &VecDeque<Rejected> {
        &self.rejected
    }
}

/// The metrics of an invocation's summary lines.
struct Summary {
    delivered: u64,
    parked: u64,
    filtered: u64,
    rejected: u64,
}

impl Summary {
    fn of(line: &Line) -> Self {
        Self {
            delivered: line.count(DELIVERED) + line.count(REDELIVERED),
            parked: line.count(PARKED),
            filtered: line.count(FILTERED),
            rejected: line.count(REJECTED),
        }
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The records of a queue event, with the ids of their messages.
fn records(payload: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let records = payload["Records"].as_array().into_iter().flatten();
    records.map(|record| (record["messageId"].as_str().unwrap_or_default(), record))
}

/// The ids of the failed records in the response to a queue event.
fn failed(response: &Value) -> BTreeSet<&str> {
    let failures = response["batchItemFailures"].as_array().into_iter().flatten();
    failures.filter_map(|failure| failure["itemIdentifier"].as_str()).collect()
}

#[cfg(test)]
mod tests;
