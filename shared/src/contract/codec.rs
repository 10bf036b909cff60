//! The form in which a text travels in a queue: gzip, then base64, with a bound on what is unpacked.

use std::io::{Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use super::Unreadable;

/// Maximum size of unpacked data, in bytes; no function packs more than that.
const MAX_UNPACKED: u64 = 64_000_000;

/// Gzip, then base64: a queue refuses control characters, and an escaped event of a megabyte would not fit its limit.
pub fn pack(bytes: &[u8]) -> String {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    let packed = gzip.write_all(bytes).and_then(|()| gzip.finish());
    STANDARD.encode(packed.expect("a Vec accepts every write"))
}

/// The bytes that were packed.
///
/// # Errors
/// Fails if the text is not base64 of gzipped data, or unpacks to more than 64 MB.
pub fn unpack(text: &str) -> Result<Vec<u8>, Unreadable> {
    unpack_bounded(text, MAX_UNPACKED)
}

fn unpack_bounded(text: &str, max_bytes: u64) -> Result<Vec<u8>, Unreadable> {
    let (bytes, is_whole) = inflate(text.trim_ascii(), max_bytes + 1)?;
    if is_whole && bytes.len() as u64 <= max_bytes { Ok(bytes) } else { Err(Unreadable::Encoding) }
}

/// The first `max_bytes` of what was packed, read from the first `max_characters` of its text: a multiple of four, since
/// base64 is decoded in groups of four.
pub fn unpack_start(text: &str, max_characters: usize, max_bytes: u64) -> Result<Vec<u8>, Unreadable> {
    let text = text.trim_ascii();
    let start = text.get(..max_characters).unwrap_or(text);
    // The start ends inside the compressed data: what comes before that is enough.
    inflate(start, max_bytes).map(|(bytes, _)| bytes)
}

/// What could be unpacked, and whether the compressed data ends properly or `max_bytes` were reached.
fn inflate(text: &str, max_bytes: u64) -> Result<(Vec<u8>, bool), Unreadable> {
    let packed = STANDARD.decode(text).map_err(|_| Unreadable::Encoding)?;
    let mut bytes = Vec::new();
    let is_whole = GzDecoder::new(packed.as_slice()).take(max_bytes).read_to_end(&mut bytes).is_ok();
    Ok((bytes, is_whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn packed_bytes_are_unpacked_as_they_were(bytes in proptest::collection::vec(0u8.., 0..2_000)) {
            proptest::prop_assert_eq!(unpack(&format!(" {}\n", pack(&bytes))), Ok(bytes));
        }
    }

    #[test]
    fn more_than_the_maximum_and_incomplete_data_are_refused() {
        let packed = pack(&[b'x'; 4_000]);
        assert_eq!(unpack_bounded(&packed, 3_999), Err(Unreadable::Encoding));
        assert_eq!(unpack_bounded(&packed, 4_000).map(|bytes| bytes.len()), Ok(4_000));
        assert_eq!(unpack(&packed[..packed.len() / 8 * 4]), Err(Unreadable::Encoding));
        assert_eq!(unpack_start(&packed, packed.len() / 8 * 4, 7).as_deref(), Ok(b"xxxxxxx".as_slice()));
        assert_eq!(unpack("not base64!"), Err(Unreadable::Encoding));
    }
}
