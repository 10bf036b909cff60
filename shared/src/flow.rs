//! Flows: configured routes for events of one kind, and where they are read from.

pub mod flows;
pub mod table;

use std::sync::Arc;

use tokio::time::Instant;

use crate::aws::secret::SecretSource;
use crate::contract::flow_item::FlowItem;
use crate::environment::SettingsError;
use crate::event_hubs::connection::Wanted;
use crate::event_hubs::partitioning::Partitioning;
use crate::event_hubs::{EventHub, Hubs};
use crate::sender_auth::accepted::AcceptedCredentials;

/// The flow that the environment configures.
pub const DEFAULT_FLOW: &str = "default";

/// A configured route for events of one kind.
pub struct Flow<O> {
    pub id: String,
    /// Nothing is sent while the flow is disabled.
    pub enabled: bool,
    pub options: O,
    pub credentials: Arc<AcceptedCredentials>,
    pub hub: EventHub,
}

/// Opens the hub of a flow of the table.
///
/// # Errors
/// Fails if the flow's secret can't be read by `deadline`, or does not fit the item.
pub async fn open_hub(hubs: &Hubs, item: &FlowItem, deadline: Instant) -> Result<EventHub, SettingsError> {
    let partitioning = partitioning(item)?;
    let source = SecretSource::secret("connectionSecretId", &item.connection_secret_id);
    let wanted = Wanted { setting: "hub", hub: Some(item.hub.clone()), host: item.host.clone() };
    hubs.open(source, wanted, partitioning, deadline).await
}

/// How the messages of a flow of the table are grouped.
fn partitioning(item: &FlowItem) -> Result<Partitioning, SettingsError> {
    match &item.partitioning {
        None => Ok(Partitioning::default()),
        Some(text) => text.parse().map_err(|problem| SettingsError::new("partitioning", problem)),
    }
}
