//! `local demo`: sends every fixture of every kind through the webhook and through the queue of a running system, another
//! event through a flow that it creates with the control API, and another while its hub is down. It then looks for each
//! event in the hub, and for those of one hub in the inlet.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use shared::aws::{AwsError, Service};
use tokio::time::{Instant, sleep};

use crate::kinds::{KINDS, Kind};
use crate::random;
use crate::run::{ControlInfo, INFO_PATH, Info, KindInfo, SourceInfo, local_aws};

/// Send the fixtures to a running system and wait for them in the hub.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Address of the running system
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Port of its webhook gateway
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Port of its event hub emulator, if it differs from the one that the system reports
    #[arg(long)]
    pub hub_port: Option<u16>,
    /// Port of its moto server, if it differs from the one that the system reports
    #[arg(long)]
    pub aws_port: Option<u16>,
    /// Folder with one folder of events per kind
    #[arg(long, default_value = "tests/fixtures")]
    pub fixtures: PathBuf,
}

/// Maximum time until an event is in the hub.
const ARRIVAL: Duration = Duration::from_secs(30);
/// Interval between two reads of the hub.
const POLL: Duration = Duration::from_millis(200);
/// Timeout of a call to AWS.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Property with the ordering subject of a message.
const SUBJECT: &str = "cloudEvents:subject";

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("no system responds at {0}: start it with `make run`, or give its port with --port")]
    NotRunning(String),
    #[error("{0} returned an unexpected response: check that it belongs to `make run` of the same version")]
    Response(String),
    #[error("the running system accepts no bearer token: start it with one in --sender-auth")]
    NoToken,
    #[error("could not read fixtures from {}: {source}", path.display())]
    Fixtures { path: PathBuf, source: io::Error },
    #[error("there are no fixtures in {}", .0.display())]
    NoFixtures(PathBuf),
    #[error("could not create an HTTP client: {0}")]
    Client(String),
    #[error("the control API refused the call: {0}")]
    Refused(String),
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    #[error(transparent)]
    Queue(#[from] AwsError),
}

/// A sent event.
struct Sent {
    label: String,
    subject: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    partition: u32,
    sequence_number: u64,
    partition_key: Option<String>,
    body: String,
    properties: BTreeMap<String, Value>,
}

/// Sends the events. Returns whether all of them have arrived.
pub async fn demo(options: Options) -> Result<bool, DemoError> {
    let http = shared::build_http_client(None).map_err(DemoError::Client)?.client();
    let url = format!("http://{}", std::net::SocketAddr::new(options.host, options.port));
    let mut info = info_of(&http, &url).await?;
    let at = |port| format!("http://{}", std::net::SocketAddr::new(options.host, port));
    info.hub_url = options.hub_port.map_or(info.hub_url, at);
    info.aws_endpoint = options.aws_port.map(at).or(info.aws_endpoint);

    let (mut sent_count, mut arrived_count) = (0, 0);
    let mut is_ingested = true;
    for kind in KINDS {
        let Some(running) = info.kinds.iter().find(|running| running.name == kind.name) else { continue };
        let before = next_sequence_numbers(&http, &info, kind).await?;
        let sent = send(&http, &url, &info, kind, running, &options.fixtures).await?;
        let arrived = wait(&http, &info, kind, &before, &sent).await?;
        print_arrived(kind, &sent, &arrived);
        if kind.hub == info.source.hub {
            is_ingested = ingested(&http, &info, &arrived).await?;
        }
        sent_count += sent.len();
        arrived_count += sent.iter().filter(|sent| arrived.contains_key(&sent.subject)).count();
    }
    if let Some(control) = &info.control {
        sent_count += 1;
        arrived_count += usize::from(own_flow(&http, &url, &info, control, &KINDS[0], &options.fixtures).await?);
    }
    if info.undelivered.is_some() {
        sent_count += 1;
        arrived_count += usize::from(outage(&http, &url, &info, &KINDS[0], &options.fixtures).await?);
    }
    println!("\n{sent_count} sent, {arrived_count} in the hub");
    Ok(is_ingested && sent_count > 0 && sent_count == arrived_count)
}

/// Waits until the inlet has the hub's events. Its records are their unchanged bodies.
async fn ingested(
    http: &reqwest::Client,
    info: &Info,
    arrived: &BTreeMap<String, Vec<Stored>>,
) -> Result<bool, DemoError> {
    let SourceInfo { hub, inlet_url, records_url } = &info.source;
    println!("\ningest from hub {hub} into {inlet_url}");
    let bodies = arrived.values().flatten().map(|event| serde_json::from_str(&event.body).unwrap_or_default());
    let mut missing: Vec<Value> = bodies.collect();
    let (all, deadline) = (missing.len(), Instant::now() + ARRIVAL);
    while !missing.is_empty() && Instant::now() < deadline {
        let page = get(http, records_url.clone()).await?;
        let stored = page["records"].as_array().ok_or_else(|| DemoError::Response(records_url.clone()))?;
        missing.retain(|body| !stored.iter().any(|stored| stored["record"] == *body));
        if !missing.is_empty() {
            sleep(POLL).await;
        }
    }
    println!("  {} of {all} records ingested", all - missing.len());
    Ok(missing.is_empty())
}

/// What the system at `url` reports about itself.
async fn info_of(http: &reqwest::Client, url: &str) -> Result<Info, DemoError> {
    let response = http.get(format!("{url}{INFO_PATH}")).send().await;
    let response = response.map_err(|_| DemoError::NotRunning(url.to_owned()))?.text().await?;
    serde_json::from_str(&response).map_err(|_| DemoError::Response(url.to_owned()))
}

/// The events of a kind, with the names of their files.
fn fixtures(folder: &Path) -> Result<Vec<(String, String)>, DemoError> {
    let unreadable = |source| DemoError::Fixtures { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        paths.push(entry.map_err(unreadable)?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    if paths.is_empty() {
        return Err(DemoError::NoFixtures(folder.to_owned()));
    }
    paths
        .into_iter()
        .map(|path| {
            let event =
                std::fs::read_to_string(&path).map_err(|source| DemoError::Fixtures { path: path.clone(), source })?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            Ok((name, event))
        })
        .collect()
}

/// Sends every fixture through the webhook and through the queue, each with its own identity.
async fn send(
    http: &reqwest::Client,
    url: &str,
    info: &Info,
    kind: &Kind,
    running: &KindInfo,
    fixtures_folder: &Path,
) -> Result<Vec<Sent>, DemoError> {
    let fixtures = fixtures(&fixtures_folder.join(kind.name))?;
    let mut sent = Vec::new();
    println!("{} through the webhook: POST {url}/{}", kind.name, kind.name);
    for (name, event) in &fixtures {
        let (event, subject) = (kind.stamp)(event, &random::uuid());
        let (status, body) = post(http, url, info, kind, event).await?;
        println!("  {status} {body:48} {name}");
        sent.push(Sent { label: format!("webhook {name}"), subject });
    }
    let (Some(endpoint), Some(queue_url)) = (&info.aws_endpoint, &running.queue_url) else {
        println!("{} through the queue: the system runs without queues", kind.name);
        return Ok(sent);
    };
    println!("{} through the queue: SendMessage {queue_url}", kind.name);
    let relay_http = shared::build_http_client(None).map_err(DemoError::Client)?;
    let aws = local_aws(relay_http, endpoint.clone(), info.aws_region.clone());
    for (name, event) in &fixtures {
        let (event, subject) = (kind.stamp)(event, &random::uuid());
        let body = json!({ "QueueUrl": queue_url, "MessageBody": event });
        let response = aws.call(Service::Sqs, "SendMessage", &body, Instant::now() + CALL_TIMEOUT).await?;
        let response: Value = serde_json::from_slice(&response).map_err(|_| DemoError::Response(endpoint.clone()))?;
        println!("  200 {:48} {name}", format!("message {}", response["MessageId"].as_str().unwrap_or_default()));
        sent.push(Sent { label: format!("queue   {name}"), subject });
    }
    Ok(sent)
}

/// Creates a connection and a flow with the control API, sends an event through the flow, and deletes what it created.
async fn own_flow(
    http: &reqwest::Client,
    url: &str,
    info: &Info,
    control: &ControlInfo,
    kind: &Kind,
    fixtures_folder: &Path,
) -> Result<bool, DemoError> {
    const EVENT_HUBS: &str = "bf9f5905-92b7-48bf-bf20-455bc6b60a4e";
    let call = async |method: Method, path: &str, body: Value| -> Result<Value, DemoError> {
        let request = http
            .request(method.clone(), format!("{url}{path}"))
            .bearer_auth(&control.token)
            .header("x-api-key", "demo")
            .header("x-gw-ims-org-id", &control.organisation)
            .header("content-type", "application/json")
            .body(body.to_string());
        let response = request.send().await?;
        let (status, text) = (response.status(), response.text().await?);
        println!("  {} {method} {path}", status.as_u16());
        if !status.is_success() {
            return Err(DemoError::Refused(text));
        }
        Ok(serde_json::from_str(&text).unwrap_or_default())
    };
    let spec = |id: &str| json!({ "id": id, "version": "1.0" });
    println!("\nanother flow: the control API at {url}");
    let document = json!({
        "name": "demo hubs", "connectionSpec": spec(EVENT_HUBS),
        "auth": {
            "specName": "Azure EventHub authentication credentials",
            "params": { "connectionString": control.hub_connection_string },
        },
    });
    let connection = call(Method::POST, "/connections", document).await?;
    let document =
        json!({ "name": "demo sender", "connectionSpec": spec(kind.sender_spec), "params": { "options": {} } });
    let source = call(Method::POST, "/sourceConnections", document).await?;
    let document = json!({
        "name": "demo hub", "connectionSpec": spec(EVENT_HUBS), "baseConnectionId": connection["id"],
        "params": { "eventHubName": kind.hub, "partitioning": format!("partitions:{}", kind.partitions) },
    });
    let target = call(Method::POST, "/targetConnections", document).await?;
    let document = json!({
        "name": "demo flow", "flowSpec": spec("71471eba-b620-49e4-90fd-23f1fa0174d8"),
        "sourceConnectionIds": [source["id"]], "targetConnectionIds": [target["id"]],
    });
    let flow = call(Method::POST, "/flows", document).await?;

    let path = fixtures_folder.join(kind.name).join(kind.sample);
    let event = std::fs::read_to_string(&path).map_err(|source| DemoError::Fixtures { path, source })?;
    let (event, subject) = (kind.stamp)(&event, &random::uuid());
    let before = next_sequence_numbers(http, info, kind).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let webhook = http.post(text(&flow["webhookUrl"])).bearer_auth(text(&flow["senderAuth"][0]["secret"]));
    let response = webhook.header("content-type", "application/json").body(event).send().await?;
    println!("  {} {} POST {}", response.status().as_u16(), response.text().await?, text(&flow["webhookUrl"]));
    let sent = [Sent { label: "webhook, other flow".to_owned(), subject }];
    let arrived = wait(http, info, kind, &before, &sent).await?;
    print_arrived(kind, &sent, &arrived);
    for (collection, created) in
        [("flows", flow), ("targetConnections", target), ("sourceConnections", source), ("connections", connection)]
    {
        call(Method::DELETE, &format!("/{collection}/{}", text(&created["id"])), Value::Null).await?;
    }
    Ok(arrived.contains_key(&sent[0].subject))
}

/// Sends an event while its hub is down, and waits until it is in the hub after the outage.
async fn outage(
    http: &reqwest::Client,
    url: &str,
    info: &Info,
    kind: &Kind,
    fixtures_folder: &Path,
) -> Result<bool, DemoError> {
    let path = fixtures_folder.join(kind.name).join(kind.sample);
    let event = std::fs::read_to_string(&path).map_err(|source| DemoError::Fixtures { path, source })?;
    let (event, subject) = (kind.stamp)(&event, &random::uuid());
    let before = next_sequence_numbers(http, info, kind).await?;
    let faults = format!("{}/_emulator/faults", info.hub_url);
    println!("\nhub {} down: POST {faults}", kind.hub);
    let down = json!({ "hub": kind.hub, "action": "status", "status": 503, "times": 0 });
    let request = http.post(&faults).header("content-type", "application/json").body(down.to_string());
    request.send().await?.error_for_status()?;
    let response = post(http, url, info, kind, event).await;
    // Whatever the response was.
    http.delete(&faults).send().await?.error_for_status()?;
    let (status, body) = response?;
    println!("  {status} {body}\nhub {} up: DELETE {faults}", kind.hub);
    let parked_at = Instant::now();
    let sent = [Sent { label: "webhook, parked".to_owned(), subject }];
    let arrived = wait(http, info, kind, &before, &sent).await?;
    print_arrived(kind, &sent, &arrived);
    let is_there = arrived.contains_key(&sent[0].subject);
    if is_there {
        println!("  redelivered after {:.1} s", parked_at.elapsed().as_secs_f32());
    }
    if status != 202 {
        println!("  expected 202 {{\"status\":\"parked\",…}}");
    }
    Ok(is_there && status == 202)
}

/// Posts an event with the sender's token. Returns status and body of the response.
async fn post(
    http: &reqwest::Client,
    url: &str,
    info: &Info,
    kind: &Kind,
    event: String,
) -> Result<(u16, String), DemoError> {
    let token = info.sender_token.as_ref().ok_or(DemoError::NoToken)?;
    let request = http.post(format!("{url}/{}", kind.name)).bearer_auth(token);
    let response = request.header("content-type", "application/json").body(event).send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

/// The next sequence number of each partition, so that only later events are read.
async fn next_sequence_numbers(http: &reqwest::Client, info: &Info, kind: &Kind) -> Result<Vec<u64>, DemoError> {
    let hubs = get(http, format!("{}/_emulator/hubs", info.hub_url)).await?;
    let hubs = hubs["hubs"].as_array().ok_or_else(|| DemoError::Response(info.hub_url.clone()))?;
    let hub =
        hubs.iter().find(|hub| hub["name"] == kind.hub).ok_or_else(|| DemoError::Response(info.hub_url.clone()))?;
    let partitions = hub["partitions"].as_array().ok_or_else(|| DemoError::Response(info.hub_url.clone()))?;
    Ok(partitions.iter().map(|partition| partition["nextSequenceNumber"].as_u64().unwrap_or(0)).collect())
}

async fn get(http: &reqwest::Client, url: String) -> Result<Value, DemoError> {
    let response = http.get(&url).send().await?.text().await?;
    serde_json::from_str(&response).map_err(|_| DemoError::Response(url))
}

/// Waits until all sent events are in the hub, at most [`ARRIVAL`]. Returns the new events by subject.
async fn wait(
    http: &reqwest::Client,
    info: &Info,
    kind: &Kind,
    before: &[u64],
    sent: &[Sent],
) -> Result<BTreeMap<String, Vec<Stored>>, DemoError> {
    let deadline = Instant::now() + ARRIVAL;
    let mut next = before.to_vec();
    let mut arrived = BTreeMap::<String, Vec<Stored>>::new();
    loop {
        for (partition, next) in next.iter_mut().enumerate() {
            let url = format!(
                "{}/_emulator/hubs/{}/events?partition={partition}&from={next}&limit=1000",
                info.hub_url, kind.hub
            );
            let mut page = get(http, url.clone()).await?;
            let events: Vec<Stored> =
                serde_json::from_value(page["events"].take()).map_err(|_| DemoError::Response(url))?;
            for event in events {
                *next = event.sequence_number + 1;
                let subject = event.properties.get(SUBJECT).and_then(Value::as_str).unwrap_or_default().to_owned();
                arrived.entry(subject).or_default().push(event);
            }
        }
        if sent.iter().all(|sent| arrived.contains_key(&sent.subject)) || Instant::now() >= deadline {
            return Ok(arrived);
        }
        sleep(POLL).await;
    }
}

fn print_arrived(kind: &Kind, sent: &[Sent], arrived: &BTreeMap<String, Vec<Stored>>) {
    println!("\nin hub {}", kind.hub);
    for sent in sent {
        println!("  {}", sent.label);
        let Some(events) = arrived.get(&sent.subject) else {
            println!("    MISSING: no event with {SUBJECT} = {}", sent.subject);
            continue;
        };
        for event in events {
            let property = |name: &str| event.properties.get(name).and_then(Value::as_str).unwrap_or("-");
            println!(
                "    partition {} sequence {} key {}  {}  id {}",
                event.partition,
                event.sequence_number,
                event.partition_key.as_deref().unwrap_or("-"),
                property("cloudEvents:type"),
                property("cloudEvents:id"),
            );
            println!("      body       {}", event.body);
            println!("      properties {}", json!(event.properties));
        }
    }
}
