//! A backlog in the parking queue under faults. Each module below has one of them.

mod dead_hub;
mod drain;
mod in_flight;
mod kills;
mod renewal;
mod throttled;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use local::emulator::{Action, Emulator, Fault, RequestRecord};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep};

pub use self::dead_hub::{DeadHub, dead_hub};
pub use self::drain::{Drain, drain};
pub use self::in_flight::{InFlight, in_flight};
pub use self::kills::kills;
pub use self::renewal::{Renewal, renewal};
pub use self::throttled::{Throttled, throttled};
use super::ledger::{Ledger, parked_messages};
use super::parked::park;
use super::scenarios::{DRAIN, Outcome, drained, stop};
use super::system::{FLOWS, Options, Redelivering, System};

/// Flow of the dead hub, which is alone in its namespace.
const A: usize = 2;
/// Flow of the hub that works, in the other namespace.
const B: usize = 0;
/// Number of messages in a full envelope.
const FULL: usize = 1000;
/// Number of events of B that are parked per second.
const B_PER_SECOND: usize = 20;

fn hub_of(system: &System, flow: usize) -> &Emulator {
    &system.hubs[FLOWS[flow].namespace]
}

fn lasting(action: Action) -> [Fault; 1] {
    [Fault { hub: None, times: 0, action }]
}

fn refusing() -> [Fault; 1] {
    lasting(Action::Status { status: 503, retry_after: None, detail: Some("The server is not available.".to_owned()) })
}

/// Time at which each event was first seen in a hub. The events are read every 50 ms.
struct Watch {
    seen: Arc<std::sync::Mutex<HashMap<String, Instant>>>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    fn start(hub: &Emulator) -> Self {
        let seen: Arc<std::sync::Mutex<HashMap<String, Instant>>> = Arc::default();
        let (hub, noted) = (hub.clone(), seen.clone());
        let task = tokio::spawn(async move {
            let mut next = Default::default();
            loop {
                let (events, now) = (hub.events_from(&mut next), Instant::now());
                for event in events {
                    let id = event.properties["cloudEvents:id"].as_str().unwrap_or_default();
                    noted.lock().unwrap().entry(id.to_owned()).or_insert(now);
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        Self { seen, task }
    }

    fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// Waits for this number of events. Returns whether they arrived in time.
    async fn until(&self, count: usize, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while self.count() < count {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(Duration::from_millis(20)).await;
        }
        true
    }
}

/// Numbers of requests and events that a hub confirmed or refused.
#[derive(Debug, Default, Clone, Copy)]
struct Traffic {
    requests: usize,
    refused: usize,
    events: usize,
}

fn traffic<'r>(requests: impl IntoIterator<Item = &'r RequestRecord>) -> Traffic {
    let mut traffic = Traffic::default();
    for request in requests {
        traffic.requests += 1;
        match request.status {
            201 => traffic.events += request.events,
            429 | 503 => traffic.refused += 1,
            _ => {}
        }
    }
    traffic
}

/// Maximum number of requests within `window` seconds, from the second `first`.
fn busiest(requests: &[RequestRecord], first: u64, window: u64) -> usize {
    let seconds: Vec<u64> = requests.iter().map(|request| request.second).filter(|second| *second >= first).collect();
    let within = |from: u64| seconds.iter().filter(|second| (from..from + window).contains(*second)).count();
    seconds.iter().map(|second| within(*second)).max().unwrap_or_default()
}

fn percentile(mut values: Vec<Duration>, percent: usize) -> Duration {
    values.sort_unstable();
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Prints the progress of a run every few seconds, until the returned value is dropped.
fn show_progress(system: &Arc<System>, more: impl Fn() -> String + Send + 'static) -> Aborted {
    let (system, began) = (system.clone(), Instant::now());
    Aborted(tokio::spawn(async move {
        let mut ticks = interval(Duration::from_secs(5));
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let depth = system.sqs.depth(&system.parking);
            println!(
                "{:>5} s  parked: {} visible, {} in flight, {} delayed; {}",
                began.elapsed().as_secs(),
                depth.visible,
                depth.in_flight,
                depth.delayed,
                more(),
            );
        }
    }))
}

struct Aborted(JoinHandle<()>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn figures(system: &System) -> String {
    format!("parking queue: {:?}; {:?}", system.sqs.depth(&system.parking), system.sqs.figures(&system.parking))
}
