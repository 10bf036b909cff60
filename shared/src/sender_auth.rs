//! Who may send to a flow: the credentials that webhook senders can present, several at a time so that rotation has no gap.

pub mod accepted;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

use crate::json::{Object, from_config};
use crate::kind::Header;

/// How senders of a flow authenticate.
#[derive(Debug)]
pub enum SenderAuth {
    /// Nothing is configured: every webhook is refused.
    NotConfigured,
    /// `none`: every sender is accepted.
    Open,
    /// Any of these.
    AnyOf(Vec<Credential>),
}

/// One accepted credential.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Credential {
    /// `Authorization: Bearer {secret}`
    Bearer { secret: HeaderSecret },
    /// `Authorization: Basic base64({username}:{secret})`
    Basic { username: String, secret: Secret },
    /// A header of any name.
    Header { name: HeaderName, secret: HeaderSecret },
    /// A query parameter of any name, such as `code`.
    Query { name: Name, secret: Secret },
    /// Standard Webhooks signatures (<https://www.standardwebhooks.com>).
    StandardWebhooks { secret: SigningSecret },
}

/// A shared value; never empty, because an empty one would accept every sender.
#[derive(Debug, Deserialize)]
#[serde(try_from = "SecretString")]
pub struct Secret(SecretString);

impl TryFrom<SecretString> for Secret {
    type Error = &'static str;
    fn try_from(secret: SecretString) -> Result<Self, Self::Error> {
        if secret.expose_secret().is_empty() {
            Err("invalid value, expected a secret that is not empty")
        } else {
            Ok(Self(secret))
        }
    }
}

/// A shared value that is compared with a header, where white space around a value is removed on the way: with some of it,
/// the secret would never match.
#[derive(Debug, Deserialize)]
#[serde(try_from = "SecretString")]
pub struct HeaderSecret(Secret);

impl TryFrom<SecretString> for HeaderSecret {
    type Error = &'static str;
    fn try_from(secret: SecretString) -> Result<Self, Self::Error> {
        let text = secret.expose_secret();
        if text.trim() != text || text.chars().any(char::is_control) {
            return Err("invalid value, expected a secret without white space around it and without line breaks");
        }
        secret.try_into().map(Self)
    }
}

/// The name of a header.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct HeaderName(String);

impl TryFrom<String> for HeaderName {
    type Error = &'static str;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        match http::HeaderName::try_from(&name) {
            Ok(_) => Ok(Self(name)),
            Err(_) => Err("invalid value, expected the name of a header"),
        }
    }
}

/// The name of a query parameter; never empty.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(String);

impl TryFrom<String> for Name {
    type Error = &'static str;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        if name.is_empty() { Err("invalid value, expected a name that is not empty") } else { Ok(Self(name)) }
    }
}

/// The key behind `whsec_` and base64.
#[derive(Deserialize)]
#[serde(try_from = "SecretString")]
pub struct SigningSecret(Vec<u8>);

impl std::fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningSecret([REDACTED])")
    }
}

impl TryFrom<SecretString> for SigningSecret {
    type Error = &'static str;
    fn try_from(secret: SecretString) -> Result<Self, Self::Error> {
        let text = secret.expose_secret();
        let key = STANDARD.decode(text.strip_prefix("whsec_").unwrap_or(text));
        key.ok().filter(|key| !key.is_empty()).map(Self).ok_or("invalid value, expected `whsec_` and base64")
    }
}

/// The parts of a request that are checked.
pub struct Presented<'r> {
    pub headers: &'r [Header<'r>],
    /// The query as in the URL: secrets are compared in both readings of `+`.
    pub raw_query: &'r str,
    /// The raw bytes, or `None` when they could not be decoded.
    pub body: Option<&'r [u8]>,
    /// Unix seconds.
    pub now: u64,
}

/// Maximum number of seconds between the sender's timestamp and now, in either direction.
const TOLERANCE: u64 = 300;

impl SenderAuth {
    /// Parses `SENDER_AUTH`: `none`, or a JSON array of credentials.
    ///
    /// # Errors
    /// Names the member, never its value.
    pub fn parse(text: &SecretString) -> Result<Self, String> {
        let text = text.expose_secret().trim();
        if text == "none" {
            return Ok(Self::Open);
        }
        if !text.starts_with('[') {
            return Err("expected `none` or a JSON array of credentials".to_owned());
        }
        let credentials: Vec<Object<Credential>> = from_config(text)?;
        if credentials.is_empty() {
            return Err("the array is empty; expected a credential, or `none` to accept every sender".to_owned());
        }
        Ok(Self::AnyOf(credentials.into_iter().map(|Object(credential)| credential).collect()))
    }

    /// The challenges of `WWW-Authenticate` for the accepted credentials. Header, query and signature forms are not schemes
    /// of HTTP authentication; they have none.
    pub fn challenges(&self) -> Vec<&'static str> {
        let Self::AnyOf(credentials) = self else { return Vec::new() };
        let challenge = |credential: &Credential| match credential {
            Credential::Bearer { .. } => Some("Bearer"),
            Credential::Basic { .. } => Some("Basic realm=\"events\", charset=\"UTF-8\""),
            Credential::Header { .. } | Credential::Query { .. } | Credential::StandardWebhooks { .. } => None,
        };
        let mut challenges: Vec<&'static str> = credentials.iter().filter_map(challenge).collect();
        challenges.sort_unstable();
        challenges.dedup();
        challenges
    }

    /// Whether the request may send. Takes as long for a nearly right secret as for a wrong one.
    pub fn accepts(&self, request: &Presented<'_>) -> bool {
        match self {
            Self::NotConfigured => false,
            Self::Open => true,
            Self::AnyOf(credentials) => credentials
                .iter()
                .fold(Choice::from(0), |accepted, credential| accepted | credential.matches(request))
                .into(),
        }
    }
}

impl Credential {
    fn matches(&self, request: &Presented<'_>) -> Choice {
        match self {
            Self::Bearer { secret } => any(request.authorization("Bearer").map(|token| secret.0.is(token.as_bytes()))),
            Self::Basic { username, secret } => any(request.authorization("Basic").map(|encoded| {
                let decoded = STANDARD.decode(encoded).unwrap_or_default();
                let colon = decoded.iter().position(|byte| *byte == b':').unwrap_or(decoded.len());
                let (name, rest) = decoded.split_at(colon);
                equal(username.as_bytes(), name) & secret.is(rest.get(1..).unwrap_or_default())
            })),
            Self::Header { name, secret } => any(request.header(&name.0).map(|value| {
                // Gateways join repeated headers by commas.
                secret.0.is(value.as_bytes()) | any(value.split(',').map(|one| secret.0.is(one.trim().as_bytes())))
            })),
            Self::Query { name, secret } => any(request.query(&name.0).map(|value| {
                let spaced = value.replace('+', " ");
                secret.is(&decoded(value)) | secret.is(&decoded(&spaced))
            })),
            Self::StandardWebhooks { secret } => secret.has_signed(request).unwrap_or(Choice::from(0)),
        }
    }
}

impl Secret {
    fn is(&self, presented: &[u8]) -> Choice {
        equal(self.0.expose_secret().as_bytes(), presented)
    }
}

impl SigningSecret {
    /// Signed is `{id}.{timestamp}.{raw body}`; every `v1,` entry of the header is tried.
    fn has_signed(&self, request: &Presented<'_>) -> Option<Choice> {
        let id = request.header("webhook-id").next()?;
        let timestamp = request.header("webhook-timestamp").next()?;
        let signatures = request.header("webhook-signature").next()?;
        if timestamp.parse::<u64>().ok()?.abs_diff(request.now) > TOLERANCE {
            return None;
        }
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(request.body?);
        let expected = mac.finalize().into_bytes();
        // Entries are `v1,{base64}`; spaces part them, and commas where a gateway has joined repeated headers.
        let parts: Vec<&str> = signatures.split([' ', ',']).filter(|part| !part.is_empty()).collect();
        let entries = parts.windows(2).filter(|entry| entry[0] == "v1");
        Some(any(entries
            .map(|entry| STANDARD.decode(entry[1]).map_or(Choice::from(0), |signature| equal(&expected, &signature)))))
    }
}

impl<'r> Presented<'r> {
    fn header(&self, name: &str) -> impl Iterator<Item = &'r str> {
        self.headers.iter().filter(move |(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_ref())
    }

    /// The credentials of a scheme. Gateways join repeated headers by commas, which a token may have too: both readings are
    /// given.
    fn authorization(&self, scheme: &str) -> impl Iterator<Item = &'r str> {
        let headers = self.header("authorization");
        let joined = |value: &'r str| value.split(',').filter(move |one| one.len() < value.len());
        headers.flat_map(move |value| std::iter::once(value).chain(joined(value))).filter_map(move |value| {
            let (given, rest) = value.trim().split_once(' ')?;
            given.eq_ignore_ascii_case(scheme).then(|| rest.trim())
        })
    }

    /// The values of a parameter, still percent-encoded.
    fn query(&self, name: &str) -> impl Iterator<Item = &'r str> {
        self.raw_query.split('&').filter_map(move |pair| {
            let (key, value) = pair.split_once('=')?;
            (decoded(key) == name.as_bytes() || decoded(&key.replace('+', " ")) == name.as_bytes()).then_some(value)
        })
    }
}

fn decoded(text: &str) -> Vec<u8> {
    percent_decode_str(text).collect()
}

fn equal(expected: &[u8], presented: &[u8]) -> Choice {
    expected.ct_eq(presented)
}

fn any(choices: impl Iterator<Item = Choice>) -> Choice {
    choices.fold(Choice::from(0), |one, other| one | other)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    struct Case {
        auth: &'static str,
        headers: &'static [(&'static str, &'static str)],
        query: &'static str,
    }

    fn accepts(case: &Case) -> bool {
        let headers: Vec<_> = case.headers.iter().map(|(name, value)| (Cow::from(*name), Cow::from(*value))).collect();
        let presented = Presented { headers: &headers, raw_query: case.query, body: Some(b"{}"), now: 1_700_000_000 };
        SenderAuth::parse(&case.auth.into()).unwrap().accepts(&presented)
    }

    #[test]
    fn header_forms() {
        const BEARER: &str = r#"[{"type":"bearer","secret":"old"},{"type":"bearer","secret":"new"}]"#;
        const BASIC: &str = r#"[{"type":"basic","username":"user","secret":"pass:word"}]"#;
        const HEADER: &str = r#"[{"type":"header","name":"X-Key","secret":"a,b"}]"#;
        for (auth, name, value, expected) in [
            (BEARER, "authorization", "Bearer old", true),
            (BEARER, "Authorization", "bearer  new ", true),
            (BEARER, "authorization", "Bearer", false),
            (BEARER, "authorization", "Bearer old,Bearer old", true),
            (BEARER, "authorization", "Basic dXNlcjo=, Bearer new", true),
            (BEARER, "authorization", "Bearer ol,Bearer ne", false),
            (r#"[{"type":"bearer","secret":"a,b"}]"#, "authorization", "Bearer a,b", true),
            (r#"[{"type":"bearer","secret":"a,b"}]"#, "authorization", "Bearer a", false),
            (BEARER, "authorization", "Bearer ne", false),
            (BEARER, "authorization", "Basic new", false),
            (BASIC, "authorization", "Basic dXNlcjpwYXNzOndvcmQ=", true),
            (BASIC, "authorization", "Basic dXNlcjo=", false),
            (BASIC, "authorization", "Basic dXNlcjpwYXNzOndvcmQ=,Basic dXNlcjpwYXNzOndvcmQ=", true),
            (BASIC, "authorization", "Basic !", false),
            (HEADER, "x-key", "a,b", true),
            (HEADER, "X-KEY", "a", false),
            (r#"[{"type":"header","name":"x-key","secret":"s"}]"#, "x-key", "other, s", true),
        ] {
            let headers: &'static [(&str, &str)] = Box::leak(Box::new([(name, value)]));
            assert_eq!(accepts(&Case { auth, headers, query: "" }), expected, "{auth} {name}: {value}");
        }
    }

    #[test]
    fn query_secrets_are_compared_in_both_readings_of_plus() {
        for (secret, query, expected) in [
            ("abc+def", "code=abc%2Bdef", true),
            ("abc+def", "x=1&code=abc+def", true),
            ("abc def", "code=abc+def", true),
            ("abc def", "code=abc%20def", true),
            ("s", "code=other&code=s", true),
            ("é", "code=%C3%A9", true),
            ("s", "Code=s", false),
            ("s", "code=", false),
            ("s", "", false),
        ] {
            let auth = Box::leak(format!(r#"[{{"type":"query","name":"code","secret":"{secret}"}}]"#).into_boxed_str());
            assert_eq!(accepts(&Case { auth, headers: &[], query }), expected, "{secret} {query}");
        }
    }

    #[test]
    fn the_documented_signature_is_accepted_within_five_minutes() {
        // The example of the Standard Webhooks specification's reference libraries.
        let auth = SenderAuth::parse(
            &r#"[{"type":"standard-webhooks","secret":"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}]"#.into(),
        )
        .unwrap();
        let accepts = |id: &str, now: u64, signature: &str, body: &[u8]| {
            let headers = [
                ("webhook-id".into(), id.to_owned().into()),
                ("Webhook-Timestamp".into(), "1614265330".into()),
                ("webhook-signature".into(), signature.to_owned().into()),
            ];
            auth.accepts(&Presented { headers: &headers, raw_query: "", body: Some(body), now })
        };
        let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", br#"{"test": 2432232314}"#.as_slice());
        let good = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert!(accepts(id, 1_614_265_330, good, body));
        assert!(accepts(id, 1_614_265_330 + 300, &format!("v1a,x v1,AAAA {good}"), body));
        assert!(accepts(id, 1_614_265_330 - 300, &format!("v1,AAAA,{good}, v1,AAAA"), body));
        assert!(!accepts(id, 1_614_265_330 + 301, good, body));
        assert!(!accepts(id, 1_614_265_330, good, b"{}"));
        assert!(!accepts("other", 1_614_265_330, good, body));
        assert!(!accepts(id, 1_614_265_330, "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", body));
    }

    #[test]
    fn configuration_errors_name_the_member_and_no_secret() {
        for (text, expected) in [
            ("topsecret", "expected `none` or a JSON array of credentials"),
            (r#"[["bearer","topsecret"]]"#, "`[0]`: expected an object"),
            (r#"[{"type":"header","name":"x y","secret":"s"}]"#, "`[0]`: expected the name of a header"),
            ("[]", "the array is empty; expected a credential, or `none` to accept every sender"),
            (
                r#"[{"type":"topsecret"}]"#,
                "`[0].type`: expected one of `bearer`, `basic`, `header`, `query`, `standard-webhooks`",
            ),
            (r#"[{"type":"bearer","secret":""}]"#, "`[0]`: expected a secret that is not empty"),
            (
                "[{\"type\":\"bearer\",\"secret\":\"topsecret\\n\"}]",
                "`[0]`: expected a secret without white space around it and without line breaks",
            ),
            (
                r#"[{"type":"basic","username":"u","secret":" s "},{"type":"header","name":"x","secret":" topsecret"}]"#,
                "`[1]`: expected a secret without white space around it and without line breaks",
            ),
            (r#"[{"type":"header","name":"x","secret":""}]"#, "`[0]`: expected a secret that is not empty"),
            (r#"[{"type":"standard-webhooks","secret":"topsecret!"}]"#, "`[0]`: expected `whsec_` and base64"),
            (r#"[{"type":"header","secret":"topsecret"}]"#, "`[0]`: missing field `name`"),
            (
                r#"[{"type":"bearer","secret":"topsecret","extra":1}]"#,
                "`[0]`: unknown field `extra`, expected `secret`",
            ),
        ] {
            assert_eq!(SenderAuth::parse(&text.into()).unwrap_err(), expected, "{text}");
        }
        let both = r#"[{"type":"bearer","secret":"topsecret"},{"type":"standard-webhooks","secret":"dG9wc2VjcmV0"}]"#;
        let auth = format!("{:?}", SenderAuth::parse(&both.into()).unwrap());
        assert!(!auth.contains("topsecret") && !auth.contains("116"), "{auth}");
    }
}
