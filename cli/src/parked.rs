//! `relayctl parked`: what waits in the parking queue and in its dead-letter queue.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use shared::clock::Clock;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::queue::{CONCURRENT_CALLS, Outgoing, Queue};
use crate::report::{Action, Done, Progress, Report, counted, print};
use crate::scan::{Filter, Limits, Role, Scan, ScanError, Seen, duration};
use crate::stop::Stop;
use crate::target::{Target, TargetError};

/// Maximum time to confirm a drop; messages stay hidden for longer.
const CONFIRM_TIME: Duration = Duration::from_secs(300);
/// Maximum value of `--wait`: SQS hides a message for at most 12 hours, and a run may wait for two queues.
const MAX_WAIT: Duration = Duration::from_secs(5 * 3600);

macro_rules! help {
    ($examples:literal) => {
        concat!(
            $examples,
            "

About looking at a queue:
  SQS shows messages only to those who receive them. This command receives what is visible, hides it while it works, and
  makes it visible again when it ends, also on Ctrl-C. If it is killed, that takes 20 minutes, or longer with a long --wait.
  Each look adds one to a message's receive count, and messages that were received 100 times become dead letters.
  Redelivery hides what it can't deliver yet for up to 30 seconds, and messages of disabled flows for 5 minutes; what it
  stores again is delayed for up to 15 minutes. Such messages are only counted, unless --wait outlasts those times."
        )
    };
}

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List what is parked, by destination, kind, flow and reason
    #[command(after_help = help!("\
Examples:
  relayctl parked list --stack eventhubs-relay
  relayctl parked list --stack eventhubs-relay --hub profiles --older-than 6h --wait 5m
  relayctl parked list --local --json"))]
    List {
        #[command(flatten)]
        selection: Selection,
    },
    /// Make parked messages visible at once, and send dead letters to the parking queue again
    ///
    /// Messages that redelivery hides become visible by themselves. A dead letter is deleted only after SQS has confirmed its copy in the
    /// parking queue; if the deletion fails, both exist, and consumers drop the duplicates by id.
    #[command(after_help = help!("\
Examples:
  relayctl parked retry --stack eventhubs-relay --dead-letters --dry-run
  relayctl parked retry --stack eventhubs-relay --dead-letters --hub profiles --max 40000"))]
    Retry {
        #[command(flatten)]
        selection: Selection,
        /// Show what would be done, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete parked messages for good
    #[command(after_help = help!("\
Examples:
  relayctl parked drop --stack eventhubs-relay --flow crm --dry-run
  relayctl parked drop --stack eventhubs-relay --flow crm --older-than 2d --to dropped.jsonl
  relayctl parked drop --local --all --yes"))]
    Drop {
        #[command(flatten)]
        selection: Selection,
        #[command(flatten)]
        options: DropOptions,
        /// Show what would be deleted, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, clap::Args)]
pub struct Selection {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    filter: Filter,
    /// Only the parking queue [default: both queues]
    #[arg(long, conflicts_with = "dead_letters", help_heading = "Filters")]
    parking: bool,
    /// Only the dead-letter queue of the parking queue
    #[arg(long, help_heading = "Filters")]
    dead_letters: bool,
    /// Maximum number of envelopes to look at in each queue; all are hidden until the command ends
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=40_000))]
    max: u32,
    /// Look until everything was seen, in each queue for at most this time, such as 90s or 20m
    #[arg(long, value_name = "DURATION", value_parser = wait)]
    wait: Option<Duration>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Default, clap::Args)]
pub struct DropOptions {
    /// Delete without asking; needed without a terminal
    #[arg(long)]
    yes: bool,
    /// Delete everything; needed without a filter
    #[arg(long, conflicts_with_all = ["host", "hub", "kind", "flow", "reason", "older_than", "unreadable"])]
    all: bool,
    /// First write the unpacked envelopes to this new file, one JSON document a line. It holds the events themselves
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Usage(&'static str),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("the parking queue has no dead-letter queue: leave out --dead-letters")]
    NoDeadLetters,
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error("the drop was not confirmed in time, nothing was deleted: run it again, or give --yes")]
    Unconfirmed,
    #[error("the envelopes can't be written to {}, nothing was deleted: {source}", path.display())]
    Backup { path: PathBuf, source: io::Error },
    #[error("could not write to standard output: {0}")]
    Output(io::Error),
    #[error("could not listen for signals: {0}")]
    Signals(io::Error),
    #[error("{} could not be made visible, SQS does so within {minutes} minutes: {problem}", counted(*.count, "envelope"))]
    Unreleased { count: usize, minutes: u64, problem: String },
}

fn wait(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|wait| if wait <= MAX_WAIT { Ok(wait) } else { Err("the maximum is 5h".to_owned()) })
}

/// One run of a command.
struct Run {
    action: Action,
    dry_run: bool,
    json: bool,
    filter: Filter,
    drop: DropOptions,
    limits: Limits,
    report: Report,
    stop: Stop,
}

/// Returns whether everything was done for every selected envelope.
pub async fn run(command: Command) -> Result<bool, Error> {
    let (action, selection, drop, dry_run) = match command {
        Command::List { selection } => (Action::List, selection, DropOptions::default(), false),
        Command::Retry { selection, dry_run } => (Action::Retry, selection, DropOptions::default(), dry_run),
        Command::Drop { selection, options, dry_run } => (Action::Drop, selection, options, dry_run),
    };
    if action == Action::Drop && selection.filter.is_empty() && !drop.all {
        return Err(Error::Usage(
            "drop needs a filter, such as --flow or --older-than; to delete everything, give --all",
        ));
    }
    if action == Action::Drop && !dry_run && !drop.yes && !io::stdin().is_terminal() {
        return Err(Error::Usage("drop can't ask for confirmation without a terminal: give --yes, or --dry-run first"));
    }
    let stop = Stop::listen().map_err(Error::Signals)?;
    let (parking, dead_letters) = selection.target.queues().await?;
    if selection.dead_letters && dead_letters.is_none() {
        return Err(Error::NoDeadLetters);
    }
    let mut scans = Vec::new();
    scans.extend((!selection.dead_letters).then(|| Scan::new(parking.clone(), Role::Parking)));
    scans.extend(dead_letters.filter(|_| !selection.parking).map(|queue| Scan::new(queue, Role::DeadLetters)));

    let now = Clock::system().unix_seconds();
    let mut run = Run {
        action,
        dry_run,
        json: selection.json,
        filter: selection.filter,
        drop,
        limits: Limits::new(selection.max as usize, selection.wait, now),
        report: Report::new(action, dry_run),
        stop,
    };
    let mut done = Vec::new();
    let worked = run.work(&mut scans, &parking, &mut done).await;
    let mut unreleased = None;
    for scan in &mut scans {
        if let Some(problem) = scan.release().await {
            unreleased = Some(Error::Unreleased { count: scan.held(), minutes: run.limits.hold_minutes(), problem });
        }
    }
    for (scan, done) in scans.iter().zip(done) {
        run.report.end(scan, done);
    }
    // What was sent again before an error is reported too.
    if worked.is_ok() || action == Action::Retry {
        let text = if run.json { run.report.json() } else { run.report.summary() };
        print(&text).map_err(Error::Output)?;
    }
    worked?;
    unreleased.map_or_else(|| Ok(!run.report.has_failed()), Err)
}

impl Run {
    /// Scans the queues and does the action; puts the outcome for each queue into `done`. The caller releases held messages,
    /// also after an error.
    async fn work(&mut self, scans: &mut [Scan], parking: &Queue, done: &mut Vec<Done>) -> Result<(), Error> {
        let mut backup = match &self.drop.to {
            Some(path) if !self.dry_run => Some(Backup::create(path)?),
            _ => None,
        };
        for (position, scan) in scans.iter_mut().enumerate() {
            done.push(Done::default());
            self.scan(scan, parking, backup.as_mut(), &mut done[position]).await?;
        }
        if !self.json {
            print(&format!("{}\n", self.report.table())).map_err(Error::Output)?;
        }
        let is_dropping = self.action == Action::Drop && !self.dry_run && self.is_confirmed(scans).await?;
        if is_dropping && let Some(backup) = backup {
            backup.finish()?;
        }
        for (scan, done) in scans.iter_mut().zip(done) {
            let (envelopes, messages) = scan.wanted();
            if is_dropping {
                done.problem = scan.delete(&scan.wanted_ids()).await;
                let (failed, failed_messages) = scan.wanted();
                (done.envelopes, done.messages) = (envelopes - failed, messages - failed_messages);
                done.failed = failed;
            } else if self.action == Action::Drop && self.dry_run
                // What is held becomes visible at the end anyway.
                || self.action == Action::Retry && scan.role == Role::Parking
            {
                (done.envelopes, done.messages) = (envelopes, messages);
            }
        }
        Ok(())
    }

    /// Looks at one queue. Dead letters are sent again page by page, so that no more than a page of bodies is in memory.
    async fn scan(
        &mut self,
        scan: &mut Scan,
        parking: &Queue,
        mut backup: Option<&mut Backup>,
        done: &mut Done,
    ) -> Result<(), Error> {
        let mut progress = Progress::new();
        scan.begin(&self.limits).await.map_err(ScanError::Call)?;
        while let Some(page) = scan.next(&self.limits, &self.filter, &self.stop).await? {
            progress.show(scan.role, scan.seen);
            let page: Vec<Seen> = page.into_iter().filter(|seen| seen.is_wanted).collect();
            for seen in &page {
                self.report.add(scan.role, seen);
            }
            if let Some(backup) = &mut backup {
                backup.write(&page)?;
            }
            if self.action == Action::Retry && scan.role == Role::DeadLetters {
                send_again(&page, scan, parking, self.dry_run, done).await;
            }
        }
        Ok(())
    }

    /// Asks whether to delete, unless `--yes` was given.
    async fn is_confirmed(&mut self, scans: &[Scan]) -> Result<bool, Error> {
        let wanted = scans.iter().map(Scan::wanted);
        let (envelopes, messages) = wanted.fold((0, 0), |sum, wanted| (sum.0 + wanted.0, sum.1 + wanted.1));
        if self.drop.yes || envelopes == 0 {
            return Ok(envelopes > 0);
        }
        eprint!("Delete {} with {} for good? [y/N] ", counted(envelopes, "envelope"), counted(messages, "message"));
        let (sender, answer) = oneshot::channel();
        // A thread of its own: the program can end while it waits.
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = sender.send(io::stdin().read_line(&mut line).map(|_| line));
        });
        match self.stop.or(timeout(CONFIRM_TIME, answer)).await {
            None => Err(ScanError::Stopped.into()),
            Some(Ok(Ok(Ok(line)))) => Ok(matches!(line.trim(), "y" | "Y" | "yes")),
            Some(_) => Err(Error::Unconfirmed),
        }
    }
}

/// Sends dead letters to the parking queue, then deletes those that SQS confirmed. A dry run only counts.
async fn send_again(page: &[Seen], scan: &mut Scan, parking: &Queue, dry_run: bool, done: &mut Done) {
    let sendings = page.iter().map(|seen| async move {
        let contents = seen.contents.as_ref().map_err(ToString::to_string)?;
        if !dry_run {
            let group_id = contents.group.message_group_id();
            let message = Outgoing { body: &seen.body, group_id: Some(&group_id), flow: None };
            parking.send(&message).await.map_err(|error| error.to_string())?;
        }
        Ok::<_, String>((seen.id.clone(), contents.messages))
    });
    let sent: Vec<_> = stream::iter(sendings).buffer_unordered(CONCURRENT_CALLS).collect().await;
    let mut confirmed = Vec::new();
    for sent in sent {
        match sent {
            Ok((id, messages)) => {
                confirmed.push(id);
                done.envelopes += 1;
                done.messages += messages;
            }
            Err(problem) => {
                done.failed += 1;
                done.problem = Some(problem);
            }
        }
    }
    if dry_run {
        return;
    }
    let held = scan.held();
    if let Some(problem) = scan.delete(&confirmed).await {
        done.failed += confirmed.len() - (held - scan.held());
        done.problem = Some(format!("sent, but not deleted, so that they exist twice: {problem}"));
    }
}

/// The file of `--to`. It is removed unless it was finished: then nothing was deleted.
struct Backup {
    path: PathBuf,
    file: BufWriter<File>,
    is_finished: bool,
}

impl Backup {
    fn create(path: &Path) -> Result<Self, Error> {
        // The file holds events, so that only its owner may read it; an existing one may be the only copy of another drop.
        let file = File::options().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|source| Error::Backup { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), is_finished: false })
    }

    fn write(&mut self, page: &[Seen]) -> Result<(), Error> {
        let written = page.iter().try_for_each(|seen| writeln!(self.file, "{}", seen.json_line()));
        written.map_err(|source| Error::Backup { path: self.path.clone(), source })
    }

    /// Returns once the file and its name are on disk.
    fn finish(mut self) -> Result<(), Error> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = self
            .file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .and_then(|()| File::open(folder)?.sync_all());
        synced.map_err(|source| Error::Backup { path: self.path.clone(), source })?;
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        if !self.is_finished {
            let _ = fs::remove_file(&self.path);
        }
    }
}
