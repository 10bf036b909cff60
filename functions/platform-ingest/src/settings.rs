//! Where records go: what the environment says of the default flow, and what the control API's table says of the others.
//!
//! # The item of a flow
//!
//! Lambda's events name neither flow nor source mapping. So each flow of the control API has an alias `flow-{id}` of this
//! function, its source mapping points at the alias, and the invoked ARN tells the flow. Its item in the table (`FLOWS_TABLE`)
//! has the key `pk = "FLOW#{id}"` and these attributes, all of type `S`:
//!
//! | attribute | |
//! |---|---|
//! | `kind` | `platform-ingest` |
//! | `state` | `enabled` or `disabled`. Of a disabled flow every record comes back as failed, and so stays in the hub |
//! | `options` | JSON text, below |
//! | `connectionSecretId`, `hub` | the hub that is read and the secret of its connection string. Required in every flow item; the source mapping uses them, this function does not |
//!
//! `options` is an object of these members. An unknown one, or a value that can't be used, makes all records of the flow stay
//! in the hub, with an ERROR line that names the member.
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
//! | `batchMax` | `INLET_BATCH_MAX` | number of records in a request, 1 to 1000, default 100; 1 is the single endpoint. `raw` is always sent singly and takes only 1 |
//! | `imsSecretId` | `IMS_SECRET_ID` | name or ARN of the secret `{"client_id":…,"client_secret":…}`; absent: the inlet wants no token |
//! | `imsTokenUrl` | `IMS_TOKEN_URL` | default `https://ims-na1.adobelogin.com/ims/token/v3` |
//! | `imsScope` | `IMS_SCOPE` | default: the scopes that Adobe's own client asks for |
//!
//! An item is used for 60 s before the table is asked again, and goes on being used while the table does not answer.
//!
//! Records are sent to `*.adobedc.net` and client secrets to `*.adobelogin.com`, over https. `EMULATOR_HOSTS` names further
//! hosts, with port, that are spoken to over plain http: for local use.

use reqwest::Url;
use serde::Deserialize;
use shared::environment::{Environment, SettingsError};

use crate::envelope::{Envelope, Header};

/// Where records of the default flow go; unset, there is no default flow.
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

const COLLECTION_DOMAIN: &str = ".adobedc.net";
const IMS_DOMAIN: &str = ".adobelogin.com";
const TOKEN_URL: &str = "https://ims-na1.adobelogin.com/ims/token/v3";
const SCOPE: &str = "openid,AdobeID,read_organizations,additional_info.projectedProductContext,session";
const CONTENT_TYPE: &str = "application/vnd.adobe.xed-full+json;version=1";
const DEFAULT_BATCH_MAX: usize = 100;
const MOST_BATCH_MAX: usize = 1000;

/// The options of a flow, as they are written. The module's text tells what each is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Options {
    inlet_url: Option<String>,
    inlet_flow_id: Option<String>,
    format: Option<Format>,
    schema_id: Option<String>,
    schema_content_type: Option<String>,
    dataset_id: Option<String>,
    org_id: Option<String>,
    sandbox: Option<String>,
    batch_max: Option<usize>,
    ims_secret_id: Option<String>,
    ims_token_url: Option<String>,
    ims_scope: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Raw,
    Xdm,
}

/// An option that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{member}`: {problem}")]
pub struct OptionError {
    member: &'static str,
    problem: String,
}

/// Where, how and with whose token records are sent.
#[derive(Debug)]
pub struct Target {
    pub shape: Shape,
    pub sandbox: Option<String>,
    pub ims: Option<Ims>,
}

/// The forms of a request.
#[derive(Debug)]
pub enum Shape {
    /// One object, its flow named by a header.
    Raw { url: Url, flow_id: String },
    /// One envelope.
    Single { url: Url, envelope: Envelope },
    /// Up to `most` envelopes.
    Batch { url: Url, envelope: Envelope, most: usize },
}

/// Where tokens come from.
#[derive(Debug)]
pub struct Ims {
    pub token_url: Url,
    pub scope: String,
    pub secret_id: String,
}

/// What Lambda makes of a batch of which something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchFailures {
    /// It reads which records, as a source mapping in provisioned mode does that has `ReportBatchItemFailures`.
    Partial,
    /// It would take any answer for a success: only an error makes the batch come again.
    Whole,
}

/// Hosts that an explicit local setting allows beside Adobe's.
#[derive(Debug, Default)]
pub struct LocalHosts(Vec<String>);

impl LocalHosts {
    pub fn read(environment: &Environment) -> Self {
        let text = environment.get(EMULATOR_HOSTS).unwrap_or_default();
        Self(text.split(',').map(|host| host.trim().to_ascii_lowercase()).filter(|host| !host.is_empty()).collect())
    }

    /// A URL without credentials, query or fragment, on a host of `domain` or an allowed one.
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

impl Options {
    /// Those of the default flow, `None` without a default flow.
    pub fn from_environment(environment: &Environment) -> Result<Option<Self>, SettingsError> {
        let Some(inlet_url) = environment.get(INLET_URL) else { return Ok(None) };
        let format = match environment.get(FORMAT).as_deref() {
            None => None,
            Some("raw") => Some(Format::Raw),
            Some("xdm") => Some(Format::Xdm),
            Some(_) => return Err(SettingsError::new(FORMAT, "expected raw or xdm")),
        };
        let batch_max = environment.get(BATCH_MAX).map(|text| text.trim().parse()).transpose();
        let read = |member| environment.get(variable(member));
        Ok(Some(Self {
            inlet_url: Some(inlet_url),
            inlet_flow_id: read("inletFlowId"),
            format,
            schema_id: read("schemaId"),
            schema_content_type: read("schemaContentType"),
            dataset_id: read("datasetId"),
            org_id: read("orgId"),
            sandbox: read("sandbox"),
            batch_max: batch_max.map_err(|_| SettingsError::new(BATCH_MAX, "expected a number"))?,
            ims_secret_id: read("imsSecretId"),
            ims_token_url: read("imsTokenUrl"),
            ims_scope: read("imsScope"),
        }))
    }

    /// Checks all of it.
    pub fn target(&self, hosts: &LocalHosts) -> Result<Target, OptionError> {
        let url = hosts.url(needed("inletUrl", &self.inlet_url)?, COLLECTION_DOMAIN);
        let url = url.and_then(|url| collection(&url)).map_err(|problem| OptionError::new("inletUrl", problem))?;
        let flow_id = needed("inletFlowId", &self.inlet_flow_id)?;
        in_header("inletFlowId", flow_id)?;
        if let Some(sandbox) = &self.sandbox {
            in_header("sandbox", sandbox)?;
        }
        let shape = match self.format.unwrap_or(Format::Raw) {
            Format::Raw => self.raw(url, flow_id)?,
            Format::Xdm => self.xdm(url, flow_id)?,
        };
        Ok(Target { shape, sandbox: self.sandbox.clone(), ims: self.ims(hosts)? })
    }

    fn raw(&self, url: Url, flow_id: &str) -> Result<Shape, OptionError> {
        let of_xdm = [
            ("schemaId", &self.schema_id),
            ("schemaContentType", &self.schema_content_type),
            ("datasetId", &self.dataset_id),
            ("orgId", &self.org_id),
        ];
        if let Some((member, _)) = of_xdm.into_iter().find(|(_, value)| value.is_some()) {
            return Err(OptionError::new(
                member,
                "raw records have no envelope: leave it out, or set the format to xdm",
            ));
        }
        if self.batch_max.is_some_and(|most| most != 1) {
            return Err(OptionError::new("batchMax", "raw records are sent singly: leave it out"));
        }
        Ok(Shape::Raw { url, flow_id: flow_id.to_owned() })
    }

    fn xdm(&self, url: Url, flow_id: &str) -> Result<Shape, OptionError> {
        let envelope = Envelope::new(&Header {
            schema_id: needed("schemaId", &self.schema_id)?,
            content_type: self.schema_content_type.as_deref().unwrap_or(CONTENT_TYPE),
            org_id: needed("orgId", &self.org_id)?,
            dataset_id: needed("datasetId", &self.dataset_id)?,
            flow_id,
        });
        match self.batch_max.unwrap_or(DEFAULT_BATCH_MAX) {
            1 => Ok(Shape::Single { url, envelope }),
            most if (1..=MOST_BATCH_MAX).contains(&most) => Ok(Shape::Batch { url: batch(&url), envelope, most }),
            _ => Err(OptionError::new("batchMax", format!("expected a number from 1 to {MOST_BATCH_MAX}"))),
        }
    }

    fn ims(&self, hosts: &LocalHosts) -> Result<Option<Ims>, OptionError> {
        let Some(secret_id) = &self.ims_secret_id else {
            let left = [("imsTokenUrl", &self.ims_token_url), ("imsScope", &self.ims_scope)];
            return match left.into_iter().find(|(_, value)| value.is_some()) {
                Some((member, _)) => Err(OptionError::new(member, "is of no use without the secret of the client")),
                None => Ok(None),
            };
        };
        let token_url = hosts.url(self.ims_token_url.as_deref().unwrap_or(TOKEN_URL), IMS_DOMAIN);
        Ok(Some(Ims {
            token_url: token_url.map_err(|problem| OptionError::new("imsTokenUrl", problem))?,
            scope: self.ims_scope.clone().unwrap_or_else(|| SCOPE.to_owned()),
            secret_id: secret_id.clone(),
        }))
    }
}

impl OptionError {
    fn new(member: &'static str, problem: impl Into<String>) -> Self {
        Self { member, problem: problem.into() }
    }

    /// By the variable that stands for the member.
    pub fn of_environment(self) -> SettingsError {
        SettingsError::new(variable(self.member), self.problem)
    }
}

/// The variable that stands for an option in the default flow.
fn variable(member: &str) -> &'static str {
    match member {
        "inletFlowId" => INLET_FLOW_ID,
        "schemaId" => INLET_SCHEMA_ID,
        "schemaContentType" => "INLET_SCHEMA_CONTENT_TYPE",
        "datasetId" => "INLET_DATASET_ID",
        "orgId" => INLET_ORG_ID,
        "sandbox" => "INLET_SANDBOX",
        "batchMax" => BATCH_MAX,
        "imsSecretId" => IMS_SECRET_ID,
        "imsTokenUrl" => IMS_TOKEN_URL,
        "imsScope" => "IMS_SCOPE",
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
        let options: Options = from_config(&options.to_string())?;
        options.target(&LocalHosts(vec!["127.0.0.1:5400".to_owned()])).map_err(|error| error.to_string())
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
    fn what_cannot_be_used_is_named() {
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
    fn the_environment_says_the_same_by_its_variables() {
        let read = |variables: &'static [(&str, &str)]| {
            let environment = Environment::from_fn(move |name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            });
            let Some(options) = Options::from_environment(&environment)? else { return Ok(None) };
            options.target(&LocalHosts::read(&environment)).map(Some).map_err(OptionError::of_environment)
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
