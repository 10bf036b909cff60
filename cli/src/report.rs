//! What a command found and did, as text or JSON. It holds no bodies, subjects or message ids of events.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use aws_sdk_sqs::primitives::{DateTime, DateTimeFormat};
use serde::{Serialize, Serializer};
use tokio::time::Instant;

use crate::scan::{End, Group, Role, Scan, Seen};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    List,
    Retry,
    Drop,
}

/// The JSON document of `--json`: its members are relied on by scripts.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    action: Action,
    dry_run: bool,
    #[serde(serialize_with = "groups")]
    groups: BTreeMap<(Role, Group), Tally>,
    unreadable: Vec<Unreadable>,
    queues: Vec<Outcome>,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Tally {
    envelopes: usize,
    messages: usize,
    #[serde(serialize_with = "time")]
    oldest_first_seen: Option<DateTime>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Unreadable {
    queue: Role,
    message_id: String,
    problem: String,
}

/// The outcome for one queue.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    queue: Role,
    url: String,
    /// Envelopes that were looked at.
    seen: usize,
    /// Envelopes that could not be looked at, approximately.
    not_seen: usize,
    hidden: usize,
    delayed: usize,
    ended: End,
    /// Envelopes that the action was done for, or with a dry run would be.
    done: usize,
    done_messages: usize,
    /// Envelopes that the action failed for.
    failed: usize,
    problem: Option<String>,
}

/// Envelopes of a queue that an action succeeded and failed for.
#[derive(Default)]
pub struct Done {
    pub envelopes: usize,
    pub messages: usize,
    pub failed: usize,
    pub problem: Option<String>,
}

#[derive(Serialize)]
struct Row<'a> {
    queue: Role,
    #[serde(flatten)]
    group: &'a Group,
    #[serde(flatten)]
    tally: &'a Tally,
}

fn groups<S: Serializer>(groups: &BTreeMap<(Role, Group), Tally>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(groups.iter().map(|((queue, group), tally)| Row { queue: *queue, group, tally }))
}

fn time<S: Serializer>(time: &Option<DateTime>, serializer: S) -> Result<S::Ok, S::Error> {
    time.and_then(|time| time.fmt(DateTimeFormat::DateTime).ok()).serialize(serializer)
}

impl Report {
    pub fn new(action: Action, dry_run: bool) -> Self {
        Self { action, dry_run, groups: BTreeMap::new(), unreadable: Vec::new(), queues: Vec::new() }
    }

    pub fn add(&mut self, queue: Role, seen: &Seen) {
        match &seen.contents {
            Ok(contents) => {
                let tally = self.groups.entry((queue, contents.group.clone())).or_default();
                tally.envelopes += 1;
                tally.messages += contents.messages;
                let times = tally.oldest_first_seen.into_iter().chain(contents.first_seen);
                tally.oldest_first_seen = times.min_by(|a, b| a.as_nanos().cmp(&b.as_nanos()));
            }
            Err(problem) => {
                let (message_id, problem) = (seen.id.clone(), problem.to_string());
                self.unreadable.push(Unreadable { queue, message_id, problem });
            }
        }
    }

    pub fn end(&mut self, scan: &Scan, done: Done) {
        self.queues.push(Outcome {
            queue: scan.role,
            url: scan.queue.url.clone(),
            seen: scan.seen,
            not_seen: scan.unseen,
            hidden: scan.hidden,
            delayed: scan.delayed,
            ended: scan.ended,
            done: done.envelopes,
            done_messages: done.messages,
            failed: done.failed,
            problem: done.problem,
        });
    }

    pub fn has_failed(&self) -> bool {
        self.queues.iter().any(|queue| queue.failed > 0)
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("texts and numbers always serialise") + "\n"
    }

    /// The groups and what can't be read.
    pub fn table(&self) -> String {
        let mut rows = vec![
            ["QUEUE", "HOST", "HUB", "KIND", "FLOW", "REASON", "ENVELOPES", "MESSAGES", "OLDEST"].map(str::to_owned),
        ];
        rows.extend(self.groups.iter().map(|((queue, group), tally)| {
            let oldest = tally.oldest_first_seen.and_then(|time| time.fmt(DateTimeFormat::DateTime).ok());
            let Group { host, hub, kind, flow, reason } = group;
            // Escaped: a queue's text must not control the terminal.
            let [host, hub, kind, flow, reason] =
                [host, hub, kind, flow, reason].map(|text| text.escape_debug().to_string());
            let [envelopes, messages] = [tally.envelopes, tally.messages].map(|count| count.to_string());
            let oldest = oldest.unwrap_or_else(|| "unknown".to_owned());
            [queue.to_string(), host, hub, kind, flow, reason, envelopes, messages, oldest]
        }));
        let mut text = if rows.len() > 1 { columns(&rows) } else { "no readable envelope matches\n".to_owned() };
        if !self.unreadable.is_empty() {
            text.push_str("\nunreadable envelopes:\n");
            let rows = self.unreadable.iter().map(|unreadable| {
                [
                    unreadable.queue.to_string(),
                    unreadable.message_id.escape_debug().to_string(),
                    unreadable.problem.clone(),
                ]
            });
            text.push_str(&columns(&rows.collect::<Vec<_>>()));
        }
        text
    }

    /// A line for each queue: what was done, and what could not be looked at.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for queue in &self.queues {
            let mut line = format!("{}: {} looked at", queue.queue, counted(queue.seen, "envelope"));
            let verb = match (self.action, queue.queue) {
                (Action::List, _) => None,
                (Action::Retry, Role::Parking) => Some("made visible"),
                (Action::Retry, Role::DeadLetters) => Some("sent to the parking queue"),
                (Action::Drop, _) => Some("deleted"),
            };
            if let Some(verb) = verb {
                let verb = if self.dry_run { format!("would be {verb}") } else { verb.to_owned() };
                let done = [counted(queue.done, "envelope"), counted(queue.done_messages, "message")].join(" with ");
                let _ = write!(line, "; {done} {verb}");
            }
            if queue.failed > 0 {
                let problem = queue.problem.as_deref().unwrap_or("no reason given");
                let _ = write!(line, "; {} failed and stay: {problem}", queue.failed);
            }
            match queue.ended {
                End::Max => line.push_str("; stopped at the maximum number of envelopes (--max)"),
                End::Time => line.push_str("; stopped at the maximum time (--wait)"),
                End::Empty => {}
            }
            if queue.not_seen > 0 {
                let Outcome { not_seen, hidden, delayed, .. } = queue;
                let _ = write!(
                    line,
                    "; about {not_seen} more could not be looked at (SQS reports {hidden} hidden, {delayed} delayed)"
                );
                if queue.ended == End::Empty {
                    line.push_str(": --wait looks at them as they become visible");
                }
            }
            text.push_str(&line);
            text.push('\n');
        }
        text
    }
}

/// A number with its noun.
pub fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Aligned columns, two spaces apart.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Writes to standard output. A reader that has gone, such as `head`, is not an error.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Number of envelopes so far, on standard error: often on a terminal, else only while a scan takes long.
pub struct Progress {
    is_terminal: bool,
    shown: Instant,
}

impl Progress {
    pub fn new() -> Self {
        Self { is_terminal: io::stderr().is_terminal(), shown: Instant::now() }
    }

    pub fn show(&mut self, queue: Role, seen: usize) {
        let interval = if self.is_terminal { Duration::from_millis(200) } else { Duration::from_secs(10) };
        if self.shown.elapsed() >= interval {
            self.shown = Instant::now();
            let (before, after) = if self.is_terminal { ("\r", "") } else { ("", "\n") };
            eprint!("{before}{queue}: {} looked at{after}", counted(seen, "envelope"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_terminal {
            eprint!("\r\x1b[K");
        }
    }
}
