//! Where parked messages go: the destination of an envelope, as it is now.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shared::aws::secret::SecretSource;
use shared::contract::parked::Destination;
use shared::contract::parked::Head;
use shared::environment::{HUB_NAME, SettingsError};
use shared::event_hubs::EventHub;
use shared::event_hubs::connection::Wanted;
use shared::flow::open_hub;
use shared::flow::table::Opened;
use shared::lambda::settings::Settings;
use shared::pipeline::services::Services;
use tokio::time::Instant;

/// Why an envelope's messages can't be sent now.
#[derive(Debug, thiserror::Error)]
pub enum Unresolved {
    /// The destination is lost for good.
    #[error("the flow was deleted")]
    Deleted,
    #[error("the flow is disabled")]
    Disabled,
    #[error("flow {0} is not the default one, and FLOWS_TABLE is not set")]
    NoTable(String),
    #[error(transparent)]
    Table(#[from] shared::flow::table::FlowTableError),
    #[error("the envelope names no secret, and redelivery has no connection of its own")]
    NoConnection,
    #[error("the envelope is for another hub than {HUB_NAME} of redelivery")]
    OtherHub,
    #[error(transparent)]
    Connection(#[from] SettingsError),
    #[error("{of_envelope}; and redelivery's own connection can't be used instead: {own}")]
    Secret { of_envelope: SettingsError, own: Box<Unresolved> },
}

/// What names a hub and the credentials for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Way {
    /// A flow of the table, as it is now.
    Flow(String),
    /// What the envelope of a default flow names.
    Default(Destination),
}

impl Way {
    pub fn of(head: &Head<'_>) -> Self {
        if head.flow != shared::DEFAULT_FLOW {
            return Self::Flow(head.flow.clone().into_owned());
        }
        Self::Default(Destination {
            host: head.host.clone().into_owned(),
            hub: head.hub.clone().into_owned(),
            secret_id: head.secret_id.as_deref().map(str::to_owned),
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

    /// The hub of `way`.
    pub async fn resolve(
        &self,
        services: &Services,
        way: &Way,
        deadline: Instant,
    ) -> Result<Arc<EventHub>, Unresolved> {
        match way {
            Way::Default(destination) => self.default_hub(services, destination, deadline).await,
            Way::Flow(flow) => self.hub_of_flow(services, flow, deadline).await,
        }
    }

    /// Drops a hub that refused the key, so that its secret is looked for again.
    pub fn forget(&self, way: &Way) {
        if let Way::Default(destination) = way {
            lock(&self.of_default).remove(destination);
        }
    }

    async fn hub_of_flow(
        &self,
        services: &Services,
        flow: &str,
        deadline: Instant,
    ) -> Result<Arc<EventHub>, Unresolved> {
        let table = services.flow_table.as_ref().ok_or_else(|| Unresolved::NoTable(flow.to_owned()))?;
        let item = table.item(flow, deadline).await?.ok_or(Unresolved::Deleted)?;
        if !item.enabled {
            return Err(Unresolved::Disabled);
        }
        Ok(self.of_flows.get(flow, &item, open_hub(&services.hubs, &item, deadline)).await?)
    }

    /// The default flow's hub, with the secret that the envelope names. If there is none, or it is gone, redelivery's own
    /// connection is used, provided that it is for the very same hub.
    async fn default_hub(
        &self,
        services: &Services,
        destination: &Destination,
        deadline: Instant,
    ) -> Result<Arc<EventHub>, Unresolved> {
        if let Some(hub) = lock(&self.of_default).get(destination) {
            return Ok(hub.clone());
        }
        let open = async |source, host| {
            let wanted = Wanted { setting: "hub", hub: Some(destination.hub.clone()), host };
            services.hubs.open(source, wanted, self.settings.partitioning, deadline).await
        };
        let of_envelope = match &destination.secret_id {
            Some(id) => Some(open(SecretSource::secret("secretId", id), None).await),
            None => None,
        };
        let hub = match of_envelope {
            Some(Ok(hub)) => hub,
            Some(Err(error)) if error.is_transient => return Err(error.into()),
            Some(Err(of_envelope)) => {
                let own = async { Ok(open(self.own_connection(destination)?, Some(destination.host.clone())).await?) };
                own.await.map_err(|own: Unresolved| Unresolved::Secret { of_envelope, own: Box::new(own) })?
            }
            None => open(self.own_connection(destination)?, Some(destination.host.clone())).await?,
        };
        let hub = Arc::new(hub);
        lock(&self.of_default).insert(destination.clone(), hub.clone());
        Ok(hub)
    }

    fn own_connection(&self, destination: &Destination) -> Result<SecretSource, Unresolved> {
        if self.settings.hub_name.as_ref().is_some_and(|own| *own != destination.hub) {
            return Err(Unresolved::OtherHub);
        }
        self.settings.connection.clone().ok_or(Unresolved::NoConnection)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
