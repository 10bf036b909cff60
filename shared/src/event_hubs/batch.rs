//! Batch requests: messages grouped by route and packed by size, each request in one buffer.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;

use crate::event_hubs::pace::Limit;
use crate::event_hubs::partitioning::{Partitioning, Route};
use crate::json::{escaped_len, push_string};
use crate::message::Message;

/// Messages of one route, which are sent in requests one after another.
#[derive(Debug)]
pub struct Group<'a> {
    pub route: Route<'a>,
    /// Positions of the messages not yet sent, the next one last.
    waiting: Vec<usize>,
    /// Size of the waiting messages in requests, in bytes.
    bytes: usize,
    /// Requests that were built and have to be sent again, the next one last.
    again: Vec<Request>,
}

/// The body of one batch request (`application/vnd.microsoft.servicebus.json`) and the messages in it.
#[derive(Debug)]
pub struct Request {
    pub body: Bytes,
    elements: Vec<Element>,
}

/// A request that still grows.
struct Growing {
    body: Vec<u8>,
    elements: Vec<Element>,
}

#[derive(Debug, Clone)]
struct Element {
    bytes: Range<usize>,
    message: usize,
}

impl Growing {
    fn with_capacity(bytes: usize) -> Self {
        let mut body = Vec::with_capacity(bytes);
        body.push(b'[');
        Self { body, elements: Vec::new() }
    }

    fn push(&mut self, message: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.body.len();
        write(&mut self.body);
        self.elements.push(Element { bytes: start..self.body.len(), message });
        self.body.push(b',');
    }

    fn close(mut self) -> Request {
        if let Some(last) = self.body.last_mut() {
            *last = b']';
        }
        Request { body: self.body.into(), elements: self.elements }
    }
}

impl Request {
    /// Positions of the messages, in order.
    pub fn messages(&self) -> impl Iterator<Item = usize> + '_ {
        self.elements.iter().map(|element| element.message)
    }

    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// Splits it into two requests with half of the messages each.
    pub fn halve(&self) -> [Self; 2] {
        let (first, second) = self.elements.split_at(self.elements.len() / 2);
        [first, second].map(|elements| {
            let mut half = Growing::with_capacity(self.body.len());
            for element in elements {
                half.push(element.message, |body| body.extend_from_slice(&self.body[element.bytes.clone()]));
            }
            half.close()
        })
    }
}

impl Group<'_> {
    /// The next request, of at most `limit` but with one message at least.
    ///
    /// Escaping never makes text shorter. So a request within the limit has escaped and unescaped texts within it,
    /// whichever of the two the service counts.
    pub fn next(&mut self, messages: &[Message<'_>], limit: Limit) -> Option<Request> {
        if let Some(request) = self.again.pop() {
            return Some(request);
        }
        let mut growing: Option<Growing> = None;
        while let Some(&position) = self.waiting.last() {
            let message = &messages[position];
            let len = element_len(message, &self.route);
            let growing = match &mut growing {
                Some(growing) if growing.body.len() + len >= limit.bytes => break,
                Some(growing) if growing.elements.len() >= limit.messages => break,
                Some(growing) => growing,
                None => {
                    let share = (self.bytes / self.waiting.len() + 1).saturating_mul(limit.messages);
                    let capacity = share.min(limit.bytes).min(self.bytes + 1).max(len + 2);
                    growing.insert(Growing::with_capacity(capacity))
                }
            };
            growing.push(position, |body| push_element(body, message, &self.route));
            self.waiting.pop();
            self.bytes -= len + 1;
        }
        growing.map(Growing::close)
    }

    /// Moves a random message to the front, if messages have no order.
    pub fn rotate(&mut self) {
        if self.route == Route::Anywhere && !self.waiting.is_empty() {
            let by = fastrand::usize(..self.waiting.len());
            self.waiting.rotate_left(by);
        }
    }

    /// Puts requests back to be sent before all others, in their order.
    pub fn put_back<const N: usize>(&mut self, requests: [Request; N]) {
        self.again.extend(requests.into_iter().rev());
    }

    /// Positions of all messages that are not sent, in no order.
    pub fn unsent(self) -> impl Iterator<Item = usize> {
        self.waiting.into_iter().chain(self.again.into_iter().flat_map(|request| request.elements).map(|e| e.message))
    }
}

/// Groups `messages` by route. Also returns the positions of messages that are too large for a request of `max_bytes`.
pub fn group<'a>(
    messages: &'a [Message<'_>],
    partitioning: Partitioning,
    max_bytes: usize,
) -> (Vec<Group<'a>>, Vec<usize>) {
    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut by_route: HashMap<Route<'a>, usize> = HashMap::new();
    let mut too_large = Vec::new();
    for (position, message) in messages.iter().enumerate() {
        let route = partitioning.route(&message.subject);
        let len = element_len(message, &route);
        // The brackets around a single element.
        if len + 2 > max_bytes {
            too_large.push(position);
            continue;
        }
        let group = *by_route.entry(route).or_insert_with_key(|route| {
            groups.push(Group { route: route.clone(), waiting: Vec::new(), bytes: 0, again: Vec::new() });
            groups.len() - 1
        });
        groups[group].waiting.push(position);
        groups[group].bytes += len + 1;
    }
    for group in &mut groups {
        group.waiting.reverse();
    }
    (groups, too_large)
}

const BODY: &[u8] = b"{\"Body\":";
const PROPERTIES: &[u8] = b",\"UserProperties\":";
const KEY: &[u8] = b",\"BrokerProperties\":{\"PartitionKey\":";

fn push_element(out: &mut Vec<u8>, message: &Message<'_>, route: &Route<'_>) {
    out.extend_from_slice(BODY);
    out.extend_from_slice(message.body.as_bytes());
    out.extend_from_slice(PROPERTIES);
    out.extend_from_slice(message.properties.as_bytes());
    if let Route::Key(key) = route {
        out.extend_from_slice(KEY);
        push_string(out, key);
        out.push(b'}');
    }
    out.push(b'}');
}

/// Number of bytes that [`push_element`] writes.
fn element_len(message: &Message<'_>, route: &Route<'_>) -> usize {
    let key = match route {
        Route::Key(key) => KEY.len() + escaped_len(key) + "\"\"}".len(),
        Route::Partition(_) | Route::Anywhere => 0,
    };
    BODY.len() + message.body.len() + PROPERTIES.len() + message.properties.as_bytes().len() + key + "}".len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Body, Properties};

    fn message(subject: &str, body: &str) -> Message<'static> {
        Message {
            id: String::new(),
            subject: subject.to_owned().into(),
            body: Body::new(body),
            properties: Properties::default(),
        }
    }

    fn parsed(request: &Request) -> Vec<serde_json::Value> {
        serde_json::from_slice(&request.body).unwrap()
    }

    /// All requests of all groups.
    fn pack(messages: &[Message<'_>], partitioning: Partitioning, max_bytes: usize) -> (Vec<Request>, Vec<usize>) {
        let (groups, too_large) = group(messages, partitioning, max_bytes);
        let limit = Limit { messages: usize::MAX, bytes: max_bytes };
        let requests = groups
            .into_iter()
            .flat_map(|mut group| std::iter::from_fn(move || group.next(messages, limit)).collect::<Vec<_>>());
        (requests.collect(), too_large)
    }

    #[test]
    fn a_thousand_subjects_share_few_requests() {
        let messages: Vec<_> = (0..1000).map(|n| message(&format!("profile-{n}"), "{}")).collect();
        let requests = |partitioning: &str| {
            let (requests, too_large) = pack(&messages, partitioning.parse().unwrap(), 1_000_000);
            assert!(too_large.is_empty());
            requests.len()
        };
        assert_eq!(requests("keys:16"), 16);
        assert_eq!(requests("partitions:4"), 4);
        assert_eq!(requests("none"), 1);
        assert_eq!(requests("subject"), 1000);
    }

    #[test]
    fn halves_hold_the_same_messages_in_order() {
        let messages: Vec<_> = (0..5).map(|n| message("s", &format!("{{\"n\":{n}}}"))).collect();
        let (requests, _) = pack(&messages, Partitioning::Subject, 1_000_000);
        let whole = &requests[0];
        let [first, second] = whole.halve();
        assert_eq!([parsed(&first), parsed(&second)].concat(), parsed(whole));
        assert_eq!(first.messages().chain(second.messages()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(parsed(whole)[4]["BrokerProperties"]["PartitionKey"], "s");
    }

    #[test]
    fn requests_that_were_put_back_come_first_and_every_unsent_message_is_returned() {
        let messages: Vec<_> = (0..6).map(|n| message("s", &n.to_string())).collect();
        let (mut groups, _) = group(&messages, Partitioning::Subject, 1_000_000);
        let group = &mut groups[0];
        let limit = Limit { messages: 4, bytes: 1_000_000 };
        let first = group.next(&messages, limit).unwrap();
        assert_eq!(first.len(), 4);
        group.put_back(first.halve());
        let positions = |request: Option<Request>| request.unwrap().messages().collect::<Vec<_>>();
        assert_eq!(positions(group.next(&messages, limit)), [0, 1]);
        let mut unsent: Vec<usize> = groups.pop().unwrap().unsent().collect();
        unsent.sort_unstable();
        assert_eq!(unsent, [2, 3, 4, 5]);
    }

    proptest::proptest! {
        #[test]
        fn a_message_that_fits_is_packed(subject in "\\PC{0,200}", body in "\\PC{0,200}", budget in 60usize..900) {
            let messages = [message(&subject, &body)];
            for partitioning in [Partitioning::Keys(60_000), Partitioning::Subject, Partitioning::None] {
                let (_, too_large) = pack(&messages, partitioning, budget);
                proptest::prop_assert!(!messages[0].fits(budget) || too_large.is_empty());
            }
        }

        #[test]
        fn no_request_exceeds_the_budget_and_no_message_is_lost(
            bodies in proptest::collection::vec("\\PC{0,60}", 0..40), budget in 30usize..400, most in 1usize..10,
        ) {
            let messages: Vec<_> = bodies.iter().enumerate().map(|(n, body)| message(&format!("{}", n % 5), body)).collect();
            let (groups, mut seen) = group(&messages, Partitioning::Keys(3), budget);
            let limit = Limit { messages: most, bytes: budget };
            for mut group in groups {
                while let Some(request) = group.next(&messages, limit) {
                    proptest::prop_assert!(request.body.len() <= budget && request.len() <= most);
                    let elements = parsed(&request);
                    proptest::prop_assert_eq!(elements.len(), request.len());
                    let measured: usize =
                        request.messages().map(|position| element_len(&messages[position], &group.route) + 1).sum();
                    proptest::prop_assert_eq!(measured + 1, request.body.len());
                    for (element, position) in elements.iter().zip(request.messages()) {
                        proptest::prop_assert_eq!(element["Body"].as_str(), Some(bodies[position].as_str()));
                    }
                    seen.extend(request.messages());
                }
                proptest::prop_assert_eq!(group.bytes, 0);
            }
            seen.sort_unstable();
            proptest::prop_assert_eq!(seen, (0..bodies.len()).collect::<Vec<_>>());
        }
    }
}
