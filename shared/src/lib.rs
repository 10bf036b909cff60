#![doc = include_str!("../README.md")]

// Layers, from the top: a module uses only what is listed below it (`tests/it/layers.rs` checks it).
pub mod lambda;

pub mod trigger;

pub mod pipeline;
pub mod undelivered;

pub mod flow;
mod sender_auth;

pub mod event_hubs;

pub mod contract;

pub mod json;
mod kind;
mod message;

pub mod aws;
pub mod http;

pub mod clock;
pub mod environment;

pub use self::http::build as build_http_client;
pub use clock::rfc3339;
pub use event_hubs::partitioning::Partitioning;
pub use flow::DEFAULT_FLOW;
pub use kind::{Event, Header, Kind, Mapped, Reason, Rejection};
pub use lambda::{Function, run, run_function};
pub use message::{Body, CloudEvent, JsonWriter, Message, Properties, canonical_digest, deterministic_id, digest};
pub use sender_auth::SenderAuth;
pub use trigger::deadline::Invocation;
