//! The settings that only redelivery has.

use std::ops::RangeInclusive;
use std::time::Duration;

use shared::environment::{Environment, SettingsError};

/// Seconds that a parked message waits after its first failure, from 1 to `REDELIVERY_MAX_DELAY`, default 5. Each additional
/// failure doubles the wait.
const DELAY: &str = "REDELIVERY_DELAY";
const DEFAULT_DELAY: u64 = 5;
/// Maximum wait between two attempts in seconds, 5 to 900, default 30.
const MAX_DELAY: &str = "REDELIVERY_MAX_DELAY";
const DEFAULT_MAX_DELAY: u64 = 30;
/// Number of concurrent invocations that the queue's mapping allows (its `MaximumConcurrency`), 2 to 1000, default 20. An
/// instance probes a failing hub after this number of seconds, but at least after a third of `REDELIVERY_MAX_DELAY` and at most
/// after `REDELIVERY_MAX_DELAY`, so that all instances together send about one request a second.
const CONCURRENCY: &str = "REDELIVERY_CONCURRENCY";
const DEFAULT_CONCURRENCY: u64 = 20;
/// Seconds since a message was first parked, at least 3600, default 1209600 (14 days). An older message that still can't be
/// delivered goes to the rejected queue with the reason `expired`.
const MAX_AGE: &str = "PARKING_MAX_AGE";
const DEFAULT_MAX_AGE: u64 = 14 * 24 * 60 * 60;
/// Minimum of the maximum age, so that a slip of the pen does not reject what an hour would deliver.
const LEAST_MAX_AGE: u64 = 60 * 60;

/// How long messages wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    pub delay: Duration,
    pub max_delay: Duration,
    pub max_age: Duration,
    /// Time between two probes of a failing hub from one instance: together the instances send about one a second.
    pub probe_interval: Duration,
}

impl Waiting {
    /// # Errors
    /// Fails if a value is not usable.
    pub fn read(environment: &Environment) -> Result<Self, SettingsError> {
        let max_delay = read(environment, MAX_DELAY, DEFAULT_MAX_DELAY, 5..=900, "seconds")?;
        // Where only the maximum is set, to less than the default delay, the delay follows.
        let delay = read(environment, DELAY, DEFAULT_DELAY.min(max_delay), 1..=900, "seconds")?;
        if delay > max_delay {
            return Err(SettingsError::new(DELAY, format!("longer than {MAX_DELAY}, which is {max_delay} seconds")));
        }
        let concurrency = read(environment, CONCURRENCY, DEFAULT_CONCURRENCY, 2..=1000, "batches")?;
        let max_age = read(environment, MAX_AGE, DEFAULT_MAX_AGE, LEAST_MAX_AGE..=u64::from(u32::MAX), "seconds")?;
        let max_delay = Duration::from_secs(max_delay);
        Ok(Self {
            delay: Duration::from_secs(delay),
            max_delay,
            max_age: Duration::from_secs(max_age),
            probe_interval: Duration::from_secs(concurrency).clamp(max_delay / 3, max_delay),
        })
    }
}

fn read(
    environment: &Environment,
    variable: &'static str,
    default: u64,
    range: RangeInclusive<u64>,
    unit: &str,
) -> Result<u64, SettingsError> {
    let Some(text) = environment.get(variable) else { return Ok(default) };
    text.trim().parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        let (least, most) = (range.start(), range.end());
        SettingsError::new(variable, format!("expected a number of {unit} from {least} to {most}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(variables: &'static [(&str, &str)]) -> Result<Waiting, SettingsError> {
        Waiting::read(&Environment::from_fn(move |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        }))
    }

    #[test]
    fn defaults_are_as_documented() {
        let seconds = Duration::from_secs;
        let Waiting { delay, max_delay, max_age, probe_interval } = waiting(&[]).unwrap();
        assert_eq!([delay, max_delay, max_age, probe_interval].map(|time| time.as_secs()), [5, 30, 1_209_600, 20]);
        let interval = |variables| waiting(variables).unwrap().probe_interval;
        assert_eq!(interval(&[(CONCURRENCY, "2")]), seconds(10));
        assert_eq!(interval(&[(CONCURRENCY, "1000")]), seconds(30));
        assert_eq!(interval(&[(MAX_DELAY, "6")]), seconds(6));
    }

    #[test]
    fn unusable_values_are_refused_by_name() {
        for (variables, variable) in [
            (&[(DELAY, "0")][..], DELAY),
            (&[(DELAY, "soon")], DELAY),
            (&[(DELAY, "31")], DELAY),
            (&[(DELAY, "10"), (MAX_DELAY, "9")], DELAY),
            (&[(MAX_DELAY, "4")], MAX_DELAY),
            (&[(MAX_DELAY, "901")], MAX_DELAY),
            (&[(CONCURRENCY, "1")], CONCURRENCY),
            (&[(MAX_AGE, "3599")], MAX_AGE),
            (&[(MAX_AGE, "-1")], MAX_AGE),
        ] {
            let environment = variables.to_vec();
            let read = Waiting::read(&Environment::from_fn(move |name| {
                environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            }));
            assert_eq!(read.unwrap_err().variable, variable, "{variables:?}");
        }
        assert!(waiting(&[(DELAY, "900"), (MAX_DELAY, "900"), (MAX_AGE, "3600")]).is_ok());
    }
}
