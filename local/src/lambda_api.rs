//! The calls of Lambda with which the control API manages sources: aliases of one function, and source mappings on them. An
//! enabled mapping reads the hub of the emulator and invokes the function through its alias.
//!
//! It is our reading of AWS's public reference, with the shapes of its service model: state changes are reported as AWS
//! reports them, and take effect at once. Only the form of bootstrap servers and secrets is checked; a mapping always reads
//! the emulator.

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
use tokio::time::sleep;

use crate::emulator::Emulator;
use crate::faults;
use crate::poller::{Limits, Polled, Poller};
use crate::random;
use crate::runner::Function;
use crate::server::{Running, address_of, body, reachable};

/// Maximum size of a request, in bytes.
const MAX_BYTES: usize = 1024 * 1024;
/// Pause after a poll that found no event.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause after a batch that failed in whole or in part.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Maximum number of records of one invocation.
const MAX_BATCH_SIZE: u64 = 10_000;
const FUNCTIONS: &str = "functions";
const MAPPINGS: &str = "event-source-mappings";

/// A fault for calls of one operation.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Name of the operation in AWS's reference, such as `CreateAlias`.
    pub operation: &'static str,
    /// Number of calls that it affects. 0: all calls until it is cleared.
    pub times: u32,
    pub status: u16,
    pub code: &'static str,
    /// Whether the call takes effect although its response is an error.
    pub done: bool,
}

impl faults::Fault for Fault {
    fn times(&mut self) -> &mut u32 {
        &mut self.times
    }
}

/// A running emulator of the calls. It stops with its last clone.
#[derive(Clone)]
pub struct LambdaApi {
    shared: Arc<Shared>,
    address: SocketAddr,
    _server: Arc<Running>,
}

struct Shared {
    emulator: Emulator,
    function: Function,
    clock: Clock,
    state: Mutex<Records>,
}

/// The next offset of each partition, for a consumer group.
type Offsets = Arc<Mutex<Vec<u64>>>;

#[derive(Default)]
struct Records {
    /// Configurations of the aliases, by name.
    aliases: BTreeMap<String, Value>,
    /// Mappings by id.
    mappings: BTreeMap<String, Mapping>,
    /// Offsets by hub and consumer group. They outlive the mappings.
    offsets: HashMap<(String, String), Offsets>,
    /// Operation and body of each call.
    calls: Vec<(String, Value)>,
    faults: VecDeque<Fault>,
}

struct Mapping {
    configuration: Value,
    /// The task that reads the hub. `None`: the mapping is disabled.
    reading: Option<Running>,
}

/// Status, code and message of a refused call.
type Refusal = (StatusCode, &'static str, String);

fn invalid<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err((StatusCode::BAD_REQUEST, "InvalidParameterValueException", message.into()))
}

fn missing<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err((StatusCode::NOT_FOUND, "ResourceNotFoundException", message.into()))
}

fn conflict<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err((StatusCode::CONFLICT, "ResourceConflictException", message.into()))
}

impl LambdaApi {
    pub async fn start(emulator: Emulator, function: Function, listener: TcpListener) -> Self {
        let address = address_of(&listener);
        let shared = Arc::new(Shared { emulator, function, clock: Clock::system(), state: Mutex::default() });
        let router = Router::new().fallback(respond).with_state(shared.clone());
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("lambda: {error}");
            }
        });
        Self { shared, address, _server: Arc::new(Running::new(&server)) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", reachable(self.address))
    }

    /// Names of all aliases.
    pub fn aliases(&self) -> Vec<String> {
        self.shared.state().aliases.keys().cloned().collect()
    }

    /// All mappings, as `GetEventSourceMapping` returns them.
    pub fn mappings(&self) -> Vec<Value> {
        self.shared.state().mappings.values().map(|mapping| mapping.configuration.clone()).collect()
    }

    /// Operation and body of each call so far.
    pub fn calls(&self) -> Vec<(String, Value)> {
        self.shared.state().calls.clone()
    }

    /// Adds faults to the list. A call gets the first one for its operation.
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

async fn respond(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
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
        Some(Err(refusal)) => problem(&refusal),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn problem((status, code, message): &Refusal) -> Response {
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
    ) -> Result<(StatusCode, Value), Refusal> {
        let last = path.last().copied().unwrap_or_default();
        let text = |name: &str| body[name].as_str();
        match operation {
            "CreateAlias" => {
                self.function(path[2])?;
                let (Some(name), Some(version)) = (text("Name"), text("FunctionVersion")) else {
                    return invalid("Name and FunctionVersion are required");
                };
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
                if name.is_empty() || name.len() > 128 || !name.bytes().all(plain) || version != "$LATEST" {
                    return invalid("expected a Name of letters, digits, - and _, and the FunctionVersion $LATEST");
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

    /// ARN of the function or alias with this name or ARN.
    fn function(&self, name: &str) -> Result<String, Refusal> {
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

    fn create(self: &Arc<Self>, body: &Value) -> Result<(StatusCode, Value), Refusal> {
        let arn = self.function(body["FunctionName"].as_str().unwrap_or_default())?;
        let Some([Value::String(hub)]) = body["Topics"].as_array().map(Vec::as_slice) else {
            return invalid("Topics: expected one topic");
        };
        let servers = &body["SelfManagedEventSource"]["Endpoints"]["KAFKA_BOOTSTRAP_SERVERS"];
        let is_server = |server: &Value| server.as_str().is_some_and(|server| server.ends_with(":9093"));
        if !servers.as_array().is_some_and(|servers| !servers.is_empty() && servers.iter().all(is_server)) {
            return invalid(
                "KAFKA_BOOTSTRAP_SERVERS: expected hosts with port 9093, the Kafka endpoint of a namespace",
            );
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
        let is_same = |mapping: &Mapping| {
            let known = &mapping.configuration;
            known["FunctionArn"] == arn
                && known["Topics"] == body["Topics"]
                && known["SelfManagedKafkaEventSourceConfig"] == body["SelfManagedKafkaEventSourceConfig"]
        };
        if self.state().mappings.values().any(is_same) {
            return conflict(
                "an event source mapping of this topic and consumer group exists already for the function",
            );
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
        let reported = in_state(&mapping.configuration, "Creating");
        self.state().mappings.insert(id, mapping);
        Ok((StatusCode::ACCEPTED, reported))
    }

    fn update(self: &Arc<Self>, id: &str, body: &Value) -> Result<(StatusCode, Value), Refusal> {
        let Some(mut mapping) = self.state().mappings.remove(id) else {
            return missing("The resource you requested does not exist.");
        };
        let mut changed = mapping.configuration.clone();
        for (name, value) in body.as_object().into_iter().flatten().filter(|(name, _)| *name != "Enabled") {
            changed[name] = value.clone();
        }
        // An empty destination removes the current one.
        if changed["DestinationConfig"]["OnFailure"]["Destination"] == "" {
            changed["DestinationConfig"]["OnFailure"] = json!({});
        }
        let checked = check(&changed, &changed["ProvisionedPollerConfig"]);
        let mut reported = Value::Null;
        if checked.is_ok() {
            let group = changed["SelfManagedKafkaEventSourceConfig"]["ConsumerGroupId"].as_str().unwrap_or_default();
            let offsets = self.offsets(changed["Topics"][0].as_str().unwrap_or_default(), group, false);
            let is_enabled = body["Enabled"].as_bool().unwrap_or(changed["State"] == "Enabled");
            mapping.configuration = changed;
            self.set_state(&mut mapping, is_enabled, offsets);
            reported = in_state(&mapping.configuration, if is_enabled { "Enabling" } else { "Disabling" });
        }
        self.state().mappings.insert(id.to_owned(), mapping);
        checked.map(|()| (StatusCode::ACCEPTED, reported))
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
            Running::new(&tokio::spawn(read(poller, offsets)))
        });
    }

    /// Offsets of a consumer group. A new group begins with the oldest event, or with `latest` after the newest one.
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

/// Reads until the task is aborted. `offsets` is updated after each batch.
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
    let mut reported = configuration.clone();
    reported["State"] = state.into();
    reported
}

/// Checks the settings of a mapping that can be changed.
fn check(body: &Value, pollers: &Value) -> Result<(), Refusal> {
    let is_secret = |access: &Value| {
        access["Type"] == "BASIC_AUTH"
            && access["URI"].as_str().is_some_and(|uri| uri.starts_with("arn:aws:secretsmanager:"))
    };
    if !body["SourceAccessConfigurations"].as_array().is_some_and(|all| all.iter().any(is_secret)) {
        return invalid("SourceAccessConfigurations: expected BASIC_AUTH with the ARN of a secret");
    }
    let limits =
        ["FunctionResponseTypes", "BisectBatchOnFunctionError", "MaximumRecordAgeInSeconds", "MaximumRetryAttempts"];
    if pollers["MinimumPollers"].as_u64().is_none() && limits.iter().any(|name| !body[*name].is_null()) {
        return invalid("partial batch responses and limits require ProvisionedPollerConfig");
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
