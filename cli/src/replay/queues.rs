//! Which queues are meant: the rejected queue, and the queues that its events are sent to again.

use std::collections::BTreeMap;

use aws_sdk_sqs::Client;
use shared::aws::sqs::MAX_BYTES;
use shared::contract::FLOW_ATTRIBUTE;
use shared::contract::codec::pack;
use shared::contract::parked::Head;
use shared::contract::rejected::{RejectedEvent, Source};

use crate::queue::{CallError, Outgoing, Queue, STRING_TYPE};
use crate::target::{Access, TargetError, local, stack_queue, stack_queues};

#[derive(Debug, clap::Args)]
pub struct Target {
    #[command(flatten)]
    system: System,
    #[command(flatten)]
    access: Access,
    /// Queue of a kind's events; once for each kind [default: the stack's queues]
    #[arg(long, value_name = "KIND=URL", value_parser = kind_and_url, conflicts_with = "local", help_heading = "Target")]
    queue: Vec<(String, String)>,
    /// Queue of rejected parked messages [default: the stack's parking queue]
    #[arg(long, value_name = "URL", conflicts_with = "local", help_heading = "Target")]
    parking_queue_url: Option<String>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct System {
    /// CloudFormation stack whose rejected queue is meant
    #[arg(long, value_name = "NAME", help_heading = "Target")]
    stack: Option<String>,
    /// URL of the rejected queue; --queue and --parking-queue-url then name the other queues
    #[arg(long, value_name = "URL", help_heading = "Target")]
    rejected_queue_url: Option<String>,
    /// The system that `make run` started, by the address of its gateway [default: http://127.0.0.1:8080]
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "http://127.0.0.1:8080", help_heading = "Target")]
    local: Option<String>,
}

fn kind_and_url(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((kind, url)) if !kind.is_empty() && url.starts_with("http") => Ok((kind.to_owned(), url.to_owned())),
        _ => Err("expected a kind and its queue's URL, such as audience-change=https://sqs.…".to_owned()),
    }
}

pub struct Queues {
    client: Client,
    pub rejected: Queue,
    parking: Option<String>,
    /// URLs of the queues by kind.
    kinds: BTreeMap<String, String>,
    /// Name of the stack, and URLs of its queues.
    stack: Option<(String, Vec<String>)>,
}

/// A message, and the queue that it goes to.
pub struct Route {
    queue: Queue,
    body: String,
    group_id: Option<String>,
    flow: Option<String>,
}

impl Route {
    pub async fn send(&self) -> Result<(), CallError> {
        let Self { queue, body, group_id, flow } = self;
        queue.send(&Outgoing { body, group_id: group_id.as_deref(), flow: flow.as_deref() }).await
    }
}

impl Target {
    pub async fn queues(&self) -> Result<Queues, TargetError> {
        if let Some(url) = &self.system.local {
            let (client, info) = local(url).await?;
            let (Some(rejected), Some(parking)) = (info.rejected_queue_url, info.parking_queue_url) else {
                return Err(TargetError::NoQueues(url.clone()));
            };
            let rejected = Queue::new(client.clone(), rejected);
            let kinds = info.kinds.into_iter().filter_map(|kind| Some((kind.name, kind.queue_url?))).collect();
            return Ok(Queues { client, rejected, parking: Some(parking), kinds, stack: None });
        }
        let (client, region) = self.access.client().await?;
        let kinds = self.queue.iter().cloned().collect();
        let mut parking = self.parking_queue_url.clone();
        let (rejected, stack) = match (&self.system.rejected_queue_url, &self.system.stack) {
            (Some(url), _) => (url.clone(), None),
            (None, stack) => {
                let stack = stack.clone().unwrap_or_default();
                let urls = stack_queues(&client, &format!("{stack}-")).await?;
                let rejected = stack_queue(&urls, &stack, "RejectedQueue", "--rejected-queue-url", &region)?;
                if parking.is_none() {
                    parking = stack_queue(&urls, &stack, "ParkingQueue", "--parking-queue-url", &region).ok();
                }
                (rejected, Some((stack, urls)))
            }
        };
        let rejected = Queue::new(client.clone(), rejected);
        Ok(Queues { client, rejected, parking, kinds, stack })
    }
}

impl Queues {
    /// The message that replays a rejected event, and its queue; or the reason for which it can't be replayed.
    pub fn route(&self, reject: &RejectedEvent<'_>) -> Result<Route, &'static str> {
        if reject.truncated {
            return Err("only the first part of its body was stored");
        }
        let content = reject.body().map_err(|_| "its body can't be unpacked")?;
        let mut group_id = None;
        let (queue_url, body, flow) = match reject.source {
            Source::Parking => {
                let queue_url = self.parking.clone().ok_or("give the parking queue with --parking-queue-url")?;
                let body = pack(&content);
                // Redelivery reports an envelope of another version.
                group_id = Head::read(&body).ok().map(|head| head.group());
                (queue_url, body, None)
            }
            Source::Kafka => return Err("it came from a hub: correct it and send it to the hub"),
            Source::Webhook | Source::Queue => {
                let queue_url =
                    self.queue_of_kind(&reject.kind).ok_or("give its kind's queue with --queue KIND=URL")?;
                let body = String::from_utf8(content.into_owned()).map_err(|_| "its body is not UTF-8")?;
                (queue_url, body, Some(reject.flow.clone().into_owned()))
            }
        };
        if body.is_empty() {
            return Err("its body is empty");
        }
        if flow.as_ref().is_some_and(|flow| flow.is_empty() || !flow.chars().all(is_accepted)) {
            return Err("the name of its flow is empty or has characters that SQS does not accept");
        }
        if !body.chars().all(is_accepted) {
            return Err("its body has characters that SQS does not accept");
        }
        let attribute = flow.as_ref().map_or(0, |flow| FLOW_ATTRIBUTE.len() + STRING_TYPE.len() + flow.len());
        if body.len() + attribute > MAX_BYTES {
            return Err("it is larger than SQS accepts");
        }
        Ok(Route { queue: Queue::new(self.client.clone(), queue_url), body, group_id, flow })
    }

    fn queue_of_kind(&self, kind: &str) -> Option<String> {
        let of_stack = || {
            let (stack, urls) = self.stack.as_ref()?;
            stack_queue(urls, stack, &format!("{}Queue", pascal_case(kind)), "--queue", "").ok()
        };
        self.kinds.get(kind).cloned().or_else(of_stack)
    }
}

/// The name of a kind as the template writes it: `audience-change` -> `AudienceChange`.
fn pascal_case(kind: &str) -> String {
    let capitalised = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    };
    kind.split('-').map(capitalised).collect()
}

/// Whether SQS accepts a character. It has refused other characters at times and replaced them at others.
fn is_accepted(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_the_name_of_its_queue_in_the_template() {
        assert_eq!(pascal_case("audience-change"), "AudienceChange");
        assert_eq!(pascal_case("x"), "X");
    }

    #[test]
    fn a_kind_and_its_queue_are_given_together() {
        let pair = ("audience-change".to_owned(), "https://sqs/a=b".to_owned());
        assert_eq!(kind_and_url("audience-change=https://sqs/a=b"), Ok(pair));
        for text in ["audience-change", "=https://sqs/a", "audience-change=a"] {
            assert!(kind_and_url(text).is_err(), "{text}");
        }
    }
}
