//! Short forms of what `make faults` runs. They print what was found, with the seed; `FAULTS_SEED` repeats one.

use std::time::Duration;

use local::emulator::Emulator;
use serde_json::Value;
use tests::faults::gate::Gate;
use tests::faults::load::Plan;
use tests::faults::scenarios::{self, Faults};
use tests::faults::system::Options;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, MutexGuard};

use crate::harness::*;

/// Each keeps the machine busy by itself.
async fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

fn seed() -> u64 {
    let seed =
        std::env::var("FAULTS_SEED").map_or_else(|_| fastrand::u64(..1_000_000_000), |seed| seed.parse().unwrap());
    println!("again: FAULTS_SEED={seed}");
    seed
}

fn plan(webhooks: u64, queue_records: u64) -> Plan {
    Plan { seed: seed(), webhooks, queue_records, at_least: Duration::ZERO, rate: None, senders: 8, mixed: true }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_misrouted_or_let_in_under_faults() {
    let _turn = one_at_a_time().await;
    let plan = Plan { rate: Some(130.0), ..plan(2_400, 1_600) };
    let outcome = scenarios::ledger(plan, Faults::Random, Options::default()).await;
    outcome.print();
    assert!(outcome.kept());
    assert!(outcome.report.delivered > 2_000, "most events are accepted");
    assert!(outcome.report.redelivered > 0, "the faults make some be parked");
    assert!(outcome.report.rejected > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_parking_the_ledger_finds_losses() {
    let _turn = one_at_a_time().await;
    let options = Options { without_parking: true, ..Options::default() };
    let outcome = scenarios::ledger(plan(200, 100), Faults::HubDown, options).await;
    outcome.print();
    assert!(outcome.report.lost > 0);
    assert_eq!(outcome.report.violations(), outcome.report.lost, "and nothing else");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_every_instance_is_killed_every_second() {
    let _turn = one_at_a_time().await;
    let plan = Plan { at_least: Duration::from_secs(10), rate: Some(200.0), ..plan(1_200, 800) };
    let outcome = scenarios::ledger(plan, Faults::KillEverySecond, Options::default()).await;
    outcome.print();
    assert!(outcome.kept());
    assert!(outcome.faults["processes killed"] > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_parked_while_the_hub_hangs() {
    let _turn = one_at_a_time().await;
    let outcome = scenarios::hanging_hub(seed(), 60).await;
    outcome.print();
    assert!(outcome.kept());
    assert_eq!(outcome.report.answers(202), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_outage_parked_arrives_after_it() {
    let _turn = one_at_a_time().await;
    let (during, after) = scenarios::outage(seed(), 500, true).await;
    let during = during.unwrap();
    print!("{during}");
    after.print();
    assert_eq!(during.violations(), 0, "delivered, or parked for its own flow");
    assert!(during.parked > 100);
    assert!(during.answers(202) > 0);
    assert!(after.kept());
    assert_eq!(after.report.delivered, during.delivered + during.parked);
}

#[tokio::test]
async fn a_connection_that_died_while_frozen_costs_one_repeat_at_most() {
    let hub = Emulator::start(hub_config(), TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
    let gate = Gate::start(hub.address()).await;
    let key_name = &hub_config().keys[0].name;
    let connection_string =
        hub.connection_string(key_name, Some(HUB)).replace(&hub.address().to_string(), &gate.address().to_string());
    let function = function(&[("EVENT_HUBS_CONNECTION_STRING", &connection_string), ("SENDER_AUTH", SENDER_AUTH)]);
    let system = System { hub, function };
    for n in 0..10 {
        assert_eq!(system.post(&event_of(&format!("before-{n}"))).await, delivered(1));
        assert_eq!(system.function.freeze().await, 1);
        if n % 2 == 0 {
            gate.break_connections()
        } else {
            gate.forget_connections()
        }
        // The hub's end is closed by now, and its news lies unread at the frozen process.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(system.post(&event_of(&format!("after-{n}"))).await, delivered(1));
        assert_eq!(system.function.instances(), 1);
    }
    assert_eq!(system.stored(), 20);
    let lines: Vec<Value> = system.function.logs().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let answered = lines.iter().filter(|line| line["message"] == "webhook answered");
    let retries: Vec<u64> = answered.map(|line| line["Retries"].as_u64().unwrap_or(0)).collect();
    println!("retries: {retries:?}");
    assert_eq!(retries.len(), 20);
    // A closed one is noticed before it is used; one that the hub's side forgot, by its use.
    assert!(retries.iter().all(|retries| *retries <= 1), "{retries:?}");
    assert!(retries.iter().sum::<u64>() >= 5, "{retries:?}");
    assert!(lines.iter().all(|line| line["level"] == "INFO"), "{lines:?}");
}
