//! Events with known ids, which follow from the contracts and not from the code under test.

use serde_json::json;
use sha2::{Digest, Sha256};

/// One event as its sender writes it, and the `cloudEvents:id` that its message must have.
#[derive(Debug, Clone)]
pub struct Event {
    pub id: String,
    pub body: String,
}

/// Event number `n` of a run. Each event is for another profile or row.
pub fn event(kind: &str, run: u64, n: u64) -> Event {
    let subject = format!("{run:016x}-{n:012x}");
    match kind {
        "audience-change" => audience_change(&subject, n),
        "profile-export" => profile_export(&subject),
        _ => dataverse_event(&subject, n),
    }
}

/// Length of the mark of an invalid event, in bytes.
pub const BAD_LENGTH: usize = 33;

/// An event of that kind that can't be mapped, and its unique mark.
pub fn unmappable(kind: &str, run: u64, n: u64) -> Event {
    let id = format!("bad-{run:016x}-{n:012x}");
    debug_assert_eq!(id.len(), BAD_LENGTH);
    let body = match (kind, n % 3) {
        (_, 0) => format!("{{\"{id}\":"),
        ("audience-change", _) => audience_change(&id, n).body.replace("\"NEW\"", "\"OLD\""),
        // A top level that is not an object.
        (_, _) => format!("[\"{id}\"]"),
    };
    Event { id, body }
}

fn audience_change(profile: &str, n: u64) -> Event {
    const SOURCE: &str = "dc0beb89-2d63-4ec7-899a-6e986ed8932f";
    let timestamp = 1_700_000_000_000 + n;
    let partner_id = format!("p{n}");
    let body = json!({
        "profileId": profile, "sourceId": SOURCE, "partnerNumber": 33, "callType": "NEW", "partnerIds": [partner_id],
        "profileVars": {"lastCategory": "5678"}, "timestamp": timestamp, "siteNumber": 1234,
        "sourceName": "Faults", "sourceNumber": 123, "data": {"n": n.to_string(), "filling": filling(n)},
    });
    let fields = ["1234", SOURCE, profile, "33", &partner_id, "NEW", &timestamp.to_string()];
    Event { id: joined(&fields), body: body.to_string() }
}

/// Text that hardly compresses. A few events have the maximum size that a hub accepts, so that envelopes have to be split.
fn filling(n: u64) -> String {
    let length = match n {
        _ if n.is_multiple_of(499) => 900_000,
        _ if n.is_multiple_of(97) => 60_000,
        _ => 0,
    };
    let mut rng = fastrand::Rng::with_seed(n);
    std::iter::repeat_with(|| rng.alphanumeric()).take(length).collect()
}

/// A profile with its members in another order and with white space. The id is a digest of the sorted, compact form.
fn profile_export(profile: &str) -> Event {
    let canonical = format!(
        r#"{{"identityMap":{{"crm":[{{"id":"{profile}"}}]}},"person":{{"name":"Ännchen"}},"segmentMembership":{{"ups":{{"a1":{{"status":"realized"}}}}}}}}"#,
    );
    let body = format!(
        r#"{{ "segmentMembership": {{"ups": {{"a1": {{"status": "realized"}}}}}}, "person": {{"name": "\u00c4nnchen"}},
            "identityMap": {{"crm": [{{"id": "{profile}"}}]}} }}"#,
    );
    Event { id: hex(canonical.as_bytes()), body }
}

/// A context. Every second one is synchronous: its id is a digest of the sorted, compact form of the whole context, in which the
/// members are written here. An asynchronous context has the id of its system job.
fn dataverse_event(row: &str, n: u64) -> Event {
    const STEP: &str = "593db65c-9747-e811-a94f-000d3a395ecc";
    let mode = 1 - n % 2;
    // Several events of a synchronous request share the operation id.
    let operation = if mode == 1 { format!("operation-{row}") } else { "request".to_owned() };
    let body = json!({
        "MessageName": "Create", "PrimaryEntityName": "lead", "PrimaryEntityId": row, "OrganizationName": "faults",
        "OperationId": operation, "CorrelationId": row, "Mode": mode, "Depth": 1,
        "OwningExtension": {"Id": STEP, "LogicalName": "sdkmessageprocessingstep"}, "InputParameters": [],
    });
    let body = body.to_string();
    let id = if mode == 1 { operation } else { hex(body.as_bytes()) };
    Event { id, body }
}

fn joined(fields: &[&str]) -> String {
    hex(fields.join("\u{1f}").as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
