//! Sends messages to an event hub over REST and reports the outcome of each. It stores nothing: its caller stores the
//! messages that could not be delivered.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, Request as HttpRequest};
use tokio::time::Instant;

use super::batch::{Group, Request, group};
use super::circuit::{Admission, Circuit, Circuits, Policy};
use super::connection::{Access, Connection, Wanted};
use super::pace::{Limit, Pace};
use super::partitioning::{Partitioning, Route};
use super::response::{Cause, Disposition, Identifier, Refusal, classify, hint};
use crate::aws::Aws;
use crate::aws::secret::SecretSource;
use crate::clock::Clock;
use crate::contract::parked::Destination;
use crate::environment::SettingsError;
use crate::http::{Attempt, Attempts, Http, RetryPolicy};
use crate::message::Message;

/// Retries of new events. A hub has needed 10 s and more for its first response after it had been idle. The events of a
/// request that is cut off too soon may be stored all the same, and the timeout proves nothing about the hub.
const LIVE: RetryPolicy = RetryPolicy { min_attempt: Duration::from_millis(100), ..RetryPolicy::DEFAULT };
/// Retries of parked messages: none, since their queue delivers them again.
const ONCE: RetryPolicy = RetryPolicy { attempts: 1, ..LIVE };
/// Timeout of one attempt for parked messages: the instance has other hubs to serve.
const PACED_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a probe for new events. A webhook's own deadline is shorter; a queue's records may wait for a slow hub.
const LIVE_PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a probe, and of the first contact, for parked messages.
const PACED_PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum time that a hub that does not respond may cost the first webhook, whose sender is waiting.
const WARM_UP_TIMEOUT: Duration = Duration::from_millis(250);
/// Number of groups in flight concurrently.
const IN_FLIGHT: usize = 16;
/// Maximum number of bytes of an error document that are read.
const MAX_ERROR_BODY: usize = 4096;
/// Timeout of a response's body after its head.
const BODY_TIMEOUT: Duration = Duration::from_millis(200);

/// The header by which the hub does not retry a request itself: the loop here decides on retries.
const RETRY_POLICY: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-ms-retrypolicy"), HeaderValue::from_static("NoRetry"));
/// The setting that the address of the hub comes from.
const ENDPOINT: &str = "`Endpoint` of the connection string";

/// Only the content type distinguishes a batch from a single event.
const BATCH: HeaderValue = HeaderValue::from_static("application/vnd.microsoft.servicebus.json");

/// How new events treat a hub that fails: after three failures in a row one event a second is sent.
const LIVE_CIRCUIT: Policy = Policy { opens_after: 3, probe_interval: Duration::from_secs(1), jitter: 0.0 };

/// The outcome of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Delivered,
    /// The hub will never accept it.
    Refused(Refusal),
    /// The message is valid, and was not accepted for this cause.
    Unsent(Cause),
}

/// The outcomes of a set of messages, and the requests that they needed.
#[derive(Debug, Default)]
pub struct Report {
    /// One per message, in their order.
    pub outcomes: Vec<Outcome>,
    pub requests: u32,
    pub retries: u32,
    /// Responses by which the hub throttled a request.
    pub throttled: u32,
    pub took: Duration,
    /// The last failure, for the log: a status and the hub's own code, or why there was no response.
    pub problem: Option<String>,
    /// What an operator should look at, by cause, as far as the failures themselves show it.
    pub hints: BTreeMap<Cause, Cow<'static, str>>,
    /// Why sending ended before all messages were tried: the hub fails, or an operator has to fix something.
    pub stopped: Option<Cause>,
}

/// The clients and settings that all hubs of a process share.
#[derive(Clone)]
pub struct Hubs {
    pub http: Http,
    /// Reads the secrets of connections.
    pub aws: Aws,
    pub clock: Clock,
    /// Size budget of one request, in bytes.
    pub max_batch_bytes: usize,
    circuits: Arc<Circuits<(String, String)>>,
}

/// Sends to one hub.
pub struct EventHub {
    http: Http,
    connection: Connection,
    partitioning: Partitioning,
    max_batch_bytes: usize,
    clock: Clock,
    circuit: Arc<Circuit>,
    /// Partitions that have accepted a message: a 400 from one of them is about the message.
    proven_partitions: Mutex<HashSet<u32>>,
}

/// How often and how long a hub is tried, which depends on the kind of messages.
#[derive(Clone, Copy)]
enum Effort<'p> {
    /// New events, for which a sender may wait: retries, and groups concurrently.
    Live,
    /// One attempt that finds out whether the hub responds. For parked messages it goes out at their pace, before that time.
    Probe(Option<(&'p Pace, Instant)>),
    /// Parked messages: at the pace that the hub accepts, none after the first failure, and none after that time.
    Paced(&'p Pace, Instant),
}

impl<'p> Effort<'p> {
    fn retry_policy(self) -> RetryPolicy {
        let once = |attempt_timeout| RetryPolicy { attempt_timeout, ..ONCE };
        match self {
            Self::Live => LIVE,
            Self::Probe(None) => once(LIVE_PROBE_TIMEOUT),
            Self::Probe(Some(_)) => once(PACED_PROBE_TIMEOUT),
            Self::Paced(..) => once(PACED_ATTEMPT_TIMEOUT),
        }
    }

    /// The pace of parked messages, and the time before which a request is to be sent.
    fn pace(self) -> Option<(&'p Pace, Instant)> {
        match self {
            Self::Live | Self::Probe(None) => None,
            Self::Probe(Some(pace)) => Some(pace),
            Self::Paced(pace, last) => Some((pace, last)),
        }
    }

    /// Whether no other request is sent after one failed for `cause`.
    fn stops_at(self, cause: Cause) -> bool {
        match self {
            // The key was read again, and refused again.
            Self::Live | Self::Probe(_) => cause == Cause::Unauthorized,
            Self::Paced(..) => cause.is_the_hubs() && cause != Cause::Throttled,
        }
    }
}

/// Messages that are being sent, and the report about them so far.
struct Sending<'m> {
    messages: &'m [Message<'m>],
    groups: Vec<Group<'m>>,
    report: Report,
    began: Instant,
}

impl<'m> Sending<'m> {
    fn add(&mut self, sent: Sent) {
        for (position, outcome) in sent.outcomes {
            self.report.outcomes[position] = outcome;
        }
        self.report.requests += sent.requests;
        self.report.retries += sent.retries;
        self.report.throttled += sent.throttled;
        self.report.problem = sent.problem.or(self.report.problem.take());
        self.report.hints.extend(sent.hints);
    }

    /// Ends the sending: every message that is not sent has this cause.
    fn stop(mut self, cause: Cause) -> Report {
        for position in self.groups.drain(..).flat_map(Group::unsent) {
            self.report.outcomes[position] = Outcome::Unsent(cause);
        }
        self.report.stopped = Some(cause);
        self.report.took = self.began.elapsed();
        self.report
    }
}

impl Hubs {
    pub fn new(http: Http, aws: Aws, clock: Clock, max_batch_bytes: usize) -> Self {
        Self { http, aws, clock, max_batch_bytes, circuits: Arc::new(Circuits::new(LIVE_CIRCUIT)) }
    }

    /// Reads the connection string from `source` and opens its hub.
    ///
    /// # Errors
    /// Fails if the secret can't be read by `deadline`, or is not a connection string for the `wanted` hub.
    pub async fn open(
        &self,
        source: SecretSource,
        wanted: Wanted,
        partitioning: Partitioning,
        deadline: Instant,
    ) -> Result<EventHub, SettingsError> {
        let Self { http, aws, clock, max_batch_bytes, circuits } = self;
        let connection = Connection::open(source, wanted, aws.clone(), clock.clone(), deadline).await?;
        let Destination { host, hub, .. } = connection.destination().await;
        Ok(EventHub {
            http: http.clone(),
            connection,
            partitioning,
            max_batch_bytes: *max_batch_bytes,
            clock: clock.clone(),
            circuit: circuits.get((host, hub)),
            proven_partitions: Mutex::default(),
        })
    }
}

impl EventHub {
    /// Opens a connection before the first event needs it. A failure is reported by the first event.
    pub async fn warm_up(&self) {
        let url = self.connection.base_url().await;
        self.http.warm_up(url, Instant::now() + WARM_UP_TIMEOUT).await;
    }

    /// Size budget of one request, in bytes.
    pub fn max_batch_bytes(&self) -> usize {
        self.max_batch_bytes
    }

    /// Where messages go at this time.
    pub async fn destination(&self) -> Destination {
        self.connection.destination().await
    }

    /// Sends new messages. Returns when each has an outcome, at `deadline` at the latest. While the hub is known not to
    /// respond, only one message a second is tried.
    ///
    /// A message whose outcome is `Unsent` may be stored all the same, after a timeout or a lost connection.
    pub async fn send(&self, messages: &[Message<'_>], deadline: Instant) -> Report {
        let mut sending = self.sending(messages);
        match self.circuit.admit(self.clock.now()) {
            Admission::Closed => {}
            Admission::Open(open) => return sending.stop(open.cause),
            Admission::Probe => {
                if let Some(cause) = self.probe(&mut sending, 1, Effort::Probe(None), deadline).await {
                    return sending.stop(cause);
                }
            }
        }
        self.send_groups(&mut sending, Effort::Live, deadline).await;
        sending.report.took = sending.began.elapsed();
        sending.report
    }

    /// Sends parked messages at `pace`: the last request is sent before `deadline`, and its response is awaited until
    /// `response_deadline`, since a request that is cut off may be stored. With `probe`, one request of at most that many
    /// messages is sent first; the other messages are sent only if the hub responds to it.
    ///
    /// A message whose outcome is `Unsent` may be stored all the same, after a timeout or a lost connection.
    pub async fn send_paced(
        &self,
        messages: &[Message<'_>],
        probe: Option<usize>,
        pace: &Pace,
        deadline: Instant,
        response_deadline: Instant,
    ) -> Report {
        let mut sending = self.sending(messages);
        if let Some(most) = probe {
            match self.probe(&mut sending, most, Effort::Probe(Some((pace, deadline))), response_deadline).await {
                None | Some(Cause::Throttled) => {}
                Some(cause) => return sending.stop(cause),
            }
        }
        self.send_groups(&mut sending, Effort::Paced(pace, deadline), response_deadline).await;
        sending.report.took = sending.began.elapsed();
        sending.report
    }

    fn sending<'m>(&self, messages: &'m [Message<'m>]) -> Sending<'m> {
        let began = Instant::now();
        let (groups, too_large) = group(messages, self.partitioning, self.max_batch_bytes);
        let mut report =
            Report { outcomes: vec![Outcome::Unsent(Cause::Timeout); messages.len()], ..Report::default() };
        for position in too_large {
            report.outcomes[position] = Outcome::Refused(Refusal::TooLarge);
        }
        Sending { messages, groups, report, began }
    }

    /// Sends one request of `most` messages at most. Returns why the hub can't be sent to; messages that failed are left
    /// to be sent. It is of any route: an event that the hub fails at must not be in each probe.
    async fn probe(
        &self,
        sending: &mut Sending<'_>,
        most: usize,
        effort: Effort<'_>,
        deadline: Instant,
    ) -> Option<Cause> {
        let limit = Limit { messages: most, bytes: self.max_batch_bytes };
        let any = sending.groups.len().checked_sub(1).map(|last| fastrand::usize(..=last))?;
        let group = &mut sending.groups[any];
        group.rotate();
        let request = group.next(sending.messages, limit)?;
        let mut sent = Sent::default();
        let outcome = self.send_request(&request, &group.route, effort, deadline, &mut sent).await;
        let failure = match outcome {
            Outcome::Delivered => {
                self.prove(&group.route);
                sent.outcomes.extend(request.messages().map(|position| (position, outcome)));
                None
            }
            // The hub responds. These messages are sent again with all others, which shows what is wrong with them.
            Outcome::Refused(_) | Outcome::Unsent(Cause::BadPartition) => {
                group.put_back([request]);
                None
            }
            Outcome::Unsent(cause) => {
                group.put_back([request]);
                Some(cause)
            }
        };
        sending.add(sent);
        failure
    }

    /// Sends all groups concurrently.
    async fn send_groups(&self, sending: &mut Sending<'_>, effort: Effort<'_>, deadline: Instant) {
        let (gate, messages) = (OnceLock::new(), sending.messages);
        let groups = std::mem::take(&mut sending.groups);
        let mut sendings = stream::iter(groups)
            .map(|group| self.send_group(group, messages, effort, deadline, &gate))
            .buffer_unordered(IN_FLIGHT);
        while let Some(sent) = sendings.next().await {
            sending.add(sent);
        }
        sending.report.stopped = gate.get().copied();
    }

    /// Sends the requests of a group one after another, which preserves their order. Once one can't be delivered, those
    /// behind it wait with it. `gate` holds the first failure after which nothing more is sent.
    async fn send_group(
        &self,
        mut group: Group<'_>,
        messages: &[Message<'_>],
        effort: Effort<'_>,
        deadline: Instant,
        gate: &OnceLock<Cause>,
    ) -> Sent {
        let mut sent = Sent::default();
        let mut invalid: Vec<usize> = Vec::new();
        let stopped = loop {
            let limit = match effort {
                Effort::Live | Effort::Probe(_) => Limit { messages: usize::MAX, bytes: self.max_batch_bytes },
                Effort::Paced(pace, _) => {
                    let Limit { messages, bytes } = pace.limit();
                    Limit { messages, bytes: bytes.min(self.max_batch_bytes) }
                }
            };
            let Some(request) = group.next(messages, limit) else { break None };
            let outcome = match gate.get() {
                Some(cause) => Outcome::Unsent(*cause),
                None => self.send_request(&request, &group.route, effort, deadline, &mut sent).await,
            };
            match outcome {
                Outcome::Delivered => self.prove(&group.route),
                Outcome::Refused(_) if request.len() > 1 => {
                    group.put_back(request.halve());
                    continue;
                }
                Outcome::Refused(Refusal::Malformed) if matches!(group.route, Route::Partition(_)) => {
                    invalid.extend(request.messages());
                    continue;
                }
                Outcome::Refused(_) | Outcome::Unsent(Cause::BadPartition) => {}
                Outcome::Unsent(cause) => {
                    if effort.stops_at(cause) {
                        gate.get_or_init(|| cause);
                    }
                    group.put_back([request]);
                    break Some(cause);
                }
            }
            sent.outcomes.extend(request.messages().map(|position| (position, outcome)));
        };
        // The cause of a 400 of the partition form is a message or the partition. A partition that has accepted a message
        // exists.
        let outcome = match group.route {
            Route::Partition(id) if self.is_proven(id) => Outcome::Refused(Refusal::Malformed),
            _ => Outcome::Unsent(Cause::BadPartition),
        };
        sent.outcomes.extend(invalid.into_iter().map(|position| (position, outcome)));
        if let Some(cause) = stopped {
            sent.outcomes.extend(group.unsent().map(|position| (position, Outcome::Unsent(cause))));
        }
        sent
    }

    fn prove(&self, route: &Route<'_>) {
        if let Route::Partition(id) = route {
            self.proven_partitions.lock().unwrap_or_else(PoisonError::into_inner).insert(*id);
        }
    }

    fn is_proven(&self, partition: u32) -> bool {
        self.proven_partitions.lock().unwrap_or_else(PoisonError::into_inner).contains(&partition)
    }

    /// Records for the circuit of new events whether the hub responds, and logs a change.
    async fn record(&self, outcome: Outcome) {
        let now = self.clock.now();
        let cause = match outcome {
            Outcome::Unsent(cause) if cause.is_outage() => Some(cause),
            _ => None,
        };
        let change = match cause {
            Some(cause) => self.circuit.failed(cause, now),
            None => self.circuit.responded(now),
        };
        if let Some(change) = change {
            let Destination { host, hub, .. } = self.destination().await;
            super::circuit::log(change, &host, &hub, change.failing_for);
        }
    }

    /// Sends one request until the response is final or the budget is used up.
    async fn send_request(
        &self,
        request: &Request,
        route: &Route<'_>,
        effort: Effort<'_>,
        deadline: Instant,
        sent: &mut Sent,
    ) -> Outcome {
        let before = sent.requests;
        let outcome = self.try_request(request, route, effort, deadline, sent).await;
        // A request that was not sent proves nothing about the hub.
        if matches!(effort, Effort::Live | Effort::Probe(None)) && sent.requests > before {
            self.record(outcome).await;
        }
        outcome
    }

    async fn try_request(
        &self,
        request: &Request,
        route: &Route<'_>,
        effort: Effort<'_>,
        deadline: Instant,
        sent: &mut Sent,
    ) -> Outcome {
        let mut attempts = Attempts::new(effort.retry_policy(), deadline);
        loop {
            // Concurrent requests may have found out meanwhile that the hub does not respond.
            if let (Effort::Live, Some(open)) = (effort, self.circuit.open(self.clock.now())) {
                return Outcome::Unsent(open.cause);
            }
            let mut sent_at = None;
            if let Some((pace, last)) = effort.pace() {
                sent_at = pace.turn(request.len(), request.body.len(), last).await;
                if sent_at.is_none() {
                    return Outcome::Unsent(Cause::Throttled);
                }
            }
            let access = match self.connection.access(deadline).await {
                Ok(access) => access,
                Err(expired) if attempts.renew_once() => {
                    self.connection.renew(expired.generation, deadline).await;
                    continue;
                }
                Err(_) => return Outcome::Unsent(Cause::TokenExpired),
            };
            let Some(attempt) = attempts.begin() else { return Outcome::Unsent(Cause::Timeout) };
            sent.requests += 1;
            let (cause, wait) = match self.post(&access.token, request, route, attempt, sent).await {
                Disposition::Delivered => {
                    if let Effort::Paced(pace, _) = effort {
                        pace.accepted();
                    }
                    return Outcome::Delivered;
                }
                Disposition::Refused(refusal) => return Outcome::Refused(refusal),
                Disposition::Stop(cause) => return Outcome::Unsent(cause),
                Disposition::SignAgain if attempts.renew_once() => {
                    sent.retries += 1;
                    attempts.uncount();
                    self.connection.renew(access.generation, deadline).await;
                    continue;
                }
                Disposition::SignAgain => return Outcome::Unsent(Cause::Unauthorized),
                Disposition::Retry { cause, wait } => (cause, wait),
            };
            if let (Some((pace, _)), Some(sent_at), Cause::Throttled) = (effort.pace(), sent_at, cause) {
                pace.refused(sent_at, wait);
                if let Effort::Paced(..) = effort {
                    sent.retries += 1;
                    attempts.uncount();
                    continue;
                }
            }
            if !attempts.again(cause == Cause::ConnectionLost, wait).await {
                return Outcome::Unsent(cause);
            }
            sent.retries += 1;
        }
    }

    /// Makes one attempt.
    async fn post(
        &self,
        access: &Access,
        request: &Request,
        route: &Route<'_>,
        attempt: Attempt,
        sent: &mut Sent,
    ) -> Disposition {
        let mut url = access.messages_url.clone();
        if let Route::Partition(id) = route {
            let hub = url.path().strip_suffix("/messages").unwrap_or_default();
            url.set_path(&format!("{hub}/partitions/{id}/messages"));
        }
        let mut post = HttpRequest::new(Method::POST, url);
        let (retry_policy, no_retry) = RETRY_POLICY;
        let headers = [(AUTHORIZATION, access.token.clone()), (CONTENT_TYPE, BATCH), (retry_policy, no_retry)];
        post.headers_mut().extend(headers);
        *post.body_mut() = Some(request.body.clone().into());
        let response = match self.http.send(post, attempt.via, attempt.bound).await {
            Ok(response) => response,
            Err(error) => {
                let cause = Cause::from(&error);
                if let Some(hint) = error.kind.hint(ENDPOINT) {
                    sent.hints.insert(cause, hint.into());
                }
                sent.problem = Some(error.to_string());
                return Disposition::Retry { cause, wait: None };
            }
        };
        let (status, retry_after) = (response.status(), response.retry_after(self.clock.now()));
        // A delivered request's response has no body; without waiting for one its connection is free again. The status
        // alone decides: a body that does not end is not waited for.
        let body = match response.is_empty() {
            true => String::new(),
            false => response.read(MAX_ERROR_BODY, attempt.bound.min(Instant::now() + BODY_TIMEOUT)).await.text(),
        };
        let disposition = classify(status, retry_after, &body);
        if disposition != Disposition::Delivered {
            sent.throttled += u32::from(matches!(disposition, Disposition::Retry { cause: Cause::Throttled, .. }));
            if let Some((cause, hint)) = hint(status, &body, disposition) {
                sent.hints.insert(cause, hint);
            }
            sent.problem = Some(match Identifier::of(&body) {
                Some(Identifier::Code(code)) => format!("answered {status}, code {code}"),
                Some(Identifier::Word(word)) => format!("answered {status}, {word}"),
                None => format!("answered {status}"),
            });
        }
        disposition
    }
}

/// The outcomes of a group's messages, by their positions.
#[derive(Default)]
struct Sent {
    outcomes: Vec<(usize, Outcome)>,
    requests: u32,
    retries: u32,
    throttled: u32,
    problem: Option<String>,
    hints: BTreeMap<Cause, Cow<'static, str>>,
}
