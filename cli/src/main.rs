#![doc = include_str!("../README.md")]

mod parked;
mod queue;
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
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed in whole or in part, 2 wrong usage

Examples:
  relayctl parked list --stack eventhubs-relay
  relayctl parked retry --stack eventhubs-relay --dead-letters --hub profiles
  relayctl parked drop --local --flow crm --older-than 6h --dry-run";

#[tokio::main]
async fn main() -> ExitCode {
    let Command::Parked(command) = Cli::parse().command;
    match parked::run(command).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("relayctl: {error}");
            if matches!(error, parked::Error::Usage(_)) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
