//! One batch of records after another: partitions side by side, the records of one in their order, and of each partition the
//! first that must come again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use lambda_runtime::Diagnostic;
use shared::aws::reads::Reads;
use shared::clock::Clock;
use shared::contract::flow_item::FlowItem;
use shared::contract::metrics;
use shared::contract::rejected::{RejectedEvent, Source};
use shared::environment::{Environment, FLOWS_TABLE, SettingsError};
use shared::event_hubs::response::Cause;
use shared::flow::table::{FlowTableError, Opened};
use shared::http::{Attempts, RetryPolicy};
use shared::json;
use shared::lambda::diagnostic;
use shared::lambda::settings::Settings;
use shared::pipeline::services::Services;
use shared::pipeline::telemetry::{Counts, Line};
use shared::trigger::deadline::sending_ends;
use shared::{DEFAULT_FLOW, Function, Invocation, Reason, Rejection};
use tokio::time::Instant;

use crate::KIND;
use crate::inlet::{Again, Answer as InletAnswer, Inlet, Tally, Verdict};
use crate::kafka_event::{Answer, Failure, Partition, partitions};
use crate::record;
use crate::settings::{BatchFailures, INLET_URL, LocalHosts, OptionError, Options};

/// Number of attempts of one request: the first, and the three retries that the documentation asks for after a 503.
const ATTEMPTS: u32 = 4;
const RETRY: RetryPolicy = RetryPolicy {
    attempts: ATTEMPTS,
    first_wait: Duration::from_millis(300),
    max_wait: Duration::from_secs(10),
    ..RetryPolicy::DEFAULT
};
/// As long a flow may be looked up.
const LOOKING_UP: Duration = Duration::from_secs(5);
/// What is left of the function's time for answering.
const ANSWERING: Duration = Duration::from_millis(300);
/// How an alias names its flow.
const ALIAS: &str = "flow-";

/// Posts the records of Kafka batches to their flow's inlet.
pub struct PlatformIngest {
    services: Services,
    hosts: LocalHosts,
    failures: BatchFailures,
    /// The options of the default flow, and its inlet once the client's secret could be read.
    of_default: Option<(Options, Mutex<Option<Arc<Inlet>>>)>,
    of_flows: Opened<Inlet>,
    /// The reads of the client secrets that could not be read, by flow.
    unread: Mutex<HashMap<String, Reads>>,
}

/// Why nothing of a batch can be sent now.
#[derive(Debug, thiserror::Error)]
enum Unresolved {
    #[error("the function was invoked by no alias flow-{{id}}, and {INLET_URL} is not set")]
    NoDefault,
    #[error("the function was invoked by a flow's alias, and {FLOWS_TABLE} is not set")]
    NoTable,
    #[error("there is no such flow")]
    Unknown,
    #[error("the flow is disabled")]
    Disabled,
    #[error("the flow is one of {0}")]
    OtherKind(String),
    #[error("the flow has no options")]
    NoOptions,
    #[error("the flow's options can't be used: {0}")]
    Options(String),
    #[error(transparent)]
    Option(#[from] OptionError),
    #[error(transparent)]
    Table(#[from] FlowTableError),
    #[error(transparent)]
    Secret(#[from] SettingsError),
    #[error("its client secret could not be read several times; it is read again in some seconds")]
    Unread,
}

/// A record that can be sent, by its position in its partition.
struct Item {
    position: usize,
    body: Vec<u8>,
}

/// What became of the records of a partition.
#[derive(Default)]
struct Ending {
    accepted: usize,
    /// Rejections, by position in the partition.
    rejected: Vec<(usize, Rejection)>,
    /// The first position that must come again, and why, if that is the inlet's doing.
    stopped: Option<(usize, Option<Cause>)>,
    tally: Tally,
}

impl PlatformIngest {
    /// # Errors
    /// A setting that is missing or can't be used is an error. A client secret that can't be read is not: it may be right at the next
    /// read, and flows of the table don't need it.
    pub async fn open(environment: Environment, clock: Clock, deadline: Instant) -> Result<Self, SettingsError> {
        let settings = Settings::read(&environment)?;
        let hosts = LocalHosts::read(&environment);
        let failures = BatchFailures::read(&environment)?;
        let options = match Options::from_environment(&environment)? {
            Some(options) => {
                options.target(&hosts).map_err(OptionError::of_environment)?;
                Some(options)
            }
            None if settings.flows_table.is_none() => {
                let problem = format!("missing; set it to the inlet, or {FLOWS_TABLE} to the table of flows");
                return Err(SettingsError::new(INLET_URL, problem));
            }
            None => None,
        };
        let services = settings.services(environment, clock)?;
        let of_default = options.map(|options| (options, Mutex::default()));
        let function =
            Self { services, hosts, failures, of_default, of_flows: Opened::default(), unread: Mutex::default() };
        if function.of_default.is_some()
            && let Err(error) = function.inlet(DEFAULT_FLOW, deadline.min(Instant::now() + LOOKING_UP)).await
        {
            let variable = if let Unresolved::Secret(error) = &error { error.variable } else { INLET_URL };
            tracing::error!(variable, problem = %error, "the default flow's records stay in the hub until its secret can be read");
        }
        Ok(function)
    }

    /// The inlet of a flow.
    async fn inlet(&self, flow: &str, deadline: Instant) -> Result<Arc<Inlet>, Unresolved> {
        if flow == DEFAULT_FLOW {
            let (options, inlet) = self.of_default.as_ref().ok_or(Unresolved::NoDefault)?;
            if let Some(inlet) = lock(inlet).clone() {
                return Ok(inlet);
            }
            let opened = Arc::new(self.open_inlet(flow, options, deadline).await?);
            *lock(inlet) = Some(opened.clone());
            return Ok(opened);
        }
        let table = self.services.flow_table.as_ref().ok_or(Unresolved::NoTable)?;
        let item = table.item(flow, deadline).await?.ok_or(Unresolved::Unknown)?;
        if item.kind != KIND {
            return Err(Unresolved::OtherKind(item.kind.clone()));
        }
        if !item.enabled {
            return Err(Unresolved::Disabled);
        }
        self.of_flows.get(flow, &item, self.open_flow(flow, &item, deadline)).await
    }

    async fn open_flow(&self, flow: &str, item: &FlowItem, deadline: Instant) -> Result<Inlet, Unresolved> {
        let options = item.options.as_deref().ok_or(Unresolved::NoOptions)?;
        let options: Options = json::from_config(options).map_err(Unresolved::Options)?;
        self.open_inlet(flow, &options, deadline).await
    }

    /// Opens a flow's inlet, unless that has failed too often in the last seconds.
    async fn open_inlet(&self, flow: &str, options: &Options, deadline: Instant) -> Result<Inlet, Unresolved> {
        let target = options.target(&self.hosts)?;
        let now = self.services.hubs.clock.unix_seconds();
        if !lock(&self.unread).entry(flow.to_owned()).or_default().may_read(now) {
            return Err(Unresolved::Unread);
        }
        let inlet = Inlet::open(&self.services, target, deadline).await?;
        lock(&self.unread).remove(flow);
        Ok(inlet)
    }

    async fn handle(
        &self,
        flow: &str,
        partitions: &[Partition<'_>],
        Invocation { request_id, began, time_up, .. }: Invocation<'_>,
    ) -> Answer {
        let deadline = sending_ends(time_up);
        let received = partitions.iter().map(|partition| partition.records.len()).sum::<usize>();
        let inlet = match self.inlet(flow, deadline.min(Instant::now() + LOOKING_UP)).await {
            Ok(inlet) => inlet,
            Err(problem) => {
                match problem {
                    Unresolved::Disabled => tracing::warn!(request_id, flow, "{problem}: its records stay in the hub"),
                    _ => tracing::error!(request_id, flow, %problem, "the flow's records stay in the hub"),
                }
                let mut counts = Counts { received, ..Counts::default() };
                // A disabled flow is no error.
                if !matches!(problem, Unresolved::Disabled) {
                    counts.causes.insert(Cause::Unexpected, received);
                }
                let mut line = Line::new(&self.services, KIND, Some(flow), request_id);
                line.property("trigger", "kafka");
                line.counts(&counts);
                line.number("records.failed", received as u128);
                line.write("batch ingested");
                let firsts = partitions.iter().filter_map(|partition| Some((partition, partition.records.first()?)));
                let failures = firsts.map(|(partition, record)| Failure::new(&partition.name, record.offset));
                return Answer { batch_item_failures: failures.collect() };
            }
        };
        let shut = OnceLock::new();
        let sendings = partitions.iter().map(|partition| ingest(&inlet, partition, deadline, &shut));
        let mut endings = join_all(sendings).await;
        let keeping_ends = time_up.checked_sub(ANSWERING).unwrap_or(deadline);
        let mut counts = Counts { received, ..Counts::default() };
        self.keep(flow, partitions, &mut endings, &mut counts, keeping_ends).await;

        let mut failures = Vec::new();
        let mut failed = 0;
        let (mut problem, mut transaction) = (None, None);
        for (partition, ending) in partitions.iter().zip(&mut endings) {
            if let Some((position, cause)) = ending.stopped {
                failures.push(Failure::new(&partition.name, partition.records[position].offset));
                let records = partition.records.len() - position;
                failed += records;
                if let Some(cause) = cause {
                    *counts.causes.entry(cause).or_default() += records;
                }
            }
            counts.delivered += ending.accepted;
            counts.requests += ending.tally.requests;
            counts.retries += ending.tally.retries;
            counts.hints.extend(ending.tally.hints.iter().map(|(cause, hint)| (*cause, hint.clone().into())));
            problem = ending.tally.problem.take().or(problem);
            transaction = ending.tally.transaction.take().or(transaction);
        }
        for cause in counts.causes.keys() {
            let observed = counts.hints.get(cause).map(|hint| hint.as_ref());
            if let Some(hint) = observed.or(hint(*cause)) {
                let reason = cause.word();
                tracing::error!(
                    request_id,
                    flow,
                    reason,
                    hint,
                    "failed to send to the inlet; the records stay in the hub"
                );
            }
        }
        let mut line = Line::new(&self.services, KIND, Some(flow), request_id);
        line.property("trigger", "kafka");
        line.count(metrics::BATCH_SIZE, received);
        line.counts(&counts);
        for (name, text) in [("inlet.problem", problem), ("inlet.transaction", transaction)] {
            if let Some(text) = text {
                line.property(name, &text);
            }
        }
        line.number("partitions", partitions.len() as u128);
        line.number("records.failed", failed as u128);
        line.number("duration_ms", began.elapsed().as_millis());
        line.write("batch ingested");
        Answer { batch_item_failures: failures }
    }

    /// Keeps what can never be ingested and stands before what comes again; a record that can't be kept comes again, and all
    /// behind it.
    async fn keep(
        &self,
        flow: &str,
        partitions: &[Partition<'_>],
        endings: &mut [Ending],
        counts: &mut Counts,
        deadline: Instant,
    ) {
        let mut places = Vec::new();
        let mut bodies = Vec::new();
        for (index, (partition, ending)) in partitions.iter().zip(&mut *endings).enumerate() {
            let end = ending.stopped.map_or(usize::MAX, |(position, _)| position);
            for (position, rejection) in ending.rejected.drain(..).filter(|(position, _)| *position < end) {
                let record = &partition.records[position];
                let detail = format!("{} at {}: {}", partition.name, record.offset, rejection.detail);
                places.push((index, position, Rejection { detail: detail.into(), ..rejection }));
                bodies.push(record.value().ok().flatten().unwrap_or_else(|| record.json.as_bytes().to_vec()));
            }
        }
        let now = self.services.hubs.clock.rfc3339();
        let rejects: Vec<RejectedEvent<'_>> = places
            .iter()
            .zip(&bodies)
            .map(|((_, _, rejection), body)| {
                RejectedEvent::new(KIND, flow, rejection.clone(), Source::Kafka, body, now.as_str())
            })
            .collect();
        let kept = self.services.keep(&rejects, deadline).await;
        let mut lost = places.iter().zip(&kept).filter(|(_, kept)| !**kept).map(|(place, _)| place).peekable();
        if let Some((.., rejection)) = lost.peek() {
            let (reason, detail) = (rejection.reason.word(), rejection.detail.as_ref());
            tracing::error!(flow, reason, detail, "a rejected record can't be kept, and holds back its partition");
        }
        for (index, position, _) in lost {
            let stopped = &mut endings[*index].stopped;
            if stopped.is_none_or(|(known, _)| *position < known) {
                *stopped = Some((*position, None));
            }
        }
        for ((_, _, rejection), _) in places.iter().zip(&kept).filter(|(_, kept)| **kept) {
            counts.reject(rejection.reason);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Function for PlatformIngest {
    type Response = Answer;

    async fn invoke(&self, event: &str, invocation: Invocation<'_>) -> Result<Answer, Diagnostic> {
        let partitions = partitions(event).map_err(|error| diagnostic("UnknownEvent", &error.to_string()))?;
        let answer = self.handle(flow_of(invocation.invoked_arn), &partitions, invocation).await;
        match self.failures {
            BatchFailures::Whole if !answer.batch_item_failures.is_empty() => {
                Err(diagnostic("RecordsFailed", "some records were not ingested: the batch must come again"))
            }
            _ => Ok(answer),
        }
    }
}

/// The flow that an invoked ARN names by its alias, `…:function:platform-ingest:flow-{id}`.
fn flow_of(invoked_arn: &str) -> &str {
    let alias = invoked_arn.split(':').nth(7).unwrap_or_default();
    alias.strip_prefix(ALIAS).filter(|id| !id.is_empty()).unwrap_or(DEFAULT_FLOW)
}

/// Sends the records of a partition, one request after another, until all have an end or one must come again. `shut` tells the
/// partitions of each other that the inlet takes nothing.
async fn ingest(inlet: &Inlet, partition: &Partition<'_>, deadline: Instant, shut: &OnceLock<Cause>) -> Ending {
    let mut ending = Ending::default();
    let mut items = Vec::with_capacity(partition.records.len());
    for (position, record) in partition.records.iter().enumerate() {
        let body = record::value(record).and_then(|value| inlet.body(record::object(&value)?, record));
        match body {
            Ok(body) => items.push(Item { position, body }),
            Err(rejection) => ending.rejected.push((position, rejection)),
        }
    }
    send(inlet, &items, deadline, shut, &mut ending).await;
    ending
}

async fn send(inlet: &Inlet, items: &[Item], deadline: Instant, shut: &OnceLock<Cause>, ending: &mut Ending) {
    let (mut next, mut most) = (0, inlet.most());
    let mut attempts = Attempts::new(RETRY, deadline);
    // One that the inlet fails at, alone: rejected if it takes the one behind it, else the inlet is down.
    let mut suspect: Option<usize> = None;
    while next < items.len() {
        let stop = |cause| Some((items[suspect.unwrap_or(next)].position, Some(cause)));
        if let Some(cause) = shut.get() {
            ending.stopped = stop(*cause);
            return;
        }
        let Some(attempt) = attempts.begin() else {
            ending.stopped = stop(Cause::Timeout);
            return;
        };
        let left = &items[next..];
        let count = inlet.fitting(left.iter().map(|item| item.body.as_slice()), most);
        let bodies: Vec<&[u8]> = left[..count].iter().map(|item| item.body.as_slice()).collect();
        let again = match inlet.post(&bodies, attempt, &mut ending.tally).await {
            InletAnswer::Each(verdicts) => {
                // What comes behind one that must be sent again is sent again with it, so that the last word is in order.
                let (done, open) = settle(inlet, &verdicts, left, ending);
                next += done;
                if done > 0 {
                    attempts.reset();
                    reject_suspect(&mut suspect, items, ending);
                }
                match open {
                    None => {
                        most = (most * 2).min(inlet.most());
                        continue;
                    }
                    // Alone its answer can't be mistaken.
                    Some(Verdict::Unknown) if count > 1 => {
                        most = 1;
                        attempts.reset();
                        continue;
                    }
                    Some(Verdict::Refused(_)) => {
                        ending.stopped = Some((items[suspect.unwrap_or(next)].position, Some(Cause::Forbidden)));
                        return;
                    }
                    Some(Verdict::Again(again)) => {
                        attempts.count_one();
                        again
                    }
                    Some(_) => Again { cause: Cause::Unexpected, wait: None, may_be_the_records: true },
                }
            }
            InletAnswer::Refused(_) if count > 1 => {
                most = count / 2;
                attempts.reset();
                continue;
            }
            InletAnswer::Refused(status) if inlet.refused(status, &mut ending.tally) => {
                ending.rejected.push((left[0].position, refused(status)));
                next += 1;
                attempts.reset();
                reject_suspect(&mut suspect, items, ending);
                continue;
            }
            InletAnswer::Refused(_) => {
                ending.stopped = stop(Cause::Forbidden);
                return;
            }
            InletAnswer::TokenRefused(generation) if attempts.renew_once() => {
                attempts.uncount();
                ending.tally.retries += 1;
                inlet.renew(generation, deadline).await;
                continue;
            }
            InletAnswer::TokenRefused(_) => {
                ending.stopped = stop(*shut.get_or_init(|| Cause::Unauthorized));
                return;
            }
            InletAnswer::Again(again) => again,
            InletAnswer::Stop(cause) => {
                ending.stopped = stop(*shut.get_or_init(|| cause));
                return;
            }
        };
        if attempts.are_used_up() && again.may_be_the_records && (count > 1 || suspect.is_none()) {
            // One attempt for each part: the whole has had its own.
            attempts.leave_one();
            if count > 1 {
                most = count / 2;
            } else {
                suspect = Some(next);
                next += 1;
            }
            continue;
        }
        if !attempts.again(again.cause == Cause::ConnectionLost, again.wait).await {
            ending.stopped = Some((items[suspect.unwrap_or(next)].position, Some(again.cause)));
            return;
        }
        ending.tally.retries += 1;
    }
    // Nothing behind it shows that the inlet works.
    ending.stopped = suspect.map(|suspect| (items[suspect].position, Some(Cause::Unavailable)));
}

/// Books the records up to the first that is not done with: their number, and what was said of that one.
fn settle(inlet: &Inlet, verdicts: &[Verdict], items: &[Item], ending: &mut Ending) -> (usize, Option<Verdict>) {
    if verdicts.contains(&Verdict::Accepted) {
        inlet.accepted();
    }
    for (index, (verdict, item)) in verdicts.iter().zip(items).enumerate() {
        match verdict {
            Verdict::Accepted => ending.accepted += 1,
            Verdict::Refused(status) if inlet.refused(*status, &mut ending.tally) => {
                ending.rejected.push((item.position, refused(*status)));
            }
            open => return (index, Some(*open)),
        }
    }
    (verdicts.len(), None)
}

fn reject_suspect(suspect: &mut Option<usize>, items: &[Item], ending: &mut Ending) {
    if let Some(suspect) = suspect.take() {
        ending.rejected.push((items[suspect].position, refused(500)));
    }
}

fn refused(status: u16) -> Rejection {
    match status {
        413 => Rejection::too_large("the record is larger than the inlet takes"),
        status => {
            Rejection { reason: Reason::Refused, detail: format!("the inlet answers {status} to this record").into() }
        }
    }
}

/// What an operator should look at; `None` where time heals.
fn hint(cause: Cause) -> Option<&'static str> {
    match cause {
        Cause::Unauthorized | Cause::Forbidden | Cause::TokenExpired => {
            Some("the inlet or the token endpoint refuses the client: check IMS_SECRET_ID, IMS_SCOPE and the sandbox")
        }
        Cause::NotFound => Some("the inlet does not exist: check INLET_URL"),
        Cause::Unexpected => Some("the inlet gave an answer that is not documented: check INLET_URL"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_names_its_flow() {
        const ARN: &str = "arn:aws:lambda:eu-central-1:123456789012:function:stack-PlatformIngest-a1";
        for (qualifier, flow) in [
            ("", "default"),
            (":$LATEST", "default"),
            (":live", "default"),
            (":flow-", "default"),
            (":flow-226f", "226f"),
        ] {
            assert_eq!(flow_of(&format!("{ARN}{qualifier}")), flow, "{qualifier}");
        }
        assert_eq!(flow_of(""), "default");
    }
}
