//! Secrets in Secrets Manager (moto): read at init, again when the hub refuses the key, and again after a failed read.

use std::net::SocketAddr;
use std::time::Duration;

use local::emulator::{Emulator, ROOT_KEY_NAME};
use local::moto::Moto;
use local::runner::Function;
use serde_json::{Value, json};
use shared::aws::{Aws, Service};
use shared::clock::Clock;
use shared::environment::Environment;
use tests::faults::proxy::{AwsFault, Proxy};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::cloud::{Cloud, emulator, until};
use crate::harness::*;

#[tokio::test]
async fn a_key_changed_in_its_secret_is_used_by_the_same_instance() {
    let http = shared::build_http_client(None).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let moto = Moto::start(&virtual_environment().join("bin/moto_server"), address, &http.client()).await.unwrap();
    let endpoint = moto.url();
    let variables = [
        ("AWS_ENDPOINT_URL", endpoint.to_owned()),
        ("AWS_REGION", "eu-central-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "local".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "local".to_owned()),
    ];
    let known = variables.clone();
    let environment = Environment::from_fn(move |name| {
        known.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
    });
    let aws = Aws::new(http, environment, Clock::system());
    let secrets = async |operation: &'static str, body: serde_json::Value| {
        aws.call(Service::SecretsManager, operation, &body, Instant::now() + Duration::from_secs(10)).await.unwrap();
    };
    let hub = Emulator::start(hub_config(), TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
    let key_name = hub_config().keys[0].name.clone();
    let basic_auth = |connection_string: String| {
        json!({ "username": "$ConnectionString", "password": connection_string }).to_string()
    };
    let secret = basic_auth(hub.connection_string(&key_name, Some(HUB)));
    secrets("CreateSecret", json!({ "Name": "hub", "SecretString": secret })).await;
    secrets("CreateSecret", json!({ "Name": "senders", "SecretString": SENDER_AUTH })).await;

    let mut settings: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.extend([("EVENT_HUBS_SECRET_ID", "hub"), ("SENDER_AUTH_SECRET_ID", "senders")]);
    let system = System { function: function(&settings), hub };
    assert_eq!(system.post(DOCUMENTED).await, delivered(1));

    system.hub.set_key(&key_name, "YW5vdGhlciBrZXk=");
    system.post(DOCUMENTED).await.problem(503);
    let rotated = basic_auth(system.hub.connection_string(&key_name, Some(HUB)));
    secrets("PutSecretValue", json!({ "SecretId": "hub", "SecretString": rotated })).await;
    assert_eq!(system.post(DOCUMENTED).await, delivered(1));
    assert_eq!(system.function.instances(), 1, "the same instance continues");
}

/// Variable and problem of each ERROR line of a function.
fn errors(function: &Function) -> Vec<(String, String)> {
    let lines = function.logs().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    lines
        .filter(|line| line["level"] == "ERROR")
        .map(|line| (text(&line["variable"]), text(&line["problem"])))
        .collect()
}

/// The status of a webhook to `path`, and whether a queue record of `flow` is returned to the queue.
async fn outcome(function: &Function, path: &str, flow: &str) -> (u64, bool) {
    let mut webhook = request(DOCUMENTED);
    webhook["rawPath"] = path.into();
    let status = response_of(function, &webhook).await.status;
    let mut record = record("m1", DOCUMENTED);
    record["messageAttributes"] = json!({ "flow": { "stringValue": flow, "dataType": "String" } });
    let batch = json!({ "Records": [record] }).to_string().into_bytes();
    let response: Value = serde_json::from_slice(&function.invoke(batch).await.unwrap()).unwrap();
    (status, !response["batchItemFailures"].as_array().unwrap().is_empty())
}

#[tokio::test]
async fn an_unusable_secret_stops_only_its_own_flow_until_it_is_fixed() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let connection = hub.connection_string(ROOT_KEY_NAME, Some(HUB));
    for (variable, secret, unusable, usable) in [
        ("EVENT_HUBS_SECRET_ID", "hub-1", "Endpoint=", connection.as_str()),
        ("EVENT_HUBS_SECRET_ID", "hub-2", r#"{"user":"x"}"#, &connection),
        ("SENDER_AUTH_SECRET_ID", "senders-1", r#"[{"type":"bearer","secret":"x"},]"#, SENDER_AUTH),
    ] {
        cloud.secret(secret, unusable).await;
        let flow = format!("flow-{secret}");
        cloud.flow(&flow, "audience-change", &hub, HUB, json!({})).await;
        let own = match variable {
            "EVENT_HUBS_SECRET_ID" => [("EVENT_HUBS_CONNECTION_STRING", ""), (variable, secret)],
            _ => [("SENDER_AUTH", ""), (variable, secret)],
        };
        let function = cloud.function("audience-change", &hub, &own);
        let (path, is_sender) = (format!("/{flow}"), variable.starts_with("SENDER"));
        // Queue records do not need the credentials of senders.
        assert_eq!(outcome(&function, "/", "default").await, (503, !is_sender), "{variable}");
        assert_eq!(outcome(&function, &path, &flow).await, (200, false), "{variable}");
        let [(named, problem)] = &errors(&function)[..] else { panic!("one ERROR line: {:?}", errors(&function)) };
        assert_eq!(named, variable);
        assert!(!problem.is_empty() && !problem.contains("bearer"), "{problem}");
        cloud.change_secret(secret, usable).await;
        until("the secret is read again", async || outcome(&function, "/", "default").await == (200, false)).await;
        assert_eq!(function.instances(), 1, "without a restart");
    }
}

#[tokio::test]
async fn a_missing_or_failing_secret_returns_503_and_is_re_read_at_a_limited_rate() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let secrets = Proxy::start(cloud.endpoint(), shared::build_http_client(None).unwrap().client()).await;
    let endpoint = format!("http://{}", secrets.address());
    let function = |more: &[(&'static str, &'static str)]| {
        let mut settings = vec![
            ("EVENT_HUBS_CONNECTION_STRING", ""),
            ("EVENT_HUBS_SECRET_ID", "hub"),
            ("FLOWS_TABLE", ""),
            ("AWS_ENDPOINT_URL_SECRETS_MANAGER", endpoint.as_str()),
        ];
        settings.extend(more);
        cloud.function("audience-change", &hub, &settings)
    };
    // The secret is missing.
    let missing = function(&[]);
    for _ in 0..20 {
        assert_eq!(outcome(&missing, "/", "default").await, (503, true));
    }
    let [(variable, problem)] = &errors(&missing)[..] else { panic!("one ERROR line: {:?}", errors(&missing)) };
    assert_eq!(variable, "EVENT_HUBS_SECRET_ID");
    assert!(problem.contains("ResourceNotFoundException"), "{problem}");
    // Secrets Manager fails at a cold start.
    cloud.secret("hub", &hub.connection_string(ROOT_KEY_NAME, Some(HUB))).await;
    for fault in [AwsFault::Unavailable, AwsFault::Hang] {
        secrets.fail("secretsmanager.", fault);
        let failing = function(&[]);
        assert_eq!(outcome(&failing, "/", "default").await, (503, true), "{fault:?}");
        assert_eq!(errors(&failing)[0].0, "EVENT_HUBS_SECRET_ID");
        secrets.recover("secretsmanager.");
        until("it is read again", async || outcome(&failing, "/", "default").await == (200, false)).await;
        assert_eq!(failing.instances(), 1);
    }
    until("the missing one is read again", async || outcome(&missing, "/", "default").await == (200, false)).await;
}
