//! One path for every body, whichever trigger brought it: its rejected events are stored, its messages are sent, what could not
//! be sent is parked, and what the hub refused is stored.

mod fifo;
pub mod mapping;
pub mod services;
pub mod telemetry;

use std::collections::HashMap;

use futures_util::future::{join, join_all};
use tokio::time::Instant;

use crate::contract::parked::Head;
use crate::contract::rejected::{RejectedEvent, Source};
use crate::event_hubs::response::{Cause, Refusal};
use crate::event_hubs::{self, Report};
use crate::flow::Flow;
use crate::flow::flows::Flows;
use crate::kind::{Kind, Reason, Rejection};
use crate::message::Message;
pub use fifo::Holds;
use mapping::{Mapping, Notes};
use services::Services;
use telemetry::Counts;

/// One kind with its flows, and the services that its events need.
pub struct Pipeline<O> {
    pub kind: Kind<O>,
    pub services: Services,
    pub flows: Flows<O>,
}

/// One body to deliver.
pub struct Work<'w, O> {
    /// The flow that the sender named.
    pub flow_id: &'w str,
    /// `None` if there is no such flow: all of the body is rejected then.
    pub flow: Option<&'w Flow<O>>,
    pub mapping: Mapping<'w>,
    /// Message group of a FIFO queue. The bodies of a group are sent one after another and not parked, which would give up their
    /// order.
    pub group: Option<&'w str>,
}

/// The outcome of one body.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The events that could not be mapped: the reason of the first, and the places of all.
    pub rejection: Option<Rejection>,
    /// The first event that the hub refused.
    pub refusal: Option<Rejection>,
    /// The reason of each event that could not be mapped, and of each that the hub refused.
    pub unmapped: Vec<Reason>,
    pub refusals: Vec<Reason>,
    /// Whether a copy of a rejected event could not be stored.
    pub is_lacking_copies: bool,
    /// Whether the body was not sent, because a copy could not be stored, or because of such a body before it in its group.
    pub is_held: bool,
    /// Whether a body before it in its group has to be retried.
    pub is_behind: bool,
    /// Counts of the words that the kind noted, if the body was not held.
    pub notes: Notes,
    /// Number of messages that are parked, that the hub refused, and that are neither delivered nor parked nor refused.
    pub parked: usize,
    pub refused: usize,
    pub unsent: usize,
    /// Why messages could not be delivered at once.
    pub cause: Option<Cause>,
}

impl Outcome {
    /// Whether each event is delivered, parked, filtered, or stored as rejected. Otherwise the body has to be retried.
    pub fn is_done(&self) -> bool {
        !self.is_lacking_copies && !self.is_held && !self.is_behind && self.unsent == 0
    }

    /// The rejected events to count: those whose copy is stored. What the hub refused of a body that is retried is refused again,
    /// and counted then.
    pub fn counted(&self) -> impl Iterator<Item = Reason> {
        let unmapped = if self.is_held { &[][..] } else { &self.unmapped };
        let refusals = if self.is_done() { &self.refusals } else { &[][..] };
        unmapped.iter().chain(refusals).copied()
    }
}

/// The outcomes of several bodies.
pub struct Delivery<'w> {
    /// One per body, in their order.
    pub outcomes: Vec<Outcome>,
    /// The flow of each set of messages that was sent together, and the hub's part of their outcome.
    pub reports: Vec<(&'w str, Report)>,
}

/// The times at which the parts of an invocation end.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Storing events that could not be mapped.
    pub storing_ends: Instant,
    pub sending_ends: Instant,
    /// Parking, and storing events that the hub refused.
    pub parking_ends: Instant,
}

/// Messages of one flow that are sent together, and the events that they were made from.
struct Load<'w, O> {
    flow: &'w Flow<O>,
    messages: Vec<Message<'w>>,
    /// The body and the event of each message.
    origins: Vec<(usize, &'w str)>,
}

impl<'w, O> Load<'w, O> {
    fn new(flow: &'w Flow<O>) -> Self {
        Self { flow, messages: Vec::new(), origins: Vec::new() }
    }

    fn add(&mut self, body: usize, mapping: Mapping<'w>) {
        self.origins.extend(mapping.events.into_iter().map(|event| (body, event)));
        if self.messages.is_empty() {
            self.messages = mapping.messages;
        } else {
            self.messages.extend(mapping.messages);
        }
    }
}

impl<O> Pipeline<O> {
    /// Delivers bodies: those of one flow together, and those of one message group in their order.
    pub async fn deliver<'w>(&self, works: Vec<Work<'w, O>>, source: Source, times: Times) -> Delivery<'w> {
        let mut outcomes = self.store_unmapped(&works, source, times.storing_ends).await;
        let groups: Vec<Option<&str>> = works.iter().map(|work| work.group).collect();
        let mut holds = Holds::default();
        let mut loads: Vec<Load<'w, O>> = Vec::new();
        let mut sequences: HashMap<&str, Vec<Load<'w, O>>> = HashMap::new();
        for (body, work) in works.into_iter().enumerate() {
            let outcome = &mut outcomes[body];
            outcome.is_held = holds.is_returned(work.group, outcome.is_lacking_copies);
            let Some(flow) = work.flow.filter(|_| !outcome.is_held) else { continue };
            let mut mapping = work.mapping;
            outcome.notes = std::mem::take(&mut mapping.notes);
            if mapping.messages.is_empty() {
                continue;
            }
            let together = match work.group {
                Some(group) => sequences.entry(group).or_default(),
                None => &mut loads,
            };
            let known = together.iter().position(|load| work.group.is_none() && std::ptr::eq(load.flow, flow));
            let place = known.unwrap_or(together.len());
            if known.is_none() {
                together.push(Load::new(flow));
            }
            together[place].add(body, mapping);
        }
        let loads = loads.into_iter().map(|load| self.send(load, true, source, times));
        let sequences = sequences.into_values().map(|sequence| self.send_in_order(sequence, source, times));
        let (sent, in_order) = join(join_all(loads), join_all(sequences)).await;
        let mut reports = Vec::new();
        for Sent { flow_id, report, outcomes: of_load } in sent.into_iter().chain(in_order.into_iter().flatten()) {
            reports.push((flow_id, report));
            for (body, of_load) in of_load {
                outcomes[body].add(of_load);
            }
        }
        let mut holds = Holds::default();
        for (outcome, group) in outcomes.iter_mut().zip(groups).filter(|(_, group)| group.is_some()) {
            outcome.is_behind = holds.is_returned(group, !outcome.is_done());
        }
        Delivery { outcomes, reports }
    }

    /// Stores the events that could not be mapped, before anything is sent: a body is retried as a whole.
    async fn store_unmapped(&self, works: &[Work<'_, O>], source: Source, deadline: Instant) -> Vec<Outcome> {
        let (mut bodies, mut rejects) = (Vec::new(), Vec::new());
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(works.len());
        for (body, Work { flow_id, mapping, .. }) in works.iter().enumerate() {
            let unmapped = mapping.rejections.iter().map(|rejected| rejected.rejection.reason).collect();
            outcomes.push(Outcome { rejection: mapping.rejection(), unmapped, ..Outcome::default() });
            for rejected in mapping.rejects() {
                bodies.push(body);
                rejects.push((*flow_id, rejected.rejection, rejected.body));
            }
        }
        let stored = self.store_rejected(rejects, source, deadline).await;
        for (body, stored) in bodies.into_iter().zip(stored) {
            outcomes[body].is_lacking_copies |= !stored;
        }
        outcomes
    }

    /// Sends the bodies of a message group one after another, until one is not done: a body never overtakes the one before it.
    async fn send_in_order<'w>(&self, sequence: Vec<Load<'w, O>>, source: Source, times: Times) -> Vec<Sent<'w>> {
        let mut all = Vec::new();
        for load in sequence {
            let sent = self.send(load, false, source, times).await;
            let is_done = sent.outcomes.iter().all(|(_, outcome)| outcome.is_done());
            all.push(sent);
            if !is_done {
                break;
            }
        }
        all
    }

    /// Sends a load, parks what could not be sent if it `may_park`, and stores what the hub refused.
    async fn send<'w>(&self, load: Load<'w, O>, may_park: bool, source: Source, times: Times) -> Sent<'w> {
        let Load { flow, messages, origins } = load;
        let report = flow.hub.send(&messages, times.sending_ends).await;
        let mut outcomes: Vec<(usize, Outcome)> = Vec::new();
        let (mut unsent, mut refused) = (Vec::new(), Vec::<(usize, &str, Refusal)>::new());
        for (position, ((body, event), result)) in origins.iter().zip(&report.outcomes).enumerate() {
            // The messages of a body follow each other.
            if outcomes.last().is_none_or(|(last, _)| last != body) {
                outcomes.push((*body, Outcome::default()));
            }
            let part = outcomes.len() - 1;
            let outcome = &mut outcomes[part].1;
            match result {
                event_hubs::Outcome::Delivered => {}
                event_hubs::Outcome::Unsent(cause) => {
                    outcome.cause.get_or_insert(*cause);
                    outcome.unsent += 1;
                    unsent.push((part, &messages[position], *cause));
                }
                event_hubs::Outcome::Refused(refusal) => {
                    outcome.refused += 1;
                    // An event that became several messages is stored once.
                    if refused.last().is_none_or(|(_, last, _)| !std::ptr::eq(*last, *event)) {
                        refused.push((part, event, *refusal));
                    }
                }
            }
        }
        if let Some((.., cause)) = unsent.first().filter(|_| may_park) {
            let to_park: Vec<&Message<'_>> = unsent.iter().map(|(_, message, _)| *message).collect();
            let parked = self.park(flow, *cause, &to_park, times.parking_ends).await;
            for ((part, ..), _) in unsent.iter().zip(parked).filter(|(_, parked)| *parked) {
                let outcome = &mut outcomes[*part].1;
                outcome.unsent -= 1;
                outcome.parked += 1;
            }
        }
        // The events of a body that is retried are refused again, and stored then.
        refused.retain(|(part, ..)| outcomes[*part].1.unsent == 0);
        let rejects =
            refused.iter().map(|(_, event, refusal)| (flow.id.as_str(), refusal.rejection(), event.as_bytes()));
        let stored = self.store_rejected(rejects.collect(), source, times.parking_ends).await;
        for ((part, _, refusal), stored) in refused.into_iter().zip(stored) {
            let outcome = &mut outcomes[part].1;
            let rejection = refusal.rejection();
            outcome.refusals.push(rejection.reason);
            outcome.refusal.get_or_insert(rejection);
            outcome.is_lacking_copies |= !stored;
        }
        Sent { flow_id: &flow.id, report, outcomes }
    }

    /// Parks messages of a flow. Returns for each whether it is stored. Without a parking queue none is.
    async fn park(&self, flow: &Flow<O>, cause: Cause, messages: &[&Message<'_>], deadline: Instant) -> Vec<bool> {
        let Some(parking) = &self.services.parking else { return vec![false; messages.len()] };
        let destination = flow.hub.destination().await;
        let now = self.services.hubs.clock.rfc3339();
        let head = Head::new(self.kind.name, flow.id.as_str(), &destination, now, cause.word());
        parking.park(&head, messages, deadline).await
    }

    /// Stores copies of rejected events, each with its flow, its rejection and its bytes. Returns for each whether it is stored.
    async fn store_rejected(
        &self,
        rejected: Vec<(&str, Rejection, &[u8])>,
        source: Source,
        deadline: Instant,
    ) -> Vec<bool> {
        if rejected.is_empty() {
            return Vec::new();
        }
        let now = self.services.hubs.clock.rfc3339();
        let event =
            |(flow, rejection, body)| RejectedEvent::new(self.kind.name, flow, rejection, source, body, now.as_str());
        let events: Vec<RejectedEvent<'_>> = rejected.into_iter().map(event).collect();
        self.services.store_rejected(&events, deadline).await
    }

    /// Logs one ERROR line for each cause that only an operator can fix.
    pub fn report_hints(&self, counts: &Counts) {
        for (cause, hint) in counts.hints() {
            tracing::error!(kind = self.kind.name, reason = cause.word(), hint, "failed to send to the event hub");
        }
    }
}

/// A load that was sent.
struct Sent<'w> {
    flow_id: &'w str,
    report: Report,
    /// The part of each body in the outcome.
    outcomes: Vec<(usize, Outcome)>,
}

impl Outcome {
    /// Adds what happened to the messages of the body.
    fn add(&mut self, sent: Self) {
        self.refusal = sent.refusal.or(self.refusal.take());
        self.refusals.extend(sent.refusals);
        self.is_lacking_copies |= sent.is_lacking_copies;
        self.parked += sent.parked;
        self.refused += sent.refused;
        self.unsent += sent.unsent;
        self.cause = sent.cause.or(self.cause);
    }
}
