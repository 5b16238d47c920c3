//! The access log: one JSON object a line for each request, on standard output or in a file.
//!
//! No request waits for it. Lines go through a queue to a thread of its own; when the queue is full, because whoever reads
//! the lines is too slow, they are dropped and counted.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::{self, FromStr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use http::{HeaderValue, Version, header};
use jiff::Timestamp;
use pingora::http::RequestHeader;
use serde::{Serialize, Serializer};
use tracing::warn;

use super::table::Route;
use super::target;

/// Lines that wait at most; about 30 MB.
const QUEUE: usize = 65_536;
/// At the end, what is in the queue is waited for this long.
const FLUSH: Duration = Duration::from_secs(1);

/// Where lines go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// To standard output.
    Stdout,
    /// Nowhere.
    Off,
    /// To the end of this file.
    File(PathBuf),
}

impl FromStr for Target {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "stdout" => Self::Stdout,
            "off" => Self::Off,
            file => Self::File(file.into()),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::Off => f.write_str("off"),
            Self::File(file) => file.display().fmt(f),
        }
    }
}

/// The log.
#[derive(Debug)]
pub struct AccessLog {
    queue: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

/// What is in the queue.
#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    /// Somebody waits until all before it is written.
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// Starts its thread; `None` if it is off.
    ///
    /// # Errors
    /// If the file cannot be written, or no thread be started.
    pub fn start(target: &Target, dropped: Arc<AtomicU64>) -> io::Result<Option<Self>> {
        let out: Box<dyn Write + Send> = match target {
            Target::Off => return Ok(None),
            Target::Stdout => Box::new(io::stdout()),
            Target::File(file) => Box::new(File::options().create(true).append(true).open(file)?),
        };
        let (queue, lines) = sync_channel(QUEUE);
        thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write(&lines, out))?;
        Ok(Some(Self { queue, dropped }))
    }

    /// Writes a line, some time soon.
    pub fn write(&self, line: &Line<'_>) {
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        text.push(b'\n');
        if self.queue.try_send(Item::Line(text)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all lines are written, for a second at most.
    pub fn flush(&self) {
        let (written, wait) = sync_channel(1);
        if self.queue.try_send(Item::Flush(written)).is_ok() {
            // Whoever reads the lines may be stuck.
            let _in_time = wait.recv_timeout(FLUSH);
        }
    }
}

/// Writes what comes, and hands it on whenever nothing more waits.
fn write(queue: &Receiver<Item>, out: impl Write) {
    let mut out = BufWriter::with_capacity(1 << 16, out);
    let mut failed = false;
    while let Ok(first) = queue.recv() {
        let mut result = Ok(());
        let mut waiting = Vec::new();
        for item in iter::once(first).chain(queue.try_iter()) {
            match item {
                Item::Line(line) => result = result.and_then(|()| out.write_all(&line)),
                Item::Flush(written) => waiting.push(written),
            }
        }
        // Once: it may well fail for every line from now on.
        if let Err(error) = result.and_then(|()| out.flush())
            && !failed
        {
            failed = true;
            warn!(%error, "the access log cannot be written");
        }
        drop(waiting);
    }
}

/// What is said of a request.
#[derive(Debug)]
pub struct Line<'a> {
    /// The other end of the connection, or whom the PROXY protocol names.
    pub client: Option<SocketAddr>,
    /// Where the request comes from, by a trusted proxy.
    pub forwarded_for: Option<IpAddr>,
    /// The request.
    pub request: &'a RequestHeader,
    /// The status of the answer; 0: there was none.
    pub status: u16,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// From the head of the request to the end of the answer.
    pub took: Duration,
    /// The backend that was asked last.
    pub backend: Option<SocketAddr>,
    /// How long it took to the head of its answer.
    pub backend_took: Option<Duration>,
    /// How many connections to backends it took.
    pub tries: u8,
    /// The rule.
    pub route: Option<&'a Route>,
    /// The request's id.
    pub id: Option<&'a HeaderValue>,
    /// The version of TLS.
    pub tls: Option<&'a str>,
    /// What went wrong.
    pub failure: Option<&'static str>,
}

/// The same as JSON.
#[derive(Serialize)]
struct Json<'a> {
    #[serde(serialize_with = "time")]
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<IpAddr>,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    protocol: &'static str,
    status: u16,
    bytes_in: u64,
    bytes_out: u64,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_ms: Option<f64>,
    #[serde(skip_serializing_if = "is_first")]
    tries: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress: Option<Key<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<Key<'a>>,
    request_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<&'a str>,
}

/// An object, as `namespace/name`.
struct Key<'a>(&'a crate::model::ObjectKey);

impl Serialize for Key<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self.0)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_first(tries: &u8) -> bool {
    *tries <= 1
}

fn time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.3}"))
}

/// In milliseconds, to the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    let micros = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
    f64::from(micros) / 1000.0
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = |value: Option<&HeaderValue>| {
            value.and_then(|value| str::from_utf8(value.as_bytes()).ok().map(str::to_owned))
        };
        let user_agent = text(self.request.headers.get(header::USER_AGENT)).unwrap_or_default();
        let (host, path) = target::of(self.request).unwrap_or_default();
        let failure = match (self.failure, self.route) {
            (_, Some(route)) if route.backend.addrs.is_empty() => route.backend.problem.as_deref().or(self.failure),
            (failure, _) => failure,
        };
        Json {
            time: Timestamp::now(),
            client: self.forwarded_for.or(self.client.map(|client| client.ip())),
            method: self.request.method.as_str(),
            host,
            path,
            protocol: match self.request.version {
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            status: self.status,
            bytes_in: self.received,
            bytes_out: self.sent,
            duration_ms: milliseconds(self.took),
            upstream: self.backend,
            upstream_ms: self.backend_took.map(milliseconds),
            tries: self.tries,
            ingress: self.route.map(|route| Key(&route.ingress)),
            service: self.route.map(|route| Key(&route.backend.service)),
            request_id: self.id.and_then(|id| id.to_str().ok()).unwrap_or_default(),
            user_agent: &user_agent,
            tls: self.tls,
            failure,
        }
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn line(request: &RequestHeader) -> Line<'_> {
        Line {
            client: Some("192.0.2.1:5".parse().expect("an address")),
            forwarded_for: None,
            request,
            status: 200,
            received: 1,
            sent: 2,
            took: Duration::from_micros(1500),
            backend: Some("[fd00::1]:80".parse().expect("an address")),
            backend_took: Some(Duration::from_millis(1)),
            tries: 1,
            route: None,
            id: None,
            tls: Some("TLSv1.3"),
            failure: None,
        }
    }

    #[test]
    fn a_line_is_one_json_object_whatever_the_client_sends() {
        let mut request = RequestHeader::build("GET", b"/a%0ab\"?secret=1", None).expect("a target");
        request.insert_header("Host", "a.example").expect("a header");
        let agent = HeaderValue::from_bytes(b"x\"\t\xff").expect("a header's value");
        request.insert_header("User-Agent", agent).expect("a header");
        let text = serde_json::to_string(&line(&request)).expect("it is JSON");
        assert!(!text.contains('\n'));
        let mut read: Value = serde_json::from_str(&text).expect("it is JSON");
        let time = read["time"].take();
        assert!(
            time.as_str()
                .is_some_and(|time| time.len() == "2026-01-01T00:00:00.000Z".len()),
            "{time}"
        );
        let expected = json!({
            "time": null, "client": "192.0.2.1", "method": "GET", "host": "a.example", "path": "/a%0ab\"",
            "protocol": "HTTP/1.1", "status": 200, "bytes_in": 1, "bytes_out": 2, "duration_ms": 1.5,
            "upstream": "[fd00::1]:80", "upstream_ms": 1.0, "request_id": "", "tls": "TLSv1.3",
        });
        assert_eq!(read, expected);
    }

    #[test]
    fn lines_that_nobody_takes_are_dropped_and_counted() {
        let (queue, lines) = sync_channel(2);
        let dropped = Arc::new(AtomicU64::new(0));
        let log = AccessLog {
            queue,
            dropped: Arc::clone(&dropped),
        };
        let request = RequestHeader::build("GET", b"/", None).expect("a target");
        for _ in 0..5 {
            log.write(&line(&request));
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 3);
        assert_eq!(lines.try_iter().count(), 2);
    }
}
