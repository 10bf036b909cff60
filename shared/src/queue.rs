//! The queue trigger: batches of SQS records, each a raw event, answered with exactly the records that must come again.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use aws_lambda_events::sqs::{BatchItemFailure, SqsBatchResponse};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::event::{Reason, Rejection};
use crate::event_hubs::Outcome;
use crate::flow::{DEFAULT_FLOW, MAX_MESSAGES_BYTES, Mapping, Notes};
use crate::json::{Members, Text};
use crate::message::Message;
use crate::relay::Relay;
use crate::webhook::refused;

/// What is left of the function's time for answering: this, or a tenth of the timeout, whichever is more.
const RESERVE: Duration = Duration::from_secs(2);
/// As many rejected records get a log line of their own.
const MOST_LINES: usize = 10;

/// What of a record is used; only its id must be readable for its failure to be told.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    #[serde(borrow)]
    message_id: Text<'a>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
    #[serde(borrow)]
    message_attributes: Option<&'a RawValue>,
    #[serde(borrow, rename = "eventSourceARN")]
    event_source_arn: Option<&'a RawValue>,
    #[serde(borrow)]
    attributes: Option<&'a RawValue>,
}

/// The record's id can't be read, so that its failure can't be reported: the whole batch must come again.
#[derive(Debug, thiserror::Error)]
#[error("a record of the batch has no readable messageId")]
pub struct UnreadableRecord;

impl<'a> Record<'a> {
    fn read(json: &'a RawValue) -> Result<Self, UnreadableRecord> {
        let record: Self = serde_json::from_str(json.get()).map_err(|_| UnreadableRecord)?;
        if record.message_id.0.is_empty() { Err(UnreadableRecord) } else { Ok(record) }
    }

    /// The flow that the record names, `default` when it names none; `None` when that can't be read.
    fn flow(&self) -> Option<Cow<'a, str>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Attribute<'a> {
            #[serde(borrow)]
            string_value: Text<'a>,
        }
        let attributes = match self.message_attributes {
            None => Members::default(),
            Some(attributes) => serde_json::from_str::<Members<'a>>(attributes.get()).ok()?,
        };
        match member(&attributes, "flow") {
            None => Some(DEFAULT_FLOW.into()),
            Some(flow) => serde_json::from_str::<Attribute<'a>>(flow.get()).ok().map(|flow| flow.string_value.0),
        }
    }

    fn body(&self) -> Result<Cow<'a, str>, Rejection> {
        let Some(body) = self.body else { return Ok("".into()) };
        serde_json::from_str::<Text<'a>>(body.get())
            .map(|body| body.0)
            .map_err(|_| Rejection::unreadable("the record's body is not text"))
    }

    /// The group within which a FIFO queue promises order.
    fn fifo_group(&self) -> Option<String> {
        let arn: Text<'_> = serde_json::from_str(self.event_source_arn?.get()).ok()?;
        let attributes: Members<'_> = serde_json::from_str(self.attributes?.get()).ok()?;
        let group = member(&attributes, "MessageGroupId")?;
        arn.0.ends_with(".fifo").then(|| serde_json::from_str(group.get()).unwrap_or_default())
    }
}

fn member<'a>(members: &Members<'a>, name: &str) -> Option<&'a RawValue> {
    members.0.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
}

/// Handles one batch. `deadline` is when the function's time is up.
pub async fn handle<O>(
    relay: &Relay<O>,
    records: &[&RawValue],
    request_id: &str,
    deadline: Instant,
) -> Result<SqsBatchResponse, UnreadableRecord> {
    let began = Instant::now();
    let reserve = RESERVE.max(deadline.saturating_duration_since(began) / 10);
    let deadline = deadline.checked_sub(reserve).unwrap_or(began);
    let records: Vec<Record<'_>> = records.iter().map(|record| Record::read(record)).collect::<Result<_, _>>()?;
    let bodies: Vec<Result<Cow<'_, str>, Rejection>> = records.iter().map(Record::body).collect();

    // Without a place for rejected events, a record with a bad one comes back whole, before any of it is sent.
    let mut failed: HashSet<usize> = HashSet::new();
    let mut messages: Vec<Message<'_>> = Vec::new();
    let mut record_of: Vec<usize> = Vec::new();
    let (mut received, mut filtered, mut rejected, mut bytes) = (0, 0, 0, 0);
    let mut notes = Notes::new();
    let mut held_groups: HashSet<String> = HashSet::new();
    for (position, record) in records.iter().enumerate() {
        let group = record.fifo_group();
        if group.as_ref().is_some_and(|group| held_groups.contains(group)) {
            failed.insert(position);
            continue;
        }
        // What does not fit the memory comes again, in another batch.
        if bytes > MAX_MESSAGES_BYTES {
            failed.insert(position);
            continue;
        }
        let flow = record.flow().and_then(|flow| relay.flow(&flow));
        let mapping = match (flow, &bodies[position]) {
            (Some(flow), Ok(body)) => flow.map(&relay.kind, body.as_bytes(), &[]),
            (Some(_), Err(rejection)) => Mapping::rejected(rejection.clone()),
            (None, _) => Mapping::rejected(Rejection { reason: Reason::UnknownFlow, detail: "no such flow".into() }),
        };
        bytes += mapping.bytes;
        received += mapping.received;
        filtered += mapping.filtered;
        if let Some(rejection) = mapping.rejection() {
            rejected += mapping.rejections.len();
            if failed.len() < MOST_LINES {
                tell_rejected(request_id, record, &rejection);
            }
            failed.insert(position);
            held_groups.extend(group);
            continue;
        }
        for (note, count) in mapping.notes {
            *notes.entry(note).or_default() += count;
        }
        record_of.extend(std::iter::repeat_n(position, mapping.messages.len()));
        messages.extend(mapping.messages);
    }

    let report = relay.default_flow().hub.send(&messages, deadline).await;
    let mut causes = HashMap::new();
    for (outcome, position) in report.outcomes.iter().zip(&record_of) {
        match outcome {
            Outcome::Delivered => {}
            Outcome::Unsent(cause) => {
                failed.insert(*position);
                *causes.entry(*cause).or_insert(0u32) += 1;
            }
            Outcome::Refused(refusal) => {
                rejected += 1;
                tell_rejected(request_id, &records[*position], &refused(*refusal));
                failed.insert(*position);
            }
        }
    }
    for cause in causes.keys() {
        relay.tell_operator(*cause);
    }

    // On a FIFO queue what stands behind a failure in its group comes again too, or it would overtake.
    let mut failures = Vec::new();
    held_groups.clear();
    for (position, record) in records.iter().enumerate() {
        let group = record.fifo_group();
        if failed.contains(&position) || group.as_ref().is_some_and(|group| held_groups.contains(group)) {
            let mut failure = BatchItemFailure::default();
            failure.item_identifier = record.message_id.0.clone().into_owned();
            failures.push(failure);
            held_groups.extend(group);
        }
    }
    let delivered = report.outcomes.iter().filter(|outcome| **outcome == Outcome::Delivered).count();
    tracing::info!(
        request_id,
        kind = relay.kind.name,
        trigger = "queue",
        records.received = records.len(),
        records.failed = failures.len(),
        events.received = received,
        events.filtered = filtered,
        events.rejected = rejected,
        messages.delivered = delivered,
        causes = ?causes.iter().map(|(cause, count)| (cause.word(), count)).collect::<Vec<_>>(),
        notes = ?notes,
        hub.requests = report.requests,
        hub.retries = report.retries,
        hub.problem = report.problem,
        duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "queue batch handled",
    );
    let mut response = SqsBatchResponse::default();
    response.batch_item_failures = failures;
    Ok(response)
}

fn tell_rejected(request_id: &str, record: &Record<'_>, rejection: &Rejection) {
    tracing::warn!(
        request_id,
        message_id = record.message_id.0.as_ref(),
        reason = rejection.reason.word(),
        detail = rejection.detail.as_ref(),
        "a record can't be delivered and goes back to its queue",
    );
}
