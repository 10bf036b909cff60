//! Random faults from one seed: which, where and how long. Their effect depends on timing too, so a seed repeats the faults, but
//! not the run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use local::emulator::{Action, Fault};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::aws::{DYNAMODB, SECRETS, SQS};
use super::proxy::AwsFault;
use super::system::{FLOWS, System};

/// Active faults. [`Chaos::end`] ends them.
pub struct Chaos {
    lanes: JoinSet<()>,
    stop: watch::Sender<bool>,
    counts: Arc<Counts>,
}

/// Number of faults, by name.
type Counts = Mutex<BTreeMap<String, usize>>;

struct Lane {
    system: Arc<System>,
    rng: fastrand::Rng,
    stop: watch::Receiver<bool>,
    counts: Arc<Counts>,
}

impl Chaos {
    /// Starts independent faults of each namespace, of AWS, of the keys and of the processes.
    pub fn start(system: &Arc<System>, seed: u64) -> Self {
        let mut chaos = Self::none();
        let mut rng = fastrand::Rng::with_seed(seed);
        for namespace in 0..system.hubs.len() {
            let lane = chaos.lane(system, &mut rng);
            chaos.lanes.spawn(lane.hub(namespace));
        }
        let (aws, keys, kills) =
            (chaos.lane(system, &mut rng), chaos.lane(system, &mut rng), chaos.lane(system, &mut rng));
        chaos.lanes.spawn(aws.aws());
        chaos.lanes.spawn(keys.keys());
        chaos.lanes.spawn(kills.kills());
        chaos
    }

    /// Kills every instance of every function each second.
    pub fn kill_every_second(system: &Arc<System>) -> Self {
        let mut chaos = Self::none();
        let lane = chaos.lane(system, &mut fastrand::Rng::with_seed(0));
        chaos.lanes.spawn(lane.kill_every_second());
        chaos
    }

    fn none() -> Self {
        Self { lanes: JoinSet::new(), stop: watch::Sender::new(false), counts: Arc::default() }
    }

    fn lane(&self, system: &Arc<System>, rng: &mut fastrand::Rng) -> Lane {
        Lane { system: system.clone(), rng: rng.fork(), stop: self.stop.subscribe(), counts: self.counts.clone() }
    }

    /// Ends all faults. Returns their counts by name.
    pub async fn end(mut self) -> BTreeMap<String, usize> {
        self.stop.send_replace(true);
        while let Some(ended) = self.lanes.join_next().await {
            ended.unwrap();
        }
        self.counts.lock().unwrap().clone()
    }
}

impl Lane {
    /// Waits. Returns false if the faults are to end.
    async fn pause(&mut self, milliseconds: std::ops::Range<u64>) -> bool {
        let length = Duration::from_millis(self.rng.u64(milliseconds));
        timeout(length, self.stop.wait_for(|stop| *stop)).await.is_err()
    }

    fn count(&self, name: impl Into<String>, times: usize) {
        *self.counts.lock().unwrap().entry(name.into()).or_default() += times;
    }

    async fn hub(mut self, namespace: usize) {
        let system = self.system.clone();
        let (hub, gate) = (&system.hubs[namespace], &system.gates[namespace]);
        while self.pause(200..2_000).await {
            // Sometimes longer than the parking queue's visibility timeout.
            let length = if self.rng.u32(..12) == 0 { 7_000..9_000 } else { 300..3_000 };
            let status = |status, retry_after| Action::Status { status, retry_after, detail: None };
            let action = match self.rng.u32(..12) {
                0 => {
                    self.count("hub: down", 1);
                    gate.close().await;
                    self.pause(length).await;
                    gate.open().await;
                    continue;
                }
                1 => {
                    self.count("hub: closes connections after responses", 1);
                    gate.cut_after_responses(true);
                    self.pause(length).await;
                    gate.cut_after_responses(false);
                    continue;
                }
                2 => {
                    self.count("hub: breaks connections", 1);
                    gate.break_connections();
                    continue;
                }
                3 => {
                    self.count("hub: one throughput unit", 1);
                    hub.set_throughput_units(Some(1));
                    self.pause(length).await;
                    hub.set_throughput_units(system.throughput_units[namespace]);
                    continue;
                }
                4 => Action::Hang,
                5 => Action::Delay { ms: self.rng.u64(200..2_500) },
                6 => status(503, None),
                7 => status(429, Some(1)),
                8 => status(500, None),
                9 => Action::Reset,
                10 => Action::ResetAfterStore,
                // A refusal that is not caused by the key.
                _ => status(401, None),
            };
            self.count(format!("hub: {}", name(&action)), 1);
            // All requests for a time, or some. Each lost response causes a copy of its events, even if it is handled well: only
            // a few are lost, so that the average number of copies says something about the functions.
            let times = match action {
                Action::ResetAfterStore => self.rng.u32(1..8),
                _ if self.rng.bool() => 0,
                _ => self.rng.u32(1..30),
            };
            hub.script([Fault { hub: None, times, action }]);
            self.pause(length).await;
            hub.clear_faults();
        }
    }

    async fn aws(mut self) {
        let system = self.system.clone();
        while self.pause(500..3_000).await {
            let service = [SQS, SQS, DYNAMODB, SECRETS][self.rng.usize(..4)];
            let length = 200..2_500;
            if self.rng.u32(..8) == 0 {
                self.count(format!("{service}: down"), 1);
                let gate = &system.aws_gates[service];
                gate.close().await;
                self.pause(length).await;
                gate.open().await;
                continue;
            }
            let fault = AwsFault::ALL[self.rng.usize(..AwsFault::ALL.len())];
            self.count(format!("{service}: {fault:?}"), 1);
            system.proxy.fail(service, fault);
            self.pause(length).await;
            system.proxy.recover(service);
        }
    }

    async fn keys(mut self) {
        let system = self.system.clone();
        let mut rotation = 0;
        while self.pause(1_000..5_000).await {
            rotation += 1;
            let flow = &FLOWS[self.rng.usize(..FLOWS.len())];
            let later = Duration::from_millis(self.rng.u64(0..2_500));
            self.count("key rotated", 1);
            system.rotate(flow, &format!("key-{rotation}-of-{}", flow.id), later).await;
        }
    }

    async fn kills(mut self) {
        let system = self.system.clone();
        let functions: Vec<_> = system.all_functions().collect();
        while self.pause(500..4_000).await {
            let killed = functions[self.rng.usize(..functions.len())].kill().await;
            self.count("processes killed", killed);
        }
    }

    async fn kill_every_second(self) {
        while !*self.stop.borrow() {
            sleep(Duration::from_secs(1)).await;
            for function in self.system.all_functions() {
                let killed = function.kill().await;
                self.count("processes killed", killed);
            }
        }
    }
}

fn name(action: &Action) -> String {
    match action {
        Action::Status { status, .. } => format!("responds with {status}"),
        Action::Reset => "resets".to_owned(),
        Action::ResetAfterStore => "stores and resets".to_owned(),
        Action::Delay { .. } => "slow".to_owned(),
        Action::Hang => "does not respond".to_owned(),
    }
}
