#![doc = include_str!("../README.md")]

mod context;
mod mapping;
mod options;
mod trim;
mod types;
mod value;
mod xml;

pub use mapping::KIND;
pub use options::Options;
