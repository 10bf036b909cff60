//! The command line; everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use local::{demo, run};

/// Run eventhubs-relay on one machine
#[derive(Parser)]
#[command(name = "local", version)]
enum Command {
    Run(run::Options),
    Demo(demo::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Run(options) => run::run(options).await.map(|()| true).map_err(|error| error.to_string()),
        Command::Demo(options) => demo::demo(options).await.map_err(|error| error.to_string()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("local: {error}");
            ExitCode::FAILURE
        }
    }
}
