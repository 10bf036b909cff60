//! Calls of the test itself to moto, which bypass all faults and are not really signed. The local SQS is inspected directly.

use serde_json::{Value, json};

use super::system::REGION;

/// The prefixes of `x-amz-target`.
pub const SQS: &str = "AmazonSQS";
pub const DYNAMODB: &str = "DynamoDB_20120810";
pub const SECRETS: &str = "secretsmanager";

/// A client that reads and changes the state of moto.
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
            DYNAMODB => ("dynamodb", "1.0"),
            _ => ("secretsmanager", "1.1"),
        };
        // Moto reads only the scope of the credentials.
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
        let response = loop {
            match sending.try_clone().unwrap().send().await {
                Ok(response) => break response,
                // Moto may not accept a connection under load.
                Err(error) if error.is_connect() => {}
                Err(error) => panic!("{operation}: {error}"),
            }
        };
        let status = response.status();
        let response = response.bytes().await.unwrap();
        assert!(status.is_success(), "{operation}: {status} {}", String::from_utf8_lossy(&response));
        serde_json::from_slice(&response).unwrap_or_default()
    }

    pub async fn put_secret(&self, id: &str, text: &str) {
        self.call(SECRETS, "PutSecretValue", json!({ "SecretId": id, "SecretString": text })).await;
    }
}
