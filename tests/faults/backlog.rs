//! What a backlog in the parking queue meets: a dead hub, a throttled one, the limit of messages in flight, days of
//! waiting, and kills at every step.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use local::emulator::{Action, Emulator, Fault, RequestRecord};
use local::sqs::{self, Moment};
use secrecy::ExposeSecret;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep};

use super::ledger::{Ledger, parked_messages};
use super::parked::{envelope, group, pack, park};
use super::scenarios::{DRAIN, Outcome, drained, stop};
use super::system::{FLOWS, Options, Redelivering, System, first_key};

/// The flow of the hub that is dead, in the namespace that has only it.
const A: usize = 2;
/// The flow of the hub that works, in the other namespace.
const B: usize = 0;
/// Messages of a full envelope.
const FULL: usize = 1000;
/// Parked events of B per second while it is looked at.
const B_PER_SECOND: usize = 20;

fn hub_of(system: &System, flow: usize) -> &Emulator {
    &system.hubs[FLOWS[flow].namespace]
}

fn lasting(action: Action) -> [Fault; 1] {
    [Fault { hub: None, times: 0, action }]
}

fn refusing() -> [Fault; 1] {
    lasting(Action::Status { status: 503, retry_after: None, detail: Some("The server is not available.".to_owned()) })
}

/// When each event was first seen in a hub. The events are looked at every 50 ms.
struct Watch {
    seen: Arc<std::sync::Mutex<HashMap<String, Instant>>>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    fn start(hub: &Emulator) -> Self {
        let seen: Arc<std::sync::Mutex<HashMap<String, Instant>>> = Arc::default();
        let (hub, noted) = (hub.clone(), seen.clone());
        let task = tokio::spawn(async move {
            let mut next = Default::default();
            loop {
                let (events, now) = (hub.events_from(&mut next), Instant::now());
                for event in events {
                    let id = event.properties["cloudEvents:id"].as_str().unwrap_or_default();
                    noted.lock().unwrap().entry(id.to_owned()).or_insert(now);
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        Self { seen, task }
    }

    fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// Waits for so many events. False: the time is over.
    async fn until(&self, count: usize, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while self.count() < count {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(Duration::from_millis(20)).await;
        }
        true
    }
}

/// Events and requests that a hub has confirmed or refused.
#[derive(Debug, Default, Clone, Copy)]
struct Traffic {
    requests: usize,
    refused: usize,
    events: usize,
}

fn traffic<'r>(requests: impl IntoIterator<Item = &'r RequestRecord>) -> Traffic {
    let mut traffic = Traffic::default();
    for request in requests {
        traffic.requests += 1;
        match request.status {
            201 => traffic.events += request.events,
            429 | 503 => traffic.refused += 1,
            _ => {}
        }
    }
    traffic
}

/// The most requests within a window of so many seconds, from `first` on.
fn busiest(requests: &[RequestRecord], first: u64, window: u64) -> usize {
    let seconds: Vec<u64> = requests.iter().map(|request| request.second).filter(|second| *second >= first).collect();
    let within = |from: u64| seconds.iter().filter(|second| (from..from + window).contains(*second)).count();
    seconds.iter().map(|second| within(*second)).max().unwrap_or_default()
}

fn percentile(mut values: Vec<Duration>, percent: usize) -> Duration {
    values.sort_unstable();
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// How a drain is measured.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// Events in full envelopes.
    pub gathered: usize,
    /// Envelopes of one event.
    pub singles: usize,
    /// Instances of redelivery.
    pub instances: usize,
    pub print_logs: bool,
}

/// A backlog for a hub that answers after 30 ms and accepts everything.
pub async fn drain(seed: u64, plan: Drain) -> Vec<Outcome> {
    const SLOW_START: u64 = 5;
    let mut outcomes = Vec::new();
    for (count, size, least) in [(plan.gathered, FULL, 10_000.0), (plan.singles, 1, 1_000.0)] {
        let redelivering = Redelivering { instances: plan.instances, ..Redelivering::template() };
        let options = Options { redelivering, print_logs: plan.print_logs, ..Options::default() };
        let system = Arc::new(System::start(options).await);
        let ledger = Ledger::default();
        hub_of(&system, B).script(lasting(Action::Delay { ms: 30 }));
        park(&system, &ledger, B, &format!("{seed:x}"), 0..count, size);
        println!("{count} events are parked in {} envelopes", system.parked());
        let (watch, began) = (Watch::start(hub_of(&system, B)), Instant::now());
        let pollers = system.redeliver();
        let progress = show_progress(&system, {
            let seen = watch.seen.clone();
            move || format!("{} events stored", seen.lock().unwrap().len())
        });
        let all = watch.until(count, DRAIN).await;
        let took = began.elapsed();
        drained(&system, Duration::from_secs(60)).await;
        drop((progress, pollers));
        let requests = hub_of(&system, B).requests();
        let first = requests.first().map_or(0, |request| request.second);
        let whole = traffic(&requests);
        let later = traffic(requests.iter().filter(|request| request.second >= first + SLOW_START));
        let mut outcome = Outcome::of(ledger.compare(&system, &parked_messages(&system)));
        let rate = watch.count() as f64 / took.as_secs_f64();
        outcome.require(all, format!("all {count} events in envelopes of {size} arrived: {all}"));
        outcome.measure(
            rate >= least,
            format!("{count} events in envelopes of {size}: {rate:.0} events/s (at least {least:.0}), {took:.1?}"),
        );
        if size == FULL {
            let per_request = |traffic: Traffic| traffic.events as f64 / traffic.requests.max(1) as f64;
            outcome.measure(
                per_request(whole) >= 100.0,
                format!("{} requests for all: {:.0} events each (at least 100)", whole.requests, per_request(whole)),
            );
            outcome.measure(
                later.requests == 0 || per_request(later) >= 300.0,
                format!(
                    "{} of them after {SLOW_START} s: {:.0} events each (at least 300)",
                    later.requests,
                    per_request(later)
                ),
            );
        }
        drop(watch);
        stop(system).await;
        outcomes.push(outcome);
    }
    outcomes
}

/// Prints where a run is, every few seconds, until it is dropped.
fn show_progress(system: &Arc<System>, more: impl Fn() -> String + Send + 'static) -> Aborted {
    let (system, began) = (system.clone(), Instant::now());
    Aborted(tokio::spawn(async move {
        let mut ticks = interval(Duration::from_secs(5));
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let depth = system.sqs.depth(&system.parking);
            println!(
                "{:>5} s  parked: {} visible, {} in flight, {} delayed; {}",
                began.elapsed().as_secs(),
                depth.visible,
                depth.in_flight,
                depth.delayed,
                more(),
            );
        }
    }))
}

struct Aborted(JoinHandle<()>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A hub that is dead beside one that had a short outage.
#[derive(Debug, Clone, Copy)]
pub struct DeadHub {
    /// Parked events of the dead hub, each in an envelope of its own.
    pub singles: usize,
    pub concurrency: usize,
    /// Instances of redelivery. On a small machine fewer than the concurrency.
    pub instances: usize,
    /// Whether the dead hub accepts connections and does not respond, instead of refusing with 503.
    pub hanging: bool,
    /// Longest wait of a parked message, in seconds.
    pub max_delay: u64,
    /// How long the other hub is down, while its events are parked.
    pub outage: Duration,
    /// How long the dead hub's requests are counted, and over which window they are judged.
    pub counted: Duration,
    pub window: u64,
    pub print_logs: bool,
}

/// Contract tests 2 and 3.
pub async fn dead_hub(seed: u64, plan: DeadHub) -> Outcome {
    /// Instances begin at different moments, and each has to find out for itself.
    const FIRST_CONTACT: u64 = 10;
    let template = Redelivering::template();
    let redelivering = Redelivering {
        pollers: plan.concurrency,
        instances: plan.instances,
        delay: template.delay.min(plan.max_delay),
        max_delay: plan.max_delay,
        ..template
    };
    let options = Options { redelivering, print_logs: plan.print_logs, ..Options::default() };
    let system = Arc::new(System::start(options).await);
    let ledger = Ledger::default();
    let how = if plan.hanging { "does not respond" } else { "refuses" };
    park(&system, &ledger, A, &format!("a-{seed:x}"), 0..plan.singles, 1);
    println!(
        "hub A {how}, {} of its events are parked; concurrency {} with {} instances",
        plan.singles, plan.concurrency, plan.instances
    );
    if plan.hanging {
        hub_of(&system, A).script(lasting(Action::Hang));
    } else {
        hub_of(&system, A).script(refusing());
    }
    hub_of(&system, B).script(refusing());
    let began = Instant::now();
    let pollers = system.redeliver();
    let watch = Watch::start(hub_of(&system, B));
    let progress = show_progress(&system, {
        let (system, seen) = (system.clone(), watch.seen.clone());
        move || {
            let requests = hub_of(&system, A).requests().len();
            format!("{requests} requests to A, {} events of B stored", seen.lock().unwrap().len())
        }
    });
    let mut of_b = 0;
    while began.elapsed() < plan.outage {
        park(&system, &ledger, B, &format!("b-{seed:x}"), of_b..of_b + 1, 1);
        of_b += 1;
        sleep(Duration::from_secs(1) / B_PER_SECOND as u32).await;
    }
    hub_of(&system, B).clear_faults();
    let recovered = Instant::now();
    println!("hub B is back, {of_b} of its events are parked");
    let limit = Duration::from_secs(2 * plan.max_delay);
    watch.until(of_b, 3 * limit).await;
    sleep(plan.counted.saturating_sub(began.elapsed())).await;
    let dwell: Vec<Duration> =
        watch.seen.lock().unwrap().values().map(|seen| seen.saturating_duration_since(recovered)).collect();
    drop((progress, pollers));
    let mut dwell_of_all = dwell.clone();
    // What has not come yet waits longer than all that was waited for.
    dwell_of_all.resize(of_b.max(dwell.len()), recovered.elapsed());
    let requests = hub_of(&system, A).requests();
    let first = requests.first().map_or(0, |request| request.second);
    let mut outcome = Outcome::of(ledger.compare(&system, &parked_messages(&system)));
    outcome.partial = true;
    let [p50, p99] = [50, 99].map(|percent| percentile(dwell_of_all.clone(), percent));
    outcome.require(
        dwell.len() == of_b,
        format!("A {how}, concurrency {}: {} of {of_b} events of B arrived", plan.concurrency, dwell.len()),
    );
    outcome.measure(p99 <= limit, format!("dwell of B's events p50 {p50:.1?}, p99 {p99:.1?} (at most {limit:?})"));
    let (busiest_later, window) = (busiest(&requests, first + FIRST_CONTACT, plan.window), plan.window);
    outcome.require(
        busiest_later as u64 <= window,
        format!(
            "A saw {} requests in {:.0} s, at most {busiest_later} in {window} s after the first {FIRST_CONTACT} s (at most \
             {window}), {} in any {window} s",
            requests.len(),
            began.elapsed().as_secs_f64(),
            busiest(&requests, first, window),
        ),
    );
    outcome.notes.push(figures(&system));
    stop(system).await;
    outcome
}

fn figures(system: &System) -> String {
    format!("parking queue: {:?}; {:?}", system.sqs.depth(&system.parking), system.sqs.figures(&system.parking))
}

/// The limit of messages in flight.
#[derive(Debug, Clone, Copy)]
pub struct InFlight {
    pub singles: usize,
    pub max_in_flight: usize,
    pub concurrency: usize,
    pub max_delay: u64,
    /// How long events of the working hub are parked.
    pub lasts: Duration,
    pub print_logs: bool,
}

/// Contract test 4: a dead hub's messages do not use up what may be in flight.
pub async fn in_flight(seed: u64, plan: InFlight) -> Outcome {
    let redelivering = Redelivering {
        pollers: plan.concurrency,
        instances: plan.concurrency,
        delay: Redelivering::template().delay.min(plan.max_delay),
        max_delay: plan.max_delay,
        ..Redelivering::template()
    };
    let sqs = sqs::Config { max_in_flight: plan.max_in_flight, ..sqs::Config::default() };
    let options = Options { redelivering, sqs, print_logs: plan.print_logs, ..Options::default() };
    let system = Arc::new(System::start(options).await);
    let ledger = Ledger::default();
    park(&system, &ledger, A, &format!("a-{seed:x}"), 0..plan.singles, 1);
    println!("hub A refuses, {} of its events are parked, {} may be in flight", plan.singles, plan.max_in_flight);
    hub_of(&system, A).script(refusing());
    let pollers = system.redeliver();
    let watch = Watch::start(hub_of(&system, B));
    let progress = show_progress(&system, {
        let seen = watch.seen.clone();
        move || format!("{} events of B stored", seen.lock().unwrap().len())
    });
    let (began, mut put) = (Instant::now(), HashMap::new());
    while began.elapsed() < plan.lasts {
        let name = format!("b-{seed:x}");
        park(&system, &ledger, B, &name, put.len()..put.len() + 1, 1);
        put.insert(format!("{name}-{}", put.len()), Instant::now());
        sleep(Duration::from_secs(1) / B_PER_SECOND as u32).await;
    }
    let limit = Duration::from_secs(2 * plan.max_delay);
    watch.until(put.len(), 2 * limit).await;
    let now = Instant::now();
    let seen = watch.seen.lock().unwrap().clone();
    drop((progress, pollers));
    let dwell: Vec<Duration> =
        put.iter().map(|(id, put)| seen.get(id).unwrap_or(&now).saturating_duration_since(*put)).collect();
    let mut outcome = Outcome::of(ledger.compare(&system, &parked_messages(&system)));
    outcome.partial = true;
    let [p50, p99] = [50, 99].map(|percent| percentile(dwell.clone(), percent));
    outcome.require(seen.len() == put.len(), format!("{} of {} events of B arrived", seen.len(), put.len()));
    outcome.measure(p99 <= limit, format!("dwell of B's events p50 {p50:.1?}, p99 {p99:.1?} (at most {limit:?})"));
    let full = system.sqs.messages(&system.parking).iter().filter(|message| message.body.len() >= 64 * 1024).count();
    let most = plan.concurrency * redelivering.batch_size + full;
    let peak = system.sqs.figures(&system.parking).peak_in_flight;
    outcome.require(
        peak <= most,
        format!("at most {peak} messages in flight (at most concurrency × batch + {full} full envelopes = {most})"),
    );
    outcome.notes.push(figures(&system));
    drop(watch);
    stop(system).await;
    outcome
}

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
    // The hub was emptied all the time: the ledger would miss what arrived.
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

/// What live traffic met.
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

/// Sends half of what the units accept. What is refused is parked with its reason, as the data plane does.
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

/// Keeps a backlog of full envelopes in the parking queue.
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

/// Days of waiting, on the queue's clock.
#[derive(Debug, Clone, Copy)]
pub struct Renewal {
    /// How long the flow is disabled.
    pub disabled: Duration,
    pub print_logs: bool,
}

/// Contract test 9, and R9 of the findings. The functions read the machine's clock. The queue's runs ahead: `SentTimestamp`,
/// receive counts, delays and the retention period come from there.
pub async fn renewal(seed: u64, plan: Renewal) -> Outcome {
    /// Twice as many as make a dead letter.
    const RECEIVES: u64 = 200;
    let redelivering = Redelivering {
        pollers: 2,
        instances: 2,
        batch_size: 10,
        window: Duration::ZERO,
        max_delay: 30,
        timeout: Duration::from_secs(28),
        visibility: Duration::from_secs(180),
        ..Redelivering::default()
    };
    let options = Options { redelivering, print_logs: plan.print_logs, ..Options::default() };
    let system = Arc::new(System::start(options).await);
    let ledger = Ledger::default();
    let mut failures: Vec<(bool, String)> = Vec::new();

    hub_of(&system, A).script(refusing());
    park(&system, &ledger, A, &format!("full-{seed:x}"), 0..FULL, FULL);
    let pollers = system.redeliver();
    let before = Instant::now();
    while system.sqs.figures(&system.parking).received < RECEIVES
        && system.sqs.depth(&system.dead_letters).total() == 0
        && before.elapsed() < Duration::from_secs(120)
    {
        next_receive(&system).await;
    }
    let figures_then = system.sqs.figures(&system.parking);
    let most = system.sqs.messages(&system.parking).iter().map(|message| message.receives).max().unwrap_or_default();
    failures.push((
        most < 100 && system.sqs.depth(&system.dead_letters).total() == 0,
        format!(
            "a full envelope for a dead hub after {} receives: {most} of the message that holds it now (fewer than 100), \
             sent {} times, {} dead letters",
            figures_then.received,
            figures_then.sent,
            system.sqs.depth(&system.dead_letters).total()
        ),
    ));
    hub_of(&system, A).clear_faults();
    // What an instance remembers of the hub, it remembers by the machine's clock.
    system.redelivery.kill().await;
    let delivered = advance_until(&system, Duration::from_secs(60), || system.parked() == 0).await;
    failures.push((delivered, format!("delivered once the hub is back: {delivered}")));

    // A flow of the table.
    const DISABLED: usize = 3;
    let flow = &FLOWS[DISABLED];
    system.set_state(flow, "disabled").await;
    system.redelivery.kill().await;
    for number in 0..3 {
        park(&system, &ledger, DISABLED, &format!("disabled-{seed:x}-{number}"), 0..10, 10);
    }
    let mut unknown = envelope(&system, flow, "unavailable", &["unknown".to_owned()]);
    unknown["v"] = 2.into();
    let unknown = pack(&unknown, 1);
    system.sqs.put(&system.parking, &unknown, Some(&group(&system, flow)));
    let (mut passed, began, received) = (Duration::ZERO, Instant::now(), system.sqs.figures(&system.parking).received);
    // Without a message nothing is due any more, and the time stands still.
    while passed < plan.disabled && system.parked() > 0 && began.elapsed() < Duration::from_secs(400) {
        passed += next_receive(&system).await;
    }
    let receives = system.sqs.figures(&system.parking).received - received;
    let messages = system.sqs.messages(&system.parking);
    let dead_letters = system.sqs.depth(&system.dead_letters).total();
    let most = messages.iter().map(|message| message.receives).max().unwrap_or_default();
    let days = passed.as_secs_f64() / 86_400.0;
    failures.push((
        passed >= plan.disabled && dead_letters == 0 && most < 100,
        format!(
            "a disabled flow after {days:.1} days ({receives} receives): {} messages parked, at most {most} receives each \
             (fewer than 100), {dead_letters} dead letters (none)",
            messages.len(),
        ),
    ));
    system.set_state(flow, "enabled").await;
    system.redelivery.kill().await;
    let is_unknown = |message: &sqs::Stored| *message.body == *unknown;
    let rest = || system.sqs.messages(&system.parking).iter().filter(|message| !is_unknown(message)).count();
    let delivered = advance_until(&system, Duration::from_secs(60), || rest() == 0).await;
    failures.push((delivered, format!("delivered once the flow is enabled: {delivered}")));
    let unknown = system.sqs.messages(&system.parking).iter().filter(|message| is_unknown(message)).count();
    failures.push((unknown == 1, format!("{unknown} envelopes of an unknown version are parked (1)")));
    drop(pollers);
    let mut outcome = Outcome::of(ledger.compare(&system, &parked_messages(&system)));
    // The queue's clock runs ahead, so that messages are delivered again while they are handled.
    outcome.partial = true;
    outcome.require(system.parked() == 1, format!("{} messages are parked at the end (1)", system.parked()));
    for (holds, figure) in failures {
        outcome.require(holds, figure);
    }
    outcome.notes.push(figures(&system));
    stop(system).await;
    outcome
}

/// Lets the time of the queue pass until the next message is visible, and waits until it was received and dealt with. Gives
/// the time that passed.
async fn next_receive(system: &System) -> Duration {
    let passed = system.sqs.until_due(&system.parking).unwrap_or_default() + Duration::from_millis(1);
    system.sqs.advance(passed);
    let deadline = Instant::now() + Duration::from_secs(2);
    let (sqs, parking) = (&system.sqs, &system.parking);
    while (sqs.depth(parking).visible > 0 || sqs.untouched(parking) > 0) && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
    // It was hidden before the invocation ended.
    sleep(Duration::from_millis(20)).await;
    passed
}

async fn advance_until(system: &System, within: Duration, done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + within;
    while !done() {
        if Instant::now() >= deadline {
            return false;
        }
        next_receive(system).await;
        sleep(Duration::from_millis(200)).await;
    }
    true
}

/// Where redelivery is killed, or a response is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    KilledBeforeTheHubStores,
    KilledAfterTheHubStored,
    HubsResponseLost,
    KilledBeforeParkingAgain,
    KilledAfterParkingAgain,
    ParkingsResponseLost,
    KilledBeforeHiding,
    KilledAfterHiding,
    HidingRefused,
    DeliveredTwice,
    NotDeleted,
}

impl Step {
    const ALL: [Self; 11] = [
        Self::KilledBeforeTheHubStores,
        Self::KilledAfterTheHubStored,
        Self::HubsResponseLost,
        Self::KilledBeforeParkingAgain,
        Self::KilledAfterParkingAgain,
        Self::ParkingsResponseLost,
        Self::KilledBeforeHiding,
        Self::KilledAfterHiding,
        Self::HidingRefused,
        Self::DeliveredTwice,
        Self::NotDeleted,
    ];

    /// Whether it needs a hub that can't be sent to.
    fn needs_an_outage(self) -> bool {
        !matches!(
            self,
            Self::KilledBeforeTheHubStores
                | Self::KilledAfterTheHubStored
                | Self::HubsResponseLost
                | Self::DeliveredTwice
                | Self::NotDeleted
        )
    }

    /// Arranges for it to happen; gives how to see that it has happened.
    fn arm(self, system: &Arc<System>) -> Box<dyn Fn() -> bool + Send> {
        let happened = Arc::new(AtomicBool::new(false));
        let kill = {
            let (system, happened) = (system.clone(), happened.clone());
            move || async move {
                system.redelivery.kill().await;
                happened.store(true, Ordering::Relaxed);
            }
        };
        let once = |operation, action| sqs::Fault { operation, times: 1, action };
        let (hub, queue) = (hub_of(system, B), &system.sqs);
        match self {
            Self::KilledBeforeTheHubStores => hub.at(FLOWS[B].hub, 1, Moment::Arrived, kill),
            Self::KilledAfterTheHubStored => hub.at(FLOWS[B].hub, 1, Moment::Done, kill),
            Self::KilledBeforeParkingAgain => queue.at("SendMessage", 1, Moment::Arrived, kill),
            Self::KilledAfterParkingAgain => queue.at("SendMessage", 1, Moment::Done, kill),
            Self::KilledBeforeHiding => queue.at("ChangeMessageVisibility", 1, Moment::Arrived, kill),
            Self::KilledAfterHiding => queue.at("ChangeMessageVisibility", 1, Moment::Done, kill),
            Self::HubsResponseLost => {
                hub.script([Action::ResetAfterStore.into()]);
                let hub = hub.clone();
                return Box::new(move || hub.faults().is_empty());
            }
            Self::ParkingsResponseLost => queue.script([once("SendMessage", sqs::Action::LoseResponse)]),
            Self::HidingRefused => {
                let refuse = sqs::Action::Refuse { status: 503, code: "ServiceUnavailable" };
                queue.script([sqs::Fault { operation: "ChangeMessageVisibility", times: 3, action: refuse }]);
            }
            Self::DeliveredTwice => queue.script([once("ReceiveMessage", sqs::Action::DeliverTwice)]),
            Self::NotDeleted => {
                let refuse = sqs::Action::Refuse { status: 400, code: "AccessDenied" };
                queue.script([once("DeleteMessageBatch", refuse)]);
            }
        }
        match self {
            Self::ParkingsResponseLost | Self::HidingRefused | Self::DeliveredTwice | Self::NotDeleted => {
                let queue = queue.clone();
                Box::new(move || queue.faults() == 0)
            }
            _ => Box::new(move || happened.load(Ordering::Relaxed)),
        }
    }
}

/// Contract test 1: each of the steps once or several times, with some hundred parked events each.
pub async fn kills(seed: u64, events: usize, rounds: usize, print_logs: bool) -> Outcome {
    let redelivering = Redelivering { pollers: 2, instances: 2, ..Redelivering::default() };
    let options = Options { redelivering, print_logs, ..Options::default() };
    let system = Arc::new(System::start(options).await);
    let ledger = Ledger::default();
    let pollers = system.redeliver();
    let (mut reached, mut stuck, numbers) = (Vec::new(), Vec::new(), AtomicU64::new(0));
    for step in (0..rounds).flat_map(|_| Step::ALL) {
        let name = format!("{seed:x}-{}", numbers.fetch_add(1, Ordering::Relaxed));
        if step.needs_an_outage() {
            hub_of(&system, B).script(refusing());
        }
        let has_happened = step.arm(&system);
        // Small envelopes, so that there is something to gather, and a full one, so that there is something to hide.
        park(&system, &ledger, B, &name, 0..events, 1);
        park(&system, &ledger, B, &format!("{name}-full"), 0..FULL, FULL);
        let began = Instant::now();
        while !has_happened() && began.elapsed() < Duration::from_secs(15) {
            sleep(Duration::from_millis(20)).await;
        }
        let happened = has_happened();
        reached.push((step, happened));
        system.sqs.clear_faults();
        hub_of(&system, B).clear_faults();
        let began = Instant::now();
        while system.parked() > 0 && began.elapsed() < Duration::from_secs(60) {
            sleep(Duration::from_millis(200)).await;
            // No test has to wait for the visibility timeout of what a killed instance had received.
            system.sqs.advance(Duration::from_secs(1));
        }
        if system.parked() > 0 {
            stuck.push(step);
        }
        println!(
            "{step:?}: {}, drained within {:.1?}",
            if happened { "happened" } else { "did not happen" },
            began.elapsed()
        );
    }
    drop(pollers);
    let mut outcome = Outcome::of(ledger.compare(&system, &parked_messages(&system)));
    outcome.partial = true;
    let missed: HashSet<String> =
        reached.iter().filter(|(_, reached)| !reached).map(|(step, _)| format!("{step:?}")).collect();
    outcome.require(missed.is_empty(), format!("steps that did not happen: {missed:?} (none)"));
    outcome
        .require(stuck.is_empty(), format!("steps after which the queue was not empty within 60 s: {stuck:?} (none)"));
    outcome.notes.push(figures(&system));
    stop(system).await;
    outcome
}
