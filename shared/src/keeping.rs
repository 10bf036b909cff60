//! Where events stay that can't be delivered: parked for later, or rejected with their reason. Both triggers end here.

use crate::answer::Cause;
use crate::event::Rejection;
use crate::flow::Flow;
use crate::message::Message;
use crate::parking::Head;
use crate::rejects::{Reject, Source};
use crate::relay::Relay;
use crate::telemetry::Counts;
use tokio::time::Instant;

impl<O> Relay<O> {
    /// Parks messages of a flow. Returns for each whether it is stored. Without a parking queue none is.
    pub async fn park(&self, flow: &Flow<O>, cause: Cause, messages: &[&Message<'_>], deadline: Instant) -> Vec<bool> {
        let Some(parking) = &self.parts.parking else { return vec![false; messages.len()] };
        let destination = flow.hub.destination().await;
        let now = self.parts.clock.rfc3339();
        let head = Head::new(self.kind.name, flow.id.as_str(), &destination, now, cause.word());
        parking.park(&head, messages, deadline).await
    }

    pub fn reject<'r>(&'r self, flow: &'r str, rejection: Rejection, source: Source, body: &'r [u8]) -> Reject<'r> {
        Reject { kind: self.kind.name, flow, rejection, source, body, received_at: None }
    }

    /// One ERROR line for each cause that only an operator can fix.
    pub fn tell_operator(&self, counts: &Counts) {
        for (cause, hint) in counts.hints() {
            tracing::error!(kind = self.kind.name, reason = cause.word(), hint, "failed to send to the event hub");
        }
    }
}
