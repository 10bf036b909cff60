//! The webhook trigger: HTTP API events (payload 2.0) and function URLs, which send the same. Answers are JSON; what went
//! wrong is told by problem documents (RFC 9457).

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
use tokio::time::Instant;

use crate::contract::metrics;
use crate::contract::rejected::{RejectedEvent, Source};
use crate::event_hubs::Outcome;
use crate::event_hubs::response::Refusal;
use crate::flow::flows::NoFlow;
use crate::flow::{DEFAULT_FLOW, Flow};
use crate::json::{Members, Text};
use crate::kind::{Header, Reason, Rejection};
use crate::pipeline::Pipeline;
use crate::pipeline::mapping::{Mapping, is_compressed};
use crate::pipeline::telemetry::{Counts, Line};
use crate::sender_auth::Presented;
use crate::sender_auth::senders::Sender;
use crate::trigger::deadline::Invocation;

/// Sending ends this long after the invocation began: some senders hang up after 2 s, cold start included.
const SENDING: Duration = Duration::from_millis(1200);
/// So does parking.
const PARKING: Duration = Duration::from_millis(1700);
/// What is left of the function's time for answering.
const RESERVE: Duration = Duration::from_millis(200);

/// Whether the wrong format of HTTP events was reported: it is a setting, and concerns every event.
static PAYLOAD_1_REPORTED: AtomicBool = AtomicBool::new(false);

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
    Handled {
        status: &'static str,
        messages: usize,
        rejected: usize,
    },
    Problem {
        status: u16,
        detail: String,
    },
    /// No accepted credential, and what is accepted.
    NotAuthenticated {
        challenges: Vec<&'static str>,
    },
}

impl Answer {
    fn problem(status: u16, detail: impl Into<String>) -> Self {
        Self::Problem { status, detail: detail.into() }
    }

    fn status(&self) -> u16 {
        match self {
            Self::Handled { status: "parked", .. } => 202,
            Self::Handled { .. } => 200,
            Self::Problem { status, .. } => *status,
            Self::NotAuthenticated { .. } => 401,
        }
    }

    /// The problem of a body that is rejected as a whole.
    fn rejected_body(rejection: &Rejection, body: Option<&[u8]>) -> Self {
        match body.is_some_and(is_compressed) {
            true => Self::problem(415, rejection.detail.clone()),
            false => Self::rejected(rejection),
        }
    }

    fn rejected(rejection: &Rejection) -> Self {
        Self::problem(rejection.reason.status(), rejection.detail.clone())
    }
}

/// What the invocation's line tells beyond the answer.
#[derive(Default)]
struct Told {
    flow: Option<String>,
    counts: Counts,
    reason: &'static str,
}

/// Handles one request. Every ending is an answer; none is an error of the function.
pub async fn handle<O: DeserializeOwned + Default>(
    pipeline: &Pipeline<O>,
    request: &HttpRequest<'_>,
    invocation: Invocation<'_>,
) -> ApiGatewayV2httpResponse {
    let Invocation { request_id, began, time_up, .. } = invocation;
    let parking_ends = (began + PARKING).min(time_up.checked_sub(RESERVE).unwrap_or(began));
    let times = Times { sending_ends: parking_ends.checked_sub(PARKING - SENDING).unwrap_or(began), parking_ends };
    invocation.check_time(times.sending_ends);
    let mut told = Told::default();
    let answer = answer(pipeline, request, times, &mut told).await;
    let status = answer.status();
    let mut line = Line::new(&pipeline.services, pipeline.kind.name, told.flow.as_deref(), request_id);
    line.property("trigger", "webhook");
    line.number("status", status.into());
    if !told.reason.is_empty() {
        line.property("reason", told.reason);
    }
    line.counts(&told.counts);
    line.count(metrics::ERRORS_5XX, usize::from(status >= 500));
    line.number("duration_ms", began.elapsed().as_millis());
    line.write("webhook answered");
    respond(&answer, request_id)
}

/// Until when to do what.
#[derive(Clone, Copy)]
struct Times {
    sending_ends: Instant,
    parking_ends: Instant,
}

async fn answer<O: DeserializeOwned + Default>(
    pipeline: &Pipeline<O>,
    request: &HttpRequest<'_>,
    times: Times,
    told: &mut Told,
) -> Answer {
    let stage = request.request_context.stage.as_ref().map_or("$default", |stage| stage.0.as_ref());
    let Some(flow_id) = flow_of(&request.raw_path.0, stage, pipeline.kind.name) else {
        return Answer::problem(404, format!("no such path; expected /{0} or /{0}/{{flow}}", pipeline.kind.name));
    };
    if !matches!(request.request_context.http.method.0.as_ref(), "POST" | "PUT") {
        return Answer::problem(405, "expected POST or PUT");
    }
    let flow = match pipeline.flows.get(&flow_id, times.sending_ends).await {
        Ok(flow) => flow,
        Err(NoFlow::Unknown) => return Answer::problem(404, "no such flow"),
        Err(NoFlow::Unavailable) => {
            return Answer::problem(503, "the flow's configuration can't be read now; send it again");
        }
    };
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
    told.flow = Some(flow.id.clone());
    match flow.senders.identify(&presented, times.sending_ends).await {
        Sender::Known => {}
        Sender::Unknown => return Answer::NotAuthenticated { challenges: flow.senders.challenges() },
        Sender::CannotTell => {
            return Answer::problem(503, "the senders' credentials can't be read now; send it again");
        }
    }
    if !flow.enabled {
        return Answer::problem(409, "the flow is disabled");
    }
    let mapping = match &body {
        Some(body) => flow.map_bytes(&pipeline.kind, body, &headers),
        None => {
            let as_it_came = request.body.as_ref().map_or("", |body| body.0.as_ref()).as_bytes();
            Mapping::rejected(Rejection::unreadable("the body is marked as base64, and is not"), as_it_came)
        }
    };
    told.counts.received = mapping.received;
    told.counts.filtered = mapping.filtered;
    let rejected = mapping.rejections.len();
    if let Some(rejection) = mapping.rejection() {
        told.reason = rejection.reason.word();
        let rejects: Vec<RejectedEvent<'_>> = mapping
            .rejects()
            .into_iter()
            .map(|rejected| pipeline.reject(&flow.id, rejected.rejection, Source::Webhook, rejected.body))
            .collect();
        let kept = pipeline.services.keep(&rejects, times.sending_ends).await;
        // All bad; or some, and nowhere to keep them: then nothing is sent.
        let is_final = mapping.rejections.len() == mapping.received || pipeline.services.rejects.is_none();
        // What is to be sent again is counted then.
        if is_final || !kept.contains(&false) {
            for rejected in &mapping.rejections {
                told.counts.reject(rejected.rejection.reason);
            }
        }
        if is_final {
            return Answer::rejected_body(&rejection, body.as_deref());
        }
        if kept.contains(&false) {
            return Answer::problem(
                503,
                "rejected elements can't be kept now, so that nothing was sent; send it again",
            );
        }
    }
    told.counts.notes.clone_from(&mapping.notes);
    if mapping.messages.is_empty() {
        return Answer::Handled { status: "filtered", messages: 0, rejected };
    }
    send(pipeline, &flow, &mapping, times, told).await
}

/// Sends the messages, parks what could not be sent, keeps what the hub refused.
async fn send<O>(
    pipeline: &Pipeline<O>,
    flow: &Flow<O>,
    mapping: &Mapping<'_>,
    times: Times,
    told: &mut Told,
) -> Answer {
    let messages = &mapping.messages;
    let report = flow.hub.send(messages, times.sending_ends).await;
    told.counts.sent(&report);
    let mut rejected = mapping.rejections.len();

    let mut unsent = Vec::new();
    let mut refused_events: Vec<(&str, Refusal)> = Vec::new();
    let mut first_cause = None;
    for ((outcome, message), event) in report.outcomes.iter().zip(messages).zip(&mapping.events) {
        match outcome {
            Outcome::Delivered => {}
            Outcome::Unsent(cause) => {
                first_cause.get_or_insert(*cause);
                unsent.push(message);
            }
            // An event that made several messages is kept once.
            Outcome::Refused(_) if refused_events.last().is_some_and(|(last, _)| std::ptr::eq(*last, *event)) => {}
            Outcome::Refused(refusal) => refused_events.push((event, *refusal)),
        }
    }
    if let Some(cause) = first_cause {
        told.reason = cause.word();
        pipeline.tell_operator(&told.counts);
        told.counts.parked =
            pipeline.park(flow, cause, &unsent, times.parking_ends).await.into_iter().filter(|parked| *parked).count();
        // What is unsent must come again, whatever else became of the rest.
        if told.counts.parked < unsent.len() {
            return Answer::problem(
                503,
                format!("the event hub did not take the events now ({}); send them again", cause.word()),
            );
        }
    }
    if let Some((_, refusal)) = refused_events.first() {
        let first = refusal.rejection();
        told.reason = first.reason.word();
        rejected += refused_events.len();
        for (_, refusal) in &refused_events {
            told.counts.reject(refusal.rejection().reason);
        }
        let rejects: Vec<RejectedEvent<'_>> = refused_events
            .iter()
            .map(|(event, refusal)| pipeline.reject(&flow.id, refusal.rejection(), Source::Webhook, event.as_bytes()))
            .collect();
        let kept = pipeline.services.keep(&rejects, times.parking_ends).await;
        let all = messages.len() == report.outcomes.iter().filter(|o| matches!(o, Outcome::Refused(_))).count();
        if all || kept.contains(&false) {
            return Answer::rejected(&first);
        }
    }
    let status = if told.counts.parked > 0 { "parked" } else { "delivered" };
    let refused = report.outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Refused(_))).count();
    Answer::Handled { status, messages: messages.len() - refused, rejected }
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
    let status = answer.status();
    let (content_type, body) = match answer {
        Answer::Handled { status, messages, rejected: 0 } => {
            ("application/json", format!(r#"{{"status":"{status}","messages":{messages}}}"#))
        }
        Answer::Handled { status, messages, rejected } => {
            ("application/json", format!(r#"{{"status":"{status}","messages":{messages},"rejected":{rejected}}}"#))
        }
        Answer::Problem { status, detail } => ("application/problem+json", problem(*status, detail, request_id)),
        Answer::NotAuthenticated { .. } => {
            ("application/problem+json", problem(status, "the request carries no accepted credential", request_id))
        }
    };
    let mut response = ApiGatewayV2httpResponse::default();
    response.status_code = status.into();
    response.headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if status == 405 {
        response.headers.insert(ALLOW, HeaderValue::from_static("POST, PUT"));
    }
    if let Answer::NotAuthenticated { challenges } = answer
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

/// The answer when the function itself failed: never a crash, which a gateway would turn into a 500 that some senders do
/// not repeat.
pub fn failed<O>(pipeline: &Pipeline<O>, request_id: &str) -> ApiGatewayV2httpResponse {
    refuse(
        pipeline,
        request_id,
        Reason::Bug,
        &Answer::problem(503, "the pipeline failed on this request; send it again"),
    )
}

/// The answer to an HTTP event that can't be read as one, such as one of payload 1.0.
pub fn unreadable<O>(pipeline: &Pipeline<O>, request_id: &str, is_payload_1: bool) -> ApiGatewayV2httpResponse {
    if is_payload_1 && !PAYLOAD_1_REPORTED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            request_id,
            hint = "set PayloadFormatVersion to 2.0; use an HTTP API or a function URL instead of a REST API or a load balancer",
            "the function receives HTTP events in a format that it does not accept; their senders get 400"
        );
    }
    let detail = "the request can't be read; expected an HTTP API event, payload 2.0";
    refuse(pipeline, request_id, Reason::Unreadable, &Answer::problem(400, detail))
}

fn refuse<O>(pipeline: &Pipeline<O>, request_id: &str, reason: Reason, answer: &Answer) -> ApiGatewayV2httpResponse {
    let status = answer.status();
    let mut line = Line::new(&pipeline.services, pipeline.kind.name, None, request_id);
    line.property("trigger", "webhook");
    line.number("status", status.into());
    line.property("reason", reason.word());
    line.count(metrics::ERRORS_5XX, usize::from(status >= 500));
    line.write("webhook answered");
    respond(answer, request_id)
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
