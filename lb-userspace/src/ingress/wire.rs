//! A client's connection, as the proxy reads and writes it.
//!
//! It knows what the proxy cannot see by itself: who the client is when a load balancer in front says so (PROXY protocol),
//! and whether the connection begins with HTTP/2's preface. Small writes are gathered, so that an answer with a short body
//! is one packet.
//!
//! It also keeps slow clients from holding it for ever: from the first byte of a request on, its head has to be there
//! within a time that no trickle of bytes prolongs.
//!
//! ```text
//!   Head ── request is read ──► Busy ── answer is written ──► Idle ── first byte ──► Head
//! ```

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::HeaderValue;
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    ALPN, Digest, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufWriter, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tracing::debug;

/// Writes up to this many bytes are gathered until they are flushed.
const GATHERED: usize = 4096;

/// What is known of a client's connection for as long as it lasts.
#[derive(Debug)]
pub struct Connection {
    /// The client; the other end of the connection, unless a load balancer says otherwise by the PROXY protocol.
    pub client: SocketAddr,
    /// The client's address as the value of a header.
    pub address: HeaderValue,
    /// Whether the client speaks TLS.
    pub tls: bool,
    phase: AtomicU8,
}

/// How far the request is that a connection carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Phase {
    /// Its head is being read.
    Head,
    /// It is being answered.
    Busy,
    /// There is none.
    Idle,
}

impl Connection {
    /// A new connection. Its time to say what it wants has not begun.
    pub fn new(client: SocketAddr, tls: bool) -> Self {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let address = HeaderValue::from_str(&client.ip().to_string()).expect("an address is visible ASCII");
        Self {
            client,
            address,
            tls,
            phase: AtomicU8::new(Phase::Busy as u8),
        }
    }

    /// The connection that this digest is of.
    pub fn of(digest: &Digest) -> Option<&Arc<Self>> {
        digest.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
    }

    /// The head of a request is to come.
    pub fn expects(&self) {
        self.enter(Phase::Head);
    }

    /// A request is being answered.
    pub fn is_busy(&self) {
        self.enter(Phase::Busy);
    }

    /// A request was answered.
    pub fn is_idle(&self) {
        self.enter(Phase::Idle);
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    fn is_in(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) == phase as u8
    }
}

/// A connection's stream.
#[derive(Debug)]
pub struct Wire {
    stream: BufWriter<TcpStream>,
    connection: Arc<Connection>,
    proxy_digest: Arc<ProxyDigest>,
    socket_digest: Arc<SocketDigest>,
    established: SystemTime,
    http2: bool,
    head_within: Duration,
    head_until: Option<Pin<Box<Sleep>>>,
}

impl Wire {
    /// A stream. `http2`: it begins with HTTP/2's preface. `head_within`: a request's head has to come within this.
    pub fn new(stream: TcpStream, connection: Arc<Connection>, http2: bool, head_within: Duration) -> Self {
        let socket_digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
        let client = connection.client.into();
        // It is set once, here.
        let _first = socket_digest.peer_addr.set(Some(client));
        // The proxy keeps its own bookkeeping about tunnels in this digest, and hands it to every request.
        let header = ResponseHeader::build(200, Some(0)).expect("200 is a status");
        let user: Box<Arc<Connection>> = Box::new(Arc::clone(&connection));
        Self {
            stream: BufWriter::with_capacity(GATHERED, stream),
            connection,
            proxy_digest: Arc::new(ProxyDigest::new(Box::new(header), Some(user))),
            socket_digest: Arc::new(socket_digest),
            established: SystemTime::now(),
            http2,
            head_within,
            head_until: None,
        }
    }

    /// Fails once the head of a request took too long.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if !self.connection.is_in(Phase::Head) {
            self.head_until = None;
            return Poll::Pending;
        }
        let within = self.head_within;
        let until = self.head_until.get_or_insert_with(|| Box::pin(sleep(within)));
        ready!(until.as_mut().poll(cx));
        Poll::Ready(io::Error::new(
            io::ErrorKind::TimedOut,
            "the head of the request took too long",
        ))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        match Pin::new(this.stream.get_mut()).poll_read(cx, buf) {
            Poll::Pending => this.poll_overdue(cx).map(Err),
            Poll::Ready(Ok(())) => {
                if buf.filled().len() > before && this.connection.is_in(Phase::Idle) {
                    this.head_until = None;
                    this.connection.expects();
                }
                Poll::Ready(Ok(()))
            }
            failed @ Poll::Ready(Err(_)) => failed,
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Wire {
    async fn shutdown(&mut self) {
        if let Err(error) = self.stream.shutdown().await {
            debug!(%error, "a connection was gone before it was closed");
        }
    }
}

impl UniqueID for Wire {
    fn id(&self) -> UniqueIDType {
        self.stream.get_ref().as_raw_fd()
    }
}

impl Ssl for Wire {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.http2.then_some(ALPN::H2)
    }
}

impl GetTimingDigest for Wire {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest {
            established_ts: self.established,
            ..TimingDigest::default()
        })]
    }
}

impl GetProxyDigest for Wire {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(Arc::clone(&self.proxy_digest))
    }
}

impl GetSocketDigest for Wire {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.socket_digest))
    }
}

impl Peek for Wire {}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    /// A wire with its client.
    async fn wire() -> (Wire, TcpStream, Arc<Connection>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port is free");
        let at = listener.local_addr().expect("it is bound");
        let client = TcpStream::connect(at).await.expect("it listens");
        let (stream, peer) = listener.accept().await.expect("a client waits");
        let connection = Arc::new(Connection::new(peer, false));
        let wire = Wire::new(stream, Arc::clone(&connection), false, Duration::from_secs(10));
        (wire, client, connection)
    }

    #[tokio::test]
    async fn a_head_that_trickles_in_is_cut_off_however_often_a_byte_comes() {
        let (mut wire, mut client, connection) = wire().await;
        connection.expects();
        let mut buffer = [0; 64];
        client.write_all(b"GET ").await.expect("it is open");
        assert_eq!(wire.read(&mut buffer).await.expect("it was written"), 4);
        tokio::time::pause();
        let mut trickle = tokio::spawn(async move {
            for _ in 0..100 {
                if client.write_all(b"/").await.is_err() {
                    break;
                }
                sleep(Duration::from_secs(4)).await;
            }
            client
        });
        let began = tokio::time::Instant::now();
        let error = loop {
            match wire.read(&mut buffer).await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(13), "{:?}", began.elapsed());
        trickle.abort();
        let _gone = (&mut trickle).await;
    }

    #[tokio::test]
    async fn a_connection_without_a_request_and_one_that_is_answered_may_be_silent() {
        let (mut wire, _client, connection) = wire().await;
        tokio::time::pause();
        for enter in [Connection::is_idle, Connection::is_busy] {
            enter(&connection);
            let silent = tokio::time::timeout(Duration::from_secs(60), wire.read(&mut [0])).await;
            assert!(silent.is_err(), "it was cut off");
        }
    }

    #[tokio::test]
    async fn clients_are_known_by_their_own_family() {
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:1234".parse().expect("an address");
        let connection = Connection::new(mapped, false);
        assert_eq!(connection.client.to_string(), "192.0.2.7:1234");
        assert_eq!(connection.address, "192.0.2.7");
    }
}
