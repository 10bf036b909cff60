//! A function's life: settings, secrets and the client once, then one invocation after another.

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use aws_lambda_events::apigw::ApiGatewayV2httpResponse;
use aws_lambda_events::sqs::SqsBatchResponse;
use futures_util::FutureExt;
use lambda_runtime::{Context, Diagnostic, LambdaEvent, service_fn};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::aws::Aws;
use crate::clock::Clock;
use crate::connection::Connection;
use crate::event::Kind;
use crate::event_hubs::EventHub;
use crate::flow::{DEFAULT_FLOW, Flow};
use crate::json::{Object, from_config};
use crate::sender_auth::SenderAuth;
use crate::settings::{EXTRA_CA_CERTS, Environment, FLOW_OPTIONS, SENDER_AUTH, Settings, SettingsError};
use crate::webhook::HttpRequest;
use crate::{http_client, logging, queue, webhook};

/// Reading secrets may take this long; Lambda gives the init 10 s.
const INIT_TIMEOUT: Duration = Duration::from_secs(8);

/// One kind with its flows.
pub struct Relay<O> {
    pub kind: Kind<O>,
    pub clock: Clock,
    default_flow: Flow<O>,
}

/// Runs a kind as a Lambda function until the runtime ends it. A setting that can't be used ends the process before its
/// first invocation, with one ERROR line.
pub fn run<O: DeserializeOwned + Default + Send + Sync + 'static>(kind: Kind<O>) -> ExitCode {
    let environment = Environment::process();
    logging::init(&environment);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the function can't start");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let relay = match Relay::open(kind, &environment, Clock::system()).await {
            Ok(relay) => Arc::new(relay),
            Err(error) => {
                tracing::error!(
                    variable = error.variable,
                    problem = error.problem,
                    "the function can't start: {error}"
                );
                return ExitCode::FAILURE;
            }
        };
        let handler = service_fn(move |event| {
            let relay = relay.clone();
            async move { relay.invoke(event).await }
        });
        match lambda_runtime::run(handler).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // As when a local container is stopped; Lambda itself never takes it away.
                tracing::warn!(%error, "the Lambda runtime API is gone");
                ExitCode::FAILURE
            }
        }
    })
}

impl<O: DeserializeOwned + Default> Relay<O> {
    async fn open(kind: Kind<O>, environment: &Environment, clock: Clock) -> Result<Self, SettingsError> {
        let settings = Settings::read(environment)?;
        let options = match &settings.flow_options {
            None => O::default(),
            Some(text) => {
                let options = from_config::<Object<O>>(text);
                options.map_err(|problem| SettingsError::new(FLOW_OPTIONS, problem))?.0
            }
        };
        (kind.check)(&options, settings.max_batch_bytes)
            .map_err(|problem| SettingsError::new(FLOW_OPTIONS, problem))?;
        let http = http_client::build(settings.extra_ca_certs.as_deref())
            .map_err(|problem| SettingsError::new(EXTRA_CA_CERTS, problem))?;
        let aws = Aws::new(http.clone(), environment.clone(), clock.clone());
        let deadline = Instant::now() + INIT_TIMEOUT;
        let (connection, sender_auth) = tokio::join!(
            Connection::open(settings.connection, settings.hub_name, aws.clone(), clock.clone(), deadline),
            async {
                let Some(source) = settings.sender_auth else { return Ok(SenderAuth::NotConfigured) };
                let text = source.text(&aws, deadline).await;
                let text = text.map_err(|error| SettingsError::new(source.variable, error))?;
                SenderAuth::parse(&text).map_err(|problem| SettingsError::new(source.variable, problem))
            },
        );
        let sender_auth = sender_auth?;
        if let SenderAuth::NotConfigured = sender_auth {
            tracing::warn!(
                "{SENDER_AUTH} is not set: webhooks are answered 401 (queues work); set it to `none` to accept every sender"
            );
        }
        let hub = EventHub::new(http, connection?, settings.partitioning, settings.max_batch_bytes, clock.clone());
        Ok(Self { kind, clock, default_flow: Flow { id: DEFAULT_FLOW.to_owned(), options, sender_auth, hub } })
    }
}

/// An HTTP request that has not all that one needs, or text that is no Unicode.
#[derive(Deserialize)]
struct OddRequest {
    #[serde(rename = "requestContext")]
    _request_context: IgnoredAny,
}

/// A batch of SQS records.
#[derive(Deserialize)]
struct QueueEvent<'a> {
    #[serde(borrow, rename = "Records")]
    records: Vec<&'a RawValue>,
}

/// Either trigger's answer.
#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Webhook(Box<ApiGatewayV2httpResponse>),
    Queue(SqsBatchResponse),
}

impl<O> Relay<O> {
    /// The flow of that id, if there is one.
    pub fn flow(&self, id: &str) -> Option<&Flow<O>> {
        (id == DEFAULT_FLOW).then_some(&self.default_flow)
    }

    pub fn default_flow(&self) -> &Flow<O> {
        &self.default_flow
    }

    /// One invocation. An error means that nobody is there to be answered: the event is no trigger's, or its whole batch
    /// must come again.
    async fn invoke(&self, event: LambdaEvent<Box<RawValue>>) -> Result<Answer, Diagnostic> {
        let request_id = event.context.request_id.as_str();
        let payload = event.payload.get();
        let time_up = Instant::now() + self.remaining(&event.context);
        if let Ok(request) = serde_json::from_str::<HttpRequest<'_>>(payload) {
            let handled = AssertUnwindSafe(webhook::handle(self, &request, request_id, time_up)).catch_unwind().await;
            return Ok(Answer::Webhook(Box::new(handled.unwrap_or_else(|_| webhook::failed(request_id)))));
        }
        if serde_json::from_str::<Object<OddRequest>>(payload).is_ok() {
            return Ok(Answer::Webhook(Box::new(webhook::unreadable(request_id))));
        }
        let Ok(Object(batch)) = serde_json::from_str::<Object<QueueEvent<'_>>>(payload) else {
            return Err(diagnostic(
                "UnknownTrigger",
                "the event is neither an HTTP request (payload 2.0) nor a batch of SQS records",
            ));
        };
        let handled = AssertUnwindSafe(queue::handle(self, &batch.records, request_id, time_up)).catch_unwind().await;
        match handled {
            Ok(Ok(response)) => Ok(Answer::Queue(response)),
            Ok(Err(error)) => Err(diagnostic("UnreadableRecord", &error.to_string())),
            Err(_) => Err(diagnostic("Panic", "the batch could not be handled; all of it comes again")),
        }
    }

    fn remaining(&self, context: &Context) -> Duration {
        let now = self.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Duration::from_millis(context.deadline).saturating_sub(now)
    }
}

fn diagnostic(error_type: &str, error_message: &str) -> Diagnostic {
    tracing::error!(reason = error_type, "{error_message}");
    Diagnostic { error_type: error_type.to_owned(), error_message: error_message.to_owned() }
}
