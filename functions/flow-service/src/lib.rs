#![doc = include_str!("../README.md")]

mod api;
mod connections;
mod errors;
mod flows;
mod groups;
mod hubs;
mod lambda;
mod listing;
mod namespace;
mod openapi;
mod patch;
mod request;
mod routes;
mod runs;
mod schemas;
mod sdk_http;
mod secrets;
mod service;
mod source_flows;
mod specs;
mod store;
mod tenant;

pub use service::FlowService;
