//! A flow, and the way of its events from text to outcome, whichever trigger they came by.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::event::{Event, Header, Kind, Reason, Rejection};
use crate::event_hubs::EventHub;
use crate::json;
use crate::message::Message;
use crate::sender_auth::SenderAuth;

/// The flow that the environment configures.
pub const DEFAULT_FLOW: &str = "default";

/// A configured route for events of one kind.
pub struct Flow<O> {
    pub id: String,
    pub options: O,
    pub sender_auth: SenderAuth,
    pub hub: EventHub,
}

/// Messages of one invocation take at most about this many bytes, so that they fit the function's memory.
pub const MAX_MESSAGES_BYTES: usize = 16_000_000;

/// What one body became: an event, or an array of them.
#[derive(Debug, Default)]
pub struct Mapping<'a> {
    pub messages: Vec<Message<'a>>,
    /// Rejected events, by their position in the array.
    pub rejections: Vec<(Option<usize>, Rejection)>,
    /// Of the messages' bodies.
    pub bytes: usize,
    pub received: usize,
    pub filtered: usize,
    pub notes: Notes,
}

/// Counts by word.
pub type Notes = BTreeMap<&'static str, u32>;

impl<'a> Mapping<'a> {
    pub fn rejected(rejection: Rejection) -> Self {
        Self { rejections: vec![(None, rejection)], received: 1, ..Self::default() }
    }

    /// The class of the first rejection and the places of all, or of as many as a reader wants.
    pub fn rejection(&self) -> Option<Rejection> {
        const MOST: usize = 10;
        let (_, first) = self.rejections.first()?;
        let mut details: Vec<String> = self
            .rejections
            .iter()
            .take(MOST)
            .map(|(position, rejection)| match position {
                Some(position) => format!("[{position}] {}", rejection.detail),
                None => rejection.detail.to_string(),
            })
            .collect();
        if self.rejections.len() > MOST {
            details.push(format!("and {} more", self.rejections.len() - MOST));
        }
        Some(Rejection { reason: first.reason, detail: details.join("; ").into() })
    }
}

impl<O> Flow<O> {
    /// Maps a body, each event by itself.
    pub fn map<'a>(&'a self, kind: &Kind<O>, body: &'a [u8], headers: &'a [Header<'a>]) -> Mapping<'a> {
        let text = match std::str::from_utf8(body) {
            Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
            Err(error) => {
                let place = error.valid_up_to();
                return Mapping::rejected(Rejection::unreadable(format!("the body is not UTF-8 (at byte {place})")));
            }
        };
        let events = match json::events(text) {
            Ok(events) => events,
            Err(problem) => return Mapping::rejected(Rejection::unreadable(problem)),
        };
        let is_array = text.trim_ascii_start().starts_with('[');
        if is_array && !kind.arrays {
            return Mapping::rejected(Rejection::unmappable("expected one event, not an array"));
        }
        let mut mapping = Mapping { received: events.len(), ..Mapping::default() };
        for (position, event) in events.into_iter().enumerate() {
            let event = Event { json: event, flow: &self.id, headers };
            // A bug that panics costs its one event.
            if mapping.bytes > MAX_MESSAGES_BYTES {
                let too_large = Rejection::too_large("the events of one body make more messages than fit the memory");
                mapping.rejections.push((is_array.then_some(position), too_large));
                break;
            }
            let mapped = catch_unwind(AssertUnwindSafe(|| (kind.map)(event, &self.options))).unwrap_or_else(|_| {
                Err(Rejection { reason: Reason::Bug, detail: "a bug kept it from being mapped".into() })
            });
            match mapped {
                Ok(mapped) => {
                    if mapped.messages.is_empty() {
                        mapping.filtered += 1;
                    }
                    for note in mapped.notes {
                        *mapping.notes.entry(note).or_default() += 1;
                    }
                    mapping.bytes += mapped.messages.iter().map(|message| message.body.len()).sum::<usize>();
                    mapping.messages.extend(mapped.messages);
                }
                Err(rejection) => mapping.rejections.push((is_array.then_some(position), rejection)),
            }
        }
        mapping
    }
}

impl Reason {
    /// The status for a webhook's caller.
    pub fn status(self) -> u16 {
        match self {
            Self::TooLarge => 413,
            Self::UnknownFlow => 404,
            Self::Bug => 503,
            Self::Unreadable | Self::Unmappable | Self::Refused => 400,
        }
    }
}
