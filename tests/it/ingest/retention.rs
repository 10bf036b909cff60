//! Records wait in the hub until the inlet accepts them.

use std::collections::BTreeSet;
use std::time::Duration;

use local::poller::{Discarded, Limits, Poller};
use shared::clock::Clock;
use tokio::time::sleep;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn no_event_of_the_hub_is_lost_under_faults() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let sender = cloud.function("audience-change", &hub, &[("PARTITIONING", "partitions:4")]);
    let system = System { function: sender, hub: hub.clone() };
    let records: Vec<Value> = (0..800).map(|n| queue_record(&n.to_string(), &event_of(&format!("p{n}")))).collect();
    assert!(system.failures(&records).await.is_empty());

    let inlet = inlet(Some(CLIENT)).await;
    cloud.secret("ims", &json!({ "client_id": CLIENT.0, "client_secret": CLIENT.1 }).to_string()).await;
    let token_url = inlet.token_url();
    let ims = [("IMS_SECRET_ID", "ims"), ("IMS_TOKEN_URL", token_url.as_str()), ("INLET_BATCH_MAX", "7")];
    let mut config = in_cloud(&cloud, variables(&inlet, "xdm", &ims)).config().clone();
    config.timeout = Duration::from_secs(5);
    let function = Function::new(config);
    let mut poller = Poller::new(hub.clone(), HUB, function.clone(), None, 60);

    let elements = |status, places: &[usize]| Action::Elements { status, places: places.to_vec(), as_documented: true };
    let mut faults = vec![
        Fault { token: true, ..Fault::from(respond_with(503)) },
        Fault::from(Action::Hang),
        Fault { times: 12, ..Fault::from(respond_with(503)) },
    ];
    for action in [
        elements(503, &[0, 3]),
        elements(429, &[6]),
        Action::Reset,
        Action::ResetAfterTaking,
        elements(400, &[2]),
        respond_with(500),
        Action::Delay { ms: 200 },
        Action::Status { status: 429, retry_after: Some(1) },
    ] {
        faults.extend([Fault::from(action), Fault::from(Action::Delay { ms: 5 })]);
    }
    inlet.script(faults);
    let mut rounds = 0;
    loop {
        rounds += 1;
        assert!(rounds < 500, "no progress");
        // During a batch instances are killed, tokens expire, and commits are lost.
        let strike = async {
            sleep(Duration::from_millis(fastrand::u64(..60))).await;
            match rounds % 5 {
                1 => drop(function.kill().await),
                3 => inlet.revoke_tokens(),
                _ => {}
            }
        };
        let (polled, ()) = tokio::join!(poller.poll(), strike);
        if polled == Polled::Nothing {
            break;
        }
        if rounds % 7 == 0 && rounds < 60 {
            poller.rewind(5);
        }
    }
    let rejected: BTreeSet<String> = rejected(&cloud).await.into_iter().map(|(_, detail, _)| place(&detail)).collect();
    let mut last = BTreeMap::new();
    for taken in inlet.taken() {
        last.insert(taken.record["_id"].as_str().unwrap().to_owned(), taken.number);
    }
    let mut order = BTreeMap::<u32, u64>::new();
    let events = hub.events(HUB);
    for event in &events {
        let id = event.properties["cloudEvents:id"].as_str().unwrap();
        match last.remove(id) {
            Some(number) => {
                let before = order.insert(event.partition, number);
                assert!(before.is_none_or(|before| before < number), "the last copies of a partition are in order");
            }
            None => assert!(
                rejected.contains(&format!("{HUB}-{} at {}", event.partition, event.sequence_number)),
                "lost: {} of {}",
                event.sequence_number,
                event.partition,
            ),
        }
    }
    assert!(last.is_empty(), "the inlet has only events of the hub, each with its own id: {last:?}");
    assert_eq!(events.len(), 800);
    assert!(inlet.tokens_given() > 2 && inlet.taken().len() > 800, "the faults took effect");
    assert!(rejected.len() < 20, "{rejected:?}");
}

#[tokio::test]
async fn records_wait_in_the_hub_through_any_number_of_failed_invocations() {
    let hub = filled_hub(20).await;
    let inlet = inlet(None).await;
    let function = function(&variables(&inlet, "raw", &[]));
    let mut poller = Poller::new(hub.clone(), HUB, function.clone(), None, 1000);
    inlet.script([lasting(respond_with(404))]);
    for attempt in 0..50 {
        assert_eq!(poller.poll().await, Polled::Batch { records: 20, again: 20 }, "{attempt}");
    }
    inlet.clear_faults();
    drain(&mut poller).await;
    assert_eq!(inlet.taken().len(), 20);
    assert_eq!(poller.discarded(), []);

    // An on-failure destination without a number of retries: the batch is skipped after ten retries.
    let limits = Limits::of(&json!({ "DestinationConfig": { "OnFailure": { "Destination": "arn:aws:sqs:a:1:b" } } }));
    let mut limited = Poller::new(hub, HUB, function, None, 1000).with_limits(limits, Clock::system());
    inlet.forget();
    inlet.script([lasting(respond_with(404))]);
    for _ in 0..11 {
        assert!(matches!(limited.poll().await, Polled::Batch { records: 20, .. }));
    }
    assert_eq!(limited.poll().await, Polled::Nothing);
    assert_eq!(limited.discarded(), [Discarded { partition: 0, first: 0, last: 19 }]);
    assert!(inlet.taken().is_empty());
}

#[tokio::test]
async fn records_of_any_age_are_ingested_unless_an_age_is_set() {
    let hub = filled_hub(5).await;
    let inlet = inlet(None).await;
    let function = function(&variables(&inlet, "raw", &[]));
    let now = Clock::system();
    let in_two_days = Clock::from_fn(move || now.now() + Duration::from_secs(2 * 86_400));
    let poller = |age: i64| {
        let limits = Limits::of(&json!({ "MaximumRecordAgeInSeconds": age }));
        Poller::new(hub.clone(), HUB, function.clone(), None, 1000).with_limits(limits, in_two_days.clone())
    };
    let mut limited = poller(86_400);
    assert_eq!(limited.poll().await, Polled::Nothing);
    assert_eq!(limited.discarded(), [Discarded { partition: 0, first: 0, last: 4 }]);
    assert!(inlet.taken().is_empty());
    let mut unlimited = poller(-1);
    drain(&mut unlimited).await;
    assert_eq!(inlet.taken().len(), 5);
}

/// The place of a rejected record, from the detail.
fn place(detail: &str) -> String {
    detail.split(": ").next().unwrap().to_owned()
}
