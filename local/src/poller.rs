//! Reads a hub of the emulator and invokes a function with its events as Lambda's Kafka source does in provisioned mode, with
//! partial batch responses, a retry limit and a maximum age of records. It does not speak Kafka, and does not bisect or filter.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use shared::clock::Clock;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::sleep;

use crate::emulator::{Emulator, StoredEvent};
use crate::runner::Function;

/// Pause after a poll that found no event.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause after a batch that failed in whole or in part.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Maximum size of a batch of several records, in bytes: an event has at most 6 MB, and base64 adds a third.
const MAX_BATCH_BYTES: usize = 3_000_000;

/// Maximum number of retries if a mapping has an on-failure destination and sets no other number: Lambda does not combine
/// infinite retries with a destination (Lambda Developer Guide, "Using a Kafka topic as an on-failure destination").
const RETRIES_WITH_DESTINATION: u32 = 10;

/// The error-handling settings of a source mapping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of retries of a batch, the first attempt not counted. `None`: no limit.
    pub retries: Option<u32>,
    /// Maximum age of a record that is sent to the function. `None`: no limit.
    pub max_age: Option<Duration>,
}

impl Limits {
    /// The limits that apply to a mapping with this configuration, in the form of `CreateEventSourceMapping`.
    pub fn of(configuration: &Value) -> Self {
        // -1 and an absent number are both infinite.
        let number = |name: &str| configuration[name].as_u64();
        let destination = configuration["DestinationConfig"]["OnFailure"]["Destination"].as_str().unwrap_or_default();
        let default = (!destination.is_empty()).then_some(RETRIES_WITH_DESTINATION);
        let retries = number("MaximumRetryAttempts").map(|retries| retries.try_into().unwrap_or(u32::MAX));
        Self { retries: retries.or(default), max_age: number("MaximumRecordAgeInSeconds").map(Duration::from_secs) }
    }
}

/// Records of one partition that were discarded without success. An SQS destination receives these places, not the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discarded {
    pub partition: u32,
    pub first: u64,
    pub last: u64,
}

/// A source mapping: a hub, a function, and the next offset of each partition.
pub struct Poller {
    emulator: Emulator,
    hub: String,
    function: Function,
    alias: Option<String>,
    batch_size: usize,
    limits: Limits,
    clock: Clock,
    /// The next offset of each partition.
    next: Vec<u64>,
    /// Number of failed attempts at the next record of each partition.
    attempts: Vec<u32>,
    discarded: Vec<Discarded>,
}

/// The outcome of one poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polled {
    Nothing,
    /// `again`: number of the batch's records that are redelivered.
    Batch {
        records: usize,
        again: usize,
    },
    /// The function failed, or its response was invalid: all records are redelivered.
    Failed {
        records: usize,
    },
}

impl Poller {
    /// A mapping without limits that begins with the oldest event. With `alias`, the function is invoked through it.
    pub fn new(emulator: Emulator, hub: &str, function: Function, alias: Option<&str>, batch_size: usize) -> Self {
        let partitions = emulator.partitions(hub) as usize;
        Self {
            emulator,
            hub: hub.to_owned(),
            function,
            alias: alias.map(str::to_owned),
            batch_size,
            limits: Limits::default(),
            clock: Clock::system(),
            next: vec![0; partitions],
            attempts: vec![0; partitions],
            discarded: Vec::new(),
        }
    }

    /// The same mapping with limits. `clock` measures the age of records.
    #[must_use]
    pub fn with_limits(self, limits: Limits, clock: Clock) -> Self {
        Self { limits, clock, ..self }
    }

    /// The records that were discarded so far.
    pub fn discarded(&self) -> &[Discarded] {
        &self.discarded
    }

    /// Goes back by up to `records` in each partition, as a source does after its last commits were lost.
    pub fn rewind(&mut self, records: u64) {
        for next in &mut self.next {
            *next = next.saturating_sub(records);
        }
    }

    /// The next offset of each partition.
    pub fn offsets(&self) -> &[u64] {
        &self.next
    }

    /// Continues at these offsets.
    pub fn seek(&mut self, next: Vec<u64>) {
        self.attempts = vec![0; next.len()];
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

    /// Reads one batch and invokes the function with it.
    pub async fn poll(&mut self) -> Polled {
        self.discard_old();
        let mut batch = BTreeMap::new();
        let (mut left, mut bytes) = (self.batch_size, 0);
        for (partition, next) in self.next.iter().enumerate() {
            let mut events = self.emulator.read(&self.hub, partition as u32, *next, left);
            let fitting = events.iter().take_while(|event| {
                bytes += event.body.len();
                bytes <= MAX_BATCH_BYTES || bytes == event.body.len()
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
        let response = match self.function.invoke_alias(self.alias.as_deref(), event).await {
            Ok(response) => failures(&response, &batch)
                .ok_or("the response is not a list of failed records: all of them are redelivered".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let failures = match response {
            Ok(failures) => failures,
            Err(problem) => {
                if self.function.config().print_failures {
                    eprintln!("{}: {}: {problem}", self.function.config().name, self.hub);
                }
                for partition in 0..self.next.len() {
                    if let Some(events) = batch.get(&name(&self.hub, partition)) {
                        self.count_failure(partition, events);
                    }
                }
                return Polled::Failed { records };
            }
        };
        let mut again = 0;
        for partition in 0..self.next.len() {
            let name = name(&self.hub, partition);
            let Some(events) = batch.get(&name) else { continue };
            match failures.get(&name) {
                None => self.go_to(partition, events.last().map_or(0, |event| event.sequence_number) + 1),
                Some(failed) => {
                    if *failed > self.next[partition] {
                        self.go_to(partition, *failed);
                    }
                    self.count_failure(partition, events);
                }
            }
            again += events.iter().filter(|event| event.sequence_number >= self.next[partition]).count();
        }
        Polled::Batch { records, again }
    }

    fn go_to(&mut self, partition: usize, next: u64) {
        self.next[partition] = next;
        self.attempts[partition] = 0;
    }

    /// Counts a failed attempt. Beyond the maximum number of retries the rest of the batch is discarded.
    fn count_failure(&mut self, partition: usize, events: &[StoredEvent]) {
        self.attempts[partition] += 1;
        let Some(last) = events.last() else { return };
        if self.limits.retries.is_some_and(|retries| self.attempts[partition] > retries) {
            self.discard(partition, last.sequence_number);
        }
    }

    /// Discards the records that are older than the maximum age: they are not sent even once.
    fn discard_old(&mut self) {
        let Some(oldest) = self.limits.max_age.and_then(|age| self.clock.now().checked_sub(age)) else { return };
        for partition in 0..self.next.len() {
            let events = self.emulator.read(&self.hub, partition as u32, self.next[partition], usize::MAX);
            let old = events.iter().take_while(|event| enqueued(event).is_some_and(|time| time < oldest));
            if let Some(last) = old.last() {
                self.discard(partition, last.sequence_number);
            }
        }
    }

    fn discard(&mut self, partition: usize, last: u64) {
        self.discarded.push(Discarded { partition: partition as u32, first: self.next[partition], last });
        self.go_to(partition, last + 1);
    }
}

fn enqueued(event: &StoredEvent) -> Option<SystemTime> {
    OffsetDateTime::parse(&event.enqueued_time, &Rfc3339).ok().map(SystemTime::from)
}

fn name(hub: &str, partition: usize) -> String {
    format!("{hub}-{partition}")
}

/// The event with which Lambda invokes a function for events of a hub, by topic and partition.
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

/// A property as AMQP encodes it. JSON has only strings, longs, doubles and booleans.
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

/// The bytes as signed numbers, as Lambda writes them.
fn signed(bytes: &[u8]) -> Vec<i8> {
    bytes.iter().map(|byte| byte.cast_signed()).collect()
}

/// The offsets from which records are redelivered, by topic and partition. `None`: all of them, because the response is not a
/// valid list of failures.
fn failures(response: &[u8], batch: &BTreeMap<String, Vec<StoredEvent>>) -> Option<BTreeMap<String, u64>> {
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
    struct Response {
        batch_item_failures: Option<Vec<Failure>>,
    }
    if response.trim_ascii().is_empty() {
        return Some(BTreeMap::new());
    }
    let response: Option<Response> = serde_json::from_slice(response).ok()?;
    let mut failures = BTreeMap::new();
    for Failure { item_identifier: Identifier { partition, offset } } in
        response.and_then(|response| response.batch_item_failures).unwrap_or_default()
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
    fn a_destination_limits_retries_to_ten_unless_another_number_is_set() {
        let queue = json!({ "OnFailure": { "Destination": "arn:aws:sqs:eu-central-1:123456789012:discarded" } });
        let retries = |configuration: Value| Limits::of(&configuration).retries;
        assert_eq!(retries(json!({})), None);
        assert_eq!(retries(json!({ "MaximumRetryAttempts": -1 })), None);
        assert_eq!(retries(json!({ "DestinationConfig": queue })), Some(10));
        assert_eq!(retries(json!({ "DestinationConfig": queue, "MaximumRetryAttempts": -1 })), Some(10));
        assert_eq!(retries(json!({ "DestinationConfig": queue, "MaximumRetryAttempts": 10_000 })), Some(10_000));
        assert_eq!(retries(json!({ "DestinationConfig": { "OnFailure": { "Destination": "" } } })), None);
        let age = |seconds: i64| Limits::of(&json!({ "MaximumRecordAgeInSeconds": seconds })).max_age;
        assert_eq!((age(-1), age(86_400)), (None, Some(Duration::from_secs(86_400))));
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
    fn responses_with_other_offsets_than_the_batch_has_are_invalid() {
        let failed = |response: &str| failures(response.as_bytes(), &batch());
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
