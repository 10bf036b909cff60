//! What only AWS has: the numbers of messages in the queues, and the flows of the control API's table.

use serde_json::{Value, json};
use shared::aws::{Aws, AwsError, Service};
use shared::contract::flow_item::{self, Attributes, FlowItem};
use tokio::time::Instant;

use super::ledger::{MAX_ROWS, QueueCounts};
use super::{CALL_TIMEOUT, Shared, lock};
use crate::queue_source;

/// What the last lookup returned.
#[derive(Default)]
pub(super) struct Seen {
    pub queues: Option<QueueCounts>,
    pub flows: Vec<TableFlow>,
}

/// A flow of the control API.
#[derive(Debug, Clone)]
pub(super) struct TableFlow {
    pub id: String,
    pub kind: String,
    pub hub: String,
    pub state: &'static str,
}

impl Shared {
    /// Reads the queues and the table. After a failed call, the previous values remain.
    pub(super) async fn look(&self) {
        let (Some(aws), Some(queues)) = (&self.console.aws, &self.console.info.undelivered) else { return };
        let mark = lock(&self.ledger).parking_mark();
        let (parking, dead_letters, rejected, flows) = tokio::join!(
            count(aws, &queues.parking_queue_url),
            count(aws, &queues.parking_dead_letters_url),
            count(aws, &queues.rejected_queue_url),
            flows(aws, self.console.table),
        );
        let mut seen = lock(&self.seen);
        if let (Ok(parking), Ok(dead_letters), Ok(rejected)) = (parking, dead_letters, rejected) {
            let queues = QueueCounts { parking, dead_letters, rejected };
            seen.queues = Some(queues);
            lock(&self.ledger).compare(mark, queues);
        }
        if let Ok(flows) = flows {
            seen.flows = flows;
        }
    }
}

/// Number of messages in a queue, visible or not.
async fn count(aws: &Aws, queue_url: &str) -> Result<u64, AwsError> {
    const COUNTS: [&str; 2] = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"];
    let body = json!({ "QueueUrl": queue_url, "AttributeNames": COUNTS });
    let response: Value = queue_source::call(aws, "GetQueueAttributes", &body).await?;
    let number = |name| response["Attributes"][name].as_str().and_then(|number| number.parse().ok()).unwrap_or(0);
    Ok(COUNTS.into_iter().map(number).sum::<u64>())
}

/// The first flows of the table that the control API writes.
async fn flows(aws: &Aws, table: &str) -> Result<Vec<TableFlow>, AwsError> {
    let scan = json!({
        "TableName": table, "FilterExpression": "begins_with(pk, :flow)",
        "ExpressionAttributeValues": { ":flow": { "S": flow_item::KEY_PREFIX } },
    });
    let response = aws.call(Service::DynamoDb, "Scan", &scan, Instant::now() + CALL_TIMEOUT).await?;
    let response: Value = serde_json::from_slice(&response).unwrap_or_default();
    let items = response["Items"].as_array().into_iter().flatten();
    Ok(items.filter_map(table_flow).take(MAX_ROWS).collect())
}

fn table_flow(item: &Value) -> Option<TableFlow> {
    let id = item["pk"]["S"].as_str()?.strip_prefix(flow_item::KEY_PREFIX)?.to_owned();
    let attributes: Attributes = serde_json::from_value(item.clone()).ok()?;
    Some(match FlowItem::read(&attributes) {
        Ok(FlowItem { kind, hub, enabled, .. }) => TableFlow { id, kind, hub, state: flow_item::state(enabled) },
        Err(_) => TableFlow { id, kind: String::new(), hub: String::new(), state: "unreadable" },
    })
}
