//! Azure Event Hubs over REST: batches of messages to one hub, with a cached token. It takes an HTTP client, a clock and
//! credentials; it does not depend on flows or settings.

mod batch;
pub mod circuit;
mod client;
pub mod connection;
pub mod connection_string;
pub mod pace;
pub mod partitioning;
pub mod response;
pub mod token;

pub use client::{EventHub, Hubs, Outcome, Report};
