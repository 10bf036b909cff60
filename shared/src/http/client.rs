//! The one HTTP client of a process: HTTP/1.1, ring, compiled-in roots. The default crypto library costs 30 ms of CPU at
//! the first handshake of every cold start, and the system's roots most of a millisecond.
//!
//! A connection is reused only after a response that shows a working service. A connection may point to a peer that is not
//! the service (any more): a failing gateway node, the old primary of a failover, a peer that has dropped it. So a response
//! that such a peer may give, a lost connection and a timeout empty the pool of their host, and a retry opens a connection
//! of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use reqwest::{Request, StatusCode, Url, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{Instant, timeout_at};

use super::body::Response;
use super::error::TransportError;

/// Idle time after which a pooled connection is closed. Peers close idle connections after 240 s; a sandbox may be frozen
/// for longer than its clock shows.
const POOL_IDLE: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of the body of a response to a request that only opens a connection, in bytes.
const MAX_WARM_UP_BODY: usize = 65_536;

/// The HTTP client of a process; clones share its connections.
#[derive(Clone)]
pub struct Http(Arc<Inner>);

struct Inner {
    tls: ClientConfig,
    /// Connections to all hosts whose connections were never dropped.
    shared: reqwest::Client,
    /// Connections to the other hosts. They are few: the configuration names hosts, a request never does.
    own: Mutex<HashMap<String, Pool>>,
    /// Opens a connection for each request, and closes it afterwards. Built with the first retry.
    unpooled: OnceLock<reqwest::Client>,
}

/// The connections to one host. The generation counts how often they were dropped; 0 is the shared pool.
#[derive(Clone)]
struct Pool {
    client: reqwest::Client,
    generation: u64,
}

/// The connection that a request may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// An idle one, else a new one.
    Pool,
    /// One that no other request has used, which is closed after the response.
    NewConnection,
}

/// The pool that a request's connection belongs to.
pub(super) struct Origin {
    http: Http,
    host: String,
    generation: u64,
}

/// Builds the client. `extra_ca_certs` is the path of a PEM file with additional roots.
///
/// # Errors
/// Names the file and the kind of problem, never a part of the file: it may hold private keys too.
pub fn build(extra_ca_certs: Option<&str>) -> Result<Http, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = extra_ca_certs {
        for (position, certificate) in certificates(path)?.into_iter().enumerate() {
            roots.add(certificate).map_err(|_| {
                format!("certificate {} in `{path}` can't be used as a root; remove it or replace it", position + 1)
            })?;
        }
    }
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let shared = client(&tls, usize::MAX).map_err(|error| error.to_string())?;
    Ok(Http(Arc::new(Inner { tls, shared, own: Mutex::default(), unpooled: OnceLock::new() })))
}

/// The certificates of a PEM file.
fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let file = std::fs::read(path).map_err(|error| format!("can't read the file `{path}`: {}", error.kind()))?;
    // Windows tools put a byte order mark in front of text.
    let pem = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&file);
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|error| {
        // The parser's own text repeats bytes of the file.
        let problem = match error {
            PemError::MissingSectionEnd { .. } => "a section has no `-----END` line",
            PemError::IllegalSectionStart { .. } => "a `-----BEGIN` line can't be read; check the line breaks",
            PemError::Base64Decode(_) => "a section is not base64",
            PemError::SectionTooLarge => "a section is too large",
            _ => "it can't be read",
        };
        format!("can't read PEM certificates from `{path}`: {problem}")
    })?;
    if certificates.is_empty() {
        return Err(format!("no certificate in `{path}`; expected a PEM file"));
    }
    Ok(certificates)
}

#[expect(clippy::disallowed_methods, reason = "the one place that builds a client")]
fn client(tls: &ClientConfig, max_idle: usize) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .http1_only()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(max_idle)
        .build()
}

impl Http {
    /// Sends a request and returns the head of its response, by `bound`.
    ///
    /// # Errors
    /// Fails if no response arrives. The peer may have handled the request all the same.
    pub async fn send(&self, request: Request, via: Via, bound: Instant) -> Result<Response, TransportError> {
        let (client, origin) = match via {
            Via::NewConnection => (self.unpooled(), None),
            Via::Pool => {
                let host = host(request.url());
                let Pool { client, generation } = self.pool(&host);
                (client, Some(Origin { http: self.clone(), host, generation }))
            }
        };
        let sent = match timeout_at(bound, client.execute(request)).await {
            Ok(Ok(response)) => Ok(Response::new(response)),
            Ok(Err(error)) => Err(TransportError::of(error)),
            Err(_) => Err(TransportError::timeout()),
        };
        match (sent, origin) {
            (Ok(response), Some(origin)) if is_from_service(response.status()) => Ok(response.of_pool(origin)),
            (Err(error), Some(_)) if !error.kind.was_connected() => Err(error),
            (sent, Some(origin)) => {
                origin.drop_connections();
                sent
            }
            (sent, None) => sent,
        }
    }

    /// Opens a connection before the first request needs it, with a request whose response is ignored. A failure is reported
    /// by the first request.
    pub async fn warm_up(&self, url: Url, bound: Instant) {
        let opened = async {
            let response = self.pool(&host(&url)).client.get(url.clone()).send().await.ok()?;
            // Without a path and without credentials these are the usual responses.
            let status = response.status();
            if !is_from_service(status.as_u16()) && !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND)
            {
                self.origin(&url).drop_connections();
            }
            Some(Response::new(response).read(MAX_WARM_UP_BODY, bound).await)
        };
        let _ = timeout_at(bound, opened).await;
    }

    /// A plain client with the same TLS configuration, for tools and tests.
    pub fn client(&self) -> reqwest::Client {
        self.0.shared.clone()
    }

    fn pool(&self, host: &str) -> Pool {
        let own = self.own();
        own.get(host).cloned().unwrap_or_else(|| Pool { client: self.0.shared.clone(), generation: 0 })
    }

    fn origin(&self, url: &Url) -> Origin {
        let host = host(url);
        let generation = self.pool(&host).generation;
        Origin { http: self.clone(), host, generation }
    }

    fn unpooled(&self) -> reqwest::Client {
        self.0.unpooled.get_or_init(|| self.another(0)).clone()
    }

    fn another(&self, max_idle: usize) -> reqwest::Client {
        client(&self.0.tls, max_idle).expect("the same configuration built the first client")
    }

    fn own(&self) -> MutexGuard<'_, HashMap<String, Pool>> {
        self.0.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Origin {
    /// Empties the host's pool, unless a request that failed together with this one did so already: requests in flight
    /// then return their connections to a pool that is no longer used.
    pub(super) fn drop_connections(self) {
        let mut own = self.http.own();
        if own.get(&self.host).map_or(0, |pool| pool.generation) == self.generation {
            let client = self.http.another(usize::MAX);
            own.insert(self.host, Pool { client, generation: self.generation + 1 });
        }
    }
}

/// Whether a response of that status shows that its connection points to a working service.
fn is_from_service(status: u16) -> bool {
    !matches!(status, 401 | 404 | 410 | 500..)
}

/// Scheme, host and port.
fn host(url: &Url) -> String {
    url.origin().ascii_serialization()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_fail_together_are_dropped_once_and_only_those_of_their_host() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let http = build(None).unwrap();
        let url = |host: &str| Url::parse(&format!("https://{host}/hub/messages?timeout=60")).unwrap();
        let (a, b) = (url("a.example"), url("b.example:444"));
        assert_eq!(host(&b), "https://b.example:444");
        let together: Vec<Origin> = (0..16).map(|_| http.origin(&a)).collect();
        together.into_iter().for_each(Origin::drop_connections);
        assert_eq!(http.origin(&a).generation, 1);
        assert_eq!(http.origin(&b).generation, 0);
        http.origin(&a).drop_connections();
        assert_eq!(http.origin(&a).generation, 2);
        assert_eq!(http.own().len(), 1);
    }

    #[test]
    fn a_connection_is_not_reused_after_a_status_that_another_peer_may_give() {
        for status in [401, 404, 410, 500, 502, 503, 504, 599] {
            assert!(!is_from_service(status), "{status}");
        }
        for status in [200, 201, 207, 302, 400, 403, 408, 413, 429] {
            assert!(is_from_service(status), "{status}");
        }
    }
}
