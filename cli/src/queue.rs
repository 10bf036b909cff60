//! The SQS calls that are needed here, each with an error that names the call and the queue.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, Message,
    MessageAttributeValue, MessageSystemAttributeName, QueueAttributeName,
};
use futures_util::{StreamExt, stream};
use shared::contract::FLOW_ATTRIBUTE;

/// Maximum number of messages of one receive, delete or visibility call.
pub const MAX_PER_CALL: usize = 10;
/// Number of calls in flight together.
pub const CONCURRENT_CALLS: usize = 8;
/// The type of the attribute that names the flow of an inbound message.
pub const STRING_TYPE: &str = "String";
/// Time that a receive call waits for a message, in seconds. Above zero SQS asks all of its servers.
const RECEIVE_WAIT_SECONDS: i32 = 1;

#[derive(Debug, thiserror::Error)]
#[error("{operation} failed for {subject}: {problem}")]
pub struct CallError {
    operation: &'static str,
    subject: String,
    problem: String,
}

impl CallError {
    pub fn new<E, R>(operation: &'static str, subject: impl fmt::Display, error: &SdkError<E, R>) -> Self
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
        R: fmt::Debug + 'static,
    {
        let problem = match error.code() {
            Some(code) => described(code, error.message()),
            None => with_sources(error),
        };
        Self { operation, subject: subject.to_string(), problem }
    }
}

fn described(code: &str, message: Option<&str>) -> String {
    message.map_or_else(|| code.to_owned(), |message| format!("{code}: {message}"))
}

/// An error without a response: its cause is in the sources (no credentials, no connection).
fn with_sources(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Numbers of messages as SQS reports them. They are approximate, and may be a minute old.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub visible: usize,
    pub hidden: usize,
    pub delayed: usize,
}

impl Counts {
    pub fn total(self) -> usize {
        self.visible + self.hidden + self.delayed
    }
}

/// The outcome for received messages.
#[derive(Debug, Clone, Copy)]
pub enum Settle {
    Delete,
    /// Makes them visible at once.
    Release,
}

#[derive(Clone)]
pub struct Queue {
    client: Client,
    pub url: String,
}

/// A message to send.
pub struct Outgoing<'m> {
    pub body: &'m str,
    pub group_id: Option<&'m str>,
    /// Value of the attribute [`FLOW_ATTRIBUTE`].
    pub flow: Option<&'m str>,
}

impl Queue {
    pub fn new(client: Client, url: String) -> Self {
        Self { client, url }
    }

    pub async fn attributes(
        &self,
        names: &[QueueAttributeName],
    ) -> Result<HashMap<QueueAttributeName, String>, CallError> {
        let call = self.client.get_queue_attributes().queue_url(&self.url).set_attribute_names(Some(names.to_vec()));
        let response = call.send().await.map_err(|error| CallError::new("GetQueueAttributes", &self.url, &error))?;
        Ok(response.attributes.unwrap_or_default())
    }

    pub async fn counts(&self) -> Result<Counts, CallError> {
        use QueueAttributeName::{
            ApproximateNumberOfMessages as Visible, ApproximateNumberOfMessagesDelayed as Delayed,
            ApproximateNumberOfMessagesNotVisible as Hidden,
        };
        let attributes = self.attributes(&[Visible, Hidden, Delayed]).await?;
        let count = |name| attributes.get(&name).and_then(|count| count.parse().ok()).unwrap_or_default();
        Ok(Counts { visible: count(Visible), hidden: count(Hidden), delayed: count(Delayed) })
    }

    /// Receives messages and hides them for `hold`. An empty response means that none is visible.
    pub async fn receive(&self, max: usize, hold: Duration) -> Result<Vec<Message>, CallError> {
        let response = self
            .client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(max.clamp(1, MAX_PER_CALL) as i32)
            .wait_time_seconds(RECEIVE_WAIT_SECONDS)
            .visibility_timeout(hold.as_secs() as i32)
            .message_system_attribute_names(MessageSystemAttributeName::SentTimestamp)
            .send()
            .await
            .map_err(|error| CallError::new("ReceiveMessage", &self.url, &error))?;
        Ok(response.messages.unwrap_or_default())
    }

    pub async fn send(&self, message: &Outgoing<'_>) -> Result<(), CallError> {
        let Outgoing { body, group_id, flow } = message;
        let mut call = self.client.send_message().queue_url(&self.url).message_body(*body);
        if let Some(flow) = flow {
            let value = MessageAttributeValue::builder().data_type(STRING_TYPE).string_value(*flow).build();
            call = call.message_attributes(FLOW_ATTRIBUTE, value.expect("an attribute with a type is complete"));
        }
        let call = call.set_message_group_id(group_id.map(str::to_owned));
        call.send().await.map_err(|error| CallError::new("SendMessage", &self.url, &error))?;
        Ok(())
    }

    /// Settles messages by receipt handle; returns each failure with the position of its handle.
    pub async fn settle(&self, settle: Settle, handles: &[&str]) -> Vec<(usize, String)> {
        let batches = handles.chunks(MAX_PER_CALL).enumerate().map(|(batch, handles)| async move {
            let failures = match self.settle_batch(settle, handles).await {
                Ok(failures) => failures
                    .into_iter()
                    .filter_map(|entry| {
                        Some((entry.id.parse().ok()?, described(&entry.code, entry.message.as_deref())))
                    })
                    .collect(),
                Err(error) => (0..handles.len()).map(|position| (position, error.to_string())).collect::<Vec<_>>(),
            };
            failures.into_iter().map(move |(position, problem)| (batch * MAX_PER_CALL + position, problem))
        });
        let settled: Vec<_> = stream::iter(batches).buffer_unordered(CONCURRENT_CALLS).collect().await;
        settled.into_iter().flatten().collect()
    }

    async fn settle_batch(&self, settle: Settle, handles: &[&str]) -> Result<Vec<BatchResultErrorEntry>, CallError> {
        let numbered = handles.iter().enumerate();
        const COMPLETE: &str = "an entry with an id and a receipt handle is complete";
        match settle {
            Settle::Delete => {
                let entries = numbered.map(|(id, handle)| {
                    let entry = DeleteMessageBatchRequestEntry::builder().id(id.to_string()).receipt_handle(*handle);
                    entry.build().expect(COMPLETE)
                });
                let call = self.client.delete_message_batch().queue_url(&self.url);
                let response = call.set_entries(Some(entries.collect())).send().await;
                let response = response.map_err(|error| CallError::new("DeleteMessageBatch", &self.url, &error))?;
                Ok(response.failed)
            }
            Settle::Release => {
                let entries = numbered.map(|(id, handle)| {
                    let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(id.to_string());
                    entry.receipt_handle(*handle).visibility_timeout(0).build().expect(COMPLETE)
                });
                let call = self.client.change_message_visibility_batch().queue_url(&self.url);
                let response = call.set_entries(Some(entries.collect())).send().await;
                let response =
                    response.map_err(|error| CallError::new("ChangeMessageVisibilityBatch", &self.url, &error))?;
                Ok(response.failed)
            }
        }
    }
}
