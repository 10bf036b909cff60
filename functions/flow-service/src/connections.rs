//! What a connection, a source connection or a target connection says: checked, with its secrets taken out.

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};
use shared::contract::secret::{bearer_sender_auth, connection_secret};
use shared::event_hubs::connection::is_hub_name;
use shared::event_hubs::connection_string::{ConnectionString, Credential};
use shared::{Partitioning, SenderAuth};

use crate::errors::{ApiError, unusable};
use crate::namespace::{Host, Hosts};
use crate::routes::Collection;
use crate::secrets::token;
use crate::specs::{ConnectionSpec, DATA_LAKE, DATAVERSE_EVENT, EVENT_HUBS, Kind, connection_spec, options_schema};
use crate::store::{Document, Entity};

/// The one kind of credentials that is offered.
pub const SAS: &str = "Azure EventHub authentication credentials";
const ENTRA: [&str; 2] = ["Event Hub Azure Active Directory Auth", "Event Hub Scoped Azure Active Directory Auth"];
/// Stands for a key where a connection is read.
pub const MASK: &str = "********";
const KEY: &str = "sasKey";
const SENDER_AUTH: &str = "senderAuth";
/// Of other kinds of credentials: they must not be kept in a document.
const OTHER_SECRETS: [&str; 3] = ["clientSecretValue", "secretKey", "sharedAccessSignature"];
/// Members that are credentials, wherever they stand.
const SECRETS: [&str; 12] = [
    KEY,
    "connectionString",
    SENDER_AUTH,
    "clientSecret",
    "clientSecretValue",
    "secretKey",
    "sharedAccessKey",
    "sharedAccessSignature",
    "primaryKey",
    "secondaryKey",
    "primaryConnectionString",
    "secondaryConnectionString",
];
/// Text that has a credential in it, in lower case: a connection string, or a token.
const SECRET_TEXTS: [&str; 3] = ["sharedaccesskey=", "sharedaccesssignature=", "sharedaccesssignature sr="];

/// Of a flow's options as JSON, its audiences among them: a source connection and the items of all its flows must fit one
/// transaction.
pub const MAX_OPTIONS: usize = 40_000;

/// A secret has at most 65,536 bytes.
const MAX_SENDER_AUTH: usize = 60_000;

/// A key, and where it leads.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub key_name: String,
    /// `None`: the one that is stored.
    pub key: Option<SecretString>,
    pub host: Host,
    /// The one hub that the key is for.
    pub hub: Option<String>,
}

impl Credentials {
    /// Of a connection as it is created, or as it was `before` and is patched. The key is taken out of the document, which gets
    /// the mask.
    pub fn take(document: &mut Document, before: Option<&Entity>, hosts: &Hosts) -> Result<Self, ApiError> {
        let auth = document.get_mut("auth").and_then(Value::as_object_mut);
        let Some(auth) = auth else { return unusable("auth: missing") };
        match auth.get("specName").and_then(Value::as_str) {
            Some(SAS) => {}
            Some(name) if ENTRA.contains(&name) => {
                return unusable(format!("auth.specName: only `{SAS}` is offered, as by the senders' own connectors"));
            }
            _ => return unusable(format!("auth.specName: expected `{SAS}`")),
        }
        let Some(params) = auth.get_mut("params").and_then(Value::as_object_mut) else {
            return unusable("auth.params: missing");
        };
        if let Some(name) = OTHER_SECRETS.into_iter().find(|name| params.contains_key(*name)) {
            return unusable(format!("auth.params.{name}: not of these credentials"));
        }
        if let Some(text) = params.remove("connectionString") {
            expand(text, params, before.map(|before| &before.member("auth")["params"]))?;
        }
        let credentials = Self::read(params, hosts)?;
        params.insert(KEY.to_owned(), MASK.into());
        Ok(credentials)
    }

    /// Of a stored connection.
    pub fn of(connection: &Entity, hosts: &Hosts) -> Result<Self, ApiError> {
        match connection.member("auth")["params"].as_object() {
            Some(params) => Self::read(params, hosts),
            None => unusable("the connection has no credentials"),
        }
    }

    fn read(params: &Map<String, Value>, hosts: &Hosts) -> Result<Self, ApiError> {
        let needed = |name: &str| match params.get(name).and_then(Value::as_str) {
            Some(text) if !text.is_empty() => Ok(text),
            _ => unusable(format!("auth.params.{name}: expected text")),
        };
        let (key_name, key, namespace) = (needed("sasKeyName")?, needed(KEY)?, needed("namespace")?);
        for (name, text) in [("sasKeyName", key_name), (KEY, key)] {
            // They become parts of a connection string.
            if text.len() > 256 || !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';') {
                return unusable(format!("auth.params.{name}: expected 256 plain characters at most, without `;`"));
            }
        }
        let Some(host) = hosts.host(namespace) else {
            return unusable("auth.params.namespace: not an Event Hubs namespace of an Azure cloud");
        };
        let hub = match params.get("eventHubName") {
            None => None,
            Some(name) => Some(hub_name(name, "auth.params.eventHubName")?),
        };
        let key = (key != MASK).then(|| SecretString::from(key));
        Ok(Self { key_name: key_name.to_owned(), key, host, hub })
    }

    /// The secret that the data plane reads.
    pub fn secret(&self, key: &str) -> SecretString {
        let Host { name, is_emulator } = &self.host;
        let emulator = if *is_emulator { ";UseDevelopmentEmulator=true" } else { "" };
        let text =
            format!("Endpoint=sb://{name}/;SharedAccessKeyName={};SharedAccessKey={key}{emulator}", self.key_name);
        connection_secret(&text)
    }
}

/// A connection string stands for the parameters that it is made of. It goes over those that are as `before`.
fn expand(text: Value, params: &mut Map<String, Value>, before: Option<&Value>) -> Result<(), ApiError> {
    let parsed = ConnectionString::parse(text.as_str().unwrap_or_default());
    let parsed = parsed.map_err(|error| ApiError::Unusable(format!("auth.params.connectionString: {error}")))?;
    let Credential::Key { name, key } = parsed.credential else {
        return unusable("auth.params.connectionString: expected a key, not a signature");
    };
    let host = parsed.base_url.split_once("://").map_or("", |(_, host)| host);
    let mut found = vec![("namespace", host.to_owned()), ("sasKeyName", name), (KEY, key.expose_secret().to_owned())];
    found.extend(parsed.entity_path.map(|hub| ("eventHubName", hub)));
    for (name, value) in found {
        let given = params.insert(name.to_owned(), value.clone().into());
        if given.is_some_and(|given| given != value && before.is_none_or(|before| before[name] != given)) {
            return unusable(format!("auth.params.{name}: not what the connection string says"));
        }
    }
    Ok(())
}

fn hub_name(name: &Value, place: &str) -> Result<String, ApiError> {
    match name.as_str() {
        Some(name) if is_hub_name(name) => Ok(name.to_owned()),
        _ => unusable(format!(
            "{place}: a hub's name has letters, digits, `.`, `-` and `_`, begins with a letter or digit and has at most 256 characters"
        )),
    }
}

/// Refuses credentials in a place where they would be kept and shown. Those in the right place have been taken out.
pub fn check_secrets(entity: &Entity) -> Result<(), ApiError> {
    let is_sender = connection_spec(entity.spec_id()).is_some_and(|spec| spec.kind.is_some());
    let place = match entity.collection {
        Collection::Connections => "/auth/params/sasKey",
        Collection::SourceConnections if is_sender => "/params/senderAuth",
        _ => "",
    };
    entity.document.iter().find_map(|(name, value)| misplaced("", name, value, place)).map_or(Ok(()), |found| {
        unusable(format!("{found}: a credential does not belong there, and would be shown to all who read the object"))
    })
}

/// The first place below `parent` that is called like a credential, or holds one.
fn misplaced(parent: &str, name: &str, value: &Value, allowed: &str) -> Option<String> {
    if has_secret_text(name) {
        return Some(if parent.is_empty() { "the body".to_owned() } else { parent.to_owned() });
    }
    let place = format!("{parent}/{}", name.replace('~', "~0").replace('/', "~1"));
    if place == allowed {
        return None;
    }
    if SECRETS.iter().any(|secret| secret.eq_ignore_ascii_case(name)) {
        return Some(place);
    }
    match value {
        Value::String(text) if has_secret_text(text) => Some(place),
        Value::Object(members) => members.iter().find_map(|(name, value)| misplaced(&place, name, value, allowed)),
        Value::Array(elements) => {
            elements.iter().enumerate().find_map(|(at, value)| misplaced(&place, &at.to_string(), value, allowed))
        }
        _ => None,
    }
}

fn has_secret_text(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    SECRET_TEXTS.iter().any(|secret| text.contains(secret))
}

/// Whether a value has the mask anywhere in it.
pub fn has_mask(value: &Value) -> bool {
    match value {
        Value::String(text) => text == MASK,
        Value::Array(elements) => elements.iter().any(has_mask),
        Value::Object(members) => members.values().any(has_mask),
        _ => false,
    }
}

/// The hub of a source or target connection: its own, or the only one that the key is for.
pub fn hub_of(connection: &Entity, scope: Option<&str>) -> Result<String, ApiError> {
    match (connection.member("params").get("eventHubName"), scope) {
        (None, Some(scope)) => Ok(scope.to_owned()),
        (None, None) => unusable("params.eventHubName: missing"),
        (Some(name), scope) => {
            let name = hub_name(name, "params.eventHubName")?;
            if scope.is_some_and(|scope| !scope.eq_ignore_ascii_case(&name)) {
                return unusable("params.eventHubName: the connection's key is for another hub");
            }
            Ok(name)
        }
    }
}

pub fn partitioning_of(target: &Entity) -> Result<String, ApiError> {
    const PLACE: &str = "params.partitioning";
    match target.member("params").get("partitioning") {
        None => Ok("keys:16".to_owned()),
        Some(Value::String(text)) => match text.parse::<Partitioning>() {
            Ok(_) => Ok(text.clone()),
            Err(problem) => unusable(format!("{PLACE}: {problem}")),
        },
        Some(_) => unusable(format!("{PLACE}: expected text")),
    }
}

/// Checks what does not depend on other objects.
pub fn check(connection: &Entity, spec: &ConnectionSpec, is_target: bool, max_bytes: u64) -> Result<(), ApiError> {
    let format = connection.member("data").get("format").and_then(Value::as_str);
    let params = connection.member("params");
    let one_of = |name: &str, values: &[&str]| match params.get(name) {
        None => Ok(()),
        Some(value) if values.iter().any(|known| value == known) => Ok(()),
        Some(_) => unusable(format!("params.{name}: expected {}", values.join(" or "))),
    };
    match (spec.id, spec.kind) {
        (DATA_LAKE, _) => {
            let schema = &connection.member("data")["schema"];
            if format != Some("parquet_xdm") || !schema["id"].is_string() || !schema["version"].is_string() {
                return unusable("data: expected format `parquet_xdm` and schema with id and version");
            }
            if params["dataSetId"].as_str().is_none_or(str::is_empty) {
                return unusable("params.dataSetId: missing");
            }
        }
        (EVENT_HUBS, _) if is_target => {
            expect_format(format, &["json"])?;
            partitioning_of(connection)?;
        }
        (EVENT_HUBS, _) => {
            expect_format(format, &["json"])?;
            one_of("dataType", &["raw", "xdm"])?;
            one_of("reset", &["latest", "earliest"])?;
            if params.get("consumerGroup").is_some_and(|group| group.as_str().is_none_or(str::is_empty)) {
                return unusable("params.consumerGroup: expected text");
            }
        }
        (_, Some(kind)) => {
            let formats: &[&str] = if kind == DATAVERSE_EVENT { &["json", "xml"] } else { &["json"] };
            expect_format(format, formats)?;
            check_options(kind, &options_of(connection, kind)?, max_bytes)?;
        }
        (_, None) => {}
    }
    Ok(())
}

fn expect_format(format: Option<&str>, formats: &[&str]) -> Result<(), ApiError> {
    match format {
        Some(format) if !formats.contains(&format) => {
            unusable(format!("data.format: expected {}", formats.join(" or ")))
        }
        _ => Ok(()),
    }
}

/// The options that a sender's source connection gives its kind.
pub fn options_of(source: &Entity, kind: Kind) -> Result<Map<String, Value>, ApiError> {
    let mut options = match source.member("params").get("options") {
        None => Map::new(),
        Some(Value::Object(options)) => options.clone(),
        Some(_) => return unusable("params.options: expected an object"),
    };
    if kind == DATAVERSE_EVENT && source.member("data")["format"] == "xml" {
        options.insert("messageFormat".to_owned(), "xml".into());
    }
    Ok(options)
}

/// Against the kind's schema, and against what one request to a hub may hold.
pub fn check_options(kind: Kind, options: &Map<String, Value>, max_bytes: u64) -> Result<(), ApiError> {
    let schema =
        jsonschema::validator_for(&options_schema(kind)).expect("each committed schema is one: tests read them all");
    let options = Value::Object(options.clone());
    let size = options.to_string().len();
    if size > MAX_OPTIONS {
        return unusable(format!(
            "params.options: {size} bytes as JSON, the flow's audiences among them; {MAX_OPTIONS} at most"
        ));
    }
    if let Some(error) = schema.iter_errors(&options).next() {
        let place = error.instance_path().to_string();
        return unusable(format!("params.options{place}: {}", error.masked()));
    }
    // To JSON Schema 33.0 is an integer too, and so is one that fits no register; to the kinds they are not.
    let schema = options_schema(kind);
    for (name, value) in options.as_object().into_iter().flatten() {
        let of_type = &schema["properties"][name]["type"];
        let is_integer =
            of_type == "integer" || of_type.as_array().is_some_and(|types| types.contains(&json!("integer")));
        if is_integer && value.is_number() && value.as_i64().is_none() {
            return unusable(format!("params.options/{name}: expected an integer without a fraction, of 64 bits"));
        }
    }
    if options["maxBytes"].as_u64().is_some_and(|bytes| bytes > max_bytes) {
        return unusable(format!("params.options/maxBytes: a request to a hub holds {max_bytes} at most"));
    }
    Ok(())
}

/// How a sender's source connection says that its senders authenticate.
#[derive(Debug)]
pub struct Senders {
    /// The text of `SENDER_AUTH`; `None`: the one that is stored.
    pub secret: Option<SecretString>,
    pub is_generated: bool,
}

impl Senders {
    /// The credentials are taken out of the document, which keeps their types and names. Without any, one is generated.
    /// `shown` is what the document had before a patch: as it is, or left out, nothing changes.
    pub fn take(document: &mut Document, shown: Option<&Value>) -> Result<Self, ApiError> {
        let params = document.entry("params").or_insert_with(|| json!({}));
        let Some(params) = params.as_object_mut() else { return unusable("params: expected an object") };
        let given = params.remove(SENDER_AUTH);
        if let Some(shown) = shown
            && given.as_ref().is_none_or(|given| given == shown)
        {
            params.insert(SENDER_AUTH.to_owned(), shown.clone());
            return Ok(Self { secret: None, is_generated: false });
        }
        let is_generated = given.as_ref().is_none_or(|given| given == "generate");
        if is_generated && shown.is_some() {
            return unusable(
                "params.senderAuth: a credential is generated only with the source connection; give a list",
            );
        }
        let text = match given {
            _ if is_generated => bearer_sender_auth(&token()).expose_secret().to_owned(),
            Some(Value::String(text)) if text == "none" => text,
            Some(list @ Value::Array(_)) => list.to_string(),
            _ => return unusable("params.senderAuth: expected `generate`, `none` or a list of credentials"),
        };
        if text.len() > MAX_SENDER_AUTH {
            return unusable(format!("params.senderAuth: more than {MAX_SENDER_AUTH} bytes"));
        }
        let secret = SecretString::from(text.as_str());
        if let Err(problem) = SenderAuth::parse(&secret) {
            return unusable(format!("params.senderAuth: {problem}"));
        }
        params.insert(SENDER_AUTH.to_owned(), without_secrets(&text));
        Ok(Self { secret: Some(secret), is_generated })
    }
}

/// Types and names of the credentials in a text of `SENDER_AUTH`.
pub fn without_secrets(text: &str) -> Value {
    let Ok(Value::Array(mut credentials)) = serde_json::from_str(text) else { return text.into() };
    for credential in credentials.iter_mut().filter_map(Value::as_object_mut) {
        credential.retain(|name, _| ["type", "name", "username"].contains(&name.as_str()));
    }
    credentials.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(params: Value) -> Document {
        json!({ "auth": { "specName": SAS, "params": params } }).as_object().unwrap().clone()
    }

    fn take(params: Value) -> Result<(Credentials, Document), ApiError> {
        let mut document = connection(params);
        let credentials = Credentials::take(&mut document, None, &Hosts::new(None, Some("127.0.0.1:5300")).unwrap())?;
        Ok((credentials, document))
    }

    #[test]
    fn keys_leave_the_document() {
        let given = json!({ "sasKeyName": "n", "sasKey": "topsecret=", "namespace": "contoso", "more": 1 });
        let (credentials, document) = take(given).unwrap();
        assert_eq!(document["auth"]["params"]["sasKey"], MASK);
        assert_eq!(document["auth"]["params"]["more"], 1);
        assert!(!format!("{credentials:?}{document:?}").contains("topsecret"));
        assert_eq!(
            credentials.secret(credentials.key.as_ref().unwrap().expose_secret()).expose_secret(),
            r#"{"password":"Endpoint=sb://contoso.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=topsecret=","username":"$ConnectionString"}"#
        );
        let text = "Endpoint=sb://127.0.0.1:5300;SharedAccessKeyName=n;SharedAccessKey=k;EntityPath=h;UseDevelopmentEmulator=true";
        let (credentials, document) = take(json!({ "connectionString": text })).unwrap();
        assert_eq!(credentials.hub.as_deref(), Some("h"));
        assert!(credentials.secret("k").expose_secret().contains("sb://127.0.0.1:5300/;"));
        assert_eq!(
            document["auth"]["params"],
            json!({ "sasKeyName": "n", "sasKey": MASK, "namespace": "127.0.0.1:5300", "eventHubName": "h" })
        );
    }

    #[test]
    fn what_cannot_be_credentials_is_refused() {
        for params in [
            json!({}),
            json!({ "sasKeyName": "n", "sasKey": "k" }),
            json!({ "sasKeyName": "n", "sasKey": "", "namespace": "contoso" }),
            json!({ "sasKeyName": "n", "sasKey": 7, "namespace": "contoso" }),
            json!({ "sasKeyName": "n", "sasKey": "k;Endpoint=sb://evil", "namespace": "contoso" }),
            json!({ "sasKeyName": "n\n", "sasKey": "k", "namespace": "contoso" }),
            json!({ "sasKeyName": "n", "sasKey": "k", "namespace": "evil.example" }),
            json!({ "sasKeyName": "n", "sasKey": "k", "namespace": "contoso", "eventHubName": "a/b" }),
            json!({ "sasKeyName": "n", "sasKey": "k", "namespace": "contoso", "clientSecretValue": "x" }),
            json!({ "connectionString": "Endpoint=sb://evil.example;SharedAccessKeyName=n;SharedAccessKey=k" }),
            json!({ "connectionString": "Endpoint=sb://a.servicebus.windows.net;SharedAccessSignature=s" }),
            json!({ "connectionString": "Endpoint=sb://a.servicebus.windows.net;SharedAccessKeyName=n;SharedAccessKey=k", "sasKeyName": "m" }),
        ] {
            assert_eq!(take(params.clone()).unwrap_err().status(), 400, "{params}");
        }
    }

    #[test]
    fn senders_leave_types_and_names() {
        let source = |auth: Value| json!({ "params": { "senderAuth": auth } }).as_object().unwrap().clone();
        let mut document = source(json!([{ "type": "header", "name": "x-key", "secret": "topsecret" }]));
        let senders = Senders::take(&mut document, None).unwrap();
        assert!(senders.secret.unwrap().expose_secret().contains("topsecret"));
        let shown = json!([{ "type": "header", "name": "x-key" }]);
        assert_eq!(document["params"]["senderAuth"], shown);
        assert!(Senders::take(&mut document.clone(), Some(&shown)).unwrap().secret.is_none());
        assert!(Senders::take(&mut Document::new(), Some(&shown)).unwrap().secret.is_none());
        assert!(Senders::take(&mut source("generate".into()), Some(&shown)).is_err());
        for generated in [&mut source("generate".into()), &mut Document::new()] {
            assert!(Senders::take(generated, None).unwrap().is_generated);
            assert_eq!(generated["params"]["senderAuth"], json!([{ "type": "bearer" }]));
        }
        for wrong in [
            json!([]),
            json!("open"),
            json!([{ "type": "bearer" }]),
            json!(7),
            json!([{ "type": "bearer", "secret": "" }]),
        ] {
            assert_eq!(Senders::take(&mut source(wrong.clone()), None).unwrap_err().status(), 400, "{wrong}");
        }
    }
}
