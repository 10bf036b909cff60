//! The one line that an invocation logs for a flow: its properties, and its reading side. `pipeline::telemetry` writes it;
//! `GET /runs`, the console and the dashboards read it.

use std::borrow::Cow;

use super::metrics::Metric;
use crate::json::{self, Members};

/// The kind whose function wrote the line. A dimension of every metric.
pub const KIND: &str = "Kind";
/// The flow that the line is about; absent if its events name no flow that exists.
pub const FLOW: &str = "Flow";
pub const LEVEL: &str = "level";
pub const TIMESTAMP: &str = "timestamp";
pub const REQUEST_ID: &str = "request_id";
/// How the events came: webhook, queue or kafka.
pub const TRIGGER: &str = "trigger";
pub const MESSAGE: &str = "message";
/// Number of lines that the invocation logs, one for each flow of a batch; absent for one.
pub const LINES: &str = "lines";
pub const DURATION_MS: &str = "duration_ms";
/// Number of records that are redelivered.
pub const RECORDS_FAILED: &str = "records.failed";
/// Number of partitions of a batch of Kafka records.
pub const PARTITIONS: &str = "partitions";
/// Why an event was rejected.
pub const REASON: &str = "reason";
/// Counts of a kind's own words, by word.
pub const NOTES: &str = "notes";
/// Number of messages that could not be delivered at once, by cause.
pub const CAUSES: &str = "causes";
/// The last failure that a hub reported.
pub const HUB_PROBLEM: &str = "hub.problem";
/// The last failure that an inlet reported.
pub const INLET_PROBLEM: &str = "inlet.problem";
/// The inlet's own id of the last request that it accepted.
pub const INLET_TRANSACTION: &str = "inlet.transaction";

/// The values of `message`, by what was handled.
pub mod message {
    pub const WEBHOOK: &str = "webhook answered";
    pub const QUEUE_BATCH: &str = "queue batch handled";
    pub const PARKED_BATCH: &str = "parked batch handled";
    /// The warning about a rejected event of a batch.
    pub const REJECTED_EVENT: &str = "an event can't be delivered";
    pub const KAFKA_BATCH: &str = "batch ingested";
}

/// The kind of lines about parked messages: they count no new events.
pub const REDELIVERY: &str = "redelivery";

/// A line that was read. It borrows from the text.
#[derive(Debug, Clone)]
pub struct LogLine<'a>(Members<'a>);

impl<'a> LogLine<'a> {
    /// Reads a line; `None` if the text is not a JSON object.
    pub fn read(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok().map(Self)
    }

    /// The text of a property.
    pub fn text(&self, property: &str) -> Option<Cow<'a, str>> {
        json::text(self.member(property)?)
    }

    /// The whole number of a property.
    pub fn number(&self, property: &str) -> Option<u64> {
        self.member(property)?.parse().ok()
    }

    /// The count of a metric: zero if the line has none, since zeros are not written; `None` if it is not a whole number.
    pub fn count(&self, metric: Metric) -> Option<u64> {
        self.member(metric.name).map_or(Some(0), |number| number.parse().ok())
    }

    fn member(&self, name: &str) -> Option<&'a str> {
        self.0.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::metrics::{DELIVERED, PACE_UNITS, PARKED};

    #[test]
    fn absent_counts_are_zero_and_other_values_are_not_counts() {
        let line =
            LogLine::read(r#"{"Flow":"a\"b","Delivered":2,"PaceUnits":0.25,"Parked":"many","lines":3}"#).unwrap();
        assert_eq!(line.text(FLOW).as_deref(), Some("a\"b"));
        assert_eq!((line.text(KIND), line.text(LINES), line.number(LINES)), (None, None, Some(3)));
        assert_eq!((line.count(DELIVERED), line.count(super::super::metrics::RECEIVED)), (Some(2), Some(0)));
        assert_eq!((line.count(PARKED), line.count(PACE_UNITS)), (None, None));
        assert!(LogLine::read("START RequestId: 1").is_none() && LogLine::read("[1]").is_none());
    }
}
