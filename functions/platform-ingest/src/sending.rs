//! The requests of one partition: its records in their order, one request after another, and the outcome of each record.

use std::sync::OnceLock;
use std::time::Duration;

use shared::event_hubs::response::Cause;
use shared::http::{Attempts, RetryPolicy};
use shared::{Reason, Rejection};
use tokio::time::Instant;

use crate::inlet::{Inlet, Outcome, Retry, Tally, Verdict};
use crate::kafka_event::Partition;
use crate::record;

/// Retries of one request: the three that the documentation asks for after a 503.
const RETRY: RetryPolicy = RetryPolicy {
    attempts: 4,
    first_wait: Duration::from_millis(300),
    max_wait: Duration::from_secs(10),
    ..RetryPolicy::DEFAULT
};

/// The outcome of a partition's records.
#[derive(Default)]
pub struct Ending {
    /// Number of records that the inlet accepted.
    pub accepted: usize,
    /// Rejections, by position in the partition.
    pub rejected: Vec<(usize, Rejection)>,
    /// Position of the first record that Lambda must deliver again, and the cause, unless it could only not be stored.
    pub stopped: Option<(usize, Option<Cause>)>,
    pub tally: Tally,
}

/// A record that can be sent.
struct Item {
    /// Position in its partition.
    position: usize,
    body: Vec<u8>,
}

/// Sends the records of a partition until each has an outcome or one must be delivered again. Through `shut` partitions
/// tell each other that the inlet accepts nothing.
pub async fn send(inlet: &Inlet, partition: &Partition<'_>, deadline: Instant, shut: &OnceLock<Cause>) -> Ending {
    let mut ending = Ending::default();
    let mut items = Vec::with_capacity(partition.records.len());
    for (position, record) in partition.records.iter().enumerate() {
        let body = record::value(record).and_then(|value| inlet.body(record::object(&value)?, record));
        match body {
            Ok(body) => items.push(Item { position, body }),
            Err(rejection) => ending.rejected.push((position, rejection)),
        }
    }
    let sending = Sending {
        inlet,
        items: &items,
        deadline,
        shut,
        attempts: Attempts::new(RETRY, deadline),
        next: 0,
        max_records: inlet.max_records(),
        suspect: None,
        ending,
    };
    sending.run().await
}

/// The records of a partition while they are sent.
struct Sending<'s> {
    inlet: &'s Inlet,
    items: &'s [Item],
    deadline: Instant,
    shut: &'s OnceLock<Cause>,
    /// The attempts of the current request.
    attempts: Attempts,
    /// Index of the first item that has no outcome.
    next: usize,
    /// Maximum number of records of the next request.
    max_records: usize,
    /// Index of an item at which the inlet failed although it was alone. It is rejected once the inlet accepts an item
    /// after it; otherwise the inlet is down.
    suspect: Option<usize>,
    ending: Ending,
}

/// What to do after a response.
enum Next {
    /// Send what has no outcome yet.
    Send,
    /// Send the same items again.
    Retry(Retry),
    Stop(Cause),
}

impl Sending<'_> {
    async fn run(mut self) -> Ending {
        while self.next < self.items.len() {
            if let Some(cause) = self.shut.get() {
                return self.stop(*cause);
            }
            let Some(attempt) = self.attempts.begin() else { return self.stop(Cause::Timeout) };
            let left = &self.items[self.next..];
            let count = self.inlet.fitting(left.iter().map(|item| item.body.as_slice()), self.max_records);
            let bodies: Vec<&[u8]> = left[..count].iter().map(|item| item.body.as_slice()).collect();
            let outcome = self.inlet.post(&bodies, attempt, &mut self.ending.tally).await;
            match self.take(outcome, count).await {
                Next::Send => {}
                Next::Stop(cause) => return self.stop(cause),
                Next::Retry(retry) if self.isolate(retry, count) => {}
                Next::Retry(retry) => {
                    if !self.attempts.again(retry.cause == Cause::ConnectionLost, retry.wait).await {
                        return self.stop(retry.cause);
                    }
                    self.ending.tally.retries += 1;
                }
            }
        }
        match self.suspect {
            // No item after it shows that the inlet works.
            Some(_) => self.stop(Cause::Unavailable),
            None => self.ending,
        }
    }

    /// Ends the partition: the first item without an outcome, and all after it, must be delivered again.
    fn stop(mut self, cause: Cause) -> Ending {
        let first = self.suspect.unwrap_or(self.next);
        self.ending.stopped = Some((self.items[first].position, Some(cause)));
        self.ending
    }

    /// Books the outcome of a request of `count` items.
    async fn take(&mut self, outcome: Outcome, count: usize) -> Next {
        match outcome {
            Outcome::Each(verdicts) => self.take_verdicts(&verdicts, count),
            Outcome::Refused(_) if count > 1 => self.send_at_most(count / 2),
            Outcome::Refused(status) if self.inlet.refused(status, &mut self.ending.tally) => {
                self.ending.rejected.push((self.items[self.next].position, refused(status)));
                self.next += 1;
                self.proceed();
                Next::Send
            }
            Outcome::Refused(_) => Next::Stop(Cause::Forbidden),
            Outcome::TokenRefused(generation) if self.attempts.renew_once() => {
                self.attempts.uncount();
                self.ending.tally.retries += 1;
                self.inlet.renew(generation, self.deadline).await;
                Next::Send
            }
            Outcome::TokenRefused(_) => Next::Stop(*self.shut.get_or_init(|| Cause::Unauthorized)),
            Outcome::Retry(retry) => Next::Retry(retry),
            Outcome::Stop(cause) => Next::Stop(*self.shut.get_or_init(|| cause)),
        }
    }

    /// Books the items up to the first that has no outcome. The items after it are sent again together with it, so that
    /// the last outcome of each is in order.
    fn take_verdicts(&mut self, verdicts: &[Verdict], count: usize) -> Next {
        if verdicts.contains(&Verdict::Accepted) {
            self.inlet.accepted();
        }
        let first = self.next;
        let mut open = None;
        for (verdict, item) in verdicts.iter().zip(&self.items[first..]) {
            match verdict {
                Verdict::Accepted => self.ending.accepted += 1,
                Verdict::Refused(status) if self.inlet.refused(*status, &mut self.ending.tally) => {
                    self.ending.rejected.push((item.position, refused(*status)));
                }
                verdict => {
                    open = Some(*verdict);
                    break;
                }
            }
            self.next += 1;
        }
        if self.next > first {
            self.proceed();
        }
        match open {
            None => {
                self.max_records = (self.max_records * 2).min(self.inlet.max_records());
                Next::Send
            }
            // The response to a request of one record can't be ambiguous.
            Some(Verdict::Unknown) if count > 1 => self.send_at_most(1),
            Some(Verdict::Refused(_)) => Next::Stop(Cause::Forbidden),
            Some(Verdict::Retry(retry)) => {
                self.attempts.count_one();
                Next::Retry(retry)
            }
            Some(_) => Next::Retry(Retry { cause: Cause::Unexpected, wait: None, may_be_the_records: true }),
        }
    }

    /// Goes on after an item has its outcome: the inlet works, so the suspect was the record's fault.
    fn proceed(&mut self) {
        self.attempts.reset();
        if let Some(suspect) = self.suspect.take() {
            self.ending.rejected.push((self.items[suspect].position, refused(500)));
        }
    }

    fn send_at_most(&mut self, max_records: usize) -> Next {
        self.max_records = max_records;
        self.attempts.reset();
        Next::Send
    }

    /// Halves a request whose records may be at fault after its last attempt, or suspects its only record and continues with
    /// the next one. Returns whether it did so.
    fn isolate(&mut self, retry: Retry, count: usize) -> bool {
        let is_divisible = count > 1 || self.suspect.is_none();
        if !self.attempts.are_used_up() || !retry.may_be_the_records || !is_divisible {
            return false;
        }
        // One attempt for each part: the whole has had its own.
        self.attempts.leave_one();
        if count > 1 {
            self.max_records = count / 2;
        } else {
            self.suspect = Some(self.next);
            self.next += 1;
        }
        true
    }
}

/// The rejection of a record that the inlet refused with a status.
fn refused(status: u16) -> Rejection {
    match status {
        413 => Rejection::too_large("the record is larger than the inlet accepts"),
        status => Rejection {
            reason: Reason::Refused,
            detail: format!("the inlet responds with {status} to this record").into(),
        },
    }
}
