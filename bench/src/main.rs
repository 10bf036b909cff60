#![doc = include_str!("../README.md")]

mod events;
mod http;
mod lane;
mod measure;
mod peers;
mod report;
mod sink;
mod tls;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::events::{KINDS, Kind};
use crate::measure::{Plan, Transport};

/// The reason for which a run failed, as it is printed.
pub type Problem = Box<dyn std::error::Error + Send + Sync>;

/// Measure the functions against the floor of their stack, and against Python and Node handlers
#[derive(Parser)]
#[command(name = "make bench ARGS=…")]
struct Arguments {
    /// Warm rounds of each case; the peers take turns
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Cold starts of each peer
    #[arg(long, default_value_t = 15)]
    cold: usize,
    /// Number of invocations of a round, in percent of the usual number
    #[arg(long, default_value_t = 100)]
    scale: usize,
    /// A short run that checks that everything works: 3 rounds, 5 cold starts, a tenth of the invocations
    #[arg(long)]
    quick: bool,
    /// Only these kinds
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<String>,
    /// Only these cases: `webhook`, a number of SQS records, `cold`, `delay`
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Leave out Python and Node
    #[arg(long)]
    no_peers: bool,
    /// Use plain HTTP to the sink
    #[arg(long)]
    plain: bool,
    /// Measure the existing builds
    #[arg(long)]
    no_build: bool,
    /// Measure other builds of the functions: a folder with binaries named after the kinds
    #[arg(long, value_name = "FOLDER")]
    binaries: Option<PathBuf>,
    /// CPU on which everything runs [default: the last one]
    #[arg(long)]
    cpu: Option<usize>,
    /// Path of the report, without .md and .json
    #[arg(long, default_value = "target/bench/report", value_name = "PATH")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(problem) => {
            eprintln!("bench: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the benchmark. Returns whether every bar was reached.
fn run(arguments: Arguments) -> Result<bool, Problem> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no workspace")?;
    let kinds: Vec<Kind> = if arguments.kinds.is_empty() {
        KINDS.to_vec()
    } else {
        let known = |name: &String| KINDS.into_iter().find(|kind| kind.name() == name);
        let unknown = |name: &String| format!("--kinds: no kind has the name {name}");
        arguments.kinds.iter().map(|name| known(name).ok_or_else(|| unknown(name))).collect::<Result<_, _>>()?
    };
    let work = root.join("target/bench");
    std::fs::create_dir_all(&work)?;
    if !arguments.no_build {
        peers::build(root, &kinds, arguments.binaries.is_none())?;
    }
    if !arguments.no_peers {
        peers::install(root, &work)?;
    }
    let cpu = pin(arguments.cpu)?;
    let quick = arguments.quick;
    let plan = Plan {
        kinds,
        cases: arguments.cases,
        with_peers: !arguments.no_peers,
        rounds: if quick { 3 } else { arguments.rounds.max(1) },
        cold: if quick { 5 } else { arguments.cold.max(1) },
        scale: if quick { 10 } else { arguments.scale.max(1) },
        transport: if arguments.plain { Transport::Plain } else { Transport::Tls },
        binaries: std::path::absolute(arguments.binaries.unwrap_or_else(|| root.join("target/release")))?,
        floor: root.join("target/release/floor"),
        work,
    };
    let load = report::load();
    let measured = measure::all(&plan)?;
    let report = report::Report::of(&plan, measured, cpu, load);
    print!("{}", report.markdown());
    let out = root.join(arguments.out);
    if let Some(folder) = out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(out.with_extension("md"), report.markdown())?;
    std::fs::write(out.with_extension("json"), serde_json::to_vec_pretty(&report.json())?)?;
    Ok(report.all_reached())
}

/// Pins this process, and all processes that it starts, to one CPU: wake-ups across the CPUs of a virtual machine cost more than
/// the differences that are measured. Returns the CPU.
fn pin(wanted: Option<usize>) -> Result<usize, Problem> {
    let allowed = sched_getaffinity(None)?;
    let cpu = match wanted {
        Some(cpu) => cpu,
        None => (0..CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu)).ok_or("no CPU")?,
    };
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one).map_err(|error| format!("could not pin the process to CPU {cpu}: {error}"))?;
    Ok(cpu)
}
