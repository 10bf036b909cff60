//! Days of waiting, on the clock of the queue.

use local::sqs;

use super::super::parked::{envelope, group, pack};
use super::*;

/// Days of waiting, on the queue's clock.
#[derive(Debug, Clone, Copy)]
pub struct Renewal {
    /// Time that the flow is disabled.
    pub disabled: Duration,
    pub print_logs: bool,
}

/// Contract test 9, and R9 of the findings. The functions read the machine's clock. The clock of the queue runs ahead: `SentTimestamp`,
/// receive counts, delays and the retention period come from that clock.
pub async fn renewal(seed: u64, plan: Renewal) -> Outcome {
    /// Twice the number of receives after which a message becomes a dead letter.
    const RECEIVES: u64 = 200;
    let redelivering = Redelivering {
        pollers: 2,
        instances: 2,
        batch_size: 10,
        window: Duration::ZERO,
        max_delay: 30,
        timeout: Duration::from_secs(28),
        visibility: Duration::from_secs(180),
        ..Redelivering::default()
    };
    let options = Options { redelivering, print_logs: plan.print_logs, ..Options::default() };
    let system = Arc::new(System::start(options).await);
    let ledger = Ledger::default();
    let mut failures: Vec<(bool, String)> = Vec::new();

    hub_of(&system, A).script(refusing());
    park(&system, &ledger, A, &format!("full-{seed:x}"), 0..FULL, FULL);
    let pollers = system.redeliver();
    let before = Instant::now();
    while system.sqs.figures(&system.parking).received < RECEIVES
        && system.sqs.depth(&system.dead_letters).total() == 0
        && before.elapsed() < Duration::from_secs(120)
    {
        next_receive(&system).await;
    }
    let figures_then = system.sqs.figures(&system.parking);
    let most = system.sqs.messages(&system.parking).iter().map(|message| message.receives).max().unwrap_or_default();
    failures.push((
        most < 100 && system.sqs.depth(&system.dead_letters).total() == 0,
        format!(
            "a full envelope for a dead hub after {} receives: {most} of the message that holds it now (fewer than 100), \
             sent {} times, {} dead letters",
            figures_then.received,
            figures_then.sent,
            system.sqs.depth(&system.dead_letters).total()
        ),
    ));
    hub_of(&system, A).clear_faults();
    // An instance remembers the state of the hub by the machine's clock.
    system.redelivery.kill().await;
    let delivered = advance_until(&system, Duration::from_secs(60), || system.parked() == 0).await;
    failures.push((delivered, format!("delivered once the hub is back: {delivered}")));

    // The same with a disabled flow of the table.
    const DISABLED: usize = 3;
    let flow = &FLOWS[DISABLED];
    system.set_state(flow, "disabled").await;
    system.redelivery.kill().await;
    for number in 0..3 {
        park(&system, &ledger, DISABLED, &format!("disabled-{seed:x}-{number}"), 0..10, 10);
    }
    let mut unknown = envelope(&system, flow, "unavailable", &["unknown".to_owned()]);
    unknown["v"] = 2.into();
    let unknown = pack(&unknown, 1);
    system.sqs.put(&system.parking, &unknown, Some(&group(&system, flow)));
    let (mut passed, began, received) = (Duration::ZERO, Instant::now(), system.sqs.figures(&system.parking).received);
    // Without a message nothing is due, and the time stands still.
    while passed < plan.disabled && system.parked() > 0 && began.elapsed() < Duration::from_secs(400) {
        passed += next_receive(&system).await;
    }
    let receives = system.sqs.figures(&system.parking).received - received;
    let messages = system.sqs.messages(&system.parking);
    let dead_letters = system.sqs.depth(&system.dead_letters).total();
    let most = messages.iter().map(|message| message.receives).max().unwrap_or_default();
    let days = passed.as_secs_f64() / 86_400.0;
    failures.push((
        passed >= plan.disabled && dead_letters == 0 && most < 100,
        format!(
            "a disabled flow after {days:.1} days ({receives} receives): {} messages parked, at most {most} receives each \
             (fewer than 100), {dead_letters} dead letters (none)",
            messages.len(),
        ),
    ));
    system.set_state(flow, "enabled").await;
    system.redelivery.kill().await;
    let is_unknown = |message: &sqs::Stored| *message.body == *unknown;
    let rest = || system.sqs.messages(&system.parking).iter().filter(|message| !is_unknown(message)).count();
    let delivered = advance_until(&system, Duration::from_secs(60), || rest() == 0).await;
    failures.push((delivered, format!("delivered once the flow is enabled: {delivered}")));
    let unknown = system.sqs.messages(&system.parking).iter().filter(|message| is_unknown(message)).count();
    failures.push((unknown == 1, format!("{unknown} envelopes of an unknown version are parked (1)")));
    drop(pollers);
    let mut outcome = Outcome::of(ledger.compare(&system, &parked_messages(&system)));
    // The queue's clock runs ahead, so that messages are delivered again while they are handled.
    outcome.partial = true;
    outcome.require(system.parked() == 1, format!("{} messages are parked at the end (1)", system.parked()));
    for (holds, figure) in failures {
        outcome.require(holds, figure);
    }
    outcome.notes.push(figures(&system));
    stop(system).await;
    outcome
}

/// Advances the clock of the queue until the next message is visible, and waits until it was received and handled. Returns the
/// time that passed.
async fn next_receive(system: &System) -> Duration {
    let passed = system.sqs.until_due(&system.parking).unwrap_or_default() + Duration::from_millis(1);
    system.sqs.advance(passed);
    let deadline = Instant::now() + Duration::from_secs(2);
    let (sqs, parking) = (&system.sqs, &system.parking);
    while (sqs.depth(parking).visible > 0 || sqs.untouched(parking) > 0) && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
    // The message was hidden before the invocation ended.
    sleep(Duration::from_millis(20)).await;
    passed
}

async fn advance_until(system: &System, within: Duration, done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + within;
    while !done() {
        if Instant::now() >= deadline {
            return false;
        }
        next_receive(system).await;
        sleep(Duration::from_millis(200)).await;
    }
    true
}
