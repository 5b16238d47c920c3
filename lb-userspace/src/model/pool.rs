//! An AddressPool, as far as it decides about announcement.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::Problem;

/// A pool of addresses, and who announces them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    /// Its name.
    pub name: Arc<str>,
    /// Its addresses: the first and the last of each block, of one family.
    pub ranges: Vec<(IpAddr, IpAddr)>,
    /// Nodes answer ARP and NDP for its addresses; else nobody does.
    pub is_announced: bool,
    /// The nodes that may.
    pub nodes: Selector,
    /// Patterns of the names of devices on which they do; none: uplinks.
    pub interfaces: Vec<String>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

impl Pool {
    /// Whether the address is one of the pool's.
    pub fn contains(&self, addr: &IpAddr) -> bool {
        let within =
            |(first, last): &(IpAddr, IpAddr)| first.is_ipv4() == addr.is_ipv4() && *first <= *addr && *addr <= *last;
        self.ranges.iter().any(within)
    }
}

/// A selector of objects by their labels. All of its requirements have to be met.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selector {
    /// What is required.
    pub requirements: Vec<Requirement>,
}

/// What a label has to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Requirement {
    /// It has one of these values.
    In(String, Vec<String>),
    /// It has none of these values, or is not there.
    NotIn(String, Vec<String>),
    /// It is there.
    Exists(String),
    /// It is not there.
    DoesNotExist(String),
    /// Something that cannot be read: nothing meets it.
    Unreadable,
}

impl Selector {
    /// Whether an object with these labels is selected.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
            Requirement::Unreadable => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_wants_all_of_its_requirements() {
        let labels = [("role", "edge"), ("zone", "a")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let labels = BTreeMap::from(labels);
        let selects = |requirements: &[Requirement]| {
            let requirements = requirements.to_vec();
            Selector { requirements }.selects(&labels)
        };
        let values = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let edge = Requirement::In("role".into(), values(&["core", "edge"]));
        assert!(selects(&[]) && selects(&[edge.clone(), Requirement::Exists("zone".into())]));
        assert!(!selects(&[edge.clone(), Requirement::DoesNotExist("zone".into())]));
        assert!(!selects(&[Requirement::NotIn("zone".into(), values(&["a"]))]));
        assert!(selects(&[Requirement::NotIn("rack".into(), values(&["a"]))]));
        assert!(!selects(&[edge, Requirement::Unreadable]));
    }
}
