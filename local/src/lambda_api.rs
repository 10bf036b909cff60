//! The calls of Lambda by which the control API serves a hub: aliases of one function, and source mappings on them. A mapping
//! that is enabled reads the hub of the emulator and invokes the function by its alias.
//!
//! It is our reading of AWS's public reference, with the shapes of its service model: state changes are told as AWS tells them
//! and done at once. Bootstrap servers and secrets are checked by their form; the emulator is read whatever they are.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use http::{Method, Request, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use shared::clock::Clock;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::body;
use crate::emulator::Emulator;
use crate::faults;
use crate::poller::{Limits, Polled, Poller};
use crate::random;
use crate::runner::Function;

const MAX_BYTES: usize = 1024 * 1024;
const PAUSE: Duration = Duration::from_millis(100);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const MAX_BATCH_SIZE: u64 = 10_000;
const FUNCTIONS: &str = "functions";
const MAPPINGS: &str = "event-source-mappings";

/// How an operation fails.
#[derive(Debug, Clone)]
pub struct Fault {
    /// As in AWS's reference, `CreateAlias` for example.
    pub operation: &'static str,
    /// How often; 0: until it is cleared.
    pub times: u32,
    pub status: u16,
    pub code: &'static str,
    /// Whether it is done all the same.
    pub done: bool,
}

impl faults::Fault for Fault {
    fn times(&mut self) -> &mut u32 {
        &mut self.times
    }
}

/// A running stand-in. It stops with its last clone.
#[derive(Clone)]
pub struct LambdaApi {
    shared: Arc<Shared>,
    address: SocketAddr,
    _server: Arc<Abort>,
}

struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Shared {
    emulator: Emulator,
    function: Function,
    clock: Clock,
    state: Mutex<Records>,
}

/// Of a consumer group: of each partition the offset that comes next.
type Offsets = Arc<Mutex<Vec<u64>>>;

#[derive(Default)]
struct Records {
    /// Configurations by name.
    aliases: BTreeMap<String, Value>,
    /// By id.
    mappings: BTreeMap<String, Mapping>,
    /// By hub and consumer group. They outlive the mappings.
    offsets: HashMap<(String, String), Offsets>,
    /// Operation and body of each call.
    calls: Vec<(String, Value)>,
    faults: VecDeque<Fault>,
}

struct Mapping {
    configuration: Value,
    /// While it is enabled.
    reading: Option<Abort>,
}

/// What a call is refused with: status, code, message.
type Refused = (StatusCode, &'static str, String);

fn invalid<T>(message: impl Into<String>) -> Result<T, Refused> {
    Err((StatusCode::BAD_REQUEST, "InvalidParameterValueException", message.into()))
}

fn missing<T>(message: impl Into<String>) -> Result<T, Refused> {
    Err((StatusCode::NOT_FOUND, "ResourceNotFoundException", message.into()))
}

fn conflict<T>(message: impl Into<String>) -> Result<T, Refused> {
    Err((StatusCode::CONFLICT, "ResourceConflictException", message.into()))
}

impl LambdaApi {
    pub async fn start(emulator: Emulator, function: Function, listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([127, 0, 0, 1], 0)));
        let shared = Arc::new(Shared { emulator, function, clock: Clock::system(), state: Mutex::default() });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("lambda: {error}");
            }
        });
        Self { shared, address, _server: Arc::new(Abort(server.abort_handle())) }
    }

    pub fn url(&self) -> String {
        let ip = if self.address.ip().is_unspecified() { [127, 0, 0, 1].into() } else { self.address.ip() };
        format!("http://{}", SocketAddr::new(ip, self.address.port()))
    }

    /// The names of all aliases.
    pub fn aliases(&self) -> Vec<String> {
        self.shared.state().aliases.keys().cloned().collect()
    }

    /// All mappings, as `GetEventSourceMapping` gives them.
    pub fn mappings(&self) -> Vec<Value> {
        self.shared.state().mappings.values().map(|mapping| mapping.configuration.clone()).collect()
    }

    /// The calls so far: operation and body.
    pub fn calls(&self) -> Vec<(String, Value)> {
        self.shared.state().calls.clone()
    }

    /// A call takes the first fault of its operation.
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

async fn answer(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = body::read(body, MAX_BYTES).await else {
        return problem(&(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLargeException", "too large".to_owned()));
    };
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let path: Vec<String> = parts.uri.path().split('/').filter(|part| !part.is_empty()).map(decoded).collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let query: HashMap<String, String> = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect();
    let operation = match (&parts.method, &path[..]) {
        (&Method::POST, ["2015-03-31", FUNCTIONS, _, "aliases"]) => "CreateAlias",
        (&Method::GET, ["2015-03-31", FUNCTIONS, _, "aliases", _]) => "GetAlias",
        (&Method::DELETE, ["2015-03-31", FUNCTIONS, _, "aliases", _]) => "DeleteAlias",
        (&Method::POST, ["2015-03-31", MAPPINGS]) => "CreateEventSourceMapping",
        (&Method::GET, ["2015-03-31", MAPPINGS]) => "ListEventSourceMappings",
        (&Method::GET, ["2015-03-31", MAPPINGS, _]) => "GetEventSourceMapping",
        (&Method::PUT, ["2015-03-31", MAPPINGS, _]) => "UpdateEventSourceMapping",
        (&Method::DELETE, ["2015-03-31", MAPPINGS, _]) => "DeleteEventSourceMapping",
        _ => return problem(&(StatusCode::NOT_FOUND, "UnknownOperationException", "no such operation".to_owned())),
    };
    let fault = {
        let mut state = shared.state();
        state.calls.push((operation.to_owned(), body.clone()));
        state.take_fault(operation)
    };
    let done = match &fault {
        Some(fault) if !fault.done => None,
        _ => Some(shared.call(operation, &path, &query, &body)),
    };
    if let Some(fault) = fault {
        let status = StatusCode::from_u16(fault.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return problem(&(status, fault.code, "on purpose".to_owned()));
    }
    match done {
        Some(Ok((status, Value::Null))) => status.into_response(),
        Some(Ok((status, body))) => (status, Json(body)).into_response(),
        Some(Err(refused)) => problem(&refused),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn problem((status, code, message): &Refused) -> Response {
    let body = json!({ "Type": if status.is_server_error() { "Service" } else { "User" }, "Message": message });
    (*status, [("x-amzn-errortype", *code)], Json(body)).into_response()
}

impl Records {
    fn take_fault(&mut self, operation: &str) -> Option<Fault> {
        faults::take(&mut self.faults, |fault| fault.operation == operation)
    }
}

impl Shared {
    fn call(
        self: &Arc<Self>,
        operation: &str,
        path: &[&str],
        query: &HashMap<String, String>,
        body: &Value,
    ) -> Result<(StatusCode, Value), Refused> {
        let last = path.last().copied().unwrap_or_default();
        let text = |name: &str| body[name].as_str();
        match operation {
            "CreateAlias" => {
                self.function(path[2])?;
                let (Some(name), Some(version)) = (text("Name"), text("FunctionVersion")) else {
                    return invalid("Name and FunctionVersion are needed");
                };
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
                if name.is_empty() || name.len() > 128 || !name.bytes().all(plain) || version != "$LATEST" {
                    return invalid("a name of letters, digits, - and _, and the version $LATEST are expected");
                }
                let mut state = self.state();
                if state.aliases.contains_key(name) {
                    return conflict(format!("Alias already exists: {name}"));
                }
                let alias = json!({
                    "AliasArn": self.function.arn(Some(name)), "Name": name, "FunctionVersion": version, "Description": "",
                    "RevisionId": random::uuid(),
                });
                state.aliases.insert(name.to_owned(), alias.clone());
                Ok((StatusCode::CREATED, alias))
            }
            "GetAlias" => {
                self.function(path[2])?;
                match self.state().aliases.get(last) {
                    Some(alias) => Ok((StatusCode::OK, alias.clone())),
                    None => missing(format!("Cannot find alias: {last}")),
                }
            }
            "DeleteAlias" => {
                self.function(path[2])?;
                self.state().aliases.remove(last);
                Ok((StatusCode::NO_CONTENT, Value::Null))
            }
            "CreateEventSourceMapping" => self.create(body),
            "ListEventSourceMappings" => {
                let function = query.get("FunctionName").map(|name| self.function(name)).transpose()?;
                let state = self.state();
                let mappings = state.mappings.values().map(|mapping| &mapping.configuration);
                let listed: Vec<&Value> = mappings
                    .filter(|mapping| function.as_ref().is_none_or(|arn| mapping["FunctionArn"] == **arn))
                    .collect();
                Ok((StatusCode::OK, json!({ "EventSourceMappings": listed })))
            }
            "GetEventSourceMapping" => match self.state().mappings.get(last) {
                Some(mapping) => Ok((StatusCode::OK, mapping.configuration.clone())),
                None => missing("The resource you requested does not exist."),
            },
            "UpdateEventSourceMapping" => self.update(last, body),
            _ => match self.state().mappings.remove(last) {
                Some(mapping) => Ok((StatusCode::ACCEPTED, in_state(&mapping.configuration, "Deleting"))),
                None => missing("The resource you requested does not exist."),
            },
        }
    }

    /// The ARN of the function or alias that is called so.
    fn function(&self, name: &str) -> Result<String, Refused> {
        let own = &self.function.config().name;
        let name = name.split_once("function:").map_or(name, |(_, name)| name);
        let (function, alias) = match name.split_once(':') {
            Some((function, alias)) => (function, Some(alias)),
            None => (name, None),
        };
        if function != own || alias.is_some_and(|alias| !self.state().aliases.contains_key(alias)) {
            return missing(format!("Function not found: {name}"));
        }
        Ok(self.function.arn(alias))
    }

    fn create(self: &Arc<Self>, body: &Value) -> Result<(StatusCode, Value), Refused> {
        let arn = self.function(body["FunctionName"].as_str().unwrap_or_default())?;
        let Some([Value::String(hub)]) = body["Topics"].as_array().map(Vec::as_slice) else {
            return invalid("one topic is expected");
        };
        let servers = &body["SelfManagedEventSource"]["Endpoints"]["KAFKA_BOOTSTRAP_SERVERS"];
        let is_server = |server: &Value| server.as_str().is_some_and(|server| server.ends_with(":9093"));
        if !servers.as_array().is_some_and(|servers| !servers.is_empty() && servers.iter().all(is_server)) {
            return invalid("the Kafka endpoint of a namespace is at port 9093");
        }
        let group = body["SelfManagedKafkaEventSourceConfig"]["ConsumerGroupId"].as_str().unwrap_or_default();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-/*:_+=.@".contains(&byte);
        if group.is_empty() || group.len() > 200 || !group.bytes().all(plain) {
            return invalid("ConsumerGroupId: expected 1 to 200 of [a-zA-Z0-9-/*:_+=.@-]");
        }
        if !matches!(body["StartingPosition"].as_str(), Some("TRIM_HORIZON" | "LATEST")) {
            return invalid("StartingPosition: expected TRIM_HORIZON or LATEST");
        }
        check(body, &body["ProvisionedPollerConfig"])?;
        let taken = |mapping: &Mapping| {
            let known = &mapping.configuration;
            known["FunctionArn"] == arn
                && known["Topics"] == body["Topics"]
                && known["SelfManagedKafkaEventSourceConfig"] == body["SelfManagedKafkaEventSourceConfig"]
        };
        if self.state().mappings.values().any(taken) {
            return conflict("there is an event source mapping of that topic and group for the function already");
        }
        let mut configuration = body.clone();
        if let Some(members) = configuration.as_object_mut() {
            members.remove("FunctionName");
            members.remove("Enabled");
        }
        let id = random::uuid();
        configuration["EventSourceMappingArn"] =
            arn.split(":function:").next().map(|start| format!("{start}:event-source-mapping:{id}")).into();
        configuration["UUID"] = id.clone().into();
        configuration["FunctionArn"] = arn.into();
        configuration["StateTransitionReason"] = "USER_INITIATED".into();
        let is_enabled = body["Enabled"] != false;
        let offsets = self.offsets(hub, group, body["StartingPosition"] == "LATEST");
        let mut mapping = Mapping { configuration, reading: None };
        self.set_state(&mut mapping, is_enabled, offsets);
        let told = in_state(&mapping.configuration, "Creating");
        self.state().mappings.insert(id, mapping);
        Ok((StatusCode::ACCEPTED, told))
    }

    fn update(self: &Arc<Self>, id: &str, body: &Value) -> Result<(StatusCode, Value), Refused> {
        let Some(mut mapping) = self.state().mappings.remove(id) else {
            return missing("The resource you requested does not exist.");
        };
        let mut changed = mapping.configuration.clone();
        for (name, value) in body.as_object().into_iter().flatten().filter(|(name, _)| *name != "Enabled") {
            changed[name] = value.clone();
        }
        // An empty destination removes the one that is there.
        if changed["DestinationConfig"]["OnFailure"]["Destination"] == "" {
            changed["DestinationConfig"]["OnFailure"] = json!({});
        }
        let checked = check(&changed, &changed["ProvisionedPollerConfig"]);
        let mut told = Value::Null;
        if checked.is_ok() {
            let group = changed["SelfManagedKafkaEventSourceConfig"]["ConsumerGroupId"].as_str().unwrap_or_default();
            let offsets = self.offsets(changed["Topics"][0].as_str().unwrap_or_default(), group, false);
            let is_enabled = body["Enabled"].as_bool().unwrap_or(changed["State"] == "Enabled");
            mapping.configuration = changed;
            self.set_state(&mut mapping, is_enabled, offsets);
            told = in_state(&mapping.configuration, if is_enabled { "Enabling" } else { "Disabling" });
        }
        self.state().mappings.insert(id.to_owned(), mapping);
        checked.map(|()| (StatusCode::ACCEPTED, told))
    }

    fn set_state(self: &Arc<Self>, mapping: &mut Mapping, is_enabled: bool, offsets: Offsets) {
        let now = self.clock.unix_seconds();
        mapping.configuration["LastModified"] = now.into();
        mapping.configuration["State"] = if is_enabled { "Enabled" } else { "Disabled" }.into();
        mapping.reading = is_enabled.then(|| {
            let hub = mapping.configuration["Topics"][0].as_str().unwrap_or_default();
            let alias = mapping.configuration["FunctionArn"].as_str().and_then(|arn| arn.split(':').nth(7));
            let size = mapping.configuration["BatchSize"].as_u64().unwrap_or(100).min(MAX_BATCH_SIZE) as usize;
            let limits = Limits::of(&mapping.configuration);
            let poller = Poller::new(self.emulator.clone(), hub, self.function.clone(), alias, size)
                .with_limits(limits, self.clock.clone());
            Abort(tokio::spawn(read(poller, offsets)).abort_handle())
        });
    }

    /// Those of a group; a new one begins with the oldest or after the newest event.
    fn offsets(&self, hub: &str, group: &str, latest: bool) -> Offsets {
        let mut state = self.state();
        let offsets = state.offsets.entry((hub.to_owned(), group.to_owned())).or_insert_with(|| {
            let mut next = vec![0; self.emulator.partitions(hub) as usize];
            for event in self.emulator.events(hub).iter().filter(|_| latest) {
                let next = &mut next[event.partition as usize];
                *next = event.sequence_number.max(*next) + 1;
            }
            Arc::new(Mutex::new(next))
        });
        offsets.clone()
    }
}

/// Reads until it is aborted; the group's offsets are where it has come to.
async fn read(mut poller: Poller, offsets: Offsets) {
    let lock = || offsets.lock().unwrap_or_else(PoisonError::into_inner);
    poller.seek(lock().clone());
    loop {
        let polled = poller.poll().await;
        lock().clone_from_slice(poller.offsets());
        match polled {
            Polled::Batch { again: 0, .. } => {}
            Polled::Nothing => sleep(PAUSE).await,
            Polled::Batch { .. } | Polled::Failed { .. } => sleep(RETRY_PAUSE).await,
        }
    }
}

fn in_state(configuration: &Value, state: &str) -> Value {
    let mut told = configuration.clone();
    told["State"] = state.into();
    told
}

/// What can be changed of a mapping.
fn check(body: &Value, pollers: &Value) -> Result<(), Refused> {
    let is_secret = |access: &Value| {
        access["Type"] == "BASIC_AUTH"
            && access["URI"].as_str().is_some_and(|uri| uri.starts_with("arn:aws:secretsmanager:"))
    };
    if !body["SourceAccessConfigurations"].as_array().is_some_and(|all| all.iter().any(is_secret)) {
        return invalid("BASIC_AUTH with the ARN of a secret is expected");
    }
    let limits =
        ["FunctionResponseTypes", "BisectBatchOnFunctionError", "MaximumRecordAgeInSeconds", "MaximumRetryAttempts"];
    if pollers["MinimumPollers"].as_u64().is_none() && limits.iter().any(|name| !body[*name].is_null()) {
        return invalid("partial answers and limits need ProvisionedPollerConfig");
    }
    let age = body["MaximumRecordAgeInSeconds"].as_i64().unwrap_or(-1);
    if age != -1 && !(60..=604_800).contains(&age) {
        return invalid("MaximumRecordAgeInSeconds: expected -1, or 60 to 604800");
    }
    let retries = body["MaximumRetryAttempts"].as_i64().unwrap_or(-1);
    if !(-1..=10_000).contains(&retries) {
        return invalid("MaximumRetryAttempts: expected -1 to 10000");
    }
    Ok(())
}
