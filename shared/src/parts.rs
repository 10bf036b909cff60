//! What every function of the data plane is built from.

use crate::aws::Aws;
use crate::clock::Clock;
use crate::event_hubs::LIVE_CIRCUIT;
use crate::event_hubs::circuit::Circuits;
use crate::flow_table::FlowTable;
use crate::http::{self, Http};
use crate::parking::Parking;
use crate::rejects::{Reject, Rejects};
use crate::settings::{EXTRA_CA_CERTS, Environment, Settings, SettingsError};
use crate::sqs::Queue;
use tokio::time::Instant;

/// Clients, queues and the table of flows, each once per process.
pub struct Parts {
    pub http: Http,
    pub aws: Aws,
    pub clock: Clock,
    /// Size budget of one request to a hub, in bytes.
    pub max_batch_bytes: usize,
    /// Circuits for new events, by host and hub.
    pub circuits: Circuits<(String, String)>,
    pub flow_table: Option<FlowTable>,
    pub parking: Option<Parking>,
    pub rejects: Option<Rejects>,
    /// Whether the flow is a dimension of the metrics.
    pub metrics_by_flow: bool,
}

impl Parts {
    /// Calls nothing yet.
    pub fn open(settings: &Settings, environment: Environment, clock: Clock) -> Result<Self, SettingsError> {
        let http = http::build(settings.extra_ca_certs.as_deref())
            .map_err(|problem| SettingsError::new(EXTRA_CA_CERTS, problem))?;
        let aws = Aws::new(http.clone(), environment, clock.clone());
        if let Some(variable) = settings.needs_aws() {
            aws.check().map_err(|error| SettingsError::new(variable, error))?;
        }
        let queue = |url: &Option<String>| url.as_ref().map(|url| Queue::new(aws.clone(), url.clone()));
        Ok(Self {
            max_batch_bytes: settings.max_batch_bytes,
            circuits: Circuits::new(LIVE_CIRCUIT),
            metrics_by_flow: settings.metrics_by_flow,
            flow_table: settings
                .flows_table
                .as_ref()
                .map(|table| FlowTable::new(aws.clone(), table.clone(), clock.clone())),
            parking: queue(&settings.parking_queue_url).map(Parking::new),
            rejects: queue(&settings.rejected_queue_url).map(|queue| Rejects::new(queue, clock.clone())),
            http,
            aws,
            clock,
        })
    }

    /// Keeps copies of rejected events; tells of each whether it is stored, in their order. Without a rejected queue none is.
    pub async fn keep(&self, rejects: &[Reject<'_>], deadline: Instant) -> Vec<bool> {
        match &self.rejects {
            Some(queue) => queue.keep(rejects, deadline).await,
            None => vec![false; rejects.len()],
        }
    }
}
