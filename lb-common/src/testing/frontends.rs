//! Frontends, as the agent would write them.

use super::scene::WEB;
use crate::abi::{BackendSet, Frontend, frontend_flags};

/// The set that holds this one backend.
pub fn only(backend: u32) -> BackendSet {
    BackendSet {
        offset: backend,
        size: 1,
    }
}

/// The set that holds nobody.
pub const NOBODY: BackendSet = BackendSet { offset: 0, size: 0 };

/// A frontend of [`WEB`] with this set for all clients.
pub fn web(set: BackendSet, flags: u32) -> Frontend {
    Frontend {
        service_port: WEB,
        flags,
        affinity_timeout_s: 0,
        external: set,
        internal: set,
    }
}

/// A ClusterIP: clients from outside the cluster are masqueraded.
pub fn cluster_ip(set: BackendSet) -> Frontend {
    web(set, frontend_flags::CLUSTER_IP | frontend_flags::MASQUERADE_EXTERNAL)
}

/// A NodePort of external traffic policy Cluster: all clients are masqueraded.
pub fn node_port(set: BackendSet) -> Frontend {
    web(set, frontend_flags::NODE_PORT | MASQUERADE_ALL)
}

/// A load balancer address of external traffic policy Cluster: all clients are masqueraded.
pub fn load_balancer(set: BackendSet) -> Frontend {
    web(set, frontend_flags::LOAD_BALANCER | MASQUERADE_ALL)
}

/// A load balancer address of external traffic policy Local: clients keep their address.
pub fn local_load_balancer(set: BackendSet) -> Frontend {
    web(set, frontend_flags::LOAD_BALANCER | frontend_flags::DROP_EXTERNAL)
}

/// All clients are masqueraded.
pub const MASQUERADE_ALL: u32 =
    frontend_flags::MASQUERADE_EXTERNAL | frontend_flags::MASQUERADE_POD | frontend_flags::MASQUERADE_NODE;
