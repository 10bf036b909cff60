//! Who calls, and for which tenant: an organisation that the caller's token names, and one of its sandboxes.

use ring::digest::{SHA256, digest};
use serde_json::{Map, Value};

use crate::errors::{ApiError, bad_request};
use crate::request::Request;
use crate::secrets::uuid_of;

/// Organisation and sandbox: nothing of one is seen by another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    pub organisation: String,
    pub sandbox: String,
}

impl Tenant {
    /// A sandbox has no `#` in it, so that no two tenants have one key.
    pub fn key(&self) -> String {
        format!("{}#{}", self.organisation, self.sandbox)
    }

    /// A UUID (version 8) that the same tenant always has.
    pub fn sandbox_id(&self) -> String {
        let digest = digest(&SHA256, self.key().as_bytes());
        let first = digest.as_ref().first_chunk().expect("a digest has 32 bytes");
        uuid_of(*first, 8)
    }
}

#[derive(Debug, Clone)]
pub struct Caller {
    pub tenant: Tenant,
    pub subject: String,
    pub client: String,
}

const MAX_ORGANISATION: usize = 256;
const MAX_SANDBOX: usize = 64;
const DEFAULT_SANDBOX: &str = "prod";

impl Caller {
    /// Checks the headers in the documented order. The gateway's authorizer has checked the token.
    pub fn of(request: &Request, claim: &str) -> Result<Self, ApiError> {
        if request.header("authorization").is_none() {
            return Err(ApiError::TokenMissing);
        }
        let claims = request.claims.as_ref().ok_or(ApiError::TokenInvalid)?;
        let client = request.header("x-api-key").ok_or(ApiError::ApiKeyMissing)?;
        let organisation = request.header("x-gw-ims-org-id").ok_or(ApiError::OrganisationMissing)?;
        if organisation.len() > MAX_ORGANISATION || !names(claims, claim, organisation) {
            return Err(ApiError::ProfileInvalid);
        }
        let sandbox = request.header("x-sandbox-name").unwrap_or(DEFAULT_SANDBOX);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if sandbox.len() > MAX_SANDBOX || !sandbox.bytes().all(plain) {
            return bad_request("x-sandbox-name: expected letters, digits, `-` and `_`, 64 at most");
        }
        let text = |name: &str| claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        Ok(Self {
            tenant: Tenant { organisation: organisation.to_owned(), sandbox: sandbox.to_owned() },
            subject: text("sub").or_else(|| text("client_id")).unwrap_or("unknown").to_owned(),
            client: client.to_owned(),
        })
    }
}

/// Whether a claim, a text or a list, names the organisation. HTTP APIs hand a list on as the text `[a b]`.
fn names(claims: &Map<String, Value>, claim: &str, organisation: &str) -> bool {
    match claims.get(claim) {
        Some(Value::Array(list)) => list.iter().any(|one| one == organisation),
        Some(Value::String(text)) => match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            Some(list) => list.split([' ', ',']).any(|one| one == organisation),
            None => text == organisation,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(headers: &[(&str, &str)], claims: Value) -> Result<Caller, ApiError> {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Caller::of(&Request { headers, claims: claims.as_object().cloned(), ..Request::default() }, "org")
    }

    #[test]
    fn headers_are_checked_in_their_order() {
        let all = [("authorization", "Bearer x"), ("x-api-key", "k"), ("x-gw-ims-org-id", "a@AdobeOrg")];
        let claims = json!({ "org": "a@AdobeOrg", "sub": "me" });
        for (headers, expected) in [
            (&all[..0], ApiError::TokenMissing),
            (&all[..1], ApiError::ApiKeyMissing),
            (&all[..2], ApiError::OrganisationMissing),
        ] {
            assert_eq!(of(headers, claims.clone()).unwrap_err(), expected);
        }
        assert_eq!(of(&all, Value::Null).unwrap_err(), ApiError::TokenInvalid);
        let caller = of(&all, claims).unwrap();
        assert_eq!(caller.tenant.key(), "a@AdobeOrg#prod");
        assert_eq!((caller.subject.as_str(), caller.client.as_str()), ("me", "k"));
    }

    #[test]
    fn the_token_names_its_organisations_in_any_form() {
        let all =
            [("authorization", "Bearer x"), ("x-api-key", "k"), ("x-gw-ims-org-id", "b"), ("x-sandbox-name", "d")];
        for claims in [json!({ "org": "b" }), json!({ "org": ["a", "b"] }), json!({ "org": "[a b]" })] {
            assert_eq!(of(&all, claims).unwrap().tenant.key(), "b#d");
        }
        for claims in [json!({}), json!({ "org": "a b" }), json!({ "org": "[a bb]" }), json!({ "org": { "b": 1 } })] {
            assert_eq!(of(&all, claims).unwrap_err(), ApiError::ProfileInvalid);
        }
        // The text of a list names no organisation, nor does what only looks like one of its parts.
        for (organisation, claim) in [("[a b]", "[a b]"), ("[a]", "[a]"), ("a b", "[a b]"), ("[]", "[]")] {
            let mut odd = all;
            odd[2].1 = organisation;
            assert_eq!(of(&odd, json!({ "org": claim })).unwrap_err(), ApiError::ProfileInvalid, "{organisation}");
        }
        let mut wrong = all;
        wrong[3].1 = "a#b";
        assert!(matches!(of(&wrong, json!({ "org": "b" })), Err(ApiError::BadRequest(_))));
    }
}
