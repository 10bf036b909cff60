#![doc = include_str!("../README.md")]

mod api;
mod connections;
mod errors;
mod flows;
mod hubs;
mod listing;
mod namespace;
mod openapi;
mod patch;
mod request;
mod routes;
mod runs;
mod schemas;
mod secrets;
mod service;
mod specs;
mod store;
mod tenant;

pub use service::FlowService;
