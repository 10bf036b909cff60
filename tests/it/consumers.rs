//! The consumer that docs/consumers.md recommends, run as printed there on messages of each kind.

use std::process::Command;

use serde_json::{Value, json};
use shared::{Event, Kind};

use crate::harness::*;

const PAGE: &str = include_str!("../../docs/consumers.md");

/// Client that calls `on_event` with the messages in `EVENTS`. A message is delivered again if `on_event` fails.
const CLIENT: &str = r#"
import json, os
class Event:
    def __init__(self, properties, body, failures):
        self.properties = {name.encode(): value.encode() if isinstance(value, str) else value for name, value in properties.items()}
        self.body, self.failures = body, failures
    def body_as_str(self):
        if self.failures:
            self.failures -= 1
            raise RuntimeError("processing fails")
        return self.body
class EventHubConsumerClient:
    @classmethod
    def from_connection_string(cls, connection_string, consumer_group):
        assert connection_string == "a connection string", connection_string
        return cls()
    def receive(self, on_event, starting_position):
        for event in [Event(*event) for event in json.loads(os.environ["EVENTS"])]:
            try:
                on_event(None, event)
            except RuntimeError:
                on_event(None, event)
"#;

/// A message as a consumer sees it.
#[derive(Clone)]
struct Sent {
    properties: Value,
    body: String,
    /// Number of times that processing it fails.
    failures: usize,
}

/// The bodies that the recipe processes.
fn processed(messages: &[Sent]) -> Vec<String> {
    let recipe = PAGE.split_once("```python\n").unwrap().1.split_once("```").unwrap().0;
    let folder = std::env::temp_dir().join(format!("consumers-{}-{:016x}", std::process::id(), fastrand::u64(..)));
    std::fs::create_dir_all(folder.join("azure/eventhub")).unwrap();
    std::fs::write(folder.join("azure/eventhub/__init__.py"), CLIENT).unwrap();
    let events: Vec<_> = messages.iter().map(|sent| json!([sent.properties, sent.body, sent.failures])).collect();
    let output = Command::new(virtual_environment().join("bin/python"))
        .args(["-c", &format!("import sys; sys.path.insert(0, {:?})\n{recipe}", folder.display().to_string())])
        .env("EVENTS", json!(events).to_string())
        .env("HUB", "a connection string")
        .output()
        .unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The one message of an event.
fn sent<O: for<'de> serde::Deserialize<'de>>(kind: Kind<O>, flow: &str, event: &str) -> Sent {
    let options: O = shared::json::from_config("{}").unwrap();
    let mapped = (kind.map)(Event::new(event, flow, &[], 1_000_000), &options).unwrap();
    let [message] = mapped.messages.as_slice() else { panic!("one message") };
    let properties = serde_json::from_str(message.properties.as_json()).unwrap();
    Sent { properties, body: message.body.to_text(), failures: 0 }
}

/// The export of a profile that lives in `city`. A profile without an identity has no subject.
fn export(flow: &str, identity: Option<u8>, city: &str) -> Sent {
    let identities = identity.map(|id| json!({ "ECID": [{ "id": id.to_string() }] })).unwrap_or(json!({}));
    let profile = json!({ "segmentMembership": {}, "identityMap": identities, "homeAddress": { "city": city } });
    sent(profile_export::KIND, flow, &profile.to_string())
}

fn profile(city: &str) -> Sent {
    export("default", Some(1), city)
}

fn bodies(messages: &[Sent]) -> Vec<String> {
    messages.iter().map(|sent| sent.body.clone()).collect()
}

#[test]
fn a_profile_that_returns_to_an_earlier_state_is_processed_and_a_duplicate_is_dropped() {
    let (bern, rome) = (profile("Bern"), profile("Rome"));
    let back = [bern.clone(), rome.clone(), bern.clone()];
    assert_eq!(processed(&back), bodies(&back));
    assert_eq!(processed(&[bern.clone(), bern.clone()]), bodies(&back[..1]));
    assert_eq!(processed(&[bern.clone(), bern.clone(), rome.clone(), rome]), bodies(&back[..2]));
}

#[test]
fn messages_of_other_profiles_and_flows_are_not_dropped_as_duplicates() {
    let both = [profile("Bern"), export("default", Some(2), "Bern")];
    assert_eq!(processed(&both), bodies(&both));
    let flow = |flow, city| export(flow, Some(1), city);
    let interleaved = ["Bern", "Rome", "Bern"].map(|city| [flow("a", city), flow("b", city), flow("a", city)]).concat();
    // The third of each round is a duplicate of the first.
    let changes: Vec<Sent> = interleaved.chunks(3).flat_map(|round| round[..2].to_vec()).collect();
    assert_eq!(processed(&interleaved), bodies(&changes));
    let without = [export("default", None, "Bern"), export("default", None, "Rome"), export("default", None, "Bern")];
    assert_eq!(processed(&without), bodies(&without), "without a subject each message is processed");
}

#[test]
fn events_are_dropped_when_their_id_was_seen_before() {
    let audience = |profile: &str| sent(audience_change::KIND, "default", &event_of(profile));
    let context = |row: &str| {
        let context = json!({ "MessageName": "Update", "PrimaryEntityName": "contact", "PrimaryEntityId": row });
        sent(dataverse_event::KIND, "default", &context.to_string())
    };
    for (x, y) in [(audience("x"), audience("y")), (context("x"), context("y"))] {
        assert_eq!(processed(&[x.clone(), y.clone(), x.clone(), y.clone()]), bodies(&[x, y]));
    }
}

#[test]
fn a_message_whose_processing_failed_is_processed_when_it_is_delivered_again() {
    let failed = |message: Sent| Sent { failures: 1, ..message };
    let messages = [profile("Bern"), failed(profile("Rome")), failed(profile("Bern"))];
    assert_eq!(processed(&messages), bodies(&messages));
    let event = [failed(sent(audience_change::KIND, "default", &event_of("x")))];
    assert_eq!(processed(&event), bodies(&event));
}
