#![doc = include_str!("../README.md")]

mod event;
mod mapping;
mod options;

pub use mapping::KIND;
pub use options::Options;
