//! The queue trigger: batches of SQS records, each a raw event, answered with exactly the records that must come again.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use aws_lambda_events::sqs::SqsBatchResponse;
use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::answer::Cause;
use crate::event::{Reason, Rejection};
use crate::event_hubs::Outcome;
use crate::flow::{Flow, MAX_MESSAGES_BYTES, Mapping};
use crate::function::Invocation;
use crate::message::Message;
use crate::rejects::{Reject, Source};
use crate::relay::{NoFlow, Relay};
use crate::sqs_event::{ANSWERING, Record, come_again, sending_ends};
use crate::telemetry::{self, Counts, Line};

/// As long one flow that can't be looked up may keep the others waiting.
const LOOKING_UP: Duration = Duration::from_secs(3);
/// As long one rejected event that can't be stored may keep the good ones waiting.
const KEEPING: Duration = Duration::from_secs(5);
/// As many rejected records get a log line of their own.
const MOST_LINES: usize = 10;

/// Handles one batch.
pub async fn handle<O: DeserializeOwned + Default>(
    relay: &Relay<O>,
    records: &[Record<'_>],
    invocation: Invocation<'_>,
) -> SqsBatchResponse {
    let Invocation { request_id, began, time_up } = invocation;
    let sending_ends = sending_ends(time_up);
    invocation.check_time(sending_ends);
    let parking_ends = time_up.checked_sub(ANSWERING).unwrap_or(began);
    // Of each record; `None` where the name can't be read.
    let names: Vec<Option<Cow<'_, str>>> = records.iter().map(Record::flow).collect();
    let flows = flows(relay, &names, sending_ends.min(began + LOOKING_UP)).await;
    // The place among `flows` of each record's own; behind them all where the name can't be read.
    let place_of = |name: &Option<Cow<'_, str>>| {
        flows.iter().position(|(known, _)| Some(*known) == name.as_deref()).unwrap_or(flows.len())
    };
    let places: Vec<usize> = names.iter().map(place_of).collect();
    let flow_at = |place: usize| flows.get(place).map(|(_, flow)| flow);
    let mut counts: Vec<Counts> = std::iter::repeat_with(Counts::default).take(flows.len() + 1).collect();

    // Which records come again. On a FIFO queue what stands behind one of them in its group does too, or would overtake.
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
            (Some(Ok(flow)), Ok(body)) => flow.map(&relay.kind, body, &[]),
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
                .map(|rejected| (position, relay.reject(name, rejected.rejection, Source::Queue, rejected.body))),
        );
    }
    reject(relay, records, rejects, request_id, sending_ends.min(began + KEEPING), &mut failed).await;
    hold_groups(&mut failed);
    // What comes again is counted then.
    for (position, mapping) in mappings.iter().enumerate().filter(|(position, _)| !failed[*position]) {
        for rejected in &mapping.rejections {
            counts[places[position]].reject(rejected.rejection.reason);
        }
    }

    let mut loads: Vec<Load<'_>> = std::iter::repeat_with(Load::default).take(flows.len()).collect();
    for (position, mapping) in mappings.into_iter().enumerate() {
        let Some(load) = loads.get_mut(places[position]).filter(|_| !failed[position]) else { continue };
        for (note, count) in mapping.notes {
            *counts[places[position]].notes.entry(note).or_default() += count;
        }
        load.origins.extend(mapping.events.into_iter().map(|event| Origin { record: position, event }));
        load.messages.extend(mapping.messages);
    }
    let to_send = loads.into_iter().enumerate().filter_map(|(place, load)| {
        let flow = flow_at(place)?.as_deref().ok()?;
        (!load.messages.is_empty()).then_some((place, flow, load))
    });
    let sendings = to_send.map(async |(place, flow, load)| {
        let report = flow.hub.send(&load.messages, sending_ends).await;
        // Parking would give up the order that a FIFO queue keeps.
        let to_park: Vec<(usize, Cause)> = report
            .outcomes
            .iter()
            .enumerate()
            .filter_map(|(position, outcome)| match outcome {
                Outcome::Unsent(cause) if groups[load.origins[position].record].is_none() => Some((position, *cause)),
                _ => None,
            })
            .collect();
        let parked = match to_park.first() {
            None => Vec::new(),
            Some((_, cause)) => {
                let messages: Vec<&Message<'_>> =
                    to_park.iter().map(|(position, _)| &load.messages[*position]).collect();
                relay.park(flow, *cause, &messages, parking_ends).await
            }
        };
        let parked: HashSet<usize> =
            to_park.into_iter().zip(parked).filter(|(_, parked)| *parked).map(|((position, _), _)| position).collect();
        (place, flow, load, report, parked)
    });
    let mut refused: Vec<(usize, Reject<'_>)> = Vec::new();
    for (place, flow, load, report, parked) in join_all(sendings).await {
        let counts = &mut counts[place];
        counts.sent(&report);
        counts.parked += parked.len();
        for (position, (outcome, origin)) in report.outcomes.iter().zip(&load.origins).enumerate() {
            match outcome {
                Outcome::Delivered => {}
                Outcome::Unsent(_) => failed[origin.record] |= !parked.contains(&position),
                // An event that made several messages is kept once.
                Outcome::Refused(_)
                    if refused.last().is_some_and(|(_, last)| last.body.as_ptr() == origin.event.as_ptr()) => {}
                Outcome::Refused(refusal) => {
                    let (rejection, body) = (Rejection::refused(*refusal), origin.event.as_bytes());
                    refused.push((origin.record, relay.reject(&flow.id, rejection, Source::Queue, body)));
                }
            }
        }
    }
    let reasons: Vec<(usize, Reason)> =
        refused.iter().map(|(record, Reject { rejection, .. })| (*record, rejection.reason)).collect();
    reject(relay, records, refused, request_id, parking_ends, &mut failed).await;
    for (record, reason) in reasons.into_iter().filter(|(record, _)| !failed[*record]) {
        counts[places[record]].reject(reason);
    }
    for counts in &counts {
        relay.tell_operator(counts);
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
        let mut line = Line::new(&relay.parts, relay.kind.name, known, request_id);
        line.property("trigger", "queue");
        line.counts(counts);
        if is_first {
            line.count(telemetry::BATCH_SIZE, records.len());
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

/// The flows that records name, each looked up once. They are few: most queues bring events of one.
async fn flows<'n, O: DeserializeOwned + Default>(
    relay: &Relay<O>,
    names: &'n [Option<Cow<'_, str>>],
    deadline: Instant,
) -> Vec<(&'n str, Result<Arc<Flow<O>>, NoFlow>)> {
    let mut known: Vec<&str> = Vec::new();
    for name in names.iter().flatten() {
        if !known.contains(&name.as_ref()) {
            known.push(name);
        }
    }
    join_all(known.into_iter().map(async |name| (name, relay.flow(name, deadline).await))).await
}

/// Keeps copies of rejected events; a record of which one can't be kept has failed.
async fn reject<O>(
    relay: &Relay<O>,
    records: &[Record<'_>],
    rejects: Vec<(usize, Reject<'_>)>,
    request_id: &str,
    deadline: Instant,
    failed: &mut [bool],
) {
    for (record, Reject { rejection, .. }) in rejects.iter().take(MOST_LINES) {
        tracing::warn!(
            request_id,
            message_id = records[*record].message_id.0.as_ref(),
            reason = rejection.reason.word(),
            detail = rejection.detail.as_ref(),
            "an event can't be delivered",
        );
    }
    let (of_records, rejects): (Vec<usize>, Vec<Reject<'_>>) = rejects.into_iter().unzip();
    let kept = relay.parts.keep(&rejects, deadline).await;
    for (record, kept) in of_records.into_iter().zip(kept) {
        failed[record] |= !kept;
    }
}
