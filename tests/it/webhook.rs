//! The webhook trigger, from the point of view of its callers.

use serde_json::{Value, json};

use crate::harness::*;

#[tokio::test]
async fn every_fixture_arrives_as_the_documented_message() {
    let system = start(&[]).await;
    let mut sent = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/audience-change")).unwrap() {
        let event = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert_eq!(system.post(&event).await, delivered(1));
        sent += 1;
        let stored = system.hub.events(HUB);
        assert_eq!(stored.len(), sent);
        let newest = stored.iter().max_by_key(|event| event.enqueued_time.clone()).unwrap();
        assert!(newest.batch && newest.partition_key.is_some(), "{newest:?}");
    }
    for event in system.hub.events(HUB) {
        let body: Value = serde_json::from_str(&event.body).unwrap();
        let names: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names.len(), 11, "{names:?}");
        assert_eq!(event.properties["cloudEvents:specversion"], "1.0");
        assert_eq!(event.properties["cloudEvents:subject"], body["profileId"]);
    }
}

#[tokio::test]
async fn bodies_are_read_as_text_or_base64_with_or_without_a_byte_order_mark() {
    let system = start(&[]).await;
    let mut event = request("");
    event["isBase64Encoded"] = true.into();
    event["body"] = base64(format!("\u{feff}{DOCUMENTED}").as_bytes()).into();
    assert_eq!(system.response_to(&event).await, delivered(1));
    assert_eq!(system.post(&format!("\u{feff} {DOCUMENTED}")).await, delivered(1));
    event["body"] = "{}!".into();
    assert!(system.response_to(&event).await.problem(400).contains("base64"));
    event["body"] = base64(b"{\"profileId\":\"\xff\"}").into();
    assert!(system.response_to(&event).await.problem(400).contains("not UTF-8 (at byte 14)"));
}

#[tokio::test]
async fn an_array_with_an_invalid_element_is_refused_as_a_whole() {
    let system = start(&[]).await;
    let (a, b) = (event_of("a"), event_of("b"));
    assert_eq!(system.post(&format!("[{a},{b}]")).await, delivered(2));
    let wrong = r#"{"profileId":"c"}"#;
    let response = system.post(&format!("[{a},{wrong},{b},7]")).await;
    assert_eq!(response.problem(400), "[1] sourceId: missing or empty; [3] expected a JSON object");
    assert_eq!(system.stored(), 2);
    assert_eq!(system.post("[]").await, handled("filtered", 0));
}

#[tokio::test]
async fn profiles_without_the_flows_id_are_filtered() {
    let system = start(&[("FLOW_OPTIONS", r#"{"partnerNumber":44}"#)]).await;
    assert_eq!(system.post(DOCUMENTED).await, handled("filtered", 0));
    let several = event_of("p").replace(r#"["4"]"#, r#"{"44":["x","y"]}"#);
    assert_eq!(system.post(&several).await, delivered(2));
    assert_eq!(system.stored(), 2);
}

#[tokio::test]
async fn unknown_paths_return_404_and_get_returns_405() {
    let system = start(&[]).await;
    let at = |path: &str, stage: &str, method: &str| {
        let mut event = request(DOCUMENTED);
        event["rawPath"] = path.into();
        event["requestContext"]["stage"] = stage.into();
        event["requestContext"]["http"]["method"] = method.into();
        event
    };
    for (path, stage) in
        [("/", "$default"), ("/audience-change/default", "$default"), ("/prod/audience-change", "prod")]
    {
        assert_eq!(system.response_to(&at(path, stage, "PUT")).await, delivered(1), "{path}");
    }
    for path in ["/audience-change/other", "/audience-change/default/more", "/audience-change/audience-change"] {
        system.response_to(&at(path, "$default", "POST")).await.problem(404);
    }
    system.response_to(&at("/audience-change", "$default", "GET")).await.problem(405);
    system.response_to(&json!({ "requestContext": {}, "rawPath": 1 })).await.problem(400);
    let mut without_flag = request(DOCUMENTED);
    without_flag["isBase64Encoded"] = Value::Null;
    assert_eq!(system.response_to(&without_flag).await, delivered(1));
}

#[tokio::test]
async fn a_webhook_without_an_accepted_credential_returns_401() {
    let auth = r#"[{"type":"bearer","secret":"new"},{"type":"bearer","secret":"old"},
        {"type":"basic","username":"u","secret":"p"},{"type":"header","name":"X-Api-Key","secret":"h"},
        {"type":"query","name":"code","secret":"a+b"},
        {"type":"standard-webhooks","secret":"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}]"#;
    let system = start(&[("SENDER_AUTH", auth)]).await;
    let with = |headers: Value, query: &str| {
        let mut event = request(DOCUMENTED);
        event["headers"] = headers;
        event["rawQueryString"] = query.into();
        event
    };
    for (headers, query) in [
        (json!({ "authorization": "Bearer old" }), ""),
        (json!({ "Authorization": "bearer new" }), ""),
        (json!({ "authorization": "Basic dTpw" }), ""),
        (json!({ "x-api-key": "h" }), ""),
        (json!({}), "x=1&code=a%2Bb"),
        (json!({}), "code=a+b"),
        (signed(DOCUMENTED), ""),
    ] {
        assert_eq!(system.response_to(&with(headers.clone(), query)).await, delivered(1), "{headers} {query}");
    }
    let stored = system.stored();
    for (headers, query) in [
        (json!({}), ""),
        (Value::Null, "code=h"),
        (json!({ "authorization": "Bearer h" }), ""),
        (json!({ "authorization": "Basic dTpxx" }), ""),
        (json!({ "x-api-key": "" }), ""),
        (signed("another body"), ""),
    ] {
        system.response_to(&with(headers, query)).await.problem(401);
    }
    let mut broken = with(json!({}), "");
    broken["body"] = "not even JSON".into();
    system.response_to(&broken).await.problem(401);
    assert_eq!(system.stored(), stored);
}

#[tokio::test]
async fn without_configured_senders_webhooks_return_401_and_open_flows_log_a_warning() {
    let system = start(&[("SENDER_AUTH", "")]).await;
    system.post(DOCUMENTED).await.problem(401);
    let warnings = system.function.logs().iter().filter(|line| line.contains("\"WARN\"")).count();
    assert_eq!(warnings, 1);
    assert!(system.failures(&[record("a", DOCUMENTED)]).await.is_empty(), "queue records need no sender");
    let system = start(&[("SENDER_AUTH", "none")]).await;
    let mut anybody = request(DOCUMENTED);
    anybody["headers"] = json!({});
    assert_eq!(system.response_to(&anybody).await, delivered(1));
}

/// Headers of a Standard Webhooks sender.
fn signed(body: &str) -> Value {
    use hmac::{Hmac, KeyInit, Mac};
    let key =
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let now = shared::clock::Clock::system().unix_seconds();
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&key).unwrap();
    mac.update(format!("msg_1.{now}.{body}").as_bytes());
    let signature = base64(&mac.finalize().into_bytes());
    json!({ "webhook-id": "msg_1", "webhook-timestamp": now.to_string(), "webhook-signature": format!("v1,{signature}") })
}

fn base64(bytes: &[u8]) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)
}

#[tokio::test]
async fn compressed_bodies_return_415_with_any_header() {
    let system = start(&[]).await;
    let mut event = request("");
    event["isBase64Encoded"] = true.into();
    for begin in [&b"\x1f\x8b\x08\x00\xff"[..], b"\x28\xb5\x2f\xfd\xff", b"\x78\x9c\xab\xff"] {
        event["body"] = base64(begin).into();
        assert!(
            system.response_to(&event).await.problem(415).contains("compressed bodies are not accepted"),
            "{begin:?}"
        );
    }
    event["headers"]["content-encoding"] = "gzip".into();
    event["body"] = base64(DOCUMENTED.as_bytes()).into();
    assert_eq!(system.response_to(&event).await, delivered(1), "a gateway may have decompressed it");
}

#[tokio::test]
async fn a_401_names_the_schemes_that_are_accepted() {
    let header = async |auth: &str| {
        let system = start(&[("SENDER_AUTH", auth)]).await;
        let mut event = request(DOCUMENTED);
        event["headers"] = json!({});
        let response = system.function.invoke(event.to_string().into_bytes()).await.unwrap();
        let response: Value = serde_json::from_slice(&response).unwrap();
        assert_eq!(response["statusCode"], 401);
        response["headers"]["www-authenticate"].clone()
    };
    const BASIC: &str = r#"{"type":"basic","username":"u","secret":"s"}"#;
    const HEADER: &str = r#"{"type":"header","name":"x-key","secret":"s"}"#;
    let bearer = r#"{"type":"bearer","secret":"s"}"#;
    assert_eq!(header(&format!("[{bearer},{bearer}]")).await, "Bearer");
    let basic = r#"Basic realm="events", charset="UTF-8""#;
    assert_eq!(header(&format!("[{HEADER},{BASIC}]")).await, basic);
    assert_eq!(header(&format!("[{bearer},{BASIC}]")).await, format!("{basic}, Bearer"));
    assert_eq!(header(&format!("[{HEADER}]")).await, Value::Null);
}

#[tokio::test]
async fn credentials_that_a_gateway_joined_are_accepted() {
    let system = start(&[]).await;
    let mut event = request(DOCUMENTED);
    event["headers"]["authorization"] = format!("Bearer {SENDER_TOKEN},Bearer {SENDER_TOKEN}").into();
    assert_eq!(system.response_to(&event).await, delivered(1));
    event["headers"]["authorization"] = "Bearer other,Bearer another".into();
    system.response_to(&event).await.problem(401);
}

#[tokio::test]
async fn events_of_payload_1_return_400_and_log_once() {
    let system = start(&[]).await;
    let rest_api = json!({
        "version": "1.0", "httpMethod": "POST", "path": "/", "headers": {}, "body": DOCUMENTED,
        "requestContext": { "stage": "prod", "httpMethod": "POST" }, "isBase64Encoded": false,
    });
    let load_balancer = json!({
        "httpMethod": "POST", "path": "/", "headers": {}, "body": DOCUMENTED,
        "requestContext": { "elb": { "targetGroupArn": "arn:aws:elasticloadbalancing:x" } }, "isBase64Encoded": false,
    });
    for event in [&rest_api, &load_balancer, &rest_api] {
        system.response_to(event).await.problem(400);
    }
    let logged = system.function.logs().into_iter().filter(|line| line.contains("PayloadFormatVersion")).count();
    assert_eq!(logged, 1);
}
