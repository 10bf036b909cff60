//! The time of an invocation: when it began, when Lambda would stop it, and which part of it is reserved.

use std::time::Duration;

use tokio::time::Instant;

/// What is left of the function's time for answering: this, or a tenth of the timeout, whichever is more.
const RESERVE: Duration = Duration::from_secs(2);
/// Of that, as much for the answer alone.
pub const ANSWERING: Duration = Duration::from_millis(500);

/// One invocation, beside its event.
#[derive(Debug, Clone, Copy)]
pub struct Invocation<'a> {
    pub request_id: &'a str,
    /// The ARN that the caller invoked: an alias in it may say what the event does not.
    pub invoked_arn: &'a str,
    pub began: Instant,
    /// When the function would be stopped.
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

/// When the sending of a batch ends: what is left of the function's time is for parking and answering.
pub fn sending_ends(time_up: Instant) -> Instant {
    let now = Instant::now();
    let reserve = RESERVE.max(time_up.saturating_duration_since(now) / 10);
    time_up.checked_sub(reserve).unwrap_or(now)
}
