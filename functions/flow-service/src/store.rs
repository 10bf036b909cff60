//! The table: every object by its tenant, and the items that the data plane reads.
//!
//! An object knows who uses it (`usedBy`), so that what is in use stays, and a change reaches the flows that it is for.
//! All writes are conditional, and those of one request are one transaction.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{
    AttributeValue, ConditionCheck, Delete, KeysAndAttributes, Put, TransactWriteItem, Update,
};
use serde_json::{Map, Value};
use shared::contract::flow_item::{self, Attribute, Attributes, FlowItem};
use tokio::time::sleep;

use crate::connections::MAX_OPTIONS;
use crate::errors::ApiError;
use crate::groups::Claim;
use crate::routes::Collection;
use crate::secrets::SecretVersion;
use crate::tenant::Tenant;

/// Of a source or target connection: a change of it must fit one transaction, with the items of all its flows.
const MAX_FLOWS: usize = 80;
/// Of a connection: their names must fit its item.
const MAX_ENDS: usize = 1000;
/// What one call may read.
const MAX_READS: usize = 100;
/// Calls for what others before them left out.
const READ_TRIES: u32 = 8;
const READ_PAUSE: Duration = Duration::from_millis(50);
/// What one transaction may have.
pub const MAX_WRITES: usize = 100;
/// What the items of one transaction may have.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Of an item besides its document, users or options.
const MARGIN: usize = 2 * 1024;
/// Of a flow as JSON: an item has at most 400 KB, in which stand-ins count an update twice, as it was and as it becomes.
const MAX_FLOW: usize = 190 * 1024;
/// Of the other objects: many of them may stand in one transaction.
const MAX_OBJECT: usize = 64 * 1024;
// A source or target connection changes with the items of all its flows, whatever their options are.
const _: () = assert!(MAX_OBJECT + MAX_FLOWS * (MAX_OPTIONS + MARGIN) + MARGIN < MAX_BYTES);
/// The index that lists are read from.
const INDEX: &str = "collection";
pub const SILENT: ApiError = ApiError::Unavailable("the store does not answer now; send it again");

pub type Document = Map<String, Value>;
/// Collection and id.
pub type Name = (Collection, String);
type Item = HashMap<String, AttributeValue>;

/// An object of a tenant.
#[derive(Debug, Clone)]
pub struct Entity {
    pub collection: Collection,
    pub id: String,
    /// As it is read back.
    pub document: Document,
    /// Of the key, or of the senders' credentials.
    pub secret: Option<SecretVersion>,
    /// Objects that refer to this one, as `collection#id`.
    pub used_by: Vec<String>,
    /// Generated credentials that nobody was shown.
    pub is_unseen: bool,
}

impl Entity {
    pub fn text(&self, name: &str) -> &str {
        self.document.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    pub fn etag(&self) -> &str {
        self.text("etag")
    }

    /// Whether a flow is enabled.
    pub fn is_enabled(&self) -> bool {
        self.text("state") == flow_item::state(true)
    }

    pub fn spec_id(&self) -> &str {
        self.document.get("connectionSpec").and_then(|spec| spec["id"].as_str()).unwrap_or_default()
    }

    pub fn member(&self, name: &str) -> &Value {
        self.document.get(name).unwrap_or(&Value::Null)
    }

    /// Refuses what its item could not hold.
    pub fn check_size(&self) -> Result<(), ApiError> {
        let most = if self.collection == Collection::Flows { MAX_FLOW } else { MAX_OBJECT };
        let size = serialized(&self.document).len();
        if size > most {
            return Err(ApiError::TooLarge(format!("the object would have {size} bytes; {most} at most")));
        }
        Ok(())
    }

    /// Of its item, in bytes, or a little more.
    pub fn size(&self) -> usize {
        serialized(&self.document).len() + self.used_by.iter().map(String::len).sum::<usize>() + MARGIN
    }

    /// How many others may refer to it.
    pub fn max_users(&self) -> usize {
        if self.collection == Collection::Connections { MAX_ENDS } else { MAX_FLOWS }
    }

    /// How it stands among those that use another.
    pub fn user_name(&self) -> String {
        format!("{}#{}", self.collection.name(), self.id)
    }
}

/// Upper bound of the size of a flow's item, in bytes.
pub fn flow_size(item: &FlowItem) -> usize {
    item.options.as_ref().map_or(0, String::len) + MARGIN
}

pub enum Write<'a> {
    Create(&'a Entity),
    /// Writes the document over the one with this etag, if its users are still those that were read.
    Update {
        entity: &'a Entity,
        old_etag: &'a str,
    },
    /// Nobody may use it.
    Delete {
        entity: &'a Entity,
    },
    /// Nothing changes of it meanwhile.
    Unchanged(&'a Entity),
    /// Nobody comes to use it meanwhile, or ceases to.
    SameUsers(Entity),
    /// Refers to it as it was read. `shown`: its generated credentials are.
    AddUser {
        of: &'a Entity,
        user: String,
        shown: bool,
    },
    RemoveUser {
        of: (Collection, String),
        user: String,
    },
    /// `seen`: the version that was read; `None` for a new flow.
    PutFlow {
        item: Box<FlowItem>,
        seen: Option<u64>,
    },
    /// Of a flow's item.
    SetState {
        id: &'a str,
        enabled: bool,
    },
    DeleteFlow {
        id: String,
    },
    /// The flow has the consumer group, and nobody is taking it away.
    HoldsGroup(&'a Claim),
    /// The flow has it no longer.
    ReleaseGroup {
        key: String,
        flow: &'a str,
    },
}

/// Why a transaction wrote nothing.
#[derive(Debug, PartialEq, Eq)]
pub enum Unwritten {
    /// Something has changed since it was read: read again.
    Lost,
    Failed(ApiError),
}

impl From<ApiError> for Unwritten {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

pub struct Store {
    client: Client,
    table: String,
}

pub fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

fn key(tenant: &Tenant, collection: Collection, id: &str) -> String {
    format!("{}#{id}", collection_key(tenant, collection))
}

fn collection_key(tenant: &Tenant, collection: Collection) -> String {
    format!("TENANT#{}#{}", tenant.key(), collection.name())
}

impl Store {
    pub fn new(client: Client, table: String) -> Self {
        Self { client, table }
    }

    pub async fn get(&self, tenant: &Tenant, collection: Collection, id: &str) -> Result<Option<Entity>, ApiError> {
        // Ids are UUIDs; nothing else is asked for.
        if id.len() != 36 {
            return Ok(None);
        }
        let answer = self
            .client
            .get_item()
            .table_name(&self.table)
            .key("pk", text(key(tenant, collection, id)))
            .consistent_read(true)
            .send()
            .await
            .map_err(|error| failed("GetItem", &error))?;
        Ok(answer.item.and_then(|item| entity(collection, &item)))
    }

    /// Those objects that there are, by collection and id.
    pub async fn get_all(&self, tenant: &Tenant, names: &[Name]) -> Result<BTreeMap<Name, Entity>, ApiError> {
        let keys: BTreeMap<String, Collection> =
            names.iter().map(|(collection, id)| (key(tenant, *collection, id), *collection)).collect();
        let items = self.items(keys.keys().cloned().collect(), None).await?;
        let read = items.iter().filter_map(|item| entity(*keys.get(item.get("pk")?.as_s().ok()?)?, item));
        Ok(read.map(|entity| ((entity.collection, entity.id.clone()), entity)).collect())
    }

    /// The version of the item that the data plane reads.
    pub async fn flow_version(&self, id: &str) -> Result<Option<u64>, ApiError> {
        Ok(self.flow_versions(&[id.to_owned()]).await?.remove(id))
    }

    /// Those of the flows that have an item, by id.
    pub async fn flow_versions(&self, ids: &[String]) -> Result<BTreeMap<String, u64>, ApiError> {
        let items = self.items(ids.iter().map(|id| flow_item::key(id)).collect(), Some("pk, #v")).await?;
        let version = |item| {
            let attributes = attributes(item);
            Some((flow_item::id(&attributes)?.to_owned(), flow_item::version(&attributes)?))
        };
        Ok(items.into_iter().filter_map(version).collect())
    }

    /// The items of those keys that have one. `#v` is the version.
    async fn items(&self, mut keys: Vec<String>, projection: Option<&str>) -> Result<Vec<Item>, ApiError> {
        let (mut items, mut tries) = (Vec::new(), 0);
        while !keys.is_empty() {
            let rest = keys.split_off(keys.len().min(MAX_READS));
            let asked = keys.into_iter().map(|key| HashMap::from([("pk".to_owned(), text(key))])).collect();
            let mut asked = KeysAndAttributes::builder().set_keys(Some(asked)).consistent_read(true);
            if let Some(projection) = projection {
                asked = asked.projection_expression(projection).expression_attribute_names("#v", flow_item::VERSION);
            }
            let asked = asked.build().expect("keys are given");
            let answer = self.client.batch_get_item().request_items(&self.table, asked).send().await;
            let mut answer = answer.map_err(|error| failed("BatchGetItem", &error))?;
            items.extend(answer.responses.as_mut().and_then(|tables| tables.remove(&self.table)).unwrap_or_default());
            let left_out = answer.unprocessed_keys.and_then(|mut tables| tables.remove(&self.table));
            let left_out = left_out.map(|keys| keys.keys).unwrap_or_default();
            keys = rest;
            if !left_out.is_empty() {
                tries += 1;
                if tries == READ_TRIES {
                    return Err(SILENT);
                }
                keys.extend(left_out.iter().filter_map(|key| key.get("pk")?.as_s().ok().cloned()));
                sleep(READ_PAUSE * tries).await;
            }
        }
        Ok(items)
    }

    /// Gives all documents of a collection, as text and in no order. What was written last may not be among them for a moment.
    pub async fn list(
        &self,
        tenant: &Tenant,
        collection: Collection,
        mut take: impl FnMut(&str),
    ) -> Result<(), ApiError> {
        let mut next = None;
        loop {
            let page = self
                .client
                .query()
                .table_name(&self.table)
                .index_name(INDEX)
                .key_condition_expression("#c = :c")
                .expression_attribute_names("#c", INDEX)
                .expression_attribute_values(":c", text(collection_key(tenant, collection)))
                .set_exclusive_start_key(next)
                .send()
                .await
                .map_err(|error| failed("Query", &error))?;
            page.items().iter().filter_map(|item| item.get("document")?.as_s().ok()).for_each(|text| take(text));
            next = page.last_evaluated_key.filter(|key| !key.is_empty());
            if next.is_none() {
                return Ok(());
            }
        }
    }

    /// Writes all of it or nothing.
    pub async fn write(&self, tenant: &Tenant, writes: Vec<Write<'_>>) -> Result<(), Unwritten> {
        let items = writes.into_iter().map(|write| self.item(tenant, write)).collect();
        let answer = self.client.transact_write_items().set_transact_items(Some(items)).send().await;
        let Err(error) = answer else { return Ok(()) };
        if let SdkError::ServiceError(problem) = &error {
            match problem.err() {
                TransactWriteItemsError::TransactionCanceledException(canceled) => {
                    let lost = |code: &str| matches!(code, "None" | "ConditionalCheckFailed" | "TransactionConflict");
                    let reasons = canceled.cancellation_reasons();
                    if reasons.iter().all(|reason| reason.code().is_none_or(lost)) {
                        return Err(Unwritten::Lost);
                    }
                }
                TransactWriteItemsError::TransactionInProgressException(_) => return Err(Unwritten::Lost),
                _ => {}
            }
        }
        Err(Unwritten::Failed(failed("TransactWriteItems", &error)))
    }

    // The builders fail for a table, key, item or condition that was not given, and for nothing else: each gets all of its own.
    fn item(&self, tenant: &Tenant, write: Write<'_>) -> TransactWriteItem {
        let entity_key = |entity: &Entity| text(key(tenant, entity.collection, &entity.id));
        let builder = TransactWriteItem::builder();
        let built = match write {
            Write::Create(entity) => {
                let mut item = HashMap::from([
                    ("pk".to_owned(), entity_key(entity)),
                    (INDEX.to_owned(), text(collection_key(tenant, entity.collection))),
                    ("document".to_owned(), text(serialized(&entity.document))),
                    ("etag".to_owned(), text(entity.etag())),
                ]);
                if let Some(secret) = &entity.secret {
                    item.insert("secretId".to_owned(), text(&secret.name));
                    item.insert("secretVersion".to_owned(), text(&secret.version));
                }
                if entity.is_unseen {
                    item.insert("unseen".to_owned(), AttributeValue::Bool(true));
                }
                let put = Put::builder().table_name(&self.table).set_item(Some(item));
                builder.put(put.condition_expression("attribute_not_exists(pk)").build().expect("all is given"))
            }
            Write::Update { entity, old_etag } => {
                let mut update = Update::builder()
                    .table_name(&self.table)
                    .key("pk", entity_key(entity))
                    .condition_expression(format!("etag = :old AND {}", same_users(entity)))
                    .expression_attribute_names("#d", "document")
                    .expression_attribute_values(":old", text(old_etag))
                    .expression_attribute_values(":new", text(entity.etag()))
                    .expression_attribute_values(":d", text(serialized(&entity.document)));
                let mut expression = "SET #d = :d, etag = :new".to_owned();
                if let Some(secret) = &entity.secret {
                    expression.push_str(", secretId = :s, secretVersion = :v");
                    update = update
                        .expression_attribute_values(":s", text(&secret.name))
                        .expression_attribute_values(":v", text(&secret.version));
                }
                if let Some(users) = users(entity) {
                    update = update.expression_attribute_values(":users", users);
                }
                if !entity.is_unseen {
                    expression.push_str(" REMOVE unseen");
                }
                builder.update(update.update_expression(expression).build().expect("all is given"))
            }
            Write::Delete { entity } => builder.delete(
                Delete::builder()
                    .table_name(&self.table)
                    .key("pk", entity_key(entity))
                    .condition_expression("etag = :e AND attribute_not_exists(usedBy)")
                    .expression_attribute_values(":e", text(entity.etag()))
                    .build()
                    .expect("all is given"),
            ),
            Write::Unchanged(entity) => builder.condition_check(
                ConditionCheck::builder()
                    .table_name(&self.table)
                    .key("pk", entity_key(entity))
                    .condition_expression("etag = :e")
                    .expression_attribute_values(":e", text(entity.etag()))
                    .build()
                    .expect("all is given"),
            ),
            Write::SameUsers(entity) => builder.condition_check(
                ConditionCheck::builder()
                    .table_name(&self.table)
                    .key("pk", entity_key(&entity))
                    .condition_expression(same_users(&entity))
                    .set_expression_attribute_values(
                        users(&entity).map(|users| HashMap::from([(":users".to_owned(), users)])),
                    )
                    .build()
                    .expect("all is given"),
            ),
            Write::AddUser { of, user, shown } => {
                let (change, condition) = if shown {
                    ("ADD usedBy :u REMOVE unseen", "etag = :e AND attribute_exists(unseen)")
                } else {
                    ("ADD usedBy :u", "etag = :e")
                };
                builder.update(
                    Update::builder()
                        .table_name(&self.table)
                        .key("pk", entity_key(of))
                        .update_expression(change)
                        .condition_expression(condition)
                        .expression_attribute_values(":e", text(of.etag()))
                        .expression_attribute_values(":u", AttributeValue::Ss(vec![user]))
                        .build()
                        .expect("all is given"),
                )
            }
            Write::RemoveUser { of: (collection, id), user } => builder.update(
                Update::builder()
                    .table_name(&self.table)
                    .key("pk", text(key(tenant, collection, &id)))
                    .update_expression("DELETE usedBy :u")
                    .condition_expression("attribute_exists(pk)")
                    .expression_attribute_values(":u", AttributeValue::Ss(vec![user]))
                    .build()
                    .expect("all is given"),
            ),
            Write::PutFlow { item, seen } => {
                let attributes = item.attributes(seen.unwrap_or(0) + 1);
                let put = Put::builder().table_name(&self.table).set_item(Some(sdk_item(attributes)));
                let put = match seen {
                    None => put.condition_expression("attribute_not_exists(pk)"),
                    Some(seen) => put
                        .condition_expression("#v = :v")
                        .expression_attribute_names("#v", flow_item::VERSION)
                        .expression_attribute_values(":v", AttributeValue::N(seen.to_string())),
                };
                builder.put(put.build().expect("all is given"))
            }
            Write::SetState { id, enabled } => builder.update(
                Update::builder()
                    .table_name(&self.table)
                    .key("pk", text(flow_item::key(id)))
                    // A request that writes the whole item has read its version.
                    .update_expression("SET #s = :s ADD #v :one")
                    .condition_expression("attribute_exists(pk)")
                    .expression_attribute_names("#s", flow_item::STATE)
                    .expression_attribute_names("#v", flow_item::VERSION)
                    .expression_attribute_values(":s", text(flow_item::state(enabled)))
                    .expression_attribute_values(":one", AttributeValue::N("1".to_owned()))
                    .build()
                    .expect("all is given"),
            ),
            Write::DeleteFlow { id } => builder.delete(
                Delete::builder()
                    .table_name(&self.table)
                    .key("pk", text(flow_item::key(&id)))
                    .build()
                    .expect("all is given"),
            ),
            Write::HoldsGroup(claim) => builder.condition_check(
                ConditionCheck::builder()
                    .table_name(&self.table)
                    .key("pk", text(&claim.key))
                    .condition_expression("flow = :f AND attribute_not_exists(undoing)")
                    .expression_attribute_values(":f", text(&claim.flow))
                    .build()
                    .expect("all is given"),
            ),
            Write::ReleaseGroup { key, flow } => builder.delete(
                Delete::builder()
                    .table_name(&self.table)
                    .key("pk", text(key))
                    .condition_expression("attribute_not_exists(pk) OR flow = :f")
                    .expression_attribute_values(":f", text(flow))
                    .build()
                    .expect("all is given"),
            ),
        };
        built.build()
    }
}

fn users(entity: &Entity) -> Option<AttributeValue> {
    (!entity.used_by.is_empty()).then(|| AttributeValue::Ss(entity.used_by.clone()))
}

/// The condition that goes with [`users`].
fn same_users(entity: &Entity) -> &'static str {
    if entity.used_by.is_empty() { "attribute_not_exists(usedBy)" } else { "usedBy = :users" }
}

fn serialized(document: &Document) -> String {
    serde_json::to_string(document).expect("JSON can be written")
}

fn document(item: &Item) -> Option<Document> {
    serde_json::from_str(item.get("document")?.as_s().ok()?).ok()
}

fn entity(collection: Collection, item: &Item) -> Option<Entity> {
    let document = document(item)?;
    let attribute = |name: &str| item.get(name).and_then(|value| value.as_s().ok()).cloned();
    Some(Entity {
        collection,
        id: document.get("id")?.as_str()?.to_owned(),
        document,
        secret: attribute("secretId")
            .zip(attribute("secretVersion"))
            .map(|(name, version)| SecretVersion { name, version }),
        used_by: item.get("usedBy").and_then(|value| value.as_ss().ok()).cloned().unwrap_or_default(),
        is_unseen: item.contains_key("unseen"),
    })
}

fn sdk_item(attributes: Attributes) -> Item {
    let value = |attribute| match attribute {
        Attribute::Text(text) => Some(AttributeValue::S(text)),
        Attribute::Number(digits) => Some(AttributeValue::N(digits)),
        Attribute::Other => None,
    };
    attributes.into_iter().filter_map(|(name, attribute)| Some((name, value(attribute)?))).collect()
}

/// The attributes of an item as flow items have them.
pub fn attributes(item: Item) -> Attributes {
    let attribute = |value| match value {
        AttributeValue::S(text) => Attribute::Text(text),
        AttributeValue::N(digits) => Attribute::Number(digits),
        _ => Attribute::Other,
    };
    item.into_iter().map(|(name, value)| (name, attribute(value))).collect()
}

/// The caller is not told why; the log is, by the code alone.
pub fn failed<E: ProvideErrorMetadata>(operation: &'static str, error: &SdkError<E>) -> ApiError {
    tracing::error!(operation, code = error.code().unwrap_or("none"), "the table of flows does not answer");
    SILENT
}
