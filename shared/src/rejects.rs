//! Rejected events: kept in a queue with the reason, so that they can be sent again once a mapping or an option is mended.

use std::borrow::Cow;
use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::event::Rejection;
use crate::parking::pack;
use crate::sqs::{Outgoing, Queue, Stored};

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

/// The queue that keeps them.
pub struct Rejects {
    queue: Queue,
    clock: Clock,
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

/// What was read is no reject envelope of a known version. It never holds any of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message is no reject envelope")]
pub struct NoEnvelope;

impl<'a> Envelope<'a> {
    pub fn parse(json: &'a str) -> Result<Self, NoEnvelope> {
        serde_json::from_str(json).ok().filter(|envelope: &Self| envelope.v == 1).ok_or(NoEnvelope)
    }

    /// The body as it came.
    pub fn body(&self) -> Result<Vec<u8>, NoEnvelope> {
        let packed = STANDARD.decode(self.body.as_bytes()).map_err(|_| NoEnvelope)?;
        let mut body = Vec::new();
        GzDecoder::new(packed.as_slice()).read_to_end(&mut body).map_err(|_| NoEnvelope)?;
        Ok(body)
    }
}

impl Rejects {
    pub fn new(queue: Queue, clock: Clock) -> Self {
        Self { queue, clock }
    }

    /// Stores copies. Returns for each whether it is stored, in their order. A copy of a queue's message counts only if it is
    /// complete.
    pub async fn keep(&self, rejects: &[Reject<'_>], deadline: Instant) -> Vec<bool> {
        let now = self.clock.rfc3339();
        let mut kept = vec![false; rejects.len()];
        let mut waiting: Vec<usize> = (0..rejects.len()).collect();
        // A queue that refuses a size gets smaller parts of the bodies, until its refusals have shown what it accepts.
        while !waiting.is_empty() {
            let max_bytes = self.queue.max_bytes();
            let mut envelopes: Vec<String> = Vec::with_capacity(waiting.len());
            waiting.retain(|position| {
                let reject = &rejects[*position];
                let Some(envelope) = envelope(reject, reject.received_at.unwrap_or(&now), max_bytes) else {
                    tracing::warn!(
                        kind = reject.kind,
                        reason = reject.rejection.reason.word(),
                        bytes = reject.body.len(),
                        "a rejected event is too large to be stored whole; its message is returned to its queue"
                    );
                    return false;
                };
                envelopes.push(envelope);
                true
            });
            let outgoing: Vec<Outgoing<'_>> = envelopes.iter().map(|envelope| Outgoing::new(envelope)).collect();
            let stored = self.queue.send(&outgoing, deadline).await;
            for (position, stored) in waiting.iter().zip(&stored) {
                kept[*position] = *stored == Stored::Yes;
            }
            if self.queue.max_bytes() == max_bytes {
                break;
            }
            let mut stored = stored.iter();
            waiting.retain(|_| stored.next() == Some(&Stored::TooLarge));
        }
        kept
    }
}

/// The envelope of a rejected event, with its body or the first part of it that fits `max_bytes`. `None` if a body that has to be
/// complete does not fit.
fn envelope(reject: &Reject<'_>, received_at: &str, max_bytes: usize) -> Option<String> {
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
    use crate::event::Reason;

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
