//! `ReceiveMessage`: its parameters, one attempt to receive, and its response.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::State;
use super::api::{MAX_PER_CALL, queue_name};
use super::digests::{md5_of_attributes, md5_of_body};
use super::problem::Problem;
use super::queue::{MAX_VISIBILITY_SECONDS, Received};

/// Maximum time that a receive waits for a message, in seconds.
const MAX_WAIT_SECONDS: i64 = 20;

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

#[derive(Debug)]
pub(super) struct Checked {
    pub queue: String,
    max: usize,
    pub wait_seconds: u64,
    visibility: Option<u64>,
    system_attributes: Vec<String>,
    message_attributes: Vec<String>,
}
impl State {
    /// Receives messages once. `None`: no message can be received now.
    pub(super) fn receive(&mut self, call: &Checked, twice: bool) -> Result<Option<Vec<Received>>, Problem> {
        let now = self.now();
        let queue = self.queue(&call.queue)?;
        let receipt = queue.receive(call.max, call.visibility, twice, now);
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

    /// Checks the parameters of a receive.
    pub(super) fn check(&mut self, call: &Receiving) -> Result<Checked, Problem> {
        let name = queue_name(&call.queue_url);
        let queue = self.queue(name)?;
        let max = call.max_number_of_messages.unwrap_or(1);
        if !(1..=10).contains(&max) {
            return Err(Problem::value("MaxNumberOfMessages", max, "Must be between 1 and 10, if provided."));
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
            max: usize::try_from(max).unwrap_or(MAX_PER_CALL),
            wait_seconds: u64::try_from(wait).unwrap_or(0),
            visibility: visibility.transpose()?,
            system_attributes,
            message_attributes: call.message_attribute_names.clone(),
        })
    }
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

fn queue_name_of_arn(arn: &str) -> &str {
    arn.rsplit(':').next().unwrap_or_default()
}
