//! An event hub namespace that takes sends over HTTP, lets them be read back, and misbehaves when told to. It is our
//! reading of the public contract, not the service; Entra tokens, AMQP and Kafka are not part of it.
//!
//! Sends go to `/{hub}/messages`, `/{hub}/partitions/{id}/messages` and `/{hub}/publishers/{id}/messages`; everything
//! below `/_emulator/` is for looking in and for faults.

mod authorization;
mod incoming;
mod store;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::clock::Clock;
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use self::authorization::{Asked, Claim};
use self::incoming::Incoming;
pub use self::store::StoredEvent;
use self::store::{Hub, Target, Throughput};
use crate::body::{self, Unread};
pub use crate::faults::Moment;
use crate::faults::{self, Hooks};
use crate::own_address::guard_control_routes;
use crate::random;

/// What the namespace is made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// Names and partition counts.
    pub hubs: Vec<(String, u32)>,
    pub keys: Vec<Key>,
    /// The largest request.
    pub max_bytes: usize,
    /// Without them nothing is throttled.
    pub throughput_units: Option<u32>,
}

/// The largest request of a Standard namespace, as its AMQP links tell.
pub const MAX_BYTES: usize = 1_046_528;
/// The name of the key that [`Config::default`] has.
pub const ROOT_KEY_NAME: &str = "RootManageSharedAccessKey";

impl Default for Config {
    fn default() -> Self {
        Self {
            hubs: vec![("events".to_owned(), 4)],
            keys: vec![Key {
                name: ROOT_KEY_NAME.to_owned(),
                key: "bG9jYWwgZW11bGF0b3IsIG5vdCBhIHNlY3JldCBhdCBhbGw=".to_owned(),
                rights: Rights { send: true, listen: true, manage: true },
                hub: None,
            }],
            max_bytes: MAX_BYTES,
            throughput_units: None,
        }
    }
}

/// A shared access policy, of the namespace or of one hub.
#[derive(Debug, Clone)]
pub struct Key {
    pub name: String,
    pub key: String,
    pub rights: Rights,
    pub hub: Option<String>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Rights {
    pub send: bool,
    pub listen: bool,
    pub manage: bool,
}

/// What became of a send request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestRecord {
    /// As written in the path.
    pub hub: String,
    pub path: String,
    /// 0: the connection ended, or still waits, without an answer.
    pub status: u16,
    /// Events in the request, stored or not; 0 when it can't be read.
    pub events: usize,
    /// When it had arrived, in seconds since 1970-01-01.
    pub second: u64,
}

/// Misbehaviour for the send requests that it fits. It strikes before anything is checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// Without it, any hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// Requests that it strikes; 0: all until it is cleared.
    #[serde(default = "once")]
    pub times: u32,
    #[serde(flatten)]
    pub action: Action,
}

impl faults::Fault for Fault {
    fn times(&mut self) -> &mut u32 {
        &mut self.times
    }
}

fn once() -> u32 {
    1
}

impl From<Action> for Fault {
    /// The next request, to whichever hub.
    fn from(action: Action) -> Self {
        Self { hub: None, times: 1, action }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum Action {
    /// An error answer; nothing is stored.
    Status {
        status: u16,
        /// In seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// The connection is reset without an answer; nothing is stored.
    Reset,
    /// The events are stored, then the connection is reset without an answer.
    ResetAfterStore,
    /// Handled as usual, but later.
    Delay { ms: u64 },
    /// Never answered; nothing is stored.
    Hang,
}

/// Why a request is refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: u16,
    detail: String,
}

impl Refusal {
    fn new(status: u16, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    fn not_found() -> Self {
        Self::new(404, "40400: Endpoint not found.")
    }

    fn too_large(size: usize, limit: usize) -> Self {
        Self::new(403, format!("The message is too large: {size} bytes exceeds the limit of {limit} bytes."))
    }
}

/// A running emulator. It stops with its last clone.
#[derive(Clone)]
pub struct Emulator {
    namespace: Arc<Namespace>,
    address: SocketAddr,
    server: Arc<Server>,
}

struct Server(AbortHandle);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Records of requests that are kept.
const MAX_RECORDS: usize = 100_000;

struct Namespace {
    max_bytes: usize,
    clock: Clock,
    state: Mutex<NamespaceState>,
    hooks: Hooks,
    confirmed: watch::Sender<u64>,
}

struct NamespaceState {
    hubs: Vec<Hub>,
    keys: Vec<Key>,
    faults: VecDeque<Fault>,
    requests: VecDeque<RequestRecord>,
    /// Requests ever begun, so that a record can be found again after older ones were dropped.
    requests_begun: u64,
    throughput_units: Option<u32>,
    throughput: Throughput,
    stored: Vec<StoredRequest>,
}

/// Which events a request stored, and over which connection it came.
struct StoredRequest {
    peer: SocketAddr,
    at: Instant,
    hub: String,
    partition: u32,
    sequence_numbers: std::ops::Range<u64>,
}

/// The client's address, in the extensions of a request.
#[derive(Clone, Copy)]
struct Peer(SocketAddr);

impl Emulator {
    /// Serves `config` at `listener`.
    pub async fn start(config: Config, listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap_or_else(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let namespace = Arc::new(Namespace {
            max_bytes: config.max_bytes,
            clock: Clock::system(),
            state: Mutex::new(NamespaceState {
                hubs: config.hubs.into_iter().map(|(name, partitions)| Hub::new(name, partitions)).collect(),
                keys: config.keys,
                faults: VecDeque::new(),
                requests: VecDeque::new(),
                requests_begun: 0,
                throughput_units: config.throughput_units,
                throughput: Throughput::default(),
                stored: Vec::new(),
            }),
            hooks: Hooks::default(),
            confirmed: watch::Sender::new(0),
        });
        let server = tokio::spawn(accept(listener, router(namespace.clone())));
        Self { namespace, address, server: Arc::new(Server(server.abort_handle())) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where clients on this machine reach it, without a trailing slash.
    pub fn url(&self) -> String {
        format!("http://{}", self.client_address())
    }

    fn client_address(&self) -> SocketAddr {
        match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, self.address.port())),
            _ => self.address,
        }
    }

    /// For the key as it is now. A name that the namespace does not know gives a string that it refuses.
    pub fn connection_string(&self, key_name: &str, hub: Option<&str>) -> String {
        let state = self.namespace.state();
        let key = state.keys.iter().find(|key| key.name == key_name).map_or("unknown", |key| key.key.as_str());
        let address = self.client_address();
        let entity_path = hub.map(|hub| format!(";EntityPath={hub}")).unwrap_or_default();
        format!(
            "Endpoint=sb://{address};SharedAccessKeyName={key_name};SharedAccessKey={key}{entity_path};\
             UseDevelopmentEmulator=true",
        )
    }

    /// The events of a hub by partition and sequence number; none for an unknown hub.
    pub fn events(&self, hub: &str) -> Vec<StoredEvent> {
        let mut state = self.namespace.state();
        let Some(hub) = state.hub(hub) else { return Vec::new() };
        hub.partitions.iter().flat_map(|partition| partition.events.iter().cloned()).collect()
    }

    /// How many events were answered 201 so far. It changes whenever events are stored, answered or not.
    pub fn confirmed(&self) -> watch::Receiver<u64> {
        self.namespace.confirmed.subscribe()
    }

    /// The events from the sequence numbers on that `next` has, by hub and partition, and moves them on.
    pub fn events_from(&self, next: &mut BTreeMap<(String, u32), u64>) -> Vec<StoredEvent> {
        let state = self.namespace.state();
        let mut events = Vec::new();
        for hub in &state.hubs {
            for (id, partition) in hub.partitions.iter().enumerate() {
                let next = next.entry((hub.name.clone(), id as u32)).or_default();
                let first = partition.events.partition_point(|event| event.sequence_number < *next);
                events.extend_from_slice(&partition.events[first..]);
                *next = partition.next_sequence_number();
            }
        }
        events
    }

    /// Up to `limit` events of a partition, from a sequence number on; none where there is no such partition.
    pub fn read(&self, hub: &str, partition: u32, from: u64, limit: usize) -> Vec<StoredEvent> {
        let mut state = self.namespace.state();
        let partition = state.hub(hub).and_then(|hub| hub.partitions.get(partition as usize));
        let Some(partition) = partition else { return Vec::new() };
        let first = partition.events.partition_point(|event| event.sequence_number < from);
        partition.events[first..].iter().take(limit).cloned().collect()
    }

    /// The events that a request over a connection stored between two moments.
    pub fn stored_by(&self, peer: SocketAddr, from: Instant, to: Instant) -> Vec<StoredEvent> {
        let mut state = self.namespace.state();
        let NamespaceState { stored, hubs, .. } = &mut *state;
        let first = stored.partition_point(|request| request.at < from);
        let requests = stored[first..].iter().take_while(|request| request.at <= to);
        let mut events = Vec::new();
        for StoredRequest { hub, partition, sequence_numbers, .. } in requests.filter(|request| request.peer == peer) {
            let Some(hub) = hubs.iter().find(|known| known.name == *hub) else { continue };
            let stored = &hub.partitions[*partition as usize].events;
            let fits = |event: &&StoredEvent| sequence_numbers.contains(&event.sequence_number);
            let first = stored.partition_point(|event| event.sequence_number < sequence_numbers.start);
            events.extend(stored[first..].iter().take_while(fits).cloned());
        }
        events
    }

    /// Changes what the namespace accepts per second.
    pub fn set_throughput_units(&self, units: Option<u32>) {
        self.namespace.state().throughput_units = units;
    }

    /// Takes out the events and the records of requests so far, for runs whose events would not fit the memory.
    pub fn take(&self) -> (Vec<StoredEvent>, Vec<RequestRecord>) {
        let mut state = self.namespace.state();
        state.stored.clear();
        let requests = std::mem::take(&mut state.requests).into();
        let partitions = state.hubs.iter_mut().flat_map(|hub| &mut hub.partitions);
        let events = partitions.flat_map(|partition| std::mem::take(&mut partition.events)).collect();
        (events, requests)
    }

    /// Runs something at the send request number `nth`, counted from 1 and from now, to a hub whose name begins with `hub`.
    /// The request waits until it is over.
    pub fn at<F>(&self, hub: &str, nth: usize, moment: Moment, run: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.namespace.hooks.add(hub, nth, moment, run);
    }

    /// How many partitions a hub has; 0 for an unknown one.
    pub fn partitions(&self, hub: &str) -> u32 {
        self.namespace.state().hub(hub).map_or(0, |hub| hub.partitions.len() as u32)
    }

    /// The send requests so far, in their order of arrival.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.namespace.state().requests.iter().cloned().collect()
    }

    /// Adds faults to the queue. A send request takes the first one that fits it.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.namespace.state().faults.extend(faults);
    }

    /// The faults that wait, the next one first.
    pub fn faults(&self) -> Vec<Fault> {
        self.namespace.state().faults.iter().cloned().collect()
    }

    /// Puts other faults in the place of those that wait.
    pub fn change_faults(&self, change: impl FnOnce(&mut VecDeque<Fault>)) {
        change(&mut self.namespace.state().faults);
    }

    pub fn clear_faults(&self) {
        self.namespace.state().faults.clear();
    }

    /// The key of a policy, if there is one of that name.
    pub fn key(&self, name: &str) -> Option<String> {
        self.namespace.state().keys.iter().find(|key| key.name == name).map(|key| key.key.clone())
    }

    /// Gives a policy another key; false: no policy has that name.
    pub fn set_key(&self, name: &str, new_key: &str) -> bool {
        self.namespace.set_key(name, new_key)
    }

    /// Forgets events and records of requests; faults stay.
    pub fn clear(&self) {
        let mut state = self.namespace.state();
        state.hubs.iter_mut().for_each(Hub::clear);
        state.requests.clear();
        state.stored.clear();
    }

    /// Closes the listener and every connection; events can still be looked at.
    pub async fn shutdown(&self) {
        self.server.0.abort();
        while !self.server.0.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl NamespaceState {
    fn hub(&mut self, name: &str) -> Option<&mut Hub> {
        self.hubs.iter_mut().find(|hub| hub.name.eq_ignore_ascii_case(name))
    }

    fn begin(&mut self, hub: &str, path: &str, events: usize, second: u64) -> u64 {
        if self.requests.len() == MAX_RECORDS {
            self.requests.pop_front();
        }
        let (hub, path) = (hub.to_owned(), path.to_owned());
        self.requests.push_back(RequestRecord { hub, path, status: 0, events, second });
        self.requests_begun += 1;
        self.requests_begun
    }

    /// The record may have been cleared away meanwhile.
    fn end(&mut self, request: u64, status: u16) {
        let behind = (self.requests_begun - request) as usize;
        if let Some(index) = self.requests.len().checked_sub(behind + 1) {
            self.requests[index].status = status;
        }
    }

    fn take_fault(&mut self, hub: &str) -> Option<Action> {
        let fits = |fault: &Fault| fault.hub.as_ref().is_none_or(|name| name.eq_ignore_ascii_case(hub));
        faults::take(&mut self.faults, fits).map(|fault| fault.action)
    }
}

impl Namespace {
    fn state(&self) -> MutexGuard<'_, NamespaceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_key(&self, name: &str, new_key: &str) -> bool {
        match self.state().keys.iter_mut().find(|key| key.name == name) {
            Some(key) => {
                new_key.clone_into(&mut key.key);
                true
            }
            None => false,
        }
    }

    /// Checks a request and stores its events.
    fn store(&self, request: &Sending<'_>, parts: &Parts, size: usize, events: Vec<Incoming>) -> Result<(), Refusal> {
        let now = self.clock.unix_seconds();
        let mut state = self.state();
        let header = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let host = header(HOST).or_else(|| parts.uri.authority().map(|authority| authority.as_str()));
        let (host, claim) = (host.unwrap_or_default(), Claim::Send);
        let asked = Asked { hub: request.hub, host, path: request.path, claim, now };
        authorization::check(header(AUTHORIZATION), &state.keys, &asked)?;
        if state.hub(request.hub).is_none() {
            return Err(Refusal::not_found());
        }
        let size = size.max(events.iter().map(Incoming::size).sum());
        if size > self.max_bytes {
            return Err(Refusal::too_large(size, self.max_bytes));
        }
        if let Some(units) = state.throughput_units
            && !state.throughput.admits(units, now, size, events.len())
        {
            return Err(Refusal::new(
                503,
                "The request was terminated because the entity is being throttled. Error code : 50002. \
                 Please wait 4 seconds and try again.",
            ));
        }
        let hub = state.hub(request.hub).ok_or_else(Refusal::not_found)?;
        let Some((partition, sequence_numbers)) = hub.store(&request.target, events, self.clock.now()) else {
            return Err(Refusal::new(400, "40000: The specified partition is invalid for this event hub."));
        };
        let hub = hub.name.clone();
        if let Some(Peer(peer)) = parts.extensions.get().copied() {
            state.stored.push(StoredRequest { peer, at: Instant::now(), hub, partition, sequence_numbers });
        }
        Ok(())
    }

    /// An answer as the service's gateway forms it.
    fn error(&self, refusal: &Refusal, parts: &Parts, hub: &str) -> Response {
        let host = parts.headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let time = OffsetDateTime::from(self.clock.now());
        let detail = format!(
            "{} TrackingId:{}_G31, SystemTracker:{host}:{hub}, Timestamp:{}T{:02}:{:02}:{:02}",
            refusal.detail,
            random::uuid(),
            time.date(),
            time.hour(),
            time.minute(),
            time.second(),
        );
        let escaped = detail.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let body = format!("<Error><Code>{}</Code><Detail>{escaped}</Detail></Error>", refusal.status);
        let mut response = (
            StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            [(CONTENT_TYPE, HeaderValue::from_static("application/xml; charset=utf-8"))],
            body,
        )
            .into_response();
        // The sub-code stands in the reason phrase too.
        if let Ok(reason) = hyper::ext::ReasonPhrase::try_from(refusal.detail.clone()) {
            response.extensions_mut().insert(reason);
        }
        response
    }
}

/// A send request by its path.
struct Sending<'a> {
    hub: &'a str,
    /// Without the leading slash.
    path: &'a str,
    target: Target<'a>,
}

impl<'a> Sending<'a> {
    fn parse(path: &'a str) -> Result<Self, Refusal> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let segments: Vec<&str> = path.split('/').collect();
        let (hub, target) = match segments[..] {
            [hub, "messages"] => (hub, Target::Any),
            // What is no number is no partition of any hub.
            [hub, "partitions", id, "messages"] => (hub, Target::Partition(id.parse().unwrap_or(u32::MAX))),
            [hub, "publishers", id, "messages"] if !id.is_empty() => (hub, Target::Publisher(id)),
            [.., "messages", ""] => {
                return Err(Refusal::new(400, "40000: The request is malformed: a slash after `messages`."));
            }
            _ => return Err(Refusal::not_found()),
        };
        Ok(Self { hub, path, target })
    }
}

/// Marks a response that must not be sent: the connection is reset instead.
#[derive(Clone)]
struct NoAnswer;

pub(crate) fn no_answer() -> Response {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(NoAnswer);
    response
}

async fn send(State(namespace): State<Arc<Namespace>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let path = percent_decode_str(parts.uri.path()).decode_utf8_lossy().into_owned();
    if parts.method != Method::POST {
        return namespace.error(&Refusal::not_found(), &parts, "");
    }
    // Twice the limit, so that a request which is too large by a little gets the answer that says so.
    let body = match body::read(body, 2 * namespace.max_bytes).await {
        Err(Unread::BrokenOff) => return no_answer(),
        Ok(body) => Ok(body),
        Err(Unread::TooLarge) => Err(Refusal::new(413, "The request is too large.")),
    };
    let request = match Sending::parse(&path) {
        Ok(request) => request,
        Err(refusal) => return namespace.error(&refusal, &parts, ""),
    };
    let size = body.as_ref().map_or(0, Bytes::len);
    let events = body.and_then(|body| incoming::read(&parts.headers, &body));
    let events_in_it = events.as_ref().map_or(0, Vec::len);
    let (record, fault) = {
        let mut state = namespace.state();
        let record = state.begin(request.hub, &path, events_in_it, namespace.clock.unix_seconds());
        (record, state.take_fault(request.hub))
    };
    namespace.hooks.run(request.hub, Moment::Arrived).await;
    let reset_after = fault == Some(Action::ResetAfterStore);
    let refusal = match fault {
        Some(Action::Reset) => return no_answer(),
        Some(Action::Hang) => std::future::pending().await,
        Some(Action::Status { status, retry_after, detail }) => {
            let detail = detail.unwrap_or_else(|| usual_detail(status).to_owned());
            let mut response = namespace.error(&Refusal::new(status, detail), &parts, request.hub);
            if let Some(seconds) = retry_after {
                response.headers_mut().insert(RETRY_AFTER, seconds.into());
            }
            namespace.state().end(record, response.status().as_u16());
            return response;
        }
        Some(Action::Delay { ms }) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            events.and_then(|events| namespace.store(&request, &parts, size, events))
        }
        Some(Action::ResetAfterStore) | None => {
            events.and_then(|events| namespace.store(&request, &parts, size, events))
        }
    };
    if refusal.is_ok() {
        let confirmed = if reset_after { 0 } else { events_in_it as u64 };
        namespace.confirmed.send_modify(|count| *count += confirmed);
    }
    namespace.hooks.run(request.hub, Moment::Done).await;
    if reset_after {
        return no_answer();
    }
    let response = match refusal {
        Ok(()) => StatusCode::CREATED.into_response(),
        Err(refusal) => namespace.error(&refusal, &parts, request.hub),
    };
    namespace.state().end(record, response.status().as_u16());
    response
}

/// The text of a scripted answer that brings none.
fn usual_detail(status: u16) -> &'static str {
    match status {
        401 => "40103: Invalid authorization token signature.",
        404 => "40400: Endpoint not found.",
        503 => "The server is busy. Please try again.",
        _ => "The answer was scripted.",
    }
}

fn router(namespace: Arc<Namespace>) -> Router {
    Router::new()
        .route("/_emulator/hubs", get(list_hubs))
        .route("/_emulator/hubs/{hub}/events", get(read_events).delete(delete_events))
        .route("/_emulator/faults", post(add_faults).get(list_faults).merge(delete(remove_faults)))
        .route("/_emulator/keys/{name}", put(put_key))
        .route("/_emulator/requests", get(list_requests))
        .route("/_emulator/{*rest}", axum::routing::any(async || not_found("no such path")))
        .route("/$Resources/{entities}", get(list_resources))
        .fallback(send)
        .layer(middleware::from_fn(guard_control_routes))
        .with_state(namespace)
}

/// Of a list of hubs, as the portal asks for them; the service's own is not documented.
const PAGE: usize = 100;

#[derive(Deserialize)]
struct Page {
    #[serde(rename = "$skip", default)]
    skip: usize,
    #[serde(rename = "$top", default = "usual_page")]
    top: usize,
}

fn usual_page() -> usize {
    PAGE
}

/// The hubs as the service lists them to a key with Manage, without what nobody here reads.
async fn list_resources(State(namespace): State<Arc<Namespace>>, request: Request<Body>) -> Response {
    let (parts, _) = request.into_parts();
    let header = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let path = parts.uri.path().trim_start_matches('/');
    if !path.eq_ignore_ascii_case("$Resources/Eventhubs") {
        return namespace.error(&Refusal::not_found(), &parts, "");
    }
    let Ok(Query(page)) = Query::<Page>::try_from_uri(&parts.uri) else {
        return (StatusCode::BAD_REQUEST, "$skip, $top: expected numbers").into_response();
    };
    let (claim, now) = (Claim::Manage, namespace.clock.unix_seconds());
    let asked = Asked { hub: "", host: header(HOST).unwrap_or_default(), path, claim, now };
    let entries: String = {
        let state = namespace.state();
        if let Err(refusal) = authorization::check(header(AUTHORIZATION), &state.keys, &asked) {
            drop(state);
            return namespace.error(&refusal, &parts, "");
        }
        let hubs = state.hubs.iter().skip(page.skip).take(page.top.min(PAGE));
        hubs.map(|hub| format!("<entry><title type=\"text\">{}</title></entry>", hub.name)).collect()
    };
    let feed =
        format!("<feed xmlns=\"http://www.w3.org/2005/Atom\"><title type=\"text\">EventHubs</title>{entries}</feed>");
    ([(CONTENT_TYPE, "application/atom+xml;type=feed;charset=utf-8")], feed).into_response()
}

fn not_found(problem: &str) -> Response {
    (StatusCode::NOT_FOUND, Json(json!({ "error": problem }))).into_response()
}

async fn list_hubs(State(namespace): State<Arc<Namespace>>) -> Json<Value> {
    let state = namespace.state();
    let partition = |(id, partition): (usize, &store::Partition)| {
        json!({
            "id": id,
            "events": partition.events.len(),
            "nextSequenceNumber": partition.next_sequence_number(),
        })
    };
    let hub = |hub: &Hub| {
        let partitions: Vec<Value> = hub.partitions.iter().enumerate().map(partition).collect();
        json!({ "name": hub.name, "partitionCount": partitions.len(), "partitions": partitions })
    };
    Json(json!({ "hubs": state.hubs.iter().map(hub).collect::<Vec<_>>() }))
}

#[derive(Deserialize)]
struct Range {
    partition: Option<u32>,
    /// The first sequence number.
    #[serde(default)]
    from: u64,
    #[serde(default = "usual_limit")]
    limit: usize,
}

fn usual_limit() -> usize {
    1_000
}

async fn read_events(
    State(namespace): State<Arc<Namespace>>,
    Path(hub): Path<String>,
    Query(range): Query<Range>,
) -> Response {
    let mut state = namespace.state();
    let Some(hub) = state.hub(&hub) else { return not_found("no such hub") };
    let fits = |event: &&StoredEvent| {
        event.sequence_number >= range.from && range.partition.is_none_or(|partition| partition == event.partition)
    };
    let events = hub.partitions.iter().flat_map(|partition| &partition.events).filter(fits).take(range.limit);
    Json(json!({ "events": events.collect::<Vec<_>>() })).into_response()
}

async fn delete_events(State(namespace): State<Arc<Namespace>>, Path(hub): Path<String>) -> Response {
    match namespace.state().hub(&hub) {
        Some(hub) => {
            hub.clear();
            StatusCode::NO_CONTENT.into_response()
        }
        None => not_found("no such hub"),
    }
}

async fn add_faults(State(namespace): State<Arc<Namespace>>, Json(faults): Json<Value>) -> Response {
    let faults = if faults.is_array() {
        serde_json::from_value::<Vec<Fault>>(faults)
    } else {
        serde_json::from_value::<Fault>(faults).map(|fault| vec![fault])
    };
    match faults {
        Ok(faults) => {
            namespace.state().faults.extend(faults);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, Json(json!({ "error": error.to_string() }))).into_response(),
    }
}

async fn list_faults(State(namespace): State<Arc<Namespace>>) -> Json<Value> {
    Json(json!({ "faults": namespace.state().faults }))
}

async fn remove_faults(State(namespace): State<Arc<Namespace>>) -> StatusCode {
    namespace.state().faults.clear();
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct NewKey {
    key: String,
}

async fn put_key(
    State(namespace): State<Arc<Namespace>>,
    Path(name): Path<String>,
    Json(new): Json<NewKey>,
) -> Response {
    if namespace.set_key(&name, &new.key) { StatusCode::NO_CONTENT.into_response() } else { not_found("no such key") }
}

async fn list_requests(State(namespace): State<Arc<Namespace>>) -> Json<Value> {
    Json(json!({ "requests": namespace.state().requests }))
}

/// Accepts connections for as long as it is polled; all of them end with it.
pub(crate) async fn accept(listener: TcpListener, router: Router) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve(stream, router.clone()))),
                // Out of file descriptors, for one: they come back as connections end.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the connection is reset on purpose")]
struct ResetOnPurpose;

async fn serve(stream: TcpStream, router: Router) {
    let _ = stream.set_nodelay(true);
    let peer = stream.peer_addr().ok();
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(Peer(peer));
        }
        let router = TowerToHyperService::new(router.clone());
        Box::pin(async move {
            let response = router.call(request).await.unwrap_or_else(|never: Infallible| match never {});
            if response.extensions().get::<NoAnswer>().is_some() { Err(ResetOnPurpose) } else { Ok(response) }
        })
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let ended = poll_fn(|context| connection.poll_without_shutdown(context)).await;
    if ended.is_err_and(|error| error.is_user()) {
        // Closing with nothing to linger for sends RST instead of FIN.
        let _ = connection.into_parts().io.into_inner().set_zero_linger();
    }
}

#[cfg(test)]
mod tests;
