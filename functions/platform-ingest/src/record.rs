//! A record's value: one JSON object, or why it can never be ingested.

use shared::json;
use shared::{Reason, Rejection};

use crate::kafka_event::Record;

/// The JSON object that `value` holds, without the white space around it.
pub fn object(value: &[u8]) -> Result<&str, Rejection> {
    let text = std::str::from_utf8(value)
        .map_err(|error| unreadable(format!("the value is not UTF-8 (at byte {})", error.valid_up_to())))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_matches([' ', '\t', '\n', '\r']);
    if text.starts_with('[') {
        return Err(Rejection::unmappable("expected one JSON object, not an array"));
    }
    json::events(text).map_err(unreadable)?;
    json::check_syntax(text).map_err(unreadable)?;
    if !text.starts_with('{') {
        return Err(Rejection::unmappable("expected a JSON object"));
    }
    Ok(text)
}

/// The bytes of a record's value. A null value, which means deletion in a compacted topic, can't be ingested.
pub fn value(record: &Record<'_>) -> Result<Vec<u8>, Rejection> {
    match record.value() {
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err(Rejection::unmappable("the record has no value, and an inlet can't delete")),
        Err(problem) => Err(unreadable(problem.to_owned())),
    }
}

fn unreadable(detail: String) -> Rejection {
    Rejection { reason: Reason::Unreadable, detail: detail.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_object_passes_and_keeps_its_bytes() {
        assert_eq!(object(b" {\"a\" : 1.0}\n").unwrap(), "{\"a\" : 1.0}");
        assert_eq!(object("\u{feff}{}".as_bytes()).unwrap(), "{}");
        let deep = format!("{}{}", "{\"a\":".repeat(200), "1".to_owned() + &"}".repeat(200));
        for (bad, reason) in [
            (b"".as_slice(), Reason::Unreadable),
            (b"\xff", Reason::Unreadable),
            (b"{", Reason::Unreadable),
            (b"{} {}", Reason::Unreadable),
            (b"<a/>", Reason::Unreadable),
            (deep.as_bytes(), Reason::Unreadable),
            (b"[{}]", Reason::Unmappable),
            (b"5", Reason::Unmappable),
            (b"null", Reason::Unmappable),
        ] {
            assert_eq!(object(bad).unwrap_err().reason, reason, "{}", String::from_utf8_lossy(bad));
        }
    }
}
