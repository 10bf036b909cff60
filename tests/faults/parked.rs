//! Envelopes of parked messages, written here and not by the functions, so that a run can begin with any number of them.

use std::io::{Read, Write};
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::ledger::Ledger;
use super::system::{FLOWS, Flow, System};

/// An envelope before it is packed.
pub fn envelope(system: &System, flow: &Flow, reason: &str, ids: &[String]) -> Value {
    let message = |id: &String| {
        let properties = json!({
            "cloudEvents:specversion": "1.0", "cloudEvents:id": id, "cloudEvents:subject": id,
            "cloudEvents:source": "urn:faults", "cloudEvents:type": "faults",
        });
        json!({ "id": id, "subject": id, "body": json!({ "profileId": id }).to_string(), "properties": properties })
    };
    json!({
        "v": 1, "kind": flow.kind, "flow": flow.id, "hub": flow.hub, "host": host(system, flow),
        "secretId": flow.connection_secret(), "firstSeen": shared::clock::Clock::system().rfc3339(), "reason": reason,
        "messages": ids.iter().map(message).collect::<Vec<_>>(),
    })
}

fn host(system: &System, flow: &Flow) -> String {
    system.gates[flow.namespace].address().to_string()
}

/// The message group of a destination.
pub fn group(system: &System, flow: &Flow) -> String {
    let digest = Sha256::digest(format!("{}/{}", host(system, flow), flow.hub));
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Packs an envelope with gzip and base64. `level` 0 is fast, and needs a third more space for a single message.
pub fn pack(envelope: &Value, level: u32) -> String {
    pack_text(&envelope.to_string(), level)
}

fn pack_text(json: &str, level: u32) -> String {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::new(level));
    gzip.write_all(json.as_bytes()).unwrap();
    STANDARD.encode(gzip.finish().unwrap())
}

/// Unpacks an envelope or a rejected body.
pub fn unpack(base64: &str) -> Vec<u8> {
    try_unpack(base64).unwrap()
}

fn try_unpack(base64: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    GzDecoder::new(STANDARD.decode(base64).ok()?.as_slice()).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The flow of an envelope and the ids of its messages. `None`: a body that is not one of this version.
pub fn contents(body: &str) -> Option<(String, Vec<String>)> {
    let envelope: Value =
        serde_json::from_slice(&try_unpack(body)?).ok().filter(|envelope: &Value| envelope["v"] == 1)?;
    let ids = envelope["messages"].as_array()?.iter().filter_map(|message| message["id"].as_str());
    Some((envelope["flow"].as_str()?.to_owned(), ids.map(str::to_owned).collect()))
}

/// Parks messages in envelopes of `size`. They have the ids `{name}-{number}`.
pub fn park(system: &System, ledger: &Ledger, flow: usize, name: &str, numbers: Range<usize>, size: usize) {
    const MARK: &str = "@the-id@";
    let (place, group) = (&FLOWS[flow], group(system, &FLOWS[flow]));
    // Building and printing each message would be slower than everything else.
    let empty = envelope(system, place, "unavailable", &[]).to_string();
    let (before, after) = empty.split_once("\"messages\":[]").unwrap();
    let one = envelope(system, place, "unavailable", &[MARK.to_owned()])["messages"][0].to_string();
    let mut numbers = numbers.peekable();
    while numbers.peek().is_some() {
        let ids: Vec<String> = numbers.by_ref().take(size).map(|number| format!("{name}-{number}")).collect();
        let messages: Vec<String> = ids.iter().map(|id| one.replace(MARK, id)).collect();
        let json = format!("{before}\"messages\":[{}]{after}", messages.join(","));
        // Without compression, full envelopes are as large as with events of real senders.
        system.sqs.put(&system.parking, &pack_text(&json, 0), Some(&group));
        for id in &ids {
            ledger.parked(id, flow);
        }
    }
}
