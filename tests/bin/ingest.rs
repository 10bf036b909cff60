//! Measures ingest into Adobe Experience Platform: 10,000 records in one invocation, with the emulator of the inlet on the same
//! machine. Use the release build of both; a debug build would measure the emulator:
//! `cargo build --release -p platform-ingest -p tests && target/release/ingest`. The CPU time is that of the function only.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use local::inlet::{Config, Inlet};
use local::runner::{Function, FunctionConfig};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;

const HUB: &str = "profiles";
const PARTITIONS: usize = 4;
const RECORDS: usize = 10_000;
const ROUNDS: usize = 11;
/// Unit of the times in `/proc`: the kernel's `USER_HZ` is 100 on all supported machines.
const TICK: Duration = Duration::from_millis(10);

/// A Kafka event of 10,000 records whose values have about `size` bytes.
fn event(size: usize) -> Vec<u8> {
    let text = |n: usize| format!("{n:08}").repeat(size / 8);
    let record = |n: usize| {
        let value = json!({ "eventType": "web.webpagedetails.pageViews", "_tenant": { "text": text(n) } }).to_string();
        let id: Vec<i16> = [&[0xa1, 64], format!("{n:064x}").as_bytes()].concat().into_iter().map(i16::from).collect();
        json!({
            "topic": HUB, "partition": n % PARTITIONS, "offset": n / PARTITIONS, "timestamp": 1_545_084_650_987_u64,
            "timestampType": "LOG_APPEND_TIME", "key": null, "value": STANDARD.encode(value),
            "headers": [{ "cloudEvents:id": id }],
        })
    };
    let partition = |p: usize| (format!("{HUB}-{p}"), (p..RECORDS).step_by(PARTITIONS).map(record).collect::<Value>());
    let records: Map<String, Value> = (0..PARTITIONS).map(partition).collect();
    json!({ "eventSource": "SelfManagedKafka", "records": records }).to_string().into_bytes()
}

/// CPU time of the processes of a program.
fn cpu_time(program: &Path) -> Duration {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let own_processes =
        processes.filter(|process| fs::read_link(process.path().join("exe")).is_ok_and(|exe| exe == program));
    let ticks = own_processes.filter_map(|process| {
        let stat = fs::read_to_string(process.path().join("stat")).ok()?;
        // The fields after the name: state is field 3; user and system time are 14 and 15.
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u32>().ok()? + fields.get(12)?.parse::<u32>().ok()?)
    });
    TICK * ticks.sum()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let own = std::env::current_exe()?;
    let program: PathBuf = own.ancestors().nth(2).unwrap_or(&own).join("release/platform-ingest");
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let inlet = Inlet::start(Config { unlimited: true, ..Config::default() }, listener).await;
    let expected = Config::default();
    println!("| format | records of a request | event, MB | requests | wall, ms | records/s | CPU of a record, µs |");
    println!("|---|---|---|---|---|---|---|");
    for (format, most, size) in [("xdm", "100", 112), ("xdm", "1000", 112), ("raw", "1", 112)] {
        let mut config = FunctionConfig::new("platform-ingest", &program);
        config.timeout = Duration::from_secs(300);
        let mut environment = vec![
            ("INLET_URL", inlet.url()),
            ("EMULATOR_HOSTS", inlet.host()),
            ("INLET_FLOW_ID", expected.flow_id.clone()),
            ("INLET_FORMAT", format.to_owned()),
            ("INLET_SANDBOX", expected.sandbox.clone()),
            ("INLET_BATCH_MAX", most.to_owned()),
        ];
        if format == "xdm" {
            environment.push(("INLET_SCHEMA_ID", expected.schema_id.clone()));
            environment.push(("INLET_DATASET_ID", expected.dataset_id.clone()));
            environment.push(("INLET_ORG_ID", expected.org_id.clone()));
        }
        config.environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let function = Function::new(config);
        let event = event(size);
        let mut walls = Vec::new();
        let (mut requests, mut cpu) = (0, Duration::ZERO);
        for round in 0..=ROUNDS {
            // The first round starts the process.
            if round == 1 {
                (requests, cpu) = (inlet.statuses().len(), cpu_time(&program));
                walls.clear();
            }
            let began = Instant::now();
            let response = function.invoke(event.clone()).await?;
            walls.push(began.elapsed());
            assert_eq!(response, br#"{"batchItemFailures":[]}"#, "the inlet accepted all records");
        }
        let cpu = cpu_time(&program).saturating_sub(cpu) / ROUNDS as u32;
        walls.sort();
        let wall = walls[ROUNDS / 2];
        println!(
            "| {format} | {most} | {:.1} | {} | {:.0} | {:.0} | {:.1} |",
            event.len() as f64 / 1e6,
            (inlet.statuses().len() - requests) / ROUNDS,
            wall.as_secs_f64() * 1e3,
            RECORDS as f64 / wall.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / RECORDS as f64,
        );
        function.stop();
        function.stopped().await;
        inlet.forget();
    }
    Ok(())
}
