//! Records: how they are read, how they are posted, and which are rejected.

use super::*;

#[tokio::test]
async fn raw_records_are_posted_unchanged_one_by_one_in_order() {
    let inlet = inlet(None).await;
    let function = function(&variables(&inlet, "raw", &[]));
    let bodies = ["{\"price\" : 19.9900}", "{\"b\":\"\\u00e9\"}", "{\"c\":[1]}"];
    let records: Vec<Value> = bodies.iter().enumerate().map(|(n, body)| record(2, n as u64, body)).collect();
    assert!(failures(&function, &event(&records)).await.is_empty());
    let taken = inlet.taken();
    assert!(taken.iter().all(|taken| !taken.xdm));
    let expected: Vec<Value> = bodies.iter().map(|body| serde_json::from_str(body).unwrap()).collect();
    assert_eq!(taken.into_iter().map(|taken| taken.record).collect::<Vec<_>>(), expected);
    assert_eq!(inlet.statuses(), [200; 3]);
}

#[tokio::test]
async fn xdm_entities_share_requests_and_keep_their_ids() {
    let inlet = inlet(None).await;
    let records = [entities(0, 0, 250), entities(1, 7, 8), vec![record(2, 5, r#"{"eventType":"x"}"#)]].concat();
    let by_default = function(&variables(&inlet, "xdm", &[]));
    assert!(failures(&by_default, &event(&records)).await.is_empty());
    assert_eq!(inlet.statuses(), [207; 5], "three requests for 250 records, and one for each other partition");
    let taken = inlet.taken();
    assert!(taken.iter().all(|taken| taken.xdm));
    let first: Vec<_> = ids(&inlet).into_iter().filter(|id| id.starts_with("0/")).collect();
    assert_eq!(first, (0..250).map(|n| format!("0/{n}")).collect::<Vec<_>>());
    let event_2 = &taken.iter().find(|taken| taken.record["eventType"] == "x").unwrap().record;
    let place = shared::deterministic_id([HUB, "2", "5"]);
    assert_eq!(*event_2, json!({ "_id": place, "timestamp": "2018-12-17T22:10:50.987Z", "eventType": "x" }));

    let singly = function(&variables(&inlet, "xdm", &[("INLET_BATCH_MAX", "1")]));
    assert!(failures(&singly, &event(&entities(0, 0, 3))).await.is_empty());
    assert_eq!(inlet.statuses()[5..], [200; 3]);
    assert_eq!(ids(&inlet)[252..], ["0/0", "0/1", "0/2"]);
}

#[tokio::test]
async fn requests_stay_within_the_size_limit_of_the_inlet() {
    let cloud = Cloud::start().await;
    let inlet = inlet(None).await;
    let function = in_cloud(&cloud, variables(&inlet, "xdm", &[]));
    let sized =
        |n: u64, size: usize| record(0, n, &json!({ "_id": format!("{n}"), "x": "x".repeat(size) }).to_string());
    let mut records: Vec<Value> = (0..12).map(|n| sized(n, 240_000)).collect();
    records.push(sized(12, 1_000_000));
    assert!(failures(&function, &event(&records)).await.is_empty());
    assert_eq!(inlet.statuses(), [207; 3], "four of them fit into a request");
    assert_eq!(ids(&inlet).len(), 12);
    let rejected = rejected(&cloud).await;
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].0, "too_large");
    assert!(rejected[0].1.starts_with("profiles-0 at 12: "), "{}", rejected[0].1);
}

#[tokio::test]
async fn events_in_both_documented_forms_and_odd_records_are_read() {
    let cloud = Cloud::start().await;
    let inlet = inlet(None).await;
    let function = in_cloud(&cloud, variables(&inlet, "raw", &[]));
    for (fixture, taken) in [
        (include_str!("../../fixtures/kafka/documented.json"), vec![json!({ "a": 1 })]),
        (include_str!("../../fixtures/kafka/aws-sample.json"), vec![]),
        (include_str!("../../fixtures/kafka/odd.json"), (0..4).map(|n| json!({ "n": n })).collect()),
    ] {
        let before = inlet.taken().len();
        let fixture: Value = serde_json::from_str(fixture).unwrap();
        assert!(failures(&function, &fixture).await.is_empty());
        let mut records: Vec<Value> = inlet.taken()[before..].iter().map(|taken| taken.record.clone()).collect();
        records.sort_by_key(|record| record["n"].as_u64());
        assert_eq!(records, taken);
    }
    let rejected = rejected(&cloud).await;
    let reasons: Vec<_> = rejected.iter().map(|(reason, detail, _)| (reason.as_str(), detail.as_str())).collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(matches!(reasons[0], ("unreadable", detail) if detail.starts_with("mytopic-0 at 15: not valid JSON")));
    assert_eq!(rejected[0].2, "Hello, this is a test.");
    assert!(
        matches!(reasons[1], ("unmappable", detail) if detail.starts_with("profiles-0 at 3: the record has no value"))
    );
    for (other, word) in [(json!({ "Records": [] }), "UnknownEvent"), (json!([1]), "UnknownEvent")] {
        let response = function.invoke(other.to_string().into_bytes()).await;
        assert!(
            matches!(&response, Err(InvokeError::Function { error_type, .. }) if error_type == word),
            "{response:?}"
        );
    }
}

#[tokio::test]
async fn an_invalid_record_is_rejected_without_delaying_the_others() {
    let cloud = Cloud::start().await;
    let inlet = inlet(None).await;
    let mut records = entities(0, 0, 1000);
    records[500] = record(0, 500, r#"{"_id":"broken""#);
    let function_ = in_cloud(&cloud, variables(&inlet, "xdm", &[]));
    assert!(failures(&function_, &event(&records)).await.is_empty());
    assert_eq!(ids(&inlet).len(), 999);
    let rejected = rejected(&cloud).await;
    assert_eq!(rejected.len(), 1);
    assert_eq!((rejected[0].0.as_str(), rejected[0].2.as_str()), ("unreadable", r#"{"_id":"broken""#));

    let without_queue = function(&variables(&inlet, "xdm", &[]));
    assert_eq!(
        failures(&without_queue, &event(&records)).await,
        [of(0, 500)],
        "a record that cannot be stored stays in the hub"
    );
    let logs = [function_.logs(), without_queue.logs()].concat();
    let line: Value = serde_json::from_str(logs.iter().find(|line| line.contains("batch ingested")).unwrap()).unwrap();
    let counts = ["Received", "Delivered", "Rejected", "records.failed"].map(|name| line[name].as_u64());
    assert_eq!(counts, [Some(1000), Some(999), Some(1), Some(0)]);
    assert_eq!((&line["Kind"], &line["Flow"]), (&json!("platform-ingest"), &json!("default")));
    assert!(logs.iter().any(|line| line.contains("profiles-0 at 500") && line.contains("it blocks its partition")));
    assert!(!logs.iter().any(|line| line.contains("broken")), "no log shows a record");
}

#[tokio::test]
async fn failed_elements_of_a_207_are_retried_or_rejected_one_by_one() {
    let cloud = Cloud::start().await;
    let inlet = inlet(None).await;
    let function = in_cloud(&cloud, variables(&inlet, "xdm", &[]));
    let elements = |status: u16, places: &[usize], as_documented: bool| {
        Fault::from(Action::Elements { status, places: places.to_vec(), as_documented })
    };
    // One element fails for now, one for good.
    inlet.script([elements(503, &[3], false), elements(422, &[4], false)]);
    assert!(failures(&function, &event(&entities(0, 0, 10))).await.is_empty());
    let taken = ids(&inlet);
    assert_eq!(taken[..3], ["0/0", "0/1", "0/2"]);
    let last: Vec<_> = taken[taken.len() - 6..].to_vec();
    assert_eq!(last, ["0/3", "0/4", "0/5", "0/6", "0/8", "0/9"], "all from the failed one on, again and in order");
    let rejects = rejected(&cloud).await;
    assert_eq!(rejects.len(), 1, "{rejects:?}");
    assert_eq!(rejects[0].0, "refused");
    assert!(rejects[0].1.starts_with("profiles-0 at 7: the inlet responds with 422"), "{}", rejects[0].1);

    // The form in the documentation, in which failures have no id.
    inlet.script([elements(400, &[0, 2], true)]);
    assert!(failures(&function, &event(&entities(1, 0, 4))).await.is_empty());
    let details: Vec<String> = rejected(&cloud).await.into_iter().map(|(_, detail, _)| detail).collect();
    assert_eq!(details.len(), 2);
    assert!(details[0].starts_with("profiles-1 at 0: ") && details[1].starts_with("profiles-1 at 2: "), "{details:?}");
}

#[tokio::test]
async fn a_refused_request_is_halved_until_the_invalid_record_is_alone() {
    let cloud = Cloud::start().await;
    let inlet = inlet(None).await;
    let function = in_cloud(&cloud, variables(&inlet, "xdm", &[]));
    // Requests of 8, 4, 2 and 1 records: the first record is refused, alone.
    inlet.script([Fault { times: 4, ..Fault::from(respond_with(400)) }]);
    assert!(failures(&function, &event(&entities(0, 0, 8))).await.is_empty());
    assert_eq!(ids(&inlet), (1..8).map(|n| format!("0/{n}")).collect::<Vec<_>>());
    assert_eq!(rejected(&cloud).await.len(), 1);
}
