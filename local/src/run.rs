//! `local run`: everything on one machine, until Ctrl-C.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::aws::{Aws, AwsError, Service};
use shared::clock::Clock;
use shared::environment::{self, Environment};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cloudwatch;
use crate::console::{self, Console, SendersKey};
use crate::emulator::{Config, Emulator, Key, ROOT_KEY_NAME, Rights};
use crate::gateway;
use crate::inlet::{self, Inlet};
use crate::kinds::KINDS;
use crate::lambda_api::LambdaApi;
use crate::moto::{self, Moto, MotoError};
use crate::own_address::guard_control_routes;
use crate::poller::Poller;
use crate::queue_source::{self, Mapping};
use crate::random;
use crate::runner::{Function, FunctionConfig};
use crate::tokens::{self, Tokens};

/// Start the emulator, the functions, the gateway and the queues.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Port of the webhook gateway
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Port of the event hub emulator
    #[arg(long, default_value_t = 5300)]
    pub hub_port: u16,
    /// Port of moto server, which stands in for SQS
    #[arg(long, default_value_t = 5566)]
    pub aws_port: u16,
    /// Port of the streaming inlet that stands in for Adobe's
    #[arg(long, default_value_t = 5400)]
    pub inlet_port: u16,
    /// Folder of the built functions [default: where this program is]
    #[arg(long)]
    pub functions: Option<PathBuf>,
    /// Moto server's program
    #[arg(long, default_value = moto::DEFAULT_PATH)]
    pub moto: PathBuf,
    /// Throttle the hubs as this many throughput units would
    #[arg(long)]
    pub throughput_units: Option<u32>,
    /// How senders authenticate: SENDER_AUTH of every function
    #[arg(long, default_value = r#"[{"type":"bearer","secret":"local-sender"}]"#)]
    pub sender_auth: String,
    /// Run without queues, and so without moto server
    #[arg(long)]
    pub no_queue: bool,
    /// Print what the functions log
    #[arg(short, long)]
    pub verbose: bool,
}

const REGION: &str = "eu-central-1";
/// A webhook is answered within 2 s; a queue batch has its time too.
const FUNCTION_TIMEOUT: Duration = Duration::from_secs(10);
const CREATE_TIMEOUT: Duration = Duration::from_secs(10);
/// Six times the function's timeout, as AWS advises.
const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_RECEIVE_COUNT: u32 = 100;
const BATCH_SIZE: usize = 50;
const REDELIVERY: &str = "redelivery";
const FLOW_SERVICE: &str = "flow-service";
const PLATFORM_INGEST: &str = "platform-ingest";
const FLOWS_TABLE: &str = "flows";
/// What the functions that events pass log, as in the template.
const LOG_GROUP: &str = "/aws/lambda/local";
/// The policy that the default flows send with, and the secret that they read its key from.
const SENDERS_KEY_NAME: &str = "senders";
const SENDERS_SECRET_ID: &str = "eventhubs-relay/local";
/// The secret of the inlet's client.
const IMS_SECRET: &str = "ims-client";
/// The same for flows of the control API: each organisation has its own.
const IMS_SECRET_OF_FLOWS: &str = "eventhubs-relay/flows/ims/local@AdobeOrg/client";
const IMS_CLIENT: (&str, &str) = ("local-client", "local-client-secret");
/// The most events of one invocation on the way back.
const SOURCE_BATCH_SIZE: usize = 1000;
/// Of the parking queue, as in the template.
const MAX_REDELIVERIES: u32 = 100;
/// Batches of parked messages in flight together, as in the template.
const REDELIVERY_CONCURRENCY: usize = 2;
/// In seconds, doubled after each failure: shorter than in the cloud, so that a recovery is soon seen.
const REDELIVERY_DELAY: &str = "2";

/// Why nothing runs.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{} is missing: `make run` builds it", .0.display())]
    NotBuilt(PathBuf),
    #[error("port {port} can't be listened on ({source}): choose another with {option}")]
    Port { port: u16, option: &'static str, source: io::Error },
    #[error(transparent)]
    Moto(#[from] MotoError),
    #[error("no HTTP client: {0}")]
    Client(String),
    #[error("queues, the table of flows or the log group can't be created: {0}")]
    Queues(#[from] AwsError),
    #[error("no key for the control API's tokens: {0}")]
    Tokens(String),
    #[error("signals can't be handled: {0}")]
    Signals(io::Error),
    #[error("{0} does not answer")]
    Silent(String),
}

/// What a running system tells about itself at [`INFO_PATH`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    pub hub_url: String,
    /// Absent without queues.
    pub aws_endpoint: Option<String>,
    pub aws_region: String,
    #[serde(flatten)]
    pub keeping: Option<Keeping>,
    /// A bearer token that the functions accept, if there is one.
    pub sender_token: Option<String>,
    /// Absent without queues.
    pub control: Option<ControlInfo>,
    pub source: SourceInfo,
    pub kinds: Vec<KindInfo>,
}

/// The way back: a hub, and the inlet that its events go into.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceInfo {
    pub hub: String,
    pub inlet_url: String,
    /// What it took.
    pub records_url: String,
}

/// How the control API is called.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlInfo {
    /// A bearer token, and the organisation that it names.
    pub token: String,
    pub organisation: String,
    /// Of the namespace that the hubs are in.
    pub hub_connection_string: String,
}

/// The queues that keep what can't be delivered. Absent without queues.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Keeping {
    pub parking_queue_url: String,
    pub parking_dead_letters_url: String,
    pub rejected_queue_url: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KindInfo {
    pub name: String,
    pub hub: String,
    pub queue_url: Option<String>,
}

pub const INFO_PATH: &str = "/_local/info";

/// Calls AWS at `endpoint` with credentials that moto takes.
pub fn local_aws(http: shared::http::Http, endpoint: String, region: String) -> Aws {
    let environment = Environment::from_fn(move |name| match name {
        "AWS_ENDPOINT_URL" => Some(endpoint.clone()),
        "AWS_REGION" => Some(region.clone()),
        "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => Some("local".to_owned()),
        _ => None,
    });
    Aws::new(http, environment, Clock::system())
}

/// The table of flows, as the template has it.
pub fn flows_table(name: &str) -> Value {
    let attribute = |name: &str| json!({ "AttributeName": name, "AttributeType": "S" });
    let key = |name: &str| json!([{ "AttributeName": name, "KeyType": "HASH" }]);
    let index = json!({
        "IndexName": "collection", "KeySchema": key("collection"), "Projection": { "ProjectionType": "ALL" },
    });
    json!({
        "TableName": name, "AttributeDefinitions": [attribute("pk"), attribute("collection")], "KeySchema": key("pk"),
        "GlobalSecondaryIndexes": [index], "BillingMode": "PAY_PER_REQUEST",
    })
}

/// Runs until SIGINT, SIGTERM or SIGHUP.
pub async fn run(options: Options) -> Result<(), RunError> {
    let functions = options.functions.clone().unwrap_or_else(own_folder);
    let with_aws: &[&str] = if options.no_queue { &[] } else { &[REDELIVERY, FLOW_SERVICE] };
    for name in KINDS.iter().map(|kind| kind.name).chain([PLATFORM_INGEST]).chain(with_aws.iter().copied()) {
        let binary = functions.join(name);
        if !binary.is_file() {
            return Err(RunError::NotBuilt(binary));
        }
    }
    let mut stop = Stop::listen()?;
    tokio::select! {
        signal = stop.wait() => {
            println!("{signal}: stopping");
            return Ok(());
        }
        system = start(&options, &functions) => {
            let system = system?;
            let signal = stop.wait().await;
            println!("{signal}: stopping");
            system.stop().await;
        }
    }
    Ok(())
}

/// Cargo puts all programs of a profile into one folder.
fn own_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.parent().map_or_else(|| PathBuf::from("target/debug"), Path::to_owned)
}

struct System {
    emulator: Emulator,
    /// It ends with the system.
    _inlet: Inlet,
    functions: Vec<Function>,
    /// Its sources end with it.
    lambda: Option<LambdaApi>,
    moto: Option<Moto>,
    /// The gateway and the queue sources.
    tasks: JoinSet<()>,
}

impl System {
    async fn stop(mut self) {
        drop(self.lambda);
        self.tasks.shutdown().await;
        for function in &self.functions {
            function.stop();
        }
        for function in &self.functions {
            function.stopped().await;
        }
        if let Some(moto) = self.moto {
            moto.stop().await;
        }
        self.emulator.shutdown().await;
    }
}

async fn start(options: &Options, functions_folder: &Path) -> Result<System, RunError> {
    // All ports before anything else, so that one in use is told at once.
    let listen = async |port: u16, option| {
        TcpListener::bind(SocketAddr::new(options.host, port)).await.map_err(|source| RunError::Port {
            port,
            option,
            source,
        })
    };
    let gateway_listener = listen(options.port, "--port").await?;
    let hub_listener = listen(options.hub_port, "--hub-port").await?;
    let inlet_listener = listen(options.inlet_port, "--inlet-port").await?;
    // Only the control API calls it.
    let lambda_listener = listen(0, "--host").await?;
    let aws_listener = if options.no_queue { None } else { Some(listen(options.aws_port, "--aws-port").await?) };
    let relay_http = shared::build_http_client(None).map_err(RunError::Client)?;
    let http = relay_http.client();

    let mut config = Config {
        hubs: KINDS.iter().map(|kind| (kind.hub.to_owned(), kind.partitions)).collect(),
        throughput_units: options.throughput_units,
        ..Config::default()
    };
    let senders_key = random::uuid();
    config.keys.push(Key {
        name: SENDERS_KEY_NAME.to_owned(),
        key: senders_key.clone(),
        rights: Rights { send: true, ..Rights::default() },
        hub: None,
    });
    let emulator = Emulator::start(config, hub_listener).await;
    println!("event hubs   {} (emulator)", emulator.url());
    // Without Secrets Manager there is nowhere for a client's secret.
    let client = (!options.no_queue).then(|| (IMS_CLIENT.0.to_owned(), IMS_CLIENT.1.to_owned()));
    let inlet_config = inlet::Config { id: "local".to_owned(), client, ..inlet::Config::default() };
    let inlet = Inlet::start(inlet_config, inlet_listener).await;
    println!("inlet        {} (stand-in)", inlet.url());

    let moto = match aws_listener {
        None => None,
        Some(listener) => {
            println!("queues       starting moto server ...");
            // Moto binds the port itself.
            let port = listener.local_addr().map_or(options.aws_port, |address| address.port());
            drop(listener);
            Some(Moto::start(&options.moto, reachable(SocketAddr::new(options.host, port)), &http).await?)
        }
    };
    let mut info = Info {
        hub_url: emulator.url(),
        aws_endpoint: moto.as_ref().map(|moto| moto.url().to_owned()),
        aws_region: REGION.to_owned(),
        keeping: None,
        sender_token: bearer_token(&options.sender_auth),
        control: None,
        source: SourceInfo {
            hub: KINDS[0].hub.to_owned(),
            inlet_url: inlet.url(),
            records_url: format!("http://{}/_inlet/records", inlet.host()),
        },
        kinds: Vec::new(),
    };
    let address = gateway_listener.local_addr().unwrap_or(SocketAddr::new(options.host, options.port));
    let url = format!("http://{}", reachable(address));
    let aws = info.aws_endpoint.as_ref().map(|url| local_aws(relay_http.clone(), url.clone(), REGION.to_owned()));
    let (mut functions, mut tasks) = (Vec::new(), JoinSet::new());
    let poll = |tasks: &mut JoinSet<()>, aws: &Aws, url: &str, function: &Function, pollers: usize| {
        let mapping = Mapping { batch_size: BATCH_SIZE, pollers, ..Mapping::new(url, REGION) };
        tasks.spawn(queue_source::run(aws.clone(), function.clone(), mapping));
    };
    let (observer, mut observed) = mpsc::unbounded_channel();
    let (mut control, mut lambda) = (None, None);
    if let Some(aws) = &aws {
        cloudwatch::create(aws, LOG_GROUP, Instant::now() + CREATE_TIMEOUT).await?;
        let (passed_on, feeding) = cloudwatch::feed(aws.clone(), LOG_GROUP, observed);
        observed = passed_on;
        tasks.spawn(feeding);
        let secret = console::secret(&emulator.connection_string(SENDERS_KEY_NAME, None));
        let secret = json!({ "Name": SENDERS_SECRET_ID, "SecretString": secret });
        aws.call(Service::SecretsManager, "CreateSecret", &secret, Instant::now() + CREATE_TIMEOUT).await?;
        aws.call(Service::DynamoDb, "CreateTable", &flows_table(FLOWS_TABLE), Instant::now() + CREATE_TIMEOUT).await?;
        info.keeping = Some(keeping(aws).await?);
    }
    let ingest = Function::new(ingest_config(&inlet, options, functions_folder, &info));
    if let (Some(aws), Some(keeping)) = (&aws, info.keeping.clone()) {
        // Envelopes name the secret.
        let mut config = function_config(REDELIVERY, &[], options, functions_folder, &info);
        config.observer = Some(observer.clone());
        config.environment.push(("REDELIVERY_DELAY".to_owned(), REDELIVERY_DELAY.to_owned()));
        config.max_instances = REDELIVERY_CONCURRENCY;
        let function = Function::new(config);
        poll(&mut tasks, aws, &keeping.parking_queue_url, &function, REDELIVERY_CONCURRENCY);
        functions.push(function);

        let tokens = Tokens::new(Clock::system()).map_err(RunError::Tokens)?;
        info.control = Some(ControlInfo {
            token: tokens.token().map_err(RunError::Tokens)?,
            organisation: tokens::ORGANISATION.to_owned(),
            hub_connection_string: emulator.connection_string(ROOT_KEY_NAME, None),
        });
        let mut config = control_config(&url, &emulator, &inlet, options, functions_folder, &info);
        let stand_in = LambdaApi::start(emulator.clone(), ingest.clone(), lambda_listener).await;
        println!("lambda       {} (stand-in for the sources of flows)", stand_in.url());
        config.environment.push(("AWS_ENDPOINT_URL_LAMBDA".to_owned(), stand_in.url()));
        lambda = Some(stand_in);
        let function = Function::new(config);
        control = Some((function.clone(), Arc::new(tokens)));
        functions.push(function);
    }
    if let Some(aws) = &aws {
        let secret = json!({ "client_id": IMS_CLIENT.0, "client_secret": IMS_CLIENT.1 }).to_string();
        for name in [IMS_SECRET, IMS_SECRET_OF_FLOWS] {
            let body = json!({ "Name": name, "SecretString": secret });
            aws.call(Service::SecretsManager, "CreateSecret", &body, Instant::now() + CREATE_TIMEOUT).await?;
        }
    }
    tasks.spawn(Poller::new(emulator.clone(), &info.source.hub, ingest.clone(), None, SOURCE_BATCH_SIZE).run());
    functions.push(ingest);
    let mut kinds = BTreeMap::new();
    for kind in KINDS {
        let connection = emulator.connection_string(SENDERS_KEY_NAME, Some(kind.hub));
        let hub: &[(&str, &str)] = match &aws {
            Some(_) => &[(environment::CONNECTION_SECRET_ID, SENDERS_SECRET_ID), (environment::HUB_NAME, kind.hub)],
            None => &[(environment::CONNECTION_STRING, &connection)],
        };
        let mut config = function_config(kind.name, hub, options, functions_folder, &info);
        config.observer = Some(observer.clone());
        let function = Function::new(config);
        let mut queue_url = None;
        if let Some(aws) = &aws {
            let (url, _) = queue_source::create_queue(aws, kind.queue, VISIBILITY_TIMEOUT, MAX_RECEIVE_COUNT).await?;
            poll(&mut tasks, aws, &url, &function, 1);
            queue_url = Some(url);
        }
        info.kinds.push(KindInfo { name: kind.name.to_owned(), hub: kind.hub.to_owned(), queue_url });
        kinds.insert(kind.name.to_owned(), function.clone());
        functions.push(function);
    }
    if let Some(endpoint) = &info.aws_endpoint {
        println!("queues       {endpoint} (moto server)");
    }

    let key =
        SendersKey { name: SENDERS_KEY_NAME, key: senders_key, secret_id: aws.is_some().then_some(SENDERS_SECRET_ID) };
    let console = Console {
        emulator: emulator.clone(),
        commands: info.keeping.as_ref().map(|keeping| down_and_up(&info, keeping)).unwrap_or_default(),
        info: info.clone(),
        url: url.clone(),
        http: http.clone(),
        aws,
        table: FLOWS_TABLE,
        key,
    };
    let (console, watching) = console.open(observed);
    tasks.spawn(watching);
    let mut router = gateway::router(kinds).merge(console).merge(info_route(&info));
    if let Some((function, tokens)) = control {
        router = router.merge(gateway::control_router(function, tokens));
    }
    let router = router.layer(middleware::from_fn(guard_control_routes));
    tasks.spawn(async move {
        if let Err(error) = gateway::serve(gateway_listener, router).await {
            eprintln!("gateway: {error}");
        }
    });
    println!("gateway      {url} (its page is the console)");
    for page in [format!("{url}/"), format!("{}/_emulator/hubs", info.hub_url)] {
        if !http.get(&page).send().await.is_ok_and(|answer| answer.status().is_success()) {
            return Err(RunError::Silent(page));
        }
    }
    print!("{}", instructions(&url, &info));
    println!("ready: {url}");
    Ok(System { emulator, _inlet: inlet, functions, lambda, moto, tasks })
}

/// An address that clients on this machine can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The queues that keep what can't be delivered. Nobody consumes the rejected one, so that it needs no dead-letter queue.
async fn keeping(aws: &Aws) -> Result<Keeping, AwsError> {
    let (parking_queue_url, parking_dead_letters_url) =
        queue_source::create_queue(aws, "parking", VISIBILITY_TIMEOUT, MAX_REDELIVERIES).await?;
    let rejected_queue_url = queue_source::create_keeping_queue(aws, "rejected").await?;
    Ok(Keeping { parking_queue_url, parking_dead_letters_url, rejected_queue_url })
}

/// `hub` are the variables that lead there.
fn function_config(name: &str, hub: &[(&str, &str)], options: &Options, folder: &Path, info: &Info) -> FunctionConfig {
    let mut environment = vec![
        (environment::SENDER_AUTH.to_owned(), options.sender_auth.clone()),
        ("AWS_REGION".to_owned(), REGION.to_owned()),
    ];
    environment.extend(hub.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    if let Some(endpoint) = &info.aws_endpoint {
        environment.push(("AWS_ENDPOINT_URL".to_owned(), endpoint.clone()));
        environment.push((environment::FLOWS_TABLE.to_owned(), FLOWS_TABLE.to_owned()));
    }
    if let Some(keeping) = &info.keeping {
        environment.push((environment::PARKING_QUEUE_URL.to_owned(), keeping.parking_queue_url.clone()));
        environment.push((environment::REJECTED_QUEUE_URL.to_owned(), keeping.rejected_queue_url.clone()));
    }
    let mut config = FunctionConfig::new(name, folder.join(name));
    config.environment = environment;
    config.timeout = FUNCTION_TIMEOUT;
    config.print_logs = options.verbose;
    config
}

/// Of the control API, which takes no events.
fn control_config(
    url: &str,
    emulator: &Emulator,
    inlet: &Inlet,
    options: &Options,
    folder: &Path,
    info: &Info,
) -> FunctionConfig {
    let mut config = function_config(FLOW_SERVICE, &[], options, folder, info);
    config.environment.push(("PUBLIC_URL".to_owned(), url.to_owned()));
    config.environment.push(("LOG_GROUP".to_owned(), LOG_GROUP.to_owned()));
    config.environment.push(("ORG_CLAIM_TYPE".to_owned(), "list".to_owned()));
    let hosts = format!("{},{}", emulator.url().replace("http://", ""), inlet.host());
    config.environment.push(("EMULATOR_HOSTS".to_owned(), hosts));
    config.environment.push(("PLATFORM_INGEST_FUNCTION".to_owned(), PLATFORM_INGEST.to_owned()));
    config
}

/// Of the way back.
fn ingest_config(inlet: &Inlet, options: &Options, folder: &Path, info: &Info) -> FunctionConfig {
    let mut config = function_config(PLATFORM_INGEST, &[], options, folder, info);
    let expected = inlet::Config::default();
    let own = [
        ("INLET_URL", inlet.url()),
        ("INLET_FLOW_ID", expected.flow_id),
        ("INLET_SANDBOX", expected.sandbox),
        ("EMULATOR_HOSTS", inlet.host()),
    ];
    config.environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
    if info.aws_endpoint.is_some() {
        config.environment.push(("IMS_SECRET_ID".to_owned(), IMS_SECRET.to_owned()));
        config.environment.push(("IMS_TOKEN_URL".to_owned(), inlet.token_url()));
    }
    config
}

/// The first bearer token of a `SENDER_AUTH`.
fn bearer_token(sender_auth: &str) -> Option<String> {
    let accepted: Vec<Value> = serde_json::from_str(sender_auth).ok()?;
    let bearer = accepted.iter().find(|credential| credential["type"] == "bearer")?;
    bearer["secret"].as_str().map(str::to_owned)
}

/// Commands to paste.
fn instructions(url: &str, info: &Info) -> String {
    let mut text = String::new();
    for kind in KINDS {
        let sample = format!("tests/fixtures/{}/{}", kind.name, kind.sample);
        let authorization =
            info.sender_token.as_ref().map(|token| format!(" -H 'authorization: Bearer {token}'")).unwrap_or_default();
        text.push_str(&format!(
            "\n{name}\n  by webhook:  curl -i {url}/{name}{authorization} -H 'content-type: application/json' \
             --data @{sample}\n",
            name = kind.name,
        ));
        if let Some(queue_url) = info.queue_url(kind.name) {
            // Moto tells services apart by the signature's scope.
            text.push_str(&format!(
                "  by queue:    curl {queue_url} --aws-sigv4 aws:amz:{REGION}:sqs --user local:local \
                 -d Action=SendMessage --data-urlencode MessageBody@{sample}\n",
            ));
        }
        text.push_str(&format!("  in the hub:  curl {}/_emulator/hubs/{}/events\n", info.hub_url, kind.hub));
    }
    text.push_str(&format!("\nback out of {}\n  at the inlet: curl {}\n", info.source.hub, info.source.records_url));
    if let Some(control) = &info.control {
        text.push_str(&format!("\ncontrol API (docs/control-api.md)\n{}", control.calls(url)));
    }
    if let Some(keeping) = &info.keeping {
        text.push_str(&format!("\nwhile a hub is down\n{}", down_and_up(info, keeping)));
    }
    text.push_str("\nStop with Ctrl-C.\n");
    text
}

/// How to see parking, redelivery and rejects.
fn down_and_up(info: &Info, keeping: &Keeping) -> String {
    let faults = format!("{}/_emulator/faults", info.hub_url);
    let count = |queue_url: &str| {
        format!(
            "curl {queue_url} --aws-sigv4 aws:amz:{REGION}:sqs --user local:local -d Action=GetQueueAttributes \
             -d AttributeName.1=ApproximateNumberOfMessages -d AttributeName.2=ApproximateNumberOfMessagesNotVisible"
        )
    };
    let down = json!({ "action": "status", "status": 503, "times": 0 });
    format!(
        "  hubs down:   curl {faults} -H 'content-type: application/json' --data '{down}'\n  \
           hubs up:     curl -X DELETE {faults}\n  \
           parked:      {}\n  \
           rejected:    {}\n  \
           replay:      make replay ARGS=--dry-run\n",
        count(&keeping.parking_queue_url),
        count(&keeping.rejected_queue_url),
    )
}

impl ControlInfo {
    /// Commands to paste.
    fn calls(&self, url: &str) -> String {
        let Self { token, organisation, .. } = self;
        format!(
            "  token:       TOKEN={token}\n  \
               list flows:  curl {url}/flows -H \"authorization: Bearer $TOKEN\" -H 'x-api-key: local' \
             -H 'x-gw-ims-org-id: {organisation}'\n  \
               a flow's runs: the same with {url}/runs?property=flowId==FLOW_ID\n  \
               document:    curl {url}/openapi.json\n",
        )
    }
}

impl Info {
    pub fn queue_url(&self, kind: &str) -> Option<&str> {
        self.kinds.iter().find(|known| known.name == kind)?.queue_url.as_deref()
    }
}

/// For `local demo` and `local replay`.
fn info_route(info: &Info) -> Router {
    let info = info.clone();
    let answer = async move |ConnectInfo(peer): ConnectInfo<SocketAddr>| -> Response {
        // It holds the senders' token.
        if peer.ip().is_loopback() { Json(info).into_response() } else { StatusCode::NOT_FOUND.into_response() }
    };
    Router::new().route(INFO_PATH, get(answer))
}

/// Signals that end the system.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> Result<Self, RunError> {
        let listen = |kind| signal(kind).map_err(RunError::Signals);
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}
