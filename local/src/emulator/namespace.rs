//! The state of a namespace: its hubs, keys, faults and the record of send requests.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use shared::clock::Clock;
use tokio::sync::watch;
use tokio::time::Instant;

use super::faults::{Action, Fault};
use super::store::{Hub, Throughput};
use super::{Config, Key};
use crate::faults::{self, Hooks};

/// Maximum number of records of requests that are retained.
const MAX_RECORDS: usize = 100_000;

/// The outcome of a send request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestRecord {
    /// Name of the hub as the path has it.
    pub hub: String,
    pub path: String,
    /// Status of the response. 0: the connection ended or still waits without a response.
    pub status: u16,
    /// Number of events in the request, stored or not. 0: the request could not be read.
    pub events: usize,
    /// Time at which it had arrived, in seconds since 1970-01-01.
    pub second: u64,
}

pub(super) struct Namespace {
    pub max_bytes: usize,
    pub clock: Clock,
    state: Mutex<NamespaceState>,
    pub hooks: Hooks,
    /// Number of events that got a 201.
    pub confirmed: watch::Sender<u64>,
}

pub(super) struct NamespaceState {
    pub hubs: Vec<Hub>,
    pub keys: Vec<Key>,
    pub faults: VecDeque<Fault>,
    pub requests: VecDeque<RequestRecord>,
    /// Number of requests since the start, so that a record can be found after older ones were dropped.
    requests_begun: u64,
    pub throughput_units: Option<u32>,
    pub throughput: Throughput,
    pub stored: Vec<StoredRequest>,
}

/// The events that a request stored, and the connection over which it arrived.
pub(super) struct StoredRequest {
    pub peer: SocketAddr,
    pub at: Instant,
    pub hub: String,
    pub partition: u32,
    pub sequence_numbers: std::ops::Range<u64>,
}

impl Namespace {
    pub fn new(config: Config) -> Self {
        Self {
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
        }
    }

    pub fn state(&self) -> MutexGuard<'_, NamespaceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a policy another key. Returns false if no policy has that name.
    pub fn set_key(&self, name: &str, new_key: &str) -> bool {
        match self.state().keys.iter_mut().find(|key| key.name == name) {
            Some(key) => {
                new_key.clone_into(&mut key.key);
                true
            }
            None => false,
        }
    }
}

impl NamespaceState {
    pub fn hub(&mut self, name: &str) -> Option<&mut Hub> {
        self.hubs.iter_mut().find(|hub| hub.name.eq_ignore_ascii_case(name))
    }

    /// Records a request. Returns its number.
    pub fn begin(&mut self, hub: &str, path: &str, events: usize, second: u64) -> u64 {
        if self.requests.len() == MAX_RECORDS {
            self.requests.pop_front();
        }
        let (hub, path) = (hub.to_owned(), path.to_owned());
        self.requests.push_back(RequestRecord { hub, path, status: 0, events, second });
        self.requests_begun += 1;
        self.requests_begun
    }

    /// Records the status of the response to a request, unless the record was dropped meanwhile.
    pub fn end(&mut self, request: u64, status: u16) {
        let behind = (self.requests_begun - request) as usize;
        if let Some(index) = self.requests.len().checked_sub(behind + 1) {
            self.requests[index].status = status;
        }
    }

    pub fn take_fault(&mut self, hub: &str) -> Option<Action> {
        let fits = |fault: &Fault| fault.hub.as_ref().is_none_or(|name| name.eq_ignore_ascii_case(hub));
        faults::take(&mut self.faults, fits).map(|fault| fault.action)
    }
}
