//! The start of each part, in the order of `start`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::{Router, middleware};
use shared::aws::Aws;
use shared::clock::Clock;
use shared::environment;
use shared::http::Http;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;

use super::aws::{create_resources, local_aws};
use super::functions::{bearer_token, control_config, function_config, ingest_config};
use super::info::info_route;
use super::instructions::{instructions, outage_commands};
use super::{
    BATCH_SIZE, ControlInfo, FLOWS_TABLE, IMS_CLIENT, Info, KindInfo, LOG_GROUP, MAX_RECEIVE_COUNT, Options,
    REDELIVERY, REDELIVERY_CONCURRENCY, REDELIVERY_DELAY, REGION, RunError, SENDERS_KEY_NAME, SENDERS_SECRET_ID,
    SOURCE_BATCH_SIZE, SourceInfo, System, VISIBILITY_TIMEOUT,
};
use crate::console::{Console, SendersKey};
use crate::emulator::{Config, Emulator, Key, ROOT_KEY_NAME, Rights};
use crate::inlet::{self, Inlet};
use crate::kinds::KINDS;
use crate::lambda_api::LambdaApi;
use crate::moto::Moto;
use crate::poller::Poller;
use crate::queue_source::{self, Mapping};
use crate::runner::{Function, Observed};
use crate::server::own_address::guard_control_routes;
use crate::server::{address_of, reachable};
use crate::tokens::{self, Tokens};
use crate::{cloudwatch, gateway, random};

/// Starts all parts.
pub(super) async fn start(options: &Options, folder: &Path) -> Result<System, RunError> {
    let ports = Ports::listen(options).await?;
    let http = shared::build_http_client(None).map_err(RunError::Client)?;
    let senders_key = random::uuid();
    let emulator = start_emulator(options, senders_key.clone(), ports.hub).await;
    let inlet = start_inlet(options, ports.inlet).await;
    let moto = start_moto(options, ports.aws, &http).await?;
    let url = format!("http://{}", reachable(address_of(&ports.gateway)));
    let (observer, observed) = mpsc::unbounded_channel();
    let info = info(options, &emulator, &inlet, moto.as_ref());
    let aws = info.aws_endpoint.as_ref().map(|url| local_aws(http.clone(), url.clone(), REGION.to_owned()));
    let (functions, tasks) = (Vec::new(), JoinSet::new());
    let mut start = Start { options, folder, url, http, emulator, inlet, aws, info, observer, functions, tasks };
    let observed = start.create_resources(observed).await?;
    let ingest = start.create_ingest();
    start.start_redelivery();
    let control = start.start_control_api(&ingest, ports.lambda).await?;
    start.start_ingest(ingest);
    let kinds = start.start_kinds().await?;
    let console = start.start_console(senders_key, observed);
    start.start_gateway(ports.gateway, kinds, console, control.as_ref());
    start.check_pages().await?;
    print!("{}", instructions(&start.url, &start.info));
    println!("ready: {}", start.url);
    let Start { emulator, inlet, functions, tasks, .. } = start;
    Ok(System { emulator, _inlet: inlet, functions, lambda: control.map(|control| control.lambda), moto, tasks })
}

/// The ports, which are bound before anything starts, so that a port in use is reported at once.
struct Ports {
    gateway: TcpListener,
    hub: TcpListener,
    inlet: TcpListener,
    /// Called only by the control API.
    lambda: TcpListener,
    /// Absent without queues.
    aws: Option<TcpListener>,
}

impl Ports {
    async fn listen(options: &Options) -> Result<Self, RunError> {
        let listen = async |port: u16, option| {
            TcpListener::bind(SocketAddr::new(options.host, port)).await.map_err(|source| RunError::Port {
                port,
                option,
                source,
            })
        };
        Ok(Self {
            gateway: listen(options.port, "--port").await?,
            hub: listen(options.hub_port, "--hub-port").await?,
            inlet: listen(options.inlet_port, "--inlet-port").await?,
            lambda: listen(0, "--host").await?,
            aws: if options.no_queue { None } else { Some(listen(options.aws_port, "--aws-port").await?) },
        })
    }
}

async fn start_emulator(options: &Options, senders_key: String, listener: TcpListener) -> Emulator {
    let mut config = Config {
        hubs: KINDS.iter().map(|kind| (kind.hub.to_owned(), kind.partitions)).collect(),
        throughput_units: options.throughput_units,
        ..Config::default()
    };
    config.keys.push(Key {
        name: SENDERS_KEY_NAME.to_owned(),
        key: senders_key,
        rights: Rights { send: true, ..Rights::default() },
        hub: None,
    });
    let emulator = Emulator::start(config, listener).await;
    println!("event hubs   {} (emulator)", emulator.url());
    emulator
}

async fn start_inlet(options: &Options, listener: TcpListener) -> Inlet {
    // Without Secrets Manager, the client's secret could not be stored.
    let client = (!options.no_queue).then(|| (IMS_CLIENT.0.to_owned(), IMS_CLIENT.1.to_owned()));
    let config = inlet::Config { id: "local".to_owned(), client, ..inlet::Config::default() };
    let inlet = Inlet::start(config, listener).await;
    println!("inlet        {} (emulator)", inlet.url());
    inlet
}

async fn start_moto(options: &Options, listener: Option<TcpListener>, http: &Http) -> Result<Option<Moto>, RunError> {
    let Some(listener) = listener else { return Ok(None) };
    println!("queues       starting moto server ...");
    let port = address_of(&listener).port();
    // Moto binds the port itself.
    drop(listener);
    let address = reachable(SocketAddr::new(options.host, port));
    Ok(Some(Moto::start(&options.moto, address, &http.client()).await?))
}

/// The control API, with the authorizer's keys and the calls of Lambda that it makes.
struct Control {
    function: Function,
    tokens: Arc<Tokens>,
    lambda: LambdaApi,
}

/// A system whose parts are being started.
struct Start<'a> {
    options: &'a Options,
    /// Folder of the built functions.
    folder: &'a Path,
    /// URL of the gateway.
    url: String,
    http: Http,
    emulator: Emulator,
    inlet: Inlet,
    /// Absent without queues.
    aws: Option<Aws>,
    info: Info,
    /// Receives what the functions do.
    observer: UnboundedSender<Observed>,
    functions: Vec<Function>,
    tasks: JoinSet<()>,
}

fn info(options: &Options, emulator: &Emulator, inlet: &Inlet, moto: Option<&Moto>) -> Info {
    Info {
        hub_url: emulator.url(),
        aws_endpoint: moto.map(|moto| moto.url().to_owned()),
        aws_region: REGION.to_owned(),
        undelivered: None,
        sender_token: bearer_token(&options.sender_auth),
        control: None,
        source: SourceInfo {
            hub: KINDS[0].hub.to_owned(),
            inlet_url: inlet.url(),
            records_url: format!("http://{}/_inlet/records", inlet.host()),
        },
        kinds: Vec::new(),
    }
}

impl Start<'_> {
    /// Creates what the functions need in the AWS services. Returns the receiver of what is written to CloudWatch Logs too.
    async fn create_resources(
        &mut self,
        observed: UnboundedReceiver<Observed>,
    ) -> Result<UnboundedReceiver<Observed>, RunError> {
        let Some(aws) = &self.aws else { return Ok(observed) };
        let connection_string = self.emulator.connection_string(SENDERS_KEY_NAME, None);
        self.info.undelivered = Some(create_resources(aws, &connection_string).await?);
        let (observed, feeding) = cloudwatch::feed(aws.clone(), LOG_GROUP, observed);
        self.tasks.spawn(feeding);
        Ok(observed)
    }

    /// The function of the ingest into Adobe Experience Platform, which a source starts to read into later.
    fn create_ingest(&self) -> Function {
        Function::new(ingest_config(&self.inlet, self.options, self.folder, &self.info))
    }

    fn start_redelivery(&mut self) {
        let Some(queue_url) = self.info.undelivered.as_ref().map(|queues| queues.parking_queue_url.clone()) else {
            return;
        };
        // The envelopes name the secret of their hub.
        let mut config = function_config(REDELIVERY, &[], self.options, self.folder, &self.info);
        config.observer = Some(self.observer.clone());
        config.environment.push(("REDELIVERY_DELAY".to_owned(), REDELIVERY_DELAY.to_owned()));
        config.max_instances = REDELIVERY_CONCURRENCY;
        let function = Function::new(config);
        self.start_queue_source(&queue_url, &function, REDELIVERY_CONCURRENCY);
        self.functions.push(function);
    }

    fn start_queue_source(&mut self, queue_url: &str, function: &Function, pollers: usize) {
        let Some(aws) = self.aws.clone() else { return };
        let mapping = Mapping { batch_size: BATCH_SIZE, pollers, ..Mapping::new(queue_url, REGION) };
        self.tasks.spawn(queue_source::run(aws, function.clone(), mapping));
    }

    async fn start_control_api(
        &mut self,
        ingest: &Function,
        listener: TcpListener,
    ) -> Result<Option<Control>, RunError> {
        if self.aws.is_none() {
            return Ok(None);
        }
        let tokens = Tokens::new(Clock::system()).map_err(RunError::Tokens)?;
        self.info.control = Some(ControlInfo {
            token: tokens.token().map_err(RunError::Tokens)?,
            organisation: tokens::ORGANISATION.to_owned(),
            hub_connection_string: self.emulator.connection_string(ROOT_KEY_NAME, None),
        });
        let lambda = LambdaApi::start(self.emulator.clone(), ingest.clone(), listener).await;
        println!("lambda       {} (emulator: aliases and source mappings)", lambda.url());
        let mut config = control_config(&self.url, &self.emulator, &self.inlet, self.options, self.folder, &self.info);
        config.environment.push(("AWS_ENDPOINT_URL_LAMBDA".to_owned(), lambda.url()));
        let function = Function::new(config);
        self.functions.push(function.clone());
        Ok(Some(Control { function, tokens: Arc::new(tokens), lambda }))
    }

    /// Starts the source that reads one hub into the inlet.
    fn start_ingest(&mut self, ingest: Function) {
        let hub = &self.info.source.hub;
        let poller = Poller::new(self.emulator.clone(), hub, ingest.clone(), None, SOURCE_BATCH_SIZE);
        self.tasks.spawn(poller.run());
        self.functions.push(ingest);
    }

    /// Starts the kinds' functions and their queue sources. Returns the functions by kind.
    async fn start_kinds(&mut self) -> Result<BTreeMap<String, Function>, RunError> {
        let mut kinds = BTreeMap::new();
        for kind in KINDS {
            let connection = self.emulator.connection_string(SENDERS_KEY_NAME, Some(kind.hub));
            let hub: &[(&str, &str)] = match &self.aws {
                Some(_) => &[(environment::CONNECTION_SECRET_ID, SENDERS_SECRET_ID), (environment::HUB_NAME, kind.hub)],
                None => &[(environment::CONNECTION_STRING, &connection)],
            };
            let mut config = function_config(kind.name, hub, self.options, self.folder, &self.info);
            config.observer = Some(self.observer.clone());
            let function = Function::new(config);
            let mut queue_url = None;
            if let Some(aws) = &self.aws {
                let created = queue_source::create_queue(aws, kind.queue, VISIBILITY_TIMEOUT, MAX_RECEIVE_COUNT);
                let (url, _) = created.await?;
                self.start_queue_source(&url, &function, 1);
                queue_url = Some(url);
            }
            self.info.kinds.push(KindInfo { name: kind.name.to_owned(), hub: kind.hub.to_owned(), queue_url });
            kinds.insert(kind.name.to_owned(), function.clone());
            self.functions.push(function);
        }
        if let Some(endpoint) = &self.info.aws_endpoint {
            println!("queues       {endpoint} (moto server)");
        }
        Ok(kinds)
    }

    /// Starts what keeps the console current. Returns its routes.
    fn start_console(&mut self, senders_key: String, observed: UnboundedReceiver<Observed>) -> Router {
        let secret_id = self.aws.is_some().then_some(SENDERS_SECRET_ID);
        let commands = self.info.undelivered.as_ref().map(|queues| outage_commands(&self.info, queues));
        let console = Console {
            emulator: self.emulator.clone(),
            commands: commands.unwrap_or_default(),
            info: self.info.clone(),
            url: self.url.clone(),
            http: self.http.client(),
            aws: self.aws.clone(),
            table: FLOWS_TABLE,
            key: SendersKey { name: SENDERS_KEY_NAME, key: senders_key, secret_id },
        };
        let (routes, watching) = console.open(observed);
        self.tasks.spawn(watching);
        routes
    }

    fn start_gateway(
        &mut self,
        listener: TcpListener,
        kinds: BTreeMap<String, Function>,
        console: Router,
        control: Option<&Control>,
    ) {
        let mut router = gateway::router(kinds).merge(console).merge(info_route(&self.info));
        if let Some(Control { function, tokens, .. }) = control {
            router = router.merge(gateway::control_router(function.clone(), tokens.clone()));
        }
        let router = router.layer(middleware::from_fn(guard_control_routes));
        self.tasks.spawn(async move {
            if let Err(error) = gateway::serve(listener, router).await {
                eprintln!("gateway: {error}");
            }
        });
        println!("gateway      {} (its page is the console)", self.url);
    }

    /// Checks that the gateway and the emulator respond.
    async fn check_pages(&self) -> Result<(), RunError> {
        let http = self.http.client();
        for page in [format!("{}/", self.url), format!("{}/_emulator/hubs", self.info.hub_url)] {
            if !http.get(&page).send().await.is_ok_and(|response| response.status().is_success()) {
                return Err(RunError::NoResponse(page));
            }
        }
        Ok(())
    }
}
