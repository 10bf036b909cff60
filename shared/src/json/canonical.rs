//! The canonical form of a JSON value, for ids that do not depend on how a body happens to be written.

use std::borrow::Cow;
use std::ops::Range;

use super::{push_string, text};

/// Appends `json`, one value of valid syntax, with its members sorted by the UTF-8 of their names, text by its value, numbers
/// as written and no white space. A repeated member keeps its last value. Text that has no value, since it holds half a
/// character, stands for itself.
pub fn push_canonical(out: &mut Vec<u8>, json: &str) {
    Reader { rest: json }.value(out);
}

/// The unread rest of the text. Its depth is at most [`super::MAX_DEPTH`].
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn value(&mut self, out: &mut Vec<u8>) {
        match self.next() {
            Some(b'{') => self.object(out),
            Some(b'[') => self.array(out),
            Some(b'"') => {
                let text = self.text();
                push_text(out, &text);
            }
            _ => {
                let end = self.rest.find([',', ']', '}', ' ', '\t', '\n', '\r']).unwrap_or(self.rest.len());
                out.extend_from_slice(self.take(end).as_bytes());
            }
        }
    }

    fn array(&mut self, out: &mut Vec<u8>) {
        self.take(1);
        out.push(b'[');
        while !matches!(self.next(), Some(b']') | None) {
            self.value(out);
            if self.next() == Some(b',') {
                self.take(1);
                out.push(b',');
            }
        }
        self.take(1);
        out.push(b']');
    }

    fn object(&mut self, out: &mut Vec<u8>) {
        self.take(1);
        out.push(b'{');
        let start = out.len();
        let mut members: Vec<(JsonText<'a>, Range<usize>)> = Vec::new();
        while !matches!(self.next(), Some(b'}') | None) {
            let name = self.text();
            let member = out.len();
            push_text(out, &name);
            // The colon.
            self.next();
            self.take(1);
            out.push(b':');
            self.value(out);
            members.push((name, member..out.len()));
            if self.next() == Some(b',') {
                self.take(1);
                out.push(b',');
            }
        }
        self.take(1);
        if !members.is_sorted_by(|(one, _), (next, _)| one < next) {
            let written = out.split_off(start);
            // The last of several members with one name comes first, and stays.
            members.reverse();
            members.sort_by(|(one, _), (other, _)| one.cmp(other));
            members.dedup_by(|(one, _), (other, _)| one == other);
            for (_, member) in members {
                out.extend_from_slice(&written[member.start - start..member.end - start]);
                out.push(b',');
            }
            out.pop();
        }
        out.push(b'}');
    }

    /// A text, its quotes included.
    fn text(&mut self) -> JsonText<'a> {
        let mut escaped = false;
        let end = self.rest.bytes().skip(1).position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        });
        let spelling = self.take(end.map_or(self.rest.len(), |end| end + 2));
        text(spelling).map_or(JsonText::Spelling(spelling), JsonText::Text)
    }

    /// The first byte behind white space.
    fn next(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.bytes().next()
    }

    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }
}

/// A text by its value.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum JsonText<'a> {
    Text(Cow<'a, str>),
    /// The form of what has no value.
    Spelling(&'a str),
}

fn push_text(out: &mut Vec<u8>, text: &JsonText<'_>) {
    match text {
        JsonText::Text(text) => push_string(out, text),
        JsonText::Spelling(spelling) => out.extend_from_slice(spelling.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(json: &str) -> String {
        let mut out = Vec::new();
        push_canonical(&mut out, json);
        String::from_utf8(out).unwrap()
    }

    proptest::proptest! {
        #[test]
        fn the_value_stays_the_same_and_canonical_text_is_its_own_form(json in arbitrary_json()) {
            let once = canonical(&json);
            proptest::prop_assert_eq!(canonical(&once), once.as_str());
            let value = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
            proptest::prop_assert_eq!(value(&once), value(&json));
        }
    }

    fn arbitrary_json() -> impl proptest::strategy::Strategy<Value = String> {
        use proptest::prelude::*;
        let text = || {
            "[ab\"\\\\/é\u{1F600}\n]{0,3}"
                .prop_map(|text| serde_json::Value::from(text).to_string().replace('/', "\\/"))
        };
        let leaf =
            prop_oneof![text(), Just("1.50".to_owned()), Just("-9007199254740993".to_owned()), Just("null".to_owned())];
        leaf.prop_recursive(4, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(|all| format!("[ {}\n]", all.join(" ,"))),
                prop::collection::vec((text(), inner), 0..5).prop_map(|all| {
                    let members: Vec<String> =
                        all.into_iter().map(|(name, value)| format!("{name} :{value} ")).collect();
                    format!("{{{}}}", members.join(",\t"))
                }),
            ]
        })
    }

    #[test]
    fn spelling_and_order_do_not_count_but_values_do() {
        assert_eq!(
            canonical(r#"{ "b" : [ 1.50, {"\u0061":"\/é\u00e9\n"} ], "a": null }"#),
            r#"{"a":null,"b":[1.50,{"a":"/éé\n"}]}"#
        );
        assert_eq!(canonical(r#"{"a":1,"\u0061":2}"#), r#"{"a":2}"#);
        assert_eq!(canonical(r#"{"é":1,"z":2,"Z":3}"#), r#"{"Z":3,"z":2,"é":1}"#);
        assert_eq!(canonical(r#"["\ud800", 9007199254740993]"#), r#"["\ud800",9007199254740993]"#);
        assert_eq!(canonical(r#"{"\ud800": 1, "b\"\\" : [ ]}"#), r#"{"b\"\\":[],"\ud800":1}"#);
    }
}
