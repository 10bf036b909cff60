//! The tables of a run, and the bars that the ratios are compared with.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::events::{Kind, Trigger};
use crate::lane::{Cold, Round};
use crate::measure::{ColdStarts, Measured, Plan, ROUND_TRIP, Transport, Warm};
use crate::peers::Peer;

/// The report of a run.
pub struct Report {
    machine: String,
    run: String,
    measured: Measured,
    bars: Vec<Bar>,
}

/// A ratio or a number, and the limit that it should reach.
struct Bar {
    what: String,
    value: f64,
    bar: Limit,
    stretch: Option<f64>,
}

#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Bar {
    fn reached(&self) -> bool {
        match self.bar {
            Limit::AtMost(limit) => self.value <= limit,
            Limit::AtLeast(limit) => self.value >= limit,
        }
    }
}

/// Median, smallest and largest.
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_unstable_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        Self {
            median,
            min: values.first().copied().unwrap_or(f64::NAN),
            max: values.last().copied().unwrap_or(f64::NAN),
        }
    }

    fn cell(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$}–{:.digits$})", self.median, self.min, self.max)
    }

    fn json(&self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Warm {
    fn spread(&self, what: impl Fn(&Round) -> Duration) -> Spread {
        Spread::of(self.rounds.iter().map(|round| micros(what(round))))
    }

    fn cpu(&self) -> f64 {
        self.spread(|round| round.cpu).median
    }

    fn p99(&self) -> f64 {
        let place = (self.latencies.len() * 99).div_ceil(100).saturating_sub(1);
        self.latencies.get(place).map_or(f64::NAN, |latency| micros(*latency))
    }

    fn requests_each(&self) -> f64 {
        self.requests as f64 / self.invocations.max(1) as f64
    }

    /// Number of requests in flight concurrently, as the process sees it: all of an invocation. (The sink shares its CPU and has
    /// usually responded to one request before it reads the next.)
    fn concurrent(&self) -> f64 {
        self.requests_each().max(self.in_flight as f64)
    }
}

impl ColdStarts {
    fn spread(&self, what: impl Fn(&Cold) -> Duration) -> Spread {
        Spread::of(self.starts.iter().map(|start| millis(what(start))))
    }
}

/// The 1-minute load average.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

impl Report {
    pub fn of(plan: &Plan, measured: Measured, cpu: usize, load_before: String) -> Self {
        let bars = bars(&measured);
        let transport = match plan.transport {
            Transport::Tls => "TLS 1.3 to the sink",
            Transport::Plain => "plain HTTP to the sink",
        };
        let run = format!(
            "{} warm rounds, {} cold starts, {transport}, everything on CPU {cpu}; load {load_before} before, {} after",
            plan.rounds,
            plan.cold,
            load(),
        );
        Self { machine: machine(plan.with_peers), run, measured, bars }
    }

    pub fn all_reached(&self) -> bool {
        self.bars.iter().all(Bar::reached)
    }

    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{}\n\n{}\n", self.machine, self.run)?;
        if !self.bars.is_empty() {
            writeln!(out, "| what | measured | bar | | stretch |\n|---|---|---|---|---|")?;
            for bar in &self.bars {
                let (sign, limit) = match bar.bar {
                    Limit::AtMost(limit) => ("≤", limit),
                    Limit::AtLeast(limit) => ("≥", limit),
                };
                let stretch = bar.stretch.map_or(String::new(), |stretch| {
                    format!("{sign} {stretch}{}", if bar.value <= stretch { ", reached" } else { "" })
                });
                let reached = if bar.reached() { "pass" } else { "**FAIL**" };
                writeln!(out, "| {} | {:.2} | {sign} {limit} | {reached} | {stretch} |", bar.what, bar.value)?;
            }
            writeln!(out)?;
        }
        if !self.measured.cold.is_empty() {
            writeln!(
                out,
                "Cold, milliseconds from the start of the process: median (smallest–largest)\n\n\
                 | kind | peer | init | first event handled | CPU until then |\n|---|---|---|---|---|"
            )?;
            for cold in &self.measured.cold {
                writeln!(
                    out,
                    "| {} | {} | {} | {} | {} |",
                    cold.kind.name(),
                    cold.peer.name(),
                    cold.spread(|cold| cold.init).cell(2),
                    cold.spread(|cold| cold.first).cell(2),
                    cold.spread(|cold| cold.cpu).cell(2),
                )?;
            }
            writeln!(out)?;
        }
        if !self.measured.warm.is_empty() {
            writeln!(
                out,
                "Warm, microseconds per invocation: median of the rounds (smallest–largest)\n\n\
                 | kind | case | peer | CPU | CPU / floor | wall | p99 | peak RSS MB | requests | connections | log bytes |\n\
                 |---|---|---|---|---|---|---|---|---|---|---|"
            )?;
            for warm in &self.measured.warm {
                let case = if warm.delay.is_zero() {
                    warm.trigger.name()
                } else {
                    format!("{}, sink responds after {} ms", warm.trigger.name(), warm.delay.as_millis())
                };
                let floor = self.floor(warm).map_or(f64::NAN, Warm::cpu);
                writeln!(
                    out,
                    "| {} | {case} | {} | {} | {:.2} | {} | {:.0} | {:.1} | {} | {} | {} |",
                    warm.kind.name(),
                    warm.peer.name(),
                    warm.spread(|round| round.cpu).cell(1),
                    warm.cpu() / floor,
                    warm.spread(|round| round.wall).cell(0),
                    warm.p99(),
                    warm.rss as f64 / 1e6,
                    warm.requests_each(),
                    warm.connections,
                    warm.log_bytes,
                )?;
            }
            writeln!(out)?;
        }
        writeln!(out, "| package | bytes | zipped (-9), MB |\n|---|---|---|")?;
        for package in &self.measured.packages {
            writeln!(out, "| {} | {} | {:.2} |", package.name, package.raw, package.zipped as f64 / 1e6)?;
        }
        Ok(())
    }

    fn floor(&self, of: &Warm) -> Option<&Warm> {
        let same = |warm: &&Warm| {
            (warm.kind, warm.trigger, warm.delay, warm.peer) == (of.kind, of.trigger, of.delay, Peer::Floor)
        };
        self.measured.warm.iter().find(same)
    }

    pub fn json(&self) -> Value {
        let warm = self.measured.warm.iter().map(|warm| {
            json!({
                "kind": warm.kind.name(),
                "case": warm.trigger.name(),
                "sinkDelayMs": warm.delay.as_millis() as u64,
                "peer": warm.peer.name(),
                "cpuUs": warm.spread(|round| round.cpu).json(),
                "wallUs": warm.spread(|round| round.wall).json(),
                "p99Us": warm.p99(),
                "peakRssBytes": warm.rss,
                "requestsPerInvocation": warm.requests_each(),
                "connections": warm.connections,
                "mostInFlight": warm.in_flight,
                "invocations": warm.invocations,
                "logBytesPerInvocation": warm.log_bytes,
            })
        });
        let cold = self.measured.cold.iter().map(|cold| {
            json!({
                "kind": cold.kind.name(),
                "peer": cold.peer.name(),
                "initMs": cold.spread(|cold| cold.init).json(),
                "firstEventMs": cold.spread(|cold| cold.first).json(),
                "cpuMs": cold.spread(|cold| cold.cpu).json(),
            })
        });
        let packages = self.measured.packages.iter();
        json!({
            "machine": self.machine,
            "run": self.run,
            "bars": self.bars.iter().map(|bar| json!({
                "what": bar.what, "measured": bar.value, "reached": bar.reached(),
            })).collect::<Vec<_>>(),
            "cold": cold.collect::<Vec<_>>(),
            "warm": warm.collect::<Vec<_>>(),
            "packages": packages.map(|package| json!({
                "name": package.name, "bytes": package.raw, "zippedBytes": package.zipped,
            })).collect::<Vec<_>>(),
        })
    }
}

/// The bars for which both sides were measured.
fn bars(measured: &Measured) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut bar = |what: String, value: Option<f64>, bar: Limit, stretch: Option<f64>| {
        if let Some(value) = value {
            bars.push(Bar { what, value, bar, stretch });
        }
    };
    let warm = |kind: Kind, trigger: Trigger, peer: Peer, late: bool| {
        measured
            .warm
            .iter()
            .find(|warm| (warm.kind, warm.trigger, warm.peer, !warm.delay.is_zero()) == (kind, trigger, peer, late))
    };
    let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    let cpu = |kind, trigger, peer| warm(kind, trigger, peer, false).map(Warm::cpu);
    let cold = |kind: Kind, peer: Peer, what: fn(&Cold) -> Duration| {
        measured.cold.iter().find(|cold| (cold.kind, cold.peer) == (kind, peer)).map(|cold| cold.spread(what).median)
    };
    let init: fn(&Cold) -> Duration = |cold| cold.init;
    let first: fn(&Cold) -> Duration = |cold| cold.first;
    for kind in crate::events::KINDS {
        let name = kind.name();
        for (what, part) in [("init", init), ("first delivered event", first)] {
            let value = ratio(cold(kind, Peer::Function, part), cold(kind, Peer::Floor, part));
            bar(format!("{name}: {what}, cold / floor"), value, Limit::AtMost(1.25), Some(1.05));
        }
        let value = ratio(cold(kind, Peer::Python, first), cold(kind, Peer::Function, first));
        bar(format!("{name}: Python / ours, first delivered event, cold"), value, Limit::AtLeast(40.0), None);
        for (trigger, limit, stretch, others) in [
            (Trigger::Webhook, 1.35, 1.15, Some((11.0, 13.0))),
            (Trigger::Queue(10), 2.2, 1.5, None),
            (Trigger::Queue(100), 3.2, 2.2, None),
            (Trigger::Queue(1_000), 3.2, 2.2, Some((6.0, 3.7))),
        ] {
            let case = trigger.name();
            let ours = cpu(kind, trigger, Peer::Function);
            let value = ratio(ours, cpu(kind, trigger, Peer::Floor));
            bar(format!("{name}: {case}, warm CPU / floor"), value, Limit::AtMost(limit), Some(stretch));
            let Some((python, node)) = others else { continue };
            for (peer, limit) in [(Peer::Python, python), (Peer::Node, node)] {
                let value = ratio(cpu(kind, trigger, peer), ours);
                bar(format!("{name}: {case}, warm CPU, {} / ours", peer.name()), value, Limit::AtLeast(limit), None);
            }
        }
        let rss = |peer| warm(kind, Trigger::Webhook, peer, false).map(|warm| warm.rss as f64);
        let value = ratio(rss(Peer::Function), rss(Peer::Floor));
        bar(format!("{name}: peak RSS, webhook / floor"), value, Limit::AtMost(1.6), None);
        let package = measured.packages.iter().find(|package| package.name == name);
        let zipped = package.map(|package| package.zipped as f64 / 1e6);
        bar(format!("{name}: zipped package, MB"), zipped, Limit::AtMost(2.0), None);
        let thousand = warm(kind, Trigger::Queue(1_000), Peer::Function, false);
        bar(
            format!("{name}: requests per batch of 1,000"),
            thousand.map(Warm::requests_each),
            Limit::AtMost(4.0),
            None,
        );
        let ours = measured.warm.iter().filter(|warm| warm.kind == kind && warm.peer == Peer::Function);
        let surplus = ours.map(|warm| warm.connections as f64 / warm.concurrent()).reduce(f64::max);
        bar(format!("{name}: connections / concurrent requests, any case"), surplus, Limit::AtMost(1.0), None);
        let late = warm(kind, Trigger::Queue(1_000), Peer::Function, true);
        let value = late.map(|warm| warm.spread(|round| round.wall).median / micros(ROUND_TRIP));
        bar(format!("{name}: SQS 1000, wall / one round trip of 30 ms"), value, Limit::AtMost(1.5), None);
    }
    bars
}

fn machine(with_peers: bool) -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |(_, cpu)| cpu);
    let version = |command: &str| {
        let output = Command::new(command).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).split('(').next().unwrap_or_default().trim().to_owned()
    };
    let mut parts = vec![cpu.to_owned(), std::env::consts::ARCH.to_owned(), version("rustc")];
    if with_peers {
        parts.extend([version("python3"), format!("Node {}", version("node"))]);
    }
    parts.join(", ")
}
