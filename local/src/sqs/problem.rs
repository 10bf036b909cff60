//! How a call fails: the errors of SQS's JSON protocol, with the codes of the older query protocol that SDKs show.

use serde_json::{Value, json};

use super::queue::HandleError;

/// Reason for which a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub status: u16,
    /// The shape that `__type` names.
    pub shape: &'static str,
    /// The code of the older query protocol, which SDKs show.
    pub code: &'static str,
    pub message: String,
}

impl Problem {
    pub fn new(shape: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { status: 400, shape, code, message: message.into() }
    }

    pub fn parameter(message: impl Into<String>) -> Self {
        Self::new("com.amazonaws.sqs#InvalidParameterValue", "InvalidParameterValue", message)
    }

    pub fn value(name: &str, value: impl std::fmt::Display, reason: &str) -> Self {
        Self::parameter(format!("Value {value} for parameter {name} is invalid. Reason: {reason}"))
    }

    pub fn missing(name: &str) -> Self {
        let message = format!("The request must contain the parameter {name}.");
        Self::new("com.amazonaws.sqs#MissingParameter", "MissingParameter", message)
    }

    pub fn no_queue() -> Self {
        Self::new(
            "com.amazonaws.sqs#QueueDoesNotExist",
            "AWS.SimpleQueueService.NonExistentQueue",
            "The specified queue does not exist.",
        )
    }

    pub fn unknown_operation() -> Self {
        Self::new("com.amazon.coral.service#UnknownOperationException", "InvalidAction", "Unknown operation.")
    }

    pub fn over_limit() -> Self {
        let message = "Too many messages in flight. Delete messages, or wait until they are visible.";
        Self { status: 403, ..Self::new("com.amazonaws.sqs#OverLimit", "OverLimit", message) }
    }

    pub fn too_large(limit: usize) -> Self {
        let message =
            format!("One or more parameters are invalid. Reason: Message must be shorter than {limit} bytes.");
        Self::parameter(message)
    }

    pub fn handle(error: HandleError, handle: &str) -> Self {
        match error {
            HandleError::Invalid => Self::new(
                "com.amazonaws.sqs#ReceiptHandleIsInvalid",
                "ReceiptHandleIsInvalid",
                format!("The input receipt handle \"{handle}\" is not a valid receipt handle."),
            ),
            HandleError::Gone => Self::value(
                "ReceiptHandle",
                handle,
                "Message does not exist or is not available for visibility timeout change.",
            ),
            HandleError::NotInFlight => Self::new(
                "com.amazonaws.sqs#MessageNotInflight",
                "AWS.SimpleQueueService.MessageNotInflight",
                "The message referred to is not in flight.",
            ),
        }
    }

    /// The same problem for one entry of a batch.
    pub fn of_entry(self, id: &str) -> Value {
        json!({ "Id": id, "SenderFault": true, "Code": self.code, "Message": self.message })
    }
}
