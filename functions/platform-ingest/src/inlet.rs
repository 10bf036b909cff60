//! One request to a streaming inlet, and what the response says about each record. The caller decides on retries.
//!
//! <https://experienceleague.adobe.com/docs/experience-platform/ingestion/tutorials/streaming-multiple-messages.html>

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Request, Url};
use serde::Deserialize;
use serde_json::value::RawValue;
use shared::Rejection;
use shared::clock::Clock;
use shared::environment::SettingsError;
use shared::event_hubs::response::Cause;
use shared::http::{Attempt, Http};
use shared::json;
use shared::pipeline::services::Services;
use tokio::time::Instant;

use crate::kafka_event::Record;
use crate::settings::{INLET_FLOW_ID, INLET_ORG_ID, INLET_SCHEMA_ID, INLET_URL, Shape, Target};
use crate::token::{self, NoToken, Tokens};

/// Maximum size of a request, in bytes: the service accepts 1 MB.
pub const MAX_BYTES: usize = 1_000_000;
const BATCH: (&[u8], &[u8]) = (b"{\"messages\":[", b"]}");
/// Maximum size of a response that is read, in bytes: a thousand elements with their messages.
const MAX_RESPONSE: usize = 4_000_000;
/// Number of refusals in a row after which they are blamed on the configuration, and not on the records.
const MAX_REFUSALS: u32 = 100;
const FLOW_ID: HeaderName = HeaderName::from_static("x-adobe-flow-id");
const SANDBOX: HeaderName = HeaderName::from_static("x-sandbox-name");

/// An inlet: its address, its headers and its tokens.
pub struct Inlet {
    http: Http,
    clock: Clock,
    shape: Shape,
    headers: HeaderMap,
    tokens: Option<Tokens>,
    /// Records refused since one was accepted.
    refusals: AtomicU32,
}

/// The outcome of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The verdict on each record, in their order.
    Each(Vec<Verdict>),
    /// One record is invalid, or all together are too large; the status.
    Refused(u16),
    Retry(Retry),
    /// No record is accepted before an operator has fixed something.
    Stop(Cause),
    /// The inlet refuses the token of this generation.
    TokenRefused(u64),
}

/// What a response says about one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// The record is never accepted; the status.
    Refused(u16),
    Retry(Retry),
    /// The response does not say.
    Unknown,
}

/// A failure after which a retry may succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    pub cause: Cause,
    /// The wait that the inlet asks for.
    pub wait: Option<Duration>,
    /// Whether a record may be at fault all the same: reports say that schema mismatches cause a 500 too.
    pub may_be_the_records: bool,
}

/// The requests of a partition, for the log.
#[derive(Debug, Default)]
pub struct Tally {
    pub requests: u32,
    pub retries: u32,
    /// The last failure: a status, or why the response is missing.
    pub problem: Option<String>,
    /// The inlet's id of the last request that it accepted: its `batchId` or `xactionId`.
    pub transaction: Option<String>,
    /// What an operator should look at, by cause, as far as the failures themselves show it.
    pub hints: BTreeMap<Cause, String>,
}

impl Inlet {
    pub async fn open(services: &Services, target: Target, deadline: Instant) -> Result<Self, SettingsError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let of_flow = match &target.shape {
            Shape::Raw { flow_id, .. } => Some(flow_id),
            Shape::Single { .. } | Shape::Batch { .. } => None,
        };
        for (name, value) in [(FLOW_ID, of_flow), (SANDBOX, target.sandbox.as_ref())] {
            if let Some(value) = value {
                headers.insert(name, HeaderValue::from_str(value).expect("checked with the options"));
            }
        }
        let tokens = match target.ims {
            Some(ims) => Some(token::open(services, ims, deadline).await?),
            None => None,
        };
        let (http, clock) = (services.hubs.http.clone(), services.hubs.clock.clone());
        Ok(Self { http, clock, shape: target.shape, headers, tokens, refusals: AtomicU32::new(0) })
    }

    /// The body to send for a record whose value is the object `text`.
    pub fn body(&self, text: &str, record: &Record<'_>) -> Result<Vec<u8>, Rejection> {
        let body = match &self.shape {
            Shape::Raw { .. } => text.as_bytes().to_vec(),
            Shape::Single { envelope, .. } | Shape::Batch { envelope, .. } => envelope.wrap(text, record)?,
        };
        let around = if self.max_records() > 1 { BATCH.0.len() + BATCH.1.len() } else { 0 };
        if body.len() + around > MAX_BYTES {
            return Err(Rejection::too_large(format!("the record produces a request of more than {MAX_BYTES} bytes")));
        }
        Ok(body)
    }

    /// Maximum number of records of a request.
    pub fn max_records(&self) -> usize {
        match &self.shape {
            Shape::Raw { .. } | Shape::Single { .. } => 1,
            Shape::Batch { most, .. } => *most,
        }
    }

    /// Number of the first `bodies` that fit a request: at most `max_records`, and at least one.
    pub fn fitting<'b>(&self, bodies: impl Iterator<Item = &'b [u8]>, max_records: usize) -> usize {
        let mut size = BATCH.0.len() + BATCH.1.len();
        let fits = |body: &&[u8]| {
            // The body and its comma.
            size += body.len() + 1;
            size - 1 <= MAX_BYTES
        };
        bodies.take(max_records).take_while(fits).count().max(1)
    }

    /// Sends `bodies` in one request; more than one only where [`Inlet::max_records`] allows it.
    pub async fn post(&self, bodies: &[&[u8]], attempt: Attempt, tally: &mut Tally) -> Outcome {
        let (url, body) = self.request(bodies);
        let (mut headers, mut generation) = (self.headers.clone(), None);
        if let Some(tokens) = &self.tokens {
            match tokens.token(attempt.bound).await {
                Ok(held) => {
                    headers.insert(AUTHORIZATION, held.token);
                    generation = Some(held.generation);
                }
                Err(not_issued) => return no_token(not_issued.error, tally),
            }
        }
        tally.requests += 1;
        let mut request = Request::new(Method::POST, url.clone());
        *request.headers_mut() = headers;
        *request.body_mut() = Some(body.into());
        let mut wait = None;
        let sent = match self.http.send(request, attempt.via, attempt.bound).await {
            Ok(response) => {
                wait = response.retry_after(self.clock.now());
                let status = response.status();
                response.read(MAX_RESPONSE, attempt.bound).await.whole().map(|body| (status, body))
            }
            Err(error) => Err(error),
        };
        let (status, body) = match sent {
            Ok(sent) => sent,
            Err(error) => {
                let cause = Cause::from(&error);
                tally.problem = Some(error.to_string());
                if let Some(hint) = error.kind.hint(INLET_URL) {
                    tally.hints.insert(cause, hint);
                }
                return Outcome::Retry(Retry { cause, wait: None, may_be_the_records: false });
            }
        };
        let disposition = classify(status, wait);
        if disposition != Disposition::Success {
            tally.problem = Some(format!("answered {status}"));
        }
        match disposition {
            Disposition::Success => self.verdicts(status, &body, bodies.len(), tally),
            Disposition::Refused => Outcome::Refused(status),
            Disposition::Retry(retry) => Outcome::Retry(retry),
            Disposition::Stop(cause) => Outcome::Stop(cause),
            Disposition::Renew => generation.map_or(Outcome::Stop(Cause::Unauthorized), Outcome::TokenRefused),
        }
    }

    /// Drops the token of a `generation` that the inlet refused.
    pub async fn renew(&self, generation: u64, deadline: Instant) {
        if let Some(tokens) = &self.tokens {
            tokens.renew(generation, deadline).await;
        }
    }

    /// Notes that a record was accepted, so that refusals are about records.
    pub fn accepted(&self) {
        self.refusals.store(0, Ordering::Relaxed);
    }

    /// Notes that a record was refused. Returns whether that may be the record's fault: not if the inlet has refused many
    /// records and accepted none. The record then stays in the hub, until one is accepted.
    pub fn refused(&self, status: u16, tally: &mut Tally) -> bool {
        if status == 413 {
            return true;
        }
        if self.refusals.load(Ordering::Relaxed) < MAX_REFUSALS {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        let hint = format!(
            "the inlet refuses every record ({status}): check {INLET_FLOW_ID}, {INLET_ORG_ID} and {INLET_SCHEMA_ID}"
        );
        tally.hints.insert(Cause::Forbidden, hint);
        false
    }

    fn request(&self, bodies: &[&[u8]]) -> (&Url, Vec<u8>) {
        match &self.shape {
            Shape::Raw { url, .. } | Shape::Single { url, .. } => (url, bodies.concat()),
            Shape::Batch { url, .. } => {
                let size = bodies.iter().map(|body| body.len() + 1).sum::<usize>() + BATCH.0.len() + BATCH.1.len();
                let mut request = Vec::with_capacity(size);
                request.extend_from_slice(BATCH.0);
                for (position, body) in bodies.iter().enumerate() {
                    if position > 0 {
                        request.push(b',');
                    }
                    request.extend_from_slice(body);
                }
                request.extend_from_slice(BATCH.1);
                (url, request)
            }
        }
    }

    /// What a response says about each record. A peer other than the inlet, such as a filtering proxy, may respond with 200:
    /// it counts only with the members that the documentation shows.
    fn verdicts(&self, status: u16, body: &[u8], sent: usize, tally: &mut Tally) -> Outcome {
        let response: SuccessBody<'_> = serde_json::from_slice(body).unwrap_or_default();
        let transaction = identifier(response.batch_id).or_else(|| identifier(response.xaction_id));
        let is_the_inlets = identifier(response.inlet_id).is_some();
        let verdicts = match (&self.shape, response.responses) {
            (_, Some(elements)) if is_the_inlets => read_elements(&elements, sent),
            // Receiving counts as accepting; the inlet validates later.
            (Shape::Raw { .. } | Shape::Single { .. }, None)
                if is_the_inlets && status == 200 && identifier(response.xaction_id).is_some() =>
            {
                vec![Verdict::Accepted; sent]
            }
            _ => {
                tally.problem = Some(format!("answered {status}, which is not the inlet's own response"));
                return Outcome::Stop(Cause::Unexpected);
            }
        };
        tally.transaction = transaction.map(|name| name.chars().take(100).collect()).or(tally.transaction.take());
        let failed = verdicts.iter().filter(|verdict| **verdict != Verdict::Accepted).count();
        if failed > 0 {
            tally.problem = Some(format!("did not accept {failed} of {sent}"));
        }
        Outcome::Each(verdicts)
    }
}

/// The outcome of a request that was not sent, because no token could be fetched.
fn no_token(NoToken { cause, problem, hint }: NoToken, tally: &mut Tally) -> Outcome {
    tally.problem = Some(format!("no token: {problem}"));
    if let Some(hint) = hint {
        tally.hints.insert(cause, hint);
    }
    match cause {
        Cause::Unauthorized | Cause::Unexpected => Outcome::Stop(cause),
        cause => Outcome::Retry(Retry { cause, wait: None, may_be_the_records: false }),
    }
}

/// A member's text; `None` if it is empty or not text.
fn identifier(member: Option<&RawValue>) -> Option<String> {
    json::text(member?.get()).filter(|text| !text.is_empty()).map(Cow::into_owned)
}

#[derive(Debug, PartialEq, Eq)]
enum Disposition {
    Success,
    Renew,
    Refused,
    Retry(Retry),
    Stop(Cause),
}

/// What a response's status says about the whole request.
fn classify(status: u16, wait: Option<Duration>) -> Disposition {
    match status {
        200 | 207 => Disposition::Success,
        // The pages disagree on which of them an expired token gets.
        401 | 403 => Disposition::Renew,
        400 | 413 => Disposition::Refused,
        404 | 410 => Disposition::Stop(Cause::NotFound),
        // Validation was asked for in a region that does not offer it.
        501 => Disposition::Stop(Cause::Unexpected),
        status => match retry(status, wait) {
            Some(retry) => Disposition::Retry(retry),
            None => Disposition::Stop(Cause::Unexpected),
        },
    }
}

fn retry(status: u16, wait: Option<Duration>) -> Option<Retry> {
    let cause = match status {
        408 => Cause::Timeout,
        429 => Cause::Throttled,
        500..=599 => Cause::Unavailable,
        _ => return None,
    };
    Some(Retry { cause, wait, may_be_the_records: status == 500 })
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SuccessBody<'a> {
    #[serde(borrow)]
    inlet_id: Option<&'a RawValue>,
    #[serde(borrow)]
    batch_id: Option<&'a RawValue>,
    #[serde(borrow)]
    xaction_id: Option<&'a RawValue>,
    #[serde(borrow)]
    responses: Option<Vec<&'a RawValue>>,
}

/// An element of a 207: the documentation and Adobe's own client name its members differently.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Element<'a> {
    #[serde(borrow)]
    xaction_id: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    status_code: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
}

impl Element<'_> {
    fn verdict(&self) -> Verdict {
        match self.status.or(self.status_code) {
            None if identifier(self.xaction_id).is_some() => Verdict::Accepted,
            None if self.message.is_some() => without_status(),
            None => Verdict::Unknown,
            Some(status) => match number(status) {
                Some(200..=299) => Verdict::Accepted,
                Some(status) => match retry(status, None) {
                    Some(retry) => Verdict::Retry(retry),
                    None => Verdict::Refused(status),
                },
                None => without_status(),
            },
        }
    }

    /// The place of its record in the request, which is the end of its id: `…-0`, `…:0`.
    fn place(&self, sent: usize) -> Option<usize> {
        let id = json::text(self.xaction_id?.get())?;
        let (_, place) = id.rsplit_once(['-', ':'])?;
        place.parse().ok().filter(|place| *place < sent)
    }
}

fn without_status() -> Verdict {
    Verdict::Retry(Retry { cause: Cause::Unexpected, wait: None, may_be_the_records: true })
}

/// A number, or its digits as text: both occur.
fn number(status: &RawValue) -> Option<u16> {
    status.get().trim_matches('"').parse().ok()
}

/// What the elements of a response say about each of the records that were `sent`. Elements may be fewer than records, in
/// another order, or without an id; an ambiguous one counts for no record.
fn read_elements(elements: &[&RawValue], sent: usize) -> Vec<Verdict> {
    let elements: Vec<Element<'_>> =
        elements.iter().map(|element| serde_json::from_str(element.get()).unwrap_or_default()).collect();
    let mut verdicts = vec![Verdict::Unknown; sent];
    let mut named = vec![0_u32; sent];
    for place in elements.iter().filter_map(|element| element.place(sent)) {
        named[place] += 1;
    }
    for (position, element) in elements.iter().enumerate() {
        let by_id = element.place(sent).filter(|place| named[*place] == 1);
        let by_position = || (elements.len() == sent && named[position] != 1).then_some(position);
        if let Some(place) = by_id.or_else(by_position) {
            verdicts[place] = element.verdict();
        }
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Accepted, Refused, Unknown};

    fn elements(response: &str, sent: usize) -> Vec<Verdict> {
        let response: SuccessBody<'_> = serde_json::from_str(response).unwrap();
        read_elements(&response.responses.unwrap(), sent)
    }

    const LATER: Verdict = Verdict::Retry(Retry { cause: Cause::Unavailable, wait: None, may_be_the_records: false });

    #[test]
    fn published_responses_are_read() {
        let read = |file: &str, sent| elements(file, sent);
        let all_ok = include_str!("../../../tests/fixtures/kafka/answers/batch.response.207.all-ok.json");
        assert_eq!(read(all_ok, 2), [Accepted, Accepted]);
        let by_status = include_str!("../../../tests/fixtures/kafka/answers/batch.response.207.partial.status.json");
        assert_eq!(read(by_status, 2), [Refused(400), Accepted]);
        // Five records; the response does not show which of the others were refused.
        let by_code = include_str!("../../../tests/fixtures/kafka/answers/batch.response.207.partial.statusCode.json");
        assert_eq!(read(by_code, 5), [Unknown, Unknown, Unknown, Accepted, Unknown]);
    }

    #[test]
    fn an_element_counts_for_the_record_that_its_id_or_position_names_or_for_none() {
        let read = |responses: &str, sent| elements(&format!(r#"{{"responses":{responses}}}"#), sent);
        for (responses, expected) in [
            (r#"[{"xactionId":"x-1"},{"xactionId":"x-0","status":"503"}]"#, vec![LATER, Accepted]),
            (r#"[{"statusCode":503},{"xactionId":"x"}]"#, vec![LATER, Accepted]),
            (r#"[{"statusCode":"422","message":"m"},{"status":200,"message":"m"}]"#, vec![Refused(422), Accepted]),
            (r#"[{"message":"m"},{}]"#, vec![without_status(), Unknown]),
            (r#"[{"status":"gone"},null]"#, vec![without_status(), Unknown]),
            (r#"[{"xactionId":""},{"xactionId":7}]"#, vec![Unknown, Unknown]),
            // The same place twice proves nothing.
            (r#"[{"xactionId":"x:1","status":400},{"xactionId":"y:1"}]"#, vec![Refused(400), Accepted]),
            (r#"[{"xactionId":"x:1"},{"xactionId":"y:1"},{"xactionId":"z:0"}]"#, vec![Accepted, Unknown]),
            (r#"[{"xactionId":"x-7"}]"#, vec![Unknown, Unknown]),
            (r#"[{"xactionId":"x-1"}]"#, vec![Unknown, Accepted]),
            (r#"[{"xactionId":"x-1"},{"xactionId":"y"}]"#, vec![Unknown, Accepted]),
            ("[]", vec![Unknown, Unknown]),
        ] {
            assert_eq!(read(responses, 2), expected, "{responses}");
        }
        assert_eq!(elements(r#"{"responses":[{"status":408}]}"#, 1).len(), 1);
    }

    #[test]
    fn each_status_ends_as_documented() {
        let later = |cause| Disposition::Retry(Retry { cause, wait: None, may_be_the_records: false });
        for (status, expected) in [
            (200, Disposition::Success),
            (207, Disposition::Success),
            (202, Disposition::Stop(Cause::Unexpected)),
            (302, Disposition::Stop(Cause::Unexpected)),
            (400, Disposition::Refused),
            (401, Disposition::Renew),
            (403, Disposition::Renew),
            (404, Disposition::Stop(Cause::NotFound)),
            (408, later(Cause::Timeout)),
            (413, Disposition::Refused),
            (415, Disposition::Stop(Cause::Unexpected)),
            (429, later(Cause::Throttled)),
            (501, Disposition::Stop(Cause::Unexpected)),
            (502, later(Cause::Unavailable)),
            (503, later(Cause::Unavailable)),
        ] {
            assert_eq!(classify(status, None), expected, "{status}");
        }
        let wait = Some(Duration::from_secs(7));
        let Disposition::Retry(retry) = classify(503, wait) else { panic!("a 503 is retried") };
        assert_eq!(retry.wait, wait);
        let Disposition::Retry(retry) = classify(500, None) else { panic!("a 500 is retried") };
        assert!(retry.may_be_the_records);
    }
}
