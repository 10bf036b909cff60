//! Faults of send requests: what an emulator does instead of handling a request as usual.

use serde::{Deserialize, Serialize};

use crate::faults;

/// A fault for the send requests that it matches. It takes effect before anything is checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// Hub whose requests it affects. `None`: every hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// Number of requests that it affects. 0: all requests until it is cleared.
    #[serde(default = "faults::once")]
    pub times: u32,
    #[serde(flatten)]
    pub action: Action,
}

impl faults::Fault for Fault {
    fn times(&mut self) -> &mut u32 {
        &mut self.times
    }
}

impl From<Action> for Fault {
    /// A fault for the next request to any hub.
    fn from(action: Action) -> Self {
        Self { hub: None, times: 1, action }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum Action {
    /// An error response; nothing is stored.
    Status {
        status: u16,
        /// Value of `Retry-After`, in seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// The connection is reset without a response; nothing is stored.
    Reset,
    /// The events are stored, then the connection is reset without a response.
    ResetAfterStore,
    /// The request is handled as usual, but later.
    Delay { ms: u64 },
    /// The request never gets a response; nothing is stored.
    Hang,
}

/// Detail of a scripted error response that has none of its own.
pub(super) fn default_detail(status: u16) -> &'static str {
    match status {
        401 => "40103: Invalid authorization token signature.",
        404 => "40400: Endpoint not found.",
        503 => "The server is busy. Please try again.",
        _ => "The response was scripted.",
    }
}
