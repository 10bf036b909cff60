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

/// Connection string of the hub, for local use. With `UseDevelopmentEmulator=true` in it, requests go to the host and port of
/// `Endpoint`, over TLS when its scheme is `https`, else over plain http.
pub const CONNECTION_STRING: &str = "EVENT_HUBS_CONNECTION_STRING";
/// Alternative to `EVENT_HUBS_CONNECTION_STRING`: name or ARN of the Secrets Manager secret that holds it, as
/// `{"username":"$ConnectionString","password":"Endpoint=sb://…"}` or bare. Read at start-up, and again when the hub responds
/// with 401, so that a changed key needs no deployment.
pub const CONNECTION_SECRET_ID: &str = "EVENT_HUBS_SECRET_ID";
/// The hub, when the connection string has no `EntityPath`. With one, both must be the same name, in any case.
pub const HUB_NAME: &str = "EVENT_HUB_NAME";
/// Who may send webhooks: `none`, or a JSON array of accepted credentials, several at a time for rotation:
/// `{"type":"bearer","secret":…}`, `{"type":"basic","username":…,"secret":…}`, `{"type":"header","name":…,"secret":…}`,
/// `{"type":"query","name":…,"secret":…}`, `{"type":"standard-webhooks","secret":"whsec_…"}`. Unset: webhooks get 401, queues
/// work.
pub const SENDER_AUTH: &str = "SENDER_AUTH";
/// Alternative to `SENDER_AUTH`: name or ARN of the secret that holds the same text.
pub const SENDER_AUTH_SECRET_ID: &str = "SENDER_AUTH_SECRET_ID";
/// The options of the kind, as JSON.
pub const FLOW_OPTIONS: &str = "FLOW_OPTIONS";
/// How subjects share requests, since one request goes to one partition: `keys:16` (default), `partitions:N` for a hub with N
/// partitions, `subject` (the unhashed subject as key), `none` (no order).
pub const PARTITIONING: &str = "PARTITIONING";
/// Maximum size of one request in bytes, default 1000000 (Basic tier: 240000).
pub const MAX_BATCH_BYTES: &str = "EVENT_HUBS_MAX_BATCH_BYTES";
/// PEM file of additional root certificates: of a proxy that inspects TLS, or of a local TLS endpoint.
pub const EXTRA_CA_CERTS: &str = "EXTRA_CA_CERTS";
/// DynamoDB table with additional flows, which the [control API](control-api.md) writes. Without it there is only the flow
/// `default`.
pub const FLOWS_TABLE: &str = "FLOWS_TABLE";
/// SQS queue for messages that the hub does not accept now; `redelivery` empties it. Set its `MaximumMessageSize` to 1048576:
/// queues from before August 2025 and those of some tools have 262144, and then larger messages can't be parked. Without this
/// queue the sender gets 503, and a record is returned to its queue.
pub const PARKING_QUEUE_URL: &str = "PARKING_QUEUE_URL";
/// SQS queue for copies of events that can never be delivered, also with `MaximumMessageSize` 1048576, so that large events are
/// stored whole. Without this queue, one invalid element causes the whole array to be rejected, and an invalid record ends up in
/// the dead-letter queue of its own queue.
pub const REJECTED_QUEUE_URL: &str = "REJECTED_QUEUE_URL";
/// `1`: metrics of each flow too, not only of each kind; [what they cost](metrics.md#metrics-of-each-flow). Default `0`.
pub const METRICS_BY_FLOW: &str = "METRICS_BY_FLOW";
