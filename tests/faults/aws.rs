//! Calls to moto as a witness beside the functions: unsigned in truth, past every fault.

use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::system::REGION;

/// The prefixes of `x-amz-target`.
pub const SQS: &str = "AmazonSQS";
pub const DYNAMODB: &str = "DynamoDB_20120810";
pub const SECRETS: &str = "secretsmanager";

#[derive(Clone)]
pub struct Witness {
    http: reqwest::Client,
    endpoint: String,
}

impl Witness {
    pub fn new(http: reqwest::Client, endpoint: &str) -> Self {
        Self { http, endpoint: format!("{endpoint}/") }
    }

    /// One call, which must succeed.
    pub async fn call(&self, service: &str, operation: &str, body: Value) -> Value {
        let (signing_name, version) = match service {
            SQS => ("sqs", "1.0"),
            DYNAMODB => ("dynamodb", "1.0"),
            _ => ("secretsmanager", "1.1"),
        };
        // Moto looks at the scope only.
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=local/20260101/{REGION}/{signing_name}/aws4_request, SignedHeaders=host, \
             Signature=0",
        );
        let sending = self
            .http
            .post(&self.endpoint)
            .header("authorization", authorization)
            .header("content-type", format!("application/x-amz-json-{version}"))
            .header("x-amz-target", format!("{service}.{operation}"))
            .body(body.to_string());
        let answer = loop {
            match sending.try_clone().unwrap().send().await {
                Ok(answer) => break answer,
                // Under load moto leaves connections waiting.
                Err(error) if error.is_connect() => {}
                Err(error) => panic!("{operation}: {error}"),
            }
        };
        let status = answer.status();
        let answer = answer.bytes().await.unwrap();
        assert!(status.is_success(), "{operation}: {status} {}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).unwrap_or_default()
    }

    pub async fn put_secret(&self, id: &str, text: &str) {
        self.call(SECRETS, "PutSecretValue", json!({ "SecretId": id, "SecretString": text })).await;
    }

    /// Messages in a queue: those that can be received, and those that can't yet.
    pub async fn depth(&self, queue_url: &str) -> (u64, u64) {
        let answer =
            self.call(SQS, "GetQueueAttributes", json!({ "QueueUrl": queue_url, "AttributeNames": ["All"] })).await;
        let number = |name: &str| answer["Attributes"][name].as_str().map_or(0, |text| text.parse().unwrap());
        (
            number("ApproximateNumberOfMessages"),
            number("ApproximateNumberOfMessagesNotVisible") + number("ApproximateNumberOfMessagesDelayed"),
        )
    }

    /// The bodies that can be received now. They can be received again at once if they are put back, else in ten minutes.
    pub async fn bodies(&self, queue_url: &str, put_back: bool) -> Vec<String> {
        let mut received = Vec::new();
        loop {
            // Long enough for all of them to be seen once.
            let body = json!({ "QueueUrl": queue_url, "MaxNumberOfMessages": 10, "VisibilityTimeout": 600 });
            let answer = self.call(SQS, "ReceiveMessage", body).await;
            let Some(messages) = answer["Messages"].as_array().filter(|messages| !messages.is_empty()) else { break };
            received.extend(messages.iter().cloned());
        }
        for messages in received.chunks(10).filter(|_| put_back) {
            let entry = |(id, message): (usize, &Value)| json!({ "Id": id.to_string(), "ReceiptHandle": message["ReceiptHandle"], "VisibilityTimeout": 0 });
            let entries: Vec<Value> = messages.iter().enumerate().map(entry).collect();
            let body = json!({ "QueueUrl": queue_url, "Entries": entries });
            self.call(SQS, "ChangeMessageVisibilityBatch", body).await;
        }
        received.iter().map(|message| message["Body"].as_str().unwrap().to_owned()).collect()
    }
}

/// What an envelope, or a rejected body, is packed as.
pub fn unpack(base64: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(STANDARD.decode(base64).unwrap().as_slice()).read_to_end(&mut bytes).unwrap();
    bytes
}
