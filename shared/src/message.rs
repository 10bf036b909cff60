//! Messages for a hub, and the deterministic ids by which consumers drop duplicates.

use std::borrow::Cow;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::json::{escaped_len, needs_escapes, push_canonical, push_escaped, push_string};

/// One message for a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'a> {
    /// Deterministic: the same event always produces the same id, so that consumers can drop duplicates.
    pub id: String,
    /// Messages of one subject (a profile, a row) keep their order.
    pub subject: Cow<'a, str>,
    pub body: Body,
    pub properties: Properties,
}

/// The body of a message, as the text of a JSON string, which is its form in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body(Vec<u8>);

/// The CloudEvents attributes of a message, without its subject. `time` is RFC 3339.
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
    pub fn new(event: CloudEvent<'_>, subject: Cow<'a, str>, body: Body) -> Self {
        let mut properties = Properties(Vec::with_capacity(USUAL_PROPERTIES));
        properties.insert("cloudEvents:specversion", "1.0");
        properties.insert("cloudEvents:id", event.id.as_str());
        properties.insert("cloudEvents:type", event.event_type);
        properties.insert("cloudEvents:source", event.source);
        // CloudEvents does not allow an empty subject.
        if !subject.is_empty() {
            properties.insert("cloudEvents:subject", subject.as_ref());
        }
        if let Some(time) = event.time {
            properties.insert("cloudEvents:time", time);
        }
        Self { id: event.id, subject, body, properties }
    }

    /// Whether a request of `max_bytes` can hold it with its properties and key.
    pub fn fits(&self, max_bytes: usize) -> bool {
        let key = escaped_len(&self.subject).max(LONGEST_HASHED_KEY);
        self.body.len() + self.properties.as_bytes().len() + key + AROUND_A_MESSAGE <= max_bytes
    }
}

impl Body {
    /// Any text.
    pub fn new(text: &str) -> Self {
        let mut body = Vec::with_capacity(text.len() + text.len() / 4);
        push_string(&mut body, text);
        Self(body)
    }

    /// JSON that is written piece by piece, which takes about `capacity` bytes.
    pub fn of_json(capacity: usize, write: impl FnOnce(&mut JsonWriter<'_>)) -> Self {
        let mut body = Vec::with_capacity(capacity);
        body.push(b'"');
        write(&mut JsonWriter(&mut body));
        body.push(b'"');
        Self(body)
    }

    /// The text of a JSON string; `None` if that is another value.
    pub fn from_json_string(json: &RawValue) -> Option<Self> {
        json.get().starts_with('"').then(|| Self(json.get().as_bytes().to_vec()))
    }

    /// The text of a JSON string.
    pub fn as_json_string(&self) -> &RawValue {
        serde_json::from_slice(&self.0).expect("a body is a JSON string")
    }

    /// The same.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text itself.
    pub fn to_text(&self) -> String {
        serde_json::from_slice(&self.0).expect("a body is a JSON string")
    }

    /// Length of the JSON string, in bytes.
    #[expect(clippy::len_without_is_empty, reason = "the quotes are always there")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Writes JSON into a body.
#[derive(Debug)]
pub struct JsonWriter<'b>(&'b mut Vec<u8>);

impl JsonWriter<'_> {
    /// Writes text that is escaped already, or needs no escapes.
    pub fn escaped(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Writes JSON unchanged.
    pub fn json(&mut self, json: &str) {
        push_escaped(self.0, json);
    }

    /// Writes a string.
    pub fn string(&mut self, text: &str) {
        self.escaped("\\\"");
        if needs_escapes(text) {
            let mut once = Vec::with_capacity(text.len() + 16);
            push_escaped(&mut once, text);
            push_escaped(self.0, &String::from_utf8_lossy(&once));
        } else {
            self.escaped(text);
        }
        self.escaped("\\\"");
    }
}

/// Names, quotes and brackets around a message that is alone in its request.
const AROUND_A_MESSAGE: usize = 70;
/// A key that is not the subject itself is a number or a SHA-256 in hex.
const LONGEST_HASHED_KEY: usize = 64;
/// Capacity that holds the properties of most events, in bytes.
const USUAL_PROPERTIES: usize = 512;

/// Named values on which consumers filter, as the text of a JSON object, which is their form in a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties(Vec<u8>);

/// The value of a property.
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
    // The hash takes one piece faster than many.
    let mut joined = Vec::with_capacity(256);
    for field in fields {
        joined.extend_from_slice(field.as_bytes());
        joined.push(0x1f);
    }
    joined.pop();
    digest(&joined)
}

/// Lower-case hex SHA-256 over the canonical form of `json`, one value of valid syntax: the same for the same value, however
/// it is written.
pub fn canonical_digest(json: &str) -> String {
    let mut canonical = Vec::with_capacity(json.len());
    push_canonical(&mut canonical, json);
    digest(&canonical)
}

/// Lower-case hex SHA-256.
pub fn digest(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let hash = Sha256::digest(bytes);
    let mut hex = [0; 64];
    for (pair, byte) in hex.chunks_exact_mut(2).zip(hash) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    std::str::from_utf8(&hex).expect("digits are ASCII").to_owned()
}

/// Messages of as many subjects, for tests.
#[cfg(test)]
pub fn messages(count: usize, body: &str) -> Vec<Message<'static>> {
    let message = |n: usize| Message {
        id: format!("id-{n}"),
        subject: format!("s-{n}").into(),
        body: Body::new(body),
        properties: Properties::default(),
    };
    (0..count).map(message).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
