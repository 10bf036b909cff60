//! Tokens of the control API: signed with a key that lives as long as the system, and checked as an HTTP API's JWT authorizer
//! checks them. AWS accepts RSA signatures only; this uses ECDSA, whose keys are generated faster.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde_json::{Map, Value, json};
use shared::clock::Clock;

const ISSUER: &str = "https://local.invalid";
const AUDIENCE: &str = "eventhubs-relay";
/// Lifetime of a token in seconds: a working day.
const LIFETIME: u64 = 12 * 3600;
/// Organisation that the tokens name.
pub const ORGANISATION: &str = "local@AdobeOrg";

/// Signs and checks tokens with one key.
pub struct Tokens {
    key: EcdsaKeyPair,
    clock: Clock,
}

impl Tokens {
    pub fn new(clock: Clock) -> Result<Self, String> {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let generated = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(|error| error.to_string())?;
        let key =
            EcdsaKeyPair::from_pkcs8(algorithm, generated.as_ref(), &random).map_err(|error| error.to_string())?;
        Ok(Self { key, clock })
    }

    /// A token that names [`ORGANISATION`].
    pub fn token(&self) -> Result<String, String> {
        let now = self.clock.unix_seconds();
        self.signed(&json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": "local", "org": [ORGANISATION], "iat": now, "exp": now + LIFETIME,
        }))
    }

    fn signed(&self, claims: &Value) -> Result<String, String> {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&json!({ "alg": "ES256", "typ": "JWT" })), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), text.as_bytes()).map_err(|error| error.to_string())?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of an `Authorization` header, in the form in which an HTTP API passes them on: all are texts.
    pub fn claims(&self, authorization: Option<&str>) -> Option<Map<String, Value>> {
        let token = authorization?;
        let token = token.get(..7).filter(|word| word.eq_ignore_ascii_case("bearer ")).map_or(token, |_| &token[7..]);
        let (text, signature) = token.rsplit_once('.')?;
        let (header, claims) = text.split_once('.')?;
        let json = |part: &str| -> Option<Value> { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok() };
        if json(header)?["alg"] != "ES256" {
            return None;
        }
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        key.verify(text.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
        let Value::Object(claims) = json(claims)? else { return None };
        let now = self.clock.unix_seconds();
        let fits = claims.get("iss")? == ISSUER
            && claims.get("aud")? == AUDIENCE
            && claims.get("exp")?.as_u64()? > now
            && claims.get("nbf").is_none_or(|from| from.as_u64().is_some_and(|from| from <= now));
        fits.then(|| claims.into_iter().map(|(name, value)| (name, as_text(value).into())).collect())
    }
}

fn as_text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        Value::Array(list) => format!("[{}]", list.into_iter().map(as_text).collect::<Vec<_>>().join(" ")),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_tokens_are_taken() {
        let tokens = Tokens::new(Clock::system()).unwrap();
        let token = tokens.token().unwrap();
        let claims = tokens.claims(Some(&format!("Bearer {token}"))).unwrap();
        assert_eq!((&claims["sub"], &claims["org"]), (&json!("local"), &json!("[local@AdobeOrg]")));
        let other = Tokens::new(Clock::system()).unwrap().token().unwrap();
        let unsigned = format!("{}.", token.rsplit_once('.').unwrap().0);
        for wrong in [other.as_str(), &unsigned, "", "a.b.c", "Bearer", "é.é.é"] {
            assert!(tokens.claims(Some(wrong)).is_none(), "{wrong}");
        }
        assert!(tokens.claims(None).is_none());
        let now = Clock::system().unix_seconds();
        for (name, value) in [
            ("exp", json!(now)),
            ("nbf", json!(now + 60)),
            ("iss", json!("x")),
            ("aud", json!("x")),
            ("exp", json!("x")),
        ] {
            let mut claims = json!({ "iss": ISSUER, "aud": AUDIENCE, "exp": now + 60 });
            claims[name] = value;
            assert!(tokens.claims(Some(&tokens.signed(&claims).unwrap())).is_none(), "{name}");
        }
    }
}
