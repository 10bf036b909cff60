//! What became of every message, as one can tell from outside: the functions' answers and log lines on one side, what the
//! hubs and queues hold on the other. It lives as long as the system; of single events it keeps the newest.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::DEFAULT_FLOW;
use shared::contract::parked::{Envelope, unpacked};

use crate::emulator::{Emulator, StoredEvent};
use crate::runner::{Observed, What};

/// Events that are kept to be shown.
const MOST_ARRIVALS: usize = 500;
/// Bytes of a body that are shown.
const MOST_BODY: usize = 16 * 1024;
/// Rows of a list.
pub const MOST_ROWS: usize = 100;
/// Paths are the callers' choice: what comes beyond counts for [`OTHERS`].
const MOST_FLOWS: usize = 200;
const OTHERS: &str = "(others)";
/// Of a batch that holds records of several, whose messages the functions count together.
const SEVERAL: &str = "(several)";
/// Invocations of which only the answer or only the line is known. A killed instance leaves one for good.
const MOST_HALVES: usize = 1_000;
const ID: &str = "cloudEvents:id";

/// An event in a hub, by its order of arrival.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Arrival {
    /// Counts from 0.
    pub number: u64,
    #[serde(flatten)]
    event: StoredEvent,
    /// The whole body's, in bytes; `body` may be its first part.
    body_bytes: usize,
}

#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowCounts {
    /// Requests.
    webhooks: u64,
    /// Queue records that were handled.
    records: u64,
    /// Messages that are delivered or parked.
    accepted: u64,
    /// Events that the flow's options keep back.
    filtered: u64,
    /// Events that can never be delivered.
    rejected: u64,
    /// Requests answered 4xx or 5xx of which nothing was kept.
    refused: u64,
}

/// Messages that wait, of one envelope or of several that wait alike.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Parked {
    kind: String,
    flow: String,
    hub: String,
    messages: usize,
    reason: String,
    /// The first one, in RFC 3339.
    since: String,
    /// How often redelivery tried, at most.
    attempts: u64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejected {
    /// RFC 3339.
    time: String,
    kind: String,
    flow: String,
    by: &'static str,
    reason: String,
    detail: String,
}

/// In messages, but for `rejected`, which are events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// A sender was told 2xx for them, or their queue record is handled.
    pub accepted: u64,
    /// In the hubs, by distinct id.
    pub in_hub: u64,
    /// In the hubs once more.
    pub repeated: u64,
    pub parked: u64,
    pub rejected: u64,
    pub lost: u64,
}

/// Messages in SQS, whether visible or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueCounts {
    pub parking: u64,
    pub dead_letters: u64,
    pub rejected: u64,
}

/// A log line that sums an invocation up, or tells of an event that it rejected.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    timestamp: String,
    message: String,
    request_id: String,
    /// As many its invocation leaves; 0 is one.
    lines: u64,
    message_id: String,
    reason: String,
    detail: String,
    #[serde(rename = "Received")]
    received: u64,
    #[serde(rename = "Filtered")]
    filtered: u64,
    #[serde(rename = "Rejected")]
    rejected: u64,
    #[serde(rename = "Delivered", alias = "Redelivered")]
    delivered: u64,
    #[serde(rename = "Parked")]
    parked: u64,
}

impl Line {
    fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.filtered += other.filtered;
        self.rejected += other.rejected;
        self.delivered += other.delivered;
        self.parked += other.parked;
    }
}

/// What is known so far of an invocation.
#[derive(Default)]
struct Half {
    rejects: Vec<Line>,
    line: Option<Line>,
    /// Lines so far.
    lines: u64,
    answered: Option<(Value, Value)>,
}

#[derive(Default)]
pub struct Ledger {
    next: BTreeMap<(String, u32), u64>,
    arrivals: VecDeque<Arrival>,
    arrived: u64,
    /// Hashes of hub and id.
    ids: HashSet<u64>,
    halves: HashMap<String, Half>,
    halves_by_age: VecDeque<String>,
    flows: BTreeMap<(String, String), FlowCounts>,
    accepted: u64,
    /// Messages that functions report as delivered.
    told_delivered: u64,
    /// The same of redelivery.
    redelivered: u64,
    /// Messages that answers count and lines do not.
    unaccounted: u64,
    parked_ever: u64,
    /// Messages of the envelopes that redelivery was given.
    seen_parked: u64,
    /// Envelopes that come again, by the id of their queue message.
    parked: BTreeMap<String, Parked>,
    /// The ids alone: a flow may lead to another hub by the time that its parked messages are sent.
    ids_of_any_hub: HashSet<u64>,
    /// Messages of deleted envelopes that are neither in a hub nor rejected.
    missing: HashSet<u64>,
    rejected: VecDeque<Rejected>,
    rejected_ever: u64,
    /// The parking queue is empty though messages should be there.
    parking_vanished: bool,
}

impl Ledger {
    /// Takes in what the hubs hold by now.
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
            event.body.truncate(event.body.floor_char_boundary(MOST_BODY));
            self.arrivals.push_back(Arrival { number: self.arrived, event, body_bytes });
            self.arrived += 1;
        }
        self.arrivals.drain(..self.arrivals.len().saturating_sub(MOST_ARRIVALS));
    }

    /// What arrived from `number` on, as far as it is kept, and the number that comes next.
    pub fn arrivals(&self, number: u64) -> (Vec<Arrival>, u64) {
        (self.arrivals.iter().filter(|arrival| arrival.number >= number).cloned().collect(), self.arrived)
    }

    /// Takes in what an instance did. The hubs' events must have been taken in after it was told.
    pub fn observe(&mut self, observed: Observed) {
        let Observed { function, what } = observed;
        let request_id = match what {
            What::Wrote(text) => {
                let Ok(line) = serde_json::from_str::<Line>(&text) else { return };
                let request_id = line.request_id.clone();
                match line.message.as_str() {
                    "an event can't be delivered" => self.half(&request_id).rejects.push(line),
                    "webhook answered" | "queue batch handled" | "parked batch handled" => {
                        // A batch leaves one for each flow.
                        let half = self.half(&request_id);
                        half.lines += 1;
                        match &mut half.line {
                            Some(sum) => sum.add(&line),
                            none => *none = Some(line),
                        }
                    }
                    _ => return,
                }
                request_id
            }
            What::Answered { request_id, payload, answer } => {
                let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or_default();
                let (mut payload, answer) = (read(&payload), read(&answer));
                if let Some(body) = payload.get_mut("body") {
                    // A webhook's, which can be large and tells nothing here.
                    *body = Value::Null;
                }
                self.half(&request_id).answered = Some((payload, answer));
                request_id
            }
        };
        let whole = |half: &Half| {
            half.answered.is_some() && half.line.as_ref().is_some_and(|line| half.lines >= line.lines.max(1))
        };
        if !self.halves.get(&request_id).is_some_and(whole) {
            return;
        }
        let Some(Half { rejects, line: Some(line), answered: Some((payload, answer)), .. }) =
            self.halves.remove(&request_id)
        else {
            return;
        };
        match line.message.as_str() {
            "webhook answered" => self.webhook(&function, &line, &payload, &answer),
            "queue batch handled" => self.batch(&function, &line, &rejects, &payload, &answer),
            _ => self.redelivery(&line, &payload, &answer),
        }
    }

    fn half(&mut self, request_id: &str) -> &mut Half {
        if !self.halves.contains_key(request_id) {
            self.halves_by_age.push_back(request_id.to_owned());
            if self.halves_by_age.len() > MOST_HALVES
                && let Some(oldest) = self.halves_by_age.pop_front()
            {
                self.halves.remove(&oldest);
            }
        }
        self.halves.entry(request_id.to_owned()).or_default()
    }

    fn flow(&mut self, kind: &str, flow: &str) -> &mut FlowCounts {
        let key = (kind.to_owned(), flow.to_owned());
        let key = if self.flows.len() < MOST_FLOWS || self.flows.contains_key(&key) {
            key
        } else {
            (kind.to_owned(), OTHERS.to_owned())
        };
        self.flows.entry(key).or_default()
    }

    fn reject(&mut self, rejected: Rejected) {
        self.rejected.push_front(rejected);
        self.rejected.truncate(MOST_ROWS);
    }

    fn webhook(&mut self, kind: &str, line: &Line, payload: &Value, answer: &Value) {
        let flow = payload["pathParameters"]["flow"].as_str().unwrap_or(DEFAULT_FLOW);
        let status = answer["statusCode"].as_u64().unwrap_or_default();
        let body: Value = answer["body"].as_str().and_then(|body| serde_json::from_str(body).ok()).unwrap_or_default();
        let is_success = (200..300).contains(&status);
        let accepted = if is_success { body["messages"].as_u64().unwrap_or_default() } else { 0 };
        let counts = self.flow(kind, flow);
        counts.webhooks += 1;
        counts.accepted += accepted;
        counts.filtered += line.filtered;
        counts.rejected += line.rejected;
        counts.refused += u64::from(!is_success && line.rejected == 0);
        self.accepted += accepted;
        self.unaccounted += accepted.saturating_sub(line.delivered + line.parked);
        self.told_delivered += line.delivered;
        self.parked_ever += line.parked;
        self.rejected_ever += line.rejected;
        if line.rejected > 0 {
            let detail = match body["detail"].as_str() {
                Some(detail) => detail.to_owned(),
                None => format!("{} of {} elements", line.rejected, line.received),
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

    fn batch(&mut self, kind: &str, line: &Line, rejects: &[Line], payload: &Value, answer: &Value) {
        let failed = failed(answer);
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
        let accepted = line.delivered + line.parked;
        let counts = self.flow(kind, &flow);
        counts.accepted += accepted;
        counts.filtered += line.filtered;
        counts.rejected += line.rejected;
        self.accepted += accepted;
        self.told_delivered += line.delivered;
        self.parked_ever += line.parked;
        self.rejected_ever += line.rejected;
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

    fn redelivery(&mut self, line: &Line, payload: &Value, answer: &Value) {
        self.redelivered += line.delivered;
        self.rejected_ever += line.rejected;
        let failed = failed(answer);
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
            if line.rejected == 0 {
                self.missing.extend(missing);
            } else if !missing.is_empty() {
                self.reject(Rejected {
                    time: line.timestamp.clone(),
                    kind: parked.kind,
                    flow: parked.flow,
                    by: "redelivery",
                    reason: "after parking".to_owned(),
                    detail: "its flow was deleted, or the hub refused it: the rejected queue holds the reason"
                        .to_owned(),
                });
            }
        }
    }

    fn parked_now(&self) -> u64 {
        let known: usize = self.parked.values().map(|parked| parked.messages).sum();
        known as u64 + self.parked_ever.saturating_sub(self.seen_parked)
    }

    /// Changes with everything that enters or leaves the parking queue.
    pub fn parking_mark(&self) -> (u64, u64, u64) {
        (self.parked_ever, self.seen_parked, self.parked_now())
    }

    /// Compares with the parking queue, which was looked at after `mark` was taken.
    pub fn compare(&mut self, mark: (u64, u64, u64), queues: QueueCounts) {
        let is_empty = queues.parking + queues.dead_letters == 0;
        if mark == self.parking_mark() || !is_empty {
            self.parking_vanished = is_empty;
        }
    }

    /// `confirmed`: messages that the hubs answered 201.
    ///
    /// Lost is what a function reports as delivered and no hub confirmed; what an answer counts and nobody knows of; what
    /// left the parking queue for nowhere. A line always comes after what it tells, so that none of it is lost for a moment.
    pub fn counts(&self, confirmed: u64) -> Counts {
        let parked = self.parked_now();
        let (parked, vanished) = if self.parking_vanished { (0, parked) } else { (parked, 0) };
        let unconfirmed = (self.told_delivered + self.redelivered).saturating_sub(confirmed);
        Counts {
            accepted: self.accepted,
            in_hub: self.ids.len() as u64,
            repeated: self.arrived - self.ids.len() as u64,
            parked,
            rejected: self.rejected_ever,
            lost: unconfirmed + self.unaccounted + self.missing.len() as u64 + vanished,
        }
    }

    /// By hub and partition.
    pub fn partition(&self, hub: &str, partition: u32) -> u64 {
        self.next.get(&(hub.to_owned(), partition)).copied().unwrap_or_default()
    }

    /// By kind and flow.
    pub fn flows(&self) -> &BTreeMap<(String, String), FlowCounts> {
        &self.flows
    }

    /// The oldest come first.
    pub fn parked(&self) -> Vec<Parked> {
        let mut alike = BTreeMap::<_, Parked>::new();
        for parked in self.parked.values() {
            let row = alike
                .entry((&parked.kind, &parked.flow, &parked.hub, &parked.reason))
                .or_insert_with(|| Parked { messages: 0, ..parked.clone() });
            row.messages += parked.messages;
            row.attempts = row.attempts.max(parked.attempts);
            if parked.since < row.since {
                row.since.clone_from(&parked.since);
            }
        }
        let mut rows: Vec<Parked> = alike.into_values().collect();
        rows.sort_by(|a, b| a.since.cmp(&b.since));
        rows.truncate(MOST_ROWS);
        rows
    }

    /// The newest come first.
    pub fn rejected(&self) -> &VecDeque<Rejected> {
        &self.rejected
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// By the ids of their messages.
fn records(payload: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let records = payload["Records"].as_array().into_iter().flatten();
    records.map(|record| (record["messageId"].as_str().unwrap_or_default(), record))
}

/// The ids that a batch's answer names.
fn failed(answer: &Value) -> BTreeSet<&str> {
    let failures = answer["batchItemFailures"].as_array().into_iter().flatten();
    failures.filter_map(|failure| failure["itemIdentifier"].as_str()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use shared::contract::codec::pack;

    use super::*;

    fn tell(ledger: &mut Ledger, function: &str, line: Value, payload: Value, answer: Value) {
        let told = |what| Observed { function: function.to_owned(), what };
        let request_id = line["request_id"].as_str().unwrap().to_owned();
        let (payload, answer) = (payload.to_string().into_bytes(), answer.to_string().into_bytes());
        // In this order or the other.
        let mut halves = [What::Wrote(line.to_string()), What::Answered { request_id, payload, answer }];
        if ledger.accepted.is_multiple_of(2) {
            halves.reverse();
        }
        for half in halves {
            ledger.observe(told(half));
        }
    }

    /// A webhook whose sender was told of `promised` messages.
    fn webhook(ledger: &mut Ledger, promised: u64, delivered: u64, parked: u64) {
        let line = json!({
            "message": "webhook answered", "request_id": "w", "Delivered": delivered, "Parked": parked,
        });
        let body = json!({ "status": "delivered", "messages": promised }).to_string();
        tell(ledger, "audience-change", line, json!({ "body": "{}" }), json!({ "statusCode": 200, "body": body }));
    }

    /// Redelivery had one envelope with the message `id`.
    fn redelivery(ledger: &mut Ledger, id: &str, is_handled: bool, delivered: u64, rejected: u64) {
        let envelope = json!({
            "v": 1, "kind": "audience-change", "flow": "default", "hub": "events", "host": "h", "reason": "throttled",
            "firstSeen": "2026-01-01T00:00:00Z",
            "messages": [{ "id": id, "subject": "s", "body": "{}", "properties": {} }],
        });
        let record = json!({
            "messageId": "m", "body": pack(envelope.to_string().as_bytes()), "attributes": { "ApproximateReceiveCount": "2" },
        });
        let failures = if is_handled { json!([]) } else { json!([{ "itemIdentifier": "m" }]) };
        let line = json!({
            "message": "parked batch handled", "request_id": "r", "Redelivered": delivered, "Rejected": rejected,
        });
        tell(ledger, "redelivery", line, json!({ "Records": [record] }), json!({ "batchItemFailures": failures }));
    }

    #[test]
    fn a_batch_counts_once_all_its_lines_are_there() {
        let mut ledger = Ledger::default();
        let line = |delivered: u64| {
            json!({
                "message": "queue batch handled", "request_id": "q", "lines": 2, "Received": delivered, "Delivered": delivered,
            })
        };
        let (payload, answer) = (json!({ "Records": [] }), json!({ "batchItemFailures": [] }));
        tell(&mut ledger, "audience-change", line(3), payload, answer);
        assert_eq!(ledger.counts(0).accepted, 0, "the other flow's line is still to come");
        let what = What::Wrote(line(4).to_string());
        ledger.observe(Observed { function: "audience-change".to_owned(), what });
        assert_eq!(ledger.counts(7).accepted, 7);
    }

    #[test]
    fn what_no_hub_confirmed_is_lost() {
        let mut ledger = Ledger::default();
        webhook(&mut ledger, 2, 2, 0);
        assert_eq!((ledger.counts(2).accepted, ledger.counts(2).lost), (2, 0));
        assert_eq!(ledger.counts(1).lost, 1);
    }

    #[test]
    fn what_a_sender_was_told_and_nobody_knows_of_is_lost() {
        let mut ledger = Ledger::default();
        webhook(&mut ledger, 3, 1, 1);
        let counts = ledger.counts(1);
        assert_eq!((counts.accepted, counts.parked, counts.lost), (3, 1, 1));
    }

    #[test]
    fn what_is_parked_is_counted_until_redelivery_handled_it() {
        let mut ledger = Ledger::default();
        webhook(&mut ledger, 1, 0, 1);
        assert_eq!((ledger.counts(0).parked, ledger.parked().len()), (1, 0), "redelivery has not seen it");
        redelivery(&mut ledger, "a", false, 0, 0);
        assert_eq!((ledger.counts(0).parked, ledger.counts(0).lost), (1, 0));
        assert_eq!((ledger.parked()[0].messages, ledger.parked()[0].attempts), (1, 2));
        redelivery(&mut ledger, "a", true, 0, 1);
        let counts = ledger.counts(0);
        assert_eq!((counts.parked, counts.rejected, counts.lost), (0, 1, 0));
        assert_eq!(ledger.rejected()[0].by, "redelivery");
    }

    #[test]
    fn what_left_the_parking_queue_for_nowhere_is_lost() {
        let mut ledger = Ledger::default();
        webhook(&mut ledger, 1, 0, 1);
        redelivery(&mut ledger, "a", true, 0, 0);
        assert_eq!((ledger.counts(0).parked, ledger.counts(0).lost), (0, 1));
        ledger.ids_of_any_hub.insert(hash("b"));
        ledger.arrived = 1;
        webhook(&mut ledger, 1, 0, 1);
        redelivery(&mut ledger, "b", true, 0, 0);
        assert_eq!((ledger.counts(0).parked, ledger.counts(0).lost), (0, 1), "the other one is in its hub");
    }

    #[test]
    fn what_the_parking_queue_no_longer_has_is_lost() {
        let mut ledger = Ledger::default();
        let queues = |parking| QueueCounts { parking, dead_letters: 0, rejected: 0 };
        let before = ledger.parking_mark();
        webhook(&mut ledger, 1, 0, 1);
        ledger.compare(before, queues(0));
        assert_eq!((ledger.counts(0).parked, ledger.counts(0).lost), (1, 0), "it came after the look");
        ledger.compare(ledger.parking_mark(), queues(1));
        assert_eq!((ledger.counts(0).parked, ledger.counts(0).lost), (1, 0));
        ledger.compare(ledger.parking_mark(), queues(0));
        assert_eq!((ledger.counts(0).parked, ledger.counts(0).lost), (0, 1));
    }

    #[test]
    fn a_killed_instance_leaves_nothing_for_good() {
        let mut ledger = Ledger::default();
        for n in 0..2 * MOST_HALVES {
            let line = json!({ "message": "webhook answered", "request_id": n.to_string() }).to_string();
            ledger.observe(Observed { function: "audience-change".to_owned(), what: What::Wrote(line) });
        }
        assert_eq!(ledger.halves.len(), MOST_HALVES);
    }
}
