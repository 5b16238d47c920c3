//! Who owns an address and port that several Services claim.
//!
//! ClusterIPs come before load balancer addresses and external IPs, these before NodePorts; among equals the oldest
//! Service, then the one whose name comes first. So no external IP takes traffic from a ClusterIP
//! (CVE-2020-8554), and the outcome is the same on every node and after every restart.

use lb_common::abi::Frontend;

use crate::desired::FrontendKind;
use crate::model::ObjectKey;

/// One Service's claim.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) kind: FrontendKind,
    pub(super) created_s: i64,
    pub(super) service: ObjectKey,
    pub(super) frontend: Frontend,
}

/// All claims to one address and port.
#[derive(Debug, Default)]
pub(super) struct Claims(Vec<Claim>);

impl Claims {
    pub(super) fn put(&mut self, claim: Claim) {
        self.withdraw(&claim.service);
        self.0.push(claim);
    }

    pub(super) fn withdraw(&mut self, service: &ObjectKey) {
        self.0.retain(|claim| claim.service != *service);
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn owner(&self) -> Option<&Claim> {
        let rank = |claim: &&Claim| (claim.kind.rank(), claim.created_s, claim.service.clone());
        match &*self.0 {
            [only] => Some(only),
            all => all.iter().min_by_key(rank),
        }
    }

    /// The claims that lose.
    pub(super) fn losers(&self) -> impl Iterator<Item = &Claim> {
        let owner = self.owner().map(|claim| &claim.service);
        self.0.iter().filter(move |claim| Some(&claim.service) != owner)
    }
}
