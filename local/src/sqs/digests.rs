//! The MD5 digests in responses, which SDKs check.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use serde_json::{Map, Value};

pub(super) fn md5_of_body(body: &str) -> String {
    hex(&Md5::digest(body.as_bytes()))
}

/// The digest that the documentation of message attributes describes.
pub(super) fn md5_of_attributes(attributes: &Map<String, Value>) -> String {
    let mut encoded = Vec::new();
    let mut with_length = |bytes: &[u8]| {
        encoded.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        encoded.extend(bytes);
        encoded.len()
    };
    // The members of a map are sorted by name already.
    let mut marks = Vec::new();
    for (name, attribute) in attributes {
        with_length(name.as_bytes());
        let at = with_length(attribute["DataType"].as_str().unwrap_or_default().as_bytes());
        match attribute["BinaryValue"].as_str() {
            Some(binary) => {
                marks.push((at, 2_u8));
                with_length(&STANDARD.decode(binary).unwrap_or_default());
            }
            None => {
                marks.push((at, 1));
                with_length(attribute["StringValue"].as_str().unwrap_or_default().as_bytes());
            }
        }
    }
    for (at, mark) in marks.into_iter().rev() {
        encoded.insert(at, mark);
    }
    hex(&Md5::digest(&encoded))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
