//! The emulator over real connections.

use std::time::Duration;

use secrecy::ExposeSecret;
use serde_json::Value;

use super::*;

async fn start(config: Config) -> (Emulator, reqwest::Client) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (Emulator::start(config, listener).await, shared::build_http_client(None).unwrap().client())
}

fn token(emulator: &Emulator, hub: &str) -> String {
    let key = Config::default().keys.remove(0);
    let resource = format!("{}/{hub}", emulator.url());
    shared::event_hubs::token::sas::sign(&resource, &key.name, &key.key.into(), 4_000_000_000)
        .expose_secret()
        .to_owned()
}

async fn post(emulator: &Emulator, http: &reqwest::Client, path: &str, body: &str) -> reqwest::Result<(u16, String)> {
    let hub = path.split('/').nth(1).unwrap_or_default();
    let response = http
        .post(format!("{}{path}?timeout=60&api-version=2014-01", emulator.url()))
        .header("authorization", token(emulator, hub))
        .header("content-type", "application/vnd.microsoft.servicebus.json")
        .body(body.to_owned())
        .send()
        .await?;
    Ok((response.status().as_u16(), response.text().await?))
}

#[tokio::test]
async fn a_stored_batch_can_be_read_back() {
    let (emulator, http) = start(Config::default()).await;
    let body = r#"[{"Body":"{\"a\":1}","UserProperties":{"n":1,"s":"x"},"BrokerProperties":{"PartitionKey":"7"}}]"#;
    assert_eq!(post(&emulator, &http, "/events/messages", body).await.unwrap(), (201, String::new()));
    assert_eq!(post(&emulator, &http, "/events/partitions/3/messages", body).await.unwrap().0, 201);
    assert_eq!(post(&emulator, &http, "/events/publishers/p1/messages", body).await.unwrap().0, 201);
    let events = emulator.events("events");
    assert_eq!(events.len(), 3);
    assert!(events.iter().all(|event| event.body == r#"{"a":1}"# && event.properties["n"] == 1 && event.batch));
    assert!(events.iter().any(|event| event.partition == 3));
    let read: Value = serde_json::from_str(
        &http
            .get(format!("{}/_emulator/hubs/events/events?partition=3&from=0&limit=9", emulator.url()))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap(),
    )
    .unwrap();
    let in_partition_3: Vec<_> = events.into_iter().filter(|event| event.partition == 3).collect();
    assert_eq!(read["events"], serde_json::to_value(in_partition_3).unwrap());
    emulator.clear();
    assert!(emulator.events("events").is_empty() && emulator.requests().is_empty());
}

#[tokio::test]
async fn paths_are_checked() {
    let (emulator, http) = start(Config::default()).await;
    let body = r#"[{"Body":""}]"#;
    for (path, status, words) in [
        ("/events/messages/", 400, "malformed"),
        ("/nothing/messages", 404, "40400: Endpoint not found"),
        ("/events", 404, "40400"),
        ("/events/publisher/1/messages", 404, "40400"),
        ("/events/partitions/4/messages", 400, "partition"),
        ("/events/partitions/x/messages", 400, "partition"),
        ("/_emulator/nothing", 404, "error"),
    ] {
        let (was, text) = post(&emulator, &http, path, body).await.unwrap();
        assert_eq!(was, status, "{path} {text}");
        assert!(text.contains(words), "{path} {text}");
    }
    assert!(emulator.events("events").is_empty());
    assert_eq!(http.get(emulator.url()).send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn errors_are_xml_with_the_sub_code() {
    let (emulator, http) = start(Config::default()).await;
    emulator.set_key(ROOT_KEY_NAME, "another key");
    let (status, text) = post(&emulator, &http, "/events/messages", r#"[{"Body":""}]"#).await.unwrap();
    assert_eq!(status, 401);
    let start = "<Error><Code>401</Code><Detail>40103: Invalid authorization token signature. TrackingId:";
    assert!(text.starts_with(start), "{text}");
    assert!(text.contains(&format!("_G31, SystemTracker:{}:events, Timestamp:20", emulator.address())), "{text}");
}

#[tokio::test]
async fn sizes_are_limited() {
    let (emulator, http) = start(Config { max_bytes: 1_000, ..Config::default() }).await;
    let single = |length: usize| {
        let request = http.post(format!("{}/events/messages", emulator.url()));
        let request = request.header("authorization", token(&emulator, "events")).header("p", "12345");
        request.body("x".repeat(length)).send()
    };
    assert_eq!(single(994).await.unwrap().status(), 201);
    let response = single(995).await.unwrap();
    assert_eq!(response.status(), 403);
    assert!(response.text().await.unwrap().contains("too large"));
    assert_eq!(single(2_001).await.unwrap().status(), 413);
    assert_eq!(single(3_000_000).await.unwrap().status(), 413);
    // Each quote is two bytes of the request, but one of the body.
    let quotes = format!(r#"[{{"Body":"{}"}}]"#, "\\\"".repeat(600));
    assert_eq!(post(&emulator, &http, "/events/messages", &quotes).await.unwrap().0, 403);
    assert_eq!(emulator.events("events").len(), 1);
}

#[tokio::test]
async fn throughput_is_throttled() {
    let (emulator, http) = start(Config { throughput_units: Some(1), ..Config::default() }).await;
    let body = format!("[{}]", vec![r#"{"Body":""}"#; 5_000].join(","));
    assert_eq!(post(&emulator, &http, "/events/messages", &body).await.unwrap().0, 201);
    let (status, text) = post(&emulator, &http, "/events/messages", &body).await.unwrap();
    assert_eq!(status, 503);
    assert!(text.contains("Error code : 50002"), "{text}");
}

#[tokio::test]
async fn faults_take_effect_in_their_order() {
    let (emulator, http) = start(Config { hubs: vec![("a".into(), 1), ("b".into(), 1)], ..Config::default() }).await;
    let scripted = r#"[{"action":"status","status":503,"retryAfter":2,"detail":"d"},{"action":"reset","hub":"b"},
        {"action":"reset_after_store","times":2},{"action":"delay","ms":1}]"#;
    let faults = format!("{}/_emulator/faults", emulator.url());
    let request = http.post(&faults).header("content-type", "application/json");
    assert_eq!(request.body(scripted).send().await.unwrap().status(), 204);
    let body = r#"[{"Body":"1"},{"Body":"2"}]"#;

    let request = http.post(format!("{}/a/messages", emulator.url())).body("anything");
    let response = request.send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["retry-after"].as_bytes()), (503, b"2".as_slice()));
    assert!(response.text().await.unwrap().contains("<Detail>d TrackingId"));
    assert!(post(&emulator, &http, "/a/messages", body).await.is_err());
    assert!(post(&emulator, &http, "/b/messages", body).await.is_err());
    assert_eq!(emulator.events("b").len(), 0);
    assert!(post(&emulator, &http, "/b/messages", body).await.is_err());
    assert_eq!(emulator.events("b").len(), 2);
    assert_eq!(
        http.get(&faults).send().await.unwrap().text().await.unwrap(),
        r#"{"faults":[{"action":"delay","ms":1,"times":1}]}"#
    );
    assert_eq!(post(&emulator, &http, "/b/messages", body).await.unwrap().0, 201);
    let statuses: Vec<_> = emulator.requests().iter().map(|record| (record.status, record.events)).collect();
    assert_eq!(statuses, [(503, 1), (0, 2), (0, 2), (0, 2), (201, 2)]);

    emulator.script([Action::Hang.into()]);
    let hanging = tokio::time::timeout(Duration::from_millis(50), post(&emulator, &http, "/a/messages", body));
    assert!(hanging.await.is_err());
}

#[tokio::test]
async fn it_stops_with_its_last_clone_or_on_shutdown() {
    let (emulator, http) = start(Config::default()).await;
    let (url, address) = (emulator.url(), emulator.address());
    emulator.shutdown().await;
    assert!(http.get(&url).send().await.is_err());
    let (again, _) = (Emulator::start(Config::default(), TcpListener::bind(address).await.unwrap()).await, emulator);
    assert_eq!(http.get(&url).send().await.unwrap().status(), 404);
    drop(again);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(http.get(&url).send().await.is_err());
}
