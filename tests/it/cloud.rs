//! The AWS services that functions use, emulated by moto server.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use local::emulator::Emulator;
use local::moto::Moto;
use local::queue_source::{self, Mapping};
use local::runner::Function;
use serde_json::{Value, json};
use shared::aws::{Aws, Service};
use shared::clock::Clock;
use shared::environment::Environment;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::harness::{HUB, SENDER_AUTH, function_of, hub_config, virtual_environment};

pub const REGION: &str = "eu-central-1";
pub const TABLE: &str = "flows";
/// Maximum time to wait for a condition or a call.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A moto server with the queues, the table and the secrets of one test.
pub struct Cloud {
    pub aws: Aws,
    pub parking: String,
    pub rejected: String,
    moto: Moto,
}

impl Cloud {
    pub async fn start() -> Self {
        let http = shared::build_http_client(None).unwrap();
        // Another test may take the port in the meantime.
        let mut tries = 0;
        let moto = loop {
            let address = SocketAddr::from(([127, 0, 0, 1], crate::harness::free_port()));
            match Moto::start(&virtual_environment().join("bin/moto_server"), address, &http.client()).await {
                Ok(moto) => break moto,
                Err(_) if tries < 3 => tries += 1,
                Err(error) => panic!("{error}"),
            }
        };
        let variables = variables(moto.url());
        let environment = Environment::from_fn(move |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
        });
        let aws = Aws::new(http, environment, Clock::system());
        let mut cloud = Self { aws, parking: String::new(), rejected: String::new(), moto };
        cloud.parking = cloud.queue("parking").await;
        cloud.rejected = cloud.queue("rejected").await;
        cloud.call(Service::DynamoDb, "CreateTable", local::run::flows_table(TABLE)).await;
        cloud
    }

    pub async fn call(&self, service: Service, operation: &'static str, body: Value) -> Value {
        let response = self.aws.call(service, operation, &body, Instant::now() + TIME_LIMIT).await.unwrap();
        serde_json::from_slice(&response).unwrap_or_default()
    }

    pub async fn queue(&self, name: &str) -> String {
        let created = self
            .call(
                Service::Sqs,
                "CreateQueue",
                json!({
                    // Longer than any test: a message is redelivered only if a function made it visible.
                    "QueueName": name, "Attributes": { "VisibilityTimeout": "600" },
                }),
            )
            .await;
        created["QueueUrl"].as_str().unwrap().to_owned()
    }

    pub async fn secret(&self, id: &str, text: &str) {
        let create = json!({ "Name": id, "SecretString": text });
        self.call(Service::SecretsManager, "CreateSecret", create).await;
    }

    pub async fn change_secret(&self, id: &str, text: &str) {
        let put = json!({ "SecretId": id, "SecretString": text });
        self.call(Service::SecretsManager, "PutSecretValue", put).await;
    }

    /// Writes a flow of `kind` to `hub` of `emulator`, with secrets of its own. `change` replaces attributes of the item.
    pub async fn flow(&self, id: &str, kind: &str, emulator: &Emulator, hub: &str, change: Value) {
        let key_name = hub_config().keys[0].name.clone();
        let connection = emulator.connection_string(&key_name, None);
        let secret = json!({ "username": "$ConnectionString", "password": connection }).to_string();
        self.secret(&format!("connection-{id}"), &secret).await;
        self.secret(&format!("senders-{id}"), SENDER_AUTH).await;
        self.put_flow(id, kind, hub, change).await;
    }

    pub async fn put_flow(&self, id: &str, kind: &str, hub: &str, change: Value) {
        let mut item = json!({
            "pk": format!("FLOW#{id}"), "kind": kind, "state": "enabled", "hub": hub, "partitioning": "partitions:4",
            "options": "{}", "connectionSecretId": format!("connection-{id}"), "authSecretId": format!("senders-{id}"),
        });
        for (name, value) in change.as_object().unwrap() {
            item[name] = value.clone();
        }
        let texts = item.as_object().unwrap().iter().filter(|(_, value)| value.is_string());
        let item: serde_json::Map<_, _> = texts.map(|(name, value)| (name.clone(), json!({ "S": value }))).collect();
        self.call(Service::DynamoDb, "PutItem", json!({ "TableName": TABLE, "Item": item })).await;
    }

    pub async fn delete_flow(&self, id: &str) {
        let key = json!({ "pk": { "S": format!("FLOW#{id}") } });
        self.call(Service::DynamoDb, "DeleteItem", json!({ "TableName": TABLE, "Key": key })).await;
    }

    /// Receives and deletes every visible message of a queue.
    pub async fn take(&self, queue: &str) -> Vec<Value> {
        let mut taken = Vec::new();
        loop {
            let receive =
                json!({ "QueueUrl": queue, "MaxNumberOfMessages": 10, "MessageSystemAttributeNames": ["All"] });
            let received = self.call(Service::Sqs, "ReceiveMessage", receive).await;
            let Some(messages) = received["Messages"].as_array().filter(|messages| !messages.is_empty()) else {
                return taken;
            };
            for message in messages {
                let delete = json!({ "QueueUrl": queue, "ReceiptHandle": message["ReceiptHandle"] });
                self.call(Service::Sqs, "DeleteMessage", delete).await;
            }
            taken.extend(messages.iter().cloned());
        }
    }

    pub fn endpoint(&self) -> &str {
        self.moto.url()
    }

    /// The variables with which a function uses the emulated services, the queues and the table.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = variables(self.moto.url()).to_vec();
        variables.extend([
            ("PARKING_QUEUE_URL", self.parking.clone()),
            ("REJECTED_QUEUE_URL", self.rejected.clone()),
            ("FLOWS_TABLE", TABLE.to_owned()),
        ]);
        variables
    }

    /// A kind's function with the default flow to `HUB` of `hub`. `more` adds or replaces variables.
    pub fn function(&self, kind: &str, hub: &Emulator, more: &[(&str, &str)]) -> Function {
        let key_name = hub_config().keys[0].name.clone();
        let connection_string = hub.connection_string(&key_name, Some(HUB));
        let variables = self.variables();
        let mut environment: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        environment
            .extend([("EVENT_HUBS_CONNECTION_STRING", connection_string.as_str()), ("SENDER_AUTH", SENDER_AUTH)]);
        environment.extend(more);
        function_of(kind, &environment)
    }

    /// The redelivery function, invoked with messages of the parking queue until the returned value is dropped.
    pub fn redeliver(&self, hub: &Emulator) -> Redelivery {
        let quick = [("REDELIVERY_DELAY", "1"), ("REDELIVERY_MAX_DELAY", "5"), ("REDELIVERY_CONCURRENCY", "2")];
        let function = self.function("redelivery", hub, &quick);
        let mapping = Mapping { batch_size: 50, ..Mapping::new(&self.parking, REGION) };
        let poll = queue_source::run(self.aws.clone(), function.clone(), mapping);
        Redelivery { function, poll: tokio::spawn(poll) }
    }
}

pub struct Redelivery {
    pub function: Function,
    poll: JoinHandle<()>,
}

impl Drop for Redelivery {
    fn drop(&mut self) {
        self.poll.abort();
    }
}

fn variables(endpoint: &str) -> [(&'static str, String); 4] {
    [
        ("AWS_ENDPOINT_URL", endpoint.to_owned()),
        ("AWS_REGION", REGION.to_owned()),
        ("AWS_ACCESS_KEY_ID", "local".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "local".to_owned()),
    ]
}

pub async fn emulator(hubs: &[&str]) -> Emulator {
    let config =
        local::emulator::Config { hubs: hubs.iter().map(|hub| ((*hub).to_owned(), 4)).collect(), ..hub_config() };
    Emulator::start(config, TcpListener::bind("127.0.0.1:0").await.unwrap()).await
}

/// The body of an envelope that was gzipped and put into base64, unpacked by Python.
pub fn unpacked(text: &str) -> Vec<u8> {
    let packed = STANDARD.decode(text).unwrap();
    let mut python = std::process::Command::new("python3")
        .args(["-c", "import sys, gzip; sys.stdout.buffer.write(gzip.decompress(sys.stdin.buffer.read()))"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut python.stdin.take().unwrap(), &packed).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + TIME_LIMIT;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}: not within {} s", TIME_LIMIT.as_secs());
        sleep(Duration::from_millis(50)).await;
    }
}
