//! What authorises a request to a hub.

pub mod sas;
