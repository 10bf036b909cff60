//! One queue without any I/O. Every method receives the time in milliseconds since 1970, so that tests can skip days.
//!
//! No operation scans the messages: each message is in one ordered set by the time at which it becomes visible, in another
//! by the time at which it was sent, or in the line of its message group.

mod fairness;
mod handles;
mod settings;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};

use self::fairness::{Line, WITHOUT_GROUP};
pub(super) use self::handles::HandleError;
pub use self::settings::Figures;
pub(super) use self::settings::{Redrive, Service, Settings};
use crate::random;

/// Milliseconds since 1970.
pub(super) type Millis = u64;

/// Maximum visibility timeout: 12 hours.
pub(super) const MAX_VISIBILITY_SECONDS: u64 = 43_200;

/// Number of messages by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    pub visible: usize,
    pub in_flight: usize,
    pub delayed: usize,
}

impl Depth {
    pub fn total(self) -> usize {
        self.visible + self.in_flight + self.delayed
    }
}

/// The stored parts of a message.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub id: String,
    pub body: Arc<str>,
    pub attributes: Arc<Map<String, Value>>,
    pub group: Option<Arc<str>>,
    pub sent: Millis,
    /// MD5 of the body, computed when it is first needed.
    pub md5: Arc<OnceLock<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Delayed,
    /// The place in the order of all messages that became visible.
    Visible(u64),
    /// `asked`: the consumer changed the visibility timeout.
    InFlight {
        asked: bool,
    },
}

#[derive(Debug)]
struct Message {
    content: Content,
    state: State,
    /// Time at which a message that is not visible becomes visible.
    due: Millis,
    line: usize,
    receives: u32,
    first_received: Option<Millis>,
}

/// A received message.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub content: Content,
    pub handle: String,
    pub receives: u32,
    pub first_received: Millis,
}

/// A stored message, as a test sees it.
#[derive(Debug, Clone)]
pub struct Stored {
    pub id: String,
    pub body: Arc<str>,
    pub group: Option<Arc<str>>,
    pub receives: u32,
    pub visible: bool,
}

/// The outcome of a receive.
#[derive(Debug, Default)]
pub(super) struct Receipt {
    pub messages: Vec<Received>,
    /// Whether messages were not received because too many are in flight.
    pub over_limit: bool,
    /// Messages that the dead-letter queue is to receive.
    pub dead: Vec<Content>,
}

/// A standard queue.
#[derive(Debug)]
pub(super) struct Queue {
    pub settings: Settings,
    pub created: Millis,
    service: Service,
    /// Part of every receipt handle, so that another queue refuses it.
    salt: u32,
    messages: HashMap<u64, Message>,
    next_key: u64,
    next_place: u64,
    lines: Vec<Line>,
    line_of_group: HashMap<Arc<str>, usize>,
    quiet: BTreeSet<(u64, usize)>,
    noisy: BTreeSet<(usize, usize)>,
    /// Messages that are not visible, by the time at which they become so.
    due: BTreeSet<(Millis, u64)>,
    by_age: BTreeSet<(Millis, u64)>,
    depth: Depth,
    pub figures: Figures,
}

impl Queue {
    pub fn new(settings: Settings, service: Service, now: Millis) -> Self {
        Self {
            settings,
            created: now,
            service,
            salt: fastrand::u32(..),
            messages: HashMap::new(),
            next_key: 0,
            next_place: 0,
            lines: vec![Line::default()],
            line_of_group: HashMap::new(),
            quiet: BTreeSet::new(),
            noisy: BTreeSet::new(),
            due: BTreeSet::new(),
            by_age: BTreeSet::new(),
            depth: Depth::default(),
            figures: Figures::default(),
        }
    }

    pub fn depth(&mut self, now: Millis) -> Depth {
        self.pass(now);
        self.depth
    }

    /// Time at which the next message becomes visible, if no call changes that.
    pub fn next_due(&self) -> Option<Millis> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Number of messages in flight whose consumer has neither deleted them nor changed their visibility.
    pub fn untouched(&self) -> usize {
        self.messages.values().filter(|message| message.state == State::InFlight { asked: false }).count()
    }

    /// All messages in the order in which they were sent.
    pub fn stored(&self) -> impl Iterator<Item = Stored> {
        self.by_age.iter().filter_map(|(_, key)| self.messages.get(key)).map(|message| Stored {
            id: message.content.id.clone(),
            body: message.content.body.clone(),
            group: message.content.group.clone(),
            receives: message.receives,
            visible: matches!(message.state, State::Visible(_)),
        })
    }

    pub fn send(
        &mut self,
        body: Arc<str>,
        attributes: Map<String, Value>,
        group: Option<&str>,
        delay_seconds: Option<u64>,
        now: Millis,
    ) -> Content {
        let content = Content {
            id: random::uuid(),
            body,
            attributes: Arc::new(attributes),
            group: group.map(Arc::from),
            sent: now,
            md5: Arc::default(),
        };
        self.figures.sent += 1;
        self.insert(content.clone(), delay_seconds.unwrap_or(self.settings.delay_seconds), now);
        content
    }

    /// Stores a message. A message from another queue retains its id and its age.
    pub fn insert(&mut self, content: Content, delay_seconds: u64, now: Millis) {
        self.pass(now);
        let key = self.next_key;
        self.next_key += 1;
        let line = match &content.group {
            None => WITHOUT_GROUP,
            Some(group) => *self.line_of_group.entry(group.clone()).or_insert_with(|| {
                self.lines.push(Line::default());
                self.lines.len() - 1
            }),
        };
        self.by_age.insert((content.sent, key));
        let due = now + delay_seconds * 1000;
        let message = Message { content, state: State::Delayed, due, line, receives: 0, first_received: None };
        self.messages.insert(key, message);
        self.depth.delayed += 1;
        self.due.insert((due, key));
        self.pass(now);
    }

    /// Receives up to `max` messages. Quiet groups come first, then the noisy group with the fewest messages in flight.
    ///
    /// `twice`: the messages stay visible although they were received.
    pub fn receive(&mut self, max: usize, visibility_seconds: Option<u64>, twice: bool, now: Millis) -> Receipt {
        self.pass(now);
        let hidden_for = visibility_seconds.unwrap_or(self.settings.visibility_seconds) * 1000;
        let mut receipt = Receipt::default();
        while receipt.messages.len() < max {
            let next = self.quiet.first().map(|(_, line)| *line).or_else(|| self.noisy.first().map(|(_, line)| *line));
            let Some(line) = next else { break };
            if self.depth.in_flight >= self.service.max_in_flight {
                receipt.over_limit = true;
                break;
            }
            let Some((_, key)) = self.lines[line].waiting.pop_front() else { break };
            let max_receives = self.settings.redrive.as_ref().map_or(u32::MAX, |redrive| redrive.max_receives);
            let Some(message) = self.messages.get_mut(&key) else { break };
            if message.receives >= max_receives {
                self.figures.redriven += 1;
                receipt.dead.extend(self.remove(key, now));
                continue;
            }
            message.receives += 1;
            self.figures.received += 1;
            let first_received = *message.first_received.get_or_insert(now);
            receipt.messages.push(Received {
                content: message.content.clone(),
                handle: format!("{key:016x}{:08x}{:08x}", message.receives, self.salt),
                receives: message.receives,
                first_received,
            });
            if twice {
                self.figures.delivered_twice += 1;
            }
            let hidden_for = if twice { 0 } else { hidden_for };
            self.hide(key, now + hidden_for, now);
        }
        // A message with a visibility timeout of zero is visible again.
        self.pass(now);
        receipt
    }

    /// Deletes a message by the handle of its last receive. A deletion that comes too late succeeds and does nothing.
    pub fn delete(&mut self, handle: &str, now: Millis) -> Result<Option<Content>, HandleError> {
        self.pass(now);
        let (key, receives) = self.parse(handle)?;
        match self.messages.get(&key) {
            Some(message) if message.receives == receives => {
                self.figures.deleted += 1;
                Ok(self.remove(key, now))
            }
            Some(_) => {
                self.figures.stale_deletions += 1;
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// Makes a message in flight visible after `seconds` from now.
    pub fn change_visibility(&mut self, handle: &str, seconds: u64, now: Millis) -> Result<(), HandleError> {
        self.pass(now);
        let (key, receives) = self.parse(handle)?;
        let message = self.messages.get_mut(&key).filter(|message| message.receives == receives);
        let message = message.ok_or(HandleError::Gone)?;
        let State::InFlight { .. } = message.state else { return Err(HandleError::NotInFlight) };
        message.state = State::InFlight { asked: true };
        let due = std::mem::replace(&mut message.due, now + seconds * 1000);
        self.due.remove(&(due, key));
        self.due.insert((now + seconds * 1000, key));
        self.pass(now);
        Ok(())
    }

    pub fn purge(&mut self) {
        let fresh = Self::new(self.settings.clone(), self.service, self.created);
        let (salt, next_key, figures) = (self.salt, self.next_key, self.figures);
        *self = Self { salt, next_key, figures, ..fresh };
    }

    /// Applies what happened up to `now`: drops messages that are too old and shows those that are due.
    fn pass(&mut self, now: Millis) {
        let retention = self.settings.retention_seconds * 1000;
        while let Some((sent, key)) = self.by_age.first().copied()
            && sent + retention <= now
        {
            self.figures.expired += 1;
            self.remove(key, now);
        }
        while let Some((due, key)) = self.due.first().copied()
            && due <= now
        {
            self.show(key, now);
        }
        let idle: Vec<usize> = self.noisy.range(..(1, 0)).map(|(_, line)| *line).collect();
        for line in idle {
            self.rank(line, now);
        }
    }

    fn show(&mut self, key: u64, now: Millis) {
        let Some(message) = self.messages.get_mut(&key) else { return };
        self.due.remove(&(message.due, key));
        match message.state {
            State::Delayed => self.depth.delayed -= 1,
            State::InFlight { asked } => {
                self.depth.in_flight -= 1;
                let line = &mut self.lines[message.line];
                line.in_flight -= 1;
                if line.in_flight == 0 {
                    line.idle_since = now;
                }
                self.figures.timed_out += u64::from(!asked);
            }
            State::Visible(_) => return,
        }
        let place = self.next_place;
        self.next_place += 1;
        message.state = State::Visible(place);
        self.depth.visible += 1;
        let line = message.line;
        self.lines[line].waiting.push_back((place, key));
        self.rank(line, now);
    }

    fn hide(&mut self, key: u64, due: Millis, now: Millis) {
        let Some(message) = self.messages.get_mut(&key) else { return };
        message.state = State::InFlight { asked: due <= now };
        message.due = due;
        self.due.insert((due, key));
        self.depth.visible -= 1;
        self.depth.in_flight += 1;
        self.figures.peak_in_flight = self.figures.peak_in_flight.max(self.depth.in_flight);
        let line = message.line;
        self.lines[line].in_flight += 1;
        self.rank(line, now);
    }

    fn remove(&mut self, key: u64, now: Millis) -> Option<Content> {
        let message = self.messages.remove(&key)?;
        self.by_age.remove(&(message.content.sent, key));
        let line = &mut self.lines[message.line];
        match message.state {
            State::Visible(_) => self.depth.visible -= 1,
            State::Delayed => {
                self.depth.delayed -= 1;
                self.due.remove(&(message.due, key));
            }
            State::InFlight { .. } => {
                self.depth.in_flight -= 1;
                self.due.remove(&(message.due, key));
                line.in_flight -= 1;
                if line.in_flight == 0 {
                    line.idle_since = now;
                }
            }
        }
        self.rank(message.line, now);
        Some(message.content)
    }
}
