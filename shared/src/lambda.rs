//! Entry: a kind as a Lambda function, from its settings to the response to each invocation.

pub mod logging;
mod runtime;
pub mod settings;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use aws_lambda_events::apigw::ApiGatewayV2httpResponse;
use aws_lambda_events::sqs::SqsBatchResponse;
use futures_util::FutureExt;
use lambda_runtime::Diagnostic;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::environment::{Environment, SettingsError};
use crate::flow::flows::{Configured, Flows};
use crate::json::Object;
use crate::kind::Kind;
use crate::pipeline::Pipeline;
use crate::trigger::deadline::Invocation;
use crate::trigger::http::HttpRequest;
use crate::trigger::{http, sqs, sqs_event};
pub use runtime::{Function, run_function};
use settings::Settings;

/// Runs a kind as a Lambda function until the runtime ends it. A value of the environment that can't be used ends the process
/// before its first invocation, with one ERROR line.
pub fn run<O: DeserializeOwned + Default + Send + Sync + 'static>(kind: Kind<O>) -> ExitCode {
    run_function(async |environment, clock, deadline| open(kind, environment, clock, deadline).await)
}

async fn open<O: DeserializeOwned + Default>(
    kind: Kind<O>,
    environment: Environment,
    clock: Clock,
    deadline: Instant,
) -> Result<Pipeline<O>, SettingsError> {
    let settings = Settings::read(&environment)?;
    let connection = settings.default_connection()?;
    let services = settings.services(environment, clock)?;
    let configured = connection.map(|connection| Configured {
        connection,
        wanted: settings.wanted_hub(),
        sender_auth: settings.sender_auth,
        options: settings.flow_options,
        partitioning: settings.partitioning,
    });
    let flows = Flows::open(kind, services.hubs.clone(), services.flow_table.clone(), configured, deadline).await?;
    Ok(Pipeline { kind, services, flows })
}

/// An HTTP request that lacks a member, or has text that is not Unicode.
#[derive(Deserialize)]
struct OddRequest {
    #[serde(rename = "requestContext")]
    _request_context: IgnoredAny,
    /// Present in payload 1.0 and in events of load balancers.
    #[serde(rename = "httpMethod")]
    http_method: Option<IgnoredAny>,
}

/// The response to either trigger.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Response {
    Webhook(Box<ApiGatewayV2httpResponse>),
    Queue(SqsBatchResponse),
}

impl<O: DeserializeOwned + Default + Send + Sync + 'static> Function for Pipeline<O> {
    type Response = Response;

    async fn invoke(&self, event: &str, invocation: Invocation<'_>) -> Result<Response, Diagnostic> {
        let request_id = invocation.request_id;
        if !sqs_event::begins_like_a_batch(event) {
            if let Ok(request) = serde_json::from_str::<HttpRequest<'_>>(event) {
                let handled = AssertUnwindSafe(http::handle(self, &request, invocation)).catch_unwind().await;
                return Ok(Response::Webhook(Box::new(handled.unwrap_or_else(|_| http::failed(self, request_id)))));
            }
            if let Ok(Object(request)) = serde_json::from_str::<Object<OddRequest>>(event) {
                let is_payload_1 = request.http_method.is_some();
                return Ok(Response::Webhook(Box::new(http::unreadable(self, request_id, is_payload_1))));
            }
        }
        let records = match sqs_event::records(event) {
            Some(Ok(records)) => records,
            Some(Err(error)) => return Err(diagnostic("UnreadableRecord", &error.to_string())),
            None => {
                return Err(diagnostic(
                    "UnknownTrigger",
                    "the event is neither an HTTP request (payload 2.0) nor a batch of SQS records",
                ));
            }
        };
        let handled = AssertUnwindSafe(sqs::handle(self, &records, invocation)).catch_unwind().await;
        handled
            .map(Response::Queue)
            .map_err(|_| diagnostic("Panic", "the batch could not be handled; all of its records are redelivered"))
    }
}

/// Logs an error of the function and returns it for Lambda.
pub fn diagnostic(error_type: &str, error_message: &str) -> Diagnostic {
    tracing::error!(reason = error_type, "{error_message}");
    Diagnostic { error_type: error_type.to_owned(), error_message: error_message.to_owned() }
}
