//! A connection to one event hub: where to send, and a token that is signed once and used until shortly before it expires.

use reqwest::Url;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::aws::Aws;
use crate::clock::Clock;
use crate::connection_string::{ConnectionString, Credential};
use crate::sas;
use crate::settings::{HUB_NAME, SecretSource, SettingsError, connection_string_of};

/// The service's own limit in seconds, and the version of its interface, as in every sample of the reference.
const QUERY: &str = "timeout=60&api-version=2014-01";

/// How long a token is good for, and how much of that must be left at use, both in seconds.
const TOKEN_LIFETIME: u64 = 3600;
const REFRESH_MARGIN: u64 = 300;

/// Where to send, and with which token.
#[derive(Debug, Clone)]
pub struct Access {
    /// `https://{host}/{hub}/messages` with its query.
    pub messages_url: Url,
    /// The token, as a header that prints as nothing.
    pub token: HeaderValue,
    /// Counts renewals, so that requests refused together renew once.
    pub generation: u64,
}

/// A ready-made token has run out, and no key is there to sign another.
#[derive(Debug, Clone, Copy)]
pub struct TokenExpired {
    pub generation: u64,
}

/// Where messages go, without a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// With its port, if that is not the usual one.
    pub host: String,
    pub hub: String,
    /// Of the secret that holds the connection string.
    pub secret_id: Option<String>,
}

/// Which hub of which namespace a connection string may lead to.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The hub, and the setting that names it. Without it the connection string's `EntityPath` does.
    pub hub: Option<(&'static str, String)>,
    /// Host, and port if it is not the usual one. Without it any will do.
    pub host: Option<String>,
}

/// One hub of one namespace with one credential.
pub struct Connection {
    source: SecretSource,
    wanted: Wanted,
    aws: Aws,
    clock: Clock,
    current: Mutex<Current>,
}

struct Current {
    target: Target,
    /// The token and its expiry. A failure is never kept.
    token: Option<(HeaderValue, u64)>,
    generation: u64,
}

struct Target {
    /// `https://{host}/{hub}`, without a trailing slash: the resource that is signed.
    hub_url: String,
    messages_url: Url,
    host: String,
    hub: String,
    credential: Credential,
}

impl Connection {
    /// Reads the connection string from its source.
    pub async fn open(
        source: SecretSource,
        wanted: Wanted,
        aws: Aws,
        clock: Clock,
        deadline: Instant,
    ) -> Result<Self, SettingsError> {
        let secret = source.text(&aws, deadline).await.map_err(|error| SettingsError::unread(source.variable, &error));
        let target = Target::of(&secret?, source.variable, &wanted)?;
        if let Credential::Signature(token) = &target.credential {
            match sas::expiry(token) {
                None => {
                    return Err(SettingsError::new(
                        source.variable,
                        "`SharedAccessSignature` is not a token with an expiry (`se`)",
                    ));
                }
                Some(expiry) if expiry <= clock.unix_seconds() => {
                    return Err(SettingsError::new(
                        source.variable,
                        "`SharedAccessSignature` has expired; put in a new one, or a key",
                    ));
                }
                Some(_) => {}
            }
        }
        Ok(Self { source, wanted, aws, clock, current: Mutex::new(Current { target, token: None, generation: 0 }) })
    }

    /// Where messages go at this time.
    pub async fn destination(&self) -> Destination {
        let current = self.current.lock().await;
        let Target { host, hub, .. } = &current.target;
        Destination { host: host.clone(), hub: hub.clone(), secret_id: self.source.secret_id().map(str::to_owned) }
    }

    /// The namespace's own address.
    pub async fn base_url(&self) -> String {
        let current = self.current.lock().await;
        let Target { hub_url, hub, .. } = &current.target;
        hub_url[..hub_url.len() - hub.len()].to_owned()
    }

    /// The hub's address and a token that is good for some minutes more.
    pub async fn access(&self) -> Result<Access, TokenExpired> {
        let now = self.clock.unix_seconds();
        let mut current = self.current.lock().await;
        let (messages_url, generation) = (current.target.messages_url.clone(), current.generation);
        if let Some((token, expiry)) = &current.token
            && now + REFRESH_MARGIN <= *expiry
        {
            return Ok(Access { messages_url, token: token.clone(), generation });
        }
        match &current.target.credential {
            Credential::Key { name, key } => {
                let expiry = now + TOKEN_LIFETIME;
                let token = header(&sas::sign(&current.target.hub_url, name, key, expiry));
                let token = token.expect("a signed token is percent-encoded");
                current.token = Some((token.clone(), expiry));
                Ok(Access { messages_url, token, generation })
            }
            Credential::Signature(token) if sas::expiry(token).is_some_and(|expiry| now < expiry) => {
                let token = header(token).expect("looked at when the connection string was read");
                Ok(Access { messages_url, token, generation })
            }
            Credential::Signature(_) => Err(TokenExpired { generation }),
        }
    }

    /// Drops the token of a `generation` that the hub refused, or that ran out, and reads the secret again: it may have been
    /// changed meanwhile.
    ///
    /// Requests in flight together are refused together; whoever comes second finds the work done.
    pub async fn renew(&self, generation: u64, deadline: Instant) {
        let mut current = self.current.lock().await;
        if current.generation != generation {
            return;
        }
        current.generation += 1;
        current.token = None;
        if !self.source.can_change() {
            return;
        }
        let secret = self.source.text(&self.aws, deadline).await;
        let target = secret
            .map_err(|error| SettingsError::unread(self.source.variable, &error))
            .and_then(|secret| Target::of(&secret, self.source.variable, &self.wanted));
        match target {
            Ok(target) => current.target = target,
            Err(error) => {
                tracing::warn!(error = %error, "the connection's secret can't be read again; going on with the one in hand");
            }
        }
    }
}

impl Target {
    /// `source` is the setting that the secret comes from.
    fn of(secret: &SecretString, source: &'static str, wanted: &Wanted) -> Result<Self, SettingsError> {
        let unusable = |problem: &dyn std::fmt::Display| SettingsError::new(source, problem);
        let text = connection_string_of(secret).map_err(|problem| unusable(&problem))?;
        let parsed = ConnectionString::parse(text.expose_secret()).map_err(|error| unusable(&error))?;
        let (variable, hub) = match (&wanted.hub, parsed.entity_path.as_deref()) {
            (Some((variable, hub)), Some(entity_path)) if hub != entity_path => {
                return Err(SettingsError::new(
                    variable,
                    "names another hub than the connection string's `EntityPath`",
                ));
            }
            (Some((variable, hub)), _) => (*variable, hub.as_str()),
            (None, Some(entity_path)) => (source, entity_path),
            (None, None) => {
                return Err(SettingsError::new(HUB_NAME, "missing, and the connection string has no `EntityPath`"));
            }
        };
        let host = parsed.base_url.split_once("://").map_or(parsed.base_url.as_str(), |(_, host)| host);
        if wanted.host.as_ref().is_some_and(|wanted| !wanted.eq_ignore_ascii_case(host)) {
            return Err(SettingsError::new(source, "the connection string leads to another host"));
        }
        if !is_hub_name(hub) {
            return Err(SettingsError::new(
                variable,
                "a hub's name has letters, digits, `.`, `-` and `_`, begins with a letter or digit and has at most 256 characters",
            ));
        }
        if matches!(&parsed.credential, Credential::Signature(token) if header(token).is_none()) {
            return Err(unusable(&"`SharedAccessSignature` has characters that no token has"));
        }
        let hub_url = format!("{}/{hub}", parsed.base_url);
        let messages_url = Url::parse(&format!("{hub_url}/messages?{QUERY}"))
            .map_err(|_| unusable(&"`Endpoint` is no address that can be sent to"))?;
        Ok(Self { hub_url, messages_url, host: host.to_owned(), hub: hub.to_owned(), credential: parsed.credential })
    }
}

/// The `Authorization` header; `None` where the token has characters that no header takes.
fn header(token: &SecretString) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(token.expose_secret()).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// Whether a hub can have that name.
pub fn is_hub_name(name: &str) -> bool {
    name.len() <= 256
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}
