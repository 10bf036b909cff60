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

/// The claim of a token that names the caller's organisations.
#[derive(Debug, Clone)]
pub struct OrgClaim {
    pub name: String,
    pub form: ClaimForm,
}

/// The form of that claim. An operator says it, since an HTTP API passes the text `[a b]` for a list as well as for that text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimForm {
    /// One organisation.
    Text,
    /// A list, or its text `[a b]`.
    List,
}

impl std::str::FromStr for ClaimForm {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "list" => Ok(Self::List),
            _ => Err("expected text or list"),
        }
    }
}

const MAX_ORGANISATION: usize = 256;
const MAX_SANDBOX: usize = 64;
const DEFAULT_SANDBOX: &str = "prod";

impl Caller {
    /// Checks the headers in the documented order. The gateway's authorizer has checked the token.
    pub fn of(request: &Request, claim: &OrgClaim) -> Result<Self, ApiError> {
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

/// Whether the claim names the organisation. A text is compared as a whole, whatever is in it. An element of a list names an
/// organisation only if it can't be mistaken for two elements or for the text of a list.
fn names(claims: &Map<String, Value>, claim: &OrgClaim, organisation: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"@._-".contains(&byte);
    let is_plain = |name: &str| !name.is_empty() && name.bytes().all(plain);
    match (claim.form, claims.get(&claim.name)) {
        (ClaimForm::Text, Some(Value::String(text))) => text == organisation,
        (ClaimForm::List, Some(Value::Array(list))) => {
            is_plain(organisation) && list.iter().any(|one| one == organisation)
        }
        (ClaimForm::List, Some(Value::String(text))) => {
            let list = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
            is_plain(organisation) && list.is_some_and(|list| list.split([' ', ',']).any(|one| one == organisation))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(headers: &[(&str, &str)], form: ClaimForm, claims: Value) -> Result<Caller, ApiError> {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let claim = OrgClaim { name: "org".to_owned(), form };
        Caller::of(&Request { headers, claims: claims.as_object().cloned(), ..Request::default() }, &claim)
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
            assert_eq!(of(headers, ClaimForm::Text, claims.clone()).unwrap_err(), expected);
        }
        assert_eq!(of(&all, ClaimForm::Text, Value::Null).unwrap_err(), ApiError::TokenInvalid);
        let caller = of(&all, ClaimForm::Text, claims).unwrap();
        assert_eq!(caller.tenant.key(), "a@AdobeOrg#prod");
        assert_eq!((caller.subject.as_str(), caller.client.as_str()), ("me", "k"));
    }

    /// Whether a claim of that form names the organisation.
    fn accepts(form: ClaimForm, claim: &Value, organisation: &str) -> bool {
        let headers = [("authorization", "Bearer x"), ("x-api-key", "k"), ("x-gw-ims-org-id", organisation)];
        match of(&headers, form, json!({ "org": claim })) {
            Ok(caller) => {
                assert_eq!(caller.tenant.organisation, organisation);
                true
            }
            Err(error) => {
                assert_eq!(error, ApiError::ProfileInvalid);
                false
            }
        }
    }

    #[test]
    fn a_text_names_the_one_organisation_that_it_is() {
        let accepts = |claim: Value, organisation: &str| accepts(ClaimForm::Text, &claim, organisation);
        assert!(accepts(json!("victim"), "victim"));
        assert!(accepts(json!("[victim]"), "[victim]"));
        for claim in [
            json!("[victim]"),
            json!("[acme victim]"),
            json!("[[victim]]"),
            json!("acme victim"),
            json!("acme,victim"),
            json!(["victim"]),
            json!({ "victim": 1 }),
            json!(null),
            json!(""),
        ] {
            assert!(!accepts(claim.clone(), "victim"), "{claim}");
        }
    }

    #[test]
    fn a_list_names_its_plain_elements() {
        let accepts = |claim: Value, organisation: &str| accepts(ClaimForm::List, &claim, organisation);
        for organisation in ["acme", "victim@Org_1.a-b"] {
            for claim in [
                json!("[acme victim@Org_1.a-b]"),
                json!("[acme,victim@Org_1.a-b]"),
                json!(["acme", "victim@Org_1.a-b"]),
            ] {
                assert!(accepts(claim.clone(), organisation), "{claim}");
            }
        }
        for claim in [
            json!("[[victim]]"),
            json!("[victim]]"),
            json!("[[victim]"),
            json!("victim"),
            json!("[victim"),
            json!("[victims]"),
            json!(["acme victim"]),
            json!(["[victim]"]),
            json!([["victim"]]),
            json!([]),
            json!("[]"),
        ] {
            assert!(!accepts(claim.clone(), "victim"), "{claim}");
        }
        for (claim, organisation) in
            [(json!("[a b]"), "[a b]"), (json!("[a b]"), "a b"), (json!("[[a]]"), "[a]"), (json!(["a b"]), "a b")]
        {
            assert!(!accepts(claim.clone(), organisation), "{claim} {organisation}");
        }
    }

    #[test]
    fn a_sandbox_has_no_mark_that_separates_keys() {
        let headers =
            [("authorization", "Bearer x"), ("x-api-key", "k"), ("x-gw-ims-org-id", "b"), ("x-sandbox-name", "a#b")];
        assert!(matches!(of(&headers, ClaimForm::Text, json!({ "org": "b" })), Err(ApiError::BadRequest(_))));
    }
}
