//! The item of a flow in the table: the control API writes it, the functions read it.

use std::collections::HashMap;

use serde::Deserialize;

/// A flow as the control API wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowItem {
    pub kind: String,
    pub enabled: bool,
    /// The kind's options, JSON.
    pub options: Option<String>,
    /// Of the secret that says how senders authenticate.
    pub auth_secret_id: Option<String>,
    /// Of the secret with the connection string.
    pub connection_secret_id: String,
    /// Host, and port if it is not the usual one, that the connection string must have.
    pub host: Option<String>,
    pub hub: String,
    /// How messages are grouped, as in `PARTITIONING`.
    pub partitioning: Option<String>,
}

/// The attributes of an item, in DynamoDB's JSON.
pub type Attributes = HashMap<String, Attribute>;

/// An attribute of a DynamoDB item; of a type other than text only its being there counts.
#[derive(Deserialize)]
pub struct Attribute {
    #[serde(rename = "S")]
    text: Option<String>,
}

impl FlowItem {
    /// # Errors
    /// Names the attribute and what is wrong with it.
    pub fn read(attributes: &Attributes) -> Result<Self, String> {
        let text = |name: &str| match attributes.get(name) {
            None => Ok(None),
            Some(Attribute { text: Some(text) }) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            Some(Attribute { text: None }) => Err(format!("`{name}`: expected text")),
        };
        let needed = |name: &str| text(name)?.ok_or_else(|| format!("`{name}`: missing"));
        Ok(Self {
            kind: needed("kind")?,
            enabled: match needed("state")?.as_str() {
                "enabled" => true,
                "disabled" => false,
                _ => return Err("`state`: expected enabled or disabled".to_owned()),
            },
            options: text("options")?,
            auth_secret_id: text("authSecretId")?,
            connection_secret_id: needed("connectionSecretId")?,
            host: text("host")?,
            hub: needed("hub")?,
            partitioning: text("partitioning")?,
        })
    }
}
