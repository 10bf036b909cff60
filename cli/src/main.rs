#![doc = include_str!("../README.md")]

mod parked;
mod queue;
mod replay;
mod report;
mod scan;
mod stop;
mod target;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Operate a deployed stack of eventhubs-relay, or the system that `make run` started
#[derive(Parser)]
#[command(name = "relayctl", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// See, retry or drop what is parked
    #[command(subcommand)]
    Parked(parked::Command),
    /// Send rejected events to their kind's queue again
    Replay(replay::Options),
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed in whole or in part, 2 wrong usage

Examples:
  relayctl parked list --stack eventhubs-relay
  relayctl parked retry --stack eventhubs-relay --dead-letters --hub profiles
  relayctl parked drop --local --flow crm --older-than 6h --dry-run
  relayctl replay --stack eventhubs-relay --reason unmappable --dry-run";

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Parked(command) => parked::run(command).await.map_err(|error| {
            let is_usage = matches!(error, parked::Error::Usage(_));
            (error.to_string(), is_usage)
        }),
        Command::Replay(options) => replay::run(options).await.map_err(|error| (error.to_string(), false)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err((error, is_usage)) => {
            eprintln!("relayctl: {error}");
            if is_usage { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
