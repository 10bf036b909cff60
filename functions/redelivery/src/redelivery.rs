//! One batch of parked envelopes after another.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use aws_lambda_events::sqs::SqsBatchResponse;
use futures_util::future::join_all;
use lambda_runtime::Diagnostic;
use shared::answer::Cause;
use shared::clock::Clock;
use shared::event_hubs::{EventHub, Outcome, Pace, Report};
use shared::function::diagnostic;
use shared::parking::{Envelope, unpack};
use shared::parts::Parts;
use shared::rejects::{Reject, Source};
use shared::settings::{Environment, PARKING_QUEUE_URL, Settings, SettingsError};
use shared::sqs::Queue;
use shared::sqs_event::{self, Record};
use shared::telemetry::{self, Counts, Line};
use shared::{Function, Invocation, Message, Reason, Rejection};
use tokio::time::Instant;

use crate::destinations::{Destinations, Unresolved, Way};

/// As which the function is counted.
const KIND: &str = "redelivery";

/// Seconds that a record waits after its first failure; doubled after each further one.
const DELAY: &str = "REDELIVERY_DELAY";
const DEFAULT_DELAY: Duration = Duration::from_secs(30);
const MAX_DELAY: Duration = Duration::from_secs(15 * 60);
/// As long one destination that can't be looked up may keep the others waiting.
const LOOKING_UP: Duration = Duration::from_secs(3);
/// What is left of the function's time: for hiding what comes again and for answering, then for answering alone.
const KEEPING: Duration = Duration::from_millis(900);
const ANSWERING: Duration = Duration::from_millis(300);

/// Sends parked messages once their hub answers again.
pub struct Redelivery {
    parts: Parts,
    destinations: Destinations,
    queue: Queue,
    delay: Duration,
}

/// Messages of one batch for one hub, by one way that leads there.
struct Load<'a> {
    hub: Arc<EventHub>,
    messages: Vec<Message<'a>>,
    /// Of each message: its record, and its place in the record's envelope.
    origins: Vec<(usize, usize)>,
}

/// What became of the messages of a record.
#[derive(Debug, Default, Clone)]
struct Ending {
    delivered: usize,
    unsent: Option<Cause>,
    refused: Vec<(usize, Rejection)>,
}

impl Redelivery {
    /// # Errors
    /// For a setting that is missing or can't be used.
    pub async fn open(environment: Environment, clock: Clock, _: Instant) -> Result<Self, SettingsError> {
        let settings = Settings::read(&environment)?;
        let Some(url) = settings.parking_queue_url.clone() else {
            return Err(SettingsError::new(PARKING_QUEUE_URL, "missing; set it to the queue that this function reads"));
        };
        let delay = match environment.get(DELAY) {
            None => DEFAULT_DELAY,
            Some(text) => text
                .parse()
                .map(Duration::from_secs)
                .ok()
                .filter(|delay| (Duration::from_secs(1)..=MAX_DELAY).contains(delay))
                .ok_or_else(|| SettingsError::new(DELAY, "expected a number of seconds from 1 to 900"))?,
        };
        let parts = Parts::open(&settings, environment, clock)?;
        let queue = Queue::new(parts.aws.clone(), url);
        Ok(Self { parts, destinations: Destinations::new(settings), queue, delay })
    }
}

impl Function for Redelivery {
    type Answer = SqsBatchResponse;

    async fn invoke(&self, event: &str, invocation: Invocation<'_>) -> Result<SqsBatchResponse, Diagnostic> {
        match sqs_event::records(event) {
            Some(Ok(records)) => Ok(self.handle(&records, invocation).await),
            Some(Err(error)) => Err(diagnostic("UnreadableRecord", &error.to_string())),
            None => Err(diagnostic("UnknownTrigger", "the event is no batch of SQS records")),
        }
    }
}

impl Redelivery {
    async fn handle(
        &self,
        records: &[Record<'_>],
        Invocation { request_id, began, time_up }: Invocation<'_>,
    ) -> SqsBatchResponse {
        let sending_ends = sqs_event::sending_ends(time_up);
        let before = |reserve| time_up.checked_sub(reserve).unwrap_or(began);
        let tell = |record: &Record<'_>, problem: &dyn std::fmt::Display| {
            let message_id = record.message_id.0.as_ref();
            tracing::warn!(request_id, message_id, %problem, "a parked record stays parked");
        };
        let jsons: Vec<Option<String>> = records
            .iter()
            .map(|record| {
                let body = record.body().unwrap_or_default();
                unpack(body).inspect_err(|error| tell(record, error)).ok()
            })
            .collect();
        let envelopes: Vec<Option<Envelope<'_>>> = records
            .iter()
            .zip(&jsons)
            .map(|(record, json)| Envelope::parse(json.as_deref()?).inspect_err(|error| tell(record, error)).ok())
            .collect();

        let wanted: HashSet<Way> = envelopes.iter().flatten().map(Way::of).collect();
        let looking_up_ends = sending_ends.min(began + LOOKING_UP);
        let lookups = wanted.into_iter().map(async |way| {
            let hub = self.destinations.resolve(&self.parts, &way, looking_up_ends).await;
            (way, hub)
        });
        let hubs: HashMap<Way, Result<Arc<EventHub>, Unresolved>> = join_all(lookups).await.into_iter().collect();

        // By address, and by the way that leads there: flows may share a hub and not the key.
        let mut loads: HashMap<Address, HashMap<Way, Load<'_>>> = HashMap::new();
        let mut endings: Vec<Option<Ending>> = vec![None; records.len()];
        let mut rejects: Vec<(usize, &Envelope<'_>, Rejection, String)> = Vec::new();
        for (position, envelope) in envelopes.iter().enumerate() {
            let Some(envelope) = envelope else { continue };
            let way = Way::of(envelope);
            let hub = match &hubs[&way] {
                Ok(hub) => hub,
                Err(Unresolved::Deleted) => {
                    let detail = "the flow was deleted while its messages were parked; the body is their envelope";
                    let rejection = Rejection { reason: Reason::UnknownFlow, detail: detail.into() };
                    rejects.push((position, envelope, rejection, jsons[position].clone().unwrap_or_default()));
                    endings[position] = Some(Ending::default());
                    continue;
                }
                Err(error) => {
                    tell(&records[position], error);
                    continue;
                }
            };
            let destination = hub.destination().await;
            let load = loads
                .entry((destination.host, destination.hub))
                .or_default()
                .entry(way)
                .or_insert_with(|| Load { hub: hub.clone(), messages: Vec::new(), origins: Vec::new() });
            for (place, message) in envelope.messages().enumerate() {
                load.messages.push(message);
                load.origins.push((position, place));
            }
            endings[position] = Some(Ending::default());
        }

        let mut counts = Counts::default();
        for sent in join_all(loads.values().map(|loads| send(loads, sending_ends))).await {
            for report in &sent.reports {
                counts.sent(report);
            }
            for ((record, place), outcome) in sent.outcomes {
                let Some(ending) = &mut endings[record] else { continue };
                match outcome {
                    Outcome::Delivered => ending.delivered += 1,
                    Outcome::Unsent(cause) => ending.unsent = Some(cause),
                    Outcome::Refused(refusal) => ending.refused.push((place, Rejection::refused(refusal))),
                }
            }
        }
        let mut comes_again: Vec<bool> =
            endings.iter().map(|ending| ending.as_ref().is_none_or(|ending| ending.unsent.is_some())).collect();
        for (position, (ending, envelope)) in endings.iter().zip(&envelopes).enumerate() {
            // What comes again is kept when the rest of it is delivered.
            let (false, Some(ending), Some(envelope)) = (comes_again[position], ending, envelope) else { continue };
            for (place, rejection) in &ending.refused {
                rejects.push((position, envelope, rejection.clone(), envelope.with_message(*place)));
            }
        }
        self.keep(&rejects, before(KEEPING), &mut comes_again).await;
        self.postpone(records, &comes_again, before(ANSWERING)).await;

        for hint in counts.causes.keys().filter_map(|cause| cause.hint()) {
            tracing::error!(request_id, hint, "an event hub can't be sent to");
        }
        // One line for each flow, the first with what belongs to the batch; unreadable records are of none.
        counts.delivered = 0;
        let flow_of = |position: usize| envelopes[position].as_ref().map(|envelope| envelope.flow.as_ref());
        let flows: BTreeSet<Option<&str>> = (0..records.len()).map(flow_of).collect();
        let lines = flows.len() as u128;
        for (place, flow) in flows.into_iter().enumerate() {
            let of_flow = || (0..records.len()).filter(|position| flow_of(*position) == flow);
            let mut line = Line::new(&self.parts, KIND, flow, request_id);
            line.property("trigger", "parking");
            let redelivered =
                of_flow().filter_map(|position| endings[position].as_ref()).map(|ending| ending.delivered);
            line.count(telemetry::REDELIVERED, redelivered.sum());
            let mut counts = if place == 0 { std::mem::take(&mut counts) } else { Counts::default() };
            // What comes again is counted then.
            let is_final = |position: usize| flow_of(position) == flow && !comes_again[position];
            for (_, _, rejection, _) in rejects.iter().filter(|(position, ..)| is_final(*position)) {
                counts.reject(rejection.reason);
            }
            line.counts(&counts);
            if place == 0 {
                line.count(telemetry::BATCH_SIZE, records.len());
                if let Some(oldest) = records.iter().filter_map(Record::sent_at).min() {
                    let now = self.parts.clock.unix_seconds();
                    line.metric(telemetry::OLDEST_PARKED_AGE, now.saturating_sub(oldest / 1000).into());
                }
                line.number("duration_ms", began.elapsed().as_millis());
            }
            line.number("lines", lines);
            line.number("records.failed", of_flow().filter(|position| comes_again[*position]).count() as u128);
            line.write("parked batch handled");
        }
        let failed = records.iter().zip(&comes_again).filter(|(_, again)| **again);
        sqs_event::come_again(failed.map(|(record, _)| record.message_id.0.as_ref()))
    }

    /// Keeps what can never be delivered; a record of which something can't be kept comes again.
    async fn keep(
        &self,
        rejected: &[(usize, &Envelope<'_>, Rejection, String)],
        deadline: Instant,
        comes_again: &mut [bool],
    ) {
        let rejects: Vec<Reject<'_>> = rejected
            .iter()
            .map(|(_, envelope, rejection, json)| Reject {
                kind: &envelope.kind,
                flow: &envelope.flow,
                rejection: rejection.clone(),
                source: Source::Parking,
                body: json.as_bytes(),
                received_at: Some(&envelope.first_seen),
            })
            .collect();
        let kept = self.parts.keep(&rejects, deadline).await;
        for ((position, ..), kept) in rejected.iter().zip(kept) {
            comes_again[*position] |= !kept;
        }
    }

    /// Hides what comes again for longer each time, so that a hub in trouble is not asked all the time.
    async fn postpone(&self, records: &[Record<'_>], comes_again: &[bool], deadline: Instant) {
        let handles: Vec<(Cow<'_, str>, Duration)> = records
            .iter()
            .zip(comes_again)
            .filter(|(_, again)| **again)
            .map(|(record, _)| (record.receipt_handle(), delay_after(self.delay, record.receive_count())))
            .filter(|(handle, _)| !handle.is_empty())
            .collect();
        let handles: Vec<(&str, Duration)> = handles.iter().map(|(handle, delay)| (handle.as_ref(), *delay)).collect();
        self.queue.postpone(&handles, deadline).await;
    }
}

fn delay_after(first: Duration, receive_count: u32) -> Duration {
    let doublings = receive_count.saturating_sub(1).min(16);
    first.saturating_mul(1 << doublings).min(MAX_DELAY)
}

/// Host and hub.
type Address = (String, String);

/// What became of the messages for one hub.
#[derive(Default)]
struct Sent {
    outcomes: Vec<((usize, usize), Outcome)>,
    reports: Vec<Report>,
}

/// Sends what is for one hub. Behind the first failure that is the hub's, the rest goes back unsent.
async fn send(loads: &HashMap<Way, Load<'_>>, deadline: Instant) -> Sent {
    let mut sent = Sent::default();
    let mut stopped = None;
    for load in loads.values() {
        if let Some(cause) = stopped {
            sent.outcomes.extend(load.origins.iter().map(|origin| (*origin, Outcome::Unsent(cause))));
            continue;
        }
        let report = load.hub.send(&load.messages, Pace::OneByOne, deadline).await;
        stopped = report.outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Unsent(cause) if cause.is_the_hubs() => Some(*cause),
            _ => None,
        });
        sent.outcomes.extend(load.origins.iter().copied().zip(report.outcomes.iter().copied()));
        sent.reports.push(report);
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_quarter_of_an_hour() {
        let delays = [1, 2, 3, 5, 6, 7, 100, u32::MAX].map(|count| delay_after(DEFAULT_DELAY, count).as_secs());
        assert_eq!(delays, [30, 60, 120, 480, 900, 900, 900, 900]);
        assert_eq!(delay_after(DEFAULT_DELAY, 0), DEFAULT_DELAY);
    }
}
