//! Host names, as the API allows them and as requests say them.

use std::borrow::Cow;
use std::net::IpAddr;

/// The API's limits, in bytes (RFC 1123, RFC 1035).
const NAME_LIMIT: usize = 253;
const LABEL_LIMIT: usize = 63;

/// Whether it is a DNS name in the form that the API wants of hosts: labels of small letters, digits and hyphens.
pub(super) fn is_dns_name(name: &str) -> bool {
    name.len() <= NAME_LIMIT && name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = label.as_bytes();
    bytes.len() <= LABEL_LIMIT
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

/// Why the host of a rule or of a certificate is none that the API allows, in words.
pub(super) fn fault(host: &str) -> Option<&'static str> {
    let name = host.strip_prefix("*.").unwrap_or(host);
    if host.parse::<IpAddr>().is_ok() || host.starts_with('[') {
        Some("is an address, and only names are allowed")
    } else if name.contains('*') {
        Some("has a `*` that is not its whole first label")
    } else if !is_dns_name(name) {
        Some("is not a DNS name of small letters, digits, hyphens and dots")
    } else {
        None
    }
}

/// The name as hosts are compared: in small letters, without the dot of the root.
pub(crate) fn lower(name: &str) -> Cow<'_, str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

/// What stands behind the first label: `*.foo.com` is for all names with `foo.com` there.
pub(crate) fn label_behind(name: &str) -> Option<&str> {
    name.split_once('.')
        .filter(|(label, rest)| !label.is_empty() && !rest.is_empty())
        .map(|(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_and_a_wildcard_is_their_whole_first_label() {
        for good in [
            "foo.com",
            "localhost",
            "*.foo.com",
            "a-1.b",
            "xn--bcher-kva.example",
            "1.2",
        ] {
            assert_eq!(fault(good), None, "{good}");
        }
        let long = format!("{}.com", "a".repeat(64));
        for bad in [
            "",
            "*",
            "*.",
            "*.*.foo.com",
            "f*.com",
            "foo.*",
            "Foo.com",
            "foo_bar.com",
            "foo..com",
            ".com",
            "-a.com",
            "a-.com",
            "10.0.0.1",
            "::1",
            "[::1]",
            "foo.com:80",
            "http://foo.com",
            &long,
        ] {
            assert!(fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn names_are_compared_without_case_and_without_the_dot_of_the_root() {
        assert_eq!(lower("Foo.COM."), "foo.com");
        assert!(matches!(lower("foo.com"), Cow::Borrowed("foo.com")));
        assert_eq!(label_behind("a.foo.com"), Some("foo.com"));
        assert_eq!(label_behind("com"), None);
        assert_eq!(label_behind(".foo.com"), None);
    }
}
