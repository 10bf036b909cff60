//! A local substitute for SQS with the properties that matter for parking at scale: fair queues, the limit of messages in
//! flight, receive counts, delays and retention, on a clock that tests advance. It supports standard queues and the JSON
//! protocol only, and does not check signatures.

mod api;
mod digests;
mod entries;
mod problem;
mod queue;
mod receiving;
mod settings;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, StatusCode};
use serde_json::{Value, json};
use shared::clock::Clock;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::api::Done;
use self::problem::Problem;
pub use self::queue::{Depth, Figures, Stored};
use self::queue::{Millis, Queue, Service};
pub use crate::faults::Moment;
use crate::faults::{self, Hooks};
use crate::random;
use crate::server::body::{self, Unread};
use crate::server::{Running, accept, address_of, no_response};

const ACCOUNT: &str = "123456789012";
const REGION: &str = "eu-central-1";
/// Maximum size of a request in bytes: a batch of messages whose every byte is escaped.
const MAX_REQUEST: usize = 8 * 1_048_576;
/// Maximum time between two attempts of a receive that waits, in case the clock was changed by other means.
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(1);

/// Limits of the service.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Maximum number of messages in flight per queue. Above it, a receive with long polling returns nothing without an
    /// error, and one with short polling fails with `OverLimit`.
    pub max_in_flight: usize,
    /// Maximum number of bytes of a batch.
    pub max_batch_bytes: usize,
    /// Time for which a message group must have too many messages in flight before it counts as noisy.
    pub noisy_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_in_flight: 120_000, max_batch_bytes: 1_048_576, noisy_after: Duration::ZERO }
    }
}

/// A fault for some calls.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Beginning of the operations that it affects: `SendMessage` affects `SendMessageBatch` too.
    pub operation: &'static str,
    /// Number of calls that it affects; 0: all until it is cleared.
    pub times: u32,
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// An error response; the call has no effect.
    Refuse { status: u16, code: &'static str },
    /// The call takes effect, then the connection is reset without a response.
    LoseResponse,
    /// The call has no effect, and the connection is reset.
    Reset,
    /// The call takes effect later.
    Delay(Duration),
    /// The call has no effect and never gets a response.
    Hang,
    /// Every second entry of a batch has no effect and is reported as failed, beginning with the first.
    FailEntries,
    /// Received messages stay visible, so that they are received once more.
    DeliverTwice,
}

impl faults::Fault for Fault {
    fn times(&mut self) -> &mut u32 {
        &mut self.times
    }
}

/// A running emulator. It stops with its last clone.
#[derive(Clone)]
pub struct Sqs {
    server: Arc<Server>,
    url: String,
    _running: Arc<Running>,
}

struct Server {
    url: String,
    state: Mutex<State>,
    hooks: Hooks,
    /// Notified whenever a message may have become visible.
    changed: Notify,
    /// Number of milliseconds by which the queues' clock is ahead.
    ahead: Arc<AtomicU64>,
}

/// Queues by name, and the records that tests read.
struct State {
    queues: BTreeMap<String, Queue>,
    service: Service,
    max_batch_bytes: usize,
    clock: Clock,
    ahead: Arc<AtomicU64>,
    faults: VecDeque<Fault>,
    calls: BTreeMap<String, u64>,
    lost_responses: u64,
    repeats: Vec<Arc<str>>,
}

impl State {
    fn now(&self) -> Millis {
        let since = self.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX) + self.ahead.load(Ordering::Relaxed)
    }
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sqs {
    /// Serves at `listener`.
    pub async fn start(config: Config, listener: TcpListener) -> Self {
        let url = format!("http://{}", address_of(&listener));
        let ahead = Arc::new(AtomicU64::new(0));
        let noisy_after = u64::try_from(config.noisy_after.as_millis()).unwrap_or(u64::MAX / 2);
        let state = State {
            queues: BTreeMap::new(),
            service: Service { max_in_flight: config.max_in_flight, noisy_after },
            max_batch_bytes: config.max_batch_bytes,
            clock: Clock::system(),
            ahead: ahead.clone(),
            faults: VecDeque::new(),
            calls: BTreeMap::new(),
            lost_responses: 0,
            repeats: Vec::new(),
        };
        let server = Arc::new(Server {
            url: url.clone(),
            state: Mutex::new(state),
            hooks: Hooks::default(),
            changed: Notify::new(),
            ahead,
        });
        let router = Router::new().fallback(respond).with_state(server.clone());
        let task = tokio::spawn(accept(listener, router));
        Self { server, url, _running: Arc::new(Running::new(&task)) }
    }

    /// Endpoint of the service, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Advances the queues' clock. The functions do not see it: `SentTimestamp` and receive counts follow this clock, the
    /// functions' own time is the machine's.
    pub fn advance(&self, by: Duration) {
        self.server.ahead.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.server.changed.notify_waiters();
    }

    /// Stores a message without HTTP, so that no fault affects it.
    ///
    /// # Panics
    /// If there is no such queue.
    pub fn put(&self, queue: &str, body: &str, group: Option<&str>) {
        let mut state = self.server.state();
        let now = state.now();
        let queue = state.queues.get_mut(api::queue_name(queue)).expect("the queue was created");
        queue.send(body.into(), serde_json::Map::new(), group, None, now);
        drop(state);
        self.server.changed.notify_waiters();
    }

    /// The messages of a queue in the order in which they were sent, whatever their state; none for an unknown queue.
    pub fn messages(&self, queue: &str) -> Vec<Stored> {
        let mut state = self.server.state();
        let now = state.now();
        let Some(queue) = state.queues.get_mut(api::queue_name(queue)) else { return Vec::new() };
        queue.depth(now);
        queue.stored().collect()
    }

    /// Number of messages in a queue, by state; 0 for an unknown queue.
    pub fn depth(&self, queue: &str) -> Depth {
        let mut state = self.server.state();
        let now = state.now();
        state.queues.get_mut(api::queue_name(queue)).map(|queue| queue.depth(now)).unwrap_or_default()
    }

    /// Number of messages in flight that their consumer has neither deleted nor hidden for another time.
    pub fn untouched(&self, queue: &str) -> usize {
        self.server.state().queues.get(api::queue_name(queue)).map_or(0, Queue::untouched)
    }

    /// Time until the next message of a queue becomes visible, if no call changes that.
    pub fn until_due(&self, queue: &str) -> Option<Duration> {
        let state = self.server.state();
        let due = state.queues.get(api::queue_name(queue))?.next_due()?;
        Some(Duration::from_millis(due.saturating_sub(state.now())))
    }

    pub fn figures(&self, queue: &str) -> Figures {
        self.server.state().queues.get(api::queue_name(queue)).map(|queue| queue.figures).unwrap_or_default()
    }

    /// Number of calls so far whose operation begins with `operation`, failed ones included.
    pub fn calls(&self, operation: &str) -> u64 {
        self.server.state().calls.iter().filter(|(name, _)| name.starts_with(operation)).map(|(_, count)| count).sum()
    }

    /// Number of calls that took effect and whose response was lost on purpose.
    pub fn lost_responses(&self) -> u64 {
        self.server.state().lost_responses
    }

    /// Bodies of messages that may be handled once more because of a fault here: sent with a lost response, or delivered
    /// twice. A body is listed once for each time that this happened since the last call.
    pub fn take_repeats(&self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.server.state().repeats)
    }

    /// Adds faults to the list. A call gets the first one that matches it.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.server.state().faults.extend(faults);
    }

    /// Number of faults that are left.
    pub fn faults(&self) -> usize {
        self.server.state().faults.len()
    }

    pub fn clear_faults(&self) {
        self.server.state().faults.clear();
    }

    /// Runs `run` at the call number `nth`, counted from 1 and from now, whose operation begins with `operation`. The call
    /// waits until it has ended.
    pub fn at<F>(&self, operation: &'static str, nth: usize, moment: Moment, run: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.server.hooks.add(operation, nth, moment, run);
    }
}

impl Server {
    async fn done(&self, operation: &str, call: &[u8], fault: Option<&Action>) -> Result<Done, Problem> {
        if operation == "ReceiveMessage" {
            return self.receive(call, fault == Some(&Action::DeliverTwice)).await;
        }
        let failing = if fault == Some(&Action::FailEntries) { split(call) } else { None };
        let done = match failing {
            None => self.state().call(operation, call, &self.url)?,
            Some((rest, failed)) => {
                let mut done = match rest {
                    Some(rest) => self.state().call(operation, rest.to_string().as_bytes(), &self.url)?,
                    None => json!({ "Successful": [] }).into(),
                };
                let entry = |entry: &Value| json!({ "Id": entry["Id"], "SenderFault": false, "Code": "InternalError", "Message": "on purpose" });
                done.response["Failed"] = failed.iter().map(entry).collect();
                done
            }
        };
        self.changed.notify_waiters();
        Ok(done)
    }

    /// Receives messages, and waits for them up to the time that the call asks for.
    async fn receive(&self, call: &[u8], twice: bool) -> Result<Done, Problem> {
        let call = api::parse(call)?;
        let call = self.state().check(&call)?;
        let deadline = Instant::now() + Duration::from_secs(call.wait_seconds);
        loop {
            let changed = self.changed.notified();
            let (received, next) = {
                let mut state = self.state();
                let received = state.receive(&call, twice)?;
                if twice {
                    state.repeats.extend(received.iter().flatten().map(|message| message.content.body.clone()));
                }
                let now = state.now();
                let next = state.queue(&call.queue)?.next_due().map(|due| due.saturating_sub(now));
                (received, next)
            };
            if let Some(messages) = received {
                return Ok(call.response(&messages).into());
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(call.response(&[]).into());
            }
            let next =
                next.map_or(ATTEMPT_INTERVAL, |millis| Duration::from_millis(millis.max(1))).min(ATTEMPT_INTERVAL);
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(deadline.min(now + next)) => {}
            }
        }
    }
}

async fn respond(Shared(server): Shared<Arc<Server>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let target = parts.headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(operation) = target.strip_prefix("AmazonSQS.") else {
        return failure(&Problem::unknown_operation());
    };
    let call = match body::read(body, MAX_REQUEST).await {
        Ok(call) => call,
        Err(Unread::BrokenOff) => return no_response(),
        Err(Unread::TooLarge) => return failure(&Problem::parameter("The request is too large.")),
    };
    server.hooks.run(operation, Moment::Arrived).await;
    let fault = {
        let mut state = server.state();
        *state.calls.entry(operation.to_owned()).or_default() += 1;
        faults::take(&mut state.faults, |fault| operation.starts_with(fault.operation)).map(|fault| fault.action)
    };
    match &fault {
        Some(Action::Refuse { status, code }) => return refusal(*status, code),
        Some(Action::Reset) => return no_response(),
        Some(Action::Hang) => return std::future::pending().await,
        Some(Action::Delay(delay)) => tokio::time::sleep(*delay).await,
        Some(Action::LoseResponse | Action::FailEntries | Action::DeliverTwice) | None => {}
    }
    let done = server.done(operation, &call, fault.as_ref()).await;
    server.hooks.run(operation, Moment::Done).await;
    if fault == Some(Action::LoseResponse) {
        let mut state = server.state();
        state.lost_responses += 1;
        if let Ok(done) = done
            && operation.starts_with("SendMessage")
        {
            state.repeats.extend(done.bodies);
        }
        return no_response();
    }
    match done {
        Ok(Done { response, .. }) => with_type(StatusCode::OK, response.to_string()),
        Err(problem) => failure(&problem),
    }
}

/// The batch without its first and then every second entry, if any entry remains, and the removed entries. `None`: the call
/// is not a batch.
fn split(call: &[u8]) -> Option<(Option<Value>, Vec<Value>)> {
    let mut call: Value = serde_json::from_slice(call).ok()?;
    let entries = call["Entries"].as_array()?.clone();
    let failed = entries.iter().step_by(2).cloned().collect();
    let rest: Vec<Value> = entries.into_iter().skip(1).step_by(2).collect();
    let is_left = !rest.is_empty();
    call["Entries"] = rest.into();
    Some((is_left.then_some(call), failed))
}

fn failure(problem: &Problem) -> Response {
    let body = json!({ "__type": problem.shape, "message": problem.message });
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = with_type(status, body.to_string());
    if let Ok(code) = HeaderValue::from_str(&format!("{};Sender", problem.code)) {
        response.headers_mut().insert("x-amzn-query-error", code);
    }
    response
}

fn refusal(status: u16, code: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    with_type(status, json!({ "__type": code, "message": "on purpose" }).to_string())
}

fn with_type(status: StatusCode, body: String) -> Response {
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-amz-json-1.0"));
    if let Ok(id) = HeaderValue::from_str(&random::uuid()) {
        headers.insert("x-amzn-requestid", id);
    }
    response
}

#[cfg(test)]
mod tests;
