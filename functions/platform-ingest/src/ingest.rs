//! One batch of records after another: partitions concurrently, the records of one in their order. The response names the
//! first record of each partition that Lambda must deliver again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use lambda_runtime::Diagnostic;
use shared::aws::reads::Reads;
use shared::clock::Clock;
use shared::contract::flow_item::FlowItem;
use shared::contract::inlet::{InletOptions, KIND};
use shared::contract::rejected::{RejectedEvent, Source};
use shared::contract::{alias, log_line, metrics};
use shared::environment::{Environment, FLOWS_TABLE, SettingsError};
use shared::event_hubs::response::Cause;
use shared::flow::table::{FlowTableError, Opened};
use shared::json;
use shared::lambda::diagnostic;
use shared::lambda::settings::Settings;
use shared::pipeline::services::Services;
use shared::pipeline::telemetry::{Counts, Line};
use shared::trigger::deadline::sending_ends;
use shared::{DEFAULT_FLOW, Function, Invocation, Rejection};
use tokio::time::Instant;

use crate::inlet::Inlet;
use crate::kafka_event::{Failure, Partition, Response, partitions};
use crate::sending::{self, Ending};
use crate::settings::{self, BatchFailures, INLET_URL, LocalHosts, OptionError};

/// Maximum time to look up a flow.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Part of the function's time that only the response may use; storing rejected records ends before it.
const RESPONSE_RESERVE: Duration = Duration::from_millis(300);

/// Posts the records of Kafka batches to their flow's inlet.
pub struct PlatformIngest {
    services: Services,
    hosts: LocalHosts,
    failures: BatchFailures,
    /// The options of the default flow, and its inlet once the client's secret could be read.
    of_default: Option<(InletOptions, Mutex<Option<Arc<Inlet>>>)>,
    of_flows: Opened<Inlet>,
    /// The reads of the client secrets that could not be read, by flow.
    unread: Mutex<HashMap<String, Reads>>,
}

/// Why no record of a batch can be sent now.
#[derive(Debug, thiserror::Error)]
enum Unresolved {
    #[error("the function was not invoked through an alias flow-{{id}}, and {INLET_URL} is not set")]
    NoDefault,
    #[error("the function was invoked through a flow's alias, and {FLOWS_TABLE} is not set")]
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
    #[error("the client secret could not be read several times; it is read again in some seconds")]
    Unread,
}

impl PlatformIngest {
    /// # Errors
    /// Fails if a setting is missing or can't be used. A client secret that can't be read is not an error: the next read may
    /// succeed, and flows of the table do not need it.
    pub async fn open(environment: Environment, clock: Clock, deadline: Instant) -> Result<Self, SettingsError> {
        let settings = Settings::read(&environment)?;
        let hosts = LocalHosts::read(&environment);
        let failures = BatchFailures::read(&environment)?;
        let options = match settings::options_of_environment(&environment)? {
            Some(options) => {
                settings::target(&options, &hosts).map_err(OptionError::of_environment)?;
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
            && let Err(error) = function.inlet(DEFAULT_FLOW, deadline.min(Instant::now() + LOOKUP_TIMEOUT)).await
        {
            let variable = if let Unresolved::Secret(error) = &error { error.variable } else { INLET_URL };
            tracing::error!(
                variable,
                problem = %error,
                "failed to open the default flow's inlet; its records stay in the hub until the client secret can be read"
            );
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
        let options: InletOptions = json::from_config(options).map_err(Unresolved::Options)?;
        self.open_inlet(flow, &options, deadline).await
    }

    /// Opens a flow's inlet, unless that has failed too often in the last seconds.
    async fn open_inlet(&self, flow: &str, options: &InletOptions, deadline: Instant) -> Result<Inlet, Unresolved> {
        let target = settings::target(options, &self.hosts)?;
        let now = self.services.hubs.clock.unix_seconds();
        if !lock(&self.unread).entry(flow.to_owned()).or_default().may_read(now) {
            return Err(Unresolved::Unread);
        }
        let inlet = Inlet::open(&self.services, target, deadline).await?;
        lock(&self.unread).remove(flow);
        Ok(inlet)
    }

    async fn handle(&self, flow: &str, partitions: &[Partition<'_>], invocation: Invocation<'_>) -> Response {
        let deadline = sending_ends(invocation.time_up);
        let inlet = match self.inlet(flow, deadline.min(Instant::now() + LOOKUP_TIMEOUT)).await {
            Ok(inlet) => inlet,
            Err(problem) => return self.return_all(flow, partitions, &problem, invocation.request_id),
        };
        let shut = OnceLock::new();
        let sendings = partitions.iter().map(|partition| sending::send(&inlet, partition, deadline, &shut));
        let mut endings = join_all(sendings).await;
        let storing_ends = invocation.time_up.checked_sub(RESPONSE_RESERVE).unwrap_or(deadline);
        let mut counts = Counts { received: count(partitions), ..Counts::default() };
        self.store_rejected(flow, partitions, &mut endings, &mut counts, storing_ends).await;
        self.report(flow, partitions, endings, counts, invocation)
    }

    /// Returns every record to Lambda, since the flow can't be resolved now.
    fn return_all(&self, flow: &str, partitions: &[Partition<'_>], problem: &Unresolved, request_id: &str) -> Response {
        const TEXT: &str = "failed to resolve the flow of a batch; its records stay in the hub";
        let received = count(partitions);
        let mut counts = Counts { received, ..Counts::default() };
        match problem {
            // An operator disabled the flow: it counts as no error.
            Unresolved::Disabled => tracing::warn!(request_id, flow, %problem, "{TEXT}"),
            _ => {
                tracing::error!(request_id, flow, %problem, "{TEXT}");
                counts.causes.insert(Cause::Unexpected, received);
            }
        }
        let mut line = self.line(flow, request_id);
        line.counts(&counts);
        line.number(log_line::RECORDS_FAILED, received as u128);
        line.write(log_line::message::KAFKA_BATCH);
        let firsts = partitions.iter().filter_map(|partition| Some((partition, partition.records.first()?)));
        let failures = firsts.map(|(partition, record)| Failure::new(&partition.name, record.offset));
        Response { batch_item_failures: failures.collect() }
    }

    /// Logs the outcomes of a batch and names the records that Lambda must deliver again.
    fn report(
        &self,
        flow: &str,
        partitions: &[Partition<'_>],
        endings: Vec<Ending>,
        mut counts: Counts,
        Invocation { request_id, began, .. }: Invocation<'_>,
    ) -> Response {
        let mut failures = Vec::new();
        let mut failed = 0;
        let (mut problem, mut transaction) = (None, None);
        for (partition, ending) in partitions.iter().zip(endings) {
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
            counts.hints.extend(ending.tally.hints.into_iter().map(|(cause, hint)| (cause, hint.into())));
            problem = ending.tally.problem.or(problem);
            transaction = ending.tally.transaction.or(transaction);
        }
        for cause in counts.causes.keys() {
            let observed = counts.hints.get(cause).map(|hint| hint.as_ref());
            if let Some(hint) = observed.or(hint(*cause)) {
                let reason = cause.word();
                let text = "failed to send to the inlet; the records stay in the hub";
                tracing::error!(request_id, flow, reason, hint, "{text}");
            }
        }
        let mut line = self.line(flow, request_id);
        line.count(metrics::BATCH_SIZE, counts.received);
        line.counts(&counts);
        for (name, text) in [(log_line::INLET_PROBLEM, problem), (log_line::INLET_TRANSACTION, transaction)] {
            if let Some(text) = text {
                line.property(name, &text);
            }
        }
        line.number(log_line::PARTITIONS, partitions.len() as u128);
        line.number(log_line::RECORDS_FAILED, failed as u128);
        line.number(log_line::DURATION_MS, began.elapsed().as_millis());
        line.write(log_line::message::KAFKA_BATCH);
        Response { batch_item_failures: failures }
    }

    fn line(&self, flow: &str, request_id: &str) -> Line {
        let mut line = Line::new(&self.services, KIND, Some(flow), request_id);
        line.property(log_line::TRIGGER, "kafka");
        line
    }

    /// Stores the rejected records that come before the first record to be delivered again. A record that can't be stored
    /// must be delivered again, and all after it.
    async fn store_rejected(
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
        let stored = self.services.store_rejected(&rejects, deadline).await;
        let mut lost = places.iter().zip(&stored).filter(|(_, stored)| !**stored).map(|(place, _)| place).peekable();
        if let Some((.., rejection)) = lost.peek() {
            let (reason, detail) = (rejection.reason.word(), rejection.detail.as_ref());
            tracing::error!(flow, reason, detail, "failed to store a rejected record; it blocks its partition");
        }
        for (index, position, _) in lost {
            let stopped = &mut endings[*index].stopped;
            if stopped.is_none_or(|(known, _)| *position < known) {
                *stopped = Some((*position, None));
            }
        }
        for ((_, _, rejection), _) in places.iter().zip(&stored).filter(|(_, stored)| **stored) {
            counts.reject(rejection.reason);
        }
    }
}

/// Number of records of a batch.
fn count(partitions: &[Partition<'_>]) -> usize {
    partitions.iter().map(|partition| partition.records.len()).sum()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Function for PlatformIngest {
    type Response = Response;

    async fn invoke(&self, event: &str, invocation: Invocation<'_>) -> Result<Response, Diagnostic> {
        let partitions = partitions(event).map_err(|error| diagnostic("UnknownEvent", &error.to_string()))?;
        let response = self.handle(flow_of(invocation.invoked_arn), &partitions, invocation).await;
        match self.failures {
            BatchFailures::Whole if !response.batch_item_failures.is_empty() => {
                Err(diagnostic("RecordsFailed", "some records were not ingested; Lambda must retry the whole batch"))
            }
            _ => Ok(response),
        }
    }
}

/// The flow that an invoked ARN names by its alias, `…:function:platform-ingest:flow-{id}`.
fn flow_of(invoked_arn: &str) -> &str {
    invoked_arn.split(':').nth(7).and_then(alias::flow).unwrap_or(DEFAULT_FLOW)
}

/// What an operator should look at, if nothing more is known than the cause; `None` where time alone helps.
fn hint(cause: Cause) -> Option<&'static str> {
    match cause {
        Cause::Unauthorized | Cause::Forbidden | Cause::TokenExpired => {
            Some("the inlet or the token endpoint refuses the client: check IMS_SECRET_ID, IMS_SCOPE and the sandbox")
        }
        Cause::NotFound => Some("the inlet does not exist: check INLET_URL"),
        Cause::Unexpected => Some("the inlet gave a response that is not documented: check INLET_URL"),
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
