//! Parked messages: stored in a queue with everything that is needed to deliver them later, but never a key.

use std::borrow::Cow;
use std::io::{Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::answer::Cause;
use crate::clock::Clock;
use crate::connection::Destination;
use crate::message::{Body, Message, Properties};
use crate::sqs::{MAX_BYTES, Queue};

/// Envelopes are packed up to this, so that a batch of them fits redelivery's memory. One large message may exceed it.
const TARGET_BYTES: usize = 1_000_000;
/// An envelope leaves room for what is put around it should it have to be rejected.
const MAX_PACKED: usize = MAX_BYTES - 2048;
/// More is not unpacked: nothing that was parked comes near it.
const MAX_UNPACKED: u64 = 64_000_000;

/// Messages of one flow, for one hub.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope<'a> {
    v: u32,
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    #[serde(borrow)]
    pub flow: Cow<'a, str>,
    #[serde(borrow)]
    pub hub: Cow<'a, str>,
    /// With its port, if that is not the usual one.
    #[serde(borrow)]
    pub host: Cow<'a, str>,
    /// Of the secret that holds the connection string.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub secret_id: Option<Cow<'a, str>>,
    /// RFC 3339.
    #[serde(borrow)]
    pub first_seen: Cow<'a, str>,
    /// Why they could not be delivered.
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
    #[serde(borrow)]
    messages: Vec<Parked<'a>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Parked<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    subject: Cow<'a, str>,
    /// A string.
    #[serde(borrow)]
    body: &'a RawValue,
    #[serde(borrow)]
    properties: &'a RawValue,
}

/// Why an envelope can't be read. It never holds any of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("the record is no envelope: expected base64 of gzipped JSON")]
    Encoding,
    #[error("the record's JSON is no parking envelope")]
    Shape,
    #[error("version {0} of the envelope is not known; deploy all functions from one version")]
    Version(u32),
}

impl<'a> Envelope<'a> {
    /// Reads what [`unpack`] gave.
    pub fn parse(json: &'a str) -> Result<Self, EnvelopeError> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        match serde_json::from_str(json) {
            Ok(Version { v: 1 }) => serde_json::from_str(json)
                .ok()
                .filter(|envelope: &Self| envelope.messages.iter().all(|parked| is_string(parked.body)))
                .ok_or(EnvelopeError::Shape),
            Ok(Version { v }) => Err(EnvelopeError::Version(v)),
            Err(_) => Err(EnvelopeError::Shape),
        }
    }

    /// The messages as they were before they were parked.
    pub fn messages(&self) -> impl Iterator<Item = Message<'_>> {
        self.messages.iter().map(|parked| Message {
            id: parked.id.clone().into_owned(),
            subject: parked.subject.as_ref().into(),
            body: Body::from_json_string(parked.body).expect("looked at when the envelope was read"),
            properties: Properties::from_object(parked.properties),
        })
    }

    /// The same envelope with one of its messages alone, as JSON.
    pub fn with_message(&self, position: usize) -> String {
        let one = Envelope {
            v: self.v,
            kind: self.kind.as_ref().into(),
            flow: self.flow.as_ref().into(),
            hub: self.hub.as_ref().into(),
            host: self.host.as_ref().into(),
            secret_id: self.secret_id.as_deref().map(Cow::Borrowed),
            first_seen: self.first_seen.as_ref().into(),
            reason: self.reason.as_ref().into(),
            messages: self.messages.get(position).map(Parked::borrowed).into_iter().collect(),
        };
        to_json(&one)
    }
}

impl Parked<'_> {
    fn borrowed(&self) -> Parked<'_> {
        Parked {
            id: self.id.as_ref().into(),
            subject: self.subject.as_ref().into(),
            body: self.body,
            properties: self.properties,
        }
    }
}

fn is_string(json: &RawValue) -> bool {
    json.get().starts_with('"')
}

fn to_json(envelope: &Envelope<'_>) -> String {
    serde_json::to_string(envelope).expect("texts and raw JSON always serialise")
}

/// Gzip, then base64: a queue refuses control characters, and an escaped event of a megabyte would not fit its limit.
pub fn pack(bytes: &[u8]) -> String {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    let packed = gzip.write_all(bytes).and_then(|()| gzip.finish());
    STANDARD.encode(packed.expect("a Vec takes every write"))
}

/// The JSON that a queue's message holds.
pub fn unpack(text: &str) -> Result<String, EnvelopeError> {
    let packed = STANDARD.decode(text.trim_ascii()).map_err(|_| EnvelopeError::Encoding)?;
    let mut json = String::new();
    GzDecoder::new(packed.as_slice())
        .take(MAX_UNPACKED)
        .read_to_string(&mut json)
        .map_err(|_| EnvelopeError::Encoding)?;
    Ok(json)
}

/// The queue that messages wait in.
pub struct Parking {
    queue: Queue,
    clock: Clock,
}

impl Parking {
    pub fn new(queue: Queue, clock: Clock) -> Self {
        Self { queue, clock }
    }

    /// Parks messages of one flow; tells of each whether it is stored, in their order.
    pub async fn park(
        &self,
        kind: &str,
        flow: &str,
        destination: &Destination,
        reason: Cause,
        messages: &[&Message<'_>],
        deadline: Instant,
    ) -> Vec<bool> {
        let first_seen = self.clock.rfc3339();
        let envelope = |messages: &[&Message<'_>]| {
            pack(
                to_json(&Envelope {
                    v: 1,
                    kind: kind.into(),
                    flow: flow.into(),
                    hub: destination.hub.as_str().into(),
                    host: destination.host.as_str().into(),
                    secret_id: destination.secret_id.as_deref().map(Cow::Borrowed),
                    first_seen: first_seen.as_str().into(),
                    reason: reason.word().into(),
                    messages: messages.iter().map(|message| parked(message)).collect(),
                })
                .as_bytes(),
            )
        };
        // Last first, so that the first comes off the end.
        let mut chunks: Vec<&[&Message<'_>]> = chunks(messages);
        chunks.reverse();
        let (mut bodies, mut lengths) = (Vec::new(), Vec::new());
        while let Some(chunk) = chunks.pop() {
            let body = envelope(chunk);
            if body.len() > MAX_PACKED && chunk.len() > 1 {
                let (first, second) = chunk.split_at(chunk.len() / 2);
                chunks.extend([second, first]);
                continue;
            }
            bodies.push(body);
            lengths.push(chunk.len());
        }
        let stored = self.queue.send(&bodies, deadline).await;
        stored.iter().zip(lengths).flat_map(|(stored, length)| std::iter::repeat_n(*stored, length)).collect()
    }
}

fn parked<'m>(message: &'m Message<'_>) -> Parked<'m> {
    Parked {
        id: message.id.as_str().into(),
        subject: message.subject.as_ref().into(),
        body: message.body.as_json_string(),
        properties: message.properties.as_object(),
    }
}

fn chunks<'s, 'm>(messages: &'s [&'m Message<'m>]) -> Vec<&'s [&'m Message<'m>]> {
    let (mut chunks, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (position, message) in messages.iter().enumerate() {
        let size = message.body.len() + message.properties.as_bytes().len();
        if position > start && bytes + size > TARGET_BYTES {
            chunks.push(&messages[start..position]);
            (start, bytes) = (position, 0);
        }
        bytes += size;
    }
    if start < messages.len() {
        chunks.push(&messages[start..]);
    }
    chunks
}
