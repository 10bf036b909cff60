#![doc = include_str!("../README.md")]

mod envelope;
mod ingest;
mod inlet;
pub mod kafka_event;
mod record;
mod sending;
pub mod settings;
mod token;

pub use ingest::PlatformIngest;
