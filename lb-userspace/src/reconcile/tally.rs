//! What is told of all Services together: who has a health check port, and where policy Local finds nobody.
//!
//! Kept up to date Service by Service, so that telling it costs nothing. Services that have neither, which are most,
//! take no room.

use std::collections::{BTreeMap, HashMap};

use crate::desired::{Desired, DesiredPort, FrontendKind, HealthCheck, Set};
use crate::model::ObjectKey;

/// How many Service ports have no endpoint on this node, though the policy is Local and there are some elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NoLocal {
    /// By internalTrafficPolicy.
    pub internal: usize,
    /// By externalTrafficPolicy.
    pub external: usize,
}

/// What is told of all Services together.
#[derive(Debug, Default)]
pub(super) struct Tally {
    health: BTreeMap<ObjectKey, HealthCheck>,
    no_local: HashMap<ObjectKey, [NoLocal; 2]>,
    no_local_sum: [NoLocal; 2],
}

impl Tally {
    /// Takes what is to be done for a Service; `None`: it is gone.
    pub(super) fn service(&mut self, key: &ObjectKey, desired: Option<&Desired>) {
        match desired.and_then(|desired| desired.health) {
            Some(health) => {
                self.health.insert(key.clone(), health);
            }
            None => {
                self.health.remove(key);
            }
        }
        let mut new = [NoLocal::default(); 2];
        for port in desired.iter().flat_map(|desired| &desired.ports) {
            let (internal, external) = lacks(port);
            let count = &mut new[port.family as usize];
            count.internal += usize::from(internal);
            count.external += usize::from(external);
        }
        let old = if new == [NoLocal::default(); 2] {
            self.no_local.remove(key)
        } else {
            self.no_local.insert(key.clone(), new)
        };
        for (sum, (new, old)) in self
            .no_local_sum
            .iter_mut()
            .zip(new.iter().zip(old.unwrap_or_default()))
        {
            sum.internal = sum.internal + new.internal - old.internal;
            sum.external = sum.external + new.external - old.external;
        }
    }

    /// The Services with a health check port.
    pub(super) const fn health(&self) -> &BTreeMap<ObjectKey, HealthCheck> {
        &self.health
    }

    /// By family.
    pub(super) const fn no_local(&self) -> [NoLocal; 2] {
        self.no_local_sum
    }
}

/// Whether policy Local lets the port's ClusterIP drop packets, and its other frontends.
fn lacks(port: &DesiredPort) -> (bool, bool) {
    let lacking = port.endpoints.local.is_empty() && !port.endpoints.cluster.is_empty();
    let any = |cluster_ip: bool| {
        let mut frontends = port.frontends.iter();
        lacking && frontends.any(|f| (f.kind == FrontendKind::ClusterIp) == cluster_ip && f.external == Set::Local)
    };
    (any(true), any(false))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::desired::{DesiredBackend, DesiredFrontend, Endpoints};
    use crate::model::{IpFamily, Protocol};

    fn frontend(kind: FrontendKind, set: Set) -> DesiredFrontend {
        DesiredFrontend {
            addr: IpAddr::from([10, 96, 0, 1]),
            port: 80,
            kind,
            flags: 0,
            external: set,
            internal: Set::Cluster,
        }
    }

    fn port(endpoints: Endpoints) -> DesiredPort {
        DesiredPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            family: IpFamily::V6,
            affinity_timeout_s: 0,
            source_ranges: None,
            endpoints,
            frontends: vec![
                frontend(FrontendKind::ClusterIp, Set::Cluster),
                frontend(FrontendKind::NodePort, Set::Local),
                frontend(FrontendKind::LoadBalancer, Set::Local),
            ],
        }
    }

    fn elsewhere() -> Endpoints {
        Endpoints {
            cluster: vec![DesiredBackend {
                addr: IpAddr::from([10, 244, 1, 1]),
                port: 8080,
                node: None,
                local: false,
                node_address: false,
            }],
            ..Endpoints::default()
        }
    }

    #[test]
    fn a_port_without_local_endpoints_counts_once_and_only_while_it_is_so() {
        let key = ObjectKey::new("shop", "web");
        let external = NoLocal {
            internal: 0,
            external: 1,
        };
        let mut tally = Tally::default();
        let of = |endpoints| Desired {
            ports: vec![port(endpoints)],
            ..Desired::default()
        };
        for _ in 0..2 {
            tally.service(&key, Some(&of(elsewhere())));
            assert_eq!(tally.no_local(), [NoLocal::default(), external]);
        }
        // Without any endpoint connections are rejected, which is something else.
        tally.service(&key, Some(&of(Endpoints::default())));
        assert_eq!(tally.no_local(), <[NoLocal; 2]>::default());
        tally.service(&key, Some(&of(elsewhere())));
        tally.service(&key, None);
        assert_eq!(tally.no_local(), <[NoLocal; 2]>::default());
    }

    #[test]
    fn a_health_check_lives_as_long_as_its_service_asks_for_it() {
        let key = ObjectKey::new("shop", "web");
        let health = HealthCheck {
            node_port: 32_000,
            local_endpoints: [Some(1), None],
        };
        let mut tally = Tally::default();
        let desired = Desired {
            health: Some(health),
            ..Desired::default()
        };
        tally.service(&key, Some(&desired));
        assert_eq!(tally.health().get(&key), Some(&health));
        tally.service(&key, Some(&Desired::default()));
        assert_eq!(tally.health().len(), 0);
    }
}
