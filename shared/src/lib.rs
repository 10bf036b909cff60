#![doc = include_str!("../README.md")]

mod answer;
pub mod aws;
mod batch;
pub mod clock;
mod connection;
pub mod connection_string;
mod event;
mod event_hubs;
mod flow;
mod http_client;
pub mod json;
mod logging;
mod message;
mod partitioning;
mod queue;
mod relay;
pub mod sas;
mod sender_auth;
pub mod settings;
mod webhook;

pub use event::{Event, Header, Kind, Mapped, Reason, Rejection};
pub use http_client::build as build_http_client;
pub use message::{CloudEvent, Message, Properties, deterministic_id, digest};
pub use relay::run;
