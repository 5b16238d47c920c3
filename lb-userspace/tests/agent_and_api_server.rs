//! The agent itself, with its programs in a node's namespace, against a real API server: what is written to the API
//! decides where real requests go.
//!
//! ```text
//! client 192.0.2.2 ── eth0 192.0.2.1 ┌──────┐ 10.244.1.1 ── pod 10.244.1.10
//!                                    │ node │    API server and etcd on the node's loopback
//!                                    └──────┘
//! ```

mod support;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::api_server::ApiServer;
use support::cluster::Cluster;
use support::namespaces::{Namespaces, get_http, serve_http};
use support::node::{binary, bpffs};
use support::process::Program;
use support::{poll, skip};

/// What is written has to decide about traffic within this.
const PATIENCE: Duration = Duration::from_secs(60);

const NETWORK: &str = "
    ip link add eth0 netns @client type veth peer name eth0 netns @node
    ip -n @client addr add 192.0.2.2/24 dev eth0
    ip -n @client link set eth0 up
    ip -n @client route add default via 192.0.2.1
    ip -n @node addr add 192.0.2.1/24 dev eth0
    ip -n @node link set eth0 up
    ip -n @node route add default via 192.0.2.2
    ip link add eth0 netns @pod type veth peer name pod0 netns @node
    ip -n @node addr add 10.244.1.1/24 dev pod0
    ip -n @node link set pod0 up
    ip -n @pod addr add 10.244.1.10/24 dev eth0
    ip -n @pod link set eth0 up
    ip -n @pod route add default via 10.244.1.1
    ip netns exec @node sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0
    ip netns exec @client ethtool -K eth0 tx off >/dev/null
    ip netns exec @pod ethtool -K eth0 tx off >/dev/null
";

/// The agent of the node, with pins and a cgroup of its own. Made in the node's namespace.
struct Agent {
    kubeconfig: PathBuf,
    pins: PathBuf,
    cgroup: PathBuf,
    log: PathBuf,
    program: Option<Program>,
}

impl Agent {
    /// Starts it with the capabilities that `deploy/fairway.yaml` gives it, and no more.
    fn start(&mut self) {
        let fairway = binary().display().to_string();
        let [kubeconfig, pins, cgroup] =
            [&self.kubeconfig, &self.pins, &self.cgroup].map(|path| path.display().to_string());
        let capabilities = ["--bounding-set", "-all,+bpf,+perfmon,+net_admin,+net_raw"];
        let mut words = vec!["setpriv"];
        words.extend(capabilities);
        words.extend([
            &fairway,
            "agent",
            "--node-name",
            "node-1",
            "--cluster-cidr",
            "10.244.0.0/16",
        ]);
        words.extend(["--cgroup", &cgroup, "--kubeconfig", &kubeconfig, "--pin-dir", &pins]);
        self.program = Some(Program::start("fairway", &words, &self.log));
    }

    fn kill(&mut self) {
        if let Some(program) = self.program.take() {
            program.kill();
        }
    }

    /// Panics if it has ended.
    fn must_run(&mut self) {
        if let Some(program) = &mut self.program {
            program.must_run();
        }
    }

    /// Sends a request as a process of the node does; returns the answer and whom the client's socket believes to be
    /// connected to.
    fn ask_from_its_cgroup(&self, target: &str) -> String {
        let procs = self.cgroup.join("cgroup.procs").display().to_string();
        let url = format!("http://{target}/");
        let curl = r#"echo $$ > "$0"; exec curl -sS -m 3 -w ' peer %{remote_ip}' "$1""#;
        let output = Command::new("sh")
            .args(["-c", curl, &procs, &url])
            .output()
            .expect("sh runs");
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    }

    /// Removes what is Fairway's from the node, and returns what the command said.
    fn cleanup(&mut self) -> String {
        self.kill();
        let output = Command::new(binary())
            .arg("cleanup")
            .arg("--pin-dir")
            .arg(&self.pins)
            .output();
        let output = output.expect("fairway runs");
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(program) = &self.program
        {
            eprintln!("log of the agent:\n{}", program.log_end());
        }
        self.cleanup();
        let _ = std::fs::remove_dir(&self.cgroup);
    }
}

/// A cgroup of this test's own.
fn cgroup() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = mounts.find(|fields| fields.get(2) == Some(&"cgroup2"))?;
    let cgroup = Path::new(mount[1]).join(format!("fairway-api-{}", std::process::id()));
    std::fs::create_dir(&cgroup).ok()?;
    Some(cgroup)
}

const SLICE: (&str, &str) = ("discovery.k8s.io/v1/EndpointSlice", "default/my-spring-app-1");

fn service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "default", "name": "my-spring-app"},
        "spec": {
            "type": "NodePort",
            "clusterIP": "172.30.0.80",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 30080}],
        },
    })
}

fn slice() -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "default",
            "name": "my-spring-app-1",
            "labels": {"kubernetes.io/service-name": "my-spring-app"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.244.1.10"], "conditions": {"ready": true}, "nodeName": "node-1"}],
    })
}

#[test]
fn what_is_written_to_the_api_decides_where_requests_go() {
    const NAME: &str = "what_is_written_to_the_api_decides_where_requests_go";
    let programs = match (ApiServer::programs(), Namespaces::missing()) {
        (Ok(programs), None) => programs,
        (Err(reason), _) | (_, Some(reason)) => return skip(NAME, &reason),
    };
    if !bpffs() {
        return skip(NAME, "needs bpffs at /sys/fs/bpf, and could not mount it");
    }
    let Some(cgroup) = cgroup() else {
        return skip(NAME, "needs a cgroup2 hierarchy in which it can make a cgroup");
    };
    let namespaces = Namespaces::new("api", &["client", "node", "pod"], NETWORK);
    let pod: SocketAddr = "10.244.1.10:8080".parse().expect("an address");
    let listener = namespaces.within("pod", move || TcpListener::bind(pod).expect("the port is free"));
    std::thread::spawn(move || serve_http(&listener, "pod-1"));

    let ask = |target: &'static str| {
        let target = target.parse().expect("an address");
        namespaces.within("client", move || get_http(target))
    };
    namespaces.within("node", || in_the_node(&programs, cgroup, ask));
}

/// The test, from within the node's namespace. `ask` sends a request from the client's.
fn in_the_node(programs: &Path, cgroup: PathBuf, ask: impl Fn(&'static str) -> std::io::Result<String>) {
    const CLUSTER_IP: &str = "172.30.0.80:80";
    const NODE_PORT: &str = "192.0.2.1:30080";
    let mut server = ApiServer::start(programs);
    let cluster = Cluster::of(&server);
    let mut agent = Agent {
        kubeconfig: server.kubeconfig(),
        pins: format!("/sys/fs/bpf/fairway-api-{}", std::process::id()).into(),
        cgroup,
        log: server.kubeconfig().with_file_name("fairway.log"),
        program: None,
    };
    agent.start();

    cluster.apply(&service());
    cluster.apply(&slice());
    let answered = |agent: &mut Agent, target| {
        poll(&format!("an answer from {target}"), PATIENCE, || {
            agent.must_run();
            ask(target).ok()
        })
    };
    // Both kinds of frontend masquerade a client from outside: the pod sees the node.
    assert_eq!(answered(&mut agent, CLUSTER_IP), "pod-1 10.244.1.1");
    assert_eq!(answered(&mut agent, NODE_PORT), "pod-1 10.244.1.1");
    // A process of the node, translated as it connects.
    assert_eq!(
        agent.ask_from_its_cgroup(CLUSTER_IP),
        "pod-1 10.244.1.1 peer 172.30.0.80"
    );

    // Without endpoints connections are refused at once.
    cluster.delete(SLICE.0, SLICE.1, None);
    poll("a refusal", PATIENCE, || {
        agent.must_run();
        let refused = ask(CLUSTER_IP).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
        refused.then_some(())
    });
    cluster.apply(&slice());
    answered(&mut agent, CLUSTER_IP);

    // Without the API everything stays.
    server.stop();
    for _ in 0..20 {
        ask(CLUSTER_IP).expect("traffic goes on without the API server");
    }
    // Nor is the agent needed; a new one that cannot reach the API changes nothing.
    agent.kill();
    for _ in 0..20 {
        ask(CLUSTER_IP).expect("traffic goes on without the agent");
    }
    agent.start();
    for _ in 0..40 {
        ask(NODE_PORT).expect("traffic goes on while a new agent waits for the API server");
    }
    // When it is back, the new agent follows it.
    server.start_again();
    Cluster::of(&server).delete(SLICE.0, SLICE.1, None);
    poll("a refusal", PATIENCE, || ask(NODE_PORT).is_err().then_some(()));
    agent.must_run();

    let said = agent.cleanup();
    assert!(!agent.pins.exists(), "{said}");
}
