//! The process that sends a lab's requests. It is started in the namespace and the cgroup of the place that it
//! speaks for, reads one [`Task`] as JSON from its input, and prints one [`Outcome`].

mod web;

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::wire::{Answer, Outcome, Protocol, Request, Seen, Task, download_byte};

/// How long a request may take. A lost SYN is repeated after a second, so that a loss shows as a slow answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a request may take when this many have failed already.
const LITTLE_PATIENCE: (usize, Duration) = (4, Duration::from_millis(300));

/// Threads that share the requests of a [`Task::Rate`].
const SENDERS: u32 = 8;

/// Does what the standard input says.
pub fn run() -> anyhow::Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).context("read the task")?;
    let outcome = match serde_json::from_str(&text).context("understand the task")? {
        Task::Spread {
            requests,
            pods,
            at_most,
        } => Outcome::Answers(spread(&requests, pods, at_most)),
        Task::Rate {
            request,
            per_second,
            duration_ms,
        } => rate(&request, per_second, Duration::from_millis(duration_ms)),
        Task::Web(request) => Outcome::Web(web::ask(&request, PATIENCE).map_err(|error| error.to_string())),
        Task::Download { target, bytes, rate } => download(target, bytes, rate),
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

fn spread(requests: &[Request], pods: usize, at_most: usize) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut failures = 0;
    for request in requests {
        let mut met = BTreeSet::new();
        for _ in 0..at_most {
            let little = failures >= LITTLE_PATIENCE.0;
            let answer = send(request, if little { LITTLE_PATIENCE.1 } else { PATIENCE });
            let failed = answer.result.is_err();
            failures += usize::from(failed);
            if let Ok(seen) = &answer.result {
                met.insert(seen.pod.clone());
            }
            answers.push(answer);
            if failed || met.len() >= pods {
                break;
            }
        }
    }
    answers
}

/// Sends one request and waits for its answer.
fn send(request: &Request, patience: Duration) -> Answer {
    let mut answer = Answer {
        request: request.clone(),
        local: None,
        peer: None,
        took_us: 0,
        result: Err(String::new()),
    };
    let start = Instant::now();
    let result = match request.protocol {
        Protocol::Http => http(&mut answer, patience),
        Protocol::Udp | Protocol::UdpUnconnected => datagram(&mut answer, patience),
    };
    answer.took_us = start.elapsed().as_micros() as u64;
    answer.result = result.map_err(|error| error.to_string());
    answer
}

fn http(answer: &mut Answer, patience: Duration) -> io::Result<Seen> {
    let mut stream = get(answer.request.target, "/", patience)?;
    answer.local = Some(stream.local_addr()?);
    answer.peer = Some(stream.peer_addr()?);
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or_else(|| broken("the answer has no end of headers"))?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(broken(head.lines().next().unwrap_or_default()));
    }
    Ok(serde_json::from_str(body)?)
}

fn get(target: SocketAddr, path: &str, patience: Duration) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&target, patience)?;
    stream.set_read_timeout(Some(patience))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: myapp.example.com\r\nConnection: close\r\n\r\n"
    )?;
    Ok(stream)
}

fn datagram(answer: &mut Answer, patience: Duration) -> io::Result<Seen> {
    let target = answer.request.target;
    let socket = match target {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
    };
    socket.set_read_timeout(Some(patience))?;
    if answer.request.protocol == Protocol::Udp {
        socket.connect(target)?;
        socket.send(b"hello")?;
        answer.peer = Some(socket.peer_addr()?);
    } else {
        socket.send_to(b"hello", target)?;
    }
    answer.local = Some(socket.local_addr()?);
    let mut bytes = [0; 2048];
    let (length, source) = socket.recv_from(&mut bytes)?;
    // Whoever asked a Service must be answered by it, on every kind of socket.
    if source != target {
        return Err(broken(&format!("asked {target}, and {source} answered")));
    }
    answer.peer.get_or_insert(source);
    Ok(serde_json::from_slice(&bytes[..length])?)
}

fn rate(request: &Request, per_second: u32, duration: Duration) -> Outcome {
    let (mut answered, mut failed, mut slowest_us, mut failures) = (0, 0, 0, Vec::new());
    let totals = Mutex::new((&mut answered, &mut failed, &mut slowest_us, &mut failures));
    let interval = Duration::from_secs(1) * SENDERS / per_second.max(1);
    let start = Instant::now();
    thread::scope(|scope| {
        for sender in 0..SENDERS {
            let totals = &totals;
            scope.spawn(move || {
                let mut due = interval / SENDERS * sender;
                while due < duration {
                    thread::sleep(due.saturating_sub(start.elapsed()));
                    let sent = start.elapsed();
                    let answer = send(request, PATIENCE);
                    let Ok(mut totals) = totals.lock() else { return };
                    *totals.2 = answer.took_us.max(*totals.2);
                    match answer.result {
                        Ok(_) => *totals.0 += 1,
                        Err(error) => {
                            *totals.1 += 1;
                            if totals.3.len() < 10 {
                                let local = answer.local.map_or_else(String::new, |local| format!(" from {local}"));
                                totals.3.push(format!("{sent:.1?}{local}: {error}"));
                            }
                        }
                    }
                    due += interval;
                }
            });
        }
    });
    Outcome::Rate {
        answered,
        failures,
        failed,
        slowest_us,
    }
}

fn download(target: SocketAddr, bytes: u64, rate: u64) -> Outcome {
    let start = Instant::now();
    let mut right = 0;
    let result = receive(target, bytes, rate, &mut right);
    let error = result.err().map(|error| error.to_string());
    Outcome::Download {
        bytes: right,
        error,
        took_us: start.elapsed().as_micros() as u64,
    }
}

fn receive(target: SocketAddr, bytes: u64, rate: u64, right: &mut u64) -> io::Result<()> {
    let mut stream = io::BufReader::new(get(target, &format!("/download?bytes={bytes}&rate={rate}"), PATIENCE)?);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let mut chunk = [0; 16 * 1024];
    loop {
        let length = stream.read(&mut chunk)?;
        if length == 0 {
            break;
        }
        for byte in &chunk[..length] {
            if *byte != download_byte(*right) {
                return Err(broken(&format!("byte {right} is wrong")));
            }
            *right += 1;
        }
    }
    if *right == bytes {
        Ok(())
    } else {
        Err(broken(&format!("the answer ended after {right} of {bytes} bytes")))
    }
}

fn broken(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
