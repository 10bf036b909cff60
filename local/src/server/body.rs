//! Reads request bodies up to a limit.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unread {
    TooLarge,
    /// The client went away.
    BrokenOff,
}

/// What is still read and thrown away beyond the limit: a client that writes while the connection is closed in its face
/// sees a reset and not the answer.
const DISCARDED: usize = 64 * 1024 * 1024;

pub(crate) async fn read(mut body: Body, limit: usize) -> Result<Bytes, Unread> {
    let (mut kept, mut length) = (BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Unread::BrokenOff)?.into_data() else { continue };
        length += data.len();
        if length <= limit {
            kept.extend_from_slice(&data);
        } else if length > limit + DISCARDED {
            break;
        }
    }
    if length > limit { Err(Unread::TooLarge) } else { Ok(kept.freeze()) }
}
