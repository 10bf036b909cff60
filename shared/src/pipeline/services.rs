//! The services that every function of the data plane uses.

use std::sync::Arc;

use tokio::time::Instant;

use crate::contract::rejected::RejectedEvent;
use crate::event_hubs::Hubs;
use crate::flow::table::FlowTable;
use crate::undelivered::parking::Parking;
use crate::undelivered::rejects::Rejects;

/// Clients, queues and the table of flows, each once per process.
pub struct Services {
    pub hubs: Hubs,
    pub flow_table: Option<Arc<FlowTable>>,
    pub parking: Option<Parking>,
    pub rejects: Option<Rejects>,
    /// Whether the flow is a dimension of the metrics.
    pub metrics_by_flow: bool,
}

impl Services {
    /// Stores copies of rejected events. Returns for each whether it is stored, in their order. Without a rejected queue none is.
    pub async fn store_rejected(&self, rejects: &[RejectedEvent<'_>], deadline: Instant) -> Vec<bool> {
        match &self.rejects {
            Some(queue) => queue.store(rejects, deadline).await,
            None => vec![false; rejects.len()],
        }
    }
}
