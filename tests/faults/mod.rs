//! Fault tests: they prove that no event is lost, misrouted or accepted without credentials. They have real processes, a load of
//! events with known ids, random faults from a seed, and a ledger that compares the responses with the contents of the hubs.

#![expect(clippy::unwrap_used, reason = "a failed step of the harness itself ends the run")]

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
