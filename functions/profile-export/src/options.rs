//! What an operator sets for a flow of this kind.

use std::collections::{HashMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

/// `FLOW_OPTIONS` of a `profile-export` flow.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Options {
    /// Ids of audiences, in any namespace: other memberships are removed. Without it all are passed.
    #[serde(deserialize_with = "names")]
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    pub audiences: Option<HashSet<String>>,
    /// Identity namespaces in order of preference, in any case: the first id of the first that the profile has is the
    /// ordering subject. Without it, or where it has none, the smallest `namespace:id` is.
    #[serde(deserialize_with = "ranks")]
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    pub partition_by: Option<Ranks>,
    pub split: Split,
}

/// How many messages a profile makes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Split {
    /// One.
    #[default]
    Profile,
    /// One per membership, each with that membership alone.
    Membership,
}

/// The place of each identity namespace in an order of preference, by its name in lower case.
pub type Ranks = HashMap<String, usize>;

fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<HashSet<String>>, D::Error> {
    let names = Option::<HashSet<String>>::deserialize(deserializer)?;
    if names.as_ref().is_some_and(HashSet::is_empty) {
        return Err(de::Error::custom("the array is empty; leave it out"));
    }
    Ok(names)
}

fn ranks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Ranks>, D::Error> {
    let Some(names) = Option::<Vec<String>>::deserialize(deserializer)? else { return Ok(None) };
    if names.is_empty() {
        return Err(de::Error::custom("the array is empty; leave it out"));
    }
    // The first place of a repeated name counts.
    Ok(Some(names.iter().enumerate().rev().map(|(rank, name)| (name.to_ascii_lowercase(), rank)).collect()))
}
