//! Data that two functions exchange. Each type has its reading and its writing side, so that they can't differ.

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
    #[error("expected base64 of gzipped data")]
    Encoding,
    /// The JSON has another form than this one.
    #[error("the JSON is not {0}")]
    Shape(&'static str),
    #[error("version {0} of the envelope is unknown; deploy all functions from one version")]
    Version(u32),
}
