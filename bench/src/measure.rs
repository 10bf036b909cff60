//! The order of the run: each case is verified, then its peers take turns round by round.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::Problem;
use crate::events::{Kind, Trigger, invocation};
use crate::lane::{Cold, Lane, Round};
use crate::peers::{self, Package, Peer, Places};
use crate::sink::Sink;
use crate::tls::{self, Tls};
use crate::verify::{Prepared, verify};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Plain,
    Tls,
}

/// The kinds, cases and peers of a run, and how often each is measured.
pub struct Plan {
    pub kinds: Vec<Kind>,
    /// The cases to measure. Empty: all.
    pub cases: Vec<String>,
    pub with_peers: bool,
    pub rounds: usize,
    pub cold: usize,
    /// Number of invocations of a round, in percent of the usual number.
    pub scale: usize,
    pub transport: Transport,
    pub binaries: PathBuf,
    pub floor: PathBuf,
    pub work: PathBuf,
}

/// One peer in one case, warm.
#[derive(Debug)]
pub struct Warm {
    pub kind: Kind,
    pub trigger: Trigger,
    pub peer: Peer,
    /// Delay of the sink's responses.
    pub delay: Duration,
    pub rounds: Vec<Round>,
    /// Latencies of single invocations, in ascending order.
    pub latencies: Vec<Duration>,
    pub invocations: usize,
    pub rss: u64,
    pub requests: usize,
    pub connections: usize,
    pub in_flight: usize,
    pub log_bytes: usize,
}

/// One peer, cold.
#[derive(Debug)]
pub struct ColdStarts {
    pub kind: Kind,
    pub peer: Peer,
    pub starts: Vec<Cold>,
}

/// All measurements.
pub struct Measured {
    pub warm: Vec<Warm>,
    pub cold: Vec<ColdStarts>,
    pub packages: Vec<Package>,
}

/// Delay of the sink's responses in the case with a delay: about a real round trip.
pub const ROUND_TRIP: Duration = Duration::from_millis(30);

impl Plan {
    fn wants(&self, case: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|wanted| wanted == case)
    }

    fn triggers(&self, kind: Kind) -> Vec<Trigger> {
        let mut triggers = vec![(Trigger::Webhook, "webhook")];
        triggers.extend([(Trigger::Queue(10), "10"), (Trigger::Queue(100), "100")]);
        // A thousand contexts of Dataverse exceed the maximum size of an invocation's event.
        if kind != Kind::DataverseEvent {
            triggers.push((Trigger::Queue(1_000), "1000"));
        }
        triggers.into_iter().filter(|(_, case)| self.wants(case)).map(|(trigger, _)| trigger).collect()
    }

    /// The peers in other languages, which map one kind only.
    fn foreign(&self, kind: Kind) -> &'static [Peer] {
        if self.with_peers && kind == Kind::AudienceChange { &[Peer::Python, Peer::Node] } else { &[] }
    }

    fn peers(&self, kind: Kind, trigger: Trigger) -> Vec<Peer> {
        let mut peers = vec![Peer::Floor];
        if trigger != Trigger::Webhook {
            peers.push(Peer::FloorSplit);
        }
        peers.push(Peer::Function);
        peers.extend(self.foreign(kind));
        peers
    }

    /// Number of invocations of a round: enough for at least some ten milliseconds.
    fn invocations(&self, peer: Peer, trigger: Trigger) -> usize {
        let native = match trigger.events() {
            0..=1 => 2_000,
            2..=10 => 1_000,
            11..=100 => 300,
            _ => 50,
        };
        let invocations = if peer.is_native() { native } else { native / 4 };
        (invocations * self.scale / 100).max(3)
    }
}

pub fn all(plan: &Plan) -> Result<Measured, Problem> {
    let tls = match plan.transport {
        Transport::Plain => None,
        Transport::Tls => Some(tls::make()?),
    };
    std::fs::write(plan.work.join("ca.pem"), tls.as_ref().map_or("", |tls| tls.ca_pem.as_str()))?;
    let places = Places { binaries: plan.binaries.clone(), floor: plan.floor.clone(), work: plan.work.clone() };
    let bench = Bench { plan, tls: tls.as_ref(), places };
    let (mut warm, mut cold) = (Vec::new(), Vec::new());
    if plan.wants("cold") {
        for kind in &plan.kinds {
            cold.extend(bench.cold(*kind)?);
        }
    }
    for kind in &plan.kinds {
        for trigger in plan.triggers(*kind) {
            warm.extend(bench.warm(*kind, trigger, Duration::ZERO)?);
        }
        if plan.wants("delay") && *kind == Kind::AudienceChange {
            warm.extend(bench.warm(*kind, Trigger::Queue(1_000), ROUND_TRIP)?);
        }
    }
    let packages = peers::packages(&plan.kinds, &bench.places, plan.with_peers)?;
    Ok(Measured { warm, cold, packages })
}

struct Bench<'p> {
    plan: &'p Plan,
    tls: Option<&'p Tls>,
    places: Places,
}

impl Bench<'_> {
    fn lane(
        &self,
        peer: Peer,
        kind: Kind,
        trigger: Trigger,
        case: (&[u8], &Prepared),
        delay: Duration,
        to_do: usize,
    ) -> Result<Lane, Problem> {
        let (event, prepared) = case;
        let sink = Sink::start(self.tls.map(|tls| tls.server.clone()), delay)?;
        let start = peers::start(peer, kind, trigger, &sink, &self.places, Some(prepared))?;
        Lane::start(&start, sink, event.to_vec(), trigger, to_do)
    }

    fn warm(&self, kind: Kind, trigger: Trigger, delay: Duration) -> Result<Vec<Warm>, Problem> {
        let plan = self.plan;
        let event = invocation(kind, trigger)?;
        let prepared = verify(kind, trigger, plan.foreign(kind), &event, self.tls, &self.places)?;
        eprintln!(
            "{}, {}: {} kB in, {} request(s){}",
            kind.name(),
            trigger.name(),
            event.len().div_ceil(1000),
            prepared.requests(),
            if delay.is_zero() { "" } else { ", delayed responses" },
        );
        let mut peers = plan.peers(kind, trigger);
        if !delay.is_zero() {
            peers.retain(|peer| *peer != Peer::FloorSplit);
        }
        let invocations = |peer| if delay.is_zero() { plan.invocations(peer, trigger) } else { 10 };
        let mut running = Vec::new();
        for peer in peers {
            let mut lane = self.lane(peer, kind, trigger, (&event, &prepared), delay, 1)?;
            lane.finish()?;
            // One round lets just-in-time compilers and caches warm up.
            lane.round(invocations(peer))?;
            lane.take_latencies();
            let done = (lane.invocations(), lane.sink.seen.requests.load(Ordering::SeqCst), lane.log_bytes());
            running.push((peer, lane, done, Vec::new(), Vec::new()));
        }
        for _ in 0..plan.rounds {
            for (peer, lane, _, rounds, latencies) in &mut running {
                rounds.push(lane.round(invocations(*peer))?);
                latencies.extend(lane.take_latencies());
            }
        }
        running
            .into_iter()
            .map(|(peer, lane, (invocations, requests, log_bytes), rounds, mut latencies)| {
                latencies.sort_unstable();
                let seen = &lane.sink.seen;
                let invocations = lane.invocations() - invocations;
                Ok(Warm {
                    kind,
                    trigger,
                    peer,
                    delay,
                    rounds,
                    latencies,
                    invocations,
                    rss: lane.peak_rss()?,
                    requests: seen.requests.load(Ordering::SeqCst) - requests,
                    connections: seen.connections.load(Ordering::SeqCst),
                    in_flight: seen.in_flight.load(Ordering::SeqCst),
                    log_bytes: (lane.log_bytes() - log_bytes) / invocations.max(1),
                })
            })
            .collect()
    }

    fn cold(&self, kind: Kind) -> Result<Vec<ColdStarts>, Problem> {
        let plan = self.plan;
        let trigger = Trigger::Webhook;
        let event = invocation(kind, trigger)?;
        let prepared = verify(kind, trigger, plan.foreign(kind), &event, self.tls, &self.places)?;
        eprintln!("{}, cold starts", kind.name());
        let peers = plan.peers(kind, trigger);
        let mut starts: Vec<ColdStarts> =
            peers.into_iter().map(|peer| ColdStarts { kind, peer, starts: Vec::new() }).collect();
        // The first start of each peer only fills the page cache.
        for round in 0..=plan.cold {
            for ColdStarts { peer, starts, .. } in &mut starts {
                let mut lane = self.lane(*peer, kind, trigger, (&event, &prepared), Duration::ZERO, 1)?;
                let cold = lane.cold()?;
                if round > 0 {
                    starts.push(cold);
                }
            }
        }
        Ok(starts)
    }
}
