//! The events of the hubs and the used throughput, in memory.

use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::incoming::Incoming;

/// An event as a partition stores it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredEvent {
    pub hub: String,
    pub partition: u32,
    pub sequence_number: u64,
    /// Number of bytes that the partition received before.
    pub offset: u64,
    /// RFC 3339.
    pub enqueued_time: String,
    pub partition_key: Option<String>,
    /// The body as text; bytes that are not valid UTF-8 are replaced.
    pub body: String,
    pub properties: Map<String, Value>,
    pub batch: bool,
}

pub struct Hub {
    pub name: String,
    pub partitions: Vec<Partition>,
    next_partition: usize,
}

#[derive(Default)]
pub struct Partition {
    pub events: Vec<StoredEvent>,
    next_sequence_number: u64,
    bytes: u64,
}

/// The partition that a request's events go to.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// The partition of the first event's key; without a key, the partitions take turns.
    Any,
    Partition(u32),
    Publisher(&'a str),
}

impl Partition {
    pub fn next_sequence_number(&self) -> u64 {
        self.next_sequence_number
    }
}

impl Hub {
    pub fn new(name: String, partitions: u32) -> Self {
        let partitions = std::iter::repeat_with(Partition::default).take(partitions.max(1) as usize).collect();
        Self { name, partitions, next_partition: 0 }
    }

    /// Stores the events of a request in one partition, all or none. Returns the partition and the sequence numbers. `None`:
    /// there is no such partition.
    pub fn store(
        &mut self,
        target: &Target<'_>,
        events: Vec<Incoming>,
        now: SystemTime,
    ) -> Option<(u32, std::ops::Range<u64>)> {
        let first_key = events.first().and_then(|event| event.partition_key.as_deref());
        let index = match (*target, first_key) {
            (Target::Partition(id), _) => id as usize,
            (Target::Publisher(key), _) | (Target::Any, Some(key)) => partition_of(key, self.partitions.len()),
            (Target::Any, None) => {
                self.next_partition = (self.next_partition + 1) % self.partitions.len();
                self.next_partition
            }
        };
        let partition = self.partitions.get_mut(index)?;
        let first = partition.next_sequence_number;
        let enqueued_time = OffsetDateTime::from(now).format(&Rfc3339).unwrap_or_default();
        for event in events {
            let size = event.size() as u64;
            partition.events.push(StoredEvent {
                hub: self.name.clone(),
                partition: index as u32,
                sequence_number: partition.next_sequence_number,
                offset: partition.bytes,
                enqueued_time: enqueued_time.clone(),
                partition_key: match target {
                    Target::Publisher(id) => Some((*id).to_owned()),
                    _ => event.partition_key,
                },
                body: String::from_utf8_lossy(&event.body).into_owned(),
                properties: event.properties,
                batch: event.batch,
            });
            partition.next_sequence_number += 1;
            partition.bytes += size;
        }
        Some((index as u32, first..partition.next_sequence_number))
    }

    /// Removes the events. Sequence numbers and offsets continue.
    pub fn clear(&mut self) {
        for partition in &mut self.partitions {
            partition.events.clear();
        }
    }
}

/// The partition of a key. The service's own hash is not documented, only that a key always has the same partition.
fn partition_of(key: &str, partitions: usize) -> usize {
    let digest = Sha256::digest(key.as_bytes());
    let first = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    (first % partitions as u64) as usize
}

/// The used throughput. A unit allows 1 MB or 1000 events per second, whichever is reached first. A request that begins
/// within the limit is admitted as a whole, and its excess counts towards the following seconds.
#[derive(Default)]
pub struct Throughput {
    second: u64,
    bytes: u64,
    events: u64,
}

impl Throughput {
    pub fn admits(&mut self, units: u32, now: u64, bytes: usize, events: usize) -> bool {
        let (bytes_per_second, events_per_second) = (1_000_000 * u64::from(units), 1_000 * u64::from(units));
        let elapsed = now.saturating_sub(self.second);
        self.second = now;
        self.bytes = self.bytes.saturating_sub(bytes_per_second.saturating_mul(elapsed));
        self.events = self.events.saturating_sub(events_per_second.saturating_mul(elapsed));
        if self.bytes >= bytes_per_second || self.events >= events_per_second {
            return false;
        }
        self.bytes += bytes as u64;
        self.events += events as u64;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(key: Option<&str>) -> Incoming {
        Incoming { body: b"ab".to_vec(), properties: Map::new(), partition_key: key.map(str::to_owned), batch: true }
    }

    #[test]
    fn a_request_goes_to_one_partition_and_a_key_keeps_its_own() {
        let mut hub = Hub::new("events".into(), 4);
        for _ in 0..3 {
            assert!(
                hub.store(&Target::Any, vec![event(Some("a")), event(Some("b"))], SystemTime::UNIX_EPOCH).is_some()
            );
        }
        let filled: Vec<_> = hub.partitions.iter().filter(|partition| !partition.events.is_empty()).collect();
        assert_eq!(filled.len(), 1);
        let last = filled[0].events.last().unwrap();
        assert_eq!((last.sequence_number, last.offset, last.partition_key.as_deref()), (5, 10, Some("b")));
        assert_eq!(last.enqueued_time, "1970-01-01T00:00:00Z");
    }

    #[test]
    fn without_a_key_partitions_take_turns() {
        let mut hub = Hub::new("events".into(), 3);
        for _ in 0..6 {
            hub.store(&Target::Any, vec![event(None)], SystemTime::UNIX_EPOCH);
        }
        assert!(hub.partitions.iter().all(|partition| partition.events.len() == 2));
        assert!(hub.store(&Target::Partition(3), vec![event(None)], SystemTime::UNIX_EPOCH).is_none());
    }

    #[test]
    fn throughput_is_per_second_and_excess_counts_later() {
        let mut throughput = Throughput::default();
        assert!(throughput.admits(1, 10, 10, 999));
        assert!(throughput.admits(1, 10, 10, 1_001));
        assert!(!throughput.admits(1, 10, 10, 1));
        assert!(!throughput.admits(1, 11, 10, 1));
        assert!(throughput.admits(1, 12, 1_000_000, 1));
        assert!(!throughput.admits(1, 12, 1, 1));
        assert!(throughput.admits(2, 12, 1, 1));
    }
}
