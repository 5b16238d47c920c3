//! Which node announces an address: a pure function of what all nodes know alike.
//!
//! Every node ranks all candidates for an address by a hash of address and node (rendezvous hashing), and the first
//! announces it. So addresses spread over the nodes, nobody has to be asked, and a node that comes or goes moves only the
//! addresses that it wins or has won.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Names of nodes.
pub type Name = Arc<str>;

/// The nodes on which Services with `externalTrafficPolicy: Local` have endpoints: of how many of them.
///
/// A node without an endpoint drops what comes to such a Service. Services may share an address, so the best node is one
/// that has an endpoint of each of them, else of most.
pub type Locals = BTreeMap<Name, usize>;

/// The nodes of those that may announce, in their order, which serve an address best. All of them, where no Service
/// demands an endpoint on the node; none, if no candidate has one.
pub fn best<'a>(candidates: &[&'a Name], locals: Option<&Locals>) -> Vec<&'a Name> {
    let Some(locals) = locals else {
        return candidates.to_vec();
    };
    let endpoints = |node: &Name| locals.get(node).copied().unwrap_or(0);
    let most = candidates.iter().map(|node| endpoints(node)).max().unwrap_or(0);
    let is_best = |node: &&&Name| most > 0 && endpoints(node) == most;
    candidates.iter().filter(is_best).copied().collect()
}

/// The node that announces the address, of those that [`best`] names.
pub fn winner<'a>(addr: &IpAddr, nodes: &[&'a Name]) -> Option<&'a Name> {
    // Two nodes have the same hash once in many lives of the universe, and then the names decide.
    nodes.iter().copied().max_by_key(|node| (rank(addr, node), *node))
}

/// The rank of a node for an address. The same on all machines and in all versions: nodes of different versions have to
/// agree while a cluster is upgraded. (FNV-1a, then the finalizer of SplitMix64, which spreads it over all bits.)
fn rank(addr: &IpAddr, node: &str) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
    let of_addr = match addr {
        IpAddr::V4(addr) => addr.octets().iter().fold(OFFSET, step),
        IpAddr::V6(addr) => addr.octets().iter().fold(OFFSET, step),
    };
    let hash = node.as_bytes().iter().fold(of_addr, step);
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn name(number: u16) -> Name {
        format!("node-{number}").into()
    }

    fn address(number: u128) -> IpAddr {
        if number.is_multiple_of(2) {
            Ipv4Addr::from((number >> 1) as u32).into()
        } else {
            Ipv6Addr::from(number).into()
        }
    }

    fn refs(names: &BTreeSet<Name>) -> Vec<&Name> {
        names.iter().collect()
    }

    proptest! {
        #[test]
        fn whoever_decides_in_whatever_order_there_is_one_winner(
            numbers in prop::collection::btree_set(0u16..500, 1..20), addr in any::<u128>(), turn in 0usize..20
        ) {
            let names: BTreeSet<Name> = numbers.into_iter().map(name).collect();
            let addr = address(addr);
            let mut other_order = refs(&names);
            other_order.rotate_left(turn % names.len());
            let one = winner(&addr, &refs(&names)).expect("there are candidates");
            prop_assert_eq!(winner(&addr, &other_order), Some(one));
            prop_assert!(names.contains(one));
        }

        #[test]
        fn a_node_that_goes_moves_its_own_addresses_and_no_others(
            numbers in prop::collection::btree_set(0u16..500, 2..20), addr in any::<u128>(), which in 0usize..20
        ) {
            let names: BTreeSet<Name> = numbers.into_iter().map(name).collect();
            let addr = address(addr);
            let before = winner(&addr, &refs(&names)).expect("there are candidates").clone();
            let gone = refs(&names)[which % names.len()].clone();
            let mut fewer = names.clone();
            fewer.remove(&gone);
            let after = winner(&addr, &refs(&fewer)).expect("there are candidates");
            // And the same the other way round, as it comes back.
            prop_assert!(before == gone || *after == before);
        }

        #[test]
        fn a_node_without_an_endpoint_never_announces_for_policy_local(
            numbers in prop::collection::btree_set(0u16..500, 1..20),
            endpoints in prop::collection::btree_map(0u16..500, 1usize..4, 0..20),
        ) {
            let names: BTreeSet<Name> = numbers.into_iter().map(name).collect();
            let locals: Locals = endpoints.into_iter().map(|(node, of)| (name(node), of)).collect();
            let found = best(&refs(&names), Some(&locals));
            let most = names.iter().filter_map(|node| locals.get(node)).max();
            prop_assert_eq!(found.is_empty(), most.is_none());
            prop_assert!(found.iter().all(|node| locals.get(*node) == most));
        }
    }

    #[test]
    fn addresses_spread_over_the_nodes() {
        let names: BTreeSet<Name> = (0..8).map(name).collect();
        let mut shares: BTreeMap<Name, u32> = BTreeMap::new();
        for host in 0..800_u32 {
            let addr = IpAddr::V4(Ipv4Addr::from(0xc000_0200 + host));
            let node = winner(&addr, &refs(&names)).expect("there are candidates");
            *shares.entry(node.clone()).or_default() += 1;
        }
        // A hundred each, were there no chance; three standard deviations are 28.
        assert!(
            shares.len() == 8 && shares.values().all(|share| (60..=140).contains(share)),
            "{shares:?}"
        );
    }

    #[test]
    fn the_choice_stays_as_it_was_in_other_versions() {
        let names: BTreeSet<Name> = ["node1", "node2", "node3"].map(Into::into).into();
        let winner = |addr: &str| winner(&addr.parse().expect("an address"), &refs(&names)).map(ToString::to_string);
        let chosen = ["192.0.2.10", "192.0.2.11", "192.0.2.12", "2001:db8::10"].map(winner);
        assert_eq!(chosen.map(Option::unwrap_or_default), CHOSEN);
    }

    const CHOSEN: [&str; 4] = ["node3", "node1", "node2", "node2"];
}
