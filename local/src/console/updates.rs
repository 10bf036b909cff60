//! What the page shows: the state, and the updates that an open page receives.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use http::HeaderMap;
use serde_json::{Value, json};
use shared::DEFAULT_FLOW;
use tokio::sync::watch;
use tokio::time::sleep;

use super::ledger::MAX_ROWS;
use super::switches::Switch;
use super::{Console, Shared, lock};
use crate::emulator::Fault;
use crate::kinds::KINDS;

/// Minimum interval between two updates of a page.
const UPDATE_INTERVAL: Duration = Duration::from_millis(150);

/// Returns the state, after a lookup.
pub(super) async fn state(State(shared): State<Arc<Shared>>) -> Json<Value> {
    shared.look().await;
    Json(shared.state())
}

/// Sends updates: new events and the state, whenever one of them changed. `Last-Event-ID` continues after a lost connection.
pub(super) async fn events(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    // Numbers of another process have no meaning here.
    let resumed = last.strip_prefix(&format!("{} ", shared.run)).and_then(|number| number.parse::<u64>().ok());
    let page = Page { changed: shared.changed.subscribe(), shared, next: resumed.unwrap_or(0), shown: None };
    let updates = stream::unfold(page, async |mut page| Some((Ok(page.update().await?), page)));
    Sse::new(updates).keep_alive(KeepAlive::default())
}

/// What one open page has received.
struct Page {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    /// Number of the event that it receives next.
    next: u64,
    shown: Option<Value>,
}

impl Page {
    /// Waits for the next update. `None`: the system ends.
    async fn update(&mut self) -> Option<Event> {
        loop {
            let is_first = self.shown.is_none();
            if !is_first {
                sleep(UPDATE_INTERVAL).await;
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

impl Shared {
    /// Everything that changes.
    fn state(&self) -> Value {
        let seen = lock(&self.seen);
        let ledger = lock(&self.ledger);
        // Read after the ledger is locked, so that the number is never older than the ledger.
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
            rows.insert((&flow.kind, &flow.id), (&flow.hub, flow.state));
        }
        for (kind, flow) in ledger.flows().keys() {
            rows.entry((kind, flow)).or_insert(("", "not in the table"));
        }
        let flows: Vec<Value> = rows
            .into_iter()
            .take(MAX_ROWS)
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
        let own: Vec<Fault> = Switch::SCRIPTED.into_iter().filter_map(Switch::fault).collect();
        json!({
            "counts": counts, "hubs": hubs, "flows": flows, "parked": ledger.parked(), "rejected": ledger.rejected(),
            "queues": seen.queues, "switches": switches,
            "otherFaults": scripted.iter().filter(|fault| !own.contains(fault)).count(),
        })
    }

    /// Everything that never changes.
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
}
