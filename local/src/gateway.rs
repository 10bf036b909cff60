//! Requests at `/{kind}` and `/{kind}/{flow}` become HTTP API events (payload 2.0) for that kind's function, and its
//! answer the response, as API Gateway does it. The control API's routes have their authorizer. Every method is passed on; stages
//! and CORS are not played.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, RawPathParams, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::serve::ListenerExt;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HOST, SET_COOKIE, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use shared::clock::Clock;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::body::{self, Unread};
use crate::random;
use crate::runner::{Function, MAX_PAYLOAD};
use crate::tokens::Tokens;

/// The largest body that an HTTP API takes.
const MAX_BODY: usize = 10 * 1024 * 1024;
/// The longest that an HTTP API waits for a function.
const INTEGRATION_TIMEOUT: Duration = Duration::from_secs(30);

/// What an event tells beyond the request itself.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// The first segment of the path.
    pub kind: &'a str,
    /// The second one, as written.
    pub flow: Option<&'a str>,
    pub source_ip: IpAddr,
    pub request_id: &'a str,
    pub received: OffsetDateTime,
}

/// The event of a request.
pub fn event(request: &Parts, body: &[u8], context: &Context<'_>) -> Value {
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

/// Names are lower-case already; repeated ones are joined. Cookies stand apart.
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

/// Whether a body stays text. Everything else is encoded, also one without a content type and form posts (measured by a
/// third party; AWS does not list it).
fn is_text(content_type: Option<&str>) -> bool {
    let media_type = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    let media_type = media_type.to_ascii_lowercase();
    media_type.starts_with("text/")
        || ["application/json", "application/xml", "application/javascript"].contains(&media_type.as_str())
}

/// Such as `12/Mar/2026:19:03:58 +0000`.
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

/// The response that a function's answer describes. An answer without `statusCode` is itself the body.
fn response(answer: &[u8]) -> Response {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        status_code: u16,
        #[serde(default)]
        headers: Option<BTreeMap<String, Value>>,
        #[serde(default)]
        body: Option<String>,
        #[serde(default)]
        is_base64_encoded: Option<bool>,
        #[serde(default)]
        cookies: Option<Vec<String>>,
    }
    let full_form = match serde_json::from_slice::<Value>(answer) {
        Ok(Value::Object(members)) if members.contains_key("statusCode") => Value::Object(members),
        Ok(_) => return ([(CONTENT_TYPE, "application/json")], answer.to_vec()).into_response(),
        Err(_) => return message(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"),
    };
    let formed = || -> Option<Response> {
        let answer: Answer = serde_json::from_value(full_form).ok()?;
        let body = answer.body.unwrap_or_default();
        let body = if answer.is_base64_encoded == Some(true) { STANDARD.decode(body).ok()? } else { body.into_bytes() };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::from_u16(answer.status_code).ok()?;
        for (name, value) in answer.headers.unwrap_or_default() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            response.headers_mut().insert(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
        }
        for cookie in answer.cookies.unwrap_or_default() {
            response.headers_mut().append(SET_COOKIE, HeaderValue::try_from(cookie).ok()?);
        }
        // The server sets it anew.
        response.headers_mut().remove(http::header::CONTENT_LENGTH);
        if !response.headers().contains_key(CONTENT_TYPE) {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain;charset=UTF-8"));
        }
        Some(response)
    };
    formed().unwrap_or_else(|| message(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"))
}

fn message(status: StatusCode, text: &str) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], json!({ "message": text }).to_string()).into_response()
}

struct Gateway {
    functions: BTreeMap<String, Function>,
    clock: Clock,
}

struct ControlApi {
    function: Function,
    tokens: Arc<Tokens>,
    clock: Clock,
}

/// The first segments of the control API's paths.
const CONTROL_API: [&str; 7] =
    ["connections", "sourceConnections", "targetConnections", "flows", "connectionSpecs", "flowSpecs", "runs"];
/// The one of them that needs no token.
const DOCUMENT: &str = "/openapi.json";

/// The control API's routes, behind an authorizer. Merge it with [`router`].
pub fn control_router(function: Function, tokens: Arc<Tokens>) -> Router {
    let mut router = Router::new().route(DOCUMENT, any(control));
    for first in CONTROL_API {
        for path in [format!("/{first}"), format!("/{first}/"), format!("/{first}/{{*rest}}")] {
            router = router.route(&path, any(control));
        }
    }
    router.with_state(Arc::new(ControlApi { function, tokens, clock: Clock::system() }))
}

async fn control(
    State(api): State<Arc<ControlApi>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request<Body>,
) -> Response {
    let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let claims = api.tokens.claims(authorization);
    let path = request.uri().path().to_owned();
    if claims.is_none() && path != DOCUMENT {
        return message(StatusCode::UNAUTHORIZED, "Unauthorized");
    }
    let mut segments = path.splitn(3, '/').skip(1);
    let (first, rest) = (segments.next().unwrap_or_default(), segments.next().filter(|rest| !rest.is_empty()));
    let target = Target { function: &api.function, kind: first, flow: rest, claims };
    pass_on(target, &api.clock, peer, request).await
}

/// Routes to `functions`, by kind. Serve it with [`serve`].
pub fn router(functions: BTreeMap<String, Function>) -> Router {
    Router::new()
        .route("/{kind}", any(handle))
        .route("/{kind}/{flow}", any(handle))
        .fallback(async || message(StatusCode::NOT_FOUND, "Not Found"))
        .with_state(Arc::new(Gateway { functions, clock: Clock::system() }))
}

/// Serves until the future is dropped.
pub async fn serve(listener: TcpListener, router: Router) -> io::Result<()> {
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await
}

async fn handle(
    State(gateway): State<Arc<Gateway>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    parameters: RawPathParams,
    request: Request<Body>,
) -> Response {
    let mut parameters = parameters.iter().map(|(_, value)| value);
    let (kind, flow) = (parameters.next().unwrap_or_default(), parameters.next());
    let Some(function) = gateway.functions.get(kind) else {
        return message(StatusCode::NOT_FOUND, "Not Found");
    };
    pass_on(Target { function, kind, flow, claims: None }, &gateway.clock, peer, request).await
}

/// Where a request goes.
struct Target<'a> {
    function: &'a Function,
    kind: &'a str,
    flow: Option<&'a str>,
    /// Of the token that the authorizer took.
    claims: Option<Map<String, Value>>,
}

async fn pass_on(target: Target<'_>, clock: &Clock, peer: SocketAddr, request: Request<Body>) -> Response {
    let Target { function, kind, flow, claims } = target;
    let (parts, body) = request.into_parts();
    let too_large = || message(StatusCode::PAYLOAD_TOO_LARGE, "Request Entity Too Large");
    let body = match body::read(body, MAX_BODY).await {
        Ok(body) => body,
        Err(Unread::TooLarge) => return too_large(),
        Err(Unread::BrokenOff) => return message(StatusCode::BAD_REQUEST, "Bad Request"),
    };
    let since_epoch = clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let context = Context {
        kind,
        flow,
        source_ip: peer.ip(),
        request_id: &random::uuid(),
        received: OffsetDateTime::UNIX_EPOCH + since_epoch,
    };
    let mut event = event(&parts, &body, &context);
    if let Some(claims) = claims {
        event["requestContext"]["authorizer"] = json!({ "jwt": { "claims": claims, "scopes": null } });
    }
    let payload = event.to_string().into_bytes();
    if payload.len() > MAX_PAYLOAD {
        return too_large();
    }
    // A function goes on when its caller hangs up.
    let print_failures = function.config().print_failures;
    let function = function.clone();
    let invocation = tokio::spawn(async move { function.invoke(payload).await });
    match timeout(INTEGRATION_TIMEOUT, invocation).await {
        Err(_) => message(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable"),
        Ok(Ok(Ok(answer))) => response(&answer),
        Ok(Ok(Err(error))) => {
            // The caller is not told why; whoever runs the system is.
            if print_failures {
                eprintln!("{kind}: {error}");
            }
            message(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
        }
        Ok(Err(_)) => message(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

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

    #[tokio::test]
    async fn answers_become_responses() {
        let failed = r#"{"message":"Internal Server Error"}"#;
        for (answer, status, body) in [
            (r#"{"statusCode":202,"headers":{"X-A":"b"},"body":"x","cookies":["a=b","c=d"]}"#, 202, "x"),
            (r#"{"statusCode":200,"body":"eHg=","isBase64Encoded":true}"#, 200, "xx"),
            (r#"{"statusCode":204}"#, 204, ""),
            (r#"{"a":1}"#, 200, r#"{"a":1}"#),
            (r#""text""#, 200, r#""text""#),
            (r#"{"statusCode":"x"}"#, 500, failed),
            ("no json", 500, failed),
        ] {
            let response = response(answer.as_bytes());
            assert_eq!(response.status(), status, "{answer}");
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(bytes, body, "{answer}");
        }
        let formed = response(br#"{"statusCode":202,"headers":{"X-A":"b"},"cookies":["a=b","c=d"]}"#);
        assert_eq!(formed.headers()["x-a"], "b");
        assert_eq!(formed.headers().get_all("set-cookie").iter().count(), 2);
    }

    #[tokio::test]
    async fn unknown_kinds_and_large_bodies_are_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let config = crate::runner::FunctionConfig::new("kind", "/nowhere/kind");
        let router = router(BTreeMap::from([("kind".to_owned(), Function::new(config))]));
        tokio::spawn(serve(listener, router));
        let http = shared::build_http_client(None).unwrap().client();
        for (path, body, status, text) in [
            ("/other", 1, 404, "Not Found"),
            ("/kind/flow/more", 1, 404, "Not Found"),
            ("/kind/flow", 10 * 1024 * 1024 + 1, 413, "Request Entity Too Large"),
            ("/kind", 5_000_000, 413, "Request Entity Too Large"),
            ("/kind", 1, 500, "Internal Server Error"),
        ] {
            let answer = http.post(format!("{url}{path}")).body(vec![b'x'; body]).send().await.unwrap();
            assert_eq!(answer.status(), status, "{path}");
            assert_eq!(answer.text().await.unwrap(), format!(r#"{{"message":"{text}"}}"#));
        }
    }
}
