//! Receipt handles: which message a handle names, and which of its receives.

use super::Queue;

/// Reason for which a receipt handle was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sqs) enum HandleError {
    /// No queue has issued it.
    Invalid,
    /// The message was deleted, or was received again since.
    Gone,
    /// The message is visible.
    NotInFlight,
}

impl Queue {
    /// The key of a message, and the number of the receive that returned the handle.
    pub(super) fn parse(&self, handle: &str) -> Result<(u64, u32), HandleError> {
        let number = |range: std::ops::Range<usize>| {
            handle.get(range).filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        };
        let (Some(key), Some(receives), Some(salt), 32) = (number(0..16), number(16..24), number(24..32), handle.len())
        else {
            return Err(HandleError::Invalid);
        };
        let parsed = (u64::from_str_radix(key, 16), u32::from_str_radix(receives, 16), u32::from_str_radix(salt, 16));
        match parsed {
            (Ok(key), Ok(receives), Ok(salt)) if salt == self.salt => Ok((key, receives)),
            _ => Err(HandleError::Invalid),
        }
    }
}
