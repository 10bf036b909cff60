//! The mapping of a body: split into events, each mapped by itself, whichever trigger brought it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::flow::Flow;
use crate::json::{self, Events};
use crate::kind::{Event, Header, Kind, Reason, Rejection};
use crate::message::Message;

/// Maximum size of the messages of one invocation in bytes, so that they fit the function's memory. The last body may exceed it.
pub const MAX_MESSAGES_BYTES: usize = 16_000_000;

/// The result of mapping one body: an event, or an array of events.
#[derive(Debug, Default)]
pub struct Mapping<'a> {
    pub messages: Vec<Message<'a>>,
    /// The event that each message was made from.
    pub events: Vec<&'a str>,
    pub rejections: Vec<Rejected<'a>>,
    /// The body itself.
    body: &'a [u8],
    /// Size of the messages' bodies, in bytes.
    pub bytes: usize,
    pub received: usize,
    pub filtered: usize,
    pub notes: Notes,
}

/// An event that can't be delivered.
#[derive(Debug, Clone)]
pub struct Rejected<'a> {
    /// Position in the array, if the body is one.
    pub position: Option<usize>,
    pub rejection: Rejection,
    /// The bytes that the sender sent.
    pub body: &'a [u8],
}

/// Number of occurrences of each word that a kind noted.
pub type Notes = BTreeMap<&'static str, u32>;

impl<'a> Mapping<'a> {
    /// A body that can't be delivered as a whole.
    pub fn rejected(rejection: Rejection, body: &'a [u8]) -> Self {
        Self { rejections: vec![Rejected { position: None, rejection, body }], body, received: 1, ..Self::default() }
    }

    /// The rejected events to store. If all events of a body are rejected, or many, the body is stored instead: a copy of each
    /// would take longer than a sender waits.
    pub fn rejects(&self) -> Vec<Rejected<'a>> {
        const MAX_COPIES: usize = 20;
        match self.rejection() {
            Some(rejection) if self.rejections.len() == self.received || self.rejections.len() > MAX_COPIES => {
                vec![Rejected { position: None, rejection, body: self.body }]
            }
            _ => self.rejections.clone(),
        }
    }

    /// The reason of the first rejection, and the details of the first ten.
    pub fn rejection(&self) -> Option<Rejection> {
        const MAX_DETAILS: usize = 10;
        let first = &self.rejections.first()?.rejection;
        let mut details: Vec<String> = self
            .rejections
            .iter()
            .take(MAX_DETAILS)
            .map(|Rejected { position, rejection, .. }| match position {
                Some(position) => format!("[{position}] {}", rejection.detail),
                None => rejection.detail.to_string(),
            })
            .collect();
        if self.rejections.len() > MAX_DETAILS {
            details.push(format!("and {} more", self.rejections.len() - MAX_DETAILS));
        }
        Some(Rejection { reason: first.reason, detail: details.join("; ").into() })
    }
}

impl<O> Flow<O> {
    /// Maps the raw bytes of a body.
    pub fn map_bytes<'a>(&'a self, kind: &Kind<O>, body: &'a [u8], headers: &'a [Header<'a>]) -> Mapping<'a> {
        match std::str::from_utf8(body) {
            Ok(text) => self.map(kind, text, headers),
            Err(error) => {
                let problem = match is_compressed(body) {
                    true => "compressed bodies are not accepted; send the body without Content-Encoding".to_owned(),
                    false => format!("the body is not UTF-8 (at byte {})", error.valid_up_to()),
                };
                Mapping::rejected(Rejection::unreadable(problem), body)
            }
        }
    }

    /// Maps a body, each event by itself.
    pub fn map<'a>(&'a self, kind: &Kind<O>, text: &'a str, headers: &'a [Header<'a>]) -> Mapping<'a> {
        let body = text.as_bytes();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let events = match json::events(text) {
            Ok(events) => events,
            Err(problem) => return Mapping::rejected(Rejection::unreadable(problem), body),
        };
        let is_array = matches!(events, Events::Array(_));
        if is_array && !kind.arrays {
            return Mapping::rejected(Rejection::unmappable("expected one event, not an array"), body);
        }
        let events = events.as_slice();
        let trace = traceparent(headers);
        let max_bytes = self.hub.max_batch_bytes().saturating_sub(trace.map_or(0, |_| DIAGNOSTIC_ID_BYTES));
        let mut mapping = Mapping { received: events.len(), body, ..Mapping::default() };
        for (position, json) in events.iter().copied().enumerate() {
            let event = Event::new(json, &self.id, headers, max_bytes);
            let mapped = if mapping.bytes > MAX_MESSAGES_BYTES {
                Err(Rejection::too_large("the events of one body make more messages than fit the memory"))
            } else {
                // A bug that panics costs its one event.
                catch_unwind(AssertUnwindSafe(|| (kind.map)(event, &self.options))).unwrap_or_else(|_| {
                    Err(Rejection { reason: Reason::Bug, detail: "a bug kept it from being mapped".into() })
                })
            };
            match mapped {
                Ok(mut mapped) => {
                    if mapped.messages.is_empty() {
                        mapping.filtered += 1;
                    }
                    if let Some(trace) = trace {
                        for message in &mut mapped.messages {
                            message.properties.insert(DIAGNOSTIC_ID, trace);
                        }
                    }
                    for note in mapped.notes {
                        *mapping.notes.entry(note).or_default() += 1;
                    }
                    mapping.bytes += mapped.messages.iter().map(|message| message.body.len()).sum::<usize>();
                    mapping.events.extend(std::iter::repeat_n(json, mapped.messages.len()));
                    if mapping.messages.is_empty() {
                        mapping.messages = mapped.messages;
                    } else {
                        mapping.messages.extend(mapped.messages);
                    }
                }
                Err(rejection) => {
                    let rejection = match json::check_syntax(json) {
                        Err(problem) if rejection.reason == Reason::Unmappable => Rejection::unreadable(problem),
                        _ if rejection.reason == Reason::Unmappable => match envelope_of(json) {
                            Some(envelope) => Rejection::unmappable(envelope),
                            None => rejection,
                        },
                        _ => rejection,
                    };
                    let position = is_array.then_some(position);
                    mapping.rejections.push(Rejected { position, rejection, body: json.as_bytes() });
                }
            }
        }
        mapping
    }
}

/// Whether the bytes are not text but begin as gzip, zlib or Zstandard streams do. Brotli has no mark.
pub fn is_compressed(body: &[u8]) -> bool {
    let begins = |mark: &[u8]| body.starts_with(mark);
    let has_mark = begins(b"\x1f\x8b")
        || begins(b"\x28\xb5\x2f\xfd")
        || [0x01, 0x5e, 0x9c, 0xda].iter().any(|level| begins(&[0x78, *level]));
    has_mark && std::str::from_utf8(body).is_err()
}

/// What to change if another service wrapped the event in an envelope of its own.
fn envelope_of(json: &str) -> Option<&'static str> {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "TopicArn")]
        topic_arn: Option<IgnoredAny>,
        #[serde(rename = "Message")]
        message: Option<IgnoredAny>,
        #[serde(rename = "detail-type")]
        detail_type: Option<IgnoredAny>,
        detail: Option<IgnoredAny>,
    }
    let envelope: Envelope = serde_json::from_str(json).ok()?;
    if envelope.topic_arn.is_some() && envelope.message.is_some() {
        return Some("the event is in an SNS envelope: enable raw message delivery on the subscription");
    }
    (envelope.detail_type.is_some() && envelope.detail.is_some())
        .then_some("the event is in an EventBridge envelope: set the target's input path to `$.detail`")
}

/// The property by which Azure's SDKs link a consumer's trace to the sender's.
const DIAGNOSTIC_ID: &str = "Diagnostic-Id";
/// Size of the property in a request, in bytes.
const DIAGNOSTIC_ID_BYTES: usize = 80;

/// The caller's place in its trace (<https://www.w3.org/TR/trace-context/#traceparent-header>, version 00), if it is well formed.
fn traceparent<'a>(headers: &'a [Header<'a>]) -> Option<&'a str> {
    let (_, value) = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("traceparent"))?;
    let lengths = [2, 32, 16, 2];
    let parts: Vec<&str> = value.split('-').collect();
    let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let well_formed = parts.len() == lengths.len()
        && parts.iter().zip(lengths).all(|(part, length)| part.len() == length && is_hex(part))
        && parts[0] == "00"
        && parts[1..3].iter().all(|id| id.bytes().any(|byte| byte != b'0'));
    well_formed.then_some(value.as_ref())
}

impl Reason {
    /// The status for a webhook's caller.
    pub fn status(self) -> u16 {
        match self {
            Self::TooLarge => 413,
            Self::UnknownFlow => 404,
            Self::Bug => 503,
            Self::Unreadable | Self::Unmappable | Self::Refused | Self::Expired => 400,
        }
    }
}
