//! `local run`: the whole system on one machine, until Ctrl-C.

mod aws;
mod functions;
mod info;
mod instructions;
mod start;
mod stop;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shared::aws::AwsError;
use tokio::task::JoinSet;

pub use self::aws::{flows_table, local_aws};
pub use self::info::{ControlInfo, INFO_PATH, Info, KindInfo, SourceInfo, UndeliveredQueues};
use self::start::start;
use self::stop::Stop;
use crate::emulator::Emulator;
use crate::inlet::Inlet;
use crate::kinds::KINDS;
use crate::lambda_api::LambdaApi;
use crate::moto::{self, Moto, MotoError};
use crate::runner::Function;

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
    /// Port of moto server, the local substitute for the AWS services
    #[arg(long, default_value_t = 5566)]
    pub aws_port: u16,
    /// Port of the emulator of Adobe's streaming inlet
    #[arg(long, default_value_t = 5400)]
    pub inlet_port: u16,
    /// Folder of the built functions [default: where this program is]
    #[arg(long)]
    pub functions: Option<PathBuf>,
    /// Program of moto server
    #[arg(long, default_value = moto::DEFAULT_PATH)]
    pub moto: PathBuf,
    /// Throttle the hubs as a namespace with this number of throughput units does
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
/// Timeout of an invocation. A webhook gets its response within 2 s; a queue batch needs more time.
const FUNCTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a call that creates something at start-up.
const CREATE_TIMEOUT: Duration = Duration::from_secs(10);
/// Visibility timeout of the queues: six times the function's timeout, as AWS recommends.
const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum number of receives of an inbound message.
const MAX_RECEIVE_COUNT: u32 = 100;
/// Maximum number of messages of one invocation.
const BATCH_SIZE: usize = 50;
const REDELIVERY: &str = "redelivery";
const FLOW_SERVICE: &str = "flow-service";
const PLATFORM_INGEST: &str = "platform-ingest";
const FLOWS_TABLE: &str = "flows";
/// Log group of the functions on the event path, as in the template.
const LOG_GROUP: &str = "/aws/lambda/local";
/// Name of the policy with which the default flows send.
const SENDERS_KEY_NAME: &str = "senders";
/// Name of the secret from which they read the policy's key.
const SENDERS_SECRET_ID: &str = "eventhubs-relay/local";
/// Name of the secret of the inlet's client.
const IMS_SECRET: &str = "ims-client";
/// Name of the same secret for flows of the control API: each organisation has its own.
const IMS_SECRET_OF_FLOWS: &str = "eventhubs-relay/flows/ims/local@AdobeOrg/client";
/// Id and secret of the inlet's client.
const IMS_CLIENT: (&str, &str) = ("local-client", "local-client-secret");
/// Maximum number of events of one invocation of the ingest.
const SOURCE_BATCH_SIZE: usize = 1000;
/// Maximum number of receives of a parked message, as in the template.
const MAX_REDELIVERIES: u32 = 100;
/// Maximum number of batches of parked messages that are handled concurrently, as in the template.
const REDELIVERY_CONCURRENCY: usize = 2;
/// First delay of redelivery in seconds. It doubles after each failure, and is shorter than in AWS so that a recovery is
/// visible soon.
const REDELIVERY_DELAY: &str = "2";

/// Reason for which the system did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{} is missing: `make run` builds it", .0.display())]
    NotBuilt(PathBuf),
    #[error("could not listen on port {port} ({source}): choose another port with {option}")]
    Port { port: u16, option: &'static str, source: io::Error },
    #[error(transparent)]
    Moto(#[from] MotoError),
    #[error("could not create an HTTP client: {0}")]
    Client(String),
    #[error("could not create the queues, secrets, table of flows or log group: {0}")]
    Queues(#[from] AwsError),
    #[error("could not create a key for the control API's tokens: {0}")]
    Tokens(String),
    #[error("could not listen for signals: {0}")]
    Signals(io::Error),
    #[error("{0} does not respond")]
    NoResponse(String),
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

/// The folder of this program: Cargo puts all programs of a profile into one folder.
fn own_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.parent().map_or_else(|| PathBuf::from("target/debug"), Path::to_owned)
}

/// The running parts.
struct System {
    emulator: Emulator,
    /// Stops with the system.
    _inlet: Inlet,
    functions: Vec<Function>,
    /// Its source mappings stop with it.
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
