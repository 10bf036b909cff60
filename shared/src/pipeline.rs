//! One path for every event: its flow, the mapping, the rejected events that are stored, sending, and parking.

pub mod mapping;
pub mod services;
pub mod telemetry;

use tokio::time::Instant;

use crate::contract::parked::Head;
use crate::contract::rejected::{RejectedEvent, Source};
use crate::event_hubs::response::Cause;
use crate::flow::Flow;
use crate::flow::flows::Flows;
use crate::kind::{Kind, Rejection};
use crate::message::Message;
use services::Services;
use telemetry::Counts;

/// One kind with its flows, and the services that its events need.
pub struct Pipeline<O> {
    pub kind: Kind<O>,
    pub services: Services,
    pub flows: Flows<O>,
}

impl<O> Pipeline<O> {
    /// Parks messages of a flow. Returns for each whether it is stored. Without a parking queue none is.
    pub async fn park(&self, flow: &Flow<O>, cause: Cause, messages: &[&Message<'_>], deadline: Instant) -> Vec<bool> {
        let Some(parking) = &self.services.parking else { return vec![false; messages.len()] };
        let destination = flow.hub.destination().await;
        let now = self.services.hubs.clock.rfc3339();
        let head = Head::new(self.kind.name, flow.id.as_str(), &destination, now, cause.word());
        parking.park(&head, messages, deadline).await
    }

    /// An event that was received now and can't be delivered.
    pub fn reject<'r>(
        &'r self,
        flow: &'r str,
        rejection: Rejection,
        source: Source,
        body: &'r [u8],
    ) -> RejectedEvent<'r> {
        let now = self.services.hubs.clock.rfc3339();
        RejectedEvent::new(self.kind.name, flow, rejection, source, body, now)
    }

    /// One ERROR line for each cause that only an operator can fix.
    pub fn tell_operator(&self, counts: &Counts) {
        for (cause, hint) in counts.hints() {
            tracing::error!(kind = self.kind.name, reason = cause.word(), hint, "failed to send to the event hub");
        }
    }
}
