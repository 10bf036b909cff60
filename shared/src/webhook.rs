//! The webhook trigger: HTTP API events (payload 2.0) and function URLs, which send the same. Answers are JSON; what went
//! wrong is told by problem documents (RFC 9457).

use std::borrow::Cow;
use std::time::Duration;

use aws_lambda_events::apigw::ApiGatewayV2httpResponse;
use aws_lambda_events::encodings::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::header::{ALLOW, CONTENT_TYPE};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use crate::answer::{Cause, Refusal};
use crate::event::{Header, Reason, Rejection};
use crate::event_hubs::{Outcome, Report};
use crate::flow::{DEFAULT_FLOW, Mapping};
use crate::json::{Members, Text};
use crate::relay::Relay;
use crate::sender_auth::Presented;

/// Sending ends this long after the invocation began: some senders hang up after 2 s, cold start included.
const SENDING: Duration = Duration::from_millis(1200);
/// What is left of the function's time for answering.
const RESERVE: Duration = Duration::from_millis(500);

/// What of an event is used. Everything beyond the path may be absent.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRequest<'a> {
    #[serde(borrow)]
    raw_path: Text<'a>,
    #[serde(borrow)]
    raw_query_string: Option<Text<'a>>,
    #[serde(borrow)]
    headers: Option<Members<'a, Option<Text<'a>>>>,
    #[serde(borrow)]
    body: Option<Text<'a>>,
    #[serde(default)]
    is_base64_encoded: Option<bool>,
    #[serde(borrow)]
    request_context: RequestContext<'a>,
}

#[derive(Deserialize)]
struct RequestContext<'a> {
    #[serde(borrow)]
    stage: Option<Text<'a>>,
    #[serde(borrow)]
    http: HttpMethod<'a>,
}

#[derive(Deserialize)]
struct HttpMethod<'a> {
    #[serde(borrow)]
    method: Text<'a>,
}

/// What the caller is told.
enum Answer {
    Handled { status: &'static str, messages: usize },
    Problem { status: u16, detail: String },
}

impl Answer {
    fn problem(status: u16, detail: impl Into<String>) -> Self {
        Self::Problem { status, detail: detail.into() }
    }

    fn rejected(rejection: &Rejection) -> Self {
        Self::problem(rejection.reason.status(), rejection.detail.clone())
    }
}

/// What the one log line tells beyond the answer.
#[derive(Default)]
struct Line {
    received: usize,
    filtered: usize,
    rejected: usize,
    reason: &'static str,
    notes: crate::flow::Notes,
    report: Report,
}

/// Handles one request. Every ending is an answer; none is an error of the function. `time_up` is when the function would
/// be stopped.
pub async fn handle<O>(
    relay: &Relay<O>,
    request: &HttpRequest<'_>,
    request_id: &str,
    time_up: Instant,
) -> ApiGatewayV2httpResponse {
    let began = Instant::now();
    let deadline = (began + SENDING).min(time_up.checked_sub(RESERVE).unwrap_or(began));
    let mut line = Line::default();
    let answer = answer(relay, request, deadline, &mut line).await;
    let status = match &answer {
        Answer::Handled { .. } => 200,
        Answer::Problem { status, .. } => *status,
    };
    tracing::info!(
        request_id,
        kind = relay.kind.name,
        trigger = "webhook",
        status,
        reason = line.reason,
        events.received = line.received,
        events.filtered = line.filtered,
        events.rejected = line.rejected,
        messages.delivered = line.report.outcomes.iter().filter(|outcome| **outcome == Outcome::Delivered).count(),
        notes = ?line.notes,
        hub.requests = line.report.requests,
        hub.retries = line.report.retries,
        hub.problem = line.report.problem,
        duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "webhook answered",
    );
    respond(&answer, request_id)
}

async fn answer<O>(relay: &Relay<O>, request: &HttpRequest<'_>, deadline: Instant, line: &mut Line) -> Answer {
    let stage = request.request_context.stage.as_ref().map_or("$default", |stage| stage.0.as_ref());
    let Some(flow_id) = flow_of(&request.raw_path.0, stage, relay.kind.name) else {
        return Answer::problem(404, format!("no such path; expected /{0} or /{0}/{{flow}}", relay.kind.name));
    };
    let Some(flow) = relay.flow(&flow_id) else {
        return Answer::problem(404, "no such flow");
    };
    if !matches!(request.request_context.http.method.0.as_ref(), "POST" | "PUT") {
        return Answer::problem(405, "expected POST or PUT");
    }
    let body = body_of(request);
    let headers: Vec<Header<'_>> = request
        .headers
        .iter()
        .flat_map(|headers| &headers.0)
        .filter_map(|(name, value)| Some((name.clone(), value.as_ref()?.0.clone())))
        .collect();
    let presented = Presented {
        headers: &headers,
        raw_query: request.raw_query_string.as_ref().map_or("", |query| query.0.as_ref()),
        body: body.as_deref(),
        now: relay.clock.unix_seconds(),
    };
    if !flow.sender_auth.accepts(&presented) {
        return Answer::problem(401, "the request carries no accepted credential");
    }
    let mapping = match &body {
        Some(body) => flow.map(&relay.kind, body, &headers),
        None => Mapping::rejected(Rejection::unreadable("the body is marked as base64, and is not")),
    };
    line.received = mapping.received;
    line.filtered = mapping.filtered;
    line.rejected = mapping.rejections.len();
    // Without a place for rejected events, one bad element holds the whole array back, before anything is sent.
    if let Some(rejection) = mapping.rejection() {
        line.reason = rejection.reason.word();
        return Answer::rejected(&rejection);
    }
    line.notes = mapping.notes;
    if mapping.messages.is_empty() {
        return Answer::Handled { status: "filtered", messages: 0 };
    }
    line.report = flow.hub.send(&mapping.messages, deadline).await;
    match worst(&line.report) {
        Outcome::Delivered => Answer::Handled { status: "delivered", messages: mapping.messages.len() },
        Outcome::Unsent(cause) => {
            line.reason = cause.word();
            relay.tell_operator(cause);
            Answer::problem(
                503,
                format!("the event hub did not take the events now ({}); send them again", cause.word()),
            )
        }
        Outcome::Refused(refusal) => {
            let rejection = refused(refusal);
            line.reason = rejection.reason.word();
            Answer::rejected(&rejection)
        }
    }
}

/// The outcome that decides the answer: what is unsent must come again, whatever else became of the rest.
fn worst(report: &Report) -> Outcome {
    let unsent = report.outcomes.iter().find(|outcome| matches!(outcome, Outcome::Unsent(_)));
    let refused = || report.outcomes.iter().find(|outcome| matches!(outcome, Outcome::Refused(_)));
    *unsent.or_else(refused).unwrap_or(&Outcome::Delivered)
}

/// What a hub's refusal of a single message says about its event.
pub fn refused(refusal: Refusal) -> Rejection {
    match refusal {
        Refusal::TooLarge => {
            Rejection { reason: Reason::TooLarge, detail: "the event is larger than the hub takes".into() }
        }
        Refusal::Malformed => Rejection { reason: Reason::Refused, detail: "the event hub refuses the event".into() },
    }
}

/// The flow that a path names: the stage and the kind's own name are stripped, one segment may be left.
fn flow_of(raw_path: &str, stage: &str, kind: &str) -> Option<String> {
    let mut segments = raw_path.split('/').filter(|segment| !segment.is_empty()).peekable();
    if stage != "$default" {
        segments.next_if(|first| *first == stage);
    }
    segments.next_if(|first| *first == kind);
    let flow = segments.next().map(|flow| percent_decode_str(flow).decode_utf8_lossy().into_owned());
    if segments.next().is_some() || flow.as_deref() == Some(kind) {
        return None;
    }
    Some(flow.unwrap_or_else(|| DEFAULT_FLOW.to_owned()))
}

/// The raw bytes of the body; `None` when the flag says base64 and the text is not.
fn body_of<'r>(request: &'r HttpRequest<'_>) -> Option<Cow<'r, [u8]>> {
    let body = request.body.as_ref().map_or("", |body| body.0.as_ref());
    if request.is_base64_encoded == Some(true) {
        STANDARD.decode(body).ok().map(Cow::Owned)
    } else {
        Some(body.as_bytes().into())
    }
}

fn respond(answer: &Answer, request_id: &str) -> ApiGatewayV2httpResponse {
    let (status, content_type, body) = match answer {
        Answer::Handled { status, messages } => {
            (200, "application/json", format!(r#"{{"status":"{status}","messages":{messages}}}"#))
        }
        Answer::Problem { status, detail } => {
            (*status, "application/problem+json", problem(*status, detail, request_id))
        }
    };
    let mut response = ApiGatewayV2httpResponse::default();
    response.status_code = status.into();
    response.headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if status == 405 {
        response.headers.insert(ALLOW, HeaderValue::from_static("POST, PUT"));
    }
    response.body = Some(Body::Text(body));
    response
}

impl<O> Relay<O> {
    /// One ERROR line for what only an operator can mend.
    pub fn tell_operator(&self, cause: Cause) {
        if let Some(hint) = cause.hint() {
            tracing::error!(kind = self.kind.name, reason = cause.word(), hint, "the event hub can't be sent to");
        }
    }
}

/// A problem document (RFC 9457).
fn problem(status: u16, detail: &str, request_id: &str) -> String {
    json!({
        "type": "about:blank",
        "title": http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()),
        "status": status,
        "detail": detail,
        "requestId": request_id,
    })
    .to_string()
}

/// The answer when the function itself failed: never a crash, which a gateway would turn into a 500 that some senders do
/// not repeat.
pub fn failed(request_id: &str) -> ApiGatewayV2httpResponse {
    respond(&Answer::problem(503, "the relay failed on this request; send it again"), request_id)
}

/// The answer to an HTTP event that can't be read as one.
pub fn unreadable(request_id: &str) -> ApiGatewayV2httpResponse {
    tracing::info!(
        request_id,
        trigger = "webhook",
        status = 400,
        reason = Reason::Unreadable.word(),
        "webhook answered"
    );
    respond(&Answer::problem(400, "the request can't be read; expected an HTTP API event, payload 2.0"), request_id)
}

#[cfg(test)]
mod tests {
    use super::flow_of;

    #[test]
    fn paths_name_flows() {
        for (path, stage, flow) in [
            ("/kind", "$default", Some("default")),
            ("/", "$default", Some("default")),
            ("", "$default", Some("default")),
            ("/kind/", "$default", Some("default")),
            ("/kind/default", "$default", Some("default")),
            ("/kind/crm", "$default", Some("crm")),
            ("/crm", "$default", Some("crm")),
            ("/prod/kind/crm", "prod", Some("crm")),
            ("/prod/crm", "prod", Some("crm")),
            ("/kind/a%20b", "prod", Some("a b")),
            ("/kind/kind", "$default", None),
            ("/kind/crm/more", "$default", None),
            ("/other/crm", "$default", None),
        ] {
            assert_eq!(flow_of(path, stage, "kind").as_deref(), flow, "{path} at {stage}");
        }
    }
}
