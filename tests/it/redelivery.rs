//! Parked messages stay parked until their hub accepts them, and reach it once. This module has the fixtures; each module below
//! has one topic.

mod envelopes;
mod failing_hubs;
mod rejection;

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use local::emulator::Emulator;
use local::queue_source::{self, Mapping};
use local::runner::Function;
use local::sqs::{Config, Sqs, Stored};
use serde_json::{Value, json};
use shared::aws::{Aws, Service};
use shared::clock::Clock;
use shared::contract::codec::pack;
use shared::contract::parked::unpacked;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cloud::{REGION, emulator, until};
use crate::harness::*;

/// A hub, the queues, and the settings with which functions use both.
struct Stack {
    hub: Emulator,
    sqs: Sqs,
    aws: Aws,
    parking: String,
    rejected: String,
}

/// The mapping of the parking queue. It ends when this value is dropped.
struct Redelivery {
    function: Function,
    mapping: JoinHandle<()>,
}

impl Drop for Redelivery {
    fn drop(&mut self) {
        self.mapping.abort();
    }
}

impl Stack {
    async fn start(hubs: &[&str]) -> Self {
        Self::with_maximum_message_size(hubs, 1_048_576).await
    }

    async fn with_maximum_message_size(hubs: &[&str], bytes: usize) -> Self {
        let sqs = Sqs::start(Config::default(), TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
        let http = shared::build_http_client(None).unwrap();
        let aws = local::run::local_aws(http, sqs.url().to_owned(), REGION.to_owned());
        let mut stack = Self { hub: emulator(hubs).await, sqs, aws, parking: String::new(), rejected: String::new() };
        for (name, url) in [("parking", &mut stack.parking), ("rejected", &mut stack.rejected)] {
            let attributes = json!({ "VisibilityTimeout": "600", "MaximumMessageSize": bytes.to_string() });
            let created = call(&stack.aws, "CreateQueue", json!({ "QueueName": name, "Attributes": attributes })).await;
            *url = created["QueueUrl"].as_str().unwrap().to_owned();
        }
        stack
    }

    async fn call(&self, operation: &'static str, body: Value) -> Value {
        call(&self.aws, operation, body).await
    }

    fn connection_string(&self) -> String {
        self.hub.connection_string(&hub_config().keys[0].name, Some(HUB))
    }

    /// A function with the default flow to `HUB`. `more` adds or replaces variables.
    fn function(&self, name: &str, more: &[(&str, &str)]) -> Function {
        let connection_string = self.connection_string();
        let mut environment = vec![
            ("EVENT_HUBS_CONNECTION_STRING", connection_string.as_str()),
            ("SENDER_AUTH", SENDER_AUTH),
            ("PARKING_QUEUE_URL", &self.parking),
            ("REJECTED_QUEUE_URL", &self.rejected),
            ("AWS_ENDPOINT_URL", self.sqs.url()),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", "local"),
            ("AWS_SECRET_ACCESS_KEY", "local"),
        ];
        environment.extend(more);
        function_of(name, &environment)
    }

    fn redeliver(&self, more: &[(&str, &str)]) -> Redelivery {
        let quick = [("REDELIVERY_DELAY", "1"), ("REDELIVERY_MAX_DELAY", "5"), ("REDELIVERY_CONCURRENCY", "2")];
        let function = self.function("redelivery", &[&quick, more].concat());
        let mapping = Mapping { batch_size: 1000, ..Mapping::new(&self.parking, REGION) };
        let mapping = tokio::spawn(queue_source::run(self.aws.clone(), function.clone(), mapping));
        Redelivery { function, mapping }
    }

    /// Parks one envelope of messages for `HUB` that were first seen some seconds ago. The hub refuses the one with the
    /// subject `poison`, whose properties are not an object.
    fn park(&self, seconds_ago: u64, subjects: &[&str], change: Value) {
        let first_seen = Clock::system().now().duration_since(UNIX_EPOCH).unwrap() - Duration::from_secs(seconds_ago);
        let message = |subject: &&str| {
            let properties = json!({ "cloudEvents:id": format!("id-{subject}"), "cloudEvents:subject": subject });
            let properties = if *subject == "poison" { json!([]) } else { properties };
            json!({ "id": format!("id-{subject}"), "subject": subject, "body": "{}", "properties": properties })
        };
        let mut envelope = json!({
            "v": 1, "kind": "audience-change", "flow": "default", "hub": HUB,
            "host": self.hub.url().replace("http://", ""),
            "firstSeen": shared::rfc3339(i64::try_from(first_seen.as_millis()).unwrap()).unwrap(),
            "reason": "timeout", "messages": subjects.iter().map(message).collect::<Vec<_>>(),
        });
        for (name, value) in change.as_object().unwrap() {
            envelope[name] = value.clone();
        }
        self.sqs.put("parking", &pack(envelope.to_string().as_bytes()), None);
    }

    fn parked(&self) -> Vec<Stored> {
        self.sqs.messages("parking")
    }

    fn rejects(&self) -> Vec<Value> {
        self.sqs.messages("rejected").iter().map(|message| serde_json::from_str(&message.body).unwrap()).collect()
    }

    /// Number of copies of each message in the hub, by subject.
    fn copies(&self) -> BTreeMap<String, usize> {
        let mut copies = BTreeMap::new();
        for event in self.hub.events(HUB) {
            let subject = event.properties["cloudEvents:subject"].as_str().unwrap().to_owned();
            *copies.entry(subject).or_default() += 1;
        }
        copies
    }

    async fn until_nothing_is_parked(&self) {
        until("an empty parking queue", async || self.parked().is_empty()).await;
    }
}

async fn call(aws: &Aws, operation: &'static str, body: Value) -> Value {
    let response = aws.call(Service::Sqs, operation, &body, Instant::now() + Duration::from_secs(10)).await.unwrap();
    serde_json::from_slice(&response).unwrap_or_default()
}

fn envelope(message: &Stored) -> Value {
    serde_json::from_str(&unpacked(&message.body).unwrap()).unwrap()
}

fn lines(function: &Function, message: &str) -> Vec<Value> {
    let logs = function.logs();
    let lines = logs.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"].as_str().is_some_and(|text| text.contains(message))).collect()
}

/// Serves at a free port: each response is the status and body that `respond` returns for the `x-amz-target` and body of a
/// request. Returns host and port.
async fn serve(respond: impl Fn(String, Vec<u8>) -> (u16, String) + Clone + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let respond = respond.clone();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let respond = respond.clone();
                async move {
                    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
                    let target = target.unwrap_or_default().to_owned();
                    let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
                    let (status, body) = respond(target, body.to_vec());
                    let body = http_body_util::Full::new(bytes::Bytes::from(body));
                    Ok::<_, std::convert::Infallible>(http::Response::builder().status(status).body(body).unwrap())
                }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    host
}
