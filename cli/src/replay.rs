//! `relayctl replay`: sends rejected events to their kind's queue again, for example after a mapping or an option was fixed.

mod queues;

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use aws_sdk_sqs::types::Message;
use shared::clock::Clock;
use shared::contract::rejected::RejectedEvent;

use self::queues::{Queues, Target};
use crate::queue::{CallError, MAX_PER_CALL, Settle};
use crate::report::{counted, print};
use crate::stop::Stop;
use crate::target::TargetError;

/// Time that received messages stay hidden from other consumers. If the program is killed, they become visible after it.
const HOLD: Duration = Duration::from_secs(600);

const HELP: &str = "\
Examples:
  relayctl replay --stack eventhubs-relay --dry-run
  relayctl replay --stack eventhubs-relay --kind audience-change --reason unmappable --limit 10
  relayctl replay --local

A rejected event is deleted only after its queue has confirmed the event. Events that are not replayed stay in the rejected
queue. Events that are rejected while the command runs stay there for the next run.";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Options {
    #[command(flatten)]
    target: Target,
    /// Only events of this kind; may be repeated, as may the next two
    #[arg(long, help_heading = "Filters")]
    kind: Vec<String>,
    /// Only events of this flow
    #[arg(long, help_heading = "Filters")]
    flow: Vec<String>,
    /// Only events rejected for this reason, such as `unmappable`
    #[arg(long, help_heading = "Filters")]
    reason: Vec<String>,
    /// Maximum number of events to replay [default: all]
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    /// Show what would be replayed, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("stopped by a signal; events that were not replayed are in the rejected queue")]
    Stopped,
    #[error("could not write to standard output: {0}")]
    Output(#[from] io::Error),
    #[error("could not listen for signals: {0}")]
    Signals(io::Error),
    #[error("{} could not be made visible, SQS does so within 10 minutes: {problem}", counted(*.count, "rejected event"))]
    Unreleased { count: usize, problem: String },
}

/// One run of the command.
struct Run<'o> {
    options: &'o Options,
    queues: Queues,
    replayed: usize,
    failed: usize,
    filtered: usize,
    /// Number of events that were rejected after the run began.
    rejected_meanwhile: usize,
    undeleted: usize,
    /// Ids of the messages whose event is in its queue, and which are to be deleted.
    sent: Vec<String>,
    /// Receipt handles of the messages that stay in the queue, by message id.
    held: BTreeMap<String, String>,
}

/// Returns whether all selected events were replayed.
pub async fn run(options: Options) -> Result<bool, Error> {
    let mut stop = Stop::listen().map_err(Error::Signals)?;
    let queues = options.target.queues().await?;
    let mut run = Run {
        options: &options,
        queues,
        replayed: 0,
        failed: 0,
        filtered: 0,
        rejected_meanwhile: 0,
        undeleted: 0,
        sent: Vec::new(),
        held: BTreeMap::new(),
    };
    let worked = stop.or(run.work()).await.unwrap_or(Err(Error::Stopped));
    // Also after a signal or an error, so that the next run does not send them again.
    let deleted = run.delete_sent().await;
    let released = run.release().await;
    print(&run.summary())?;
    worked?;
    deleted?;
    released?;
    Ok(options.dry_run || run.failed + run.undeleted == 0)
}

impl Run<'_> {
    /// Goes through the rejected queue once.
    async fn work(&mut self) -> Result<(), Error> {
        let began = Clock::system().now().duration_since(UNIX_EPOCH).unwrap_or_default();
        loop {
            let left = self.options.limit.map_or(usize::MAX, |limit| limit - self.replayed - self.failed);
            if left == 0 {
                return Ok(());
            }
            let received = self.queues.rejected.receive(left.min(MAX_PER_CALL), HOLD).await?;
            let new = self.hold(received);
            if new.is_empty() {
                return Ok(());
            }
            for message in &new {
                // An event that is replayed may be rejected again: without this, the run would never end.
                if sent_at(message).is_none_or(|sent_at| sent_at > began) {
                    self.rejected_meanwhile += 1;
                } else if self.replay(message).await? {
                    self.sent.extend(message.message_id.clone());
                }
            }
            self.delete_sent().await?;
        }
    }

    /// Remembers received messages. Returns those that were not held before, since SQS may deliver one twice.
    fn hold(&mut self, received: Vec<Message>) -> Vec<Message> {
        let is_new = |message: &Message| {
            let (Some(id), Some(handle)) = (&message.message_id, &message.receipt_handle) else { return false };
            self.held.insert(id.clone(), handle.clone()).is_none()
        };
        received.into_iter().filter(is_new).collect()
    }

    /// Replays one event if the options select it. Returns whether its message is to be deleted.
    async fn replay(&mut self, message: &Message) -> Result<bool, Error> {
        let reject = match RejectedEvent::parse(message.body.as_deref().unwrap_or_default()) {
            Ok(reject) => reject,
            Err(problem) => {
                self.failed += 1;
                let id = message.message_id.as_deref().unwrap_or_default();
                print(&format!("left: message {} is not a reject envelope ({problem})\n", id.escape_debug()))?;
                return Ok(false);
            }
        };
        if !self.options.wants(&reject) {
            self.filtered += 1;
            return Ok(false);
        }
        let is_dry = self.options.dry_run;
        let problem = match self.queues.route(&reject) {
            Err(problem) => Some(problem.to_owned()),
            Ok(_) if is_dry => None,
            Ok(route) => route.send().await.err().map(|error| error.to_string()),
        };
        match &problem {
            None => self.replayed += 1,
            Some(_) => self.failed += 1,
        }
        print(&line(&reject, problem.as_deref(), is_dry))?;
        Ok(problem.is_none() && !is_dry)
    }

    /// Deletes the messages whose event is in its queue. A message that is not deleted stays held.
    async fn delete_sent(&mut self) -> Result<(), Error> {
        let handle = |id: &String| self.held.get(id).map_or("", String::as_str);
        let handles: Vec<&str> = self.sent.iter().map(handle).collect();
        let failures = self.queues.rejected.settle(Settle::Delete, &handles).await;
        for (position, id) in std::mem::take(&mut self.sent).into_iter().enumerate() {
            if !failures.iter().any(|(failed, _)| *failed == position) {
                self.held.remove(&id);
            }
        }
        if let Some((_, problem)) = failures.first() {
            self.undeleted += failures.len();
            let events = counted(failures.len(), "replayed event");
            print(&format!(
                "{events} could not be deleted from the rejected queue ({problem}); the next run replays them again\n"
            ))?;
        }
        Ok(())
    }

    /// Makes the held messages visible.
    async fn release(&self) -> Result<(), Error> {
        let handles: Vec<&str> = self.held.values().map(String::as_str).collect();
        let failures = self.queues.rejected.settle(Settle::Release, &handles).await;
        let count = failures.len();
        failures.into_iter().next().map_or(Ok(()), |(_, problem)| Err(Error::Unreleased { count, problem }))
    }

    fn summary(&self) -> String {
        let Self { replayed, failed, filtered, rejected_meanwhile, undeleted, .. } = self;
        let verb = if self.options.dry_run { "would be replayed" } else { "replayed" };
        let undeleted = if *undeleted > 0 { format!(", {undeleted} of them not deleted") } else { String::new() };
        format!(
            "{replayed} {verb}{undeleted}; {failed} could not be; {filtered} left by the options, {rejected_meanwhile} rejected meanwhile\n"
        )
    }
}

impl Options {
    fn wants(&self, reject: &RejectedEvent<'_>) -> bool {
        let within = |list: &[String], word: &str| list.is_empty() || list.iter().any(|listed| listed == word);
        within(&self.kind, &reject.kind) && within(&self.flow, &reject.flow) && within(&self.reason, &reject.reason)
    }
}

/// Time at which the message was stored, since 1970.
fn sent_at(message: &Message) -> Option<Duration> {
    let name = aws_sdk_sqs::types::MessageSystemAttributeName::SentTimestamp;
    message.attributes.as_ref()?.get(&name)?.parse().ok().map(Duration::from_millis)
}

/// Everything about a rejected event except its body.
fn line(reject: &RejectedEvent<'_>, problem: Option<&str>, is_dry: bool) -> String {
    let outcome = match problem {
        Some(problem) => format!("left ({problem})"),
        None if is_dry => "would be replayed".to_owned(),
        None => "replayed".to_owned(),
    };
    format!(
        "{outcome}: {} {} of flow {}, {}, {} bytes: {}\n",
        reject.reason.escape_debug(),
        reject.kind.escape_debug(),
        reject.flow.escape_debug(),
        reject.received_at.escape_debug(),
        reject.body().unwrap_or_default().len(),
        reject.detail.escape_debug(),
    )
}
