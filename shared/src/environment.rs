//! Environment variables: their names, their lookup, and the error of an unusable one.

use std::fmt;
use std::sync::Arc;

/// Looks variables up. Tests supply their own lookup.
#[derive(Clone)]
pub struct Environment(Arc<Lookup>);

type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

impl Environment {
    /// The environment of the process.
    pub fn process() -> Self {
        Self(Arc::new(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())))
    }

    pub fn from_fn(lookup: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(lookup))
    }

    /// The value of `name`, unless it is unset or blank.
    pub fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.trim().is_empty())
    }
}

/// A variable whose value can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {problem}")]
pub struct SettingsError {
    pub variable: &'static str,
    pub problem: String,
    /// Whether another read may succeed: a service did not respond.
    pub is_transient: bool,
}

impl SettingsError {
    pub fn new(variable: &'static str, problem: impl fmt::Display) -> Self {
        Self { variable, problem: problem.to_string(), is_transient: false }
    }
}

pub const CONNECTION_STRING: &str = "EVENT_HUBS_CONNECTION_STRING";
pub const CONNECTION_SECRET_ID: &str = "EVENT_HUBS_SECRET_ID";
pub const HUB_NAME: &str = "EVENT_HUB_NAME";
pub const SENDER_AUTH: &str = "SENDER_AUTH";
pub const SENDER_AUTH_SECRET_ID: &str = "SENDER_AUTH_SECRET_ID";
pub const FLOW_OPTIONS: &str = "FLOW_OPTIONS";
pub const PARTITIONING: &str = "PARTITIONING";
pub const MAX_BATCH_BYTES: &str = "EVENT_HUBS_MAX_BATCH_BYTES";
pub const EXTRA_CA_CERTS: &str = "EXTRA_CA_CERTS";
pub const FLOWS_TABLE: &str = "FLOWS_TABLE";
pub const PARKING_QUEUE_URL: &str = "PARKING_QUEUE_URL";
pub const REJECTED_QUEUE_URL: &str = "REJECTED_QUEUE_URL";
pub const METRICS_BY_FLOW: &str = "METRICS_BY_FLOW";
