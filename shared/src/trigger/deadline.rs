//! The time of an invocation: when it began, when Lambda would stop it, and which part of it is reserved.

use std::time::Duration;

use tokio::time::Instant;

/// Minimum part of a batch's time that is reserved for parking and responding. A tenth of the remaining time is reserved if that is
/// more.
const RESERVE: Duration = Duration::from_secs(2);
/// Part of the reserve that only the response may use; parking ends before it.
pub const RESPONDING: Duration = Duration::from_millis(500);

/// One invocation, without its event.
#[derive(Debug, Clone, Copy)]
pub struct Invocation<'a> {
    pub request_id: &'a str,
    /// The ARN that the caller invoked: an alias in it may say what the event does not.
    pub invoked_arn: &'a str,
    pub began: Instant,
    /// Time at which Lambda stops the function.
    pub time_up: Instant,
}

impl Invocation<'_> {
    /// Reports a function whose timeout is so short that no time is left to send. Its events are returned each time, until
    /// they end up in a dead-letter queue.
    pub fn check_time(&self, sending_ends: Instant) {
        if sending_ends <= self.began {
            tracing::error!(
                request_id = self.request_id,
                hint = "raise the function's timeout; 28 s is the template's",
                "the invocation began with less time than is reserved for the response; nothing is sent"
            );
        }
    }
}

/// The time at which the sending of a batch ends. The rest of the function's time is for parking and responding.
pub fn sending_ends(time_up: Instant) -> Instant {
    let now = Instant::now();
    let reserve = RESERVE.max(time_up.saturating_duration_since(now) / 10);
    time_up.checked_sub(reserve).unwrap_or(now)
}
