//! SQS events: their records, and the response that returns some of them to the queue.

use std::borrow::Cow;

use aws_lambda_events::sqs::{BatchItemFailure, SqsBatchResponse};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::contract::FLOW_ATTRIBUTE;
use crate::flow::DEFAULT_FLOW;
use crate::json::{Members, Object, Text, text};
use crate::kind::Rejection;

/// The members of a record that are used. Only its id must be readable, so that its failure can be reported.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "B: Deserialize<'de>"))]
pub struct Record<'a, B = Body<'a>> {
    #[serde(borrow)]
    pub message_id: Text<'a>,
    #[serde(borrow)]
    receipt_handle: Option<&'a RawValue>,
    body: Option<B>,
    #[serde(borrow)]
    message_attributes: Option<&'a RawValue>,
    #[serde(borrow, rename = "eventSourceARN")]
    event_source_arn: Option<&'a RawValue>,
    #[serde(borrow)]
    attributes: Option<&'a RawValue>,
}

/// A record's body.
pub enum Body<'a> {
    Text(Cow<'a, str>),
    /// A value that is not text, or text with half a surrogate pair.
    Odd(&'a RawValue),
}

impl<'a> Body<'a> {
    fn of(json: &'a RawValue) -> Self {
        text(json.get()).map_or(Self::Odd(json), Self::Text)
    }
}

impl<'a, B> Record<'a, B> {
    fn map_body(self, body: impl Fn(B) -> Body<'a>) -> Record<'a> {
        let Self { message_id, receipt_handle, body: read, message_attributes, event_source_arn, attributes } = self;
        let body = read.map(body);
        Record { message_id, receipt_handle, body, message_attributes, event_source_arn, attributes }
    }
}

/// The id of a record is not readable, so its failure can't be reported: the whole batch has to be redelivered.
#[derive(Debug, thiserror::Error)]
#[error("a record of the batch has no readable messageId")]
pub struct UnreadableRecord;

impl<'a> Record<'a> {
    /// The flow that the record names, or `default` if it names none; `None` if the name is not readable.
    pub fn flow(&self) -> Option<Cow<'a, str>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Attribute<'a> {
            #[serde(borrow)]
            string_value: Text<'a>,
        }
        let attributes = match self.message_attributes {
            None => return Some(DEFAULT_FLOW.into()),
            Some(attributes) if attributes.get() == "{}" => return Some(DEFAULT_FLOW.into()),
            Some(attributes) => serde_json::from_str::<Members<'a>>(attributes.get()).ok()?,
        };
        match member(&attributes, FLOW_ATTRIBUTE) {
            None => Some(DEFAULT_FLOW.into()),
            Some(flow) => serde_json::from_str::<Attribute<'a>>(flow.get()).ok().map(|flow| flow.string_value.0),
        }
    }

    pub fn body(&self) -> Result<&str, Rejection> {
        match &self.body {
            None => Ok(""),
            Some(Body::Text(text)) => Ok(text),
            Some(Body::Odd(_)) => Err(Rejection::unreadable("the record's body is not text")),
        }
    }

    /// The bytes of the body; of a body that is not text, those of its JSON.
    pub fn raw_body(&self) -> &[u8] {
        match &self.body {
            None => &[],
            Some(Body::Text(text)) => text.as_bytes(),
            Some(Body::Odd(json)) => json.get().as_bytes(),
        }
    }

    /// Handle to extend its visibility timeout with; empty if it has none.
    pub fn receipt_handle(&self) -> Cow<'a, str> {
        self.receipt_handle.and_then(|handle| text(handle.get())).unwrap_or_default()
    }

    /// Number of times that it was received, including this one.
    pub fn receive_count(&self) -> u32 {
        self.number("ApproximateReceiveCount").and_then(|count| count.try_into().ok()).unwrap_or(1)
    }

    /// Time at which it was sent, in milliseconds since 1970.
    pub fn sent_at(&self) -> Option<u64> {
        self.number("SentTimestamp")
    }

    fn number(&self, attribute: &str) -> Option<u64> {
        let attributes: Members<'_> = serde_json::from_str(self.attributes?.get()).ok()?;
        text(member(&attributes, attribute)?.get())?.parse().ok()
    }

    /// Whether it was received before: what was handled then is a duplicate now. The usual case is decided without parsing.
    pub fn came_before(&self) -> bool {
        self.attributes.is_some_and(|attributes| !attributes.get().contains(r#""ApproximateReceiveCount":"1""#))
            && self.receive_count() > 1
    }

    /// The group within which a FIFO queue promises order.
    pub fn fifo_group(&self) -> Option<String> {
        if !self.event_source_arn?.get().ends_with(".fifo\"") {
            return None;
        }
        self.group()
    }

    /// The message group, if it has one.
    pub fn group(&self) -> Option<String> {
        let attributes: Members<'_> = serde_json::from_str(self.attributes?.get()).ok()?;
        Some(text(member(&attributes, "MessageGroupId")?.get()).unwrap_or_default().into_owned())
    }
}

fn member<'a>(members: &Members<'a>, name: &str) -> Option<&'a RawValue> {
    members.0.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
}

/// The records of an event, if it is a batch of them.
pub fn records(event: &str) -> Option<Result<Vec<Record<'_>>, UnreadableRecord>> {
    #[derive(Deserialize)]
    struct QueueEvent<T> {
        #[serde(rename = "Records")]
        records: Vec<T>,
    }
    fn read<'a, T: Deserialize<'a>>(event: &'a str) -> Option<Vec<T>> {
        serde_json::from_str::<Object<QueueEvent<T>>>(event).ok().map(|Object(event)| event.records)
    }
    // One pass over the bodies, unless one of them is odd.
    let records: Option<Vec<Record<'_>>> = match read::<Record<'_, Text<'_>>>(event) {
        Some(records) => Some(records.into_iter().map(|record| record.map_body(|body| Body::Text(body.0))).collect()),
        None => read::<Record<'_, &RawValue>>(event)
            .map(|records| records.into_iter().map(|record| record.map_body(Body::of)).collect()),
    };
    match records {
        Some(records) if records.iter().all(|record| !record.message_id.0.is_empty()) => Some(Ok(records)),
        Some(_) => Some(Err(UnreadableRecord)),
        None => read::<IgnoredAny>(event).map(|_| Err(UnreadableRecord)),
    }
}

/// Whether the start of an event looks like a batch.
pub fn begins_like_a_batch(event: &str) -> bool {
    let inside = event.trim_ascii_start().strip_prefix('{').unwrap_or_default();
    inside.trim_ascii_start().starts_with("\"Records\"")
}

/// The response after which exactly these records are received again.
pub fn retried<'r>(ids: impl Iterator<Item = &'r str>) -> SqsBatchResponse {
    let mut response = SqsBatchResponse::default();
    response.batch_item_failures = ids
        .map(|id| {
            let mut failure = BatchItemFailure::default();
            failure.item_identifier = id.to_owned();
            failure
        })
        .collect();
    response
}
