#![doc = include_str!("../README.md")]

mod delivery;
mod destinations;
mod hold;
mod redelivery;
mod settings;

pub use redelivery::Redelivery;
