//! One kind's function: its flows, where its events are kept when they can't be delivered, and its two triggers.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lambda_events::apigw::ApiGatewayV2httpResponse;
use aws_lambda_events::sqs::SqsBatchResponse;
use futures_util::FutureExt;
use lambda_runtime::Diagnostic;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::connection::is_hub_name;
use crate::event::Kind;
use crate::event_hubs::EventHub;
use crate::flow::{DEFAULT_FLOW, Flow};
use crate::flow_table::{FlowItem, Opened};
use crate::function::{Function, Invocation, diagnostic, run_function};
use crate::json::{Object, from_config};
use crate::parts::Parts;
use crate::reads::Reads;
use crate::senders::Senders;
use crate::settings::{Environment, FLOW_OPTIONS, HUB_NAME, SENDER_AUTH, SecretSource, Settings, SettingsError};
use crate::webhook::HttpRequest;
use crate::{queue, sqs_event, webhook};

/// Timeout of reading the default flow's secrets at the start. The first sender waits meanwhile; a later invocation reads what could
/// not be read.
const STARTING: Duration = Duration::from_secs(2);

/// One kind with its flows.
pub struct Relay<O> {
    pub kind: Kind<O>,
    pub parts: Parts,
    default_flow: Option<DefaultFlow<O>>,
    flows: Opened<Flow<O>>,
    unopened: Mutex<HashMap<String, Unopened>>,
}

/// The flow that the environment configures.
struct DefaultFlow<O> {
    settings: Settings,
    connection: SecretSource,
    senders: Arc<Senders>,
    /// `None` until its connection could be read.
    flow: Mutex<Option<Arc<Flow<O>>>>,
}

/// A flow that could not be opened.
#[derive(Default)]
struct Unopened {
    /// The item that it could not be opened from; a changed one is tried at once.
    item: Option<Arc<FlowItem>>,
    reads: Reads,
}

/// Why a flow can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoFlow {
    Unknown,
    /// Its item or its secrets can't be read now, or can't be used; the log says why.
    Unavailable,
}

/// Runs a kind as a Lambda function until the runtime ends it. A value of the environment that can't be used ends the process
/// before its first invocation, with one ERROR line.
pub fn run<O: DeserializeOwned + Default + Send + Sync + 'static>(kind: Kind<O>) -> ExitCode {
    run_function(async |environment, clock, deadline| Relay::open(kind, environment, clock, deadline).await)
}

impl<O: DeserializeOwned + Default> Relay<O> {
    /// Reads the settings, and the secrets of the default flow. Only values of the environment make it fail: a secret that can't
    /// be read or used concerns the default flow alone, and may be right at the next read.
    async fn open(
        kind: Kind<O>,
        environment: Environment,
        clock: Clock,
        deadline: Instant,
    ) -> Result<Self, SettingsError> {
        let settings = Settings::read(&environment)?;
        let connection = settings.default_connection()?;
        let parts = Parts::open(&settings, environment, clock)?;
        let relay = Self { kind, parts, default_flow: None, flows: Opened::default(), unopened: Mutex::default() };
        let Some(connection) = connection else { return Ok(relay) };
        if settings.hub_name.as_ref().is_some_and(|hub| !is_hub_name(hub)) {
            return Err(SettingsError::new(
                HUB_NAME,
                "not the name of an event hub: expected letters, digits, `.`, `-` and `_`, a letter or digit first, 256 at most",
            ));
        }
        relay.default_options(&settings)?;
        let Parts { aws, clock, .. } = &relay.parts;
        let senders = Senders::new(DEFAULT_FLOW, settings.sender_auth.clone(), aws.clone(), clock.clone());
        if !senders.is_configured() {
            tracing::warn!(
                "{SENDER_AUTH} is not set: webhooks get 401 (queues work); set it to `none` to accept every sender"
            );
        }
        let (senders, flow) = (Arc::new(senders), Mutex::default());
        let default_flow = DefaultFlow { settings, connection, senders, flow };
        let deadline = deadline.min(Instant::now() + STARTING);
        let (flow, read) = tokio::join!(
            async {
                let flow = relay.open_default(&default_flow, deadline).await?;
                flow.hub.warm_up().await;
                Ok::<_, SettingsError>(flow)
            },
            default_flow.senders.read(deadline),
        );
        match read {
            Err(error) if !default_flow.senders.can_change() => return Err(error),
            // Otherwise the senders have reported it.
            _ => {}
        }
        match flow {
            Ok(flow) => *lock(&default_flow.flow) = Some(Arc::new(flow)),
            Err(error) if default_flow.connection.can_change() => relay.report(DEFAULT_FLOW, &error),
            Err(error) => return Err(error),
        }
        Ok(Self { default_flow: Some(default_flow), ..relay })
    }

    /// The flow of that id, by `deadline`.
    pub async fn flow(&self, id: &str, deadline: Instant) -> Result<Arc<Flow<O>>, NoFlow> {
        if id == DEFAULT_FLOW {
            return self.default_flow(deadline).await;
        }
        let Some(table) = &self.parts.flow_table else { return Err(NoFlow::Unknown) };
        let item = match table.item(id, deadline).await {
            Ok(Some(item)) if item.kind == self.kind.name => item,
            Ok(_) => return Err(NoFlow::Unknown),
            Err(error) => {
                tracing::error!(
                    %error, flow = id, "failed to read the flow item; its webhooks get 503 and its records are redelivered"
                );
                return Err(NoFlow::Unavailable);
            }
        };
        self.flows.get(id, &item, self.opened(id, Some(&item), self.open_flow(id, &item, deadline))).await
    }

    async fn default_flow(&self, deadline: Instant) -> Result<Arc<Flow<O>>, NoFlow> {
        let default_flow = self.default_flow.as_ref().ok_or(NoFlow::Unknown)?;
        if let Some(flow) = lock(&default_flow.flow).clone() {
            return Ok(flow);
        }
        let flow = self.opened(DEFAULT_FLOW, None, self.open_default(default_flow, deadline)).await?;
        let flow = Arc::new(flow);
        *lock(&default_flow.flow) = Some(flow.clone());
        Ok(flow)
    }

    /// Opens a flow with `open`, unless that has failed too often in the last seconds.
    async fn opened(
        &self,
        id: &str,
        item: Option<&Arc<FlowItem>>,
        open: impl Future<Output = Result<Flow<O>, SettingsError>>,
    ) -> Result<Flow<O>, NoFlow> {
        {
            let mut unopened = lock(&self.unopened);
            let known = unopened.entry(id.to_owned()).or_default();
            let is_same = match (&known.item, item) {
                (Some(known), Some(item)) => Arc::ptr_eq(known, item),
                (None, None) => true,
                _ => false,
            };
            if !is_same {
                *known = Unopened { item: item.cloned(), ..Unopened::default() };
            }
            if !known.reads.may_read(self.parts.clock.unix_seconds()) {
                return Err(NoFlow::Unavailable);
            }
        }
        match open.await {
            Ok(flow) => {
                lock(&self.unopened).remove(id);
                Ok(flow)
            }
            Err(error) => {
                self.report(id, &error);
                Err(NoFlow::Unavailable)
            }
        }
    }

    /// Logs why a flow could not be opened, once for each cause.
    fn report(&self, id: &str, error: &SettingsError) {
        let now = self.parts.clock.unix_seconds();
        if lock(&self.unopened).entry(id.to_owned()).or_default().reads.is_to_report(&error.to_string(), now) {
            tracing::error!(
                variable = error.variable,
                problem = error.problem,
                flow = id,
                "the flow can't be used: fix its settings or its secret, which is read again; until then its webhooks get 503 and its \
                 records are redelivered"
            );
        }
    }

    async fn open_flow(&self, id: &str, item: &FlowItem, deadline: Instant) -> Result<Flow<O>, SettingsError> {
        let options = options(&self.kind, item.options.as_deref(), "options", self.parts.max_batch_bytes)?;
        let auth = item.auth_secret_id.as_deref().map(|id| SecretSource::secret("authSecretId", id));
        // Who may send is read with the first webhook: a queue needs no sender.
        let senders = Arc::new(Senders::new(id, auth, self.parts.aws.clone(), self.parts.clock.clone()));
        let hub = EventHub::of_item(&self.parts, item, deadline).await?;
        Ok(Flow { id: id.to_owned(), enabled: item.enabled, options, senders, hub })
    }

    async fn open_default(&self, flow: &DefaultFlow<O>, deadline: Instant) -> Result<Flow<O>, SettingsError> {
        let DefaultFlow { settings, connection, senders, .. } = flow;
        let options = self.default_options(settings)?;
        let (connection, wanted) = (connection.clone(), settings.wanted_hub());
        let hub = EventHub::open(&self.parts, connection, wanted, settings.partitioning, deadline).await?;
        Ok(Flow { id: DEFAULT_FLOW.to_owned(), enabled: true, options, senders: senders.clone(), hub })
    }

    fn default_options(&self, settings: &Settings) -> Result<O, SettingsError> {
        options(&self.kind, settings.flow_options.as_deref(), FLOW_OPTIONS, settings.max_batch_bytes)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
