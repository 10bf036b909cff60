//! The control routes below `/_inlet/`: they show the stored records and change faults.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Fault, Shared};

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/_inlet/records", get(list_records))
        .route("/_inlet/faults", get(list_faults).post(add_fault).delete(remove_faults))
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    from: u64,
}

async fn list_records(State(shared): State<Arc<Shared>>, Query(range): Query<Range>) -> Json<Value> {
    let state = shared.state();
    Json(json!({ "records": state.taken.iter().skip(range.from as usize).collect::<Vec<_>>() }))
}

async fn add_fault(State(shared): State<Arc<Shared>>, Json(fault): Json<Fault>) -> StatusCode {
    shared.state().faults.push_back(fault);
    StatusCode::NO_CONTENT
}

async fn list_faults(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({ "faults": shared.state().faults }))
}

async fn remove_faults(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.state().faults.clear();
    StatusCode::NO_CONTENT
}
