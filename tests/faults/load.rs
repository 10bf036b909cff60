//! Senders of webhooks, and a queue that delivers at least once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::events::{event, unmappable};
use super::ledger::{Ledger, Sort, Way};
use super::system::{FLOWS, Flow, KINDS, REGION, System};

/// Size and form of a load.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    pub webhooks: u64,
    pub queue_records: u64,
    /// Minimum time to send, even if that makes more events.
    pub at_least: Duration,
    /// Maximum number of events per second.
    pub rate: Option<f64>,
    pub senders: usize,
    /// Whether some events are invalid, or from senders without valid credentials.
    pub mixed: bool,
}

impl Plan {
    /// A load of valid webhooks.
    pub fn webhooks(seed: u64, webhooks: u64) -> Self {
        Self { seed, webhooks, queue_records: 0, at_least: Duration::ZERO, rate: None, senders: 8, mixed: false }
    }
}

/// Hands out numbers of events until there are enough.
struct Numbers {
    next: AtomicU64,
    first: u64,
    count: u64,
    began: Instant,
    at_least: Duration,
    rate: Option<f64>,
    /// The numbers that these must not be far ahead of.
    other: Option<Arc<Numbers>>,
}

impl Numbers {
    fn new(first: u64, count: u64, plan: &Plan, other: Option<Arc<Numbers>>) -> Self {
        let share = count as f64 / (plan.webhooks + plan.queue_records).max(1) as f64;
        Self {
            next: AtomicU64::new(0),
            first,
            count,
            began: Instant::now(),
            at_least: if count == 0 { Duration::ZERO } else { plan.at_least },
            rate: plan.rate.map(|rate| rate * share),
            other,
        }
    }

    /// Fraction of the numbers that was handed out.
    fn progress(&self) -> f64 {
        if self.exhausted() {
            return f64::INFINITY;
        }
        self.next.load(Ordering::Relaxed) as f64 / self.count as f64
    }

    fn exhausted(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.count && self.began.elapsed() >= self.at_least
    }

    async fn next(&self) -> Option<u64> {
        if self.exhausted() {
            return None;
        }
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(other) = &self.other {
            while n as f64 / self.count as f64 > other.progress() + MOST_LEAD {
                sleep(Duration::from_millis(10)).await;
            }
        }
        if let Some(rate) = self.rate {
            sleep_until(self.began + Duration::from_secs_f64(n as f64 / rate)).await;
        }
        Some(self.first + n)
    }
}

/// A running load.
pub struct Load {
    tasks: JoinSet<()>,
    numbers: [Arc<Numbers>; 2],
    give_up: watch::Sender<bool>,
}

/// Maximum fraction by which queue records may be ahead of webhooks, which take longer, so that both meet the same faults.
const MOST_LEAD: f64 = 0.01;
/// First number of a queue record: they have a range of their own.
const FIRST_OF_QUEUE: u64 = 1 << 40;
/// Number of batches in flight per kind.
const POLLERS: usize = 2;

impl Load {
    pub fn start(system: &Arc<System>, ledger: &Arc<Ledger>, plan: Plan) -> Self {
        let mut rng = fastrand::Rng::with_seed(plan.seed);
        let webhooks = Arc::new(Numbers::new(0, plan.webhooks, &plan, None));
        let other = (plan.webhooks > 0).then(|| webhooks.clone());
        let records = Arc::new(Numbers::new(FIRST_OF_QUEUE, plan.queue_records, &plan, other));
        let give_up = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        for _ in 0..plan.senders {
            let (numbers, rng) = (webhooks.clone(), rng.fork());
            let sender = Sender { system: system.clone(), ledger: ledger.clone(), plan, rng };
            tasks.spawn(sender.run(numbers));
        }
        for kind in KINDS {
            let returned = Arc::default();
            for _ in 0..POLLERS {
                let (numbers, rng) = (records.clone(), rng.fork());
                let queue = Queue {
                    system: system.clone(),
                    ledger: ledger.clone(),
                    plan,
                    rng,
                    kind,
                    returned: Arc::clone(&returned),
                    handled: VecDeque::new(),
                    give_up: give_up.subscribe(),
                };
                tasks.spawn(queue.run(numbers));
            }
        }
        Self { tasks, numbers: [webhooks, records], give_up }
    }

    /// Waits until all events are sent. Records may still be undelivered.
    pub async fn sent(&self) {
        while !self.numbers.iter().all(|numbers| numbers.exhausted()) {
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until every event has a response. Returns false if the time is over before that.
    pub async fn finish(mut self, within: Duration) -> bool {
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.unwrap();
            }
        };
        if tokio::time::timeout(within, all).await.is_ok() {
            return true;
        }
        self.give_up.send_replace(true);
        false
    }
}

fn flows_of(kind: Option<&str>) -> Vec<usize> {
    (0..FLOWS.len()).filter(|flow| kind.is_none_or(|kind| FLOWS[*flow].kind == kind)).collect()
}

struct Sender {
    system: Arc<System>,
    ledger: Arc<Ledger>,
    plan: Plan,
    rng: fastrand::Rng,
}

impl Sender {
    async fn run(mut self, numbers: Arc<Numbers>) {
        let flows = flows_of(None);
        while let Some(n) = numbers.next().await {
            let flow = flows[self.rng.usize(..flows.len())];
            match self.rng.u32(..100) {
                0..3 if self.plan.mixed => self.unauthenticated(flow, n).await,
                3 if self.plan.mixed => self.invalid(flow, n).await,
                4..10 if self.plan.mixed && FLOWS[flow].kind != "dataverse-event" => {
                    let mut all = vec![n];
                    for _ in 0..self.rng.u32(1..4) {
                        all.extend(numbers.next().await);
                    }
                    self.array(flow, &all).await;
                }
                _ => self.valid(flow, n).await,
            }
        }
    }

    async fn valid(&mut self, flow: usize, n: u64) {
        let event = event(FLOWS[flow].kind, self.plan.seed, n);
        self.ledger.sent(&event.id, flow, Sort::Valid, Way::Webhook);
        let (status, after) = self.post(&FLOWS[flow], Some(&FLOWS[flow].token()), event.body).await;
        self.ledger.answered(&[event.id], status, after);
    }

    async fn invalid(&mut self, flow: usize, n: u64) {
        let event = unmappable(FLOWS[flow].kind, self.plan.seed, n);
        self.ledger.sent(&event.id, flow, Sort::Invalid, Way::Webhook);
        let (status, after) = self.post(&FLOWS[flow], Some(&FLOWS[flow].token()), event.body).await;
        assert!(!(200..300).contains(&status), "an invalid event got {status}");
        self.ledger.answered(&[event.id], status, after);
    }

    async fn unauthenticated(&mut self, flow: usize, n: u64) {
        let event = event(FLOWS[flow].kind, self.plan.seed, n);
        self.ledger.sent(&event.id, flow, Sort::Unauthenticated, Way::Webhook);
        let token = match self.rng.u32(..3) {
            0 => None,
            1 => Some("wrong".to_owned()),
            _ => Some(FLOWS[(flow + 1) % FLOWS.len()].token()),
        };
        let (status, after) = self.post(&FLOWS[flow], token.as_deref(), event.body).await;
        self.ledger.answered(&[event.id], status, after);
    }

    /// Sends an array. Every fourth has an invalid element.
    async fn array(&mut self, flow: usize, numbers: &[u64]) {
        let kind = FLOWS[flow].kind;
        let has_invalid = self.rng.u32(..4) == 0;
        let sort = if has_invalid { Sort::WithInvalid } else { Sort::Valid };
        let (mut ids, mut bodies) = (Vec::new(), Vec::new());
        if has_invalid {
            bodies.push("7".to_owned());
        }
        for n in numbers {
            let event = event(kind, self.plan.seed, *n);
            self.ledger.sent(&event.id, flow, sort, Way::Webhook);
            ids.push(event.id);
            bodies.push(event.body);
        }
        let body = format!("[{}]", bodies.join(","));
        let (status, after) = self.post(&FLOWS[flow], Some(&FLOWS[flow].token()), body).await;
        self.ledger.answered(&ids, status, after);
    }

    async fn post(&self, flow: &Flow, token: Option<&str>, body: String) -> (u16, Duration) {
        let mut url = format!("{}/{}", self.system.gateway_url, flow.kind);
        // The default flow has two paths.
        if flow.id != "default" || fastrand::bool() {
            url.push_str(&format!("/{}", flow.id));
        }
        let mut request = self.system.http.post(url).header("content-type", "application/json").body(body);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let began = Instant::now();
        let status = match request.send().await {
            Ok(response) => response.status().as_u16(),
            Err(_) => 0,
        };
        (status, began.elapsed())
    }
}

/// A record of the inbound queue.
#[derive(Debug, Clone)]
struct Record {
    message_id: String,
    flow: Option<&'static str>,
    body: String,
    /// Id in the ledger.
    id: String,
    receives: u32,
    visible: Option<Instant>,
}

impl Record {
    fn json(&self, kind: &str) -> Value {
        let attributes = self.flow.map(
            |flow| json!({ "flow": { "stringValue": flow, "dataType": "String", "stringListValues": [], "binaryListValues": [] } }),
        );
        json!({
            "messageId": self.message_id, "receiptHandle": "AQEB", "body": self.body,
            "attributes": { "ApproximateReceiveCount": self.receives.to_string(), "SentTimestamp": "1700000000000" },
            "messageAttributes": attributes.unwrap_or(json!({})), "md5OfBody": "", "eventSource": "aws:sqs",
            "eventSourceARN": format!("arn:aws:sqs:{REGION}:123456789012:{kind}"), "awsRegion": REGION,
        })
    }
}

/// Local substitute for SQS, in memory: delivers records at least once, in any order, and failed ones again.
struct Queue {
    system: Arc<System>,
    ledger: Arc<Ledger>,
    plan: Plan,
    rng: fastrand::Rng,
    kind: &'static str,
    returned: Arc<Mutex<Vec<Record>>>,
    /// Some of the handled records, to be delivered once more.
    handled: VecDeque<Record>,
    give_up: watch::Receiver<bool>,
}

impl Queue {
    async fn run(mut self, numbers: Arc<Numbers>) {
        while !*self.give_up.borrow() {
            let batch = self.batch(&numbers).await;
            if batch.is_empty() {
                if numbers.exhausted() && self.returned.lock().unwrap().is_empty() {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
                continue;
            }
            self.deliver(batch).await;
        }
    }

    async fn batch(&mut self, numbers: &Numbers) -> Vec<Record> {
        let size = [1, 10, 30, 100][self.rng.usize(..4)];
        let now = Instant::now();
        let mut batch: Vec<Record> = {
            let mut returned = self.returned.lock().unwrap();
            let visible = |record: &Record| record.visible.is_none_or(|at| at <= now);
            let (mut visible, later): (Vec<_>, Vec<_>) = returned.drain(..).partition(visible);
            let rest = visible.split_off(visible.len().min(size));
            returned.extend(later.into_iter().chain(rest));
            visible
        };
        while batch.len() < size {
            let Some(n) = numbers.next().await else { break };
            batch.push(self.record(n));
        }
        if self.rng.u32(..10) == 0 {
            for record in self.handled.drain(..) {
                self.ledger.may_repeat("inbound queue: record delivered twice", [record.id.as_str()]);
                batch.push(record);
            }
        }
        self.rng.shuffle(&mut batch);
        batch
    }

    fn record(&mut self, n: u64) -> Record {
        let flows = flows_of(Some(self.kind));
        let flow = flows[self.rng.usize(..flows.len())];
        let is_invalid = self.plan.mixed && self.rng.u32(..200) == 0;
        let event =
            if is_invalid { unmappable(self.kind, self.plan.seed, n) } else { event(self.kind, self.plan.seed, n) };
        let sort = if is_invalid { Sort::Invalid } else { Sort::Valid };
        self.ledger.sent(&event.id, flow, sort, Way::Queue);
        // Records of the default flow may name it or not.
        let flow = Some(FLOWS[flow].id).filter(|flow| *flow != "default" || self.rng.bool());
        // A queue may give a record another id each time; here it keeps its id.
        let message_id = format!("record-{n}");
        Record { message_id, flow, body: event.body, id: event.id, receives: 0, visible: None }
    }

    async fn deliver(&mut self, mut batch: Vec<Record>) {
        for record in &mut batch {
            record.receives += 1;
        }
        let records: Vec<Value> = batch.iter().map(|record| record.json(self.kind)).collect();
        let payload = json!({ "Records": records }).to_string().into_bytes();
        let response = self.system.functions[self.kind].invoke(payload).await;
        if response.is_err() {
            let ids = batch.iter().map(|record| record.id.as_str());
            self.ledger.may_repeat("inbound queue: invocation without a response", ids);
        }
        let failures: Option<Vec<String>> = response.ok().map(|response| {
            let response: Value = serde_json::from_slice(&response).unwrap();
            let failures = response["batchItemFailures"].as_array().unwrap();
            failures.iter().map(|failure| failure["itemIdentifier"].as_str().unwrap().to_owned()).collect()
        });
        for mut record in batch {
            if failures.as_ref().is_some_and(|failures| !failures.contains(&record.message_id)) {
                self.ledger.handled(&record.id);
                if self.rng.u32(..30) == 0 {
                    self.handled.push_back(record);
                }
            } else {
                record.visible = Some(Instant::now() + Duration::from_millis(self.rng.u64(200..2000)));
                self.returned.lock().unwrap().push(record);
            }
        }
    }
}
