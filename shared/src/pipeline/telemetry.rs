//! The log line that an invocation writes for each flow. It is also its metrics, in CloudWatch's embedded metric format
//! (<https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>).
//!
//! It is written here and not by a metrics crate, because it is on the path of every event: one buffer, one system call, and one
//! line for readers and metrics.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use super::Outcome;
use super::services::Services;
use crate::clock::rfc3339;
use crate::contract::log_line::{CAUSES, FLOW, HUB_PROBLEM, KIND, LEVEL, MESSAGE, NOTES, REQUEST_ID, TIMESTAMP};
use crate::contract::metrics::{self, Metric, NAMESPACE};
use crate::event_hubs::response::Cause;
use crate::event_hubs::{self, Report};
use crate::json::push_string;
use crate::kind::Reason;
use crate::pipeline::mapping::Notes;

/// The classes by which a sender's own connector reports errors.
fn of_cause(cause: Cause) -> Metric {
    match cause {
        Cause::Timeout => metrics::ERRORS_TIMEOUT,
        Cause::Unauthorized | Cause::TokenExpired | Cause::Forbidden => metrics::ERRORS_INVALID_CREDENTIALS,
        _ => metrics::ERRORS_OTHER,
    }
}

/// The outcome of a flow's events in one invocation.
#[derive(Debug, Default)]
pub struct Counts {
    pub received: usize,
    pub filtered: usize,
    pub rejected: BTreeMap<Reason, usize>,
    pub delivered: usize,
    pub parked: usize,
    pub duplicates: usize,
    pub notes: Notes,
    /// Why messages could not be delivered at once.
    pub causes: BTreeMap<Cause, usize>,
    pub requests: u32,
    pub retries: u32,
    pub throttled: u32,
    pub sending: Option<Duration>,
    /// The last failure: a status and code of the hub, or why there was no response.
    pub problem: Option<String>,
    /// What an operator should look at, by cause, as the failures themselves show it.
    pub hints: BTreeMap<Cause, Cow<'static, str>>,
}

impl Counts {
    pub fn reject(&mut self, reason: Reason) {
        *self.rejected.entry(reason).or_default() += 1;
    }

    /// Counts what happened to a body, without the hub's report and the rejected events.
    pub fn add(&mut self, outcome: &Outcome) {
        self.parked += outcome.parked;
        for (note, count) in &outcome.notes {
            *self.notes.entry(note).or_default() += count;
        }
    }

    /// Counts rejected events.
    pub fn add_rejected(&mut self, reasons: impl IntoIterator<Item = Reason>) {
        reasons.into_iter().for_each(|reason| self.reject(reason));
    }

    pub fn sent(&mut self, report: &Report) {
        for outcome in &report.outcomes {
            match outcome {
                event_hubs::Outcome::Delivered => self.delivered += 1,
                event_hubs::Outcome::Unsent(cause) => *self.causes.entry(*cause).or_default() += 1,
                event_hubs::Outcome::Refused(_) => {}
            }
        }
        self.requests += report.requests;
        self.retries += report.retries;
        self.throttled += report.throttled;
        self.sending = self.sending.max(Some(report.took));
        if report.problem.is_some() {
            self.problem.clone_from(&report.problem);
        }
        self.hints.extend(report.hints.clone());
    }

    /// What an operator should look at, for each cause that time alone does not remove.
    pub fn hints(&self) -> impl Iterator<Item = (Cause, &str)> {
        self.causes.keys().filter_map(|cause| {
            let observed = self.hints.get(cause).map(|hint| hint.as_ref());
            Some((*cause, observed.or(cause.hint())?))
        })
    }
}

/// A line that is being written.
#[derive(Debug)]
pub struct Line {
    text: Vec<u8>,
    /// The metrics' part of `_aws`.
    metrics: Vec<u8>,
    milliseconds: u128,
    by_flow: bool,
}

impl Line {
    /// A line about the events of one flow; `flow` is `None` if they name a flow that does not exist.
    pub fn new(services: &Services, kind: &str, flow: Option<&str>, request_id: &str) -> Self {
        let milliseconds = services.hubs.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        Self::begin(milliseconds, services.metrics_by_flow, kind, flow, request_id)
    }

    fn begin(milliseconds: u128, by_flow: bool, kind: &str, flow: Option<&str>, request_id: &str) -> Self {
        let mut line = Self {
            text: Vec::with_capacity(1024),
            metrics: Vec::with_capacity(512),
            milliseconds,
            by_flow: by_flow && flow.is_some(),
        };
        let _ = write!(line.text, "{{\"{LEVEL}\":\"INFO\"");
        line.property(TIMESTAMP, &i64::try_from(milliseconds).ok().and_then(rfc3339).unwrap_or_default());
        line.property(KIND, kind);
        if let Some(flow) = flow {
            line.property(FLOW, flow);
        }
        line.property(REQUEST_ID, request_id);
        line
    }

    /// Adds a property that readers search by.
    pub fn property(&mut self, name: &str, value: &str) {
        self.name(name);
        push_string(&mut self.text, value);
    }

    pub fn number(&mut self, name: &str, value: u128) {
        self.name(name);
        let _ = write!(self.text, "{value}");
    }

    /// Adds a count, unless it is zero: a sum is the same without it.
    pub fn count(&mut self, metric: Metric, value: usize) {
        if value > 0 {
            self.metric(metric, value as u128);
        }
    }

    pub fn metric(&mut self, metric: Metric, value: u128) {
        self.number(metric.name, value);
        self.declare(metric);
    }

    /// Adds a metric with two decimal places.
    pub fn decimal(&mut self, metric: Metric, value: f64) {
        self.name(metric.name);
        let _ = write!(self.text, "{value:.2}");
        self.declare(metric);
    }

    fn declare(&mut self, Metric { name, unit }: Metric) {
        self.metrics.extend_from_slice(if self.metrics.is_empty() { b"{\"Name\":\"" } else { b",{\"Name\":\"" });
        self.metrics.extend_from_slice(name.as_bytes());
        self.metrics.extend_from_slice(b"\",\"Unit\":\"");
        self.metrics.extend_from_slice(unit.as_bytes());
        self.metrics.extend_from_slice(b"\"}");
    }

    /// Adds the outcome of the events.
    pub fn counts(&mut self, counts: &Counts) {
        self.count(metrics::RECEIVED, counts.received);
        self.count(metrics::FILTERED, counts.filtered);
        self.count(metrics::REJECTED, counts.rejected.values().sum());
        for (reason, count) in &counts.rejected {
            self.count(metrics::of_reason(*reason), *count);
        }
        self.count(metrics::DELIVERED, counts.delivered);
        self.count(metrics::PARKED, counts.parked);
        self.count(metrics::DUPLICATES, counts.duplicates);
        self.sending(counts);
        if !counts.notes.is_empty() {
            self.words(NOTES, counts.notes.iter().map(|(word, count)| (*word, *count as usize)));
        }
    }

    /// Adds the requests, their duration and the causes of failures.
    pub fn sending(&mut self, counts: &Counts) {
        self.count(metrics::REQUESTS, counts.requests as usize);
        self.count(metrics::RETRIES, counts.retries as usize);
        self.count(metrics::THROTTLED, counts.throttled as usize);
        if let Some(took) = counts.sending {
            self.metric(metrics::SEND_LATENCY, took.as_millis());
        }
        for class in [metrics::ERRORS_TIMEOUT, metrics::ERRORS_INVALID_CREDENTIALS, metrics::ERRORS_OTHER] {
            let of_class = counts.causes.iter().filter(|(cause, _)| of_cause(**cause) == class);
            self.count(class, of_class.map(|(_, count)| count).sum());
        }
        if !counts.causes.is_empty() {
            self.words(CAUSES, counts.causes.iter().map(|(cause, count)| (cause.word(), *count)));
        }
        if let Some(problem) = &counts.problem {
            self.property(HUB_PROBLEM, problem);
        }
    }

    /// Prints the line, whatever the log level, because CloudWatch reads the metrics from it.
    pub fn write(self, message: &str) {
        // A failure to write to standard output can't be reported anywhere.
        let _ = std::io::stdout().lock().write_all(&self.finish(message));
    }

    fn finish(mut self, message: &str) -> Vec<u8> {
        self.property(MESSAGE, message);
        if !self.metrics.is_empty() {
            let _ = write!(
                self.text,
                ",\"_aws\":{{\"Timestamp\":{},\"CloudWatchMetrics\":[{{\"Namespace\":\"{NAMESPACE}\",\"Dimensions\":[[\"{KIND}\"]",
                self.milliseconds,
            );
            if self.by_flow {
                let _ = write!(self.text, ",[\"{KIND}\",\"{FLOW}\"]");
            }
            self.text.extend_from_slice(b"],\"Metrics\":[");
            self.text.append(&mut self.metrics);
            self.text.extend_from_slice(b"]}]}");
        }
        self.text.extend_from_slice(b"}\n");
        self.text
    }

    fn name(&mut self, name: &str) {
        self.text.extend_from_slice(b",\"");
        self.text.extend_from_slice(name.as_bytes());
        self.text.extend_from_slice(b"\":");
    }

    /// Adds an object of counts by word.
    fn words<'w>(&mut self, name: &str, words: impl Iterator<Item = (&'w str, usize)>) {
        self.name(name);
        for (position, (word, count)) in words.enumerate() {
            self.text.push(if position == 0 { b'{' } else { b',' });
            push_string(&mut self.text, word);
            let _ = write!(self.text, ":{count}");
        }
        self.text.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::log_line::LogLine;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let counts = Counts {
            received: 3,
            delivered: 2,
            rejected: [(Reason::TooLarge, 1)].into(),
            notes: [("unknown_status", 2)].into(),
            causes: [(Cause::Throttled, 1)].into(),
            sending: Some(Duration::from_millis(40)),
            problem: Some("answered 503, \"x\"".to_owned()),
            ..Counts::default()
        };
        for (by_flow, dimensions) in
            [(true, r#""Dimensions":[["Kind"],["Kind","Flow"]],"Metrics":[{"#), (false, r#"[["Kind"]],"#)]
        {
            let mut line = Line::begin(1_767_323_045_678, by_flow, "k", Some("f \u{1}"), "r");
            line.counts(&counts);
            let text = String::from_utf8(line.finish("done")).unwrap();
            assert!(text.contains(dimensions), "{text}");
            let read = LogLine::read(&text).unwrap();
            for (property, value) in [
                (LEVEL, "INFO"),
                (TIMESTAMP, "2026-01-02T03:04:05.678Z"),
                (KIND, "k"),
                (FLOW, "f \u{1}"),
                (REQUEST_ID, "r"),
                (HUB_PROBLEM, "answered 503, \"x\""),
                (MESSAGE, "done"),
            ] {
                assert_eq!(read.text(property).as_deref(), Some(value), "{property}");
            }
            for (metric, count) in [
                (metrics::RECEIVED, 3),
                (metrics::DELIVERED, 2),
                (metrics::REJECTED, 1),
                (metrics::of_reason(Reason::TooLarge), 1),
                (metrics::ERRORS_OTHER, 1),
                (metrics::SEND_LATENCY, 40),
                (metrics::PARKED, 0),
            ] {
                assert_eq!(read.count(metric), Some(count), "{}", metric.name);
            }
        }
        let line = Line::begin(0, true, "k", None, "r").finish("done");
        let text = String::from_utf8(line).unwrap();
        assert!(LogLine::read(&text).unwrap().text(FLOW).is_none() && !text.contains("_aws"), "{text}");
    }
}
