//! Reads request bodies up to a maximum size.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

/// Reason for which a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unread {
    TooLarge,
    /// The client closed the connection.
    BrokenOff,
}

/// Number of bytes that are read and dropped beyond the limit: a client that still writes when the connection is closed gets
/// a reset instead of the response.
const DISCARDED: usize = 64 * 1024 * 1024;

/// Reads a body of up to `limit` bytes.
pub(crate) async fn read(mut body: Body, limit: usize) -> Result<Bytes, Unread> {
    let (mut bytes, mut length) = (BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Unread::BrokenOff)?.into_data() else { continue };
        length += data.len();
        if length <= limit {
            bytes.extend_from_slice(&data);
        } else if length > limit + DISCARDED {
            break;
        }
    }
    if length > limit { Err(Unread::TooLarge) } else { Ok(bytes.freeze()) }
}
