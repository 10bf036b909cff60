//! A rejected event as it is stored, with the reason, so that it can be sent again once a mapping or an option is fixed.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::codec::{pack, unpack};
use crate::kind::Rejection;

/// Maximum number of characters of a name (a kind, a flow), of a time, and of a detail. A sender may control them, and a
/// message of limited size has to hold the body too. A flow's id has 64.
const MAX_NAME: usize = 256;
const MAX_TIME: usize = 64;
const MAX_DETAIL: usize = 2_000;

/// An event that can't be delivered.
#[derive(Debug, Clone)]
pub struct Reject<'a> {
    pub kind: &'a str,
    pub flow: &'a str,
    pub rejection: Rejection,
    pub source: Source,
    /// As it came.
    pub body: &'a [u8],
    /// When, in RFC 3339; `None` is now.
    pub received_at: Option<&'a str>,
}

/// Which way a rejected event had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Webhook,
    Queue,
    /// A record of an event hub, read by its Kafka endpoint.
    Kafka,
    /// It was mapped and parked: its body is the parking envelope's JSON.
    Parking,
}

impl Source {
    /// Whether the first part of a body is enough. The sender of a webhook gets a response, and a hub retains its record. A message
    /// of a queue is deleted once it is handled, so a part of it would be all that is left.
    fn allows_truncation(self) -> bool {
        match self {
            Self::Webhook | Self::Kafka => true,
            Self::Queue | Self::Parking => false,
        }
    }
}

/// A rejected event as the queue holds it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope<'a> {
    v: u32,
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    #[serde(borrow)]
    pub flow: Cow<'a, str>,
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
    #[serde(borrow)]
    pub detail: Cow<'a, str>,
    /// RFC 3339.
    #[serde(borrow)]
    pub received_at: Cow<'a, str>,
    pub source: Source,
    /// Base64 of the gzipped body, or of its first part.
    #[serde(borrow)]
    body: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// What was read is not a reject envelope of a known version. It never holds any of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message is not a reject envelope")]
pub struct NotAnEnvelope;

impl<'a> Envelope<'a> {
    pub fn parse(json: &'a str) -> Result<Self, NotAnEnvelope> {
        serde_json::from_str(json).ok().filter(|envelope: &Self| envelope.v == 1).ok_or(NotAnEnvelope)
    }

    /// The body as it came.
    pub fn body(&self) -> Result<Vec<u8>, NotAnEnvelope> {
        unpack(&self.body).map_err(|_| NotAnEnvelope)
    }
}

/// The envelope of a rejected event, with its body or the first part of it that fits `max_bytes`. `None` if a body that has to be
/// complete does not fit.
pub fn envelope(reject: &Reject<'_>, received_at: &str, max_bytes: usize) -> Option<String> {
    let mut part = reject.body;
    loop {
        let envelope = Envelope {
            v: 1,
            kind: limited(reject.kind, MAX_NAME),
            flow: limited(reject.flow, MAX_NAME),
            reason: reject.rejection.reason.word().into(),
            detail: limited(&reject.rejection.detail, MAX_DETAIL),
            received_at: limited(received_at, MAX_TIME),
            source: reject.source,
            body: pack(part).into(),
            truncated: part.len() < reject.body.len(),
        };
        let envelope = serde_json::to_string(&envelope).expect("texts always serialise");
        if envelope.len() <= max_bytes || part.is_empty() {
            return Some(envelope);
        }
        if !reject.source.allows_truncation() {
            return None;
        }
        // As much as would fit if all of it packed alike, and a little less.
        part = &part[..part.len() / 100 * (max_bytes * 95 / envelope.len())];
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

    fn reject<'a>(source: Source, flow: &'a str, detail: String, body: &'a [u8]) -> Reject<'a> {
        let rejection = Rejection { reason: Reason::UnknownFlow, detail: detail.into() };
        Reject { kind: "audience-change", flow, rejection, source, body, received_at: None }
    }

    #[test]
    fn only_bodies_of_webhooks_and_hubs_are_truncated() {
        let body: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(100_000).collect();
        for (source, is_kept) in
            [(Source::Webhook, true), (Source::Kafka, true), (Source::Queue, false), (Source::Parking, false)]
        {
            let reject = reject(source, "f", String::new(), &body);
            let part = envelope(&reject, "now", 50_000);
            assert_eq!(part.is_some(), is_kept, "{source:?}");
            assert!(part.is_none_or(|part| Envelope::parse(&part).unwrap().truncated));
            let whole = envelope(&reject, "now", 150_000).unwrap();
            assert_eq!(Envelope::parse(&whole).unwrap().body().unwrap(), body, "{source:?}");
        }
    }

    #[test]
    fn every_field_has_a_maximum_length_so_that_a_reject_fits() {
        // Six bytes each when they are escaped.
        let long = "\u{1}".repeat(200_000);
        let mut reject = reject(Source::Queue, &long, long.clone(), b"{}");
        reject.kind = &long;
        let envelope = envelope(&reject, &long, 20_000).unwrap();
        assert!(envelope.len() < 20_000, "{}", envelope.len());
        let envelope = Envelope::parse(&envelope).unwrap();
        assert_eq!((envelope.flow.chars().count(), envelope.detail.chars().count()), (MAX_NAME, MAX_DETAIL));
        assert!(envelope.flow.ends_with('…'));
        assert_eq!(envelope.body().unwrap(), b"{}");
        assert_eq!(limited("ä".repeat(MAX_NAME).as_str(), MAX_NAME), "ä".repeat(MAX_NAME));
    }
}
