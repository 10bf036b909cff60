//! Tests across crates: pure functions against golden data, and the built binaries, started as Lambda, SAM and users start
//! them. The binaries must be built first; `make test` does.

#![expect(clippy::unwrap_used, reason = "a test whose own steps fail has failed")]

mod audience_change;
mod aws;
mod browser;
mod cloud;
mod configuration;
mod connection_strings;
mod console;
mod consumers;
mod control;
mod dataverse_event;
mod dataverse_ids;
mod dataverse_types;
mod faults;
mod harness;
mod hub_responses;
mod ingest;
mod invalid_input;
mod kafka;
mod kinds;
mod layers;
mod links;
mod local_sqs;
mod option_schemas;
mod pages;
mod parking;
mod peer;
mod profile_export;
mod queue;
mod redelivery;
mod relayctl;
mod replay;
mod runs;
mod runtime_interface_emulator;
mod sas_tokens;
mod secrets;
mod settings;
mod source_flows;
mod stack;
mod supply_chain;
mod telemetry;
mod template;
mod transport;
mod webhook;
