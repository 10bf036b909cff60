//! The system under test: two namespaces, moto, the local SQS, the functions as processes, the gateway, and the gates that inject
//! faults.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use local::emulator::{Config, Emulator, Key, MAX_BYTES, Rights};
use local::moto::Moto;
use local::queue_source::{self, Mapping, Repeat};
use local::runner::{Function, FunctionConfig};
use local::sqs::{self, Sqs};
use local::{gateway, run};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::aws::{DYNAMODB, SECRETS, SQS, Witness};
use super::gate::Gate;
use super::proxy::Proxy;

pub const REGION: &str = "eu-central-1";
pub const KINDS: [&str; 3] = ["audience-change", "profile-export", "dataverse-event"];
const DEFAULT_FLOW: &str = "default";
/// Ids of the flows in the table, by their hubs.
const CHANGES_FLOW: &str = "0b6ff6d8-5ac2-4f1c-8a55-3f6f4a4e0001";
const ROWS_FLOW: &str = "0b6ff6d8-5ac2-4f1c-8a55-3f6f4a4e0002";
const EXPORTS_FLOW: &str = "0b6ff6d8-5ac2-4f1c-8a55-3f6f4a4e0003";
const LEADS_FLOW: &str = "0b6ff6d8-5ac2-4f1c-8a55-3f6f4a4e0004";
const TABLE: &str = "flows";
const PARTITIONS: u32 = 4;
const FUNCTION_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_RECEIVE_COUNT: u32 = 100;

/// Settings of redelivery.
#[derive(Debug, Clone, Copy)]
pub struct Redelivering {
    /// Concurrency of the mapping.
    pub pollers: usize,
    /// Number of instances of the function. With fewer than pollers, batches wait for an instance, hidden.
    pub instances: usize,
    pub batch_size: usize,
    pub window: Duration,
    /// Minimum and maximum delay of a message that could not be sent, in seconds.
    pub delay: u64,
    pub max_delay: u64,
    /// Timeout of an invocation.
    pub timeout: Duration,
    /// Visibility timeout of the parking queue.
    pub visibility: Duration,
}

impl Default for Redelivering {
    /// Shorter delays than in the template, so that a run has many of them, and the number of instances that a small machine can
    /// run.
    fn default() -> Self {
        Self {
            pollers: 4,
            instances: 4,
            batch_size: 1000,
            window: Duration::from_secs(1),
            delay: 1,
            max_delay: 5,
            timeout: Duration::from_secs(10),
            visibility: Duration::from_secs(15),
        }
    }
}

impl Redelivering {
    /// The defaults of the template.
    pub fn template() -> Self {
        Self {
            pollers: 20,
            instances: 20,
            batch_size: 1000,
            window: Duration::from_secs(1),
            delay: 5,
            max_delay: 30,
            timeout: Duration::from_secs(28),
            visibility: Duration::from_secs(180),
        }
    }
}

/// A flow, and the hub in which its events must arrive.
#[derive(Debug)]
pub struct Flow {
    pub kind: &'static str,
    pub id: &'static str,
    pub namespace: usize,
    pub hub: &'static str,
    partitioning: Option<&'static str>,
}

const fn flow(kind: &'static str, id: &'static str, namespace: usize, hub: &'static str) -> Flow {
    Flow { kind, id, namespace, hub, partitioning: None }
}

/// All flows. Hubs have the same names in both namespaces, so that a message with a wrong host would be noticed.
pub const FLOWS: [Flow; 7] = [
    flow("audience-change", DEFAULT_FLOW, 0, "changes"),
    flow("profile-export", DEFAULT_FLOW, 0, "exports"),
    flow("dataverse-event", DEFAULT_FLOW, 1, "rows"),
    Flow { partitioning: Some("partitions:4"), ..flow("audience-change", CHANGES_FLOW, 1, "changes") },
    flow("audience-change", ROWS_FLOW, 0, "rows"),
    Flow { partitioning: Some("subject"), ..flow("profile-export", EXPORTS_FLOW, 1, "exports") },
    flow("dataverse-event", LEADS_FLOW, 1, "leads"),
];

impl Flow {
    /// Name of the hub's policy, and of both secrets.
    pub fn name(&self) -> String {
        format!("{}-{}", self.kind, self.id)
    }

    pub fn connection_secret(&self) -> String {
        format!("connection/{}", self.name())
    }

    fn sender_secret(&self) -> String {
        format!("sender/{}", self.name())
    }

    /// Token of the flow's sender, different for each flow.
    pub fn token(&self) -> String {
        format!("token-of-{}", self.name())
    }
}

/// Options of a system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    pub without_parking: bool,
    pub print_logs: bool,
    pub redelivering: Redelivering,
    /// Throughput units of each namespace. Without them no request is throttled.
    pub throughput_units: [Option<u32>; 2],
    pub sqs: sqs::Config,
}

pub struct System {
    pub hubs: Vec<Emulator>,
    pub gates: Vec<Gate>,
    pub moto: Moto,
    pub sqs: Sqs,
    pub proxy: Proxy,
    /// Gates in front of the proxy, by service.
    pub aws_gates: BTreeMap<&'static str, Gate>,
    pub witness: Witness,
    pub functions: BTreeMap<String, Function>,
    pub redelivery: Function,
    pub gateway_url: String,
    pub parking: String,
    pub dead_letters: String,
    pub rejected: String,
    pub http: reqwest::Client,
    pub throughput_units: [Option<u32>; 2],
    redelivering: Redelivering,
    observer: mpsc::UnboundedSender<Repeat>,
    repeats: Mutex<mpsc::UnboundedReceiver<Repeat>>,
    aws: shared::aws::Aws,
    tasks: JoinSet<()>,
}

/// The folder of the built functions: that of this program, or the one above that of a test.
fn folder() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folder = program.parent().unwrap();
    if folder.ends_with("deps") { folder.parent().unwrap().to_owned() } else { folder.to_owned() }
}

fn function(
    name: &str,
    environment: Vec<(String, String)>,
    timeout: Duration,
    instances: usize,
    logs: bool,
) -> Function {
    let binary = folder().join(name);
    assert!(binary.exists(), "{} is not built: run `cargo build --workspace --bins` first", binary.display());
    Function::new(FunctionConfig {
        environment,
        timeout,
        max_instances: instances,
        print_logs: logs,
        // There are many intended failures.
        print_failures: logs,
        ..FunctionConfig::new(name, binary)
    })
}

impl System {
    /// Starts everything except the pollers of redelivery, which [`System::redeliver`] starts.
    pub async fn start(options: Options) -> Self {
        let relay_http = shared::build_http_client(None).unwrap();
        let http = relay_http.client();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let moto_server = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.venv/bin/moto_server"));
        let moto = Moto::start(moto_server, SocketAddr::from(([127, 0, 0, 1], port)), &http).await.unwrap();
        let witness = Witness::new(http.clone(), moto.url());

        let (mut hubs, mut gates) = (Vec::new(), Vec::new());
        for namespace in 0..2 {
            let config = namespace_config(namespace, options.throughput_units[namespace]);
            let hub = Emulator::start(config, TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
            gates.push(Gate::start(hub.address()).await);
            hubs.push(hub);
        }
        let sqs = Sqs::start(options.sqs, TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
        let proxy = Proxy::with_sqs(moto.url(), sqs.url(), http.clone()).await;
        let mut aws_gates = BTreeMap::new();
        for service in [SQS, DYNAMODB, SECRETS] {
            aws_gates.insert(service, Gate::start(proxy.address()).await);
        }

        let aws = run::local_aws(relay_http, sqs.url().to_owned(), REGION.to_owned());
        let redelivering = options.redelivering;
        let (parking, dead_letters) =
            queue_source::create_queue(&aws, "parking", redelivering.visibility, MAX_RECEIVE_COUNT).await.unwrap();
        let rejected = queue_source::create_storage_queue(&aws, "rejected").await.unwrap();
        store_flows(&witness, &gates).await;

        let mut common: Vec<(String, String)> = aws_gates
            .iter()
            .map(|(service, gate)| {
                let suffix = match *service {
                    SQS => "SQS",
                    DYNAMODB => "DYNAMODB",
                    _ => "SECRETS_MANAGER",
                };
                (format!("AWS_ENDPOINT_URL_{suffix}"), format!("http://{}", gate.address()))
            })
            .collect();
        common.extend([("AWS_REGION", REGION), ("FLOWS_TABLE", TABLE)].map(owned));
        common.push(owned(("REJECTED_QUEUE_URL", &rejected)));
        if !options.without_parking {
            common.push(owned(("PARKING_QUEUE_URL", &parking)));
        }
        let mut functions = BTreeMap::new();
        for flow in FLOWS.iter().filter(|flow| flow.id == DEFAULT_FLOW) {
            let mut environment = common.clone();
            environment.extend(
                [
                    ("EVENT_HUBS_SECRET_ID", flow.connection_secret().as_str()),
                    ("EVENT_HUB_NAME", flow.hub),
                    ("SENDER_AUTH_SECRET_ID", &flow.sender_secret()),
                ]
                .map(owned),
            );
            let function = function(flow.kind, environment, FUNCTION_TIMEOUT, 10, options.print_logs);
            functions.insert(flow.kind.to_owned(), function);
        }
        common.extend(
            [
                ("REDELIVERY_DELAY", redelivering.delay),
                ("REDELIVERY_MAX_DELAY", redelivering.max_delay),
                ("REDELIVERY_CONCURRENCY", redelivering.pollers as u64),
            ]
            .map(|(name, number)| (name.to_owned(), number.to_string())),
        );
        let (timeout, instances) = (redelivering.timeout, redelivering.instances);
        let redelivery = function("redelivery", common, timeout, instances, options.print_logs);

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway_url = format!("http://{}", listener.local_addr().unwrap());
        let router = gateway::router(functions.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { gateway::serve(listener, router).await.unwrap() });
        let (observer, repeats) = mpsc::unbounded_channel();
        Self {
            hubs,
            gates,
            moto,
            sqs,
            proxy,
            aws_gates,
            witness,
            functions,
            redelivery,
            gateway_url,
            parking,
            dead_letters,
            rejected,
            http,
            throughput_units: options.throughput_units,
            redelivering,
            observer,
            repeats: Mutex::new(repeats),
            aws,
            tasks,
        }
    }

    /// Starts the pollers of the parking queue. They end when the returned value is dropped.
    pub fn redeliver(&self) -> JoinSet<()> {
        let Redelivering { pollers, batch_size, window, .. } = self.redelivering;
        let observer = Some(self.observer.clone());
        let mapping = Mapping { batch_size, window, pollers, observer, ..Mapping::new(&self.parking, REGION) };
        let mut pollers = JoinSet::new();
        pollers.spawn(queue_source::run(self.aws.clone(), self.redelivery.clone(), mapping));
        pollers
    }

    /// Repeats that the mapping of the parking queue has reported since the last call.
    pub fn repeats(&self) -> Vec<Repeat> {
        let mut repeats = self.repeats.lock().unwrap();
        std::iter::from_fn(|| repeats.try_recv().ok()).collect()
    }

    /// Number of messages in the parking queue.
    pub fn parked(&self) -> usize {
        self.sqs.depth(&self.parking).total()
    }

    /// All functions, including redelivery.
    pub fn all_functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.values().chain([&self.redelivery])
    }

    /// Changes a flow's key at its hub, and after `later` in its secret.
    pub async fn rotate(&self, flow: &Flow, key: &str, later: Duration) {
        assert!(self.hubs[flow.namespace].set_key(&flow.name(), key));
        tokio::time::sleep(later).await;
        let gate = &self.gates[flow.namespace];
        self.witness.put_secret(&flow.connection_secret(), &connection_secret(flow, gate, key)).await;
    }

    /// Enables or disables a flow of the table.
    pub async fn set_state(&self, flow: &Flow, state: &str) {
        put_item(&self.witness, &self.gates[flow.namespace], flow, state).await;
    }

    /// Stops every process.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
        for function in self.all_functions() {
            function.stop();
        }
        for function in self.all_functions() {
            function.stopped().await;
        }
        self.moto.stop().await;
    }
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// A namespace with the hubs and policies of its flows.
fn namespace_config(namespace: usize, throughput_units: Option<u32>) -> Config {
    let flows = || FLOWS.iter().filter(move |flow| flow.namespace == namespace);
    let key = |flow: &Flow| Key {
        name: flow.name(),
        key: first_key(flow),
        rights: Rights { send: true, ..Rights::default() },
        hub: Some(flow.hub.to_owned()),
    };
    Config {
        hubs: flows().map(|flow| (flow.hub.to_owned(), PARTITIONS)).collect(),
        keys: flows().map(key).collect(),
        max_bytes: MAX_BYTES,
        throughput_units,
    }
}

pub fn first_key(flow: &Flow) -> String {
    format!("first-key-of-{}", flow.name())
}

fn connection_secret(flow: &Flow, gate: &Gate, key: &str) -> String {
    let connection_string = format!(
        "Endpoint=sb://{};SharedAccessKeyName={};SharedAccessKey={key};UseDevelopmentEmulator=true",
        gate.address(),
        flow.name(),
    );
    json!({ "username": "$ConnectionString", "password": connection_string }).to_string()
}

/// The item of a flow in the table.
async fn put_item(witness: &Witness, gate: &Gate, flow: &Flow, state: &str) {
    let mut item = json!({
        "pk": { "S": format!("FLOW#{}", flow.id) },
        "kind": { "S": flow.kind },
        "state": { "S": state },
        "options": { "S": "{}" },
        "authSecretId": { "S": flow.sender_secret() },
        "connectionSecretId": { "S": flow.connection_secret() },
        "host": { "S": gate.address().to_string() },
        "hub": { "S": flow.hub },
        "version": { "N": "1" },
        "tenant": { "S": "org/sandbox" },
    });
    if let Some(partitioning) = flow.partitioning {
        item["partitioning"] = json!({ "S": partitioning });
    }
    witness.call(DYNAMODB, "PutItem", json!({ "TableName": TABLE, "Item": item })).await;
}

/// Stores the secrets of all flows, and the items of the flows in the table.
async fn store_flows(witness: &Witness, gates: &[Gate]) {
    let table = json!({
        "TableName": TABLE,
        "KeySchema": [{ "AttributeName": "pk", "KeyType": "HASH" }],
        "AttributeDefinitions": [{ "AttributeName": "pk", "AttributeType": "S" }],
        "BillingMode": "PAY_PER_REQUEST",
    });
    witness.call(DYNAMODB, "CreateTable", table).await;
    for flow in &FLOWS {
        let gate = &gates[flow.namespace];
        let senders = json!([{ "type": "bearer", "secret": flow.token() }]).to_string();
        for (id, text) in [
            (flow.connection_secret(), connection_secret(flow, gate, &first_key(flow))),
            (flow.sender_secret(), senders),
        ] {
            witness.call(SECRETS, "CreateSecret", json!({ "Name": id, "SecretString": text })).await;
        }
        if flow.id == DEFAULT_FLOW {
            continue;
        }
        put_item(witness, gate, flow, "enabled").await;
    }
}
