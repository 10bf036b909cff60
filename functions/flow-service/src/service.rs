//! The function: settings and clients, once per process, then one HTTP request after another.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region, SharedHttpClient};
use futures_util::FutureExt;
use lambda_runtime::Diagnostic;
use serde_json::{Value, json};
use shared::aws::Aws;
use shared::clock::Clock;
use shared::environment::{EXTRA_CA_CERTS, Environment, FLOWS_TABLE, SettingsError};
use shared::http::Http;
use shared::lambda::diagnostic;
use shared::lambda::settings::Settings;
use shared::{Function, Invocation};
use tokio::time::{Instant, timeout_at};

use crate::api::{Api, Reply};
use crate::errors::ApiError;
use crate::groups::Groups;
use crate::hubs::Hubs;
use crate::lambda::Lambda;
use crate::namespace::Hosts;
use crate::request::Request;
use crate::routes;
use crate::runs::Runs;
use crate::sdk_http::SdkHttp;
use crate::secrets::Secrets;
use crate::source_flows::SourceFlows;
use crate::store::Store;
use crate::tenant::{ClaimForm, OrgClaim};

const ORG_CLAIM: &str = "ORG_CLAIM";
const ORG_CLAIM_TYPE: &str = "ORG_CLAIM_TYPE";
const PUBLIC_URL: &str = "PUBLIC_URL";
const NAMESPACE_SUFFIX: &str = "NAMESPACE_SUFFIX";
const EMULATOR_HOSTS: &str = "EMULATOR_HOSTS";
const SECRETS_PREFIX: &str = "SECRETS_PREFIX";
const LOG_GROUP: &str = "LOG_GROUP";
/// Name or ARN of the function that serves flows from a hub.
const PLATFORM_INGEST_FUNCTION: &str = "PLATFORM_INGEST_FUNCTION";

/// Of the time of an invocation, for the answer.
const RESERVE: Duration = Duration::from_secs(1);
/// One call of AWS, its repeats included.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);

/// The control API.
pub struct FlowService {
    api: Api,
}

impl FlowService {
    /// Reads the settings; calls nothing yet.
    pub async fn open(environment: Environment, clock: Clock, _deadline: Instant) -> Result<Self, SettingsError> {
        let settings = Settings::read(&environment)?;
        let table = settings.flows_table.ok_or_else(|| SettingsError::new(FLOWS_TABLE, "missing"))?;
        let http = shared::build_http_client(settings.extra_ca_certs.as_deref())
            .map_err(|problem| SettingsError::new(EXTRA_CA_CERTS, problem))?;
        let suffix = environment.get(NAMESPACE_SUFFIX);
        let hosts = Hosts::new(suffix.as_deref(), environment.get(EMULATOR_HOSTS).as_deref())
            .map_err(|problem| SettingsError::new(NAMESPACE_SUFFIX, problem))?;
        let form = match environment.get(ORG_CLAIM_TYPE) {
            None => ClaimForm::Text,
            Some(text) => text.parse().map_err(|problem| SettingsError::new(ORG_CLAIM_TYPE, problem))?,
        };
        let org_claim = OrgClaim { name: environment.get(ORG_CLAIM).unwrap_or_else(|| "org".to_owned()), form };
        let access = Access::read(&environment, &http)?;
        let (dynamodb, secrets_manager) = (access.dynamodb(), access.secrets_manager());
        let prefix = environment.get(SECRETS_PREFIX).unwrap_or_else(|| "eventhubs-relay/flows/".to_owned());
        // Of a stack all functions have one; else it is our own, which has no flow's lines.
        let log_group = environment.get(LOG_GROUP).or_else(|| environment.get("AWS_LAMBDA_LOG_GROUP_NAME"));
        let aws = Aws::new(http.clone(), environment.clone(), clock.clone());
        let sources = environment.get(PLATFORM_INGEST_FUNCTION).map(|function| {
            let lambda = Lambda::new(access.lambda(), function);
            SourceFlows::new(lambda, Groups::new(dynamodb.clone(), table.clone()), clock.clone())
        });
        let public_url = environment.get(PUBLIC_URL).map(|url| url.trim_end_matches('/').to_owned());
        Ok(Self {
            api: Api {
                store: Store::new(dynamodb, table),
                secrets: Secrets::new(secrets_manager, prefix),
                hubs: Hubs::new(http, clock.clone()),
                runs: Runs::new(aws, log_group.unwrap_or_default(), clock.clone()),
                sources,
                hosts,
                clock,
                org_claim,
                public_url,
                max_bytes: settings.max_batch_bytes as u64,
            },
        })
    }

    async fn answer(&self, event: &str, deadline: Instant) -> Option<(&'static str, Result<Reply, ApiError>)> {
        let request = match Request::read(event)? {
            Ok(request) => request,
            Err(error) => return Some(("", Err(error))),
        };
        Some(match routes::find(&request.method, &request.path) {
            Ok((operation, id)) => {
                // Boxed, since the SDK's futures nest deeper than the compiler goes by itself.
                let route = routes::ROUTES.iter().find(|route| route.operation == operation);
                (
                    route.map_or("", |route| route.path),
                    Box::pin(self.api.answer(&request, operation, id, deadline)).await,
                )
            }
            Err(error) => ("", Err(error)),
        })
    }
}

/// How AWS is called: with the credentials of the environment, as Lambda sets them for the life of a sandbox.
struct Access {
    environment: Environment,
    credentials: Credentials,
    region: Region,
    http: SharedHttpClient,
    timeouts: TimeoutConfig,
}

/// The clients have one configuration, of three types.
macro_rules! client {
    ($sdk:ident, $access:expr, $endpoint:literal) => {{
        let access = $access;
        let endpoint = access.environment.get($endpoint).or_else(|| access.environment.get("AWS_ENDPOINT_URL"));
        let mut config = $sdk::config::Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(access.credentials.clone())
            .region(access.region.clone())
            .http_client(access.http.clone())
            .timeout_config(access.timeouts.clone());
        config.set_endpoint_url(endpoint);
        config.set_use_fips(access.is_on("AWS_USE_FIPS_ENDPOINT"));
        config.set_use_dual_stack(access.is_on("AWS_USE_DUALSTACK_ENDPOINT"));
        $sdk::Client::from_conf(config.build())
    }};
}

impl Access {
    fn read(environment: &Environment, http: &Http) -> Result<Self, SettingsError> {
        let needed = |name: &'static str| environment.get(name).ok_or_else(|| SettingsError::new(name, "missing"));
        let region = needed("AWS_REGION").or_else(|error| environment.get("AWS_DEFAULT_REGION").ok_or(error))?;
        let credentials = Credentials::new(
            needed("AWS_ACCESS_KEY_ID")?,
            needed("AWS_SECRET_ACCESS_KEY")?,
            environment.get("AWS_SESSION_TOKEN"),
            None,
            "environment",
        );
        Ok(Self {
            environment: environment.clone(),
            credentials,
            region: Region::new(region),
            http: SharedHttpClient::new(SdkHttp(http.clone())),
            timeouts: TimeoutConfig::builder().operation_timeout(CALL_TIMEOUT).build(),
        })
    }

    /// Whether a switch of the environment is on; `None` if it is not set.
    fn is_on(&self, variable: &str) -> Option<bool> {
        self.environment.get(variable).map(|value| value.trim().eq_ignore_ascii_case("true"))
    }

    fn dynamodb(&self) -> aws_sdk_dynamodb::Client {
        client!(aws_sdk_dynamodb, self, "AWS_ENDPOINT_URL_DYNAMODB")
    }

    fn lambda(&self) -> aws_sdk_lambda::Client {
        client!(aws_sdk_lambda, self, "AWS_ENDPOINT_URL_LAMBDA")
    }

    fn secrets_manager(&self) -> aws_sdk_secretsmanager::Client {
        client!(aws_sdk_secretsmanager, self, "AWS_ENDPOINT_URL_SECRETS_MANAGER")
    }
}

impl Function for FlowService {
    type Response = Value;

    async fn invoke(&self, event: &str, invocation: Invocation<'_>) -> Result<Value, Diagnostic> {
        let deadline = invocation.time_up.checked_sub(RESERVE).unwrap_or(invocation.time_up);
        let handled = timeout_at(deadline, AssertUnwindSafe(self.answer(event, deadline)).catch_unwind()).await;
        let (route, answer) = match handled {
            Ok(Ok(Some(answered))) => answered,
            Ok(Ok(None)) => {
                return Err(diagnostic("UnknownTrigger", "the event is no HTTP request (payload 2.0)"));
            }
            Ok(Err(_)) => ("", Err(ApiError::Unavailable("the service failed on this request"))),
            Err(_) => ("", Err(ApiError::Unavailable("it took too long, and may be done in part; send it again"))),
        };
        let status = answer.as_ref().map_or_else(ApiError::status, |reply| reply.status);
        tracing::info!(
            request_id = invocation.request_id,
            route,
            status,
            duration_ms = u64::try_from(invocation.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "call answered",
        );
        Ok(respond(answer))
    }
}

fn respond(answer: Result<Reply, ApiError>) -> Value {
    let mut headers = json!({});
    let (status, body) = match answer {
        Ok(reply) => {
            if let Some(location) = reply.location {
                headers["location"] = location.into();
            }
            (reply.status, reply.body)
        }
        Err(error) => {
            if let ApiError::MethodNotAllowed(allowed) = &error {
                headers["allow"] = allowed.as_str().into();
            }
            (error.status(), Some(error.body()))
        }
    };
    if body.is_some() {
        headers["content-type"] = "application/json".into();
    }
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    json!({ "statusCode": status, "headers": headers, "body": body, "isBase64Encoded": false })
}
