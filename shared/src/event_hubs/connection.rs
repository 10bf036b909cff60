//! A connection to one event hub: its address, and a token that is signed once and used until shortly before it expires.

use reqwest::Url;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use crate::aws::Aws;
use crate::aws::secret::SecretSource;
use crate::clock::Clock;
use crate::contract::parked::Destination;
use crate::contract::secret::connection_string_of;
use crate::environment::SettingsError;
use crate::event_hubs::connection_string::{ConnectionString, Credential};
use crate::event_hubs::token::sas;
use crate::http::token_cache::{Held, Issued, Issuer, NotIssued, TokenCache};

/// The service's own limit in seconds, and the version of its interface, as in every sample of the reference.
const QUERY: &str = "timeout=60&api-version=2014-01";

/// Lifetime of a token, in seconds.
const TOKEN_LIFETIME: u64 = 3600;

/// The address to send to, and the token to send.
#[derive(Debug, Clone)]
pub struct Access {
    /// `https://{host}/{hub}/messages` with its query.
    pub messages_url: Url,
    /// The token, as a header whose `Debug` shows no value.
    pub token: HeaderValue,
}

/// A ready-made token has expired, and the connection string has no key to sign another.
#[derive(Debug, Clone, Copy)]
pub struct TokenExpired;

/// The hub and the namespace that a connection string must point to.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The setting that names the hub.
    pub setting: &'static str,
    /// The hub. Without it the connection string's `EntityPath` names it.
    pub hub: Option<String>,
    /// Host, and port if it is not the usual one. Without it any host is accepted.
    pub host: Option<String>,
}

/// One hub of one namespace with one credential.
pub struct Connection(TokenCache<Signer>);

/// Signs the tokens of a connection with the key of its secret.
struct Signer {
    source: SecretSource,
    wanted: Wanted,
    aws: Aws,
    target: Target,
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
        let secret = source.text(&aws, deadline).await.map_err(|error| error.of_setting(source.variable));
        let target = Target::of(&secret?, source.variable, &wanted)?;
        if let Credential::Signature(token) = &target.credential {
            let problem = match sas::expiry(token) {
                Err(problem) => Some(problem),
                Ok(expiry) if expiry <= clock.unix_seconds() => {
                    Some("`SharedAccessSignature` has expired; replace it with a new one, or with a key")
                }
                Ok(_) => None,
            };
            if let Some(problem) = problem {
                return Err(SettingsError::new(source.variable, problem));
            }
        }
        Ok(Self(TokenCache::new(Signer { source, wanted, aws, target }, clock)))
    }

    /// Where messages go at this time.
    pub async fn destination(&self) -> Destination {
        self.0
            .issuer(|Signer { source, target: Target { host, hub, .. }, .. }| Destination {
                host: host.clone(),
                hub: hub.clone(),
                secret_id: source.secret_id().map(str::to_owned),
            })
            .await
    }

    /// The namespace's own address.
    pub async fn base_url(&self) -> Url {
        let mut url = self.0.issuer(|signer| signer.target.messages_url.clone()).await;
        url.set_path("/");
        url.set_query(None);
        url
    }

    /// The hub's address, and a token that is valid for some minutes.
    pub async fn access(&self, deadline: Instant) -> Result<Held<Access>, NotIssued<TokenExpired>> {
        self.0.token(deadline).await
    }

    /// Drops the token of a `generation` that the hub refused, or that expired, and reads the secret again: it may have been
    /// changed meanwhile.
    pub async fn renew(&self, generation: u64, deadline: Instant) {
        self.0.renew(generation, deadline).await;
    }
}

impl Issuer for Signer {
    type Token = Access;
    type Error = TokenExpired;

    async fn issue(&mut self, now: u64, _deadline: Instant) -> Result<Issued<Access>, TokenExpired> {
        let Target { hub_url, messages_url, credential, .. } = &self.target;
        let (token, expires_at) = match credential {
            Credential::Key { name, key } => {
                let expires_at = now + TOKEN_LIFETIME;
                let token = header(&sas::sign(hub_url, name, key, expires_at));
                (token.expect("a signed token is percent-encoded"), expires_at)
            }
            Credential::Signature(token) => {
                let expires_at = sas::expiry(token).ok().filter(|expiry| now < *expiry).ok_or(TokenExpired)?;
                (header(token).expect("checked when the connection string was read"), expires_at)
            }
        };
        Ok(Issued { token: Access { messages_url: messages_url.clone(), token }, expires_at })
    }

    async fn refresh(&mut self, deadline: Instant) {
        if !self.source.can_change() {
            return;
        }
        let secret = self.source.text(&self.aws, deadline).await;
        let target = secret
            .map_err(|error| error.of_setting(self.source.variable))
            .and_then(|secret| Target::of(&secret, self.source.variable, &self.wanted));
        match target {
            Ok(target) => self.target = target,
            Err(error) => {
                tracing::warn!(%error, "failed to read the secret of a connection again; using the cached connection string");
            }
        }
    }
}

impl Target {
    /// Reads the target from a secret; `source` is the setting that the secret comes from.
    fn of(secret: &SecretString, source: &'static str, wanted: &Wanted) -> Result<Self, SettingsError> {
        let unusable = |problem: &dyn std::fmt::Display| SettingsError::new(source, problem);
        let text = connection_string_of(secret).map_err(|problem| unusable(&problem))?;
        let parsed = ConnectionString::parse(text.expose_secret()).map_err(|error| unusable(&error))?;
        let (variable, hub) = match (&wanted.hub, parsed.entity_path.as_deref()) {
            (Some(hub), Some(entity_path)) if !hub.eq_ignore_ascii_case(entity_path) => {
                return Err(SettingsError::new(
                    wanted.setting,
                    "names another hub than the connection string's `EntityPath`",
                ));
            }
            // Names are compared without case; the connection string has Azure's own form.
            (Some(_), Some(entity_path)) => (wanted.setting, entity_path),
            (Some(hub), None) => (wanted.setting, hub.as_str()),
            (None, Some(entity_path)) => (source, entity_path),
            (None, None) => {
                return Err(SettingsError::new(
                    wanted.setting,
                    "missing, and the connection string has no `EntityPath`",
                ));
            }
        };
        let host = parsed.base_url.split_once("://").map_or(parsed.base_url.as_str(), |(_, host)| host);
        if wanted.host.as_ref().is_some_and(|wanted| !wanted.eq_ignore_ascii_case(host)) {
            return Err(SettingsError::new(source, "the connection string points to another host"));
        }
        if !is_hub_name(hub) {
            return Err(SettingsError::new(
                variable,
                "a hub's name has letters, digits, `.`, `-` and `_`, begins with a letter or digit and has at most 256 characters",
            ));
        }
        if matches!(&parsed.credential, Credential::Signature(token) if header(token).is_none()) {
            return Err(unusable(&"`SharedAccessSignature` has characters that are not allowed in a token"));
        }
        let hub_url = format!("{}/{hub}", parsed.base_url);
        let messages_url = Url::parse(&format!("{hub_url}/messages?{QUERY}"))
            .map_err(|_| unusable(&"`Endpoint` is not a usable address"))?;
        Ok(Self { hub_url, messages_url, host: host.to_owned(), hub: hub.to_owned(), credential: parsed.credential })
    }
}

/// The `Authorization` header; `None` if the token has characters that are not allowed in a header.
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
