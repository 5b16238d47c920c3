//! A node with the agent in a cluster of a real API server and the real controllers. The test is the kubelet: it says
//! which pods run and where, and the controllers make EndpointSlices of it.
//!
//! ```text
//! client 192.0.2.2 ── eth0 192.0.2.1 ┌──────┐ ── pods of this node: 10.244.1.8 to .31, fd00:10:244:1::8 to ::31
//!                                    │ node │    API server, etcd and controllers on the node's loopback
//!                                    └──────┘    pods of the node `other` (10.244.2.0/24) are only names
//! ```

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;

use serde_json::{Value, json};

use super::api_server::ApiServer;
use super::cluster::Cluster;
use super::namespaces::{ask_http, serve_http_by_address, within};
use super::node::{Node, PATIENCE};
use super::process::Program;
use super::{poll, skip};

pub const POD: &str = "v1/Pod";
pub const SERVICE: &str = "v1/Service";

const NETWORK: &str = "
    ip link add eth0 netns @client type veth peer name eth0 netns @node
    ip -n @client addr add 192.0.2.2/24 dev eth0
    ip -n @client link set eth0 up
    ip -n @client route add default via 192.0.2.1
    ip -n @node addr add 192.0.2.1/24 dev eth0
    ip -n @node addr add 2001:db8::1/64 dev eth0 nodad
    ip -n @node link set eth0 up
    ip -n @node route add default via 192.0.2.2
    ip -n @node route add default via 2001:db8::2
    ip link add eth0 netns @pods type veth peer name pods0 netns @node
    ip -n @node addr add 10.244.1.1/24 dev pods0
    ip -n @node link set pods0 up
    ip -n @pods addr add 10.244.1.2/24 dev eth0
    ip -n @pods link set eth0 up
    ip -n @pods route add default via 10.244.1.1
    ip -n @pods route add local 10.244.1.8/29 dev lo
    ip -n @pods route add local 10.244.1.16/28 dev lo
    ip netns exec @node sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0
    ip netns exec @client ethtool -K eth0 tx off >/dev/null
    ip netns exec @pods ethtool -K eth0 tx off >/dev/null
";

/// Ports that the pods of this node answer on.
const POD_PORTS: [u16; 2] = [8080, 9090];

/// The cluster, seen from the node.
pub struct World<'a> {
    pub node: &'a mut Node,
    pub server: ApiServer,
    pub cluster: Cluster,
    controllers: Option<Program>,
    client: String,
}

/// Runs a test in a cluster of its own, from the node's namespace. The agent is started by the test.
pub fn world(test: &str, short: &str, work: impl FnOnce(&mut World<'_>) + Send) {
    let programs = match ApiServer::programs_with_controllers() {
        Ok(programs) => programs,
        Err(reason) => return skip(test, &reason),
    };
    let Some(mut node) = Node::within(test, short, &["client", "node", "pods"], NETWORK) else {
        return;
    };
    for port in POD_PORTS {
        let listen = move || TcpListener::bind(("0.0.0.0", port)).expect("the port is free");
        let listener = node.namespaces.within("pods", listen);
        std::thread::spawn(move || serve_http_by_address(&listener));
    }
    let client = node.namespaces.path("client");
    node.inside(|node| work(&mut World::start(node, &programs, client)));
}

impl<'a> World<'a> {
    fn start(node: &'a mut Node, programs: &Path, client: String) -> Self {
        let server = ApiServer::start(programs);
        let cluster = Cluster::of(&server);
        cluster.apply_manifests_for_users();
        for (number, name) in [(1, "node"), (2, "other")] {
            cluster.apply(&json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": format!("zone-{number}")}},
                "spec": {
                    "podCIDR": format!("10.244.{number}.0/24"),
                    "podCIDRs": [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")],
                },
            }));
            // Hints for topology are given where nodes have room.
            let room = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
            let ready = json!([{"type": "Ready", "status": "True"}]);
            let status = json!({"status": {"capacity": room, "allocatable": room, "conditions": ready}});
            cluster.patch("v1/Node", name, "status", &status);
        }
        let controllers = Some(server.start_controllers());
        Self {
            node,
            server,
            cluster,
            controllers,
            client,
        }
    }

    /// Starts the agent for the API server at this port of loopback, with the rights that users give it.
    pub fn start_agent(&mut self, port: u16) {
        let kubeconfig = self.server.kubeconfig_for("agent", port).display().to_string();
        self.node.start(&["--kubeconfig", &kubeconfig]);
    }

    /// Panics if something that the test needs has ended.
    pub fn must_run(&mut self) {
        self.node.must_run();
        if let Some(controllers) = &mut self.controllers {
            controllers.must_run();
        }
    }

    /// What is in force for the Service of this name: its rows in `fairway services`, without those that only sockets of
    /// the node meet (NodePorts on loopback).
    pub fn rows(&self, service: &str) -> Vec<Value> {
        let output = self.node.fairway(&["services", "-o", "json"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "fairway services: {said}");
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout).expect("it is JSON");
        let name = format!("default/{service}");
        let of_service = |row: &Value| {
            let is = row["service"].as_str().unwrap_or_default();
            is.strip_prefix(&name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        };
        let of_packets = |row: &Value| row["only_sockets"] == false;
        rows.into_iter().filter(of_packets).filter(of_service).collect()
    }

    /// Waits until what is in force for the Service is as wanted.
    pub fn until(&mut self, what: &str, service: &str, wanted: impl Fn(&[Value]) -> bool) {
        let mut last = Vec::new();
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < deadline {
            self.must_run();
            last = self.rows(service);
            if wanted(&last) {
                return;
            }
        }
        panic!("{what}: not within {PATIENCE:?}; in force is {}", json!(last));
    }

    /// Waits until connections to the first ClusterIP of a Service go to exactly these endpoints; none: are refused.
    pub fn until_backends(&mut self, what: &str, service: &str, wanted: &[&str]) {
        let wanted: BTreeSet<String> = wanted.iter().map(ToString::to_string).collect();
        self.until(what, service, |rows| {
            let row = rows.iter().find(|row| row["kind"] == "ClusterIP");
            row.is_some_and(|row| {
                let outcome = if wanted.is_empty() { "reject" } else { "backends" };
                row["external"] == outcome && backends(row, "external") == wanted
            })
        });
    }

    /// The endpoints that answer a client outside, after enough connections to meet each; none: they are refused.
    pub fn reached(&self, target: &str) -> BTreeSet<String> {
        let target = target.parse().expect("an address");
        let ask = move || ask_http(target, "/");
        let answers = (0..24).map(|_| within(&self.client, ask));
        let bodies = answers.filter_map(|answer| match answer {
            Ok(answer) => Some(answer.body),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => None,
            Err(error) => panic!("{target}: {error}"),
        });
        bodies.collect()
    }

    /// As [`Self::until_backends`], and packets agree.
    pub fn until_served(&mut self, what: &str, service: &str, target: &str, wanted: &[&str]) {
        self.until_backends(what, service, wanted);
        let wanted: BTreeSet<String> = wanted.iter().map(ToString::to_string).collect();
        assert_eq!(self.reached(target), wanted, "{what}");
    }

    /// A pod of no Deployment, on a node, that is there and not ready.
    pub fn create_pod(&self, name: &str, app: &str, node: &str) {
        self.cluster.apply(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": "default", "name": name, "labels": {"app": app}},
            "spec": {"nodeName": node, "containers": [{"name": "app", "image": "app"}]},
        }));
    }

    /// Says of a pod what its kubelet would: it runs with these addresses, the last number of which is its own, and is
    /// ready or not.
    pub fn pod_runs(&self, pod: &str, node: u8, number: u8, ready: bool) {
        let addresses = [
            format!("10.244.{node}.{number}"),
            format!("fd00:10:244:{node}::{number}"),
        ];
        self.pod_runs_at(
            &format!("default/{pod}"),
            &addresses.each_ref().map(String::as_str),
            ready,
        );
    }

    /// As [`Self::pod_runs`], of a pod of any namespace and with any addresses.
    pub fn pod_runs_at(&self, pod: &str, addresses: &[&str], ready: bool) {
        let ready = if ready { "True" } else { "False" };
        let all: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
        let status = json!({
            "phase": "Running",
            "podIP": addresses[0],
            "podIPs": all,
            "conditions": [{"type": "Ready", "status": ready}],
        });
        self.cluster.patch(POD, pod, "status", &json!({"status": status}));
    }

    /// Deletes a pod. Its kubelet has yet to say that it is gone.
    pub fn delete_pod(&self, pod: &str) {
        self.cluster.delete(POD, &format!("default/{pod}"), Some(600));
    }

    /// The pod's kubelet says that it is gone.
    pub fn pod_is_gone(&self, pod: &str) {
        self.cluster.delete(POD, &format!("default/{pod}"), Some(0));
    }

    /// The names of the pods that are not being deleted and satisfy a condition, once there are so many.
    pub fn pods(&mut self, count: usize, which: impl Fn(&Value) -> bool) -> Vec<String> {
        poll(&format!("{count} such pods"), PATIENCE, || {
            self.must_run();
            let pods = self.cluster.list(POD, "default");
            let names: Vec<String> = pods
                .iter()
                .filter(|pod| which(pod))
                .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
                .collect();
            (names.len() == count).then_some(names)
        })
    }

    /// Changes the spec of a Service by a merge patch.
    pub fn patch_service(&self, service: &str, spec: &Value) {
        let name = format!("default/{service}");
        self.cluster.patch(SERVICE, &name, "", &json!({"spec": spec}));
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        if let Some(controllers) = self.controllers.take() {
            if std::thread::panicking() {
                eprintln!("log of the controllers:\n{}", controllers.log_end());
            }
            controllers.kill();
        }
    }
}

/// Where a row leads clients of this kind (`external` or `internal`).
pub fn backends(row: &Value, clients: &str) -> BTreeSet<String> {
    let all = row["backends"].as_array().into_iter().flatten();
    let those = all.filter(|backend| backend[clients] == true);
    those
        .filter_map(|backend| backend["address"].as_str().map(str::to_owned))
        .collect()
}

/// Whether a pod is being deleted.
pub fn terminating(pod: &Value) -> bool {
    !pod["metadata"]["deletionTimestamp"].is_null()
}

/// Whether the kubelet has spoken of a pod.
pub fn runs(pod: &Value) -> bool {
    !pod["status"]["podIP"].is_null()
}
