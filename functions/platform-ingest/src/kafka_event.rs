//! The event of Lambda's Kafka sources, and the response that they read. Event Hubs writes more into it than typed
//! readers expect: null headers, header bytes as signed or unsigned numbers, a timestamp of -1.
//!
//! <https://docs.aws.amazon.com/lambda/latest/dg/with-kafka.html>

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::json::{self, Members, Object, Text};

/// Both forms occur.
const SOURCES: [&str; 2] = ["SelfManagedKafka", "aws:SelfManagedKafka"];

/// The records of one partition, by offset.
#[derive(Debug)]
pub struct Partition<'a> {
    /// Topic and partition, such as `profiles-0`: the response has to name it.
    pub name: Cow<'a, str>,
    pub records: Vec<Record<'a>>,
}

/// One record. Only its offset was read.
#[derive(Debug)]
pub struct Record<'a> {
    pub offset: i64,
    /// Its text in the event.
    pub json: &'a str,
    members: WireRecord<'a>,
}

/// Why an event is not a batch of Kafka records. It never contains any of the event's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAKafkaEvent {
    #[error("the event is not a batch of Kafka records: its eventSource is not SelfManagedKafka")]
    Source,
    #[error("the batch of Kafka records can't be read: {0}")]
    Batch(String),
    #[error("a record of {0} has no usable offset")]
    Offset(String),
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(rename = "eventSource", borrow)]
    source: Option<Text<'a>>,
    #[serde(borrow, default)]
    records: Members<'a, Vec<&'a RawValue>>,
}

#[derive(Debug, Default, Deserialize)]
struct WireRecord<'a> {
    #[serde(borrow)]
    topic: Option<&'a RawValue>,
    #[serde(borrow)]
    partition: Option<&'a RawValue>,
    #[serde(borrow)]
    offset: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    headers: Option<&'a RawValue>,
}

/// The partitions of an event.
pub fn partitions(event: &str) -> Result<Vec<Partition<'_>>, NotAKafkaEvent> {
    let Object(wire): Object<Wire<'_>> =
        serde_json::from_str(event).map_err(|error| NotAKafkaEvent::Batch(json::explain(&error)))?;
    if !wire.source.is_some_and(|Text(source)| SOURCES.contains(&source.as_ref())) {
        return Err(NotAKafkaEvent::Source);
    }
    let mut partitions = Vec::with_capacity(wire.records.0.len());
    for (name, records) in wire.records.0 {
        let records: Option<Vec<Record<'_>>> = records.into_iter().map(|json| Record::read(json.get())).collect();
        let mut records = records.ok_or_else(|| NotAKafkaEvent::Offset(name.clone().into_owned()))?;
        // Lambda takes all records before the named offset as handled.
        records.sort_by_key(|record| record.offset);
        partitions.push(Partition { name, records });
    }
    Ok(partitions)
}

impl<'a> Record<'a> {
    fn read(json: &'a str) -> Option<Self> {
        let Object(members): Object<WireRecord<'a>> = serde_json::from_str(json).ok()?;
        let offset = members.offset?.get().parse().ok()?;
        Some(Self { offset, json, members })
    }

    /// Topic and partition, as text.
    pub fn place(&self) -> (Cow<'a, str>, &'a str) {
        let topic = self.members.topic.and_then(|topic| json::text(topic.get())).unwrap_or_default();
        (topic, self.members.partition.map_or("", RawValue::get))
    }

    /// Time at which it was written, in milliseconds since 1970-01-01T00:00:00Z; `None` if the event does not say.
    pub fn timestamp(&self) -> Option<i64> {
        self.members.timestamp?.get().parse().ok().filter(|timestamp| *timestamp >= 0)
    }

    /// Its value, `None` for a null one.
    ///
    /// # Errors
    /// Fails if it is not base64.
    pub fn value(&self) -> Result<Option<Vec<u8>>, &'static str> {
        const PROBLEM: &str = "the record's value is not base64";
        let Some(value) = self.members.value else { return Ok(None) };
        let text = json::text(value.get()).ok_or(PROBLEM)?;
        STANDARD.decode(text.as_bytes()).map(Some).map_err(|_| PROBLEM)
    }

    /// The text of the first header with one of these names. A header that can't be read counts as absent.
    pub fn header(&self, names: &[&str]) -> Option<String> {
        let headers: Vec<Members<'_>> = serde_json::from_str(self.members.headers?.get()).ok()?;
        let (_, bytes) =
            headers.iter().flat_map(|header| &header.0).find(|(name, _)| names.contains(&name.as_ref()))?;
        // Bytes come as -128..=127 or as 0..=255.
        let numbers: Vec<i16> = serde_json::from_str(bytes.get()).ok()?;
        let bytes: Vec<u8> = numbers
            .into_iter()
            .map(|number| (-128..=255).contains(&number).then_some(number as u8))
            .collect::<Option<_>>()?;
        property_text(&bytes).map(str::to_owned)
    }
}

/// The text of a property. A property that was sent over AMQP or HTTPS arrives in AMQP's encoding, of which strings are
/// read. Other bytes are plain text.
///
/// <https://learn.microsoft.com/azure/event-hubs/event-hubs-exchange-events-different-protocols>
fn property_text(bytes: &[u8]) -> Option<&str> {
    let text = match bytes {
        [0xa1, length, text @ ..] if usize::from(*length) == text.len() => text,
        [0xb1, a, b, c, d, text @ ..] if u32::from_be_bytes([*a, *b, *c, *d]) as usize == text.len() => text,
        plain => plain,
    };
    std::str::from_utf8(text).ok()
}

/// The response to a Kafka batch: the first record of each partition that Lambda must deliver again, with all after it.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    pub batch_item_failures: Vec<Failure>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    item_identifier: Identifier,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Identifier {
    partition: String,
    offset: i64,
}

impl Failure {
    pub fn new(partition: &str, offset: i64) -> Self {
        Self { item_identifier: Identifier { partition: partition.to_owned(), offset } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(records: &str) -> String {
        format!(r#"{{"eventSource":"SelfManagedKafka","records":{records}}}"#)
    }

    fn record_with(members: &str) -> String {
        format!(r#"{{"topic":"t","partition":3,"offset":7{members}}}"#)
    }

    fn header(value: &str) -> Option<String> {
        let json = record_with(&format!(r#","headers":[{{"other":null}},{{"n":{value}}}]"#));
        Record::read(&json).unwrap().header(&["m", "n"])
    }

    #[test]
    fn what_real_hubs_send_is_read() {
        for odd in [
            "",
            r#","headers":null"#,
            r#","headers":[{"n":null}]"#,
            r#","headers":[null]"#,
            r#","headers":{}"#,
            r#","key":null,"value":null,"timestamp":-1"#,
            r#","timestamp":null,"timestampType":7,"headers":[{"n":[300]}]"#,
            r#","headers":[{"n":["a"]}]"#,
        ] {
            let json = record_with(odd);
            let record = Record::read(&json).unwrap_or_else(|| panic!("{odd}"));
            assert_eq!((record.offset, record.place()), (7, ("t".into(), "3")));
            assert_eq!(record.timestamp(), None);
            assert_eq!(record.value(), Ok(None));
            assert_eq!(record.header(&["n"]), None, "{odd}");
        }
        let json = record_with(r#","value":"eyJhIjoxfQ==","timestamp":1545084650987"#);
        let record = Record::read(&json).unwrap();
        assert_eq!(record.value().unwrap().as_deref(), Some(br#"{"a":1}"#.as_slice()));
        assert_eq!(record.timestamp(), Some(1_545_084_650_987));
        for bad in [r#","value":"?""#, r#","value":5"#] {
            assert!(Record::read(&record_with(bad)).unwrap().value().is_err(), "{bad}");
        }
    }

    #[test]
    fn header_bytes_are_signed_or_unsigned_and_strings_of_amqp() {
        for new in ["[-95,3,78,69,87]", "[161,3,78,69,87]", "[-79,0,0,0,3,78,69,87]", "[78,69,87]"] {
            assert_eq!(header(new).as_deref(), Some("NEW"), "{new}");
        }
        assert_eq!(header("[-61,-87]").as_deref(), Some("é"));
        for none in ["null", "[256]", "[-129]", r#""NEW""#, "[161,4,78]"] {
            assert_eq!(header(none), None, "{none}");
        }
    }

    #[test]
    fn partitions_are_named_and_ordered() {
        let event =
            event(&format!(r#"{{"t-3":[{},{}],"t-4":[]}}"#, record_with("").replace(":7", ":8"), record_with(""),));
        let partitions = partitions(&event).unwrap();
        let offsets = |partition: &Partition<'_>| partition.records.iter().map(|r| r.offset).collect::<Vec<_>>();
        assert_eq!(
            partitions.iter().map(|p| (p.name.as_ref(), offsets(p))).collect::<Vec<_>>(),
            [("t-3", vec![7, 8]), ("t-4", vec![])]
        );
        let event = r#"{"eventSource":"aws:SelfManagedKafka","records":{}}"#;
        assert!(super::partitions(event).unwrap().is_empty());
    }

    #[test]
    fn an_event_that_is_not_a_batch_is_refused_with_its_problem() {
        let problem = |text: &str| partitions(text).unwrap_err();
        assert_eq!(problem(r#"{"Records":[]}"#), NotAKafkaEvent::Source);
        assert_eq!(problem(r#"{"eventSource":"aws:sqs","records":{}}"#), NotAKafkaEvent::Source);
        assert!(matches!(problem("[]"), NotAKafkaEvent::Batch(_)));
        let no_offset = r#"{"eventSource":"SelfManagedKafka","records":{"t-0":[{"topic":"t"}]}}"#;
        assert_eq!(problem(no_offset), NotAKafkaEvent::Offset("t-0".into()));
    }

    #[test]
    fn the_response_names_partition_and_offset() {
        let response = Response { batch_item_failures: vec![Failure::new("profiles-0", 15)] };
        assert_eq!(
            serde_json::to_string(&response).unwrap(),
            r#"{"batchItemFailures":[{"itemIdentifier":{"partition":"profiles-0","offset":15}}]}"#,
        );
    }
}
