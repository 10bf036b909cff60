//! A server that a test scripts connection by connection, below HTTP: it can reset a connection, or never respond on it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Action of a peer for a request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// A response, after a delay.
    Respond {
        status: u16,
        headers: String,
        body: String,
        delay: Duration,
    },
    Reset,
    Silent,
}

/// A request, and the number of its connection, from 0.
#[derive(Debug, Clone)]
pub struct Request {
    pub connection: usize,
    pub line: String,
}

#[derive(Clone)]
pub struct Peer {
    pub address: std::net::SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    bad: Arc<Mutex<BTreeSet<usize>>>,
}

pub fn respond(status: u16, body: &str) -> Reply {
    Reply::Respond { status, headers: String::new(), body: body.to_owned(), delay: Duration::ZERO }
}

impl Peer {
    /// Starts a peer that handles each request with `handle`.
    pub async fn start(handle: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(move |request, _| handle(request)).await
    }

    /// Starts a peer that handles requests with `good`, and with `bad` on the connections that [`Peer::mark_bad`] marked.
    pub async fn with_bad_connections(
        good: impl Fn(&Request) -> Reply + Send + Sync + 'static,
        bad: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(move |request, is_bad| if is_bad { bad(request) } else { good(request) }).await
    }

    async fn start_with(handle: impl Fn(&Request, bool) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Self { address: listener.local_addr().unwrap(), requests: Arc::default(), bad: Arc::default() };
        let (handle, serving) = (Arc::new(handle), peer.clone());
        tokio::spawn(async move {
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (serving, handle) = (serving.clone(), handle.clone());
                tokio::spawn(async move { serving.serve(stream, connection, handle.as_ref()).await });
            }
        });
        peer
    }

    async fn serve(&self, mut stream: TcpStream, connection: usize, handle: &(dyn Fn(&Request, bool) -> Reply + Sync)) {
        let mut read = Vec::new();
        loop {
            let Some(request) = next_request(&mut stream, &mut read, connection).await else { return };
            self.requests.lock().unwrap().push(request.clone());
            let is_bad = self.bad.lock().unwrap().contains(&connection);
            match handle(&request, is_bad) {
                Reply::Reset => {
                    let _ = stream.set_zero_linger();
                    return;
                }
                Reply::Silent => std::future::pending().await,
                Reply::Respond { status, headers, body, delay } => {
                    tokio::time::sleep(delay).await;
                    let length = body.len();
                    let response = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\n\r\n{body}");
                    if stream.write_all(response.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    pub fn connection_string(&self) -> String {
        format!(
            "Endpoint=sb://{}/;SharedAccessKeyName=send;SharedAccessKey=abc=;UseDevelopmentEmulator=true;EntityPath=events",
            self.address
        )
    }

    /// Marks all connections that carried a request so far. Returns their number.
    pub fn mark_bad(&self) -> usize {
        let known = self.connections();
        let count = known.len();
        *self.bad.lock().unwrap() = known;
        count
    }

    /// Numbers of the connections that carried a request.
    pub fn connections(&self) -> BTreeSet<usize> {
        self.requests.lock().unwrap().iter().map(|request| request.connection).collect()
    }

    /// The requests so far, without those that only open a connection.
    pub fn requests(&self) -> Vec<Request> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|request| !request.line.starts_with("GET ")).cloned().collect()
    }
}

async fn next_request(stream: &mut TcpStream, read: &mut Vec<u8>, connection: usize) -> Option<Request> {
    loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
            if read.len() >= end + 4 + length {
                let line = String::from_utf8_lossy(&read[..end]).lines().next().unwrap_or_default().to_owned();
                read.drain(..end + 4 + length);
                return Some(Request { connection, line });
            }
        }
        if stream.read_buf(read).await.ok()? == 0 {
            return None;
        }
    }
}
