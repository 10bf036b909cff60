//! The credentials that a flow accepts, read again when a request presents none of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::SecretString;
use tokio::time::Instant;

use crate::aws::reads::Reads;
use crate::aws::secret::SecretSource;
use crate::aws::{Aws, AwsError};
use crate::clock::Clock;
use crate::environment::SettingsError;
use crate::sender_auth::{Presented, SenderAuth};

/// Number of seconds after which credentials are read again although they match: one that was removed is no longer valid.
const MAX_AGE: u64 = 300;
/// Number of seconds after a failed read of matching credentials until the next one: each may cost a webhook `TIMEOUT`.
const SECONDS_PER_RETRY: u64 = 30;
/// Maximum number of seconds that cached credentials are accepted while the service that holds them fails.
const MAX_CACHED: u64 = 3_600;
/// Timeout of a read, within a webhook's time.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The source of a flow's credentials, and the result of the last reads.
pub struct AcceptedCredentials {
    flow: String,
    source: Option<SecretSource>,
    aws: Aws,
    clock: Clock,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    /// `None` before the first read, and after one that found a secret which is missing, forbidden or invalid.
    accepted: Option<Arc<SenderAuth>>,
    /// Time of the last read that succeeded, in Unix seconds.
    read_at: u64,
    /// Time of the last read, if it failed, in Unix seconds. There may be newer credentials then.
    failed_at: Option<u64>,
    reads: Reads,
}

/// The result of authenticating a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    Known,
    Unknown,
    /// The credentials can't be read now, and may have been changed.
    CannotTell,
}

impl Current {
    /// The result without another read, for a request that `matches` the cached credentials.
    fn verdict(&self, matches: bool, now: u64) -> Sender {
        match (&self.accepted, self.failed_at) {
            (None, _) => Sender::CannotTell,
            (Some(_), None) if matches => Sender::Known,
            (Some(_), None) => Sender::Unknown,
            (Some(_), Some(_)) if matches && now < self.read_at + MAX_CACHED => Sender::Known,
            (Some(_), Some(_)) => Sender::CannotTell,
        }
    }

    /// Whether the credentials are to be read again for such a request.
    fn is_to_read(&mut self, matches: bool, now: u64) -> bool {
        if self.accepted.is_some() && matches {
            return now >= self.read_at + MAX_AGE && self.failed_at.is_none_or(|at| now >= at + SECONDS_PER_RETRY);
        }
        self.reads.may_read(now)
    }
}

impl AcceptedCredentials {
    /// The accepted credentials of `flow`. Reads nothing yet. Without a source every webhook is refused.
    pub fn new(flow: &str, source: Option<SecretSource>, aws: Aws, clock: Clock) -> Self {
        Self { flow: flow.to_owned(), source, aws, clock, current: Mutex::default() }
    }

    pub fn is_configured(&self) -> bool {
        self.source.is_some()
    }

    /// Whether reading again can give other credentials.
    pub fn can_change(&self) -> bool {
        self.source.as_ref().is_some_and(SecretSource::can_change)
    }

    /// Authenticates the sender of a request.
    pub async fn identify(&self, request: &Presented<'_>, deadline: Instant) -> Sender {
        if !self.is_configured() {
            return Sender::Unknown;
        }
        let now = self.clock.unix_seconds();
        let matches = {
            let accepted = self.current().accepted.clone();
            accepted.is_some_and(|accepted| accepted.accepts(request))
        };
        {
            let mut current = self.current();
            let is_fixed = current.accepted.is_some() && !self.can_change();
            if is_fixed || !current.is_to_read(matches, now) {
                return current.verdict(matches, now);
            }
        }
        match self.read(deadline.min(Instant::now() + TIMEOUT)).await {
            Ok(accepted) if accepted.accepts(request) => Sender::Known,
            Ok(_) => Sender::Unknown,
            Err(_) => self.current().verdict(matches, now),
        }
    }

    /// What a caller without an accepted credential is asked for (`WWW-Authenticate`).
    pub fn challenges(&self) -> Vec<&'static str> {
        self.current().accepted.as_ref().map(|accepted| accepted.challenges()).unwrap_or_default()
    }

    /// Reads the credentials. A failure is logged.
    pub async fn read(&self, deadline: Instant) -> Result<Arc<SenderAuth>, SettingsError> {
        let read = match &self.source {
            None => Ok(SenderAuth::NotConfigured),
            Some(source) => parse(source, source.text(&self.aws, deadline).await),
        };
        let now = self.clock.unix_seconds();
        let mut current = self.current();
        match read {
            Ok(accepted) => {
                let accepted = Arc::new(accepted);
                current.accepted = Some(accepted.clone());
                current.read_at = now;
                current.failed_at = None;
                current.reads.succeeded();
                Ok(accepted)
            }
            Err(error) => {
                current.failed_at = Some(now);
                // Only an outage leaves the cached ones valid. An operator may have deleted the secret to lock a sender out.
                if !error.is_transient {
                    current.accepted = None;
                }
                self.report(&mut current, &error, now);
                Err(error)
            }
        }
    }

    /// Logs why credentials could not be read, once for each cause. A value of the environment makes the start fail, which logs it.
    fn report(&self, current: &mut Current, error: &SettingsError, now: u64) {
        if !self.can_change() || !current.reads.is_to_report(&error.to_string(), now) {
            return;
        }
        let SettingsError { variable, problem, .. } = error;
        if current.accepted.is_some() {
            tracing::warn!(
                variable,
                problem,
                flow = self.flow,
                "failed to read the senders' credentials; using the cached ones for at most an hour"
            );
        } else {
            tracing::error!(
                variable,
                problem,
                flow = self.flow,
                "the senders' credentials can't be used: fix their secret, which is read again; until then webhooks get 503"
            );
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(source: &SecretSource, text: Result<SecretString, AwsError>) -> Result<SenderAuth, SettingsError> {
    let unusable = |problem: &dyn std::fmt::Display| SettingsError::new(source.variable, problem);
    SenderAuth::parse(&text.map_err(|error| error.of_setting(source.variable))?).map_err(|problem| unusable(&problem))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::environment::Environment;

    /// A Secrets Manager that responds with the status and body that are set now.
    fn service() -> (String, Arc<Mutex<(u16, String)>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let response = Arc::new(Mutex::new((200, String::new())));
        let current = response.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 16_384]);
                let (status, body) = current.lock().unwrap().clone();
                let length = body.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
                );
            }
        });
        (url, response)
    }

    #[tokio::test]
    async fn a_deleted_or_forbidden_secret_locks_senders_out_and_an_outage_does_so_after_an_hour() {
        let (url, response) = service();
        let respond = |status: u16, body: &str| *response.lock().unwrap() = (status, body.to_owned());
        let seconds = Arc::new(AtomicU64::new(1_000_000));
        let now = seconds.clone();
        let clock = Clock::from_fn(move || UNIX_EPOCH + Duration::from_secs(now.load(Ordering::Relaxed)));
        let environment = Environment::from_fn(move |name| match name {
            "AWS_ENDPOINT_URL" => Some(url.clone()),
            "AWS_REGION" => Some("eu-central-1".to_owned()),
            "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => Some("local".to_owned()),
            _ => None,
        });
        let aws = Aws::new(crate::build_http_client(None).unwrap(), environment, clock.clone());
        let source = SecretSource::secret("SENDER_AUTH_SECRET_ID", "senders");
        let senders = AcceptedCredentials::new("default", Some(source), aws, clock);
        let headers = [("authorization".into(), "Bearer token".into())];
        let identify = async || {
            let now = seconds.load(Ordering::Relaxed);
            let request = Presented { headers: &headers, raw_query: "", body: Some(b"{}"), now };
            senders.identify(&request, Instant::now() + Duration::from_secs(5)).await
        };
        let list = r#"{"SecretString":"[{\"type\":\"bearer\",\"secret\":\"token\"}]"}"#;
        for final_failure in [r#"{"__type":"ResourceNotFoundException"}"#, r#"{"__type":"AccessDeniedException"}"#] {
            respond(200, list);
            seconds.fetch_add(60, Ordering::Relaxed);
            assert_eq!(identify().await, Sender::Known);
            respond(400, final_failure);
            seconds.fetch_add(299, Ordering::Relaxed);
            assert_eq!(identify().await, Sender::Known);
            seconds.fetch_add(1, Ordering::Relaxed);
            assert_eq!(identify().await, Sender::CannotTell);
            assert_eq!(identify().await, Sender::CannotTell);
        }
        respond(200, list);
        seconds.fetch_add(60, Ordering::Relaxed);
        assert_eq!(identify().await, Sender::Known);
        respond(500, "{}");
        for _ in 0..10 {
            seconds.fetch_add(359, Ordering::Relaxed);
            assert_eq!(identify().await, Sender::Known);
        }
        seconds.fetch_add(10, Ordering::Relaxed);
        assert_eq!(identify().await, Sender::CannotTell);
        respond(200, list);
        seconds.fetch_add(60, Ordering::Relaxed);
        assert_eq!(identify().await, Sender::Known);
    }

    /// Credentials that were read at 1,000 s.
    fn read() -> Current {
        Current { accepted: Some(Arc::new(SenderAuth::NotConfigured)), read_at: 1_000, ..Current::default() }
    }

    #[test]
    fn matching_credentials_are_read_again_after_five_minutes_and_then_every_thirty_seconds() {
        let mut current = read();
        assert!(!current.is_to_read(true, 1_299));
        assert!(current.is_to_read(true, 1_300));
        current.failed_at = Some(1_300);
        assert!(!current.is_to_read(true, 1_329));
        assert!(current.is_to_read(true, 1_330));
    }

    #[test]
    fn cached_credentials_are_accepted_for_an_hour_of_failed_reads_and_never_after_a_final_failure() {
        let mut current = read();
        assert_eq!(current.verdict(true, 90_000), Sender::Known, "no read has failed");
        current.failed_at = Some(1_600);
        assert_eq!(current.verdict(true, 4_599), Sender::Known);
        assert_eq!(current.verdict(false, 4_599), Sender::CannotTell, "there may be newer ones");
        assert_eq!(current.verdict(true, 4_600), Sender::CannotTell);
        current.accepted = None;
        assert_eq!(current.verdict(false, 1_601), Sender::CannotTell);
    }

    #[test]
    fn requests_without_a_match_cause_a_limited_number_of_reads() {
        for mut current in [read(), Current::default()] {
            let count = (0..100).filter(|_| current.is_to_read(false, 1_000)).count();
            assert_eq!(count, 5);
        }
    }
}
