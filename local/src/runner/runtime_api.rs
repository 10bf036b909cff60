//! The Lambda Runtime API of one instance.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot, watch};

use super::{InvokeError, MAX_PAYLOAD, lock};
use crate::server::body;

/// What the function returned for an invocation, or why it returned nothing.
pub(super) type Outcome = Result<Vec<u8>, InvokeError>;

/// An invocation that an instance is to be given.
pub(super) struct Invocation {
    pub id: String,
    pub payload: Vec<u8>,
    pub deadline_ms: u128,
    pub arn: String,
    pub outcome: oneshot::Sender<Outcome>,
    /// Notified when the instance receives the invocation.
    pub taken: oneshot::Sender<()>,
}

/// What the Runtime API of one instance works on.
pub(super) struct Api {
    invocations: tokio::sync::Mutex<mpsc::UnboundedReceiver<Invocation>>,
    /// Id of the current invocation, and who waits for its outcome.
    current: Mutex<Option<(String, oneshot::Sender<Outcome>)>>,
    /// Whether the instance has asked for an event.
    pub ready: watch::Sender<bool>,
    pub init_error: Mutex<Option<String>>,
}

impl Api {
    pub fn new(invocations: mpsc::UnboundedReceiver<Invocation>) -> Self {
        Self {
            invocations: tokio::sync::Mutex::new(invocations),
            current: Mutex::default(),
            ready: watch::Sender::new(false),
            init_error: Mutex::default(),
        }
    }
}

pub(super) fn routes(api: Arc<Api>) -> Router {
    Router::new()
        .route("/2018-06-01/runtime/invocation/next", get(next))
        .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
        .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
        .route("/2018-06-01/runtime/init/error", post(init_error))
        .with_state(api)
}

async fn next(State(api): State<Arc<Api>>) -> Response {
    api.ready.send_replace(true);
    let Some(invocation) = api.invocations.lock().await.recv().await else {
        return StatusCode::GONE.into_response();
    };
    let trace = format!(
        "Root=1-{:08x}-{:024x};Parent={:016x};Sampled=0",
        fastrand::u32(..),
        fastrand::u128(..) >> 32,
        fastrand::u64(..)
    );
    // If the caller no longer waits, the outcome is dropped.
    let _ = invocation.taken.send(());
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("lambda-runtime-aws-request-id", invocation.id.clone()),
        ("lambda-runtime-deadline-ms", invocation.deadline_ms.to_string()),
        ("lambda-runtime-invoked-function-arn", invocation.arn),
        ("lambda-runtime-trace-id", trace),
    ];
    *lock(&api.current) = Some((invocation.id, invocation.outcome));
    (headers, invocation.payload).into_response()
}

/// Ends the current invocation if it has this id.
fn end(api: &Api, id: &str, outcome: Outcome) -> Response {
    match lock(&api.current).take_if(|(current, _)| current == id) {
        Some((_, waiting)) => {
            let _ = waiting.send(outcome);
            StatusCode::ACCEPTED.into_response()
        }
        None => (StatusCode::BAD_REQUEST, r#"{"errorType":"InvalidRequestID"}"#).into_response(),
    }
}

async fn response(State(api): State<Arc<Api>>, Path(id): Path<String>, body: Body) -> Response {
    match body::read(body, MAX_PAYLOAD).await {
        Ok(response) => end(&api, &id, Ok(response.into())),
        Err(_) => {
            let message = format!("Exceeded maximum allowed payload size ({MAX_PAYLOAD} bytes).");
            let error_type = "Function.ResponseSizeTooLarge".to_owned();
            end(&api, &id, Err(InvokeError::Function { error_type, message }));
            StatusCode::PAYLOAD_TOO_LARGE.into_response()
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ErrorBody {
    error_type: String,
    error_message: String,
}

async fn error_body(body: Body) -> ErrorBody {
    let body = body::read(body, MAX_PAYLOAD).await.unwrap_or_default();
    serde_json::from_slice(&body).unwrap_or_default()
}

async fn error(State(api): State<Arc<Api>>, Path(id): Path<String>, body: Body) -> Response {
    let ErrorBody { error_type, error_message: message } = error_body(body).await;
    end(&api, &id, Err(InvokeError::Function { error_type, message }))
}

async fn init_error(State(api): State<Arc<Api>>, body: Body) -> StatusCode {
    let body = error_body(body).await;
    *lock(&api.init_error) = Some(format!("{}: {}", body.error_type, body.error_message));
    StatusCode::ACCEPTED
}
