//! What Dataverse removes from a context that is too large, and how to tell that it did.

use serde_json::value::RawValue;
use shared::json::{Members, member_texts};

/// Removed by the webhook over 256 KB and by the Event Hub endpoint over 192 KB.
const TRIMMABLE: [&str; 4] = ["InputParameters", "ParentContext", "PostEntityImages", "PreEntityImages"];

/// The messages whose requests always have parameters.
const WITH_PARAMETERS: [&str; 10] = [
    "Create",
    "Update",
    "Delete",
    "Assign",
    "SetState",
    "SetStateDynamicEntity",
    "Associate",
    "Disassociate",
    "CreateMultiple",
    "UpdateMultiple",
];

pub fn is_trimmable(member: &str) -> bool {
    TRIMMABLE.contains(&member)
}

/// Whether a context without parameters shows by its message that it was trimmed. A custom message may have none (and no
/// parent and no images).
pub fn always_has_parameters(message: &str) -> bool {
    WITH_PARAMETERS.iter().any(|known| known.eq_ignore_ascii_case(message))
}

/// Whether nothing is in the four members. Absent, null and empty mean the same.
pub fn lacks_trimmable(members: &Members<'_>) -> bool {
    let empty = |value: &RawValue| match value.get() {
        "null" => true,
        json => {
            json.strip_prefix('[').and_then(|json| json.strip_suffix(']')).is_some_and(|s| s.trim_ascii().is_empty())
        }
    };
    members.0.iter().filter(|(name, _)| is_trimmable(name)).all(|(_, value)| empty(value))
}

/// `json` without the four members; what is left keeps its bytes. `members` are those of `json` and borrow from it.
pub fn trimmed<'a>(json: &'a str, members: &Members<'a>) -> String {
    let texts = member_texts(json, members).into_iter().zip(&members.0);
    let kept: Vec<&str> = texts.filter(|(_, (name, _))| !is_trimmable(name)).map(|(text, _)| text).collect();
    format!("{{{}}}", kept.join(","))
}
