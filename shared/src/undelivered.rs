//! Queues for what is not delivered: parked for later, or rejected with its reason.

pub mod parking;
pub mod rejects;
