//! Event Hubs connection strings: one grammar, since the official SDKs disagree on odd input.
//!
//! `Endpoint=sb://NAMESPACE.servicebus.windows.net/;SharedAccessKeyName=NAME;SharedAccessKey=KEY;EntityPath=HUB`

use reqwest::Url;
use secrecy::SecretString;

/// A parsed connection string. Its `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct ConnectionString {
    /// Scheme, host and, for an emulator only, port: where requests go, without a trailing slash.
    pub base_url: String,
    pub credential: Credential,
    /// The hub, if the string is for one hub only (`EntityPath`).
    pub entity_path: Option<String>,
}

/// The credential of a connection string.
#[derive(Debug, Clone)]
pub enum Credential {
    /// A rule's name and key, from which tokens are signed.
    Key { name: String, key: SecretString },
    /// A ready-made token, which can't be renewed.
    Signature(SecretString),
}

/// Why a connection string can't be used. Never contains a value of the string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionStringError {
    #[error("the connection string is empty")]
    Empty,
    #[error("the connection string begins with a byte order mark; remove it")]
    ByteOrderMark,
    #[error("the connection string is in quotes; remove them")]
    Quoted,
    #[error("part {0} of the connection string has no `=`")]
    NotAPair(usize),
    #[error("`{0}` occurs twice in the connection string")]
    Twice(&'static str),
    #[error("`{0}` of the connection string is empty")]
    EmptyValue(&'static str),
    #[error("`{0}` is missing in the connection string")]
    Missing(&'static str),
    #[error("`Endpoint` must be a URL such as sb://NAMESPACE.servicebus.windows.net/ (scheme sb, amqps or https)")]
    Endpoint,
    #[error("`UseDevelopmentEmulator` can only be `true`; leave it out otherwise")]
    Emulator,
    #[error("give either `SharedAccessKeyName` and `SharedAccessKey`, or `SharedAccessSignature`, not both")]
    KeyAndSignature,
}

const ENDPOINT: &str = "Endpoint";
const KEY_NAME: &str = "SharedAccessKeyName";
const KEY: &str = "SharedAccessKey";
const SIGNATURE: &str = "SharedAccessSignature";
const ENTITY_PATH: &str = "EntityPath";
const EMULATOR: &str = "UseDevelopmentEmulator";
const KNOWN: [&str; 6] = [ENDPOINT, KEY_NAME, KEY, SIGNATURE, ENTITY_PATH, EMULATOR];

impl ConnectionString {
    /// Parses `text`. Keys compare without ASCII case. Unknown keys are ignored; a known key may occur once and needs a value.
    pub fn parse(text: &str) -> Result<Self, ConnectionStringError> {
        use ConnectionStringError as E;
        let mut values: [Option<&str>; KNOWN.len()] = [None; KNOWN.len()];
        let text = text.trim();
        if text.is_empty() {
            return Err(E::Empty);
        }
        if text.starts_with('\u{feff}') {
            return Err(E::ByteOrderMark);
        }
        if text.starts_with(['"', '\'', '\u{201c}', '\u{201e}']) {
            return Err(E::Quoted);
        }
        for (part_number, part) in text.split(';').map(str::trim).enumerate() {
            if part.is_empty() {
                continue;
            }
            let (key, value) = part.split_once('=').ok_or(E::NotAPair(part_number + 1))?;
            let (key, value) = (key.trim(), value.trim());
            let Some(known) = KNOWN.iter().position(|name| name.eq_ignore_ascii_case(key)) else {
                continue;
            };
            if value.is_empty() {
                return Err(E::EmptyValue(KNOWN[known]));
            }
            if values[known].replace(value).is_some() {
                return Err(E::Twice(KNOWN[known]));
            }
        }
        let [endpoint, key_name, key, signature, entity_path, emulator] = values;
        let emulator = match emulator {
            None => false,
            Some("true") => true,
            Some(_) => return Err(E::Emulator),
        };
        let credential = match (key_name, key, signature) {
            (Some(name), Some(key), None) => Credential::Key { name: name.to_owned(), key: key.into() },
            (None, None, Some(signature)) => Credential::Signature(signature.into()),
            (_, _, Some(_)) => return Err(E::KeyAndSignature),
            (None, _, None) => return Err(E::Missing(KEY_NAME)),
            (_, None, None) => return Err(E::Missing(KEY)),
        };
        Ok(Self {
            base_url: base_url(endpoint.ok_or(E::Missing(ENDPOINT))?, emulator)?,
            credential,
            entity_path: entity_path.map(str::to_owned),
        })
    }
}

fn base_url(endpoint: &str, emulator: bool) -> Result<String, ConnectionStringError> {
    let url = Url::parse(endpoint).map_err(|_| ConnectionStringError::Endpoint)?;
    let legal = ["sb", "amqps", "https"].contains(&url.scheme()) || (emulator && url.scheme() == "http");
    let host = url.host_str().filter(|host| legal && !host.is_empty()).ok_or(ConnectionStringError::Endpoint)?;
    if !emulator {
        return Ok(format!("https://{host}"));
    }
    let scheme = if url.scheme() == "https" { "https" } else { "http" };
    Ok(match url.port() {
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => format!("{scheme}://{host}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str = "SharedAccessKeyName=send;SharedAccessKey=abc=";

    fn base(endpoint: &str) -> Result<String, ConnectionStringError> {
        ConnectionString::parse(&format!("Endpoint={endpoint};{KEYS}")).map(|parsed| parsed.base_url)
    }

    #[test]
    fn only_the_host_of_the_endpoint_counts() {
        for endpoint in [
            "sb://ns.servicebus.windows.net/",
            "amqps://ns.servicebus.windows.net:5671/x",
            "https://ns.servicebus.windows.net",
        ] {
            assert_eq!(base(endpoint).as_deref(), Ok("https://ns.servicebus.windows.net"));
        }
        assert_eq!(base("ns.servicebus.windows.net"), Err(ConnectionStringError::Endpoint));
        assert_eq!(base("http://ns.servicebus.windows.net"), Err(ConnectionStringError::Endpoint));
    }

    #[test]
    fn an_emulator_keeps_its_port() {
        let emulator = |endpoint: &str| base(&format!("{endpoint};UseDevelopmentEmulator=true"));
        assert_eq!(emulator("sb://localhost:5300").as_deref(), Ok("http://localhost:5300"));
        assert_eq!(emulator("sb://localhost").as_deref(), Ok("http://localhost"));
        assert_eq!(emulator("sb://[::1]:5300").as_deref(), Ok("http://[::1]:5300"));
        assert_eq!(emulator("https://localhost:5300").as_deref(), Ok("https://localhost:5300"));
        assert_eq!(base("sb://localhost:5300;UseDevelopmentEmulator=True"), Err(ConnectionStringError::Emulator));
    }

    #[test]
    fn characters_that_copying_adds_are_named() {
        let text = format!("Endpoint=sb://ns.servicebus.windows.net/;{KEYS}");
        let error = |text: &str| ConnectionString::parse(text).unwrap_err().to_string();
        for quoted in [format!("\"{text}\""), format!(" '{text}'"), format!("\u{201c}{text}\u{201d}")] {
            assert!(error(&quoted).contains("quotes"), "{quoted}");
        }
        assert!(error(&format!("\u{feff}{text}")).contains("byte order mark"));
    }

    #[test]
    fn neither_debug_nor_errors_show_a_value() {
        let parsed = ConnectionString::parse(&format!("Endpoint=sb://ns.servicebus.windows.net/;{KEYS}")).unwrap();
        assert!(!format!("{parsed:?}").contains("abc="));
        for broken in
            ["Endpoint=topsecret", "topsecret", "SharedAccessKey=topsecret", "UseDevelopmentEmulator=topsecret"]
        {
            let error = ConnectionString::parse(broken).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("topsecret"), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC*") {
            let _ = ConnectionString::parse(&text);
        }

        #[test]
        fn keys_with_any_characters_but_semicolons_survive(key in "[!-:<-~]{1,60}", spaces in " {0,3}") {
            let text = format!("Endpoint = sb://ns.example.net/ ;;{spaces}sharedaccesskeyname{spaces}= send;SHAREDACCESSKEY={key}{spaces};");
            let parsed = ConnectionString::parse(&text).unwrap();
            let Credential::Key { name, key: read } = parsed.credential else { panic!("a key") };
            proptest::prop_assert_eq!(name, "send");
            proptest::prop_assert_eq!(secrecy::ExposeSecret::expose_secret(&read), key.as_str());
        }
    }
}
