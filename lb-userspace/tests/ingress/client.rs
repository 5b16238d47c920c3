//! Clients: HTTP/1.1, HTTP/2, TLS, and bytes as they are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use hyper::client::conn::{http1, http2};
use hyper::{HeaderMap, Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::lab::PATIENCE;

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub async fn of(response: Response<Incoming>) -> Result<Self, Error> {
        let (head, body) = response.into_parts();
        Ok(Self {
            status: head.status.as_u16(),
            headers: head.headers,
            body: to_bytes(Body::new(body), usize::MAX).await?,
        })
    }
}

/// A request for a host, without a body.
pub fn request(host: &str, path: &str) -> Request<Body> {
    Request::get(path)
        .header("host", host)
        .body(Body::empty())
        .expect("a request")
}

pub async fn connect(at: SocketAddr) -> Result<TcpStream, Error> {
    let stream = timeout(PATIENCE, TcpStream::connect(at)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// An HTTP/1.1 connection over this stream.
pub async fn http1<S>(stream: S) -> Result<http1::SendRequest<Body>, Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

/// An HTTP/2 connection over this stream.
pub async fn http2<S>(stream: S) -> Result<http2::SendRequest<Body>, Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(1 << 22)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Asks over a connection of its own.
pub async fn try_get(at: SocketAddr, host: &str, path: &str) -> Result<Reply, Error> {
    timeout(PATIENCE, async {
        let mut connection = http1(connect(at).await?).await?;
        Reply::of(connection.send_request(request(host, path)).await?).await
    })
    .await?
}

/// The same, and there is an answer.
pub async fn get(at: SocketAddr, host: &str, path: &str) -> Reply {
    try_get(at, host, path)
        .await
        .unwrap_or_else(|error| panic!("{host}{path} at {at}: {error}"))
}

/// A TLS connection for this name, which has to show one of these certificates.
pub async fn tls(
    at: SocketAddr,
    name: &str,
    trusted: &[CertificateDer<'static>],
    protocols: &[&str],
) -> Result<TlsStream<TcpStream>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add(certificate.clone())?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned())?;
    let stream = connect(at).await?;
    Ok(timeout(PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, stream)).await??)
}

/// The certificate that a server has shown.
pub fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    let certificates = stream.get_ref().1.peer_certificates().expect("a server shows one");
    certificates[0].clone().into_owned()
}

/// Everything that comes back for these bytes until the connection ends, or is silent for a while.
pub async fn raw(at: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(at).await.expect("it listens");
    // It may be closed before all is sent.
    let _sent = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(Ok(length @ 1..)) = timeout(Duration::from_secs(2), stream.read(&mut buffer)).await {
        answer.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}
