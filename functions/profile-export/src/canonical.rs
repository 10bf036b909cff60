//! One spelling of a JSON value, for ids that do not depend on how a body happens to be written.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;
use shared::json::{Members, Text, push_string};

/// Appends `json` with its members sorted by the UTF-8 of their names, text by its value, numbers as written and no white
/// space. A repeated member keeps its last value. Depth is bounded by what `shared` lets through.
pub fn push_canonical(out: &mut Vec<u8>, json: &str) {
    match json.as_bytes().first() {
        Some(b'{') => {
            let members = serde_json::from_str::<Members<'_>>(json).unwrap_or_default();
            let sorted: BTreeMap<Cow<'_, str>, &RawValue> = members.0.into_iter().collect();
            out.push(b'{');
            for (position, (name, value)) in sorted.into_iter().enumerate() {
                if position > 0 {
                    out.push(b',');
                }
                push_string(out, &name);
                out.push(b':');
                push_canonical(out, value.get());
            }
            out.push(b'}');
        }
        Some(b'[') => {
            out.push(b'[');
            for (position, value) in serde_json::from_str::<Vec<&RawValue>>(json).unwrap_or_default().iter().enumerate()
            {
                if position > 0 {
                    out.push(b',');
                }
                push_canonical(out, value.get());
            }
            out.push(b']');
        }
        Some(b'"') => match serde_json::from_str::<Text<'_>>(json) {
            Ok(Text(text)) => push_string(out, &text),
            // Half a character has no value; its spelling stands for it.
            Err(_) => out.extend_from_slice(json.as_bytes()),
        },
        _ => out.extend_from_slice(json.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelling_and_order_do_not_count_but_values_do() {
        let canonical = |json: &str| {
            let mut out = Vec::new();
            push_canonical(&mut out, json);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            canonical(r#"{ "b" : [ 1.50, {"\u0061":"\/é\u00e9\n"} ], "a": null }"#),
            r#"{"a":null,"b":[1.50,{"a":"/éé\n"}]}"#
        );
        assert_eq!(canonical(r#"{"a":1,"\u0061":2}"#), r#"{"a":2}"#);
        assert_eq!(canonical(r#"{"é":1,"z":2,"Z":3}"#), r#"{"Z":3,"z":2,"é":1}"#);
        assert_eq!(canonical(r#"["\ud800", 9007199254740993]"#), r#"["\ud800",9007199254740993]"#);
    }
}
