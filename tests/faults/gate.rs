//! A TCP proxy in front of a server: it can refuse connections like a host that is down, and break open ones. It does not parse
//! HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Mutex, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// A proxy that keeps its address while it is closed.
pub struct Gate {
    address: SocketAddr,
    upstream: SocketAddr,
    door: Mutex<Door>,
    cut: Arc<AtomicBool>,
    broken: watch::Sender<End>,
    lost: Arc<Lost>,
}

/// Connections that ended while a request was without a response.
type Lost = std::sync::Mutex<Vec<LostResponse>>;

/// A request whose response did not arrive. The cause may be the gate, the server, or a client that gave up or was killed.
#[derive(Debug, Clone, Copy)]
pub struct LostResponse {
    /// The connection to the server, by its address on this side.
    pub peer: SocketAddr,
    /// When the request began to pass.
    pub asked: Instant,
    /// When its connection ended.
    pub ended: Instant,
}

/// Ways in which open connections end.
#[derive(Clone, Copy)]
enum End {
    Closed,
    Forgotten,
}

enum Door {
    Open(JoinHandle<()>),
    /// Bound and not listening: connections are refused, and no other process gets the port.
    Closed(TcpSocket),
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let Door::Open(accepting) = self.door.get_mut() {
            accepting.abort();
        }
    }
}

impl Gate {
    /// Starts an open gate.
    pub async fn start(upstream: SocketAddr) -> Self {
        let socket = bound(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = socket.local_addr().unwrap();
        let gate = Self {
            address,
            upstream,
            door: Mutex::new(Door::Closed(socket)),
            cut: Arc::default(),
            broken: watch::Sender::new(End::Closed),
            lost: Arc::default(),
        };
        gate.open().await;
        gate
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Refuses connections from now on, and ends the open ones.
    pub async fn close(&self) {
        let mut door = self.door.lock().await;
        let Door::Open(accepting) = &mut *door else { return };
        accepting.abort();
        // The task was aborted.
        let _ = accepting.await;
        let socket = loop {
            match bound(self.address) {
                Ok(socket) => break socket,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        *door = Door::Closed(socket);
    }

    pub async fn open(&self) {
        let mut door = self.door.lock().await;
        if let Door::Open(_) = &*door {
            return;
        }
        // A placeholder is needed while the socket is turned into a listener.
        let Door::Closed(socket) = std::mem::replace(&mut *door, Door::Open(tokio::spawn(async {}))) else { return };
        let listener = socket.listen(1024).unwrap();
        let passage = Passage { upstream: self.upstream, cut: self.cut.clone(), lost: self.lost.clone() };
        *door = Door::Open(tokio::spawn(accept(listener, passage, self.broken.subscribe())));
    }

    /// The requests whose response was lost since the last call.
    pub fn take_lost(&self) -> Vec<LostResponse> {
        std::mem::take(&mut self.lost.lock().unwrap())
    }

    /// Ends the open connections; new ones pass.
    pub fn break_connections(&self) {
        self.broken.send_replace(End::Closed);
    }

    /// Resets each open connection when it is used again, as a load balancer drops idle ones.
    pub fn forget_connections(&self) {
        self.broken.send_replace(End::Forgotten);
    }

    /// Sets whether a connection is closed without notice after each response.
    pub fn cut_after_responses(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }
}

fn bound(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Settings of the connections through the gate.
#[derive(Clone)]
struct Passage {
    upstream: SocketAddr,
    cut: Arc<AtomicBool>,
    lost: Arc<Lost>,
}

/// A request on a connection, if there is one. If this value is dropped during a request, the response is lost.
struct UnderWay {
    peer: SocketAddr,
    asked: std::sync::Mutex<Option<Instant>>,
    lost: Arc<Lost>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(asked) = self.asked.get_mut().unwrap().take() {
            self.lost.lock().unwrap().push(LostResponse { peer: self.peer, asked, ended: Instant::now() });
        }
    }
}

/// Accepts connections. All connections end with this task.
async fn accept(listener: TcpListener, passage: Passage, broken: watch::Receiver<End>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(stream, passage.clone(), broken.clone()))),
                // For example, the process is out of file descriptors: they are freed as connections end.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(mut client: TcpStream, passage: Passage, mut broken: watch::Receiver<End>) {
    broken.mark_unchanged();
    let Ok(mut server) = TcpStream::connect(passage.upstream).await else { return };
    let Ok(peer) = server.local_addr() else { return };
    let under_way = UnderWay { peer, asked: std::sync::Mutex::default(), lost: passage.lost };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.split(), server.split());
    let requests = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            under_way.asked.lock().unwrap().get_or_insert_with(Instant::now);
            if to_server.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
    };
    let responses = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
            // Responses are small: the first part is mostly the whole response.
            let written = to_client.write_all(&buffer[..length]).await;
            if written.is_err() {
                break;
            }
            *under_way.asked.lock().unwrap() = None;
            if passage.cut.load(Ordering::Relaxed) {
                break;
            }
        }
    };
    tokio::select! {
        () = requests => return,
        () = responses => return,
        _ = broken.changed() => {}
    }
    let end = *broken.borrow();
    if let End::Forgotten = end {
        let _ = client.readable().await;
        let _ = client.set_zero_linger();
    }
}
