//! Patterns of device names: `*` stands for any characters, `?` for one.

use std::convert::Infallible;
use std::str::FromStr;

/// A pattern of device names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Glob(String);

impl FromStr for Glob {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl Glob {
    /// Whether the whole name matches.
    pub fn matches(&self, name: &str) -> bool {
        matches(self.0.as_bytes(), name.as_bytes())
    }
}

fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|skip| matches(rest, &name[skip..])),
        Some((c, rest)) => name
            .split_first()
            .is_some_and(|(n, left)| (*c == b'?' || c == n) && matches(rest, left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters_and_a_question_mark_for_one() {
        let hits = |pattern: &str, name| Glob(pattern.into()).matches(name);
        assert!(hits("eth0", "eth0") && hits("eth*", "eth0.100") && hits("*", "") && hits("e?h*0", "eth10"));
        assert!(!hits("eth0", "eth01") && !hits("eth?", "eth") && !hits("veth*", "eth0"));
    }
}
