//! Triggers translate an invocation into work for the pipeline, and its outcome into a response.

pub mod deadline;
pub mod http;
pub mod sqs;
pub mod sqs_event;
