//! Access tokens of Adobe's identity service (IMS), which are issued for client credentials.
//!
//! <https://developer.adobe.com/developer-console/docs/guides/authentication/ServerToServerAuthentication/>

use std::time::Duration;

use percent_encoding::utf8_percent_encode;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Request};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::value::RawValue;
use shared::aws::Aws;
use shared::aws::secret::SecretSource;
use shared::clock::Clock;
use shared::contract::secret::ClientCredentials;
use shared::environment::SettingsError;
use shared::event_hubs::response::Cause;
use shared::event_hubs::token::sas::ENCODED;
use shared::http::token_cache::{Issued, Issuer, TokenCache};
use shared::http::{Attempts, Http, RetryPolicy};
use shared::pipeline::services::Services;
use tokio::time::Instant;

use crate::settings::{IMS_SECRET_ID, IMS_TOKEN_URL, Ims};

/// Maximum lifetime of a token, in seconds: tokens are valid for about a day, but older forms of the service reported
/// milliseconds.
const MAX_LIFETIME: u64 = 24 * 3600;
/// Lifetime of a token whose response names none (RFC 6749, 5.1, allows that), in seconds.
const DEFAULT_LIFETIME: u64 = 60;
const RETRY: RetryPolicy = RetryPolicy { attempt_timeout: Duration::from_secs(5), ..RetryPolicy::DEFAULT };
/// Maximum size of a response, in bytes. Tokens have a few kilobytes.
const MAX_RESPONSE: usize = 100_000;

/// Tokens for one inlet, as `Authorization` headers, each used until shortly before it expires.
pub type Tokens = TokenCache<Service>;

/// The token service, with the credentials of one client.
pub struct Service {
    ims: Ims,
    source: SecretSource,
    http: Http,
    aws: Aws,
    clock: Clock,
    client: ClientCredentials,
}

/// The reason why no token could be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoToken {
    /// [`Cause::Unauthorized`] and [`Cause::Unexpected`] are for an operator to fix; every other cause may be transient.
    pub cause: Cause,
    /// The failure, for the log.
    pub problem: String,
    /// What an operator should look at, where the cause alone does not show it.
    pub hint: Option<String>,
}

impl NoToken {
    fn unreadable() -> Self {
        Self {
            cause: Cause::Unexpected,
            problem: "the token endpoint gave a response that is not readable".to_owned(),
            hint: Some(format!("the token endpoint gave a response without a token: check {IMS_TOKEN_URL}")),
        }
    }
}

#[derive(Deserialize)]
struct Response<'a> {
    access_token: SecretString,
    /// Lifetime in seconds: a number, or its digits as text.
    #[serde(borrow)]
    expires_in: Option<&'a RawValue>,
}

/// Reads the client's secret.
pub async fn open(services: &Services, ims: Ims, deadline: Instant) -> Result<Tokens, SettingsError> {
    let source = SecretSource::secret(IMS_SECRET_ID, &ims.secret_id);
    let secret = source.text(&services.hubs.aws, deadline).await.map_err(|error| error.of_setting(IMS_SECRET_ID))?;
    let client = ClientCredentials::parse(&secret).map_err(|problem| SettingsError::new(IMS_SECRET_ID, problem))?;
    let (http, aws, clock) = (services.hubs.http.clone(), services.hubs.aws.clone(), services.hubs.clock.clone());
    Ok(TokenCache::new(Service { ims, source, http, aws, clock, client }, services.hubs.clock.clone()))
}

impl Issuer for Service {
    type Token = HeaderValue;
    type Error = NoToken;

    async fn issue(&mut self, now: u64, deadline: Instant) -> Result<Issued<HeaderValue>, NoToken> {
        let issued = self.fetch(now, deadline).await;
        match issued {
            // The secret may have been changed since it was read.
            Err(NoToken { cause: Cause::Unauthorized, .. }) if self.read_again(deadline).await => {
                self.fetch(now, deadline).await
            }
            issued => issued,
        }
    }

    async fn refresh(&mut self, deadline: Instant) {
        self.read_again(deadline).await;
    }
}

impl Service {
    /// Reads the client's secret again. Returns whether it has changed.
    async fn read_again(&mut self, deadline: Instant) -> bool {
        let read = self.source.text(&self.aws, deadline).await.map_err(|error| error.to_string());
        match read.and_then(|secret| ClientCredentials::parse(&secret).map_err(str::to_owned)) {
            Ok(client) => {
                let has_changed = client.client_id != self.client.client_id
                    || client.client_secret.expose_secret() != self.client.client_secret.expose_secret();
                self.client = client;
                has_changed
            }
            Err(problem) => {
                tracing::warn!(problem, "failed to read the secret of the token client again; using the cached one");
                false
            }
        }
    }

    async fn fetch(&self, now: u64, deadline: Instant) -> Result<Issued<HeaderValue>, NoToken> {
        let encoded = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
        let form = format!(
            "grant_type=client_credentials&client_id={}&client_secret={}&scope={}",
            encoded(&self.client.client_id),
            encoded(self.client.client_secret.expose_secret()),
            encoded(&self.ims.scope),
        );
        let mut attempts = Attempts::new(RETRY, deadline);
        let mut last = NoToken { cause: Cause::Timeout, problem: "no time is left".to_owned(), hint: None };
        while let Some(attempt) = attempts.begin() {
            let mut request = Request::new(Method::POST, self.ims.token_url.clone());
            let content_type = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers_mut().insert(CONTENT_TYPE, content_type);
            *request.body_mut() = Some(form.clone().into());
            let mut retry_after = None;
            let sent = match self.http.send(request, attempt.via, attempt.bound).await {
                Ok(response) => {
                    let status = response.status();
                    retry_after = response.retry_after(self.clock.now());
                    response.read(MAX_RESPONSE, attempt.bound).await.whole().map(|body| (status, body))
                }
                Err(error) => Err(error),
            };
            last = match sent {
                Ok((200, body)) => return read(&body, now),
                Ok((status, _)) => {
                    let cause = match status {
                        400 | 401 | 403 => Cause::Unauthorized,
                        429 => Cause::Throttled,
                        500.. => Cause::Unavailable,
                        _ => Cause::Unexpected,
                    };
                    let hint = (cause == Cause::Unexpected).then(|| {
                        format!("the token endpoint gave a response that is not documented: check {IMS_TOKEN_URL}")
                    });
                    NoToken { cause, problem: format!("the token endpoint answered {status}"), hint }
                }
                Err(error) => NoToken {
                    cause: Cause::from(&error),
                    problem: format!("no response from the token endpoint: {error}"),
                    hint: error.kind.hint(IMS_TOKEN_URL),
                },
            };
            let is_final = matches!(last.cause, Cause::Unauthorized | Cause::Unexpected);
            if is_final || !attempts.again(last.cause == Cause::ConnectionLost, retry_after).await {
                break;
            }
        }
        Err(last)
    }
}

/// The token of a response.
fn read(body: &[u8], now: u64) -> Result<Issued<HeaderValue>, NoToken> {
    let Response { access_token, expires_in } = serde_json::from_slice(body).map_err(|_| NoToken::unreadable())?;
    let access_token = access_token.expose_secret();
    let header = HeaderValue::from_str(&format!("Bearer {access_token}"));
    let mut token = header.ok().filter(|_| !access_token.is_empty()).ok_or_else(NoToken::unreadable)?;
    token.set_sensitive(true);
    let seconds = expires_in.and_then(|text| text.get().trim_matches('"').trim().parse::<f64>().ok());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, and a day fits")]
    let seconds = seconds.filter(|seconds| seconds.is_finite()).map_or(DEFAULT_LIFETIME, |seconds| seconds as u64);
    Ok(Issued { token, expires_at: now + seconds.min(MAX_LIFETIME) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_read_in_each_form_that_occurs() {
        for (member, lifetime) in [
            (r#","expires_in":86399"#, 86_399),
            (r#","expires_in":86399.0"#, 86_399),
            (r#","expires_in":59.9"#, 59),
            (r#","expires_in":"86399""#, 86_399),
            (r#","expires_in":" 3600.5 ""#, 3_600),
            (r#","expires_in":86399000"#, 86_400),
            (r#","expires_in":1e300"#, 86_400),
            (r#","expires_in":-1"#, 0),
            (r#","expires_in":null"#, 60),
            (r#","expires_in":"soon""#, 60),
            ("", 60),
        ] {
            let issued = read(format!(r#"{{"access_token":"t"{member}}}"#).as_bytes(), 1_000).unwrap();
            assert_eq!((issued.token.to_str().unwrap(), issued.expires_at), ("Bearer t", 1_000 + lifetime), "{member}");
        }
    }

    #[test]
    fn a_response_without_a_token_points_to_the_token_url() {
        for body in ["<html>blocked</html>", "{}", r#"{"access_token":7}"#, r#"{"access_token":""}"#, "[]", ""] {
            let error = read(body.as_bytes(), 1_000).unwrap_err();
            assert_eq!(error.cause, Cause::Unexpected);
            assert!(error.hint.unwrap().contains(IMS_TOKEN_URL), "{body}");
        }
    }
}
