//! The few AWS calls that a data-plane function makes, in AWS's JSON protocols over the one HTTP client. The SDK would add
//! 1.8 MB to the package and three times the CPU per call.

mod endpoint;
pub mod reads;
pub mod secret;
pub mod sqs;

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use secrecy::SecretString;
use serde::Deserialize;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::environment::Environment;
use crate::http::{Attempt, Attempts, Http, RetryPolicy, TransportError, TransportKind};

/// An AWS service, and how its API is called.
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

    /// The suffix of `AWS_ENDPOINT_URL_…` that every AWS SDK uses.
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

/// Why a call failed. It never contains a body.
#[derive(Debug, thiserror::Error)]
pub enum AwsError {
    #[error("AWS credentials are missing: set {0}")]
    NoCredentials(&'static str),
    #[error("AWS_REGION is missing")]
    NoRegion,
    #[error("{operation} answered {status} {code}")]
    Response { operation: &'static str, status: u16, code: String },
    #[error("{operation} got no response from {endpoint}: {}", explained(source))]
    NoResponse { operation: &'static str, endpoint: String, source: TransportError },
    #[error("{operation} at {endpoint} is not possible: {problem}")]
    Unusable { operation: &'static str, endpoint: String, problem: &'static str },
}

/// The text that a setting's error shows of a failed connection.
fn explained(error: &TransportError) -> String {
    match error.kind.hint("AWS_REGION and AWS_ENDPOINT_URL") {
        Some(hint) => hint,
        None if error.kind == TransportKind::Unreachable => format!("failed to connect ({error})"),
        None => error.to_string(),
    }
}

/// Parts of the codes of a throttled request, whose status is 400.
const THROTTLED: [&str; 4] = ["Throttl", "ThroughputExceeded", "LimitExceeded", "TooManyRequests"];

impl AwsError {
    /// Whether another attempt may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoResponse { .. } => true,
            Self::Response { status, code, .. } => {
                *status >= 500 || *status == 429 || THROTTLED.iter().any(|word| code.contains(word))
            }
            Self::NoCredentials(_) | Self::NoRegion | Self::Unusable { .. } => false,
        }
    }
}

const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";

/// Calls AWS with the credentials of the environment.
#[derive(Clone)]
pub struct Aws {
    http: Http,
    environment: Environment,
    clock: Clock,
    retry: RetryPolicy,
}

/// Retries of one call. An attempt is short unless [`Aws::with_attempt_timeout`] says otherwise.
const RETRY: RetryPolicy = RetryPolicy {
    first_wait: Duration::from_millis(200),
    attempt_timeout: Duration::from_secs(2),
    ..RetryPolicy::DEFAULT
};
/// Maximum size of a response, in bytes: SQS, DynamoDB and CloudWatch Logs return a few megabytes at most.
const MAX_RESPONSE: usize = 16 * 1024 * 1024;
/// Maximum number of characters of an error's code that are reported.
const MAX_CODE: usize = 100;

impl Aws {
    pub fn new(http: Http, environment: Environment, clock: Clock) -> Self {
        Self { http, environment, clock, retry: RETRY }
    }

    /// Sets the timeout of one attempt, for calls that search and so take longer.
    pub fn with_attempt_timeout(self, attempt_timeout: Duration) -> Self {
        Self { retry: RetryPolicy { attempt_timeout, ..self.retry }, ..self }
    }

    /// Sends one `operation` (such as `GetSecretValue`) with a JSON `body` and returns the JSON response.
    ///
    /// # Errors
    /// Fails after three attempts or at `deadline`, and at once if a retry would fail too.
    pub async fn call(
        &self,
        service: Service,
        operation: &'static str,
        body: &serde_json::Value,
        deadline: Instant,
    ) -> Result<Vec<u8>, AwsError> {
        let body = body.to_string().into_bytes();
        let mut attempts = Attempts::new(self.retry, deadline);
        let mut last = None;
        while let Some(attempt) = attempts.begin() {
            let error = match self.attempt(service, operation, &body, attempt).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let is_lost =
                matches!(&error, AwsError::NoResponse { source, .. } if source.kind == TransportKind::ConnectionLost);
            if !error.is_transient() || !attempts.again(is_lost, None).await {
                return Err(error);
            }
            last = Some(error);
        }
        Err(last.unwrap_or_else(|| self.no_response(service, operation, TransportError::timeout())))
    }

    /// Checks that calls can be signed, once, at start-up.
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
        struct Response {
            #[serde(rename = "SecretString")]
            text: SecretString,
        }
        // The current version is AWS's default, but not the default of every emulator.
        let body = serde_json::json!({ "SecretId": secret_id, "VersionStage": "AWSCURRENT" });
        let response = self.call(Service::SecretsManager, OPERATION, &body, deadline).await?;
        serde_json::from_slice::<Response>(&response).map(|response| response.text).map_err(|_| {
            self.unusable(Service::SecretsManager, OPERATION, "the secret has no SecretString; store it as text")
        })
    }

    async fn attempt(
        &self,
        service: Service,
        operation: &'static str,
        body: &[u8],
        attempt: Attempt,
    ) -> Result<Vec<u8>, AwsError> {
        let mut request = http::Request::post(self.endpoint(service)?)
            .header("content-type", service.content_type())
            .header("x-amz-target", format!("{}.{operation}", service.target_prefix()))
            .body(body.to_vec())
            .map_err(|_| self.unusable(service, operation, "the endpoint is not a URL"))?;
        self.sign(&mut request, service, operation)?;
        let request = reqwest::Request::try_from(request)
            .map_err(|_| self.unusable(service, operation, "the endpoint is not a URL"))?;
        let no_response = |error| self.no_response(service, operation, error);
        let response = self.http.send(request, attempt.via, attempt.bound).await.map_err(no_response)?;
        let status = response.status();
        let body = response.read(MAX_RESPONSE, attempt.bound).await.whole().map_err(no_response)?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        #[derive(Deserialize)]
        struct Problem {
            #[serde(rename = "__type")]
            code: String,
        }
        let code = serde_json::from_slice::<Problem>(&body).map(|problem| problem.code).unwrap_or_default();
        // AWS's codes are words; the response of a proxy may contain anything.
        let code = code.rsplit('#').next().unwrap_or_default();
        let is_code = |character: &char| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-');
        let code = code.chars().take_while(is_code).take(MAX_CODE).collect();
        Err(AwsError::Response { operation, status, code })
    }

    /// Signs a request. A signature is never cached: the credentials of a sandbox change while it lives.
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
        let unsigned = || self.unusable(service, operation, "the request can't be signed");
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

    /// The URL at which a service is called.
    pub fn endpoint(&self, service: Service) -> Result<String, AwsError> {
        let configured = self
            .environment
            .get(&format!("AWS_ENDPOINT_URL_{}", service.endpoint_suffix()))
            .or_else(|| self.environment.get("AWS_ENDPOINT_URL"));
        if let Some(endpoint) = configured {
            return Ok(format!("{}/", endpoint.trim_end_matches('/')));
        }
        let variants = endpoint::Variants {
            fips: self.is_on("AWS_USE_FIPS_ENDPOINT"),
            dual_stack: self.is_on("AWS_USE_DUALSTACK_ENDPOINT"),
        };
        Ok(endpoint::of(service.signing_name(), &self.region()?, variants))
    }

    fn is_on(&self, variable: &str) -> bool {
        self.environment.get(variable).is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
    }

    fn no_response(&self, service: Service, operation: &'static str, source: TransportError) -> AwsError {
        AwsError::NoResponse { operation, endpoint: self.endpoint(service).unwrap_or_default(), source }
    }

    fn unusable(&self, service: Service, operation: &'static str, problem: &'static str) -> AwsError {
        AwsError::Unusable { operation, endpoint: self.endpoint(service).unwrap_or_default(), problem }
    }
}
