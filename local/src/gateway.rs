//! Requests to `/{kind}` and `/{kind}/{flow}` become HTTP API events (payload 2.0) for that kind's function, and what it returns
//! becomes the response, as API Gateway does it. The control API's routes have their authorizer. Every method is passed on;
//! stages and CORS are not supported.

mod control;
mod event;
mod response;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, RawPathParams, State};
use axum::response::Response;
use axum::routing::any;
use axum::serve::ListenerExt;
use http::{Request, StatusCode};
use serde_json::{Map, Value, json};
use shared::clock::Clock;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::time::timeout;

pub use self::control::control_router;
use self::event::{Context, event};
use self::response::{message, response};
use crate::random;
use crate::runner::{Function, MAX_PAYLOAD};
use crate::server::body::{self, Unread};

/// Maximum size of a body that an HTTP API accepts, in bytes.
const MAX_BODY: usize = 10 * 1024 * 1024;
/// Maximum time that an HTTP API waits for a function.
const INTEGRATION_TIMEOUT: Duration = Duration::from_secs(30);

struct Gateway {
    functions: BTreeMap<String, Function>,
    clock: Clock,
}

/// Routes to `functions`, by kind. Serve them with [`serve`].
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

/// The function that a request goes to, and what the event says about it.
struct Target<'a> {
    function: &'a Function,
    kind: &'a str,
    flow: Option<&'a str>,
    /// Claims of the token that the authorizer accepted.
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
    // The invocation continues when the caller closes the connection.
    let print_failures = function.config().print_failures;
    let function = function.clone();
    let invocation = tokio::spawn(async move { function.invoke(payload).await });
    match timeout(INTEGRATION_TIMEOUT, invocation).await {
        Err(_) => message(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable"),
        Ok(Ok(Ok(returned))) => response(&returned),
        Ok(Ok(Err(error))) => {
            // The reason is printed here only; the caller does not get it.
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
            let response = http.post(format!("{url}{path}")).body(vec![b'x'; body]).send().await.unwrap();
            assert_eq!(response.status(), status, "{path}");
            assert_eq!(response.text().await.unwrap(), format!(r#"{{"message":"{text}"}}"#));
        }
    }
}
