//! Data that two functions exchange. Each type has its reading and its writing side, so that they can't differ.

pub mod codec;
pub mod flow_item;
pub mod metrics;
pub mod parked;
pub mod rejected;
pub mod secret;
