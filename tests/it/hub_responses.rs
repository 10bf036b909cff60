//! The outcome of events for each response of the hub, through the built binary: one case per status of the contract.

use local::emulator::{Action, Config, Key, Rights};

use crate::harness::*;

/// Posts one event under `faults`. Returns the response, the number of requests to the hub and the number of stored events.
async fn post_under(faults: Vec<local::emulator::Fault>, variables: &[(&str, &str)]) -> (Response, usize, usize) {
    let system = start(variables).await;
    system.hub.script(faults);
    let response = system.post(DOCUMENTED).await;
    (response, system.requests(), system.stored())
}

#[tokio::test]
async fn a_201_is_reported_as_delivered() {
    let (response, requests, stored) = post_under(vec![], &[]).await;
    assert_eq!((response, requests, stored), (delivered(1), 1, 1));
}

#[tokio::test]
async fn a_401_is_retried_once_with_a_new_token() {
    let (response, requests, stored) = post_under(vec![status(401, None, "40103: Invalid token")], &[]).await;
    assert_eq!((response, requests, stored), (delivered(1), 2, 1));
    let (response, requests, stored) = post_under(vec![lasting(status(401, None, "40103: Invalid token"))], &[]).await;
    assert!(response.problem(503).contains("unauthorized"));
    assert_eq!((requests, stored), (2, 0));
}

#[tokio::test]
async fn a_throttled_request_is_retried_only_if_the_wait_fits() {
    let asks_for_none = status(503, Some(0), "50002");
    let (response, requests, _) = post_under(vec![asks_for_none], &[]).await;
    assert_eq!((response, requests), (delivered(1), 2));
    let says_nothing = status(503, None, "50002: throttled");
    let (response, requests, stored) = post_under(vec![says_nothing], &[]).await;
    assert!(response.problem(503).contains("throttled"));
    assert_eq!((requests, stored), (1, 0), "four seconds do not fit a webhook's time");
    let without_code = status(429, None, "slow down");
    let (response, requests, _) = post_under(vec![without_code.clone(), without_code], &[]).await;
    assert_eq!((response, requests), (delivered(1), 3));
    let asks_for_eternity = status(503, Some(u64::MAX), "50002");
    let (response, requests, _) = post_under(vec![asks_for_eternity], &[]).await;
    assert!(response.problem(503).contains("throttled"));
    assert_eq!(requests, 1);
    let asks_for_a_minute = status(429, Some(60), "50002");
    let (response, requests, _) = post_under(vec![asks_for_a_minute], &[]).await;
    assert!(response.problem(503).contains("throttled"));
    assert_eq!(requests, 1);
}

#[tokio::test]
async fn a_queue_record_waits_until_a_throttled_hub_accepts_it() {
    let system = start(&[]).await;
    system.hub.script([status(503, Some(1), "50002"), status(500, None, "internal")]);
    assert!(system.failures(&[record("a", DOCUMENTED)]).await.is_empty());
    assert_eq!((system.requests(), system.stored()), (3, 1));
}

#[tokio::test]
async fn server_errors_get_three_attempts() {
    for code in [408, 500, 502, 504] {
        let passing = status(code, None, "");
        let (response, requests, _) = post_under(vec![passing.clone(), passing.clone()], &[]).await;
        assert_eq!((response, requests), (delivered(1), 3), "{code}");
        let (response, requests, _) = post_under(vec![lasting(passing)], &[]).await;
        response.problem(503);
        assert_eq!(requests, 3, "{code}");
    }
}

#[tokio::test]
async fn a_request_on_a_lost_connection_is_retried() {
    let (response, requests, stored) = post_under(vec![fault(Action::Reset)], &[]).await;
    assert_eq!((response, requests, stored), (delivered(1), 2, 1));
    let (response, _, stored) = post_under(vec![lasting(fault(Action::Reset))], &[]).await;
    assert!(response.problem(503).contains("connection_lost"));
    assert_eq!(stored, 0);
    let system = start(&[]).await;
    system.hub.script([fault(Action::ResetAfterStore)]);
    assert_eq!(system.post(DOCUMENTED).await, delivered(1));
    let stored = system.hub.events(HUB);
    assert_eq!(stored.len(), 2, "stored twice, which at-least-once delivery allows");
    assert_eq!(stored[0].properties["cloudEvents:id"], stored[1].properties["cloudEvents:id"]);
}

#[tokio::test]
async fn a_hub_that_does_not_respond_or_is_unreachable_returns_503() {
    let (response, _, stored) = post_under(vec![lasting(fault(Action::Hang))], &[]).await;
    assert!(response.problem(503).contains("timeout"));
    assert_eq!(stored, 0);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nowhere = format!(
        "Endpoint=sb://{closed};SharedAccessKeyName=n;SharedAccessKey=k;EntityPath=h;UseDevelopmentEmulator=true"
    );
    let (response, _, _) = post_under(vec![], &[("EVENT_HUBS_CONNECTION_STRING", nowhere.as_str())]).await;
    assert!(response.problem(503).contains("unreachable"));
}

#[tokio::test]
async fn operator_fixable_errors_return_503_and_log_once() {
    for (fault, word) in [
        (status(403, None, "Unauthorized access. 'Send' claim(s) are required."), "forbidden"),
        (status(403, None, "The quota is exceeded."), "forbidden"),
        (status(404, None, "40400: Endpoint not found."), "not_found"),
        (status(410, None, "gone"), "not_found"),
        (status(200, None, ""), "unexpected"),
        (status(302, None, ""), "unexpected"),
        (status(418, None, ""), "unexpected"),
    ] {
        let system = start(&[]).await;
        system.hub.script([lasting(fault)]);
        assert!(system.post(DOCUMENTED).await.problem(503).contains(word), "{word}");
        assert_eq!(system.requests(), 1, "{word}");
        let logged =
            system.function.logs().iter().filter(|line| line.contains("\"ERROR\"") && line.contains(word)).count();
        assert_eq!(logged, 1, "{word}");
    }
}

#[tokio::test]
async fn refusals_by_the_emulator_itself_return_503() {
    let listen_only = Key {
        name: "listen".to_owned(),
        key: "a2V5".to_owned(),
        rights: Rights { send: false, listen: true, manage: false },
        hub: None,
    };
    let system = start_with(Config { keys: vec![listen_only], ..hub_config() }, &[]).await;
    assert!(system.post(DOCUMENTED).await.problem(503).contains("forbidden"));
    let system = start(&[]).await;
    system.hub.set_key(&hub_config().keys[0].name, "bmV3");
    assert!(system.post(DOCUMENTED).await.problem(503).contains("unauthorized"));
    let system = start(&[("PARTITIONING", "partitions:99")]).await;
    let profile = "a-profile-of-a-partition-that-is-not-there";
    assert!(system.post(&event_of(profile)).await.problem(503).contains("bad_partition"));
}

#[tokio::test]
async fn a_refused_event_returns_400_or_413() {
    let (response, requests, _) = post_under(vec![lasting(status(400, None, "malformed"))], &[]).await;
    response.problem(400);
    assert_eq!(requests, 1);
    let (response, _, _) = post_under(vec![lasting(status(413, None, ""))], &[]).await;
    response.problem(413);
    let (response, _, _) = post_under(vec![lasting(status(403, None, "The message is too large"))], &[]).await;
    response.problem(413);
}

#[tokio::test]
async fn refused_batches_are_halved_until_one_is_left() {
    let small_hub = Config { max_bytes: 4000, ..hub_config() };
    let system = start_with(small_hub, &[("PARTITIONING", "none")]).await;
    let padded = |profile: &str, bytes: usize| event_of(profile).replace("value1", &"x".repeat(bytes));
    let records: Vec<_> =
        (0..10).map(|n| record(&format!("r{n}"), &padded(&format!("p{n}"), if n == 6 { 5000 } else { 500 }))).collect();
    assert_eq!(system.failures(&records).await, ["r6"]);
    let stored = system.hub.events(HUB);
    let mut profiles: Vec<_> =
        stored.iter().map(|event| event.properties["cloudEvents:subject"].as_str().unwrap()).collect();
    profiles.sort_unstable();
    assert_eq!(profiles, ["p0", "p1", "p2", "p3", "p4", "p5", "p7", "p8", "p9"]);
}

#[tokio::test]
async fn an_event_over_the_budget_returns_413_without_a_request() {
    let system = start(&[("EVENT_HUBS_MAX_BATCH_BYTES", "1000")]).await;
    let large = event_of("p").replace("value1", &"x".repeat(1000));
    assert!(system.post(&large).await.problem(413).contains("larger"));
    assert_eq!(system.requests(), 0);
}

#[tokio::test]
async fn a_partition_that_does_not_exist_is_found_with_one_request() {
    let system = start(&[("PARTITIONING", "partitions:8")]).await;
    let records: Vec<_> = (0..100).map(|n| record(&format!("r{n}"), &event_of(&format!("p{n}")))).collect();
    let failed = system.failures(&records).await;
    assert!(!failed.is_empty());
    assert_eq!(system.requests(), 8, "one for each of eight partitions, of which four do not exist");
    assert_eq!(system.stored(), 100 - failed.len());
}
