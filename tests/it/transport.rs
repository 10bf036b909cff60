//! Connections: which of them a request uses, how long they are used, and what an operator reads about a failure.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use local::runner::Function;
use serde_json::{Value, json};
use shared::aws::{Aws, Service};
use shared::clock::Clock;
use shared::environment::Environment;
use shared::http::{Attempt, Via};
use tokio::time::Instant;

use crate::cloud::until;
use crate::harness::*;
use crate::peer::*;

const SLOW: Duration = Duration::from_millis(100);

fn stored() -> Reply {
    respond(201, "")
}

/// A response after a delay in which other requests of a batch are sent on connections of their own.
fn stored_slowly(_: &Request) -> Reply {
    Reply::Respond { status: 201, headers: String::new(), body: String::new(), delay: SLOW }
}

/// The response of a namespace to the request that only opens a connection.
fn opened(request: &Request) -> Option<Reply> {
    request.line.starts_with("GET ").then(|| respond(404, ""))
}

fn sender(peer: &Peer) -> Function {
    function(&[("EVENT_HUBS_CONNECTION_STRING", &peer.connection_string()), ("SENDER_AUTH", SENDER_AUTH)])
}

async fn post(function: &Function, profile: &str) -> u64 {
    response_of(function, &request(&event_of(profile))).await.status
}

/// Sends a batch; returns the ids that are reported as failed.
async fn batch(function: &Function, records: &[Value]) -> Vec<String> {
    let response = function.invoke(json!({ "Records": records }).to_string().into_bytes()).await.unwrap();
    let response: Value = serde_json::from_slice(&response).unwrap();
    let failures = response["batchItemFailures"].as_array().unwrap();
    failures.iter().map(|failure| failure["itemIdentifier"].as_str().unwrap().to_owned()).collect()
}

fn many() -> Vec<Value> {
    (0..300).map(|n| record(&format!("r{n}"), &event_of(&format!("p{n}")))).collect()
}

/// The lines of the log, once the line of the invocation is there.
async fn logs(function: &Function) -> Vec<Value> {
    until("the line of the invocation", async || function.logs().iter().any(|line| line.contains("webhook answered")))
        .await;
    function.logs().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The hints of the ERROR lines.
async fn hints(function: &Function) -> Vec<String> {
    let errors = logs(function).await.into_iter().filter(|line| line["level"] == "ERROR");
    errors.map(|line| line["hint"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_pool_costs_one_retry_on_a_new_connection() {
    for fate in [Reply::Reset, Reply::Silent] {
        let what = format!("{fate:?}");
        for by_queue in [false, true] {
            let fate = fate.clone();
            let hub = Peer::with_bad_connections(stored_slowly, move |_| fate.clone()).await;
            let function = sender(&hub);
            assert!(batch(&function, &many()).await.is_empty());
            let known = hub.connections();
            assert!(hub.mark_bad() >= 10, "more dead connections than attempts");
            let before = hub.requests().len();
            if by_queue {
                assert!(batch(&function, &[record("r", &event_of("after"))]).await.is_empty(), "{what}");
            } else {
                assert_eq!(post(&function, "after").await, 200, "{what}");
            }
            let used: Vec<usize> = hub.requests()[before..].iter().map(|request| request.connection).collect();
            assert_eq!(used.len(), 2, "{what}: {used:?}");
            assert!(known.contains(&used[0]) && !known.contains(&used[1]), "{what}: {used:?}");
            for n in 0..5 {
                assert_eq!(post(&function, &format!("later-{n}")).await, 200, "{what}");
            }
            assert_eq!(hub.requests().len(), before + 7, "{what}: no other dead connection is used");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_pool_is_reused() {
    let hub = Peer::start(|request| opened(request).unwrap_or_else(stored)).await;
    let function = sender(&hub);
    for n in 0..50 {
        assert_eq!(post(&function, &format!("p{n}")).await, 200);
    }
    assert_eq!(hub.connections().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_a_bad_response_is_not_used_again() {
    for status in [401, 404, 410, 500, 502, 503, 504] {
        let bad = move |_: &Request| respond(status, "<Error><Code>0</Code><Detail>x</Detail></Error>");
        let hub = Peer::with_bad_connections(|request| opened(request).unwrap_or_else(stored), bad).await;
        let function = sender(&hub);
        assert_eq!(post(&function, "before").await, 200);
        assert_eq!(hub.mark_bad(), 1);
        let first = post(&function, "first").await;
        // The meaning of a status for the event does not change: only some statuses are retried.
        assert_eq!(first, if matches!(status, 404 | 410) { 503 } else { 200 }, "{status}");
        for n in 0..5 {
            assert_eq!(post(&function, &format!("after-{n}")).await, 200, "{status}");
        }
        assert!(hub.connections().len() <= 3, "{status}: {:?}", hub.connections());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_about_an_event_leave_their_connection_in_use() {
    for status in [400, 403, 413] {
        let reply = move |request: &Request| {
            let detail = if status == 403 { "The message is too large" } else { "malformed" };
            opened(request).unwrap_or_else(|| respond(status, &format!("<Error><Detail>{detail}</Detail></Error>")))
        };
        let hub = Peer::start(reply).await;
        let function = sender(&hub);
        for n in 0..5 {
            post(&function, &format!("p{n}")).await;
        }
        assert_eq!((hub.connections().len(), hub.requests().len()), (1, 5), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_responses_at_the_same_time_replace_the_pool_once() {
    let not_found =
        |_: &Request| Reply::Respond { status: 404, headers: String::new(), body: String::new(), delay: SLOW };
    let hub = Peer::with_bad_connections(stored_slowly, not_found).await;
    let function = sender(&hub);
    assert!(batch(&function, &many()).await.is_empty());
    let first = hub.mark_bad();
    assert_eq!(batch(&function, &many()).await.len(), 300);
    for _ in 0..3 {
        assert!(batch(&function, &many()).await.is_empty());
    }
    let all = hub.connections().len();
    assert!(all <= first + 16, "{first} connections of the first batch, {all} in all");
}

/// An AWS service behind `peer`.
fn aws(peer: &Peer) -> Aws {
    let endpoint = format!("http://{}", peer.address);
    let environment = Environment::from_fn(move |name| match name {
        "AWS_ENDPOINT_URL" => Some(endpoint.clone()),
        "AWS_REGION" => Some("eu-central-1".to_owned()),
        "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => Some("local".to_owned()),
        _ => None,
    });
    Aws::new(shared::build_http_client(None).unwrap(), environment, Clock::system())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_aws_has_one_retry_on_a_new_connection() {
    let good = |_: &Request| Reply::Respond { status: 200, headers: String::new(), body: "{}".to_owned(), delay: SLOW };
    for fate in [Reply::Reset, Reply::Silent, respond(500, "{}")] {
        let what = format!("{fate:?}");
        let peer = Peer::with_bad_connections(good, move |_| fate.clone()).await;
        let aws = aws(&peer);
        let call = async || {
            let deadline = Instant::now() + Duration::from_secs(10);
            aws.call(Service::DynamoDb, "GetItem", &json!({}), deadline).await.unwrap()
        };
        join_all((0..8).map(|_| call())).await;
        let known = peer.connections();
        assert_eq!(peer.mark_bad(), 8);
        call().await;
        call().await;
        let used: Vec<usize> = peer.requests()[8..].iter().map(|request| request.connection).collect();
        assert_eq!(used.len(), 3, "{what}: {used:?}");
        assert!(known.contains(&used[0]) && used[1..].iter().all(|used| !known.contains(used)), "{what}: {used:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inlet_has_one_retry_on_a_new_connection() {
    const TAKEN: &str = r#"{"inletId":"abc","xactionId":"1:2:3","receivedTimeMs":1}"#;
    let good =
        |_: &Request| Reply::Respond { status: 200, headers: String::new(), body: TAKEN.to_owned(), delay: SLOW };
    for fate in [Reply::Reset, respond(503, ""), respond(500, "")] {
        let what = format!("{fate:?}");
        let inlet = Peer::with_bad_connections(good, move |_| fate.clone()).await;
        let host = inlet.address.to_string();
        let url = format!("http://{host}/collection/abc");
        let function =
            function_of("platform-ingest", &[("INLET_URL", &url), ("INLET_FLOW_ID", "f"), ("EMULATOR_HOSTS", &host)]);
        let ingest = async |partitions: u32| {
            let partitions: serde_json::Map<String, Value> = (0..partitions)
                .map(|n| {
                    let record = json!({ "topic": "hub", "partition": n, "offset": 7, "value": STANDARD.encode("{}") });
                    (format!("hub-{n}"), json!([record]))
                })
                .collect();
            let event = json!({ "eventSource": "SelfManagedKafka", "records": partitions });
            let response = function.invoke(event.to_string().into_bytes()).await.unwrap();
            serde_json::from_slice::<Value>(&response).unwrap()["batchItemFailures"].clone()
        };
        assert_eq!(ingest(8).await, json!([]));
        let known = inlet.connections();
        assert_eq!(inlet.mark_bad(), 8);
        assert_eq!((ingest(1).await, ingest(1).await), (json!([]), json!([])), "{what}");
        let used: Vec<usize> = inlet.requests()[8..].iter().map(|request| request.connection).collect();
        assert_eq!(used.len(), 3, "{what}: {used:?}");
        assert!(known.contains(&used[0]) && used[1..].iter().all(|used| !known.contains(used)), "{what}: {used:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_does_not_share_the_connection_of_another_request() {
    let peer = Peer::start(|_| stored()).await;
    let http = shared::build_http_client(None).unwrap();
    let send = async |via| {
        let url = format!("http://{}/", peer.address).parse().unwrap();
        let attempt = Attempt { via, bound: Instant::now() + Duration::from_secs(5) };
        let request = reqwest::Request::new(reqwest::Method::POST, url);
        let response = http.send(request, attempt.via, attempt.bound).await.unwrap();
        assert_eq!(response.status(), 201);
        response.read(100, attempt.bound).await.whole().unwrap();
    };
    for via in [Via::Pool, Via::NewConnection, Via::NewConnection, Via::Pool, Via::NewConnection] {
        send(via).await;
    }
    let used: Vec<usize> = peer.requests().iter().map(|request| request.connection).collect();
    assert_eq!(used, [0, 1, 2, 0, 3]);
}

/// A TLS server with an untrusted certificate for `name`.
fn untrusted_server(name: &str) -> std::net::SocketAddr {
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let (config, listener) = (Arc::new(config), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut tls = rustls::ServerConnection::new(config.clone()).unwrap();
            let _ = tls.complete_io(&mut stream.unwrap());
        }
    });
    address
}

/// A server that does not speak TLS.
fn plain_server() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
            let _ = stream.read(&mut [0; 1024]);
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_connection_has_a_hint_if_an_operator_can_fix_it() {
    let to = |endpoint: String, emulator: bool| {
        let emulator = if emulator { ";UseDevelopmentEmulator=true" } else { "" };
        format!("Endpoint={endpoint};SharedAccessKeyName=n;SharedAccessKey=k;EntityPath=h{emulator}")
    };
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let plain = plain_server();
    // No part of a name has 64 characters, so the resolver refuses it without a network.
    let no_such_host = format!("sb://{}.invalid", "x".repeat(64));
    let (untrusted, other_name) = (untrusted_server("localhost"), untrusted_server("other.example"));
    for (connection_string, named) in [
        (to(format!("sb://{closed}"), true), None),
        (to(format!("https://localhost:{}", untrusted.port()), true), Some("EXTRA_CA_CERTS")),
        (to(format!("https://localhost:{}", other_name.port()), true), Some("certificate")),
        (to(format!("https://{plain}"), true), Some("TLS handshake")),
        (to(no_such_host, true), Some("DNS")),
    ] {
        let function = function(&[("EVENT_HUBS_CONNECTION_STRING", &connection_string), ("SENDER_AUTH", SENDER_AUTH)]);
        response_of(&function, &request(DOCUMENTED)).await.problem(503);
        let hints = hints(&function).await;
        match named {
            None => assert!(hints.is_empty(), "{hints:?}"),
            Some(named) => {
                assert_eq!(hints.len(), 1, "{connection_string}: {hints:?}");
                assert!(hints[0].contains(named) && hints[0].contains("`Endpoint`"), "{hints:?}");
                assert!(!hints[0].contains("key"), "{hints:?}");
            }
        }
        let line = logs(&function).await.into_iter().find(|line| line["message"] == "webhook answered").unwrap();
        assert_eq!(line["reason"], "unreachable", "the reason stays the same");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_has_a_hint_that_follows_from_its_text() {
    const TRACKING: &str = "TrackingId:0a80044d-e087-446f-bd69-4a08e9a34ce4_G31, Timestamp:2026-05-01T10:00:00";
    for (status, detail, problem, named) in [
        (401, "40103: Invalid authorization token signature.", "answered 401, code 40103", "key name and key"),
        (
            401,
            "InvalidSignature: The token has an invalid signature.",
            "answered 401, InvalidSignature",
            "key name and key",
        ),
        (401, "ExpiredToken: The token is expired.", "answered 401, ExpiredToken", "clock"),
        (401, "Ip has been prevented to connect to the endpoint.", "answered 401", "network rules"),
        (401, "Unauthorized. SubCode=40199.", "answered 401, code 40199", "code 40199"),
        (403, "The quota is exceeded.", "answered 403", "quota"),
        (400, "Messaging entity 'events' is currently disabled.", "answered 400", "disabled"),
        (404, "40400: Endpoint not found.", "answered 404, code 40400", "name of the event hub"),
    ] {
        let body = format!("<Error><Code>{status}</Code><Detail>{detail} {TRACKING}</Detail></Error>");
        let hub = Peer::start(move |_| respond(status, &body)).await;
        let function = sender(&hub);
        response_of(&function, &request(DOCUMENTED)).await.problem(503);
        let line = logs(&function).await.into_iter().find(|line| line["message"] == "webhook answered").unwrap();
        assert_eq!(line["hub.problem"], problem, "{detail}");
        let hints = hints(&function).await;
        assert!(hints.len() == 1 && hints[0].contains(named), "{detail}: {hints:?}");
        assert_eq!(hints[0].contains("key name"), named == "key name and key", "{detail}: {hints:?}");
        assert!(!function.logs().iter().any(|line| line.contains("80044") || line.contains("e087")), "{detail}");
    }
}

#[tokio::test]
async fn no_part_of_a_file_of_certificates_is_in_the_log() {
    let key: Vec<u8> = (0..1200).map(|_| fastrand::u8(..)).collect();
    let key = STANDARD.encode(key);
    let lines: Vec<&str> = key.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let section = |kind: &str, end: &str| format!("-----BEGIN {kind}-----\n{}\n{end}\n", lines.join("\n"));
    let private = section("PRIVATE KEY", "-----END PRIVATE KEY-----");
    let files = [
        ("line-breaks-as-text", private.replace('\n', "\\n")),
        ("no-end", section("PRIVATE KEY", "")),
        ("other-end", section("CERTIFICATE", "-----END PRIVATE KEY-----")),
        ("not-base64", private.replace(lines[3], &format!("{}!%", &lines[3][..60]))),
        ("begin-broken-off", private.replace("KEY-----\n", "KEY--\n")),
        ("only-a-key", private.clone()),
        ("not-a-certificate", section("CERTIFICATE", "-----END CERTIFICATE-----")),
        ("byte-order-mark", format!("\u{feff}{}", private.replace('\n', "\\n"))),
    ];
    let folder = std::env::temp_dir().join(format!("certificates-{}-{}", std::process::id(), fastrand::u64(..)));
    std::fs::create_dir_all(&folder).unwrap();
    for (name, text) in files {
        let path = folder.join(format!("{name}.pem"));
        std::fs::write(&path, &text).unwrap();
        let path = path.to_str().unwrap();
        let hub = (
            "EVENT_HUBS_CONNECTION_STRING",
            "Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=k;EntityPath=h",
        );
        let line = init_failure(&[hub, ("EXTRA_CA_CERTS", path)]).await;
        assert_eq!(line["variable"], "EXTRA_CA_CERTS", "{line}");
        let line = line.to_string();
        assert!(line.contains(path) && line.len() < 1_000, "{line}");
        let forms = [
            |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned(),
            |bytes: &[u8]| bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", "),
            |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            |bytes: &[u8]| STANDARD.encode(&bytes[..15]),
        ];
        // 16 bytes of the file in one of these forms; the project's own words about a PEM file are not part of it.
        let parts: BTreeSet<&[u8]> = text.as_bytes().windows(16).filter(|part| !part.contains(&b'-')).collect();
        for form in forms {
            assert!(parts.iter().all(|part| !line.contains(&form(part))), "{name}: {line}");
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn a_byte_order_mark_before_certificates_is_skipped() {
    let rcgen::CertifiedKey { cert, .. } = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let path = std::env::temp_dir().join(format!("bom-{}-{}.pem", std::process::id(), fastrand::u64(..)));
    std::fs::write(&path, format!("\u{feff}{}", cert.pem())).unwrap();
    let system = start(&[("EXTRA_CA_CERTS", path.to_str().unwrap())]).await;
    assert_eq!(system.post(DOCUMENTED).await, delivered(1));
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_400_that_is_not_from_the_hub_does_not_reject_the_event() {
    let page = "<html><title>Bad Request</title><h2>Bad Request - Invalid Hostname</h2></html>";
    let hub = Peer::start(move |_| respond(400, page)).await;
    let function = sender(&hub);
    assert!(response_of(&function, &request(DOCUMENTED)).await.problem(503).contains("unexpected"));
    let hints = hints(&function).await;
    assert!(hints[0].contains("check the endpoint"), "{hints:?}");
}
