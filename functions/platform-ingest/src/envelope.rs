//! The XDM envelope around an entity, and the members that make duplicates harmless.

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use shared::json::{self, Object};
use shared::{Rejection, deterministic_id};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::kafka_event::Record;

/// Names of the CloudEvents id: in AMQP, where a colon or an underscore is allowed, and in Kafka.
const ID: [&str; 3] = ["cloudEvents:id", "cloudEvents_id", "ce_id"];
const TIME: [&str; 3] = ["cloudEvents:time", "cloudEvents_time", "ce_time"];

/// The part of the envelope that is the same around every entity: schema, dataset and flow.
#[derive(Debug)]
pub struct Envelope {
    head: String,
}

/// The contents of an envelope's header.
#[derive(Debug)]
pub struct Header<'a> {
    pub schema_id: &'a str,
    pub content_type: &'a str,
    pub org_id: &'a str,
    pub dataset_id: &'a str,
    pub flow_id: &'a str,
}

const TAIL: &str = "}}";

/// The members of an entity that are read.
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(rename = "_id", borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    #[serde(rename = "eventType", borrow)]
    event_type: Option<&'a RawValue>,
    #[serde(borrow)]
    header: Option<&'a RawValue>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

impl Envelope {
    pub fn new(header: &Header<'_>) -> Self {
        let schema = json!({ "id": header.schema_id, "contentType": header.content_type });
        let fields = json!({
            "schemaRef": schema, "imsOrgId": header.org_id, "datasetId": header.dataset_id, "flowId": header.flow_id,
            "source": { "name": "event-hubs" },
        });
        Self { head: format!(r#"{{"header":{fields},"body":{{"xdmMeta":{{"schemaRef":{schema}}},"xdmEntity":"#) }
    }

    /// Wraps `entity`, which is an object without white space around it and came in `record`. An absent `_id` is filled in,
    /// and for an experience event, which alone has an `eventType`, an absent `timestamp`; other bytes stay as they are.
    pub fn wrap(&self, entity: &str, record: &Record<'_>) -> Result<Vec<u8>, Rejection> {
        let Object(members): Object<Members<'_>> =
            serde_json::from_str(entity).map_err(|error| Rejection::unmappable(json::explain(&error)))?;
        if members.header.is_some() && members.body.is_some_and(|body| body.get().contains("\"xdmEntity\"")) {
            return Err(Rejection::unmappable("the record is an envelope already; expected the XDM entity alone"));
        }
        let mut wrapped = Vec::with_capacity(self.head.len() + entity.len() + 160);
        wrapped.extend_from_slice(self.head.as_bytes());
        wrapped.push(b'{');
        let rest = &entity[1..];
        let before = wrapped.len();
        match members.id {
            None => push_member(&mut wrapped, "_id", &id(record)),
            Some(id) if json::text(id.get()).is_some_and(|id| !id.is_empty()) => {}
            Some(_) => return Err(Rejection::unmappable("`_id`: expected text")),
        }
        if members.timestamp.is_none()
            && members.event_type.is_some()
            && let Some(time) = time(record)
        {
            push_member(&mut wrapped, "timestamp", &time);
        }
        if wrapped.len() > before && rest.trim_start().starts_with('}') {
            wrapped.pop();
        }
        wrapped.extend_from_slice(rest.as_bytes());
        wrapped.extend_from_slice(TAIL.as_bytes());
        Ok(wrapped)
    }
}

/// `"name":"text",`
fn push_member(out: &mut Vec<u8>, name: &str, text: &str) {
    json::push_string(out, name);
    out.push(b':');
    json::push_string(out, text);
    out.push(b',');
}

/// The id of a record, the same for every duplicate: the id of its event, else a hash of its place.
fn id(record: &Record<'_>) -> String {
    record.header(&ID).filter(|id| !id.is_empty()).unwrap_or_else(|| {
        let (topic, partition) = record.place();
        deterministic_id([topic.as_ref(), partition, &record.offset.to_string()])
    })
}

/// The time of the event, else the time at which the record was written.
fn time(record: &Record<'_>) -> Option<String> {
    let of_event = record.header(&TIME).filter(|time| OffsetDateTime::parse(time, &Rfc3339).is_ok());
    of_event.or_else(|| {
        let nanoseconds = i128::from(record.timestamp()?) * 1_000_000;
        OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()?.format(&Rfc3339).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka_event::partitions;
    use serde_json::Value;

    fn wrap_with(entity: &str, headers: &str) -> Result<String, Rejection> {
        let envelope = Envelope::new(&Header {
            schema_id: "https://ns.adobe.com/acme/schemas/7",
            content_type: "application/vnd.adobe.xed-full+json;version=1",
            org_id: "ACME@AdobeOrg",
            dataset_id: "604a",
            flow_id: "f2ae",
        });
        let event = format!(
            r#"{{"eventSource":"SelfManagedKafka","records":{{"t-0":[
                {{"topic":"t","partition":0,"offset":9,"timestamp":1545084650987,"headers":{headers}}}]}}}}"#
        );
        let partitions = partitions(&event).unwrap();
        let wrapped = envelope.wrap(entity, &partitions[0].records[0])?;
        Ok(String::from_utf8(wrapped).unwrap())
    }

    fn entity_of(entity: &str, headers: &str) -> Value {
        let wrapped: Value = serde_json::from_str(&wrap_with(entity, headers).unwrap()).unwrap();
        wrapped["body"]["xdmEntity"].clone()
    }

    fn header(name: &str, text: &str) -> String {
        json!([{ name: text.as_bytes() }]).to_string()
    }

    #[test]
    fn the_envelope_is_the_documented_one() {
        let entity = r#"{ "_id":"b2f1", "timestamp": "2026-05-01T10:00:00Z","price":19.9900}"#;
        let wrapped = wrap_with(entity, "null").unwrap();
        assert!(wrapped.ends_with(&format!(r#""xdmEntity":{entity}}}}}"#)), "the entity keeps its bytes: {wrapped}");
        let wrapped: Value = serde_json::from_str(&wrapped).unwrap();
        let schema = json!({
            "id": "https://ns.adobe.com/acme/schemas/7", "contentType": "application/vnd.adobe.xed-full+json;version=1",
        });
        assert_eq!(
            wrapped["header"],
            json!({
                "schemaRef": schema, "imsOrgId": "ACME@AdobeOrg", "datasetId": "604a", "flowId": "f2ae",
                "source": { "name": "event-hubs" },
            })
        );
        assert_eq!(wrapped["body"]["xdmMeta"], json!({ "schemaRef": schema }));
    }

    #[test]
    fn an_absent_id_is_the_events_or_its_places() {
        assert_eq!(entity_of("{}", &header("cloudEvents:id", "e1")), json!({ "_id": "e1" }));
        assert_eq!(entity_of("{ }", &header("ce_id", "e2")), json!({ "_id": "e2" }));
        let place = deterministic_id(["t", "0", "9"]);
        assert_eq!(entity_of(r#"{"a":1}"#, &header("other", "x")), json!({ "_id": place, "a": 1 }));
        assert_eq!(entity_of(r#"{"_id":"own"}"#, &header("cloudEvents:id", "e1")), json!({ "_id": "own" }));
    }

    #[test]
    fn experience_events_alone_get_a_timestamp() {
        let time = |entity: &str, headers: &str| entity_of(entity, headers)["timestamp"].clone();
        let event = r#"{"_id":"a","eventType":"x"}"#;
        assert_eq!(time(event, "null"), "2018-12-17T22:10:50.987Z");
        assert_eq!(time(event, &header("cloudEvents:time", "2026-05-01T10:00:00+02:00")), "2026-05-01T10:00:00+02:00");
        assert_eq!(time(event, &header("cloudEvents:time", "yesterday")), "2018-12-17T22:10:50.987Z");
        assert_eq!(time(r#"{"_id":"a","eventType":"x","timestamp":"t"}"#, "null"), "t");
        assert_eq!(time(r#"{"_id":"a"}"#, "null"), Value::Null);
    }

    #[test]
    fn a_value_that_is_not_an_entity_is_refused() {
        assert!(wrap_with(r#"{"header":{},"body":{"xdmEntity":{}}}"#, "null").unwrap_err().detail.contains("envelope"));
        assert!(wrap_with(r#"{"_id":7}"#, "null").unwrap_err().detail.contains("`_id`"));
        assert!(wrap_with(r#"{"_id":"a","_id":"b"}"#, "null").is_err());
        assert!(wrap_with(r#"{"header":"a title","body":"text"}"#, "null").is_ok());
    }
}
