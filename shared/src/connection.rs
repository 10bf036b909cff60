//! A connection to one event hub: where to send, and a token that is signed once and used until shortly before it expires.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::aws::Aws;
use crate::clock::Clock;
use crate::connection_string::{ConnectionString, Credential};
use crate::sas;
use crate::settings::{HUB_NAME, SecretSource, SettingsError, connection_string_of};

/// How long a token is good for, and how much of that must be left at use, both in seconds.
const TOKEN_LIFETIME: u64 = 3600;
const REFRESH_MARGIN: u64 = 300;

/// Where to send, and with which token. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Access {
    /// `https://{host}/{hub}`, without a trailing slash. Also the resource that is signed.
    pub hub_url: Arc<str>,
    pub token: Arc<SecretString>,
    /// Counts renewals, so that requests refused together renew once.
    generation: u64,
}

/// A ready-made token has run out, and no key is there to sign another.
#[derive(Debug, Clone, Copy)]
pub struct TokenExpired;

/// One hub of one namespace with one credential.
pub struct Connection {
    source: SecretSource,
    hub_name: Option<String>,
    aws: Aws,
    clock: Clock,
    current: Mutex<Current>,
}

struct Current {
    target: Target,
    /// The token and its expiry. A failure is never kept.
    token: Option<(Arc<SecretString>, u64)>,
    generation: u64,
}

struct Target {
    hub_url: Arc<str>,
    credential: Credential,
}

impl Connection {
    /// Reads the connection string from its source.
    pub async fn open(
        source: SecretSource,
        hub_name: Option<String>,
        aws: Aws,
        clock: Clock,
        deadline: Instant,
    ) -> Result<Self, SettingsError> {
        let target = Target::read(&source, hub_name.as_deref(), &aws, deadline).await?;
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
        Ok(Self { source, hub_name, aws, clock, current: Mutex::new(Current { target, token: None, generation: 0 }) })
    }

    /// The hub's address and a token that is good for some minutes more.
    pub async fn access(&self) -> Result<Access, TokenExpired> {
        let now = self.clock.unix_seconds();
        let mut current = self.current.lock().await;
        let (hub_url, generation) = (current.target.hub_url.clone(), current.generation);
        if let Some((token, expiry)) = &current.token
            && now + REFRESH_MARGIN <= *expiry
        {
            return Ok(Access { hub_url, token: token.clone(), generation });
        }
        match &current.target.credential {
            Credential::Key { name, key } => {
                let expiry = now + TOKEN_LIFETIME;
                let token = Arc::new(sas::sign(&hub_url, name, key, expiry));
                current.token = Some((token.clone(), expiry));
                Ok(Access { hub_url, token, generation })
            }
            Credential::Signature(token) if sas::expiry(token).is_some_and(|expiry| now < expiry) => {
                Ok(Access { hub_url, token: Arc::new(token.clone()), generation })
            }
            Credential::Signature(_) => Err(TokenExpired),
        }
    }

    /// Drops the token that the hub refused and reads the secret again: the key may have been changed meanwhile.
    ///
    /// Requests in flight together are refused together; whoever comes second finds the work done.
    pub async fn renew(&self, refused: &Access, deadline: Instant) {
        let mut current = self.current.lock().await;
        if current.generation != refused.generation {
            return;
        }
        current.generation += 1;
        current.token = None;
        if !self.source.can_change() {
            return;
        }
        match Target::read(&self.source, self.hub_name.as_deref(), &self.aws, deadline).await {
            Ok(target) => current.target = target,
            Err(error) => {
                tracing::warn!(error = %error, "the connection's secret can't be read again; going on with the one in hand");
            }
        }
    }
}

impl Target {
    async fn read(
        source: &SecretSource,
        hub_name: Option<&str>,
        aws: &Aws,
        deadline: Instant,
    ) -> Result<Self, SettingsError> {
        let unusable = |problem: &dyn std::fmt::Display| SettingsError::new(source.variable, problem);
        let secret = source.text(aws, deadline).await.map_err(|error| unusable(&error))?;
        let text = connection_string_of(&secret).map_err(|problem| unusable(&problem))?;
        let parsed = ConnectionString::parse(text.expose_secret()).map_err(|error| unusable(&error))?;
        let (variable, hub) = match (hub_name, parsed.entity_path.as_deref()) {
            (Some(hub), Some(entity_path)) if hub != entity_path => {
                return Err(SettingsError::new(
                    HUB_NAME,
                    "names another hub than the connection string's `EntityPath`",
                ));
            }
            (Some(hub), _) => (HUB_NAME, hub),
            (None, Some(entity_path)) => (source.variable, entity_path),
            (None, None) => {
                return Err(SettingsError::new(HUB_NAME, "missing, and the connection string has no `EntityPath`"));
            }
        };
        if !is_hub_name(hub) {
            return Err(SettingsError::new(
                variable,
                "a hub's name has letters, digits, `.`, `-` and `_`, begins with a letter or digit and has at most 256 characters",
            ));
        }
        Ok(Self { hub_url: format!("{}/{hub}", parsed.base_url).into(), credential: parsed.credential })
    }
}

fn is_hub_name(name: &str) -> bool {
    name.len() <= 256
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}
