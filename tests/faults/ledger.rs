//! What was sent and answered, compared with what the hubs and the queues hold.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde_json::Value;

use super::aws::unpack;
use super::system::{FLOWS, System};

/// What is promised about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    Good,
    /// Good, in an array with one that is bad: refused together, or each by itself.
    BesideBad,
    /// Must not arrive anywhere.
    Unauthenticated,
    /// Can't be mapped: kept in the rejected queue.
    Bad,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    Webhook,
    Queue,
}

/// What the sender was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    /// The status; 0: no answer.
    Status(u16),
    /// The record was not among the failures.
    Handled,
}

impl Told {
    fn accepted(self) -> bool {
        matches!(self, Self::Handled | Self::Status(200..=299))
    }
}

#[derive(Debug)]
struct Entry {
    flow: usize,
    sort: Sort,
    way: Way,
    told: Told,
}

#[derive(Default)]
pub struct Ledger {
    entries: Mutex<HashMap<String, Entry>>,
    latencies: Mutex<Vec<Duration>>,
    senders_never_repeat: bool,
}

impl Ledger {
    /// `senders_never_repeat`: what was not accepted counts as lost, unless it arrived.
    pub fn new(senders_never_repeat: bool) -> Self {
        Self { senders_never_repeat, ..Self::default() }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap()
    }

    /// `flow` is its place in [`FLOWS`].
    pub fn sent(&self, id: &str, flow: usize, sort: Sort, way: Way) {
        let known = self.entries().insert(id.to_owned(), Entry { flow, sort, way, told: Told::Nothing });
        assert!(known.is_none(), "{id} is sent twice");
    }

    /// A webhook's events were answered with a status, or not at all (0).
    pub fn answered(&self, ids: &[String], status: u16, after: Duration) {
        let mut entries = self.entries();
        let mut good = false;
        for id in ids {
            let entry = entries.get_mut(id).unwrap();
            entry.told = Told::Status(status);
            good |= entry.sort == Sort::Good;
        }
        if good {
            self.latencies.lock().unwrap().push(after);
        }
    }

    /// A queue record was not among the failures of its batch.
    pub fn handled(&self, id: &str) {
        self.entries().get_mut(id).unwrap().told = Told::Handled;
    }

    /// Sent, and accepted, so far.
    pub fn progress(&self) -> (usize, usize) {
        let entries = self.entries();
        (entries.len(), entries.values().filter(|entry| entry.told.accepted()).count())
    }

    /// Accepted for flows of one namespace so far.
    pub fn accepted_for(&self, namespace: usize) -> usize {
        let of_it = |entry: &&Entry| entry.told.accepted() && FLOWS[entry.flow].namespace == namespace;
        self.entries().values().filter(of_it).count()
    }

    /// Compares. `parked`: the ids of messages that are still parked, with the flow that their envelope names.
    pub async fn compare(&self, system: &System, parked: &HashMap<String, String>) -> Report {
        let rejected = rejected_bodies(system).await;
        let (visible, invisible) = system.witness.depth(&system.dead_letters).await;
        let dead_letters = visible + invisible;
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
            *report.answers.entry((entry.way, entry.sort, entry.told.word())).or_default() += 1;
            report.sent += 1;
            match entry.sort {
                Sort::Unauthenticated => {
                    if entry.told.accepted() {
                        let problem = format!("{id} of {flow:?} was told {:?}", entry.told);
                        report.violation(&mut |report| &mut report.unauthenticated, problem);
                    }
                    continue;
                }
                Sort::Bad => {
                    let kept = rejected.contains(id);
                    report.rejected += usize::from(kept);
                    // A webhook's caller was told; a queue record has nobody else.
                    if entry.told == Told::Handled && !kept {
                        report.violation(&mut |report| &mut report.lost, format!("{id}: not in the rejected queue"));
                    }
                    continue;
                }
                Sort::Good | Sort::BesideBad => {}
            }
            let accepted = entry.told.accepted();
            report.accepted += usize::from(accepted);
            report.duplicates += times.saturating_sub(1);
            report.delivered += usize::from(times > 0);
            report.redelivered += usize::from(times > 0 && entry.told == Told::Status(202));
            let still_parked = parked.get(id);
            if let Some(named) = still_parked
                && named != flow.id
            {
                report.violation(&mut |report| &mut report.misrouted, format!("{id} of {flow:?} parked for {named}"));
            }
            report.parked += usize::from(still_parked.is_some() && times == 0);
            if let Told::Status(status @ 400..=499) = entry.told
                && entry.sort == Sort::Good
            {
                let problem = format!("{id} of {flow:?} was told {status}");
                report.violation(&mut |report| &mut report.wrongly_refused, problem);
            }
            report.not_accepted += usize::from(!accepted);
            let must_arrive = accepted || (self.senders_never_repeat && entry.sort == Sort::Good);
            if must_arrive && times == 0 && still_parked.is_none() {
                let problem = format!("{id} of {flow:?} by {:?}, told {:?}", entry.way, entry.told);
                report.violation(&mut |report| &mut report.lost, problem);
            }
        }
        report.dead_letters = dead_letters;
        report.latencies = self.latencies.lock().unwrap().clone();
        report.latencies.sort_unstable();
        report
    }
}

impl Told {
    fn word(self) -> String {
        match self {
            Self::Nothing => "nothing".to_owned(),
            Self::Status(0) => "no answer".to_owned(),
            Self::Status(status) => status.to_string(),
            Self::Handled => "handled".to_owned(),
        }
    }
}

/// Ids of the messages in the parking queue that can be received now, with their flows.
pub async fn parked_messages(system: &System) -> HashMap<String, String> {
    let mut parked = HashMap::new();
    for body in system.witness.bodies(&system.parking, true).await {
        let envelope: Value = serde_json::from_slice(&unpack(&body)).unwrap();
        assert_eq!(envelope["v"], 1);
        for message in envelope["messages"].as_array().unwrap() {
            parked.insert(
                message["id"].as_str().unwrap().to_owned(),
                envelope["flow"].as_str().unwrap_or_default().to_owned(),
            );
        }
    }
    parked
}

/// The marks of bad events in the rejected queue.
async fn rejected_bodies(system: &System) -> HashSet<String> {
    let mut marks = HashSet::new();
    for envelope in system.witness.bodies(&system.rejected, false).await {
        let envelope: Value =
            serde_json::from_str(&envelope).or_else(|_| serde_json::from_slice(&unpack(&envelope))).unwrap();
        let body = String::from_utf8(unpack(envelope["body"].as_str().unwrap())).unwrap();
        // Several in the body of an array.
        let places = body.match_indices("bad-").map(|(place, _)| place);
        marks.extend(places.filter_map(|place| body.get(place..place + super::events::BAD_LENGTH)).map(str::to_owned));
    }
    marks
}

/// What came out.
#[derive(Debug, Default)]
pub struct Report {
    pub sent: usize,
    pub accepted: usize,
    pub not_accepted: usize,
    pub delivered: usize,
    /// Of webhooks answered 202.
    pub redelivered: usize,
    pub parked: usize,
    pub rejected: usize,
    /// Copies beyond the first.
    pub duplicates: usize,
    pub dead_letters: u64,
    pub lost: usize,
    pub misrouted: usize,
    pub unauthenticated: usize,
    /// Good events answered 4xx: their senders won't repeat them.
    pub wrongly_refused: usize,
    /// In a hub, and sent by nobody.
    pub unknown: usize,
    answers: BTreeMap<(Way, Sort, String), usize>,
    /// Of webhooks with good events, in their order.
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
        let dead_letters = usize::try_from(self.dead_letters).unwrap_or(usize::MAX);
        self.lost + self.misrouted + self.unauthenticated + self.wrongly_refused + self.unknown + dead_letters
    }

    /// Answers of webhooks with good events.
    pub fn answers(&self, status: u16) -> usize {
        self.answers.get(&(Way::Webhook, Sort::Good, status.to_string())).copied().unwrap_or_default()
    }
}

/// The smallest value that so many percent of `sorted` do not exceed.
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
            ("dead letters", usize::try_from(self.dead_letters).unwrap_or(usize::MAX)),
            ("lost", self.lost),
            ("misrouted", self.misrouted),
            ("unauthenticated", self.unauthenticated),
            ("wrongly refused", self.wrongly_refused),
            ("unknown", self.unknown),
        ] {
            writeln!(f, "{name:24}{count:>8}")?;
        }
        for ((way, sort, told), count) in &self.answers {
            writeln!(f, "{:24}{count:>8}", format!("  {way:?} {sort:?}: {told}"))?;
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
