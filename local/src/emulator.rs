//! An event hub namespace that accepts sends over HTTP, returns the stored events, and fails as a test asks it to. It is our
//! reading of the public contract, not the service. It does not support Entra tokens, AMQP or Kafka.
//!
//! Sends go to `/{hub}/messages`, `/{hub}/partitions/{id}/messages` and `/{hub}/publishers/{id}/messages`; the routes below
//! `/_emulator/` show what is stored, and change faults and keys.

mod authorization;
mod control;
mod faults;
mod incoming;
mod namespace;
mod resources;
mod responses;
mod sending;
mod store;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use axum::routing::get;
use axum::{Router, middleware};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

pub use self::faults::{Action, Fault};
pub use self::namespace::RequestRecord;
use self::namespace::{Namespace, NamespaceState, StoredRequest};
use self::store::Hub;
pub use self::store::StoredEvent;
pub use crate::faults::Moment;
use crate::server::own_address::guard_control_routes;
use crate::server::{Running, accept, address_of, reachable};

/// Hubs, keys and limits of a namespace.
#[derive(Debug, Clone)]
pub struct Config {
    /// Names and numbers of partitions.
    pub hubs: Vec<(String, u32)>,
    pub keys: Vec<Key>,
    /// Maximum size of a request, in bytes.
    pub max_bytes: usize,
    /// Number of throughput units. `None`: nothing is throttled.
    pub throughput_units: Option<u32>,
}

/// Maximum size of a request to a Standard namespace, in bytes, as its AMQP links report it.
pub const MAX_BYTES: usize = 1_046_528;
/// Name of the key that [`Config::default`] has.
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

/// A running emulator. It stops with its last clone.
#[derive(Clone)]
pub struct Emulator {
    namespace: Arc<Namespace>,
    address: SocketAddr,
    server: Arc<Running>,
}

impl Emulator {
    /// Serves `config` at `listener`.
    pub async fn start(config: Config, listener: TcpListener) -> Self {
        let address = address_of(&listener);
        let namespace = Arc::new(Namespace::new(config));
        let server = tokio::spawn(accept(listener, router(namespace.clone())));
        Self { namespace, address, server: Arc::new(Running::new(&server)) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL for clients on this machine, without a trailing slash.
    pub fn url(&self) -> String {
        format!("http://{}", reachable(self.address))
    }

    /// A connection string with the current key. If no policy has that name, the namespace refuses the key in it.
    pub fn connection_string(&self, key_name: &str, hub: Option<&str>) -> String {
        let state = self.namespace.state();
        let key = state.keys.iter().find(|key| key.name == key_name).map_or("unknown", |key| key.key.as_str());
        let address = reachable(self.address);
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

    /// Number of events that got a 201 so far. It changes whenever events are stored, with a response or without one.
    pub fn confirmed(&self) -> watch::Receiver<u64> {
        self.namespace.confirmed.subscribe()
    }

    /// The events from the sequence numbers in `next`, by hub and partition. `next` then points behind them.
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

    /// Up to `limit` events of a partition, from a sequence number on; none if there is no such partition.
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

    /// Changes the throughput that the namespace accepts.
    pub fn set_throughput_units(&self, units: Option<u32>) {
        self.namespace.state().throughput_units = units;
    }

    /// Removes and returns the events and the records of requests so far, for runs whose events would not fit into memory.
    pub fn take(&self) -> (Vec<StoredEvent>, Vec<RequestRecord>) {
        let mut state = self.namespace.state();
        state.stored.clear();
        let requests = std::mem::take(&mut state.requests).into();
        let partitions = state.hubs.iter_mut().flat_map(|hub| &mut hub.partitions);
        let events = partitions.flat_map(|partition| std::mem::take(&mut partition.events)).collect();
        (events, requests)
    }

    /// Runs `run` at the send request number `nth`, counted from 1 and from now, to a hub whose name begins with `hub`.
    /// The request waits until it has ended.
    pub fn at<F>(&self, hub: &str, nth: usize, moment: Moment, run: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.namespace.hooks.add(hub, nth, moment, run);
    }

    /// Number of partitions of a hub; 0 for an unknown hub.
    pub fn partitions(&self, hub: &str) -> u32 {
        self.namespace.state().hub(hub).map_or(0, |hub| hub.partitions.len() as u32)
    }

    /// Records of the send requests so far, in the order of arrival.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.namespace.state().requests.iter().cloned().collect()
    }

    /// Adds faults to the list. A send request gets the first one that matches it.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.namespace.state().faults.extend(faults);
    }

    /// The faults that are left, the next one first.
    pub fn faults(&self) -> Vec<Fault> {
        self.namespace.state().faults.iter().cloned().collect()
    }

    /// Changes the list of faults.
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

    /// Gives a policy another key. Returns false if no policy has that name.
    pub fn set_key(&self, name: &str, new_key: &str) -> bool {
        self.namespace.set_key(name, new_key)
    }

    /// Removes events and records of requests; faults remain.
    pub fn clear(&self) {
        let mut state = self.namespace.state();
        state.hubs.iter_mut().for_each(Hub::clear);
        state.requests.clear();
        state.stored.clear();
    }

    /// Closes the listener and every connection. The stored events remain readable.
    pub async fn shutdown(&self) {
        self.server.stop().await;
    }
}

fn router(namespace: Arc<Namespace>) -> Router {
    Router::new()
        .merge(control::routes())
        .route("/$Resources/{entities}", get(resources::list_resources))
        .fallback(sending::send)
        .layer(middleware::from_fn(guard_control_routes))
        .with_state(namespace)
}

#[cfg(test)]
mod tests;
