//! Where clients connect: listeners, and what comes before the first request of a connection (PROXY protocol, TLS, which
//! HTTP is spoken).

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use pingora::apps::ServerApp;
use pingora::listeners::tls::Acceptor;
use pingora::protocols::Stream;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::table::Config;
use super::wire::{Connection, Wire};
use super::{Clients, Shared, Stage, proxy_protocol};
use crate::http;

/// Connections that wait to be taken.
const BACKLOG: u32 = 4096;
/// How HTTP/2 begins where both know that it is spoken (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// After a connection could not be taken (no file descriptor is left, for example) it is tried again after this.
const AGAIN: Duration = Duration::from_millis(50);
/// A preface that has come in part is looked at again after this.
const PART: Duration = Duration::from_millis(5);

/// What is spoken at an address.
#[derive(Clone, Debug)]
pub enum Spoken {
    /// HTTP without TLS.
    Http,
    /// HTTP over TLS.
    Https(Tls),
}

/// TLS, by the certificates of the moment.
#[derive(Clone)]
pub struct Tls(Arc<Acceptor>);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// Shows clients the certificate of the name that they ask for.
#[derive(Debug)]
struct ByName(Arc<ArcSwap<Config>>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().certificates.find(hello.server_name())
    }
}

impl Tls {
    /// TLS 1.2 and 1.3, with HTTP/2 and HTTP/1.1, by whatever certificates there are when a client asks.
    ///
    /// # Errors
    /// If the random numbers for tickets cannot be had.
    pub fn new(config: Arc<ArcSwap<Config>>) -> Result<Self, rustls::Error> {
        let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ByName(config)));
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Any of the process' threads can go on with a session.
        server.ticketer = ring::Ticketer::new()?;
        Ok(Self(Arc::new(Acceptor::from_server_config(Arc::new(server)))))
    }
}

/// Listens. `0.0.0.0` and `[::]` stand for all addresses of both families.
///
/// # Errors
/// If the port is in use, or the address is none of this machine's.
pub fn bind(at: SocketAddr) -> io::Result<StdListener> {
    http::bind_all(at)?.listen(BACKLOG)?.into_std()
}

/// Takes connections until it is time to stop, and hands them to `app`. Every connection holds a clone of `alive`.
pub async fn accept<A, T>(listener: StdListener, spoken: Spoken, shared: Arc<Shared>, app: Arc<A>, alive: T)
where
    A: ServerApp + Send + Sync + 'static,
    T: Clone + Send + 'static,
{
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "a listener cannot be used");
            return;
        }
    };
    let mut stage = shared.stage.subscribe();
    let shutdown = shared.over.subscribe();
    loop {
        let accepted = async {
            let slot = Arc::clone(&shared.slots)
                .acquire_owned()
                .await
                .expect("slots are never closed");
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            accepted = accepted => accepted,
            _ = stage.wait_for(|stage| *stage >= Stage::Closing) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "a connection could not be taken");
                sleep(AGAIN).await;
                continue;
            }
        };
        let (spoken, shared, app) = (spoken.clone(), Arc::clone(&shared), Arc::clone(&app));
        let (shutdown, alive) = (shutdown.clone(), alive.clone());
        tokio::spawn(async move {
            let (_slot, _alive) = (slot, alive);
            serve(stream, peer, spoken, &shared, &app, shutdown).await;
        });
    }
}

async fn serve<A: ServerApp + Send + Sync + 'static>(
    stream: TcpStream,
    peer: SocketAddr,
    spoken: Spoken,
    shared: &Shared,
    app: &Arc<A>,
    shutdown: watch::Receiver<bool>,
) {
    let _open = shared.metrics.opened(matches!(spoken, Spoken::Https(_)));
    match begin(stream, peer, spoken, &shared.clients).await {
        Ok(Some(stream)) => {
            app.process_new(stream, &shutdown).await;
        }
        Ok(None) => {}
        Err(error) => {
            shared.metrics.refused();
            debug!(%peer, %error, "a connection was given up before its first request");
        }
    }
}

/// Why a connection came to no request.
#[derive(Debug, Error)]
enum Error {
    #[error("it was silent for too long")]
    Silent,
    #[error(transparent)]
    Proxy(#[from] proxy_protocol::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("TLS: {0}")]
    Tls(#[from] Box<pingora::Error>),
}

/// All that comes before the first request. `None`: the client has gone without a word.
async fn begin(
    mut stream: TcpStream,
    peer: SocketAddr,
    spoken: Spoken,
    clients: &Clients,
) -> Result<Option<Stream>, Error> {
    stream.set_nodelay(true)?;
    let within = clients.head;
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let client = if clients.proxies.iter().any(|range| range.contains(&peer.ip())) {
        let said = timeout(within, proxy_protocol::read(&mut stream)).await;
        said.map_err(|_| Error::Silent)??.unwrap_or(peer)
    } else {
        peer
    };
    match spoken {
        Spoken::Http => {
            let Some(http2) = timeout(within, prior_knowledge(&stream))
                .await
                .map_err(|_| Error::Silent)??
            else {
                return Ok(None);
            };
            let connection = Arc::new(Connection::new(client, false));
            connection.expects();
            Ok(Some(Box::new(Wire::new(stream, connection, http2, within))))
        }
        Spoken::Https(Tls(acceptor)) => {
            let connection = Arc::new(Connection::new(client, true));
            let wire = Wire::new(stream, Arc::clone(&connection), false, within);
            let handshake = timeout(clients.handshake, acceptor.tls_handshake(wire)).await;
            let stream = handshake.map_err(|_| Error::Silent)??;
            connection.expects();
            Ok(Some(Box::new(stream)))
        }
    }
}

/// Whether the client begins with HTTP/2's preface; nothing is taken from the stream. `None`: it has gone.
async fn prior_knowledge(stream: &TcpStream) -> io::Result<Option<bool>> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let length = stream.peek(&mut seen).await?;
        if length == 0 {
            return Ok(None);
        }
        if seen[..length] != PREFACE[..length] {
            return Ok(Some(false));
        }
        if length == PREFACE.len() {
            return Ok(Some(true));
        }
        sleep(PART).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn http2_is_known_by_its_preface_even_in_pieces() {
        let cases: [(&[&[u8]], Option<bool>); 5] = [
            (&[PREFACE], Some(true)),
            (&[&PREFACE[..3], &PREFACE[3..]], Some(true)),
            (&[b"GET / HTTP/1.0\r\n\r\n"], Some(false)),
            (&[b"P", b"OST / HTTP/1.1\r\n"], Some(false)),
            (&[], None),
        ];
        for (pieces, expected) in cases {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .await
                .expect("a port is free");
            let at = listener.local_addr().expect("it is bound");
            let mut client = TcpStream::connect(at).await.expect("it listens");
            let (stream, _) = listener.accept().await.expect("a client waits");
            let known = tokio::spawn(async move { prior_knowledge(&stream).await });
            for piece in pieces {
                client.write_all(piece).await.expect("it is open");
                sleep(Duration::from_millis(15)).await;
            }
            client.shutdown().await.expect("it is open");
            let known = known.await.expect("it does not panic").expect("it reads");
            assert_eq!(known, expected, "{pieces:?}");
        }
    }

    #[tokio::test]
    async fn everywhere_is_both_families() {
        let listener = bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("IPv4");
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.expect("IPv6");
        }
    }
}
