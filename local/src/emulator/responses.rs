//! Error responses in the form of the service's gateway.

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use time::OffsetDateTime;

use super::namespace::Namespace;
use crate::random;

/// Reason for which a request is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    pub status: u16,
    pub detail: String,
}

impl Refusal {
    pub fn new(status: u16, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    pub fn not_found() -> Self {
        Self::new(404, "40400: Endpoint not found.")
    }

    pub fn too_large(size: usize, limit: usize) -> Self {
        Self::new(403, format!("The message is too large: {size} bytes exceeds the limit of {limit} bytes."))
    }
}

impl Namespace {
    /// An error response as the service's gateway writes it.
    pub fn error(&self, refusal: &Refusal, parts: &Parts, hub: &str) -> Response {
        let host = parts.headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let time = OffsetDateTime::from(self.clock.now());
        let detail = format!(
            "{} TrackingId:{}_G31, SystemTracker:{host}:{hub}, Timestamp:{}T{:02}:{:02}:{:02}",
            refusal.detail,
            random::uuid(),
            time.date(),
            time.hour(),
            time.minute(),
            time.second(),
        );
        let escaped = detail.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let body = format!("<Error><Code>{}</Code><Detail>{escaped}</Detail></Error>", refusal.status);
        let mut response = (
            StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            [(CONTENT_TYPE, HeaderValue::from_static("application/xml; charset=utf-8"))],
            body,
        )
            .into_response();
        // The reason phrase contains the sub-code too.
        if let Ok(reason) = hyper::ext::ReasonPhrase::try_from(refusal.detail.clone()) {
            response.extensions_mut().insert(reason);
        }
        response
    }
}
