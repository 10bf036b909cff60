//! One kind's function: its flows, where its events are kept when they can't be delivered, and its two triggers.

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;

use aws_lambda_events::apigw::ApiGatewayV2httpResponse;
use aws_lambda_events::sqs::SqsBatchResponse;
use futures_util::FutureExt;
use lambda_runtime::Diagnostic;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::event::Kind;
use crate::event_hubs::EventHub;
use crate::flow::{DEFAULT_FLOW, Flow};
use crate::flow_table::{FlowItem, Opened};
use crate::function::{Function, Invocation, diagnostic, run_function};
use crate::json::{Object, from_config};
use crate::parts::Parts;
use crate::senders::Senders;
use crate::settings::{Environment, FLOW_OPTIONS, SENDER_AUTH, SecretSource, Settings, SettingsError};
use crate::webhook::HttpRequest;
use crate::{queue, sqs_event, webhook};

/// One kind with its flows.
pub struct Relay<O> {
    pub kind: Kind<O>,
    pub parts: Parts,
    default_flow: Option<Arc<Flow<O>>>,
    flows: Opened<Flow<O>>,
}

/// Why a flow can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoFlow {
    Unknown,
    /// Its item or its secrets can't be read now; the log tells.
    Unavailable,
}

/// Runs a kind as a Lambda function until the runtime ends it. A setting that can't be used ends the process before its
/// first invocation, with one ERROR line.
pub fn run<O: DeserializeOwned + Default + Send + Sync + 'static>(kind: Kind<O>) -> ExitCode {
    run_function(async |environment, clock, deadline| Relay::open(kind, environment, clock, deadline).await)
}

impl<O: DeserializeOwned + Default> Relay<O> {
    async fn open(
        kind: Kind<O>,
        environment: Environment,
        clock: Clock,
        deadline: Instant,
    ) -> Result<Self, SettingsError> {
        let settings = Settings::read(&environment)?;
        let connection = settings.default_connection()?;
        let parts = Parts::open(&settings, environment, clock)?;
        let default_flow = match connection {
            None => None,
            Some(connection) => Some(Arc::new(default_flow(&kind, connection, settings, &parts, deadline).await?)),
        };
        Ok(Self { kind, parts, default_flow, flows: Opened::default() })
    }

    /// The flow of that id, by `deadline`.
    pub async fn flow(&self, id: &str, deadline: Instant) -> Result<Arc<Flow<O>>, NoFlow> {
        if id == DEFAULT_FLOW {
            return self.default_flow.clone().ok_or(NoFlow::Unknown);
        }
        let Some(table) = &self.parts.flow_table else { return Err(NoFlow::Unknown) };
        let item = match table.item(id, deadline).await {
            Ok(Some(item)) if item.kind == self.kind.name => item,
            Ok(_) => return Err(NoFlow::Unknown),
            Err(error) => {
                tracing::error!(%error, flow = id, "a flow can't be had");
                return Err(NoFlow::Unavailable);
            }
        };
        self.flows.get(id, &item, self.open_flow(id, &item, deadline)).await.map_err(|error| {
            tracing::error!(%error, flow = id, "a flow can't be used: mend its item or its secrets");
            NoFlow::Unavailable
        })
    }

    async fn open_flow(&self, id: &str, item: &FlowItem, deadline: Instant) -> Result<Flow<O>, SettingsError> {
        let options = options(&self.kind, item.options.as_deref(), "options", self.parts.max_batch_bytes)?;
        let auth = item.auth_secret_id.as_deref().map(|id| SecretSource::secret("authSecretId", id));
        // Who may send is read with the first webhook: a queue needs no sender.
        let senders = Senders::new(auth, self.parts.aws.clone(), self.parts.clock.clone());
        let hub = EventHub::of_item(&self.parts, item, deadline).await?;
        Ok(Flow { id: id.to_owned(), enabled: item.enabled, options, senders, hub })
    }
}

async fn default_flow<O: DeserializeOwned + Default>(
    kind: &Kind<O>,
    connection: SecretSource,
    settings: Settings,
    parts: &Parts,
    deadline: Instant,
) -> Result<Flow<O>, SettingsError> {
    let options = options(kind, settings.flow_options.as_deref(), FLOW_OPTIONS, settings.max_batch_bytes)?;
    let senders = Senders::new(settings.sender_auth.clone(), parts.aws.clone(), parts.clock.clone());
    let (hub, read) = tokio::join!(
        async {
            let hub = EventHub::open(parts, connection, settings.wanted_hub(), settings.partitioning, deadline).await?;
            hub.warm_up().await;
            Ok::<_, SettingsError>(hub)
        },
        senders.read(deadline),
    );
    let hub = hub?;
    read?;
    if !senders.is_configured() {
        tracing::warn!(
            "{SENDER_AUTH} is not set: webhooks are answered 401 (queues work); set it to `none` to accept every sender"
        );
    }
    Ok(Flow { id: DEFAULT_FLOW.to_owned(), enabled: true, options, senders, hub })
}

fn options<O: DeserializeOwned + Default>(
    kind: &Kind<O>,
    text: Option<&str>,
    variable: &'static str,
    max_batch_bytes: usize,
) -> Result<O, SettingsError> {
    let unusable = |problem| SettingsError::new(variable, problem);
    let options = match text {
        None => O::default(),
        Some(text) => from_config::<Object<O>>(text).map_err(unusable)?.0,
    };
    (kind.check)(&options, max_batch_bytes).map_err(unusable)?;
    Ok(options)
}

/// An HTTP request that has not all that one needs, or text that is no Unicode.
#[derive(Deserialize)]
struct OddRequest {
    #[serde(rename = "requestContext")]
    _request_context: IgnoredAny,
    /// Present in payload 1.0 and in events of load balancers.
    #[serde(rename = "httpMethod")]
    http_method: Option<IgnoredAny>,
}

/// Either trigger's answer.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Answer {
    Webhook(Box<ApiGatewayV2httpResponse>),
    Queue(SqsBatchResponse),
}

impl<O: DeserializeOwned + Default + Send + Sync + 'static> Function for Relay<O> {
    type Answer = Answer;

    async fn invoke(&self, event: &str, invocation: Invocation<'_>) -> Result<Answer, Diagnostic> {
        let request_id = invocation.request_id;
        if !sqs_event::begins_like_a_batch(event) {
            if let Ok(request) = serde_json::from_str::<HttpRequest<'_>>(event) {
                let handled = AssertUnwindSafe(webhook::handle(self, &request, invocation)).catch_unwind().await;
                return Ok(Answer::Webhook(Box::new(handled.unwrap_or_else(|_| webhook::failed(self, request_id)))));
            }
            if let Ok(Object(request)) = serde_json::from_str::<Object<OddRequest>>(event) {
                let is_payload_1 = request.http_method.is_some();
                return Ok(Answer::Webhook(Box::new(webhook::unreadable(self, request_id, is_payload_1))));
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
        let handled = AssertUnwindSafe(queue::handle(self, &records, invocation)).catch_unwind().await;
        handled
            .map(Answer::Queue)
            .map_err(|_| diagnostic("Panic", "the batch could not be handled; all of it comes again"))
    }
}
