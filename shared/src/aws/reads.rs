//! Reads of a value that a service stores: how often an instance retries them while they fail, and which failures it
//! reports. It does not read anything itself.

/// Maximum number of reads at once, and number of seconds until one more is allowed. Any caller with a wrong credential
/// causes a read, and a service that fails must not cost the time of every event.
const READS: u64 = 5;
const SECONDS_PER_READ: u64 = 10;
/// Number of seconds after which a failure that has not changed is reported again.
const SECONDS_PER_REPORT: u64 = 300;

/// The reads of one value.
#[derive(Debug, Default)]
pub struct Reads {
    /// Time (Unix seconds) at which all reads are allowed again. Each read moves it by `SECONDS_PER_READ`.
    spent_until: u64,
    /// The last failure that was reported, and when (Unix seconds).
    reported: Option<(String, u64)>,
}

impl Reads {
    /// Uses up one read, if one is left at `now` (Unix seconds).
    pub fn may_read(&mut self, now: u64) -> bool {
        let spent_until = self.spent_until.max(now) + SECONDS_PER_READ;
        let left = spent_until <= now + READS * SECONDS_PER_READ;
        if left {
            self.spent_until = spent_until;
        }
        left
    }

    /// Whether a failed read is to be reported at `now`: it failed in another way than before, or the last report is old.
    pub fn is_to_report(&mut self, problem: &str, now: u64) -> bool {
        if self.reported.as_ref().is_some_and(|(known, at)| known == problem && now < at + SECONDS_PER_REPORT) {
            return false;
        }
        self.reported = Some((problem.to_owned(), now));
        true
    }

    /// Forgets the last report, after a read that succeeded.
    pub fn succeeded(&mut self) {
        self.reported = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_limited_to_five_at_once_and_one_more_every_ten_seconds() {
        let mut reads = Reads::default();
        let mut count = |attempts: usize, now: u64| (0..attempts).filter(|_| reads.may_read(now)).count();
        assert_eq!(count(100, 1_000), 5);
        assert_eq!(count(100, 1_009), 0);
        assert_eq!(count(100, 1_010), 1);
        assert_eq!(count(100, 4_610), 5);
    }

    #[test]
    fn a_failure_is_reported_once_until_it_changes_or_lasts_for_five_minutes() {
        let mut reads = Reads::default();
        assert!(reads.is_to_report("denied", 1_000));
        assert!(!reads.is_to_report("denied", 1_299));
        assert!(reads.is_to_report("denied", 1_300));
        assert!(reads.is_to_report("missing", 1_301));
        reads.succeeded();
        assert!(reads.is_to_report("missing", 1_302));
    }
}
