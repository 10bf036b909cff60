//! A backlog for a hub that works.

use super::*;

/// Sizes of a drain.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// Events in full envelopes.
    pub gathered: usize,
    /// Envelopes of one event.
    pub singles: usize,
    /// Instances of redelivery.
    pub instances: usize,
    pub print_logs: bool,
}

/// Measures how fast a backlog is delivered to a hub that responds after 30 ms and accepts everything.
pub async fn drain(seed: u64, plan: Drain) -> Vec<Outcome> {
    const SLOW_START: u64 = 5;
    let mut outcomes = Vec::new();
    for (count, size, least) in [(plan.gathered, FULL, 10_000.0), (plan.singles, 1, 1_000.0)] {
        let redelivering = Redelivering { instances: plan.instances, ..Redelivering::template() };
        let options = Options { redelivering, print_logs: plan.print_logs, ..Options::default() };
        let system = Arc::new(System::start(options).await);
        let ledger = Ledger::default();
        hub_of(&system, B).script(lasting(Action::Delay { ms: 30 }));
        park(&system, &ledger, B, &format!("{seed:x}"), 0..count, size);
        println!("{count} events are parked in {} envelopes", system.parked());
        let (watch, began) = (Watch::start(hub_of(&system, B)), Instant::now());
        let pollers = system.redeliver();
        let progress = show_progress(&system, {
            let seen = watch.seen.clone();
            move || format!("{} events stored", seen.lock().unwrap().len())
        });
        let all = watch.until(count, DRAIN).await;
        let took = began.elapsed();
        drained(&system, Duration::from_secs(60)).await;
        drop((progress, pollers));
        let requests = hub_of(&system, B).requests();
        let first = requests.first().map_or(0, |request| request.second);
        let whole = traffic(&requests);
        let later = traffic(requests.iter().filter(|request| request.second >= first + SLOW_START));
        let mut outcome = Outcome::of(ledger.compare(&system, &parked_messages(&system)));
        let rate = watch.count() as f64 / took.as_secs_f64();
        outcome.require(all, format!("all {count} events in envelopes of {size} arrived: {all}"));
        outcome.measure(
            rate >= least,
            format!("{count} events in envelopes of {size}: {rate:.0} events/s (at least {least:.0}), {took:.1?}"),
        );
        if size == FULL {
            let per_request = |traffic: Traffic| traffic.events as f64 / traffic.requests.max(1) as f64;
            outcome.measure(
                per_request(whole) >= 100.0,
                format!("{} requests for all: {:.0} events each (at least 100)", whole.requests, per_request(whole)),
            );
            outcome.measure(
                later.requests == 0 || per_request(later) >= 300.0,
                format!(
                    "{} of them after {SLOW_START} s: {:.0} events each (at least 300)",
                    later.requests,
                    per_request(later)
                ),
            );
        }
        drop(watch);
        stop(system).await;
        outcomes.push(outcome);
    }
    outcomes
}
