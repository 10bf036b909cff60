//! The long forms of the fault tests.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tests::faults::load::Plan;
use tests::faults::scenarios::{self, Faults, Outcome};
use tests::faults::system::Options;

/// Sends events through the whole system while everything fails in turns, and then accounts for every one of them.
///
/// Ends with an error when an accepted event is lost, one is in a wrong hub, or one came in without credentials.
#[derive(Parser)]
struct Arguments {
    /// Events of the load
    #[arg(long, default_value_t = 100_000)]
    events: u64,
    /// Repeats the faults of a run [default: random]
    #[arg(long, global = true)]
    seed: Option<u64>,
    /// Without a parking queue, and with senders that never repeat: events answered 503 count as lost unless they arrived.
    /// Shows that the ledger can fail
    #[arg(long)]
    without_parking: bool,
    /// No faults at all
    #[arg(long, conflicts_with = "kill_every_second")]
    without_faults: bool,
    /// Instead of random faults: SIGKILL for every function instance once per second, for so long
    #[arg(long, value_name = "SECONDS")]
    kill_every_second: Option<u64>,
    /// Senders of webhooks at the same time
    #[arg(long, default_value_t = 8)]
    senders: usize,
    /// Print what the functions log
    #[arg(short, long)]
    verbose: bool,
    #[command(subcommand)]
    scenario: Option<Scenario>,
}

#[derive(Subcommand)]
enum Scenario {
    /// Webhooks while the hubs never answer: all parked, and how long their senders waited
    Hanging {
        #[arg(long, default_value_t = 1_000)]
        webhooks: u64,
    },
    /// One namespace is down for longer than the parking queue's visibility timeout
    Outage {
        /// Four of seven flows are that namespace's
        #[arg(long, default_value_t = 18_000)]
        events: u64,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    let mut again: Vec<String> = std::env::args().skip(1).collect();
    if arguments.seed.is_none() {
        again.extend(["--seed".to_owned(), seed.to_string()]);
    }
    let again = format!("make faults ARGS='{}'", again.join(" "));
    println!("seed {seed}; again: {again}");
    let run = async {
        match arguments.scenario {
            None => run_ledger(&arguments, seed).await,
            Some(Scenario::Hanging { webhooks }) => scenarios::hanging_hub(seed, webhooks).await,
            Some(Scenario::Outage { events }) => scenarios::outage(seed, events, false).await.1,
        }
    };
    // The processes of a run end with the runtime, and so only if this one ends by itself.
    let outcome = tokio::select! {
        outcome = run => outcome,
        _ = tokio::signal::ctrl_c() => return ExitCode::FAILURE,
    };
    outcome.print();
    if outcome.kept() {
        println!("every promise was kept; lost = 0");
        return ExitCode::SUCCESS;
    }
    println!("FAILED: {} violations, {} still parked", outcome.report.violations(), outcome.report.parked);
    println!("again: {again}");
    ExitCode::FAILURE
}

async fn run_ledger(arguments: &Arguments, seed: u64) -> Outcome {
    let (faults, at_least) = match arguments.kill_every_second {
        Some(seconds) => (Faults::KillEverySecond, Duration::from_secs(seconds)),
        None if arguments.without_faults => (Faults::None, Duration::ZERO),
        None => (Faults::Random, Duration::ZERO),
    };
    // The load of kills is bound by its time.
    let events = if arguments.kill_every_second.is_some() { 5 } else { arguments.events };
    let queue_records = events * 2 / 5;
    let plan = Plan {
        seed,
        webhooks: events - queue_records,
        queue_records,
        at_least,
        rate: None,
        senders: arguments.senders,
        mixed: true,
    };
    if arguments.without_parking {
        println!("without parking: an event answered 503 is not repeated by its sender, and lost unless it arrived");
    }
    let options = Options { without_parking: arguments.without_parking, print_logs: arguments.verbose };
    scenarios::ledger(plan, faults, options).await
}
