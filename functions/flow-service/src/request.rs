//! An HTTP API event (payload 2.0), read.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::errors::{ApiError, bad_request};

/// Larger bodies are refused: the store takes items of 400 KB.
pub const MAX_BODY: usize = 128 * 1024;

#[derive(Debug, Default)]
pub struct Request {
    pub method: String,
    /// The segments of the path, decoded; empty ones are left out.
    pub path: Vec<String>,
    pub query: Vec<(String, String)>,
    /// Names are lower-case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// Of the token that the gateway's authorizer has checked.
    pub claims: Option<Map<String, Value>>,
    /// Where the caller reached the gateway, with the stage if there is one.
    pub base_url: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    raw_path: String,
    #[serde(default)]
    raw_query_string: String,
    #[serde(default)]
    headers: BTreeMap<String, Value>,
    body: Option<String>,
    is_base64_encoded: Option<bool>,
    request_context: Context,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Context {
    stage: Option<String>,
    domain_name: Option<String>,
    http: Http,
    authorizer: Option<Authorizer>,
}

#[derive(Deserialize)]
struct OddRequest {
    #[serde(rename = "requestContext")]
    _request_context: IgnoredAny,
}

#[derive(Deserialize)]
struct Http {
    method: String,
}

#[derive(Deserialize)]
struct Authorizer {
    jwt: Option<Jwt>,
}

#[derive(Deserialize)]
struct Jwt {
    claims: Map<String, Value>,
}

impl Request {
    /// Reads an event; `None` when it is no HTTP request.
    pub fn read(event: &str) -> Option<Result<Self, ApiError>> {
        let event: Event = match serde_json::from_str(event) {
            Ok(event) => event,
            // A request that has not all that one needs, or text that is no Unicode.
            Err(_) => {
                serde_json::from_str::<OddRequest>(event).ok()?;
                return Some(bad_request("the request can't be read; expected an HTTP API event, payload 2.0"));
            }
        };
        let stage = event.request_context.stage.filter(|stage| stage != "$default");
        let mut path: Vec<String> =
            event.raw_path.split('/').filter(|segment| !segment.is_empty()).map(decoded).collect();
        if stage.is_some() && path.first() == stage.as_ref() {
            path.remove(0);
        }
        let headers: BTreeMap<String, String> = event
            .headers
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_ascii_lowercase(), value.as_str()?.to_owned())))
            .collect();
        let body = event.body.unwrap_or_default();
        let body = if event.is_base64_encoded == Some(true) { STANDARD.decode(body).ok() } else { Some(body.into()) };
        let Some(body) = body else { return Some(bad_request("the body is marked as base64, and is not")) };
        let host = headers.get("host").cloned().or(event.request_context.domain_name).unwrap_or_default();
        let scheme = match headers.get("x-forwarded-proto").map(String::as_str) {
            Some("http") => "http",
            _ => "https",
        };
        Some(Ok(Self {
            method: event.request_context.http.method,
            path,
            query: pairs(&event.raw_query_string),
            headers,
            body,
            claims: event.request_context.authorizer.and_then(|authorizer| Some(authorizer.jwt?.claims)),
            base_url: format!("{scheme}://{host}{}", stage.map(|stage| format!("/{stage}")).unwrap_or_default()),
        }))
    }

    /// A header that is not blank.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Checks the content type.
    pub fn check_content_type(&self) -> Result<(), ApiError> {
        let media_type = self.header("content-type").and_then(|value| value.split(';').next()).unwrap_or_default();
        if !media_type.trim().eq_ignore_ascii_case("application/json") {
            return bad_request("A valid content-type must be specified");
        }
        Ok(())
    }

    /// The body as JSON. The error never repeats any of it.
    pub fn json(&self) -> Result<Value, ApiError> {
        if self.body.len() > MAX_BODY {
            return Err(ApiError::TooLarge(format!("the body has more than {MAX_BODY} bytes")));
        }
        let value = serde_json::from_slice(&self.body).or_else(|error| {
            bad_request(format!("the body is no JSON (line {}, column {})", error.line(), error.column()))
        })?;
        match unkept_number(&self.body) {
            None => Ok(value),
            Some(place) => bad_request(format!(
                "the number at byte {place} of the body has more digits than are kept (64 bits, as an integer or a double); \
                 give it as text"
            )),
        }
    }
}

/// Where the first number of a JSON text stands that would be another one once it is read.
fn unkept_number(json: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        let rest = &json[at..];
        let length = match byte {
            b'"' => {
                let mut is_escaped = false;
                let end = rest[1..].iter().position(|byte| {
                    let ends = *byte == b'"' && !is_escaped;
                    is_escaped = *byte == b'\\' && !is_escaped;
                    ends
                });
                end.map_or(rest.len(), |end| end + 2)
            }
            b'-' | b'0'..=b'9' => {
                let end = rest.iter().position(|byte| !matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9'));
                let length = end.unwrap_or(rest.len());
                if !std::str::from_utf8(&rest[..length]).is_ok_and(is_kept) {
                    return Some(at);
                }
                length
            }
            _ => 1,
        };
        at += length;
    }
    None
}

fn is_kept(number: &str) -> bool {
    let is_integer = number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok();
    is_integer || number.parse::<f64>().is_ok_and(|double| digits(&format!("{double:e}")) == digits(number))
}

/// The digits of a number without the zeros around them, and the power of ten of the last one.
fn digits(number: &str) -> Option<(String, i64)> {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.trim_start_matches('-').split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{}{fraction}", whole.trim_start_matches('-'));
    let digits = all.trim_end_matches('0');
    if digits.trim_start_matches('0').is_empty() {
        return Some((String::new(), 0));
    }
    let power = i64::try_from(all.len() - digits.len()).ok()? - i64::try_from(fraction.len()).ok()?;
    Some((digits.trim_start_matches('0').to_owned(), exponent.parse::<i64>().ok()?.checked_add(power)?))
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn pairs(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(&name.replace('+', " ")), decoded(&value.replace('+', " ")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_that_would_become_others_are_refused() {
        let read = |body: &str| Request { body: body.into(), ..Request::default() }.json();
        for kept in [
            "0",
            "-0",
            "0.0",
            "7",
            "18446744073709551615",
            "-9223372036854775808",
            "0.1",
            "-1.50",
            "1e3",
            "1E+22",
            "2.5e-3",
            "0.30000000000000004",
            "1.7976931348623157e308",
            "100000000000000000000",
            r#"["a\"1234567890.12345678901", 1]"#,
            r#"{"18446744073709551617":"\\","x":1}"#,
        ] {
            assert!(read(kept).is_ok(), "{kept}: {:?}", read(kept));
        }
        for lost in [
            "18446744073709551617",
            "-9223372036854775809",
            "0.1234567890123456789",
            "1e400",
            "1e-400",
            r#"{"x":["\\",12345678901234567890123]}"#,
            "[1, 3.00000000000000000001]",
        ] {
            assert_eq!(read(lost).unwrap_err().status(), 400, "{lost}");
        }
    }

    #[test]
    fn an_event_is_read() {
        let event = json!({
            "rawPath": "/prod/flows/a%20b/", "rawQueryString": "property=id==a,b&x", "headers": { "Host": "api.example.net" },
            "body": "e30=", "isBase64Encoded": true,
            "requestContext": { "stage": "prod", "http": { "method": "GET" }, "authorizer": { "jwt": { "claims": { "org": "o" } } } },
        });
        let request = Request::read(&event.to_string()).unwrap().unwrap();
        assert_eq!(request.path, ["flows", "a b"]);
        assert_eq!(request.query, [("property".into(), "id==a,b".into()), ("x".into(), String::new())]);
        assert_eq!(request.json(), Ok(json!({})));
        assert_eq!(request.base_url, "https://api.example.net/prod");
        assert_eq!(request.claims.unwrap()["org"], "o");
        assert!(Request::read(r#"{"Records":[]}"#).is_none());
        let no_unicode = event.to_string().replace("e30=", r"\ud800");
        assert_eq!(Request::read(&no_unicode).unwrap().unwrap_err().status(), 400);
    }
}
