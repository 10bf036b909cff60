//! The destination of records: the environment configures the default flow, the control API's table the other flows.
//!
//! # The item of a flow
//!
//! Lambda's events name neither flow nor source mapping. So each flow of the control API has an alias of this function, its
//! source mapping points at the alias, and the invoked ARN names the flow. Its item in the table (`FLOWS_TABLE`) has the
//! `kind` `platform-ingest`. Every record of a disabled flow is returned as failed, and so stays in the hub. The source
//! mapping uses `connectionSecretId` and `hub`; this function does not.
//!
//! `options` is an object of these members. An unknown member, or an unusable value, makes all records of the flow stay in
//! the hub, with an ERROR line that names the member.
//!
//! | member | variable of the default flow | |
//! |---|---|---|
//! | `inletUrl` | `INLET_URL` | required: `https://dcs.adobedc.net/collection/{inlet}`, the single endpoint, without a query |
//! | `inletFlowId` | `INLET_FLOW_ID` | required: the id of the dataflow at Adobe |
//! | `format` | `INLET_FORMAT` | `raw` (default) or `xdm` |
//! | `schemaId` | `INLET_SCHEMA_ID` | required for `xdm`, and refused for `raw`, as are the next three |
//! | `schemaContentType` | `INLET_SCHEMA_CONTENT_TYPE` | default `application/vnd.adobe.xed-full+json;version=1` |
//! | `datasetId` | `INLET_DATASET_ID` | required for `xdm` |
//! | `orgId` | `INLET_ORG_ID` | required for `xdm`: `…@AdobeOrg` |
//! | `sandbox` | `INLET_SANDBOX` | the header `x-sandbox-name`; absent: not sent |
//! | `batchMax` | `INLET_BATCH_MAX` | maximum number of records of a request, 1 to 1000, default 100; 1 is the single endpoint. `raw` is always sent singly and accepts only 1 |
//! | `imsSecretId` | `IMS_SECRET_ID` | name or ARN of the secret `{"client_id":…,"client_secret":…}`; absent: the inlet needs no token |
//! | `imsTokenUrl` | `IMS_TOKEN_URL` | default `https://ims-na1.adobelogin.com/ims/token/v3` |
//! | `imsScope` | `IMS_SCOPE` | default: the scopes that Adobe's own client asks for |
//!
//! An item is cached for 60 s, and longer while the table does not respond.
//!
//! Records are sent to `*.adobedc.net` and client secrets to `*.adobelogin.com`, over https. `EMULATOR_HOSTS` names
//! additional hosts, with their ports, that are sent to over plain http: for local use.

use reqwest::Url;
use shared::contract::inlet::{Format, INLET_DOMAIN, InletOptions, MAX_BATCH, TOKEN_DOMAIN, option};
use shared::environment::{Environment, SettingsError};

use crate::envelope::{Envelope, Header};

/// URL of the default flow's inlet. Unset, no default flow exists.
pub const INLET_URL: &str = "INLET_URL";
pub const IMS_SECRET_ID: &str = "IMS_SECRET_ID";
pub const IMS_TOKEN_URL: &str = "IMS_TOKEN_URL";
pub const INLET_FLOW_ID: &str = "INLET_FLOW_ID";
pub const INLET_ORG_ID: &str = "INLET_ORG_ID";
pub const INLET_SCHEMA_ID: &str = "INLET_SCHEMA_ID";
const FORMAT: &str = "INLET_FORMAT";
const BATCH_MAX: &str = "INLET_BATCH_MAX";
const EMULATOR_HOSTS: &str = "EMULATOR_HOSTS";
const BATCH_FAILURES: &str = "BATCH_FAILURES";

const TOKEN_URL: &str = "https://ims-na1.adobelogin.com/ims/token/v3";
const SCOPE: &str = "openid,AdobeID,read_organizations,additional_info.projectedProductContext,session";
const CONTENT_TYPE: &str = "application/vnd.adobe.xed-full+json;version=1";
/// Number of records of a request where the option does not set it.
const DEFAULT_BATCH_MAX: usize = 100;

/// An option that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{member}`: {problem}")]
pub struct OptionError {
    member: &'static str,
    problem: String,
}

/// The destination of records, their form, and the client whose token is sent.
#[derive(Debug)]
pub struct Target {
    pub shape: Shape,
    pub sandbox: Option<String>,
    pub ims: Option<Ims>,
}

/// The forms of a request.
#[derive(Debug)]
pub enum Shape {
    /// One object; a header names its flow.
    Raw { url: Url, flow_id: String },
    /// One envelope.
    Single { url: Url, envelope: Envelope },
    /// Up to `most` envelopes.
    Batch { url: Url, envelope: Envelope, most: usize },
}

/// The token service and its client.
#[derive(Debug)]
pub struct Ims {
    pub token_url: Url,
    pub scope: String,
    pub secret_id: String,
}

/// How Lambda handles a batch in which records failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchFailures {
    /// It reads the failed records from the response, as a source mapping in provisioned mode with
    /// `ReportBatchItemFailures` does.
    Partial,
    /// It ignores the response: only an error makes it retry the batch.
    Whole,
}

/// Hosts that an explicit local setting allows in addition to Adobe's.
#[derive(Debug, Default)]
pub struct LocalHosts(Vec<String>);

impl LocalHosts {
    pub fn read(environment: &Environment) -> Self {
        let text = environment.get(EMULATOR_HOSTS).unwrap_or_default();
        Self(text.split(',').map(|host| host.trim().to_ascii_lowercase()).filter(|host| !host.is_empty()).collect())
    }

    /// Parses a URL without credentials, query or fragment, on a host of `domain` or an allowed one.
    fn url(&self, text: &str, domain: &str) -> Result<Url, String> {
        let url = Url::parse(text).map_err(|error| format!("not a URL: {error}"))?;
        let bare = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        if !bare || url.password().is_some() {
            return Err("expected a URL without credentials, query and fragment".to_owned());
        }
        let host = url.host_str().unwrap_or_default();
        let is_adobes = url.scheme() == "https" && host.ends_with(domain) && url.port().is_none();
        let with_port = url.port_or_known_default().map(|port| format!("{host}:{port}")).unwrap_or_default();
        let is_local = url.scheme() == "http" && self.0.contains(&with_port);
        if !is_adobes && !is_local {
            return Err(format!("expected https and a host that ends in {domain}"));
        }
        Ok(url)
    }
}

impl BatchFailures {
    pub fn read(environment: &Environment) -> Result<Self, SettingsError> {
        match environment.get(BATCH_FAILURES).as_deref() {
            None | Some("partial") => Ok(Self::Partial),
            Some("whole") => Ok(Self::Whole),
            Some(_) => Err(SettingsError::new(BATCH_FAILURES, "expected partial or whole")),
        }
    }
}

/// The options of the default flow; `None` without a default flow.
pub fn options_of_environment(environment: &Environment) -> Result<Option<InletOptions>, SettingsError> {
    let Some(inlet_url) = environment.get(INLET_URL) else { return Ok(None) };
    let format = match environment.get(FORMAT).as_deref() {
        None => None,
        Some("raw") => Some(Format::Raw),
        Some("xdm") => Some(Format::Xdm),
        Some(_) => return Err(SettingsError::new(FORMAT, "expected raw or xdm")),
    };
    let batch_max = environment.get(BATCH_MAX).map(|text| text.trim().parse()).transpose();
    let read = |member| environment.get(variable(member));
    Ok(Some(InletOptions {
        inlet_url: Some(inlet_url),
        inlet_flow_id: read(option::FLOW_ID),
        format,
        schema_id: read(option::SCHEMA_ID),
        schema_content_type: read(option::SCHEMA_CONTENT_TYPE),
        dataset_id: read(option::DATASET_ID),
        org_id: read(option::ORG_ID),
        sandbox: read(option::SANDBOX),
        batch_max: batch_max.map_err(|_| SettingsError::new(BATCH_MAX, "expected a number"))?,
        ims_secret_id: read(option::IMS_SECRET_ID),
        ims_token_url: read(option::IMS_TOKEN_URL),
        ims_scope: read(option::IMS_SCOPE),
    }))
}

/// Checks the options and reads the destination from them.
pub fn target(options: &InletOptions, hosts: &LocalHosts) -> Result<Target, OptionError> {
    let url = hosts.url(needed(option::URL, &options.inlet_url)?, INLET_DOMAIN);
    let url = url.and_then(|url| collection(&url)).map_err(|problem| OptionError::new(option::URL, problem))?;
    let flow_id = needed(option::FLOW_ID, &options.inlet_flow_id)?;
    in_header(option::FLOW_ID, flow_id)?;
    if let Some(sandbox) = &options.sandbox {
        in_header(option::SANDBOX, sandbox)?;
    }
    let shape = match options.format.unwrap_or(Format::Raw) {
        Format::Raw => raw(options, url, flow_id)?,
        Format::Xdm => xdm(options, url, flow_id)?,
    };
    Ok(Target { shape, sandbox: options.sandbox.clone(), ims: ims(options, hosts)? })
}

fn raw(options: &InletOptions, url: Url, flow_id: &str) -> Result<Shape, OptionError> {
    let of_xdm = [
        (option::SCHEMA_ID, &options.schema_id),
        (option::SCHEMA_CONTENT_TYPE, &options.schema_content_type),
        (option::DATASET_ID, &options.dataset_id),
        (option::ORG_ID, &options.org_id),
    ];
    if let Some((member, _)) = of_xdm.into_iter().find(|(_, value)| value.is_some()) {
        return Err(OptionError::new(member, "raw records have no envelope: leave it out, or set the format to xdm"));
    }
    if options.batch_max.is_some_and(|most| most != 1) {
        return Err(OptionError::new(option::BATCH_MAX, "raw records are sent singly: leave it out"));
    }
    Ok(Shape::Raw { url, flow_id: flow_id.to_owned() })
}

fn xdm(options: &InletOptions, url: Url, flow_id: &str) -> Result<Shape, OptionError> {
    let envelope = Envelope::new(&Header {
        schema_id: needed(option::SCHEMA_ID, &options.schema_id)?,
        content_type: options.schema_content_type.as_deref().unwrap_or(CONTENT_TYPE),
        org_id: needed(option::ORG_ID, &options.org_id)?,
        dataset_id: needed(option::DATASET_ID, &options.dataset_id)?,
        flow_id,
    });
    match options.batch_max.unwrap_or(DEFAULT_BATCH_MAX) {
        1 => Ok(Shape::Single { url, envelope }),
        most if (1..=MAX_BATCH).contains(&most) => Ok(Shape::Batch { url: batch(&url), envelope, most }),
        _ => Err(OptionError::new(option::BATCH_MAX, format!("expected a number from 1 to {MAX_BATCH}"))),
    }
}

fn ims(options: &InletOptions, hosts: &LocalHosts) -> Result<Option<Ims>, OptionError> {
    let Some(secret_id) = &options.ims_secret_id else {
        let left = [(option::IMS_TOKEN_URL, &options.ims_token_url), (option::IMS_SCOPE, &options.ims_scope)];
        return match left.into_iter().find(|(_, value)| value.is_some()) {
            Some((member, _)) => Err(OptionError::new(member, "is of no use without the secret of the client")),
            None => Ok(None),
        };
    };
    let token_url = hosts.url(options.ims_token_url.as_deref().unwrap_or(TOKEN_URL), TOKEN_DOMAIN);
    Ok(Some(Ims {
        token_url: token_url.map_err(|problem| OptionError::new(option::IMS_TOKEN_URL, problem))?,
        scope: options.ims_scope.clone().unwrap_or_else(|| SCOPE.to_owned()),
        secret_id: secret_id.clone(),
    }))
}

impl OptionError {
    fn new(member: &'static str, problem: impl Into<String>) -> Self {
        Self { member, problem: problem.into() }
    }

    /// The same error of the variable that sets the option for the default flow.
    pub fn of_environment(self) -> SettingsError {
        SettingsError::new(variable(self.member), self.problem)
    }
}

/// The variable that sets an option for the default flow.
fn variable(member: &str) -> &'static str {
    match member {
        option::FLOW_ID => INLET_FLOW_ID,
        option::SCHEMA_ID => INLET_SCHEMA_ID,
        option::SCHEMA_CONTENT_TYPE => "INLET_SCHEMA_CONTENT_TYPE",
        option::DATASET_ID => "INLET_DATASET_ID",
        option::ORG_ID => INLET_ORG_ID,
        option::SANDBOX => "INLET_SANDBOX",
        option::BATCH_MAX => BATCH_MAX,
        option::IMS_SECRET_ID => IMS_SECRET_ID,
        option::IMS_TOKEN_URL => IMS_TOKEN_URL,
        option::IMS_SCOPE => "IMS_SCOPE",
        _ => INLET_URL,
    }
}

fn needed<'a>(member: &'static str, value: &'a Option<String>) -> Result<&'a str, OptionError> {
    value.as_deref().filter(|value| !value.is_empty()).ok_or_else(|| OptionError::new(member, "missing"))
}

fn in_header(member: &'static str, value: &str) -> Result<(), OptionError> {
    let is_plain = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic());
    if is_plain { Ok(()) } else { Err(OptionError::new(member, "expected letters, digits and marks without spaces")) }
}

/// Checks that `url` is `…/collection/{inlet}`.
fn collection(url: &Url) -> Result<Url, String> {
    match url.path().trim_end_matches('/').split('/').collect::<Vec<_>>()[..] {
        ["", "collection", inlet] if !inlet.is_empty() && inlet != "batch" => {
            let mut url = url.clone();
            url.set_path(&format!("/collection/{inlet}"));
            Ok(url)
        }
        _ => Err("expected the path /collection/{inlet}".to_owned()),
    }
}

fn batch(url: &Url) -> Url {
    let mut batch = url.clone();
    batch.set_path(&url.path().replacen("/collection/", "/collection/batch/", 1));
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use shared::json::from_config;

    const URL: &str = "https://dcs.adobedc.net/collection/f6ca";

    fn target(options: Value) -> Result<Target, String> {
        let options: InletOptions = from_config(&options.to_string())?;
        super::target(&options, &LocalHosts(vec!["127.0.0.1:5400".to_owned()])).map_err(|error| error.to_string())
    }

    fn xdm(change: Value) -> Value {
        let mut options = json!({
            "inletUrl": URL, "inletFlowId": "f2ae", "format": "xdm", "schemaId": "s", "datasetId": "d", "orgId": "o",
        });
        options.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        options
    }

    #[test]
    fn endpoints_follow_format_and_number() {
        let Shape::Raw { url, flow_id } = target(json!({ "inletUrl": URL, "inletFlowId": "f2ae" })).unwrap().shape
        else {
            panic!("raw is the default");
        };
        assert_eq!((url.as_str(), flow_id.as_str()), (URL, "f2ae"));
        assert!(
            matches!(target(xdm(json!({ "batchMax": 1 }))).unwrap().shape, Shape::Single { url, .. } if url.as_str() == URL)
        );
        let Shape::Batch { url, most, .. } = target(xdm(json!({}))).unwrap().shape else { panic!("a batch") };
        assert_eq!((url.as_str(), most), ("https://dcs.adobedc.net/collection/batch/f6ca", 100));
        let local = json!({ "inletUrl": "http://127.0.0.1:5400/collection/a/", "inletFlowId": "f" });
        assert!(target(local).is_ok(), "an explicit local setting");
    }

    #[test]
    fn records_and_secrets_go_to_adobes_hosts_alone() {
        for url in [
            "http://dcs.adobedc.net/collection/f6ca",
            "https://dcs.adobedc.net.example.com/collection/f6ca",
            "https://adobedc.net/collection/f6ca",
            "https://dcs.adobedc.net:8443/collection/f6ca",
            "https://user@dcs.adobedc.net/collection/f6ca",
            "https://127.0.0.1:5400/collection/f6ca",
            "http://127.0.0.1:5401/collection/f6ca",
            "https://dcs.adobedc.net/collection/f6ca?syncValidation=true",
            "https://dcs.adobedc.net/collection/batch/f6ca",
            "https://dcs.adobedc.net/",
            "f6ca",
        ] {
            let problem = target(json!({ "inletUrl": url, "inletFlowId": "f" })).unwrap_err();
            assert!(problem.starts_with("`inletUrl`: "), "{url}: {problem}");
        }
        let ims = |url: &str| target(xdm(json!({ "imsSecretId": "s", "imsTokenUrl": url })));
        assert!(ims("https://dcs.adobedc.net/ims/token/v3").unwrap_err().contains("adobelogin.com"));
        assert!(ims("https://ims-na1-stg1.adobelogin.com/ims/token/v3").is_ok());
        let ims = target(xdm(json!({ "imsSecretId": "s" }))).unwrap().ims.unwrap();
        assert_eq!((ims.token_url.as_str(), ims.secret_id.as_str()), (TOKEN_URL, "s"));
    }

    #[test]
    fn an_unusable_option_is_named() {
        for (options, named) in [
            (json!({}), "`inletUrl`: missing"),
            (json!({ "inletUrl": URL }), "`inletFlowId`: missing"),
            (json!({ "inletUrl": URL, "inletFlowId": "a\nb" }), "`inletFlowId`: expected letters"),
            (json!({ "inletUrl": URL, "inletFlowId": "f", "schemaId": "s" }), "`schemaId`: raw"),
            (json!({ "inletUrl": URL, "inletFlowId": "f", "batchMax": 5 }), "`batchMax`: raw"),
            (json!({ "inletUrl": URL, "inletFlowId": "f", "imsScope": "s" }), "`imsScope`: is of no use"),
            (json!({ "inletUrl": URL, "inletFlowId": "f", "format": "avro" }), "`format`"),
            (json!({ "inletUrl": URL, "inletFlowId": "f", "sandbox": "a b" }), "`sandbox`: expected letters"),
            (xdm(json!({ "schemaId": "" })), "`schemaId`: missing"),
            (xdm(json!({ "batchMax": 0 })), "`batchMax`: expected a number from 1"),
            (xdm(json!({ "inletURL": "x" })), "unknown field"),
        ] {
            let problem = target(options.clone()).unwrap_err();
            assert!(problem.contains(named), "{options}: {problem}");
        }
    }

    #[test]
    fn the_environment_sets_the_same_options_through_variables() {
        let read = |variables: &'static [(&str, &str)]| {
            let environment = Environment::from_fn(move |name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            });
            let Some(options) = options_of_environment(&environment)? else { return Ok(None) };
            super::target(&options, &LocalHosts::read(&environment)).map(Some).map_err(OptionError::of_environment)
        };
        assert!(read(&[("INLET_FLOW_ID", "f")]).unwrap().is_none());
        let whole: &[(&str, &str)] = &[
            ("INLET_URL", "http://localhost:5400/collection/a"),
            ("EMULATOR_HOSTS", "other:1, localhost:5400"),
            ("INLET_FLOW_ID", "f"),
            ("INLET_FORMAT", "xdm"),
            ("INLET_SCHEMA_ID", "s"),
            ("INLET_SCHEMA_CONTENT_TYPE", "t"),
            ("INLET_DATASET_ID", "d"),
            ("INLET_ORG_ID", "o"),
            ("INLET_SANDBOX", "prod"),
            ("INLET_BATCH_MAX", "7"),
            ("IMS_SECRET_ID", "ims"),
            ("IMS_SCOPE", "openid"),
        ];
        let target = read(whole).unwrap().unwrap();
        assert!(matches!(target.shape, Shape::Batch { most: 7, .. }));
        assert_eq!((target.sandbox.as_deref(), target.ims.unwrap().scope.as_str()), (Some("prod"), "openid"));
        let variable = |variables| read(variables).unwrap_err().variable;
        assert_eq!(variable(&[("INLET_URL", URL)]), "INLET_FLOW_ID");
        assert_eq!(variable(&[("INLET_URL", "a")]), "INLET_URL");
        assert_eq!(variable(&[("INLET_URL", URL), ("INLET_FORMAT", "avro")]), "INLET_FORMAT");
        assert_eq!(variable(&[("INLET_URL", URL), ("INLET_BATCH_MAX", "many")]), "INLET_BATCH_MAX");
    }
}
