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

    /// Stores copies. Returns for each whether it is stored, in their order.
    pub async fn keep(&self, rejects: &[Reject<'_>], deadline: Instant) -> Vec<bool> {
        let now = self.clock.rfc3339();
        let mut kept = vec![false; rejects.len()];
        let mut waiting: Vec<usize> = (0..rejects.len()).collect();
        // A queue that refuses a size gets smaller parts of the bodies, until its refusals have shown what it accepts.
        while !waiting.is_empty() {
            let max_bytes = self.queue.max_bytes();
            let envelopes: Vec<String> = waiting
                .iter()
                .map(|position| &rejects[*position])
                .map(|reject| envelope(reject, reject.received_at.unwrap_or(&now), max_bytes))
                .collect();
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

/// The envelope of a rejected event, with the part of its body that fits `max_bytes`.
fn envelope(reject: &Reject<'_>, received_at: &str, max_bytes: usize) -> String {
    let mut part = reject.body;
    loop {
        let envelope = Envelope {
            v: 1,
            kind: reject.kind.into(),
            flow: reject.flow.into(),
            reason: reject.rejection.reason.word().into(),
            detail: reject.rejection.detail.as_ref().into(),
            received_at: received_at.into(),
            source: reject.source,
            body: pack(part).into(),
            truncated: part.len() < reject.body.len(),
        };
        let envelope = serde_json::to_string(&envelope).expect("texts always serialise");
        if envelope.len() <= max_bytes || part.is_empty() {
            return envelope;
        }
        // As much as would fit if all of it packed alike, and a little less.
        part = &part[..part.len() / 100 * (max_bytes * 95 / envelope.len())];
    }
}
