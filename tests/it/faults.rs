//! Short forms of the runs of `make faults`. They print their results and the seed; `FAULTS_SEED` repeats a seed.

use std::time::Duration;

use local::emulator::Emulator;
use serde_json::Value;
use tests::faults::backlog::{self, DeadHub, Drain, InFlight, Renewal, Throttled};
use tests::faults::gate::Gate;
use tests::faults::ledger::{Ledger, parked_messages};
use tests::faults::load::Plan;
use tests::faults::parked::park;
use tests::faults::scenarios::{self, Faults, Outcome};
use tests::faults::system::{self, Options};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, MutexGuard};

use crate::harness::*;

/// Waits for other fault tests to end: each of them keeps the whole machine busy.
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
    // A single kill may duplicate every tenth event of such a short run: only the long form requires an average.
    assert_eq!((outcome.report.violations(), outcome.report.parked), (0, 0));
    assert!(outcome.report.delivered > 2_000, "most events are accepted");
    assert!(outcome.report.redelivered > 0, "the faults cause some events to be parked");
    assert!(outcome.report.rejected > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_parking_the_ledger_finds_losses() {
    let _turn = one_at_a_time().await;
    let options = Options { without_parking: true, ..Options::default() };
    let outcome = scenarios::ledger(plan(200, 100), Faults::HubDown, options).await;
    outcome.print();
    assert!(outcome.report.lost > 0);
    assert_eq!(outcome.report.violations(), outcome.report.lost, "no other violations");
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
async fn webhooks_are_parked_while_the_hub_does_not_respond() {
    let _turn = one_at_a_time().await;
    let outcome = scenarios::hanging_hub(seed(), 60).await;
    outcome.print();
    assert!(outcome.kept());
    assert_eq!(outcome.report.responses(202), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_parked_during_an_outage_arrive_after_it() {
    let _turn = one_at_a_time().await;
    let (during, after) = scenarios::outage(seed(), 500, true).await;
    let during = during.unwrap();
    print!("{during}");
    after.print();
    assert_eq!(during.violations(), 0, "every event is delivered, or parked for its own flow");
    assert!(during.parked > 100);
    assert!(during.responses(202) > 0);
    assert!(after.kept());
    assert_eq!(after.report.delivered, during.delivered + during.parked);
}

fn check(outcome: &Outcome) {
    outcome.print();
    assert!(outcome.kept(), "{:?}", outcome.failures);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bound_of_the_ledger_can_fail() {
    let _turn = one_at_a_time().await;
    let system = system::System::start(Options::default()).await;
    let ledger = Ledger::default();
    let compare = || ledger.compare(&system, &parked_messages(&system));
    park(&system, &ledger, 0, "first", 0..10, 10);
    let report = compare();
    assert_eq!((report.parked, report.violations(), report.kept()), (10, 0, false), "the queue is not empty");

    let envelope = system.sqs.messages(&system.parking).remove(0).body;
    let pollers = system.redeliver();
    let drained = async || {
        while system.parked() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    drained().await;
    assert!(compare().kept());
    system.sqs.put(&system.parking, &envelope, None);
    drained().await;
    let report = compare();
    assert_eq!((report.max_copies, report.unexplained, report.violations()), (2, 10, 10));
    let ids: Vec<String> = (0..10).map(|number| format!("first-{number}")).collect();
    ledger.may_repeat("the test", ids.iter().map(String::as_str));
    let report = compare();
    assert_eq!((report.violations(), report.average_copies(), report.kept()), (0, 2.0, false), "too many on average");

    park(&system, &ledger, 0, "others", 0..200, 100);
    drained().await;
    assert!(compare().kept(), "some copies among many events");
    system.sqs.put(&system.dead_letters, &envelope, None);
    let report = compare();
    assert_eq!((report.dead_letters, report.violations(), report.kept()), (1, 1, false));
    drop(pollers);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_delivered_once() {
    let _turn = one_at_a_time().await;
    let plan = Drain { gathered: 10_000, singles: 1_000, instances: 2, print_logs: false };
    backlog::drain(seed(), plan).await.iter().for_each(check);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_hub_delays_no_other_hub_and_gets_few_requests() {
    let _turn = one_at_a_time().await;
    // The test of messages in flight has a hub that refuses.
    let plan = DeadHub {
        singles: 2_000,
        concurrency: 2,
        instances: 2,
        hanging: true,
        max_delay: 5,
        outage: Duration::from_secs(2),
        counted: Duration::from_secs(14),
        window: 4,
        print_logs: false,
    };
    check(&backlog::dead_hub(seed(), plan).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_dead_hub_do_not_use_up_the_limit_in_flight() {
    let _turn = one_at_a_time().await;
    let plan = InFlight {
        singles: 4_000,
        max_in_flight: 2_500,
        concurrency: 2,
        max_delay: 5,
        lasts: Duration::from_secs(3),
        print_logs: false,
    };
    check(&backlog::in_flight(seed(), plan).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_hub_with_live_traffic_gets_each_event_once() {
    let _turn = one_at_a_time().await;
    let (warm_up, counted) = (Duration::from_secs(3), Duration::from_secs(5));
    let plan = Throttled { units: 2, concurrency: 2, warm_up, counted, print_logs: false };
    check(&backlog::throttled(seed(), plan).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_parked_for_days_are_renewed_and_delivered() {
    let _turn = one_at_a_time().await;
    let plan = Renewal { disabled: Duration::from_secs(10 * 3600), print_logs: false };
    check(&backlog::renewal(seed(), plan).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_redelivery_is_killed_at_any_step() {
    let _turn = one_at_a_time().await;
    check(&backlog::kills(seed(), 100, 1, false).await);
}

#[tokio::test]
async fn a_connection_that_died_while_frozen_costs_at_most_one_retry() {
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
        // The hub's end is closed now, and the frozen process has not read that yet.
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
    // A closed connection is noticed before it is used; one that the hub's side dropped, only when it is used.
    assert!(retries.iter().all(|retries| *retries <= 1), "{retries:?}");
    assert!(retries.iter().sum::<u64>() >= 5, "{retries:?}");
    assert!(lines.iter().all(|line| line["level"] == "INFO"), "{lines:?}");
}
