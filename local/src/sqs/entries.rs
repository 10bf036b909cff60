//! The parameters of calls for one message, and the entries of batches: their limits and what each does to a queue.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::State;
use super::api::{Done, MAX_PER_CALL, queue_name};
use super::digests::{md5_of_attributes, md5_of_body};
use super::problem::Problem;
use super::queue::{Content, MAX_VISIBILITY_SECONDS};

/// Maximum delay of a message in seconds.
const MAX_DELAY_SECONDS: i64 = 900;
/// Maximum number of characters of a message group's name.
const MAX_GROUP: usize = 128;
/// Maximum number of characters of an entry's id.
const MAX_ENTRY_ID: usize = 80;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Batch<T> {
    pub queue_url: String,
    #[serde(default = "Vec::new")]
    pub entries: Vec<T>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct One<T> {
    pub queue_url: String,
    #[serde(flatten)]
    pub entry: T,
}

/// An entry of a batch, or the parameters of a call for one message.
pub(super) trait Entry {
    fn id(&self) -> &str;
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Sending {
    #[serde(default)]
    pub id: String,
    #[serde(default)]
    message_body: String,
    delay_seconds: Option<i64>,
    message_group_id: Option<String>,
    #[serde(default)]
    message_attributes: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Deletion {
    #[serde(default)]
    pub id: String,
    receipt_handle: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Hiding {
    #[serde(default)]
    pub id: String,
    receipt_handle: String,
    visibility_timeout: i64,
}

impl Entry for Sending {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Entry for Deletion {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Entry for Hiding {
    fn id(&self) -> &str {
        &self.id
    }
}

impl State {
    pub(super) fn send(&mut self, queue: &str, entry: &Sending) -> Result<Content, Problem> {
        let now = self.now();
        let queue = self.queue(queue)?;
        if entry.message_body.is_empty() {
            return Err(Problem::missing("MessageBody"));
        }
        let refused = |character: char| matches!(character, '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' | '\u{fffe}' | '\u{ffff}');
        if entry.message_body.contains(refused) {
            return Err(Problem::new(
                "com.amazonaws.sqs#InvalidMessageContents",
                "InvalidMessageContents",
                "Invalid binary character was found in the message body.",
            ));
        }
        if size(entry) > queue.settings.max_message_bytes {
            return Err(Problem::too_large(queue.settings.max_message_bytes));
        }
        if let Some(delay) = entry.delay_seconds
            && !(0..=MAX_DELAY_SECONDS).contains(&delay)
        {
            return Err(Problem::value("DelaySeconds", delay, "DelaySeconds must be >= 0 and <= 900."));
        }
        if let Some(group) = &entry.message_group_id {
            let allowed = |character: char| character.is_ascii_alphanumeric() || character.is_ascii_punctuation();
            if group.is_empty() || group.len() > MAX_GROUP || !group.chars().all(allowed) {
                return Err(Problem::value(
                    "MessageGroupId",
                    group,
                    "MessageGroupId can only include alphanumeric and punctuation characters. 1 to 128 in length.",
                ));
            }
        }
        let delay = entry.delay_seconds.and_then(|delay| u64::try_from(delay).ok());
        let (body, attributes) = (Arc::from(entry.message_body.as_str()), entry.message_attributes.clone());
        Ok(queue.send(body, attributes, entry.message_group_id.as_deref(), delay, now))
    }

    pub(super) fn delete(&mut self, queue: &str, entry: &Deletion) -> Result<Option<Arc<str>>, Problem> {
        let now = self.now();
        let deleted = self.queue(queue)?.delete(&entry.receipt_handle, now);
        let deleted = deleted.map_err(|error| Problem::handle(error, &entry.receipt_handle))?;
        Ok(deleted.map(|content| content.body))
    }

    pub(super) fn hide(&mut self, queue: &str, entry: &Hiding) -> Result<(), Problem> {
        let now = self.now();
        let seconds = u64::try_from(entry.visibility_timeout).ok().filter(|seconds| *seconds <= MAX_VISIBILITY_SECONDS);
        let queue = self.queue(queue)?;
        let seconds = seconds.ok_or_else(|| {
            let limit = "must be between 0 and 43200.";
            Problem::value("VisibilityTimeout", entry.visibility_timeout, limit)
        })?;
        let changed = queue.change_visibility(&entry.receipt_handle, seconds, now);
        changed.map_err(|error| Problem::handle(error, &entry.receipt_handle))
    }

    /// Calls `one` for every entry. One entry's failure does not affect the others.
    pub(super) fn batch<T: Entry>(
        &mut self,
        call: &Batch<T>,
        one: impl Fn(&mut Self, &str, &T) -> Result<(Value, Option<Arc<str>>), Problem>,
    ) -> Result<Done, Problem> {
        let queue = queue_name(&call.queue_url);
        self.queue(queue)?;
        let (mut successful, mut failed, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
        for entry in &call.entries {
            match one(self, queue, entry) {
                Ok((response, body)) => {
                    successful.push(response);
                    bodies.extend(body);
                }
                Err(problem) => failed.push(problem.of_entry(entry.id())),
            }
        }
        let mut response = json!({ "Successful": successful });
        if !failed.is_empty() {
            response["Failed"] = failed.into();
        }
        Ok(Done { response, bodies })
    }
}

/// Checks what is required of the entries of every batch.
pub(super) fn check<T: Entry>(action: &str, entries: &[T]) -> Result<(), Problem> {
    if entries.is_empty() {
        return Err(Problem::new(
            "com.amazonaws.sqs#EmptyBatchRequest",
            "AWS.SimpleQueueService.EmptyBatchRequest",
            format!("There should be at least one {action}MessageBatchRequestEntry in the request."),
        ));
    }
    if entries.len() > MAX_PER_CALL {
        return Err(Problem::new(
            "com.amazonaws.sqs#TooManyEntriesInBatchRequest",
            "AWS.SimpleQueueService.TooManyEntriesInBatchRequest",
            format!("Maximum number of entries per request are 10. You have sent {}.", entries.len()),
        ));
    }
    let allowed = |character: char| character.is_ascii_alphanumeric() || "-_".contains(character);
    let mut ids = HashSet::new();
    for entry in entries {
        let id = entry.id();
        if id.is_empty() || id.len() > MAX_ENTRY_ID || !id.chars().all(allowed) {
            return Err(Problem::new(
                "com.amazonaws.sqs#InvalidBatchEntryId",
                "AWS.SimpleQueueService.InvalidBatchEntryId",
                "A batch entry id can only contain alphanumeric characters, hyphens and underscores. It can be at \
                 most 80 letters long.",
            ));
        }
        if !ids.insert(id) {
            return Err(Problem::new(
                "com.amazonaws.sqs#BatchEntryIdsNotDistinct",
                "AWS.SimpleQueueService.BatchEntryIdsNotDistinct",
                format!("Id {id} repeated."),
            ));
        }
    }
    Ok(())
}

/// Number of bytes of a message that count towards the limits: its body, and name, type and value of each attribute.
pub(super) fn size(entry: &Sending) -> usize {
    let attribute = |(name, attribute): (&String, &Value)| {
        let text = |member: &str| attribute[member].as_str().map_or(0, str::len);
        name.len() + text("DataType") + text("StringValue") + text("BinaryValue")
    };
    entry.message_body.len() + entry.message_attributes.iter().map(attribute).sum::<usize>()
}

/// The response for a stored message.
pub(super) fn sent(content: &Content) -> Value {
    let md5 = content.md5.get_or_init(|| md5_of_body(&content.body));
    let mut response = json!({ "MessageId": content.id, "MD5OfMessageBody": md5 });
    if !content.attributes.is_empty() {
        response["MD5OfMessageAttributes"] = md5_of_attributes(&content.attributes).into();
    }
    response
}
