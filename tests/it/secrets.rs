//! Secrets in Secrets Manager (moto): read at init, and again when the hub refuses the key.

use std::net::SocketAddr;
use std::time::Duration;

use local::emulator::Emulator;
use local::moto::Moto;
use serde_json::json;
use shared::aws::{Aws, Service};
use shared::clock::Clock;
use shared::settings::Environment;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::harness::*;

#[tokio::test]
async fn a_key_changed_in_its_secret_is_taken_up_without_a_failure() {
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
    assert_eq!(system.function.instances(), 1, "the same instance went on");

    let missing = init_failure(&[&settings[..4], &[("EVENT_HUBS_SECRET_ID", "not-there")]].concat()).await;
    assert_eq!(missing["variable"], "EVENT_HUBS_SECRET_ID");
    assert!(missing["problem"].as_str().unwrap().contains("ResourceNotFoundException"), "{missing}");
}
