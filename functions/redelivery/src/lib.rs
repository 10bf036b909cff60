#![doc = include_str!("../README.md")]

mod destinations;
mod redelivery;

pub use redelivery::Redelivery;
