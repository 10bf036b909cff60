//! The flows of one kind: the default one, which the environment configures, and those of the table. Each is opened when it
//! is needed, and again when its item changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::table::{FlowTable, Opened};
use super::{DEFAULT_FLOW, Flow, open_hub};
use crate::aws::reads::Reads;
use crate::aws::secret::SecretSource;
use crate::contract::flow_item::FlowItem;
use crate::environment::{FLOW_OPTIONS, HUB_NAME, SENDER_AUTH, SettingsError};
use crate::event_hubs::Hubs;
use crate::event_hubs::connection::{Wanted, is_hub_name};
use crate::event_hubs::partitioning::Partitioning;
use crate::json::{Object, from_config};
use crate::kind::Kind;
use crate::sender_auth::accepted::AcceptedCredentials;

/// Timeout of reading the default flow's secrets at the start. The first sender waits meanwhile; a later invocation reads what could
/// not be read.
const STARTING: Duration = Duration::from_secs(2);

/// The flows of one kind.
pub struct Flows<O> {
    kind: Kind<O>,
    hubs: Hubs,
    table: Option<Arc<FlowTable>>,
    default_flow: Option<DefaultFlow<O>>,
    opened_flows: Opened<Flow<O>>,
    unopened: Mutex<HashMap<String, Unopened>>,
}

/// The environment's configuration of the default flow.
pub struct Configured {
    pub connection: SecretSource,
    pub wanted: Wanted,
    pub sender_auth: Option<SecretSource>,
    /// The kind's options, JSON.
    pub options: Option<String>,
    pub partitioning: Partitioning,
}

struct DefaultFlow<O> {
    configured: Configured,
    credentials: Arc<AcceptedCredentials>,
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

impl<O: DeserializeOwned + Default> Flows<O> {
    /// Opens the default flow, if one is `configured`. Only values of the environment make it fail: a secret that can't be read or
    /// used concerns the default flow alone, and may be right at the next read.
    ///
    /// # Errors
    /// Fails if a value of the environment is not usable.
    pub async fn open(
        kind: Kind<O>,
        hubs: Hubs,
        table: Option<Arc<FlowTable>>,
        configured: Option<Configured>,
        deadline: Instant,
    ) -> Result<Self, SettingsError> {
        let (opened_flows, unopened) = (Opened::default(), Mutex::default());
        let flows = Self { kind, hubs, table, default_flow: None, opened_flows, unopened };
        let Some(configured) = configured else { return Ok(flows) };
        if configured.wanted.hub.as_ref().is_some_and(|hub| !is_hub_name(hub)) {
            return Err(SettingsError::new(
                HUB_NAME,
                "not the name of an event hub: expected letters, digits, `.`, `-` and `_`, a letter or digit first, 256 at most",
            ));
        }
        flows.default_options(&configured)?;
        let Hubs { aws, clock, .. } = &flows.hubs;
        let credentials =
            AcceptedCredentials::new(DEFAULT_FLOW, configured.sender_auth.clone(), aws.clone(), clock.clone());
        if !credentials.is_configured() {
            tracing::warn!(
                "{SENDER_AUTH} is not set: webhooks get 401 (queues work); set it to `none` to accept every sender"
            );
        }
        let default_flow = DefaultFlow { configured, credentials: Arc::new(credentials), flow: Mutex::default() };
        let deadline = deadline.min(Instant::now() + STARTING);
        let (flow, read) = tokio::join!(
            async {
                let flow = flows.open_default(&default_flow, deadline).await?;
                flow.hub.warm_up().await;
                Ok::<_, SettingsError>(flow)
            },
            default_flow.credentials.read(deadline),
        );
        match read {
            Err(error) if !default_flow.credentials.can_change() => return Err(error),
            // Otherwise the senders have reported it.
            _ => {}
        }
        match flow {
            Ok(flow) => *lock(&default_flow.flow) = Some(Arc::new(flow)),
            Err(error) if default_flow.configured.connection.can_change() => flows.report(DEFAULT_FLOW, &error),
            Err(error) => return Err(error),
        }
        Ok(Self { default_flow: Some(default_flow), ..flows })
    }

    /// The flow of that id, by `deadline`.
    pub async fn get(&self, id: &str, deadline: Instant) -> Result<Arc<Flow<O>>, NoFlow> {
        if id == DEFAULT_FLOW {
            return self.default_flow(deadline).await;
        }
        let Some(table) = &self.table else { return Err(NoFlow::Unknown) };
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
        self.opened_flows.get(id, &item, self.opened(id, Some(&item), self.open_flow(id, &item, deadline))).await
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
            if !known.reads.may_read(self.hubs.clock.unix_seconds()) {
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
        let now = self.hubs.clock.unix_seconds();
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
        let options = options(&self.kind, item.options.as_deref(), "options", self.hubs.max_batch_bytes)?;
        let auth = item.auth_secret_id.as_deref().map(|id| SecretSource::secret("authSecretId", id));
        // Who may send is read with the first webhook: a queue needs no sender.
        let credentials = Arc::new(AcceptedCredentials::new(id, auth, self.hubs.aws.clone(), self.hubs.clock.clone()));
        let hub = open_hub(&self.hubs, item, deadline).await?;
        Ok(Flow { id: id.to_owned(), enabled: item.enabled, options, credentials, hub })
    }

    async fn open_default(&self, flow: &DefaultFlow<O>, deadline: Instant) -> Result<Flow<O>, SettingsError> {
        let DefaultFlow { configured, credentials, .. } = flow;
        let options = self.default_options(configured)?;
        let Configured { connection, wanted, partitioning, .. } = configured;
        let hub = self.hubs.open(connection.clone(), wanted.clone(), *partitioning, deadline).await?;
        Ok(Flow { id: DEFAULT_FLOW.to_owned(), enabled: true, options, credentials: credentials.clone(), hub })
    }

    fn default_options(&self, configured: &Configured) -> Result<O, SettingsError> {
        options(&self.kind, configured.options.as_deref(), FLOW_OPTIONS, self.hubs.max_batch_bytes)
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
