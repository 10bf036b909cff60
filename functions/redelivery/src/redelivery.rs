//! One batch of parked envelopes after another.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lambda_events::sqs::SqsBatchResponse;
use futures_util::future::join_all;
use lambda_runtime::Diagnostic;
use shared::aws::sqs::Depth;
use shared::clock::{Clock, from_rfc3339};
use shared::contract::Unreadable;
use shared::contract::parked::Destination;
use shared::contract::parked::Head;
use shared::contract::{log_line, metrics};
use shared::environment::{Environment, PARKING_QUEUE_URL, SettingsError};
use shared::event_hubs::Report;
use shared::event_hubs::circuit::{self, Admission, Circuit, Circuits, Policy};
use shared::event_hubs::pace::Pace;
use shared::event_hubs::response::Cause;
use shared::lambda::diagnostic;
use shared::lambda::settings::Settings;
use shared::pipeline::services::Services;
use shared::pipeline::telemetry::{Counts, Line};
use shared::trigger::deadline;
use shared::trigger::sqs_event::{self, Record};
use shared::undelivered::parking::Parking;
use shared::{Function, Invocation, Reason};
use tokio::time::Instant;

use crate::destinations::{Destinations, Way};
use crate::settings::Waiting;

/// The kind under which the function's events are counted.
const KIND: &str = "redelivery";
/// Maximum time after which an invocation sends no more requests: it waits for throttled hubs, and other hubs wait for its
/// instance.
const SENDING: Duration = Duration::from_secs(12);
/// Maximum part of the time to send that the last response may take.
const LAST_RESPONSE: f64 = 1.0 / 3.0;
/// Maximum time to look up a destination.
const LOOKING_UP: Duration = Duration::from_secs(3);
/// Parts of the function's time that are reserved for storing, hiding and responding; and for responding alone.
const STORING: Duration = Duration::from_millis(900);
const RESPONDING: Duration = Duration::from_millis(300);
/// Time for which the counts of the queue, or the failure to read them, are used before they are read again.
const DEPTH_AGE: Duration = Duration::from_secs(60);
/// Timeout to read the counts of the queue. The time is needed to store messages.
const DEPTH_TIMEOUT: Duration = Duration::from_millis(500);
/// Part by which the interval of probes varies, so that instances do not probe in step.
const JITTER: f64 = 0.1;

/// Sends parked messages once their hub responds again.
pub struct Redelivery {
    pub(crate) services: Services,
    pub(crate) destinations: Destinations,
    pub(crate) waiting: Waiting,
    /// Circuits for refused credentials and wrong names: another way to the same hub may be right.
    ways: Circuits<Way>,
    /// Circuits for outages, which concern every way to what fails.
    places: Circuits<Place>,
    paces: Mutex<HashMap<String, Arc<Pace>>>,
    depth: tokio::sync::Mutex<Option<(SystemTime, Option<Depth>)>>,
}

/// What an outage concerns.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    /// A host that does not respond.
    Host(String),
    /// A hub of a host that responds with an error.
    Hub(String, String),
}

/// A record with a readable head.
pub(crate) struct Item<'r> {
    pub position: usize,
    pub record: &'r Record<'r>,
    /// The packed envelope.
    pub text: &'r str,
    pub head: Head<'static>,
    pub first_seen: SystemTime,
}

/// The times at which the parts of an invocation end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub looking_up_ends: Instant,
    pub sending_ends: Instant,
    pub responses_end: Instant,
    pub storing_ends: Instant,
    pub hiding_ends: Instant,
}

/// What happened to a record.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    pub position: usize,
    /// `None` for an unreadable record.
    pub flow: Option<String>,
    /// Number of its messages that were delivered.
    pub delivered: usize,
    pub rejected: Vec<Reason>,
    /// Number of its messages that were stored in another envelope.
    pub gathered: usize,
    /// Whether the messages that are left are in this record still.
    pub stays: bool,
}

/// What happened to the records for one destination.
#[derive(Default)]
pub(crate) struct Delivered {
    pub endings: Vec<Ending>,
    pub report: Option<Report>,
    /// Whether a probe failed, if one was sent.
    pub probe: Option<bool>,
    /// Throughput units at which was sent.
    pub units: Option<f64>,
}

impl Redelivery {
    /// # Errors
    /// Fails if a setting is missing or not usable.
    pub async fn open(environment: Environment, clock: Clock, _: Instant) -> Result<Self, SettingsError> {
        let settings = Settings::read(&environment)?;
        if settings.parking_queue_url.is_none() {
            return Err(SettingsError::new(PARKING_QUEUE_URL, "missing; set it to the queue that this function reads"));
        }
        let waiting = Waiting::read(&environment)?;
        let services = settings.services(environment, clock)?;
        let policy = Policy { opens_after: 1, probe_interval: waiting.probe_interval, jitter: JITTER };
        Ok(Self {
            services,
            destinations: Destinations::new(settings),
            waiting,
            ways: Circuits::new(policy),
            places: Circuits::new(policy),
            paces: Mutex::default(),
            depth: tokio::sync::Mutex::default(),
        })
    }

    pub(crate) fn parking(&self) -> &Parking {
        self.services.parking.as_ref().expect("`open` requires a parking queue")
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.services.hubs.clock.now()
    }

    /// The pace towards a host, which is that of its namespace.
    pub(crate) fn pace(&self, host: &str) -> Arc<Pace> {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Pace::new(self.services.hubs.clock.clone()));
        paces.entry(host.to_owned()).or_insert_with(new).clone()
    }

    fn circuits(&self, way: &Way, destination: &Destination) -> [Arc<Circuit>; 3] {
        let Destination { host, hub, .. } = destination;
        [
            self.ways.get(way.clone()),
            self.places.get(Place::Hub(host.clone(), hub.clone())),
            self.places.get(Place::Host(host.clone())),
        ]
    }

    /// Asks the circuits of a way for permission to send.
    pub(crate) fn admit(&self, way: &Way, destination: &Destination) -> Admission {
        let now = self.now();
        let circuits = self.circuits(way, destination);
        let closed_to = circuits.iter().filter_map(|circuit| circuit.open(now)).max_by_key(|open| open.next_probe);
        match closed_to {
            Some(open) if now < open.next_probe => Admission::Open(open),
            Some(_) => {
                // Each of them counts the probe as sent.
                for circuit in &circuits {
                    circuit.admit(now);
                }
                Admission::Probe
            }
            None => Admission::Closed,
        }
    }

    /// The cause for which a circuit of a way is open.
    pub(crate) fn open_cause(&self, way: &Way, destination: &Destination) -> Option<Cause> {
        let (now, circuits) = (self.now(), self.circuits(way, destination));
        circuits.iter().filter_map(|circuit| circuit.open(now)).map(|open| open.cause).next_back()
    }

    /// Whether messages were delivered by a way within `time`.
    pub(crate) fn responded_within(&self, way: &Way, time: Duration) -> bool {
        self.ways.get(way.clone()).responded_within(time, self.now())
    }

    /// Records for the circuits how sending went, and logs each change. Returns the time of the next probe if one is open.
    pub(crate) fn record(
        &self,
        way: &Way,
        destination: &Destination,
        report: &Report,
        oldest: SystemTime,
    ) -> Option<SystemTime> {
        let now = self.now();
        let circuits = self.circuits(way, destination);
        let [of_way, of_hub, of_host] = &circuits;
        let was_tried = report.requests > 0;
        let changes = match report.stopped {
            // A token that has expired is known without a request.
            Some(cause @ Cause::TokenExpired) if !was_tried => vec![of_way.failed(cause, now)],
            _ if !was_tried => Vec::new(),
            None | Some(Cause::Throttled) => circuits.iter().map(|circuit| circuit.responded(now)).collect(),
            Some(cause) if cause.is_the_hosts() => vec![of_host.failed(cause, now)],
            Some(cause) if cause.is_outage() => vec![of_host.responded(now), of_hub.failed(cause, now)],
            Some(cause) => vec![of_host.responded(now), of_hub.responded(now), of_way.failed(cause, now)],
        };
        let age = now.duration_since(oldest).unwrap_or_default();
        for change in changes.into_iter().flatten() {
            circuit::log(change, &destination.host, &destination.hub, age);
        }
        circuits.iter().filter_map(|circuit| circuit.open(now)).map(|open| open.next_probe).max()
    }

    /// The counts of the parking queue, at most a minute old; `None` if they could not be read.
    pub(crate) async fn depth(&self, deadline: Instant) -> Option<Depth> {
        let mut cached = self.depth.lock().await;
        let now = self.now();
        if let Some((read_at, depth)) = *cached
            && now.duration_since(read_at).is_ok_and(|age| age < DEPTH_AGE)
        {
            return depth;
        }
        let depth = self.parking().queue().depth(deadline.min(Instant::now() + DEPTH_TIMEOUT)).await;
        let depth = depth.inspect_err(|error| {
            tracing::warn!(
                %error,
                "failed to read the parking queue's counts; going without them for a minute"
            );
        });
        *cached = Some((now, depth.ok()));
        cached.and_then(|(_, depth)| depth)
    }
}

impl Function for Redelivery {
    type Response = SqsBatchResponse;

    async fn invoke(&self, event: &str, invocation: Invocation<'_>) -> Result<SqsBatchResponse, Diagnostic> {
        match sqs_event::records(event) {
            Some(Ok(records)) => Ok(self.handle(&records, invocation).await),
            Some(Err(error)) => Err(diagnostic("UnreadableRecord", &error.to_string())),
            None => Err(diagnostic("UnknownTrigger", "the event is not a batch of SQS records")),
        }
    }
}

impl Redelivery {
    async fn handle(&self, records: &[Record<'_>], invocation: Invocation<'_>) -> SqsBatchResponse {
        let Invocation { request_id, began, time_up, .. } = invocation;
        let responses_end = deadline::sending_ends(time_up);
        let last_response = responses_end.saturating_duration_since(began).mul_f64(LAST_RESPONSE);
        let sending_ends = responses_end.checked_sub(last_response).unwrap_or(began).min(began + SENDING);
        invocation.check_time(responses_end);
        let before = |reserve| time_up.checked_sub(reserve).unwrap_or(began);
        let times = Times {
            looking_up_ends: sending_ends.min(began + LOOKING_UP),
            sending_ends,
            responses_end,
            storing_ends: before(STORING),
            hiding_ends: before(RESPONDING),
        };

        let mut by_way: HashMap<Way, Vec<Item<'_>>> = HashMap::new();
        let mut unreadable: Vec<(usize, &Record<'_>, Unreadable)> = Vec::new();
        for (position, record) in records.iter().enumerate() {
            let text = record.body().unwrap_or_default();
            match Head::read(text) {
                Ok(head) => {
                    let first_seen = from_rfc3339(&head.first_seen).unwrap_or_else(|| self.now());
                    let item = Item { position, record, text, head, first_seen };
                    by_way.entry(Way::of(&item.head)).or_default().push(item);
                }
                Err(error) => unreadable.push((position, record, error)),
            }
        }
        crate::delivery::report_unreadable(
            &unreadable.iter().map(|(_, record, error)| (*record, *error)).collect::<Vec<_>>(),
        );
        let oldest = by_way.values().flatten().map(|item| item.first_seen).min();

        // What is unpacked by all ways together fits the function's memory.
        let budget = crate::delivery::Budget::default();
        let (mut delivered, of_unreadable) = tokio::join!(
            join_all(by_way.into_iter().map(|(way, items)| self.deliver(way, items, times, &budget))),
            self.hold_unreadable(&unreadable, times),
        );
        delivered.push(Delivered { endings: of_unreadable, ..Delivered::default() });
        self.write_lines(&delivered, records.len(), oldest, request_id, began);

        let stays = delivered.iter().flat_map(|delivered| &delivered.endings).filter(|ending| ending.stays);
        sqs_event::retried(stays.map(|ending| records[ending.position].message_id.0.as_ref()))
    }

    /// One line for each flow, the first with what belongs to the batch; unreadable records have a line without a flow.
    fn write_lines(
        &self,
        delivered: &[Delivered],
        records: usize,
        oldest: Option<SystemTime>,
        request_id: &str,
        began: Instant,
    ) {
        let mut counts = Counts::default();
        for report in delivered.iter().filter_map(|delivered| delivered.report.as_ref()) {
            counts.sent(report);
        }
        for (_, hint) in counts.hints() {
            tracing::error!(request_id, hint, "failed to send to an event hub");
        }
        // They are not new: they count as redelivered.
        counts.delivered = 0;
        let mut by_flow: BTreeMap<Option<&str>, Vec<&Ending>> = BTreeMap::new();
        for ending in delivered.iter().flat_map(|delivered| &delivered.endings) {
            by_flow.entry(ending.flow.as_deref()).or_default().push(ending);
        }
        let lines = by_flow.len() as u128;
        for (place, (flow, endings)) in by_flow.into_iter().enumerate() {
            let mut line = Line::new(&self.services, KIND, flow, request_id);
            line.property(log_line::TRIGGER, "parking");
            line.count(metrics::REDELIVERED, endings.iter().map(|ending| ending.delivered).sum());
            line.count(metrics::HELD, endings.iter().filter(|ending| ending.stays || ending.gathered > 0).count());
            line.count(metrics::GATHERED, endings.iter().map(|ending| ending.gathered).sum());
            let mut counts = if place == 0 { std::mem::take(&mut counts) } else { Counts::default() };
            for reason in endings.iter().flat_map(|ending| &ending.rejected) {
                counts.reject(*reason);
            }
            line.counts(&counts);
            if place == 0 {
                line.count(metrics::BATCH_SIZE, records);
                let probes = || delivered.iter().filter_map(|delivered| delivered.probe);
                line.count(metrics::PROBES, probes().count());
                line.count(metrics::PROBES_FAILED, probes().filter(|failed| *failed).count());
                line.count(metrics::HUBS_DOWN, self.ways.count_open(self.now()) + self.places.count_open(self.now()));
                if let Some(units) = delivered.iter().filter_map(|delivered| delivered.units).reduce(f64::min) {
                    line.decimal(metrics::PACE_UNITS, units);
                }
                if let Some(oldest) = oldest {
                    let age = self.now().duration_since(oldest).unwrap_or_default();
                    line.metric(metrics::OLDEST_PARKED_AGE, age.as_secs().into());
                }
                line.number(log_line::DURATION_MS, began.elapsed().as_millis());
            }
            line.number(log_line::LINES, lines);
            line.number(log_line::RECORDS_FAILED, endings.iter().filter(|ending| ending.stays).count() as u128);
            line.write(log_line::message::PARKED_BATCH);
        }
    }
}
