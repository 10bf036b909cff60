//! One request to a streaming inlet, and what its answer says of each record. Repeats are the caller's.
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

/// The service takes 1 MB per request.
pub const MAX_BYTES: usize = 1_000_000;
const BATCH: (&[u8], &[u8]) = (b"{\"messages\":[", b"]}");
/// Maximum size of a response that is read, in bytes: a thousand elements with their messages.
const MAX_ANSWER: usize = 4_000_000;
/// Number of refusals in a row after which they are blamed on the configuration, and not on the records.
const MAX_REFUSALS: u32 = 100;
const FLOW_ID: HeaderName = HeaderName::from_static("x-adobe-flow-id");
const SANDBOX: HeaderName = HeaderName::from_static("x-sandbox-name");

/// An inlet and the way in.
pub struct Inlet {
    http: Http,
    clock: Clock,
    shape: Shape,
    headers: HeaderMap,
    tokens: Option<Tokens>,
    /// Records refused since one was accepted.
    refusals: AtomicU32,
}

/// What an answer says of the records of its request.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Of each by itself, in their order.
    Each(Vec<Verdict>),
    /// One of them is wrong, or all together are too large; the status.
    Refused(u16),
    /// Later, perhaps.
    Again(Again),
    /// Not before an operator has fixed something.
    Stop(Cause),
    /// The inlet refuses the token of this generation.
    TokenRefused(u64),
}

/// What became of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// For good; the status.
    Refused(u16),
    Again(Again),
    /// The answer does not tell.
    Unknown,
}

/// A repeat may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Again {
    pub cause: Cause,
    /// What the inlet asks for.
    pub wait: Option<Duration>,
    /// It may be the record's fault all the same: a 500 is said to come of schema mismatches too.
    pub may_be_the_records: bool,
}

/// What it took, for the log.
#[derive(Debug, Default)]
pub struct Tally {
    pub requests: u32,
    pub retries: u32,
    /// What went wrong last: a status, or why there was none.
    pub problem: Option<String>,
    /// The inlet's name for the last request that it took: its `batchId` or `xactionId`.
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

    /// What is sent of a record whose value is the object `text`.
    pub fn body(&self, text: &str, record: &Record<'_>) -> Result<Vec<u8>, Rejection> {
        let body = match &self.shape {
            Shape::Raw { .. } => text.as_bytes().to_vec(),
            Shape::Single { envelope, .. } | Shape::Batch { envelope, .. } => envelope.wrap(text, record)?,
        };
        let around = if self.most() > 1 { BATCH.0.len() + BATCH.1.len() } else { 0 };
        if body.len() + around > MAX_BYTES {
            return Err(Rejection::too_large(format!("the record makes a request of more than {MAX_BYTES} bytes")));
        }
        Ok(body)
    }

    /// Records in a request.
    pub fn most(&self) -> usize {
        match &self.shape {
            Shape::Raw { .. } | Shape::Single { .. } => 1,
            Shape::Batch { most, .. } => *most,
        }
    }

    /// How many of `bodies` fit a request, at most `most` of them and at least one.
    pub fn fitting<'b>(&self, bodies: impl Iterator<Item = &'b [u8]>, most: usize) -> usize {
        let mut size = BATCH.0.len() + BATCH.1.len();
        let fits = |body: &&[u8]| {
            // With its comma.
            size += body.len() + 1;
            size - 1 <= MAX_BYTES
        };
        bodies.take(most).take_while(fits).count().max(1)
    }

    /// Sends `bodies` in one request; more than one only where [`Inlet::most`] allows it.
    pub async fn post(&self, bodies: &[&[u8]], attempt: Attempt, tally: &mut Tally) -> Answer {
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
        let answered = match self.http.send(request, attempt.via, attempt.bound).await {
            Ok(response) => {
                wait = response.retry_after(self.clock.now());
                let status = response.status();
                response.read(MAX_ANSWER, attempt.bound).await.whole().map(|body| (status, body))
            }
            Err(error) => Err(error),
        };
        let (status, answer) = match answered {
            Ok(answered) => answered,
            Err(error) => {
                let cause = Cause::from(&error);
                tally.problem = Some(error.to_string());
                if let Some(hint) = error.kind.hint(INLET_URL) {
                    tally.hints.insert(cause, hint);
                }
                return Answer::Again(Again { cause, wait: None, may_be_the_records: false });
            }
        };
        let disposition = classify(status, wait);
        if disposition != Disposition::Taken {
            tally.problem = Some(format!("answered {status}"));
        }
        match disposition {
            Disposition::Taken => self.verdicts(status, &answer, bodies.len(), tally),
            Disposition::Refused => Answer::Refused(status),
            Disposition::Again(again) => Answer::Again(again),
            Disposition::Stop(cause) => Answer::Stop(cause),
            Disposition::Renew => generation.map_or(Answer::Stop(Cause::Unauthorized), Answer::TokenRefused),
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

    /// What a response says of each record. Others than the inlet may give a 200, such as a filtering proxy: it counts only
    /// with the members that the documentation shows.
    fn verdicts(&self, status: u16, answer: &[u8], sent: usize, tally: &mut Tally) -> Answer {
        let answer: Taken<'_> = serde_json::from_slice(answer).unwrap_or_default();
        let transaction = identifier(answer.batch_id).or_else(|| identifier(answer.xaction_id));
        let is_the_inlets = identifier(answer.inlet_id).is_some();
        let verdicts = match (&self.shape, answer.responses) {
            (_, Some(elements)) if is_the_inlets => read_elements(&elements, sent),
            // What it received counts; it is validated later.
            (Shape::Raw { .. } | Shape::Single { .. }, None)
                if is_the_inlets && status == 200 && identifier(answer.xaction_id).is_some() =>
            {
                vec![Verdict::Accepted; sent]
            }
            _ => {
                tally.problem = Some(format!("answered {status}, which is not the inlet's own response"));
                return Answer::Stop(Cause::Unexpected);
            }
        };
        tally.transaction = transaction.map(|name| name.chars().take(100).collect()).or(tally.transaction.take());
        let failed = verdicts.iter().filter(|verdict| **verdict != Verdict::Accepted).count();
        if failed > 0 {
            tally.problem = Some(format!("did not take {failed} of {sent}"));
        }
        Answer::Each(verdicts)
    }
}

/// Why nothing is sent without a token.
fn no_token(NoToken { cause, problem, hint }: NoToken, tally: &mut Tally) -> Answer {
    tally.problem = Some(format!("no token: {problem}"));
    if let Some(hint) = hint {
        tally.hints.insert(cause, hint);
    }
    match cause {
        Cause::Unauthorized | Cause::Unexpected => Answer::Stop(cause),
        cause => Answer::Again(Again { cause, wait: None, may_be_the_records: false }),
    }
}

/// A member's text, if it is one and not empty.
fn identifier(member: Option<&RawValue>) -> Option<String> {
    json::text(member?.get()).filter(|text| !text.is_empty()).map(Cow::into_owned)
}

#[derive(Debug, PartialEq, Eq)]
enum Disposition {
    Taken,
    Renew,
    Refused,
    Again(Again),
    Stop(Cause),
}

/// What an answer's status says of the whole request.
fn classify(status: u16, wait: Option<Duration>) -> Disposition {
    match status {
        200 | 207 => Disposition::Taken,
        // The pages disagree on which of them an expired token gets.
        401 | 403 => Disposition::Renew,
        400 | 413 => Disposition::Refused,
        404 | 410 => Disposition::Stop(Cause::NotFound),
        // Of validation in a region that has none.
        501 => Disposition::Stop(Cause::Unexpected),
        status => match again(status, wait) {
            Some(again) => Disposition::Again(again),
            None => Disposition::Stop(Cause::Unexpected),
        },
    }
}

fn again(status: u16, wait: Option<Duration>) -> Option<Again> {
    let cause = match status {
        408 => Cause::Timeout,
        429 => Cause::Throttled,
        500..=599 => Cause::Unavailable,
        _ => return None,
    };
    Some(Again { cause, wait, may_be_the_records: status == 500 })
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Taken<'a> {
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
                Some(status) => match again(status, None) {
                    Some(again) => Verdict::Again(again),
                    None => Verdict::Refused(status),
                },
                None => without_status(),
            },
        }
    }

    /// The place of its record in the request, as the end of its id tells: `…-0`, `…:0`.
    fn place(&self, sent: usize) -> Option<usize> {
        let id = json::text(self.xaction_id?.get())?;
        let (_, place) = id.rsplit_once(['-', ':'])?;
        place.parse().ok().filter(|place| *place < sent)
    }
}

fn without_status() -> Verdict {
    Verdict::Again(Again { cause: Cause::Unexpected, wait: None, may_be_the_records: true })
}

/// A number, or its digits as text: both occur.
fn number(status: &RawValue) -> Option<u16> {
    status.get().trim_matches('"').parse().ok()
}

/// What the elements of an answer say of each of the records that were `sent`. Elements may be fewer than records, in another
/// order, or without an id; what can't be told for sure is not guessed.
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

    fn elements(answer: &str, sent: usize) -> Vec<Verdict> {
        let answer: Taken<'_> = serde_json::from_str(answer).unwrap();
        read_elements(&answer.responses.unwrap(), sent)
    }

    const LATER: Verdict = Verdict::Again(Again { cause: Cause::Unavailable, wait: None, may_be_the_records: false });

    #[test]
    fn published_answers_are_read() {
        let read = |file: &str, sent| elements(file, sent);
        let all_ok = include_str!("../../../tests/fixtures/kafka/answers/batch.response.207.all-ok.json");
        assert_eq!(read(all_ok, 2), [Accepted, Accepted]);
        let by_status = include_str!("../../../tests/fixtures/kafka/answers/batch.response.207.partial.status.json");
        assert_eq!(read(by_status, 2), [Refused(400), Accepted]);
        // Of five records; which of the others were refused is not told.
        let by_code = include_str!("../../../tests/fixtures/kafka/answers/batch.response.207.partial.statusCode.json");
        assert_eq!(read(by_code, 5), [Unknown, Unknown, Unknown, Accepted, Unknown]);
    }

    #[test]
    fn each_element_is_told_by_id_or_position_or_not_at_all() {
        let read = |responses: &str, sent| elements(&format!(r#"{{"responses":{responses}}}"#), sent);
        for (responses, expected) in [
            (r#"[{"xactionId":"x-1"},{"xactionId":"x-0","status":"503"}]"#, vec![LATER, Accepted]),
            (r#"[{"statusCode":503},{"xactionId":"x"}]"#, vec![LATER, Accepted]),
            (r#"[{"statusCode":"422","message":"m"},{"status":200,"message":"m"}]"#, vec![Refused(422), Accepted]),
            (r#"[{"message":"m"},{}]"#, vec![without_status(), Unknown]),
            (r#"[{"status":"gone"},null]"#, vec![without_status(), Unknown]),
            (r#"[{"xactionId":""},{"xactionId":7}]"#, vec![Unknown, Unknown]),
            // Twice the same place, which proves nothing.
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
        let later = |cause| Disposition::Again(Again { cause, wait: None, may_be_the_records: false });
        for (status, expected) in [
            (200, Disposition::Taken),
            (207, Disposition::Taken),
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
        let Disposition::Again(again) = classify(503, wait) else { panic!("a 503 is tried again") };
        assert_eq!(again.wait, wait);
        let Disposition::Again(again) = classify(500, None) else { panic!("a 500 is tried again") };
        assert!(again.may_be_the_records);
    }
}
