//! What an operator sets for a flow of this kind.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};
use shared::json::{Object, Text};

use crate::context::Context;

/// `FLOW_OPTIONS` of a `dataverse-event` flow.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Options {
    /// What the message's body is: the context's original bytes, or its XML.
    pub message_format: MessageFormat,
    /// The contexts to pass, as one registers steps; without it all are.
    #[serde(deserialize_with = "steps")]
    #[schemars(with = "Option<Vec<Step>>", length(min = 1))]
    pub steps: Option<Vec<Object<Step>>>,
    /// Maximum size of the outgoing body in bytes, by default 196,608 as at Dataverse's own endpoint. The four members that
    /// Dataverse removes are removed from a larger one, and from one that does not fit a request to the hub.
    #[schemars(range(min = 1))]
    pub max_bytes: Option<usize>,
    /// Whether the ids of the users become properties, as `userclaim` of a service endpoint.
    pub user_claim: UserClaim,
}

impl Default for Options {
    fn default() -> Self {
        Self { message_format: MessageFormat::Json, steps: None, max_bytes: None, user_claim: UserClaim::None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum MessageFormat {
    Json,
    Xml,
}

impl<'de> Deserialize<'de> for MessageFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Text(format) = Text::deserialize(deserializer)?;
        match format.as_ref() {
            "json" => Ok(Self::Json),
            "xml" => Ok(Self::Xml),
            binary if binary.to_ascii_lowercase().contains("bin") => {
                Err(de::Error::custom("binary XML (application/msbin1) is not offered for event hubs; use json or xml"))
            }
            _ => Err(de::Error::custom("expected json or xml")),
        }
    }
}

/// `userInfo` gives what `userId` gives: a context holds nothing else about its users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum UserClaim {
    None,
    UserId,
    UserInfo,
}

/// The expressions of JSON Schema do not count the control character U+0085 as white space; Rust does.
const NOT_BLANK: &str = r"[^\s\u0085]";

/// A step as one registers it. Names compare without case.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Step {
    /// `Create`, `Update`, …, or a custom message's unique name.
    #[serde(deserialize_with = "name")]
    #[schemars(regex(pattern = NOT_BLANK))]
    pub message: String,
    /// The table's logical name; blank or left out means every table.
    #[serde(default)]
    pub entity: Option<String>,
    /// An Update passes if one of these columns is in the request, or if the request does not show its columns.
    #[serde(default, deserialize_with = "columns")]
    #[schemars(length(min = 1), inner(regex(pattern = NOT_BLANK)))]
    pub filtering_attributes: Option<Vec<String>>,
}

impl Step {
    /// Whether Dataverse would have run this step for `context`.
    fn matches(&self, context: &Context<'_>) -> bool {
        let same = |one: &str, other: &str| one.trim().eq_ignore_ascii_case(other);
        let entity = self.entity.as_deref().filter(|entity| !entity.trim().is_empty());
        let filtered = same("Update", &context.message).then_some(self.filtering_attributes.as_deref()).flatten();
        same(&self.message, &context.message)
            && entity.is_none_or(|entity| same(entity, &context.table))
            && match (filtered, context.names_of_columns()) {
                (Some(names), Some(columns)) => names.iter().any(|name| columns.contains(name)),
                // No filter, or the columns were trimmed away.
                _ => true,
            }
    }
}

impl Options {
    pub fn passes(&self, context: &Context<'_>) -> bool {
        self.steps.as_ref().is_none_or(|steps| steps.iter().any(|Object(step)| step.matches(context)))
    }

    /// Against what one request to the hub may hold.
    pub fn check(&self, max_batch_bytes: usize) -> Result<(), String> {
        match self.max_bytes {
            Some(0) => Err("`maxBytes`: must be at least 1".to_owned()),
            Some(max) if max > max_batch_bytes => Err(format!(
                "`maxBytes`: {max} is more than EVENT_HUBS_MAX_BATCH_BYTES ({max_batch_bytes}); set it lower"
            )),
            _ => Ok(()),
        }
    }
}

fn steps<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Object<Step>>>, D::Error> {
    let steps = Option::<Vec<Object<Step>>>::deserialize(deserializer)?;
    if steps.as_ref().is_some_and(Vec::is_empty) {
        return Err(de::Error::custom("the array is empty; leave it out to pass all contexts"));
    }
    Ok(steps)
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if name.trim().is_empty() {
        return Err(de::Error::custom("the name is blank"));
    }
    Ok(name)
}

/// Names of columns without blanks around them, in lower case.
fn columns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    let columns = Option::<Vec<String>>::deserialize(deserializer)?;
    if columns.as_ref().is_some_and(Vec::is_empty) {
        return Err(de::Error::custom("the array is empty; leave it out to pass every update"));
    }
    if columns.iter().flatten().any(|column| column.trim().is_empty()) {
        return Err(de::Error::custom("a name is blank"));
    }
    Ok(columns.map(|columns| columns.iter().map(|column| column.trim().to_ascii_lowercase()).collect()))
}
