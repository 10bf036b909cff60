//! What Dataverse removes from a context that is too large, and how to tell that it did.

use serde_json::value::RawValue;
use shared::json::Members;

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

/// Whether a context shows by itself that it was trimmed: nothing is in the four members, and its message always has
/// parameters. A custom message may have none (and no parent and no images), so it is called trimmed only when the header
/// says so. Absent, null and empty mean the same.
pub fn is_trimmed(message: &str, members: &Members<'_>) -> bool {
    let empty = |value: &RawValue| match value.get() {
        "null" => true,
        json => {
            json.strip_prefix('[').and_then(|json| json.strip_suffix(']')).is_some_and(|s| s.trim_ascii().is_empty())
        }
    };
    WITH_PARAMETERS.iter().any(|known| known.eq_ignore_ascii_case(message))
        && members.0.iter().filter(|(name, _)| is_trimmable(name)).all(|(_, value)| empty(value))
}

/// `json` without the four members; what is left keeps its bytes. `members` are those of `json` and borrow from it.
pub fn trimmed(json: &str, members: &Members<'_>) -> String {
    let mut kept = String::with_capacity(json.len());
    kept.push('{');
    let mut start = json.find('{').map_or(0, |place| place + 1);
    for (name, value) in &members.0 {
        // A member's text ends at the comma or bracket behind its value; only white space lies between.
        let end_of_value = value.get().as_ptr() as usize - json.as_ptr() as usize + value.get().len();
        let end = json[end_of_value..].find([',', '}']).map_or(json.len(), |place| end_of_value + place);
        if !is_trimmable(name) {
            if kept.len() > 1 {
                kept.push(',');
            }
            kept.push_str(&json[start..end]);
        }
        start = json.len().min(end + 1);
    }
    kept.push('}');
    kept
}
