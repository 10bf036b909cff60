//! A streaming inlet of Adobe Experience Platform and its token endpoint. They check what the documentation says is checked,
//! respond as it shows, store the records in memory, and fail as a test asks them to. It is our reading of the public pages,
//! not the service: nothing is validated against a schema.
//!
//! Records go to `/collection/{inlet}` and `/collection/batch/{inlet}`, requests for tokens to `/ims/token/v3`; the routes below
//! `/_inlet/` show what is stored, and change faults.

mod collection;
mod control;
mod faults;
mod token;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::routing::post;
use axum::{Router, middleware};
use http::{HeaderMap, HeaderName};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::clock::Clock;
use tokio::net::TcpListener;

pub use self::faults::{Action, Fault};
use crate::server::own_address::guard_control_routes;
use crate::server::{Running, accept, address_of, reachable};

/// Maximum size of a request, in bytes.
pub const MAX_BYTES: usize = 1_000_000;
/// Maximum number of requests to an inlet in a second.
const MAX_REQUESTS: usize = 1_000;
/// Maximum number of messages for an inlet in a second.
const MAX_MESSAGES: usize = 10_000;

/// What the inlet requires of requests.
#[derive(Debug, Clone)]
pub struct Config {
    /// The last segment of its URL.
    pub id: String,
    pub flow_id: String,
    pub org_id: String,
    pub dataset_id: String,
    pub schema_id: String,
    pub sandbox: String,
    /// The client that gets tokens, and its secret. `None`: the inlet requires no token.
    pub client: Option<(String, String)>,
    /// Whether the inlet accepts any number of requests and messages in a second.
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

/// A stored record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Taken {
    /// Position in the order in which records were stored, counted from 0.
    pub number: u64,
    /// Number of its request.
    pub request: u64,
    /// Whether it arrived in an envelope.
    pub xdm: bool,
    /// The entity of an envelope, or the raw object.
    pub record: Value,
}

/// A running inlet. It stops with its last clone.
#[derive(Clone)]
pub struct Inlet {
    shared: Arc<Shared>,
    address: SocketAddr,
    _server: Arc<Running>,
}

struct Shared {
    clock: Clock,
    state: Mutex<Records>,
}

#[derive(Default)]
struct Records {
    config: Config,
    taken: Vec<Taken>,
    /// Status of the response to each request to the inlet, in order; 0 without a response.
    statuses: Vec<u16>,
    tokens: Vec<String>,
    tokens_given: u64,
    faults: VecDeque<Fault>,
    rate: Rate,
}

/// Number of requests and messages in one second.
#[derive(Default)]
struct Rate {
    second: u64,
    requests: usize,
    messages: usize,
}

impl Inlet {
    /// Serves `config` at `listener`.
    pub async fn start(config: Config, listener: TcpListener) -> Self {
        let address = address_of(&listener);
        let state = Mutex::new(Records { config, ..Records::default() });
        let shared = Arc::new(Shared { clock: Clock::system(), state });
        let server = tokio::spawn(accept(listener, router(shared.clone())));
        Self { shared, address, _server: Arc::new(Running::new(&server)) }
    }

    /// Host and port that clients on this machine connect to.
    pub fn host(&self) -> String {
        reachable(self.address).to_string()
    }

    /// URL for single records.
    pub fn url(&self) -> String {
        format!("http://{}/collection/{}", self.host(), self.shared.state().config.id)
    }

    pub fn token_url(&self) -> String {
        format!("http://{}/ims/token/v3", self.host())
    }

    /// The records that are stored so far.
    pub fn taken(&self) -> Vec<Taken> {
        self.shared.state().taken.clone()
    }

    /// The statuses of the responses so far, in the order of the requests; 0 without a response.
    pub fn statuses(&self) -> Vec<u16> {
        self.shared.state().statuses.clone()
    }

    /// Removes the stored records.
    pub fn forget(&self) {
        self.shared.state().taken.clear();
    }

    /// Number of tokens that were issued.
    pub fn tokens_given(&self) -> u64 {
        self.shared.state().tokens_given
    }

    /// Revokes every token that was issued.
    pub fn revoke_tokens(&self) {
        self.shared.state().tokens.clear();
    }

    /// Changes the secret of the client.
    pub fn set_client_secret(&self, new: &str) {
        if let Some((_, secret)) = &mut self.shared.state().config.client {
            new.clone_into(secret);
        }
    }

    /// Adds faults to the list. A request gets the first one that matches it.
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
        crate::faults::take(&mut self.faults, |fault| fault.token == token).map(|fault| fault.action)
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
        .route("/collection/{inlet}", post(collection::single))
        .route("/collection/batch/{inlet}", post(collection::batch))
        .route("/ims/token/v3", post(token::token))
        .merge(control::routes())
        .layer(middleware::from_fn(guard_control_routes))
        .with_state(shared)
}

fn text(headers: &HeaderMap, name: HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
