//! Flow items of the control API's table, read by id and cached.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use crate::aws::{Aws, AwsError, Service};
use crate::clock::Clock;
use crate::contract::flow_item::{self, Attributes, FlowItem};

/// Number of seconds for which an item is used before the table is read again. A change may go unnoticed for that time.
const FRESH: u64 = 60;
/// Number of seconds for which an id counts as absent. An operator may just be adding its flow.
const FRESH_ABSENCE: u64 = 10;
/// Number of seconds to use a cached item after a failed read, before the next read.
const RETRY_AFTER: u64 = 5;
/// Timeout of a read while a cached item can be used instead. A read usually takes a few milliseconds.
const TIMEOUT_IF_CACHED: Duration = Duration::from_millis(600);
/// Maximum number of absent ids that are cached: any caller can ask for ids that do not exist, which must not fill the memory.
const MAX_ABSENT: usize = 1000;

/// Why a flow's item could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FlowTableError {
    #[error("the table of flows can't be read: {0}")]
    Table(#[from] AwsError),
    #[error("the item of flow {flow} can't be used: {problem}")]
    Item { flow: String, problem: String },
}

impl FlowTableError {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Table(error) if error.is_transient())
    }
}

/// The table and what was read from it.
pub struct FlowTable {
    aws: Aws,
    table: String,
    clock: Clock,
    cache: Mutex<HashMap<String, Cached>>,
}

#[derive(Clone)]
struct Cached {
    item: Option<Arc<FlowItem>>,
    /// Unix seconds.
    fresh_until: u64,
}

impl FlowTable {
    pub fn new(aws: Aws, table: String, clock: Clock) -> Self {
        Self { aws, table, clock, cache: Mutex::default() }
    }

    /// The item of a flow; `None` if there is none. The `Arc` is the same until the item changes.
    ///
    /// # Errors
    /// Fails if the table does not respond by `deadline` and no item is cached, or if the item is not a flow.
    pub async fn item(&self, id: &str, deadline: Instant) -> Result<Option<Arc<FlowItem>>, FlowTableError> {
        if !is_flow_id(id) {
            return Ok(None);
        }
        let now = self.clock.unix_seconds();
        let known = self.cache().get(id).cloned();
        if let Some(known) = &known
            && now < known.fresh_until
        {
            return Ok(known.item.clone());
        }
        let cached = known.and_then(|known| known.item);
        let patience = if cached.is_some() { deadline.min(Instant::now() + TIMEOUT_IF_CACHED) } else { deadline };
        let (item, fresh) = match (self.read(id, patience).await, cached) {
            (Ok(Some(item)), Some(known)) if *known == item => (Some(known), FRESH),
            (Ok(Some(item)), _) => (Some(Arc::new(item)), FRESH),
            (Ok(None), _) => (None, FRESH_ABSENCE),
            (Err(error), Some(known)) if error.is_transient() => {
                tracing::warn!(%error, flow = id, "failed to read the flow item; using the cached one");
                (Some(known), RETRY_AFTER)
            }
            (Err(error), _) => return Err(error),
        };
        let mut cache = self.cache();
        if item.is_none() && cache.len() >= MAX_ABSENT {
            cache.retain(|_, cached| cached.item.is_some());
        }
        cache.insert(id.to_owned(), Cached { item: item.clone(), fresh_until: now + fresh });
        Ok(item)
    }

    async fn read(&self, id: &str, deadline: Instant) -> Result<Option<FlowItem>, FlowTableError> {
        const OPERATION: &str = "GetItem";
        let body = json!({
            "TableName": self.table, "Key": { flow_item::PARTITION_KEY: { "S": flow_item::key(id) } }, "ConsistentRead": true,
        });
        let response = self.aws.call(Service::DynamoDb, OPERATION, &body, deadline).await?;
        let unusable = |problem: String| FlowTableError::Item { flow: id.to_owned(), problem };
        let response: Response = serde_json::from_slice(&response).map_err(|_| AwsError::Response {
            operation: OPERATION,
            status: 200,
            code: "with something unreadable".to_owned(),
        })?;
        let read = |attributes: Attributes| {
            let item = FlowItem::read(&attributes)?;
            super::partitioning(&item).map_err(|error| format!("`partitioning`: {}", error.problem))?;
            Ok(item)
        };
        response.item.map(read).transpose().map_err(unusable)
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<String, Cached>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was opened for flows; each is used until its item changes.
pub struct Opened<T>(Mutex<HashMap<String, ForItem<T>>>);

struct ForItem<T> {
    item: Arc<FlowItem>,
    opened: Arc<T>,
}

impl<T> Default for Opened<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Opened<T> {
    /// What was opened for `item` of flow `id`; else opens it.
    pub async fn get<E>(
        &self,
        id: &str,
        item: &Arc<FlowItem>,
        open: impl Future<Output = Result<T, E>>,
    ) -> Result<Arc<T>, E> {
        if let Some(known) = self.lock().get(id)
            && Arc::ptr_eq(&known.item, item)
        {
            return Ok(known.opened.clone());
        }
        let opened = Arc::new(open.await?);
        self.lock().insert(id.to_owned(), ForItem { item: item.clone(), opened: opened.clone() });
        Ok(opened)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, ForItem<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Deserialize)]
struct Response {
    #[serde(rename = "Item")]
    item: Option<Attributes>,
}

/// Whether the table is asked for this id. Flows have UUIDs.
fn is_flow_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}
