//! Checks before a measurement: every message must arrive once and in its partition, and the peers must send the same messages.
//! The floor then posts what the function sent in the case.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::Problem;
use crate::events::{Kind, Trigger};
use crate::lane::Lane;
use crate::peers::{self, Peer, Places};
use crate::sink::{PARTITIONS, Post, Sink};
use crate::tls::Tls;

/// The requests of one invocation.
#[derive(Debug, Clone)]
pub struct Prepared(Vec<Post>);

const QUERY: &str = "timeout=60&api-version=2014-01";

impl Prepared {
    pub fn requests(&self) -> usize {
        self.0.len()
    }

    /// One line for each request of the floor: address, tab, body. All messages are in one request unless `split`.
    pub fn posts(&self, hub_url: &str, split: bool) -> Vec<u8> {
        let mut lines = Vec::new();
        if split {
            for post in &self.0 {
                let partition = post.partition.unwrap_or_default();
                lines.extend_from_slice(format!("{hub_url}/partitions/{partition}/messages?{QUERY}\t").as_bytes());
                lines.extend_from_slice(&post.body);
                lines.push(b'\n');
            }
        } else {
            lines.extend_from_slice(format!("{hub_url}/messages?{QUERY}\t[").as_bytes());
            for (position, post) in self.0.iter().enumerate() {
                if position > 0 {
                    lines.push(b',');
                }
                lines.extend_from_slice(&post.body[1..post.body.len() - 1]);
            }
            lines.extend_from_slice(b"]\n");
        }
        lines
    }
}

/// Runs the function and the peers in `others` once each, and compares their messages.
pub fn verify(
    kind: Kind,
    trigger: Trigger,
    others: &[Peer],
    event: &[u8],
    tls: Option<&Tls>,
    places: &Places,
) -> Result<Prepared, Problem> {
    let posts = |peer: Peer| -> Result<Vec<Post>, Problem> {
        let sink = Sink::start(tls.map(|tls| tls.server.clone()), Duration::ZERO)?;
        sink.seen.store(true);
        let start = peers::start(peer, kind, trigger, &sink, places, None)?;
        let mut lane = Lane::start(&start, sink, event.to_vec(), trigger, 1)?;
        lane.finish()?;
        Ok(lane.sink.seen.store(false))
    };
    let of = |peer: Peer, problem: String| format!("{}, {}: {}: {problem}", kind.name(), trigger.name(), peer.name());
    let ours = posts(Peer::Function)?;
    let expected = messages(&ours).map_err(|problem| of(Peer::Function, problem.to_string()))?;
    if expected.len() != trigger.events() {
        return Err(of(Peer::Function, format!("{} distinct messages", expected.len())).into());
    }
    for peer in others {
        let theirs = messages(&posts(*peer)?).map_err(|problem| of(*peer, problem.to_string()))?;
        if let Some((id, message)) = expected.iter().find(|(id, message)| theirs.get(*id) != Some(message)) {
            let other = theirs.get(id).or_else(|| theirs.values().next());
            return Err(of(*peer, format!("did not send\n{message:?}\nbut, for example,\n{other:?}")).into());
        }
        if theirs.len() != expected.len() {
            return Err(of(*peer, format!("{} distinct messages", theirs.len())).into());
        }
    }
    Ok(Prepared(ours))
}

/// Body and properties by id. Every subject must be in its partition, and every id must be unique.
fn messages(posts: &[Post]) -> Result<BTreeMap<String, (Value, Value)>, Problem> {
    let mut messages = BTreeMap::new();
    for post in posts {
        if post.body.contains(&b'\n') {
            return Err("a line break in a body".into());
        }
        let elements: Vec<&RawValue> = serde_json::from_slice(&post.body)?;
        for element in elements {
            let element: Value = serde_json::from_str(element.get())?;
            let properties = element["UserProperties"].clone();
            let text = |name: &str| properties[name].as_str().map(str::to_owned).ok_or_else(|| format!("no {name}"));
            let (id, subject) = (text("cloudEvents:id")?, text("cloudEvents:subject")?);
            let body = serde_json::from_str(element["Body"].as_str().ok_or("no body")?)?;
            let hash = Sha256::digest(&subject);
            let first: [u8; 8] = std::array::from_fn(|i| hash[i]);
            let partition = u64::from_be_bytes(first) % u64::from(PARTITIONS);
            if post.partition.map(u64::from) != Some(partition) {
                return Err(format!("subject {subject} in partition {:?}, not {partition}", post.partition).into());
            }
            if messages.insert(id, (body, properties)).is_some() {
                return Err("an id occurs twice".into());
            }
        }
    }
    Ok(messages)
}
