//! Proves under faults that nothing is lost, misrouted or let in: real processes, a load of events with known ids, faults
//! that come and go from a seed, and a ledger that compares what was answered with what the hubs hold.

#![expect(clippy::unwrap_used, reason = "a step of the harness itself that fails ends the run")]

pub mod aws;
pub mod backlog;
pub mod chaos;
pub mod events;
pub mod gate;
pub mod ledger;
pub mod load;
pub mod parked;
pub mod proxy;
pub mod scenarios;
pub mod system;
