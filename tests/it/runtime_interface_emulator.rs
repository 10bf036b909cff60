//! The built binary under AWS's own runtime interface emulator, which the aws-sam-cli wheel carries.

use std::path::PathBuf;
use std::time::Duration;

use local::emulator::Emulator;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::harness::*;

/// The emulator of this machine's architecture, in the virtual environment that `make setup` fills.
fn emulator() -> PathBuf {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" };
    let pattern = format!(
        "{}/lib/python3*/site-packages/samcli/local/rapid/aws-lambda-rie-{architecture}",
        virtual_environment().display()
    );
    glob::glob(&pattern).unwrap().next().expect("run `make setup` first").unwrap()
}

#[tokio::test]
async fn a_webhook_and_a_batch_are_delivered_through_the_runtime_interface_emulator() {
    let hub = Emulator::start(hub_config(), TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
    let (front, runtime_api) = (free_port(), free_port());
    let _running = Command::new(emulator())
        .args(["--log-level", "error"])
        .args(["--runtime-interface-emulator-address", &format!("127.0.0.1:{front}")])
        .args(["--runtime-api-address", &format!("127.0.0.1:{runtime_api}")])
        .arg(binary("audience-change"))
        .env("EVENT_HUBS_CONNECTION_STRING", hub.connection_string(&hub_config().keys[0].name, Some(HUB)))
        .env("SENDER_AUTH", SENDER_AUTH)
        .env("AWS_LAMBDA_FUNCTION_TIMEOUT", "30")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let url = format!("http://127.0.0.1:{front}/2015-03-31/functions/function/invocations");
    let client = shared::build_http_client(None).unwrap().client();
    let invoke = async |event: &Value| -> Value {
        for _ in 0..100 {
            if let Ok(response) = client.post(&url).body(event.to_string()).send().await {
                return serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the runtime interface emulator does not listen on port {front}");
    };
    let response = invoke(&request(DOCUMENTED)).await;
    assert_eq!(response["statusCode"], 200, "{response}");
    let response = invoke(&json!({ "Records": [record("a", &event_of("p")), record("b", "unreadable")] })).await;
    assert_eq!(response["batchItemFailures"], json!([{ "itemIdentifier": "b" }]));
    assert_eq!(hub.events(HUB).len(), 2);
}
