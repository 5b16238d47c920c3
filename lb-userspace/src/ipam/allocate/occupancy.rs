//! Who has which address, and who may join whom.
//!
//! Services that share an address must be told apart by protocol and port. With `externalTrafficPolicy: Local` there is
//! more to it: only nodes with an endpoint of the Service may attract its traffic, and an address is attracted as a whole,
//! by one node at a time. So Services that share an address are either all `Cluster`, where every node serves, or all
//! `Local` with the same pods behind them, so that the nodes that serve one serve all.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::claim::{Claim, Standing};
use super::pools::Labels;
use crate::model::ObjectKey;

/// Who has which address.
#[derive(Default)]
pub(crate) struct Occupancy<'a> {
    tenants: HashMap<IpAddr, Tenants<'a>>,
    /// Addresses that stand in a status that is none of the above: of another controller, or about to be cleared. As long as
    /// they stand there nobody else is given them. With the first Service that shows it.
    blocked: HashMap<IpAddr, (ObjectKey, Standing)>,
    /// Addresses of those with a share key.
    shared: HashMap<&'a str, BTreeSet<IpAddr>>,
}

/// The Services that have an address together.
struct Tenants<'a> {
    first: ObjectKey,
    share_key: Option<&'a str>,
    /// All their namespaces, and those in which one of them does not share across namespaces.
    namespaces: BTreeSet<Arc<str>>,
    private: BTreeSet<Arc<str>>,
    ports: HashMap<(&'a str, i32), ObjectKey>,
    /// The selector that they all have, if they are `Local`.
    local: Option<&'a Labels>,
}

/// Why an address is not to be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// Another Service has it, and the two do not share.
    Taken(ObjectKey),
    /// Those who have it share with this one, but for this reason.
    Sharing(String),
}

impl<'a> Occupancy<'a> {
    /// Whether nobody has it.
    pub(crate) fn is_free(&self, address: IpAddr) -> bool {
        !self.tenants.contains_key(&address) && !self.blocked.contains_key(&address)
    }

    /// All addresses that somebody has.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let blocked = self
            .blocked
            .keys()
            .filter(|address| !self.tenants.contains_key(address));
        self.tenants.keys().chain(blocked).copied()
    }

    /// Nobody else is given this address, which stands in the status of that Service.
    pub(crate) fn block(&mut self, address: IpAddr, by: &Claim<'a>) {
        let first = self.blocked.entry(address);
        first.or_insert_with(|| (by.key.clone(), by.standing));
    }

    /// Whether this address of a Service that leaves was given to another as well: to one that stays, or that leaves too
    /// and comes before it.
    pub(crate) fn stays_with_another(&self, address: IpAddr, leaver: &Claim<'a>) -> bool {
        let leaves_too =
            |(first, standing): &(ObjectKey, Standing)| *standing == Standing::Departed && *first != leaver.key;
        self.tenants.contains_key(&address) || self.blocked.get(&address).is_some_and(leaves_too)
    }

    /// Addresses of Services with this key.
    pub(crate) fn shared_by(&self, key: &str) -> impl Iterator<Item = IpAddr> {
        self.shared.get(key).into_iter().flatten().copied()
    }

    /// Whether a Service may be given an address that is new to it.
    pub(crate) fn may_get(&self, address: IpAddr, claim: &Claim<'a>) -> Result<(), Refusal> {
        match self.blocked.get(&address) {
            Some((by, _)) => Err(Refusal::Taken(by.clone())),
            None => self.may_keep(address, claim),
        }
    }

    /// Whether a Service may keep an address that it has.
    pub(crate) fn may_keep(&self, address: IpAddr, claim: &Claim<'a>) -> Result<(), Refusal> {
        match self.tenants.get(&address) {
            Some(tenants) => tenants.admit(claim),
            None => Ok(()),
        }
    }

    /// A Service that may have it has it.
    pub(crate) fn take(&mut self, address: IpAddr, claim: &Claim<'a>) {
        let tenants = self.tenants.entry(address).or_insert_with(|| Tenants {
            first: claim.key.clone(),
            share_key: claim.share_key,
            namespaces: BTreeSet::new(),
            private: BTreeSet::new(),
            ports: HashMap::new(),
            local: claim.local.then_some(claim.selector),
        });
        tenants.namespaces.insert(Arc::clone(&claim.key.namespace));
        if !claim.share_across {
            tenants.private.insert(Arc::clone(&claim.key.namespace));
        }
        let Some(key) = claim.share_key else {
            return;
        };
        let ports = claim.ports.iter().map(|port| (*port, claim.key.clone()));
        tenants.ports.extend(ports);
        self.shared.entry(key).or_default().insert(address);
    }
}

impl<'a> Tenants<'a> {
    fn admit(&self, claim: &Claim<'a>) -> Result<(), Refusal> {
        let only_ours = |all: &BTreeSet<Arc<str>>| all.iter().all(|other| *other == claim.key.namespace);
        if self.share_key.is_none() || self.share_key != claim.share_key {
            return Err(Refusal::Taken(self.first.clone()));
        }
        if !(only_ours(&self.namespaces) || claim.share_across && only_ours(&self.private)) {
            return Err(Refusal::Sharing(format!(
                "Service {} has it, in another namespace, and not both of them share across namespaces",
                self.first
            )));
        }
        if let Some((port, other)) = claim.ports.iter().find_map(|port| Some((port, self.ports.get(port)?))) {
            return Err(Refusal::Sharing(format!(
                "Service {other} has port {}/{} of it",
                port.1, port.0
            )));
        }
        let same = match (self.local, claim.local) {
            (None, false) => true,
            (Some(selector), true) => !selector.is_empty() && selector == claim.selector,
            _ => false,
        };
        if !same {
            return Err(Refusal::Sharing(format!(
                "with externalTrafficPolicy Local all who share have it, and the same selector; Service {} differs",
                self.first
            )));
        }
        Ok(())
    }
}
