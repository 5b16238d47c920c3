//! What the lab's client and the pods' servers say to each other, and to whoever started them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// How a request travels.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP over TCP.
    Http,
    /// A datagram, from a connected socket.
    Udp,
    /// A datagram, from a socket that names its destination with each one.
    UdpUnconnected,
}

impl Protocol {
    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Udp => "UDP",
            Self::UdpUnconnected => "UDP sendto",
        }
    }

    /// The protocol above IP.
    pub const fn transport(self) -> &'static str {
        match self {
            Self::Http => "TCP",
            Self::Udp | Self::UdpUnconnected => "UDP",
        }
    }
}

/// One request.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Where it goes.
    pub target: SocketAddr,
    /// How.
    pub protocol: Protocol,
}

/// A request to a web site, by HTTP/1.1.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Web {
    /// Where it goes.
    pub target: SocketAddr,
    /// The site.
    pub host: String,
    /// The path.
    pub path: String,
    /// Value of the header `X-Request-Id`.
    pub id: String,
    /// By HTTPS, with a certificate for `host` that this one (PEM) vouches for.
    pub trusted: Option<String>,
}

/// What became of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WebAnswer {
    /// The client's own address and port.
    pub local: SocketAddr,
    /// Whom it is connected to.
    pub peer: SocketAddr,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// The status of the answer.
    pub status: u16,
    /// The body of the answer.
    pub body: String,
}

/// What a client process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Each request, again and again until so many pods have answered it, at most so many times.
    Spread {
        /// The requests.
        requests: Vec<Request>,
        /// How many pods are expected to answer each.
        pods: usize,
        /// The largest number of times that a request is sent.
        at_most: usize,
    },
    /// One request so many times a second, each in a connection of its own.
    Rate {
        /// The request.
        request: Request,
        /// How many a second.
        per_second: u32,
        /// For how long, in milliseconds.
        duration_ms: u64,
    },
    /// One request to a web site.
    Web(Web),
    /// One long answer, whose every byte is checked.
    Download {
        /// From where.
        target: SocketAddr,
        /// Its length in bytes.
        bytes: u64,
        /// How many bytes a second the server sends.
        rate: u64,
    },
}

/// What the server saw of a request. It is the body of the answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// Name of the pod.
    pub pod: String,
    /// Where the request came from.
    pub source: SocketAddr,
    /// Where it arrived: the pod's own address and port.
    pub destination: SocketAddr,
    /// The request line, or what the datagram said.
    pub request: String,
}

/// What became of one request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The request.
    pub request: Request,
    /// The client's own address and port.
    pub local: Option<SocketAddr>,
    /// Whom the client's socket says that it is connected to, or got the datagram from.
    pub peer: Option<SocketAddr>,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// What the server saw, or why there was no answer.
    pub result: Result<Seen, String>,
}

/// What a client process prints as it ends.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Of [`Task::Spread`].
    Answers(Vec<Answer>),
    /// Of [`Task::Rate`].
    Rate {
        /// Requests answered.
        answered: u64,
        /// Requests lost or refused, as sentences, the first few.
        failures: Vec<String>,
        /// How many failed.
        failed: u64,
        /// The longest that a request took, in microseconds.
        slowest_us: u64,
    },
    /// Of [`Task::Web`]: the answer, or why there was none.
    Web(Result<WebAnswer, String>),
    /// Of [`Task::Download`].
    Download {
        /// Bytes that arrived and were right.
        bytes: u64,
        /// What went wrong.
        error: Option<String>,
        /// How long it took, in microseconds.
        took_us: u64,
    },
}

/// The byte at this position of a download.
pub fn download_byte(position: u64) -> u8 {
    (position % 251) as u8
}

/// The address without the mark of an IPv4 address in an IPv6 socket.
pub fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
