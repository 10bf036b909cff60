//! What a namespace says to a key: the list of its hubs, which the rule may see with Manage.

use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Method};
use reqwest::{Request, Url};
use secrecy::{ExposeSecret, SecretString};
use shared::clock::Clock;
use shared::event_hubs::response::Identifier;
use shared::event_hubs::token::sas;
use shared::http::{Attempts, Http, RetryPolicy, TransportKind};
use tokio::time::Instant;

use crate::namespace::Host;

/// Timeout of a check while something is created.
const PATIENCE: Duration = Duration::from_secs(2);
/// One retry: the connection of an earlier check may be dead.
const RETRY: RetryPolicy = RetryPolicy { attempts: 2, ..RetryPolicy::DEFAULT };
/// Maximum size of a page, in bytes.
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
    http: Http,
    clock: Clock,
}

impl Hubs {
    pub fn new(http: Http, clock: Clock) -> Self {
        Self { http, clock }
    }

    pub async fn look(&self, host: &Host, key_name: &str, key: &SecretString) -> Look {
        let base_url = host.base_url();
        let token = sas::sign(&base_url, key_name, key, self.clock.unix_seconds() + TOKEN_LIFETIME);
        let deadline = Instant::now() + PATIENCE;
        let mut names: Vec<String> = Vec::new();
        for page in 0..MAX_PAGES {
            let paging = if page == 0 { String::new() } else { format!("&$skip={}&$top={PAGE}", names.len()) };
            let url = format!("{base_url}/$Resources/Eventhubs?timeout=60&api-version=2014-01{paging}");
            match self.ask(&url, &token, deadline).await {
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

    async fn ask(&self, url: &str, token: &SecretString, deadline: Instant) -> Look {
        let (Ok(url), Ok(mut token)) = (Url::parse(url), HeaderValue::from_str(token.expose_secret())) else {
            return Look::Unreachable("it is not a host that can be sent to".to_owned());
        };
        token.set_sensitive(true);
        let mut attempts = Attempts::new(RETRY, deadline);
        let mut last = Look::Unreachable(format!("no response within {} s", PATIENCE.as_secs()));
        while let Some(attempt) = attempts.begin() {
            let mut request = Request::new(Method::GET, url.clone());
            request.headers_mut().insert(AUTHORIZATION, token.clone());
            let answered = match self.http.send(request, attempt.via, attempt.bound).await {
                Ok(response) => {
                    let status = response.status();
                    response.read(MAX_BYTES, attempt.bound).await.whole().map(|body| (status, body))
                }
                Err(error) => Err(error),
            };
            let (is_lost, may_pass) = match answered {
                Ok((status, body)) => {
                    last = look(status, &String::from_utf8_lossy(&body));
                    (false, status >= 500)
                }
                Err(error) => {
                    last = Look::Unreachable(match error.kind {
                        TransportKind::Timeout => format!("no response within {} s", PATIENCE.as_secs()),
                        TransportKind::TooLong => "its response is too long".to_owned(),
                        kind => kind.hint("the namespace").unwrap_or_else(|| "no connection".to_owned()),
                    });
                    (error.kind == TransportKind::ConnectionLost, error.kind != TransportKind::TooLong)
                }
            };
            if !may_pass || !attempts.again(is_lost, None).await {
                break;
            }
        }
        last
    }
}

/// The answer also holds the keys of the hubs' own rules: of all of it only the names are taken.
fn look(status: u16, body: &str) -> Look {
    match status {
        200 => match titles(body) {
            Some(names) => Look::Hubs(List { names, is_whole: true }),
            None => Look::Unreachable("its answer is no list of hubs".to_owned()),
        },
        401 if matches!(
            Identifier::of(body),
            Some(Identifier::Code("40103") | Identifier::Word("InvalidSignature"))
        ) =>
        {
            Look::WrongKey
        }
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
