//! The control API's routes, behind an authorizer.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::response::Response;
use axum::routing::any;
use http::header::AUTHORIZATION;
use http::{Request, StatusCode};
use shared::clock::Clock;

use super::response::message;
use super::{Target, pass_on};
use crate::runner::Function;
use crate::tokens::Tokens;

struct ControlApi {
    function: Function,
    tokens: Arc<Tokens>,
    clock: Clock,
}

/// The first segments of the control API's paths.
const CONTROL_API: [&str; 7] =
    ["connections", "sourceConnections", "targetConnections", "flows", "connectionSpecs", "flowSpecs", "runs"];
/// The only path that requires no token.
const DOCUMENT: &str = "/openapi.json";

/// The control API's routes. Merge them with [`super::router`].
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
