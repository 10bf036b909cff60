//! The list of hubs at `/$Resources/Eventhubs`, as the service returns it to a key with Manage.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, StatusCode};
use serde::Deserialize;

use super::authorization::{self, Claim, Operation};
use super::namespace::Namespace;
use super::responses::Refusal;

/// Maximum number of hubs in a response, as the portal asks for them; the service's own maximum is not documented.
const PAGE: usize = 100;

#[derive(Deserialize)]
struct Page {
    #[serde(rename = "$skip", default)]
    skip: usize,
    #[serde(rename = "$top", default = "default_page")]
    top: usize,
}

fn default_page() -> usize {
    PAGE
}

/// Returns the hubs, with only those elements of an entry that a function reads.
pub(super) async fn list_resources(State(namespace): State<Arc<Namespace>>, request: Request<Body>) -> Response {
    let (parts, _) = request.into_parts();
    let header = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let path = parts.uri.path().trim_start_matches('/');
    if !path.eq_ignore_ascii_case("$Resources/Eventhubs") {
        return namespace.error(&Refusal::not_found(), &parts, "");
    }
    let Ok(Query(page)) = Query::<Page>::try_from_uri(&parts.uri) else {
        return (StatusCode::BAD_REQUEST, "$skip, $top: expected numbers").into_response();
    };
    let (claim, now) = (Claim::Manage, namespace.clock.unix_seconds());
    let operation = Operation { hub: "", host: header(HOST).unwrap_or_default(), path, claim, now };
    let entries: String = {
        let state = namespace.state();
        if let Err(refusal) = authorization::check(header(AUTHORIZATION), &state.keys, &operation) {
            drop(state);
            return namespace.error(&refusal, &parts, "");
        }
        let hubs = state.hubs.iter().skip(page.skip).take(page.top.min(PAGE));
        hubs.map(|hub| format!("<entry><title type=\"text\">{}</title></entry>", hub.name)).collect()
    };
    let feed =
        format!("<feed xmlns=\"http://www.w3.org/2005/Atom\"><title type=\"text\">EventHubs</title>{entries}</feed>");
    ([(CONTENT_TYPE, "application/atom+xml;type=feed;charset=utf-8")], feed).into_response()
}
