//! A circuit breaker per destination: once a hub does not respond, no requests are sent to it, except single probes that
//! find out whether it responds again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::event_hubs::response::Cause;

/// When a circuit opens, and how often it lets a request through.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Number of failures in a row that open it.
    pub opens_after: u32,
    /// Time between two probes while it is open.
    pub probe_interval: Duration,
    /// Fraction of the interval by which it varies in both directions, so that instances do not probe at the same time.
    pub jitter: f64,
}

/// What a circuit lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Everything.
    Closed,
    /// One request, which this caller is to send now.
    Probe,
    /// Nothing, until the time of the next probe.
    Open(Open),
}

/// A change of state, to be logged once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Whether it is open now.
    pub is_open: bool,
    /// The failure because of which it is or was open.
    pub cause: Cause,
    /// Time since the first failure in a row.
    pub failing_for: Duration,
}

/// The state of one destination. It uses the wall clock: a monotonic clock may stop while the sandbox is frozen between
/// invocations.
#[derive(Debug)]
pub struct Circuit {
    policy: Policy,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of failures since the last response that was not one.
    failures: u32,
    first_failure: Option<SystemTime>,
    open: Option<Open>,
    responded_at: Option<SystemTime>,
}

/// An open circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    pub cause: Cause,
    pub next_probe: SystemTime,
}

impl Circuit {
    pub fn new(policy: Policy) -> Self {
        Self { policy, state: Mutex::default() }
    }

    /// Asks for permission to send. A granted probe is counted as sent.
    pub fn admit(&self, now: SystemTime) -> Admission {
        match self.open(now) {
            None => Admission::Closed,
            Some(open) if now < open.next_probe => Admission::Open(open),
            Some(Open { cause, .. }) => {
                self.state().open = Some(Open { cause, next_probe: now + self.interval() });
                Admission::Probe
            }
        }
    }

    /// Its cause and next probe, if it is open.
    pub fn open(&self, now: SystemTime) -> Option<Open> {
        let mut state = self.state();
        let open = state.open.as_mut()?;
        // The clock may have been set back.
        open.next_probe = open.next_probe.min(now + self.policy.probe_interval.mul_f64(1.0 + self.policy.jitter));
        Some(*open)
    }

    /// Whether the destination has responded within `time`, and has not failed since.
    pub fn responded_within(&self, time: Duration, now: SystemTime) -> bool {
        let elapsed = self.state().responded_at.and_then(|at| now.duration_since(at).ok());
        elapsed.is_some_and(|elapsed| elapsed <= time)
    }

    /// Records that the destination failed.
    pub fn failed(&self, cause: Cause, now: SystemTime) -> Option<Change> {
        let next_probe = now + self.interval();
        let mut state = self.state();
        state.responded_at = None;
        state.failures = state.failures.saturating_add(1);
        let first = *state.first_failure.get_or_insert(now);
        if state.failures < self.policy.opens_after {
            return None;
        }
        let was_open = state.open.replace(Open { cause, next_probe }).is_some();
        let failing_for = now.duration_since(first).unwrap_or_default();
        (!was_open).then_some(Change { is_open: true, cause, failing_for })
    }

    /// Records that the destination responds.
    pub fn responded(&self, now: SystemTime) -> Option<Change> {
        let responding = State { responded_at: Some(now), ..State::default() };
        let State { first_failure, open, .. } = std::mem::replace(&mut *self.state(), responding);
        let (cause, first) = (open?.cause, first_failure?);
        Some(Change { is_open: false, cause, failing_for: now.duration_since(first).unwrap_or_default() })
    }

    fn interval(&self) -> Duration {
        let Policy { probe_interval, jitter, .. } = self.policy;
        probe_interval.mul_f64(1.0 - jitter + 2.0 * jitter * fastrand::f64())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The circuits of a process, by destination.
#[derive(Debug)]
pub struct Circuits<K> {
    policy: Policy,
    by_key: Mutex<HashMap<K, Arc<Circuit>>>,
}

impl<K: std::hash::Hash + Eq> Circuits<K> {
    pub fn new(policy: Policy) -> Self {
        Self { policy, by_key: Mutex::default() }
    }

    pub fn get(&self, key: K) -> Arc<Circuit> {
        let new = || Arc::new(Circuit::new(self.policy));
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_insert_with(new).clone()
    }

    /// Number of open circuits.
    pub fn count_open(&self, now: SystemTime) -> usize {
        let by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        by_key.values().filter(|circuit| circuit.open(now).is_some()).count()
    }
}

/// Logs a change of state, in the same words for every function, with the age of the oldest event that is affected.
pub fn log(change: Change, host: &str, hub: &str, oldest_event_age: Duration) {
    let (cause, oldest_event_age_s) = (change.cause.word(), oldest_event_age.as_secs());
    if change.is_open {
        tracing::warn!(
            host,
            hub,
            cause,
            oldest_event_age_s,
            "circuit opened: the event hub fails; its events wait in the parking queue, and single requests test it"
        );
    } else {
        tracing::info!(host, hub, cause, oldest_event_age_s, "circuit closed: the event hub responds again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { opens_after: 3, probe_interval: Duration::from_secs(1), jitter: 0.0 };

    fn at(milliseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
    }

    #[test]
    fn three_failures_in_a_row_open_it_and_the_first_response_closes_it() {
        let circuit = Circuit::new(POLICY);
        assert_eq!(circuit.failed(Cause::Timeout, at(0)), None);
        assert_eq!(circuit.failed(Cause::Timeout, at(1)), None);
        assert_eq!(circuit.responded(at(2)), None);
        for time in [3, 4] {
            assert_eq!(circuit.failed(Cause::Timeout, at(time)), None);
            assert_eq!(circuit.admit(at(time)), Admission::Closed);
        }
        let change = |is_open, cause, milliseconds| {
            Some(Change { is_open, cause, failing_for: Duration::from_millis(milliseconds) })
        };
        assert_eq!(circuit.failed(Cause::Unavailable, at(5)), change(true, Cause::Unavailable, 2));
        let open = |cause, next_probe| Admission::Open(Open { cause, next_probe: at(next_probe) });
        assert_eq!(circuit.admit(at(1004)), open(Cause::Unavailable, 1005));
        assert_eq!(circuit.admit(at(1005)), Admission::Probe);
        assert_eq!(circuit.admit(at(1006)), open(Cause::Unavailable, 2005));
        assert_eq!(circuit.failed(Cause::Timeout, at(1500)), None, "it was open already");
        assert_eq!(circuit.admit(at(2499)), open(Cause::Timeout, 2500));
        assert_eq!(circuit.responded(at(2503)), change(false, Cause::Timeout, 2500));
        assert_eq!(circuit.admit(at(2503)), Admission::Closed);
        assert!(circuit.responded_within(Duration::from_millis(10), at(2513)));
        assert!(!circuit.responded_within(Duration::from_millis(10), at(2514)));
        for time in 2515..2518 {
            circuit.failed(Cause::Timeout, at(time));
        }
        assert_eq!(circuit.admit(at(100)), open(Cause::Timeout, 1100), "the clock was set back");
        assert!(!circuit.responded_within(Duration::from_millis(100), at(2516)), "it failed since");
    }
}
