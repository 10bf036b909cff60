//! The long forms of the fault tests.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tests::faults::backlog::{self, DeadHub, Drain, InFlight, Renewal, Throttled};
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
    /// Without a parking queue, and with senders that never retry: events that get 503 count as lost unless they arrived. Shows
    /// that the ledger can fail
    #[arg(long)]
    without_parking: bool,
    /// No faults at all
    #[arg(long, conflicts_with = "kill_every_second")]
    without_faults: bool,
    /// Instead of random faults: SIGKILL for every function instance once per second, for this time
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
    /// Webhooks while the hubs never respond: all are parked; shows how long their senders waited
    Hanging {
        #[arg(long, default_value_t = 1_000)]
        webhooks: u64,
    },
    /// One namespace is down for longer than the parking queue's visibility timeout
    Outage {
        /// Number of events; four of seven flows are in that namespace
        #[arg(long, default_value_t = 18_000)]
        events: u64,
    },
    /// How fast a backlog is delivered to a hub that accepts everything and responds after 30 ms
    Drain {
        /// Events in envelopes of a thousand
        #[arg(long, default_value_t = 200_000)]
        gathered: usize,
        /// Events in envelopes of their own
        #[arg(long, default_value_t = 5_000)]
        singles: usize,
        /// Instances of redelivery, for twenty pollers
        #[arg(long, default_value_t = 4)]
        instances: usize,
    },
    /// A dead hub with a large backlog, and another one that had a short outage
    DeadHub {
        /// Parked events of the dead hub
        #[arg(long, default_value_t = 200_000)]
        singles: usize,
        /// Pollers, and instances of redelivery [default: 2, then 20]
        #[arg(long)]
        concurrency: Option<usize>,
        /// Instances of redelivery, if there are fewer of them than pollers
        #[arg(long)]
        instances: Option<usize>,
        /// Only this form of a dead hub [default: both]
        #[arg(long, value_name = "refuses|hangs")]
        dead: Option<String>,
        /// Maximum delay of a parked message, in seconds
        #[arg(long, default_value_t = 30)]
        max_delay: u64,
    },
    /// A queue with a limit of 5,000 messages in flight, and a dead hub with a larger backlog
    InFlight {
        #[arg(long, default_value_t = 100_000)]
        singles: usize,
        /// Seconds that events of the other hub are parked
        #[arg(long, default_value_t = 180)]
        lasts: u64,
        #[arg(long, default_value_t = 30)]
        max_delay: u64,
    },
    /// A hub with throughput units, of which live traffic uses half
    Throttled {
        /// [default: 2, then 4]
        #[arg(long)]
        units: Option<u32>,
        #[arg(long, default_value_t = 4)]
        concurrency: usize,
        /// Seconds that are counted, after a minute that is not
        #[arg(long, default_value_t = 300)]
        counted: u64,
    },
    /// Two hundred receives, and days of waiting, on the queue's clock
    Renewal {
        #[arg(long, default_value_t = 13)]
        days: u64,
    },
    /// Kills and lost responses at each step of redelivery
    Kills {
        /// Events in envelopes of their own, for each step
        #[arg(long, default_value_t = 300)]
        events: usize,
        #[arg(long, default_value_t = 3)]
        rounds: usize,
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
        let print_logs = arguments.verbose;
        match arguments.scenario {
            None => vec![run_ledger(&arguments, seed).await],
            Some(Scenario::Hanging { webhooks }) => vec![scenarios::hanging_hub(seed, webhooks).await],
            Some(Scenario::Outage { events }) => vec![scenarios::outage(seed, events, false).await.1],
            Some(Scenario::Drain { gathered, singles, instances }) => {
                backlog::drain(seed, Drain { gathered, singles, instances, print_logs }).await
            }
            Some(Scenario::DeadHub { singles, concurrency, instances, ref dead, max_delay }) => {
                let mut outcomes = Vec::new();
                for concurrency in concurrency.map_or(vec![2, 20], |concurrency| vec![concurrency]) {
                    for hanging in [false, true] {
                        if dead.as_ref().is_some_and(|dead| (dead == "hangs") != hanging) {
                            continue;
                        }
                        let plan = DeadHub {
                            singles,
                            concurrency,
                            instances: instances.unwrap_or(concurrency),
                            hanging,
                            max_delay,
                            outage: Duration::from_secs(60),
                            counted: Duration::from_secs(150),
                            window: 60,
                            print_logs,
                        };
                        outcomes.push(backlog::dead_hub(seed, plan).await);
                    }
                }
                outcomes
            }
            Some(Scenario::InFlight { singles, lasts, max_delay }) => {
                let lasts = Duration::from_secs(lasts);
                let plan = InFlight { singles, max_in_flight: 5_000, concurrency: 4, max_delay, lasts, print_logs };
                vec![backlog::in_flight(seed, plan).await]
            }
            Some(Scenario::Throttled { units, concurrency, counted }) => {
                let mut outcomes = Vec::new();
                for units in units.map_or(vec![2, 4], |units| vec![units]) {
                    let (warm_up, counted) = (Duration::from_secs(60), Duration::from_secs(counted));
                    let plan = Throttled { units, concurrency, warm_up, counted, print_logs };
                    outcomes.push(backlog::throttled(seed, plan).await);
                }
                outcomes
            }
            Some(Scenario::Renewal { days }) => {
                let disabled = Duration::from_secs(days * 24 * 3600);
                vec![backlog::renewal(seed, Renewal { disabled, print_logs }).await]
            }
            Some(Scenario::Kills { events, rounds }) => vec![backlog::kills(seed, events, rounds, print_logs).await],
        }
    };
    // The processes of a run end with the runtime, and so only if this program ends regularly.
    let outcomes = tokio::select! {
        outcomes = run => outcomes,
        _ = tokio::signal::ctrl_c() => return ExitCode::FAILURE,
    };
    outcomes.iter().for_each(Outcome::print);
    let good = |outcome: &Outcome| outcome.kept() && outcome.too_slow.is_empty();
    if outcomes.iter().all(good) {
        println!("every promise was kept; lost = 0");
        return ExitCode::SUCCESS;
    }
    for Outcome { report, failures, too_slow, .. } in outcomes.iter().filter(|outcome| !good(outcome)) {
        let (violations, figures) = (report.violations(), failures.len() + too_slow.len());
        println!("FAILED: {violations} violations, {figures} figures, {} still parked", report.parked);
        failures.iter().chain(too_slow).for_each(|figure| println!("  {figure}"));
    }
    println!("again: {again}");
    ExitCode::FAILURE
}

async fn run_ledger(arguments: &Arguments, seed: u64) -> Outcome {
    let (faults, at_least) = match arguments.kill_every_second {
        Some(seconds) => (Faults::KillEverySecond, Duration::from_secs(seconds)),
        None if arguments.without_faults => (Faults::None, Duration::ZERO),
        None => (Faults::Random, Duration::ZERO),
    };
    // A load under kills is limited by its time.
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
        println!(
            "without parking: the sender of an event that gets 503 does not retry it, and it is lost unless it arrived"
        );
    }
    let options =
        Options { without_parking: arguments.without_parking, print_logs: arguments.verbose, ..Options::default() };
    scenarios::ledger(plan, faults, options).await
}
