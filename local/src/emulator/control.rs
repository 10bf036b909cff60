//! The control routes below `/_emulator/`: they show hubs, events and requests, and change faults and keys.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post, put};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::StoredEvent;
use super::faults::Fault;
use super::namespace::Namespace;
use super::store::{Hub, Partition};

pub(super) fn routes() -> Router<Arc<Namespace>> {
    Router::new()
        .route("/_emulator/hubs", get(list_hubs))
        .route("/_emulator/hubs/{hub}/events", get(read_events).delete(delete_events))
        .route("/_emulator/faults", post(add_faults).get(list_faults).merge(delete(remove_faults)))
        .route("/_emulator/keys/{name}", put(put_key))
        .route("/_emulator/requests", get(list_requests))
        .route("/_emulator/{*rest}", any(async || not_found("no such path")))
}

fn not_found(problem: &str) -> Response {
    (StatusCode::NOT_FOUND, Json(json!({ "error": problem }))).into_response()
}

async fn list_hubs(State(namespace): State<Arc<Namespace>>) -> Json<Value> {
    let state = namespace.state();
    let partition = |(id, partition): (usize, &Partition)| {
        json!({
            "id": id,
            "events": partition.events.len(),
            "nextSequenceNumber": partition.next_sequence_number(),
        })
    };
    let hub = |hub: &Hub| {
        let partitions: Vec<Value> = hub.partitions.iter().enumerate().map(partition).collect();
        json!({ "name": hub.name, "partitionCount": partitions.len(), "partitions": partitions })
    };
    Json(json!({ "hubs": state.hubs.iter().map(hub).collect::<Vec<_>>() }))
}

#[derive(Deserialize)]
struct Range {
    partition: Option<u32>,
    /// First sequence number to return.
    #[serde(default)]
    from: u64,
    #[serde(default = "default_limit")]
    limit: usize,
}

fn default_limit() -> usize {
    1_000
}

async fn read_events(
    State(namespace): State<Arc<Namespace>>,
    Path(hub): Path<String>,
    Query(range): Query<Range>,
) -> Response {
    let mut state = namespace.state();
    let Some(hub) = state.hub(&hub) else { return not_found("no such hub") };
    let fits = |event: &&StoredEvent| {
        event.sequence_number >= range.from && range.partition.is_none_or(|partition| partition == event.partition)
    };
    let events = hub.partitions.iter().flat_map(|partition| &partition.events).filter(fits).take(range.limit);
    Json(json!({ "events": events.collect::<Vec<_>>() })).into_response()
}

async fn delete_events(State(namespace): State<Arc<Namespace>>, Path(hub): Path<String>) -> Response {
    match namespace.state().hub(&hub) {
        Some(hub) => {
            hub.clear();
            StatusCode::NO_CONTENT.into_response()
        }
        None => not_found("no such hub"),
    }
}

async fn add_faults(State(namespace): State<Arc<Namespace>>, Json(faults): Json<Value>) -> Response {
    let faults = if faults.is_array() {
        serde_json::from_value::<Vec<Fault>>(faults)
    } else {
        serde_json::from_value::<Fault>(faults).map(|fault| vec![fault])
    };
    match faults {
        Ok(faults) => {
            namespace.state().faults.extend(faults);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, Json(json!({ "error": error.to_string() }))).into_response(),
    }
}

async fn list_faults(State(namespace): State<Arc<Namespace>>) -> Json<Value> {
    Json(json!({ "faults": namespace.state().faults }))
}

async fn remove_faults(State(namespace): State<Arc<Namespace>>) -> StatusCode {
    namespace.state().faults.clear();
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct NewKey {
    key: String,
}

async fn put_key(
    State(namespace): State<Arc<Namespace>>,
    Path(name): Path<String>,
    Json(new): Json<NewKey>,
) -> Response {
    if namespace.set_key(&name, &new.key) { StatusCode::NO_CONTENT.into_response() } else { not_found("no such key") }
}

async fn list_requests(State(namespace): State<Arc<Namespace>>) -> Json<Value> {
    Json(json!({ "requests": namespace.state().requests }))
}
