//! Wall-clock time as a value that tests can set. Deadlines inside one invocation use tokio's timer instead.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

/// The source of the time of day. The expiry of a token is compared with it at use: a monotonic clock may stop while the
/// sandbox is frozen between invocations.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The machine's clock.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    pub fn system() -> Self {
        Self(Arc::new(SystemTime::now))
    }

    /// A clock for tests.
    pub fn from_fn(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub fn now(&self) -> SystemTime {
        (self.0)()
    }

    /// Whole seconds since 1970-01-01T00:00:00Z.
    pub fn unix_seconds(&self) -> u64 {
        self.now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    /// Now as RFC 3339, in UTC with milliseconds.
    pub fn rfc3339(&self) -> String {
        let since = self.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).ok().and_then(rfc3339).unwrap_or_default()
    }
}

/// Milliseconds since 1970 as RFC 3339, in UTC with milliseconds; `None` for a year that RFC 3339 does not have.
pub fn rfc3339(milliseconds: i64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).ok()?;
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second, millisecond) = time.to_hms_milli();
    let year = u32::try_from(year).ok().filter(|year| *year <= 9999)?;
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let numbers = [
        (0..4, year),
        (5..7, u8::from(month).into()),
        (8..10, day.into()),
        (11..13, hour.into()),
        (14..16, minute.into()),
        (17..19, second.into()),
        (20..23, millisecond.into()),
    ];
    for (place, mut number) in numbers {
        for digit in text[place].iter_mut().rev() {
            *digit += (number % 10) as u8;
            number /= 10;
        }
    }
    Some(std::str::from_utf8(&text).expect("digits are ASCII").to_owned())
}

/// The time of a text that [`rfc3339`] wrote; `None` for any other text.
pub fn from_rfc3339(text: &str) -> Option<SystemTime> {
    let digits = |range: std::ops::Range<usize>| {
        let digits = text.get(range).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
        digits.parse::<u32>().ok()
    };
    let small = |range| digits(range).and_then(|number| u8::try_from(number).ok());
    let month = time::Month::try_from(small(5..7)?).ok()?;
    let date = time::Date::from_calendar_date(i32::try_from(digits(0..4)?).ok()?, month, small(8..10)?).ok()?;
    let milliseconds = u16::try_from(digits(20..23)?).ok()?;
    let time = time::Time::from_hms_milli(small(11..13)?, small(14..16)?, small(17..19)?, milliseconds).ok()?;
    let at = SystemTime::from(OffsetDateTime::new_utc(date, time));
    (at.duration_since(UNIX_EPOCH).is_ok() && text.len() == 24 && text.ends_with('Z')).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_were_written() {
        for milliseconds in [0, 1_767_323_045_678, 951_782_400_000] {
            let text = rfc3339(milliseconds).unwrap();
            let read = from_rfc3339(&text).unwrap().duration_since(UNIX_EPOCH).unwrap();
            assert_eq!(read.as_millis(), milliseconds.unsigned_abs().into());
        }
        let others = [
            "",
            "2026-13-02T03:04:05.678Z",
            "2026-01-02T03:04:05Z",
            "2026-01-02T03:04:05.678+01:00",
            "1969-01-02T03:04:05.678Z",
            "é026-01-02T03:04:05.678Z",
        ];
        for other in others {
            assert_eq!(from_rfc3339(other), None, "{other}");
        }
    }
}
