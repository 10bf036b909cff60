//! The configuration of a data-plane function, read once from the environment. A value that is not usable makes start-up fail,
//! with the name of its variable. An empty value counts as absent, because a template can't easily leave a variable out.

use std::sync::Arc;

use reqwest::Url;

use crate::aws::Aws;
use crate::aws::secret::SecretSource;
use crate::aws::sqs::Queue;
use crate::clock::Clock;
use crate::environment::{
    CONNECTION_SECRET_ID, CONNECTION_STRING, EXTRA_CA_CERTS, Environment, FLOW_OPTIONS, FLOWS_TABLE, HUB_NAME,
    MAX_BATCH_BYTES, METRICS_BY_FLOW, PARKING_QUEUE_URL, PARTITIONING, REJECTED_QUEUE_URL, SENDER_AUTH,
    SENDER_AUTH_SECRET_ID, SettingsError,
};
use crate::event_hubs::Hubs;
use crate::event_hubs::connection::Wanted;
use crate::event_hubs::partitioning::Partitioning;
use crate::flow::table::FlowTable;
use crate::pipeline::services::Services;
use crate::undelivered::parking::Parking;
use crate::undelivered::rejects::Rejects;

/// The settings of a data-plane function.
#[derive(Debug)]
pub struct Settings {
    /// Connection string of the default flow.
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

/// Default size budget of a request, in bytes. The service accepts 1 MB; the rest is for what the gateway counts and does not
/// document.
const DEFAULT_MAX_BATCH_BYTES: usize = 1_000_000;
/// Maximum of the size budget, in bytes: dedicated clusters can be set up for messages of up to 20 MB.
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
        Wanted { setting: HUB_NAME, hub: self.hub_name.clone(), host: None }
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

    /// Opens what these settings name. Calls nothing yet.
    ///
    /// # Errors
    /// Fails if the certificates or the AWS credentials are not usable.
    pub fn services(&self, environment: Environment, clock: Clock) -> Result<Services, SettingsError> {
        let http = crate::http::build(self.extra_ca_certs.as_deref())
            .map_err(|problem| SettingsError::new(EXTRA_CA_CERTS, problem))?;
        let aws = Aws::new(http.clone(), environment, clock.clone());
        if let Some(variable) = self.needs_aws() {
            aws.check().map_err(|error| SettingsError::new(variable, error))?;
        }
        let queue = |url: &Option<String>| url.as_ref().map(|url| Queue::new(aws.clone(), url.clone()));
        let table = |name: &String| Arc::new(FlowTable::new(aws.clone(), name.clone(), clock.clone()));
        Ok(Services {
            flow_table: self.flows_table.as_ref().map(table),
            parking: queue(&self.parking_queue_url).map(Parking::new),
            rejects: queue(&self.rejected_queue_url).map(Rejects::new),
            metrics_by_flow: self.metrics_by_flow,
            hubs: Hubs::new(http, aws, clock, self.max_batch_bytes),
        })
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
}
