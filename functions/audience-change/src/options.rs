//! What an operator sets for a flow of this kind.

use std::collections::{BTreeMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;
use shared::json::Object;

use crate::event::CallType;

/// The product's own profile id: never sent as a partner's.
pub const OWN_PARTNER_NUMBER: i64 = 42;

/// `FLOW_OPTIONS` of an `audience-change` flow.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Options {
    /// The kind of id to send; without it the event's own counts. Never 42.
    #[serde(deserialize_with = "partner_number")]
    #[schemars(extend("not" = { "const": 42 }))]
    pub partner_number: Option<i64>,
    /// Names of the profile variables to pass; without it all are.
    #[serde(deserialize_with = "names")]
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    pub profile_vars: Option<HashSet<String>>,
    /// The `sourceName` where neither the event nor `sources` gives one.
    pub source_name: Option<String>,
    /// Members of `data`; those of `sources` and of the event win.
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub data: Data,
    /// By `sourceId`.
    #[schemars(with = "BTreeMap<String, Source>")]
    pub sources: BTreeMap<String, Object<Source>>,
    /// The `callType` of events that have none. Without it they are rejected.
    pub default_call_type: Option<CallType>,
}

/// What belongs to one audience or journey step.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Source {
    pub source_name: Option<String>,
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub data: Data,
}

/// Property/value pairs; values keep their spelling.
pub type Data = BTreeMap<String, Box<RawValue>>;

fn partner_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let number = Option::<i64>::deserialize(deserializer)?;
    if number == Some(OWN_PARTNER_NUMBER) {
        return Err(de::Error::custom(
            "42 is the product's own profile id, which is never sent; name another partner number",
        ));
    }
    Ok(number)
}

fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<HashSet<String>>, D::Error> {
    let names = Option::<HashSet<String>>::deserialize(deserializer)?;
    if names.as_ref().is_some_and(HashSet::is_empty) {
        return Err(de::Error::custom("the array is empty; leave it out to pass all profile variables"));
    }
    Ok(names)
}
