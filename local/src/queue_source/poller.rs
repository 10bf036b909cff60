//! A poller: gathers messages for one event, invokes the function, and deletes what it handled.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::aws::{Aws, AwsError};
use tokio::time::{Instant, sleep};

use super::calls::{MAX_PER_CALL, delete, receive};
use super::records::{Message, arn, failed, record};
use super::{Cause, Mapping, Repeat};
use crate::runner::{Function, MAX_PAYLOAD};

/// Pause after a call that failed.
const PAUSE: Duration = Duration::from_millis(500);
/// Maximum number of bytes of an event: what a synchronous invocation accepts, minus the list around the records.
const MAX_EVENT: usize = MAX_PAYLOAD - 64;

/// Handles one batch after another.
pub(super) struct Poller {
    aws: Aws,
    arn: String,
    mapping: Mapping,
    function: Function,
    /// Messages that did not fit the last event.
    next: Vec<Record>,
    /// Number of current receives of all pollers, by message id: from the receive until the message is deleted or left to the
    /// queue.
    under_way: Arc<Mutex<HashMap<String, usize>>>,
}

/// A message and its JSON in an event.
struct Record {
    message: Message,
    json: String,
}

impl Poller {
    pub fn new(aws: Aws, function: Function, mapping: Mapping, under_way: Arc<Mutex<HashMap<String, usize>>>) -> Self {
        let arn = arn(&mapping.queue_url, &mapping.region);
        Self { aws, arn, mapping, function, next: Vec::new(), under_way }
    }

    pub async fn run(mut self) {
        loop {
            if let Err(problem) = self.handle_batch().await {
                if self.function.config().print_failures {
                    eprintln!("{}: queue: {problem}", self.function.config().name);
                }
                sleep(PAUSE).await;
            }
        }
    }

    async fn handle_batch(&mut self) -> Result<(), String> {
        let records = self.gather().await.map_err(|error| error.to_string())?;
        if records.is_empty() {
            return Ok(());
        }
        let event = format!(
            "{{\"Records\":[{}]}}",
            records.iter().map(|record| record.json.as_str()).collect::<Vec<_>>().join(",")
        );
        let dealt_with = self.deal_with(&records, event).await;
        self.end(&records);
        dealt_with
    }

    async fn deal_with(&self, records: &[Record], event: String) -> Result<(), String> {
        let response = self.function.invoke(event.into_bytes()).await;
        let response = response.map_err(|error| {
            self.report(Cause::Invocation(error.clone()), records.iter().map(|record| &record.message));
            error.to_string()
        })?;
        let ids: BTreeSet<&str> = records.iter().map(|record| record.message.message_id.as_str()).collect();
        let failed = failed(&response, &ids)
            .ok_or("the response is not a list of failed messages: all of them are redelivered")?;
        let handled = || records.iter().filter(|record| !failed.contains(&record.message.message_id));
        let messages: Vec<&Message> = handled().map(|record| &record.message).collect();
        let (undeleted, error) = delete(&self.aws, &self.mapping.queue_url, &messages).await;
        if undeleted.is_empty() {
            return Ok(());
        }
        let number = undeleted.len();
        self.report(Cause::NotDeleted, undeleted);
        Err(format!("{number} messages were not deleted: {}", error.map_or(String::new(), |error| error.to_string())))
    }

    /// Messages for one event. Empty if there are none.
    async fn gather(&mut self) -> Result<Vec<Record>, AwsError> {
        let mut records = std::mem::take(&mut self.next);
        let mut bytes: usize = records.iter().map(|record| record.json.len()).sum();
        let began = Instant::now();
        loop {
            let max = (self.mapping.batch_size - records.len()).min(MAX_PER_CALL);
            let received = match receive(&self.aws, &self.mapping.queue_url, max).await {
                Ok(received) => received,
                // What was received before is handled first.
                Err(_) if !records.is_empty() => break,
                Err(error) => return Err(error),
            };
            let is_full = received.len() == max;
            self.begin(&received);
            for message in received {
                let json = record(&message, &self.arn, &self.mapping.region).to_string();
                let record = Record { message, json };
                bytes += record.json.len() + 1;
                let fits = bytes <= MAX_EVENT || records.is_empty();
                if fits { records.push(record) } else { self.next.push(record) }
            }
            let window = self.mapping.window;
            let is_over = if window.is_zero() { !is_full } else { records.is_empty() || began.elapsed() >= window };
            if is_over || !self.next.is_empty() || records.len() >= self.mapping.batch_size {
                break;
            }
        }
        Ok(records)
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, messages: &[Message]) {
        let mut again = Vec::new();
        {
            let mut under_way = self.under_way();
            for message in messages {
                let receives = under_way.entry(message.message_id.clone()).or_default();
                *receives += 1;
                if *receives > 1 {
                    again.push(message);
                }
            }
        }
        self.report(Cause::DeliveredTwice, again);
    }

    fn end(&self, records: &[Record]) {
        let mut under_way = self.under_way();
        for record in records {
            let id = &record.message.message_id;
            match under_way.get_mut(id) {
                Some(receives) if *receives > 1 => *receives -= 1,
                _ => drop(under_way.remove(id)),
            }
        }
    }

    fn report<'m>(&self, cause: Cause, messages: impl IntoIterator<Item = &'m Message>) {
        let Some(observer) = &self.mapping.observer else { return };
        let bodies: Vec<String> = messages.into_iter().map(|message| message.body.clone()).collect();
        if !bodies.is_empty() {
            // The observer may be gone.
            let _ = observer.send(Repeat { cause, bodies });
        }
    }
}
