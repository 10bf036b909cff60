//! The calls of SQS's JSON protocol: what they accept, what they return and how they fail.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;

use md5::{Digest, Md5};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::queue::{Content, HandleError, MAX_VISIBILITY_SECONDS, Queue, Received, Redrive, Settings};
use super::{ACCOUNT, REGION, State};

/// Maximum delay of a message in seconds.
const MAX_DELAY_SECONDS: i64 = 900;
/// Maximum time that a receive waits for a message, in seconds.
pub(super) const MAX_WAIT_SECONDS: i64 = 20;
/// Maximum number of messages of one call.
pub(super) const MAX_PER_CALL: usize = 10;
/// Maximum number of characters of a message group's name.
const MAX_GROUP: usize = 128;
/// Maximum number of characters of an entry's id.
const MAX_ENTRY_ID: usize = 80;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub status: u16,
    /// The shape that `__type` names.
    pub shape: &'static str,
    /// The code of the older query protocol, which SDKs show.
    pub code: &'static str,
    pub message: String,
}

impl Problem {
    fn new(shape: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { status: 400, shape, code, message: message.into() }
    }

    pub fn parameter(message: impl Into<String>) -> Self {
        Self::new("com.amazonaws.sqs#InvalidParameterValue", "InvalidParameterValue", message)
    }

    fn value(name: &str, value: impl std::fmt::Display, reason: &str) -> Self {
        Self::parameter(format!("Value {value} for parameter {name} is invalid. Reason: {reason}"))
    }

    fn missing(name: &str) -> Self {
        let message = format!("The request must contain the parameter {name}.");
        Self::new("com.amazonaws.sqs#MissingParameter", "MissingParameter", message)
    }

    fn no_queue() -> Self {
        Self::new(
            "com.amazonaws.sqs#QueueDoesNotExist",
            "AWS.SimpleQueueService.NonExistentQueue",
            "The specified queue does not exist.",
        )
    }

    pub fn unknown_operation() -> Self {
        Self::new("com.amazon.coral.service#UnknownOperationException", "InvalidAction", "Unknown operation.")
    }

    pub fn over_limit() -> Self {
        let message = "Too many messages in flight. Delete messages, or wait until they are visible.";
        Self { status: 403, ..Self::new("com.amazonaws.sqs#OverLimit", "OverLimit", message) }
    }

    fn too_large(limit: usize) -> Self {
        let message =
            format!("One or more parameters are invalid. Reason: Message must be shorter than {limit} bytes.");
        Self::parameter(message)
    }

    fn handle(error: HandleError, handle: &str) -> Self {
        match error {
            HandleError::Invalid => Self::new(
                "com.amazonaws.sqs#ReceiptHandleIsInvalid",
                "ReceiptHandleIsInvalid",
                format!("The input receipt handle \"{handle}\" is not a valid receipt handle."),
            ),
            HandleError::Gone => Self::value(
                "ReceiptHandle",
                handle,
                "Message does not exist or is not available for visibility timeout change.",
            ),
            HandleError::NotInFlight => Self::new(
                "com.amazonaws.sqs#MessageNotInflight",
                "AWS.SimpleQueueService.MessageNotInflight",
                "The message referred to is not in flight.",
            ),
        }
    }

    /// The same problem for one entry of a batch.
    fn of_entry(self, id: &str) -> Value {
        json!({ "Id": id, "SenderFault": true, "Code": self.code, "Message": self.message })
    }
}

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

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Batch<T> {
    queue_url: String,
    #[serde(default = "Vec::new")]
    entries: Vec<T>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct One<T> {
    queue_url: String,
    #[serde(flatten)]
    entry: T,
}

/// An entry of a batch, or the parameters of a call for one message.
trait Entry {
    fn id(&self) -> &str;
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Sending {
    #[serde(default)]
    id: String,
    #[serde(default)]
    message_body: String,
    delay_seconds: Option<i64>,
    message_group_id: Option<String>,
    #[serde(default)]
    message_attributes: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Deletion {
    #[serde(default)]
    id: String,
    receipt_handle: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Hiding {
    #[serde(default)]
    id: String,
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

/// The parameters of a receive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Receiving {
    pub queue_url: String,
    max_number_of_messages: Option<i64>,
    wait_time_seconds: Option<i64>,
    visibility_timeout: Option<i64>,
    #[serde(default)]
    attribute_names: Vec<String>,
    #[serde(default)]
    message_system_attribute_names: Vec<String>,
    #[serde(default)]
    message_attribute_names: Vec<String>,
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
        let message = format!("The request can't be read: {error}");
        Problem::new("com.amazon.coral.service#SerializationException", "MalformedInput", message)
    })
}

/// Name of a queue by its URL.
pub(super) fn queue_name(url: &str) -> &str {
    url.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

fn arn(name: &str) -> String {
    format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{name}")
}

impl State {
    /// Does every call except a receive, which may have to wait.
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

    fn attributes(&mut self, name: &str, wanted: &[String]) -> Result<Done, Problem> {
        let now = self.now();
        let queue = self.queue(name)?;
        let (depth, settings, created) = (queue.depth(now), &queue.settings, (queue.created / 1000).to_string());
        let mut known = vec![
            ("ApproximateNumberOfMessages", depth.visible.to_string()),
            ("ApproximateNumberOfMessagesDelayed", depth.delayed.to_string()),
            ("ApproximateNumberOfMessagesNotVisible", depth.in_flight.to_string()),
            ("CreatedTimestamp", created.clone()),
            ("DelaySeconds", settings.delay_seconds.to_string()),
            ("LastModifiedTimestamp", created),
            ("MaximumMessageSize", settings.max_message_bytes.to_string()),
            ("MessageRetentionPeriod", settings.retention_seconds.to_string()),
            ("QueueArn", arn(name)),
            ("ReceiveMessageWaitTimeSeconds", settings.wait_seconds.to_string()),
            ("VisibilityTimeout", settings.visibility_seconds.to_string()),
        ];
        if let Some(Redrive { target, max_receives }) = &settings.redrive {
            let policy = json!({ "deadLetterTargetArn": target, "maxReceiveCount": max_receives });
            known.push(("RedrivePolicy", policy.to_string()));
        }
        let is_known = |name: &str| known.iter().any(|(known, _)| *known == name);
        let others = ["All", "RedrivePolicy", "Policy"];
        if let Some(unknown) = wanted.iter().find(|name| !is_known(name) && !others.contains(&name.as_str())) {
            let message = format!("Unknown Attribute {unknown}.");
            return Err(Problem::new("com.amazonaws.sqs#InvalidAttributeName", "InvalidAttributeName", message));
        }
        let all = wanted.iter().any(|name| name == "All");
        let told = known.into_iter().filter(|(name, _)| all || wanted.iter().any(|wanted| wanted == name));
        let attributes: Map<String, Value> = told.map(|(name, value)| (name.to_owned(), value.into())).collect();
        Ok(if attributes.is_empty() { json!({}) } else { json!({ "Attributes": attributes }) }.into())
    }

    fn send(&mut self, queue: &str, entry: &Sending) -> Result<Content, Problem> {
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

    fn delete(&mut self, queue: &str, entry: &Deletion) -> Result<Option<Arc<str>>, Problem> {
        let now = self.now();
        let deleted = self.queue(queue)?.delete(&entry.receipt_handle, now);
        let deleted = deleted.map_err(|error| Problem::handle(error, &entry.receipt_handle))?;
        Ok(deleted.map(|content| content.body))
    }

    fn hide(&mut self, queue: &str, entry: &Hiding) -> Result<(), Problem> {
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

    /// Does `one` for every entry. Entries fail by themselves.
    fn batch<T: Entry>(
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

    /// One look at a queue for a receive. `None`: nothing can be received now.
    pub(super) fn receive(&mut self, call: &Checked, twice: bool) -> Result<Option<Vec<Received>>, Problem> {
        let now = self.now();
        let queue = self.queue(&call.queue)?;
        let receipt = queue.receive(call.most, call.visibility, twice, now);
        let target = queue.settings.redrive.as_ref().map(|redrive| queue_name_of_arn(&redrive.target).to_owned());
        for content in receipt.dead {
            if let Some(dead_letters) = target.as_ref().and_then(|name| self.queues.get_mut(name)) {
                dead_letters.insert(content, 0, now);
            }
        }
        match receipt.messages {
            messages if !messages.is_empty() => Ok(Some(messages)),
            // A call with long polling does not fail; it receives nothing.
            _ if receipt.over_limit && call.wait_seconds == 0 => Err(Problem::over_limit()),
            _ => Ok(None),
        }
    }

    pub(super) fn check(&mut self, call: &Receiving) -> Result<Checked, Problem> {
        let name = queue_name(&call.queue_url);
        let queue = self.queue(name)?;
        let most = call.max_number_of_messages.unwrap_or(1);
        if !(1..=10).contains(&most) {
            return Err(Problem::value("MaxNumberOfMessages", most, "Must be between 1 and 10, if provided."));
        }
        let wait = call.wait_time_seconds.unwrap_or_else(|| i64::try_from(queue.settings.wait_seconds).unwrap_or(0));
        if !(0..=MAX_WAIT_SECONDS).contains(&wait) {
            return Err(Problem::value("WaitTimeSeconds", wait, "Must be >= 0 and <= 20, if provided."));
        }
        let visibility = call.visibility_timeout.map(|seconds| {
            u64::try_from(seconds)
                .ok()
                .filter(|seconds| *seconds <= MAX_VISIBILITY_SECONDS)
                .ok_or_else(|| Problem::value("VisibilityTimeout", seconds, "must be between 0 and 43200."))
        });
        let mut system_attributes = call.attribute_names.clone();
        system_attributes.extend(call.message_system_attribute_names.iter().cloned());
        Ok(Checked {
            queue: name.to_owned(),
            most: usize::try_from(most).unwrap_or(MAX_PER_CALL),
            wait_seconds: u64::try_from(wait).unwrap_or(0),
            visibility: visibility.transpose()?,
            system_attributes,
            message_attributes: call.message_attribute_names.clone(),
        })
    }
}

/// A receive whose parameters are valid.
#[derive(Debug)]
pub(super) struct Checked {
    pub queue: String,
    most: usize,
    pub wait_seconds: u64,
    visibility: Option<u64>,
    system_attributes: Vec<String>,
    message_attributes: Vec<String>,
}

impl Checked {
    /// The response with these messages.
    pub fn response(&self, messages: &[Received]) -> Value {
        if messages.is_empty() {
            return json!({});
        }
        json!({ "Messages": messages.iter().map(|message| self.message(message)).collect::<Vec<_>>() })
    }

    fn message(&self, received: &Received) -> Value {
        let content = &received.content;
        let mut message = json!({
            "MessageId": content.id,
            "ReceiptHandle": received.handle,
            "MD5OfBody": content.md5.get_or_init(|| md5_of_body(&content.body)),
            "Body": content.body.as_ref(),
        });
        let mut attributes = vec![
            ("SenderId", "AIDAIT2UOQQY3AUEKVGXU".to_owned()),
            ("SentTimestamp", content.sent.to_string()),
            ("ApproximateReceiveCount", received.receives.to_string()),
            ("ApproximateFirstReceiveTimestamp", received.first_received.to_string()),
        ];
        attributes.extend(content.group.as_ref().map(|group| ("MessageGroupId", group.to_string())));
        let is_wanted = |name: &str| self.system_attributes.iter().any(|wanted| wanted == "All" || wanted == name);
        let wanted = attributes.into_iter().filter(|(name, _)| is_wanted(name));
        let attributes: Map<String, Value> = wanted.map(|(name, value)| (name.to_owned(), value.into())).collect();
        if !attributes.is_empty() {
            message["Attributes"] = attributes.into();
        }
        let is_wanted = |name: &str| {
            let fits = |wanted: &String| {
                wanted == "All"
                    || wanted == name
                    || wanted.strip_suffix(".*").is_some_and(|start| name.starts_with(start))
            };
            self.message_attributes.iter().any(fits)
        };
        let wanted = content.attributes.iter().filter(|(name, _)| is_wanted(name));
        let attributes: Map<String, Value> = wanted.map(|(name, value)| (name.clone(), value.clone())).collect();
        if !attributes.is_empty() {
            message["MD5OfMessageAttributes"] = md5_of_attributes(&attributes).into();
            message["MessageAttributes"] = attributes.into();
        }
        message
    }
}

fn queue_url(url: &str, name: &str) -> String {
    format!("{url}/{ACCOUNT}/{name}")
}

fn queue_name_of_arn(arn: &str) -> &str {
    arn.rsplit(':').next().unwrap_or_default()
}

/// The rules for the entries of every batch.
fn check<T: Entry>(action: &str, entries: &[T]) -> Result<(), Problem> {
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

/// The settings with some attributes changed. Numbers may be given as text, as SDKs give them.
fn changed(settings: &Settings, attributes: &Map<String, Value>) -> Result<Settings, Problem> {
    let mut settings = settings.clone();
    for (name, value) in attributes {
        let invalid = || {
            let message = format!("Invalid value for the parameter {name}.");
            Problem::new("com.amazonaws.sqs#InvalidAttributeValue", "InvalidAttributeValue", message)
        };
        let number = |range: std::ops::RangeInclusive<u64>| {
            let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
            number.filter(|number| range.contains(number)).ok_or_else(invalid)
        };
        match name.as_str() {
            "VisibilityTimeout" => settings.visibility_seconds = number(0..=MAX_VISIBILITY_SECONDS)?,
            "DelaySeconds" => settings.delay_seconds = number(0..=900)?,
            "ReceiveMessageWaitTimeSeconds" => settings.wait_seconds = number(0..=20)?,
            "MessageRetentionPeriod" => settings.retention_seconds = number(60..=1_209_600)?,
            "MaximumMessageSize" => {
                settings.max_message_bytes = usize::try_from(number(1024..=1_048_576)?).map_err(|_| invalid())?;
            }
            "RedrivePolicy" => settings.redrive = redrive(value.as_str().unwrap_or_default()).ok_or_else(invalid)?,
            // Access is not checked here, and nothing is encrypted.
            "Policy" | "KmsMasterKeyId" | "KmsDataKeyReusePeriodSeconds" | "SqsManagedSseEnabled" => {}
            _ => {
                let message = format!("Unknown Attribute {name}.");
                return Err(Problem::new("com.amazonaws.sqs#InvalidAttributeName", "InvalidAttributeName", message));
            }
        }
    }
    Ok(settings)
}

/// `None`: not a redrive policy. An empty one removes the policy.
fn redrive(policy: &str) -> Option<Option<Redrive>> {
    if policy.is_empty() {
        return Some(None);
    }
    let policy: Value = serde_json::from_str(policy).ok()?;
    let max_receives = &policy["maxReceiveCount"];
    let max_receives = max_receives.as_u64().or_else(|| max_receives.as_str()?.parse().ok())?;
    let max_receives = u32::try_from(max_receives).ok().filter(|max_receives| (1..=1000).contains(max_receives))?;
    Some(Some(Redrive { target: policy["deadLetterTargetArn"].as_str()?.to_owned(), max_receives }))
}

/// Bytes of a message that count towards the limits: its body, and name, type and value of each attribute.
fn size(entry: &Sending) -> usize {
    let attribute = |(name, attribute): (&String, &Value)| {
        let text = |member: &str| attribute[member].as_str().map_or(0, str::len);
        name.len() + text("DataType") + text("StringValue") + text("BinaryValue")
    };
    entry.message_body.len() + entry.message_attributes.iter().map(attribute).sum::<usize>()
}

fn sent(content: &Content) -> Value {
    let md5 = content.md5.get_or_init(|| md5_of_body(&content.body));
    let mut response = json!({ "MessageId": content.id, "MD5OfMessageBody": md5 });
    if !content.attributes.is_empty() {
        response["MD5OfMessageAttributes"] = md5_of_attributes(&content.attributes).into();
    }
    response
}

fn md5_of_body(body: &str) -> String {
    hex(&Md5::digest(body.as_bytes()))
}

/// The digest that the documentation of message attributes describes.
fn md5_of_attributes(attributes: &Map<String, Value>) -> String {
    use base64::Engine as _;
    let mut encoded = Vec::new();
    let mut with_length = |bytes: &[u8]| {
        encoded.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        encoded.extend(bytes);
        encoded.len()
    };
    // The members of a map are sorted by name already.
    let mut marks = Vec::new();
    for (name, attribute) in attributes {
        with_length(name.as_bytes());
        let at = with_length(attribute["DataType"].as_str().unwrap_or_default().as_bytes());
        match attribute["BinaryValue"].as_str() {
            Some(binary) => {
                marks.push((at, 2_u8));
                with_length(&base64::engine::general_purpose::STANDARD.decode(binary).unwrap_or_default());
            }
            None => {
                marks.push((at, 1));
                with_length(attribute["StringValue"].as_str().unwrap_or_default().as_bytes());
            }
        }
    }
    for (at, mark) in marks.into_iter().rev() {
        encoded.insert(at, mark);
    }
    hex(&Md5::digest(&encoded))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
