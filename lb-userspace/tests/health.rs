//! What load balancers, probes and Prometheus are told, by a real agent in a namespace of its own: from a folder of
//! manifests, and from a real API server, where objects get Events as well.

mod support;

use std::net::TcpListener;
use std::path::Path;

use serde_json::{Value, json};
use support::api_server::ApiServer;
use support::cluster::Cluster;
use support::namespaces::Answer;
use support::node::{Node, PATIENCE};
use support::{poll, skip};

const HEALTHZ: &str = "127.0.0.1:10256";
const METRICS: &str = "127.0.0.1:10249";
const V4: &str = "192.0.2.1";
const V6: &str = "[2001:db8::1]";

/// A Service with endpoints on this node, `ready` or going, in either family.
fn service(name: &str, health_check: u16, policy: &str, ready: [bool; 2]) -> String {
    let number = health_check - 32_000;
    let slice = |family: &str, address: &str, ready: bool| {
        format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-{family}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: {family}
ports: [{{name: http, port: 8080}}, {{name: https, port: 8443}}]
endpoints:
  - {{addresses: ['{address}'], nodeName: node, conditions: {{ready: {ready}, serving: true, terminating: {}}}}}
",
            !ready
        )
    };
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: {policy}
  healthCheckNodePort: {health_check}
  clusterIPs: [10.96.1.{number}, 'fd00:10:96::1:{number}']
  ports: [{{name: http, port: 80, nodePort: 31{number:03}}}, {{name: https, port: 443, nodePort: 30{number:03}}}]
{}{}",
        slice("IPv4", "10.244.1.10", ready[0]),
        slice("IPv6", "fd00:10:244:1::10", ready[1]),
    )
}

/// Waits until the answer of a path has this status.
fn until(node: &mut Node, target: &str, path: &'static str, code: u16) -> Answer {
    poll(&format!("{code} from {target}{path}"), PATIENCE, || {
        node.must_run();
        node.ask(target, path).ok().filter(|answer| answer.code() == code)
    })
}

/// Waits until nothing listens there.
fn until_closed(node: &mut Node, target: &str) {
    poll(&format!("{target} closes"), PATIENCE, || {
        node.must_run();
        let refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
        node.ask(target, "/").is_err_and(|error| refused(&error)).then_some(())
    });
}

/// The value of a metric, if it is told.
fn metric(node: &Node, sample: &str) -> Option<f64> {
    let answer = node.ask(METRICS, "/metrics").expect("metrics are told");
    assert_eq!(answer.code(), 200);
    let value = |line: &str| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok();
    answer.body.lines().find_map(value)
}

#[test]
fn health_check_ports_follow_services_endpoints_and_policy() {
    let Some(mut node) = Node::new("health_check_ports_follow_services_endpoints_and_policy", "ports") else {
        return;
    };
    let at = |address: &str, port: u16| format!("{address}:{port}");
    node.manifest("web.yaml", Some(&service("web", 32_001, "Local", [true, false])));
    node.start(&[]);

    // Each family has its own endpoints, as with kube-proxy. Two ports of a pod are one endpoint.
    let good = until(&mut node, &at(V4, 32_001), "/healthz", 200);
    let told: Value = serde_json::from_str(&good.body).expect("it is JSON");
    let web = json!({"namespace": "default", "name": "web"});
    assert_eq!(
        told,
        json!({"service": web, "localEndpoints": 1, "serviceProxyHealthy": true})
    );
    let head = good.head.to_lowercase();
    for header in [
        "content-type: application/json",
        "x-content-type-options: nosniff",
        "x-load-balancing-endpoint-weight: 1",
    ] {
        assert!(head.contains(header), "no {header} in {head}");
    }
    let bad = until(&mut node, &at(V6, 32_001), "/", 503);
    let told: Value = serde_json::from_str(&bad.body).expect("it is JSON");
    assert_eq!(
        (&told["localEndpoints"], &told["serviceProxyHealthy"]),
        (&json!(0), &json!(true))
    );
    assert!(bad.head.to_lowercase().contains("x-load-balancing-endpoint-weight: 0"));
    // Nothing listens on addresses that have no NodePorts.
    until_closed(&mut node, &at("127.0.0.1", 32_001));

    // The pod goes: it still serves, and the load balancer is told to turn away.
    node.manifest("web.yaml", Some(&service("web", 32_001, "Local", [false, true])));
    until(&mut node, &at(V4, 32_001), "/", 503);
    until(&mut node, &at(V6, 32_001), "/", 200);

    node.manifest("web.yaml", Some(&service("web", 32_002, "Local", [true, true])));
    until(&mut node, &at(V4, 32_002), "/", 200);
    until_closed(&mut node, &at(V4, 32_001));
    let status = node.status().expect("there is a status");
    let ports = &status["agent"]["health"]["ports"];
    assert_eq!(ports.as_array().map(Vec::len), Some(2), "{status}");
    assert_eq!(
        (&ports[0]["service"], &ports[0]["local_endpoints"]),
        (&json!("web"), &json!(1)),
        "{status}"
    );

    // Addresses come and go at run time.
    node.ip("addr del 192.0.2.1/24 dev eth0");
    node.ip("addr add 192.0.2.7/24 dev eth0");
    node.ip("route add default via 192.0.2.254");
    until(&mut node, &at("192.0.2.7", 32_002), "/", 200);

    node.manifest("web.yaml", Some(&service("web", 32_002, "Cluster", [true, true])));
    until_closed(&mut node, &at("192.0.2.7", 32_002));
    node.manifest("web.yaml", Some(&service("web", 32_002, "Local", [true, true])));
    until(&mut node, &at("192.0.2.7", 32_002), "/", 200);
    node.manifest("web.yaml", None);
    until_closed(&mut node, &at(V6, 32_002));
}

#[test]
fn a_health_check_port_in_use_is_reported_and_served_once_it_is_free() {
    const PROBLEM: &str = "fairway_problem{kind=\"Service\",namespace=\"default\",name=\"web\",\
                           field=\"spec.healthCheckNodePort\",reason=\"FailedToStartServiceHealthcheck\"}";
    let name = "a_health_check_port_in_use_is_reported_and_served_once_it_is_free";
    let Some(mut node) = Node::new(name, "clash") else {
        return;
    };
    let foreign = node
        .namespaces
        .within("node", || TcpListener::bind("0.0.0.0:32001").expect("the port is free"));
    node.manifest("web.yaml", Some(&service("web", 32_001, "Local", [true, true])));
    node.manifest("shop.yaml", Some(&service("shop", 32_002, "Local", [true, true])));
    node.start(&["--metrics-address", "127.0.0.1:10249"]);

    until(&mut node, &format!("{V4}:32002"), "/", 200);
    // Of the Service itself one family is served.
    until(&mut node, &format!("{V6}:32001"), "/", 200);
    let told = poll("the clash is told", PATIENCE, || {
        let status = node.status()?;
        let problems = status["agent"]["problems"].as_array()?.clone();
        problems
            .iter()
            .find(|problem| problem.to_string().contains("default/web"))
            .cloned()
    });
    assert_eq!(
        told,
        "Service default/web: spec.healthCheckNodePort: node node cannot listen on 192.0.2.1:32001 (Address already in \
         use (os error 98)), so load balancers take it for unhealthy; end what uses the port on the node, or give the \
         Service another healthCheckNodePort"
    );
    assert_eq!(metric(&node, PROBLEM), Some(1.0));
    drop(foreign);
    until(&mut node, &format!("{V4}:32001"), "/", 200);
    poll("the problem is over", PATIENCE, || {
        metric(&node, PROBLEM).is_none().then_some(())
    });
}

fn node_object(taints: &str) -> String {
    format!(
        "apiVersion: v1
kind: Node
metadata: {{name: node}}
spec: {{taints: [{taints}]}}
status: {{addresses: [{{type: InternalIP, address: 192.0.2.1}}]}}
"
    )
}

#[test]
fn healthz_turns_load_balancers_away_from_a_node_that_goes_and_livez_does_not() {
    let name = "healthz_turns_load_balancers_away_from_a_node_that_goes_and_livez_does_not";
    let Some(mut node) = Node::new(name, "healthz") else {
        return;
    };
    node.manifest("node.yaml", Some(&node_object("")));
    // kube-proxy may still run beside, and have the ports.
    let foreign = node
        .namespaces
        .within("node", || TcpListener::bind("[::]:10256").expect("the port is free"));
    node.start(&[]);
    let beside = poll("the clash is told", PATIENCE, || {
        let status = node.status()?;
        Some(status["agent"]["problems"][0].as_str()?.to_owned())
    });
    assert!(
        beside.starts_with("Node node: --healthz-address: the agent cannot listen on 0.0.0.0:10256 (Address already"),
        "{beside}"
    );
    drop(foreign);
    // The address stands for both families.
    for target in [HEALTHZ, "[::1]:10256", "192.0.2.1:10256"] {
        let answer = until(&mut node, target, "/healthz", 200);
        let told: Value = serde_json::from_str(&answer.body).expect("it is JSON");
        assert_eq!((&told["nodeEligible"], &told["healthy"]), (&json!(true), &json!(true)));
        assert!(told["lastUpdated"].is_string() && told["currentTime"].is_string());
        let head = answer.head.to_lowercase();
        assert!(head.contains("content-type: application/json") && head.contains("x-content-type-options: nosniff"));
    }

    node.manifest(
        "node.yaml",
        Some(&node_object(
            "{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule, value: '1'}",
        )),
    );
    let going = until(&mut node, HEALTHZ, "/healthz", 503);
    assert!(
        going.body.contains(r#""nodeEligible":false,"healthy":true"#),
        "{}",
        going.body
    );
    assert_eq!(
        until(&mut node, HEALTHZ, "/livez", 200)
            .body
            .matches("nodeEligible")
            .count(),
        0
    );
    // A cordon alone says nothing of the traffic that is there.
    node.manifest(
        "node.yaml",
        Some(&node_object(
            "{key: node.kubernetes.io/unschedulable, effect: NoSchedule}",
        )),
    );
    until(&mut node, HEALTHZ, "/healthz", 200);
    assert_eq!(node.ask(HEALTHZ, "/").expect("it answers").code(), 404);
    assert_eq!(node.ask(METRICS, "/proxyMode").expect("it answers").body, "ebpf");
    assert!(metric(&node, r#"kubeproxy_proxy_healthz_total{code="503"}"#) >= Some(1.0));
    assert!(metric(&node, r#"fairway_build_info{version="0.1.0"}"#).is_some());
}

#[test]
fn health_and_metrics_can_be_turned_off() {
    let Some(mut node) = Node::new("health_and_metrics_can_be_turned_off", "off") else {
        return;
    };
    node.start(&["--healthz-address", "none", "--metrics-address", "none"]);
    until_closed(&mut node, HEALTHZ);
    until_closed(&mut node, METRICS);
    let status = node.status().expect("there is a status");
    assert_eq!(
        (
            &status["agent"]["health"]["healthz"],
            &status["agent"]["health"]["healthy"]
        ),
        (&Value::Null, &json!(true))
    );
}

#[test]
fn objects_get_events_and_changes_are_timed() {
    let name = "objects_get_events_and_changes_are_timed";
    let programs = match ApiServer::programs() {
        Ok(programs) => programs,
        Err(reason) => return skip(name, &reason),
    };
    let Some(mut node) = Node::new(name, "events") else {
        return;
    };
    node.inside(|node| by_the_api(node, &programs));
}

fn shared_address(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "default", "name": name},
        "spec": {"externalIPs": ["198.51.100.9"], "ports": [{"port": 80, "protocol": "TCP"}]},
    })
}

/// A slice of the Service `first` whose change was triggered then.
fn slice(name: &str, triggered: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "default",
            "name": name,
            "labels": {"kubernetes.io/service-name": "first"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": triggered},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.244.1.10"]}],
    })
}

/// The Events about an object of this name for this reason.
fn events(cluster: &Cluster, name: &str, reason: &str) -> Vec<Value> {
    let mut events = cluster.list("events.k8s.io/v1/Event", "default");
    events.retain(|event| event["regarding"]["name"] == name && event["reason"] == reason);
    events
}

fn by_the_api(node: &mut Node, programs: &Path) {
    const SLICE: &str = "discovery.k8s.io/v1/EndpointSlice";
    const LATENCIES: &str = r#"kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"}"#;
    let mut server = ApiServer::start(programs);
    let cluster = Cluster::of(&server);
    cluster.apply_manifests_for_users();
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}}));
    cluster.apply(&shared_address("first"));
    // Which of them is older is told by the second in which they were created, then by their names.
    cluster.apply(&shared_address("second"));
    let kubeconfig = server.kubeconfig_for("agent", server.port());
    let kubeconfig = kubeconfig.display().to_string();
    let flags = ["--kubeconfig", &kubeconfig];

    // An agent that may not write Events says so once and does everything else.
    let role = ("rbac.authorization.k8s.io/v1/ClusterRole", "fairway");
    let whole = cluster.get(role.0, role.1).expect("the role is there");
    let mut rules = whole["rules"].as_array().expect("it has rules").clone();
    rules.retain(|rule| rule["apiGroups"] != json!(["events.k8s.io"]));
    cluster.patch(role.0, role.1, "", &json!({"rules": rules}));
    node.start(&flags);
    until(node, HEALTHZ, "/healthz", 200);
    poll("the refusal is logged", PATIENCE, || {
        let said = node.log().matches("the Kubernetes API refuses Events").count();
        (said == 1).then_some(())
    });
    node.kill();
    assert_eq!(events(&cluster, "second", "AddressConflict").len(), 0);
    cluster.patch(role.0, role.1, "", &json!({"rules": whole["rules"]}));

    // With its role it writes them: one for each thing that is wrong, where `kubectl describe` finds it.
    let foreign = TcpListener::bind("0.0.0.0:10256").expect("the port is free");
    node.start(&flags);
    let event = poll("an Event", PATIENCE, || {
        node.must_run();
        events(&cluster, "second", "AddressConflict").pop()
    });
    let second = cluster.get("v1/Service", "default/second").expect("it is there");
    assert_eq!(event["regarding"]["uid"], second["metadata"]["uid"], "{event}");
    assert_eq!(
        (&event["regarding"]["kind"], &event["type"]),
        (&json!("Service"), &json!("Warning"))
    );
    assert_eq!(
        event["note"],
        "spec.externalIPs: 198.51.100.9 port 80 is served for default/first, which also claims it; let only one Service \
         have it"
    );
    assert_eq!(event["reportingInstance"], "node");
    let of_node = poll("an Event of the node", PATIENCE, || {
        events(&cluster, "node", "FailedToStartProxierHealthcheck").pop()
    });
    let own = cluster.get("v1/Node", "node").expect("it is there");
    assert_eq!(of_node["regarding"]["uid"], own["metadata"]["uid"], "{of_node}");
    drop(foreign);
    until(node, HEALTHZ, "/healthz", 200);

    // An agent that is started again finds them written.
    node.kill();
    node.start(&flags);
    cluster.apply(&shared_address("third"));
    poll("an Event of the third", PATIENCE, || {
        events(&cluster, "third", "AddressConflict").pop()
    });
    assert_eq!(events(&cluster, "second", "AddressConflict").len(), 1);

    // The time from a change to its being in force; not for older changes, nor for deletions.
    let now = || jiff::Timestamp::now().to_string();
    let timed = |node: &Node| metric(node, LATENCIES).unwrap_or(0.0);
    let until_timed =
        |node: &Node, count: f64| poll("a change is timed", PATIENCE, || (timed(node) >= count).then_some(()));
    assert_eq!(timed(node), 0.0);
    cluster.apply(&slice("a", &now()));
    until_timed(node, 1.0);
    cluster.apply(&slice("b", "2020-01-01T00:00:00Z"));
    cluster.delete(SLICE, "default/a", None);
    cluster.apply(&slice("c", &now()));
    until_timed(node, 2.0);
    assert_eq!(timed(node), 2.0);

    // Losing the API changes nothing; a Node that goes does.
    server.stop();
    assert_eq!(node.ask(HEALTHZ, "/healthz").expect("it answers").code(), 200);
    server.start_again();
    let cluster = Cluster::of(&server);
    let taint = json!({"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"});
    cluster.patch("v1/Node", "node", "", &json!({"spec": {"taints": [taint]}}));
    until(node, HEALTHZ, "/healthz", 503);
    cluster.patch("v1/Node", "node", "", &json!({"spec": {"taints": null}}));
    until(node, HEALTHZ, "/healthz", 200);
    cluster.delete("v1/Node", "node", None);
    until(node, HEALTHZ, "/healthz", 503);
    assert_eq!(node.ask(HEALTHZ, "/livez").expect("it answers").code(), 200);
}
