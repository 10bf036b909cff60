//! The queue trigger: batches of SQS records, each a raw event, answered with exactly the records that must come again.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use aws_lambda_events::sqs::SqsBatchResponse;
use futures_util::future::{join, join_all};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::contract::metrics;
use crate::contract::rejected::{RejectedEvent, Source};
use crate::event_hubs::response::Cause;
use crate::event_hubs::{Outcome, Report};
use crate::flow::Flow;
use crate::flow::flows::NoFlow;
use crate::kind::{Reason, Rejection};
use crate::message::Message;
use crate::pipeline::Pipeline;
use crate::pipeline::mapping::{MAX_MESSAGES_BYTES, Mapping};
use crate::pipeline::telemetry::{Counts, Line};
use crate::trigger::deadline::Invocation;
use crate::trigger::deadline::{ANSWERING, sending_ends};
use crate::trigger::sqs_event::{Record, come_again};

/// As long one flow that can't be looked up may keep the others waiting.
const LOOKING_UP: Duration = Duration::from_secs(3);
/// As long one rejected event that can't be stored may keep the good ones waiting.
const KEEPING: Duration = Duration::from_secs(5);
/// As many rejected records get a log line of their own.
const MOST_LINES: usize = 10;

/// Handles one batch.
pub async fn handle<O: DeserializeOwned + Default>(
    pipeline: &Pipeline<O>,
    records: &[Record<'_>],
    invocation: Invocation<'_>,
) -> SqsBatchResponse {
    let Invocation { request_id, began, time_up, .. } = invocation;
    let sending_ends = sending_ends(time_up);
    invocation.check_time(sending_ends);
    let parking_ends = time_up.checked_sub(ANSWERING).unwrap_or(began);
    // Of each record; `None` where the name can't be read.
    let names: Vec<Option<Cow<'_, str>>> = records.iter().map(Record::flow).collect();
    let flows = flows(pipeline, &names, sending_ends.min(began + LOOKING_UP)).await;
    // The place among `flows` of each record's own; behind them all where the name can't be read.
    let known: HashMap<&str, usize> = flows.iter().enumerate().map(|(place, (name, _))| (*name, place)).collect();
    let place_of = |name: &Option<Cow<'_, str>>| name.as_deref().and_then(|name| known.get(name).copied());
    let places: Vec<usize> = names.iter().map(|name| place_of(name).unwrap_or(flows.len())).collect();
    let flow_at = |place: usize| flows.get(place).map(|(_, flow)| flow);
    let mut counts: Vec<Counts> = std::iter::repeat_with(Counts::default).take(flows.len() + 1).collect();

    // The records that are returned to the queue. On a FIFO queue, so are those behind one of them in its group.
    let mut failed = vec![false; records.len()];
    let groups: Vec<Option<String>> = records.iter().map(Record::fifo_group).collect();
    let hold_groups = |failed: &mut Vec<bool>| {
        let mut held = HashSet::new();
        for (position, group) in groups.iter().enumerate() {
            let Some(group) = group else { continue };
            failed[position] |= held.contains(group);
            if failed[position] {
                held.insert(group);
            }
        }
    };

    let mut mappings: Vec<Mapping<'_>> = Vec::with_capacity(records.len());
    let mut bytes = 0;
    for (position, record) in records.iter().enumerate() {
        let rejected = |rejection| Mapping::rejected(rejection, record.raw_body());
        let mapping = match (flow_at(places[position]), record.body()) {
            (None | Some(Err(NoFlow::Unknown)), _) => {
                rejected(Rejection { reason: Reason::UnknownFlow, detail: "no such flow".into() })
            }
            // A disabled flow's records wait, as do those whose flow can't be read now, and what does not fit the memory.
            (Some(Err(NoFlow::Unavailable)), _) => {
                failed[position] = true;
                Mapping::default()
            }
            (Some(Ok(flow)), _) if !flow.enabled || bytes > MAX_MESSAGES_BYTES => {
                failed[position] = true;
                Mapping::default()
            }
            (Some(Ok(flow)), Ok(body)) => flow.map(&pipeline.kind, body, &[]),
            (Some(Ok(_)), Err(rejection)) => rejected(rejection),
        };
        bytes += mapping.bytes;
        let counts = &mut counts[places[position]];
        counts.received += mapping.received;
        counts.filtered += mapping.filtered;
        counts.duplicates += usize::from(record.came_before());
        mappings.push(mapping);
    }

    // A record is handled only once its rejected events are stored; else it comes back whole, before any of it is sent.
    hold_groups(&mut failed);
    let mut rejects = Vec::new();
    for (position, mapping) in mappings.iter().enumerate().filter(|(position, _)| !failed[*position]) {
        let name = names[position].as_deref().unwrap_or_default();
        rejects.extend(
            mapping
                .rejects()
                .into_iter()
                .map(|rejected| (position, pipeline.reject(name, rejected.rejection, Source::Queue, rejected.body))),
        );
    }
    for (record, kept) in reject(pipeline, records, rejects, request_id, sending_ends.min(began + KEEPING)).await {
        failed[record] |= !kept;
    }
    hold_groups(&mut failed);
    // What comes again is counted then.
    for (position, mapping) in mappings.iter().enumerate().filter(|(position, _)| !failed[*position]) {
        for rejected in &mapping.rejections {
            counts[places[position]].reject(rejected.rejection.reason);
        }
    }

    // All records of a flow are one load; of a FIFO queue each record is, behind those of its group.
    let mut loads: Vec<Load<'_>> = std::iter::repeat_with(Load::default).take(flows.len()).collect();
    let mut sequences: HashMap<&str, Vec<(usize, Load<'_>)>> = HashMap::new();
    for (position, mapping) in mappings.into_iter().enumerate() {
        if failed[position] || places[position] == flows.len() {
            continue;
        }
        let load = match &groups[position] {
            None => &mut loads[places[position]],
            Some(group) => {
                let sequence = sequences.entry(group).or_default();
                sequence.push((places[position], Load::default()));
                &mut sequence.last_mut().expect("one was just added").1
            }
        };
        for (note, count) in mapping.notes {
            *counts[places[position]].notes.entry(note).or_default() += count;
        }
        load.origins.extend(mapping.events.into_iter().map(|event| Origin { record: position, event }));
        load.messages.extend(mapping.messages);
    }
    let times = Times { sending_ends, parking_ends };
    let sender = Sender { pipeline, records, request_id, times };
    let loads = loads.into_iter().enumerate().filter_map(|load| to_send(&flows, load));
    let loads = loads.map(|(place, flow, load)| sender.send(place, flow, load));
    let sequences = sequences
        .into_values()
        .map(|sequence| sender.send_in_order(sequence.into_iter().filter_map(|load| to_send(&flows, load)).collect()));
    let (sent, in_order) = join(join_all(loads), join_all(sequences)).await;
    let mut refused: Vec<(usize, RejectedEvent<'_>)> = Vec::new();
    let mut rejected: Vec<(usize, Reason)> = Vec::new();
    for sent in &sent {
        sent.count(&mut counts[sent.place], &mut failed);
        refused.extend(sent.refused(pipeline));
    }
    for (sent, stored) in &in_order {
        for sent in sent {
            sent.count(&mut counts[sent.place], &mut failed);
        }
        rejected.extend(stored.iter().map(|(record, reason, _)| (*record, *reason)));
        for (record, ..) in stored.iter().filter(|(.., kept)| !kept) {
            failed[*record] = true;
        }
    }
    rejected.extend(refused.iter().map(|(record, RejectedEvent { rejection, .. })| (*record, rejection.reason)));
    for (record, kept) in reject(pipeline, records, refused, request_id, parking_ends).await {
        failed[record] |= !kept;
    }
    for (record, reason) in rejected.into_iter().filter(|(record, _)| !failed[*record]) {
        counts[places[record]].reject(reason);
    }
    for counts in &counts {
        pipeline.tell_operator(counts);
    }
    hold_groups(&mut failed);

    // One line for each flow, the first with what belongs to the batch.
    let lines = places.iter().collect::<HashSet<_>>().len();
    let mut is_first = true;
    for (place, counts) in counts.iter().enumerate() {
        let records_of_flow = || places.iter().zip(&failed).filter(|(of_record, _)| **of_record == place);
        if records_of_flow().next().is_none() {
            continue;
        }
        let known = flows.get(place).filter(|(_, flow)| !matches!(flow, Err(NoFlow::Unknown))).map(|(name, _)| *name);
        let mut line = Line::new(&pipeline.services, pipeline.kind.name, known, request_id);
        line.property("trigger", "queue");
        line.counts(counts);
        if is_first {
            line.count(metrics::BATCH_SIZE, records.len());
            line.number("duration_ms", began.elapsed().as_millis());
        }
        line.number("lines", lines as u128);
        line.number("records.failed", records_of_flow().filter(|(_, failed)| **failed).count() as u128);
        line.write("queue batch handled");
        is_first = false;
    }
    let failures = records.iter().zip(&failed).filter(|(_, failed)| **failed);
    come_again(failures.map(|(record, _)| record.message_id.0.as_ref()))
}

/// Messages of one flow.
#[derive(Default)]
struct Load<'a> {
    messages: Vec<Message<'a>>,
    /// Of each message.
    origins: Vec<Origin<'a>>,
}

/// Where a message came from.
struct Origin<'a> {
    record: usize,
    event: &'a str,
}

/// A flow that records name, or why it can't be used.
type Named<'n, O> = (&'n str, Result<Arc<Flow<O>>, NoFlow>);

/// A load with its flow, unless there is nothing to send.
fn to_send<'f, 'm, O>(
    flows: &'f [Named<'_, O>],
    (place, load): (usize, Load<'m>),
) -> Option<(usize, &'f Flow<O>, Load<'m>)> {
    let flow = flows.get(place)?.1.as_deref().ok()?;
    (!load.messages.is_empty()).then_some((place, flow, load))
}

/// The ends of sending and parking.
#[derive(Clone, Copy)]
struct Times {
    sending_ends: Instant,
    parking_ends: Instant,
}

/// What sending the loads of one batch needs.
struct Sender<'s, 'a, O> {
    pipeline: &'s Pipeline<O>,
    records: &'s [Record<'a>],
    request_id: &'s str,
    times: Times,
}

/// A load that was sent.
struct Sent<'s, 'm, O> {
    place: usize,
    flow: &'s Flow<O>,
    load: Load<'m>,
    report: Report,
    /// The positions of messages that are parked.
    parked: HashSet<usize>,
}

/// Rejects of a sequence: the record, the reason, and whether the copy is stored.
type Stored = Vec<(usize, Reason, bool)>;

impl<'s, O> Sender<'s, '_, O> {
    /// Sends a load, and parks what could not be sent.
    async fn send<'m>(&self, place: usize, flow: &'s Flow<O>, load: Load<'m>) -> Sent<'s, 'm, O> {
        let mut sent = self.send_only(place, flow, load).await;
        let to_park: Vec<(usize, Cause)> = sent
            .report
            .outcomes
            .iter()
            .enumerate()
            .filter_map(|(position, outcome)| match outcome {
                Outcome::Unsent(cause) => Some((position, *cause)),
                _ => None,
            })
            .collect();
        if let Some((_, cause)) = to_park.first() {
            let messages: Vec<&Message<'_>> =
                to_park.iter().map(|(position, _)| &sent.load.messages[*position]).collect();
            let parked = self.pipeline.park(flow, *cause, &messages, self.times.parking_ends).await;
            let parked = to_park.iter().zip(parked).filter(|(_, parked)| *parked).map(|((position, _), _)| *position);
            sent.parked = parked.collect();
        }
        sent
    }

    /// Sends the records of a message group one after another, until one is neither delivered nor rejected: a record never
    /// overtakes the ones before it. Parking would give up the order.
    async fn send_in_order<'m>(&self, sequence: Vec<(usize, &'s Flow<O>, Load<'m>)>) -> (Vec<Sent<'s, 'm, O>>, Stored) {
        let (mut all, mut stored) = (Vec::new(), Stored::new());
        for (place, flow, load) in sequence {
            let sent = self.send_only(place, flow, load).await;
            let mut is_done = !sent.report.outcomes.iter().any(|outcome| matches!(outcome, Outcome::Unsent(_)));
            let refused = sent.refused(self.pipeline);
            let reasons: Vec<Reason> = refused.iter().map(|(_, reject)| reject.rejection.reason).collect();
            if is_done && !refused.is_empty() {
                let kept = reject(self.pipeline, self.records, refused, self.request_id, self.times.parking_ends).await;
                is_done = kept.iter().all(|(_, kept)| *kept);
                stored.extend(kept.into_iter().zip(reasons).map(|((record, kept), reason)| (record, reason, kept)));
            }
            all.push(sent);
            if !is_done {
                break;
            }
        }
        (all, stored)
    }

    async fn send_only<'m>(&self, place: usize, flow: &'s Flow<O>, load: Load<'m>) -> Sent<'s, 'm, O> {
        let report = flow.hub.send(&load.messages, self.times.sending_ends).await;
        Sent { place, flow, load, report, parked: HashSet::new() }
    }
}

impl<'m, O> Sent<'_, 'm, O> {
    /// Counts the outcomes, and marks the records of which a message is neither delivered nor parked.
    fn count(&self, counts: &mut Counts, failed: &mut [bool]) {
        counts.sent(&self.report);
        counts.parked += self.parked.len();
        for (position, (outcome, origin)) in self.report.outcomes.iter().zip(&self.load.origins).enumerate() {
            if matches!(outcome, Outcome::Unsent(_)) {
                failed[origin.record] |= !self.parked.contains(&position);
            }
        }
    }

    /// The events that the hub refused, each once also if several messages were made from it.
    fn refused<'r>(&'r self, pipeline: &'r Pipeline<O>) -> Vec<(usize, RejectedEvent<'r>)> {
        let mut refused: Vec<(usize, RejectedEvent<'r>)> = Vec::new();
        for (outcome, origin) in self.report.outcomes.iter().zip(&self.load.origins) {
            let Outcome::Refused(refusal) = outcome else { continue };
            let body = origin.event.as_bytes();
            if refused.last().is_none_or(|(_, last)| last.body.as_ptr() != body.as_ptr()) {
                let rejection = refusal.rejection();
                refused.push((origin.record, pipeline.reject(&self.flow.id, rejection, Source::Queue, body)));
            }
        }
        refused
    }
}

/// The flows that records name, each looked up once. They are few: most queues bring events of one.
async fn flows<'n, O: DeserializeOwned + Default>(
    pipeline: &Pipeline<O>,
    names: &'n [Option<Cow<'_, str>>],
    deadline: Instant,
) -> Vec<Named<'n, O>> {
    let mut known = HashSet::new();
    let mut distinct: Vec<&str> = names.iter().flatten().map(AsRef::as_ref).collect();
    distinct.retain(|name| known.insert(*name));
    join_all(distinct.into_iter().map(async |name| (name, pipeline.flows.get(name, deadline).await))).await
}

/// Stores copies of rejected events. Returns for each its record, and whether the copy is stored.
async fn reject<O>(
    pipeline: &Pipeline<O>,
    records: &[Record<'_>],
    rejects: Vec<(usize, RejectedEvent<'_>)>,
    request_id: &str,
    deadline: Instant,
) -> Vec<(usize, bool)> {
    for (record, RejectedEvent { rejection, .. }) in rejects.iter().take(MOST_LINES) {
        tracing::warn!(
            request_id,
            message_id = records[*record].message_id.0.as_ref(),
            reason = rejection.reason.word(),
            detail = rejection.detail.as_ref(),
            "an event can't be delivered",
        );
    }
    let (of_records, rejects): (Vec<usize>, Vec<RejectedEvent<'_>>) = rejects.into_iter().unzip();
    let kept = pipeline.services.keep(&rejects, deadline).await;
    of_records.into_iter().zip(kept).collect()
}
