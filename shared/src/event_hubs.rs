//! Sends messages to an event hub over REST and tells of each message what became of it. It keeps nothing: what could not
//! be delivered is the caller's to hand on.

use std::sync::OnceLock;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use tokio::time::{Instant, sleep, timeout_at};

use crate::answer::{Cause, Disposition, Refusal, classify, own_code};
use crate::batch::{Group, Request, pack};
use crate::clock::Clock;
use crate::connection::{Access, Connection, Destination, TokenExpired, Wanted};
use crate::flow_table::FlowItem;
use crate::message::Message;
use crate::partitioning::{Partitioning, Route};
use crate::parts::Parts;
use crate::settings::{SecretSource, SettingsError};

/// Full jitter below 100 ms, doubling, at most 2 s.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Answers of 10 s have been seen after idle; after this an attempt is given up if the budget is longer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// A hub that does not answer must not cost the first webhook, whose sender is waiting, more than this.
const WARM_UP_TIMEOUT: Duration = Duration::from_millis(250);
/// Of the time that is left.
const FIRST_SHARE: f64 = 2.0 / 3.0;
/// Groups in flight together.
const IN_FLIGHT: usize = 16;
/// As much of an error document as is looked at, in bytes.
const MAX_ERROR_BODY: usize = 4096;
/// What an answer's body may take beyond its head.
const BODY_TIMEOUT: Duration = Duration::from_millis(200);

/// Only the content type tells a batch from a single event.
const BATCH: HeaderValue = HeaderValue::from_static("application/vnd.microsoft.servicebus.json");

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Delivered,
    /// The hub will never take it.
    Refused(Refusal),
    /// Not now; the message is fine.
    Unsent(Cause),
}

/// What became of a set of messages, and what it took.
#[derive(Debug, Default)]
pub struct Report {
    /// One per message, in their order.
    pub outcomes: Vec<Outcome>,
    pub requests: u32,
    pub retries: u32,
    /// Answers by which the hub asked for less.
    pub throttled: u32,
    pub took: Duration,
    /// What went wrong last, for the log: a status and the hub's own code, or why there was none.
    pub problem: Option<String>,
}

/// Sends to one hub.
pub struct EventHub {
    http: reqwest::Client,
    connection: Connection,
    partitioning: Partitioning,
    max_batch_bytes: usize,
    clock: Clock,
}

/// How hard a hub is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Groups in flight together: the events are new, and somebody may wait for them.
    Together,
    /// One request at a time, and none behind the first that can't be delivered: the hub may be in trouble.
    OneByOne,
}

impl Pace {
    /// Of one request within one budget; a lost connection gets one more at once.
    fn attempts(self) -> u32 {
        match self {
            Self::Together => 3,
            // What is parked comes again anyway.
            Self::OneByOne => 1,
        }
    }
}

impl EventHub {
    /// Reads the connection string from `source`.
    pub async fn open(
        parts: &Parts,
        source: SecretSource,
        wanted: Wanted,
        partitioning: Partitioning,
        deadline: Instant,
    ) -> Result<Self, SettingsError> {
        let Parts { http, aws, clock, max_batch_bytes, .. } = parts;
        let connection = Connection::open(source, wanted, aws.clone(), clock.clone(), deadline).await?;
        Ok(Self {
            http: http.clone(),
            connection,
            partitioning,
            max_batch_bytes: *max_batch_bytes,
            clock: clock.clone(),
        })
    }

    /// The hub of a flow of the table.
    pub async fn of_item(parts: &Parts, item: &FlowItem, deadline: Instant) -> Result<Self, SettingsError> {
        let source = SecretSource::secret("connectionSecretId", &item.connection_secret_id);
        let wanted = Wanted { hub: Some(("hub", item.hub.clone())), host: item.host.clone() };
        Self::open(parts, source, wanted, item.partitioning, deadline).await
    }

    /// Opens a connection before the first event needs it. Whatever becomes of that shows with the first event.
    pub async fn warm_up(&self) {
        let url = self.connection.base_url().await;
        let opened = async { self.http.get(url).send().await?.bytes().await };
        let _ = timeout_at(Instant::now() + WARM_UP_TIMEOUT, opened).await;
    }

    /// Size budget of one request, in bytes.
    pub fn max_batch_bytes(&self) -> usize {
        self.max_batch_bytes
    }

    /// Where messages go at this time.
    pub async fn destination(&self) -> Destination {
        self.connection.destination().await
    }

    /// Sends `messages` and returns when each is delivered or given up, at `deadline` at the latest.
    ///
    /// A message whose outcome is `Unsent` may all the same be stored, after a timeout or a lost connection.
    pub async fn send(&self, messages: &[Message<'_>], pace: Pace, deadline: Instant) -> Report {
        let began = Instant::now();
        let (groups, too_large) = pack(messages, self.partitioning, self.max_batch_bytes);
        let mut report =
            Report { outcomes: vec![Outcome::Unsent(Cause::Timeout); messages.len()], ..Report::default() };
        for position in too_large {
            report.outcomes[position] = Outcome::Refused(Refusal::TooLarge);
        }
        let (in_flight, gate) = match pace {
            Pace::Together => (IN_FLIGHT, Gate::new(|cause| cause == Cause::Unauthorized)),
            Pace::OneByOne => (1, Gate::new(Cause::is_the_hubs)),
        };
        let mut sendings =
            stream::iter(groups).map(|group| self.send_group(group, pace, deadline, &gate)).buffer_unordered(in_flight);
        while let Some(sent) = sendings.next().await {
            for (position, outcome) in sent.outcomes {
                report.outcomes[position] = outcome;
            }
            report.requests += sent.requests;
            report.retries += sent.retries;
            report.throttled += sent.throttled;
            report.problem = sent.problem.or(report.problem);
        }
        report.took = began.elapsed();
        report
    }

    /// Sends the requests of a group one after another, which keeps their order. Once one can't be delivered, those
    /// behind it wait with it.
    async fn send_group(&self, group: Group<'_>, pace: Pace, deadline: Instant, gate: &Gate) -> Sent {
        let mut sent = Sent::default();
        let mut to_send: Vec<Request> = group.requests;
        to_send.reverse();
        while let Some(request) = to_send.pop() {
            let outcome = match gate.closed() {
                Some(cause) => Outcome::Unsent(cause),
                None => self.send_request(&request, &group.route, pace, deadline, &mut sent).await,
            };
            if let Outcome::Unsent(cause) = outcome {
                gate.close(cause);
            }
            if matches!(outcome, Outcome::Refused(_)) && request.len() > 1 {
                let [first, second] = request.halve();
                to_send.extend([second, first]);
                continue;
            }
            let outcome = match (outcome, &group.route) {
                (Outcome::Refused(Refusal::Malformed), Route::Partition(_)) => Outcome::Unsent(Cause::BadPartition),
                (outcome, _) => outcome,
            };
            sent.outcomes.extend(request.messages().map(|position| (position, outcome)));
            // A 400 of the partition form may be about its one event: those behind it are tried.
            if matches!(outcome, Outcome::Unsent(cause) if cause.is_the_hubs()) {
                for request in to_send.drain(..) {
                    sent.outcomes.extend(request.messages().map(|position| (position, outcome)));
                }
            }
        }
        sent
    }

    /// Sends one request until it is answered for good or the budget is used up.
    async fn send_request(
        &self,
        request: &Request,
        route: &Route<'_>,
        pace: Pace,
        deadline: Instant,
        sent: &mut Sent,
    ) -> Outcome {
        let (mut attempt, mut signed_anew) = (0, false);
        loop {
            let access = match self.connection.access().await {
                Ok(access) => access,
                Err(_) if signed_anew => return Outcome::Unsent(Cause::TokenExpired),
                Err(TokenExpired { generation }) => {
                    signed_anew = true;
                    self.connection.renew(generation, deadline).await;
                    continue;
                }
            };
            attempt += 1;
            sent.requests += 1;
            // A pooled connection may have died unnoticed: the first attempt leaves time for another.
            let left = deadline.saturating_duration_since(Instant::now()).min(ATTEMPT_TIMEOUT);
            let share = if attempt == 1 { left.mul_f64(FIRST_SHARE) } else { left };
            let (cause, wait) = match self.post(&access, request, route, Instant::now() + share, sent).await {
                Disposition::Delivered => return Outcome::Delivered,
                Disposition::Refused(refusal) => return Outcome::Refused(refusal),
                Disposition::Stop(cause) => return Outcome::Unsent(cause),
                Disposition::SignAnew if signed_anew => return Outcome::Unsent(Cause::Unauthorized),
                Disposition::SignAnew => {
                    signed_anew = true;
                    attempt -= 1;
                    sent.retries += 1;
                    self.connection.renew(access.generation, deadline).await;
                    continue;
                }
                Disposition::Retry { cause, wait } => (cause, wait),
            };
            let wait = wait_before_retry(attempt, cause, wait);
            let last = attempt >= pace.attempts() && !(attempt == 1 && cause == Cause::ConnectionLost);
            if last || wait >= deadline.saturating_duration_since(Instant::now()) {
                return Outcome::Unsent(cause);
            }
            sent.retries += 1;
            sleep(wait).await;
        }
    }

    /// One attempt.
    async fn post(
        &self,
        access: &Access,
        request: &Request,
        route: &Route<'_>,
        bound: Instant,
        sent: &mut Sent,
    ) -> Disposition {
        let mut url = access.messages_url.clone();
        if let Route::Partition(id) = route {
            let hub = url.path().strip_suffix("/messages").unwrap_or_default();
            url.set_path(&format!("{hub}/partitions/{id}/messages"));
        }
        let sending = self
            .http
            .post(url)
            .header(AUTHORIZATION, access.token.clone())
            .header(CONTENT_TYPE, BATCH)
            // Our loop alone decides on repeats.
            .header("x-ms-retrypolicy", "NoRetry")
            .body(request.body.clone())
            .send();
        let response = match timeout_at(bound, sending).await {
            Ok(Ok(response)) => response,
            failed => {
                let (cause, problem) = match failed {
                    Ok(Err(error)) if error.is_connect() => (Cause::Unreachable, chain(&error.without_url())),
                    Ok(Err(error)) if !error.is_timeout() => (Cause::ConnectionLost, chain(&error.without_url())),
                    _ => (Cause::Timeout, "no answer in time".to_owned()),
                };
                sent.problem = Some(problem);
                return Disposition::Retry { cause, wait: None };
            }
        };
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| retry_after(value, &self.clock));
        // A delivered request's answer has no body; without waiting for one its connection is free again.
        let body = if response.content_length() == Some(0) { String::new() } else { read_start(response, bound).await };
        let disposition = classify(status, retry_after, &body);
        if disposition != Disposition::Delivered {
            sent.throttled += u32::from(matches!(disposition, Disposition::Retry { cause: Cause::Throttled, .. }));
            sent.problem = Some(match own_code(&body) {
                Some(code) => format!("answered {status}, code {code}"),
                None => format!("answered {status}"),
            });
        }
        disposition
    }
}

/// Keeps requests back once another has shown that they would fail alike: after a key that was read again and refused
/// again, or at [`Pace::OneByOne`] after anything that is the hub's.
struct Gate {
    closes: fn(Cause) -> bool,
    cause: OnceLock<Cause>,
}

impl Gate {
    fn new(closes: fn(Cause) -> bool) -> Self {
        Self { closes, cause: OnceLock::new() }
    }

    fn closed(&self) -> Option<Cause> {
        self.cause.get().copied()
    }

    fn close(&self, cause: Cause) {
        if (self.closes)(cause) {
            self.cause.get_or_init(|| cause);
        }
    }
}

/// What became of the messages of a group, by their positions.
#[derive(Default)]
struct Sent {
    outcomes: Vec<(usize, Outcome)>,
    requests: u32,
    retries: u32,
    throttled: u32,
    problem: Option<String>,
}

/// The wait before attempt `attempt + 1`. A lost connection is most often a pooled one that died while the sandbox was
/// frozen: the first repeat goes out at once, on a fresh one.
fn wait_before_retry(attempt: u32, cause: Cause, wait: Option<Duration>) -> Duration {
    if cause == Cause::ConnectionLost && attempt == 1 {
        return Duration::ZERO;
    }
    let longest = FIRST_BACKOFF.saturating_mul(1 << (attempt - 1)).min(MAX_BACKOFF);
    let jitter = longest.mul_f64(fastrand::f64());
    wait.map_or(jitter, |wait| wait.saturating_add(jitter))
}

/// `Retry-After` in either form: seconds, or an HTTP date.
fn retry_after(value: &HeaderValue, clock: &Clock) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(clock.now()).unwrap_or_default())
}

/// An error with its sources, such as a refused connection or an unknown certificate.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// The start of the body. Reading to the end lets the connection be used again, but the status alone decides: an answer
/// that does not end is not waited for.
async fn read_start(mut response: reqwest::Response, bound: Instant) -> String {
    let bound = bound.min(Instant::now() + BODY_TIMEOUT);
    let mut body = Vec::new();
    while let Ok(Ok(Some(chunk))) = timeout_at(bound, response.chunk()).await {
        body.extend_from_slice(&chunk);
        if body.len() >= MAX_ERROR_BODY {
            break;
        }
    }
    String::from_utf8_lossy(&body).into_owned()
}
