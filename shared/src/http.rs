//! HTTP for every caller: one client, one way to retry, one token cache, one translation of transport errors and one
//! bounded reader of response bodies. It does not depend on a service; what a status means is its caller's business.

pub mod body;
pub mod client;
pub mod error;
pub mod retry;
pub mod token_cache;

pub use body::{Body, Response};
pub use client::{Http, Via, build};
pub use error::{TransportError, TransportKind};
pub use retry::{Attempt, Attempts, RetryPolicy};
