//! A hub that is dead, next to one that had a short outage.

use super::*;

/// Settings of a run with a dead hub, and another one that had a short outage.
#[derive(Debug, Clone, Copy)]
pub struct DeadHub {
    /// Parked events of the dead hub, each in an envelope of its own.
    pub singles: usize,
    pub concurrency: usize,
    /// Number of instances of redelivery. On a small machine it is lower than the concurrency.
    pub instances: usize,
    /// Whether the dead hub accepts connections and does not respond, instead of refusing with 503.
    pub hanging: bool,
    /// Maximum delay of a parked message, in seconds.
    pub max_delay: u64,
    /// Time that the other hub is down, while its events are parked.
    pub outage: Duration,
    /// Time that the dead hub's requests are counted, and the window for their maximum number.
    pub counted: Duration,
    pub window: u64,
    pub print_logs: bool,
}

/// Contract tests 2 and 3: a dead hub does not delay the other hub, and gets few requests.
pub async fn dead_hub(seed: u64, plan: DeadHub) -> Outcome {
    /// Seconds in which the instances start and each of them finds out that the hub is dead.
    const FIRST_CONTACT: u64 = 10;
    let template = Redelivering::template();
    let redelivering = Redelivering {
        pollers: plan.concurrency,
        instances: plan.instances,
        delay: template.delay.min(plan.max_delay),
        max_delay: plan.max_delay,
        ..template
    };
    let options = Options { redelivering, print_logs: plan.print_logs, ..Options::default() };
    let system = Arc::new(System::start(options).await);
    let ledger = Ledger::default();
    let how = if plan.hanging { "does not respond" } else { "refuses" };
    park(&system, &ledger, A, &format!("a-{seed:x}"), 0..plan.singles, 1);
    println!(
        "hub A {how}, {} of its events are parked; concurrency {} with {} instances",
        plan.singles, plan.concurrency, plan.instances
    );
    if plan.hanging {
        hub_of(&system, A).script(lasting(Action::Hang));
    } else {
        hub_of(&system, A).script(refusing());
    }
    hub_of(&system, B).script(refusing());
    let began = Instant::now();
    let pollers = system.redeliver();
    let watch = Watch::start(hub_of(&system, B));
    let progress = show_progress(&system, {
        let (system, seen) = (system.clone(), watch.seen.clone());
        move || {
            let requests = hub_of(&system, A).requests().len();
            format!("{requests} requests to A, {} events of B stored", seen.lock().unwrap().len())
        }
    });
    let mut of_b = 0;
    while began.elapsed() < plan.outage {
        park(&system, &ledger, B, &format!("b-{seed:x}"), of_b..of_b + 1, 1);
        of_b += 1;
        sleep(Duration::from_secs(1) / B_PER_SECOND as u32).await;
    }
    hub_of(&system, B).clear_faults();
    let recovered = Instant::now();
    println!("hub B is back, {of_b} of its events are parked");
    let limit = Duration::from_secs(2 * plan.max_delay);
    watch.until(of_b, 3 * limit).await;
    sleep(plan.counted.saturating_sub(began.elapsed())).await;
    let dwell: Vec<Duration> =
        watch.seen.lock().unwrap().values().map(|seen| seen.saturating_duration_since(recovered)).collect();
    drop((progress, pollers));
    let mut dwell_of_all = dwell.clone();
    // An event that has not arrived yet counts with the whole time.
    dwell_of_all.resize(of_b.max(dwell.len()), recovered.elapsed());
    let requests = hub_of(&system, A).requests();
    let first = requests.first().map_or(0, |request| request.second);
    let mut outcome = Outcome::of(ledger.compare(&system, &parked_messages(&system)));
    outcome.partial = true;
    let [p50, p99] = [50, 99].map(|percent| percentile(dwell_of_all.clone(), percent));
    outcome.require(
        dwell.len() == of_b,
        format!("A {how}, concurrency {}: {} of {of_b} events of B arrived", plan.concurrency, dwell.len()),
    );
    outcome.measure(p99 <= limit, format!("dwell of B's events p50 {p50:.1?}, p99 {p99:.1?} (at most {limit:?})"));
    let (busiest_later, window) = (busiest(&requests, first + FIRST_CONTACT, plan.window), plan.window);
    outcome.require(
        busiest_later as u64 <= window,
        format!(
            "A saw {} requests in {:.0} s, at most {busiest_later} in {window} s after the first {FIRST_CONTACT} s (at most \
             {window}), {} in any {window} s",
            requests.len(),
            began.elapsed().as_secs_f64(),
            busiest(&requests, first, window),
        ),
    );
    outcome.notes.push(figures(&system));
    stop(system).await;
    outcome
}
