//! Sockets of the node's own processes: what they are answered on the node's addresses and on loopback, where no packet
//! meets a hook, and that datagrams keep their backend while that serves. A real agent, real sockets, two pods.

mod support;

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use support::namespaces::Namespaces;
use support::node::{Node, PATIENCE};
use support::{poll, skip};

/// A process is in one cgroup at a time, and so are all tests of this file.
static CGROUP: Mutex<()> = Mutex::new(());
/// How long a socket waits for what does not come.
const WAIT: Duration = Duration::from_millis(500);

const PODS: [(&str, &str, &str); 2] = [
    ("pod1", "10.244.1.11", "fd00:10:244:1::11"),
    ("pod2", "10.244.1.12", "fd00:10:244:1::12"),
];

/// Node and pods, and this process among the node's.
struct World {
    node: Node,
    pods: Namespaces,
    before: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    fn new(test: &str, short: &str) -> Option<Self> {
        let alone = CGROUP.lock().unwrap_or_else(PoisonError::into_inner);
        let mut node = Node::new(test, short)?;
        let Some(cgroup) = node.cgroup.clone() else {
            skip(test, "needs a cgroup2 file system");
            return None;
        };
        let script: String = PODS
            .iter()
            .map(|(name, v4, v6)| {
                let node = node.namespaces.name("node");
                format!(
                    "ip -n {node} link add {name} type veth peer name eth0 netns @{name}
                    ip -n {node} addr add 10.244.1.1/32 dev {name}
                    ip -n {node} addr add fd00:10:244:1::1/128 dev {name} nodad
                    ip -n {node} link set {name} up
                    ip -n {node} route add {v4} dev {name}
                    ip -n {node} route add {v6} dev {name}
                    ip -n @{name} addr add {v4}/24 dev eth0
                    ip -n @{name} addr add {v6}/64 dev eth0 nodad
                    ip -n @{name} link set eth0 up
                    ip -n @{name} route add default via 10.244.1.1
                    ip -n @{name} route add default via fd00:10:244:1::1
                    "
                )
            })
            .collect();
        let pods = Namespaces::new(&format!("{short}p"), &["pod1", "pod2"], &script);
        // Nobody is there, but packets have to be on their way to somebody to leave the node.
        for gateway in ["192.0.2.254", "2001:db8::fe"] {
            node.ip(&format!(
                "neigh replace {gateway} lladdr 02:00:00:00:00:fe dev eth0 nud permanent"
            ));
        }
        node.ip("addr add 198.51.100.10/32 dev lo");
        for (name, v4, v6) in PODS {
            for addr in [v4, v6] {
                let addr = addr.parse().expect("an address");
                pods.spawn(name, move || serve_tcp(SocketAddr::new(addr, 8080), name));
                pods.spawn(name, move || serve_udp(SocketAddr::new(addr, 5353), name));
            }
        }
        let before = join(&cgroup);
        node.start(&["--max-maglev-slots", "65536"]);
        Some(Self {
            node,
            pods,
            before,
            _alone: alone,
        })
    }

    /// The Service, led to these pods, and what it has beside; waits until the agent has it.
    fn serve(&self, pods: &[&str], more: &str) {
        self.node.manifest("web.yaml", Some(&manifest(pods, more)));
    }

    /// In the node's namespace, where this process counts as one of the node's.
    fn here<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.node.namespaces.within("node", work)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        join(&self.before);
    }
}

/// Joins a cgroup; returns the one that was left.
fn join(cgroup: &Path) -> PathBuf {
    let mount = cgroup_mount().expect("there is one");
    let text = std::fs::read_to_string("/proc/self/cgroup").expect("the kernel tells");
    let own = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    std::fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).expect("a cgroup can be joined");
    mount.join(own)
}

fn cgroup_mount() -> Option<PathBuf> {
    fairway::datapath::probe::cgroup(None).ok().flatten()
}

fn manifest(pods: &[&str], more: &str) -> String {
    let slice = |family: &str, pick: fn(&(&'static str, &'static str, &'static str)) -> &'static str| {
        let endpoints: String = PODS
            .iter()
            .filter(|(name, ..)| pods.contains(name))
            .map(|pod| format!("\n  - {{addresses: ['{}'], nodeName: node}}", pick(pod)))
            .collect();
        let endpoints = if endpoints.is_empty() {
            " []".to_owned()
        } else {
            endpoints
        };
        format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-{family}, labels: {{kubernetes.io/service-name: web}}}}
addressType: {family}
ports: [{{name: http, port: 8080}}, {{name: dns, protocol: UDP, port: 5353}}]
endpoints:{endpoints}
"
        )
    };
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  ports:
    - {{name: http, port: 80, nodePort: 30080}}
    - {{name: dns, protocol: UDP, port: 53, nodePort: 30053}}
{more}
{}{}",
        slice("IPv4", |pod| pod.1),
        slice("IPv6", |pod| pod.2),
    )
}

fn serve_tcp(at: SocketAddr, name: &str) {
    let listener = TcpListener::bind(at).expect("the pod listens");
    for connection in listener.incoming() {
        // A client that has gone is no concern of the server's.
        let _gone = connection.and_then(|mut connection| connection.write_all(name.as_bytes()));
    }
}

fn serve_udp(at: SocketAddr, name: &str) {
    let socket = UdpSocket::bind(at).expect("the pod listens");
    let mut request = [0; 64];
    while let Ok((_, client)) = socket.recv_from(&mut request) {
        // As above.
        let _gone = socket.send_to(name.as_bytes(), client);
    }
}

/// Connects, and returns who answers; the peer must be who was asked.
fn ask_tcp(target: &str) -> io::Result<String> {
    let target: SocketAddr = target.parse().expect("an address");
    let mut connection = TcpStream::connect_timeout(&target, WAIT)?;
    assert_eq!(connection.peer_addr()?, target);
    connection.set_read_timeout(Some(WAIT))?;
    let mut name = String::new();
    connection.read_to_string(&mut name)?;
    Ok(name)
}

/// A socket for datagrams to this address, connected to it or not.
fn udp(target: &str) -> UdpSocket {
    let any = if target.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).expect("a socket can be bound");
    socket.set_read_timeout(Some(WAIT)).expect("a timeout can be set");
    socket
}

/// Sends a datagram, and returns who answers; the answer must come from who was asked.
fn ask_udp(socket: &UdpSocket, target: &str) -> io::Result<String> {
    let target: SocketAddr = target.parse().expect("an address");
    if socket.peer_addr().is_ok() {
        socket.send(b"?")?;
    } else {
        socket.send_to(b"?", target)?;
    }
    let mut answer = [0; 64];
    let (len, from) = socket.recv_from(&mut answer)?;
    assert_eq!(from, target);
    Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
}

fn until_tcp(target: &str, name: &str) {
    poll(&format!("{name} answers at {target}"), PATIENCE, || {
        ask_tcp(target).ok().filter(|answer| answer == name)
    });
}

fn until_udp(socket: &UdpSocket, target: &str, name: &str) {
    poll(&format!("{name} answers at {target}"), PATIENCE, || {
        ask_udp(socket, target).ok().filter(|answer| answer == name)
    });
}

#[test]
fn node_ports_are_served_on_loopback_for_processes_of_the_node_only() {
    let test = "node_ports_are_served_on_loopback_for_processes_of_the_node_only";
    let Some(world) = World::new(test, "loop") else { return };
    world.serve(&["pod1"], "");
    world.here(|| {
        for host in ["127.0.0.1", "127.1.2.3", "[::1]", "192.0.2.1", "[2001:db8::1]"] {
            until_tcp(&format!("{host}:30080"), "pod1");
            let target = format!("{host}:30053");
            until_udp(&udp(&target), &target, "pod1");
            let connected = udp(&target);
            connected.connect(&target).expect("a datagram socket connects");
            assert_eq!(ask_udp(&connected, &target).expect("it is answered"), "pod1");
        }
        let other = ask_tcp("127.0.0.1:30081").expect_err("nobody listens there");
        assert_eq!(other.kind(), ErrorKind::ConnectionRefused);
    });
    let pods_own = world.pods.within("pod2", || ask_tcp("127.0.0.1:30080"));
    assert_eq!(
        pods_own.expect_err("a pod's loopback is its own").kind(),
        ErrorKind::ConnectionRefused
    );
    world.serve(&[], "");
    world.here(|| {
        let listener = TcpListener::bind("127.0.0.1:30080").expect("the port is free");
        listener.set_nonblocking(true).expect("it can be polled");
        poll("who listens on loopback is reached without endpoints", PATIENCE, || {
            let _asked = ask_tcp("127.0.0.1:30080");
            listener.accept().ok()
        });
        let refused = ask_tcp("192.0.2.1:30080").expect_err("there are no endpoints");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn datagrams_keep_their_backend_while_it_serves_and_then_find_another() {
    let test = "datagrams_keep_their_backend_while_it_serves_and_then_find_another";
    let Some(world) = World::new(test, "udp") else { return };
    world.serve(&["pod1"], "");
    let cluster = ["10.96.0.10:53", "[fd00:10:96::10]:53"];
    let own = [
        "192.0.2.1:30053",
        "[2001:db8::1]:30053",
        "127.0.0.1:30053",
        "[::1]:30053",
    ];
    world.here(|| {
        // Those to a ClusterIP are connected: they move all the same.
        let mut sockets: Vec<(UdpSocket, &str)> = Vec::new();
        for target in cluster {
            let socket = udp(target);
            socket.connect(target).expect("a datagram socket connects");
            sockets.push((socket, target));
        }
        sockets.extend(own.map(|target| (udp(target), target)));
        for (socket, target) in &sockets {
            until_udp(socket, target, "pod1");
        }
        world.serve(&["pod1", "pod2"], "");
        // Both are in use when one of many new sockets is answered by the other.
        for target in own {
            poll("the second endpoint serves", PATIENCE, || {
                (ask_udp(&udp(target), target).ok()? == "pod2").then_some(())
            });
        }
        for (socket, target) in &sockets {
            for _ in 0..5 {
                assert_eq!(ask_udp(socket, target).expect("it is answered"), "pod1", "{target}");
            }
        }
        world.serve(&["pod2"], "");
        for (socket, target) in &sockets {
            until_udp(socket, target, "pod2");
        }
    });
}

#[test]
fn a_process_that_may_not_come_to_an_own_address_is_told_as_if_its_packets_were_dropped() {
    let test = "a_process_that_may_not_come_to_an_own_address_is_told_as_if_its_packets_were_dropped";
    let Some(world) = World::new(test, "drop") else { return };
    // The load balancer's address is one of the node's own, so a process that asks it has that address.
    let status = "status: {loadBalancer: {ingress: [{ip: 198.51.100.10}]}}";
    world.serve(
        &["pod1"],
        &format!("  loadBalancerSourceRanges: [198.51.100.0/24]\n{status}"),
    );
    world.here(|| until_tcp("198.51.100.10:80", "pod1"));
    world.serve(
        &["pod1"],
        &format!("  loadBalancerSourceRanges: [203.0.113.0/24]\n{status}"),
    );
    world.here(|| {
        let lost = poll("the source ranges are in force", PATIENCE, || {
            ask_tcp("198.51.100.10:80").err()
        });
        assert_eq!(lost.kind(), ErrorKind::TimedOut);
        let socket = udp("198.51.100.10:53");
        let lost = ask_udp(&socket, "198.51.100.10:53").expect_err("it is not answered");
        assert_eq!(lost.kind(), ErrorKind::PermissionDenied);
        until_tcp("192.0.2.1:30080", "pod1");
    });
}
