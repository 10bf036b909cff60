//! A rejected event as it is stored, with the reason, so that it can be sent again once a mapping or an option is fixed.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::Unreadable;
use super::codec::{pack, unpack};
use crate::kind::Rejection;

/// Maximum number of characters of a name (a kind, a flow), of a time, and of a detail. A sender may control them, and a
/// message of limited size has to hold the body too. A flow's id has 64.
const MAX_NAME: usize = 256;
const MAX_TIME: usize = 64;
const MAX_DETAIL: usize = 2_000;

/// An event that can't be delivered, with what is stored about it.
#[derive(Debug, Clone)]
pub struct RejectedEvent<'a> {
    pub kind: Cow<'a, str>,
    pub flow: Cow<'a, str>,
    /// The word of the reason: another version may have other reasons.
    pub reason: Cow<'a, str>,
    pub detail: Cow<'a, str>,
    pub source: Source,
    body: Body<'a>,
    /// Time at which it was received, in RFC 3339.
    pub received_at: Cow<'a, str>,
    /// Whether `body` is only the first part.
    pub truncated: bool,
}

/// The body of a rejected event as it came, or the first part of it.
#[derive(Debug, Clone)]
enum Body<'a> {
    Raw(&'a [u8]),
    /// Base64 of the gzipped body, as it is stored.
    Packed(Cow<'a, str>),
}

/// The path through which a rejected event came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Webhook,
    Queue,
    /// A record of an event hub, read through its Kafka endpoint.
    Kafka,
    /// A parked message: the body is the parking envelope's JSON.
    Parking,
}

impl Source {
    /// Whether the first part of a body is enough. The sender of a webhook gets a response, and a hub retains its record. A
    /// message of a queue is deleted once it is handled, so a part of it would be all that is left.
    fn allows_truncation(self) -> bool {
        match self {
            Self::Webhook | Self::Kafka => true,
            Self::Queue | Self::Parking => false,
        }
    }
}

/// The JSON of a stored event.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    v: u32,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    flow: Cow<'a, str>,
    #[serde(borrow)]
    reason: Cow<'a, str>,
    #[serde(borrow)]
    detail: Cow<'a, str>,
    #[serde(borrow)]
    received_at: Cow<'a, str>,
    source: Source,
    /// Base64 of the gzipped body, or of its first part.
    #[serde(borrow)]
    body: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

const NOT_A_REJECTED_EVENT: Unreadable = Unreadable::Shape("a rejected event");

impl<'a> RejectedEvent<'a> {
    /// An event with its whole body.
    pub fn new(
        kind: &'a str,
        flow: &'a str,
        rejection: Rejection,
        source: Source,
        body: &'a [u8],
        received_at: impl Into<Cow<'a, str>>,
    ) -> Self {
        Self {
            kind: kind.into(),
            flow: flow.into(),
            reason: rejection.reason.word().into(),
            detail: rejection.detail,
            source,
            body: Body::Raw(body),
            received_at: received_at.into(),
            truncated: false,
        }
    }

    /// The JSON to store, with the body or the first part of it that fits `max_bytes`. `None` if a body that has to be
    /// complete does not fit.
    pub fn to_json(&self, max_bytes: usize) -> Option<String> {
        let whole = self.body().ok()?;
        let mut part: &[u8] = &whole;
        loop {
            let wire = Wire {
                v: 1,
                kind: limited(&self.kind, MAX_NAME),
                flow: limited(&self.flow, MAX_NAME),
                reason: self.reason.as_ref().into(),
                detail: limited(&self.detail, MAX_DETAIL),
                received_at: limited(&self.received_at, MAX_TIME),
                source: self.source,
                body: pack(part).into(),
                truncated: self.truncated || part.len() < whole.len(),
            };
            let json = serde_json::to_string(&wire).expect("texts always serialise");
            if json.len() <= max_bytes || part.is_empty() {
                return Some(json);
            }
            if !self.source.allows_truncation() {
                return None;
            }
            // The part that would fit if all of it compressed alike, minus a margin.
            part = &part[..part.len() / 100 * (max_bytes * 95 / json.len())];
        }
    }

    /// Reads what [`Self::to_json`] wrote.
    pub fn parse(json: &'a str) -> Result<Self, Unreadable> {
        let wire: Wire<'a> = serde_json::from_str(json).map_err(|_| NOT_A_REJECTED_EVENT)?;
        if wire.v != 1 {
            return Err(Unreadable::Version(wire.v));
        }
        let Wire { kind, flow, reason, detail, received_at, source, body, truncated, .. } = wire;
        Ok(Self { kind, flow, reason, detail, source, body: Body::Packed(body), received_at, truncated })
    }

    /// The body as it came, or the first part of it.
    ///
    /// # Errors
    /// Fails if the stored text is not base64 of gzipped data, or unpacks to more than 64 MB.
    pub fn body(&self) -> Result<Cow<'a, [u8]>, Unreadable> {
        match &self.body {
            Body::Raw(body) => Ok((*body).into()),
            Body::Packed(text) => unpack(text).map(Cow::Owned),
        }
    }
}

/// The text, or its first characters and an ellipsis.
fn limited(text: &str, max: usize) -> Cow<'_, str> {
    match text.char_indices().nth(max) {
        None => text.into(),
        Some(_) => {
            let end = text.char_indices().nth(max - 1).map_or(0, |(end, _)| end);
            format!("{}…", &text[..end]).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Reason;

    const NOW: &str = "2026-01-02T03:04:05.678Z";

    fn rejected<'a>(source: Source, flow: &'a str, detail: &str, body: &'a [u8]) -> RejectedEvent<'a> {
        let rejection = Rejection { reason: Reason::UnknownFlow, detail: detail.to_owned().into() };
        RejectedEvent::new("audience-change", flow, rejection, source, body, NOW)
    }

    /// Everything that is stored.
    fn fields<'e>(event: &'e RejectedEvent<'_>) -> ([&'e str; 5], Source, Vec<u8>, bool) {
        let RejectedEvent { kind, flow, reason, detail, source, received_at, truncated, .. } = event;
        ([kind, flow, reason, detail, received_at], *source, event.body().unwrap().into_owned(), *truncated)
    }

    #[test]
    fn an_event_is_read_as_it_was_stored() {
        for source in [Source::Webhook, Source::Queue, Source::Kafka, Source::Parking] {
            let event = rejected(source, "a \"flow\"", "callType: missing", b"\xff\0{}");
            let json = event.to_json(1_000).unwrap();
            assert_eq!(fields(&RejectedEvent::parse(&json).unwrap()), fields(&event));
        }
    }

    #[test]
    fn what_is_not_a_stored_event_is_unreadable_and_a_later_reason_is_not() {
        let json = rejected(Source::Webhook, "f", "", b"{}").to_json(1_000).unwrap();
        let changed = |from: &str, to: &str| RejectedEvent::parse(&json.replace(from, to)).map(drop);
        assert_eq!(changed(r#""v":1"#, r#""v":2"#), Err(Unreadable::Version(2)));
        assert_eq!(changed(r#""body":"#, r#""text":"#), Err(NOT_A_REJECTED_EVENT));
        assert_eq!(changed("unknown_flow", "later"), Ok(()));
        assert_eq!(RejectedEvent::parse("something else").unwrap_err(), NOT_A_REJECTED_EVENT);
        let odd = json.replace(r#""body":""#, r#""body":"!"#);
        assert_eq!(RejectedEvent::parse(&odd).unwrap().body(), Err(Unreadable::Encoding));
    }

    #[test]
    fn only_bodies_of_webhooks_and_hubs_are_truncated() {
        let body: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(100_000).collect();
        for (source, is_stored) in
            [(Source::Webhook, true), (Source::Kafka, true), (Source::Queue, false), (Source::Parking, false)]
        {
            let event = rejected(source, "f", "", &body);
            let part = event.to_json(50_000);
            assert_eq!(part.is_some(), is_stored, "{source:?}");
            if let Some(part) = part {
                let part = RejectedEvent::parse(&part).unwrap();
                assert!(part.truncated && body.starts_with(&part.body().unwrap()), "{source:?}");
            }
            let whole = event.to_json(150_000).unwrap();
            assert_eq!(fields(&RejectedEvent::parse(&whole).unwrap()), fields(&event), "{source:?}");
        }
    }

    #[test]
    fn every_field_has_a_maximum_length_so_that_an_event_fits() {
        // Six bytes each when they are escaped.
        let long = "\u{1}".repeat(200_000);
        let mut event = rejected(Source::Queue, &long, &long, b"{}");
        event.kind = long.as_str().into();
        event.received_at = long.as_str().into();
        let json = event.to_json(20_000).unwrap();
        assert!(json.len() < 20_000, "{}", json.len());
        let read = RejectedEvent::parse(&json).unwrap();
        assert_eq!((read.flow.chars().count(), read.detail.chars().count()), (MAX_NAME, MAX_DETAIL));
        assert!(read.flow.ends_with('…'));
        assert_eq!(*read.body().unwrap(), *b"{}");
        assert_eq!(limited("ä".repeat(MAX_NAME).as_str(), MAX_NAME), "ä".repeat(MAX_NAME));
    }
}
