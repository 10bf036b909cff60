//! How messages are gathered into requests: one request goes to one partition, so a key per subject would cost a request
//! per subject.

use std::borrow::Cow;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::message::digest;

/// `PARTITIONING`: how subjects share requests. With every value but `None`, all messages of a subject go to one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioning {
    /// `keys:N`: N partition keys, `hash(subject) mod N`. For a hub whose partition count is not known.
    Keys(u32),
    /// `partitions:N`: partition `hash(subject) mod N` of a hub with N partitions.
    Partitions(u32),
    /// `subject`: the subject itself is the key.
    Subject,
    /// `none`: no key, no order.
    None,
}

impl Default for Partitioning {
    fn default() -> Self {
        Self::Keys(16)
    }
}

/// The place that a group of messages is sent to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Route<'a> {
    Key(Cow<'a, str>),
    Partition(u32),
    Anywhere,
}

/// Maximum number of characters of a partition key that Event Hubs accepts.
const MAX_KEY_CHARACTERS: usize = 128;

impl Partitioning {
    /// The route for messages of `subject`.
    pub fn route<'a>(self, subject: &'a str) -> Route<'a> {
        match self {
            // These messages have no order, and one key would put all of them into one partition.
            _ if subject.is_empty() => Route::Anywhere,
            Self::Keys(n) => Route::Key(bucket(subject, n).to_string().into()),
            Self::Partitions(n) => Route::Partition(bucket(subject, n)),
            Self::Subject if subject.chars().count() > MAX_KEY_CHARACTERS => {
                Route::Key(digest(subject.as_bytes()).into())
            }
            Self::Subject => Route::Key(subject.into()),
            Self::None => Route::Anywhere,
        }
    }
}

/// The first 8 bytes, big-endian, of SHA-256 over the subject, modulo `n`.
fn bucket(subject: &str, n: u32) -> u32 {
    let hash = Sha256::digest(subject);
    let first: [u8; 8] = std::array::from_fn(|i| hash[i]);
    u32::try_from(u64::from_be_bytes(first) % u64::from(n)).expect("a remainder of a u32 fits a u32")
}

impl FromStr for Partitioning {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected `keys:N`, `partitions:N` (N from 1 to 10000), `subject` or `none`";
        let (form, count) = text.split_once(':').map_or((text, None), |(form, count)| (form, Some(count)));
        let count = match count {
            None => None,
            Some(count) => Some(count.parse().ok().filter(|n| (1..=10_000).contains(n)).ok_or(EXPECTED)?),
        };
        match (form, count) {
            ("keys", Some(n)) => Ok(Self::Keys(n)),
            ("partitions", Some(n)) => Ok(Self::Partitions(n)),
            ("subject", None) => Ok(Self::Subject),
            ("none", None) => Ok(Self::None),
            _ => Err(EXPECTED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_hash_is_used() {
        // printf aaaabbbb-cccc-dddd-eeee-ffffffffffff | sha256sum | cut -c1-16 gives 0e5aedb8a0342ed8
        let subject = "aaaabbbb-cccc-dddd-eeee-ffffffffffff";
        assert_eq!(Partitioning::Partitions(4).route(subject), Route::Partition(0));
        assert_eq!(Partitioning::Keys(16).route(subject), Route::Key("8".into()));
    }

    #[test]
    fn long_keys_are_hashed_and_empty_ones_left_out() {
        let long = "é".repeat(128);
        assert_eq!(Partitioning::Subject.route(&long), Route::Key(long.as_str().into()));
        let longer = "é".repeat(129);
        let Route::Key(key) = Partitioning::Subject.route(&longer) else { panic!("a key") };
        assert_eq!(key.len(), 64);
        for partitioning in [Partitioning::Subject, Partitioning::Keys(4), Partitioning::Partitions(4)] {
            assert_eq!(partitioning.route(""), Route::Anywhere);
        }
    }

    #[test]
    fn settings_are_parsed_strictly() {
        assert_eq!("keys:16".parse(), Ok(Partitioning::Keys(16)));
        assert_eq!("partitions:1".parse(), Ok(Partitioning::Partitions(1)));
        assert_eq!("subject".parse(), Ok(Partitioning::Subject));
        assert_eq!("none".parse(), Ok(Partitioning::None));
        for wrong in ["", "keys", "keys:", "keys:0", "keys:-1", "partitions:10001", "none:1", "Keys:4", "subject "] {
            assert!(wrong.parse::<Partitioning>().is_err(), "{wrong}");
        }
    }
}
