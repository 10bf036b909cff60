//! Joins what is observed of an invocation: its log lines, and its event with the response.

use std::collections::{HashMap, VecDeque};

use serde_json::Value;

use super::line::{Line, Subject};
use crate::runner::{Observed, What};

/// Maximum number of incomplete invocations. A killed instance leaves one that is never completed.
pub(super) const MAX_INCOMPLETE: usize = 1_000;

/// An invocation whose lines and response are complete.
pub(super) struct Invocation {
    pub function: String,
    pub subject: Subject,
    pub line: Line,
    /// Lines about single rejected events.
    pub rejects: Vec<Line>,
    pub payload: Value,
    pub response: Value,
}

/// What is known of an invocation so far.
#[derive(Default)]
struct Incomplete {
    rejects: Vec<Line>,
    /// The sum of the summary lines so far.
    summary: Option<(Subject, Line)>,
    /// Number of summary lines so far.
    lines: u64,
    /// Event and response.
    responded: Option<(Value, Value)>,
}

#[derive(Default)]
pub(super) struct Invocations {
    incomplete: HashMap<String, Incomplete>,
    by_age: VecDeque<String>,
}

impl Invocations {
    /// Adds an observation. Returns the invocation once it is complete.
    pub fn add(&mut self, observed: Observed) -> Option<Invocation> {
        let Observed { function, what } = observed;
        let request_id = match what {
            What::Wrote(text) => {
                let line = serde_json::from_str::<Line>(&text).ok()?;
                let request_id = line.request_id.clone();
                let subject = line.subject()?;
                let incomplete = self.get(&request_id);
                if subject == Subject::RejectedEvent {
                    incomplete.rejects.push(line);
                } else {
                    // A batch writes one line for each flow.
                    incomplete.lines += 1;
                    match &mut incomplete.summary {
                        Some((_, sum)) => sum.add(&line),
                        none => *none = Some((subject, line)),
                    }
                }
                request_id
            }
            What::Responded { request_id, payload, response } => {
                let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or_default();
                let (mut payload, response) = (read(&payload), read(&response));
                if let Some(body) = payload.get_mut("body") {
                    // The body of a webhook can be large and is not needed.
                    *body = Value::Null;
                }
                self.get(&request_id).responded = Some((payload, response));
                request_id
            }
        };
        if !self.incomplete.get(&request_id).is_some_and(Incomplete::is_complete) {
            return None;
        }
        let Incomplete { rejects, summary, responded, .. } = self.incomplete.remove(&request_id)?;
        let ((subject, line), (payload, response)) = summary.zip(responded)?;
        Some(Invocation { function, subject, line, rejects, payload, response })
    }

    fn get(&mut self, request_id: &str) -> &mut Incomplete {
        if !self.incomplete.contains_key(request_id) {
            self.by_age.push_back(request_id.to_owned());
            if self.by_age.len() > MAX_INCOMPLETE
                && let Some(oldest) = self.by_age.pop_front()
            {
                self.incomplete.remove(&oldest);
            }
        }
        self.incomplete.entry(request_id.to_owned()).or_default()
    }

    #[cfg(test)]
    pub fn incomplete(&self) -> usize {
        self.incomplete.len()
    }
}

impl Incomplete {
    fn is_complete(&self) -> bool {
        let has_all_lines = |(_, line): &(Subject, Line)| self.lines >= line.lines.max(1);
        self.responded.is_some() && self.summary.as_ref().is_some_and(has_all_lines)
    }
}
