//! Responses and their bodies, which are read to a limit in size and in time.

use reqwest::header::{HeaderMap, RETRY_AFTER};
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, timeout_at};

use super::client::Origin;
use super::error::{TransportError, TransportKind};

/// A response whose body is not read yet.
pub struct Response {
    response: reqwest::Response,
    /// The pool that its connection returns to.
    origin: Option<Origin>,
}

/// The part of a body that was read.
#[derive(Debug)]
pub struct Body {
    pub bytes: Vec<u8>,
    /// The reason why it is not the whole body.
    pub incomplete: Option<TransportError>,
}

impl Response {
    pub(super) fn new(response: reqwest::Response) -> Self {
        Self { response, origin: None }
    }

    pub(super) fn of_pool(self, origin: Origin) -> Self {
        Self { origin: Some(origin), ..self }
    }

    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Whether the headers say that the response has no body, so that its reader need not wait for one.
    pub fn is_empty(&self) -> bool {
        self.response.content_length() == Some(0)
    }

    /// The wait that `Retry-After` asks for, in either form: seconds, or an HTTP date.
    pub fn retry_after(&self, now: SystemTime) -> Option<Duration> {
        let text = self.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
        if let Ok(seconds) = text.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let at = httpdate::parse_http_date(text).ok()?;
        Some(at.duration_since(now).unwrap_or_default())
    }

    /// Reads the body until it ends, has `max` bytes or `bound` is reached. The connection is used again only if the body was
    /// read to its end.
    pub async fn read(mut self, max: usize, bound: Instant) -> Body {
        let expected = self.response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
        let mut bytes = Vec::with_capacity(expected.min(max));
        let error = loop {
            match timeout_at(bound, self.response.chunk()).await {
                Ok(Ok(None)) => return Body { bytes, incomplete: None },
                Ok(Ok(Some(chunk))) => {
                    let left = max - bytes.len();
                    bytes.extend_from_slice(&chunk[..chunk.len().min(left)]);
                    if chunk.len() > left {
                        return Body { bytes, incomplete: Some(TransportError::new(TransportKind::TooLong)) };
                    }
                }
                Ok(Err(error)) => break TransportError::of(error),
                Err(_) => break TransportError::timeout(),
            }
        };
        if let Some(origin) = self.origin {
            origin.drop_connections();
        }
        Body { bytes, incomplete: Some(error) }
    }
}

impl Body {
    /// The bytes of a body that was read to its end.
    pub fn whole(self) -> Result<Vec<u8>, TransportError> {
        match self.incomplete {
            None => Ok(self.bytes),
            Some(error) => Err(error),
        }
    }

    /// The part that was read, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}
