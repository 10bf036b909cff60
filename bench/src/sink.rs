//! The fake hub: accepts batches of events over plain HTTP or TLS, checks each distinct token once, and counts requests and events.
//! Everything unusual is a complaint that ends the run.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::percent_decode_str;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::Sha256;
use shared::clock::Clock;

use crate::Problem;
use crate::http::{Connection, Request};

pub const HUB: &str = "profiles";
pub const KEY_NAME: &str = "RootManageSharedAccessKey";
/// Key of no real namespace.
pub const KEY: &str = "YmVuY2htYXJrLCBub3QgYSBzZWNyZXQgYXQgYWxsISE=";
/// Number of partitions of the hub.
pub const PARTITIONS: u32 = 4;
const QUERY: &str = "timeout=60&api-version=2014-01";
const BATCH: &str = "application/vnd.microsoft.servicebus.json";

/// What the sink of a lane has received.
#[derive(Default)]
pub struct Seen {
    pub requests: AtomicUsize,
    pub events: AtomicUsize,
    pub connections: AtomicUsize,
    /// Largest number of requests in flight concurrently.
    pub in_flight: AtomicUsize,
    /// Requests that only open a connection before the first event.
    pub warm_ups: AtomicUsize,
    pub tokens: AtomicUsize,
    now_in_flight: AtomicUsize,
    stores: AtomicBool,
    stored: Mutex<Vec<Post>>,
    complaint: OnceLock<String>,
}

/// A request that was stored whole.
#[derive(Debug, Clone)]
pub struct Post {
    pub partition: Option<u32>,
    pub body: Vec<u8>,
}

impl Seen {
    /// Starts or stops storing whole requests. Returns those that were stored so far.
    pub fn store(&self, stores: bool) -> Vec<Post> {
        self.stores.store(stores, Ordering::SeqCst);
        std::mem::take(&mut self.stored.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn complain(&self, what: impl Into<String>) {
        self.complaint.get_or_init(|| what.into());
    }

    pub fn complaint(&self) -> Option<&str> {
        self.complaint.get().map(String::as_str)
    }
}

/// A running sink. It runs until the process ends.
pub struct Sink {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    tls: bool,
}

impl Sink {
    pub fn start(tls: Option<Arc<ServerConfig>>, delay: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (address, seen) = (listener.local_addr()?, Arc::new(Seen::default()));
        let sink = Self { address, seen: seen.clone(), tls: tls.is_some() };
        let base = sink.base();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let (seen, tls, base) = (seen.clone(), tls.clone(), base.clone());
                seen.connections.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    let served = serve(stream, tls, &seen, &base, delay);
                    // A killed process does not close its connections properly.
                    if let Err(error) = served
                        && error.kind() == io::ErrorKind::Other
                    {
                        seen.complain(format!("sink: {error}"));
                    }
                });
            }
        });
        Ok(sink)
    }

    pub fn base(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }

    pub fn connection_string(&self) -> String {
        format!(
            "Endpoint={};SharedAccessKeyName={KEY_NAME};SharedAccessKey={KEY};EntityPath={HUB};\
             UseDevelopmentEmulator=true",
            self.base()
        )
    }
}

fn serve(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    seen: &Seen,
    base: &str,
    delay: Duration,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match tls {
        None => serve_requests(stream, seen, base, delay),
        Some(config) => {
            let connection = ServerConnection::new(config).map_err(io::Error::other)?;
            serve_requests(StreamOwned::new(connection, stream), seen, base, delay)
        }
    }
}

fn serve_requests(stream: impl Read + Write, seen: &Seen, base: &str, delay: Duration) -> io::Result<()> {
    let mut connection = Connection::new(stream);
    let mut tokens = HashSet::new();
    loop {
        let status = match connection.request()? {
            None => return Ok(()),
            Some(request) if request.method == "GET" && request.target == "/" => {
                seen.warm_ups.fetch_add(1, Ordering::SeqCst);
                "404 Not Found"
            }
            Some(request) => {
                let in_flight = seen.now_in_flight.fetch_add(1, Ordering::SeqCst) + 1;
                seen.in_flight.fetch_max(in_flight, Ordering::SeqCst);
                let status = match accept(&request, seen, base, &mut tokens) {
                    Ok(()) => "201 Created",
                    Err(problem) => {
                        seen.complain(format!("sink: {problem}"));
                        "400 Bad Request"
                    }
                };
                if !delay.is_zero() {
                    std::thread::sleep(delay);
                }
                seen.now_in_flight.fetch_sub(1, Ordering::SeqCst);
                status
            }
        };
        connection.respond(status, "", b"")?;
    }
}

fn accept(request: &Request<'_>, seen: &Seen, base: &str, tokens: &mut HashSet<String>) -> Result<(), Problem> {
    if request.method != "POST" {
        return Err(format!("{} {}", request.method, request.target).into());
    }
    let (path, query) = request.target.split_once('?').unwrap_or((request.target, ""));
    if query != QUERY {
        return Err(format!("unexpected query `{query}`").into());
    }
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let partition = match segments[..] {
        [HUB, "messages"] => None,
        [HUB, "partitions", id, "messages"] => match id.parse() {
            Ok(id) if id < PARTITIONS => Some(id),
            _ => return Err(format!("there is no partition {id}").into()),
        },
        _ => return Err(format!("unexpected path {path}").into()),
    };
    if request.header("content-type") != Some(BATCH) {
        return Err("the content type is not the one of a batch".into());
    }
    let token = request.header("authorization").ok_or("no token")?;
    if !tokens.contains(token) {
        check_token(token, &format!("{base}{path}"))?;
        tokens.insert(token.to_owned());
        seen.tokens.fetch_add(1, Ordering::SeqCst);
    }
    let body = request.body;
    if body.first() != Some(&b'[') || body.last() != Some(&b']') {
        return Err("the body is not an array".into());
    }
    // Quotes within text are escaped, so this occurs nowhere else.
    let events = memchr::memmem::find_iter(body, b"\"Body\":\"").count();
    if seen.stores.load(Ordering::Relaxed) {
        seen.stored.lock().unwrap_or_else(PoisonError::into_inner).push(Post { partition, body: body.to_vec() });
    }
    seen.requests.fetch_add(1, Ordering::SeqCst);
    seen.events.fetch_add(events, Ordering::SeqCst);
    Ok(())
}

/// Checks signature, expiry and scope, as we read the contract.
fn check_token(token: &str, url: &str) -> Result<(), Problem> {
    let fields = token.strip_prefix("SharedAccessSignature ").ok_or("no SharedAccessSignature")?;
    let field = |name: &str| {
        let value = fields.split('&').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        value.ok_or_else(|| format!("no `{name}` in the token"))
    };
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (resource, expiry) = (field("sr")?, field("se")?);
    let mut mac = Hmac::<Sha256>::new_from_slice(KEY.as_bytes())?;
    mac.update(format!("{resource}\n{expiry}").as_bytes());
    mac.verify_slice(&STANDARD.decode(decoded(field("sig")?))?).map_err(|_| "the token's signature is wrong")?;
    if decoded(field("skn")?) != KEY_NAME {
        return Err("the token's key name is wrong".into());
    }
    let left = expiry.parse::<u64>()?.checked_sub(Clock::system().unix_seconds());
    if left.is_none_or(|left| left == 0 || left > 24 * 3600) {
        return Err("the token has expired, or lasts longer than a day".into());
    }
    if !url.starts_with(&decoded(resource)) {
        return Err("the token is for another resource".into());
    }
    Ok(())
}
