//! Reads a hub of the emulator and invokes a function with its events as Lambda's Kafka source does in provisioned mode, with
//! partial batch answers. Kafka itself is not spoken; retry limits, bisection and filters are not played.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::sleep;

use crate::emulator::{Emulator, StoredEvent};
use crate::runner::Function;

/// Between two looks at a hub that has nothing new.
const PAUSE: Duration = Duration::from_millis(100);
/// After a batch that failed, or of which something did.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// A batch that has as many is not made larger: an event has 6 MB at most, and base64 adds a third.
const ENOUGH_BYTES: usize = 3_000_000;

/// A source mapping: a hub, a function, and how far each partition was read.
pub struct Poller {
    emulator: Emulator,
    hub: String,
    function: Function,
    alias: Option<String>,
    batch_size: usize,
    /// Of each partition the offset that comes next.
    next: Vec<u64>,
}

/// What became of one look at the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polled {
    Nothing,
    /// Records of the batch, and how many of them come again.
    Batch {
        records: usize,
        again: usize,
    },
    /// The function failed, or its answer can't be trusted: all of them come again.
    Failed {
        records: usize,
    },
}

impl Poller {
    /// Begins with the oldest event. With `alias` the function is invoked by that alias.
    pub fn new(emulator: Emulator, hub: &str, function: Function, alias: Option<&str>, batch_size: usize) -> Self {
        let next = vec![0; emulator.partitions(hub) as usize];
        Self { emulator, hub: hub.to_owned(), function, alias: alias.map(str::to_owned), batch_size, next }
    }

    /// Goes back, as a source does whose last commits were lost: of each partition up to `records` come again.
    pub fn rewind(&mut self, records: u64) {
        for next in &mut self.next {
            *next = next.saturating_sub(records);
        }
    }

    /// Of each partition the offset that comes next.
    pub fn offsets(&self) -> &[u64] {
        &self.next
    }

    /// Goes on there.
    pub fn seek(&mut self, next: Vec<u64>) {
        self.next = next;
    }

    /// Polls until the future is dropped.
    pub async fn run(mut self) {
        loop {
            match self.poll().await {
                Polled::Batch { again: 0, .. } => {}
                Polled::Nothing => sleep(PAUSE).await,
                Polled::Batch { .. } | Polled::Failed { .. } => sleep(RETRY_PAUSE).await,
            }
        }
    }

    /// One batch.
    pub async fn poll(&mut self) -> Polled {
        let mut batch = BTreeMap::new();
        let (mut left, mut bytes) = (self.batch_size, 0);
        for (partition, next) in self.next.iter().enumerate() {
            let mut events = self.emulator.read(&self.hub, partition as u32, *next, left);
            let fitting = events.iter().take_while(|event| {
                bytes += event.body.len();
                bytes <= ENOUGH_BYTES || bytes == event.body.len()
            });
            events.truncate(fitting.count());
            left -= events.len();
            if !events.is_empty() {
                batch.insert(name(&self.hub, partition), events);
            }
        }
        let records = batch.values().map(Vec::len).sum();
        if records == 0 {
            return Polled::Nothing;
        }
        let event = kafka_event(&self.hub, &batch).to_string().into_bytes();
        let answer = match self.function.invoke_alias(self.alias.as_deref(), event).await {
            Ok(answer) => failures(&answer, &batch).ok_or("the answer is no list of failed records".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let failures = match answer {
            Ok(failures) => failures,
            Err(problem) => {
                if self.function.config().print_failures {
                    eprintln!("{}: {}: {problem}", self.function.config().name, self.hub);
                }
                return Polled::Failed { records };
            }
        };
        let mut again = 0;
        for (partition, next) in self.next.iter_mut().enumerate() {
            let name = name(&self.hub, partition);
            let Some(events) = batch.get(&name) else { continue };
            let last = events.last().map_or(0, |event| event.sequence_number);
            *next = failures.get(&name).copied().unwrap_or(last + 1);
            again += events.iter().filter(|event| event.sequence_number >= *next).count();
        }
        Polled::Batch { records, again }
    }
}

fn name(hub: &str, partition: usize) -> String {
    format!("{hub}-{partition}")
}

/// The event that Lambda hands over for events of a hub, by topic and partition.
pub fn kafka_event(hub: &str, batch: &BTreeMap<String, Vec<StoredEvent>>) -> Value {
    let records: Map<String, Value> = batch
        .iter()
        .map(|(name, events)| (name.clone(), events.iter().map(|event| record(hub, event)).collect()))
        .collect();
    json!({ "eventSource": "SelfManagedKafka", "bootstrapServers": "local.servicebus.windows.net:9093", "records": records })
}

fn record(hub: &str, event: &StoredEvent) -> Value {
    let enqueued = OffsetDateTime::parse(&event.enqueued_time, &Rfc3339);
    let timestamp = enqueued.map_or(-1, |time| (time.unix_timestamp_nanos() / 1_000_000) as i64);
    let headers: Vec<Value> =
        event.properties.iter().map(|(name, value)| json!({ name.as_str(): signed(&amqp(value)) })).collect();
    json!({
        "topic": hub, "partition": event.partition, "offset": event.sequence_number,
        "timestamp": timestamp, "timestampType": "LOG_APPEND_TIME",
        "key": event.partition_key.as_ref().map(|key| STANDARD.encode(key)),
        "value": STANDARD.encode(&event.body),
        "headers": headers,
    })
}

/// A property as AMQP encodes it: strings, longs, doubles and booleans, which are all that JSON makes.
fn amqp(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => match u8::try_from(text.len()) {
            Ok(length) => [&[0xa1, length], text.as_bytes()].concat(),
            Err(_) => [&[0xb1], (text.len() as u32).to_be_bytes().as_slice(), text.as_bytes()].concat(),
        },
        Value::Bool(value) => vec![if *value { 0x41 } else { 0x42 }],
        Value::Number(number) => match number.as_i64() {
            Some(number) => [&[0x81], number.to_be_bytes().as_slice()].concat(),
            None => [&[0x82], number.as_f64().unwrap_or_default().to_be_bytes().as_slice()].concat(),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => vec![0x40],
    }
}

/// Lambda writes bytes as Java has them.
fn signed(bytes: &[u8]) -> Vec<i8> {
    bytes.iter().map(|byte| byte.cast_signed()).collect()
}

/// The offsets from which records come again, by topic and partition; `None`: all of them, since the answer can't be trusted.
fn failures(answer: &[u8], batch: &BTreeMap<String, Vec<StoredEvent>>) -> Option<BTreeMap<String, u64>> {
    #[derive(Deserialize)]
    struct Identifier {
        partition: String,
        offset: u64,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Failure {
        item_identifier: Identifier,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        batch_item_failures: Option<Vec<Failure>>,
    }
    if answer.trim_ascii().is_empty() {
        return Some(BTreeMap::new());
    }
    let answer: Option<Answer> = serde_json::from_slice(answer).ok()?;
    let mut failures = BTreeMap::new();
    for Failure { item_identifier: Identifier { partition, offset } } in
        answer.and_then(|answer| answer.batch_item_failures).unwrap_or_default()
    {
        batch.get(&partition)?.iter().find(|event| event.sequence_number == offset)?;
        let first = failures.entry(partition).or_insert(offset);
        *first = offset.min(*first);
    }
    Some(failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> BTreeMap<String, Vec<StoredEvent>> {
        let event = |sequence_number| StoredEvent {
            hub: "profiles".into(),
            partition: 0,
            sequence_number,
            offset: 0,
            enqueued_time: "2018-12-17T22:10:50.987Z".into(),
            partition_key: Some("lead-7".into()),
            body: r#"{"a":1}"#.into(),
            properties: json!({ "eventType": "NEW", "n": 7 }).as_object().unwrap().clone(),
            batch: true,
        };
        BTreeMap::from([("profiles-0".to_owned(), vec![event(15), event(16)])])
    }

    #[test]
    fn events_become_records_as_lambda_writes_them() {
        let event = kafka_event("profiles", &batch());
        assert_eq!(
            event["records"]["profiles-0"][0],
            json!({
                "topic": "profiles", "partition": 0, "offset": 15, "timestamp": 1_545_084_650_987_i64,
                "timestampType": "LOG_APPEND_TIME", "key": "bGVhZC03", "value": "eyJhIjoxfQ==",
                "headers": [{ "eventType": [-95, 3, 78, 69, 87] }, { "n": [-127, 0, 0, 0, 0, 0, 0, 0, 7] }],
            })
        );
        assert_eq!(amqp(&json!("x".repeat(300)))[..5], [0xb1, 0, 0, 1, 44]);
    }

    #[test]
    fn answers_are_trusted_only_with_offsets_of_the_batch() {
        let failed = |answer: &str| failures(answer.as_bytes(), &batch());
        for success in ["", "null", "{}", r#"{"batchItemFailures":null}"#, r#"{"batchItemFailures":[]}"#] {
            assert_eq!(failed(success), Some(BTreeMap::new()), "{success}");
        }
        let of = |partition: &str, offset: u64| {
            json!({ "batchItemFailures": [{ "itemIdentifier": { "partition": partition, "offset": offset } }] })
                .to_string()
        };
        assert_eq!(failed(&of("profiles-0", 16)), Some(BTreeMap::from([("profiles-0".to_owned(), 16)])));
        for failure in
            ["{", r#"{"batchItemFailures":[{"itemIdentifier":"15"}]}"#, &of("profiles-1", 15), &of("profiles-0", 17)]
        {
            assert_eq!(failed(failure), None, "{failure}");
        }
    }
}
