#![doc = include_str!("../README.md")]

mod mapping;
mod options;
mod profile;

pub use mapping::KIND;
pub use options::Options;
