//! Reads the events of a send request. Only the content type distinguishes a batch from a single event.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::responses::Refusal;

/// An event before it is stored.
#[derive(Debug, PartialEq)]
pub struct Incoming {
    pub body: Vec<u8>,
    pub properties: Map<String, Value>,
    pub partition_key: Option<String>,
    pub batch: bool,
}

impl Incoming {
    /// Number of bytes of the body and the properties.
    pub fn size(&self) -> usize {
        let property = |(name, value): (&String, &Value)| {
            name.len() + value.as_str().map_or_else(|| value.to_string().len(), str::len)
        };
        self.body.len() + self.properties.iter().map(property).sum::<usize>()
    }
}

const BATCH: &str = "application/vnd.microsoft.servicebus.json";
const BROKER_PROPERTIES: &str = "brokerproperties";
const MAX_PARTITION_KEY: usize = 128;

/// Headers that do not become user properties of a single event.
const STANDARD_HEADERS: [&str; 17] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "authorization",
    BROKER_PROPERTIES,
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "expect",
    "host",
    "te",
    "transfer-encoding",
    "user-agent",
    "x-ms-retrypolicy",
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Element {
    body: String,
    #[serde(default)]
    user_properties: Map<String, Value>,
    broker_properties: Option<BrokerProperties>,
    #[serde(default)]
    is_body_base64: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BrokerProperties {
    partition_key: Option<String>,
}

/// The events of a request, or the reason for which it is malformed.
pub fn read(headers: &HeaderMap, body: &[u8]) -> Result<Vec<Incoming>, Refusal> {
    let events = if is_batch(headers) { batch(body)? } else { vec![single(headers, body)?] };
    let key_length = |event: &Incoming| event.partition_key.as_ref().map_or(0, |key| key.chars().count());
    if events.iter().any(|event| key_length(event) > MAX_PARTITION_KEY) {
        return Err(malformed(format!("a partition key has more than {MAX_PARTITION_KEY} characters")));
    }
    Ok(events)
}

fn is_batch(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case(BATCH))
}

fn batch(body: &[u8]) -> Result<Vec<Incoming>, Refusal> {
    let elements: Vec<Element> = serde_json::from_slice(body).map_err(|error| malformed(error.to_string()))?;
    if elements.is_empty() {
        return Err(malformed("the batch is empty"));
    }
    elements
        .into_iter()
        .map(|element| {
            let body = if element.is_body_base64 {
                STANDARD
                    .decode(&element.body)
                    .map_err(|_| malformed("a Body is not valid base64 although IsBodyBase64 is true"))?
            } else {
                element.body.into_bytes()
            };
            Ok(Incoming {
                body,
                properties: element.user_properties,
                partition_key: key_of(element.broker_properties),
                batch: true,
            })
        })
        .collect()
}

fn single(headers: &HeaderMap, body: &[u8]) -> Result<Incoming, Refusal> {
    let broker_properties = headers
        .get(BROKER_PROPERTIES)
        .map(|value| serde_json::from_slice::<BrokerProperties>(value.as_bytes()))
        .transpose()
        .map_err(|error| malformed(format!("BrokerProperties: {error}")))?;
    let properties = headers
        .iter()
        .filter(|(name, _)| !STANDARD_HEADERS.contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), retyped(&String::from_utf8_lossy(value.as_bytes()))))
        .collect();
    Ok(Incoming { body: body.to_vec(), properties, partition_key: key_of(broker_properties), batch: false })
}

/// The value of a property from the text of a header: text that looks like a number or a bool becomes one.
fn retyped(text: &str) -> Value {
    if let Ok(integer) = text.parse::<i64>() {
        return integer.into();
    }
    match (text.parse::<f64>(), text.to_ascii_lowercase().as_str()) {
        (Ok(number), _) if number.is_finite() => number.into(),
        (_, "true") => true.into(),
        (_, "false") => false.into(),
        _ => text.into(),
    }
}

/// The partition key. An empty one counts as absent.
fn key_of(broker_properties: Option<BrokerProperties>) -> Option<String> {
    broker_properties?.partition_key.filter(|key| !key.is_empty())
}

fn malformed(problem: impl std::fmt::Display) -> Refusal {
    Refusal::new(400, format!("40000: The request is malformed: {problem}."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use serde_json::json;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn only_the_content_type_makes_a_batch() {
        let body = br#"[{"Body":"a"},{"Body":"Yg==","IsBodyBase64":true,"BrokerProperties":{"PartitionKey":"k"}}]"#;
        let events =
            read(&headers(&[("content-type", "Application/vnd.microsoft.servicebus.json; a=b")]), body).unwrap();
        assert_eq!(events.iter().map(|event| event.body.as_slice()).collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(events[1].partition_key.as_deref(), Some("k"));
        for content_type in ["application/json", "application/atom+xml;type=entry;charset=utf-8"] {
            let events = read(&headers(&[("content-type", content_type)]), body).unwrap();
            assert_eq!(events.len(), 1);
            assert_eq!(events[0].body, body);
            assert!(!events[0].batch);
        }
    }

    #[test]
    fn headers_of_a_single_event_become_properties() {
        let headers = headers(&[
            ("host", "localhost"),
            ("brokerproperties", r#"{"PartitionKey":"17"}"#),
            ("number", "007"),
            ("share", "0.5"),
            ("flag", "True"),
            ("word", "NaN"),
        ]);
        let events = read(&headers, b"\x00\xff").unwrap();
        assert_eq!(events[0].body, b"\x00\xff");
        assert_eq!(events[0].partition_key.as_deref(), Some("17"));
        let properties = json!({"number": 7, "share": 0.5, "flag": true, "word": "NaN"});
        assert_eq!(Value::Object(events[0].properties.clone()), properties);
        assert_eq!(events[0].size(), 2 + 7 + 8 + 8 + 7);
    }

    #[test]
    fn malformed_batches_are_refused() {
        let batch = headers(&[("content-type", BATCH)]);
        let long_key = format!(r#"[{{"Body":"","BrokerProperties":{{"PartitionKey":"{}"}}}}]"#, "k".repeat(129));
        for body in ["", "[]", "{}", r#"[{"Body":{}}]"#, "[{}]", r#"[{"Body":"?","IsBodyBase64":true}]"#, &long_key] {
            assert_eq!(read(&batch, body.as_bytes()).unwrap_err().status, 400, "{body}");
        }
    }
}
