//! The maximum number of messages in flight.

use std::collections::HashMap;

use local::sqs;

use super::*;

/// The limit of messages in flight.
#[derive(Debug, Clone, Copy)]
pub struct InFlight {
    pub singles: usize,
    pub max_in_flight: usize,
    pub concurrency: usize,
    pub max_delay: u64,
    /// Time in which events of the working hub are parked.
    pub lasts: Duration,
    pub print_logs: bool,
}

/// Contract test 4: messages of a dead hub do not use up the limit of messages in flight.
pub async fn in_flight(seed: u64, plan: InFlight) -> Outcome {
    let redelivering = Redelivering {
        pollers: plan.concurrency,
        instances: plan.concurrency,
        delay: Redelivering::template().delay.min(plan.max_delay),
        max_delay: plan.max_delay,
        ..Redelivering::template()
    };
    let sqs = sqs::Config { max_in_flight: plan.max_in_flight, ..sqs::Config::default() };
    let options = Options { redelivering, sqs, print_logs: plan.print_logs, ..Options::default() };
    let system = Arc::new(System::start(options).await);
    let ledger = Ledger::default();
    park(&system, &ledger, A, &format!("a-{seed:x}"), 0..plan.singles, 1);
    println!("hub A refuses, {} of its events are parked, {} may be in flight", plan.singles, plan.max_in_flight);
    hub_of(&system, A).script(refusing());
    let pollers = system.redeliver();
    let watch = Watch::start(hub_of(&system, B));
    let progress = show_progress(&system, {
        let seen = watch.seen.clone();
        move || format!("{} events of B stored", seen.lock().unwrap().len())
    });
    let (began, mut put) = (Instant::now(), HashMap::new());
    while began.elapsed() < plan.lasts {
        let name = format!("b-{seed:x}");
        park(&system, &ledger, B, &name, put.len()..put.len() + 1, 1);
        put.insert(format!("{name}-{}", put.len()), Instant::now());
        sleep(Duration::from_secs(1) / B_PER_SECOND as u32).await;
    }
    let limit = Duration::from_secs(2 * plan.max_delay);
    watch.until(put.len(), 2 * limit).await;
    let now = Instant::now();
    let seen = watch.seen.lock().unwrap().clone();
    drop((progress, pollers));
    let dwell: Vec<Duration> =
        put.iter().map(|(id, put)| seen.get(id).unwrap_or(&now).saturating_duration_since(*put)).collect();
    let mut outcome = Outcome::of(ledger.compare(&system, &parked_messages(&system)));
    outcome.partial = true;
    let [p50, p99] = [50, 99].map(|percent| percentile(dwell.clone(), percent));
    outcome.require(seen.len() == put.len(), format!("{} of {} events of B arrived", seen.len(), put.len()));
    outcome.measure(p99 <= limit, format!("dwell of B's events p50 {p50:.1?}, p99 {p99:.1?} (at most {limit:?})"));
    let full = system.sqs.messages(&system.parking).iter().filter(|message| message.body.len() >= 64 * 1024).count();
    let most = plan.concurrency * redelivering.batch_size + full;
    let peak = system.sqs.figures(&system.parking).peak_in_flight;
    outcome.require(
        peak <= most,
        format!("at most {peak} messages in flight (at most concurrency × batch + {full} full envelopes = {most})"),
    );
    outcome.notes.push(figures(&system));
    drop(watch);
    stop(system).await;
    outcome
}
