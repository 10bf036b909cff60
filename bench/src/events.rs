//! Prepared events: the fixtures of the tests, each with its own subject, in the form of API Gateway's and SQS's events.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::Problem;

/// Bearer token of the senders, valid for no real system.
pub const SENDER_TOKEN: &str = "benchmark-sender-token-0123456789abcdef";

/// An event kind under measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    AudienceChange,
    ProfileExport,
    DataverseEvent,
}

pub const KINDS: [Kind; 3] = [Kind::AudienceChange, Kind::ProfileExport, Kind::DataverseEvent];

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::AudienceChange => "audience-change",
            Self::ProfileExport => "profile-export",
            Self::DataverseEvent => "dataverse-event",
        }
    }

    /// The sender's event number `n` without white space, as senders write it.
    fn event(self, n: usize) -> Result<String, Problem> {
        macro_rules! fixture {
            ($name:literal) => {
                serde_json::from_str(include_str!(concat!("../../tests/fixtures/", $name)))?
            };
        }
        let id = uuid("subject", n);
        let mut event: Value = match self {
            Self::AudienceChange => fixture!("audience-change/new_audience_documented.json"),
            Self::ProfileExport => fixture!("profile-export/profile-export-current.json"),
            Self::DataverseEvent => fixture!("dataverse-event/create_lead_sync.json"),
        };
        match self {
            Self::AudienceChange => {
                event["profileId"] = id.into();
                event["partnerIds"] = json!([(10_000_000 + n).to_string()]);
                event["timestamp"] = json!(1_773_342_238_000_u64 + n as u64);
            }
            Self::ProfileExport => {
                let ids = event.pointer_mut("/identityMap/ecid/0/id").ok_or("the fixture has no ecid")?;
                *ids = format!("{:038}", 14_575_006_536_349_286_404_619_648_000_u128 + n as u128).into();
                let ids = event.pointer_mut("/identityMap/email_lc_sha256/0/id").ok_or("the fixture has no email")?;
                *ids = hex(&Sha256::digest(n.to_string())).into();
            }
            Self::DataverseEvent => event["PrimaryEntityId"] = id.into(),
        }
        Ok(event.to_string())
    }
}

/// What one invocation contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    Webhook,
    Queue(usize),
}

impl Trigger {
    pub fn name(self) -> String {
        match self {
            Self::Webhook => "webhook 1".to_owned(),
            Self::Queue(records) => format!("SQS {records}"),
        }
    }

    pub fn events(self) -> usize {
        match self {
            Self::Webhook => 1,
            Self::Queue(records) => records,
        }
    }
}

/// The event of an invocation.
pub fn invocation(kind: Kind, trigger: Trigger) -> Result<Vec<u8>, Problem> {
    let event = match trigger {
        Trigger::Webhook => http_request(kind, &kind.event(0)?),
        Trigger::Queue(records) => {
            let records = (0..records).map(|n| Ok(record(kind, n, &kind.event(n)?)));
            json!({ "Records": records.collect::<Result<Vec<_>, Problem>>()? })
        }
    };
    Ok(event.to_string().into_bytes())
}

/// An HTTP API event, payload 2.0.
fn http_request(kind: Kind, body: &str) -> Value {
    let path = format!("/{}", kind.name());
    json!({
        "version": "2.0",
        "routeKey": format!("POST {path}"),
        "rawPath": path,
        "rawQueryString": "",
        "headers": {
            "accept": "*/*",
            "accept-encoding": "gzip, deflate",
            "authorization": format!("Bearer {SENDER_TOKEN}"),
            "content-length": body.len().to_string(),
            "content-type": "application/json",
            "host": "a1b2c3d4e5.execute-api.eu-central-1.amazonaws.com",
            "user-agent": "webhook-sender/4.2",
            "x-amzn-trace-id": "Root=1-69b1f5de-4f2a1c9b7d3e8a6051c2d4f7",
            "x-forwarded-for": "192.0.2.1",
            "x-forwarded-port": "443",
            "x-forwarded-proto": "https",
        },
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "a1b2c3d4e5",
            "domainName": "a1b2c3d4e5.execute-api.eu-central-1.amazonaws.com",
            "domainPrefix": "a1b2c3d4e5",
            "http": {
                "method": "POST", "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1",
                "userAgent": "webhook-sender/4.2",
            },
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": format!("POST {path}"),
            "stage": "$default",
            "time": "12/Mar/2026:19:03:58 +0000",
            "timeEpoch": 1_773_342_238_000_u64,
        },
        "body": body,
        "isBase64Encoded": false,
    })
}

/// An SQS record.
fn record(kind: Kind, n: usize, body: &str) -> Value {
    let mut handle = Vec::new();
    for part in 0..9 {
        handle.extend_from_slice(&Sha256::digest(format!("handle {n} {part}")));
    }
    json!({
        "messageId": uuid("message", n),
        "receiptHandle": format!("AQEB{}", STANDARD.encode(handle)),
        "body": body,
        "attributes": {
            "ApproximateReceiveCount": "1",
            "SentTimestamp": "1773342238000",
            "SenderId": "AROAEXAMPLEEXAMPLE123:sender",
            "ApproximateFirstReceiveTimestamp": "1773342238005",
        },
        "messageAttributes": {},
        "md5OfBody": &hex(&Sha256::digest(body))[..32],
        "eventSource": "aws:sqs",
        "eventSourceARN": format!("arn:aws:sqs:eu-central-1:123456789012:{}", kind.name()),
        "awsRegion": "eu-central-1",
    })
}

fn uuid(what: &str, n: usize) -> String {
    let hex = hex(&Sha256::digest(format!("{what} {n}")));
    format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
