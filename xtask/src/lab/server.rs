//! What runs in each pod of the lab, in the place of an application: HTTP over TCP and an echo over UDP, on one
//! port, in both families. Each answer says in JSON what the server saw of the request.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::plan::{POD_PORT, PODS};
use super::wire::{Seen, download_byte, plain};

/// Serves as the pod with this index until killed. The file `ready` appears when connections are taken.
pub fn serve(pod: usize, ready: &Path) -> anyhow::Result<()> {
    let pod = PODS.get(pod).context("no such pod")?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, POD_PORT)).context("listen for HTTP")?;
    for v6 in [false, true] {
        // One socket an address, so that the destination of each datagram is known.
        let socket = UdpSocket::bind((pod.addr(v6), POD_PORT)).context("bind the UDP echo")?;
        thread::spawn(move || echo(&socket, pod.name));
    }
    std::fs::write(ready, "").context("say that the server is ready")?;
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            // The client's end of a broken connection says what happened.
            _ = connection(&stream, pod.name);
        });
    }
    Ok(())
}

fn echo(socket: &UdpSocket, pod: &str) {
    let mut datagram = [0; 2048];
    loop {
        let (Ok((length, source)), Ok(destination)) = (socket.recv_from(&mut datagram), socket.local_addr()) else {
            continue;
        };
        let request = String::from_utf8_lossy(&datagram[..length]).into_owned();
        let seen = Seen {
            pod: pod.to_owned(),
            source,
            destination,
            request,
        };
        if let Ok(answer) = serde_json::to_vec(&seen) {
            _ = socket.send_to(&answer, source);
        }
    }
}

fn connection(mut stream: &TcpStream, pod: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (source, destination) = (plain(stream.peer_addr()?), plain(stream.local_addr()?));
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let request = request.trim_end().to_owned();
        let mut keep = request.ends_with("HTTP/1.1");
        let mut length = 0;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 {
                return Ok(());
            }
            let header = header.trim().to_ascii_lowercase();
            if header == "connection: close" {
                keep = false;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if header.is_empty() {
                break;
            }
        }
        let path = request.split(' ').nth(1).unwrap_or("/");
        if let Some(query) = path.strip_prefix("/download?") {
            let number = |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)?.parse().ok());
            download(
                stream,
                number("bytes=").unwrap_or(0),
                number("rate=").unwrap_or(u64::MAX),
            )?;
        } else if path == "/upload" {
            let right = upload(&mut reader, length)?;
            let body = format!("{right} of {length} bytes are right\n");
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )?;
        } else {
            answer(
                stream,
                &Seen {
                    pod: pod.to_owned(),
                    source,
                    destination,
                    request,
                },
            )?;
        }
        if !keep {
            return Ok(());
        }
    }
}

fn answer(mut stream: &TcpStream, seen: &Seen) -> io::Result<()> {
    let body = serde_json::to_string(seen)? + "\n";
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + &body).as_bytes())
}

/// Reads an upload, and counts the bytes that are what a download would have there.
fn upload(reader: &mut impl Read, length: u64) -> io::Result<u64> {
    let (mut right, mut position) = (0, 0);
    let mut chunk = vec![0; 32 * 1024];
    while position < length {
        let wanted = (length - position).min(chunk.len() as u64) as usize;
        let read = reader.read(&mut chunk[..wanted])?;
        if read == 0 {
            break;
        }
        let expected = (position..).map(download_byte);
        right += chunk[..read]
            .iter()
            .zip(expected)
            .filter(|(came, due)| *came == due)
            .count() as u64;
        position += read as u64;
    }
    Ok(right)
}

fn download(mut stream: &TcpStream, bytes: u64, rate: u64) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {bytes}\r\n\r\n"
    )?;
    let start = Instant::now();
    let mut sent = 0;
    while sent < bytes {
        let length = (bytes - sent).min(32 * 1024);
        let chunk: Vec<u8> = (sent..sent + length).map(download_byte).collect();
        stream.write_all(&chunk)?;
        sent += length;
        let due = Duration::from_secs_f64(sent as f64 / rate as f64);
        thread::sleep(due.saturating_sub(start.elapsed()));
    }
    Ok(())
}
