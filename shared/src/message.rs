//! What a hub gets, and how one of the ids that make repeats harmless is computed.

use std::borrow::Cow;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::json::push_string;

/// One message for a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'a> {
    /// The same event always makes the same id, so that consumers can drop repeats.
    pub id: String,
    /// Messages of one subject (a profile, a row) keep their order.
    pub subject: Cow<'a, str>,
    pub body: Cow<'a, str>,
    pub properties: Properties,
}

/// The CloudEvents attributes of a message, less its subject. `time` is RFC 3339.
#[derive(Debug, Clone)]
pub struct CloudEvent<'e> {
    pub id: String,
    pub event_type: &'e str,
    pub source: &'e str,
    pub time: Option<&'e str>,
}

impl<'a> Message<'a> {
    /// A message whose properties follow CloudEvents' AMQP binding in binary mode
    /// (<https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/amqp-protocol-binding.md>).
    pub fn new(event: CloudEvent<'_>, subject: Cow<'a, str>, body: impl Into<Cow<'a, str>>) -> Self {
        let mut properties = Properties(Vec::with_capacity(USUAL_PROPERTIES));
        properties.insert("cloudEvents:specversion", "1.0");
        properties.insert("cloudEvents:id", event.id.as_str());
        properties.insert("cloudEvents:type", event.event_type);
        properties.insert("cloudEvents:source", event.source);
        // CloudEvents knows no empty subject.
        if !subject.is_empty() {
            properties.insert("cloudEvents:subject", subject.as_ref());
        }
        if let Some(time) = event.time {
            properties.insert("cloudEvents:time", time);
        }
        Self { id: event.id, subject, body: body.into(), properties }
    }

    /// Whether a request of `max_bytes` has room for it, the body escaped and its properties and key beside it.
    pub fn fits(&self, max_bytes: usize) -> bool {
        let key = escaped_len(&self.subject).max(LONGEST_HASHED_KEY);
        let around = self.properties.as_bytes().len() + key + AROUND_A_MESSAGE;
        // Most are so small that nothing has to be counted.
        max_bytes
            .checked_sub(around)
            .is_some_and(|room| self.body.len() * LONGEST_ESCAPE <= room || escaped_len(&self.body) <= room)
    }
}

/// Names, quotes and brackets around a message that is alone in its request.
const AROUND_A_MESSAGE: usize = 72;
/// A key that is not the subject itself is a number or a SHA-256 in hex.
const LONGEST_HASHED_KEY: usize = 64;
/// `\u001f` for one byte.
const LONGEST_ESCAPE: usize = 6;

/// The length of `text` as a JSON string without its quotes.
fn escaped_len(text: &str) -> usize {
    text.bytes()
        .map(|byte| match byte {
            b'"' | b'\\' | 0x08 | b'\t' | b'\n' | 0x0c | b'\r' => 2,
            0..0x20 => LONGEST_ESCAPE,
            _ => 1,
        })
        .sum()
}

/// As many bytes most events' properties take.
const USUAL_PROPERTIES: usize = 512;

/// Named values beside the body, on which consumers filter. Kept as the text of a JSON object, which is how they travel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties(Vec<u8>);

/// What a property may hold.
#[derive(Debug, Clone, Copy)]
pub enum Property<'a> {
    Text(&'a str),
    Bool(bool),
}

impl<'a> From<&'a str> for Property<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Property<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl Properties {
    /// Adds a property. A name is given once.
    pub fn insert<'v>(&mut self, name: &str, value: impl Into<Property<'v>>) {
        let text = &mut self.0;
        match text.last_mut() {
            None => text.push(b'{'),
            Some(end) => *end = b',',
        }
        push_string(text, name);
        text.push(b':');
        match value.into() {
            Property::Text(value) => push_string(text, value),
            Property::Bool(value) => text.extend_from_slice(if value { b"true" } else { b"false" }),
        }
        text.push(b'}');
    }

    /// Properties that were written before.
    pub fn from_object(object: &RawValue) -> Self {
        Self(object.get().as_bytes().to_vec())
    }

    pub fn as_object(&self) -> &RawValue {
        serde_json::from_str(self.as_json()).expect("properties are a JSON object")
    }

    /// The text of a JSON object.
    pub fn as_json(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("JSON built from text is UTF-8")
    }

    /// The same.
    pub fn as_bytes(&self) -> &[u8] {
        if self.0.is_empty() { b"{}" } else { &self.0 }
    }
}

/// Lower-case hex SHA-256 over `fields` joined by U+001F, which occurs in no real one.
pub fn deterministic_id<'f>(fields: impl IntoIterator<Item = &'f str>) -> String {
    let mut hash = Sha256::new();
    for (position, field) in fields.into_iter().enumerate() {
        if position > 0 {
            hash.update([0x1f]);
        }
        hash.update(field);
    }
    hex(&hash.finalize())
}

/// Lower-case hex SHA-256.
pub fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hex.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_lengths_are_those_that_are_written() {
        let text: String = (0..=0x2fff).filter_map(char::from_u32).collect();
        let mut written = Vec::new();
        push_string(&mut written, &text);
        assert_eq!(escaped_len(&text), written.len() - 2);
    }

    #[test]
    fn properties_are_json() {
        let mut properties = Properties::default();
        assert_eq!(properties.as_json(), "{}");
        properties.insert("a", "\"é\n");
        properties.insert("b", true);
        assert_eq!(properties.as_json(), r#"{"a":"\"é\n","b":true}"#);
    }

    #[test]
    fn ids_are_sha256_over_fields_joined_by_unit_separators() {
        // printf 'a\x1fb' | sha256sum
        assert_eq!(deterministic_id(["a", "b"]), "f04cdced9736a69da6103f08a4daaf8c485dd481217d218a1b4993c8c3968e13");
        assert_ne!(deterministic_id(["ab", ""]), deterministic_id(["a", "b"]));
    }
}
