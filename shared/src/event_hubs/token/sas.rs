//! Shared access signature tokens (<https://learn.microsoft.com/rest/api/eventhub/generate-sas-token>).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

/// The characters to encode, in the signed text and in the token alike: all but RFC 3986's unreserved characters.
pub const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Signs a token for `resource` (such as `https://ns.servicebus.windows.net/hub`) that is valid until `expiry`
/// (Unix seconds), for that resource and all below it.
///
/// The service recomputes the signature over `sr` as it receives it, so the resource is neither lower-cased nor given a
/// slash. The key is used as it is: it looks like base64, and decoding it is a common mistake.
pub fn sign(resource: &str, key_name: &str, key: &SecretString, expiry: u64) -> SecretString {
    let resource = utf8_percent_encode(resource, ENCODED);
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key.expose_secret().as_bytes()).expect("HMAC accepts a key of any length");
    mac.update(format!("{resource}\n{expiry}").as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    format!(
        "SharedAccessSignature sr={resource}&sig={}&se={expiry}&skn={}",
        utf8_percent_encode(&signature, ENCODED),
        utf8_percent_encode(key_name, ENCODED),
    )
    .into()
}

const SCHEME: &str = "SharedAccessSignature ";

/// The expiry (Unix seconds) that a token carries in `se`.
///
/// # Errors
/// Says what the token lacks.
pub fn expiry(token: &SecretString) -> Result<u64, &'static str> {
    let token = token.expose_secret();
    let Some(fields) = token.strip_prefix(SCHEME) else {
        return Err(match token.starts_with("sr=") {
            true => {
                "the token in `SharedAccessSignature` is incomplete: put `SharedAccessSignature ` in front of its `sr=`"
            }
            false => "`SharedAccessSignature` is not a token, which begins with `SharedAccessSignature sr=`",
        });
    };
    let expiry = fields.split('&').find_map(|field| field.strip_prefix("se=")?.parse().ok());
    expiry.ok_or("`SharedAccessSignature` is not a token with an expiry (`se`)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_part_of_a_ready_made_token_is_named() {
        let problem = |token: &str| expiry(&token.into()).unwrap_err();
        assert_eq!(expiry(&"SharedAccessSignature sr=a&sig=b&se=7&skn=n".into()), Ok(7));
        assert!(problem("sr=a&sig=b&se=7&skn=n").contains("put `SharedAccessSignature ` in front"));
        assert!(problem("abc").contains("is not a token"));
        for token in ["SharedAccessSignature sr=a&sig=b&skn=n", "SharedAccessSignature sr=a&se=soon"] {
            assert!(problem(token).contains("expiry"), "{token}");
        }
    }
}
