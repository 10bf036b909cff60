//! Access tokens of Adobe's identity service (IMS), by client credentials.
//! <https://developer.adobe.com/developer-console/docs/guides/authentication/ServerToServerAuthentication/>

use std::sync::Arc;
use std::time::Duration;

use percent_encoding::utf8_percent_encode;
use reqwest::header::CONTENT_TYPE;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use shared::answer::Cause;
use shared::clock::Clock;
use shared::parts::Parts;
use shared::sas::ENCODED;
use shared::settings::{SecretSource, SettingsError};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::settings::{IMS_SECRET_ID, Ims};

/// What must be left of a token at use, in seconds.
const REFRESH_MARGIN: u64 = 300;
/// Tokens are good for about a day. Older forms of the service told milliseconds: nothing is believed beyond it.
const LONGEST: u64 = 24 * 3600;
const TIMEOUT: Duration = Duration::from_secs(5);

/// Who the tokens are for. Its secret is in Secrets Manager, as `{"client_id":…,"client_secret":…}`.
#[derive(Clone, Deserialize)]
struct Client {
    client_id: String,
    client_secret: SecretString,
}

/// A token; `generation` counts renewals, so that requests refused together renew once.
#[derive(Clone)]
pub struct Token {
    pub text: Arc<SecretString>,
    pub generation: u64,
}

/// Tokens for one inlet, each used until shortly before it expires.
pub struct Tokens {
    ims: Ims,
    source: SecretSource,
    http: reqwest::Client,
    aws: shared::aws::Aws,
    clock: Clock,
    current: Mutex<Current>,
}

struct Current {
    client: Client,
    /// The token and its expiry in Unix seconds. A failure is never kept.
    token: Option<(Arc<SecretString>, u64)>,
    generation: u64,
}

#[derive(Deserialize)]
struct Answer {
    access_token: SecretString,
    /// In seconds.
    expires_in: u64,
}

impl Tokens {
    /// Reads the client's secret.
    pub async fn open(parts: &Parts, ims: Ims, deadline: Instant) -> Result<Self, SettingsError> {
        let source = SecretSource::secret(IMS_SECRET_ID, &ims.secret_id);
        let secret =
            source.text(&parts.aws, deadline).await.map_err(|error| SettingsError::unread(IMS_SECRET_ID, &error))?;
        let client = client(&secret).map_err(|problem| SettingsError::new(IMS_SECRET_ID, problem))?;
        Ok(Self {
            ims,
            source,
            http: parts.http.clone(),
            aws: parts.aws.clone(),
            clock: parts.clock.clone(),
            current: Mutex::new(Current { client, token: None, generation: 0 }),
        })
    }

    /// The token in hand, or a new one.
    ///
    /// # Errors
    /// Why there is none: [`Cause::Unauthorized`] is for an operator, everything else may pass.
    pub async fn token(&self, deadline: Instant) -> Result<Token, Cause> {
        let mut current = self.current.lock().await;
        let now = self.clock.unix_seconds();
        let fresh = current.token.as_ref().filter(|(_, expiry)| now + REFRESH_MARGIN < *expiry);
        let text = match fresh {
            Some((text, _)) => text.clone(),
            None => {
                let answer = match self.fetch(&current.client, deadline).await {
                    // Perhaps the secret was changed since it was read.
                    Err(Cause::Unauthorized) if self.read_again(&mut current.client, deadline).await => {
                        self.fetch(&current.client, deadline).await?
                    }
                    answer => answer?,
                };
                let text = Arc::new(answer.access_token);
                current.token = Some((text.clone(), now + answer.expires_in.min(LONGEST)));
                text
            }
        };
        Ok(Token { text, generation: current.generation })
    }

    /// Drops a token that was refused, and reads the client's secret again.
    pub async fn renew(&self, generation: u64, deadline: Instant) {
        let mut current = self.current.lock().await;
        if current.generation == generation {
            current.generation += 1;
            current.token = None;
            self.read_again(&mut current.client, deadline).await;
        }
    }

    /// Whether the secret was read and is another one now.
    async fn read_again(&self, known: &mut Client, deadline: Instant) -> bool {
        let read = self.source.text(&self.aws, deadline).await.map_err(|error| error.to_string());
        match read.and_then(|secret| client(&secret).map_err(str::to_owned)) {
            Ok(client) => {
                let is_other = client.client_id != known.client_id
                    || client.client_secret.expose_secret() != known.client_secret.expose_secret();
                *known = client;
                is_other
            }
            Err(problem) => {
                tracing::warn!(problem, "going on with the client's secret as it was read before");
                false
            }
        }
    }

    async fn fetch(&self, client: &Client, deadline: Instant) -> Result<Answer, Cause> {
        let encoded = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
        let form = format!(
            "grant_type=client_credentials&client_id={}&client_secret={}&scope={}",
            encoded(&client.client_id),
            encoded(client.client_secret.expose_secret()),
            encoded(&self.ims.scope),
        );
        let request = self.http.post(self.ims.token_url.clone());
        let sending = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form).send();
        let bound = deadline.min(Instant::now() + TIMEOUT);
        let answered = timeout_at(bound, async {
            let response = sending.await?;
            let status = response.status().as_u16();
            response.bytes().await.map(|body| (status, body))
        });
        let (status, body) = match answered.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) if error.is_connect() => return Err(Cause::Unreachable),
            Ok(Err(_)) => return Err(Cause::ConnectionLost),
            Err(_) => return Err(Cause::Timeout),
        };
        match status {
            200 => serde_json::from_slice(&body).map_err(|_| Cause::Unexpected),
            400 | 401 | 403 => Err(Cause::Unauthorized),
            429 => Err(Cause::Throttled),
            500.. => Err(Cause::Unavailable),
            _ => Err(Cause::Unexpected),
        }
    }
}

fn client(secret: &SecretString) -> Result<Client, &'static str> {
    serde_json::from_str(secret.expose_secret())
        .map_err(|_| "the secret is not {\"client_id\":\"…\",\"client_secret\":\"…\"}")
}
