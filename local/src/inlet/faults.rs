//! Faults of the inlet and its token endpoint: what they do instead of handling a request as usual.

use serde::{Deserialize, Serialize};

use crate::faults;

/// A fault for requests to the inlet, or to the token endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Number of requests that it affects. 0: all requests until it is cleared.
    #[serde(default = "faults::once")]
    pub times: u32,
    /// Whether it affects requests for tokens instead.
    #[serde(default)]
    pub token: bool,
    #[serde(flatten)]
    pub action: Action,
}

impl faults::Fault for Fault {
    fn times(&mut self) -> &mut u32 {
        &mut self.times
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum Action {
    /// An error response; no record is stored.
    Status {
        status: u16,
        /// Value of `Retry-After`, in seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<u64>,
    },
    /// The messages of a batch at these positions fail; the others are stored.
    Elements {
        status: u16,
        places: Vec<usize>,
        /// Whether the response has the form that the documentation shows: `statusCode`, and no id for failures.
        #[serde(default)]
        as_documented: bool,
    },
    /// The connection is reset without a response; no record is stored.
    Reset,
    /// The records are stored, then the connection is reset without a response.
    ResetAfterTaking,
    /// The request is handled as usual, but later.
    Delay { ms: u64 },
    /// The request never gets a response; no record is stored.
    Hang,
}

impl From<Action> for Fault {
    /// A fault for the next request.
    fn from(action: Action) -> Self {
        Self { times: 1, token: false, action }
    }
}
