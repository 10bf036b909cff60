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

/// How long an item is used without a look at the table, in seconds: for as long a change may go unnoticed.
const FRESH: u64 = 60;
/// The same for an id that the table does not have, which somebody may just be adding.
const FRESH_ABSENCE: u64 = 10;
/// After a read that failed, an item in hand is used for as long before the next one.
const PAUSE: u64 = 5;
/// With an item in hand the table is not waited for much longer than it usually takes.
const PATIENCE: Duration = Duration::from_millis(600);
/// Ids that do not exist are asked for by anybody; they must not fill the memory.
const MOST_ABSENT: usize = 1000;

/// Why a flow's item can't be had.
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

    /// The item of a flow, `None` when there is none. As long as it does not change, it is the same `Arc`.
    ///
    /// # Errors
    /// When the table does not answer by `deadline` and no earlier answer is at hand, or when the item is no flow.
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
        let in_hand = known.and_then(|known| known.item);
        let patience = if in_hand.is_some() { deadline.min(Instant::now() + PATIENCE) } else { deadline };
        let (item, fresh) = match (self.read(id, patience).await, in_hand) {
            (Ok(Some(item)), Some(known)) if *known == item => (Some(known), FRESH),
            (Ok(Some(item)), _) => (Some(Arc::new(item)), FRESH),
            (Ok(None), _) => (None, FRESH_ABSENCE),
            (Err(error), Some(known)) if error.is_transient() => {
                tracing::warn!(%error, flow = id, "going on with the flow as it was read before");
                (Some(known), PAUSE)
            }
            (Err(error), _) => return Err(error),
        };
        let mut cache = self.cache();
        if item.is_none() && cache.len() >= MOST_ABSENT {
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
        let answer = self.aws.call(Service::DynamoDb, OPERATION, &body, deadline).await?;
        let unusable = |problem: String| FlowTableError::Item { flow: id.to_owned(), problem };
        let answer: Answer = serde_json::from_slice(&answer).map_err(|_| AwsError::Response {
            operation: OPERATION,
            status: 200,
            code: "with something unreadable".to_owned(),
        })?;
        answer.item.map(|attributes| FlowItem::read(&attributes).map_err(unusable)).transpose()
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<String, Cached>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was opened for flows, each as long as its item stays the same.
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
struct Answer {
    #[serde(rename = "Item")]
    item: Option<Attributes>,
}

/// Flows have UUIDs; everything that is no such plain word is not asked for.
fn is_flow_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}
