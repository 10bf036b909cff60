//! A proxy that passes AWS calls on to moto and the local SQS, or fails them as AWS or the network might. Faults are chosen by
//! operation, and switched at run time.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Way in which calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AwsFault {
    /// Not done, and the connection ends.
    Reset,
    /// Done, and the connection ends without a response.
    ResetAfter,
    /// Not done, and without a response.
    Hang,
    /// Not done: 503.
    Unavailable,
    /// Not done: 400 with a throttling code, as DynamoDB and SQS do it.
    Throttled,
    /// Done, and the response ends in its middle.
    BreakOff,
    /// Every second entry of a `SendMessageBatch` fails, in a response with status 200.
    FailEntries,
}

impl AwsFault {
    pub const ALL: [Self; 7] = [
        Self::Reset,
        Self::ResetAfter,
        Self::Hang,
        Self::Unavailable,
        Self::Throttled,
        Self::BreakOff,
        Self::FailEntries,
    ];
}

/// A call that waits until this value is dropped.
pub struct Held {
    came: oneshot::Receiver<()>,
    _release: oneshot::Sender<()>,
}

impl Held {
    /// Waits until the call arrives.
    pub async fn came(&mut self) {
        (&mut self.came).await.unwrap();
    }
}

/// The proxy's side of a [`Held`] call.
struct Hold {
    target: String,
    came: oneshot::Sender<()>,
    release: oneshot::Receiver<()>,
}

/// A `SendMessage` or `SendMessageBatch` that was passed on.
struct Sent {
    peer: SocketAddr,
    at: Instant,
    bodies: Vec<String>,
    /// Whether the response ended in its middle.
    broken_off: bool,
}

/// A running proxy.
pub struct Proxy {
    address: SocketAddr,
    sent: Arc<Mutex<Vec<Sent>>>,
    faults: Arc<Mutex<Vec<(String, AwsFault)>>>,
    holds: Arc<Mutex<Vec<Hold>>>,
    server: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Proxy {
    /// Starts a proxy for the server at `upstream`, without a trailing slash, which accepts SQS's calls too.
    pub async fn start(upstream: &str, http: reqwest::Client) -> Self {
        Self::with_sqs(upstream, upstream, http).await
    }

    /// Starts a proxy for two servers: SQS's calls go to `sqs`.
    pub async fn with_sqs(upstream: &str, sqs: &str, http: reqwest::Client) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let faults: Arc<Mutex<Vec<(String, AwsFault)>>> = Arc::default();
        let holds: Arc<Mutex<Vec<Hold>>> = Arc::default();
        let sent: Arc<Mutex<Vec<Sent>>> = Arc::default();
        let upstream = Upstream {
            url: format!("{upstream}/"),
            sqs: format!("{sqs}/"),
            http,
            faults: faults.clone(),
            holds: holds.clone(),
            sent: sent.clone(),
        };
        Self { address, sent, faults, holds, server: tokio::spawn(accept(listener, upstream)) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bodies of the messages that were sent over a connection between two moments.
    pub fn sent_by(&self, peer: SocketAddr, from: Instant, to: Instant) -> Vec<String> {
        let sent = self.sent.lock().unwrap();
        let fits = |sent: &&Sent| sent.peer == peer && (from..=to).contains(&sent.at);
        sent.iter().filter(fits).flat_map(|sent| sent.bodies.iter().cloned()).collect()
    }

    /// Bodies of the messages whose response ended in its middle since the last call.
    pub fn take_broken_off(&self) -> Vec<String> {
        let mut sent = self.sent.lock().unwrap();
        let mut bodies = Vec::new();
        for sent in sent.iter_mut().filter(|sent| sent.broken_off) {
            sent.broken_off = false;
            bodies.extend(sent.bodies.iter().cloned());
        }
        bodies
    }

    /// Holds the next call whose `x-amz-target` begins with `target`. Later calls pass.
    pub fn hold(&self, target: &str) -> Held {
        let ((came, comes), (release, released)) = (oneshot::channel(), oneshot::channel());
        self.holds.lock().unwrap().push(Hold { target: target.to_owned(), came, release: released });
        Held { came: comes, _release: release }
    }

    /// Makes calls fail whose `x-amz-target` begins with `target`.
    pub fn fail(&self, target: &str, fault: AwsFault) {
        let mut faults = self.faults.lock().unwrap();
        faults.retain(|(known, _)| known != target);
        faults.push((target.to_owned(), fault));
    }

    /// Ends the faults of [`Proxy::fail`] for the same `target`.
    pub fn recover(&self, target: &str) {
        self.faults.lock().unwrap().retain(|(known, _)| known != target);
    }
}

#[derive(Clone)]
struct Upstream {
    url: String,
    sqs: String,
    sent: Arc<Mutex<Vec<Sent>>>,
    http: reqwest::Client,
    faults: Arc<Mutex<Vec<(String, AwsFault)>>>,
    holds: Arc<Mutex<Vec<Hold>>>,
}

async fn accept(listener: TcpListener, upstream: Upstream) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, peer)) = listener.accept() => {
                let _ = stream.set_nodelay(true);
                let upstream = upstream.clone();
                let service = service_fn(move |request| forward(upstream.clone(), peer, request));
                // A fault that ends the connection is an error here.
                connections.spawn(async move {
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Error that ends the connection without a response.
type Ended = std::io::Error;
type Reply = Response<UnsyncBoxBody<Bytes, Ended>>;

async fn forward(upstream: Upstream, peer: SocketAddr, request: Request<Incoming>) -> Result<Reply, Ended> {
    let ended = || Ended::other("ended on purpose");
    let (parts, body) = request.into_parts();
    let mut body = body.collect().await.map_err(|_| ended())?.to_bytes();
    let target = parts.headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let hold = {
        let mut holds = upstream.holds.lock().unwrap();
        holds.iter().position(|hold| target.starts_with(&hold.target)).map(|place| holds.remove(place))
    };
    if let Some(Hold { came, release, .. }) = hold {
        let _ = came.send(());
        // The call goes on when the other side is dropped.
        let _ = release.await;
    }
    let fault = {
        let faults = upstream.faults.lock().unwrap();
        faults.iter().find(|(prefix, _)| target.starts_with(prefix)).map(|(_, fault)| *fault)
    };
    let mut failed = Vec::new();
    match fault {
        Some(AwsFault::Reset) => return Err(ended()),
        Some(AwsFault::Hang) => std::future::pending().await,
        Some(AwsFault::Unavailable) => return Ok(problem(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable")),
        Some(AwsFault::Throttled) => return Ok(problem(StatusCode::BAD_REQUEST, "ThrottlingException")),
        Some(AwsFault::FailEntries) if target.ends_with(".SendMessageBatch") => {
            (body, failed) = without_every_second_entry(&body);
            // SQS refuses an empty batch.
            if failed.len() == 1 && serde_json::from_slice::<Value>(&body).unwrap()["Entries"] == json!([]) {
                return Ok(Response::new(whole(with_failed(b"{}", failed))));
            }
        }
        Some(AwsFault::FailEntries | AwsFault::ResetAfter | AwsFault::BreakOff) | None => {}
    }
    let mut headers = parts.headers.clone();
    for name in [HOST, CONTENT_LENGTH, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    if target.contains(".SendMessage") {
        // Whether the response reaches the client is seen at the gate in front.
        let broken_off = fault == Some(AwsFault::BreakOff);
        let sent = Sent { peer, at: Instant::now(), bodies: bodies(&body), broken_off };
        upstream.sent.lock().unwrap().push(sent);
    }
    let url = if target.starts_with("AmazonSQS") { &upstream.sqs } else { &upstream.url };
    let sending = upstream.http.request(parts.method, url).headers(headers).body(body);
    let response = sending.send().await.map_err(|_| ended())?;
    let (status, content_type) = (response.status(), response.headers().get(http::header::CONTENT_TYPE).cloned());
    let mut body = response.bytes().await.map_err(|_| ended())?;
    if !failed.is_empty() {
        body = with_failed(&body, failed);
    }
    let (body, length) = match fault {
        Some(AwsFault::ResetAfter) => return Err(ended()),
        Some(AwsFault::BreakOff) => {
            let half = Ok(Frame::data(body.slice(..body.len() / 2)));
            (StreamBody::new(stream::iter([half, Err(ended())])).boxed_unsync(), body.len())
        }
        _ => (whole(body.clone()), body.len()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
    if let Some(content_type) = content_type {
        response.headers_mut().insert(http::header::CONTENT_TYPE, content_type);
    }
    Ok(response)
}

fn whole(body: Bytes) -> UnsyncBoxBody<Bytes, Ended> {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

fn problem(status: StatusCode, code: &str) -> Reply {
    let mut response = Response::new(whole(json!({ "__type": code, "message": "on purpose" }).to_string().into()));
    *response.status_mut() = status;
    response
}

/// The messages of a `SendMessage` or `SendMessageBatch`.
fn bodies(body: &[u8]) -> Vec<String> {
    let call: Value = serde_json::from_slice(body).unwrap();
    let entries = call["Entries"].as_array().cloned().unwrap_or_else(|| vec![call.clone()]);
    entries.iter().filter_map(|entry| entry["MessageBody"].as_str()).map(str::to_owned).collect()
}

/// The call with every second entry, and the ids of the others.
fn without_every_second_entry(body: &[u8]) -> (Bytes, Vec<Value>) {
    let mut call: Value = serde_json::from_slice(body).unwrap();
    let entries = call["Entries"].as_array().unwrap();
    let failed = entries.iter().step_by(2).map(|entry| entry["Id"].clone()).collect();
    let kept: Value = entries.iter().skip(1).step_by(2).cloned().collect();
    call["Entries"] = kept;
    (call.to_string().into(), failed)
}

fn with_failed(body: &[u8], failed: Vec<Value>) -> Bytes {
    let mut response: Value = serde_json::from_slice(body).unwrap_or_default();
    if !response["Successful"].is_array() {
        response = json!({ "Successful": [] });
    }
    let entry =
        |id: &Value| json!({ "Id": id, "SenderFault": false, "Code": "InternalError", "Message": "on purpose" });
    response["Failed"] = failed.iter().map(entry).collect();
    response.to_string().into()
}
