//! What an event kind is: the seam between `shared` and the functions. `shared` does not name a kind.

use std::borrow::Cow;

use serde::Deserialize;

use crate::json::{check_syntax, explain, unreadable_place};
use crate::message::Message;

/// An event kind: a name, an options type and one pure mapping.
#[derive(Debug)]
pub struct Kind<O> {
    /// The name of the function's folder, of its binary and of the first path segment of its webhooks.
    pub name: &'static str,
    /// Whether a body may be an array of events.
    pub arrays: bool,
    /// Checks options against what a request may hold (bytes), once at the start; the error names the option.
    pub check: fn(&O, usize) -> Result<(), String>,
    /// Maps one event. Pure: no clock, no I/O, no environment, no logging.
    pub map: for<'a> fn(Event<'a>, &'a O) -> Result<Mapped<'a>, Rejection>,
}

impl<O> Clone for Kind<O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O> Copy for Kind<O> {}

/// One incoming event.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// Private, so that a kind gets the text only from [`Event::read`]: what was never parsed is not sent.
    json: &'a str,
    /// The flow that the event was sent to.
    pub flow: &'a str,
    /// Headers of the webhook that brought it; none for a queue record.
    pub headers: &'a [Header<'a>],
    /// Maximum size of a message in a request, in bytes: see [`Message::fits`].
    pub max_bytes: usize,
}

/// Name and value.
pub type Header<'a> = (Cow<'a, str>, Cow<'a, str>);

impl<'a> Event<'a> {
    /// An event, its bytes as the sender sent them.
    pub fn new(json: &'a str, flow: &'a str, headers: &'a [Header<'a>], max_bytes: usize) -> Self {
        Self { json, flow, headers, max_bytes }
    }

    /// Reads the whole event, which has to be one JSON object. Returns it with its text.
    ///
    /// # Errors
    /// Rejects what is not valid JSON, not an object, or not a `T`.
    pub fn read<T: Deserialize<'a>>(&self) -> Result<(T, &'a str), Rejection> {
        if !self.json.starts_with('{') {
            return Err(Rejection::unmappable("expected a JSON object"));
        }
        match serde_json::from_str(self.json) {
            Ok(value) => Ok((value, self.json)),
            // A number beyond all types, or half a surrogate pair: the syntax is valid. The path has a `?` for a name.
            Err(error) if !error.is_data() && check_syntax(self.json).is_ok() => {
                let place = unreadable_place::<T>(self.json).filter(|place| !place.contains('?'));
                let problem = place.map(|place| format!("{place}: a value that can't be read"));
                Err(Rejection::unmappable(problem.unwrap_or_else(|| explain(&error))))
            }
            Err(error) => Err(Rejection::unmappable(explain(&error))),
        }
    }

    /// The value of a header, its name in any case.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_ref())
    }
}

/// The result of mapping an event.
#[derive(Debug, Default)]
pub struct Mapped<'a> {
    /// If there are none, that is a success: the event was filtered.
    pub messages: Vec<Message<'a>>,
    /// Stable words that are counted: an unknown status, a filter's reason.
    pub notes: Vec<&'static str>,
}

impl<'a> Mapped<'a> {
    /// Nothing to send, for a reason.
    pub fn filtered(reason: &'static str) -> Self {
        Self { messages: Vec::new(), notes: vec![reason] }
    }
}

/// Why an event can never be delivered. Names the place, never the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub reason: Reason,
    pub detail: Cow<'static, str>,
}

/// What is wrong with a rejected event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The event is not JSON, not UTF-8, or nested too deep.
    Unreadable,
    /// The event is readable, but not an event of the kind.
    Unmappable,
    /// The event is larger than a hub accepts.
    TooLarge,
    /// The event is for a flow that does not exist.
    UnknownFlow,
    /// The code has a bug; the event can be replayed once that is fixed.
    Bug,
    /// The hub refused the event although it was alone in its request.
    Refused,
    /// The event was parked for longer than the maximum age.
    Expired,
}

impl Reason {
    pub fn word(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Unmappable => "unmappable",
            Self::TooLarge => "too_large",
            Self::UnknownFlow => "unknown_flow",
            Self::Bug => "bug",
            Self::Refused => "refused",
            Self::Expired => "expired",
        }
    }
}

impl Rejection {
    /// An event that is not one of its kind, and the place that shows it.
    pub fn unmappable(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: Reason::Unmappable, detail: detail.into() }
    }

    /// An event of which the messages are larger than what can be sent.
    pub fn too_large(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: Reason::TooLarge, detail: detail.into() }
    }

    pub(crate) fn unreadable(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: Reason::Unreadable, detail: detail.into() }
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IgnoredAny;

    use super::*;

    /// What a kind that only copies bytes would send.
    fn copied(json: &str) -> Result<&str, Rejection> {
        Event::new(json, "f", &[], 1_000).read::<IgnoredAny>().map(|(_, text)| text)
    }

    #[test]
    fn a_kind_that_only_copies_bytes_never_gets_what_is_not_one_json_object() {
        assert_eq!(copied(r#"{"a" : 1.0}"#), Ok(r#"{"a" : 1.0}"#));
        for json in [r#"{"a":"#, r#"{"a":1}{"a":1}"#, r#"{"a":1} x"#, r#"{"a":1,}"#, "[1]", "1", ""] {
            let rejection = copied(json).unwrap_err();
            assert_eq!(rejection.reason, Reason::Unmappable, "{json}");
        }
    }
}
