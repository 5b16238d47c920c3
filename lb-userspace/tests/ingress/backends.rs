//! Backends: one that tells what it was asked, and ones that misbehave.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use futures::stream::{self, StreamExt as _};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// A backend. It ends when this is dropped.
pub struct Backend {
    pub at: SocketAddr,
    pub seen: Arc<Seen>,
    task: AbortHandle,
}

/// What came.
#[derive(Default)]
pub struct Seen {
    name: String,
    pub connections: AtomicUsize,
    pub requests: AtomicUsize,
    /// Requests whose answers were not read to their end.
    pub aborted: AtomicUsize,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(at: SocketAddr) -> TcpListener {
    TcpListener::bind(at)
        .await
        .unwrap_or_else(|error| panic!("{at}: {error}"))
}

/// A backend that answers with what it was asked, as JSON. By path: `/slow` takes a second, `/big` sends 100 MB, `/silent`
/// never answers, `/drip` sends without end.
pub async fn echo(name: &str, at: SocketAddr) -> Backend {
    let listener = listen(at).await;
    let at = listener.local_addr().expect("it is bound");
    let seen = Arc::new(Seen {
        name: name.to_owned(),
        ..Seen::default()
    });
    let router = Router::new().fallback(answer).with_state(Arc::clone(&seen));
    let counted = Arc::clone(&seen);
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("it listens");
            counted.connections.fetch_add(1, Ordering::Relaxed);
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Backend {
        at,
        seen,
        task: task.abort_handle(),
    }
}

/// Bytes of `/big`.
pub const BIG: usize = 100 << 20;
const CHUNK: usize = 1 << 16;

/// A body of this many bytes, in chunks.
pub fn big_body() -> Body {
    let chunk = Bytes::from(vec![b'x'; CHUNK]);
    let chunks = stream::iter(0..BIG / CHUNK).map(move |_| Ok::<_, std::io::Error>(chunk.clone()));
    Body::from_stream(chunks)
}

async fn answer(State(seen): State<Arc<Seen>>, request: Request) -> Response {
    seen.requests.fetch_add(1, Ordering::Relaxed);
    let (head, body) = request.into_parts();
    match head.uri.path() {
        "/slow" => sleep(Duration::from_secs(1)).await,
        "/silent" => sleep(Duration::from_secs(3600)).await,
        "/big" => return big_body().into_response(),
        "/drip" => return drip(seen).into_response(),
        _ => {}
    }
    let mut received = 0;
    let mut body = body.into_data_stream();
    while let Some(Ok(chunk)) = body.next().await {
        received += chunk.len();
    }
    let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        headers.entry(name.to_string()).or_default().push(value);
    }
    let told = json!({
        "backend": seen.name,
        "method": head.method.as_str(),
        "target": head.uri.to_string(),
        "version": format!("{:?}", head.version),
        "headers": headers,
        "received": received,
    });
    ([("content-type", "application/json")], told.to_string()).into_response()
}

/// A byte every 20 ms, and a note when nobody takes them any more.
fn drip(seen: Arc<Seen>) -> Body {
    struct Noted(Arc<Seen>);
    impl Drop for Noted {
        fn drop(&mut self) {
            self.0.aborted.fetch_add(1, Ordering::Relaxed);
        }
    }
    Body::from_stream(stream::unfold(Noted(seen), async |noted| {
        sleep(Duration::from_millis(20)).await;
        Some((Ok::<_, std::io::Error>(Bytes::from_static(b".")), noted))
    }))
}

/// A backend that answers the first request of each connection and closes it on the second one, unanswered.
pub async fn closes_kept_connections(at: SocketAddr) -> Backend {
    raw(at, |mut stream, seen| async move {
        if read_head(&mut stream).await.is_some() {
            seen.requests.fetch_add(1, Ordering::Relaxed);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(answer).await.expect("it is open");
            if read_head(&mut stream).await.is_some() {
                seen.aborted.fetch_add(1, Ordering::Relaxed);
            }
        }
    })
    .await
}

/// A backend that answers so, whatever is asked, and closes the connection.
pub async fn says(at: SocketAddr, answer: &'static [u8]) -> Backend {
    raw(at, move |mut stream, seen| async move {
        if read_head(&mut stream).await.is_some() {
            seen.requests.fetch_add(1, Ordering::Relaxed);
            stream.write_all(answer).await.expect("it is open");
        }
    })
    .await
}

async fn raw<F, T>(at: SocketAddr, serve: F) -> Backend
where
    F: Fn(TcpStream, Arc<Seen>) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = listen(at).await;
    let seen = Arc::new(Seen::default());
    let counted = Arc::clone(&seen);
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("it listens");
            counted.connections.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve(stream, Arc::clone(&counted)));
        }
    });
    Backend {
        at,
        seen,
        task: task.abort_handle(),
    }
}

/// The head of a request, without a body; `None`: the connection has ended.
async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}
