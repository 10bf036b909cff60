//! The pace at which parked messages are sent to a namespace: as fast as it accepts them, and slower than that where new
//! events need the rest.
//!
//! One throughput unit is 1,000 events or 1 MB a second, whichever is reached first
//! (<https://learn.microsoft.com/azure/event-hubs/event-hubs-scalability>). A request of a megabyte is a second of one
//! unit, so the number of requests in flight would be too coarse to control.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep, timeout_at};

use crate::clock::Clock;

/// Throughput units at first. Doubled each second until the first refusal, so that a recovering hub is not overloaded.
const FIRST_RATE: f64 = 0.25;
/// Maximum number of throughput units of one instance: requests of 1 MB would follow each other faster than a round trip.
const MAX_RATE: f64 = 20.0;
/// Minimum number of throughput units, however often a hub refuses.
const MIN_RATE: f64 = 0.02;
/// Growth per second after the first refusal.
const GROWTH: f64 = 1.005;
/// Factor after the first refusal: half of the rate was accepted a second ago.
const FIRST_REFUSAL: f64 = 0.5;
/// Factor after every additional refusal.
const REFUSAL: f64 = 0.85;
/// Factor when new events are refused: they come first.
const LIVE_TRAFFIC: f64 = 0.7;
/// Minimum time between two reductions for new events.
const LIVE_TRAFFIC_INTERVAL: Duration = Duration::from_secs(5);
/// Size of a request: a twentieth of a second of the rate, within these bounds, in unit-seconds.
const REQUEST_SHARE: f64 = 0.05;
const MIN_REQUEST: f64 = 0.02;
const MAX_REQUEST: f64 = 1.0;
/// Unit-seconds that may be sent at once: a batch of a hundred events goes out unpaced.
const BURST: f64 = 0.1;
const EVENTS_PER_UNIT: f64 = 1_000.0;
const BYTES_PER_UNIT: f64 = 1_000_000.0;
/// Time to wait after a refusal for which the hub names none: its error text asks for 4 seconds.
const REFUSAL_WAIT: Duration = Duration::from_secs(4);
/// Maximum time to wait after a refusal, whatever the hub asks for: a longer one would outlast the outage.
const MAX_REFUSAL_WAIT: Duration = Duration::from_secs(60);

/// Maximum size of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub messages: usize,
    pub bytes: usize,
}

/// The pace towards one namespace, from one instance.
pub struct Pace {
    clock: Clock,
    state: Mutex<State>,
    /// Requests wait in line, so that small ones do not take the credit that a large one waits for.
    line: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    /// Throughput units.
    rate: f64,
    refused: bool,
    /// Unit-seconds that may be sent now.
    credit: f64,
    credited_at: SystemTime,
    grown_at: SystemTime,
    reduced_at: SystemTime,
    /// Nothing is sent before this time.
    wait_until: SystemTime,
    slowed_at: SystemTime,
}

impl Pace {
    pub fn new(clock: Clock) -> Self {
        let now = clock.now();
        let state = State {
            rate: FIRST_RATE,
            refused: false,
            credit: BURST,
            credited_at: now,
            grown_at: now,
            reduced_at: SystemTime::UNIX_EPOCH,
            wait_until: SystemTime::UNIX_EPOCH,
            slowed_at: SystemTime::UNIX_EPOCH,
        };
        Self { clock, state: Mutex::new(state), line: tokio::sync::Mutex::default() }
    }

    /// Throughput units at which messages are sent now.
    pub fn units(&self) -> f64 {
        self.state().rate
    }

    /// Maximum size of the next request.
    pub fn limit(&self) -> Limit {
        let units = request_units(self.state().rate);
        Limit { messages: (units * EVENTS_PER_UNIT) as usize, bytes: (units * BYTES_PER_UNIT) as usize }
    }

    /// Waits for the turn of a request. Returns the time at which it may be sent; `None` if that is not before `deadline`.
    pub async fn turn(&self, messages: usize, bytes: usize, deadline: Instant) -> Option<SystemTime> {
        let units = (messages as f64 / EVENTS_PER_UNIT).max(bytes as f64 / BYTES_PER_UNIT);
        let _turn = timeout_at(deadline, self.line.lock()).await.ok()?;
        loop {
            let now = self.clock.now();
            let wait = match self.state().take(units, now) {
                None => return Some(now),
                Some(wait) => wait,
            };
            if Instant::now() + wait >= deadline {
                return None;
            }
            sleep(wait).await;
        }
    }

    /// Records that the namespace accepted a request.
    pub fn accepted(&self) {
        let now = self.clock.now();
        self.state().grow(now);
    }

    /// Records that the namespace throttled a request that was sent at `sent_at`, and asked for a wait. Requests that
    /// were in flight together count as one refusal.
    pub fn refused(&self, sent_at: SystemTime, wait: Option<Duration>) {
        let now = self.clock.now();
        let mut state = self.state();
        state.wait_until = state.wait_until.max(now + wait.unwrap_or(REFUSAL_WAIT).min(MAX_REFUSAL_WAIT));
        if sent_at <= state.reduced_at {
            return;
        }
        let factor = if state.refused { REFUSAL } else { FIRST_REFUSAL };
        state.refused = true;
        state.reduce(factor, now);
        state.reduced_at = now;
    }

    /// Records that new events were throttled a moment ago.
    pub fn live_traffic_is_throttled(&self) {
        let now = self.clock.now();
        let mut state = self.state();
        if now.duration_since(state.slowed_at).is_ok_and(|since| since < LIVE_TRAFFIC_INTERVAL) {
            return;
        }
        state.refused = true;
        state.slowed_at = now;
        state.reduce(LIVE_TRAFFIC, now);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Forgets times that lie in the future because the clock was set back.
    fn follow(&mut self, now: SystemTime) {
        self.wait_until = self.wait_until.min(now + MAX_REFUSAL_WAIT);
        for time in [&mut self.credited_at, &mut self.grown_at, &mut self.reduced_at, &mut self.slowed_at] {
            *time = (*time).min(now);
        }
    }

    /// Takes credit for a request of `units` unit-seconds, or returns how long to wait before asking again.
    fn take(&mut self, units: f64, now: SystemTime) -> Option<Duration> {
        self.follow(now);
        if let Ok(wait) = self.wait_until.duration_since(now)
            && !wait.is_zero()
        {
            return Some(wait);
        }
        let most = BURST.max(request_units(self.rate));
        let elapsed = now.duration_since(self.credited_at).unwrap_or_default().as_secs_f64();
        self.credit = (self.credit + self.rate * elapsed).min(most);
        self.credited_at = now;
        // A message that is larger than all credit is sent on credit, and paid off before the next one.
        let missing = units.min(most) - self.credit;
        if missing > 1e-9 {
            return Some(Duration::from_secs_f64(missing / self.rate).max(Duration::from_millis(1)));
        }
        self.credit -= units;
        None
    }

    fn grow(&mut self, now: SystemTime) {
        let elapsed = now.duration_since(self.grown_at).unwrap_or_default();
        if elapsed < Duration::from_secs(1) {
            return;
        }
        self.grown_at = now;
        self.rate = (self.rate * if self.refused { GROWTH } else { 2.0 }).min(MAX_RATE);
    }

    fn reduce(&mut self, factor: f64, now: SystemTime) {
        self.rate = (self.rate * factor).max(MIN_RATE);
        self.credit = self.credit.min(0.0);
        self.grown_at = now;
    }
}

fn request_units(rate: f64) -> f64 {
    (rate * REQUEST_SHARE).clamp(MIN_REQUEST, MAX_REQUEST)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A pace whose clock follows tokio's paused one.
    fn pace() -> Pace {
        let began = Instant::now();
        Pace::new(Clock::from_fn(move || SystemTime::UNIX_EPOCH + Duration::from_secs(1_000) + began.elapsed()))
    }

    /// Sends for so long to a namespace that accepts `limit` units, counted by whole seconds. Returns the unit-seconds
    /// that it accepted, and the number of accepted and refused requests.
    async fn run(pace: &Pace, limit: f64, duration: Duration) -> (f64, usize, usize) {
        let (end, began) = (Instant::now() + duration, Instant::now());
        let (mut second, mut used, mut total, mut accepted, mut refused) = (0, 0.0, 0.0, 0, 0);
        loop {
            let Limit { messages, .. } = pace.limit();
            let Some(sent_at) = pace.turn(messages, 0, end).await else { return (total, accepted, refused) };
            if began.elapsed().as_secs() > second {
                (second, used) = (began.elapsed().as_secs(), 0.0);
            }
            let units = messages as f64 / EVENTS_PER_UNIT;
            if used + units > limit {
                refused += 1;
                pace.refused(sent_at, None);
            } else {
                (used, total, accepted) = (used + units, total + units, accepted + 1);
                pace.accepted();
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_unlimited_hub_gets_twice_as_much_each_second() {
        let pace = pace();
        let (units, ..) = run(&pace, f64::INFINITY, Duration::from_secs(5)).await;
        assert!((5.0..9.0).contains(&units), "{units}");
        run(&pace, f64::INFINITY, Duration::from_secs(10)).await;
        assert!((pace.units() - MAX_RATE).abs() < 1e-9);
        let (units, requests, _) = run(&pace, f64::INFINITY, Duration::from_secs(10)).await;
        assert!(units > 190.0 && requests < 250, "{units} in {requests}");
    }

    #[tokio::test(start_paused = true)]
    async fn most_of_a_limited_hub_is_used_and_few_requests_are_refused() {
        for limit in [1.0, 2.0, 4.0, 10.0] {
            let pace = pace();
            run(&pace, limit, Duration::from_secs(60)).await;
            let (units, accepted, refused) = run(&pace, limit, Duration::from_secs(300)).await;
            assert!(units > 0.75 * limit * 300.0, "{units} of {limit} units");
            assert!(refused * 50 < accepted, "{refused} refused, {accepted} accepted");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_hundred_events_are_not_paced() {
        let pace = pace();
        let now = Instant::now();
        for _ in 0..5 {
            assert!(pace.turn(20, 10_000, now + Duration::from_millis(1)).await.is_some());
        }
        assert!(pace.turn(20, 10_000, now + Duration::from_millis(1)).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_obeyed_and_counts_once_for_requests_in_flight_together() {
        let pace = pace();
        let sent_at = pace.clock.now();
        sleep(Duration::from_millis(30)).await;
        for _ in 0..16 {
            pace.refused(sent_at, Some(Duration::from_secs(7)));
        }
        assert!((pace.units() - FIRST_RATE * FIRST_REFUSAL).abs() < 1e-9);
        let asked = Instant::now();
        pace.turn(1, 1, asked + Duration::from_secs(60)).await.unwrap();
        assert!(asked.elapsed() >= Duration::from_secs(7));
        pace.refused(pace.clock.now(), None);
        assert!((pace.units() - FIRST_RATE * FIRST_REFUSAL * REFUSAL).abs() < 1e-9);
    }

    #[tokio::test(start_paused = true)]
    async fn new_events_that_are_throttled_slow_it_down_every_five_seconds_at_most() {
        let pace = pace();
        run(&pace, f64::INFINITY, Duration::from_secs(5)).await;
        let before = pace.units();
        pace.live_traffic_is_throttled();
        pace.live_traffic_is_throttled();
        assert!((pace.units() - before * LIVE_TRAFFIC).abs() < 1e-9);
    }

    #[tokio::test(start_paused = true)]
    async fn an_absurd_wait_is_cut_and_a_clock_that_is_set_back_does_not_stop_it() {
        let seconds = Arc::new(AtomicU64::new(1_000_000));
        let (began, ahead) = (Instant::now(), seconds.clone());
        let pace = Pace::new(Clock::from_fn(move || {
            SystemTime::UNIX_EPOCH + Duration::from_secs(ahead.load(Ordering::Relaxed)) + began.elapsed()
        }));
        pace.refused(pace.clock.now(), Some(Duration::from_secs(u64::MAX)));
        let asked = Instant::now();
        pace.turn(1, 1, asked + Duration::from_secs(61)).await.unwrap();
        pace.refused(pace.clock.now(), Some(Duration::from_secs(10)));
        seconds.store(1_000, Ordering::Relaxed);
        let asked = Instant::now();
        pace.turn(1, 1, asked + Duration::from_secs(61)).await.unwrap();
        let before = pace.units();
        sleep(Duration::from_millis(1100)).await;
        pace.accepted();
        assert!(pace.units() > before, "it grows again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_message_is_not_overtaken_for_ever_by_small_ones() {
        let pace = Arc::new(pace());
        let deadline = Instant::now() + Duration::from_secs(60);
        let small = async |count: usize| {
            for _ in 0..count {
                pace.turn(20, 0, deadline).await.unwrap();
            }
        };
        small(5).await;
        let large = tokio::spawn({
            let pace = pace.clone();
            async move { pace.turn(1, 60_000, deadline).await.map(|_| Instant::now()) }
        });
        tokio::task::yield_now().await;
        small(2).await;
        assert!(large.is_finished(), "it was first in line");
    }

    #[test]
    fn a_message_larger_than_all_credit_is_sent_and_paid_off() {
        let now = Arc::new(AtomicU64::new(1_000));
        let clock = Clock::from_fn({
            let now = now.clone();
            move || SystemTime::UNIX_EPOCH + Duration::from_secs(now.load(Ordering::Relaxed))
        });
        let pace = Pace::new(clock);
        let mut state = pace.state();
        let second = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        assert_eq!(state.take(1.0, second(1_000)), None);
        assert!(state.take(0.02, second(1_002)).is_some());
        assert_eq!(state.take(0.02, second(1_005)), None);
    }
}
