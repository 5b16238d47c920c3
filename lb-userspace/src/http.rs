//! The agent's small HTTP servers: health checks and metrics, which anybody on the network may ask.
//!
//! A server ends its connections with it, so that no load balancer goes on asking one that is gone over a connection that
//! it has kept. Clients that say nothing are cut off, and there are never many at a time.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use tracing::debug;

/// Connections that a server has at a time; more have to wait.
const CONNECTIONS: usize = 64;
/// Connections that wait.
const BACKLOG: u32 = 128;
/// A client has to say what it wants within this, and again on a connection that it keeps.
const SILENCE: Duration = Duration::from_secs(30);
/// After a connection could not be taken (no file descriptor is left, for example) it is tried again after this.
const AGAIN: Duration = Duration::from_millis(100);

/// A running server. It ends when this is dropped, and its port is free at once.
#[derive(Debug)]
pub struct Server {
    task: AbortHandle,
    listener: Arc<TcpListener>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // The task lets go of the listener when it is its turn to; another server may be about to listen there.
        if let Err(error) = shutdown(self.listener.as_raw_fd(), Shutdown::Both) {
            debug!(%error, "a port is closed later");
        }
        self.task.abort();
    }
}

/// Listens on an address, before it exists if need be. On `0.0.0.0` and `[::]` it listens for their family only.
///
/// # Errors
/// If the port is in use.
pub fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(at, true)?;
    // A new IPv6 address cannot be bound to otherwise for a second or two, while its neighbours are asked whether they
    // have it.
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// Listens on an address; `0.0.0.0` and `[::]` stand for all addresses of both families, as they do for kube-proxy.
///
/// # Errors
/// If the port is in use, or the address is none of this node's.
pub fn listen_all(at: SocketAddr) -> io::Result<TcpListener> {
    bind_all(at)?.listen(BACKLOG)
}

/// A socket bound for [`listen_all`].
///
/// # Errors
/// As [`listen_all`].
pub fn bind_all(at: SocketAddr) -> io::Result<TcpSocket> {
    let everywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, at.port()));
    let (at, socket) = match at.ip().is_unspecified().then(|| socket(everywhere, false)) {
        Some(Ok(both)) => (everywhere, both),
        // The kernel has no IPv6.
        Some(Err(_)) => {
            let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, at.port()));
            (at, socket(at, true)?)
        }
        None => (at, socket(at, true)?),
    };
    socket.bind(at)?;
    Ok(socket)
}

fn socket(at: SocketAddr, own_family_only: bool) -> io::Result<TcpSocket> {
    let socket = match at.ip() {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &own_family_only)?;
            socket
        }
    };
    socket.set_reuseaddr(true)?;
    Ok(socket)
}

/// Answers by this router. To be called within the runtime.
pub fn serve(listener: TcpListener, router: Router) -> Server {
    let listener = Arc::new(listener);
    Server {
        task: tokio::spawn(accept(Arc::clone(&listener), router)).abort_handle(),
        listener,
    }
}

async fn accept(listener: Arc<TcpListener>, router: Router) -> Infallible {
    // They end when this task is aborted.
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(answer(stream, router.clone()));
                }
                Err(error) => {
                    debug!(%error, "a connection could not be taken");
                    sleep(AGAIN).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(stream: TcpStream, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        // As Go writes them, for those who compare texts.
        .title_case_headers(true)
        .header_read_timeout(SILENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        debug!(%error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn server() -> (Server, SocketAddr) {
        let listener = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a port is free");
        let at = listener.local_addr().expect("it is bound");
        (serve(listener, Router::new().fallback(|| async { "here" })), at)
    }

    #[tokio::test]
    async fn headers_are_written_as_go_writes_them() {
        let (_server, at) = server().await;
        let mut stream = TcpStream::connect(at).await.expect("it listens");
        let request = b"GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.expect("it takes a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        assert!(answer.contains("\r\nContent-Type: text/plain"), "{answer}");
    }

    /// Whoever holds every connection that a server has, and says nothing, must not keep load balancers from asking.
    #[tokio::test]
    async fn silent_clients_are_cut_off_and_make_room_for_others() {
        let (_server, at) = server().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(at).await.expect("it listens"));
        }
        let mut stream = TcpStream::connect(at).await.expect("it waits");
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
            .await
            .expect("it waits");
        let mut answer = String::new();
        // With nothing else to do the clock jumps to the end of the silence.
        tokio::time::pause();
        stream.read_to_string(&mut answer).await.expect("it answers");
        assert!(answer.ends_with("here"), "{answer}");
        let closed = silent[0].read(&mut [0]).await;
        assert!(matches!(closed, Ok(0) | Err(_)), "a silent client is still there");
    }
}
