//! What is done with a request: found its backend, sent there, tried again where that is safe, written down.
//!
//! ```text
//!   head is read ─► request_filter: route ─► upstream_peer: address ─► connect ─► upstream_request_filter: headers
//!                        │ no route: 404                        │ refused: next address, 503, 504
//!                        ▼                                      ▼
//!                     logging ◄──────── answer ◄──────── upstream_response_filter
//! ```
//!
//! A request is sent twice only where nothing can have happened twice: when no connection could be made, or when a kept
//! connection was closed before a byte of the answer came and the method is idempotent (RFC 9110, 9.2.2).

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use http::{HeaderValue, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::access_log::Line;
use super::answers::{self, Answer};
use super::metrics::{Protocol, Traffic};
use super::table::{BackendProtocol, Route};
use super::wire::Connection;
use super::{Shared, forwarded, target};

/// A request is sent this often at most, to as many addresses.
pub const TRIES: u8 = 3;
/// Requests that share a connection to a backend that speaks HTTP/2. More connections are more pods that share the work.
const STREAMS: usize = 16;

/// The proxy's part of a worker.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// A request and its answer.
#[derive(Debug)]
pub struct Exchange {
    began: Instant,
    connection: Option<Arc<Connection>>,
    route: Option<Arc<Route>>,
    traffic: Option<Arc<Traffic>>,
    /// The request's id, kept or made.
    id: Option<HeaderValue>,
    /// Which of the backend's addresses is tried first.
    first: usize,
    /// Addresses that could not be connected to.
    unreachable: u8,
    /// How often it was sent, or was to be.
    tries: u8,
    backend: Option<Asked>,
    failure: Option<&'static str>,
}

/// The backend that was asked.
#[derive(Debug)]
struct Asked {
    address: SocketAddr,
    since: Instant,
    /// From the request until the head of its answer.
    took: Option<Duration>,
    /// A connection could be made.
    connected: bool,
    /// Its connection is not to be used after this request.
    last: bool,
}

impl Exchange {
    /// One that begins now.
    fn new() -> Self {
        Self {
            began: Instant::now(),
            connection: None,
            route: None,
            traffic: None,
            id: None,
            first: 0,
            unreachable: 0,
            tries: 0,
            backend: None,
            failure: None,
        }
    }
}

impl Engine {
    /// An engine.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Whether the request can be sent once more, after it failed on this connection.
    fn may_repeat(session: &Session, ctx: &Exchange) -> bool {
        ctx.tries < TRIES
            && session.req_header().method.is_idempotent()
            && session.response_written().is_none()
            && !session.retry_buffer_truncated()
    }

    fn count_retry(error: &Error, ctx: &Exchange) {
        if error.retry()
            && let Some(traffic) = &ctx.traffic
        {
            traffic.retries.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What the client is told of a failure; `None`: it is gone.
    fn answer_to(error: &Error, ctx: &Exchange) -> Option<Answer> {
        use ErrorType::{
            ConnectTimedout, ConnectionClosed, H2Error, HTTPStatus, InvalidHTTPHeader, ReadError, ReadTimedout,
            WriteError, WriteTimedout,
        };
        let connected = ctx.backend.as_ref().is_some_and(|asked| asked.connected);
        match (error.esource(), error.etype()) {
            (_, HTTPStatus(400)) => Some(answers::BAD_REQUEST),
            (_, HTTPStatus(503)) => Some(answers::UNAVAILABLE),
            (ErrorSource::Upstream, ConnectTimedout | ReadTimedout | WriteTimedout) => Some(answers::TIMEOUT),
            (ErrorSource::Upstream, _) if !connected => Some(answers::UNAVAILABLE),
            (ErrorSource::Upstream, _) => Some(answers::BAD_GATEWAY),
            (ErrorSource::Downstream, ReadTimedout) => Some(answers::REQUEST_TIMEOUT),
            (ErrorSource::Downstream, InvalidHTTPHeader) => Some(answers::BAD_REQUEST),
            (ErrorSource::Downstream, ReadError | WriteError | WriteTimedout | ConnectionClosed | H2Error) => None,
            (ErrorSource::Downstream, _) => Some(answers::BAD_REQUEST),
            _ => Some(answers::INTERNAL),
        }
    }
}

#[async_trait]
impl ProxyHttp for Engine {
    type CTX = Exchange;

    fn new_ctx(&self) -> Exchange {
        Exchange::new()
    }

    /// Bodies pass as they are.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Exchange) -> Result<()> {
        ctx.connection = session.digest().and_then(Connection::of).cloned();
        if let Some(connection) = &ctx.connection {
            connection.is_busy();
        }
        let clients = &self.shared.clients;
        session.set_read_timeout(Some(clients.silence));
        session.set_write_timeout(Some(clients.silence));
        session.set_total_drain_timeout(Some(clients.silence));
        // A connection that the client wants to be closed stays one.
        if session.get_keepalive().is_some() {
            let kept = clients.idle.as_secs().max(1);
            session.set_keepalive((!self.shared.closing()).then_some(kept));
        }
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Exchange) -> Result<bool> {
        ctx.id = Some(self.shared.ids.of(session.req_header()));
        let answer = match target::of(session.req_header()) {
            None => answers::BAD_REQUEST,
            Some((host, path)) => match self.shared.config.load().table.route(host, path) {
                None => answers::NO_ROUTE,
                Some(route) => {
                    let traffic = self.shared.metrics.traffic(&route.ingress, &route.backend.service);
                    ctx.first = first_of(&route.backend.addrs, &traffic);
                    ctx.traffic = Some(traffic);
                    ctx.route = Some(Arc::clone(route));
                    if !route.backend.addrs.is_empty() {
                        return Ok(false);
                    }
                    ctx.failure = Some("the Service has no backend");
                    answers::UNAVAILABLE
                }
            },
        };
        answer.send(session).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, _: &mut Session, ctx: &mut Exchange) -> Result<Box<HttpPeer>> {
        let Some(route) = &ctx.route else {
            return Error::e_explain(ErrorType::InternalError, "a request without a route is answered before");
        };
        let addrs = &route.backend.addrs;
        if addrs.is_empty() {
            return Error::e_explain(ErrorType::HTTPStatus(503), "no backend");
        }
        let address = addrs[ctx.first.wrapping_add(usize::from(ctx.unreachable)) % addrs.len()];
        ctx.tries += 1;
        ctx.backend = Some(Asked {
            address,
            since: Instant::now(),
            took: None,
            connected: false,
            last: false,
        });
        let backends = &self.shared.backends;
        let mut peer = Box::new(HttpPeer::new(address, false, String::new()));
        let options = &mut peer.options;
        options.connection_timeout = Some(backends.connect);
        options.total_connection_timeout = Some(backends.connect);
        options.read_timeout = Some(backends.silence);
        options.write_timeout = Some(backends.silence);
        options.idle_timeout = Some(backends.idle);
        if route.backend.protocol == BackendProtocol::H2c {
            options.set_http_version(2, 2);
            options.max_h2_streams = STREAMS;
            // A connection serves until its time is over; the next request then finds none with its key, and the old
            // one is closed when it was idle long enough.
            peer.group_key = self.shared.h2c_key(address);
        }
        Ok(peer)
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        reused: bool,
        _: &HttpPeer,
        _: RawFd,
        digest: Option<&Digest>,
        ctx: &mut Exchange,
    ) -> Result<()> {
        let Some(asked) = &mut ctx.backend else { return Ok(()) };
        asked.connected = true;
        if reused && let Some(Some(timing)) = digest.and_then(|digest| digest.timing_digest.first()) {
            let age = SystemTime::now()
                .duration_since(timing.established_ts)
                .unwrap_or_default();
            asked.last = age > self.shared.backends.lifetime;
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Exchange,
    ) -> Result<()> {
        let from_http2 = session.req_header().version == Version::HTTP_2;
        let to_http1 = request.version != Version::HTTP_2;
        if let (Some(connection), Some(id)) = (&ctx.connection, &ctx.id) {
            forwarded::write(request, connection, &self.shared.clients.trusted, id)?;
        }
        if from_http2 && to_http1 {
            forwarded::join_cookies(request)?;
        }
        let last = ctx.backend.as_ref().is_some_and(|asked| asked.last);
        if last && to_http1 && !request.headers.contains_key(header::UPGRADE) {
            request.insert_header(header::CONNECTION, HeaderValue::from_static("close"))?;
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        _: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Exchange,
    ) -> Result<()> {
        if response.status.is_informational() && response.status != http::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(());
        }
        if let Some(asked) = &mut ctx.backend {
            asked.took = Some(asked.since.elapsed());
        }
        // These are about the connection to the backend (RFC 9110, 7.6.1).
        response.remove_header("keep-alive");
        response.remove_header("proxy-connection");
        if response.status != http::StatusCode::SWITCHING_PROTOCOLS {
            response.remove_header(&header::UPGRADE);
        }
        Ok(())
    }

    fn fail_to_connect(&self, _: &mut Session, _: &HttpPeer, ctx: &mut Exchange, mut error: Box<Error>) -> Box<Error> {
        ctx.unreachable = ctx.unreachable.saturating_add(1);
        if let Some(traffic) = &ctx.traffic {
            traffic.connect_failures.fetch_add(1, Ordering::Relaxed);
        }
        // Nothing of the request was sent.
        error.set_retry(ctx.tries < TRIES);
        Self::count_retry(&error, ctx);
        error
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Exchange,
        reused: bool,
    ) -> Box<Error> {
        if Self::may_repeat(session, ctx) {
            error.retry.decide_reuse(reused);
        } else {
            error.set_retry(false);
        }
        Self::count_retry(&error, ctx);
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Exchange) -> FailToProxy {
        ctx.failure = Some(error.etype().as_str());
        let answer = Self::answer_to(error, ctx);
        let begun = session
            .response_written()
            .is_some_and(|response| !response.status.is_informational());
        if let Some(answer) = answer
            && !begun
            && answer.send(session).await.is_err()
        {
            ctx.failure = Some("the client is gone");
        }
        FailToProxy {
            error_code: answer.map_or(0, |answer| answer.status),
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, ctx: &mut Exchange) {
        let took = ctx.began.elapsed();
        let http2 = session.req_header().version == Version::HTTP_2;
        if !http2 && let Some(connection) = &ctx.connection {
            connection.is_idle();
        }
        let status = session
            .response_written()
            .map_or(0, |response| response.status.as_u16());
        let (received, sent) = (session.body_bytes_read() as u64, session.body_bytes_sent() as u64);
        let protocol = match (session.was_upgraded(), http2) {
            (true, _) => Protocol::Upgraded,
            (false, true) => Protocol::Http2,
            (false, false) => Protocol::Http1,
        };
        match &ctx.traffic {
            Some(traffic) => traffic.count(protocol, status, took, received, sent),
            None => self.shared.metrics.unrouted(protocol, status),
        }
        if let Some(log) = &self.shared.access_log {
            let digest = session.digest();
            log.write(&Line {
                client: ctx.connection.as_ref().map(|connection| connection.client),
                forwarded_for: forwarded::client(
                    session.req_header(),
                    ctx.connection.as_deref(),
                    &self.shared.clients.trusted,
                ),
                request: session.req_header(),
                status,
                received,
                sent,
                took,
                backend: ctx.backend.as_ref().map(|asked| asked.address),
                backend_took: ctx.backend.as_ref().and_then(|asked| asked.took),
                tries: ctx.tries,
                route: ctx.route.as_deref(),
                id: ctx.id.as_ref(),
                tls: digest
                    .and_then(|digest| digest.ssl_digest.as_deref())
                    .map(|tls| version(&tls.version)),
                failure: ctx.failure,
            });
        }
    }

    fn suppress_error_log(&self, _: &Session, _: &Exchange, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Exchange, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}

/// A version of TLS as it is called by everybody else.
fn version(name: &str) -> &str {
    match name {
        "TLSv1_2" => "TLSv1.2",
        "TLSv1_3" => "TLSv1.3",
        other => other,
    }
}

/// Which address is tried first. Two addresses of two families are those of one Service, whose first family comes first;
/// others are pods, which take turns.
fn first_of(addrs: &[SocketAddr], traffic: &Traffic) -> usize {
    match addrs {
        [_] | [] => 0,
        [one, other] if one.is_ipv4() != other.is_ipv4() => 0,
        pods => traffic.turn.fetch_add(1, Ordering::Relaxed) % pods.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::metrics::Metrics;
    use crate::model::ObjectKey;

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn a_services_first_family_comes_first_and_pods_take_turns() {
        let metrics = Metrics::default();
        let traffic = metrics.traffic(&ObjectKey::new("a", "b"), &ObjectKey::new("a", "c"));
        let service = addrs(&["[fd00::1]:80", "10.96.0.1:80"]);
        let pods = addrs(&["10.244.0.1:80", "10.244.0.2:80", "10.244.0.3:80"]);
        let turns = |addrs: &[SocketAddr]| (0..6).map(|_| first_of(addrs, &traffic)).collect::<Vec<_>>();
        assert_eq!(turns(&service), [0; 6]);
        assert_eq!(turns(&pods), [0, 1, 2, 0, 1, 2]);
        assert_eq!(turns(&service[..1]), [0; 6]);
        assert_eq!(turns(&[]), [0; 6]);
    }

    fn exchange(connected: bool) -> Exchange {
        Exchange {
            tries: 1,
            backend: Some(Asked {
                address: addrs(&["10.96.0.1:80"])[0],
                since: Instant::now(),
                took: None,
                connected,
                last: false,
            }),
            ..Exchange::new()
        }
    }

    #[test]
    fn failures_are_told_by_whose_they_are() {
        let status =
            |error: Box<Error>, connected| Engine::answer_to(&error, &exchange(connected)).map(|answer| answer.status);
        let error = |kind: ErrorType| Error::new(kind);
        assert_eq!(status(error(ErrorType::ConnectRefused).into_up(), false), Some(503));
        assert_eq!(status(error(ErrorType::ConnectNoRoute).into_up(), false), Some(503));
        assert_eq!(status(error(ErrorType::ConnectTimedout).into_up(), false), Some(504));
        assert_eq!(status(error(ErrorType::ReadTimedout).into_up(), true), Some(504));
        assert_eq!(status(error(ErrorType::ConnectionClosed).into_up(), true), Some(502));
        assert_eq!(status(error(ErrorType::InvalidHTTPHeader).into_up(), true), Some(502));
        assert_eq!(status(error(ErrorType::InvalidHTTPHeader).into_down(), true), Some(400));
        assert_eq!(status(error(ErrorType::ReadTimedout).into_down(), true), Some(408));
        assert_eq!(status(error(ErrorType::ConnectionClosed).into_down(), true), None);
        assert_eq!(status(error(ErrorType::InternalError).into_in(), true), Some(500));
    }
}
