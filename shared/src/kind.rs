//! What an event kind is: the seam between `shared` and the functions. `shared` knows no kind by name.

use std::borrow::Cow;

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
    /// One JSON value, its bytes as they came. That its syntax is valid is for the kind to see, which reads all of it anyway.
    pub json: &'a str,
    /// The flow it came by.
    pub flow: &'a str,
    /// Headers of the webhook that brought it; none for a queue record.
    pub headers: &'a [Header<'a>],
    /// What a message may take of a request, in bytes: see [`Message::fits`].
    pub max_bytes: usize,
}

/// Name and value.
pub type Header<'a> = (Cow<'a, str>, Cow<'a, str>);

impl<'a> Event<'a> {
    /// The value of a header, its name in any case.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_ref())
    }
}

/// What an event became.
#[derive(Debug, Default)]
pub struct Mapped<'a> {
    /// None is a success: the event was filtered.
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
    /// Not JSON, not UTF-8, nested too deep.
    Unreadable,
    /// Readable, but not an event of the kind.
    Unmappable,
    /// Larger than a hub takes.
    TooLarge,
    /// For a flow that does not exist.
    UnknownFlow,
    /// Our own mistake, not the event's: it may be sent again once that is mended.
    Bug,
    /// Refused by the hub although it was alone in its request.
    Refused,
    /// Parked for longer than the maximum age.
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
    /// An event that is no event of its kind, and where that shows.
    pub fn unmappable(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: Reason::Unmappable, detail: detail.into() }
    }

    /// An event that makes more than can be sent.
    pub fn too_large(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: Reason::TooLarge, detail: detail.into() }
    }

    pub(crate) fn unreadable(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: Reason::Unreadable, detail: detail.into() }
    }
}
