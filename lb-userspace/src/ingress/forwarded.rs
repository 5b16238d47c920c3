//! What the backend is told of the client: the X-Forwarded headers, X-Real-IP and X-Request-ID.
//!
//! Anybody can send such headers. They are kept and added to only where the peer is a trusted proxy; otherwise they are
//! replaced, so that a backend may believe what it reads.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::str;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderValue, header};
use ipnet::IpNet;
use pingora::Result;
use pingora::http::RequestHeader;

use super::target;
use super::wire::Connection;

const FORWARDED: &str = "forwarded";
const FOR: &str = "x-forwarded-for";
const HOST: &str = "x-forwarded-host";
const PORT: &str = "x-forwarded-port";
const PROTO: &str = "x-forwarded-proto";
const REQUEST_ID: &str = "x-request-id";

/// Ids that clients give are kept up to this many bytes.
const LONGEST_ID: usize = 128;

/// Makes ids of requests.
#[derive(Debug, Default)]
pub struct Ids {
    /// Keys that nobody else knows.
    keys: [RandomState; 2],
    made: AtomicU64,
}

impl Ids {
    /// The id that a request brings, else a new one: 32 hexadecimal digits, unique and not to be guessed.
    pub fn of(&self, request: &RequestHeader) -> HeaderValue {
        if let Some(id) = request.headers.get(REQUEST_ID)
            && (1..=LONGEST_ID).contains(&id.len())
            && id.as_bytes().iter().all(u8::is_ascii_graphic)
        {
            return id.clone();
        }
        let made = self.made.fetch_add(1, Ordering::Relaxed);
        let mut text = [0; 32];
        for (digits, keys) in text.chunks_exact_mut(16).zip(&self.keys) {
            let mut rest = keys.hash_one(made);
            for digit in digits {
                *digit = b"0123456789abcdef"[(rest & 15) as usize];
                rest >>= 4;
            }
        }
        HeaderValue::from_bytes(&text).expect("hexadecimal digits are visible ASCII")
    }
}

/// Whether what this peer says of other clients is believed.
fn trusts(trusted: &[IpNet], peer: IpAddr) -> bool {
    trusted.iter().any(|range| range.contains(&peer))
}

/// Writes the headers.
///
/// # Errors
/// If the request's host is not the value of a header.
pub fn write(request: &mut RequestHeader, connection: &Connection, trusted: &[IpNet], id: &HeaderValue) -> Result<()> {
    let believed = trusts(trusted, connection.client.ip());
    let address = &connection.address;
    if believed && let Some(before) = joined(&request.headers, FOR) {
        let real =
            first_untrusted(&before, trusted).map_or_else(|| Ok(address.clone()), |ip| value(&ip.to_string()))?;
        request.insert_header("X-Real-IP", real)?;
        let after = [before.as_bytes(), b", ", address.as_bytes()].concat();
        request.insert_header("X-Forwarded-For", bytes(&after)?)?;
    } else {
        request.insert_header("X-Real-IP", address.clone())?;
        request.insert_header("X-Forwarded-For", address.clone())?;
    }
    if !believed {
        request.remove_header(FORWARDED);
    }
    let kept = |name: &str| believed && request.headers.contains_key(name);
    let (keep_proto, keep_host, keep_port) = (kept(PROTO), kept(HOST), kept(PORT));
    if !keep_proto {
        let scheme = HeaderValue::from_static(if connection.tls { "https" } else { "http" });
        request.insert_header("X-Forwarded-Proto", scheme)?;
    }
    let host = match (request.headers.get(header::HOST), request.uri.authority()) {
        (Some(host), _) => Some(host.clone()),
        (None, Some(authority)) => Some(value(authority.as_str())?),
        (None, None) => None,
    };
    if !keep_port {
        let port = match host.as_ref().and_then(|host| host.to_str().ok()).and_then(target::port) {
            Some(port) => HeaderValue::from(port),
            None => HeaderValue::from_static(if connection.tls { "443" } else { "80" }),
        };
        request.insert_header("X-Forwarded-Port", port)?;
    }
    if !keep_host {
        match host {
            Some(host) => request.insert_header("X-Forwarded-Host", host)?,
            None => drop(request.remove_header(HOST)),
        }
    }
    request.insert_header("X-Request-ID", id.clone())
}

/// Where the request comes from, by all that is believed; `None`: from the peer itself.
pub fn client(request: &RequestHeader, connection: Option<&Connection>, trusted: &[IpNet]) -> Option<IpAddr> {
    if trusted.is_empty() || !trusts(trusted, connection?.client.ip()) {
        return None;
    }
    first_untrusted(&joined(&request.headers, FOR)?, trusted)
}

/// HTTP/2 clients may send a cookie in pieces; HTTP/1.1 has one header for it (RFC 9113, 8.2.3).
///
/// # Errors
/// Does not fail: pieces of cookies make a cookie.
pub fn join_cookies(request: &mut RequestHeader) -> Result<()> {
    let mut pieces = request.headers.get_all(header::COOKIE).iter();
    if let (Some(first), Some(second)) = (pieces.next(), pieces.next()) {
        let mut cookie = first.as_bytes().to_vec();
        for piece in std::iter::once(second).chain(pieces) {
            cookie.extend_from_slice(b"; ");
            cookie.extend_from_slice(piece.as_bytes());
        }
        request.insert_header(header::COOKIE, bytes(&cookie)?)?;
    }
    Ok(())
}

/// All values of a header as one list.
fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let mut all = String::new();
    for value in headers.get_all(name) {
        let text = value.to_str().ok()?;
        if !all.is_empty() {
            all.push_str(", ");
        }
        all.push_str(text);
    }
    (!all.is_empty()).then_some(all)
}

/// The last address of the list that is not a trusted proxy's: what stands before it, its sender may have made up. If all
/// are, the first one.
fn first_untrusted(list: &str, trusted: &[IpNet]) -> Option<IpAddr> {
    let mut seen = None;
    for text in list.rsplit(',') {
        let Ok(address) = text.trim().parse() else { break };
        seen = Some(address);
        if !trusts(trusted, address) {
            break;
        }
    }
    seen
}

fn value(text: &str) -> Result<HeaderValue> {
    bytes(text.as_bytes())
}

fn bytes(value: &[u8]) -> Result<HeaderValue> {
    use pingora::{ErrorType, OrErr as _};
    HeaderValue::from_bytes(value).or_err(ErrorType::InvalidHTTPHeader, "not the value of a header")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(client: &str, tls: bool) -> Connection {
        Connection::new(client.parse().expect("an address"), tls)
    }

    fn written(headers: &[(&'static str, &str)], connection: &Connection, trusted: &[&str]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).expect("a target");
        for (name, value) in headers {
            request.append_header(*name, *value).expect("a header");
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|range| range.parse().expect("a range")).collect();
        write(&mut request, connection, &trusted, &HeaderValue::from_static("id")).expect("it is valid");
        request
    }

    fn get<'a>(request: &'a RequestHeader, name: &str) -> Vec<&'a str> {
        let values = request.headers.get_all(name).iter();
        values.map(|value| value.to_str().expect("ASCII")).collect()
    }

    const SPOOFED: [(&str, &str); 8] = [
        ("Host", "a.example:8443"),
        ("X-Forwarded-For", "198.51.100.1, 192.0.2.9"),
        ("X-Forwarded-For", "203.0.113.5"),
        ("X-Forwarded-Proto", "gopher"),
        ("X-Forwarded-Host", "b.example"),
        ("X-Forwarded-Port", "1"),
        ("X-Real-IP", "198.51.100.1"),
        ("Forwarded", "for=198.51.100.1"),
    ];

    #[test]
    fn what_an_untrusted_client_says_of_itself_is_replaced() {
        for (client, address) in [("192.0.2.1:5", "192.0.2.1"), ("[2001:db8::1]:5", "2001:db8::1")] {
            let request = written(&SPOOFED, &connection(client, true), &["203.0.113.0/24"]);
            assert_eq!(get(&request, FOR), [address]);
            assert_eq!(get(&request, "x-real-ip"), [address]);
            assert_eq!(get(&request, PROTO), ["https"]);
            assert_eq!(get(&request, HOST), ["a.example:8443"]);
            assert_eq!(get(&request, PORT), ["8443"]);
            assert_eq!(get(&request, REQUEST_ID), ["id"]);
            assert!(get(&request, FORWARDED).is_empty());
        }
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_added_to() {
        let trusted = ["203.0.113.0/24", "2001:db8::/32"];
        let request = written(&SPOOFED, &connection("[2001:db8::1]:5", false), &trusted);
        assert_eq!(
            get(&request, FOR),
            ["198.51.100.1, 192.0.2.9, 203.0.113.5, 2001:db8::1"]
        );
        assert_eq!(get(&request, "x-real-ip"), ["192.0.2.9"]);
        assert_eq!(get(&request, PROTO), ["gopher"]);
        assert_eq!(get(&request, HOST), ["b.example"]);
        assert_eq!(get(&request, PORT), ["1"]);
        assert_eq!(get(&request, FORWARDED), ["for=198.51.100.1"]);
    }

    #[test]
    fn the_port_is_the_schemes_where_the_host_names_none() {
        for (tls, port, scheme) in [(true, "443", "https"), (false, "80", "http")] {
            let request = written(&[("Host", "a.example")], &connection("192.0.2.1:5", tls), &[]);
            assert_eq!(get(&request, PORT), [port]);
            assert_eq!(get(&request, PROTO), [scheme]);
        }
    }

    #[test]
    fn ids_are_kept_where_they_are_fit_and_made_otherwise() {
        let ids = Ids::default();
        let mut request = RequestHeader::build("GET", b"/", None).expect("a target");
        let made: Vec<_> = (0..2).map(|_| ids.of(&request)).collect();
        assert_eq!(made[0].len(), 32);
        assert_ne!(made[0], made[1]);
        let long = "x".repeat(129);
        for (given, kept) in [("abc-123", true), ("two words", false), (&*long, false)] {
            request.insert_header("X-Request-ID", given).expect("a header");
            assert_eq!(ids.of(&request) == given, kept, "{given}");
        }
    }

    #[test]
    fn pieces_of_a_cookie_become_one_header() {
        let mut request = RequestHeader::build("GET", b"/", None).expect("a target");
        for piece in ["a=1", "b=2", "c=3"] {
            request.append_header("Cookie", piece).expect("a header");
        }
        join_cookies(&mut request).expect("pieces of a cookie");
        assert_eq!(get(&request, "cookie"), ["a=1; b=2; c=3"]);
    }
}
