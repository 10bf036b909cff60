//! Data that two functions exchange. Each type has its reading and its writing side, so that they can't differ.

/// The string attribute of a queue record that names its flow.
pub const FLOW_ATTRIBUTE: &str = "flow";

pub mod alias;
pub mod codec;
pub mod flow_item;
pub mod inlet;
pub mod log_line;
pub mod metrics;
pub mod parked;
pub mod rejected;
pub mod secret;

/// Why stored data is not readable. It never contains any of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("the data is not base64 of gzipped data, or unpacks to more than 64 MB")]
    Encoding,
    /// The JSON has another form than this one.
    #[error("the JSON is not {0}")]
    Shape(&'static str),
    #[error("version {0} of the envelope is unknown; deploy all functions from one version")]
    Version(u32),
}
