//! The item of a flow in the table: the control API writes it, the functions read it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// The first part of the key of every flow item.
pub const KEY_PREFIX: &str = "FLOW#";

pub const PARTITION_KEY: &str = "pk";
pub const STATE: &str = "state";
pub const VERSION: &str = "version";
const KIND: &str = "kind";
const OPTIONS: &str = "options";
const AUTH_SECRET_ID: &str = "authSecretId";
const CONNECTION_SECRET_ID: &str = "connectionSecretId";
const HOST: &str = "host";
const HUB: &str = "hub";
const PARTITIONING: &str = "partitioning";
const TENANT: &str = "tenant";
const CONSUMER_GROUP: &str = "consumerGroup";
const RESET: &str = "reset";

const ENABLED: &str = "enabled";
const DISABLED: &str = "disabled";

/// Values of `reset`: where a consumer group without offsets begins.
pub const LATEST: &str = "latest";
const EARLIEST: &str = "earliest";

/// A flow of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowItem {
    pub id: String,
    pub kind: String,
    pub enabled: bool,
    /// The kind's options, JSON.
    pub options: Option<String>,
    /// Name of the secret that says how senders authenticate.
    pub auth_secret_id: Option<String>,
    /// Name or ARN of the secret with the connection string.
    pub connection_secret_id: String,
    /// Host, and port if it is not the usual one, that the connection string must have.
    pub host: Option<String>,
    pub hub: String,
    /// How messages are grouped, as in `PARTITIONING`.
    pub partitioning: Option<String>,
    /// The tenant whose flow it is. The functions that handle events do not use it.
    pub tenant: Option<String>,
    /// How Lambda reads the hub; only a flow from a hub has it.
    pub reading: Option<Reading>,
}

/// How a flow reads its hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The consumer group.
    pub group: String,
    /// Whether a group without offsets begins with new events only.
    pub latest: bool,
}

/// The attributes of an item by name, in DynamoDB's JSON.
pub type Attributes = HashMap<String, Attribute>;

/// An attribute of a DynamoDB item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Wire", into = "Wire")]
pub enum Attribute {
    Text(String),
    /// The digits of a number.
    Number(String),
    /// An attribute of a type that flow items do not use.
    Other,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "S", default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(rename = "N", default, skip_serializing_if = "Option::is_none")]
    number: Option<String>,
}

impl From<Wire> for Attribute {
    fn from(wire: Wire) -> Self {
        match wire {
            Wire { text: Some(text), .. } => Self::Text(text),
            Wire { number: Some(number), .. } => Self::Number(number),
            Wire { .. } => Self::Other,
        }
    }
}

impl From<Attribute> for Wire {
    fn from(attribute: Attribute) -> Self {
        match attribute {
            Attribute::Text(text) => Self { text: Some(text), number: None },
            Attribute::Number(number) => Self { text: None, number: Some(number) },
            Attribute::Other => Self { text: None, number: None },
        }
    }
}

/// The partition key of a flow's item.
pub fn key(id: &str) -> String {
    format!("{KEY_PREFIX}{id}")
}

/// The word for a flow's state.
pub fn state(enabled: bool) -> &'static str {
    if enabled { ENABLED } else { DISABLED }
}

/// The id of the flow whose item these attributes are of.
pub fn id(attributes: &Attributes) -> Option<&str> {
    match attributes.get(PARTITION_KEY)? {
        Attribute::Text(key) => key.strip_prefix(KEY_PREFIX),
        _ => None,
    }
}

/// The version of an item, which each write increments.
pub fn version(attributes: &Attributes) -> Option<u64> {
    match attributes.get(VERSION)? {
        Attribute::Number(digits) => digits.parse().ok(),
        _ => None,
    }
}

impl FlowItem {
    /// Reads an item.
    ///
    /// # Errors
    /// Names the attribute and what is wrong with it.
    pub fn read(attributes: &Attributes) -> Result<Self, String> {
        let text = |name: &str| match attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Text(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            Some(_) => Err(format!("`{name}`: expected text")),
        };
        let needed = |name: &str| text(name)?.ok_or_else(|| format!("`{name}`: missing"));
        // The event functions must not depend on what only the control API uses.
        let of_control_api = |name: &str| text(name).ok().flatten();
        let reading = of_control_api(CONSUMER_GROUP).zip(of_control_api(RESET));
        Ok(Self {
            id: id(attributes)
                .ok_or_else(|| format!("`{PARTITION_KEY}`: expected `{KEY_PREFIX}` and an id"))?
                .to_owned(),
            kind: needed(KIND)?,
            enabled: match needed(STATE)?.as_str() {
                ENABLED => true,
                DISABLED => false,
                _ => return Err(format!("`{STATE}`: expected {ENABLED} or {DISABLED}")),
            },
            options: text(OPTIONS)?,
            auth_secret_id: text(AUTH_SECRET_ID)?,
            connection_secret_id: needed(CONNECTION_SECRET_ID)?,
            host: text(HOST)?,
            hub: needed(HUB)?,
            partitioning: text(PARTITIONING)?,
            tenant: of_control_api(TENANT),
            reading: reading.map(|(group, reset)| Reading { group, latest: reset == LATEST }),
        })
    }

    /// The attributes of this version of the item, its key among them.
    pub fn attributes(&self, version: u64) -> Attributes {
        let texts = [
            (KIND, Some(self.kind.as_str())),
            (STATE, Some(state(self.enabled))),
            (OPTIONS, self.options.as_deref()),
            (AUTH_SECRET_ID, self.auth_secret_id.as_deref()),
            (CONNECTION_SECRET_ID, Some(&self.connection_secret_id)),
            (HOST, self.host.as_deref()),
            (HUB, Some(&self.hub)),
            (PARTITIONING, self.partitioning.as_deref()),
            (TENANT, self.tenant.as_deref()),
            (CONSUMER_GROUP, self.reading.as_ref().map(|reading| reading.group.as_str())),
            (RESET, self.reading.as_ref().map(|reading| if reading.latest { LATEST } else { EARLIEST })),
        ];
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name, Attribute::Text(text?.to_owned()))));
        let others =
            [(PARTITION_KEY, Attribute::Text(key(&self.id))), (VERSION, Attribute::Number(version.to_string()))];
        texts.chain(others).map(|(name, attribute)| (name.to_owned(), attribute)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item() -> FlowItem {
        FlowItem {
            id: "226f".to_owned(),
            kind: "audience-change".to_owned(),
            enabled: true,
            options: Some("{}".to_owned()),
            auth_secret_id: Some("relay/senders/1".to_owned()),
            connection_secret_id: "relay/keys/1".to_owned(),
            host: Some("contoso.servicebus.windows.net".to_owned()),
            hub: "profiles".to_owned(),
            partitioning: Some("keys:16".to_owned()),
            tenant: Some("acme#prod".to_owned()),
            reading: Some(Reading { group: "relay".to_owned(), latest: true }),
        }
    }

    #[test]
    fn an_item_is_read_as_it_was_written() {
        let least = FlowItem {
            enabled: false,
            options: None,
            auth_secret_id: None,
            host: None,
            partitioning: None,
            tenant: None,
            reading: None,
            ..item()
        };
        let earliest = FlowItem { reading: Some(Reading { group: "relay".to_owned(), latest: false }), ..item() };
        for item in [item(), least, earliest] {
            let json = serde_json::to_string(&item.attributes(7)).unwrap();
            let attributes: Attributes = serde_json::from_str(&json).unwrap();
            assert_eq!(FlowItem::read(&attributes), Ok(item));
            assert_eq!((id(&attributes), version(&attributes)), (Some("226f"), Some(7)));
        }
    }

    #[test]
    fn the_attributes_are_in_dynamodbs_json() {
        let json = serde_json::to_value(item().attributes(7)).unwrap();
        let text = |text: &str| serde_json::json!({ "S": text });
        assert_eq!((&json["pk"], &json["state"]), (&text("FLOW#226f"), &text("enabled")));
        assert_eq!((&json["version"], &json["reset"]), (&serde_json::json!({ "N": "7" }), &text("latest")));
    }

    #[test]
    fn an_unusable_attribute_is_named() {
        let problem = |name: &str, attribute: Option<&str>| {
            let mut attributes = item().attributes(1);
            match attribute {
                Some(json) => attributes.insert(name.to_owned(), serde_json::from_str(json).unwrap()),
                None => attributes.remove(name),
            };
            FlowItem::read(&attributes).unwrap_err()
        };
        assert_eq!(problem("hub", None), "`hub`: missing");
        assert_eq!(problem("hub", Some(r#"{"S":""}"#)), "`hub`: missing");
        assert_eq!(problem("host", Some(r#"{"BOOL":true}"#)), "`host`: expected text");
        assert_eq!(problem("state", Some(r#"{"S":"paused"}"#)), "`state`: expected enabled or disabled");
        assert_eq!(problem("pk", Some(r#"{"S":"TENANT#1"}"#)), "`pk`: expected `FLOW#` and an id");
    }
}
