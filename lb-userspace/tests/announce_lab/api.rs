//! The same nodes with a real API server in the place of the folder. Each has a way of its own to it, which can be cut.

use std::net::{Ipv4Addr, TcpListener};

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{ADDRESSES, DEVICE, Lab, NODES, POOLS, service};
use crate::support::api_server::ApiServer;
use crate::support::cluster::{Cluster, documents};
use crate::support::proxy::Proxy;
use crate::support::skip;

/// The API server, and the nodes' ways to it.
pub struct Api {
    ways: [Proxy; 2],
    runtime: Runtime,
    server: ApiServer,
}

/// Both, unless they cannot be here.
pub fn lab(test: &str, short: &str) -> Option<(Lab, Api)> {
    let programs = match ApiServer::programs() {
        Ok(programs) => programs,
        Err(reason) => {
            skip(test, &reason);
            return None;
        }
    };
    let mut lab = Lab::network(test, short, DEVICE)?;
    let server = ApiServer::start(&programs);
    fill(&Cluster::of(&server));
    // Longer than the default: a server that shares the machine with a build may take a second for a write.
    lab.source = format!(
        "--announce-lease-duration=6s --kubeconfig={}",
        server.kubeconfig_for("agent", server.port()).display()
    );
    let runtime = Runtime::new().expect("threads can be had");
    let ways = [0, 1].map(|node| way(&runtime, &lab, node, server.port()));
    lab.start_all();
    Some((lab, Api { ways, runtime, server }))
}

impl Api {
    /// Cuts a node off.
    pub fn cut(&mut self, node: usize) {
        self.runtime.block_on(self.ways[node].cut());
    }

    /// Ends that.
    pub fn mend(&mut self, lab: &Lab, node: usize) {
        self.ways[node] = way(&self.runtime, lab, node, self.server.port());
    }
}

/// The server's port on the loopback of a node.
fn way(runtime: &Runtime, lab: &Lab, node: usize, port: u16) -> Proxy {
    let listen = move || TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the port is free");
    let listener = lab.namespaces.within(NODES[node], listen);
    runtime.block_on(Proxy::behind(listener, port))
}

/// Makes the objects that the folder has otherwise.
fn fill(cluster: &Cluster) {
    cluster.apply_manifests_for_users();
    cluster.apply_definitions();
    for name in NODES {
        cluster.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}));
    }
    documents(POOLS).iter().for_each(|pool| cluster.apply(pool));
    for mut object in documents(&service("web", 1, "Cluster", &ADDRESSES, &[1, 2])) {
        object["metadata"]["namespace"] = json!("default");
        match object.get("status").cloned() {
            Some(status) => {
                cluster.patch("v1/Service", "default/web", "status", &json!({"status": status}));
            }
            None => {
                // The server gives it others.
                if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
                    spec.remove("clusterIPs");
                }
                cluster.apply(&object);
            }
        }
    }
}
