//! What a namespace says to a key: the list of its hubs, which the rule may see with Manage.

use std::time::Duration;

use http::header::AUTHORIZATION;
use secrecy::{ExposeSecret, SecretString};
use shared::clock::Clock;
use shared::sas;
use tokio::time::{Instant, timeout_at};

use crate::namespace::Host;

/// Of a check while something is created.
const PATIENCE: Duration = Duration::from_secs(2);
/// Of a page.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Hubs of a page that may not be the last one. The portal asks for as many; for this version of the interface paging is not
/// documented.
const PAGE: usize = 100;
/// A dedicated namespace has at most 1000 hubs.
const MAX_PAGES: usize = 10;
const TOKEN_LIFETIME: u64 = 300;

/// What a look at the namespace told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// The key is good, and the rule has Manage.
    Hubs(List),
    /// The key is good; whether it may send can't be seen without sending.
    NoManage,
    WrongKey,
    /// The namespace refuses the request for a reason that says nothing about the key: SAS keys are switched off, an IP rule, or
    /// the time of the token. The status.
    Refused(u16),
    Unreachable(String),
}

/// The hubs of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    pub names: Vec<String>,
    /// `false`: there may be more.
    pub is_whole: bool,
}

/// Whether a namespace has a hub.
pub enum Has {
    Yes,
    No,
    Unknown,
}

impl List {
    pub fn has(&self, hub: &str) -> Has {
        match self.names.iter().any(|known| known.eq_ignore_ascii_case(hub)) {
            true => Has::Yes,
            false if self.is_whole => Has::No,
            false => Has::Unknown,
        }
    }
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
        let deadline = Instant::now() + PATIENCE;
        let mut names: Vec<String> = Vec::new();
        for page in 0..MAX_PAGES {
            let paging = if page == 0 { String::new() } else { format!("&$skip={}&$top={PAGE}", names.len()) };
            let request = self
                .http
                .get(format!("{base_url}/$Resources/Eventhubs?timeout=60&api-version=2014-01{paging}"))
                .header(AUTHORIZATION, token.expose_secret());
            let look = match timeout_at(deadline, ask(request)).await {
                Ok(look) => look,
                Err(_) => Look::Unreachable(format!("no answer within {} s", PATIENCE.as_secs())),
            };
            match look {
                Look::Hubs(List { names: more, .. }) => {
                    // A service that does not page gives the same ones again.
                    let count = more.len();
                    let more: Vec<String> = more.into_iter().filter(|name| !names.contains(name)).collect();
                    let is_stuck = more.is_empty() && count > 0;
                    names.extend(more);
                    if count < PAGE || is_stuck {
                        return Look::Hubs(List { names, is_whole: !is_stuck });
                    }
                }
                // The first page has told all but the rest of the hubs.
                _ if page > 0 => break,
                other => return other,
            }
        }
        Look::Hubs(List { names, is_whole: false })
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
            Some(names) => Look::Hubs(List { names, is_whole: true }),
            None => Look::Unreachable("its answer is no list of hubs".to_owned()),
        },
        401 if body.contains("40103") || body.contains("InvalidSignature") => Look::WrongKey,
        // "'Manage' claim(s) are required to perform this operation" is said to a key that the namespace has accepted.
        401 | 403 if body.contains("claim(s) are required") => Look::NoManage,
        401 | 403 => Look::Refused(status),
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
            (
                200,
                feed.to_owned(),
                Look::Hubs(List { names: vec!["profiles".to_owned(), "leads".to_owned()], is_whole: true }),
            ),
            (200, "<html/>".to_owned(), Look::Unreachable("its answer is no list of hubs".to_owned())),
            (401, error("40103: Invalid authorization token signature."), Look::WrongKey),
            (401, error("InvalidSignature: The token has an invalid signature."), Look::WrongKey),
            (
                401,
                error("Unauthorized access. 'Manage' claim(s) are required to perform this operation."),
                Look::NoManage,
            ),
            (403, error("'Manage' claim(s) are required"), Look::NoManage),
            (401, error("InvalidAudience"), Look::Refused(401)),
            (
                401,
                error("LocalAuthDisabled: Authorization failed because SAS authentication is disabled."),
                Look::Refused(401),
            ),
            (401, error("ExpiredToken: The token is expired."), Look::Refused(401)),
            (403, error("Ip has been prevented to connect to the endpoint."), Look::Refused(403)),
            (403, String::new(), Look::Refused(403)),
            (404, String::new(), Look::Unreachable("it answered 404".to_owned())),
        ] {
            assert_eq!(look(status, &body), expected);
        }
    }
}
