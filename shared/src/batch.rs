//! Batch requests: messages gathered by route and packed by size, each request in one buffer.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;

use crate::json::{escaped_len, push_string};
use crate::message::Message;
use crate::partitioning::{Partitioning, Route};

/// Messages of one route, packed into requests that go out one after another.
#[derive(Debug)]
pub struct Group<'a> {
    pub route: Route<'a>,
    pub requests: Vec<Request>,
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

    /// Two requests with half of the messages each.
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

/// Packs `messages` into requests of at most `max_bytes`. Second: positions of messages too large for any request.
///
/// Escaping only ever makes text longer, so that a request within the budget has bodies and properties within it too,
/// whichever of the two the service counts.
pub fn pack<'a>(
    messages: &'a [Message<'_>],
    partitioning: Partitioning,
    max_bytes: usize,
) -> (Vec<Group<'a>>, Vec<usize>) {
    // First the groups and their sizes, so that no buffer has to grow.
    let mut sizes: Vec<(Route<'a>, usize)> = Vec::new();
    let mut by_route: HashMap<Route<'a>, usize> = HashMap::new();
    let mut group_of = Vec::with_capacity(messages.len());
    for message in messages {
        let route = partitioning.route(&message.subject);
        let group = *by_route.entry(route).or_insert_with_key(|route| {
            sizes.push((route.clone(), 2));
            sizes.len() - 1
        });
        sizes[group].1 += element_len(message, &sizes[group].0) + 1;
        group_of.push(group);
    }
    let mut growing: Vec<(Route<'a>, Vec<Growing>)> =
        sizes.into_iter().map(|(route, bytes)| (route, vec![Growing::with_capacity(bytes.min(max_bytes))])).collect();
    let mut too_large = Vec::new();
    for (position, (message, group)) in messages.iter().zip(group_of).enumerate() {
        let (route, requests) = &mut growing[group];
        let len = element_len(message, route);
        // The brackets around a single element.
        if len + 2 > max_bytes {
            too_large.push(position);
            continue;
        }
        if requests.last().is_none_or(|last| last.body.len() + len >= max_bytes) {
            requests.push(Growing::with_capacity(len + 2));
        }
        let last = requests.last_mut().expect("one was pushed if none had room");
        last.push(position, |body| push_element(body, message, route));
    }
    for (_, requests) in &mut growing {
        requests.retain(|request| !request.elements.is_empty());
    }
    let groups = growing
        .into_iter()
        .map(|(route, requests)| Group { route, requests: requests.into_iter().map(Growing::close).collect() });
    (groups.collect(), too_large)
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

/// As many bytes as [`push_element`] writes.
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

    #[test]
    fn a_thousand_subjects_share_few_requests() {
        let messages: Vec<_> = (0..1000).map(|n| message(&format!("profile-{n}"), "{}")).collect();
        let requests = |partitioning: &str| {
            let (groups, too_large) = pack(&messages, partitioning.parse().unwrap(), 1_000_000);
            assert!(too_large.is_empty());
            groups.iter().map(|group| group.requests.len()).sum::<usize>()
        };
        assert_eq!(requests("keys:16"), 16);
        assert_eq!(requests("partitions:4"), 4);
        assert_eq!(requests("none"), 1);
        assert_eq!(requests("subject"), 1000);
    }

    #[test]
    fn halves_hold_the_same_messages_in_order() {
        let messages: Vec<_> = (0..5).map(|n| message("s", &format!("{{\"n\":{n}}}"))).collect();
        let (groups, _) = pack(&messages, Partitioning::Subject, 1_000_000);
        let whole = &groups[0].requests[0];
        let [first, second] = whole.halve();
        assert_eq!([parsed(&first), parsed(&second)].concat(), parsed(whole));
        assert_eq!(first.messages().chain(second.messages()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(parsed(whole)[4]["BrokerProperties"]["PartitionKey"], "s");
    }

    proptest::proptest! {
        #[test]
        fn what_fits_is_packed(subject in "\\PC{0,200}", body in "\\PC{0,200}", budget in 60usize..900) {
            let messages = [message(&subject, &body)];
            for partitioning in [Partitioning::Keys(60_000), Partitioning::Subject, Partitioning::None] {
                let (_, too_large) = pack(&messages, partitioning, budget);
                proptest::prop_assert!(!messages[0].fits(budget) || too_large.is_empty());
            }
        }

        #[test]
        fn no_request_exceeds_the_budget_and_no_message_is_lost(
            bodies in proptest::collection::vec("\\PC{0,60}", 0..40), budget in 30usize..400,
        ) {
            let messages: Vec<_> = bodies.iter().enumerate().map(|(n, body)| message(&format!("{}", n % 5), body)).collect();
            let (groups, mut seen) = pack(&messages, Partitioning::Keys(3), budget);
            for request in groups.iter().flat_map(|group| &group.requests) {
                proptest::prop_assert!(request.body.len() <= budget);
                let elements = parsed(request);
                proptest::prop_assert_eq!(elements.len(), request.len());
                let measured: usize = request
                    .messages()
                    .map(|position| element_len(&messages[position], &Partitioning::Keys(3).route(&messages[position].subject)) + 1)
                    .sum();
                proptest::prop_assert_eq!(measured + 1, request.body.len());
                for (element, position) in elements.iter().zip(request.messages()) {
                    proptest::prop_assert_eq!(element["Body"].as_str(), Some(bodies[position].as_str()));
                }
                seen.extend(request.messages());
            }
            seen.sort_unstable();
            proptest::prop_assert_eq!(seen, (0..bodies.len()).collect::<Vec<_>>());
        }
    }
}
