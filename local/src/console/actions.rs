//! The buttons of the page: they send sample events, turn switches, and write the changed key to Secrets Manager.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Value, json};
use shared::aws::{AwsError, Service};
use tokio::time::Instant;

use super::switches::Switch;
use super::{CALL_TIMEOUT, Console, SendersKey, Shared, lock, problem, secret};
use crate::kinds::{KINDS, Kind};
use crate::random;

/// Maximum number of events that one press of a button sends.
const MAX_SENT: usize = 100;
/// Number of requests in flight concurrently.
const CONCURRENT_REQUESTS: usize = 10;

/// What a button requests.
#[derive(Debug, Deserialize)]
#[serde(tag = "action", rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum Command {
    Send { kind: String, by: Route, event: Sample, count: usize },
    Switch { fault: Switch, on: bool },
    WriteKey {},
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Route {
    Webhook,
    Queue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Sample {
    #[serde(rename = "good")]
    Valid,
    /// An event that no kind can map.
    #[serde(rename = "bad")]
    Invalid,
}

/// Reason for which an action failed.
#[derive(Debug, thiserror::Error)]
enum ActionError {
    #[error("no kind has this name")]
    UnknownKind,
    #[error("the count must be from 1 to {MAX_SENT}")]
    Count,
    #[error("this system runs without queues: start it without --no-queue")]
    NoQueues,
    #[error(transparent)]
    Aws(#[from] AwsError),
}

impl IntoResponse for ActionError {
    fn into_response(self) -> Response {
        let status = if matches!(self, Self::Aws(_)) { StatusCode::BAD_GATEWAY } else { StatusCode::BAD_REQUEST };
        problem(status, &self.to_string())
    }
}

/// Does what a button requests.
pub(super) async fn act(State(shared): State<Arc<Shared>>, command: Result<Json<Command>, JsonRejection>) -> Response {
    let command = match command {
        Ok(Json(command)) => command,
        Err(rejection) => return problem(rejection.status(), &rejection.body_text()),
    };
    let done = match command {
        Command::Switch { fault, on } => Ok(shared.switch(fault, on)),
        Command::WriteKey {} => shared.write_key().await,
        Command::Send { count, .. } if !(1..=MAX_SENT).contains(&count) => Err(ActionError::Count),
        Command::Send { kind, by, event, count } => match KINDS.iter().find(|known| known.name == kind) {
            Some(kind) => shared.send(kind, by, event, count).await,
            None => Err(ActionError::UnknownKind),
        },
    };
    shared.changed.send_modify(|version| *version += 1);
    match done {
        Ok(done) => Json(json!({ "done": done })).into_response(),
        Err(error) => error.into_response(),
    }
}

impl Shared {
    /// Writes the key of the emulator's policy to Secrets Manager. Returns a text for the page.
    async fn write_key(&self) -> Result<String, ActionError> {
        let SendersKey { name, secret_id, .. } = &self.console.key;
        let (Some(aws), Some(secret_id)) = (&self.console.aws, secret_id) else { return Err(ActionError::NoQueues) };
        let emulator = &self.console.emulator;
        let (key, connection) = (emulator.key(name), emulator.connection_string(name, None));
        let put = json!({ "SecretId": secret_id, "SecretString": secret(&connection) });
        aws.call(Service::SecretsManager, "PutSecretValue", &put, Instant::now() + CALL_TIMEOUT).await?;
        if let Some(key) = key {
            *lock(&self.known_key) = key;
        }
        Ok("the new key is in Secrets Manager".to_owned())
    }

    /// Sends sample events as a sender does. Returns a text for the page with the number of each response.
    async fn send(&self, kind: &Kind, by: Route, sample: Sample, count: usize) -> Result<String, ActionError> {
        let event = || match sample {
            Sample::Valid => (kind.stamp)(kind.sample_event, &random::uuid()).0,
            Sample::Invalid => json!({ "unmappable": true }).to_string(),
        };
        let outcomes: Vec<Result<String, ActionError>> =
            stream::iter((0..count).map(|_| self.send_one(kind, by, event())))
                .buffer_unordered(CONCURRENT_REQUESTS)
                .collect()
                .await;
        let mut by_outcome = BTreeMap::<String, usize>::new();
        for outcome in outcomes {
            *by_outcome.entry(outcome?).or_default() += 1;
        }
        let outcomes: Vec<String> =
            by_outcome.into_iter().map(|(outcome, count)| format!("{count} × {outcome}")).collect();
        Ok(format!("{}: {}", kind.name, outcomes.join(", ")))
    }

    async fn send_one(&self, kind: &Kind, by: Route, event: String) -> Result<String, ActionError> {
        let Console { info, url, http, aws, .. } = &self.console;
        if by == Route::Queue {
            let (Some(aws), Some(queue_url)) = (aws, info.queue_url(kind.name)) else {
                return Err(ActionError::NoQueues);
            };
            let message = json!({ "QueueUrl": queue_url, "MessageBody": event });
            aws.call(Service::Sqs, "SendMessage", &message, Instant::now() + CALL_TIMEOUT).await?;
            return Ok("in its queue".to_owned());
        }
        let mut request = http.post(format!("{url}/{}", kind.name)).header(CONTENT_TYPE, "application/json");
        if let Some(token) = &info.sender_token {
            request = request.bearer_auth(token);
        }
        let Ok(response) = request.body(event).send().await else { return Ok("no response".to_owned()) };
        let status = response.status().as_u16();
        let body: Value = serde_json::from_str(&response.text().await.unwrap_or_default()).unwrap_or_default();
        let result = body["status"].as_str().or(body["detail"].as_str()).unwrap_or_default();
        Ok(format!("{status} {result}"))
    }
}
