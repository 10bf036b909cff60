//! Invalid input: it causes a clear 4xx, never a panic or a 5xx, and no part of it is in a log.

use std::time::Duration;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, TestRunner};

use crate::harness::*;
use crate::peer::{Peer, Reply};

/// Part of bodies and credentials that must not appear in a log or a response.
const MARKER: &str = "do-not-repeat-me";

#[tokio::test]
async fn malformed_bodies_return_400_with_the_cause() {
    let system = start(&[("AWS_LAMBDA_LOG_LEVEL", "TRACE")]).await;
    let documented = event_of(MARKER);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_member =
        documented.replace("\"value1\"", &format!("{}{}", "{\"a\":".repeat(5000), "1".to_owned() + &"}".repeat(5000)));
    for (body, expected) in [
        ("", "empty"),
        ("   ", "empty"),
        ("{", "not valid JSON"),
        (&documented[..documented.len() - 1], "not valid JSON"),
        (&documented[..documented.len() / 2], "not valid JSON"),
        ("{\"profileId\":\"do-not-repeat-me\",}", "not valid JSON"),
        ("\"do-not-repeat-me\"", "expected a JSON object"),
        ("7", "expected a JSON object"),
        ("null", "expected a JSON object"),
        ("{\"profileId\":\"\\ud800\"}", "profileId: a value that can't be read"),
        ("{\"profileId\":{\"do-not-repeat-me\":1}}", "profileId: expected text"),
        (&documented.replace("33", "\"do-not-repeat-me\""), "partnerNumber: expected an integer"),
        (&documented.replace("\"NEW\"", "\"do-not-repeat-me\""), "callType: expected NEW"),
        (&documented.replace("1234567890", "1e300"), "timestamp: expected an integer"),
        (&documented.replace("1234567890", "1e400"), "timestamp: a value that can't be read"),
        (&documented.replace("1234567890", &"9".repeat(400)), "timestamp: a value that can't be read"),
        (&deep, "128 levels"),
        (&deep_member, "128 levels"),
    ] {
        let response = system.post(body).await;
        let detail = response.problem(400);
        assert!(detail.contains(expected), "{expected}: {detail}");
        assert!(!detail.contains(MARKER), "{detail}");
    }
    assert_eq!(system.requests(), 0);
    marker_is_not_logged(&system);
}

#[tokio::test]
async fn oversize_bodies_and_too_many_elements_return_4xx() {
    let system = start(&[]).await;
    let many = |count: usize, item: &dyn Fn(usize) -> String| (0..count).map(item).collect::<Vec<_>>().join(",");
    let members = event_of("p").replace("\"value1\"", &format!("1,{}", many(50_000, &|n| format!("\"m{n}\":{n}"))));
    assert_eq!(system.post(&members).await, delivered(1));
    let ids = event_of("p").replace("[\"4\"]", &format!("[{}]", many(30_000, &|n| n.to_string())));
    assert!(system.post(&ids).await.problem(413).contains("partnerIds"));
    let few_ids = event_of("p").replace("[\"4\"]", &format!("[{}]", many(100, &|n| n.to_string())));
    assert_eq!(system.post(&few_ids).await, delivered(100));
    let tiny = format!("[{}]", many(60_000, &|_| "1".to_owned()));
    assert!(system.post(&tiny).await.problem(400).contains("50000 elements"));
    let large = event_of("p").replace("value1", &"x".repeat(5_500_000));
    assert!(system.post(&large).await.problem(413).contains("larger than the hub accepts"));
    let expanding = event_of("p")
        .replace("value1", &"x".repeat(400_000))
        .replace("[\"4\"]", &format!("[{}]", many(19, &|n| n.to_string())));
    let response = system.post(&format!("[{expanding},{expanding},{expanding},{expanding}]")).await;
    assert!(response.problem(413).contains("fit the memory"), "{response:?}");
}

#[tokio::test]
async fn neither_bodies_nor_secrets_reach_the_log_at_any_level() {
    let auth = format!(
        r#"[{{"type":"query","name":"code","secret":"{MARKER}"}},{{"type":"bearer","secret":"{SENDER_TOKEN}"}}]"#
    );
    let system = start(&[("AWS_LAMBDA_LOG_LEVEL", "TRACE"), ("SENDER_AUTH", &auth)]).await;
    let mut event = request(&event_of(MARKER));
    event["rawQueryString"] = format!("code={MARKER}").into();
    event["headers"] = serde_json::json!({ "x-secret": MARKER });
    assert_eq!(system.response_to(&event).await, delivered(1));
    event["rawQueryString"] = format!("code={MARKER}x").into();
    system.response_to(&event).await.problem(401);
    system.hub.script([lasting(status(404, None, MARKER))]);
    system.post(&event_of(MARKER)).await.problem(503);
    let failures = system.failures(&[record("a", MARKER), record("b", &event_of(MARKER))]).await;
    assert_eq!(failures, ["a", "b"]);
    marker_is_not_logged(&system);
    let lines = system.function.logs();
    let key = &hub_config().keys[0].key;
    assert!(lines.iter().all(|line| !line.contains("SharedAccessSignature") && !line.contains(key.as_str())));
    let answered = lines.iter().filter(|line| line.contains("webhook answered")).count();
    assert_eq!(answered, 3, "one line per invocation");
}

#[tokio::test]
async fn mutated_events_never_return_5xx() {
    let system = start(&[]).await;
    let mutations = (0..DOCUMENTED.len(), proptest::collection::vec(proptest::num::u8::ANY, 0..4), 0..8usize);
    let mut runner = TestRunner::new(Config::default());
    for _ in 0..1000 {
        let (position, inserted, removed) = mutations.new_tree(&mut runner).unwrap().current();
        let mut bytes = DOCUMENTED.as_bytes().to_vec();
        let end = (position + removed).min(bytes.len());
        bytes.splice(position..end, inserted);
        let mut event = request("");
        event["isBase64Encoded"] = true.into();
        event["body"] = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &bytes).into();
        let response = system.response_to(&event).await;
        assert!(
            response.status == 200 || response.status == 400,
            "{response:?} for {}",
            String::from_utf8_lossy(&bytes)
        );
    }
    assert!(!system.function.logs().iter().any(|line| line.contains("panicked")));
}

fn marker_is_not_logged(system: &System) {
    for line in system.function.logs() {
        assert!(!line.contains(MARKER), "{line}");
        assert!(!line.contains("panicked"), "{line}");
    }
}

/// Such headers are possible: a client that invokes the function directly may send them.
#[tokio::test(flavor = "multi_thread")]
async fn unreadable_headers_of_an_invocation_are_named_in_the_log() {
    for header in ["lambda-runtime-client-context: null", "lambda-runtime-cognito-identity: {\"do-not-repeat-me\":1}"] {
        let headers = format!(
            "lambda-runtime-aws-request-id: r\r\nlambda-runtime-deadline-ms: 9999999999999\r\nlambda-runtime-invoked-function-arn: a\r\n{header}\r\n"
        );
        let api = Peer::start(move |_| Reply::Respond {
            status: 200,
            headers: headers.clone(),
            body: "{}".to_owned(),
            delay: Duration::ZERO,
        })
        .await;
        let hub = "Endpoint=sb://127.0.0.1:9/;SharedAccessKeyName=n;SharedAccessKey=k;EntityPath=h;UseDevelopmentEmulator=true";
        let output = tokio::process::Command::new(binary("audience-change"))
            .env_clear()
            .env("AWS_LAMBDA_RUNTIME_API", api.address.to_string())
            .env("AWS_LAMBDA_FUNCTION_NAME", "audience-change")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("EVENT_HUBS_CONNECTION_STRING", hub)
            .output()
            .await
            .unwrap();
        let log = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let error = log.lines().find(|line| line.contains("\"ERROR\"")).unwrap_or_else(|| panic!("{log}"));
        assert!(error.contains("failed to read the headers of an invocation") && error.contains("problem"), "{log}");
        assert!(!log.contains("runtime API is gone"), "{log}");
    }
}
