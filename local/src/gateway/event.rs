//! The HTTP API event (payload 2.0) of a request.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_TYPE, COOKIE, HOST, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

/// The parts of an event that do not come from the request itself.
#[derive(Debug, Clone)]
pub(super) struct Context<'a> {
    /// First segment of the path.
    pub kind: &'a str,
    /// Second segment of the path, as written.
    pub flow: Option<&'a str>,
    pub source_ip: IpAddr,
    pub request_id: &'a str,
    pub received: OffsetDateTime,
}

/// The event of a request.
pub(super) fn event(request: &Parts, body: &[u8], context: &Context<'_>) -> Value {
    let header = |name| request.headers.get(name).map(text);
    let path = request.uri.path();
    let method = request.method.as_str();
    let route = if context.flow.is_some() { "/{flow}" } else { "" };
    let route_key = format!("{method} /{}{route}", context.kind);
    let host = header(HOST).unwrap_or_default();
    let mut event = json!({
        "version": "2.0",
        "routeKey": route_key,
        "rawPath": path,
        "rawQueryString": request.uri.query().unwrap_or_default(),
        "headers": headers(&request.headers),
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "local",
            "domainName": host,
            "domainPrefix": host.split(['.', ':']).next(),
            "requestId": context.request_id,
            "routeKey": route_key,
            "stage": "$default",
            "time": common_log_time(context.received),
            "timeEpoch": (context.received.unix_timestamp_nanos() / 1_000_000) as i64,
            "http": {
                "method": method,
                "path": path,
                "protocol": format!("{:?}", request.version),
                "sourceIp": context.source_ip,
                "userAgent": header(USER_AGENT).unwrap_or_default(),
            },
        },
        "isBase64Encoded": false,
    });
    let cookies: Vec<String> = request
        .headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|value| text(value).split("; ").map(str::to_owned).collect::<Vec<_>>())
        .collect();
    if !cookies.is_empty() {
        event["cookies"] = cookies.into();
    }
    let query = query_parameters(request.uri.query().unwrap_or_default());
    if !query.is_empty() {
        event["queryStringParameters"] = query.into_iter().collect::<Map<_, _>>().into();
    }
    if let Some(flow) = context.flow {
        event["pathParameters"] = json!({ "flow": percent_decode_str(flow).decode_utf8_lossy() });
    }
    if !body.is_empty() {
        let as_text = std::str::from_utf8(body).ok().filter(|_| is_text(header(CONTENT_TYPE).as_deref()));
        event["isBase64Encoded"] = as_text.is_none().into();
        event["body"] = as_text.map_or_else(|| STANDARD.encode(body), str::to_owned).into();
    }
    event
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// The headers without cookies. Names are lower-case already; the values of repeated ones are joined.
fn headers(headers: &HeaderMap) -> Map<String, Value> {
    headers
        .keys()
        .filter(|name| **name != COOKIE)
        .map(|name| {
            let values: Vec<String> = headers.get_all(name).iter().map(text).collect();
            (name.to_string(), values.join(",").into())
        })
        .collect()
}

fn query_parameters(query: &str) -> BTreeMap<String, Value> {
    let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let mut parameters = BTreeMap::<String, String>::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        parameters
            .entry(decoded(name))
            .and_modify(|values| {
                values.push(',');
                values.push_str(&decoded(value));
            })
            .or_insert_with(|| decoded(value));
    }
    parameters.into_iter().map(|(name, value)| (name, value.into())).collect()
}

/// Whether a body with this content type is passed on as text. All others are base64-encoded, also form posts and bodies
/// without a content type (measured by a third party; AWS does not document it).
fn is_text(content_type: Option<&str>) -> bool {
    let media_type = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    let media_type = media_type.to_ascii_lowercase();
    media_type.starts_with("text/")
        || ["application/json", "application/xml", "application/javascript"].contains(&media_type.as_str())
}

/// The time in the form `12/Mar/2026:19:03:58 +0000`.
fn common_log_time(time: OffsetDateTime) -> String {
    format!(
        "{:02}/{:.3}/{}:{:02}:{:02}:{:02} +0000",
        time.day(),
        time.month().to_string(),
        time.year(),
        time.hour(),
        time.minute(),
        time.second(),
    )
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn context(flow: Option<&str>) -> Context<'_> {
        Context {
            kind: "dataverse-event",
            flow,
            source_ip: "192.0.2.1".parse().unwrap(),
            request_id: "JKJaX",
            received: OffsetDateTime::from_unix_timestamp(1_773_342_238).unwrap(),
        }
    }

    #[test]
    fn a_request_becomes_the_documented_event() {
        let request = parts(
            Request::post("/dataverse-event/crm?code=abc%2Bdef&x=1&x=2")
                .header("Content-Type", "application/json")
                .header("X-Many", "1")
                .header("x-many", "2")
                .header("cookie", "a=b; c=d")
                .header("host", "a1.example.net")
                .header("user-agent", "test"),
        );
        let expected = json!({
            "version": "2.0", "routeKey": "POST /dataverse-event/{flow}", "rawPath": "/dataverse-event/crm",
            "rawQueryString": "code=abc%2Bdef&x=1&x=2", "cookies": ["a=b", "c=d"],
            "headers": {
                "content-type": "application/json", "x-many": "1,2", "host": "a1.example.net", "user-agent": "test",
            },
            "queryStringParameters": {"code": "abc+def", "x": "1,2"}, "pathParameters": {"flow": "crm"},
            "requestContext": {
                "accountId": "123456789012", "apiId": "local", "domainName": "a1.example.net", "domainPrefix": "a1",
                "requestId": "JKJaX", "routeKey": "POST /dataverse-event/{flow}", "stage": "$default",
                "time": "12/Mar/2026:19:03:58 +0000", "timeEpoch": 1_773_342_238_000_i64,
                "http": {"method": "POST", "path": "/dataverse-event/crm", "protocol": "HTTP/1.1",
                    "sourceIp": "192.0.2.1", "userAgent": "test"},
            },
            "body": "{\"a\":1}", "isBase64Encoded": false,
        });
        assert_eq!(event(&request, br#"{"a":1}"#, &context(Some("crm"))), expected);
    }

    #[test]
    fn empty_members_are_absent() {
        let event = event(&parts(Request::get("/dataverse-event")), b"", &context(None));
        for member in ["body", "cookies", "queryStringParameters", "pathParameters"] {
            assert!(event.get(member).is_none(), "{member}");
        }
        assert_eq!(event["rawQueryString"], "");
        assert_eq!(event["routeKey"], "GET /dataverse-event");
    }

    #[test]
    fn only_a_few_content_types_are_text() {
        for (content_type, body, base64) in [
            ("application/json; charset=utf-8", &b"{}"[..], false),
            ("Text/Plain", b"a", false),
            ("application/xml", b"<a/>", false),
            ("application/json", b"\xff", true),
            ("application/cloudevents+json", b"{}", true),
            ("application/x-www-form-urlencoded", b"a=b", true),
            ("", b"{}", true),
        ] {
            let request = parts(Request::post("/dataverse-event").header("content-type", content_type));
            assert_eq!(event(&request, body, &context(None))["isBase64Encoded"], base64, "{content_type}");
        }
    }
}
