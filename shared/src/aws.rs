//! The few AWS calls a data-plane function makes, as AWS's JSON protocols over the one HTTP client. The SDK would add
//! 1.8 MB to the package and three times the CPU per call.

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use secrecy::SecretString;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout_at};

use crate::clock::Clock;
use crate::settings::Environment;

/// An AWS service and how it is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    DynamoDb,
    /// CloudWatch Logs.
    Logs,
    SecretsManager,
    Sqs,
}

impl Service {
    fn signing_name(self) -> &'static str {
        match self {
            Self::DynamoDb => "dynamodb",
            Self::Logs => "logs",
            Self::SecretsManager => "secretsmanager",
            Self::Sqs => "sqs",
        }
    }

    /// The suffix of `AWS_ENDPOINT_URL_…`, as every AWS SDK spells it.
    fn endpoint_suffix(self) -> &'static str {
        match self {
            Self::DynamoDb => "DYNAMODB",
            Self::Logs => "CLOUDWATCH_LOGS",
            Self::SecretsManager => "SECRETS_MANAGER",
            Self::Sqs => "SQS",
        }
    }

    fn target_prefix(self) -> &'static str {
        match self {
            Self::DynamoDb => "DynamoDB_20120810",
            Self::Logs => "Logs_20140328",
            Self::SecretsManager => "secretsmanager",
            Self::Sqs => "AmazonSQS",
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Logs | Self::SecretsManager => "application/x-amz-json-1.1",
            Self::DynamoDb | Self::Sqs => "application/x-amz-json-1.0",
        }
    }
}

/// Why a call failed. Bodies are never part of it.
#[derive(Debug, thiserror::Error)]
pub enum AwsError {
    #[error("AWS credentials are missing: set {0}")]
    NoCredentials(&'static str),
    #[error("AWS_REGION is missing")]
    NoRegion,
    #[error("{operation} answered {status} {code}")]
    Answer { operation: &'static str, status: u16, code: String },
    #[error("{operation} got no usable answer from {endpoint}: {problem}")]
    NoAnswer { operation: &'static str, endpoint: String, problem: &'static str },
}

/// What a service calls it when it is asked too much; the status is a 400 then.
const THROTTLED: [&str; 4] = ["Throttl", "ThroughputExceeded", "LimitExceeded", "TooManyRequests"];
const CONNECTION_LOST: &str = "connection lost";

impl AwsError {
    /// Most often a pooled connection that died while the sandbox was frozen: the next one is fresh.
    fn is_lost_connection(&self) -> bool {
        matches!(self, Self::NoAnswer { problem: CONNECTION_LOST, .. })
    }

    /// Whether another attempt may succeed.
    pub fn may_heal(&self) -> bool {
        match self {
            Self::NoAnswer { .. } => true,
            Self::Answer { status, code, .. } => {
                *status >= 500 || *status == 429 || THROTTLED.iter().any(|word| code.contains(word))
            }
            Self::NoCredentials(_) | Self::NoRegion => false,
        }
    }
}

const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";

/// Calls AWS with the credentials of the environment.
#[derive(Clone)]
pub struct Aws {
    http: reqwest::Client,
    environment: Environment,
    clock: Clock,
    attempt_timeout: Duration,
}

/// Attempts of one call, and the longest first wait between them.
const ATTEMPTS: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Of the time that is left.
const FIRST_SHARE: f64 = 2.0 / 3.0;
/// One attempt never takes longer than this, unless [`Aws::with_attempt_timeout`] says so.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

impl Aws {
    pub fn new(http: reqwest::Client, environment: Environment, clock: Clock) -> Self {
        Self { http, environment, clock, attempt_timeout: ATTEMPT_TIMEOUT }
    }

    /// For calls that search, which take their time.
    pub fn with_attempt_timeout(self, attempt_timeout: Duration) -> Self {
        Self { attempt_timeout, ..self }
    }

    /// Sends one `operation` (such as `GetSecretValue`) with a JSON `body` and returns the JSON answer.
    ///
    /// # Errors
    /// After three attempts or at `deadline`; at once for what a repeat can't heal.
    pub async fn call(
        &self,
        service: Service,
        operation: &'static str,
        body: &serde_json::Value,
        deadline: Instant,
    ) -> Result<Vec<u8>, AwsError> {
        let body = body.to_string().into_bytes();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let now = Instant::now();
            // A pooled connection may have died unnoticed: the first attempt leaves time for another.
            let left = deadline.saturating_duration_since(now).min(self.attempt_timeout);
            let bound = now + if attempt == 1 { left.mul_f64(FIRST_SHARE) } else { left };
            let error = match timeout_at(bound, self.attempt(service, operation, &body)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => self.no_answer(service, operation, "timeout"),
            };
            let wait = if attempt == 1 && error.is_lost_connection() {
                Duration::ZERO
            } else {
                FIRST_WAIT.mul_f64(f64::from(1 << attempt) * fastrand::f64())
            };
            if attempt == ATTEMPTS || !error.may_heal() || Instant::now() + wait >= deadline {
                return Err(error);
            }
            sleep(wait).await;
        }
    }

    /// Whether calls can be signed at all; to be asked once, at the start.
    pub fn check(&self) -> Result<(), AwsError> {
        for name in [ACCESS_KEY_ID, SECRET_ACCESS_KEY] {
            self.environment.get(name).ok_or(AwsError::NoCredentials(name))?;
        }
        self.region().map(drop)
    }

    /// The text of a Secrets Manager secret.
    pub async fn secret(&self, secret_id: &str, deadline: Instant) -> Result<SecretString, AwsError> {
        const OPERATION: &str = "GetSecretValue";
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "SecretString")]
            text: SecretString,
        }
        // The version that is in force is AWS's default, but not that of every stand-in.
        let body = serde_json::json!({ "SecretId": secret_id, "VersionStage": "AWSCURRENT" });
        let answer = self.call(Service::SecretsManager, OPERATION, &body, deadline).await?;
        serde_json::from_slice::<Answer>(&answer)
            .map(|answer| answer.text)
            .map_err(|_| self.no_answer(Service::SecretsManager, OPERATION, "the secret holds no text"))
    }

    async fn attempt(&self, service: Service, operation: &'static str, body: &[u8]) -> Result<Vec<u8>, AwsError> {
        let mut request = http::Request::post(self.endpoint(service)?)
            .header("content-type", service.content_type())
            .header("x-amz-target", format!("{}.{operation}", service.target_prefix()))
            .body(body.to_vec())
            .map_err(|_| self.no_answer(service, operation, "the endpoint is not a URL"))?;
        self.sign(&mut request, service, operation)?;
        let request = reqwest::Request::try_from(request)
            .map_err(|_| self.no_answer(service, operation, "the endpoint is not a URL"))?;
        let response = self.http.execute(request).await.map_err(|error| {
            self.no_answer(service, operation, if error.is_connect() { "can't connect" } else { CONNECTION_LOST })
        })?;
        let status = response.status();
        let answer = response.bytes().await.map_err(|_| self.no_answer(service, operation, "the answer broke off"))?;
        if status.is_success() {
            return Ok(answer.into());
        }
        #[derive(Deserialize)]
        struct Problem {
            #[serde(rename = "__type")]
            code: String,
        }
        let code = serde_json::from_slice::<Problem>(&answer).map(|problem| problem.code).unwrap_or_default();
        let code = code.rsplit('#').next().unwrap_or_default().to_owned();
        Err(AwsError::Answer { operation, status: status.as_u16(), code })
    }

    /// Signed at each send and never cached: credentials of a sandbox change while it lives.
    fn sign(
        &self,
        request: &mut http::Request<Vec<u8>>,
        service: Service,
        operation: &'static str,
    ) -> Result<(), AwsError> {
        let variable = |name: &'static str| self.environment.get(name).ok_or(AwsError::NoCredentials(name));
        let identity = Credentials::new(
            variable(ACCESS_KEY_ID)?,
            variable(SECRET_ACCESS_KEY)?,
            self.environment.get("AWS_SESSION_TOKEN"),
            None,
            "environment",
        )
        .into();
        let region = self.region()?;
        let unsigned = || self.no_answer(service, operation, "the request can't be signed");
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&region)
            .name(service.signing_name())
            .time(self.clock.now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|_| unsigned())?
            .into();
        let uri = request.uri().to_string();
        let headers = request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let signable =
            SignableRequest::new("POST", uri, headers, SignableBody::Bytes(request.body())).map_err(|_| unsigned())?;
        let (instructions, _) = sign(signable, &parameters).map_err(|_| unsigned())?.into_parts();
        instructions.apply_to_request_http1x(request);
        Ok(())
    }

    fn region(&self) -> Result<String, AwsError> {
        self.environment
            .get("AWS_REGION")
            .or_else(|| self.environment.get("AWS_DEFAULT_REGION"))
            .ok_or(AwsError::NoRegion)
    }

    fn endpoint(&self, service: Service) -> Result<String, AwsError> {
        let configured = self
            .environment
            .get(&format!("AWS_ENDPOINT_URL_{}", service.endpoint_suffix()))
            .or_else(|| self.environment.get("AWS_ENDPOINT_URL"));
        if let Some(endpoint) = configured {
            return Ok(format!("{}/", endpoint.trim_end_matches('/')));
        }
        let region = self.region()?;
        let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        Ok(format!("https://{}.{region}.{suffix}/", service.signing_name()))
    }

    fn no_answer(&self, service: Service, operation: &'static str, problem: &'static str) -> AwsError {
        AwsError::NoAnswer { operation, endpoint: self.endpoint(service).unwrap_or_default(), problem }
    }
}
