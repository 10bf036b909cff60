//! Responses of the inlet: throttling, outages, refusals, and a 200 from another server.

use super::*;
use crate::harness::init_failure_of;
use crate::peer::{Peer, respond};

#[tokio::test]
async fn requests_are_retried_while_the_inlet_throttles_or_fails_and_time_is_left() {
    let inlet = inlet(None).await;
    let function = function(&variables(&inlet, "xdm", &[]));
    for (n, action) in [
        Action::Status { status: 503, retry_after: Some(1) },
        respond_with(429),
        respond_with(500),
        respond_with(502),
        Action::Reset,
        Action::ResetAfterTaking,
        Action::Delay { ms: 300 },
    ]
    .into_iter()
    .enumerate()
    {
        let n = n as u64;
        inlet.script([Fault::from(action.clone())]);
        assert!(failures(&function, &event(&entities(0, n, n + 1))).await.is_empty(), "{action:?}");
        assert_eq!(*ids(&inlet).last().unwrap(), format!("0/{n}"), "{action:?}");
    }
    assert!(inlet.statuses().starts_with(&[503, 207, 429, 207, 500, 207, 502, 207, 0, 207, 0, 207]));

    // The inlet asks for a longer wait than the function has time for.
    inlet.script([lasting(Action::Status { status: 503, retry_after: Some(3600) })]);
    let asked = inlet.statuses().len();
    let records = [entities(0, 100, 300), entities(3, 7, 9)].concat();
    assert_eq!(failures(&function, &event(&records)).await, [of(0, 100), of(3, 7)]);
    assert_eq!(inlet.statuses().len(), asked + 2, "the function does not wait longer than its time");
    for action in [Action::Reset, respond_with(500), respond_with(404)] {
        inlet.clear_faults();
        inlet.script([lasting(action)]);
        assert_eq!(failures(&function, &event(&records)).await, [of(0, 100), of(3, 7)]);
    }
    inlet.clear_faults();
    assert!(failures(&function, &event(&records)).await.is_empty());
}

#[tokio::test]
async fn a_record_at_which_the_inlet_fails_is_rejected_only_if_others_succeed() {
    let cloud = Cloud::start().await;
    let inlet = inlet(None).await;
    let function = in_cloud(&cloud, variables(&inlet, "xdm", &[("INLET_BATCH_MAX", "1")]));
    inlet.script([Fault { times: 4, ..Fault::from(respond_with(500)) }]);
    assert!(failures(&function, &event(&entities(0, 0, 3))).await.is_empty());
    assert_eq!(ids(&inlet), ["0/1", "0/2"]);
    let rejects = rejected(&cloud).await;
    assert_eq!(rejects.len(), 1);
    assert!(rejects[0].1.starts_with("profiles-0 at 0: the inlet responds with 500"), "{}", rejects[0].1);
    // No success after the last record shows that the inlet works.
    inlet.script([Fault { times: 4, ..Fault::from(respond_with(500)) }]);
    assert_eq!(failures(&function, &event(&entities(0, 3, 4))).await, [of(0, 3)]);
    assert!(rejected(&cloud).await.is_empty());
}

#[tokio::test]
async fn a_mapping_without_partial_responses_gets_an_error() {
    let inlet = inlet(None).await;
    let function = function(&variables(&inlet, "xdm", &[("BATCH_FAILURES", "whole")]));
    let batch = event(&entities(0, 0, 2)).to_string().into_bytes();
    inlet.script([Fault::from(respond_with(404))]);
    let response = function.invoke(batch.clone()).await;
    assert!(
        matches!(&response, Err(InvokeError::Function { error_type, .. }) if error_type == "RecordsFailed"),
        "{response:?}"
    );
    assert_eq!(function.invoke(batch).await.unwrap(), br#"{"batchItemFailures":[]}"#);
}

#[tokio::test]
async fn each_unusable_setting_of_platform_ingest_is_named() {
    for (variable, problem, environment) in [
        ("INLET_URL", "missing", vec![]),
        ("INLET_URL", "adobedc.net", vec![("INLET_URL", "https://example.com/collection/a")]),
        ("INLET_FLOW_ID", "missing", vec![("INLET_URL", "https://dcs.adobedc.net/collection/a")]),
        ("BATCH_FAILURES", "partial or whole", vec![("BATCH_FAILURES", "some")]),
    ] {
        let line = init_failure_of("platform-ingest", &environment).await;
        assert_eq!(line["fields"]["variable"].as_str().or(line["variable"].as_str()), Some(variable), "{line}");
        assert!(line.to_string().contains(problem), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_200_that_is_not_the_inlets_own_leaves_the_records_in_the_hub() {
    const SINGLE: &str = r#"{"inletId":"abc","xactionId":"1555445493896:8600:8","receivedTimeMs":1555445493932}"#;
    const BATCH: &str = r#"{"inletId":"abc","batchId":"b","responses":[{"xactionId":"b:0"},{"xactionId":"b:1"}]}"#;
    let xdm = [("INLET_SCHEMA_ID", "s"), ("INLET_DATASET_ID", "d"), ("INLET_ORG_ID", "o@AdobeOrg")];
    let forms = [
        ("raw", vec![], 200, SINGLE),
        ("xdm", [xdm.as_slice(), &[("INLET_BATCH_MAX", "1")]].concat(), 200, SINGLE),
        ("xdm", xdm.to_vec(), 207, BATCH),
    ];
    for (format, more, status, documented) in &forms {
        let odd = [
            "<html><body>Access to this site is blocked.</body></html>",
            "",
            "{}",
            "[]",
            "null",
            "\"inletId\"",
            r#"{"xactionId":"1:2:3","receivedTimeMs":1}"#,
            r#"{"inletId":"abc","receivedTimeMs":1}"#,
            r#"{"inletId":"","xactionId":"1:2:3"}"#,
            r#"{"inletId":"abc","xactionId":""}"#,
            r#"{"inletId":7,"xactionId":"1:2:3"}"#,
            r#"{"inletId":"abc","xactionId":["1:2:3"]}"#,
            r#"{"inletId":"abc","xactionId":null}"#,
            r#"{"batchId":"b","responses":[{"xactionId":"b:0"},{"xactionId":"b:1"}]}"#,
        ];
        for (body, is_taken) in odd.iter().map(|body| (*body, false)).chain([(*documented, true)]) {
            let (status, text) = (if is_taken { *status } else { 200 }, body.to_owned());
            let peer = Peer::start(move |_| respond(status, &text)).await;
            let (host, url) = (peer.address.to_string(), format!("http://{}/collection/abc", peer.address));
            let base = [
                ("INLET_URL", url.as_str()),
                ("EMULATOR_HOSTS", &host),
                ("INLET_FLOW_ID", "f"),
                ("INLET_FORMAT", format),
            ];
            let function = function_of("platform-ingest", &[base.as_slice(), more].concat());
            let failed = failures(&function, &event(&entities(0, 7, 9))).await;
            let (lines, hints) = lines_and_hints(&function, 1).await;
            let line = lines.iter().find(|line| line["message"] == "batch ingested").unwrap();
            if is_taken {
                assert_eq!((failed.len(), line["Delivered"].as_u64(), hints.len()), (0, Some(2), 0), "{format} {body}");
                continue;
            }
            assert_eq!(failed, [of(0, 7)], "{format} {body}");
            assert_eq!(line["Delivered"].as_u64().unwrap_or(0), 0, "{format} {body}");
            assert!(line["inlet.problem"].as_str().unwrap().contains("not the inlet's own"), "{line}");
            assert!(hints.len() == 1 && hints[0].contains("check INLET_URL"), "{format} {body}: {hints:?}");
            assert_eq!(peer.requests().len(), 1, "{format} {body}: no record after it is sent");
        }
    }
}

#[tokio::test]
async fn an_inlet_that_refuses_everything_leaves_the_records_in_the_hub() {
    let cloud = Cloud::start().await;
    let inlet = inlet(None).await;
    let function = in_cloud(&cloud, variables(&inlet, "raw", &[]));
    inlet.script([lasting(respond_with(400))]);
    assert_eq!(failures(&function, &event(&entities(0, 0, 150))).await, [of(0, 100)]);
    let (_, hints) = lines_and_hints(&function, 1).await;
    assert_eq!(hints.len(), 1);
    for variable in ["INLET_FLOW_ID", "INLET_ORG_ID", "INLET_SCHEMA_ID"] {
        assert!(hints[0].contains(variable), "{hints:?}");
    }
    let asked = inlet.statuses().len();
    assert_eq!(failures(&function, &event(&entities(0, 100, 150))).await, [of(0, 100)]);
    assert_eq!(inlet.statuses().len(), asked + 1, "one record finds out whether that has changed");
    inlet.clear_faults();
    assert!(failures(&function, &event(&entities(0, 100, 150))).await.is_empty());
    // Refusals concern single records again.
    inlet.script([respond_with(400).into()]);
    assert!(failures(&function, &event(&entities(0, 150, 152))).await.is_empty());
}
