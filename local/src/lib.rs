#![doc = include_str!("../README.md")]

pub mod cloudwatch;
mod console;
pub mod demo;
pub mod emulator;
mod faults;
pub mod gateway;
pub mod inlet;
pub mod kinds;
pub mod lambda_api;
pub mod moto;
pub mod poller;
pub mod queue_source;
mod random;
pub mod run;
pub mod runner;
mod server;
pub mod sqs;
pub mod tokens;
