//! The PROXY protocol, versions 1 and 2: what a load balancer in front says of the client, before the first byte of the
//! connection proper (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).
//!
//! Nothing beyond the header is read. Whoever may send one has to: the protocol forbids guessing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::{self, FromStr};

use thiserror::Error;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// How version 2 begins.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 1, with its end of line.
const LONGEST_V1: usize = 107;
/// The most bytes of addresses and additions that are read in version 2.
const LONGEST_V2: usize = 4096;

/// Why a header was not understood.
#[derive(Debug, Error)]
pub enum Error {
    /// The connection failed or ended.
    #[error("the PROXY header cannot be read")]
    Read(#[from] io::Error),
    /// It is something else.
    #[error("the connection does not begin with a PROXY header")]
    Missing,
    /// It is one, but not by the rules.
    #[error("the PROXY header is malformed: {0}")]
    Malformed(&'static str),
}

/// Reads the header. `None`: the load balancer speaks for itself (a health check), or does not know the client.
///
/// # Errors
/// If there is none, or it is malformed.
pub async fn read(stream: &mut TcpStream) -> Result<Option<SocketAddr>, Error> {
    let mut head = [0; SIGNATURE.len()];
    stream.read_exact(&mut head).await?;
    if head == SIGNATURE {
        version_2(stream).await
    } else if head.starts_with(b"PROXY ") {
        version_1(stream, &head).await
    } else {
        Err(Error::Missing)
    }
}

async fn version_1(stream: &mut TcpStream, head: &[u8]) -> Result<Option<SocketAddr>, Error> {
    let mut line = [0; LONGEST_V1];
    line[..head.len()].copy_from_slice(head);
    let mut length = head.len();
    loop {
        let seen = stream.peek(&mut line[length..]).await?;
        if seen == 0 {
            return Err(Error::Malformed("it does not end"));
        }
        let end = line[length..length + seen].iter().position(|&byte| byte == b'\n');
        let taken = end.map_or(seen, |at| at + 1);
        stream.read_exact(&mut line[length..length + taken]).await?;
        length += taken;
        if end.is_some() {
            return parse_1(&line[..length]);
        }
        if length == LONGEST_V1 {
            return Err(Error::Malformed("it is longer than 107 bytes"));
        }
    }
}

fn parse_1(line: &[u8]) -> Result<Option<SocketAddr>, Error> {
    let line = line
        .strip_suffix(b"\r\n")
        .ok_or(Error::Malformed("its line does not end with CR LF"))?;
    let line = str::from_utf8(line).map_err(|_| Error::Malformed("it is not ASCII"))?;
    let mut words = line.split(' ').skip(1);
    let family = words.next();
    if family == Some("UNKNOWN") {
        return Ok(None);
    }
    let (source, _destination, port) = (words.next(), words.next(), words.next());
    let (Some(source), Some(port), Some(_), None) = (source, port, words.next(), words.next()) else {
        return Err(Error::Malformed("it does not have two addresses and two ports"));
    };
    let address = match family {
        Some("TCP4") => Ipv4Addr::from_str(source).map(IpAddr::V4),
        Some("TCP6") => Ipv6Addr::from_str(source).map(IpAddr::V6),
        _ => return Err(Error::Malformed("it is neither TCP4 nor TCP6 nor UNKNOWN")),
    };
    let address = address.map_err(|_| Error::Malformed("the client's address is none of its family"))?;
    let port = port
        .parse()
        .map_err(|_| Error::Malformed("the client's port is none"))?;
    Ok(Some(SocketAddr::new(address, port)))
}

async fn version_2(stream: &mut TcpStream) -> Result<Option<SocketAddr>, Error> {
    let mut fixed = [0; 4];
    stream.read_exact(&mut fixed).await?;
    let [version_command, family, high, low] = fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST_V2 {
        return Err(Error::Malformed("it is longer than 4096 bytes"));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    match version_command {
        // LOCAL
        0x20 => return Ok(None),
        // PROXY
        0x21 => {}
        _ => return Err(Error::Malformed("its version or command is unknown")),
    }
    match family {
        // TCP over IPv4: two addresses, two ports.
        0x11 => {
            let [a, b, c, d, _, _, _, _, high, low, ..] = rest[..] else {
                return Err(Error::Malformed("it is too short for IPv4"));
            };
            let port = u16::from_be_bytes([high, low]);
            Ok(Some(SocketAddr::from((Ipv4Addr::new(a, b, c, d), port))))
        }
        // TCP over IPv6: the same.
        0x21 => {
            let too_short = Error::Malformed("it is too short for IPv6");
            let (Some(address), Some(port)) = (rest.first_chunk::<16>(), rest.get(32..34)) else {
                return Err(too_short);
            };
            let port = u16::from_be_bytes([port[0], port[1]]);
            Ok(Some(SocketAddr::from((Ipv6Addr::from(*address), port))))
        }
        // Other families and protocols are to be taken like an unknown client.
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    /// What is read of a connection that begins so, and what is left of it.
    async fn said(bytes: &[u8]) -> (Result<Option<SocketAddr>, Error>, Vec<u8>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port is free");
        let at = listener.local_addr().expect("it is bound");
        let mut client = TcpStream::connect(at).await.expect("it listens");
        client.write_all(bytes).await.expect("it is open");
        client.shutdown().await.expect("it is open");
        let (mut stream, _) = listener.accept().await.expect("a client waits");
        let client = read(&mut stream).await;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("it ends");
        (client, rest)
    }

    fn version_2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).expect("short").to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body, b"GET /"].concat()
    }

    #[tokio::test]
    async fn both_versions_name_clients_of_both_families_and_leave_the_rest() {
        let v4: SocketAddr = "192.0.2.1:4711".parse().expect("an address");
        let v6: SocketAddr = "[2001:db8::1]:4711".parse().expect("an address");
        let body4 = [&[192, 0, 2, 1, 203, 0, 113, 1][..], &4711_u16.to_be_bytes(), &[1, 187]].concat();
        let first: Ipv6Addr = "2001:db8::1".parse().expect("an address");
        let second: Ipv6Addr = "2001:db8::2".parse().expect("an address");
        let body6 = [
            &first.octets()[..],
            &second.octets(),
            &4711_u16.to_be_bytes(),
            &[1, 187],
            // An addition: type, length, value.
            &[4, 0, 2, 0, 0],
        ]
        .concat();
        let cases = [
            (b"PROXY TCP4 192.0.2.1 203.0.113.1 4711 443\r\nGET /".to_vec(), Some(v4)),
            (
                b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\nGET /".to_vec(),
                Some(v6),
            ),
            (b"PROXY UNKNOWN\r\nGET /".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\nGET /".to_vec(), None),
            (version_2(0x21, 0x11, &body4), Some(v4)),
            (version_2(0x21, 0x21, &body6), Some(v6)),
            (version_2(0x20, 0x00, &[]), None),
            (version_2(0x21, 0x31, &[0; 216]), None),
        ];
        for (bytes, client) in cases {
            let (read, rest) = said(&bytes).await;
            assert_eq!(read.expect("it is by the rules"), client);
            assert_eq!(rest, b"GET /");
        }
    }

    #[tokio::test]
    async fn what_is_not_by_the_rules_is_refused() {
        let cases = [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 203.0.113.1 4711\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 203.0.113.1 99999 443\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.1 203.0.113.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 203.0.113.1 1 2\n".to_vec(),
            [&b"PROXY TCP4 "[..], &[b'1'; 200], b"\r\n"].concat(),
            b"PROXY TCP4 192.0.2.1".to_vec(),
            version_2(0x31, 0x11, &[0; 12]),
            version_2(0x21, 0x11, &[0; 4]),
            version_2(0x21, 0x21, &[0; 12]),
            version_2(0x21, 0x21, &[0; 5000]),
        ];
        for bytes in cases {
            let (read, _) = said(&bytes).await;
            assert!(read.is_err(), "{} was understood", bytes.escape_ascii());
        }
    }
}
