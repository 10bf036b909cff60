//! Ids of `dataverse-event`: the id of the system job if there is one, else a digest of the whole context as received.

use dataverse_event::{KIND, Options};
use proptest::prelude::*;
use serde_json::{Value, json};
use shared::Event;

use crate::harness::*;

const PART_1: &str = include_str!("../fixtures/dataverse-ids/sync_update_part1.json");
const PART_2: &str = include_str!("../fixtures/dataverse-ids/sync_update_part2.json");
const WITHOUT_OPERATION_1: &str = include_str!("../fixtures/dataverse-ids/no_operationid_1.json");
const WITHOUT_OPERATION_2: &str = include_str!("../fixtures/dataverse-ids/no_operationid_2.json");
const SYNCHRONOUS: &str = include_str!("../fixtures/dataverse-types/aliasedvalue.json");
/// The `OperationId` of [`ASYNCHRONOUS`].
const JOB_ID: &str = "000000d1-1111-4222-8333-0000000000d1";
const ASYNCHRONOUS: &str = include_str!("../fixtures/dataverse-types/principalaccess.json");

fn id_with(event: &str, options: Value) -> String {
    let options: Options = shared::json::from_config(&options.to_string()).unwrap();
    let event = Event::new(event, "default", &[], 1_000_000);
    (KIND.map)(event, &options).unwrap().messages[0].id.clone()
}

fn id(event: &str) -> String {
    id_with(event, json!({}))
}

/// `event` without white space, with the members of all objects in reverse order.
fn reversed(event: &Value) -> String {
    match event {
        Value::Object(members) => {
            let members: Vec<_> =
                members.iter().rev().map(|(name, value)| format!("{}:{}", json!(name), reversed(value))).collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(reversed).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

#[test]
fn with_any_options_the_id_is_that_of_the_job_or_of_the_whole_context() {
    for (event, expected) in [
        (PART_1, "a562a5f6bc6b2b8adc1626a8b62a87a54b1b955d8983c2850930088724c7b693"),
        (PART_2, "0decd0371fb8ea09a9e3e24f4856feb37d0f0b209b66053589fefaca254fcad4"),
        (WITHOUT_OPERATION_1, "9b83a14a8286c1e28ed47806a38150485e204c945772f74a6493c73a59f2a95a"),
        (WITHOUT_OPERATION_2, "42fcc26d862781a5efd239b17a80eba6dc21b3e5c8aea6d4a161dca3fe879df8"),
        (SYNCHRONOUS, "dfb34735397c82854989e8c29386412814e43bd7b3744ff74b877fdfa02c149f"),
        (ASYNCHRONOUS, JOB_ID),
    ] {
        for options in [
            json!({}),
            json!({ "messageFormat": "xml" }),
            json!({ "maxBytes": event.len() - 1 }),
            json!({ "messageFormat": "xml", "maxBytes": 3000 }),
            json!({ "userClaim": "userId", "steps": [{ "message": "Update" }, { "message": "RetrieveMultiple" }, { "message": "GrantAccess" }] }),
        ] {
            assert_eq!(id_with(event, options.clone()), expected, "{options}");
        }
    }
}

#[test]
fn the_id_depends_on_values_and_not_on_their_formatting() {
    let expected = id(PART_1);
    let spaced = PART_1.replace("\\/", "/").replace("\":", "\" :\n ").replace("{\"", "{ \"").replace(",{", " , {");
    let escaped = PART_1.replace("MessageName", "Message\\u004eame");
    let mut repeated = PART_1.to_owned();
    repeated.insert_str(1, r#""Depth":7,"#);
    for same in [spaced, escaped, repeated, reversed(&serde_json::from_str(PART_1).unwrap())] {
        assert_eq!(id(&same), expected, "{same}");
    }
    let change = |path: &str, value: Value| {
        let mut event: Value = serde_json::from_str(PART_1).unwrap();
        assert_ne!(event.pointer(path), Some(&value), "{path}");
        match event.pointer_mut(path) {
            Some(place) => *place = value,
            None => event[&path[1..]] = value,
        }
        event.to_string()
    };
    for other in [
        change("/InputParameters/0/value/Attributes/0/value", json!("another")),
        change("/OperationCreatedOn", json!("/Date(1709646330679)/")),
        change("/OwningExtension/Id", json!("000000f2-1111-4222-8333-0000000000f2")),
        change("/ParentContext", json!({ "MessageName": "Other" })),
        change("/Depth", json!(2)),
        change("/UnknownMember", json!(null)),
    ] {
        assert_ne!(id(&other), expected, "{other}");
    }
}

#[test]
fn only_mode_1_with_an_operation_id_has_the_id_of_the_job() {
    let context = |members: &str| format!(r#"{{"MessageName":"M","PrimaryEntityName":"t"{members}}}"#);
    let zero = r#""00000000-0000-0000-0000-000000000000""#;
    for operation in ["null", r#""""#, r#"" ""#, zero] {
        let event = context(&format!(r#","Mode":1,"OperationId":{operation}"#));
        assert_eq!(id(&event), shared::canonical_digest(&event), "{operation}");
    }
    for mode in ["", r#","Mode":0"#, r#","Mode":2"#, r#","Mode":null"#, r#","Mode":1,"Mode":0"#] {
        let event = context(&format!(r#"{mode},"OperationId":"{JOB_ID}""#));
        assert_eq!(id(&event), shared::canonical_digest(&event), "{mode}");
    }
    let event = context(r#","Mode":1"#);
    assert_eq!(id(&event), shared::canonical_digest(&event));
    assert_eq!(id(&context(r#","Mode":1,"OperationId":"job""#)), "job");
}

#[tokio::test]
async fn a_webhook_and_a_queue_record_with_one_context_get_the_same_id() {
    let system = start_kind("dataverse-event", hub_config(), &[]).await;
    assert_eq!(system.post(PART_1).await, delivered(1));
    assert_eq!(system.post(&format!("\u{feff} {PART_1}\n")).await, delivered(1));
    assert!(system.failures(&[record("m0", PART_1)]).await.is_empty());
    let events = system.hub.events(HUB);
    let ids: Vec<_> = events.iter().map(|event| event.properties["cloudEvents:id"].as_str().unwrap()).collect();
    assert_eq!(ids, vec![id(PART_1); 3]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn any_change_of_a_synchronous_context_changes_its_id(
        place in any::<prop::sample::Index>(), digit in proptest::char::range('0', '9')
    ) {
        let digits: Vec<usize> = PART_1.match_indices(|char: char| char.is_ascii_digit()).map(|(at, _)| at).collect();
        let at = digits[place.index(digits.len())];
        let mut changed = PART_1.to_owned();
        changed.replace_range(at..=at, &digit.to_string());
        // `Mode` 1 names the job.
        prop_assume!(changed.contains(r#""Mode":0"#) && serde_json::from_str::<Value>(&changed).is_ok());
        prop_assert_eq!(id(&changed) == id(PART_1), changed == PART_1);
    }
}
