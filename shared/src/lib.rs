#![doc = include_str!("../README.md")]

pub mod answer;
pub mod aws;
mod batch;
pub mod clock;
pub mod connection;
pub mod connection_string;
mod event;
pub mod event_hubs;
mod flow;
pub mod flow_table;
pub mod function;
mod http_client;
pub mod json;
mod keeping;
mod logging;
mod message;
pub mod parking;
mod partitioning;
pub mod parts;
mod queue;
pub mod rejects;
mod relay;
pub mod sas;
mod sender_auth;
mod senders;
pub mod settings;
pub mod sqs;
pub mod sqs_event;
mod webhook;

pub use event::{Event, Header, Kind, Mapped, Reason, Rejection};
pub use flow::DEFAULT_FLOW;
pub use function::{Function, Invocation, run_function};
pub use http_client::build as build_http_client;
pub use message::{CloudEvent, Message, Properties, deterministic_id, digest};
pub use relay::run;
