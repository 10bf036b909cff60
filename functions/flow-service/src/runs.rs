//! A flow's runs: what became of its events, by the hour, read from the lines that the functions log anyway. Nothing is written
//! for them on the way of an event.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use shared::aws::{Aws, AwsError, Service};
use shared::clock::Clock;
use shared::contract::log_line::{self, LogLine};
use shared::contract::metrics;
use tokio::time::Instant;

use crate::errors::ApiError;
use crate::secrets::uuid_of;
use crate::store::{Document, Entity};

/// The length of a run, in milliseconds: what streams has no other beginning and end. The platform's own monitoring has it too.
const RUN: u64 = 60 * 60 * 1000;
/// How many hours back are read, the current one included.
const HOURS: u64 = 24;
/// Of one reading. A page has at most 1 MB of lines, or 10,000 of them.
const MAX_PAGES: usize = 30;
/// No page is asked for later than this; the function has 28 s.
const READING: Duration = Duration::from_secs(10);
const LAST_PAGE: Duration = Duration::from_secs(6);
/// CloudWatch searches while it answers.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// For so long a reading is used again: CloudWatch allows an account five to ten pages in a second.
const KEPT: Duration = Duration::from_secs(5);
const MAX_KEPT: usize = 100;

/// Of one flow, the newest first.
#[derive(Debug)]
pub struct Read {
    pub items: Vec<Document>,
    /// There are more lines than were read: earlier runs are missing, and the earliest that is here may lack events.
    pub is_truncated: bool,
}

/// The logs of a stack's functions.
pub struct Runs {
    aws: Aws,
    log_group: String,
    clock: Clock,
    kept: Mutex<HashMap<String, (SystemTime, Arc<Read>)>>,
}

/// The counts of one line about a flow.
#[derive(Debug, Default)]
struct Counts {
    /// Redelivery's, whose lines count no new events.
    is_redelivery: bool,
    received: u64,
    filtered: u64,
    rejected: u64,
    delivered: u64,
    parked: u64,
    redelivered: u64,
    /// Messages that could not be delivered at once.
    errors: u64,
}

impl Counts {
    /// The counts of a line; `None` if one of them is not a count.
    fn of(line: &LogLine<'_>) -> Option<Self> {
        Some(Self {
            is_redelivery: line.text(log_line::KIND).is_some_and(|kind| kind == log_line::REDELIVERY),
            received: line.count(metrics::RECEIVED)?,
            filtered: line.count(metrics::FILTERED)?,
            rejected: line.count(metrics::REJECTED)?,
            delivered: line.count(metrics::DELIVERED)?,
            parked: line.count(metrics::PARKED)?,
            redelivered: line.count(metrics::REDELIVERED)?,
            errors: line.count(metrics::ERRORS_TIMEOUT)?
                + line.count(metrics::ERRORS_INVALID_CREDENTIALS)?
                + line.count(metrics::ERRORS_OTHER)?,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    events: Vec<Event>,
    next_token: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    /// Milliseconds since 1970.
    timestamp: u64,
    message: String,
}

/// The lines of one hour.
#[derive(Debug, Default)]
struct Tally {
    received: u64,
    filtered: u64,
    delivered: u64,
    parked: u64,
    failed: u64,
    /// Of the lines that tell of new events.
    first: Option<u64>,
    last: u64,
    /// Of what was parked in this hour or before: taken by the hub, refused, and when that was last.
    redelivered: u64,
    refused: u64,
    last_redelivery: u64,
}

impl Tally {
    fn add(&mut self, timestamp: u64, line: &Counts) {
        // Redelivery, which has no new events, and counts what the hub did not take in the line of a batch's first flow.
        if line.is_redelivery {
            self.redelivered += line.redelivered;
            self.refused += line.rejected;
            self.last_redelivery = self.last_redelivery.max(timestamp);
            return;
        }
        let failed = line.rejected + line.errors.saturating_sub(line.parked);
        if line.received + line.delivered + line.parked + failed == 0 {
            // Such as a caller that could not authenticate.
            return;
        }
        self.received += line.received;
        self.filtered += line.filtered;
        self.delivered += line.delivered;
        self.parked += line.parked;
        self.failed += failed;
        self.first = Some(self.first.map_or(timestamp, |first| first.min(timestamp)));
        self.last = self.last.max(timestamp);
    }
}

impl Runs {
    pub fn new(aws: Aws, log_group: String, clock: Clock) -> Self {
        Self { aws: aws.with_attempt_timeout(PAGE_TIMEOUT), log_group, clock, kept: Mutex::default() }
    }

    /// The runs of the last hours that had events.
    ///
    /// # Errors
    /// When CloudWatch Logs does not answer, or not all of it.
    pub async fn of(&self, flow: &Entity) -> Result<Arc<Read>, ApiError> {
        let now = self.clock.now();
        let is_fresh = |read: SystemTime| now.duration_since(read).is_ok_and(|age| age < KEPT);
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, read)) = kept().get(&flow.id).filter(|(at, _)| is_fresh(*at)) {
            return Ok(read.clone());
        }
        let read = Arc::new(self.read(flow, now).await?);
        let mut kept = kept();
        kept.retain(|_, (at, _)| is_fresh(*at));
        if kept.len() < MAX_KEPT {
            kept.insert(flow.id.clone(), (now, read.clone()));
        }
        Ok(read)
    }

    async fn read(&self, flow: &Entity, now: SystemTime) -> Result<Read, ApiError> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let current = u64::try_from(now).unwrap_or_default() / RUN;
        let began = Instant::now();
        let mut request = json!({
            "logGroupName": self.log_group,
            // The id as a phrase: a pattern for the member alone would be matched by AWS only, and the member is looked at anyway.
            "filterPattern": format!("\"{}\"", flow.id),
            "startTime": current.saturating_sub(HOURS - 1) * RUN,
            // What is read in part is then the latest part.
            "startFromHead": false,
        });
        let mut hours: BTreeMap<u64, Tally> = BTreeMap::new();
        for _ in 0..MAX_PAGES {
            let page = match self.aws.call(Service::Logs, "FilterLogEvents", &request, began + READING).await {
                Ok(answer) => serde_json::from_slice::<Page>(&answer).map_err(|_| SILENT)?,
                Err(AwsError::Response { code, .. }) if code == "ResourceNotFoundException" => {
                    tracing::warn!(
                        log_group = self.log_group,
                        "there is no such log group: set LOG_GROUP to the functions'"
                    );
                    return Ok(Read { items: Vec::new(), is_truncated: false });
                }
                Err(error) => {
                    tracing::error!(%error, "the logs can't be read");
                    return Err(SILENT);
                }
            };
            for event in page.events {
                let Some(line) = LogLine::read(&event.message) else { continue };
                if line.text(log_line::FLOW).is_some_and(|of| of == flow.id)
                    && let Some(counts) = Counts::of(&line)
                {
                    hours.entry(event.timestamp / RUN).or_default().add(event.timestamp, &counts);
                }
            }
            match page.next_token {
                None => return Ok(Read { items: items(flow, hours), is_truncated: false }),
                Some(_) if began.elapsed() > LAST_PAGE => break,
                Some(token) => request["nextToken"] = token.into(),
            }
        }
        Ok(Read { items: items(flow, hours), is_truncated: true })
    }
}

const SILENT: ApiError = ApiError::Unavailable("the logs that runs are made of can't be read now: try again");

fn items(flow: &Entity, hours: BTreeMap<u64, Tally>) -> Vec<Document> {
    let mut items = Vec::new();
    // What was redelivered, and when last: of the latest that was parked, going back.
    let (mut redelivered, mut refused, mut last_redelivery) = (0, 0, 0);
    for (hour, tally) in hours.into_iter().rev() {
        redelivered += tally.redelivered;
        refused += tally.refused;
        last_redelivery = last_redelivery.max(tally.last_redelivery);
        let Some(first) = tally.first else { continue };
        let delivered_later = tally.parked.min(redelivered);
        let refused_later = (tally.parked - delivered_later).min(refused);
        redelivered -= delivered_later;
        refused -= refused_later;
        let run = Run {
            hour,
            first,
            last: if delivered_later + refused_later > 0 { tally.last.max(last_redelivery) } else { tally.last },
            received: tally.received,
            filtered: tally.filtered,
            delivered: tally.delivered + delivered_later,
            failed: tally.failed + refused_later,
            waiting: tally.parked - delivered_later - refused_later,
        };
        items.push(run.item(flow));
        if redelivered + refused == 0 {
            last_redelivery = 0;
        }
    }
    items
}

struct Run {
    hour: u64,
    first: u64,
    last: u64,
    received: u64,
    filtered: u64,
    delivered: u64,
    failed: u64,
    /// Messages in the parking queue.
    waiting: u64,
}

impl Run {
    fn item(&self, flow: &Entity) -> Document {
        // The platform's word, and the state of a Dataverse system job with its two codes.
        let (status, state, state_code, status_code) = match self {
            Self { waiting: 1.., .. } => ("inProgress", "Waiting", 1, 10),
            Self { failed: 1.., delivered: 0, .. } => ("failed", "Failed", 3, 31),
            _ => ("success", "Succeeded", 3, 30),
        };
        let mut duration = json!({ "startedAtUTC": self.first });
        if self.waiting == 0 {
            duration["completedAtUTC"] = self.last.into();
        }
        let id = digest(&SHA256, format!("{}\u{1f}{}", flow.id, self.hour).as_bytes());
        let item = json!({
            "id": uuid_of(*id.as_ref().first_chunk().expect("a digest has 32 bytes"), 8),
            "flowId": flow.id,
            "flowSpec": flow.document.get("flowSpec"),
            "createdAt": self.hour * RUN,
            "updatedAt": self.last,
            "metrics": {
                "durationSummary": duration,
                "recordSummary": {
                    "inputRecordCount": self.received,
                    "filteredRecordCount": self.filtered,
                    "outputRecordCount": self.delivered,
                    "failedRecordCount": self.failed,
                    "waitingRecordCount": self.waiting,
                },
                "statusSummary": {
                    "status": status,
                    "systemJob": { "state": state, "statecode": state_code, "statuscode": status_code },
                },
            },
        });
        match item {
            Value::Object(item) => item,
            _ => Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::Collection;

    fn runs(lines: &[(u64, Counts)]) -> Vec<Value> {
        let flow = Entity {
            collection: Collection::Flows,
            id: "f".to_owned(),
            document: Document::new(),
            secret: None,
            used_by: Vec::new(),
            is_unseen: false,
        };
        let mut hours: BTreeMap<u64, Tally> = BTreeMap::new();
        for (hour, line) in lines {
            hours.entry(*hour).or_default().add(hour * RUN + 1, line);
        }
        items(&flow, hours).into_iter().map(|item| item["metrics"].clone()).collect()
    }

    fn of_redelivery(redelivered: u64, rejected: u64) -> Counts {
        Counts { is_redelivery: true, redelivered, rejected, ..Counts::default() }
    }

    fn parked(parked: u64) -> Counts {
        Counts { received: parked, parked, errors: parked, ..Counts::default() }
    }

    #[track_caller]
    fn check(run: &Value, status: &str, counts: [u64; 4]) {
        let count = |name: &str| run["recordSummary"][format!("{name}RecordCount")].as_u64().unwrap();
        assert_eq!(["input", "output", "failed", "waiting"].map(count), counts);
        assert_eq!(run["statusSummary"]["status"], status);
    }

    #[test]
    fn redelivery_counts_where_it_was_parked() {
        let lines = [(1, parked(3)), (2, parked(2)), (3, of_redelivery(3, 1)), (5, parked(1))];
        let runs = runs(&lines);
        assert_eq!(runs.len(), 3, "redelivery alone is no run");
        check(&runs[0], "inProgress", [1, 0, 0, 1]);
        check(&runs[1], "success", [2, 2, 0, 0]);
        assert_eq!(runs[1]["durationSummary"], json!({ "startedAtUTC": 2 * RUN + 1, "completedAtUTC": 3 * RUN + 1 }));
        check(&runs[2], "inProgress", [3, 1, 1, 1]);
        assert_eq!(runs[2]["durationSummary"], json!({ "startedAtUTC": RUN + 1 }));
    }

    #[test]
    fn what_nobody_took_has_failed() {
        let unsent = Counts { received: 2, errors: 2, ..Counts::default() };
        check(&runs(&[(1, unsent)])[0], "failed", [2, 0, 2, 0]);
        let delivered = Counts { received: 2, delivered: 1, rejected: 1, ..Counts::default() };
        check(&runs(&[(1, delivered)])[0], "success", [2, 1, 1, 0]);
        check(&runs(&[(1, parked(1)), (1, of_redelivery(0, 1))])[0], "failed", [1, 0, 1, 0]);
        assert!(runs(&[(1, Counts::default())]).is_empty());
    }
}
