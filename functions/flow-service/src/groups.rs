//! Which flow has which consumer group of a hub: one item of the table each, so that no two flows have the same.
//!
//! A group that is being taken or changed stands in the index as pending. Who stopped in the middle leaves it there, and the
//! next one who makes or deletes a flow finds it.

use std::collections::HashMap;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::types::AttributeValue;

use shared::contract::flow_item::{self, FlowItem};

use crate::errors::ApiError;
use crate::store::{attributes, failed, text};

const INDEX: &str = "collection";
const PENDING: &str = "PENDING";
/// What one request finishes for others.
const MOST_PENDING: i32 = 5;

/// A consumer group of a hub that a flow has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub key: String,
    pub flow: String,
    /// The key of the one that the flow has had before.
    pub from: Option<String>,
    /// When it was taken, in milliseconds; `None` once nothing is left to do.
    pub pending_since: Option<u64>,
}

/// What the item of a flow from a hub says of its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub enabled: bool,
    pub host: String,
    pub hub: String,
    pub group: String,
    pub latest: bool,
    pub secret_arn: String,
}

impl Served {
    /// What an item says; `None` for the item of another flow.
    pub fn of(item: &FlowItem) -> Option<Self> {
        let reading = item.reading.as_ref()?;
        Some(Self {
            enabled: item.enabled,
            host: item.host.clone()?,
            hub: item.hub.clone(),
            group: reading.group.clone(),
            latest: reading.latest,
            secret_arn: item.connection_secret_id.clone(),
        })
    }

    pub fn key(&self) -> String {
        key(&self.host, &self.hub, &self.group)
    }
}

/// Names of hubs are the same in any case. None of the parts has a `#` in it.
pub fn key(host: &str, hub: &str, group: &str) -> String {
    format!("GROUP#{}", format!("{host}#{hub}#{group}").to_ascii_lowercase())
}

pub struct Groups {
    client: Client,
    table: String,
}

impl Groups {
    pub fn new(client: Client, table: String) -> Self {
        Self { client, table }
    }

    /// What the flow's item says; `None` without an item, or with one of a flow that is not from a hub.
    ///
    /// # Errors
    /// Fails if the table does not respond, or if the item is not readable: its flow may be served, and must not be undone.
    pub async fn served(&self, flow: &str) -> Result<Option<Served>, ApiError> {
        let Some(item) = self.get(flow_item::key(flow)).await? else { return Ok(None) };
        match FlowItem::read(&attributes(item)) {
            Ok(item) => Ok(Served::of(&item)),
            Err(problem) => {
                tracing::error!(flow, problem, "the item of a flow is not readable; fix it in the table of flows");
                Err(ApiError::Unavailable("the flow's item is not readable; an operator has to fix it"))
            }
        }
    }

    pub async fn read(&self, key: &str) -> Result<Option<Claim>, ApiError> {
        Ok(self.get(key.to_owned()).await?.and_then(claim))
    }

    /// Takes the group, as pending; `false` when another flow has it.
    pub async fn take(&self, claim: &Claim) -> Result<bool, ApiError> {
        let since = claim.pending_since.unwrap_or_default();
        let mut item = HashMap::from([
            ("pk".to_owned(), text(&claim.key)),
            ("flow".to_owned(), text(&claim.flow)),
            (INDEX.to_owned(), text(PENDING)),
            ("since".to_owned(), AttributeValue::N(since.to_string())),
        ]);
        item.extend(claim.from.as_ref().map(|from| ("from".to_owned(), text(from))));
        let put = self
            .client
            .put_item()
            .table_name(&self.table)
            .set_item(Some(item))
            .condition_expression("attribute_not_exists(pk) OR (flow = :f AND attribute_not_exists(undoing))")
            .expression_attribute_values(":f", text(&claim.flow));
        held("PutItem", put.send().await)
    }

    /// From now on no flow is written that has it; `false` when the flow has it no longer.
    pub async fn begin_undoing(&self, claim: &Claim) -> Result<bool, ApiError> {
        let update = self
            .client
            .update_item()
            .table_name(&self.table)
            .key("pk", text(&claim.key))
            .update_expression("SET undoing = :t")
            .condition_expression("flow = :f")
            .expression_attribute_values(":t", AttributeValue::Bool(true))
            .expression_attribute_values(":f", text(&claim.flow));
        held("UpdateItem", update.send().await)
    }

    /// Nothing is left to do for it.
    pub async fn settle(&self, claim: &Claim) -> Result<(), ApiError> {
        let update = self
            .client
            .update_item()
            .table_name(&self.table)
            .key("pk", text(&claim.key))
            .update_expression("REMOVE #c, since, undoing, #from")
            .condition_expression("flow = :f")
            .expression_attribute_names("#c", INDEX)
            .expression_attribute_names("#from", "from")
            .expression_attribute_values(":f", text(&claim.flow));
        held("UpdateItem", update.send().await).map(drop)
    }

    /// Whoever has it meanwhile keeps it.
    pub async fn release(&self, key: &str, flow: &str) -> Result<(), ApiError> {
        let delete = self
            .client
            .delete_item()
            .table_name(&self.table)
            .key("pk", text(key))
            .condition_expression("flow = :f")
            .expression_attribute_values(":f", text(flow));
        held("DeleteItem", delete.send().await).map(drop)
    }

    /// Some of those that are being taken or changed.
    pub async fn pending(&self) -> Result<Vec<Claim>, ApiError> {
        let page = self
            .client
            .query()
            .table_name(&self.table)
            .index_name(INDEX)
            .key_condition_expression("#c = :c")
            .expression_attribute_names("#c", INDEX)
            .expression_attribute_values(":c", text(PENDING))
            .limit(MOST_PENDING)
            .send()
            .await
            .map_err(|error| failed("Query", &error))?;
        Ok(page.items.unwrap_or_default().into_iter().filter_map(claim).collect())
    }

    async fn get(&self, pk: String) -> Result<Option<HashMap<String, AttributeValue>>, ApiError> {
        let get = self.client.get_item().table_name(&self.table).key("pk", text(pk)).consistent_read(true);
        Ok(get.send().await.map_err(|error| failed("GetItem", &error))?.item)
    }
}

fn claim(item: HashMap<String, AttributeValue>) -> Option<Claim> {
    let attribute = |name: &str| Some(item.get(name)?.as_s().ok()?.clone());
    let pending_since = item.get("since").and_then(|since| since.as_n().ok()?.parse().ok());
    Some(Claim { key: attribute("pk")?, flow: attribute("flow")?, from: attribute("from"), pending_since })
}

/// Whether the condition held.
fn held<T, E: ProvideErrorMetadata>(operation: &'static str, sent: Result<T, SdkError<E>>) -> Result<bool, ApiError> {
    match sent {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(false),
        Err(error) => Err(failed(operation, &error)),
    }
}
