//! The one way to retry a request: how many attempts, on which connection, for how long, and the waits between them. Its
//! caller decides what a failure means, and loops over [`Attempts::begin`] until it has a result.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::client::Via;

/// How requests of one kind are retried.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Maximum number of attempts. A lost connection gets one more at once, if the first attempt lost it.
    pub attempts: u32,
    /// Upper bound of the wait before the first retry; it doubles with each. The wait itself is random (full jitter).
    pub first_wait: Duration,
    pub max_wait: Duration,
    /// Fraction of the remaining time that the first attempt may use; the rest is for a retry.
    pub first_share: f64,
    /// Timeout of one attempt where more time is left.
    pub attempt_timeout: Duration,
    /// Minimum time for an attempt to begin.
    pub min_attempt: Duration,
    /// Returns a number from 0 to 1. Tests supply their own.
    pub random: fn() -> f64,
}

/// Values that fit most callers.
impl RetryPolicy {
    pub const DEFAULT: Self = Self {
        attempts: 3,
        first_wait: Duration::from_millis(100),
        max_wait: Duration::from_secs(2),
        first_share: 2.0 / 3.0,
        attempt_timeout: Duration::from_secs(15),
        min_attempt: Duration::ZERO,
        random: fastrand::f64,
    };

    /// A random wait before the next attempt, after so many were made.
    fn wait(&self, made: u32) -> Duration {
        let longest = self.first_wait.saturating_mul(1 << made.saturating_sub(1).min(16)).min(self.max_wait);
        longest.mul_f64((self.random)())
    }
}

/// One attempt.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    pub via: Via,
    /// Time at which the attempt ends without a response.
    pub bound: Instant,
}

/// The attempts of one request.
#[derive(Debug)]
pub struct Attempts {
    policy: RetryPolicy,
    deadline: Instant,
    /// Attempts that count.
    made: u32,
    /// Whether an attempt was made, also if it does not count: the next one is a retry.
    is_retry: bool,
    renewed: bool,
}

impl Attempts {
    pub fn new(policy: RetryPolicy, deadline: Instant) -> Self {
        Self { policy, deadline, made: 0, is_retry: false, renewed: false }
    }

    /// The next attempt; `None` when no time is left for it. A retry has a new connection: after a peer has forgotten its
    /// connections, the next pooled one is as dead as the first.
    pub fn begin(&mut self) -> Option<Attempt> {
        let now = Instant::now();
        let left = self.deadline.saturating_duration_since(now).min(self.policy.attempt_timeout);
        if left.is_zero() || left < self.policy.min_attempt {
            return None;
        }
        self.made += 1;
        let via = if self.is_retry { Via::NewConnection } else { Via::Pool };
        self.is_retry = true;
        let share =
            if self.made == 1 && self.policy.attempts > 1 { left.mul_f64(self.policy.first_share) } else { left };
        Some(Attempt { via, bound: now + share })
    }

    /// Whether the policy and the deadline allow another attempt after one that failed. If so, waits for it.
    /// `retry_after` is the wait that the peer asked for. After a lost connection the first retry is sent at once.
    pub async fn again(&mut self, is_lost: bool, retry_after: Option<Duration>) -> bool {
        let is_lost = is_lost && self.made == 1;
        let wait = match retry_after {
            _ if is_lost => Duration::ZERO,
            None => self.policy.wait(self.made),
            Some(retry_after) => retry_after.saturating_add(self.policy.wait(self.made)),
        };
        let is_last = self.made >= self.policy.attempts && !is_lost;
        if is_last || wait >= self.deadline.saturating_duration_since(Instant::now()) {
            return false;
        }
        sleep(wait).await;
        true
    }

    /// Whether credentials that were refused, or that expired, may be renewed: once.
    pub fn renew_once(&mut self) -> bool {
        !std::mem::replace(&mut self.renewed, true)
    }

    /// Does not count the last attempt: its outcome was not about the request.
    pub fn uncount(&mut self) {
        self.made = self.made.saturating_sub(1);
    }

    /// Whether the policy allows no more attempts.
    pub fn are_used_up(&self) -> bool {
        self.made >= self.policy.attempts
    }

    /// Starts over, for another request to the same peer.
    pub fn reset(&mut self) {
        *self = Self::new(self.policy, self.deadline);
    }

    /// Counts one attempt, if none is counted.
    pub fn count_one(&mut self) {
        self.made = self.made.max(1);
    }

    /// Leaves one attempt.
    pub fn leave_one(&mut self) {
        self.made = self.policy.attempts.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy { random: || 1.0, ..RetryPolicy::DEFAULT };

    fn attempts(policy: RetryPolicy, seconds: u64) -> Attempts {
        Attempts::new(policy, Instant::now() + Duration::from_secs(seconds))
    }

    #[tokio::test(start_paused = true)]
    async fn retries_have_new_connections_and_longer_waits_until_they_are_used_up() {
        let began = Instant::now();
        let mut attempts = attempts(POLICY, 9);
        let first = attempts.begin().unwrap();
        assert_eq!((first.via, first.bound - began), (Via::Pool, Duration::from_secs(6)));
        assert!(attempts.again(false, None).await);
        assert_eq!(began.elapsed(), Duration::from_millis(100));
        let second = attempts.begin().unwrap();
        assert_eq!((second.via, second.bound - began), (Via::NewConnection, Duration::from_secs(9)));
        assert!(attempts.again(true, None).await, "only the first loss is retried at once");
        assert_eq!(began.elapsed(), Duration::from_millis(300));
        assert_eq!(attempts.begin().unwrap().via, Via::NewConnection);
        assert!(!attempts.again(false, None).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_loss_is_retried_at_once_even_if_one_attempt_is_allowed() {
        let began = Instant::now();
        let mut attempts = attempts(RetryPolicy { attempts: 1, ..POLICY }, 9);
        assert_eq!(attempts.begin().unwrap().bound - began, Duration::from_secs(9), "nothing is left for a retry");
        assert!(attempts.again(true, Some(Duration::from_secs(60))).await);
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(attempts.begin().unwrap().via, Via::NewConnection);
        assert!(!attempts.again(true, None).await);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_waited_for_or_begun_beyond_the_deadline() {
        let mut attempts = attempts(POLICY, 2);
        attempts.begin().unwrap();
        assert!(!attempts.again(false, Some(Duration::from_secs(2))).await);
        assert!(attempts.again(false, Some(Duration::from_millis(1800))).await);
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(attempts.begin().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_are_renewed_once_and_that_does_not_count() {
        let mut attempts = attempts(POLICY, 9);
        attempts.begin().unwrap();
        assert!(attempts.renew_once() && !attempts.renew_once());
        attempts.uncount();
        for _ in 0..3 {
            assert_eq!(attempts.begin().unwrap().via, Via::NewConnection);
        }
        assert!(attempts.are_used_up());
        attempts.reset();
        assert_eq!(attempts.begin().unwrap().via, Via::Pool);
    }
}
