//! The event kinds of the local system. A new kind is one more entry.

use serde_json::Value;

/// A kind, its hub and queue, and its sample event.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Name of the kind, its binary, its path at the gateway and its folder of fixtures.
    pub name: &'static str,
    pub hub: &'static str,
    pub partitions: u32,
    pub queue: &'static str,
    /// Id of the connection spec that represents its sender in the control API.
    pub sender_spec: &'static str,
    /// File in its folder of fixtures that a command uses as its example.
    pub sample: &'static str,
    /// Contents of that file.
    pub sample_event: &'static str,
    /// Puts a new identity into an event and preserves its other bytes. Returns the event and the `cloudEvents:subject` of its
    /// message.
    pub stamp: fn(event: &str, uuid: &str) -> (String, String),
}

pub const KINDS: &[Kind] = &[
    Kind {
        name: "audience-change",
        hub: "audience-changes",
        partitions: 4,
        queue: "audience-changes",
        sender_spec: "5d0f6a3e-8c41-4f0b-9a57-2b1de6c7f984",
        sample: "new_audience_documented.json",
        sample_event: include_str!("../../tests/fixtures/audience-change/new_audience_documented.json"),
        stamp: |event, uuid| (with_value(event, "profileId", uuid), uuid.to_owned()),
    },
    Kind {
        name: "profile-export",
        hub: "profile-exports",
        partitions: 4,
        queue: "profile-exports",
        sender_spec: "8a9c3494-9708-43d7-ae3f-cda01e5030e1",
        sample: "profile-export-current.json",
        sample_event: include_str!("../../tests/fixtures/profile-export/profile-export-current.json"),
        // The smallest of all identities is the subject.
        stamp: |event, uuid| (with_identity(event, "0demo", uuid), format!("0demo:{uuid}")),
    },
    Kind {
        name: "dataverse-event",
        hub: "dataverse-events",
        partitions: 4,
        queue: "dataverse-events",
        sender_spec: "e3b7c1d2-46a9-4d8e-b05f-7c92a1f4836d",
        sample: "create_lead_sync.json",
        sample_event: include_str!("../../tests/fixtures/dataverse-event/create_lead_sync.json"),
        stamp: |event, uuid| (with_value(event, "PrimaryEntityId", uuid), uuid.to_owned()),
    },
];

/// Replaces the value of the member `name`, everywhere in the event, with `value`.
fn with_value(event: &str, name: &str, value: &str) -> String {
    let parsed: Value = serde_json::from_str(event).unwrap_or_default();
    match parsed[name].as_str() {
        Some(old) if !old.is_empty() => event.replace(old, value),
        _ => event.to_owned(),
    }
}

/// Adds an identity.
fn with_identity(event: &str, namespace: &str, id: &str) -> String {
    let identity = format!(r#""{namespace}":[{{"id":"{id}"}}]"#);
    let map = event.find(r#""identityMap""#).and_then(|at| Some(at + event[at..].find('{')? + 1));
    match map {
        Some(inside) => format!("{}{identity},{}", &event[..inside], &event[inside..]),
        None => event.replacen('{', &format!(r#"{{"identityMap":{{{identity}}},"#), 1),
    }
}
