//! The runs. Each starts its own system, and ends with the report of the ledger.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use local::emulator::{Action, Fault};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::chaos::Chaos;
use super::ledger::{Ledger, Report, parked_messages};
use super::load::{Load, Plan};
use super::system::{Options, Redelivering, System};

const PROGRESS: Duration = Duration::from_secs(5);
/// The namespace that is down in an outage.
const DOWN: usize = 1;

/// Maximum time to deliver the remaining messages after the faults. Redelivery's delays have then grown to about the length of
/// the faults.
pub const DRAIN: Duration = Duration::from_secs(600);

/// Prints the progress of the run every few seconds, until it is dropped.
struct Progress(JoinHandle<()>);

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Progress {
    fn start(system: &Arc<System>, ledger: &Arc<Ledger>) -> Self {
        let (system, ledger) = (system.clone(), ledger.clone());
        Self(tokio::spawn(async move {
            let began = Instant::now();
            loop {
                sleep(PROGRESS).await;
                let (sent, accepted) = ledger.progress();
                println!(
                    "{:>5} s  {sent} sent, {accepted} accepted, {} envelopes parked",
                    began.elapsed().as_secs(),
                    system.parked(),
                );
            }
        }))
    }
}

/// Waits until no message is parked. Returns false if the time is over before that.
pub(super) async fn drained(system: &System, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    while system.parked() > 0 {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(Duration::from_millis(50)).await;
    }
    true
}

pub(super) async fn stop(system: Arc<System>) {
    if let Some(system) = Arc::into_inner(system) {
        system.stop().await;
    }
}

/// Result of a run.
pub struct Outcome {
    pub report: Report,
    /// Number of faults, by name.
    pub faults: BTreeMap<String, usize>,
    pub notes: Vec<String>,
    /// Requirements of the scenario itself that were not met.
    pub failures: Vec<String>,
    /// Rates and times that were not reached. They depend on the machine, so only the long forms fail because of them.
    pub too_slow: Vec<String>,
    /// Whether the scenario ends with messages that are parked, or has so many kills that the average of copies says
    /// nothing.
    pub partial: bool,
}

impl Outcome {
    pub(super) fn of(report: Report) -> Self {
        Self {
            report,
            faults: BTreeMap::new(),
            notes: Vec::new(),
            failures: Vec::new(),
            too_slow: Vec::new(),
            partial: false,
        }
    }

    /// Whether every promise was kept, independent of rates and times.
    pub fn kept(&self) -> bool {
        let report = if self.partial { self.report.violations() == 0 } else { self.report.kept() };
        report && self.failures.is_empty()
    }

    /// Notes a rate or a time, and whether it is as required.
    pub(super) fn measure(&mut self, holds: bool, figure: String) {
        if !holds {
            self.too_slow.push(figure.clone());
        }
        self.notes.push(format!("{:6} {figure}", if holds { "ok" } else { "SLOW" }));
    }

    /// Notes a figure, and whether it is as required.
    pub(super) fn require(&mut self, holds: bool, figure: String) {
        if !holds {
            self.failures.push(figure.clone());
        }
        self.notes.push(format!("{:6} {figure}", if holds { "ok" } else { "FAILED" }));
    }

    pub fn print(&self) {
        if !self.faults.is_empty() {
            println!("faults:");
            for (name, count) in &self.faults {
                println!("  {name:44}{count:>6}");
            }
        }
        print!("{}", self.report);
        for note in &self.notes {
            println!("{note}");
        }
    }
}

/// Which faults a ledger run is exposed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Faults {
    None,
    Random,
    KillEverySecond,
    /// One namespace is down while events are sent.
    HubDown,
}

/// Runs a load under faults, waits until all is delivered, and compares. Under random faults one namespace has one throughput
/// unit all the time, the other one temporarily.
pub async fn ledger(plan: Plan, faults: Faults, mut options: Options) -> Outcome {
    if faults == Faults::Random {
        options.throughput_units[DOWN] = Some(1);
    }
    let system = Arc::new(System::start(options).await);
    let ledger = Arc::new(Ledger::new(options.without_parking));
    let progress = Progress::start(&system, &ledger);
    let pollers = (!options.without_parking).then(|| system.redeliver());
    let chaos = match faults {
        Faults::None => None,
        Faults::HubDown => {
            system.gates[DOWN].close().await;
            None
        }
        Faults::Random => Some(Chaos::start(&system, plan.seed)),
        Faults::KillEverySecond => Some(Chaos::kill_every_second(&system)),
    };
    let began = Instant::now();
    let load = Load::start(&system, &ledger, plan);
    load.sent().await;
    let sent_in = began.elapsed();
    let faults = match chaos {
        Some(chaos) => chaos.end().await,
        None => BTreeMap::new(),
    };
    system.gates[DOWN].open().await;
    println!("everything is sent, the faults are over");
    let began = Instant::now();
    let answered = load.finish(DRAIN).await;
    let drained = drained(&system, DRAIN).await;
    let drained_in = began.elapsed();
    drop((progress, pollers));
    let parked = if drained { HashMap::new() } else { parked_messages(&system) };
    let mut outcome = Outcome { faults, ..Outcome::of(ledger.compare(&system, &parked)) };
    outcome.notes.push(format!("sent within {} s, drained within {} s", sent_in.as_secs(), drained_in.as_secs()));
    if !(answered && drained) {
        outcome.notes.push(format!("not all delivered after {} s", DRAIN.as_secs()));
    }
    drop(ledger);
    stop(system).await;
    outcome
}

/// Sends webhooks while the hubs accept requests and never respond.
pub async fn hanging_hub(seed: u64, webhooks: u64) -> Outcome {
    let system = Arc::new(System::start(Options::default()).await);
    let ledger = Arc::new(Ledger::default());
    let progress = Progress::start(&system, &ledger);
    for hub in &system.hubs {
        hub.script([Fault { hub: None, times: 0, action: Action::Hang }]);
    }
    let load = Load::start(&system, &ledger, Plan::webhooks(seed, webhooks));
    load.finish(DRAIN).await;
    system.hubs.iter().for_each(|hub| hub.clear_faults());
    let pollers = system.redeliver();
    drained(&system, DRAIN).await;
    drop((progress, pollers));
    let outcome = Outcome::of(ledger.compare(&system, &HashMap::new()));
    stop(system).await;
    outcome
}

/// Sends events while one namespace is down: its events are parked, and those of the other one are delivered. After an outage
/// longer than the parking queue's visibility timeout all events arrive. With `look`, the first report is from the outage.
pub async fn outage(seed: u64, events: u64, look: bool) -> (Option<Report>, Outcome) {
    let system = Arc::new(System::start(Options::default()).await);
    let ledger = Arc::new(Ledger::default());
    let progress = Progress::start(&system, &ledger);
    system.gates[DOWN].close().await;
    let webhooks = events / 5;
    let plan = Plan { queue_records: events - webhooks, senders: 6, ..Plan::webhooks(seed, webhooks) };
    let load = Load::start(&system, &ledger, plan);
    load.finish(DRAIN).await;
    let during = if look {
        let parked = parked_messages(&system);
        Some(ledger.compare(&system, &parked))
    } else {
        None
    };
    let envelopes = system.parked();
    let parked = ledger.accepted_for(DOWN);
    println!("{parked} messages are parked in {envelopes} envelopes; redelivery starts, the hub stays down");

    let pollers = system.redeliver();
    sleep(Redelivering::default().visibility + Duration::from_secs(5)).await;
    let before = system.hubs[DOWN].requests().len();
    assert_eq!(before, 0, "a closed gate lets no request through");
    system.gates[DOWN].open().await;
    println!("the hub is up again");
    let began = Instant::now();
    drained(&system, DRAIN).await;
    let took = began.elapsed();
    drop((progress, pollers));
    let mut per_second: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
    for request in system.hubs[DOWN].requests() {
        let (requests, events) = per_second.entry(request.second).or_default();
        *requests += 1;
        *events += request.events;
    }
    let peak_requests = per_second.values().map(|(requests, _)| *requests).max().unwrap_or_default();
    let peak_events = per_second.values().map(|(_, events)| *events).max().unwrap_or_default();
    let mut outcome = Outcome::of(ledger.compare(&system, &HashMap::new()));
    outcome.notes.push(format!(
        "{parked} parked messages arrived within {:.1} s of the recovery, at most {peak_requests} requests and \
         {peak_events} events per second at the hub",
        took.as_secs_f64(),
    ));
    stop(system).await;
    (during, outcome)
}
