//! The webhook trigger: HTTP API events (payload 2.0) and function URLs, which send the same. Responses are JSON; errors are
//! problem documents (RFC 9457).

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_lambda_events::apigw::ApiGatewayV2httpResponse;
use aws_lambda_events::encodings::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::header::{ALLOW, CONTENT_TYPE, WWW_AUTHENTICATE};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::contract::rejected::Source;
use crate::contract::{log_line, metrics};
use crate::flow::flows::NoFlow;
use crate::flow::{DEFAULT_FLOW, Flow};
use crate::json::{Members, Text};
use crate::kind::{Header, Reason, Rejection};
use crate::pipeline::mapping::{Mapping, is_compressed};
use crate::pipeline::telemetry::{Counts, Line};
use crate::pipeline::{Delivery, Pipeline, Times, Work};
use crate::sender_auth::Presented;
use crate::sender_auth::accepted::Sender;
use crate::trigger::deadline::Invocation;

/// Maximum time after the start of the invocation to send. Some senders close the connection after 2 s, cold start included.
const SENDING: Duration = Duration::from_millis(1200);
/// Maximum time after the start of the invocation to park.
const PARKING: Duration = Duration::from_millis(1700);
/// Part of the function's time that only the response may use.
const RESERVE: Duration = Duration::from_millis(200);

/// Whether the wrong format of HTTP events was reported. It is a setting and concerns every event, so one line is enough.
static PAYLOAD_1_REPORTED: AtomicBool = AtomicBool::new(false);

/// The members of an event that are used. All of them but the path may be absent.
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

/// The response to the sender.
enum Response {
    Handled {
        status: Status,
        messages: usize,
        rejected: usize,
    },
    Problem {
        status: u16,
        detail: String,
    },
    /// The request presents no accepted credential; these are accepted.
    NotAuthenticated {
        challenges: Vec<&'static str>,
    },
}

/// What happened to the messages of a webhook. The words are part of the response.
#[derive(Clone, Copy)]
enum Status {
    Delivered,
    Filtered,
    Parked,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Filtered => "filtered",
            Self::Parked => "parked",
        }
    }
}

impl Response {
    fn problem(status: u16, detail: impl Into<String>) -> Self {
        Self::Problem { status, detail: detail.into() }
    }

    fn rejected(rejection: &Rejection) -> Self {
        Self::problem(rejection.reason.status(), rejection.detail.clone())
    }

    fn status(&self) -> u16 {
        match self {
            Self::Handled { status: Status::Parked, .. } => 202,
            Self::Handled { .. } => 200,
            Self::Problem { status, .. } => *status,
            Self::NotAuthenticated { .. } => 401,
        }
    }
}

/// What the invocation's log line shows beside the response.
#[derive(Default)]
struct Facts {
    flow: Option<String>,
    counts: Counts,
    /// Word for the reason of the response, if it is not a plain success.
    reason: &'static str,
}

/// Handles one request. Every request gets a response; none makes the function fail.
pub async fn handle<O: DeserializeOwned + Default>(
    pipeline: &Pipeline<O>,
    request: &HttpRequest<'_>,
    invocation: Invocation<'_>,
) -> ApiGatewayV2httpResponse {
    let Invocation { request_id, began, time_up, .. } = invocation;
    let parking_ends = (began + PARKING).min(time_up.checked_sub(RESERVE).unwrap_or(began));
    let sending_ends = parking_ends.checked_sub(PARKING - SENDING).unwrap_or(began);
    let times = Times { storing_ends: sending_ends, sending_ends, parking_ends };
    invocation.check_time(sending_ends);
    let mut facts = Facts::default();
    let response = response(pipeline, request, times, &mut facts).await;
    let status = response.status();
    let mut line = Line::new(&pipeline.services, pipeline.kind.name, facts.flow.as_deref(), request_id);
    line.property(log_line::TRIGGER, "webhook");
    line.number("status", status.into());
    if !facts.reason.is_empty() {
        line.property(log_line::REASON, facts.reason);
    }
    line.counts(&facts.counts);
    line.count(metrics::ERRORS_5XX, usize::from(status >= 500));
    line.number(log_line::DURATION_MS, began.elapsed().as_millis());
    line.write(log_line::message::WEBHOOK);
    respond(&response, request_id)
}

async fn response<O: DeserializeOwned + Default>(
    pipeline: &Pipeline<O>,
    request: &HttpRequest<'_>,
    times: Times,
    facts: &mut Facts,
) -> Response {
    let kind = pipeline.kind.name;
    let stage = request.request_context.stage.as_ref().map_or("$default", |stage| stage.0.as_ref());
    let Some(flow_id) = flow_of(&request.raw_path.0, stage, kind) else {
        return Response::problem(404, format!("no such path; expected /{kind} or /{kind}/{{flow}}"));
    };
    if !matches!(request.request_context.http.method.0.as_ref(), "POST" | "PUT") {
        return Response::problem(405, "expected POST or PUT");
    }
    let flow = match pipeline.flows.get(&flow_id, times.sending_ends).await {
        Ok(flow) => flow,
        Err(NoFlow::Unknown) => return Response::problem(404, "no such flow"),
        Err(NoFlow::Unavailable) => {
            return Response::problem(503, "the flow's configuration can't be read now; send the request again");
        }
    };
    facts.flow = Some(flow.id.clone());
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
        now: pipeline.services.hubs.clock.unix_seconds(),
    };
    match flow.credentials.identify(&presented, times.sending_ends).await {
        Sender::Known => {}
        Sender::Unknown => return Response::NotAuthenticated { challenges: flow.credentials.challenges() },
        Sender::CannotTell => {
            return Response::problem(503, "the senders' credentials can't be read now; send the request again");
        }
    }
    if !flow.enabled {
        return Response::problem(409, "the flow is disabled");
    }
    let mapping = match &body {
        Some(body) => flow.map_bytes(&pipeline.kind, body, &headers),
        None => {
            let as_it_came = request.body.as_ref().map_or("", |body| body.0.as_ref()).as_bytes();
            Mapping::rejected(Rejection::unreadable("the body is marked as base64 but is not valid base64"), as_it_came)
        }
    };
    deliver(pipeline, &flow, mapping, body.as_deref(), times, facts).await
}

/// Delivers the events of an accepted request.
async fn deliver<O>(
    pipeline: &Pipeline<O>,
    flow: &Flow<O>,
    mapping: Mapping<'_>,
    body: Option<&[u8]>,
    times: Times,
    facts: &mut Facts,
) -> Response {
    let Facts { counts, reason, .. } = facts;
    (counts.received, counts.filtered) = (mapping.received, mapping.filtered);
    let (messages, unmapped) = (mapping.messages.len(), mapping.rejections.len());
    let no_event_is_valid = unmapped > 0 && unmapped == mapping.received;
    let work = Work { flow_id: &flow.id, flow: Some(flow), mapping, group: None };
    let Delivery { outcomes, reports } = pipeline.deliver(vec![work], Source::Webhook, times).await;
    let outcome = outcomes.into_iter().next().expect("one body has one outcome");
    counts.add(&outcome);
    reports.iter().for_each(|(_, report)| counts.sent(report));

    let rejected = || outcome.unmapped.iter().chain(&outcome.refusals).copied();
    if let Some(rejection) = &outcome.rejection {
        *reason = rejection.reason.word();
        // A retry changes nothing if no event is valid, or without a queue for the invalid ones.
        if no_event_is_valid || pipeline.services.rejects.is_none() {
            counts.add_rejected(rejected());
            return match body.is_some_and(is_compressed) {
                true => Response::problem(415, rejection.detail.clone()),
                false => Response::rejected(rejection),
            };
        }
        if outcome.is_held {
            return Response::problem(
                503,
                "rejected elements can't be stored now, so nothing was sent; send the request again",
            );
        }
    }
    counts.add_rejected(rejected());
    if messages == 0 {
        return Response::Handled { status: Status::Filtered, messages: 0, rejected: unmapped };
    }
    if let Some(cause) = outcome.cause {
        *reason = cause.word();
        pipeline.report_hints(counts);
        if outcome.unsent > 0 {
            let detail = format!("the event hub did not accept the events now ({}); send them again", cause.word());
            return Response::problem(503, detail);
        }
    }
    if let Some(refusal) = &outcome.refusal {
        *reason = refusal.reason.word();
        if outcome.refused == messages || outcome.is_lacking_copies {
            return Response::rejected(refusal);
        }
    }
    let status = if outcome.parked > 0 { Status::Parked } else { Status::Delivered };
    Response::Handled { status, messages: messages - outcome.refused, rejected: rejected().count() }
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

/// The raw bytes of the body; `None` if the flag says base64 and the text is something else.
fn body_of<'r>(request: &'r HttpRequest<'_>) -> Option<Cow<'r, [u8]>> {
    let body = request.body.as_ref().map_or("", |body| body.0.as_ref());
    if request.is_base64_encoded == Some(true) {
        STANDARD.decode(body).ok().map(Cow::Owned)
    } else {
        Some(body.as_bytes().into())
    }
}

fn respond(reply: &Response, request_id: &str) -> ApiGatewayV2httpResponse {
    let status = reply.status();
    let (content_type, body) = match reply {
        Response::Handled { status, messages, rejected } => {
            let status = status.word();
            let rejected = if *rejected > 0 { format!(r#","rejected":{rejected}"#) } else { String::new() };
            ("application/json", format!(r#"{{"status":"{status}","messages":{messages}{rejected}}}"#))
        }
        Response::Problem { status, detail } => ("application/problem+json", problem(*status, detail, request_id)),
        Response::NotAuthenticated { .. } => {
            ("application/problem+json", problem(status, "the request carries no accepted credential", request_id))
        }
    };
    let mut response = ApiGatewayV2httpResponse::default();
    response.status_code = status.into();
    response.headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if status == 405 {
        response.headers.insert(ALLOW, HeaderValue::from_static("POST, PUT"));
    }
    if let Response::NotAuthenticated { challenges } = reply
        && let Ok(challenges) = HeaderValue::from_str(&challenges.join(", "))
        && !challenges.is_empty()
    {
        response.headers.insert(WWW_AUTHENTICATE, challenges);
    }
    response.body = Some(Body::Text(body));
    response
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

/// The response if the function itself failed. A crash would become a 500 of the gateway, which some senders do not retry.
pub fn failed<O>(pipeline: &Pipeline<O>, request_id: &str) -> ApiGatewayV2httpResponse {
    refuse(pipeline, request_id, Reason::Bug, &Response::problem(503, "an error of the relay; send the request again"))
}

/// The response to an HTTP event that can't be read as one, such as one of payload 1.0.
pub fn unreadable<O>(pipeline: &Pipeline<O>, request_id: &str, is_payload_1: bool) -> ApiGatewayV2httpResponse {
    if is_payload_1 && !PAYLOAD_1_REPORTED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            request_id,
            hint = "set PayloadFormatVersion to 2.0; use an HTTP API or a function URL instead of a REST API or a load balancer",
            "the function receives HTTP events in a format that it does not accept; their senders get 400"
        );
    }
    let detail = "the request can't be read; expected an HTTP API event, payload 2.0";
    refuse(pipeline, request_id, Reason::Unreadable, &Response::problem(400, detail))
}

fn refuse<O>(pipeline: &Pipeline<O>, request_id: &str, reason: Reason, reply: &Response) -> ApiGatewayV2httpResponse {
    let status = reply.status();
    let mut line = Line::new(&pipeline.services, pipeline.kind.name, None, request_id);
    line.property(log_line::TRIGGER, "webhook");
    line.number("status", status.into());
    line.property(log_line::REASON, reason.word());
    line.count(metrics::ERRORS_5XX, usize::from(status >= 500));
    line.write(log_line::message::WEBHOOK);
    respond(reply, request_id)
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
