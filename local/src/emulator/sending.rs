//! Send requests: which hub and partition a path means, and what a request gets.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode};
use percent_encoding::percent_decode_str;
use tokio::time::Instant;

use super::authorization::{self, Claim, Operation};
use super::faults::{Action, default_detail};
use super::incoming::{self, Incoming};
use super::namespace::{Namespace, StoredRequest};
use super::responses::Refusal;
use super::store::Target;
use crate::faults::Moment;
use crate::server::body::{self, Unread};
use crate::server::{Peer, no_response};

/// What the path of a send request names.
struct Sending<'a> {
    hub: &'a str,
    /// Without the leading slash.
    path: &'a str,
    target: Target<'a>,
}

impl<'a> Sending<'a> {
    fn parse(path: &'a str) -> Result<Self, Refusal> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let segments: Vec<&str> = path.split('/').collect();
        let (hub, target) = match segments[..] {
            [hub, "messages"] => (hub, Target::Any),
            // A partition id that is not a number exists in no hub.
            [hub, "partitions", id, "messages"] => (hub, Target::Partition(id.parse().unwrap_or(u32::MAX))),
            [hub, "publishers", id, "messages"] if !id.is_empty() => (hub, Target::Publisher(id)),
            [.., "messages", ""] => {
                return Err(Refusal::new(400, "40000: The request is malformed: a slash after `messages`."));
            }
            _ => return Err(Refusal::not_found()),
        };
        Ok(Self { hub, path, target })
    }
}

/// Handles a send request.
pub(super) async fn send(State(namespace): State<Arc<Namespace>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let path = percent_decode_str(parts.uri.path()).decode_utf8_lossy().into_owned();
    if parts.method != Method::POST {
        return namespace.error(&Refusal::not_found(), &parts, "");
    }
    // Twice the limit, so that a request slightly above it is read, and gets the response that names both sizes.
    let body = match body::read(body, 2 * namespace.max_bytes).await {
        Err(Unread::BrokenOff) => return no_response(),
        Ok(body) => Ok(body),
        Err(Unread::TooLarge) => Err(Refusal::new(413, "The request is too large.")),
    };
    let request = match Sending::parse(&path) {
        Ok(request) => request,
        Err(refusal) => return namespace.error(&refusal, &parts, ""),
    };
    let size = body.as_ref().map_or(0, Bytes::len);
    let events = body.and_then(|body| incoming::read(&parts.headers, &body));
    let events_in_it = events.as_ref().map_or(0, Vec::len);
    let (record, fault) = {
        let mut state = namespace.state();
        let record = state.begin(request.hub, &path, events_in_it, namespace.clock.unix_seconds());
        (record, state.take_fault(request.hub))
    };
    namespace.hooks.run(request.hub, Moment::Arrived).await;
    let reset_after = fault == Some(Action::ResetAfterStore);
    let stored = match fault {
        Some(Action::Reset) => return no_response(),
        Some(Action::Hang) => std::future::pending().await,
        Some(Action::Status { status, retry_after, detail }) => {
            let detail = detail.unwrap_or_else(|| default_detail(status).to_owned());
            let mut response = namespace.error(&Refusal::new(status, detail), &parts, request.hub);
            if let Some(seconds) = retry_after {
                response.headers_mut().insert(RETRY_AFTER, seconds.into());
            }
            namespace.state().end(record, response.status().as_u16());
            return response;
        }
        Some(Action::Delay { ms }) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            events.and_then(|events| namespace.store(&request, &parts, size, events))
        }
        Some(Action::ResetAfterStore) | None => {
            events.and_then(|events| namespace.store(&request, &parts, size, events))
        }
    };
    if stored.is_ok() {
        let confirmed = if reset_after { 0 } else { events_in_it as u64 };
        namespace.confirmed.send_modify(|count| *count += confirmed);
    }
    namespace.hooks.run(request.hub, Moment::Done).await;
    if reset_after {
        return no_response();
    }
    let response = match stored {
        Ok(()) => StatusCode::CREATED.into_response(),
        Err(refusal) => namespace.error(&refusal, &parts, request.hub),
    };
    namespace.state().end(record, response.status().as_u16());
    response
}

impl Namespace {
    /// Checks a request and stores its events.
    fn store(&self, request: &Sending<'_>, parts: &Parts, size: usize, events: Vec<Incoming>) -> Result<(), Refusal> {
        let now = self.clock.unix_seconds();
        let mut state = self.state();
        let header = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let host = header(HOST).or_else(|| parts.uri.authority().map(|authority| authority.as_str()));
        let (host, claim) = (host.unwrap_or_default(), Claim::Send);
        let operation = Operation { hub: request.hub, host, path: request.path, claim, now };
        authorization::check(header(AUTHORIZATION), &state.keys, &operation)?;
        if state.hub(request.hub).is_none() {
            return Err(Refusal::not_found());
        }
        let size = size.max(events.iter().map(Incoming::size).sum());
        if size > self.max_bytes {
            return Err(Refusal::too_large(size, self.max_bytes));
        }
        if let Some(units) = state.throughput_units
            && !state.throughput.admits(units, now, size, events.len())
        {
            return Err(Refusal::new(
                503,
                "The request was terminated because the entity is being throttled. Error code : 50002. \
                 Please wait 4 seconds and try again.",
            ));
        }
        let hub = state.hub(request.hub).ok_or_else(Refusal::not_found)?;
        let Some((partition, sequence_numbers)) = hub.store(&request.target, events, self.clock.now()) else {
            return Err(Refusal::new(400, "40000: The specified partition is invalid for this event hub."));
        };
        let hub = hub.name.clone();
        if let Some(Peer(peer)) = parts.extensions.get().copied() {
            state.stored.push(StoredRequest { peer, at: Instant::now(), hub, partition, sequence_numbers });
        }
        Ok(())
    }
}
