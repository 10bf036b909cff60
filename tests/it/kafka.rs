//! Ingest through a Kafka broker: librdkafka's mock cluster, a real producer and a real consumer. The test does what Lambda's
//! event source mapping does between the consumer and the function.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use local::inlet::{Action, Config, Fault, Inlet};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::harness::{HUB, function_of};

const PARTITIONS: i32 = 2;
const RECORDS: usize = 40;
/// Maximum time to wait for the broker.
const PATIENCE: Duration = Duration::from_secs(30);

/// A string property as Event Hubs passes it to Kafka clients.
fn amqp(text: &str) -> Vec<u8> {
    [&[0xa1, text.len() as u8], text.as_bytes()].concat()
}

/// A record as Lambda writes it.
fn record(message: &BorrowedMessage<'_>) -> Value {
    let signed = |bytes: &[u8]| bytes.iter().map(|byte| byte.cast_signed()).collect::<Vec<i8>>();
    let headers = message.headers().into_iter().flat_map(Headers::iter);
    let headers: Vec<Value> = headers.map(|header| json!({ header.key: header.value.map(signed) })).collect();
    json!({
        "topic": message.topic(), "partition": message.partition(), "offset": message.offset(),
        "timestamp": message.timestamp().to_millis().unwrap_or(-1), "timestampType": "CREATE_TIME",
        "key": message.key().map(|key| STANDARD.encode(key)),
        "value": message.payload().map(|value| STANDARD.encode(value)),
        "headers": if headers.is_empty() { Value::Null } else { headers.into() },
    })
}

/// Reads `count` records from the consumer's current position.
fn batch(consumer: &BaseConsumer, count: usize) -> Value {
    let mut records = BTreeMap::<String, Vec<Value>>::new();
    for _ in 0..count {
        let message = consumer.poll(PATIENCE).expect("a record in time").unwrap();
        records.entry(format!("{HUB}-{}", message.partition())).or_default().push(record(&message));
    }
    json!({ "eventSource": "SelfManagedKafka", "bootstrapServers": "mock:9092", "records": records })
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_kafka_consumer_reach_the_inlet() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(HUB, PARTITIONS, 1).unwrap();
    let client = |more: &[(&str, &str)]| {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers());
        for (name, value) in more {
            config.set(*name, *value);
        }
        config
    };
    let producer: BaseProducer = client(&[]).create().unwrap();
    for n in 0..RECORDS {
        let (value, id) = (format!(r#"{{"n":{n}}}"#), amqp(&format!("id-{n}")));
        let headers = OwnedHeaders::new()
            .insert(Header { key: "cloudEvents:id", value: Some(&id) })
            .insert(Header { key: "empty", value: None::<&[u8]> });
        let record = BaseRecord::<[u8], [u8]>::to(HUB).partition(n as i32 % PARTITIONS).payload(value.as_bytes());
        // Every fourth record has no headers: its id is derived from its place.
        let record = if n % 4 == 3 { record } else { record.headers(headers) };
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();

    let consumer: BaseConsumer = client(&[("group.id", "relay")]).create().unwrap();
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        partitions.add_partition_offset(HUB, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&partitions).unwrap();

    let inlet = Inlet::start(Config::default(), TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
    let (config, url, host) = (Config::default(), inlet.url(), inlet.host());
    let function = function_of(
        "platform-ingest",
        &[
            ("INLET_URL", &url),
            ("EMULATOR_HOSTS", &host),
            ("INLET_FLOW_ID", &config.flow_id),
            ("INLET_FORMAT", "xdm"),
            ("INLET_SCHEMA_ID", &config.schema_id),
            ("INLET_DATASET_ID", &config.dataset_id),
            ("INLET_ORG_ID", &config.org_id),
            ("INLET_SANDBOX", &config.sandbox),
        ],
    );
    // The inlet accepts no record: both partitions are read again from the offsets in the response.
    inlet.script([Fault { times: 0, ..Fault::from(Action::Status { status: 404, retry_after: None }) }]);
    let response = function.invoke(batch(&consumer, RECORDS).to_string().into_bytes()).await.unwrap();
    let response: Value = serde_json::from_slice(&response).unwrap();
    let failures = response["batchItemFailures"].as_array().unwrap();
    assert_eq!(failures.len(), 2, "{response}");
    inlet.clear_faults();
    for failure in failures {
        let item = &failure["itemIdentifier"];
        let partition = item["partition"].as_str().unwrap().strip_prefix(&format!("{HUB}-")).unwrap().parse().unwrap();
        consumer.seek(HUB, partition, Offset::Offset(item["offset"].as_i64().unwrap()), PATIENCE).unwrap();
    }
    let response = function.invoke(batch(&consumer, RECORDS).to_string().into_bytes()).await.unwrap();
    assert_eq!(response, br#"{"batchItemFailures":[]}"#);

    let taken = inlet.taken();
    for partition in 0..PARTITIONS as usize {
        let of_partition: Vec<Value> = taken
            .iter()
            .filter(|taken| taken.record["n"].as_u64().unwrap() as usize % PARTITIONS as usize == partition)
            .map(|taken| taken.record.clone())
            .collect();
        let expected: Vec<Value> = (partition..RECORDS)
            .step_by(PARTITIONS as usize)
            .map(|n| {
                let offset = (n / PARTITIONS as usize).to_string();
                let place = || shared::deterministic_id([HUB, &partition.to_string(), &offset]);
                json!({ "_id": if n % 4 == 3 { place() } else { format!("id-{n}") }, "n": n })
            })
            .collect();
        assert_eq!(of_partition, expected, "partition {partition}, in order");
    }
}
