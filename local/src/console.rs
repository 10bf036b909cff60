//! The page of `make run`: events as they arrive, what became of all others, switches for the emulator's faults and
//! buttons that send sample events.
//!
//! It has no password, so it responds only to names that point to this machine's own address, as all control routes do
//! (`own_address.rs`), and takes actions from its own
//! page alone: a page elsewhere on the web can neither read it nor flip a switch.

mod ledger;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream::{self, Stream, StreamExt};
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::DEFAULT_FLOW;
use shared::aws::{Aws, AwsError, Service};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval, sleep};

use self::ledger::{Ledger, MOST_ROWS, QueueCounts};
use crate::emulator::{Action, Emulator, Fault};
use crate::kinds::{KINDS, Kind};
use crate::own_address::own_address;
use crate::queue_source;
use crate::random;
use crate::run::Info;
use crate::runner::Observed;

const PAGE: &str = include_str!("../console/index.html");
const STYLE: &str = include_str!("../console/console.css");
const SCRIPT: &str = include_str!("../console/console.js");
/// Nothing inline, nothing from elsewhere, and no frame around the switches.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Between two looks at the queues and the table of flows.
const LOOK: Duration = Duration::from_secs(1);
/// Between two updates of a page.
const UPDATE: Duration = Duration::from_millis(150);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Of one press of a button.
const MOST_SENT: usize = 100;
const SENT_AT_ONCE: usize = 10;

/// What the console works on.
pub struct Console {
    pub emulator: Emulator,
    pub info: Info,
    /// The gateway's.
    pub url: String,
    pub http: reqwest::Client,
    pub aws: Option<Aws>,
    pub table: &'static str,
    /// How senders reach their hub.
    pub key: SendersKey,
    /// Shown as text.
    pub commands: String,
}

/// The key that the default flows send with.
pub struct SendersKey {
    /// Of the emulator's policy.
    pub name: &'static str,
    /// What the functions know.
    pub key: String,
    /// The secret that they read it from; without it, it can't be changed.
    pub secret_id: Option<&'static str>,
}

struct Shared {
    console: Console,
    ledger: Mutex<Ledger>,
    known_key: Mutex<String>,
    /// What only AWS knows, as of the last look.
    seen: Mutex<Seen>,
    /// Changes with everything that is shown.
    changed: watch::Sender<u64>,
    confirmed: watch::Receiver<u64>,
    /// Of this process: numbers of events begin anew with each.
    run: String,
}

#[derive(Default)]
struct Seen {
    queues: Option<QueueCounts>,
    flows: Vec<TableFlow>,
}

/// A flow of the control API.
#[derive(Debug, Clone)]
struct TableFlow {
    id: String,
    kind: String,
    hub: String,
    state: String,
}

/// A fault that has a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Switch {
    Outage,
    Throttle,
    Slow,
    Key,
}

impl Switch {
    /// A request meets only the first of several faults.
    const SCRIPTED: [Self; 3] = [Self::Outage, Self::Throttle, Self::Slow];

    fn fault(self) -> Option<Fault> {
        let action = match self {
            Self::Outage => Action::Reset,
            Self::Throttle => Action::Status {
                status: 503,
                retry_after: None,
                detail: Some(
                    "The request was terminated because the entity is being throttled. Error code : 50002. \
                     Please wait 4 seconds and try again."
                        .to_owned(),
                ),
            },
            // Longer than a webhook waits.
            Self::Slow => Action::Delay { ms: 3_000 },
            Self::Key => return None,
        };
        Some(Fault { hub: None, times: 0, action })
    }
}

/// What a button asks for.
#[derive(Debug, Deserialize)]
#[serde(tag = "action", rename_all = "camelCase", deny_unknown_fields)]
enum Asked {
    Send { kind: String, by: Way, event: Sample, count: usize },
    Switch { fault: Switch, on: bool },
    WriteKey {},
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    Webhook,
    Queue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Sample {
    Good,
    /// One that no kind can map.
    Bad,
}

/// Why an action was not done.
#[derive(Debug, thiserror::Error)]
enum Undone {
    #[error("there is no kind of that name")]
    NoKind,
    #[error("the count must be from 1 to {MOST_SENT}")]
    Count,
    #[error("this system runs without queues: start it without --no-queue")]
    NoQueues,
    #[error(transparent)]
    Aws(#[from] AwsError),
}

impl IntoResponse for Undone {
    fn into_response(self) -> Response {
        let status = if matches!(self, Self::Aws(_)) { StatusCode::BAD_GATEWAY } else { StatusCode::BAD_REQUEST };
        problem(status, &self.to_string())
    }
}

fn problem(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "error": text }))).into_response()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Console {
    /// Its routes, and what keeps it up to date from what `observed` tells: run that for as long as they are served.
    pub fn open(self, observed: mpsc::UnboundedReceiver<Observed>) -> (Router, impl Future<Output = ()> + Send) {
        let shared = Arc::new(Shared {
            known_key: Mutex::new(self.key.key.clone()),
            confirmed: self.emulator.confirmed(),
            console: self,
            ledger: Mutex::default(),
            seen: Mutex::default(),
            changed: watch::Sender::new(0),
            run: random::uuid(),
        });
        let file = |content_type: &'static str, text: &'static str| {
            get(async move || ([(CONTENT_TYPE, HeaderValue::from_static(content_type))], text))
        };
        let open_to_all = Router::new()
            .route("/", file("text/html; charset=utf-8", PAGE))
            .route("/console/console.css", file("text/css; charset=utf-8", STYLE))
            .route("/console/console.js", file("text/javascript; charset=utf-8", SCRIPT));
        let router = Router::new()
            .route("/console/events", get(events))
            .route("/console/state", get(state))
            .route("/console/actions", post(act))
            .route_layer(middleware::from_fn(own_page_only))
            .merge(open_to_all)
            .layer(middleware::map_response(async |mut response: Response| {
                let headers: [(HeaderName, &str); 3] = [
                    (CONTENT_SECURITY_POLICY, POLICY),
                    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
                    (CACHE_CONTROL, "no-store"),
                ];
                for (name, value) in headers {
                    response.headers_mut().insert(name, HeaderValue::from_static(value));
                }
                response
            }))
            .with_state(shared.clone());
        (router, watch_over(shared, observed))
    }
}

/// Refuses names that somebody else's DNS may lead here, and actions that no page of ours asked for.
async fn own_page_only(request: Request, next: Next) -> Response {
    match refusal(request.method(), request.headers()) {
        Some(why) => problem(StatusCode::FORBIDDEN, why),
        None => next.run(request).await,
    }
}

fn refusal(method: &Method, headers: &HeaderMap) -> Option<&'static str> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(host) = own_address(headers) else {
        return Some("open the console at the address that `make run` printed");
    };
    let is_own = *method == Method::GET || header(ORIGIN) == Some(&format!("http://{host}"));
    (!is_own).then_some("only the console's own page may do this")
}

/// Keeps everything up to date until the future is dropped.
async fn watch_over(shared: Arc<Shared>, mut observed: mpsc::UnboundedReceiver<Observed>) {
    let mut confirmed = shared.console.emulator.confirmed();
    let mut looks = interval(LOOK);
    let look = async {
        loop {
            looks.tick().await;
            if shared.changed.receiver_count() > 0 {
                shared.look().await;
                shared.changed.send_modify(|version| *version += 1);
            }
        }
    };
    let follow = async {
        loop {
            let told = tokio::select! {
                told = observed.recv() => match told {
                    Some(told) => Some(told),
                    // Nobody runs any more.
                    None => return,
                },
                Ok(()) = confirmed.changed() => None,
            };
            {
                let mut ledger = lock(&shared.ledger);
                ledger.collect(&shared.console.emulator);
                if let Some(told) = told {
                    ledger.observe(told);
                }
            }
            shared.changed.send_modify(|version| *version += 1);
        }
    };
    futures_util::future::join(follow, look).await;
}

impl Shared {
    /// Asks AWS. What can't be had stays as it was.
    async fn look(&self) {
        let (Some(aws), Some(keeping)) = (&self.console.aws, &self.console.info.keeping) else { return };
        let mark = lock(&self.ledger).parking_mark();
        let (parking, dead_letters, rejected, flows) = tokio::join!(
            count(aws, &keeping.parking_queue_url),
            count(aws, &keeping.parking_dead_letters_url),
            count(aws, &keeping.rejected_queue_url),
            flows(aws, self.console.table),
        );
        let mut seen = lock(&self.seen);
        if let (Ok(parking), Ok(dead_letters), Ok(rejected)) = (parking, dead_letters, rejected) {
            let queues = QueueCounts { parking, dead_letters, rejected };
            seen.queues = Some(queues);
            lock(&self.ledger).compare(mark, queues);
        }
        if let Ok(flows) = flows {
            seen.flows = flows;
        }
    }

    fn key_is_changed(&self) -> bool {
        self.console.emulator.key(self.console.key.name).as_ref() != Some(&*lock(&self.known_key))
    }

    fn state(&self) -> Value {
        let seen = lock(&self.seen);
        let ledger = lock(&self.ledger);
        // After the ledger is held, so that it is never behind it.
        let counts = ledger.counts(*self.confirmed.borrow());
        let hubs: Vec<Value> = KINDS
            .iter()
            .map(|kind| {
                let partitions: Vec<u64> = (0..kind.partitions).map(|id| ledger.partition(kind.hub, id)).collect();
                json!({ "name": kind.hub, "partitions": partitions })
            })
            .collect();
        let mut rows = BTreeMap::new();
        for kind in KINDS {
            rows.insert((kind.name, DEFAULT_FLOW), (kind.hub, "enabled"));
        }
        for flow in &seen.flows {
            rows.insert((&flow.kind, &flow.id), (&flow.hub, &flow.state));
        }
        for (kind, flow) in ledger.flows().keys() {
            rows.entry((kind, flow)).or_insert(("", "not in the table"));
        }
        let flows: Vec<Value> = rows
            .into_iter()
            .take(MOST_ROWS)
            .map(|((kind, flow), (hub, state))| {
                let counts = ledger.flows().get(&(kind.to_owned(), flow.to_owned())).cloned().unwrap_or_default();
                json!({ "kind": kind, "flow": flow, "hub": hub, "state": state, "counts": counts })
            })
            .collect();
        let scripted = self.console.emulator.faults();
        let switches: BTreeMap<Switch, bool> = Switch::SCRIPTED
            .into_iter()
            .map(|switch| (switch, switch.fault().is_some_and(|fault| scripted.contains(&fault))))
            .chain([(Switch::Key, self.key_is_changed())])
            .collect();
        let ours: Vec<Fault> = Switch::SCRIPTED.into_iter().filter_map(Switch::fault).collect();
        json!({
            "counts": counts, "hubs": hubs, "flows": flows, "parked": ledger.parked(), "rejected": ledger.rejected(),
            "queues": seen.queues, "switches": switches,
            "otherFaults": scripted.iter().filter(|fault| !ours.contains(fault)).count(),
        })
    }

    /// What never changes.
    fn about(&self) -> Value {
        let Console { info, url, commands, .. } = &self.console;
        let kinds: Vec<Value> = info
            .kinds
            .iter()
            .map(|kind| {
                json!({
                    "name": kind.name, "hub": kind.hub, "webhook": format!("{url}/{}", kind.name), "queue": kind.queue_url,
                    "held": format!("{}/_emulator/hubs/{}/events", info.hub_url, kind.hub),
                })
            })
            .collect();
        json!({ "kinds": kinds, "hasQueues": self.console.aws.is_some(), "commands": commands })
    }

    fn switch(&self, switch: Switch, on: bool) -> String {
        let emulator = &self.console.emulator;
        match switch.fault() {
            Some(wanted) => emulator.change_faults(|faults| {
                let scripted = Switch::SCRIPTED.into_iter().filter_map(Switch::fault);
                let is_on = |fault: &Fault| if *fault == wanted { on } else { faults.contains(fault) };
                let (stay, go): (Vec<Fault>, Vec<Fault>) = scripted.partition(is_on);
                faults.retain(|fault| !stay.contains(fault) && !go.contains(fault));
                faults.extend(stay);
            }),
            None => {
                let key = if on { random::uuid() } else { lock(&self.known_key).clone() };
                emulator.set_key(self.console.key.name, &key);
            }
        }
        let (name, state) = (serde_json::to_value(switch).unwrap_or_default(), if on { "on" } else { "off" });
        format!("{} is {state}", name.as_str().unwrap_or_default())
    }

    async fn write_key(&self) -> Result<String, Undone> {
        let SendersKey { name, secret_id, .. } = &self.console.key;
        let (Some(aws), Some(secret_id)) = (&self.console.aws, secret_id) else { return Err(Undone::NoQueues) };
        let emulator = &self.console.emulator;
        let (key, connection) = (emulator.key(name), emulator.connection_string(name, None));
        let put = json!({ "SecretId": secret_id, "SecretString": secret(&connection) });
        aws.call(Service::SecretsManager, "PutSecretValue", &put, Instant::now() + CALL_TIMEOUT).await?;
        if let Some(key) = key {
            *lock(&self.known_key) = key;
        }
        Ok("the new key is in Secrets Manager".to_owned())
    }

    /// Sends sample events as a sender would; tells how they were answered.
    async fn send(&self, kind: &Kind, by: Way, sample: Sample, count: usize) -> Result<String, Undone> {
        let event = || match sample {
            Sample::Good => (kind.stamp)(kind.sample_event, &random::uuid()).0,
            Sample::Bad => json!({ "nobody": "maps this" }).to_string(),
        };
        let answers: Vec<Result<String, Undone>> = stream::iter((0..count).map(|_| self.send_one(kind, by, event())))
            .buffer_unordered(SENT_AT_ONCE)
            .collect()
            .await;
        let mut by_answer = BTreeMap::<String, usize>::new();
        for answer in answers {
            *by_answer.entry(answer?).or_default() += 1;
        }
        let answers: Vec<String> = by_answer.into_iter().map(|(answer, count)| format!("{count} × {answer}")).collect();
        Ok(format!("{}: {}", kind.name, answers.join(", ")))
    }

    async fn send_one(&self, kind: &Kind, by: Way, event: String) -> Result<String, Undone> {
        let Console { info, url, http, aws, .. } = &self.console;
        if by == Way::Queue {
            let (Some(aws), Some(queue_url)) = (aws, info.queue_url(kind.name)) else { return Err(Undone::NoQueues) };
            let message = json!({ "QueueUrl": queue_url, "MessageBody": event });
            aws.call(Service::Sqs, "SendMessage", &message, Instant::now() + CALL_TIMEOUT).await?;
            return Ok("in its queue".to_owned());
        }
        let mut request = http.post(format!("{url}/{}", kind.name)).header(CONTENT_TYPE, "application/json");
        if let Some(token) = &info.sender_token {
            request = request.bearer_auth(token);
        }
        let Ok(answer) = request.body(event).send().await else { return Ok("no answer".to_owned()) };
        let status = answer.status().as_u16();
        let body: Value = serde_json::from_str(&answer.text().await.unwrap_or_default()).unwrap_or_default();
        let told = body["status"].as_str().or(body["detail"].as_str()).unwrap_or_default();
        Ok(format!("{status} {told}"))
    }
}

/// A secret's text, as Secrets Manager's own forms have it.
pub fn secret(connection_string: &str) -> String {
    json!({ "username": "$ConnectionString", "password": connection_string }).to_string()
}

/// Messages in a queue, whether visible or not.
async fn count(aws: &Aws, queue_url: &str) -> Result<u64, AwsError> {
    const COUNTS: [&str; 2] = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"];
    let asked = json!({ "QueueUrl": queue_url, "AttributeNames": COUNTS });
    let told: Value = queue_source::call(aws, "GetQueueAttributes", &asked).await?;
    let number = |name| told["Attributes"][name].as_str().and_then(|number| number.parse().ok()).unwrap_or(0);
    Ok(COUNTS.into_iter().map(number).sum::<u64>())
}

/// The first flows of the table that the control API writes.
async fn flows(aws: &Aws, table: &str) -> Result<Vec<TableFlow>, AwsError> {
    let asked = json!({
        "TableName": table, "FilterExpression": "begins_with(pk, :flow)",
        "ExpressionAttributeValues": { ":flow": { "S": "FLOW#" } },
    });
    let answer = aws.call(Service::DynamoDb, "Scan", &asked, Instant::now() + CALL_TIMEOUT).await?;
    let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
    let items = answer["Items"].as_array().into_iter().flatten();
    let flow = |item: &Value| {
        let text = |name: &str| item[name]["S"].as_str().unwrap_or_default().to_owned();
        let id = text("pk").strip_prefix("FLOW#")?.to_owned();
        Some(TableFlow { id, kind: text("kind"), hub: text("hub"), state: text("state") })
    };
    Ok(items.filter_map(flow).take(MOST_ROWS).collect())
}

async fn state(State(shared): State<Arc<Shared>>) -> Json<Value> {
    shared.look().await;
    Json(shared.state())
}

/// Updates: new events and, where anything changed, the state. `Last-Event-ID` goes on where a broken connection ended.
async fn events(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    // Numbers of another run tell nothing.
    let resumed = last.strip_prefix(&format!("{} ", shared.run)).and_then(|number| number.parse::<u64>().ok());
    let page = Page { changed: shared.changed.subscribe(), shared, next: resumed.unwrap_or(0), shown: None };
    let updates = stream::unfold(page, async |mut page| Some((Ok(page.update().await?), page)));
    Sse::new(updates).keep_alive(KeepAlive::default())
}

/// What one open page has.
struct Page {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    /// The number of the event that it gets next.
    next: u64,
    shown: Option<Value>,
}

impl Page {
    /// `None` when the system ends.
    async fn update(&mut self) -> Option<Event> {
        loop {
            let is_first = self.shown.is_none();
            if !is_first {
                sleep(UPDATE).await;
                self.changed.changed().await.ok()?;
            }
            self.changed.borrow_and_update();
            let (arrivals, next) = lock(&self.shared.ledger).arrivals(self.next);
            let state = self.shared.state();
            if !is_first && arrivals.is_empty() && self.shown.as_ref() == Some(&state) {
                continue;
            }
            let mut update = json!({ "run": self.shared.run, "events": arrivals, "state": state });
            if is_first {
                update["about"] = self.shared.about();
            }
            self.next = next;
            self.shown = Some(state);
            return Some(Event::default().id(format!("{} {next}", self.shared.run)).data(update.to_string()));
        }
    }
}

async fn act(State(shared): State<Arc<Shared>>, asked: Result<Json<Asked>, JsonRejection>) -> Response {
    let asked = match asked {
        Ok(Json(asked)) => asked,
        Err(rejection) => return problem(rejection.status(), &rejection.body_text()),
    };
    let done = match asked {
        Asked::Switch { fault, on } => Ok(shared.switch(fault, on)),
        Asked::WriteKey {} => shared.write_key().await,
        Asked::Send { count, .. } if !(1..=MOST_SENT).contains(&count) => Err(Undone::Count),
        Asked::Send { kind, by, event, count } => match KINDS.iter().find(|known| known.name == kind) {
            Some(kind) => shared.send(kind, by, event, count).await,
            None => Err(Undone::NoKind),
        },
    };
    shared.changed.send_modify(|version| *version += 1);
    match done {
        Ok(done) => Json(json!({ "done": done })).into_response(),
        Err(undone) => undone.into_response(),
    }
}
