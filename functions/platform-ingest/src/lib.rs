#![doc = include_str!("../README.md")]

mod envelope;
mod ingest;
mod inlet;
pub mod kafka_event;
mod record;
pub mod settings;
mod token;

pub use ingest::PlatformIngest;

/// Of this function, in flow items and rejects.
pub const KIND: &str = "platform-ingest";
