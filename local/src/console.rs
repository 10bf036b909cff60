//! The console, the page of `make run`: events as they arrive, the outcome of all others, switches for faults of the emulator,
//! and buttons that send sample events.
//!
//! It has no password, so it responds only to names that point to this machine, as all control routes do
//! (`server/own_address.rs`), and accepts actions only from its own page: another site can neither read it nor turn a switch.

mod actions;
mod ledger;
mod lookups;
mod switches;
mod updates;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde_json::json;
use shared::aws::Aws;
use tokio::sync::{mpsc, watch};
use tokio::time::interval;

use self::ledger::Ledger;
use self::lookups::Seen;
use crate::emulator::Emulator;
use crate::random;
use crate::run::Info;
use crate::runner::Observed;
use crate::server::own_address::own_address;

const PAGE: &str = include_str!("../console/index.html");
const STYLE: &str = include_str!("../console/console.css");
const SCRIPT: &str = include_str!("../console/console.js");
/// The page has no inline code, loads nothing from other sites, and can't be put into a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Interval between two lookups of the queues and the table of flows.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of a call to AWS.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// What the console reads and changes.
pub struct Console {
    pub emulator: Emulator,
    pub info: Info,
    /// URL of the gateway.
    pub url: String,
    pub http: reqwest::Client,
    pub aws: Option<Aws>,
    /// Table of flows.
    pub table: &'static str,
    /// Key with which the default flows send.
    pub key: SendersKey,
    /// Commands that the page shows as text.
    pub commands: String,
}

/// The key that the default flows send with.
pub struct SendersKey {
    /// Name of the emulator's policy.
    pub name: &'static str,
    /// The key that the functions have.
    pub key: String,
    /// The secret that they read the key from. `None`: the key can't be changed.
    pub secret_id: Option<&'static str>,
}

struct Shared {
    console: Console,
    ledger: Mutex<Ledger>,
    known_key: Mutex<String>,
    /// What the last lookup in AWS returned.
    seen: Mutex<Seen>,
    /// Changes whenever something changes that the page shows.
    changed: watch::Sender<u64>,
    confirmed: watch::Receiver<u64>,
    /// Id of this process: the numbers of events restart with each process.
    run: String,
}

fn problem(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "error": text }))).into_response()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Console {
    /// Its routes, and a future that keeps the state current with what `observed` receives. Poll it while the routes are served.
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
            .route("/console/events", get(updates::events))
            .route("/console/state", get(updates::state))
            .route("/console/actions", post(actions::act))
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

/// Refuses names that another party's DNS may resolve to this machine, and actions that another site requested.
async fn own_page_only(request: Request, next: Next) -> Response {
    match refusal(request.method(), request.headers()) {
        Some(reason) => problem(StatusCode::FORBIDDEN, reason),
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

/// Keeps the state current until the future is dropped.
async fn watch_over(shared: Arc<Shared>, mut observed: mpsc::UnboundedReceiver<Observed>) {
    let mut confirmed = shared.console.emulator.confirmed();
    let mut lookups = interval(LOOKUP_INTERVAL);
    let look = async {
        loop {
            lookups.tick().await;
            if shared.changed.receiver_count() > 0 {
                shared.look().await;
                shared.changed.send_modify(|version| *version += 1);
            }
        }
    };
    let follow = async {
        loop {
            let observation = tokio::select! {
                observation = observed.recv() => match observation {
                    Some(observation) => Some(observation),
                    // All functions have ended.
                    None => return,
                },
                Ok(()) = confirmed.changed() => None,
            };
            {
                let mut ledger = lock(&shared.ledger);
                ledger.collect(&shared.console.emulator);
                if let Some(observation) = observation {
                    ledger.observe(observation);
                }
            }
            shared.changed.send_modify(|version| *version += 1);
        }
    };
    futures_util::future::join(follow, look).await;
}

/// The text of a secret that holds a connection string, in the form that the functions and Lambda's Kafka source read.
pub fn secret(connection_string: &str) -> String {
    json!({ "username": "$ConnectionString", "password": connection_string }).to_string()
}
