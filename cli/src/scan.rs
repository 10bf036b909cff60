//! A look at a queue. SQS shows messages only to those who receive them, so a scan receives and holds them. The caller
//! deletes or releases what the scan holds, however the scan ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use aws_sdk_sqs::primitives::{DateTime, DateTimeFormat};
use aws_sdk_sqs::types::Message;
use futures_util::future::join_all;
use serde::Serialize;
use shared::contract::Unreadable;
use shared::contract::parked::{Envelope, message_group, unpacked};
use tokio::time::Instant;

use crate::queue::{CallError, Counts, MAX_PER_CALL, Queue, Settle};
use crate::stop::Stop;

/// Maximum time to scan a queue without `--wait`. Redelivery does not see what the scan holds.
const SCAN_TIME: Duration = Duration::from_secs(300);
/// Maximum number of queues of a run.
const QUEUES: u32 = 2;
/// Time that received messages stay hidden after the longest possible scans: for a question, for sending and for deleting.
const SETTLE_TIME: Duration = Duration::from_secs(600);
/// Number of receive calls in flight together. Redelivery polls for the same messages; a single call would rarely receive one.
const RECEIVERS: usize = 8;

#[derive(Debug, clap::Args)]
pub struct Filter {
    /// Only envelopes for this namespace, as `list` shows it; may be repeated, as may the next four
    #[arg(long, help_heading = "Filters")]
    pub host: Vec<String>,
    /// Only envelopes for this event hub
    #[arg(long, help_heading = "Filters")]
    pub hub: Vec<String>,
    /// Only envelopes of this event kind
    #[arg(long, help_heading = "Filters")]
    pub kind: Vec<String>,
    /// Only envelopes of this flow
    #[arg(long, help_heading = "Filters")]
    pub flow: Vec<String>,
    /// Only envelopes parked for this reason, such as `unavailable`
    #[arg(long, help_heading = "Filters")]
    pub reason: Vec<String>,
    /// Only envelopes first seen at least this long ago, such as 90s, 30m, 6h or 2d
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Filters")]
    pub older_than: Option<Duration>,
    /// Only envelopes that can't be read
    #[arg(
        long,
        conflicts_with_all = ["host", "hub", "kind", "flow", "reason", "older_than"],
        help_heading = "Filters"
    )]
    pub unreadable: bool,
}

/// A duration of one unit, such as 6h.
pub fn duration(text: &str) -> Result<Duration, String> {
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    units
        .into_iter()
        .find_map(|(unit, seconds)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| "expected a whole number and a unit, such as 90s, 30m, 6h or 2d".to_owned())
}

impl Filter {
    pub fn is_empty(&self) -> bool {
        let lists = [&self.host, &self.hub, &self.kind, &self.flow, &self.reason];
        lists.iter().all(|list| list.is_empty()) && self.older_than.is_none() && !self.unreadable
    }

    fn wants(&self, contents: &Result<Contents, Unreadable>, now: u64) -> bool {
        let Ok(Contents { group, first_seen, .. }) = contents else {
            return self.unreadable || self.is_empty();
        };
        let within = |list: &[String], word: &str| list.is_empty() || list.iter().any(|listed| listed == word);
        let is_old = |age: Duration| {
            first_seen.is_some_and(|first_seen| first_seen.secs().saturating_add_unsigned(age.as_secs()) <= now as i64)
        };
        !self.unreadable
            && within(&self.host, &group.host)
            && within(&self.hub, &group.hub)
            && within(&self.kind, &group.kind)
            && within(&self.flow, &group.flow)
            && within(&self.reason, &group.reason)
            && self.older_than.is_none_or(is_old)
    }
}

/// The destination, kind, flow and reason by which envelopes are counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Group {
    pub host: String,
    pub hub: String,
    pub kind: String,
    pub flow: String,
    pub reason: String,
}

impl Group {
    /// The `MessageGroupId` of the parking queue: fairness is between destinations.
    pub fn message_group_id(&self) -> String {
        message_group(&self.host, &self.hub)
    }
}

/// The part of an envelope that is safe to show.
#[derive(Debug)]
pub struct Contents {
    pub group: Group,
    pub messages: usize,
    /// `None`: not a time.
    pub first_seen: Option<DateTime>,
}

/// A message that the scan has received for the first time.
pub struct Seen {
    pub id: String,
    pub body: String,
    pub contents: Result<Contents, Unreadable>,
    pub is_wanted: bool,
}

impl Seen {
    /// The unpacked envelope on one line. A body that can't be read is written unchanged, in a JSON object of its own.
    pub fn json_line(&self) -> String {
        match (&self.contents, unpacked(&self.body)) {
            // A line break within JSON is white space: texts have it escaped.
            (Ok(_), Ok(json)) => json.replace(['\n', '\r'], " "),
            _ => serde_json::json!({ "unreadable": self.body }).to_string(),
        }
    }
}

/// Which of the two queues of parked messages a queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Parking,
    DeadLetters,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parking => "parking",
            Self::DeadLetters => "dead letters",
        })
    }
}

/// Limits of a whole run, which may scan two queues.
pub struct Limits {
    /// Maximum number of envelopes of one queue.
    max: usize,
    /// Unix time that ages are counted from.
    now: u64,
    waits: bool,
    /// Maximum time for one queue.
    time: Duration,
    hold: Duration,
}

impl Limits {
    pub fn new(max: usize, wait: Option<Duration>, now: u64) -> Self {
        let time = wait.unwrap_or(SCAN_TIME);
        Self { max, now, waits: wait.is_some(), time, hold: time * QUEUES + SETTLE_TIME }
    }

    /// Maximum time that a message stays hidden if it is not released.
    pub fn hold_minutes(&self) -> u64 {
        self.hold.as_secs().div_ceil(60)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// Nothing is visible any more.
    Empty,
    Max,
    Time,
}

#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("stopped by a signal")]
    Stopped,
}

struct Held {
    handle: String,
    is_wanted: bool,
    messages: usize,
}

pub struct Scan {
    pub queue: Queue,
    pub role: Role,
    pub seen: usize,
    pub ended: End,
    /// Numbers that SQS last reported, without what this scan holds.
    pub hidden: usize,
    pub delayed: usize,
    pub unseen: usize,
    /// Held messages by their message id.
    held: BTreeMap<String, Held>,
    until: Instant,
}

impl Scan {
    pub fn new(queue: Queue, role: Role) -> Self {
        let (held, until) = (BTreeMap::new(), Instant::now());
        Self { queue, role, seen: 0, ended: End::Empty, hidden: 0, delayed: 0, unseen: 0, held, until }
    }

    pub async fn begin(&mut self, limits: &Limits) -> Result<(), CallError> {
        self.until = Instant::now() + limits.time;
        self.count().await
    }

    /// Reads how many messages the queue has. The sum stays the same when messages are received, so that it can be compared
    /// with what the scan holds although SQS reports it late.
    async fn count(&mut self) -> Result<(), CallError> {
        let counts: Counts = self.queue.counts().await?;
        self.hidden = counts.hidden.saturating_sub(self.held.len());
        self.delayed = counts.delayed;
        self.unseen = counts.total().saturating_sub(self.held.len());
        Ok(())
    }

    /// Receives messages that were not seen before; `None` at the end of the scan.
    pub async fn next(
        &mut self,
        limits: &Limits,
        filter: &Filter,
        stop: &Stop,
    ) -> Result<Option<Vec<Seen>>, ScanError> {
        loop {
            if stop.requested() {
                return Err(ScanError::Stopped);
            }
            let room = limits.max - self.seen;
            if room == 0 || Instant::now() >= self.until {
                self.ended = if room == 0 { End::Max } else { End::Time };
                return Ok(None);
            }
            let calls = (0..room).step_by(MAX_PER_CALL).take(RECEIVERS);
            let calls = calls.map(|taken| self.queue.receive((room - taken).min(MAX_PER_CALL), limits.hold));
            let mut new = Vec::new();
            let mut failed = None;
            for received in join_all(calls).await {
                match received {
                    Ok(received) => new.extend(self.hold(received, filter, limits.now)),
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(error) = failed {
                return Err(error.into());
            }
            if !new.is_empty() {
                return Ok(Some(new));
            }
            if limits.waits {
                self.count().await?;
            }
            if !limits.waits || self.unseen == 0 {
                return Ok(None);
            }
        }
    }

    /// Remembers received messages and returns those that were not held before, since SQS may deliver one twice.
    fn hold(&mut self, received: Vec<Message>, filter: &Filter, now: u64) -> Vec<Seen> {
        let mut new = Vec::new();
        for message in received {
            let (Some(id), Some(handle)) = (message.message_id, message.receipt_handle) else { continue };
            if let Some(held) = self.held.get_mut(&id) {
                held.handle = handle;
                continue;
            }
            let body = message.body.unwrap_or_default();
            let contents = read(&body);
            let is_wanted = filter.wants(&contents, now);
            let messages = contents.as_ref().map_or(0, |contents| contents.messages);
            self.held.insert(id.clone(), Held { handle, is_wanted, messages });
            new.push(Seen { id, body, contents, is_wanted });
        }
        self.seen += new.len();
        self.unseen = self.unseen.saturating_sub(new.len());
        new
    }

    /// Envelopes and messages that are held and wanted.
    pub fn wanted(&self) -> (usize, usize) {
        let wanted = self.held.values().filter(|held| held.is_wanted);
        wanted.fold((0, 0), |(envelopes, messages), held| (envelopes + 1, messages + held.messages))
    }

    pub fn wanted_ids(&self) -> Vec<String> {
        self.held.iter().filter(|(_, held)| held.is_wanted).map(|(id, _)| id.clone()).collect()
    }

    /// Deletes held messages. A message that can't be deleted stays held. Returns the first problem.
    pub async fn delete(&mut self, ids: &[String]) -> Option<String> {
        self.settle(Settle::Delete, ids).await
    }

    /// Makes all held messages visible. A message that can't be released stays held. Returns the first problem.
    pub async fn release(&mut self) -> Option<String> {
        let ids: Vec<String> = self.held.keys().cloned().collect();
        self.settle(Settle::Release, &ids).await
    }

    pub fn held(&self) -> usize {
        self.held.len()
    }

    async fn settle(&mut self, settle: Settle, ids: &[String]) -> Option<String> {
        let handles: Vec<&str> =
            ids.iter().filter_map(|id| self.held.get(id)).map(|held| held.handle.as_str()).collect();
        let failures = self.queue.settle(settle, &handles).await;
        let failed: BTreeSet<usize> = failures.iter().map(|(position, _)| *position).collect();
        for (_, id) in ids.iter().enumerate().filter(|(position, _)| !failed.contains(position)) {
            self.held.remove(id);
        }
        failures.into_iter().next().map(|(_, problem)| problem)
    }
}

fn read(body: &str) -> Result<Contents, Unreadable> {
    let json = unpacked(body)?;
    let envelope = Envelope::parse(&json)?;
    let messages = envelope.messages().count();
    let Envelope { head, .. } = envelope;
    Ok(Contents {
        messages,
        first_seen: DateTime::from_str(&head.first_seen, DateTimeFormat::DateTimeWithOffset).ok(),
        group: Group {
            host: head.host.into_owned(),
            hub: head.hub.into_owned(),
            kind: head.kind.into_owned(),
            flow: head.flow.into_owned(),
            reason: head.reason.into_owned(),
        },
    })
}
