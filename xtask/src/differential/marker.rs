//! How it is known that a proxy has applied a change: after each change a Service and its slices get a new port, and
//! once that leads somewhere, all Services and slices that were written before it have been seen. Both proxies are
//! looked at alike, from outside.
//!
//! kube-proxy cleans UDP flows after it has applied a change, and only if an endpoint of some UDP port changed with it: so
//! the marker has such a port, and a second mark tells that all is done that belongs to the first.

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::{Value, json};

use super::api::ApiServer;
use super::model::{Family, Protocol};
use super::plan;
use super::probes::Origin;
use super::side::Ask;

/// The number of its `ClusterIP`, and of the pod behind it.
const NUMBER: u8 = 200;
/// Where its pod serves.
const TARGET_PORT: u16 = 8090;
/// Ports of the Service begin here.
const FIRST_PORT: u16 = 10_000;

/// The marker.
#[derive(Debug, Default)]
pub struct Marker {
    changes: u16,
}

impl Marker {
    /// How many marks follow a change.
    pub const MARKS: usize = 2;

    /// What its backends are.
    pub fn backends() -> Vec<(SocketAddr, Protocol)> {
        let at = |family| {
            (
                SocketAddr::new(plan::remote_pod(family, NUMBER), TARGET_PORT),
                Protocol::Tcp,
            )
        };
        Family::ALL.map(at).to_vec()
    }

    /// Marks a change, and tells what answers as soon as it is applied.
    pub fn advance(&mut self, api: &ApiServer) -> anyhow::Result<Vec<Ask>> {
        self.changes += 1;
        let name = format!("change-{}", self.changes);
        let port = FIRST_PORT + self.changes;
        put(
            api,
            self.changes,
            "/api/v1/namespaces/default/services",
            &service(&name, port),
        )?;
        for family in Family::ALL {
            let collection = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
            put(api, self.changes, collection, &slice(family, &name, port))?;
        }
        Ok(Family::ALL
            .iter()
            .map(|family| Ask {
                origin: Origin::Outside,
                client: plan::client(*family, 0, 0, 0),
                addr: SocketAddr::new(plan::cluster_ip(*family, NUMBER), port),
                protocol: Protocol::Tcp,
                times: 1,
            })
            .collect())
    }
}

fn put(api: &ApiServer, changes: u16, collection: &str, object: &Value) -> anyhow::Result<()> {
    let response = if changes == 1 {
        api.create(collection, object)?
    } else {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        api.replace(&format!("{collection}/{name}"), object)?
    };
    ensure!(
        response.is_success(),
        "the API server refuses the marker: {}",
        response.message()
    );
    Ok(())
}

fn service(port_name: &str, port: u16) -> Value {
    let ips = Family::ALL.map(|family| plan::cluster_ip(family, NUMBER));
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "marker", "namespace": "default" },
        "spec": {
            "clusterIP": ips[0],
            "clusterIPs": ips,
            "ipFamilyPolicy": "RequireDualStack",
            "ipFamilies": Family::ALL.map(Family::name),
            "ports": [
                { "name": port_name, "port": port, "protocol": "TCP" },
                { "name": "udp", "port": 9, "protocol": "UDP" },
            ],
        },
    })
}

fn slice(family: Family, port_name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("marker-{}", family.name().to_lowercase()),
            "namespace": "default",
            "labels": { "kubernetes.io/service-name": "marker" },
        },
        "addressType": family.name(),
        "ports": [
            { "name": port_name, "port": TARGET_PORT, "protocol": "TCP" },
            { "name": "udp", "port": port, "protocol": "UDP" },
        ],
        "endpoints": [{ "addresses": [plan::remote_pod(family, NUMBER)], "conditions": { "ready": true } }],
    })
}
