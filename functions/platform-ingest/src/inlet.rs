//! One request to a streaming inlet, and what its answer says of each record. Repeats are the caller's.
//!
//! <https://experienceleague.adobe.com/docs/experience-platform/ingestion/tutorials/streaming-multiple-messages.html>

use std::time::Duration;

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::value::RawValue;
use shared::Rejection;
use shared::answer::Cause;
use shared::json;
use shared::parts::Parts;
use shared::settings::SettingsError;
use tokio::time::{Instant, timeout_at};

use crate::kafka_event::Record;
use crate::settings::{Shape, Target};
use crate::token::Tokens;

/// The service takes 1 MB per request.
pub const MAX_BYTES: usize = 1_000_000;
const BATCH: (&[u8], &[u8]) = (b"{\"messages\":[", b"]}");
/// After this an attempt is given up if more time is left.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// As much of an answer as is looked at, in bytes: a thousand elements with their messages.
const MAX_ANSWER: usize = 4_000_000;
const FLOW_ID: HeaderName = HeaderName::from_static("x-adobe-flow-id");
const SANDBOX: HeaderName = HeaderName::from_static("x-sandbox-name");

/// An inlet and the way in.
pub struct Inlet {
    http: reqwest::Client,
    shape: Shape,
    headers: HeaderMap,
    tokens: Option<Tokens>,
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
    /// Not before an operator has mended something.
    Stop(Cause),
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
}

impl Inlet {
    pub async fn open(parts: &Parts, target: Target, deadline: Instant) -> Result<Self, SettingsError> {
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
            Some(ims) => Some(Tokens::open(parts, ims, deadline).await?),
            None => None,
        };
        Ok(Self { http: parts.http.clone(), shape: target.shape, headers, tokens })
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

    /// Sends `bodies` in one request; more than one only where [`Inlet::most`] allows it. A token that is refused is renewed
    /// once.
    pub async fn post(&self, bodies: &[&[u8]], first: bool, deadline: Instant, tally: &mut Tally) -> Answer {
        // A pooled connection may have died unnoticed: the first attempt leaves time for another.
        let left = deadline.saturating_duration_since(Instant::now()).min(ATTEMPT_TIMEOUT);
        let bound = Instant::now() + if first { left.mul_f64(2.0 / 3.0) } else { left };
        let (url, body) = self.request(bodies);
        let mut renewed = false;
        loop {
            let (mut headers, mut generation) = (self.headers.clone(), 0);
            if let Some(tokens) = &self.tokens {
                let token = match tokens.token(bound).await {
                    Ok(token) => token,
                    Err(cause) => {
                        tally.problem = Some(format!("no token: {}", cause.word()));
                        return match cause {
                            Cause::Unauthorized | Cause::Unexpected => Answer::Stop(Cause::Unauthorized),
                            cause => Answer::Again(Again { cause, wait: None, may_be_the_records: false }),
                        };
                    }
                };
                let Ok(mut bearer) = HeaderValue::from_str(&format!("Bearer {}", token.text.expose_secret())) else {
                    tally.problem = Some("the token fits no header".to_owned());
                    return Answer::Stop(Cause::Unauthorized);
                };
                bearer.set_sensitive(true);
                headers.insert(AUTHORIZATION, bearer);
                generation = token.generation;
            }
            tally.requests += 1;
            let sending = self.http.post(url.clone()).headers(headers).body(body.clone()).send();
            let answered = timeout_at(bound, async {
                let response = sending.await?;
                let status = response.status().as_u16();
                let wait = response.headers().get(RETRY_AFTER).and_then(seconds);
                read(response).await.map(|body| (status, wait, body))
            });
            let (status, wait, answer) = match answered.await {
                Ok(Ok(answer)) => answer,
                failed => {
                    let cause = match failed {
                        Ok(Err(error)) if error.is_connect() => Cause::Unreachable,
                        Ok(Err(error)) if !error.is_timeout() => Cause::ConnectionLost,
                        _ => Cause::Timeout,
                    };
                    tally.problem = Some(cause.word().to_owned());
                    return Answer::Again(Again { cause, wait: None, may_be_the_records: false });
                }
            };
            let disposition = classify(status, wait);
            if disposition != Disposition::Taken {
                tally.problem = Some(format!("answered {status}"));
            }
            return match disposition {
                Disposition::Taken => self.verdicts(&answer, bodies.len(), tally),
                Disposition::Refused => Answer::Refused(status),
                Disposition::Again(again) => Answer::Again(again),
                Disposition::Stop(cause) => Answer::Stop(cause),
                Disposition::Renew => match &self.tokens {
                    Some(tokens) if !renewed => {
                        renewed = true;
                        tally.retries += 1;
                        tokens.renew(generation, bound).await;
                        continue;
                    }
                    _ => Answer::Stop(Cause::Unauthorized),
                },
            };
        }
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

    fn verdicts(&self, answer: &[u8], sent: usize, tally: &mut Tally) -> Answer {
        let answer: Taken<'_> = serde_json::from_slice(answer).unwrap_or_default();
        let name = answer.batch_id.or(answer.xaction_id).and_then(|name| json::text(name.get()));
        tally.transaction = name.map(|name| name.chars().take(100).collect()).or(tally.transaction.take());
        let verdicts = match (&self.shape, answer.responses) {
            // What it received counts; it is validated later.
            (Shape::Raw { .. } | Shape::Single { .. }, None) => vec![Verdict::Accepted; sent],
            (_, elements) => read_elements(&elements.unwrap_or_default(), sent),
        };
        let failed = verdicts.iter().filter(|verdict| **verdict != Verdict::Accepted).count();
        if failed > 0 {
            tally.problem = Some(format!("did not take {failed} of {sent}"));
        }
        Answer::Each(verdicts)
    }
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
            None if self.message.is_some() && self.xaction_id.is_none() => without_status(),
            None => Verdict::Accepted,
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

fn seconds(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

async fn read(mut response: reqwest::Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER {
            break;
        }
    }
    Ok(body)
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
            (r#"[{"message":"m"},{}]"#, vec![without_status(), Accepted]),
            (r#"[{"status":"gone"},null]"#, vec![without_status(), Accepted]),
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
