//! The attributes of a queue: how calls read and change its settings.

use serde_json::{Map, Value, json};

use super::api::Done;
use super::problem::Problem;
use super::queue::{MAX_VISIBILITY_SECONDS, Redrive, Settings};
use super::{ACCOUNT, REGION, State};

fn arn(name: &str) -> String {
    format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{name}")
}

impl State {
    pub(super) fn attributes(&mut self, name: &str, wanted: &[String]) -> Result<Done, Problem> {
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
        let returned = known.into_iter().filter(|(name, _)| all || wanted.iter().any(|wanted| wanted == name));
        let attributes: Map<String, Value> = returned.map(|(name, value)| (name.to_owned(), value.into())).collect();
        Ok(if attributes.is_empty() { json!({}) } else { json!({ "Attributes": attributes }) }.into())
    }
}

/// The settings with some attributes changed. Numbers may be encoded as text, as SDKs encode them.
pub(super) fn changed(settings: &Settings, attributes: &Map<String, Value>) -> Result<Settings, Problem> {
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
