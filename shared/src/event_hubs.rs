//! Sends messages to an event hub over REST and tells of each message what became of it. It keeps nothing: what could not
//! be delivered is the caller's to hand on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use secrecy::ExposeSecret;
use tokio::time::{Instant, sleep, timeout_at};

use crate::answer::{Cause, Disposition, Refusal, classify};
use crate::batch::{Group, Request, pack};
use crate::clock::Clock;
use crate::connection::{Access, Connection};
use crate::message::Message;
use crate::partitioning::{Partitioning, Route};

/// Attempts of one request within one budget.
const ATTEMPTS: u32 = 3;
/// Full jitter below 100 ms, doubling, at most 2 s.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Answers of 10 s have been seen after idle; after this an attempt is given up if the budget is longer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// Groups in flight together.
const IN_FLIGHT: usize = 16;
/// As much of an error document as is looked at, in bytes.
const MAX_ERROR_BODY: usize = 4096;
/// What an answer's body may take beyond its head.
const BODY_TIMEOUT: Duration = Duration::from_millis(200);

/// The service's own limit in seconds, and the version of its interface, as in every sample of the reference.
const QUERY: &str = "timeout=60&api-version=2014-01";
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
    /// What went wrong last, for the log: a status, or why there was none.
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

impl EventHub {
    pub fn new(
        http: reqwest::Client,
        connection: Connection,
        partitioning: Partitioning,
        max_batch_bytes: usize,
        clock: Clock,
    ) -> Self {
        Self { http, connection, partitioning, max_batch_bytes, clock }
    }

    /// Sends `messages` and returns when each is delivered or given up, at `deadline` at the latest.
    ///
    /// A message whose outcome is `Unsent` may all the same be stored, after a timeout or a lost connection.
    pub async fn send(&self, messages: &[Message<'_>], deadline: Instant) -> Report {
        let (groups, too_large) = pack(messages, self.partitioning, self.max_batch_bytes);
        let mut report =
            Report { outcomes: vec![Outcome::Unsent(Cause::Timeout); messages.len()], ..Report::default() };
        for position in too_large {
            report.outcomes[position] = Outcome::Refused(Refusal::TooLarge);
        }
        let locked_out = AtomicBool::new(false);
        let mut sendings =
            stream::iter(groups).map(|group| self.send_group(group, deadline, &locked_out)).buffer_unordered(IN_FLIGHT);
        while let Some(sent) = sendings.next().await {
            for (position, outcome) in sent.outcomes {
                report.outcomes[position] = outcome;
            }
            report.requests += sent.requests;
            report.retries += sent.retries;
            report.problem = sent.problem.or(report.problem);
        }
        report
    }

    /// Sends the requests of a group one after another, which keeps their order. Once one can't be delivered, those
    /// behind it wait with it.
    async fn send_group(&self, group: Group<'_>, deadline: Instant, locked_out: &AtomicBool) -> Sent {
        let mut sent = Sent::default();
        let mut to_send: Vec<Request> = group.requests;
        to_send.reverse();
        while let Some(request) = to_send.pop() {
            let outcome = if locked_out.load(Ordering::Relaxed) {
                Outcome::Unsent(Cause::Unauthorized)
            } else {
                self.send_request(&request, &group.route, deadline, &mut sent).await
            };
            // The key was read again and refused again: so it would be for the other requests.
            if outcome == Outcome::Unsent(Cause::Unauthorized) {
                locked_out.store(true, Ordering::Relaxed);
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
            if matches!(outcome, Outcome::Unsent(cause) if cause != Cause::BadPartition) {
                for request in to_send.drain(..) {
                    sent.outcomes.extend(request.messages().map(|position| (position, outcome)));
                }
            }
        }
        sent
    }

    /// Sends one request until it is answered for good or the budget is used up.
    async fn send_request(&self, request: &Request, route: &Route<'_>, deadline: Instant, sent: &mut Sent) -> Outcome {
        let (mut attempt, mut signed_anew) = (0, false);
        loop {
            let Ok(access) = self.connection.access().await else {
                return Outcome::Unsent(Cause::TokenExpired);
            };
            attempt += 1;
            sent.requests += 1;
            let (cause, wait) = match self.post(&access, request, route, deadline, sent).await {
                Disposition::Delivered => return Outcome::Delivered,
                Disposition::Refused(refusal) => return Outcome::Refused(refusal),
                Disposition::Stop(cause) => return Outcome::Unsent(cause),
                Disposition::SignAnew if signed_anew => return Outcome::Unsent(Cause::Unauthorized),
                Disposition::SignAnew => {
                    signed_anew = true;
                    attempt -= 1;
                    sent.retries += 1;
                    self.connection.renew(&access, deadline).await;
                    continue;
                }
                Disposition::Retry { cause, wait } => (cause, wait),
            };
            let wait = wait_before_retry(attempt, cause, wait);
            if attempt == ATTEMPTS || wait >= deadline.saturating_duration_since(Instant::now()) {
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
        deadline: Instant,
        sent: &mut Sent,
    ) -> Disposition {
        let hub_url = &access.hub_url;
        let url = match route {
            Route::Partition(id) => format!("{hub_url}/partitions/{id}/messages?{QUERY}"),
            Route::Key(_) | Route::Anywhere => format!("{hub_url}/messages?{QUERY}"),
        };
        let Ok(mut token) = HeaderValue::from_str(access.token.expose_secret()) else {
            return Disposition::Stop(Cause::Unauthorized);
        };
        token.set_sensitive(true);
        let sending = self
            .http
            .post(url)
            .header(AUTHORIZATION, token)
            .header(CONTENT_TYPE, BATCH)
            // Our loop alone decides on repeats.
            .header("x-ms-retrypolicy", "NoRetry")
            .body(request.body.clone())
            .send();
        let bound = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
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
        let body = read_start(response, bound).await;
        let disposition = classify(status, retry_after, &body);
        if disposition != Disposition::Delivered {
            sent.problem = Some(format!("answered {status}"));
        }
        disposition
    }
}

/// What became of the messages of a group, by their positions.
#[derive(Default)]
struct Sent {
    outcomes: Vec<(usize, Outcome)>,
    requests: u32,
    retries: u32,
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
