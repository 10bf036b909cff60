//! What a namespace says to a key: the list of its hubs, which the rule may see with Manage.

use std::time::Duration;

use http::header::AUTHORIZATION;
use secrecy::{ExposeSecret, SecretString};
use shared::clock::Clock;
use shared::sas;
use tokio::time::timeout;

use crate::namespace::Host;

/// Of a check while something is created.
const PATIENCE: Duration = Duration::from_secs(2);
/// A namespace has at most some hundred hubs.
const MAX_BYTES: usize = 4 * 1024 * 1024;
const TOKEN_LIFETIME: u64 = 300;

/// What a look at the namespace told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// The key is good, the rule has Manage, and these are the hubs.
    Hubs(Vec<String>),
    /// The key is good; whether it may send can't be seen without sending.
    NoManage,
    WrongKey,
    Unreachable(String),
}

pub struct Hubs {
    http: reqwest::Client,
    clock: Clock,
}

impl Hubs {
    pub fn new(http: reqwest::Client, clock: Clock) -> Self {
        Self { http, clock }
    }

    pub async fn look(&self, host: &Host, key_name: &str, key: &SecretString) -> Look {
        let base_url = host.base_url();
        let token = sas::sign(&base_url, key_name, key, self.clock.unix_seconds() + TOKEN_LIFETIME);
        let request = self
            .http
            .get(format!("{base_url}/$Resources/Eventhubs?timeout=60&api-version=2014-01"))
            .header(AUTHORIZATION, token.expose_secret());
        match timeout(PATIENCE, ask(request)).await {
            Ok(look) => look,
            Err(_) => Look::Unreachable(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }
}

async fn ask(request: reqwest::RequestBuilder) -> Look {
    let Ok(mut answer) = request.send().await else { return Look::Unreachable("no connection".to_owned()) };
    let status = answer.status().as_u16();
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_BYTES {
            return Look::Unreachable("its answer is too long".to_owned());
        }
    }
    look(status, &String::from_utf8_lossy(&body))
}

/// The answer also holds the keys of the hubs' own rules: of all of it only the names are taken.
fn look(status: u16, body: &str) -> Look {
    match status {
        200 => match titles(body) {
            Some(hubs) => Look::Hubs(hubs),
            None => Look::Unreachable("its answer is no list of hubs".to_owned()),
        },
        401 if body.contains("40103") || body.contains("InvalidSignature") => Look::WrongKey,
        401 | 403 => Look::NoManage,
        _ => Look::Unreachable(format!("it answered {status}")),
    }
}

fn titles(feed: &str) -> Option<Vec<String>> {
    let feed = roxmltree::Document::parse(feed).ok()?;
    let entries = feed.root_element().children().filter(|node| node.tag_name().name() == "entry");
    let title = |entry: roxmltree::Node<'_, '_>| {
        entry.children().find(|node| node.tag_name().name() == "title")?.text().map(|text| text.trim().to_owned())
    };
    (feed.root_element().tag_name().name() == "feed").then(|| entries.filter_map(title).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_tell_keys_and_rights_apart() {
        let feed = r#"<feed xmlns="http://www.w3.org/2005/Atom"><title type="text">EventHubs</title>
            <entry><id>x</id><title type="text">profiles</title><content><PrimaryKey>secret</PrimaryKey></content></entry>
            <entry><title type="text">leads</title></entry></feed>"#;
        let error = |detail: &str| format!("<Error><Code>401</Code><Detail>{detail}</Detail></Error>");
        for (status, body, expected) in [
            (200, feed.to_owned(), Look::Hubs(vec!["profiles".to_owned(), "leads".to_owned()])),
            (200, "<html/>".to_owned(), Look::Unreachable("its answer is no list of hubs".to_owned())),
            (401, error("40103: Invalid authorization token signature."), Look::WrongKey),
            (401, error("InvalidSignature: The token has an invalid signature."), Look::WrongKey),
            (401, error("InvalidAudience"), Look::NoManage),
            (403, String::new(), Look::NoManage),
            (404, String::new(), Look::Unreachable("it answered 404".to_owned())),
        ] {
            assert_eq!(look(status, &body), expected);
        }
    }
}
