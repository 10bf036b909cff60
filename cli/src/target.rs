//! Which queues are meant, and with which credentials, region and endpoint they are called.

use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{Credentials, Region, SharedHttpClient};
use aws_sdk_sqs::types::QueueAttributeName;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Builder, Connector};
use serde::Deserialize;

use crate::queue::{CallError, Queue};

/// Maximum time of one attempt of a call; a response can hold 10 MiB.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time of one call, its retries included.
const CALL_TIMEOUT: Duration = Duration::from_secs(90);

#[derive(Debug, clap::Args)]
pub struct Target {
    #[command(flatten)]
    system: System,
    #[command(flatten)]
    access: Access,
}

/// Credentials and region.
#[derive(Debug, clap::Args)]
pub struct Access {
    /// Profile of the AWS configuration files [default: AWS_PROFILE]
    #[arg(long, value_name = "NAME", conflicts_with = "local", help_heading = "Target")]
    profile: Option<String>,
    /// AWS region [default: AWS_REGION, or the profile's]
    #[arg(long, value_name = "REGION", conflicts_with = "local", help_heading = "Target")]
    region: Option<String>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct System {
    /// CloudFormation stack whose parking queue is meant
    #[arg(long, value_name = "NAME", help_heading = "Target")]
    stack: Option<String>,
    /// URL of the parking queue (its redrive policy names the dead-letter queue)
    #[arg(long, value_name = "URL", help_heading = "Target")]
    queue_url: Option<String>,
    /// The system that `make run` started, by the address of its gateway [default: http://127.0.0.1:8080]
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "http://127.0.0.1:8080", help_heading = "Target")]
    local: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("no AWS region is configured: give --region, set AWS_REGION, or choose a profile that has a region")]
    NoRegion,
    #[error(
        "no queue in region {region} has a name that begins with `{prefix}`: check --stack, --region and --profile, or give \
         the stack's output {queue}Url with {option}"
    )]
    NotFound { prefix: String, region: String, queue: String, option: &'static str },
    #[error("several queues have a name that begins with `{prefix}`; give one of them with {option}: {urls}")]
    Ambiguous { prefix: String, option: &'static str, urls: String },
    #[error("no system responds at {url}: start it with `make run`, or give its address with --local URL ({problem})")]
    NotRunning { url: String, problem: String },
    #[error("the system at {0} has no queues: start it without --no-queue")]
    NoQueues(String),
}

/// The part of what `make run` reports about itself that is needed here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalInfo {
    aws_endpoint: Option<String>,
    aws_region: String,
    pub parking_queue_url: Option<String>,
    pub rejected_queue_url: Option<String>,
    #[serde(default)]
    pub kinds: Vec<LocalKind>,
}

/// An event kind of `make run`, and its queue.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalKind {
    pub name: String,
    pub queue_url: Option<String>,
}

impl Target {
    /// Finds the parking queue and, if it has one, its dead-letter queue.
    pub async fn queues(&self) -> Result<(Queue, Option<Queue>), TargetError> {
        let (client, url) = match &self.system.local {
            Some(url) => {
                let (client, info) = local(url).await?;
                (client, info.parking_queue_url.ok_or_else(|| TargetError::NoQueues(url.clone()))?)
            }
            None => self.remote().await?,
        };
        let parking = Queue::new(client.clone(), url);
        let dead_letters = match dead_letter_arn(&parking).await? {
            Some(arn) => Some(Queue::new(client.clone(), url_of(&client, &arn).await?)),
            None => None,
        };
        Ok((parking, dead_letters))
    }

    async fn remote(&self) -> Result<(Client, String), TargetError> {
        let (client, region) = self.access.client().await?;
        let url = match (&self.system.queue_url, &self.system.stack) {
            (Some(url), _) => url.clone(),
            (None, stack) => {
                let stack = stack.as_deref().unwrap_or_default();
                let urls = stack_queues(&client, &format!("{stack}-ParkingQueue-")).await?;
                stack_queue(&urls, stack, "ParkingQueue", "--queue-url", &region)?
            }
        };
        Ok((client, url))
    }
}

impl Access {
    /// A client for SQS, and the name of its region.
    pub async fn client(&self) -> Result<(Client, String), TargetError> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http(ProxyConfig::from_env()))
            .timeout_config(timeouts());
        if let Some(profile) = &self.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(region) = &self.region {
            loader = loader.region(Region::new(region.clone()));
        }
        let config = loader.load().await;
        let region = config.region().ok_or(TargetError::NoRegion)?.to_string();
        Ok((Client::new(&config), region))
    }
}

/// A client with TLS on ring, as everywhere here, through `proxy`.
fn http(proxy: ProxyConfig) -> SharedHttpClient {
    Builder::new().build_with_connector_fn(move |settings, _| {
        Connector::builder()
            .connector_settings(settings.cloned().unwrap_or_default())
            .proxy_config(proxy.clone())
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build()
    })
}

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT).operation_timeout(CALL_TIMEOUT).build()
}

/// URLs of the queues whose name begins with `prefix`.
pub async fn stack_queues(client: &Client, prefix: &str) -> Result<Vec<String>, CallError> {
    let listed = client.list_queues().queue_name_prefix(prefix).send().await;
    let listed = listed.map_err(|error| CallError::new("ListQueues", prefix, &error))?;
    Ok(listed.queue_urls.unwrap_or_default())
}

/// URL of a stack's queue, by the name that CloudFormation generates. `option` can name the queue instead.
pub fn stack_queue(
    urls: &[String],
    stack: &str,
    queue: &str,
    option: &'static str,
    region: &str,
) -> Result<String, TargetError> {
    let prefix = format!("{stack}-{queue}-");
    let has_prefix = |url: &&String| url.rsplit('/').next().is_some_and(|name| name.starts_with(&prefix));
    let found: Vec<&str> = urls.iter().filter(has_prefix).map(String::as_str).collect();
    match found[..] {
        [url] => Ok(url.to_owned()),
        [] => Err(TargetError::NotFound { prefix, region: region.to_owned(), queue: queue.to_owned(), option }),
        _ => Err(TargetError::Ambiguous { prefix, option, urls: found.join(", ") }),
    }
}

async fn dead_letter_arn(parking: &Queue) -> Result<Option<String>, CallError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct RedrivePolicy {
        dead_letter_target_arn: String,
    }
    let name = QueueAttributeName::RedrivePolicy;
    let attributes = parking.attributes(std::slice::from_ref(&name)).await?;
    let policy = attributes.get(&name).and_then(|policy| serde_json::from_str::<RedrivePolicy>(policy).ok());
    Ok(policy.map(|policy| policy.dead_letter_target_arn))
}

/// The URL of a queue by its ARN, `arn:aws:sqs:{region}:{account}:{name}`.
async fn url_of(client: &Client, arn: &str) -> Result<String, CallError> {
    let mut parts = arn.rsplit(':');
    let call = client
        .get_queue_url()
        .queue_name(parts.next().unwrap_or_default())
        .set_queue_owner_aws_account_id(parts.next().map(str::to_owned));
    let response = call.send().await.map_err(|error| CallError::new("GetQueueUrl", arn, &error))?;
    Ok(response.queue_url.unwrap_or_default())
}

/// A client for the SQS of the system that `make run` started, and what the system reports about itself.
pub async fn local(url: &str) -> Result<(Client, LocalInfo), TargetError> {
    let not_running = |problem: String| TargetError::NotRunning { url: url.to_owned(), problem };
    let http_client = shared::build_http_client(None).map_err(not_running)?;
    let response = http_client.client().get(format!("{}/_local/info", url.trim_end_matches('/'))).send().await;
    let response = response.and_then(|response| response.error_for_status());
    let text = match response {
        Ok(response) => response.text().await,
        Err(error) => Err(error),
    };
    let text = text.map_err(|error| not_running(error.to_string()))?;
    let info: LocalInfo = serde_json::from_str(&text).map_err(|error| not_running(error.to_string()))?;
    let endpoint = info.aws_endpoint.clone().ok_or_else(|| TargetError::NoQueues(url.to_owned()))?;
    let config = aws_sdk_sqs::config::Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(Credentials::new("local", "local", None, None, "local"))
        .region(Region::new(info.aws_region.clone()))
        .endpoint_url(endpoint)
        .http_client(http(ProxyConfig::disabled()))
        .timeout_config(timeouts())
        .build();
    Ok((Client::from_conf(config), info))
}
