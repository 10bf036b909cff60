//! Messages as SQS returns them, the records of an event that they become, and the function's response to the event.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// A message as `ReceiveMessage` returns it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Message {
    pub message_id: String,
    pub receipt_handle: String,
    #[serde(default)]
    pub body: String,
    #[serde(rename = "MD5OfBody", default)]
    md5_of_body: String,
    #[serde(default)]
    attributes: Map<String, Value>,
    #[serde(default)]
    message_attributes: Map<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Received {
    pub messages: Vec<Message>,
}

/// ARN of a queue by its URL: `http://host/account/name` -> `arn:aws:sqs:region:account:name`.
pub(super) fn arn(queue_url: &str, region: &str) -> String {
    let mut segments = queue_url.trim_end_matches('/').rsplit('/');
    let (name, account) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
    format!("arn:aws:sqs:{region}:{account}:{name}")
}

pub(super) fn record(message: &Message, arn: &str, region: &str) -> Value {
    let attributes = message.message_attributes.iter();
    json!({
        "messageId": message.message_id,
        "receiptHandle": message.receipt_handle,
        "body": message.body,
        "attributes": message.attributes,
        "messageAttributes":
            attributes.map(|(name, attribute)| (name.clone(), message_attribute(attribute))).collect::<Map<_, _>>(),
        "md5OfBody": message.md5_of_body,
        "eventSource": "aws:sqs",
        "eventSourceARN": arn,
        "awsRegion": region,
    })
}

fn message_attribute(attribute: &Value) -> Value {
    let mut record = json!({ "stringListValues": [], "binaryListValues": [], "dataType": attribute["DataType"] });
    for (from, to) in [("StringValue", "stringValue"), ("BinaryValue", "binaryValue")] {
        if let Some(value) = attribute.get(from).filter(|value| !value.is_null()) {
            record[to] = value.clone();
        }
    }
    record
}

/// The ids of the failed messages. `None`: all of them, because the response is not a valid list of failures.
pub(super) fn failed(response: &[u8], ids: &BTreeSet<&str>) -> Option<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Failure {
        #[serde(rename = "itemIdentifier")]
        id: String,
    }
    #[derive(Deserialize)]
    struct Response {
        #[serde(rename = "batchItemFailures", default)]
        failures: Option<Vec<Failure>>,
    }
    if response.trim_ascii().is_empty() {
        return Some(BTreeSet::new());
    }
    let response: Option<Response> = serde_json::from_slice(response).ok()?;
    let failures = response.and_then(|response| response.failures).unwrap_or_default();
    let failed: BTreeSet<String> = failures.into_iter().map(|failure| failure.id).collect();
    failed.iter().all(|id| ids.contains(id.as_str())).then_some(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_records() {
        let received: Received = serde_json::from_value(json!({"Messages": [{
            "MessageId": "m", "ReceiptHandle": "r", "Body": "{}", "MD5OfBody": "5",
            "Attributes": {"ApproximateReceiveCount": "1"},
            "MessageAttributes": {"flow": {"StringValue": "crm", "DataType": "String"},
                "bytes": {"BinaryValue": "AA==", "DataType": "Binary"}},
        }]}))
        .unwrap();
        let arn = arn("http://127.0.0.1:5566/123456789012/changes", "eu-central-1");
        let expected = json!({
            "messageId": "m", "receiptHandle": "r", "body": "{}", "md5OfBody": "5",
            "attributes": {"ApproximateReceiveCount": "1"},
            "messageAttributes": {
                "flow": {"stringValue": "crm", "dataType": "String", "stringListValues": [], "binaryListValues": []},
                "bytes": {"binaryValue": "AA==", "dataType": "Binary", "stringListValues": [], "binaryListValues": []},
            },
            "eventSource": "aws:sqs", "eventSourceARN": "arn:aws:sqs:eu-central-1:123456789012:changes",
            "awsRegion": "eu-central-1",
        });
        assert_eq!(record(&received.messages[0], &arn, "eu-central-1"), expected);
    }

    #[test]
    fn responses_follow_the_documented_rules() {
        let ids = BTreeSet::from(["a", "b"]);
        let failed = |response: &str| failed(response.as_bytes(), &ids).map(|ids| ids.into_iter().collect::<Vec<_>>());
        for success in ["", "null", "{}", r#"{"batchItemFailures":null}"#, r#"{"batchItemFailures":[]}"#] {
            assert_eq!(failed(success), Some(Vec::new()), "{success}");
        }
        assert_eq!(failed(r#"{"batchItemFailures":[{"itemIdentifier":"b"}]}"#), Some(vec!["b".to_owned()]));
        for failure in [
            "{",
            r#""ok""#,
            r#"{"batchItemFailures":{}}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":""}]}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":null}]}"#,
            r#"{"batchItemFailures":[{"id":"a"}]}"#,
            r#"{"batchItemFailures":[{"itemIdentifier":"a"},{"itemIdentifier":"c"}]}"#,
        ] {
            assert_eq!(failed(failure), None, "{failure}");
        }
    }
}
