//! A throttled hub with live traffic.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use secrecy::ExposeSecret;
use serde_json::json;
use tokio::time::interval;

use super::super::parked::{envelope, group, pack};
use super::super::system::first_key;
use super::*;

/// A throttled hub.
#[derive(Debug, Clone, Copy)]
pub struct Throttled {
    pub units: u32,
    pub concurrency: usize,
    /// Time before anything is counted, and time that is counted.
    pub warm_up: Duration,
    pub counted: Duration,
    pub print_logs: bool,
}

/// Contract test 6: live traffic uses half of the units, redelivery the rest.
pub async fn throttled(seed: u64, plan: Throttled) -> Outcome {
    let redelivering =
        Redelivering { pollers: plan.concurrency, instances: plan.concurrency, ..Redelivering::template() };
    let options = Options {
        redelivering,
        throughput_units: [Some(plan.units), None],
        print_logs: plan.print_logs,
        ..Options::default()
    };
    let system = Arc::new(System::start(options).await);
    let ledger = Arc::new(Ledger::default());
    println!("{} units, {} events/s of live traffic", plan.units, plan.units * 500);
    let live = Arc::new(Live::default());
    let sender = Aborted(tokio::spawn(live_traffic(system.clone(), ledger.clone(), live.clone(), seed, plan.units)));
    let filler = Aborted(tokio::spawn(fill(system.clone(), ledger.clone(), seed)));
    let pollers = system.redeliver();
    let progress = show_progress(&system, {
        let live = live.clone();
        move || format!("live: {:?}", live.traffic())
    });
    let hub = hub_of(&system, B).clone();
    let mut copies: HashMap<String, usize> = HashMap::new();
    let collect = |copies: &mut HashMap<String, usize>| {
        let (events, requests) = hub.take();
        let count = events.len();
        for event in events {
            *copies.entry(event.properties["cloudEvents:id"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
        }
        (count, traffic(&requests))
    };
    let (mut stored, mut all, mut seconds) = (0, Traffic::default(), Vec::new());
    let began = Instant::now();
    while began.elapsed() < plan.warm_up {
        sleep(Duration::from_secs(1)).await;
        collect(&mut copies);
    }
    let (live_before, counted_from) = (live.traffic(), Instant::now());
    collect(&mut copies);
    while counted_from.elapsed() < plan.counted {
        sleep(Duration::from_secs(1)).await;
        let (events, traffic) = collect(&mut copies);
        stored += events;
        seconds.push(events);
        all.requests += traffic.requests;
        all.refused += traffic.refused;
    }
    let (took, live_after) = (counted_from.elapsed(), live.traffic());
    drop((sender, filler, progress, pollers));
    let live = Traffic {
        requests: live_after.requests - live_before.requests,
        refused: live_after.refused - live_before.refused,
        events: live_after.events - live_before.events,
    };
    let own = (all.requests.saturating_sub(live.requests), all.refused.saturating_sub(live.refused));
    let used = 100.0 * stored as f64 / (took.as_secs_f64() * f64::from(plan.units) * 1000.0);
    let part = |refused: usize, requests: usize| 100.0 * refused as f64 / requests.max(1) as f64;
    let (own_part, live_part) = (part(own.1, own.0), part(live.refused, live.requests));
    let repeated = copies.values().filter(|copies| **copies > 1).count();
    // The hub was emptied continuously, so the ledger can't compare its events.
    let mut outcome = Outcome::of(Default::default());
    outcome.partial = true;
    let units = plan.units;
    outcome.measure(used >= 85.0, format!("{units} units: {used:.1} % used over {took:.0?} (at least 85 %)"));
    outcome.measure(
        own_part < 5.0,
        format!("{} of redelivery's {} requests refused: {own_part:.1} % (less than 5 %)", own.1, own.0),
    );
    outcome.measure(
        live_part < 2.0,
        format!("{} of {} live requests refused: {live_part:.1} % (less than 2 %)", live.refused, live.requests),
    );
    outcome.require(repeated == 0, format!("{repeated} of {} events were stored more than once (none)", copies.len()));
    let dead_letters = system.sqs.depth(&system.dead_letters).total();
    outcome.require(dead_letters == 0, format!("{dead_letters} dead letters (none)"));
    outcome.notes.push(format!("events by second: {seconds:?}"));
    outcome.notes.push(figures(&system));
    stop(system).await;
    outcome
}

/// Counts of the live traffic.
#[derive(Default)]
struct Live {
    requests: AtomicUsize,
    refused: AtomicUsize,
    events: AtomicUsize,
}

impl Live {
    fn traffic(&self) -> Traffic {
        Traffic {
            requests: self.requests.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            events: self.events.load(Ordering::Relaxed),
        }
    }
}

/// Sends half of the events that the units accept. Refused events are parked with the reason, as the functions do it.
async fn live_traffic(system: Arc<System>, ledger: Arc<Ledger>, live: Arc<Live>, seed: u64, units: u32) {
    const PER_REQUEST: usize = 20;
    let (flow, hub) = (&FLOWS[B], hub_of(&system, B).url());
    let resource = format!("{hub}/{}", flow.hub);
    let token = shared::event_hubs::token::sas::sign(&resource, &flow.name(), &first_key(flow).into(), 4_000_000_000);
    let token = token.expose_secret().to_owned();
    let mut ticks = interval(Duration::from_secs(1) * PER_REQUEST as u32 / (500 * units));
    for number in 0_usize.. {
        ticks.tick().await;
        let ids: Vec<String> = (0..PER_REQUEST).map(|place| format!("live-{seed:x}-{number}-{place}")).collect();
        let event = |id: &String| {
            json!({
                "Body": json!({ "profileId": id, "filling": "x".repeat(200) }).to_string(),
                "UserProperties": { "cloudEvents:id": id }, "BrokerProperties": { "PartitionKey": id },
            })
        };
        let body = json!(ids.iter().map(event).collect::<Vec<_>>()).to_string();
        let request = system
            .http
            .post(format!("{resource}/messages?timeout=60&api-version=2014-01"))
            .header("authorization", &token)
            .header("content-type", "application/vnd.microsoft.servicebus.json")
            .body(body);
        let (live, system, ledger) = (live.clone(), system.clone(), ledger.clone());
        tokio::spawn(async move {
            let status = request.send().await.map_or(0, |response| response.status().as_u16());
            live.requests.fetch_add(1, Ordering::Relaxed);
            if status == 201 {
                live.events.fetch_add(PER_REQUEST, Ordering::Relaxed);
                return;
            }
            live.refused.fetch_add(1, Ordering::Relaxed);
            let envelope = pack(&envelope(&system, flow, "throttled", &ids), 1);
            system.sqs.put(&system.parking, &envelope, Some(&group(&system, flow)));
            for id in &ids {
                ledger.parked(id, B);
            }
        });
    }
}

/// Refills the parking queue with full envelopes.
async fn fill(system: Arc<System>, ledger: Arc<Ledger>, seed: u64) {
    const ENVELOPES: usize = 100;
    let mut next = 0;
    loop {
        while system.parked() < ENVELOPES {
            park(&system, &ledger, B, &format!("parked-{seed:x}"), next..next + FULL, FULL);
            next += FULL;
            tokio::task::yield_now().await;
        }
        sleep(Duration::from_millis(200)).await;
    }
}
