//! The numbers after invocations as the runner reports them.

use serde_json::json;
use shared::contract::codec::pack;

use super::invocations::MAX_INCOMPLETE;
use super::*;
use crate::runner::What;

fn observe(ledger: &mut Ledger, function: &str, line: Value, payload: Value, response: Value) {
    let observed = |what| Observed { function: function.to_owned(), what };
    let request_id = line["request_id"].as_str().unwrap().to_owned();
    let (payload, response) = (payload.to_string().into_bytes(), response.to_string().into_bytes());
    // The order must not matter.
    let mut parts = [What::Wrote(line.to_string()), What::Responded { request_id, payload, response }];
    if ledger.accepted.is_multiple_of(2) {
        parts.reverse();
    }
    for part in parts {
        ledger.observe(observed(part));
    }
}

/// A webhook whose response counts `promised` messages.
fn webhook(ledger: &mut Ledger, promised: u64, delivered: u64, parked: u64) {
    let line = json!({
        "message": "webhook answered", "request_id": "w", "Delivered": delivered, "Parked": parked,
    });
    let body = json!({ "status": "delivered", "messages": promised }).to_string();
    observe(ledger, "audience-change", line, json!({ "body": "{}" }), json!({ "statusCode": 200, "body": body }));
}

/// An invocation of redelivery with one envelope that holds the message `id`.
fn redelivery(ledger: &mut Ledger, id: &str, is_handled: bool, delivered: u64, rejected: u64) {
    let envelope = json!({
        "v": 1, "kind": "audience-change", "flow": "default", "hub": "events", "host": "h", "reason": "throttled",
        "firstSeen": "2026-01-01T00:00:00Z",
        "messages": [{ "id": id, "subject": "s", "body": "{}", "properties": {} }],
    });
    let record = json!({
        "messageId": "m", "body": pack(envelope.to_string().as_bytes()), "attributes": { "ApproximateReceiveCount": "2" },
    });
    let failures = if is_handled { json!([]) } else { json!([{ "itemIdentifier": "m" }]) };
    let line = json!({
        "message": "parked batch handled", "request_id": "r", "Redelivered": delivered, "Rejected": rejected,
    });
    observe(ledger, "redelivery", line, json!({ "Records": [record] }), json!({ "batchItemFailures": failures }));
}

#[test]
fn a_batch_counts_once_all_its_lines_are_there() {
    let mut ledger = Ledger::default();
    let line = |delivered: u64| {
        json!({
            "message": "queue batch handled", "request_id": "q", "lines": 2, "Received": delivered, "Delivered": delivered,
        })
    };
    let (payload, response) = (json!({ "Records": [] }), json!({ "batchItemFailures": [] }));
    observe(&mut ledger, "audience-change", line(3), payload, response);
    assert_eq!(ledger.counts(0).accepted, 0, "the other flow's line is missing");
    let what = What::Wrote(line(4).to_string());
    ledger.observe(Observed { function: "audience-change".to_owned(), what });
    assert_eq!(ledger.counts(7).accepted, 7);
}

#[test]
fn delivered_messages_that_no_hub_confirmed_are_lost() {
    let mut ledger = Ledger::default();
    webhook(&mut ledger, 2, 2, 0);
    assert_eq!((ledger.counts(2).accepted, ledger.counts(2).lost), (2, 0));
    assert_eq!(ledger.counts(1).lost, 1);
}

#[test]
fn messages_that_only_the_response_counts_are_lost() {
    let mut ledger = Ledger::default();
    webhook(&mut ledger, 3, 1, 1);
    let counts = ledger.counts(1);
    assert_eq!((counts.accepted, counts.parked, counts.lost), (3, 1, 1));
}

#[test]
fn parked_messages_are_counted_until_redelivery_handles_them() {
    let mut ledger = Ledger::default();
    webhook(&mut ledger, 1, 0, 1);
    assert_eq!((ledger.counts(0).parked, ledger.parked().len()), (1, 0), "redelivery has not received it");
    redelivery(&mut ledger, "a", false, 0, 0);
    assert_eq!((ledger.counts(0).parked, ledger.counts(0).lost), (1, 0));
    assert_eq!((ledger.parked()[0].messages, ledger.parked()[0].attempts), (1, 2));
    redelivery(&mut ledger, "a", true, 0, 1);
    let counts = ledger.counts(0);
    assert_eq!((counts.parked, counts.rejected, counts.lost), (0, 1, 0));
    assert_eq!(ledger.rejected()[0].by, "redelivery");
}

#[test]
fn messages_that_left_the_parking_queue_and_are_nowhere_are_lost() {
    let mut ledger = Ledger::default();
    webhook(&mut ledger, 1, 0, 1);
    redelivery(&mut ledger, "a", true, 0, 0);
    assert_eq!((ledger.counts(0).parked, ledger.counts(0).lost), (0, 1));
    ledger.ids_of_any_hub.insert(hash("b"));
    ledger.arrived = 1;
    webhook(&mut ledger, 1, 0, 1);
    redelivery(&mut ledger, "b", true, 0, 0);
    assert_eq!((ledger.counts(0).parked, ledger.counts(0).lost), (0, 1), "the other one is in its hub");
}

#[test]
fn messages_that_vanished_from_the_parking_queue_are_lost() {
    let mut ledger = Ledger::default();
    let queues = |parking| QueueCounts { parking, dead_letters: 0, rejected: 0 };
    let before = ledger.parking_mark();
    webhook(&mut ledger, 1, 0, 1);
    ledger.compare(before, queues(0));
    assert_eq!((ledger.counts(0).parked, ledger.counts(0).lost), (1, 0), "it was parked after the lookup");
    ledger.compare(ledger.parking_mark(), queues(1));
    assert_eq!((ledger.counts(0).parked, ledger.counts(0).lost), (1, 0));
    ledger.compare(ledger.parking_mark(), queues(0));
    assert_eq!((ledger.counts(0).parked, ledger.counts(0).lost), (0, 1));
}

#[test]
fn incomplete_invocations_of_killed_instances_are_dropped() {
    let mut ledger = Ledger::default();
    for n in 0..2 * MAX_INCOMPLETE {
        let line = json!({ "message": "webhook answered", "request_id": n.to_string() }).to_string();
        ledger.observe(Observed { function: "audience-change".to_owned(), what: What::Wrote(line) });
    }
    assert_eq!(ledger.invocations.incomplete(), MAX_INCOMPLETE);
}
