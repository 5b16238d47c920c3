//! Health check node ports: on each, a load balancer learns how many ready endpoints of one Service are on this node.
//!
//! A port is served on the addresses on which NodePorts are, in each family that the Service has. Answers are those of
//! kube-proxy 1.37 (`pkg/proxy/healthcheck/service_health.go`), whatever path is asked for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axum::Router;
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse as _, Response};
use ipnet::IpNet;
use tracing::info;

use super::Health;
use super::answers::HEADERS;
use crate::desired::{HealthCheck, NodePortAddresses, NodeState, NodeView};
use crate::http::{self, Server};
use crate::model::{IpFamily, ObjectKey, ObjectKind, Problem, Reason};
use crate::observe::state::HealthPort;

/// How many connections the node should have, compared with others; newer load balancers heed it.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The health check ports that are open.
#[derive(Debug)]
pub struct Ports {
    node: Arc<str>,
    health: Arc<Health>,
    open: HashMap<SocketAddr, Open>,
    /// What was wanted last, and where.
    checks: BTreeMap<ObjectKey, HealthCheck>,
    addresses: Vec<IpAddr>,
    /// Those that could not be opened, by Service.
    failed: BTreeMap<ObjectKey, Problem>,
}

/// A port on an address.
#[derive(Debug)]
struct Open {
    service: ObjectKey,
    local_endpoints: Arc<AtomicUsize>,
    _server: Server,
}

impl Ports {
    /// None yet.
    pub fn new(node: Arc<str>, health: Arc<Health>) -> Self {
        Self {
            node,
            health,
            open: HashMap::new(),
            checks: BTreeMap::new(),
            addresses: Vec::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Opens what is wanted, on these addresses, and closes what is not. What cannot be opened is tried again the next
    /// time. To be called within the runtime.
    pub fn sync(&mut self, checks: &BTreeMap<ObjectKey, HealthCheck>, addresses: &[IpAddr]) {
        if self.failed.is_empty() && self.checks == *checks && self.addresses == addresses {
            return;
        }
        self.checks.clone_from(checks);
        self.addresses = addresses.to_vec();
        let wanted: Vec<(SocketAddr, &ObjectKey, usize)> = checks
            .iter()
            .flat_map(|(service, check)| {
                let at = move |addr: &IpAddr| {
                    let count = check.local_endpoints[IpFamily::of(addr) as usize]?;
                    Some((SocketAddr::from((*addr, check.node_port)), service, count))
                };
                addresses.iter().filter_map(at)
            })
            .collect();
        let claims: HashSet<(SocketAddr, &ObjectKey)> = wanted.iter().map(|(at, service, _)| (*at, *service)).collect();
        self.open.retain(|at, open| {
            let stays = claims.contains(&(*at, &open.service));
            if !stays {
                info!(service = %open.service, %at, "the health check port is closed");
            }
            stays
        });
        self.failed.clear();
        for (at, service, count) in wanted {
            let opened = match self.open.get(&at) {
                Some(open) if open.service == *service => {
                    open.local_endpoints.store(count, Ordering::Relaxed);
                    Ok(())
                }
                Some(open) => Err(format!("it answers for {}", open.service)),
                None => self.open(at, service, count).map_err(|error| error.to_string()),
            };
            if let Err(error) = opened {
                let problem = self.problem(service, at, &error);
                self.failed.entry(service.clone()).or_insert(problem);
            }
        }
    }

    fn open(&mut self, at: SocketAddr, service: &ObjectKey, count: usize) -> std::io::Result<()> {
        let listener = http::listen(at)?;
        let local_endpoints = Arc::new(AtomicUsize::new(count));
        let router = {
            let (service, count) = (service.clone(), Arc::clone(&local_endpoints));
            let health = Arc::clone(&self.health);
            Router::new().fallback(move || async move {
                let healthy = health.condition(Instant::now()).healthy;
                answer(&service, count.load(Ordering::Relaxed), healthy)
            })
        };
        let open = Open {
            service: service.clone(),
            local_endpoints,
            _server: http::serve(listener, router),
        };
        info!(%service, %at, "the health check port is open");
        self.open.insert(at, open);
        Ok(())
    }

    fn problem(&self, service: &ObjectKey, at: SocketAddr, error: &str) -> Problem {
        Problem {
            kind: ObjectKind::Service,
            object: service.clone(),
            field: "spec.healthCheckNodePort".into(),
            message: format!(
                "node {} cannot listen on {at} ({error}), so load balancers take it for unhealthy",
                self.node
            ),
            remedy: "end what uses the port on the node, or give the Service another healthCheckNodePort".into(),
            reason: Reason::FailedToStartServiceHealthcheck,
        }
    }

    /// What could not be opened.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.failed.values()
    }

    /// What is open, for people.
    pub fn state(&self) -> Vec<HealthPort> {
        let mut ports: Vec<HealthPort> = self
            .open
            .iter()
            .map(|(at, open)| HealthPort {
                namespace: open.service.namespace.to_string(),
                service: open.service.name.to_string(),
                address: at.to_string(),
                local_endpoints: open.local_endpoints.load(Ordering::Relaxed),
            })
            .collect();
        ports.sort();
        ports
    }
}

/// Where health check ports are served: where NodePorts are. All addresses of a family are listened on as one.
pub fn listen_addresses(node: &NodeState, view: &NodeView) -> Vec<IpAddr> {
    let everywhere = |family: IpFamily| match &node.settings.node_port_addresses {
        NodePortAddresses::Primary => false,
        NodePortAddresses::Within(nets) => {
            let of_family = |net: &&IpNet| IpFamily::of(&net.addr()) == family;
            let mut nets = nets.iter().filter(of_family).peekable();
            nets.peek().is_none() || nets.any(|net| net.prefix_len() == 0)
        }
    };
    let mut addresses = Vec::new();
    for family in IpFamily::ALL {
        if everywhere(family) {
            addresses.push(match family {
                IpFamily::V4 => Ipv4Addr::UNSPECIFIED.into(),
                IpFamily::V6 => Ipv6Addr::UNSPECIFIED.into(),
            });
        } else {
            let of_family = |addr: &&IpAddr| IpFamily::of(addr) == family;
            addresses.extend(view.node_port_addresses.iter().filter(of_family));
        }
    }
    addresses
}

fn answer(service: &ObjectKey, local_endpoints: usize, healthy: bool) -> Response {
    let status = if local_endpoints > 0 && healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        HEADERS,
        [(WEIGHT, local_endpoints)],
        body(service, local_endpoints, healthy),
    )
        .into_response()
}

/// Written as kube-proxy writes it, tabs included, for those who compare texts. Names of objects need no escapes.
fn body(service: &ObjectKey, local_endpoints: usize, healthy: bool) -> String {
    let ObjectKey { namespace, name } = service;
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\
         \t\"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::to_bytes;

    use super::*;
    use crate::desired::{LocalAddresses, Settings};

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    async fn read(response: Response) -> (u16, String, String) {
        let weight = response.headers()[WEIGHT].to_str().expect("it is text").to_owned();
        let code = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1024).await.expect("there is a body");
        (code, weight, String::from_utf8(body.to_vec()).expect("it is text"))
    }

    #[tokio::test]
    async fn a_port_answers_200_with_endpoints_on_a_healthy_node_and_503_otherwise() {
        let text = |count: usize, healthy: bool| {
            format!(
                r#"{{
	"service": {{
		"namespace": "shop",
		"name": "web"
	}},
	"localEndpoints": {count},
	"serviceProxyHealthy": {healthy}
}}"#
            )
        };
        let of = |count, healthy| read(answer(&key("web"), count, healthy));
        assert_eq!(of(2, true).await, (200, "2".to_owned(), text(2, true)));
        assert_eq!(of(0, true).await, (503, "0".to_owned(), text(0, true)));
        assert_eq!(of(2, false).await, (503, "2".to_owned(), text(2, false)));
        let response = answer(&key("web"), 1, true);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    }

    fn ports() -> Ports {
        Ports::new("node-1".into(), Arc::new(Health::starting(Instant::now())))
    }

    /// A port that nobody uses.
    fn free_port() -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        listener.local_addr().expect("it is bound").port()
    }

    fn checks(of: &[(&str, u16, usize)]) -> BTreeMap<ObjectKey, HealthCheck> {
        let check = |(name, node_port, count): &(&str, u16, usize)| {
            let check = HealthCheck {
                node_port: *node_port,
                local_endpoints: [Some(*count), None],
            };
            (key(name), check)
        };
        of.iter().map(check).collect()
    }

    const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

    fn opened(ports: &Ports) -> Vec<(String, String, usize)> {
        let state = ports.state().into_iter();
        state.map(|p| (p.service, p.address, p.local_endpoints)).collect()
    }

    #[tokio::test]
    async fn ports_open_follow_and_close_with_their_services_in_their_families() {
        let (first, second) = (free_port(), free_port());
        let mut ports = ports();
        ports.sync(&checks(&[("web", first, 1)]), &LOOPBACK);
        assert_eq!(opened(&ports), [("web".to_owned(), format!("127.0.0.1:{first}"), 1)]);
        ports.sync(&checks(&[("web", first, 3)]), &LOOPBACK);
        assert_eq!(opened(&ports)[0].2, 3);
        ports.sync(&checks(&[("web", second, 3)]), &LOOPBACK);
        assert_eq!(opened(&ports), [("web".to_owned(), format!("127.0.0.1:{second}"), 3)]);
        ports.sync(&checks(&[("web", second, 3)]), &LOOPBACK[1..]);
        assert_eq!(opened(&ports), []);
        assert_eq!(ports.problems().count(), 0);
    }

    #[tokio::test]
    async fn a_port_in_use_is_reported_and_opened_once_it_is_free() {
        let foreign = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let (used, free) = (foreign.local_addr().expect("it is bound").port(), free_port());
        let wanted = checks(&[("web", used, 1), ("shop", free, 1)]);
        let mut ports = ports();
        ports.sync(&wanted, &LOOPBACK);
        assert_eq!(opened(&ports), [("shop".to_owned(), format!("127.0.0.1:{free}"), 1)]);
        let problems: Vec<Problem> = ports.problems().cloned().collect();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].object, key("web"));
        assert!(
            problems[0]
                .message
                .contains(&format!("node node-1 cannot listen on 127.0.0.1:{used} (Address"))
        );
        drop(foreign);
        ports.sync(&wanted, &LOOPBACK);
        assert_eq!((opened(&ports).len(), ports.problems().count()), (2, 0));
    }

    #[tokio::test]
    async fn of_two_services_with_one_port_the_one_that_has_it_keeps_it() {
        let port = free_port();
        let mut ports = ports();
        ports.sync(&checks(&[("web", port, 1)]), &LOOPBACK);
        ports.sync(&checks(&[("api", port, 1), ("web", port, 1)]), &LOOPBACK);
        assert_eq!(opened(&ports)[0].0, "web");
        assert!(
            ports
                .problems()
                .all(|p| p.object == key("api") && p.message.contains("answers for shop/web"))
        );
        assert_eq!(ports.problems().count(), 1);
        ports.sync(&checks(&[("api", port, 1)]), &LOOPBACK);
        assert_eq!((opened(&ports)[0].0.as_str(), ports.problems().count()), ("api", 0));
    }

    /// A connection that a client keeps must not outlive the port: it would go on answering for a Service that is gone.
    #[tokio::test]
    async fn a_closed_port_closes_its_connections() {
        let port = free_port();
        let mut ports = ports();
        ports.sync(&checks(&[("web", port, 1)]), &LOOPBACK);
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port));
        let mut stream = stream.await.expect("it is open");
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")
            .await
            .expect("it takes a request");
        let mut buffer = [0; 1024];
        let read = tokio::io::AsyncReadExt::read(&mut stream, &mut buffer)
            .await
            .expect("it answers");
        assert!(buffer[..read].starts_with(b"HTTP/1.1 200 OK"));
        ports.sync(&BTreeMap::new(), &LOOPBACK);
        let mut end = Vec::new();
        let rest = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut end);
        let closed = tokio::time::timeout(Duration::from_secs(5), rest).await;
        assert!(closed.is_ok(), "the connection is still open");
    }

    #[test]
    fn ports_are_served_where_node_ports_are() {
        let addresses = |node_port_addresses| {
            let all = ["192.0.2.1", "198.51.100.1", "2001:db8::1"];
            let all: Vec<IpAddr> = all.iter().map(|addr| addr.parse().expect("an address")).collect();
            let state = NodeState {
                settings: Settings {
                    node_port_addresses,
                    ..Settings::default()
                },
                local: LocalAddresses {
                    primary: vec![all[0], all[2]],
                    all,
                },
                object: None,
                service_cidrs: None,
            };
            let addresses = listen_addresses(&state, &NodeView::new(&state));
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let within = |nets: &[&str]| {
            let nets = nets.iter().map(|net| net.parse().expect("a range"));
            NodePortAddresses::Within(nets.collect())
        };
        assert_eq!(addresses(NodePortAddresses::Primary), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(
            addresses(within(&["198.51.100.0/24", "2001:db8::/64"])),
            ["198.51.100.1", "2001:db8::1"]
        );
        // Ranges of one family say nothing of the other.
        assert_eq!(addresses(within(&["198.51.100.0/24"])), ["198.51.100.1", "::"]);
        assert_eq!(addresses(within(&["0.0.0.0/0", "2001:db8:1::/64"])), ["0.0.0.0"]);
    }
}
