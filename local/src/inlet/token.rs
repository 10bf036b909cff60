//! The token endpoint, at which the known client gets tokens.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::json;

use super::collection::scripted;
use super::faults::Action;
use super::{Shared, text};
use crate::random;
use crate::server::{body, no_response};

/// Lifetime of a token, in seconds.
const TOKEN_LIFETIME: u64 = 86_399;

/// Returns a token to the known client.
pub(super) async fn token(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = body::read(body, 10_000).await else { return no_response() };
    let fault = shared.state().take_fault(true);
    match fault {
        Some(Action::Status { status, retry_after }) => return scripted(status, retry_after),
        Some(Action::Hang) => std::future::pending().await,
        Some(Action::Delay { ms }) => tokio::time::sleep(Duration::from_millis(ms)).await,
        Some(Action::Reset | Action::ResetAfterTaking) => return no_response(),
        Some(Action::Elements { .. }) | None => {}
    }
    let form = String::from_utf8_lossy(&body).into_owned();
    let field = |name: &str| {
        let value = form.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        percent_decode_str(value.unwrap_or_default()).decode_utf8_lossy().into_owned()
    };
    let mut state = shared.state();
    let refused = |error: &str| (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response();
    if text(&parts.headers, CONTENT_TYPE) != "application/x-www-form-urlencoded"
        || field("grant_type") != "client_credentials"
    {
        return refused("unsupported_grant_type");
    }
    if state.config.client.as_ref() != Some(&(field("client_id"), field("client_secret"))) {
        return refused("invalid_client");
    }
    if field("scope").is_empty() {
        return refused("invalid_scope");
    }
    let token = random::uuid();
    state.tokens.push(token.clone());
    state.tokens_given += 1;
    Json(json!({ "access_token": token, "token_type": "bearer", "expires_in": TOKEN_LIFETIME })).into_response()
}
