//! The options of a flow from a hub into a streaming inlet: the control API writes them into the flow's item, the function
//! that sends the records reads them.

use serde::{Deserialize, Serialize};

/// The function that sends the records, as flow items, log lines and rejected events name it.
pub const KIND: &str = "platform-ingest";

/// The domain of the hosts that records may be sent to.
pub const INLET_DOMAIN: &str = ".adobedc.net";
/// The domain of the hosts that client secrets may be sent to.
pub const TOKEN_DOMAIN: &str = ".adobelogin.com";
/// Maximum number of records of one request, whatever the option says.
pub const MAX_BATCH: usize = 1000;

/// The names of the options.
pub mod option {
    pub const URL: &str = "inletUrl";
    pub const FLOW_ID: &str = "inletFlowId";
    pub const FORMAT: &str = "format";
    pub const SCHEMA_ID: &str = "schemaId";
    pub const SCHEMA_CONTENT_TYPE: &str = "schemaContentType";
    pub const DATASET_ID: &str = "datasetId";
    pub const ORG_ID: &str = "orgId";
    pub const SANDBOX: &str = "sandbox";
    pub const BATCH_MAX: &str = "batchMax";
    pub const IMS_SECRET_ID: &str = "imsSecretId";
    pub const IMS_TOKEN_URL: &str = "imsTokenUrl";
    pub const IMS_SCOPE: &str = "imsScope";
}

/// The options of a flow into an inlet. Which of them are required depends on the format; their reader checks it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InletOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inlet_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inlet_flow_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub org_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_max: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ims_secret_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ims_token_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ims_scope: Option<String>,
}

/// The form of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Raw,
    Xdm,
}

impl InletOptions {
    /// The text of the item's `options`.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers always serialise")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::from_config;

    #[test]
    fn options_are_read_as_they_were_written() {
        let text = |name: &str| Some(format!("a {name}"));
        let options = InletOptions {
            inlet_url: text("url"),
            inlet_flow_id: text("flow"),
            format: Some(Format::Xdm),
            schema_id: text("schema"),
            schema_content_type: text("content type"),
            dataset_id: text("dataset"),
            org_id: text("organisation"),
            sandbox: text("sandbox"),
            batch_max: Some(7),
            ims_secret_id: text("secret"),
            ims_token_url: text("token url"),
            ims_scope: text("scope"),
        };
        assert_eq!(from_config::<InletOptions>(&options.to_json()), Ok(options.clone()));
        assert_eq!(from_config::<InletOptions>(&InletOptions::default().to_json()), Ok(InletOptions::default()));
        let written: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&options.to_json()).unwrap();
        let mut names = [
            option::URL,
            option::FLOW_ID,
            option::FORMAT,
            option::SCHEMA_ID,
            option::SCHEMA_CONTENT_TYPE,
            option::DATASET_ID,
            option::ORG_ID,
            option::SANDBOX,
            option::BATCH_MAX,
            option::IMS_SECRET_ID,
            option::IMS_TOKEN_URL,
            option::IMS_SCOPE,
        ];
        names.sort_unstable();
        assert!(written.keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>().into_iter().eq(names));
    }
}
