//! The event kinds that run here. A new kind is one more entry.

use serde_json::Value;

/// A kind, and how it is tried out.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Of its binary, its path at the gateway and its folder of fixtures.
    pub name: &'static str,
    pub hub: &'static str,
    pub partitions: u32,
    pub queue: &'static str,
    /// A file below the fixtures' folder to show in a command.
    pub sample: &'static str,
    /// Gives an event a fresh identity, and tells the `cloudEvents:subject` that its message will have.
    pub stamp: fn(&mut Value, uuid: &str) -> String,
}

pub const KINDS: &[Kind] = &[Kind {
    name: "audience-change",
    hub: "audience-changes",
    partitions: 4,
    queue: "audience-changes",
    sample: "new_audience_documented.json",
    stamp: |event, uuid| {
        event["profileId"] = uuid.into();
        uuid.to_owned()
    },
}];
