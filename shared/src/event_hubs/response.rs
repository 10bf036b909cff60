//! The meaning of the hub's responses: pure functions, so that each status is one line of a table and one line of a test.
//!
//! The reference lists 201, 401 and 500; the rest is from the sister Service Bus page and from public reports.

use std::borrow::Cow;
use std::time::Duration;

use crate::http::{TransportError, TransportKind};
use crate::kind::{Reason, Rejection};

/// What to do after a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// 201: stored.
    Delivered,
    /// 401: sign again, once.
    SignAgain,
    /// The request is invalid or too large: halve it; a single message is refused.
    Refused(Refusal),
    /// The events are valid; an operator has to fix something before they can be sent.
    Stop(Cause),
    /// Send again, after `wait` where the hub asked for one, else after the usual backoff.
    Retry { cause: Cause, wait: Option<Duration> },
}

/// Why a hub does not accept a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Malformed,
    TooLarge,
}

impl Refusal {
    /// The rejection of an event whose single message was refused.
    pub fn rejection(self) -> Rejection {
        match self {
            Self::TooLarge => Rejection::too_large("the event is larger than the hub accepts"),
            Self::Malformed => Rejection { reason: Reason::Refused, detail: "the event hub refuses the event".into() },
        }
    }
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

    /// What an operator should look at, if nothing more is known than the cause; `None` where time alone helps.
    pub fn hint(self) -> Option<&'static str> {
        match self {
            Self::Unauthorized => Some("the hub refuses the request: check the connection string"),
            Self::TokenExpired => Some(
                "the connection string's SharedAccessSignature has expired: replace it with a new one, or with a key",
            ),
            Self::Forbidden => Some(
                "check that the rule has the Send right, that the event hub is not disabled and that its quota is not used up",
            ),
            Self::NotFound => Some("check the namespace and the name of the event hub"),
            Self::BadPartition => Some("check that PARTITIONING=partitions:N has the hub's partition count"),
            Self::Unexpected => Some("the hub gave a response that is not documented: check the endpoint"),
            Self::Throttled | Self::Unavailable | Self::Unreachable | Self::ConnectionLost | Self::Timeout => None,
        }
    }
}

impl From<&TransportError> for Cause {
    fn from(error: &TransportError) -> Self {
        match error.kind {
            TransportKind::NoSuchHost
            | TransportKind::Certificate(_)
            | TransportKind::Tls
            | TransportKind::ProxyCredentials
            | TransportKind::Unreachable => Self::Unreachable,
            TransportKind::ConnectionLost => Self::ConnectionLost,
            TransportKind::Timeout => Self::Timeout,
            TransportKind::TooLong => Self::Unexpected,
        }
    }
}

/// The wait for a throttled request when the hub names none: its error text asks for 4 seconds.
const THROTTLE_WAIT: Duration = Duration::from_secs(4);

/// Classifies a response. `retry_after` is the header's value, `body` the start of the error document.
///
/// Throttling (a 429, or code 50002) concerns the pace of sending; every other 5xx is an outage.
pub fn classify(status: u16, retry_after: Option<Duration>, body: &str) -> Disposition {
    let throttled = matches!(status, 429 | 503) && Identifier::of(body) == Some(Identifier::Code("50002"));
    match status {
        201 => Disposition::Delivered,
        401 => Disposition::SignAgain,
        // The page of a web server, for example, is not about the event.
        400 if !is_the_hubs(body) => Disposition::Stop(Cause::Unexpected),
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

/// How an error document identifies its error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identifier<'b> {
    /// Five digits, such as 40103 or 50002.
    Code(&'b str),
    /// A single word, such as `ExpiredToken`.
    Word(&'b str),
}

impl<'b> Identifier<'b> {
    /// The code or word at its documented place. Digits elsewhere are something else, such as a part of the tracking id.
    pub fn of(body: &'b str) -> Option<Self> {
        let detail = body.split_once("<Detail>").map(|(_, detail)| detail.trim_start());
        let after = |mark: &str| body.split_once(mark).map(|(_, rest)| rest);
        let code = detail
            .and_then(code_at_start)
            .or_else(|| code_at_start(after("SubCode=")?))
            .or_else(|| code_at_start(after("Error code")?.trim_start().strip_prefix(':')?.trim_start()));
        if let Some(code) = code {
            return Some(Self::Code(code));
        }
        // The text after the tracking id is not about the error.
        let text = detail?.split("TrackingId:").next()?;
        let (word, _) = text.split_once(':')?;
        (!word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphabetic())).then_some(Self::Word(word))
    }
}

fn code_at_start(text: &str) -> Option<&str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (digits == 5).then(|| &text[..digits])
}

/// Whether a body is the hub's error document, and not, for example, the page of a web server.
fn is_the_hubs(body: &str) -> bool {
    body.contains("<Error>") || body.contains("<Error ")
}

/// What an operator should look at after a response, according to its text; `None` if only the cause is known.
pub fn hint(status: u16, body: &str, disposition: Disposition) -> Option<(Cause, Cow<'static, str>)> {
    let cause = match disposition {
        Disposition::SignAgain => Cause::Unauthorized,
        Disposition::Stop(cause @ Cause::Forbidden) => cause,
        _ => return None,
    };
    let identifier = Identifier::of(body);
    let known: Option<&'static str> = match identifier {
        Some(Identifier::Code("40103") | Identifier::Word("InvalidSignature")) => {
            Some("the hub refuses the key: check the connection string's key name and key")
        }
        Some(Identifier::Word("ExpiredToken")) => Some(
            "the hub refuses the token as expired: check the clock of this machine, and a SharedAccessSignature in the connection string",
        ),
        Some(Identifier::Word("InvalidAudience")) => {
            Some("the token is for another resource: check the namespace and the name of the event hub")
        }
        Some(Identifier::Word("LocalAuthDisabled")) => {
            Some("the namespace does not accept shared access keys: enable its local authentication")
        }
        Some(Identifier::Word("MissingToken")) => Some(
            "the hub did not receive the Authorization header: check the proxies between this function and the hub",
        ),
        _ if says(body, "ip has been prevented") => Some("the namespace refuses this network: check its network rules"),
        _ if says(body, "claim") => {
            Some("check that the connection string's rule has the Send right on this event hub")
        }
        _ if says(body, "disabled") => Some("the event hub is disabled: enable it"),
        _ if says(body, "quota") => Some("the quota of the event hub or of the namespace is used up"),
        _ => None,
    };
    if let Some(known) = known {
        return Some((cause, known.into()));
    }
    let identified = match identifier? {
        Identifier::Code(code) => format!("code {code}"),
        Identifier::Word(word) => word.chars().take(MAX_WORD).collect(),
    };
    Some((
        cause,
        format!("the hub refuses the request with {status}, {identified}: look it up in Azure's documentation").into(),
    ))
}

/// Maximum number of characters of an unknown word that a hint repeats.
const MAX_WORD: usize = 64;

fn says(body: &str, words: &str) -> bool {
    body.to_ascii_lowercase().contains(words)
}

/// Whether a 403 means that a message is too large. It can also mean a missing right or an exceeded quota, and only its text
/// shows which. In doubt the event is valid.
fn says_too_large(body: &str) -> bool {
    let body = body.to_ascii_lowercase();
    let about_size = ["too large", "message size", "messagesizeexceeded"].iter().any(|words| body.contains(words))
        || (body.contains("message") && body.contains("exceeds the limit"));
    about_size && !body.contains("quota")
}

#[cfg(test)]
mod tests {
    use super::*;
    use Disposition::{Delivered, Refused, Retry, SignAgain, Stop};

    const TRACKING: &str = "TrackingId:0a80044d-e087-446f-bd69-4a08e9a34ce4_G31, SystemTracker:contoso.servicebus.windows.net:profiles, Timestamp:2026-05-01T10:00:00";

    fn error(status: u16, detail: &str) -> String {
        format!("<Error><Code>{status}</Code><Detail>{detail} {TRACKING}</Detail></Error>")
    }

    #[test]
    fn errors_are_identified_by_a_code_or_word_at_its_documented_place() {
        use Identifier::{Code, Word};
        for (detail, expected) in [
            ("40103: Invalid authorization token signature.", Some(Code("40103"))),
            ("Unauthorized. SubCode=40103.", Some(Code("40103"))),
            ("The entity is being throttled. Error code : 50002. Please wait 4 seconds.", Some(Code("50002"))),
            (
                "ExpiredToken: The token is expired. Expiration time: '2021-06-07 16:16:46Z'.",
                Some(Word("ExpiredToken")),
            ),
            ("InvalidSignature: The token has an invalid signature.", Some(Word("InvalidSignature"))),
            ("InvalidAudience: Invalid authorization token audience.", Some(Word("InvalidAudience"))),
            ("Ip has been prevented to connect to the endpoint.", None),
            ("401034: too many digits.", None),
            ("The request 12345 failed.", None),
            ("", None),
        ] {
            assert_eq!(Identifier::of(&error(401, detail)), expected, "{detail}");
        }
        for (body, expected) in [
            ("Error code : 50002. Please wait 4 seconds and try again.", Some(Code("50002"))),
            ("<html>12345 ExpiredToken: no</html>", None),
            ("<Error><Code>40103</Code></Error>", None),
            ("", None),
        ] {
            assert_eq!(Identifier::of(body), expected, "{body}");
        }
    }

    #[test]
    fn a_hint_follows_from_the_hubs_error_text() {
        for (status, detail, named) in [
            (401, "40103: Invalid authorization token signature.", Some("key name and key")),
            (401, "InvalidSignature: The token has an invalid signature.", Some("key name and key")),
            (401, "ExpiredToken: The token is expired.", Some("clock")),
            (401, "InvalidAudience: Invalid authorization token audience.", Some("namespace and the name")),
            (
                401,
                "LocalAuthDisabled: SAS authentication has been disabled for the namespace.",
                Some("local authentication"),
            ),
            (401, "MissingToken: The authorization header was not found.", Some("Authorization header")),
            (401, "Ip has been prevented to connect to the endpoint.", Some("network rules")),
            (401, "Unauthorized access. 'Send' claim(s) are required.", Some("Send right")),
            (401, "40199: Something new.", Some("401, code 40199")),
            (401, "NewWord: Something new.", Some("401, NewWord")),
            (401, "Something new", None),
            (403, "Unauthorized access. 'Send' claim(s) are required.", Some("Send right")),
            (403, "The quota is exceeded.", Some("quota")),
            (400, "Entity 'hub' is currently disabled.", Some("disabled")),
            (404, "40400: Endpoint not found.", None),
            (500, "50000: internal", None),
        ] {
            let body = error(status, detail);
            let hint = hint(status, &body, classify(status, None, &body)).map(|(_, hint)| hint);
            match named {
                Some(named) => assert!(hint.as_ref().is_some_and(|hint| hint.contains(named)), "{detail}: {hint:?}"),
                None => assert_eq!(hint, None, "{detail}"),
            }
            let blames_the_key = hint.is_some_and(|hint| hint.contains("key name"));
            assert_eq!(blames_the_key, named == Some("key name and key"), "{detail}");
        }
    }

    #[test]
    fn a_tracking_id_does_not_make_an_outage_a_throttled_request() {
        let body = error(503, "The server is busy.").replace("0a80044d", "0a50002d");
        assert_eq!(classify(503, None, &body), Retry { cause: Cause::Unavailable, wait: None });
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
            (401, None, detail("40103: Invalid authorization token signature."), SignAgain),
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
