//! Aliases and source mappings of the function that takes a hub's events back: they are made to follow what a flow says.
//!
//! Every step can be done again: what is there is looked for first, by the flow's alias.

use std::time::Duration;

use aws_sdk_lambda::Client;
use aws_sdk_lambda::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_lambda::types::{
    DestinationConfig, EndPointType, EventSourceMappingConfiguration, EventSourcePosition, FunctionResponseType,
    OnFailure, ProvisionedPollerConfig, SelfManagedEventSource, SelfManagedKafkaEventSourceConfig,
    SourceAccessConfiguration, SourceAccessType,
};
use shared::contract::alias;

use crate::errors::ApiError;

/// As the template has them for the stack's own source.
const BATCH_SIZE: i32 = 1000;
const MIN_POLLERS: i32 = 1;
const MAX_POLLERS: i32 = 2;
/// Maximum number of retries and maximum age of records in seconds: none, so that a record stays in the hub until the inlet accepts
/// it or the hub's own retention ends. With an on-failure destination Lambda would stop after 10 retries, so there is none.
const UNLIMITED: i32 = -1;
/// The alias leads to what is deployed, so that a deployment reaches all flows.
const LATEST: &str = "$LATEST";
/// A mapping that is just being made or changed refuses the next change.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_secs(1);

/// What a source mapping reads, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The namespace's Kafka endpoint, `host:9093`.
    pub server: String,
    /// The hub.
    pub topic: String,
    pub group: String,
    /// Where a group without offsets begins.
    pub latest: bool,
    pub secret_arn: String,
    pub enabled: bool,
}

/// The function, as it is called by its name or ARN.
pub struct Lambda {
    client: Client,
    function: String,
}

impl Lambda {
    pub fn new(client: Client, function: String) -> Self {
        Self { client, function }
    }

    /// Without what stands before it in an ARN, and without a version.
    pub fn function_name(&self) -> &str {
        let name = self.function.split_once(":function:").map_or(self.function.as_str(), |(_, name)| name);
        name.split(':').next().unwrap_or(name)
    }

    /// Makes the alias and one mapping of a flow as `source` says; those that read another place go. What is disabled needs none.
    pub async fn follow(&self, flow: &str, source: &Source) -> Result<(), ApiError> {
        let alias = match self.existing_alias(flow).await? {
            Some(alias) => alias,
            None if source.enabled => self.new_alias(flow).await?,
            None => return Ok(()),
        };
        let (mut fitting, mut others) = (None, Vec::new());
        for mapping in self.mappings(&alias).await? {
            if fitting.is_none() && reads(&mapping, source) { fitting = Some(mapping) } else { others.push(mapping) }
        }
        // Before another one begins.
        for mapping in others {
            self.delete_mapping(&mapping).await?;
        }
        match fitting {
            None if source.enabled => self.create_mapping(&alias, source).await,
            None => Ok(()),
            Some(mapping) if is_as(&mapping, source) => Ok(()),
            Some(mapping) => self.change_mapping(&mapping, source).await,
        }
    }

    /// Removes the mappings of a flow, then its alias.
    pub async fn remove(&self, flow: &str) -> Result<(), ApiError> {
        let Some(alias) = self.existing_alias(flow).await? else { return Ok(()) };
        for mapping in self.mappings(&alias).await? {
            self.delete_mapping(&mapping).await?;
        }
        let delete = || self.client.delete_alias().function_name(&self.function).name(alias::of(flow));
        unless_in_use("DeleteAlias", async || delete().send().await).await?;
        Ok(())
    }

    /// Makes the alias; gives its ARN.
    async fn new_alias(&self, flow: &str) -> Result<String, ApiError> {
        const OPERATION: &str = "CreateAlias";
        let create = self.client.create_alias().function_name(&self.function).name(alias::of(flow));
        match create.function_version(LATEST).send().await {
            Ok(alias) => alias.alias_arn.ok_or_else(|| without(OPERATION)),
            // Somebody else has made it meanwhile.
            Err(error) if error.code() == Some("ResourceConflictException") => {
                self.existing_alias(flow).await?.ok_or_else(|| without(OPERATION))
            }
            Err(error) => Err(failed(OPERATION, &error)),
        }
    }

    /// Its ARN.
    async fn existing_alias(&self, flow: &str) -> Result<Option<String>, ApiError> {
        let get = self.client.get_alias().function_name(&self.function).name(alias::of(flow));
        match get.send().await {
            Ok(alias) => Ok(alias.alias_arn),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(failed("GetAlias", &error)),
        }
    }

    /// Those of an alias that are not going already.
    async fn mappings(&self, alias: &str) -> Result<Vec<EventSourceMappingConfiguration>, ApiError> {
        let (mut mappings, mut marker) = (Vec::new(), None);
        loop {
            let page = self.client.list_event_source_mappings().function_name(alias).set_marker(marker).send().await;
            let page = page.map_err(|error| failed("ListEventSourceMappings", &error))?;
            mappings.extend(page.event_source_mappings.unwrap_or_default());
            marker = page.next_marker.filter(|marker| !marker.is_empty());
            if marker.is_none() {
                break;
            }
        }
        mappings.retain(|mapping| mapping.state() != Some("Deleting") && mapping.function_arn() == Some(alias));
        Ok(mappings)
    }

    async fn create_mapping(&self, alias: &str, source: &Source) -> Result<(), ApiError> {
        let Source { server, topic, group, latest, .. } = source;
        let servers =
            SelfManagedEventSource::builder().endpoints(EndPointType::KafkaBootstrapServers, vec![server.clone()]);
        let position = if *latest { EventSourcePosition::Latest } else { EventSourcePosition::TrimHorizon };
        let pollers = ProvisionedPollerConfig::builder().minimum_pollers(MIN_POLLERS).maximum_pollers(MAX_POLLERS);
        let create = self
            .client
            .create_event_source_mapping()
            .function_name(alias)
            .self_managed_event_source(servers.build())
            .self_managed_kafka_event_source_config(
                SelfManagedKafkaEventSourceConfig::builder().consumer_group_id(group).build(),
            )
            .topics(topic)
            .source_access_configurations(access(source))
            .starting_position(position)
            .batch_size(BATCH_SIZE)
            // Lambda reads partial answers, and obeys the limits below, in provisioned mode alone.
            .provisioned_poller_config(pollers.build())
            .function_response_types(FunctionResponseType::ReportBatchItemFailures)
            .bisect_batch_on_function_error(true)
            .maximum_retry_attempts(UNLIMITED)
            .maximum_record_age_in_seconds(UNLIMITED)
            .enabled(true);
        create.send().await.map(drop).map_err(|error| failed("CreateEventSourceMapping", &error))
    }

    async fn change_mapping(&self, mapping: &EventSourceMappingConfiguration, source: &Source) -> Result<(), ApiError> {
        let update = || {
            let mut update = self.client.update_event_source_mapping().set_uuid(mapping.uuid.clone());
            if destination(mapping).is_some() {
                // An empty text removes it.
                let none = OnFailure::builder().destination("").build();
                update = update.destination_config(DestinationConfig::builder().on_failure(none).build());
            }
            update
                .source_access_configurations(access(source))
                .maximum_retry_attempts(UNLIMITED)
                .maximum_record_age_in_seconds(UNLIMITED)
                .enabled(source.enabled)
        };
        let done = unless_in_use("UpdateEventSourceMapping", async || update().send().await).await?;
        done.map(drop).ok_or(ApiError::Unavailable("the source mapping went meanwhile; send it again"))
    }

    async fn delete_mapping(&self, mapping: &EventSourceMappingConfiguration) -> Result<(), ApiError> {
        let delete = || self.client.delete_event_source_mapping().set_uuid(mapping.uuid.clone());
        unless_in_use("DeleteEventSourceMapping", async || delete().send().await).await.map(drop)
    }
}

fn access(source: &Source) -> SourceAccessConfiguration {
    SourceAccessConfiguration::builder().r#type(SourceAccessType::BasicAuth).uri(&source.secret_arn).build()
}

/// Whether a mapping reads that place for that group, which of a mapping can't be changed.
fn reads(mapping: &EventSourceMappingConfiguration, source: &Source) -> bool {
    let servers = mapping.self_managed_event_source().and_then(|source| source.endpoints());
    let servers = servers.and_then(|endpoints| endpoints.get(&EndPointType::KafkaBootstrapServers));
    let group = mapping.self_managed_kafka_event_source_config().and_then(|config| config.consumer_group_id());
    servers.is_some_and(|servers| servers.iter().eq([&source.server]))
        && mapping.topics().iter().eq([&source.topic])
        && group == Some(&source.group)
}

/// Whether a mapping has all settings that can be changed. One from an earlier version may discard records.
fn is_as(mapping: &EventSourceMappingConfiguration, source: &Source) -> bool {
    let states = if source.enabled { ["Enabled", "Enabling"] } else { ["Disabled", "Disabling"] };
    let secret = mapping.source_access_configurations().iter().any(|access| access.uri() == Some(&source.secret_arn));
    let discards_nothing = mapping.maximum_retry_attempts() == Some(UNLIMITED)
        && mapping.maximum_record_age_in_seconds() == Some(UNLIMITED)
        && destination(mapping).is_none();
    secret && discards_nothing && mapping.state().is_some_and(|state| states.contains(&state))
}

/// The on-failure destination of a mapping.
fn destination(mapping: &EventSourceMappingConfiguration) -> Option<&str> {
    let destination = mapping.destination_config()?.on_failure()?.destination()?;
    (!destination.is_empty()).then_some(destination)
}

/// Sends again what a mapping refuses because it is being changed. `None`: what it is for is not there.
async fn unless_in_use<T, E: ProvideErrorMetadata>(
    operation: &'static str,
    send: impl AsyncFn() -> Result<T, SdkError<E>>,
) -> Result<Option<T>, ApiError> {
    let mut tries = 1;
    loop {
        match send().await {
            Ok(answer) => return Ok(Some(answer)),
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) if matches!(error.code(), Some("ResourceInUseException" | "ResourceConflictException")) => {
                if tries == TRIES {
                    tracing::warn!(operation, "the source mapping is being changed");
                    return Err(ApiError::Unavailable(
                        "the source mapping is still being changed; send it again in a minute",
                    ));
                }
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(failed(operation, &error)),
        }
    }
}

fn is_missing<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    error.code() == Some("ResourceNotFoundException")
}

fn without(operation: &'static str) -> ApiError {
    tracing::error!(operation, "Lambda's answer names no alias");
    SILENT
}

const SILENT: ApiError = ApiError::Unavailable("Lambda does not answer now; send it again");

fn failed<E: ProvideErrorMetadata>(operation: &'static str, error: &SdkError<E>) -> ApiError {
    let (code, message) = (error.code().unwrap_or("none"), error.message().unwrap_or_default());
    if code == "InvalidParameterValueException" {
        tracing::warn!(operation, code, message, "Lambda refuses the source");
        return ApiError::Unusable(
            "Lambda refuses the source: look at the namespace, its tier, and the consumer group".to_owned(),
        );
    }
    tracing::error!(operation, code, message, "Lambda does not do what a source flow needs");
    SILENT
}
