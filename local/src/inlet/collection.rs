//! The endpoints for records: what they check of a request and of each envelope, and their responses.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderName, Request, StatusCode};
use serde_json::{Value, json};

use super::faults::Action;
use super::{MAX_BYTES, Records, Shared, Taken, text};
use crate::server::body::{self, Unread};
use crate::server::no_response;

pub(super) async fn single(state: State<Arc<Shared>>, path: Path<String>, request: Request<Body>) -> Response {
    handle(state, path, request, false).await
}

pub(super) async fn batch(state: State<Arc<Shared>>, path: Path<String>, request: Request<Body>) -> Response {
    handle(state, path, request, true).await
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    Path(inlet): Path<String>,
    request: Request<Body>,
    is_batch: bool,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = match body::read(body, MAX_BYTES).await {
        Err(Unread::BrokenOff) => return no_response(),
        Ok(body) => Some(body),
        Err(Unread::TooLarge) => None,
    };
    let (number, fault) = {
        let mut state = shared.state();
        state.statuses.push(0);
        (state.statuses.len() - 1, state.take_fault(false))
    };
    match &fault {
        Some(Action::Reset) => return no_response(),
        Some(Action::Hang) => std::future::pending().await,
        Some(Action::Delay { ms }) => tokio::time::sleep(Duration::from_millis(*ms)).await,
        _ => {}
    }
    let now = shared.clock.unix_seconds();
    let mut state = shared.state();
    let response = match &fault {
        Some(Action::Status { status, retry_after }) => scripted(*status, *retry_after),
        fault => state
            .admit(&inlet, &parts, body.as_deref(), now)
            .and_then(|json| match is_batch {
                true => state.store_batch(json, number as u64, fault.as_ref()),
                false => state.store_single(json, &parts, number as u64),
            })
            .unwrap_or_else(|refusal| refusal.response()),
    };
    if fault == Some(Action::ResetAfterTaking) {
        return no_response();
    }
    state.statuses[number] = response.status().as_u16();
    response
}

/// Status, title and message of a problem document.
struct Refusal(u16, &'static str, &'static str);

impl Refusal {
    /// The problem document as the service writes it; its `status` is text for an unauthorized request.
    fn response(&self) -> Response {
        let Self(status, title, message) = *self;
        let number = if status == 401 { json!("401") } else { json!(status) };
        let problem = json!({
            "type": "http://ns.adobe.com/adobecloud/problem/data-collection-service/inlet",
            "status": number, "title": title, "report": { "message": message },
        });
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(CONTENT_TYPE, "application/problem+json")], problem.to_string()).into_response()
    }
}

impl Records {
    /// Checks what both endpoints require of a request. Returns its JSON.
    fn admit(&mut self, inlet: &str, parts: &Parts, body: Option<&[u8]>, now: u64) -> Result<Value, Refusal> {
        if inlet != self.config.id {
            return Err(Refusal(404, "Not Found", "There is no such inlet"));
        }
        let token = text(&parts.headers, AUTHORIZATION).strip_prefix("Bearer ").unwrap_or_default();
        if self.config.client.is_some() && !self.tokens.iter().any(|known| known == token) {
            return Err(Refusal(401, "Authorization", "Ims service token is empty or not valid"));
        }
        let Some(body) = body else { return Err(Refusal(413, "Payload Too Large", "The request is over 1 MB")) };
        if !text(&parts.headers, CONTENT_TYPE).starts_with("application/json") {
            return Err(Refusal(415, "Unsupported Media Type", "Expected application/json"));
        }
        if text(&parts.headers, HeaderName::from_static("x-sandbox-name")) != self.config.sandbox {
            return Err(Refusal(400, "Invalid sandbox", "The sandbox is absent or not the inlet's"));
        }
        let json: Option<Value> = serde_json::from_slice(body).ok();
        let messages = json.as_ref().and_then(|json| json["messages"].as_array()).map_or(1, Vec::len);
        if !self.config.unlimited && !self.rate.admits(now, messages) {
            return Err(Refusal(429, "Too Many Requests", "Rate limit exceeded"));
        }
        json.ok_or(Refusal(400, "Invalid JSON", "The request is not valid JSON"))
    }

    fn store_single(&mut self, json: Value, parts: &Parts, request: u64) -> Result<Response, Refusal> {
        let mut query = parts.uri.query().unwrap_or_default().split('&');
        let of_query = query.find_map(|pair| pair.strip_prefix("x-adobe-flow-id="));
        let of_header = parts.headers.get("x-adobe-flow-id").and_then(|value| value.to_str().ok());
        match of_header.or(of_query) {
            Some(flow_id) if flow_id != self.config.flow_id || !json.is_object() || json.get("xdmEntity").is_some() => {
                return Err(Refusal(400, "Invalid message", "Expected one raw object of a known flow"));
            }
            Some(_) => self.store(json, false, request),
            None => self
                .store_envelope(json, request)
                .map_err(|message| Refusal(400, "Invalid XDM Message Format", message))?,
        }
        let response = json!({
            "inletId": self.config.id, "xactionId": format!("1555445493896:8600:{request}"),
            "receivedTimeMs": 1_555_445_493_932_u64, "syncValidation": { "skipped": true },
        });
        Ok(Json(response).into_response())
    }

    fn store_batch(&mut self, mut json: Value, request: u64, fault: Option<&Action>) -> Result<Response, Refusal> {
        let Value::Array(messages) = json["messages"].take() else {
            return Err(Refusal(400, "Invalid batch", "The 'messages' field is mandatory"));
        };
        let (status, places, as_documented) = match fault {
            Some(Action::Elements { status, places, as_documented }) => (*status, places.as_slice(), *as_documented),
            _ => (400, [].as_slice(), false),
        };
        let batch_id = format!("1565638336649:1750:{request}");
        let mut responses = Vec::new();
        for (place, message) in messages.into_iter().enumerate() {
            let id = format!("{batch_id}:{place}");
            let outcome = match places.contains(&place) {
                true => Err((status, "The failure was scripted")),
                false => self.store_envelope(message, request).map_err(|message| (400, message)),
            };
            responses.push(match outcome {
                Ok(()) => json!({ "xactionId": id }),
                Err((status, message)) if as_documented => json!({ "statusCode": status, "message": message }),
                Err((status, message)) => json!({ "xactionId": id, "status": status, "message": message }),
            });
        }
        let response = json!({
            "inletId": self.config.id, "batchId": batch_id, "receivedTimeMs": 1_565_638_336_705_u64,
            "responses": responses,
        });
        Ok((StatusCode::MULTI_STATUS, Json(response)).into_response())
    }

    /// Stores the entity of an envelope.
    fn store_envelope(&mut self, mut envelope: Value, request: u64) -> Result<(), &'static str> {
        self.check_envelope(&envelope)?;
        let entity = envelope["body"]["xdmEntity"].take();
        self.store(entity, true, request);
        Ok(())
    }

    fn store(&mut self, record: Value, xdm: bool, request: u64) {
        let number = self.taken.len() as u64;
        self.taken.push(Taken { number, request, xdm, record });
    }

    fn check_envelope(&self, envelope: &Value) -> Result<(), &'static str> {
        let (header, body) = (&envelope["header"], &envelope["body"]);
        if !header.is_object() {
            return Err("The 'header' field is mandatory. Provide a valid 'header' value and try again.");
        }
        let schema = &header["schemaRef"];
        let is_known = schema["id"] == self.config.schema_id.as_str()
            && schema["contentType"].as_str().is_some_and(|kind| kind.starts_with("application/vnd.adobe.xed"));
        if !is_known || body["xdmMeta"]["schemaRef"] != *schema {
            return Err("Message has unknown xdm format");
        }
        if header["imsOrgId"] != self.config.org_id.as_str() {
            return Err("Message has an absent or wrong ims org in the header");
        }
        if header["datasetId"] != self.config.dataset_id.as_str() || header["flowId"] != self.config.flow_id.as_str() {
            return Err("Message has an unknown dataset or flow in the header");
        }
        let entity = &body["xdmEntity"];
        let lacks_time = entity.get("eventType").is_some() && !entity["timestamp"].is_string();
        if !entity["_id"].is_string() || lacks_time {
            return Err("Message has no valid _id or timestamp");
        }
        Ok(())
    }
}

/// The response of a scripted fault.
pub(super) fn scripted(status: u16, retry_after: Option<u64>) -> Response {
    let mut response = Refusal(status, "Scripted", "The response was scripted").response();
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}
