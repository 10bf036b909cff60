//! What the local HTTP servers share: connections that can be reset on purpose, the limit of a body, and the guard of control
//! routes.

pub(crate) mod body;
pub(crate) mod own_address;

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::Request;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

/// A task that is aborted when this value is dropped.
pub(crate) struct Running(AbortHandle);

impl Running {
    pub fn new(task: &JoinHandle<()>) -> Self {
        Self(task.abort_handle())
    }

    /// Aborts the task and waits for its end.
    pub async fn stop(&self) {
        self.0.abort();
        while !self.0.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Address of a listener. One without an address counts as port 0 of this machine.
pub(crate) fn address_of(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().unwrap_or_else(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

/// An address that clients on this machine can connect to.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The client's address, in the extensions of a request.
#[derive(Clone, Copy)]
pub(crate) struct Peer(pub SocketAddr);

/// Marks a response that must not be sent: the connection is reset instead.
#[derive(Clone)]
struct NoResponse;

pub(crate) fn no_response() -> Response {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(NoResponse);
    response
}

/// Accepts connections until the future is dropped, which also ends all connections.
pub(crate) async fn accept(listener: TcpListener, router: Router) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve(stream, router.clone()))),
                // Such as too many open files: file descriptors become free as connections end.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the connection is reset on purpose")]
struct ResetOnPurpose;

async fn serve(stream: TcpStream, router: Router) {
    let _ = stream.set_nodelay(true);
    let peer = stream.peer_addr().ok();
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(Peer(peer));
        }
        let router = TowerToHyperService::new(router.clone());
        Box::pin(async move {
            let response = router.call(request).await.unwrap_or_else(|never: Infallible| match never {});
            if response.extensions().get::<NoResponse>().is_some() { Err(ResetOnPurpose) } else { Ok(response) }
        })
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let ended = poll_fn(|context| connection.poll_without_shutdown(context)).await;
    if ended.is_err_and(|error| error.is_user()) {
        // A linger time of zero makes closing the socket send RST instead of FIN.
        let _ = connection.into_parts().io.into_inner().set_zero_linger();
    }
}
