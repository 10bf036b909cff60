//! `profile-export`: each profile is sent with its exact bytes, or with fewer memberships if the flow's options say so.

use profile_export::{KIND, Options};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use shared::json::Events;
use shared::{Event, Mapped, Reason, Rejection};

use crate::harness::*;

/// An audience of [`CURRENT`].
const AUDIENCE_ID: &str = "5114d758-ce71-43ba-b53e-e2a91d67b67f";
const CURRENT: &str = include_str!("../fixtures/profile-export/profile-export-current.json");

fn options(json: Value) -> Options {
    serde_json::from_value(json).unwrap()
}

fn map<'a>(json: &'a str, options: &'a Options) -> Result<Mapped<'a>, Rejection> {
    (KIND.map)(Event::new(json, "a flow", &[], 1_000_000), options)
}

fn bodies(json: &str, flow_options: Value) -> Result<Vec<String>, String> {
    let options = options(flow_options);
    let mapped = map(json, &options).map_err(|rejection| rejection.detail.into_owned())?;
    Ok(mapped.messages.iter().map(|message| message.body.to_text()).collect())
}

fn subject(json: &str, flow_options: Value) -> String {
    map(json, &options(flow_options)).unwrap().messages[0].subject.to_string()
}

fn id(json: &str) -> String {
    map(json, &Options::default()).unwrap().messages[0].id.clone()
}

#[test]
fn profile_fixtures_keep_their_bytes_and_get_their_properties() {
    insta::glob!("../fixtures/profile-export", "*.json", |path| {
        let event = std::fs::read_to_string(path).unwrap();
        let event = event.trim_end();
        let options = Options::default();
        let mapped = map(event, &options).unwrap();
        let [message] = mapped.messages.as_slice() else { panic!("one message") };
        assert_eq!(message.body.to_text(), event);
        let properties: Value = serde_json::from_str(message.properties.as_json()).unwrap();
        insta::assert_json_snapshot!(json!({
            "id": message.id, "subject": message.subject, "properties": properties, "notes": mapped.notes,
        }));
    });
}

#[tokio::test]
async fn profiles_arrive_byte_for_byte_alone_and_in_arrays() {
    let system = start_kind("profile-export", hub_config(), &[("PARTITIONING", "partitions:4")]).await;
    let odd = "{ \"identityMap\" : {\"Email\":[{\"id\":\"a\\/b\"}]},\n\"x\": [19.9900, 9007199254740993, \"\u{2028}😀\\u2028\"], \"a\":1, \"\\u0061\":2 }";
    assert_eq!(system.post(odd).await, delivered(1));
    assert_eq!(system.post(&format!(" [ {odd} , {CURRENT} ] ")).await, delivered(2));
    let stored: Vec<String> = system.hub.events(HUB).into_iter().map(|event| event.body).collect();
    assert_eq!(stored.iter().filter(|body| *body == odd).count(), 2);
    assert_eq!(stored.iter().filter(|body| *body == CURRENT.trim_end()).count(), 1);
    let types: Vec<Value> =
        system.hub.events(HUB).iter().map(|event| event.properties["cloudEvents:type"].clone()).collect();
    assert!(types.iter().all(|name| name == "com.adobe.experience.profile.exported"));
    for invalid in [
        include_str!("../fixtures/invalid/beta2020-exited.invalid.txt"),
        include_str!("../fixtures/invalid/beta2020-qualified.invalid.txt"),
    ] {
        assert!(system.post(invalid).await.problem(400).contains("not valid JSON"));
    }
    assert_eq!(system.post("[]").await, handled("filtered", 0));
    let mixed = format!("[{odd},{{\"person\":{{}}}}]");
    assert!(
        system.post(&mixed).await.problem(400).starts_with("[1] segmentMembership and identityMap are both missing")
    );
}

#[test]
fn named_audiences_pass_in_any_namespace() {
    let profile = r#"{"a": 1.0, "segmentMembership": {"ups":{"x":{"status":"realized" },"y":{"status":"exited"}},"AAM":{"x":{"status":"existing"}},"z":{}},"identityMap":{}}"#;
    let passing = |audiences: &[&str]| bodies(profile, json!({ "audiences": audiences })).unwrap();
    let no_empty_namespace = profile.replace(r#","z":{}"#, "");
    assert_eq!(passing(&["x", "y"]), [no_empty_namespace.as_str()]);
    assert_eq!(bodies(&no_empty_namespace, json!({ "audiences": ["x", "y"] })).unwrap(), [no_empty_namespace]);
    assert_eq!(bodies(profile, json!({})).unwrap(), [profile]);
    let escaped =
        r#"{"segmentMembership": { "u\/p\u0073" : { "\u0078" : {"status":"exited"} , "y":{} } },"identityMap":{}}"#;
    let repeated = r#"{"segmentMembership":{"ups":{"y":{}},"ups":{"x":{}}}}"#;
    let named = json!({ "audiences": ["x"] });
    assert_eq!(bodies(repeated, named).unwrap(), [r#"{"segmentMembership":{"ups":{"x":{}}}}"#]);
    assert_eq!(bodies(escaped, json!({ "audiences": ["x", "y"] })).unwrap(), [escaped]);
    for options in [json!({ "audiences": ["x"] }), json!({ "audiences": ["x"], "split": "membership" })] {
        assert_eq!(
            bodies(escaped, options).unwrap(),
            [r#"{"segmentMembership": { "u\/p\u0073" : { "\u0078" : {"status":"exited"} } },"identityMap":{}}"#],
            "names keep their escapes"
        );
    }
    assert_eq!(
        passing(&["x"]),
        [
            r#"{"a": 1.0, "segmentMembership": {"ups":{"x":{"status":"realized" }},"AAM":{"x":{"status":"existing"}}},"identityMap":{}}"#
        ]
    );
    assert_eq!(
        passing(&["y"]),
        [r#"{"a": 1.0, "segmentMembership": {"ups":{"y":{"status":"exited"}}},"identityMap":{}}"#]
    );
    assert_eq!(passing(&["none of them"]), Vec::<String>::new());
    for without in [r#"{"identityMap":{}}"#, r#"{"segmentMembership":{}}"#, r#"{"segmentMembership":{"ups":{}}}"#] {
        assert_eq!(
            bodies(without, json!({ "audiences": ["x"] })).unwrap(),
            [without],
            "it has no membership to remove"
        );
    }
}

#[test]
fn memberships_are_split_on_request() {
    let profile = r#"{"segmentMembership":{"ups":{"x":{"status":"realized"},"y":{"status":"new one"}},"AAM":{"x":{}}},"identityMap":{"ECID":[{"id":"7"}]}}"#;
    let split = |options: Value| bodies(profile, options).unwrap();
    let one =
        |membership: &str| format!(r#"{{"segmentMembership":{membership},"identityMap":{{"ECID":[{{"id":"7"}}]}}}}"#);
    assert_eq!(
        split(json!({ "split": "membership" })),
        [
            one(r#"{"ups":{"x":{"status":"realized"}}}"#),
            one(r#"{"ups":{"y":{"status":"new one"}}}"#),
            one(r#"{"AAM":{"x":{}}}"#)
        ]
    );
    assert_eq!(
        split(json!({ "split": "membership", "audiences": ["y"] })),
        [one(r#"{"ups":{"y":{"status":"new one"}}}"#)]
    );
    let options = options(json!({ "split": "membership" }));
    let mapped = map(profile, &options).unwrap();
    assert_eq!(mapped.notes, ["unknown_status", "unknown_status"]);
    assert!(mapped.messages.iter().all(|message| message.subject == "ECID:7"));
    let expected = shared::deterministic_id([id(profile).as_str(), "ups", "x"]);
    assert_eq!(mapped.messages[0].id, expected);
    let without = r#"{"identityMap":{}}"#;
    assert_eq!(bodies(without, json!({ "split": "membership" })).unwrap(), [without]);
}

#[test]
fn a_profile_of_many_audiences_is_split_and_a_repeated_one_counts_once() {
    let membership = r#"{"lastQualificationTime":"2019-04-15T02:41:50+0000","status":"realized","name":"First name equals John","createdAt":1648553325000,"updatedAt":1648553330000,"mappingCreatedAt":1649856570000}"#;
    let audiences: Vec<String> = (0..1000).map(|n| format!(r#""audience-{n}":{membership}"#)).collect();
    let profile = format!(r#"{{"segmentMembership":{{"ups":{{{}}}}},"identityMap":{{}}}}"#, audiences.join(","));
    assert_eq!(bodies(&profile, json!({ "split": "membership" })).unwrap().len(), 1000);
    let twice = r#"{"segmentMembership":{"ups":{"A":{"status":"exited"},"A":{"status":"realized"}}}}"#;
    let last = r#"{"segmentMembership":{"ups":{"A":{"status":"realized"}}}}"#;
    assert_eq!(bodies(twice, json!({ "split": "membership" })).unwrap(), [last]);
}

#[test]
fn a_split_profile_whose_messages_exceed_8_mb_is_rejected() {
    let split = || options(json!({ "split": "membership" }));
    let sizes = |profile: &str, options: &Options| {
        let mapped = map(profile, options).map_err(|rejection| rejection.reason)?;
        Ok((mapped.messages.len(), mapped.messages.iter().map(|message| message.body.to_text().len()).sum::<usize>()))
    };
    let profile = |name: usize, memberships: usize, rest: usize| {
        let audiences: Vec<String> = (0..memberships).map(|n| format!(r#""a{n}":{{}}"#)).collect();
        let (name, audiences) = ("n".repeat(name), audiences.join(","));
        format!(r#"{{"segmentMembership":{{"{name}":{{{audiences}}}}},"x":"{}"}}"#, "x".repeat(rest))
    };
    // The namespace is in each message: 100 messages of 79,000 bytes, then padding up to the limit.
    let (_, bytes) = sizes(&profile(79_000, 100, 0), &split()).unwrap();
    let rest = (8_000_000 - bytes) / 100;
    assert_eq!(sizes(&profile(79_000, 100, rest), &split()), Ok((100, bytes + 100 * rest)));
    assert_eq!(sizes(&profile(79_000, 100, rest + 1), &split()), Err(Reason::TooLarge));
    assert_eq!(sizes(&profile(200_000, 1000, 0), &split()), Err(Reason::TooLarge));

    // A repeated member has the same memberships in each place.
    let repeated = |times: usize| {
        let last = format!(r#""segmentMembership":{{"ups":{{"{}":{{}}}}}}"#, "a".repeat(100_000));
        format!("{{{}{last}}}", r#""segmentMembership":{},"#.repeat(times))
    };
    let named = options(json!({ "audiences": ["a".repeat(100_000)] }));
    assert_eq!(sizes(&repeated(50), &named).unwrap().0, 1);
    assert_eq!(sizes(&repeated(100), &named), Err(Reason::TooLarge));
    assert_eq!(sizes(&repeated(100), &split()), Err(Reason::TooLarge));
}

#[test]
fn mapping_time_grows_with_the_sum_of_memberships_identities_and_options() {
    let memberships: Vec<String> = (0..20_000).map(|n| format!(r#""audience-{n}":{{"status":"realized"}}"#)).collect();
    let namespaces: Vec<String> = (0..5000).map(|n| format!(r#""namespace-{n}":[{{"id":"{n}"}}]"#)).collect();
    let profile = format!(
        r#"{{"segmentMembership":{{"ups":{{{}}}}},"identityMap":{{{}}}}}"#,
        memberships.join(","),
        namespaces.join(",")
    );
    let fastest = |named: usize| {
        let numbered = |prefix: &str| (0..named).map(|n| format!("{prefix} {n}")).collect::<Vec<_>>();
        let mut audiences = numbered("other");
        audiences[0] = "audience-7".to_owned();
        fastest_of(&options(json!({ "audiences": audiences, "partitionBy": numbered("other") })), |options| {
            assert_eq!(map(&profile, options).unwrap().messages.len(), 1);
        })
    };
    let (one, many) = (fastest(1), fastest(5000));
    assert!(many < one * 2, "{many:?} with 5,000 audiences and namespaces, {one:?} with one");

    // A long namespace with many identities costs its own length once.
    let ids: Vec<String> = (0..10_000).map(|n| format!(r#"{{"id":"{n}"}}"#)).collect();
    let profile = |name: usize| format!(r#"{{"identityMap":{{"\u0061{}":[{}]}}}}"#, "a".repeat(name), ids.join(","));
    let fastest = |profile: String| fastest_of(&profile, |profile| drop(map(profile, &Options::default()).unwrap()));
    let (short, long) = (fastest(profile(1)), fastest(profile(100_000)));
    assert!(long < short * 2, "{long:?} with a long name, {short:?} with a short one");
}

#[test]
fn the_subject_does_not_depend_on_the_order_of_the_body() {
    let one = r#"{"identityMap":{"Email":[{"id":"e"}],"ECID":[{"id":"2"},{"id":"1"}],"crm":[]}}"#;
    let other = r#"{"identityMap":{"crm":[],"ECID":[{"id":"2"},{"id":"1"}],"Email":[{"id":"e"}]}}"#;
    for profile in [one, other] {
        assert_eq!(subject(profile, json!({})), "ECID:1");
        assert_eq!(subject(profile, json!({ "partitionBy": ["CRM", "ecid", "email"] })), "ECID:2");
        assert_eq!(subject(profile, json!({ "partitionBy": ["email"] })), "Email:e");
        assert_eq!(subject(profile, json!({ "partitionBy": ["phone"] })), "ECID:1");
    }
    let in_two_cases = r#"{"identityMap":{"ecid":[{"id":"1"}],"ECID":[{"id":"2"}]}}"#;
    assert_eq!(subject(in_two_cases, json!({ "partitionBy": ["Ecid"] })), "ECID:2");
    let empty_first = r#"{"identityMap":{"ECID":[],"ecid":[{"id":"9"},{"id":"3"}],"Email":[{"id":"e"}]}}"#;
    assert_eq!(subject(empty_first, json!({ "partitionBy": ["email", "Ecid", "EMAIL"] })), "Email:e");
    assert_eq!(subject(empty_first, json!({ "partitionBy": ["Ecid", "email"] })), "ecid:9");
    assert_eq!(subject(empty_first, json!({})), "Email:e");
    assert_eq!(subject(r#"{"segmentMembership":{}}"#, json!({})), "");
}

#[test]
fn ids_of_profiles_do_not_depend_on_their_formatting() {
    let profile = r#"{"identityMap":{"a":[{"id":"é/"}]},"n":1.50}"#;
    // printf '{"identityMap":{"a":[{"id":"é/"}]},"n":1.50}' | sha256sum
    assert_eq!(id(profile), "69556de5a13baa59fd59fdb4854e5b2f9fb4303b411775c684990941b13e4dc8");
    assert_eq!(id(r#" {"n" : 1.50, "identityMap":{"a":[{"id":"\u00e9\/"}]}} "#.trim()), id(profile));
    assert_ne!(id(r#"{"identityMap":{"a":[{"id":"é/"}]},"n":1.5}"#), id(profile), "numbers count as written");
}

#[test]
fn members_of_a_wrong_type_are_named_without_their_values() {
    for (profile, expected) in [
        (r#"{"person":{}}"#, "segmentMembership and identityMap are both missing; expected a profile"),
        (r#"[]"#, "expected a JSON object"),
        (r#"{"segmentMembership":[]}"#, "segmentMembership: expected an object"),
        (r#"{"segmentMembership":null}"#, "segmentMembership: expected an object"),
        (r#"{"segmentMembership":{"ups":"hidden"}}"#, "segmentMembership.ups: expected an object"),
        (r#"{"segmentMembership":{"ups":{"a-1":7}}}"#, "segmentMembership.ups.a-1: expected an object"),
        (r#"{"segmentMembership":{"ups":{"a-1":{"status":7}}}}"#, "segmentMembership.ups.a-1.status: expected text"),
        (r#"{"segmentMembership":{"hid den":{"a":{"status":null}}}}"#, "segmentMembership.….a.status: expected text"),
        (r#"{"identityMap":7}"#, "identityMap: expected an object"),
        (r#"{"identityMap":{"ecid":{"id":"1"}}}"#, "identityMap.ecid: expected an array of identities"),
        (r#"{"identityMap":{"ecid":["1"]}}"#, "identityMap.ecid[0]: expected an object"),
        (r#"{"identityMap":{"ecid":[{"id":"1"},{"id":1}]}}"#, "identityMap.ecid[1].id: expected text"),
    ] {
        assert_eq!(bodies(profile, json!({})), Err(expected.to_owned()), "{profile}");
    }
}

#[tokio::test]
async fn unusable_options_are_named_at_start_up() {
    let hub = (
        "EVENT_HUBS_CONNECTION_STRING",
        "Endpoint=sb://n.example.net;SharedAccessKeyName=n;SharedAccessKey=k;EntityPath=h",
    );
    for (options, expected) in [
        (r#"{"audiences":[]}"#, "`audiences`: the array is empty"),
        (r#"{"partitionBy":[]}"#, "`partitionBy`: the array is empty"),
        (r#"{"split":"audience"}"#, "`split`: expected"),
        (r#"{"audience":["x"]}"#, "unknown field `audience`"),
    ] {
        let line = init_failure_of("profile-export", &[hub, ("FLOW_OPTIONS", options)]).await;
        assert_eq!(line["variable"], "FLOW_OPTIONS");
        assert!(line["problem"].as_str().unwrap().contains(expected), "{line}");
    }
}

#[test]
fn ten_thousand_mutated_profiles_are_mapped_or_rejected() {
    let mutations = (0..CURRENT.len(), "[\\x00-\\x7f\u{e9}\u{2028}]{0,4}", 0..40usize);
    let mut runner = TestRunner::new(proptest::test_runner::Config::default());
    let (mut mapped, mut rejected) = (0, 0);
    let options = [json!({}), json!({ "split": "membership", "audiences": [AUDIENCE_ID] })].map(options);
    for n in 0..10_000 {
        let (position, inserted, removed) = mutations.new_tree(&mut runner).unwrap().current();
        let mut text = CURRENT.to_owned();
        text.replace_range(position..(position + removed).min(CURRENT.len()), &inserted);
        let Ok(Events::One(event)) = shared::json::events(&text) else {
            rejected += 1;
            continue;
        };
        match map(event, &options[n % 2]) {
            Ok(all) => {
                for message in all.messages {
                    serde_json::from_str::<&serde_json::value::RawValue>(&message.body.to_text()).unwrap();
                }
                mapped += 1;
            }
            Err(_) => rejected += 1,
        }
    }
    assert!(mapped > 1000 && rejected > 1000, "{mapped} mapped, {rejected} rejected");
}
