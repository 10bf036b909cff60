//! What the hub's answers mean: pure, so that each status is one line of a table and one line of a test.
//!
//! The reference lists 201, 401 and 500; the rest is from the sister Service Bus page and from public reports.

use std::time::Duration;

/// What to do after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// 201: stored.
    Delivered,
    /// 401: sign anew, once.
    SignAnew,
    /// The request is wrong or too large: halve it; a single message is refused.
    Refused(Refusal),
    /// The events are fine; an operator has to mend something before they can be sent.
    Stop(Cause),
    /// Send again, after `wait` where the hub asked for one, else after the usual backoff.
    Retry { cause: Cause, wait: Option<Duration> },
}

/// Why a hub does not take a request as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Malformed,
    TooLarge,
}

/// Why events could not be delivered now. The words are stable: metrics and envelopes carry them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    Unauthorized,
    TokenExpired,
    Forbidden,
    NotFound,
    BadPartition,
    Throttled,
    Unavailable,
    Unreachable,
    ConnectionLost,
    Timeout,
    Unexpected,
}

impl Cause {
    pub fn word(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::TokenExpired => "token_expired",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::BadPartition => "bad_partition",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Unreachable => "unreachable",
            Self::ConnectionLost => "connection_lost",
            Self::Timeout => "timeout",
            Self::Unexpected => "unexpected",
        }
    }

    /// Whether other events for the same hub would fail in the same way.
    pub fn is_the_hubs(self) -> bool {
        self != Self::BadPartition
    }

    /// Whether the hub is out of order, in contrast to one that responds and refuses.
    pub fn is_outage(self) -> bool {
        matches!(self, Self::Unavailable | Self::Unreachable | Self::ConnectionLost | Self::Timeout)
    }

    /// Whether the host as a whole does not respond, so that every hub of it is affected.
    pub fn is_the_hosts(self) -> bool {
        matches!(self, Self::Unreachable | Self::ConnectionLost | Self::Timeout)
    }

    /// What an operator should look at; `None` where time heals.
    pub fn hint(self) -> Option<&'static str> {
        match self {
            Self::Unauthorized => Some("the hub refuses the key: check the connection string's key name and key"),
            Self::TokenExpired => {
                Some("the connection string's SharedAccessSignature has expired: put in a new one, or a key")
            }
            Self::Forbidden => Some(
                "check that the rule has the Send right, that the event hub is not disabled and that its quota is not used up",
            ),
            Self::NotFound => Some("check the namespace and the name of the event hub"),
            Self::BadPartition => Some("check that PARTITIONING=partitions:N has the hub's partition count"),
            Self::Unexpected => Some("the hub gave an answer that is not documented: check the endpoint"),
            Self::Throttled | Self::Unavailable | Self::Unreachable | Self::ConnectionLost | Self::Timeout => None,
        }
    }
}

/// The wait for a throttled request when the hub names none: its error text asks for 4 seconds.
const THROTTLE_WAIT: Duration = Duration::from_secs(4);

/// Classifies a response. `retry_after` is the header's value, `body` the start of the error document.
///
/// Throttling (a 429, or code 50002) concerns the pace of sending; every other 5xx is an outage.
pub fn classify(status: u16, retry_after: Option<Duration>, body: &str) -> Disposition {
    let throttled = matches!(status, 429 | 503) && body.contains("50002");
    match status {
        201 => Disposition::Delivered,
        401 => Disposition::SignAnew,
        // A web server's page, say, is not about the event.
        400 if !body.contains("<Error>") => Disposition::Stop(Cause::Unexpected),
        400 if says(body, "disabled") => Disposition::Stop(Cause::Forbidden),
        400 if says(body, "partition is invalid") => Disposition::Stop(Cause::BadPartition),
        400 => Disposition::Refused(Refusal::Malformed),
        413 => Disposition::Refused(Refusal::TooLarge),
        403 if says_too_large(body) => Disposition::Refused(Refusal::TooLarge),
        403 => Disposition::Stop(Cause::Forbidden),
        404 | 410 => Disposition::Stop(Cause::NotFound),
        _ if throttled => {
            Disposition::Retry { cause: Cause::Throttled, wait: Some(retry_after.unwrap_or(THROTTLE_WAIT)) }
        }
        429 => Disposition::Retry { cause: Cause::Throttled, wait: retry_after },
        408 => Disposition::Retry { cause: Cause::Timeout, wait: retry_after },
        500 | 502..=504 => Disposition::Retry { cause: Cause::Unavailable, wait: retry_after },
        _ => Disposition::Stop(Cause::Unexpected),
    }
}

/// The hub's own code in an error document: five digits, such as 40103 or 50002.
pub fn own_code(body: &str) -> Option<&str> {
    body.split(|character: char| !character.is_ascii_digit()).find(|digits| digits.len() == 5)
}

fn says(body: &str, words: &str) -> bool {
    body.to_ascii_lowercase().contains(words)
}

/// A 403 has three meanings: no right, quota exceeded, message too large. Only its text tells; in doubt the event is
/// fine.
fn says_too_large(body: &str) -> bool {
    let body = body.to_ascii_lowercase();
    let about_size = ["too large", "message size", "messagesizeexceeded"].iter().any(|words| body.contains(words))
        || (body.contains("message") && body.contains("exceeds the limit"));
    about_size && !body.contains("quota")
}

#[cfg(test)]
mod tests {
    use super::*;
    use Disposition::{Delivered, Refused, Retry, SignAnew, Stop};

    #[test]
    fn the_hubs_own_code_is_found() {
        for (body, code) in [
            (
                "<Error><Code>401</Code><Detail>40103: Invalid. TrackingId:5c1e_G31, Timestamp:2026-05-01T10</Detail></Error>",
                Some("40103"),
            ),
            ("The entity is being throttled. Error code : 50002. Please wait 4 seconds and try again.", Some("50002")),
            ("<Error><Code>401</Code><Detail>InvalidSignature</Detail></Error>", None),
        ] {
            assert_eq!(own_code(body), code);
        }
    }

    #[test]
    fn each_status_ends_as_documented() {
        let usual = |cause| Retry { cause, wait: None };
        let throttled = |seconds| Retry { cause: Cause::Throttled, wait: Some(Duration::from_secs(seconds)) };
        let after = Some(Duration::from_secs(7));
        let detail = |text: &str| format!("<Error><Code>0</Code><Detail>{text}</Detail></Error>");
        for (status, retry_after, body, expected) in [
            (201, None, String::new(), Delivered),
            (200, None, String::new(), Stop(Cause::Unexpected)),
            (307, None, String::new(), Stop(Cause::Unexpected)),
            (400, None, detail("40000: The request is malformed."), Refused(Refusal::Malformed)),
            (400, None, String::new(), Stop(Cause::Unexpected)),
            (400, None, "<html>Bad Request - Invalid Hostname</html>".to_owned(), Stop(Cause::Unexpected)),
            (400, None, detail("Entity 'hub' is currently disabled."), Stop(Cause::Forbidden)),
            (400, None, detail("The specified partition is invalid."), Stop(Cause::BadPartition)),
            (401, None, detail("40103: Invalid authorization token signature."), SignAnew),
            (403, None, detail("Unauthorized access. 'Send' claim(s) are required."), Stop(Cause::Forbidden)),
            (403, None, detail("The maximum entity size has been reached or exceeded: quota."), Stop(Cause::Forbidden)),
            (403, None, detail("Quota: the number of active messages exceeds the limit."), Stop(Cause::Forbidden)),
            (403, None, detail("The message is Too Large."), Refused(Refusal::TooLarge)),
            (403, None, detail("The received message exceeds the limit (1046528 bytes)."), Refused(Refusal::TooLarge)),
            (404, None, detail("40400: Endpoint not found."), Stop(Cause::NotFound)),
            (408, None, String::new(), usual(Cause::Timeout)),
            (410, None, String::new(), Stop(Cause::NotFound)),
            (413, None, String::new(), Refused(Refusal::TooLarge)),
            (429, None, String::new(), usual(Cause::Throttled)),
            (429, after, String::new(), throttled(7)),
            (429, None, detail("Error code : 50002. Please wait 4 seconds and try again."), throttled(4)),
            (500, None, String::new(), usual(Cause::Unavailable)),
            (502, None, String::new(), usual(Cause::Unavailable)),
            (503, None, detail("Error code : 50002. Please wait 4 seconds and try again."), throttled(4)),
            (503, after, detail("Error code : 50002."), throttled(7)),
            (503, None, detail("50004: The server is busy."), usual(Cause::Unavailable)),
            (503, after, String::new(), Retry { cause: Cause::Unavailable, wait: after }),
            (504, None, String::new(), usual(Cause::Unavailable)),
            (599, None, String::new(), Stop(Cause::Unexpected)),
        ] {
            assert_eq!(classify(status, retry_after, &body), expected, "{status} {body}");
        }
    }
}
