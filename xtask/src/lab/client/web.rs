//! A request to a web site: HTTP/1.1, by TLS if need be, without a library that would follow, retry or resolve anything.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::super::wire::{Web, WebAnswer, plain};
use super::broken;

/// Sends it and waits for its answer.
pub(super) fn ask(request: &Web, patience: Duration) -> io::Result<WebAnswer> {
    let start = Instant::now();
    let stream = TcpStream::connect_timeout(&request.target, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let (local, peer) = (plain(stream.local_addr()?), plain(stream.peer_addr()?));
    let text = match &request.trusted {
        Some(certificate) => exchange(tls(stream, &request.host, certificate)?, request)?,
        None => exchange(stream, request)?,
    };
    let took_us = start.elapsed().as_micros() as u64;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or_else(|| broken("the answer has no end of headers"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(WebAnswer {
        local,
        peer,
        took_us,
        status: status.ok_or_else(|| broken("the answer has no status"))?,
        body: body.to_owned(),
    })
}

fn exchange(mut stream: impl Read + Write, request: &Web) -> io::Result<String> {
    let Web { host, path, id, .. } = request;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Request-Id: {id}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Begins TLS with a server that has to show a certificate for the host.
fn tls(stream: TcpStream, host: &str, trusted: &str) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let invalid = |error: &dyn std::fmt::Display| broken(&error.to_string());
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_slice(trusted.as_bytes()).map_err(|error| invalid(&error))?;
    roots.add(certificate).map_err(|error| invalid(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|error| invalid(&error))?;
    let connection = ClientConnection::new(Arc::new(config), name).map_err(|error| invalid(&error))?;
    Ok(StreamOwned::new(connection, stream))
}
