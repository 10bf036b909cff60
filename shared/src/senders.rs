//! The senders of one flow: their accepted credentials, read again when somebody presents none of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::SecretString;
use tokio::time::Instant;

use crate::aws::{Aws, AwsError};
use crate::clock::Clock;
use crate::sender_auth::{Presented, SenderAuth};
use crate::settings::{SecretSource, SettingsError};

/// A miss may mean that the credentials were changed. Anybody can miss, so that reads are rationed: as many at once, and
/// one more after so many seconds.
const READS: u64 = 5;
const SECONDS_PER_READ: u64 = 10;
/// Credentials are read again after so many seconds also when they fit: one that was taken away is good no longer.
const MAX_AGE: u64 = 300;
/// What a read may take of a webhook's time.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where a flow's credentials come from, and what they were when last read.
pub struct Senders {
    source: Option<SecretSource>,
    aws: Aws,
    clock: Clock,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    /// `None` before the first read.
    accepted: Option<Arc<SenderAuth>>,
    /// The last read failed, so that there may be newer ones.
    stale: bool,
    /// Unix seconds.
    read_at: u64,
    /// The ration is used up until this time (Unix seconds) less `READS` times `SECONDS_PER_READ`.
    spent_until: u64,
}

/// What is known of a request's sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    Known,
    Unknown,
    /// The credentials may have been changed and can't be read now.
    CannotTell,
}

impl Senders {
    /// Reads nothing yet. Without a source every webhook is refused.
    pub fn new(source: Option<SecretSource>, aws: Aws, clock: Clock) -> Self {
        Self { source, aws, clock, current: Mutex::default() }
    }

    pub fn is_configured(&self) -> bool {
        self.source.is_some()
    }

    /// Who sent the request.
    pub async fn identify(&self, request: &Presented<'_>, deadline: Instant) -> Sender {
        let Some(source) = &self.source else { return Sender::Unknown };
        let now = self.clock.unix_seconds();
        let accepted = self.current().accepted.clone();
        let known = accepted.as_ref().is_some_and(|accepted| accepted.accepts(request));
        let must_read = match (&accepted, known) {
            (None, _) => true,
            (Some(_), _) if !source.can_change() => false,
            (Some(_), true) => now >= self.current().read_at + MAX_AGE,
            (Some(_), false) if self.may_read() => true,
            (Some(_), false) if self.current().stale => return Sender::CannotTell,
            (Some(_), false) => false,
        };
        if !must_read {
            return if known { Sender::Known } else { Sender::Unknown };
        }
        match self.read(deadline.min(Instant::now() + PATIENCE)).await {
            Ok(accepted) if accepted.accepts(request) => Sender::Known,
            Ok(_) => Sender::Unknown,
            Err(error) => {
                tracing::warn!(%error, "the senders' credentials can't be read; going on with those in hand");
                if known { Sender::Known } else { Sender::CannotTell }
            }
        }
    }

    /// What a caller without an accepted credential is asked for (`WWW-Authenticate`).
    pub fn challenges(&self) -> Vec<&'static str> {
        self.current().accepted.as_ref().map(|accepted| accepted.challenges()).unwrap_or_default()
    }

    /// Reads the credentials.
    pub async fn read(&self, deadline: Instant) -> Result<Arc<SenderAuth>, SettingsError> {
        let read = match &self.source {
            None => Ok(SenderAuth::NotConfigured),
            Some(source) => parse(source, source.text(&self.aws, deadline).await),
        };
        let mut current = self.current();
        current.read_at = self.clock.unix_seconds();
        current.stale = read.is_err();
        let accepted = Arc::new(read?);
        current.accepted = Some(accepted.clone());
        Ok(accepted)
    }

    /// Takes one read from the ration, if one is left.
    fn may_read(&self) -> bool {
        let now = self.clock.unix_seconds();
        let mut current = self.current();
        let spent_until = current.spent_until.max(now) + SECONDS_PER_READ;
        let left = spent_until <= now + READS * SECONDS_PER_READ;
        if left {
            current.spent_until = spent_until;
        }
        left
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(source: &SecretSource, text: Result<SecretString, AwsError>) -> Result<SenderAuth, SettingsError> {
    let unusable = |problem: &dyn std::fmt::Display| SettingsError::new(source.variable, problem);
    SenderAuth::parse(&text.map_err(|error| SettingsError::unread(source.variable, &error))?)
        .map_err(|problem| unusable(&problem))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::settings::Environment;

    #[test]
    fn misses_can_not_cause_reads_without_end() {
        let seconds = Arc::new(AtomicU64::new(1_000));
        let now = seconds.clone();
        let clock = Clock::from_fn(move || UNIX_EPOCH + Duration::from_secs(now.load(Ordering::Relaxed)));
        let http = crate::build_http_client(None).unwrap();
        let aws = Aws::new(http, Environment::from_fn(|_| None), clock.clone());
        let senders = Senders::new(None, aws, clock);
        let reads = |asked: usize| (0..asked).filter(|_| senders.may_read()).count();
        assert_eq!(reads(100), 5);
        seconds.fetch_add(9, Ordering::Relaxed);
        assert_eq!(reads(100), 0);
        seconds.fetch_add(1, Ordering::Relaxed);
        assert_eq!(reads(100), 1);
        seconds.fetch_add(3_600, Ordering::Relaxed);
        assert_eq!(reads(100), 5);
    }
}
