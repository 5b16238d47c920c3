//! Paths as they are compared.
//!
//! A path can be written in many ways, and whoever reads it behind the proxy may take `/x/../admin`, `//admin` and
//! `/%61dmin` for `/admin`. If they were compared as they are sent, they would go where `/x` or `/` goes, past whatever
//! is in front of `/admin`. So rules and requests are compared in one canonical form, while the request goes on as it was
//! sent:
//!
//! - `%XX` is what it stands for (RFC 3986, section 6.2.2.2), but for `%2F`, which is part of an element and no separator
//! - empty elements are left out (`//` is `/`), but for the one behind a last `/`
//! - `.` and `..` are resolved (RFC 3986, section 5.2.4), also with parameters (`..;x`), as Java's servers read them
//!
//! `+` is a plus, and letters keep their case.

use std::borrow::Cow;

/// The canonical form of a path.
pub(super) fn canonical(path: &str) -> Cow<'_, [u8]> {
    let bytes = path.as_bytes();
    if is_canonical(bytes) {
        return Cow::Borrowed(bytes);
    }
    let decoded = decode(bytes);
    Cow::Owned(resolve(&decoded))
}

/// Whether nothing in it can have another form.
fn is_canonical(path: &[u8]) -> bool {
    let plain = |pair: &[u8]| !(pair[0] == b'/' && matches!(pair[1], b'/' | b'.'));
    !path.contains(&b'%') && path.windows(2).all(plain)
}

fn decode(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, behind)) = rest.split_first() {
        let escaped = (byte == b'%').then(|| behind.first_chunk().and_then(hex)).flatten();
        match escaped {
            Some(b'/') => {
                decoded.extend_from_slice(b"%2F");
                rest = &behind[2..];
            }
            Some(byte) => {
                decoded.push(byte);
                rest = &behind[2..];
            }
            None => {
                decoded.push(byte);
                rest = behind;
            }
        }
    }
    decoded
}

fn hex(digits: &[u8; 2]) -> Option<u8> {
    let value = |digit: u8| char::from(digit).to_digit(16);
    let byte = value(digits[0])? << 4 | value(digits[1])?;
    u8::try_from(byte).ok()
}

/// Resolves dot segments and leaves out empty elements.
fn resolve(path: &[u8]) -> Vec<u8> {
    let Some(elements) = path.strip_prefix(b"/") else {
        return path.to_vec();
    };
    let mut resolved: Vec<u8> = Vec::with_capacity(path.len());
    // Whether the path ends with a `/`: behind a dot segment there is one, too.
    let mut open = true;
    for element in elements.split(|byte| *byte == b'/') {
        let without_parameters = element.split(|byte| *byte == b';').next().unwrap_or_default();
        open = true;
        match without_parameters {
            b"." => {}
            b".." => {
                let parent = resolved.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                resolved.truncate(parent);
            }
            _ if element.is_empty() => {}
            _ => {
                resolved.push(b'/');
                resolved.extend_from_slice(element);
                open = false;
            }
        }
    }
    if open {
        resolved.push(b'/');
    }
    resolved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_one_form_in_which_they_are_compared() {
        let cases = [
            ("/", "/"),
            ("/foo", "/foo"),
            ("/foo/", "/foo/"),
            ("/foo/.hidden", "/foo/.hidden"),
            ("/...", "/..."),
            ("/x/../admin", "/admin"),
            ("/x/..", "/"),
            ("/x/y/..", "/x/"),
            ("/x/.", "/x/"),
            ("/./admin", "/admin"),
            ("/../../admin", "/admin"),
            ("/x/%2e%2E/admin", "/admin"),
            ("/x/.%2e/admin", "/admin"),
            ("/x/..;a=b/admin", "/admin"),
            ("/x/.;/admin", "/x/admin"),
            ("//admin", "/admin"),
            ("/x//admin//", "/x/admin/"),
            ("/x//../admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%252Fb", "/a%2Fb"),
            ("/..%2Fadmin", "/..%2Fadmin"),
            ("/100%", "/100%"),
            ("/100%2", "/100%2"),
            ("/%zz", "/%zz"),
            ("/a+b;c=d", "/a+b;c=d"),
            ("/%EA%B0%80", "/가"),
            ("*", "*"),
            ("", ""),
        ];
        for (sent, wanted) in cases {
            assert_eq!(String::from_utf8_lossy(&canonical(sent)), wanted, "{sent}");
        }
    }

    #[test]
    fn what_is_canonical_is_compared_without_a_copy() {
        assert!(matches!(canonical("/api/v1/pets?"), Cow::Borrowed(_)));
    }
}
