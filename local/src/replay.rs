//! `local replay`: sends rejected events through again, once a mapping or an option is mended.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use shared::aws::sqs::{MAX_BYTES, Queue};
use shared::aws::{Aws, AwsError};
use shared::clock::Clock;
use shared::contract::codec::pack;
use shared::contract::parked::Head;
use shared::contract::rejected::{RejectedEvent, Source};
use shared::environment::Environment;
use tokio::time::Instant;

use crate::demo::{DemoError, info_of};
use crate::queue_source::{self, Message};
use crate::run::local_aws;

/// Send rejected events to their kind's queue again.
///
/// Without --rejected-queue-url it looks for the system that `make run` started. With it, credentials, region and endpoint
/// come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL).
///
/// A reject is deleted only once its event is in the queue. Whatever is not taken stays. What is rejected again meanwhile is
/// left for the next time.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Address of the running system
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Port of its webhook gateway
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// The rejected queue of a deployed stack
    #[arg(long, value_name = "URL")]
    pub rejected_queue_url: Option<String>,
    /// Where a kind's events go; once for each kind
    #[arg(long, value_name = "KIND=URL", value_parser = kind_and_url, requires = "rejected_queue_url")]
    pub queue: Vec<(String, String)>,
    /// Where rejected parked messages go
    #[arg(long, value_name = "URL", requires = "rejected_queue_url")]
    pub parking_queue_url: Option<String>,
    /// Only events of this kind (may be given several times, as the next two)
    #[arg(long)]
    pub kind: Vec<String>,
    /// Only events of this flow
    #[arg(long)]
    pub flow: Vec<String>,
    /// Only events rejected for this reason, such as `unmappable`
    #[arg(long)]
    pub reason: Vec<String>,
    /// At most so many
    #[arg(long, value_name = "COUNT")]
    pub limit: Option<usize>,
    /// Show what would be sent, and leave all of it
    #[arg(long)]
    pub dry_run: bool,
}

/// While we work, nobody else sees what we received; when we are killed, it shows again after this time.
const HIDDEN: Duration = Duration::from_secs(600);
/// For making visible again what was not taken.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(120);
const MAX_PER_CALL: usize = 10;
/// The string attribute that names a record's flow.
const FLOW: &str = "flow";
const STRING: &str = "String";

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    System(#[from] DemoError),
    #[error("the running system has no queues: start it without --no-queue")]
    NoQueues,
    #[error("no HTTP client: {0}")]
    Client(String),
    #[error(transparent)]
    Queue(#[from] AwsError),
    #[error("stopped; what was not replayed is in the queue")]
    Stopped,
}

fn kind_and_url(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((kind, url)) if !kind.is_empty() && url.starts_with("http") => Ok((kind.to_owned(), url.to_owned())),
        _ => Err("expected a kind and its queue's URL, such as audience-change=https://sqs.…".to_owned()),
    }
}

/// Where rejects come from, and where their events go.
struct Queues {
    aws: Aws,
    rejected: String,
    parking: Option<String>,
    kinds: BTreeMap<String, String>,
}

/// What a run did so far.
#[derive(Default)]
struct Run {
    replayed: usize,
    failed: usize,
    filtered: usize,
    came_meanwhile: usize,
    /// Receipt handles of what stays in the queue, by message id.
    held: BTreeMap<String, String>,
}

/// Whether everything that was asked for could be replayed.
pub async fn replay(options: Options) -> Result<bool, ReplayError> {
    let queues = Queues::find(&options).await?;
    let mut run = Run::default();
    let ended = tokio::select! {
        ended = run.through(&queues, &options) => ended,
        _ = tokio::signal::ctrl_c() => Err(ReplayError::Stopped),
    };
    let held: Vec<(&str, Duration)> = run.held.values().map(|handle| (handle.as_str(), Duration::ZERO)).collect();
    Queue::new(queues.aws, queues.rejected).postpone(&held, Instant::now() + RELEASE_TIMEOUT).await;
    println!(
        "{} {}; {} could not be; {} left by the options, {} rejected meanwhile",
        run.replayed,
        if options.dry_run { "would be replayed" } else { "replayed" },
        run.failed,
        run.filtered,
        run.came_meanwhile,
    );
    ended.map(|()| options.dry_run || run.failed == 0)
}

impl Queues {
    async fn find(options: &Options) -> Result<Self, ReplayError> {
        let http = shared::build_http_client(None).map_err(ReplayError::Client)?;
        if let Some(rejected) = options.rejected_queue_url.clone() {
            let aws = Aws::new(http, Environment::process(), Clock::system());
            aws.check()?;
            let kinds = options.queue.iter().cloned().collect();
            return Ok(Self { aws, rejected, parking: options.parking_queue_url.clone(), kinds });
        }
        let info = info_of(&http.client(), &format!("http://{}", SocketAddr::new(options.host, options.port))).await?;
        let (Some(endpoint), Some(keeping)) = (info.aws_endpoint, info.keeping) else {
            return Err(ReplayError::NoQueues);
        };
        Ok(Self {
            aws: local_aws(http, endpoint, info.aws_region),
            rejected: keeping.rejected_queue_url,
            parking: Some(keeping.parking_queue_url),
            kinds: info.kinds.into_iter().filter_map(|kind| Some((kind.name, kind.queue_url?))).collect(),
        })
    }

    /// The call that sends a reject's event through again; or why there is none.
    fn send_again(&self, reject: &RejectedEvent<'_>) -> Result<Value, &'static str> {
        if reject.truncated {
            return Err("it was too large to be kept whole");
        }
        let mut group = None;
        let (queue_url, text, flow) = match reject.source {
            Source::Parking => {
                let queue_url = self.parking.as_ref().ok_or("name the parking queue with --parking-queue-url")?;
                let text = pack(&reject.body);
                // An envelope of another version is for redelivery to report.
                group = Head::read(&text).ok().map(|head| head.group());
                (queue_url, text, None)
            }
            Source::Kafka => return Err("it came from a hub: mend it and send it to the hub"),
            Source::Webhook | Source::Queue => {
                let queue_url = self.kinds.get(&*reject.kind).ok_or("name its kind's queue with --queue KIND=URL")?;
                let text = String::from_utf8(reject.body.to_vec()).map_err(|_| "its body is not UTF-8")?;
                (queue_url, text, Some(&*reject.flow))
            }
        };
        if text.is_empty() {
            return Err("its body is empty");
        }
        if flow.is_some_and(|flow| flow.is_empty() || !flow.chars().all(is_taken)) {
            return Err("its flow has no name that a queue takes");
        }
        if !text.chars().all(is_taken) {
            return Err("its body has characters that a queue does not take");
        }
        if text.len() + flow.map_or(0, |flow| FLOW.len() + STRING.len() + flow.len()) > MAX_BYTES {
            return Err("it is larger than a queue takes");
        }
        let mut call = json!({ "QueueUrl": queue_url, "MessageBody": text });
        if let Some(group) = group {
            call["MessageGroupId"] = group.into();
        }
        if let Some(flow) = flow {
            call["MessageAttributes"] = json!({ FLOW: { "DataType": STRING, "StringValue": flow } });
        }
        Ok(call)
    }
}

/// SQS has refused other characters at times and replaced them at others.
fn is_taken(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

impl Run {
    /// Goes through the rejected queue once.
    async fn through(&mut self, queues: &Queues, options: &Options) -> Result<(), ReplayError> {
        let began = Clock::system().now().duration_since(UNIX_EPOCH).unwrap_or_default();
        loop {
            let left = options.limit.map_or(usize::MAX, |limit| limit - self.replayed - self.failed);
            if left == 0 {
                return Ok(());
            }
            let messages =
                queue_source::receive(&queues.aws, &queues.rejected, left.min(MAX_PER_CALL), Some(HIDDEN)).await?;
            let mut new = Vec::new();
            for message in &messages {
                if self.held.insert(message.message_id.clone(), message.receipt_handle.clone()).is_none() {
                    new.push(message);
                }
            }
            if new.is_empty() {
                return Ok(());
            }
            let mut sent = Vec::new();
            for message in new {
                // What we send may be rejected again, and would go round and round.
                if sent_at(message).is_none_or(|sent_at| sent_at > began) {
                    self.came_meanwhile += 1;
                } else if self.take(queues, options, message).await {
                    sent.push(message);
                }
            }
            if !sent.is_empty() {
                let undeleted = queue_source::delete(&queues.aws, &queues.rejected, &sent).await?;
                if undeleted > 0 {
                    println!("{undeleted} of them could not be deleted: they will be replayed once more");
                }
            }
            for message in sent {
                self.held.remove(&message.message_id);
            }
        }
    }

    /// Replays one reject, if the options want it; whether it is done with.
    async fn take(&mut self, queues: &Queues, options: &Options, message: &Message) -> bool {
        let Ok(reject) = RejectedEvent::parse(&message.body) else {
            self.failed += 1;
            println!("left: message {} is no reject envelope", message.message_id);
            return false;
        };
        let wanted = |wanted: &[String], word: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == word);
        if !wanted(&options.kind, &reject.kind)
            || !wanted(&options.flow, &reject.flow)
            || !wanted(&options.reason, reject.rejection.reason.word())
        {
            self.filtered += 1;
            return false;
        }
        let problem = match queues.send_again(&reject) {
            Err(problem) => Some(problem.to_owned()),
            Ok(_) if options.dry_run => None,
            Ok(call) => {
                let sent = queue_source::call::<Value>(&queues.aws, "SendMessage", &call).await;
                sent.err().map(|error| error.to_string())
            }
        };
        match &problem {
            None => self.replayed += 1,
            Some(_) => self.failed += 1,
        }
        println!("{}", line(&reject, problem.as_deref(), options.dry_run));
        problem.is_none() && !options.dry_run
    }
}

fn sent_at(message: &Message) -> Option<Duration> {
    message.attributes.get("SentTimestamp")?.as_str()?.parse().ok().map(Duration::from_millis)
}

/// All about a reject but its body.
fn line(reject: &RejectedEvent<'_>, problem: Option<&str>, dry_run: bool) -> String {
    let outcome = match problem {
        Some(problem) => format!("left ({problem})"),
        None if dry_run => "would be replayed".to_owned(),
        None => "replayed".to_owned(),
    };
    format!(
        "{outcome}: {} {} of flow {}, {}, {} bytes: {}",
        reject.rejection.reason.word(),
        reject.kind,
        reject.flow.escape_debug(),
        reject.received_at,
        reject.body.len(),
        reject.rejection.detail.escape_debug(),
    )
}
