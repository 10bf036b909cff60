//! An unusable setting makes start-up fail, with one ERROR line that names the setting.

use serde_json::json;

use crate::harness::*;

const CONNECTION: &str = "Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=topsecret";

#[tokio::test]
async fn each_unusable_setting_is_named() {
    let closed_region = [("AWS_REGION", "eu-central-1"), ("AWS_ENDPOINT_URL", "http://127.0.0.1:9")];
    for (variable, named, settings) in [
        ("EVENT_HUBS_CONNECTION_STRING", "missing", vec![]),
        (
            "EVENT_HUBS_CONNECTION_STRING",
            "`Endpoint`",
            vec![("EVENT_HUBS_CONNECTION_STRING", "topsecret=1;SharedAccessKeyName=n;SharedAccessKey=topsecret")],
        ),
        (
            "EVENT_HUBS_SECRET_ID",
            "EVENT_HUBS_CONNECTION_STRING is set too",
            vec![("EVENT_HUBS_CONNECTION_STRING", CONNECTION), ("EVENT_HUBS_SECRET_ID", "s")],
        ),
        (
            "EVENT_HUB_NAME",
            "letters, digits",
            [vec![("EVENT_HUBS_SECRET_ID", "s"), ("EVENT_HUB_NAME", "-hub/x")], closed_region.to_vec()].concat(),
        ),
        (
            "FLOW_OPTIONS",
            "not valid JSON",
            [vec![("EVENT_HUBS_SECRET_ID", "s"), ("FLOW_OPTIONS", "{")], closed_region.to_vec()].concat(),
        ),
        (
            "SENDER_AUTH",
            "the array is empty",
            [vec![("EVENT_HUBS_SECRET_ID", "s"), ("SENDER_AUTH", "[]")], closed_region.to_vec()].concat(),
        ),
        ("EVENT_HUB_NAME", "missing", vec![("EVENT_HUBS_CONNECTION_STRING", CONNECTION)]),
        (
            "EVENT_HUB_NAME",
            "letters, digits",
            vec![("EVENT_HUBS_CONNECTION_STRING", CONNECTION), ("EVENT_HUB_NAME", "-hub/x")],
        ),
        (
            "EVENT_HUB_NAME",
            "another hub",
            vec![
                (
                    "EVENT_HUBS_CONNECTION_STRING",
                    "Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=topsecret;EntityPath=a",
                ),
                ("EVENT_HUB_NAME", "b"),
            ],
        ),
        ("SENDER_AUTH", "`[0]`: missing field `secret`", with_hub(("SENDER_AUTH", r#"[{"type":"bearer"}]"#))),
        ("SENDER_AUTH", "the array is empty", with_hub(("SENDER_AUTH", "[]"))),
        ("FLOW_OPTIONS", "not valid JSON", with_hub(("FLOW_OPTIONS", "{"))),
        ("FLOW_OPTIONS", "unknown field `partnerNummer`", with_hub(("FLOW_OPTIONS", r#"{"partnerNummer":1}"#))),
        ("FLOW_OPTIONS", "`partnerNumber`: 42 is", with_hub(("FLOW_OPTIONS", r#"{"partnerNumber":42}"#))),
        ("FLOW_OPTIONS", "`profileVars`: the array is empty", with_hub(("FLOW_OPTIONS", r#"{"profileVars":[]}"#))),
        ("FLOW_OPTIONS", "`sources.a.data`", with_hub(("FLOW_OPTIONS", r#"{"sources":{"a":{"data":1}}}"#))),
        ("FLOW_OPTIONS", "expected an object", with_hub(("FLOW_OPTIONS", "[33]"))),
        ("FLOW_OPTIONS", "`sources.x`: expected an object", with_hub(("FLOW_OPTIONS", r#"{"sources":{"x":[]}}"#))),
        (
            "EVENT_HUBS_CONNECTION_STRING",
            "letters, digits",
            vec![(
                "EVENT_HUBS_CONNECTION_STRING",
                "Endpoint=sb://ns.example.net/;SharedAccessKeyName=n;SharedAccessKey=k;EntityPath=-x",
            )],
        ),
        (
            "SENDER_AUTH",
            "`[0]`: expected a secret without white space around it",
            with_hub(("SENDER_AUTH", "[{\"type\":\"bearer\",\"secret\":\"topsecret\\n\"}]")),
        ),
        (
            "EVENT_HUBS_CONNECTION_STRING",
            "in quotes; remove them",
            vec![(
                "EVENT_HUBS_CONNECTION_STRING",
                "\"Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=topsecret\"",
            )],
        ),
        (
            "EVENT_HUBS_CONNECTION_STRING",
            "begins with a byte order mark",
            vec![(
                "EVENT_HUBS_CONNECTION_STRING",
                "\u{feff}Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=topsecret",
            )],
        ),
        (
            "EVENT_HUBS_CONNECTION_STRING",
            "put `SharedAccessSignature ` in front",
            vec![(
                "EVENT_HUBS_CONNECTION_STRING",
                "Endpoint=sb://ns.servicebus.windows.net/;EntityPath=h;SharedAccessSignature=sr=topsecret&sig=b&se=7&skn=n",
            )],
        ),
        ("HTTPS_PROXY", "expected the URL of a proxy", with_hub(("HTTPS_PROXY", " http://user:topsecret@proxy:3128"))),
        ("NO_PROXY", "without ports", with_hub(("NO_PROXY", "*.windows.net"))),
        ("NO_PROXY", "without ports", with_hub(("NO_PROXY", "ns.servicebus.windows.net:443"))),
        ("PARTITIONING", "`keys:N`", with_hub(("PARTITIONING", "keys"))),
        ("EVENT_HUBS_MAX_BATCH_BYTES", "number of bytes", with_hub(("EVENT_HUBS_MAX_BATCH_BYTES", "1MB"))),
        ("EXTRA_CA_CERTS", "can't read the file", with_hub(("EXTRA_CA_CERTS", "/nonexistent.pem"))),
    ] {
        let line = init_failure(&settings).await;
        assert_eq!(line["variable"], variable, "{line}");
        let problem = line["problem"].as_str().unwrap();
        assert!(problem.contains(named), "{variable}: {problem}");
        assert!(!line.to_string().contains("topsecret"), "{line}");
    }
}

fn with_hub(setting: (&'static str, &'static str)) -> Vec<(&'static str, &'static str)> {
    vec![("EVENT_HUBS_CONNECTION_STRING", CONNECTION), ("EVENT_HUB_NAME", "hub"), setting]
}

#[tokio::test]
async fn an_organisation_claim_type_other_than_text_or_list_is_refused() {
    for value in ["both", "Text", "[a]"] {
        let line = init_failure_of("flow-service", &[("FLOWS_TABLE", "t"), ("ORG_CLAIM_TYPE", value)]).await;
        assert_eq!((&line["variable"], &line["problem"]), (&json!("ORG_CLAIM_TYPE"), &json!("expected text or list")));
    }
}

#[tokio::test]
async fn hub_names_are_compared_without_case_and_trimmed() {
    for name in ["profiles\n", " PROFILES ", "Profiles"] {
        let system = start(&[("EVENT_HUB_NAME", name)]).await;
        assert_eq!(system.post(DOCUMENTED).await.status, 200, "{name:?}");
    }
}
