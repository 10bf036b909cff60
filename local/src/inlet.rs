//! A streaming inlet of Adobe Experience Platform and the token endpoint before it: they check what the documentation says is
//! checked, answer as it prints, keep what they took, and misbehave when told to. It is our reading of the public pages, not
//! the service: nothing is validated against a schema, and what is kept is in memory.
//!
//! Records go to `/collection/{inlet}` and `/collection/batch/{inlet}`, clients to `/ims/token/v3`; everything below `/_inlet/`
//! is for looking in and for faults.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Request, StatusCode};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::clock::Clock;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use crate::body::{self, Unread};
use crate::emulator::{accept, no_answer};
use crate::faults;
use crate::own_address::guard_control_routes;
use crate::random;

/// The whole request, in bytes.
pub const MAX_BYTES: usize = 1_000_000;
/// Of an inlet, in a second.
const MAX_REQUESTS: usize = 1_000;
const MAX_MESSAGES: usize = 10_000;
const TOKEN_LIFETIME: u64 = 86_399;

/// What the inlet expects.
#[derive(Debug, Clone)]
pub struct Config {
    /// The last segment of its URL.
    pub id: String,
    pub flow_id: String,
    pub org_id: String,
    pub dataset_id: String,
    pub schema_id: String,
    pub sandbox: String,
    /// The client that gets tokens, and its secret; without one the inlet wants none.
    pub client: Option<(String, String)>,
    /// Whether any number of requests and messages is taken in a second.
    pub unlimited: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            id: "9b0cb233972f3b0092992284c7353f5eead496218e8441a79b25e9421ea127f5".to_owned(),
            flow_id: "f2ae0194-8bd8-4a40-a4d9-f07bdc3e6ce2".to_owned(),
            org_id: "7BF122A65C5B3FE40A494026@AdobeOrg".to_owned(),
            dataset_id: "604a18a3bae67d18db6d258c".to_owned(),
            schema_id: "https://ns.adobe.com/local/schemas/7f682c29f887512a897791e7161b90a1ae7ed3dd07a177b1".to_owned(),
            sandbox: "prod".to_owned(),
            client: None,
            unlimited: false,
        }
    }
}

/// A record that was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Taken {
    /// Counts from 0 in the order in which records were taken.
    pub number: u64,
    /// The number of its request.
    pub request: u64,
    /// Whether it came in an envelope.
    pub xdm: bool,
    /// The entity of an envelope, or the raw object.
    pub record: Value,
}

/// Misbehaviour for requests to the inlet, or to the token endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Requests that it strikes; 0: all until it is cleared.
    #[serde(default = "once")]
    pub times: u32,
    /// Strikes requests for tokens instead.
    #[serde(default)]
    pub token: bool,
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum Action {
    /// An error answer; nothing is taken.
    Status {
        status: u16,
        /// In seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<u64>,
    },
    /// Of a batch, those at these places are not taken, the rest is.
    Elements {
        status: u16,
        places: Vec<usize>,
        /// As the documentation prints it: `statusCode`, and no id on failures.
        #[serde(default)]
        as_documented: bool,
    },
    /// The connection is reset without an answer; nothing is taken.
    Reset,
    /// The records are taken, then the connection is reset without an answer.
    ResetAfterTaking,
    /// Handled as usual, but later.
    Delay { ms: u64 },
    /// Never answered; nothing is taken.
    Hang,
}

impl From<Action> for Fault {
    /// For the next request.
    fn from(action: Action) -> Self {
        Self { times: 1, token: false, action }
    }
}

/// A running inlet. It stops with its last clone.
#[derive(Clone)]
pub struct Inlet {
    shared: Arc<Shared>,
    address: SocketAddr,
    _server: Arc<Server>,
}

struct Server(AbortHandle);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Shared {
    clock: Clock,
    state: Mutex<Records>,
}

#[derive(Default)]
struct Records {
    config: Config,
    taken: Vec<Taken>,
    /// Status of each request to the inlet, in order; 0 without an answer.
    statuses: Vec<u16>,
    tokens: Vec<String>,
    tokens_given: u64,
    faults: VecDeque<Fault>,
    rate: Rate,
}

/// What came in one second.
#[derive(Default)]
struct Rate {
    second: u64,
    requests: usize,
    messages: usize,
}

impl Inlet {
    /// Serves `config` at `listener`.
    pub async fn start(config: Config, listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([127, 0, 0, 1], 0)));
        let state = Mutex::new(Records { config, ..Records::default() });
        let shared = Arc::new(Shared { clock: Clock::system(), state });
        let server = tokio::spawn(accept(listener, router(shared.clone())));
        Self { shared, address, _server: Arc::new(Server(server.abort_handle())) }
    }

    /// Host and port that clients on this machine connect to.
    pub fn host(&self) -> String {
        let ip = if self.address.ip().is_unspecified() { [127, 0, 0, 1].into() } else { self.address.ip() };
        SocketAddr::new(ip, self.address.port()).to_string()
    }

    /// Where single records go.
    pub fn url(&self) -> String {
        format!("http://{}/collection/{}", self.host(), self.shared.state().config.id)
    }

    pub fn token_url(&self) -> String {
        format!("http://{}/ims/token/v3", self.host())
    }

    /// What was taken so far.
    pub fn taken(&self) -> Vec<Taken> {
        self.shared.state().taken.clone()
    }

    /// The statuses of the requests to the inlet so far; 0 without an answer.
    pub fn statuses(&self) -> Vec<u16> {
        self.shared.state().statuses.clone()
    }

    /// Forgets what was taken.
    pub fn forget(&self) {
        self.shared.state().taken.clear();
    }

    /// How many tokens were given out.
    pub fn tokens_given(&self) -> u64 {
        self.shared.state().tokens_given
    }

    /// Makes every token that was given out worthless.
    pub fn revoke_tokens(&self) {
        self.shared.state().tokens.clear();
    }

    /// Gives the client another secret.
    pub fn set_client_secret(&self, new: &str) {
        if let Some((_, secret)) = &mut self.shared.state().config.client {
            new.clone_into(secret);
        }
    }

    /// Adds faults to the queue. A request takes the first one that fits it.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.state().faults.extend(faults);
    }

    pub fn clear_faults(&self) {
        self.shared.state().faults.clear();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Records> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records {
    fn take_fault(&mut self, token: bool) -> Option<Action> {
        faults::take(&mut self.faults, |fault| fault.token == token).map(|fault| fault.action)
    }
}

impl Rate {
    fn admits(&mut self, now: u64, messages: usize) -> bool {
        if self.second != now {
            *self = Self { second: now, ..Self::default() };
        }
        self.requests += 1;
        self.messages += messages;
        self.requests <= MAX_REQUESTS && self.messages <= MAX_MESSAGES
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/collection/{inlet}", post(single))
        .route("/collection/batch/{inlet}", post(batch))
        .route("/ims/token/v3", post(token))
        .route("/_inlet/records", get(list_records))
        .route("/_inlet/faults", get(list_faults).post(add_fault).delete(remove_faults))
        .layer(middleware::from_fn(guard_control_routes))
        .with_state(shared)
}

async fn single(state: State<Arc<Shared>>, path: Path<String>, request: Request<Body>) -> Response {
    handle(state, path, request, false).await
}

async fn batch(state: State<Arc<Shared>>, path: Path<String>, request: Request<Body>) -> Response {
    handle(state, path, request, true).await
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    Path(inlet): Path<String>,
    request: Request<Body>,
    is_batch: bool,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = match body::read(body, MAX_BYTES).await {
        Err(Unread::BrokenOff) => return no_answer(),
        Ok(body) => Some(body),
        Err(Unread::TooLarge) => None,
    };
    let (number, fault) = {
        let mut state = shared.state();
        state.statuses.push(0);
        (state.statuses.len() - 1, state.take_fault(false))
    };
    match &fault {
        Some(Action::Reset) => return no_answer(),
        Some(Action::Hang) => std::future::pending().await,
        Some(Action::Delay { ms }) => tokio::time::sleep(Duration::from_millis(*ms)).await,
        _ => {}
    }
    let now = shared.clock.unix_seconds();
    let mut state = shared.state();
    let response = match &fault {
        Some(Action::Status { status, retry_after }) => scripted(*status, *retry_after),
        fault => state
            .admit(&inlet, &parts, body.as_deref(), now)
            .and_then(|json| match is_batch {
                true => state.take_batch(json, number as u64, fault.as_ref()),
                false => state.take_single(json, &parts, number as u64),
            })
            .unwrap_or_else(|refusal| refusal.response()),
    };
    if fault == Some(Action::ResetAfterTaking) {
        return no_answer();
    }
    state.statuses[number] = response.status().as_u16();
    response
}

/// Status, title and message of a problem.
struct Refusal(u16, &'static str, &'static str);

impl Refusal {
    /// As the service prints it; of an unauthorized request the `status` is text.
    fn response(&self) -> Response {
        let Self(status, title, message) = *self;
        let number = if status == 401 { json!("401") } else { json!(status) };
        let problem = json!({
            "type": "http://ns.adobe.com/adobecloud/problem/data-collection-service/inlet",
            "status": number, "title": title, "report": { "message": message },
        });
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(CONTENT_TYPE, "application/problem+json")], problem.to_string()).into_response()
    }
}

impl Records {
    /// Everything that both endpoints ask of a request; gives its JSON.
    fn admit(&mut self, inlet: &str, parts: &Parts, body: Option<&[u8]>, now: u64) -> Result<Value, Refusal> {
        if inlet != self.config.id {
            return Err(Refusal(404, "Not Found", "There is no such inlet"));
        }
        let token = text(&parts.headers, AUTHORIZATION).strip_prefix("Bearer ").unwrap_or_default();
        if self.config.client.is_some() && !self.tokens.iter().any(|known| known == token) {
            return Err(Refusal(401, "Authorization", "Ims service token is empty or not valid"));
        }
        let Some(body) = body else { return Err(Refusal(413, "Payload Too Large", "The request is over 1 MB")) };
        if !text(&parts.headers, CONTENT_TYPE).starts_with("application/json") {
            return Err(Refusal(415, "Unsupported Media Type", "Expected application/json"));
        }
        if text(&parts.headers, HeaderName::from_static("x-sandbox-name")) != self.config.sandbox {
            return Err(Refusal(400, "Invalid sandbox", "The sandbox is absent or not the inlet's"));
        }
        let json: Option<Value> = serde_json::from_slice(body).ok();
        let messages = json.as_ref().and_then(|json| json["messages"].as_array()).map_or(1, Vec::len);
        if !self.config.unlimited && !self.rate.admits(now, messages) {
            return Err(Refusal(429, "Too Many Requests", "Rate limit exceeded"));
        }
        json.ok_or(Refusal(400, "Invalid JSON", "The request is no JSON"))
    }

    fn take_single(&mut self, json: Value, parts: &Parts, request: u64) -> Result<Response, Refusal> {
        let mut query = parts.uri.query().unwrap_or_default().split('&');
        let of_query = query.find_map(|pair| pair.strip_prefix("x-adobe-flow-id="));
        let of_header = parts.headers.get("x-adobe-flow-id").and_then(|value| value.to_str().ok());
        match of_header.or(of_query) {
            Some(flow_id) if flow_id != self.config.flow_id || !json.is_object() || json.get("xdmEntity").is_some() => {
                return Err(Refusal(400, "Invalid message", "Expected one raw object of a known flow"));
            }
            Some(_) => self.take(json, false, request),
            None => self
                .take_envelope(json, request)
                .map_err(|message| Refusal(400, "Invalid XDM Message Format", message))?,
        }
        let answer = json!({
            "inletId": self.config.id, "xactionId": format!("1555445493896:8600:{request}"),
            "receivedTimeMs": 1_555_445_493_932_u64, "syncValidation": { "skipped": true },
        });
        Ok(Json(answer).into_response())
    }

    fn take_batch(&mut self, mut json: Value, request: u64, fault: Option<&Action>) -> Result<Response, Refusal> {
        let Value::Array(messages) = json["messages"].take() else {
            return Err(Refusal(400, "Invalid batch", "The 'messages' field is mandatory"));
        };
        let (status, places, as_documented) = match fault {
            Some(Action::Elements { status, places, as_documented }) => (*status, places.as_slice(), *as_documented),
            _ => (400, [].as_slice(), false),
        };
        let batch_id = format!("1565638336649:1750:{request}");
        let mut responses = Vec::new();
        for (place, message) in messages.into_iter().enumerate() {
            let id = format!("{batch_id}:{place}");
            let outcome = match places.contains(&place) {
                true => Err((status, "The failure was scripted")),
                false => self.take_envelope(message, request).map_err(|message| (400, message)),
            };
            responses.push(match outcome {
                Ok(()) => json!({ "xactionId": id }),
                Err((status, message)) if as_documented => json!({ "statusCode": status, "message": message }),
                Err((status, message)) => json!({ "xactionId": id, "status": status, "message": message }),
            });
        }
        let answer = json!({
            "inletId": self.config.id, "batchId": batch_id, "receivedTimeMs": 1_565_638_336_705_u64,
            "responses": responses,
        });
        Ok((StatusCode::MULTI_STATUS, Json(answer)).into_response())
    }

    /// Takes the entity of an envelope.
    fn take_envelope(&mut self, mut envelope: Value, request: u64) -> Result<(), &'static str> {
        self.check_envelope(&envelope)?;
        let entity = envelope["body"]["xdmEntity"].take();
        self.take(entity, true, request);
        Ok(())
    }

    fn take(&mut self, record: Value, xdm: bool, request: u64) {
        let number = self.taken.len() as u64;
        self.taken.push(Taken { number, request, xdm, record });
    }

    fn check_envelope(&self, envelope: &Value) -> Result<(), &'static str> {
        let (header, body) = (&envelope["header"], &envelope["body"]);
        if !header.is_object() {
            return Err("The 'header' field is mandatory. Provide a valid 'header' value and try again.");
        }
        let schema = &header["schemaRef"];
        let is_known = schema["id"] == self.config.schema_id.as_str()
            && schema["contentType"].as_str().is_some_and(|kind| kind.starts_with("application/vnd.adobe.xed"));
        if !is_known || body["xdmMeta"]["schemaRef"] != *schema {
            return Err("Message has unknown xdm format");
        }
        if header["imsOrgId"] != self.config.org_id.as_str() {
            return Err("Message has an absent or wrong ims org in the header");
        }
        if header["datasetId"] != self.config.dataset_id.as_str() || header["flowId"] != self.config.flow_id.as_str() {
            return Err("Message has an unknown dataset or flow in the header");
        }
        let entity = &body["xdmEntity"];
        let lacks_time = entity.get("eventType").is_some() && !entity["timestamp"].is_string();
        if !entity["_id"].is_string() || lacks_time {
            return Err("Message has no valid _id or timestamp");
        }
        Ok(())
    }
}

fn scripted(status: u16, retry_after: Option<u64>) -> Response {
    let mut response = Refusal(status, "Scripted", "The answer was scripted").response();
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn text(headers: &HeaderMap, name: HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Gives a token to the known client.
async fn token(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = body::read(body, 10_000).await else { return no_answer() };
    let fault = shared.state().take_fault(true);
    match fault {
        Some(Action::Status { status, retry_after }) => return scripted(status, retry_after),
        Some(Action::Hang) => std::future::pending().await,
        Some(Action::Delay { ms }) => tokio::time::sleep(Duration::from_millis(ms)).await,
        Some(Action::Reset | Action::ResetAfterTaking) => return no_answer(),
        Some(Action::Elements { .. }) | None => {}
    }
    let form = String::from_utf8_lossy(&body).into_owned();
    let field = |name: &str| {
        let value = form.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        percent_decode_str(value.unwrap_or_default()).decode_utf8_lossy().into_owned()
    };
    let mut state = shared.state();
    let refused = |error: &str| (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response();
    if text(&parts.headers, CONTENT_TYPE) != "application/x-www-form-urlencoded"
        || field("grant_type") != "client_credentials"
    {
        return refused("unsupported_grant_type");
    }
    if state.config.client.as_ref() != Some(&(field("client_id"), field("client_secret"))) {
        return refused("invalid_client");
    }
    if field("scope").is_empty() {
        return refused("invalid_scope");
    }
    let token = random::uuid();
    state.tokens.push(token.clone());
    state.tokens_given += 1;
    Json(json!({ "access_token": token, "token_type": "bearer", "expires_in": TOKEN_LIFETIME })).into_response()
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    from: u64,
}

async fn list_records(State(shared): State<Arc<Shared>>, Query(range): Query<Range>) -> Json<Value> {
    let state = shared.state();
    Json(json!({ "records": state.taken.iter().skip(range.from as usize).collect::<Vec<_>>() }))
}

async fn add_fault(State(shared): State<Arc<Shared>>, Json(fault): Json<Fault>) -> StatusCode {
    shared.state().faults.push_back(fault);
    StatusCode::NO_CONTENT
}

async fn list_faults(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({ "faults": shared.state().faults }))
}

async fn remove_faults(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.state().faults.clear();
    StatusCode::NO_CONTENT
}
