//! The queue trigger: batches of SQS records, each a raw event. The response names exactly the records that are to be received again.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use aws_lambda_events::sqs::SqsBatchResponse;
use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::contract::rejected::Source;
use crate::contract::{log_line, metrics};
use crate::flow::Flow;
use crate::flow::flows::NoFlow;
use crate::kind::{Reason, Rejection};
use crate::pipeline::mapping::{MAX_MESSAGES_BYTES, Mapping};
use crate::pipeline::telemetry::{Counts, Line};
use crate::pipeline::{Delivery, Holds, Outcome, Pipeline, Times, Work};
use crate::trigger::deadline::{Invocation, RESPONDING, sending_ends};
use crate::trigger::sqs_event::{Record, retried};

/// Maximum time to look up the flows of a batch: one that can't be read must not delay the others.
const LOOKING_UP: Duration = Duration::from_secs(3);
/// Maximum time, after the start, to store events that could not be mapped: a queue that does not respond must not delay the
/// valid ones.
const STORING: Duration = Duration::from_secs(5);
/// Maximum number of rejected records that get a log line of their own.
const MAX_LINES: usize = 10;

/// Handles one batch.
pub async fn handle<O: DeserializeOwned + Default>(
    pipeline: &Pipeline<O>,
    records: &[Record<'_>],
    invocation: Invocation<'_>,
) -> SqsBatchResponse {
    let Invocation { request_id, began, time_up, .. } = invocation;
    let sending_ends = sending_ends(time_up);
    invocation.check_time(sending_ends);
    let times = Times {
        storing_ends: sending_ends.min(began + STORING),
        sending_ends,
        parking_ends: time_up.checked_sub(RESPONDING).unwrap_or(began),
    };
    let names: Vec<Option<Cow<'_, str>>> = records.iter().map(Record::flow).collect();
    let flows = ByFlow::look_up(pipeline, &names, sending_ends.min(began + LOOKING_UP)).await;
    let groups: Vec<Option<String>> = records.iter().map(Record::fifo_group).collect();

    let mut counts = flows.counts();
    let (mut works, mut positions) = (Vec::with_capacity(records.len()), Vec::with_capacity(records.len()));
    let (mut holds, mut bytes) = (Holds::default(), 0);
    for (position, record) in records.iter().enumerate() {
        let place = flows.places[position];
        let mapping = map(pipeline, flows.flow(place), record, bytes);
        bytes += mapping.as_ref().map_or(0, |mapping| mapping.bytes);
        counts[place].came(record, mapping.as_ref());
        let group = groups[position].as_deref();
        if let (false, Some(mapping)) = (holds.is_returned(group, mapping.is_none()), mapping) {
            let flow_id = names[position].as_deref().unwrap_or_default();
            let flow = flows.flow(place).and_then(|flow| flow.as_deref().ok());
            works.push(Work { flow_id, flow, mapping, group });
            positions.push(position);
        }
    }

    let Delivery { outcomes, reports } = pipeline.deliver(works, Source::Queue, times).await;
    let mut is_returned = vec![true; records.len()];
    for (position, outcome) in positions.iter().zip(&outcomes) {
        is_returned[*position] = !outcome.is_done();
        let counts = &mut counts[flows.places[*position]];
        counts.add(outcome);
        counts.add_rejected(outcome.counted());
    }
    for (flow_id, report) in &reports {
        counts[flows.known[flow_id]].sent(report);
    }
    for counts in &counts {
        pipeline.report_hints(counts);
    }
    log_rejected(positions.iter().map(|position| &records[*position]).zip(&outcomes), request_id);
    flows.write_lines(pipeline, &counts, &is_returned, invocation);
    let returned = records.iter().zip(&is_returned).filter(|(_, is_returned)| **is_returned);
    retried(returned.map(|(record, _)| record.message_id.0.as_ref()))
}

/// Maps a record. `None` if it waits: its flow is disabled or can't be read now, or its messages do not fit the memory.
fn map<'r, O>(
    pipeline: &Pipeline<O>,
    flow: Option<&'r Found<O>>,
    record: &'r Record<'_>,
    bytes: usize,
) -> Option<Mapping<'r>> {
    let rejected = |rejection| Some(Mapping::rejected(rejection, record.raw_body()));
    match (flow, record.body()) {
        (None | Some(Err(NoFlow::Unknown)), _) => {
            rejected(Rejection { reason: Reason::UnknownFlow, detail: "no such flow".into() })
        }
        (Some(Err(NoFlow::Unavailable)), _) => None,
        (Some(Ok(flow)), _) if !flow.enabled || bytes > MAX_MESSAGES_BYTES => None,
        (Some(Ok(flow)), Ok(body)) => Some(flow.map(&pipeline.kind, body, &[])),
        (Some(Ok(_)), Err(rejection)) => rejected(rejection),
    }
}

/// Logs the first rejected records, each with its reason.
fn log_rejected<'r>(outcomes: impl Iterator<Item = (&'r Record<'r>, &'r Outcome)>, request_id: &str) {
    let rejected = outcomes.flat_map(|(record, outcome)| {
        [&outcome.rejection, &outcome.refusal].into_iter().flatten().map(move |rejection| (record, rejection))
    });
    for (record, rejection) in rejected.take(MAX_LINES) {
        tracing::warn!(
            request_id,
            message_id = record.message_id.0.as_ref(),
            reason = rejection.reason.word(),
            detail = rejection.detail.as_ref(),
            "{}",
            log_line::message::REJECTED_EVENT,
        );
    }
}

/// A flow, or why it can't be used.
type Found<O> = Result<Arc<Flow<O>>, NoFlow>;

/// The flows that the records of a batch name. They are few: most queues bring events of one.
struct ByFlow<'n, O> {
    flows: Vec<(&'n str, Found<O>)>,
    /// Place among `flows` by name.
    known: HashMap<&'n str, usize>,
    /// Place of each record's flow; behind all of them if the name can't be read.
    places: Vec<usize>,
}

impl<'n, O: DeserializeOwned + Default> ByFlow<'n, O> {
    /// Looks each flow up once. The name of a record is `None` if it can't be read.
    async fn look_up(pipeline: &Pipeline<O>, names: &'n [Option<Cow<'_, str>>], deadline: Instant) -> Self {
        let mut seen = HashSet::new();
        let mut distinct: Vec<&str> = names.iter().flatten().map(AsRef::as_ref).collect();
        distinct.retain(|name| seen.insert(*name));
        let look_up = async |name| (name, pipeline.flows.get(name, deadline).await);
        let flows = join_all(distinct.into_iter().map(look_up)).await;
        let known: HashMap<&str, usize> = flows.iter().enumerate().map(|(place, (name, _))| (*name, place)).collect();
        let place = |name: &Option<Cow<'_, str>>| name.as_deref().and_then(|name| known.get(name).copied());
        let places = names.iter().map(|name| place(name).unwrap_or(flows.len())).collect();
        Self { flows, known, places }
    }

    fn flow(&self, place: usize) -> Option<&Found<O>> {
        self.flows.get(place).map(|(_, flow)| flow)
    }

    /// Counts for each place.
    fn counts(&self) -> Vec<Counts> {
        std::iter::repeat_with(Counts::default).take(self.flows.len() + 1).collect()
    }

    /// Writes one line for each flow, the first with what belongs to the batch.
    fn write_lines(&self, pipeline: &Pipeline<O>, counts: &[Counts], is_returned: &[bool], invocation: Invocation<'_>) {
        // Number of records of each place, and of those that are returned.
        let mut records = vec![(0_u128, 0_u128); counts.len()];
        for (place, is_returned) in self.places.iter().zip(is_returned) {
            records[*place].0 += 1;
            records[*place].1 += u128::from(*is_returned);
        }
        let lines = records.iter().filter(|(all, _)| *all > 0).count();
        let mut is_first = true;
        for (place, (counts, (all, returned))) in counts.iter().zip(records).enumerate() {
            if all == 0 {
                continue;
            }
            let known = self.flows.get(place).filter(|(_, flow)| !matches!(flow, Err(NoFlow::Unknown)));
            let name = known.map(|(name, _)| *name);
            let mut line = Line::new(&pipeline.services, pipeline.kind.name, name, invocation.request_id);
            line.property(log_line::TRIGGER, "queue");
            line.counts(counts);
            if is_first {
                line.count(metrics::BATCH_SIZE, is_returned.len());
                line.number(log_line::DURATION_MS, invocation.began.elapsed().as_millis());
            }
            line.number(log_line::LINES, lines as u128);
            line.number(log_line::RECORDS_FAILED, returned);
            line.write(log_line::message::QUEUE_BATCH);
            is_first = false;
        }
    }
}

impl Counts {
    /// Counts a record of a queue.
    fn came(&mut self, record: &Record<'_>, mapping: Option<&Mapping<'_>>) {
        if let Some(mapping) = mapping {
            self.received += mapping.received;
            self.filtered += mapping.filtered;
        }
        self.duplicates += usize::from(record.came_before());
    }
}
