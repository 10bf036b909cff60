//! What a running system reports about itself: its endpoints, queues and local credentials.

use std::net::SocketAddr;

use axum::extract::ConnectInfo;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use serde::{Deserialize, Serialize};

/// The response at [`INFO_PATH`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    pub hub_url: String,
    /// Absent without queues.
    pub aws_endpoint: Option<String>,
    pub aws_region: String,
    #[serde(flatten)]
    pub undelivered: Option<UndeliveredQueues>,
    /// A bearer token that the functions accept, if they accept one.
    pub sender_token: Option<String>,
    /// Absent without queues.
    pub control: Option<ControlInfo>,
    pub source: SourceInfo,
    pub kinds: Vec<KindInfo>,
}

/// The ingest into Adobe Experience Platform: a hub, and the inlet that receives its events.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceInfo {
    pub hub: String,
    pub inlet_url: String,
    /// URL of the records that the inlet stored.
    pub records_url: String,
}

/// What a call of the control API needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlInfo {
    /// A bearer token.
    pub token: String,
    /// The organisation that the token names.
    pub organisation: String,
    /// Connection string of the namespace with the hubs.
    pub hub_connection_string: String,
}

/// The queues for what could not be delivered. Absent without queues.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UndeliveredQueues {
    pub parking_queue_url: String,
    pub parking_dead_letters_url: String,
    pub rejected_queue_url: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KindInfo {
    pub name: String,
    pub hub: String,
    /// Absent without queues.
    pub queue_url: Option<String>,
}

/// Path of the information.
pub const INFO_PATH: &str = "/_local/info";

impl Info {
    pub fn queue_url(&self, kind: &str) -> Option<&str> {
        self.kinds.iter().find(|known| known.name == kind)?.queue_url.as_deref()
    }
}

/// The route for `local demo` and `relayctl --local`.
pub(super) fn info_route(info: &Info) -> Router {
    let info = info.clone();
    let respond = async move |ConnectInfo(peer): ConnectInfo<SocketAddr>| -> Response {
        // It contains the senders' token.
        if peer.ip().is_loopback() { Json(info).into_response() } else { StatusCode::NOT_FOUND.into_response() }
    };
    Router::new().route(INFO_PATH, get(respond))
}
