//! The form in which a text travels in a queue: gzip, then base64, with a bound on what is unpacked.

use std::io::{Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

/// Maximum size of what is unpacked, in bytes: no function packs more.
const MAX_UNPACKED: u64 = 64_000_000;

/// Gzip, then base64: a queue refuses control characters, and an escaped event of a megabyte would not fit its limit.
pub fn pack(bytes: &[u8]) -> String {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    let packed = gzip.write_all(bytes).and_then(|()| gzip.finish());
    STANDARD.encode(packed.expect("a Vec accepts every write"))
}

/// The text is not base64 of gzipped bytes, or unpacks to more than [`MAX_UNPACKED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected base64 of gzipped bytes")]
pub struct NotPacked;

/// The bytes that were packed.
pub fn unpack(text: &str) -> Result<Vec<u8>, NotPacked> {
    let bytes = inflate(text.trim_ascii(), MAX_UNPACKED + 1).and_then(|(bytes, result)| result.map(|()| bytes))?;
    if bytes.len() as u64 > MAX_UNPACKED { Err(NotPacked) } else { Ok(bytes) }
}

/// At most `max_bytes` of what was packed, from the first `max_characters` of its text. Base64 is decoded in groups of four.
pub fn unpack_start(text: &str, max_characters: usize, max_bytes: u64) -> Result<Vec<u8>, NotPacked> {
    let text = text.trim_ascii();
    let start = text.get(..max_characters).unwrap_or(text);
    // The start ends inside the compressed data: what comes before that is enough.
    inflate(start, max_bytes).map(|(bytes, _)| bytes)
}

/// What could be unpacked, and whether that is all.
fn inflate(text: &str, max_bytes: u64) -> Result<(Vec<u8>, Result<(), NotPacked>), NotPacked> {
    let packed = STANDARD.decode(text).map_err(|_| NotPacked)?;
    let mut bytes = Vec::new();
    let result = GzDecoder::new(packed.as_slice()).take(max_bytes).read_to_end(&mut bytes);
    Ok((bytes, result.map(drop).map_err(|_| NotPacked)))
}
