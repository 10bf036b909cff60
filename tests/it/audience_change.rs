//! `audience-change`: events in, documented messages out. Each fixture's outcome is a snapshot; rules beyond the fixtures
//! are tables.

use audience_change::{KIND, Options};
use proptest::prelude::*;
use serde_json::{Value, json};
use shared::{Event, Mapped, Reason, Rejection};

use crate::harness::*;

/// The `sourceId` of the documented sample.
const SOURCE_ID: &str = "dc0beb89-2d63-4ec7-899a-6e986ed8932f";

fn options(json: &Value) -> Options {
    serde_json::from_value(json.clone()).unwrap()
}

fn map<'a>(json: &'a str, options: &'a Options) -> Result<Mapped<'a>, Rejection> {
    (KIND.map)(Event::new(json, "default", &[], 1_000_000), options)
}

/// The documented sample with `changes`. A `null` change removes the field.
fn sample(changes: Value) -> String {
    let mut event: Value =
        serde_json::from_str(include_str!("../fixtures/audience-change/new_audience_documented.json")).unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(event.as_object_mut().unwrap().remove(name)),
            value => event[name] = value.clone(),
        }
    }
    event.to_string()
}

/// The bodies of an event's messages.
fn bodies(event: &str, flow_options: Value) -> Result<Vec<Value>, String> {
    let options = options(&flow_options);
    let mapped = map(event, &options).map_err(|rejection| rejection.detail.into_owned())?;
    Ok(mapped.messages.iter().map(|message| serde_json::from_str(&message.body.to_text()).unwrap()).collect())
}

#[test]
fn fixtures_become_the_documented_message() {
    insta::glob!("../fixtures/audience-change", "*.json", |path| {
        let event = std::fs::read_to_string(path).unwrap();
        let options = Options::default();
        let mapped = map(&event, &options).unwrap();
        let messages: Vec<_> = mapped
            .messages
            .iter()
            .map(|message| {
                let properties: Value = serde_json::from_str(message.properties.as_json()).unwrap();
                json!({ "id": message.id, "subject": message.subject, "properties": properties, "body": message.body.to_text() })
            })
            .collect();
        insta::assert_json_snapshot!(json!({ "messages": messages, "notes": mapped.notes }));
    });
}

#[test]
fn the_body_is_compact_and_in_the_documented_order_and_values_keep_their_bytes() {
    let event = r#"{"data" : {"a" : 19.9900 , "b":"\/ \u2028\ud83d\ude00", "c": 9007199254740993, "d": {"x" :1}},
        "siteNumber":"1234","timestamp":1773313171000,"partnerIds":[4],"callType":"NEW","partnerNumber":"33",
        "sourceId":"s","profileId":"p","unknown":[1,2]}"#;
    let options = Options::default();
    let mapped = map(event, &options).unwrap();
    assert_eq!(
        mapped.messages[0].body.to_text(),
        r#"{"profileId":"p","sourceId":"s","partnerNumber":33,"callType":"NEW","partnerIds":["4"],"profileVars":{},"timestamp":1773313171000,"siteNumber":1234,"sourceName":"","sourceNumber":null,"data":{"a":19.9900,"b":"\/ \u2028\ud83d\ude00","c":9007199254740993,"d":{"x" :1}}}"#
    );
}

#[test]
fn only_partner_ids_of_the_flows_partner_number_are_sent() {
    let ids = |partner_ids: Value, changes: Value, flow_options: Value| {
        let mut changes = changes;
        changes["partnerIds"] = partner_ids;
        bodies(&sample(changes), flow_options).map(|bodies| {
            bodies.iter().map(|body| (body["partnerNumber"].clone(), body["partnerIds"].clone())).collect()
        })
    };
    let of = |number: i64, ids: &[&str]| -> Result<Vec<(Value, Value)>, String> {
        Ok(ids.iter().map(|id| (json!(number), json!([id]))).collect())
    };
    let by_number = || json!({ "33": ["a", 7], "44": "b", "55": 9, "66": [] });
    assert_eq!(ids(json!(["a", 7]), json!({}), json!({})), of(33, &["a", "7"]));
    assert_eq!(ids(json!(["a"]), json!({}), json!({ "partnerNumber": 33 })), of(33, &["a"]));
    assert_eq!(ids(json!(["a"]), json!({}), json!({ "partnerNumber": 44 })), of(44, &[]));
    assert_eq!(ids(json!(["a"]), json!({ "partnerNumber": null }), json!({ "partnerNumber": 44 })), of(44, &["a"]));
    assert_eq!(ids(by_number(), json!({}), json!({})), of(33, &["a", "7"]));
    assert_eq!(ids(by_number(), json!({}), json!({ "partnerNumber": 44 })), of(44, &["b"]));
    assert_eq!(ids(by_number(), json!({ "partnerNumber": "" }), json!({ "partnerNumber": 55 })), of(55, &["9"]));
    assert_eq!(ids(by_number(), json!({}), json!({ "partnerNumber": 66 })), of(66, &[]));
    assert_eq!(ids(by_number(), json!({}), json!({ "partnerNumber": 77 })), of(77, &[]));
    assert_eq!(ids(json!({ "42": "own" }), json!({ "partnerNumber": 42 }), json!({})), of(42, &[]));
    for none in [json!([]), json!([null]), json!([""])] {
        assert_eq!(ids(none, json!({}), json!({})), of(33, &[]));
    }
    for odd in
        [json!("a"), json!(1), json!([["a"]]), json!([1.5]), json!({ "33": { "id": "a" } }), json!({ "mail": "a" })]
    {
        let error = ids(odd.clone(), json!({}), json!({})).unwrap_err();
        assert!(error.starts_with("partnerIds"), "{odd}: {error}");
    }
}

#[test]
fn names_and_properties_come_from_the_event_then_its_source_then_the_flow() {
    let flow = json!({
        "profileVars": ["kept"], "sourceName": "flow", "data": { "a": "flow", "b": "flow", "c": "flow" },
        "sources": { SOURCE_ID: { "sourceName": "source", "data": { "b": "source", "c": "source" } } },
    });
    let body = |changes: Value| bodies(&sample(changes), flow.clone()).unwrap().remove(0);
    let named = body(json!({ "data": { "c": "event", "d": 1 }, "profileVars": { "kept": 1, "dropped": 2 } }));
    assert_eq!(named["sourceName"], "Azure Event Hub audience 1");
    assert_eq!(named["data"], json!({ "a": "flow", "b": "source", "c": "event", "d": 1 }));
    assert_eq!(named["profileVars"], json!({ "kept": 1 }));
    assert_eq!(body(json!({ "sourceName": "" }))["sourceName"], "source");
    assert_eq!(body(json!({ "sourceName": "", "sourceId": "other" }))["sourceName"], "flow");
}

#[test]
fn all_empty_forms_of_a_field_give_one_body() {
    for empty in [json!(""), json!({}), json!([]), Value::Null] {
        let event = sample(json!({ "profileVars": empty, "data": empty, "sourceName": empty, "sourceNumber": empty }));
        let body = bodies(&event, json!({})).unwrap().remove(0);
        assert_eq!(body["profileVars"], json!({}));
        assert_eq!(body["data"], json!({}));
        assert_eq!(body["sourceName"], "");
        assert_eq!(body["sourceNumber"], Value::Null);
    }
    for zero in [json!(0), json!("0")] {
        assert_eq!(
            bodies(&sample(json!({ "sourceNumber": zero })), json!({})).unwrap()[0]["sourceNumber"],
            Value::Null
        );
    }
}

#[test]
fn missing_or_invalid_fields_are_named_without_their_values() {
    for (changes, expected) in [
        (json!({ "profileId": null }), "profileId: missing or empty"),
        (json!({ "profileId": 5 }), "profileId: expected text"),
        (json!({ "sourceId": "" }), "sourceId: missing or empty"),
        (json!({ "callType": null }), "callType: missing or empty"),
        (json!({ "callType": "hidden" }), "callType: expected NEW, MODIFIED or REMOVED"),
        (json!({ "callType": "new" }), "callType: expected NEW, MODIFIED or REMOVED"),
        (json!({ "callType": { "NEW": null } }), "callType: expected text"),
        (json!({ "timestamp": null }), "timestamp: missing or empty"),
        (json!({ "timestamp": 1.5 }), "timestamp: expected an integer of at most 64 bits"),
        (json!({ "timestamp": "hidden" }), "timestamp: expected an integer of at most 64 bits"),
        (json!({ "siteNumber": {} }), "siteNumber: missing or empty"),
        (json!({ "siteNumber": true }), "siteNumber: expected an integer of at most 64 bits"),
        (json!({ "partnerNumber": null }), "partnerNumber: missing or empty"),
        (json!({ "sourceNumber": "x1" }), "sourceNumber: expected an integer of at most 64 bits"),
        (json!({ "profileVars": "hidden" }), "profileVars: expected an object"),
        (json!({ "data": [1] }), "data: expected an object"),
    ] {
        assert_eq!(bodies(&sample(changes.clone()), json!({})), Err(expected.to_owned()), "{changes}");
    }
    assert!(bodies("[]", json!({})).is_err() && bodies("\"text\"", json!({})).is_err());
    let defaulted = bodies(&sample(json!({ "callType": null })), json!({ "defaultCallType": "NEW" })).unwrap();
    assert_eq!(defaulted[0]["callType"], "NEW");
}

#[test]
fn ids_depend_on_values_and_not_on_their_formatting() {
    let id = |changes: Value| {
        let (event, options) = (sample(changes), Options::default());
        map(&event, &options).unwrap().messages[0].id.clone()
    };
    // printf '1234\x1fdc0beb89-…\x1faaaabbbb-…\x1f33\x1f4\x1fNEW\x1f1234567890' | sha256sum
    assert_eq!(id(json!({})), DOCUMENTED_ID);
    let quoted = json!({ "partnerNumber": "33", "timestamp": "1234567890", "siteNumber": "1234", "partnerIds": [4] });
    assert_eq!(id(quoted), DOCUMENTED_ID);
    assert_eq!(id(json!({ "sourceName": "renamed", "profileVars": {} })), DOCUMENTED_ID);
    assert_ne!(id(json!({ "partnerIds": ["5"] })), DOCUMENTED_ID);
    assert_ne!(id(json!({ "callType": "REMOVED" })), DOCUMENTED_ID);
}

const DOCUMENTED_ID: &str = "318cfc70bc083cdc672a620b71ad2ed7649ca2524e0849e808b4ef336cc0debd";

#[test]
fn odd_timestamps_are_passed_on_and_counted() {
    let time_and_notes = |timestamp: Value| {
        let (event, options) = (sample(json!({ "timestamp": timestamp })), Options::default());
        let mapped = map(&event, &options).unwrap();
        let properties: Value = serde_json::from_str(mapped.messages[0].properties.as_json()).unwrap();
        (properties.get("cloudEvents:time").cloned(), mapped.notes)
    };
    assert_eq!(time_and_notes(json!(1_773_313_171_000_i64)), (Some(json!("2026-03-12T10:59:31.000Z")), vec![]));
    let counted = vec!["timestamp_may_be_seconds"];
    assert_eq!(time_and_notes(json!(1_234_567_890)), (Some(json!("1970-01-15T06:56:07.890Z")), counted.clone()));
    assert_eq!(time_and_notes(json!(-1)), (Some(json!("1969-12-31T23:59:59.999Z")), counted));
    assert_eq!(time_and_notes(json!(i64::MAX)), (None, vec![]));
}

/// The number of messages and the total size of their bodies, or the detail of the rejection.
fn sizes(event: &str, flow_options: Value) -> Result<(usize, usize), String> {
    let options = options(&flow_options);
    let mapped = map(event, &options).map_err(|rejection| {
        assert_eq!(rejection.reason, Reason::TooLarge);
        rejection.detail.into_owned()
    })?;
    Ok((mapped.messages.len(), mapped.messages.iter().map(|message| message.body.to_text().len()).sum()))
}

#[test]
fn partner_ids_whose_messages_exceed_8_mb_are_rejected() {
    const TOO_LARGE: &str = "partnerIds: the messages of all ids would be larger than 8 MB";
    let with_ids = |ids: Vec<Value>| sample(json!({ "partnerIds": ids }));
    let numbered = |count: usize| (0..count).map(|n| json!(format!("00000000-0000-0000-0000-{n:012x}"))).collect();
    let event = with_ids(numbered(460));
    let found = bodies(&event, json!({ "partnerNumber": 33 })).unwrap();
    assert_eq!(found.len(), 460);
    for (n, body) in found.iter().enumerate() {
        assert_eq!(body["partnerIds"], json!([format!("00000000-0000-0000-0000-{n:012x}")]));
    }
    assert_eq!(sizes(&with_ids(numbered(10_000)), json!({})).unwrap().0, 10_000);
    let large = |bytes: usize| json!({ "partnerNumber": 33, "data": { "x": "x".repeat(bytes) } });
    for count in [220, 300] {
        assert_eq!(sizes(&with_ids(numbered(count)), large(39_000)), Err(TOO_LARGE.to_owned()), "{count}");
    }
    let by_source = json!({ "sources": { SOURCE_ID: { "data": { "y": "y".repeat(39_000) } } } });
    assert_eq!(sizes(&with_ids(numbered(220)), by_source), Err(TOO_LARGE.to_owned()));

    // Ids of other lengths, some with characters that JSON escapes. The option fills the rest of the limit to the byte.
    let odd = |n: usize| json!(["a", "\"\\\n", "é\u{1}", "0123456789"][n % 4].repeat(n % 7 + 1));
    let ids: Vec<Value> = (0..203).map(odd).collect();
    let (_, without) = sizes(&with_ids(ids.clone()), large(0)).unwrap();
    let fill = (8_000_000 - without) / ids.len();
    let (count, filled) = sizes(&with_ids(ids.clone()), large(fill)).unwrap();
    assert_eq!((count, filled), (203, without + 203 * fill));
    let mut padded = ids.clone();
    padded[0] = json!(format!("{}{}", ids[0].as_str().unwrap(), "z".repeat(8_000_000 - filled)));
    assert_eq!(sizes(&with_ids(padded.clone()), large(fill)), Ok((203, 8_000_000)));
    padded[1] = json!(format!("{}z", padded[1].as_str().unwrap()));
    assert_eq!(sizes(&with_ids(padded), large(fill)), Err(TOO_LARGE.to_owned()));
    let mut one_more = ids;
    one_more.push(json!("b"));
    assert_eq!(sizes(&with_ids(one_more), large(fill)), Err(TOO_LARGE.to_owned()));
}

#[test]
fn mapping_time_grows_with_the_sum_of_profile_variables_and_names() {
    let variables: serde_json::Map<_, _> = (0..20_000).map(|n| (format!("variable {n}"), json!(n))).collect();
    let event = sample(json!({ "profileVars": variables }));
    let fastest = |names: usize| {
        let names: Vec<String> = (0..names).map(|n| format!("other variable {n}")).collect();
        fastest_of(&options(&json!({ "profileVars": names })), |options| {
            assert_eq!(map(&event, options).unwrap().messages.len(), 1);
        })
    };
    let (one, many) = (fastest(1), fastest(1000));
    assert!(many < one * 2, "{many:?} with 1,000 names, {one:?} with one");
}

/// Any JSON, similar enough to an event to reach every field.
fn any_event() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        prop_oneof!["NEW", "MODIFIED", "33", "42", "0"].prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("\\PC{0,3}|33", inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    });
    let names = [
        "profileId",
        "sourceId",
        "partnerNumber",
        "callType",
        "partnerIds",
        "profileVars",
        "timestamp",
        "siteNumber",
        "sourceName",
        "sourceNumber",
        "data",
    ];
    prop::collection::vec((prop::sample::select(names.to_vec()), value), 0..4).prop_map(|changes| {
        let mut event: Value = serde_json::from_str(&sample(json!({}))).unwrap();
        for (name, value) in changes {
            event[name] = value;
        }
        event
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]
    #[test]
    fn any_event_is_mapped_or_rejected_with_the_name_of_a_field(event in any_event()) {
        let (event, options) = (event.to_string(), Options::default());
        match map(&event, &options) {
            Ok(mapped) => for message in mapped.messages {
                let body: Value = serde_json::from_str(&message.body.to_text()).unwrap();
                prop_assert_eq!(body.as_object().unwrap().len(), 11);
                prop_assert_eq!(body["partnerIds"].as_array().unwrap().len(), 1);
                prop_assert!(body["partnerIds"][0].is_string());
            },
            Err(rejection) => prop_assert!(rejection.detail.contains(": "), "{}", rejection.detail),
        }
    }
}
