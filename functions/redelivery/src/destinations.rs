//! Where parked messages go: the destination of an envelope, as it is now.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shared::connection::{Destination, Wanted};
use shared::event_hubs::EventHub;
use shared::flow_table::Opened;
use shared::parking::Envelope;
use shared::parts::Parts;
use shared::settings::{HUB_NAME, SecretSource, Settings, SettingsError};
use tokio::time::Instant;

/// Why an envelope's messages can't be sent now.
#[derive(Debug, thiserror::Error)]
pub enum Unresolved {
    /// Nobody will ever know where they should go.
    #[error("the flow was deleted")]
    Deleted,
    #[error("the flow is disabled")]
    Disabled,
    #[error("flow {0} is not the default one, and FLOWS_TABLE is not set")]
    NoTable(String),
    #[error(transparent)]
    Table(#[from] shared::flow_table::FlowTableError),
    #[error("the envelope names no secret, and EVENT_HUBS_CONNECTION_STRING is not set")]
    NoConnection,
    #[error("the envelope names another hub than {HUB_NAME}")]
    OtherHub,
    #[error(transparent)]
    Connection(#[from] SettingsError),
}

/// What leads to a hub.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Way {
    /// A flow of the table, as it is now.
    Flow(String),
    /// What the envelope of a default flow names.
    Default(Destination),
}

impl Way {
    pub fn of(envelope: &Envelope<'_>) -> Self {
        if envelope.flow != shared::DEFAULT_FLOW {
            return Self::Flow(envelope.flow.clone().into_owned());
        }
        Self::Default(Destination {
            host: envelope.host.clone().into_owned(),
            hub: envelope.hub.clone().into_owned(),
            secret_id: envelope.secret_id.as_deref().map(str::to_owned),
        })
    }
}

/// Hubs that were sent to, with their tokens.
pub struct Destinations {
    settings: Settings,
    of_flows: Opened<EventHub>,
    of_default: Mutex<HashMap<Destination, Arc<EventHub>>>,
}

impl Destinations {
    pub fn new(settings: Settings) -> Self {
        Self { settings, of_flows: Opened::default(), of_default: Mutex::default() }
    }

    /// The hub that `way` leads to.
    pub async fn resolve(&self, parts: &Parts, way: &Way, deadline: Instant) -> Result<Arc<EventHub>, Unresolved> {
        match way {
            Way::Default(place) => self.default_hub(parts, place, deadline).await,
            Way::Flow(flow) => self.hub_of_flow(parts, flow, deadline).await,
        }
    }

    async fn hub_of_flow(&self, parts: &Parts, flow: &str, deadline: Instant) -> Result<Arc<EventHub>, Unresolved> {
        let table = parts.flow_table.as_ref().ok_or_else(|| Unresolved::NoTable(flow.to_owned()))?;
        let item = table.item(flow, deadline).await?.ok_or(Unresolved::Deleted)?;
        if !item.enabled {
            return Err(Unresolved::Disabled);
        }
        Ok(self.of_flows.get(flow, &item, EventHub::of_item(parts, &item, deadline)).await?)
    }

    /// The default flow's hub comes from the secret that the envelope names; else from our own connection string, if that
    /// leads to the very same hub.
    async fn default_hub(
        &self,
        parts: &Parts,
        place: &Destination,
        deadline: Instant,
    ) -> Result<Arc<EventHub>, Unresolved> {
        if let Some(hub) = lock(&self.of_default).get(place) {
            return Ok(hub.clone());
        }
        let mut wanted = Wanted { hub: Some(("hub", place.hub.clone())), host: None };
        let source = match &place.secret_id {
            Some(id) => SecretSource::secret("secretId", id),
            None => {
                if self.settings.hub_name.as_ref().is_some_and(|own| *own != place.hub) {
                    return Err(Unresolved::OtherHub);
                }
                wanted.host = Some(place.host.clone());
                self.settings.connection.clone().ok_or(Unresolved::NoConnection)?
            }
        };
        let hub = Arc::new(EventHub::open(parts, source, wanted, self.settings.partitioning, deadline).await?);
        lock(&self.of_default).insert(place.clone(), hub.clone());
        Ok(hub)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
