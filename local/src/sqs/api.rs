//! The calls of SQS's JSON protocol: what they accept, what they return and how they fail.

use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::entries::{Batch, Deletion, Hiding, One, Sending, check, sent, size};
use super::problem::Problem;
use super::queue::{Queue, Settings};
use super::settings::changed;
use super::{ACCOUNT, State};

/// Maximum number of messages of one call.
pub(super) const MAX_PER_CALL: usize = 10;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct QueueName {
    queue_name: String,
    #[serde(default)]
    attributes: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attributes {
    queue_url: String,
    #[serde(default)]
    attribute_names: Vec<String>,
    #[serde(default)]
    attributes: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Prefix {
    queue_name_prefix: String,
}

/// The outcome of a call: its response, and the bodies of the messages that it stored or deleted.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub response: Value,
    pub bodies: Vec<Arc<str>>,
}

impl From<Value> for Done {
    fn from(response: Value) -> Self {
        Self { response, bodies: Vec::new() }
    }
}

pub(super) fn parse<T: DeserializeOwned>(call: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(call).map_err(|error| {
        let message = format!("The request could not be read: {error}");
        Problem::new("com.amazon.coral.service#SerializationException", "MalformedInput", message)
    })
}

/// Name of a queue by its URL.
pub(super) fn queue_name(url: &str) -> &str {
    url.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

fn queue_url(url: &str, name: &str) -> String {
    format!("{url}/{ACCOUNT}/{name}")
}

impl State {
    /// Handles every call except a receive, which may have to wait.
    pub(super) fn call(&mut self, operation: &str, call: &[u8], url: &str) -> Result<Done, Problem> {
        match operation {
            "CreateQueue" => self.create(&parse(call)?, url),
            "GetQueueUrl" => {
                let QueueName { queue_name, .. } = parse(call)?;
                self.queue(&queue_name)?;
                Ok(json!({ "QueueUrl": queue_url(url, &queue_name) }).into())
            }
            "ListQueues" => {
                let Prefix { queue_name_prefix } = parse(call)?;
                let names = self.queues.keys().filter(|name| name.starts_with(&queue_name_prefix));
                let urls: Vec<String> = names.map(|name| queue_url(url, name)).collect();
                Ok(if urls.is_empty() { json!({}) } else { json!({ "QueueUrls": urls }) }.into())
            }
            "DeleteQueue" => {
                let Attributes { queue_url, .. } = parse(call)?;
                self.queues.remove(queue_name(&queue_url)).ok_or_else(Problem::no_queue)?;
                Ok(json!({}).into())
            }
            "PurgeQueue" => {
                let Attributes { queue_url, .. } = parse(call)?;
                self.queue(queue_name(&queue_url))?.purge();
                Ok(json!({}).into())
            }
            "GetQueueAttributes" => {
                let call: Attributes = parse(call)?;
                self.attributes(queue_name(&call.queue_url), &call.attribute_names)
            }
            "SetQueueAttributes" => {
                let call: Attributes = parse(call)?;
                let queue = self.queue(queue_name(&call.queue_url))?;
                queue.settings = changed(&queue.settings, &call.attributes)?;
                Ok(json!({}).into())
            }
            "SendMessage" => {
                let One { queue_url, entry } = parse(call)?;
                let content = self.send(queue_name(&queue_url), &entry)?;
                Ok(Done { response: sent(&content), bodies: vec![content.body] })
            }
            "SendMessageBatch" => {
                let call: Batch<Sending> = parse(call)?;
                let bytes = call.entries.iter().map(size).sum::<usize>();
                let limit = self.max_batch_bytes;
                check("Send", &call.entries)?;
                if bytes > limit {
                    return Err(Problem::new(
                        "com.amazonaws.sqs#BatchRequestTooLong",
                        "AWS.SimpleQueueService.BatchRequestTooLong",
                        format!("Batch requests cannot be longer than {limit} bytes. You have sent {bytes} bytes."),
                    ));
                }
                self.batch(&call, |state, queue, entry| {
                    let content = state.send(queue, entry)?;
                    let mut response = sent(&content);
                    response["Id"] = entry.id.as_str().into();
                    Ok((response, Some(content.body)))
                })
            }
            "DeleteMessage" => {
                let One::<Deletion> { queue_url, entry } = parse(call)?;
                let deleted = self.delete(queue_name(&queue_url), &entry)?;
                Ok(Done { response: json!({}), bodies: deleted.into_iter().collect() })
            }
            "DeleteMessageBatch" => {
                let call: Batch<Deletion> = parse(call)?;
                check("Delete", &call.entries)?;
                self.batch(&call, |state, queue, entry| {
                    let deleted = state.delete(queue, entry)?;
                    Ok((json!({ "Id": entry.id }), deleted))
                })
            }
            "ChangeMessageVisibility" => {
                let One::<Hiding> { queue_url, entry } = parse(call)?;
                self.hide(queue_name(&queue_url), &entry)?;
                Ok(json!({}).into())
            }
            "ChangeMessageVisibilityBatch" => {
                let call: Batch<Hiding> = parse(call)?;
                check("ChangeMessageVisibility", &call.entries)?;
                self.batch(&call, |state, queue, entry| {
                    state.hide(queue, entry)?;
                    Ok((json!({ "Id": entry.id }), None))
                })
            }
            _ => Err(Problem::unknown_operation()),
        }
    }

    pub(super) fn queue(&mut self, name: &str) -> Result<&mut Queue, Problem> {
        self.queues.get_mut(name).ok_or_else(Problem::no_queue)
    }

    fn create(&mut self, call: &QueueName, url: &str) -> Result<Done, Problem> {
        let name = call.queue_name.as_str();
        let allowed = |character: char| character.is_ascii_alphanumeric() || "-_".contains(character);
        if name.is_empty() || name.len() > 80 || !name.chars().all(allowed) {
            return Err(Problem::parameter(
                "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length",
            ));
        }
        let settings = changed(&Settings::default(), &call.attributes)?;
        match self.queues.get(name) {
            None => {
                let queue = Queue::new(settings, self.service, self.now());
                self.queues.insert(name.to_owned(), queue);
            }
            Some(queue) if queue.settings == settings || call.attributes.is_empty() => {}
            Some(_) => {
                return Err(Problem::new(
                    "com.amazonaws.sqs#QueueNameExists",
                    "QueueAlreadyExists",
                    "A queue already exists with the same name and a different value for an attribute.",
                ));
            }
        }
        Ok(json!({ "QueueUrl": queue_url(url, name) }).into())
    }
}
