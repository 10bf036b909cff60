//! Tokens that authorise requests to a hub.

pub mod sas;
