//! The parking envelope: messages of one flow, stored in a queue with everything that is needed to deliver them later, but
//! never a key.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Unreadable;
use super::codec::{pack, unpack, unpack_start};
use crate::message::{Body, Message, Properties, digest};

/// Number of characters of a packed envelope, and of the unpacked bytes, among which its head is. Names and ids are
/// shorter.
const HEAD_CHARACTERS: usize = 8192;
const HEAD_BYTES: u64 = 16_384;

/// Where messages go, without a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Host, and port if it is not the usual one.
    pub host: String,
    pub hub: String,
    /// Name or ARN of the secret that holds the connection string.
    pub secret_id: Option<String>,
}

/// What all messages of an envelope have in common: their flow, their destination, and since when and why they wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head<'a> {
    v: u32,
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    #[serde(borrow)]
    pub flow: Cow<'a, str>,
    #[serde(borrow)]
    pub hub: Cow<'a, str>,
    /// Host, and port if it is not the usual one.
    #[serde(borrow)]
    pub host: Cow<'a, str>,
    /// Name or ARN of the secret that holds the connection string.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub secret_id: Option<Cow<'a, str>>,
    /// Time at which the oldest message was parked for the first time, in RFC 3339.
    #[serde(borrow)]
    pub first_seen: Cow<'a, str>,
    /// Why the messages could not be delivered.
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
}

/// Messages of one flow, for one hub.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope<'a> {
    #[serde(flatten, borrow)]
    pub head: Head<'a>,
    #[serde(borrow)]
    messages: Vec<Parked<'a>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Parked<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    subject: Cow<'a, str>,
    /// A JSON string.
    #[serde(borrow)]
    body: &'a RawValue,
    #[serde(borrow)]
    properties: &'a RawValue,
}

const NOT_A_PARKING_ENVELOPE: Unreadable = Unreadable::Shape("a parking envelope");

impl<'a> Head<'a> {
    /// The head of an envelope of the current version.
    pub fn new(
        kind: impl Into<Cow<'a, str>>,
        flow: impl Into<Cow<'a, str>>,
        destination: &'a Destination,
        first_seen: impl Into<Cow<'a, str>>,
        reason: impl Into<Cow<'a, str>>,
    ) -> Self {
        Self {
            v: 1,
            kind: kind.into(),
            flow: flow.into(),
            hub: destination.hub.as_str().into(),
            host: destination.host.as_str().into(),
            secret_id: destination.secret_id.as_deref().map(Cow::Borrowed),
            first_seen: first_seen.into(),
            reason: reason.into(),
        }
    }

    /// Reads the head of a packed envelope. Unless the head is unusually long, only the start is unpacked.
    pub fn read(text: &str) -> Result<Head<'static>, Unreadable> {
        const MESSAGES: &[u8] = b",\"messages\":";
        let mut json = unpack_start(text, HEAD_CHARACTERS, HEAD_BYTES)?;
        if let Some(end) = find(&json, MESSAGES) {
            json.truncate(end);
            json.push(b'}');
            if let Ok(head) = std::str::from_utf8(&json).map_err(|_| NOT_A_PARKING_ENVELOPE).and_then(Self::parse) {
                return Ok(head.into_owned());
            }
        }
        Head::parse(&unpacked(text)?).map(Head::into_owned)
    }

    fn parse(json: &str) -> Result<Head<'_>, Unreadable> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        match serde_json::from_str(json) {
            Ok(Version { v: 1 }) => serde_json::from_str(json).map_err(|_| NOT_A_PARKING_ENVELOPE),
            Ok(Version { v }) => Err(Unreadable::Version(v)),
            Err(_) => Err(NOT_A_PARKING_ENVELOPE),
        }
    }

    fn into_owned(self) -> Head<'static> {
        let Self { v, kind, flow, hub, host, secret_id, first_seen, reason } = self;
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        Head {
            v,
            kind: owned(kind),
            flow: owned(flow),
            hub: owned(hub),
            host: owned(host),
            secret_id: secret_id.map(owned),
            first_seen: owned(first_seen),
            reason: owned(reason),
        }
    }

    /// The message group of the envelope.
    pub fn group(&self) -> String {
        message_group(&self.host, &self.hub)
    }
}

impl<'a> Envelope<'a> {
    /// Reads what [`unpacked`] returned.
    pub fn parse(json: &'a str) -> Result<Self, Unreadable> {
        match serde_json::from_str::<Self>(json) {
            Ok(envelope) if envelope.head.v == 1 && envelope.messages.iter().all(|parked| is_string(parked.body)) => {
                Ok(envelope)
            }
            _ => Err(Head::parse(json).err().unwrap_or(NOT_A_PARKING_ENVELOPE)),
        }
    }

    /// The messages as they were before they were parked.
    pub fn messages(&self) -> impl Iterator<Item = Message<'_>> {
        self.messages.iter().map(|parked| Message {
            id: parked.id.clone().into_owned(),
            subject: parked.subject.as_ref().into(),
            body: Body::from_json_string(parked.body).expect("checked when the envelope was read"),
            properties: Properties::from_object(parked.properties),
        })
    }

    /// The same envelope with only some of its messages, as JSON.
    pub fn with_messages(&self, positions: impl IntoIterator<Item = usize>) -> String {
        let messages = positions.into_iter().filter_map(|position| self.messages.get(position).cloned()).collect();
        to_json(&Envelope { head: self.head.clone(), messages })
    }
}

/// The message group of everything that waits for one destination. Groups share the queue fairly, so that one hub's
/// backlog does not delay the messages for others. By destination, since each flow of a dead hub alone may be too small to
/// count as noisy.
pub fn message_group(host: &str, hub: &str) -> String {
    let mut group = digest(format!("{host}/{hub}").as_bytes());
    group.truncate(32);
    group
}

fn is_string(json: &RawValue) -> bool {
    json.get().starts_with('"')
}

fn to_json(envelope: &Envelope<'_>) -> String {
    serde_json::to_string(envelope).expect("texts and raw JSON always serialise")
}

/// Position of the first occurrence of `needle`.
fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

/// The JSON of a packed envelope.
pub fn unpacked(text: &str) -> Result<String, Unreadable> {
    String::from_utf8(unpack(text)?).map_err(|_| Unreadable::Encoding)
}

/// The packed envelope of `messages`.
pub fn seal(head: &Head<'_>, messages: &[&Message<'_>]) -> String {
    let parked = messages.iter().map(|message| Parked {
        id: message.id.as_str().into(),
        subject: message.subject.as_ref().into(),
        body: message.body.as_json_string(),
        properties: message.properties.as_object(),
    });
    pack(to_json(&Envelope { head: head.clone(), messages: parked.collect() }).as_bytes())
}

/// Whether a packed envelope contains exactly these messages.
pub fn is_intact(text: &str, messages: &[&Message<'_>]) -> bool {
    let Ok(json) = unpacked(text) else { return false };
    let Ok(envelope) = Envelope::parse(&json) else { return false };
    let same = |(parked, message): (&Parked<'_>, &&Message<'_>)| {
        parked.id == message.id && parked.body.get().as_bytes() == message.body.as_bytes()
    };
    envelope.messages.len() == messages.len() && envelope.messages.iter().zip(messages).all(same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::messages;

    #[test]
    fn messages_are_read_as_they_were_parked() {
        let destination = Destination { host: "ns.example:444".into(), hub: "h".into(), secret_id: Some("s".into()) };
        let head = Head::new("k", "f \u{1}", &destination, "2026-01-02T03:04:05.678Z", "timeout");
        let mut properties = Properties::default();
        properties.insert("cloudEvents:id", "a \"quoted\" id");
        let mut messages = messages(3, "{\"a\":\"\u{1}\u{e4}\"}");
        messages[1].properties = properties;
        let fields = |message: &Message<'_>| {
            let Message { id, subject, body, properties } = message;
            (id.clone(), subject.to_string(), body.as_bytes().to_vec(), properties.as_bytes().to_vec())
        };
        let json = unpacked(&seal(&head, &messages.iter().collect::<Vec<_>>())).unwrap();
        let envelope = Envelope::parse(&json).unwrap();
        assert_eq!(envelope.head, head);
        assert!(envelope.messages().map(|message| fields(&message)).eq(messages.iter().map(fields)));
        let json = envelope.with_messages([2, 0]);
        let some = Envelope::parse(&json).unwrap();
        assert_eq!(some.head, head);
        assert!(some.messages().map(|message| fields(&message)).eq([&messages[2], &messages[0]].map(fields)));
    }

    #[test]
    fn the_head_of_a_long_envelope_is_read_without_its_messages() {
        let destination = Destination { host: "ns.example".into(), hub: "h".into(), secret_id: Some("s".into()) };
        for body in ["x", &"random text ".repeat(100_000)] {
            for flow in ["default", &"long".repeat(20_000)] {
                let head = Head::new("audience-change", flow, &destination, "2026-01-02T03:04:05.678Z", "timeout");
                let messages = messages(3, body);
                let packed = seal(&head, &messages.iter().collect::<Vec<_>>());
                assert_eq!(Head::read(&packed), Ok(head));
            }
        }
    }

    #[test]
    fn unreadable_envelopes_name_their_problem() {
        let text = |json: &str| pack(json.as_bytes());
        assert_eq!(Head::read("not base64!"), Err(Unreadable::Encoding));
        assert_eq!(Head::read("AAAA"), Err(Unreadable::Encoding));
        assert_eq!(Head::read(&text("{}")), Err(NOT_A_PARKING_ENVELOPE));
        assert_eq!(Head::read(&text(r#"{"v":1,"messages":[]}"#)), Err(NOT_A_PARKING_ENVELOPE));
        assert_eq!(Head::read(&text(r#"{"v":2,"kind":"k","messages":[]}"#)), Err(Unreadable::Version(2)));
    }

    #[test]
    fn a_changed_envelope_is_not_intact() {
        let destination = Destination { host: "ns.example".into(), hub: "h".into(), secret_id: None };
        let head = Head::new("k", "f", &destination, "2026-01-02T03:04:05.678Z", "timeout");
        let (all, two) = (messages(3, "x"), messages(2, "x"));
        let (all, two): (Vec<_>, Vec<_>) = (all.iter().collect(), two.iter().collect());
        let packed = seal(&head, &all);
        assert!(is_intact(&packed, &all));
        assert!(!is_intact(&packed, &two));
        assert!(!is_intact(&packed[..packed.len() / 2], &all));
    }
}
