//! The sample events of `events/`.

use std::fs;

use shared::contract::codec::pack;
use shared::contract::parked::unpacked;

use super::*;

#[tokio::test]
async fn sample_events_are_delivered() {
    let environment: Value = serde_json::from_str(&read("events/env.json")).unwrap();
    let mut samples = 0;
    for entry in fs::read_dir(root().join("events")).unwrap() {
        let path = entry.unwrap().path();
        let event: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let file = path.file_stem().unwrap().to_str().unwrap();
        let kind = file.split('-').take(2).collect::<Vec<_>>().join("-");
        if file == "env" {
            continue;
        }
        if kind == "redelivery-queue" {
            assert_eq!(redelivered(&event, &environment["Redelivery"]).await, 1);
            samples += 1;
            continue;
        }
        if kind == "platform-ingest" {
            assert_eq!(crate::ingest::ingested(&event, &environment["PlatformIngest"]).await, 2);
            samples += 1;
            continue;
        }
        let block: String = kind.split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
        let senders = environment[&block]["SENDER_AUTH"].as_str().unwrap();
        let system = start_kind(&kind, hub_config(), &[("SENDER_AUTH", senders)]).await;
        match (event.get("requestContext"), event.get("Records")) {
            (Some(_), _) => assert_eq!(system.response_to(&event).await, delivered(1), "{}", path.display()),
            (_, Some(records)) => {
                assert!(system.failures(records.as_array().unwrap()).await.is_empty(), "{}", path.display());
            }
            _ => panic!("{file} is not an event"),
        }
        samples += 1;
        assert!(system.stored() > 0, "{}", path.display());
    }
    assert_eq!(samples, 7);
}

/// Number of messages that reach the hub, after the parked envelope was changed to the hub of this test.
async fn redelivered(event: &Value, environment: &Value) -> usize {
    let record = &event["Records"][0];
    let mut envelope: Value = serde_json::from_str(&unpacked(record["body"].as_str().unwrap()).unwrap()).unwrap();
    let connection = environment["EVENT_HUBS_CONNECTION_STRING"].as_str().unwrap();
    assert!(connection.contains(&format!("sb://{};", envelope["host"].as_str().unwrap())), "sam local delivers it");
    assert!(!connection.contains("EntityPath"), "redelivery sends to the hubs of all kinds");
    let url = environment["PARKING_QUEUE_URL"].as_str().unwrap();
    let system = start_kind("redelivery", hub_config(), &[("PARKING_QUEUE_URL", url)]).await;
    envelope["host"] = system.hub.url().replace("http://", "").into();
    envelope["hub"] = HUB.into();
    let mut record = record.clone();
    record["body"] = pack(envelope.to_string().as_bytes()).into();
    assert!(system.failures(&[record]).await.is_empty());
    system.stored()
}
