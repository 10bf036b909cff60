//! The events that were sent and the responses to them, compared with the contents of the hubs and the queues.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use local::queue_source::{Cause, Repeat};
use local::runner::InvokeError;
use serde_json::Value;

use super::aws::SQS;
use super::gate::LostResponse;
use super::parked::{contents, unpack};
use super::system::{FLOWS, System};

/// Sort of an event, by the promise for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    Valid,
    /// Valid, in an array with an invalid event: refused together, or each alone.
    WithInvalid,
    /// Must not arrive anywhere.
    Unauthenticated,
    /// Can't be mapped: stored in the rejected queue.
    Invalid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    Webhook,
    Queue,
    /// Parked from the beginning.
    Parked,
}

/// Last response that the sender received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LastResponse {
    Nothing,
    /// The status. 0: no response.
    Status(u16),
    /// The record was not among the failures.
    Handled,
}

impl LastResponse {
    fn accepted(self) -> bool {
        matches!(self, Self::Handled | Self::Status(200..=299))
    }
}

#[derive(Debug)]
struct Entry {
    flow: usize,
    sort: Sort,
    way: Way,
    response: LastResponse,
}

#[derive(Default)]
pub struct Ledger {
    entries: Mutex<HashMap<String, Entry>>,
    latencies: Mutex<Vec<Duration>>,
    senders_never_repeat: bool,
    /// Number of incidents after which one more copy is allowed, by event.
    allowed: Mutex<HashMap<String, usize>>,
    /// The same, by cause.
    causes: Mutex<BTreeMap<&'static str, usize>>,
}

impl Ledger {
    /// `senders_never_repeat`: events that were not accepted count as lost, unless they arrived.
    pub fn new(senders_never_repeat: bool) -> Self {
        Self { senders_never_repeat, ..Self::default() }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap()
    }

    /// Notes an event that is sent. `flow` is its place in [`FLOWS`].
    pub fn sent(&self, id: &str, flow: usize, sort: Sort, way: Way) {
        let known = self.entries().insert(id.to_owned(), Entry { flow, sort, way, response: LastResponse::Nothing });
        assert!(known.is_none(), "{id} is sent twice");
    }

    /// Notes the status of a webhook's response, or 0 without a response.
    pub fn answered(&self, ids: &[String], status: u16, after: Duration) {
        let mut entries = self.entries();
        let mut good = false;
        for id in ids {
            let entry = entries.get_mut(id).unwrap();
            entry.response = LastResponse::Status(status);
            good |= entry.sort == Sort::Valid;
        }
        if good {
            self.latencies.lock().unwrap().push(after);
        }
    }

    /// Notes a queue record that was not among the failures of its batch.
    pub fn handled(&self, id: &str) {
        self.entries().get_mut(id).unwrap().response = LastResponse::Handled;
    }

    /// Notes an event that is parked from the beginning, and so accepted.
    pub fn parked(&self, id: &str, flow: usize) {
        self.sent(id, flow, Sort::Valid, Way::Parked);
        self.handled(id);
    }

    /// Notes an incident after which each of these events may be stored once more: a response was lost, its process was killed,
    /// or a queue delivered it twice.
    pub fn may_repeat<'i>(&self, cause: &'static str, ids: impl IntoIterator<Item = &'i str>) {
        let (mut allowed, mut count) = (self.allowed.lock().unwrap(), 0);
        for id in ids {
            *allowed.entry(id.to_owned()).or_default() += 1;
            count += 1;
        }
        if count > 0 {
            *self.causes.lock().unwrap().entry(cause).or_default() += count;
        }
    }

    /// Collects the incidents that the emulators, the gates and the mapping have counted.
    ///
    /// The counts are exact for each event, with three exceptions, which allow a copy too many and never one too few. A response counts as lost
    /// also when the process that waited for it was killed, together with its invocation. A message counts as sent when the
    /// proxy passed it on, also if the queue then refused it. An invocation without a response allows a copy of each of its
    /// events, also of those that it had not begun to send.
    fn collect(&self, system: &System) {
        // A server may finish a request shortly after its client is gone.
        const LATE: Duration = Duration::from_secs(3);
        for (hub, gate) in system.hubs.iter().zip(&system.gates) {
            for LostResponse { peer, asked, ended } in gate.take_lost() {
                let events = hub.stored_by(peer, asked, ended + LATE);
                let ids = events.iter().filter_map(|event| event.properties["cloudEvents:id"].as_str());
                self.may_repeat("hub: response lost", ids);
            }
        }
        let lost = system.aws_gates[SQS].take_lost().into_iter();
        let lost = lost.flat_map(|lost| system.proxy.sent_by(lost.peer, lost.asked, lost.ended + LATE));
        self.bodies_may_repeat("queue: response lost", lost.chain(system.proxy.take_broken_off()));
        let repeats = system.sqs.take_repeats().into_iter().map(|body| body.to_string());
        self.bodies_may_repeat("queue: response lost or delivered twice", repeats);
        for Repeat { cause, bodies } in system.repeats() {
            let cause = match cause {
                Cause::Invocation(InvokeError::Exited | InvokeError::Init(_)) => "redelivery: killed",
                Cause::Invocation(InvokeError::Timeout) => "redelivery: out of time",
                // A failed invocation is never necessary, so it does not explain a copy.
                Cause::Invocation(InvokeError::Function { .. }) => continue,
                Cause::DeliveredTwice => "queue: delivered while it was being handled",
                Cause::NotDeleted => "queue: not deleted",
            };
            self.bodies_may_repeat(cause, bodies);
        }
    }

    fn bodies_may_repeat(&self, cause: &'static str, bodies: impl IntoIterator<Item = String>) {
        for body in bodies {
            // Bodies of the rejected queue are not envelopes.
            let Some((_, ids)) = contents(&body) else { continue };
            self.may_repeat(cause, ids.iter().map(String::as_str));
        }
    }

    /// Numbers of events that were sent and accepted so far.
    pub fn progress(&self) -> (usize, usize) {
        let entries = self.entries();
        (entries.len(), entries.values().filter(|entry| entry.response.accepted()).count())
    }

    /// Number of events accepted for flows of one namespace so far.
    pub fn accepted_for(&self, namespace: usize) -> usize {
        let of_it = |entry: &&Entry| entry.response.accepted() && FLOWS[entry.flow].namespace == namespace;
        self.entries().values().filter(of_it).count()
    }

    /// Compares the events with the hubs and the queues. `parked` has the ids of messages that are still parked, with the flow that
    /// their envelope names.
    pub fn compare(&self, system: &System, parked: &HashMap<String, String>) -> Report {
        let rejected = rejected_bodies(system);
        self.collect(system);
        let allowed = self.allowed.lock().unwrap();
        let entries = self.entries();
        let mut report = Report::default();
        let mut arrived: HashMap<&str, usize> = HashMap::new();
        for place in FLOWS.iter().map(|flow| (flow.namespace, flow.hub)).collect::<HashSet<_>>() {
            for event in system.hubs[place.0].events(place.1) {
                let id = event.properties["cloudEvents:id"].as_str().unwrap_or_default();
                let Some((id, entry)) = entries.get_key_value(id) else {
                    report.violation(&mut |report| &mut report.unknown, format!("{id} in {place:?} was never sent"));
                    continue;
                };
                let flow = &FLOWS[entry.flow];
                match entry.sort {
                    Sort::Unauthenticated => {
                        report.violation(&mut |report| &mut report.unauthenticated, format!("{id} in {place:?}"));
                    }
                    _ if (flow.namespace, flow.hub) != place => {
                        report.violation(&mut |report| &mut report.misrouted, format!("{id} of {flow:?} in {place:?}"));
                    }
                    _ => *arrived.entry(id).or_default() += 1,
                }
            }
        }
        for (id, entry) in entries.iter() {
            let flow = &FLOWS[entry.flow];
            let times = arrived.get(id.as_str()).copied().unwrap_or_default();
            *report.responses.entry((entry.way, entry.sort, entry.response.word())).or_default() += 1;
            report.sent += 1;
            match entry.sort {
                Sort::Unauthenticated => {
                    if entry.response.accepted() {
                        let problem = format!("{id} of {flow:?} got {:?}", entry.response);
                        report.violation(&mut |report| &mut report.unauthenticated, problem);
                    }
                    continue;
                }
                Sort::Invalid => {
                    let kept = rejected.contains(id);
                    report.rejected += usize::from(kept);
                    // The sender of a webhook received the error; for a queue record there is only the rejected queue.
                    if entry.response == LastResponse::Handled && !kept {
                        report.violation(&mut |report| &mut report.lost, format!("{id}: not in the rejected queue"));
                    }
                    continue;
                }
                Sort::Valid | Sort::WithInvalid => {}
            }
            let accepted = entry.response.accepted();
            report.accepted += usize::from(accepted);
            report.duplicates += times.saturating_sub(1);
            report.max_copies = report.max_copies.max(times);
            let most = 1 + allowed.get(id).copied().unwrap_or_default();
            if times > most {
                let problem = format!("{id} of {flow:?} has {times} copies, {most} at most are explained");
                report.violation(&mut |report| &mut report.unexplained, problem);
            }
            report.delivered += usize::from(times > 0);
            report.redelivered += usize::from(times > 0 && entry.response == LastResponse::Status(202));
            let still_parked = parked.get(id);
            if let Some(named) = still_parked
                && named != flow.id
            {
                report.violation(&mut |report| &mut report.misrouted, format!("{id} of {flow:?} parked for {named}"));
            }
            report.parked += usize::from(still_parked.is_some() && times == 0);
            if let LastResponse::Status(status @ 400..=499) = entry.response
                && entry.sort == Sort::Valid
            {
                let problem = format!("{id} of {flow:?} got status {status}");
                report.violation(&mut |report| &mut report.wrongly_refused, problem);
            }
            report.not_accepted += usize::from(!accepted);
            let must_arrive = accepted || (self.senders_never_repeat && entry.sort == Sort::Valid);
            if must_arrive && times == 0 && still_parked.is_none() {
                let problem = format!("{id} of {flow:?} by {:?}, response {:?}", entry.way, entry.response);
                report.violation(&mut |report| &mut report.lost, problem);
            }
        }
        report.dead_letters = system.sqs.depth(&system.dead_letters).total();
        report.causes = self.causes.lock().unwrap().clone();
        report.latencies = self.latencies.lock().unwrap().clone();
        report.latencies.sort_unstable();
        report
    }
}

impl LastResponse {
    fn word(self) -> String {
        match self {
            Self::Nothing => "nothing".to_owned(),
            Self::Status(0) => "no response".to_owned(),
            Self::Status(status) => status.to_string(),
            Self::Handled => "handled".to_owned(),
        }
    }
}

/// Ids of the messages in the parking queue, with their flows.
pub fn parked_messages(system: &System) -> HashMap<String, String> {
    let mut parked = HashMap::new();
    for message in system.sqs.messages(&system.parking) {
        let Some((flow, ids)) = contents(&message.body) else { continue };
        parked.extend(ids.into_iter().map(|id| (id, flow.clone())));
    }
    parked
}

/// The marks of invalid events in the rejected queue.
fn rejected_bodies(system: &System) -> HashSet<String> {
    let mut marks = HashSet::new();
    for message in system.sqs.messages(&system.rejected) {
        let envelope = &*message.body;
        let envelope: Value =
            serde_json::from_str(envelope).or_else(|_| serde_json::from_slice(&unpack(envelope))).unwrap();
        let body = String::from_utf8(unpack(envelope["body"].as_str().unwrap())).unwrap();
        // The body of an array may have several marks.
        let places = body.match_indices("bad-").map(|(place, _)| place);
        marks.extend(places.filter_map(|place| body.get(place..place + super::events::BAD_LENGTH)).map(str::to_owned));
    }
    marks
}

/// Maximum average number of copies of an event, even if all of them are explained.
pub const MAX_AVERAGE_COPIES: f64 = 1.1;

/// Result of a comparison.
#[derive(Debug, Default)]
pub struct Report {
    pub sent: usize,
    pub accepted: usize,
    pub not_accepted: usize,
    pub delivered: usize,
    /// Delivered events of webhooks that got 202.
    pub redelivered: usize,
    pub parked: usize,
    pub rejected: usize,
    /// Copies beyond the first.
    pub duplicates: usize,
    /// Maximum number of copies of one event.
    pub max_copies: usize,
    /// Events with more copies than lost responses, kills and duplicate deliveries explain.
    pub unexplained: usize,
    pub dead_letters: usize,
    pub lost: usize,
    pub misrouted: usize,
    pub unauthenticated: usize,
    /// Valid events that got 4xx: their senders do not retry them.
    pub wrongly_refused: usize,
    /// Events in a hub that were not sent.
    pub unknown: usize,
    responses: BTreeMap<(Way, Sort, String), usize>,
    /// Number of copies that each cause explains.
    causes: BTreeMap<&'static str, usize>,
    /// Latencies of webhooks with valid events, sorted.
    latencies: Vec<Duration>,
    examples: Vec<String>,
}

impl Report {
    fn violation(&mut self, count: &mut dyn FnMut(&mut Self) -> &mut usize, example: String) {
        const MOST_EXAMPLES: usize = 20;
        *count(self) += 1;
        if self.examples.len() < MOST_EXAMPLES {
            self.examples.push(example);
        }
    }

    pub fn violations(&self) -> usize {
        self.lost
            + self.misrouted
            + self.unauthenticated
            + self.wrongly_refused
            + self.unknown
            + self.unexplained
            + self.dead_letters
    }

    /// Average number of copies of an event that arrived.
    pub fn average_copies(&self) -> f64 {
        (self.delivered + self.duplicates) as f64 / self.delivered.max(1) as f64
    }

    /// Whether every promise was kept, no message is parked any more, and few events have several copies.
    pub fn kept(&self) -> bool {
        self.violations() == 0 && self.parked == 0 && self.average_copies() <= MAX_AVERAGE_COPIES
    }

    /// Number of webhooks' valid events that got this status.
    pub fn responses(&self, status: u16) -> usize {
        self.responses.get(&(Way::Webhook, Sort::Valid, status.to_string())).copied().unwrap_or_default()
    }
}

/// The smallest value that `percent` percent of `sorted` do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in [
            ("sent", self.sent),
            ("accepted", self.accepted),
            ("not accepted", self.not_accepted),
            ("delivered", self.delivered),
            ("parked and redelivered", self.redelivered),
            ("still parked", self.parked),
            ("rejected", self.rejected),
            ("duplicates", self.duplicates),
            ("most copies of one", self.max_copies),
            ("with unexplained copies", self.unexplained),
            ("dead letters", self.dead_letters),
            ("lost", self.lost),
            ("misrouted", self.misrouted),
            ("unauthenticated", self.unauthenticated),
            ("wrongly refused", self.wrongly_refused),
            ("unknown", self.unknown),
        ] {
            writeln!(f, "{name:24}{count:>8}")?;
        }
        writeln!(f, "{:24}{:>8.3}", "copies on average", self.average_copies())?;
        for (cause, count) in &self.causes {
            writeln!(f, "{:46}{count:>8} copies allowed", format!("  {cause}"))?;
        }
        for ((way, sort, response), count) in &self.responses {
            writeln!(f, "{:24}{count:>8}", format!("  {way:?} {sort:?}: {response}"))?;
        }
        let [p50, p99] = [50, 99].map(|percent| percentile(&self.latencies, percent).as_millis());
        let max = percentile(&self.latencies, 100).as_millis();
        writeln!(f, "webhook latency         p50 {p50} ms, p99 {p99} ms, max {max} ms")?;
        for example in &self.examples {
            writeln!(f, "violation: {example}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let sorted: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&sorted, 50), Duration::from_millis(100));
        assert_eq!(percentile(&sorted, 99), Duration::from_millis(198));
        assert_eq!(percentile(&sorted, 100), Duration::from_millis(200));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
