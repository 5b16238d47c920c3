//! What a request is for: its host and path, as the routing table wants them.

use std::str;

use http::header;
use pingora::http::RequestHeader;
use pingora::http::authority::{RawTargetAuthority, raw_target_authority};

/// Host without its port, and path without its query. `None`: an HTTP/1.1 request that names no host, or one whose target
/// is not text.
///
/// That target and Host header do not contradict each other was seen to when the request was read.
pub fn of(request: &RequestHeader) -> Option<(&str, &str)> {
    let raw = request.raw_path();
    let (authority, target) = match raw_target_authority(raw) {
        RawTargetAuthority::Absolute {
            authority,
            path_and_query,
            ..
        } => (Some(authority), path_and_query),
        RawTargetAuthority::None => (None, raw),
        RawTargetAuthority::AmbiguousAuthority => return None,
    };
    let host = authority
        .or_else(|| request.uri.authority().map(|authority| authority.as_str().as_bytes()))
        .or_else(|| request.headers.get(header::HOST).map(http::HeaderValue::as_bytes));
    let host = match host {
        Some(host) => without_port(str::from_utf8(host).ok()?),
        None if request.version == http::Version::HTTP_11 => return None,
        None => "",
    };
    let end = target.iter().position(|byte| matches!(byte, b'?' | b'#'));
    let path = str::from_utf8(&target[..end.unwrap_or(target.len())]).ok()?;
    // `OPTIONS *` is about the host as a whole.
    Some((host, if path.starts_with('/') { path } else { "/" }))
}

/// The host of `host:port`.
pub fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, _)) if name.ends_with(']') || !name.contains(':') => name,
        _ => host,
    }
}

/// The port of `host:port`.
pub fn port(host: &str) -> Option<u16> {
    host.get(without_port(host).len() + 1..)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, host: Option<&str>) -> RequestHeader {
        let mut request = RequestHeader::build("GET", target.as_bytes(), None).expect("a target");
        if let Some(host) = host {
            request.insert_header(header::HOST, host).expect("a host");
        }
        request
    }

    #[test]
    fn hosts_lose_their_port_and_paths_their_query() {
        let cases = [
            ("/", "a.example", ("a.example", "/")),
            ("/x/y?q=/z", "a.example:8080", ("a.example", "/x/y")),
            ("/%2e%2E/", "A.example", ("A.example", "/%2e%2E/")),
            ("/", "[fd00::1]", ("[fd00::1]", "/")),
            ("/", "[fd00::1]:443", ("[fd00::1]", "/")),
            ("http://b.example:80/x?y", "b.example:80", ("b.example", "/x")),
            ("http://b.example?y", "b.example", ("b.example", "/")),
            ("*", "a.example", ("a.example", "/")),
        ];
        for (target, host, expected) in cases {
            assert_eq!(of(&request(target, Some(host))), Some(expected), "{target} at {host}");
        }
    }

    #[test]
    fn only_older_requests_may_name_no_host() {
        let mut request = request("/", None);
        assert_eq!(of(&request), None);
        request.set_version(http::Version::HTTP_10);
        assert_eq!(of(&request), Some(("", "/")));
    }

    #[test]
    fn ports_are_those_behind_the_host() {
        assert_eq!(port("a.example:8443"), Some(8443));
        assert_eq!(port("[fd00::1]:8443"), Some(8443));
        assert_eq!(port("a.example"), None);
        assert_eq!(port("[fd00::1]"), None);
        assert_eq!(port("a.example:http"), None);
    }
}
