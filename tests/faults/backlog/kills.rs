//! Kills of redelivery and lost responses, at every step.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use local::sqs::{self, Moment};

use super::*;

/// Step at which redelivery is killed, or a response is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    KilledBeforeTheHubStores,
    KilledAfterTheHubStored,
    HubsResponseLost,
    KilledBeforeParkingAgain,
    KilledAfterParkingAgain,
    ParkingsResponseLost,
    KilledBeforeHiding,
    KilledAfterHiding,
    HidingRefused,
    DeliveredTwice,
    NotDeleted,
}

impl Step {
    const ALL: [Self; 11] = [
        Self::KilledBeforeTheHubStores,
        Self::KilledAfterTheHubStored,
        Self::HubsResponseLost,
        Self::KilledBeforeParkingAgain,
        Self::KilledAfterParkingAgain,
        Self::ParkingsResponseLost,
        Self::KilledBeforeHiding,
        Self::KilledAfterHiding,
        Self::HidingRefused,
        Self::DeliveredTwice,
        Self::NotDeleted,
    ];

    /// Whether the step requires a hub that is down.
    fn needs_an_outage(self) -> bool {
        !matches!(
            self,
            Self::KilledBeforeTheHubStores
                | Self::KilledAfterTheHubStored
                | Self::HubsResponseLost
                | Self::DeliveredTwice
                | Self::NotDeleted
        )
    }

    /// Arms the fault of the step. Returns a function that reports whether it has happened.
    fn arm(self, system: &Arc<System>) -> Box<dyn Fn() -> bool + Send> {
        let happened = Arc::new(AtomicBool::new(false));
        let kill = {
            let (system, happened) = (system.clone(), happened.clone());
            move || async move {
                system.redelivery.kill().await;
                happened.store(true, Ordering::Relaxed);
            }
        };
        let once = |operation, action| sqs::Fault { operation, times: 1, action };
        let (hub, queue) = (hub_of(system, B), &system.sqs);
        match self {
            Self::KilledBeforeTheHubStores => hub.at(FLOWS[B].hub, 1, Moment::Arrived, kill),
            Self::KilledAfterTheHubStored => hub.at(FLOWS[B].hub, 1, Moment::Done, kill),
            Self::KilledBeforeParkingAgain => queue.at("SendMessage", 1, Moment::Arrived, kill),
            Self::KilledAfterParkingAgain => queue.at("SendMessage", 1, Moment::Done, kill),
            Self::KilledBeforeHiding => queue.at("ChangeMessageVisibility", 1, Moment::Arrived, kill),
            Self::KilledAfterHiding => queue.at("ChangeMessageVisibility", 1, Moment::Done, kill),
            Self::HubsResponseLost => {
                hub.script([Action::ResetAfterStore.into()]);
                let hub = hub.clone();
                return Box::new(move || hub.faults().is_empty());
            }
            Self::ParkingsResponseLost => queue.script([once("SendMessage", sqs::Action::LoseResponse)]),
            Self::HidingRefused => {
                let refuse = sqs::Action::Refuse { status: 503, code: "ServiceUnavailable" };
                queue.script([sqs::Fault { operation: "ChangeMessageVisibility", times: 3, action: refuse }]);
            }
            Self::DeliveredTwice => queue.script([once("ReceiveMessage", sqs::Action::DeliverTwice)]),
            Self::NotDeleted => {
                let refuse = sqs::Action::Refuse { status: 400, code: "AccessDenied" };
                queue.script([once("DeleteMessageBatch", refuse)]);
            }
        }
        match self {
            Self::ParkingsResponseLost | Self::HidingRefused | Self::DeliveredTwice | Self::NotDeleted => {
                let queue = queue.clone();
                Box::new(move || queue.faults() == 0)
            }
            _ => Box::new(move || happened.load(Ordering::Relaxed)),
        }
    }
}

/// Contract test 1: each step once or several times, with some hundred parked events each.
pub async fn kills(seed: u64, events: usize, rounds: usize, print_logs: bool) -> Outcome {
    let redelivering = Redelivering { pollers: 2, instances: 2, ..Redelivering::default() };
    let options = Options { redelivering, print_logs, ..Options::default() };
    let system = Arc::new(System::start(options).await);
    let ledger = Ledger::default();
    let pollers = system.redeliver();
    let (mut reached, mut stuck, numbers) = (Vec::new(), Vec::new(), AtomicU64::new(0));
    for step in (0..rounds).flat_map(|_| Step::ALL) {
        let name = format!("{seed:x}-{}", numbers.fetch_add(1, Ordering::Relaxed));
        if step.needs_an_outage() {
            hub_of(&system, B).script(refusing());
        }
        let has_happened = step.arm(&system);
        // Small envelopes, so that there is something to gather, and a full one, so that there is something to hide.
        park(&system, &ledger, B, &name, 0..events, 1);
        park(&system, &ledger, B, &format!("{name}-full"), 0..FULL, FULL);
        let began = Instant::now();
        while !has_happened() && began.elapsed() < Duration::from_secs(15) {
            sleep(Duration::from_millis(20)).await;
        }
        let happened = has_happened();
        reached.push((step, happened));
        system.sqs.clear_faults();
        hub_of(&system, B).clear_faults();
        let began = Instant::now();
        while system.parked() > 0 && began.elapsed() < Duration::from_secs(60) {
            sleep(Duration::from_millis(200)).await;
            // The run does not wait for the visibility timeout of messages that a killed instance had received.
            system.sqs.advance(Duration::from_secs(1));
        }
        if system.parked() > 0 {
            stuck.push(step);
        }
        println!(
            "{step:?}: {}, drained within {:.1?}",
            if happened { "happened" } else { "did not happen" },
            began.elapsed()
        );
    }
    drop(pollers);
    let mut outcome = Outcome::of(ledger.compare(&system, &parked_messages(&system)));
    outcome.partial = true;
    let missed: HashSet<String> =
        reached.iter().filter(|(_, reached)| !reached).map(|(step, _)| format!("{step:?}")).collect();
    outcome.require(missed.is_empty(), format!("steps that did not happen: {missed:?} (none)"));
    outcome
        .require(stuck.is_empty(), format!("steps after which the queue was not empty within 60 s: {stuck:?} (none)"));
    outcome.notes.push(figures(&system));
    stop(system).await;
    outcome
}
