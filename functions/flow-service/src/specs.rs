//! The connection specs and flow specs that are offered, and which event kind a sender's spec stands for.

use serde_json::{Value, json};

use crate::routes::Collection;

pub const EVENT_HUBS: &str = "bf9f5905-92b7-48bf-bf20-455bc6b60a4e";
pub const PROFILE_STORE: &str = "8a9c3494-9708-43d7-ae3f-cda01e5030e1";
pub const DATA_LAKE: &str = "c604ff05-7f1a-43c0-8e18-33bf874cb11c";
/// Ours, made once.
pub const DATA_ACTIVATION: &str = "5d0f6a3e-8c41-4f0b-9a57-2b1de6c7f984";
/// Ours, made once.
pub const DATAVERSE: &str = "e3b7c1d2-46a9-4d8e-b05f-7c92a1f4836d";

/// From a sender to a hub.
pub const TO_HUB: &str = "71471eba-b620-49e4-90fd-23f1fa0174d8";
/// From a hub to the platform.
pub const FROM_HUB: &str = "d69717ba-71b4-4313-b654-49f9cf126d7a";

pub const VERSION: &str = "1.0";

pub struct ConnectionSpec {
    pub id: &'static str,
    pub name: &'static str,
    /// Where it may be used.
    pub collections: &'static [Collection],
    /// Whether a source or target connection needs a base connection.
    pub needs_base: bool,
    /// Of a sender.
    pub kind: Option<Kind>,
}

/// An event kind, as far as a flow of it can be checked here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub name: &'static str,
    /// JSON Schema of its options, as committed beside it.
    pub options_schema: &'static str,
}

pub const AUDIENCE_CHANGE: Kind =
    Kind { name: "audience-change", options_schema: include_str!("../../audience-change/options.schema.json") };
pub const PROFILE_EXPORT: Kind =
    Kind { name: "profile-export", options_schema: include_str!("../../profile-export/options.schema.json") };
pub const DATAVERSE_EVENT: Kind =
    Kind { name: "dataverse-event", options_schema: include_str!("../../dataverse-event/options.schema.json") };

const EVERYWHERE: &[Collection] =
    &[Collection::Connections, Collection::SourceConnections, Collection::TargetConnections];
const SENDER: &[Collection] = &[Collection::Connections, Collection::SourceConnections];

pub const CONNECTION_SPECS: &[ConnectionSpec] = &[
    ConnectionSpec { id: EVENT_HUBS, name: "azure-eventhub", collections: EVERYWHERE, needs_base: true, kind: None },
    ConnectionSpec {
        id: PROFILE_STORE,
        name: "profile-store",
        collections: SENDER,
        needs_base: false,
        kind: Some(PROFILE_EXPORT),
    },
    ConnectionSpec {
        id: DATA_ACTIVATION,
        name: "data-activation",
        collections: SENDER,
        needs_base: false,
        kind: Some(AUDIENCE_CHANGE),
    },
    ConnectionSpec {
        id: DATAVERSE,
        name: "dataverse",
        collections: SENDER,
        needs_base: false,
        kind: Some(DATAVERSE_EVENT),
    },
    ConnectionSpec {
        id: DATA_LAKE,
        name: "data-lake",
        collections: &[Collection::TargetConnections],
        needs_base: false,
        kind: None,
    },
];

impl ConnectionSpec {
    pub fn item(&self) -> Value {
        let auth = match self.id {
            EVENT_HUBS => json!([{
                "name": crate::connections::SAS,
                "type": "KeyBased",
                "spec": {
                    "$schema": "http://json-schema.org/draft-07/schema#",
                    "type": "object",
                    "properties": {
                        "sasKeyName": { "type": "string" },
                        "sasKey": { "type": "string", "format": "password" },
                        "namespace": { "type": "string" },
                        "eventHubName": { "type": "string" },
                        "connectionString": { "type": "string", "format": "password" },
                    },
                },
            }]),
            _ => json!([]),
        };
        let mut item = json!({ "id": self.id, "name": self.name, "version": VERSION, "authSpec": auth });
        if let Some(kind) = self.kind {
            item["attributes"] = json!({ "kind": kind.name });
            item["sourceSpec"] = json!({ "optionsSchema": options_schema(kind) });
        }
        item
    }
}

pub fn options_schema(kind: Kind) -> Value {
    serde_json::from_str(kind.options_schema).expect("the committed schemas are JSON")
}

pub struct FlowSpec {
    pub id: &'static str,
    pub name: &'static str,
    pub sources: &'static [&'static str],
    pub targets: &'static [&'static str],
}

pub const FLOW_SPECS: &[FlowSpec] = &[
    FlowSpec {
        id: TO_HUB,
        name: "Send events to a destination",
        sources: &[PROFILE_STORE, DATA_ACTIVATION, DATAVERSE],
        targets: &[EVENT_HUBS],
    },
    FlowSpec {
        id: FROM_HUB,
        name: "Stream data with optional transformation",
        sources: &[EVENT_HUBS],
        targets: &[DATA_LAKE],
    },
];

impl FlowSpec {
    pub fn item(&self) -> Value {
        json!({
            "id": self.id,
            "name": self.name,
            "version": VERSION,
            "sourceConnectionSpecIds": self.sources,
            "targetConnectionSpecIds": self.targets,
            "attributes": { "uiAttributes": { "apiFeatures": { "flowRunsSupported": self.id == TO_HUB } } },
        })
    }
}

pub fn connection_spec(id: &str) -> Option<&'static ConnectionSpec> {
    CONNECTION_SPECS.iter().find(|spec| spec.id == id)
}

pub fn flow_spec(id: &str) -> Option<&'static FlowSpec> {
    FLOW_SPECS.iter().find(|spec| spec.id == id)
}
