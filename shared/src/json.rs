//! JSON that is borrowed instead of built: events pass through as text, and only the members in use are looked at.

mod canonical;

use std::borrow::Cow;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

pub use canonical::push_canonical;

/// Deeper nesting than this is refused: nothing real comes near it, and a consumer's parser may not survive it.
pub const MAX_DEPTH: usize = 128;

/// More events in one body are refused: as many real ones would not fit a request, and what is made of millions of tiny
/// ones would not fit the memory.
pub const MAX_EVENTS: usize = 50_000;

/// Text borrowed from the input where it has no escapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("text")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// What a value of valid syntax spells, if that is text. Half a character is none.
pub fn text(json: &str) -> Option<Cow<'_, str>> {
    let inside = json.strip_prefix('"')?.strip_suffix('"')?;
    if inside.contains('\\') {
        return serde_json::from_str(json).ok().map(|Text(text)| text);
    }
    Some(inside.into())
}

/// The members of an object in their order, each value by type `V`. A repeated name is kept as often as it stands.
#[derive(Debug, Clone)]
pub struct Members<'a, V = &'a RawValue>(pub Vec<(Cow<'a, str>, V)>);

impl<V> Default for Members<'_, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> Members<'_, V> {
    /// Whether no name is repeated, answered `true` only where they are so few that comparing all is cheap.
    pub fn are_few_and_distinct(&self) -> bool {
        const FEW: usize = 8;
        let is_new = |position: usize| self.0[..position].iter().all(|(name, _)| *name != self.0[position].0);
        self.0.len() <= FEW && (0..self.0.len()).all(is_new)
    }
}

impl<'de: 'a, 'a, V: Deserialize<'de>> Deserialize<'de> for Members<'a, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for MembersVisitor<V> {
            type Value = Members<'de, V>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Text(name), value)) = map.next_entry()? {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor(std::marker::PhantomData))
    }
}

/// The text of each member as it stands between the brackets and commas of `object`, white space included. `members` are
/// those of `object` and borrow from it.
pub fn member_texts<'a>(object: &'a str, members: &Members<'a>) -> Vec<&'a str> {
    let mut start = object.find('{').map_or(0, |place| place + 1);
    let texts = members.0.iter().map(|(_, value)| {
        let end_of_value = value.get().as_ptr() as usize - object.as_ptr() as usize + value.get().len();
        // Only white space lies between a value and the comma or bracket behind it.
        let end = object[end_of_value..].find([',', '}']).map_or(object.len(), |place| end_of_value + place);
        let text = &object[start..end];
        start = object.len().min(end + 1);
        text
    });
    texts.collect()
}

/// A struct that is written as an object. Serde by itself takes an array of the members' values too.
#[derive(Debug, Default)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(std::marker::PhantomData))
    }
}

/// What a body holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Events<'a> {
    /// One value other than an array. Its syntax is checked when its kind reads it.
    One(&'a str),
    /// The elements of an array.
    Array(Vec<&'a str>),
}

impl<'a> Events<'a> {
    pub fn as_slice(&self) -> &[&'a str] {
        match self {
            Self::One(event) => std::slice::from_ref(event),
            Self::Array(events) => events,
        }
    }
}

/// The events of a body; refuses what is empty or nested too deep.
///
/// The error says what is wrong and where, and repeats none of the text.
pub fn events(text: &str) -> Result<Events<'_>, String> {
    // JSON's own white space: a form feed is none of it.
    let text = text.trim_matches([' ', '\t', '\n', '\r']);
    if text.is_empty() {
        return Err("the body is empty; expected a JSON object".to_owned());
    }
    check_shape(text.as_bytes())?;
    if text.starts_with('[') {
        let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| explain(&error))?;
        return Ok(Events::Array(elements.into_iter().map(RawValue::get).collect()));
    }
    Ok(Events::One(text))
}

/// Checks that `text` is one JSON value.
pub fn check_syntax(text: &str) -> Result<(), String> {
    serde_json::from_str::<&RawValue>(text).map(drop).map_err(|error| explain(&error))
}

/// Counts brackets and commas outside of strings, before anything is built from them.
fn check_shape(text: &[u8]) -> Result<(), String> {
    // Nearly all bodies have fewer of either than is allowed anywhere, which takes no look at strings to see.
    if text.len() < MAX_EVENTS && brackets(text) <= MAX_DEPTH {
        return Ok(());
    }
    let (mut depth, mut commas, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(format!("the body is nested deeper than {MAX_DEPTH} levels"));
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            b',' if !in_string && depth == 1 => {
                commas += 1;
                if commas >= MAX_EVENTS {
                    return Err(format!("the body has more than {MAX_EVENTS} elements"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// How many opening brackets there are, strings included.
fn brackets(text: &[u8]) -> usize {
    // Sums of a byte each, so that many are counted at once. `[` and `{` differ in one bit.
    let in_chunk = |chunk: &[u8]| chunk.iter().map(|byte| u8::from(byte | 0x20 == b'{')).sum::<u8>();
    text.chunks(255).map(|chunk| usize::from(in_chunk(chunk))).sum()
}

/// What `error` says, less the offending value, which may be secret or personal.
pub fn explain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if !error.is_data() {
        return format!("not valid JSON: {text}");
    }
    if text.starts_with("invalid") || text.starts_with("unknown variant") {
        if let Some(expected) = text.rfind(", expected ") {
            let expected = &text[expected + 2..];
            return expected.split(" at line ").next().unwrap_or(expected).to_owned();
        }
        return "has a value that can't be used".to_owned();
    }
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

/// The path to what of `text` can't be read as a `T`, such as a number beyond all types or half a character.
pub fn unreadable_place<'de, T: Deserialize<'de>>(text: &'de str) -> Option<String> {
    let read = serde_path_to_error::deserialize::<_, T>(&mut serde_json::Deserializer::from_str(text));
    Some(read.err()?.path().to_string())
}

/// Reads configuration: an unusable member is named by its path, its value is not repeated.
pub fn from_config<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, String> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let problem = explain(error.inner());
        if path == "." { problem } else { format!("`{path}`: {problem}") }
    })?;
    deserializer.end().map_err(|error| explain(&error))?;
    Ok(value)
}

/// Whether `text` can't stand in a JSON string as it is.
pub fn needs_escapes(text: &str) -> bool {
    text.bytes().fold(false, |found, byte| found | (byte < 0x20) | (byte == b'"') | (byte == b'\\'))
}

/// Appends `text` as a JSON string.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    if needs_escapes(text) {
        push_escaped(out, text);
    } else {
        out.extend_from_slice(text.as_bytes());
    }
    out.push(b'"');
}

/// Appends `text` as the inside of a JSON string.
pub fn push_escaped(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let mut copied = 0;
    for (place, byte) in bytes.iter().enumerate() {
        if !ESCAPED[usize::from(*byte)] {
            continue;
        }
        out.extend_from_slice(&bytes[copied..place]);
        copied = place + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            0x08 => out.extend_from_slice(b"\\b"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\r' => out.extend_from_slice(b"\\r"),
            _ => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
        }
    }
    out.extend_from_slice(&bytes[copied..]);
}

/// The length of `text` as the inside of a JSON string.
pub fn escaped_len(text: &str) -> usize {
    text.bytes()
        .map(|byte| match byte {
            b'"' | b'\\' | 0x08 | b'\t' | b'\n' | 0x0c | b'\r' => 2,
            0..0x20 => 6,
            _ => 1,
        })
        .sum()
}

/// Which bytes can't stand in a JSON string.
const ESCAPED: [bool; 256] = {
    let mut escaped = [false; 256];
    let mut control = 0;
    while control < 0x20 {
        escaped[control] = true;
        control += 1;
    }
    escaped[b'"' as usize] = true;
    escaped[b'\\' as usize] = true;
    escaped
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_and_elements_are_counted_outside_of_strings_only() {
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        assert!(events(&nested(MAX_DEPTH)).is_ok());
        assert!(events(&nested(MAX_DEPTH + 1)).unwrap_err().contains("128 levels"));
        assert!(events(&"[".repeat(1_000_000)).unwrap_err().contains("128 levels"));
        assert!(events(&format!(r#"{{"a":"\"{}{}"}}"#, "[".repeat(500), ",".repeat(MAX_EVENTS))).is_ok());
        let list = |elements: usize| format!("[{}1]", "1,".repeat(elements - 1));
        assert_eq!(events(&list(MAX_EVENTS)).unwrap().as_slice().len(), MAX_EVENTS);
        assert!(events(&list(MAX_EVENTS + 1)).unwrap_err().contains("50000 elements"));
    }

    #[test]
    fn elements_keep_their_bytes() {
        let array = events(" [ {\"a\" : 19.9900} ,{\"b\":\"\\/\"}]").unwrap();
        assert_eq!(array, Events::Array(vec!["{\"a\" : 19.9900}", "{\"b\":\"\\/\"}"]));
        assert_eq!(events(" {\"a\":1} ").unwrap(), Events::One("{\"a\":1}"));
        assert_eq!(events("[]").unwrap(), Events::Array(Vec::new()));
        let form_feed = "\u{c}{}";
        assert!(
            check_syntax(events(form_feed).unwrap().as_slice()[0]).is_err(),
            "what is no white space of JSON stays"
        );
    }

    #[test]
    fn text_is_what_a_parser_reads() {
        for json in
            [r#""""#, r#""a é""#, r#""a\n\"\u00e9""#, r#""\ud83d\ude00""#, r#""\ud83d""#, "1", "null", r#"["a"]"#, "{}"]
        {
            assert_eq!(text(json), serde_json::from_str::<String>(json).ok().map(Cow::from), "{json}");
        }
    }

    #[test]
    fn strings_are_written_as_serde_json_does() {
        for text in ["", "plain é", "\"", "\\", "\u{1f}\n", "\u{7f}\u{2028}😀"] {
            let mut out = Vec::new();
            push_string(&mut out, text);
            assert_eq!(out, serde_json::to_vec(text).unwrap());
        }
    }

    #[test]
    fn escaped_lengths_are_those_that_are_written() {
        let text: String = (0..=0x2fff).filter_map(char::from_u32).collect();
        let mut written = Vec::new();
        push_string(&mut written, &text);
        assert_eq!(escaped_len(&text), written.len() - 2);
    }

    #[test]
    fn members_keep_their_text() {
        let object = r#" { "a" : {"x":","} ,"\u0062":[1,2 ],"c":"}" } "#.trim();
        let members: Members<'_> = serde_json::from_str(object).unwrap();
        assert_eq!(member_texts(object, &members), [r#" "a" : {"x":","} "#, r#""\u0062":[1,2 ]"#, r#""c":"}" "#]);
    }

    #[test]
    fn errors_do_not_repeat_values() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Options {
            #[expect(dead_code, reason = "only its type counts")]
            number: u8,
        }
        let problem = |text: &str| from_config::<Options>(text).unwrap_err();
        assert_eq!(problem(r#"{"number":"hidden, expected x"}"#), "`number`: expected u8");
        assert_eq!(problem(r#"{"number":777777}"#), "`number`: expected u8");
        assert_eq!(problem(r#"{"nummer":1}"#), "`nummer`: unknown field `nummer`, expected `number`");
        assert_eq!(problem(r#"{}"#), "missing field `number`");
        assert!(problem(r#"{"number":1} x"#).starts_with("not valid JSON: trailing characters"));
    }
}
