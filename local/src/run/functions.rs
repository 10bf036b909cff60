//! The settings that the functions run with.

use std::path::Path;

use serde_json::Value;
use shared::environment;

use super::{
    FLOW_SERVICE, FLOWS_TABLE, FUNCTION_TIMEOUT, IMS_SECRET, Info, LOG_GROUP, Options, PLATFORM_INGEST, REGION,
};
use crate::emulator::Emulator;
use crate::inlet::{self, Inlet};
use crate::runner::FunctionConfig;

/// Settings that all functions share, and the variables in `hub`.
pub(super) fn function_config(
    name: &str,
    hub: &[(&str, &str)],
    options: &Options,
    folder: &Path,
    info: &Info,
) -> FunctionConfig {
    let mut environment = vec![
        (environment::SENDER_AUTH.to_owned(), options.sender_auth.clone()),
        ("AWS_REGION".to_owned(), REGION.to_owned()),
    ];
    environment.extend(hub.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    if let Some(endpoint) = &info.aws_endpoint {
        environment.push(("AWS_ENDPOINT_URL".to_owned(), endpoint.clone()));
        environment.push((environment::FLOWS_TABLE.to_owned(), FLOWS_TABLE.to_owned()));
    }
    if let Some(queues) = &info.undelivered {
        environment.push((environment::PARKING_QUEUE_URL.to_owned(), queues.parking_queue_url.clone()));
        environment.push((environment::REJECTED_QUEUE_URL.to_owned(), queues.rejected_queue_url.clone()));
    }
    let mut config = FunctionConfig::new(name, folder.join(name));
    config.environment = environment;
    config.timeout = FUNCTION_TIMEOUT;
    config.print_logs = options.verbose;
    config
}

/// Settings of the control API, which receives no events.
pub(super) fn control_config(
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

/// Settings of the ingest into Adobe Experience Platform.
pub(super) fn ingest_config(inlet: &Inlet, options: &Options, folder: &Path, info: &Info) -> FunctionConfig {
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
pub(super) fn bearer_token(sender_auth: &str) -> Option<String> {
    let accepted: Vec<Value> = serde_json::from_str(sender_auth).ok()?;
    let bearer = accepted.iter().find(|credential| credential["type"] == "bearer")?;
    bearer["secret"].as_str().map(str::to_owned)
}
