//! A ServiceCIDR.

use std::sync::Arc;

use ipnet::IpNet;

use super::Problem;

/// Ranges that ClusterIPs are taken from (KEP-1880).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceCidr {
    /// Its name.
    pub name: Arc<str>,
    /// The ranges, at most one of each family.
    pub ranges: Vec<IpNet>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// The ranges of all of them together.
pub fn ranges_of<'a>(objects: impl IntoIterator<Item = &'a ServiceCidr>) -> Vec<IpNet> {
    let mut ranges: Vec<IpNet> = objects
        .into_iter()
        .flat_map(|object| object.ranges.iter().copied())
        .collect();
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}
