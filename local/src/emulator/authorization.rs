//! Checks a SAS token as the service does: the signature over `sr` exactly as received, then expiry, scope and rights.
//! Entra tokens are not supported.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::percent_decode_str;
use sha2::Sha256;

use super::Key;
use super::responses::Refusal;

/// A requested operation, and the parts of the request that decide whether it is allowed.
pub struct Operation<'a> {
    pub hub: &'a str,
    /// The `Host` header, with its port.
    pub host: &'a str,
    /// The path without its leading slash.
    pub path: &'a str,
    pub claim: Claim,
    pub now: u64,
}

/// The right that an operation needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    Send,
    Manage,
}

/// Checks that `authorization` permits the operation.
pub fn check(authorization: Option<&str>, keys: &[Key], operation: &Operation<'_>) -> Result<(), Refusal> {
    let text = authorization.ok_or_else(|| unauthorized("MissingToken: The request has no authorization token."))?;
    let token = Token::parse(text).ok_or_else(|| unauthorized("MalformedToken: The token is malformed."))?;
    let key = keys
        .iter()
        .find(|key| key.name == token.key_name)
        .ok_or_else(|| unauthorized("InvalidSignature: The token has an invalid signature."))?;
    if !token.is_signed_with(&key.key) {
        return Err(unauthorized("40103: Invalid authorization token signature."));
    }
    if token.expiry < operation.now {
        let expired = format!("ExpiredToken: The token is expired. Expiration time: {}.", token.expiry);
        return Err(unauthorized(expired));
    }
    let key_reaches_hub = key.hub.as_ref().is_none_or(|hub| hub.eq_ignore_ascii_case(operation.hub));
    if !covers(&token.resource, operation) || !key_reaches_hub {
        return Err(unauthorized(
            "InvalidAudience: The authorization header contains a token with the wrong audience.",
        ));
    }
    let has_claim = match operation.claim {
        Claim::Send => key.rights.send,
        Claim::Manage => key.rights.manage,
    };
    if !has_claim {
        let problem =
            format!("Unauthorized access. '{:?}' claim(s) are required to perform this operation.", operation.claim);
        return Err(Refusal::new(403, problem));
    }
    Ok(())
}

fn unauthorized(detail: impl Into<String>) -> Refusal {
    Refusal::new(401, detail)
}

struct Token<'a> {
    /// `sr` as received: the text that is signed.
    signed: &'a str,
    resource: String,
    signature: Vec<u8>,
    expiry_text: &'a str,
    expiry: u64,
    key_name: String,
}

impl<'a> Token<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, fields) = text.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("SharedAccessSignature") {
            return None;
        }
        let field = |name: &str| fields.split('&').find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='));
        let decoded = |text: &str| percent_decode_str(text).decode_utf8().ok().map(String::from);
        let (signed, expiry_text) = (field("sr")?, field("se")?);
        Some(Self {
            signed,
            resource: decoded(signed)?,
            signature: STANDARD.decode(decoded(field("sig")?)?).ok()?,
            expiry_text,
            expiry: expiry_text.parse().ok()?,
            key_name: decoded(field("skn")?)?,
        })
    }

    /// Checks the signature with the key's text as the HMAC key. `shared` does not do it: it would encode the resource again,
    /// and the signature is over the text as received.
    fn is_signed_with(&self, key: &str) -> bool {
        let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC accepts a key of any length");
        mac.update(format!("{}\n{}", self.signed, self.expiry_text).as_bytes());
        mac.verify_slice(&self.signature).is_ok()
    }
}

/// Whether `resource` is, segment by segment, a prefix of the requested resource. Scheme, case and a trailing slash do not
/// matter, and the port may be absent.
fn covers(resource: &str, operation: &Operation<'_>) -> bool {
    let resource = resource.to_ascii_lowercase();
    let resource = match resource.split_once("://") {
        Some(("http" | "https" | "sb", rest)) => rest,
        Some(_) => return false,
        None => &resource,
    };
    let mut segments = resource.trim_end_matches('/').split('/');
    let host = operation.host.to_ascii_lowercase();
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => &host,
    };
    if !segments.next().is_some_and(|name| name == host || name == without_port) {
        return false;
    }
    let path = operation.path.to_ascii_lowercase();
    let mut requested = path.split('/');
    segments.all(|segment| requested.next() == Some(segment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::Rights;

    const NOW: u64 = 1_700_000_000;
    const KEY: &str = "c2VjcmV0LWtleQ==";

    fn keys() -> Vec<Key> {
        let send = Rights { send: true, ..Rights::default() };
        let listen = Rights { listen: true, ..Rights::default() };
        vec![
            Key { name: "send".into(), key: KEY.into(), rights: send, hub: None },
            Key { name: "listen".into(), key: KEY.into(), rights: listen, hub: None },
            Key { name: "other".into(), key: KEY.into(), rights: send, hub: Some("other".into()) },
        ]
    }

    fn sign(resource: &str, name: &str, key: &str, expiry: u64) -> String {
        secrecy::ExposeSecret::expose_secret(&shared::event_hubs::token::sas::sign(resource, name, &key.into(), expiry))
            .to_owned()
    }

    fn checked(token: Option<&str>) -> Result<(), (u16, String)> {
        let path = "events/partitions/2/messages";
        let operation = Operation { hub: "events", host: "localhost:5300", path, claim: Claim::Send, now: NOW };
        check(token, &keys(), &operation).map_err(|refusal| (refusal.status, refusal.detail))
    }

    #[test]
    fn scope_is_a_prefix_with_free_scheme_case_slash_and_port() {
        for resource in [
            "http://localhost:5300/events",
            "https://localhost/events/",
            "sb://LOCALHOST:5300/Events",
            "localhost/events/partitions/2",
            "http://localhost:5300",
            "http://localhost:5300/events/partitions/2/messages",
        ] {
            assert_eq!(checked(Some(&sign(resource, "send", KEY, NOW + 1))), Ok(()), "{resource}");
        }
        for resource in [
            "http://localhost:5300/event",
            "http://localhost:5300/events/partitions/1",
            "http://localhost:5300/events/partitions/2/messages/more",
            "http://elsewhere/events",
            "http://localhost:5301/events",
            "ftp://localhost/events",
        ] {
            let (status, detail) = checked(Some(&sign(resource, "send", KEY, NOW + 1))).unwrap_err();
            assert_eq!((status, &detail[..15]), (401, "InvalidAudience"), "{resource}");
        }
    }

    #[test]
    fn the_signature_is_over_the_text_received() {
        let mut mac = Hmac::<Sha256>::new_from_slice(KEY.as_bytes()).unwrap();
        mac.update(format!("http%3a%2f%2flocalhost%2fevents\n{}", NOW + 1).as_bytes());
        let signature = STANDARD.encode(mac.finalize().into_bytes()).replace('+', "%2B").replace('/', "%2F");
        let token = format!(
            "SharedAccessSignature skn=send&se={}&sr=http%3a%2f%2flocalhost%2fevents&sig={}",
            NOW + 1,
            signature.replace('=', "%3D")
        );
        assert_eq!(checked(Some(&token)), Ok(()));
        let (status, detail) = checked(Some(&token.replace("%3a", "%3A"))).unwrap_err();
        assert_eq!((status, detail.as_str()), (401, "40103: Invalid authorization token signature."));
    }

    #[test]
    fn each_refusal_says_what_is_wrong() {
        let resource = "http://localhost:5300/events";
        for (token, status, words) in [
            (None, 401, "MissingToken"),
            (Some("Bearer e30.e30.".to_owned()), 401, "MalformedToken"),
            (Some("SharedAccessSignature sr=a&sig=%%&se=x&skn=send".to_owned()), 401, "MalformedToken"),
            (Some(sign(resource, "nobody", KEY, NOW + 1)), 401, "InvalidSignature"),
            (Some(sign(resource, "send", "other key", NOW + 1)), 401, "40103"),
            (Some(sign(resource, "send", KEY, NOW - 1)), 401, "ExpiredToken"),
            (Some(sign(resource, "other", KEY, NOW + 1)), 401, "InvalidAudience"),
            (Some(sign(resource, "listen", KEY, NOW + 1)), 403, "Unauthorized access. 'Send'"),
        ] {
            let (was, detail) = checked(token.as_deref()).unwrap_err();
            assert_eq!(was, status, "{detail}");
            assert!(detail.starts_with(words), "{detail}");
        }
    }
}
