//! Tests across crates: pure parts against golden data, and the built binaries through the ways that Lambda, SAM and
//! users start them. The binaries must be built first; `make test` does.

#![expect(clippy::unwrap_used, reason = "a test whose own steps fail has failed")]

mod aws;
mod browser;
mod cloud;
mod connection_strings;
mod console;
mod consumers;
mod control;
mod dataverse_event;
mod dataverse_ids;
mod dataverse_types;
mod faults;
mod harness;
mod hub_answers;
mod ingest;
mod input;
mod kafka;
mod layers;
mod links;
mod mapping;
mod pages;
mod parking;
mod peer;
mod profile_export;
mod queue;
mod redelivery;
mod relayctl;
mod replay;
mod rie;
mod runs;
mod schemas;
mod secrets;
mod settings;
mod signing;
mod source_flows;
mod sqs;
mod stack;
mod supply_chain;
mod telemetry;
mod template;
mod transport;
mod webhook;
