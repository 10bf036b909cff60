//! The configuration of a data-plane function, read once from the environment. A value that can't be used fails the init
//! and names its variable; an empty one counts as absent, since templates can't leave a variable out as easily.

use std::fmt;
use std::sync::Arc;

use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

use crate::aws::{Aws, AwsError};
use crate::connection::Wanted;
use crate::partitioning::Partitioning;

/// Looks variables up; tests put their own in.
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

/// A value that can't be used, by the name of its variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {problem}")]
pub struct SettingsError {
    pub variable: &'static str,
    pub problem: String,
    /// It could not be read now; later it may.
    pub may_heal: bool,
}

impl SettingsError {
    pub fn new(variable: &'static str, problem: impl fmt::Display) -> Self {
        Self { variable, problem: problem.to_string(), may_heal: false }
    }

    pub fn unread(variable: &'static str, error: &AwsError) -> Self {
        Self { variable, problem: error.to_string(), may_heal: error.may_heal() }
    }
}

pub const CONNECTION_STRING: &str = "EVENT_HUBS_CONNECTION_STRING";
pub const CONNECTION_SECRET_ID: &str = "EVENT_HUBS_SECRET_ID";
pub const HUB_NAME: &str = "EVENT_HUB_NAME";
pub const SENDER_AUTH: &str = "SENDER_AUTH";
pub const SENDER_AUTH_SECRET_ID: &str = "SENDER_AUTH_SECRET_ID";
pub const FLOW_OPTIONS: &str = "FLOW_OPTIONS";
const PARTITIONING: &str = "PARTITIONING";
const MAX_BATCH_BYTES: &str = "EVENT_HUBS_MAX_BATCH_BYTES";
pub const EXTRA_CA_CERTS: &str = "EXTRA_CA_CERTS";
pub const FLOWS_TABLE: &str = "FLOWS_TABLE";
pub const PARKING_QUEUE_URL: &str = "PARKING_QUEUE_URL";
pub const REJECTED_QUEUE_URL: &str = "REJECTED_QUEUE_URL";
const METRICS_BY_FLOW: &str = "METRICS_BY_FLOW";

/// A secret text: in the environment, or in Secrets Manager.
#[derive(Debug, Clone)]
pub struct SecretSource {
    pub variable: &'static str,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Environment(SecretString),
    SecretsManager(String),
}

impl SecretSource {
    fn read(
        environment: &Environment,
        value: &'static str,
        secret_id: &'static str,
    ) -> Result<Option<Self>, SettingsError> {
        match (environment.get(value), environment.get(secret_id)) {
            (Some(_), Some(_)) => Err(SettingsError::new(secret_id, format!("{value} is set too; set one of them"))),
            (Some(text), None) => Ok(Some(Self { variable: value, place: Place::Environment(text.into()) })),
            (None, Some(id)) => Ok(Some(Self { variable: secret_id, place: Place::SecretsManager(id) })),
            (None, None) => Ok(None),
        }
    }

    /// A secret that a flow's item or an envelope names.
    pub fn secret(variable: &'static str, id: &str) -> Self {
        Self { variable, place: Place::SecretsManager(id.to_owned()) }
    }

    /// Name or ARN of the secret, if it is one.
    pub fn secret_id(&self) -> Option<&str> {
        match &self.place {
            Place::Environment(_) => None,
            Place::SecretsManager(id) => Some(id),
        }
    }

    /// Whether reading again can give something else.
    pub fn can_change(&self) -> bool {
        self.secret_id().is_some()
    }

    /// The text as it is now.
    pub async fn text(&self, aws: &Aws, deadline: tokio::time::Instant) -> Result<SecretString, AwsError> {
        match &self.place {
            Place::Environment(text) => Ok(text.clone()),
            Place::SecretsManager(id) => aws.secret(id, deadline).await,
        }
    }
}

/// Everything a data-plane function is told.
#[derive(Debug)]
pub struct Settings {
    /// Of the default flow.
    pub connection: Option<SecretSource>,
    pub hub_name: Option<String>,
    pub sender_auth: Option<SecretSource>,
    pub flow_options: Option<String>,
    pub partitioning: Partitioning,
    /// Size budget of one request, in bytes.
    pub max_batch_bytes: usize,
    pub extra_ca_certs: Option<String>,
    pub flows_table: Option<String>,
    pub parking_queue_url: Option<String>,
    pub rejected_queue_url: Option<String>,
    /// Whether the flow is a dimension of the metrics.
    pub metrics_by_flow: bool,
}

/// The service takes 1 MB per request; a little is left for what the gateway counts and does not document.
const DEFAULT_MAX_BATCH_BYTES: usize = 1_000_000;
/// Dedicated clusters can be set up for messages of up to 20 MB.
const LARGEST_MAX_BATCH_BYTES: usize = 20 * 1024 * 1024;

impl Settings {
    /// The connection of the default flow. Only a function with a table of flows may be without one.
    pub fn default_connection(&self) -> Result<Option<SecretSource>, SettingsError> {
        if self.connection.is_none() && self.flows_table.is_none() {
            return Err(SettingsError::new(
                CONNECTION_STRING,
                format!("missing; set it, {CONNECTION_SECRET_ID} to the name of its secret, or {FLOWS_TABLE}"),
            ));
        }
        Ok(self.connection.clone())
    }

    /// The default flow's hub.
    pub fn wanted_hub(&self) -> Wanted {
        Wanted { hub: self.hub_name.clone().map(|hub| (HUB_NAME, hub)), host: None }
    }

    /// Whether AWS is called, and for which setting.
    pub fn needs_aws(&self) -> Option<&'static str> {
        let by_secret = |source: &Option<SecretSource>| source.as_ref().filter(|s| s.can_change()).map(|s| s.variable);
        let set = |value: &Option<String>, variable| value.as_ref().map(|_| variable);
        by_secret(&self.connection)
            .or_else(|| by_secret(&self.sender_auth))
            .or_else(|| set(&self.flows_table, FLOWS_TABLE))
            .or_else(|| set(&self.parking_queue_url, PARKING_QUEUE_URL))
            .or_else(|| set(&self.rejected_queue_url, REJECTED_QUEUE_URL))
    }

    /// Reads and checks all that can be checked without a call.
    pub fn read(environment: &Environment) -> Result<Self, SettingsError> {
        check_proxies(environment)?;
        let partitioning = match environment.get(PARTITIONING) {
            None => Partitioning::default(),
            Some(text) => text.parse().map_err(|problem| SettingsError::new(PARTITIONING, problem))?,
        };
        let max_batch_bytes = match environment.get(MAX_BATCH_BYTES) {
            None => DEFAULT_MAX_BATCH_BYTES,
            Some(text) => {
                text.parse().ok().filter(|bytes| (1_000..=LARGEST_MAX_BATCH_BYTES).contains(bytes)).ok_or_else(
                    || {
                        SettingsError::new(
                            MAX_BATCH_BYTES,
                            format!("expected a number of bytes from 1000 to {LARGEST_MAX_BATCH_BYTES}"),
                        )
                    },
                )?
            }
        };
        let metrics_by_flow = match environment.get(METRICS_BY_FLOW).as_deref() {
            None | Some("0") => false,
            Some("1") => true,
            Some(_) => return Err(SettingsError::new(METRICS_BY_FLOW, "expected 1, or nothing")),
        };
        Ok(Self {
            connection: SecretSource::read(environment, CONNECTION_STRING, CONNECTION_SECRET_ID)?,
            hub_name: environment.get(HUB_NAME).map(|name| name.trim().to_owned()),
            sender_auth: SecretSource::read(environment, SENDER_AUTH, SENDER_AUTH_SECRET_ID)?,
            flow_options: environment.get(FLOW_OPTIONS),
            partitioning,
            max_batch_bytes,
            extra_ca_certs: environment.get(EXTRA_CA_CERTS),
            flows_table: environment.get(FLOWS_TABLE),
            parking_queue_url: queue_url(environment, PARKING_QUEUE_URL)?,
            rejected_queue_url: queue_url(environment, REJECTED_QUEUE_URL)?,
            metrics_by_flow,
        })
    }
}

fn queue_url(environment: &Environment, variable: &'static str) -> Result<Option<String>, SettingsError> {
    let Some(text) = environment.get(variable) else { return Ok(None) };
    match Url::parse(&text) {
        Ok(_) if text.ends_with(".fifo") => {
            Err(SettingsError::new(variable, "expected a standard queue, not a FIFO one"))
        }
        Ok(url) if ["http", "https"].contains(&url.scheme()) => Ok(Some(text)),
        _ => Err(SettingsError::new(variable, "expected the URL of an SQS queue (https://sqs.…), not its name or ARN")),
    }
}

/// The connection string of a secret: `{"username":"$ConnectionString","password":"Endpoint=sb://…"}`, the form that
/// Lambda's Kafka source reads too, or the bare string.
pub fn connection_string_of(secret: &SecretString) -> Result<SecretString, &'static str> {
    #[derive(serde::Deserialize)]
    struct BasicAuth {
        password: SecretString,
    }
    if !secret.expose_secret().trim_start().starts_with('{') {
        return Ok(secret.clone());
    }
    serde_json::from_str::<BasicAuth>(secret.expose_secret()).map(|secret| secret.password).map_err(
        |_| "expected a connection string, or {\"username\":\"$ConnectionString\",\"password\":\"Endpoint=sb://…\"}",
    )
}

/// The variables of proxies, as the HTTP client reads them.
const PROXIES: [&str; 6] = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
const NO_PROXIES: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// Refuses values that the HTTP client would ignore.
fn check_proxies(environment: &Environment) -> Result<(), SettingsError> {
    let value = |variable: &'static str| Some((variable, environment.get(variable)?));
    for (variable, text) in PROXIES.into_iter().filter_map(value) {
        let is_usable = text
            .parse::<http::Uri>()
            .is_ok_and(|uri| uri.authority().is_some() && matches!(uri.scheme_str(), None | Some("http" | "https")));
        if !is_usable {
            return Err(SettingsError::new(variable, "expected the URL of a proxy, such as http://proxy.example:3128"));
        }
    }
    for (variable, text) in NO_PROXIES.into_iter().filter_map(value) {
        if text.split(',').map(str::trim).any(|entry| !entry.is_empty() && !is_no_proxy_entry(entry)) {
            return Err(SettingsError::new(
                variable,
                "expected host names, domains, addresses and networks, separated by commas, without ports and without `*` (except `*` alone); a domain includes its subdomains",
            ));
        }
    }
    Ok(())
}

fn is_no_proxy_entry(entry: &str) -> bool {
    let is_address = |text: &str| text.parse::<std::net::IpAddr>().is_ok();
    let is_network = |text: &str| {
        text.split_once('/').is_some_and(|(address, bits)| is_address(address) && bits.parse::<u8>().is_ok())
    };
    let is_name = |text: &str| text.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'));
    entry == "*" || is_address(entry) || is_network(entry) || is_name(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &'static [(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::read(&Environment::from_fn(move |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        }))
    }

    #[test]
    fn defaults_are_as_documented() {
        let settings = read(&[(CONNECTION_STRING, "Endpoint=…"), (PARTITIONING, " ")]).unwrap();
        assert_eq!(settings.partitioning, Partitioning::Keys(16));
        assert_eq!(settings.max_batch_bytes, 1_000_000);
        assert!(settings.sender_auth.is_none());
    }

    #[test]
    fn errors_name_the_variable_and_no_secret() {
        assert_eq!(read(&[]).unwrap().default_connection().unwrap_err().variable, CONNECTION_STRING);
        assert!(read(&[(FLOWS_TABLE, "flows")]).unwrap().default_connection().unwrap().is_none());
        let variable = |variables| read(variables).unwrap_err().variable;
        assert_eq!(variable(&[(PARKING_QUEUE_URL, "parking")]), PARKING_QUEUE_URL);
        assert_eq!(variable(&[(CONNECTION_STRING, "a"), (CONNECTION_SECRET_ID, "b")]), CONNECTION_SECRET_ID);
        assert_eq!(variable(&[(CONNECTION_STRING, "a"), (PARTITIONING, "keys")]), PARTITIONING);
        assert_eq!(variable(&[(CONNECTION_STRING, "a"), (MAX_BATCH_BYTES, "1e6")]), MAX_BATCH_BYTES);
        let settings = read(&[(CONNECTION_STRING, "topsecret"), (SENDER_AUTH, "topsecret")]).unwrap();
        assert!(!format!("{settings:?}").contains("topsecret"));
    }

    #[test]
    fn proxy_settings_that_would_be_ignored_are_refused() {
        let variable = |name: &'static str, value: &'static str| {
            let lookup = move |asked: &str| (asked == name).then(|| value.to_owned());
            Settings::read(&Environment::from_fn(lookup)).err().map(|error| error.variable)
        };
        for value in ["http://user:p@proxy.example:3128", "proxy.example:3128", "https://proxy.example"] {
            assert_eq!(variable("HTTPS_PROXY", value), None, "{value}");
        }
        for value in [" http://proxy.example:3128", "http://", "socks5://proxy.example:1080", "http://proxy example"] {
            assert_eq!(variable("HTTPS_PROXY", value), Some("HTTPS_PROXY"), "{value}");
            assert_eq!(variable("all_proxy", value), Some("all_proxy"), "{value}");
        }
        for value in ["*", "windows.net, .example.com,10.0.0.0/8,::1,169.254.169.254,"] {
            assert_eq!(variable("NO_PROXY", value), None, "{value}");
        }
        for value in ["*.windows.net", "a.example,b.example:443", "http://a.example", "a.example b.example"] {
            assert_eq!(variable("no_proxy", value), Some("no_proxy"), "{value}");
        }
    }

    #[test]
    fn both_forms_of_the_secret_are_read() {
        let read = |text: &str| connection_string_of(&text.into()).map(|text| text.expose_secret().to_owned());
        assert_eq!(read("Endpoint=a").as_deref(), Ok("Endpoint=a"));
        assert_eq!(read(r#"{"username":"$ConnectionString","password":"Endpoint=a"}"#).as_deref(), Ok("Endpoint=a"));
        assert!(read(r#"{"user":"x"}"#).is_err());
    }
}
