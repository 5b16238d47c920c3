//! Every field of a Service that decides about traffic, changed and changed back while the agent runs.

use serde_json::{Value, json};

use super::support::node::PATIENCE;
use super::support::poll;
use super::support::world::{SERVICE, World, backends, world};
use super::{TARGET, service};

const LOCAL: &str = "10.244.1.10:8080";
const REMOTE: &str = "10.244.2.10:8080";

/// The rows of a kind, if they all lead there.
fn lead(rows: &[Value], kind: &str, to: &[&str]) -> bool {
    let mut rows = rows.iter().filter(|row| row["kind"] == kind).peekable();
    let to = to.iter().map(ToString::to_string).collect();
    rows.peek().is_some() && rows.all(|row| backends(row, "external") == to)
}

fn has(rows: &[Value], kind: &str, address: &str) -> bool {
    rows.iter().any(|row| row["kind"] == kind && row["address"] == address)
}

fn lacks(rows: &[Value], kind: &str) -> bool {
    !rows.is_empty() && rows.iter().all(|row| row["kind"] != kind)
}

#[test]
fn every_field_of_a_service_that_matters_can_change() {
    world("every_field_of_a_service_that_matters_can_change", "fields", |world| {
        world.start_agent(world.server.port());
        world.create_pod("web-1", "web", "node");
        world.create_pod("web-2", "web", "other");
        world.pod_runs("web-1", 1, 10, true);
        world.pod_runs("web-2", 2, 10, true);
        let mut service = service("web", "web");
        service["spec"]["ports"][0]["targetPort"] = json!(8080);
        world.cluster.apply(&service);
        world.until_backends("it is there", "web", &[LOCAL, REMOTE]);
        ports_and_endpoints(world);
        kinds_and_addresses(world);
        policies(world);
        families_and_owners(world);
    });
}

fn ports_and_endpoints(world: &mut World<'_>) {
    let port = |number: u16, target: u16| json!({"name": "http", "port": number, "targetPort": target});
    world.patch_service("web", &json!({"ports": [port(81, 9090)]}));
    world.until("another port, another target port", "web", |rows| {
        has(rows, "ClusterIP", "172.30.0.80:81") && lead(rows, "ClusterIP", &["10.244.1.10:9090", "10.244.2.10:9090"])
    });
    let udp = json!({"name": "dns", "port": 81, "targetPort": 8080, "protocol": "UDP"});
    world.patch_service("web", &json!({"ports": [port(81, 8080), udp]}));
    world.until("one more protocol", "web", |rows| {
        rows.len() == 2 && lead(rows, "ClusterIP", &[LOCAL, REMOTE])
    });
    world.patch_service("web", &json!({"ports": [port(80, 8080)]}));
    world.until("one port again", "web", |rows| {
        rows.len() == 1 && has(rows, "ClusterIP", TARGET)
    });

    world.patch_service("web", &json!({"selector": {"app": "nobody"}}));
    world.until_backends("a selector of nobody", "web", &[]);
    world.patch_service("web", &json!({"selector": {"app": "web"}}));
    world.until_backends("the selector again", "web", &[LOCAL, REMOTE]);
    world.pod_runs("web-2", 2, 10, false);
    world.until_backends("a pod is not ready", "web", &[LOCAL]);
    world.patch_service("web", &json!({"publishNotReadyAddresses": true}));
    world.until_backends("it is published all the same", "web", &[LOCAL, REMOTE]);
    world.patch_service("web", &json!({"publishNotReadyAddresses": false}));
    world.pod_runs("web-2", 2, 10, true);
    world.until_backends("it is ready", "web", &[LOCAL, REMOTE]);

    // Hints are the controller's; the field is not looked at here.
    for distribution in ["PreferSameZone", "PreferSameNode"] {
        world.patch_service("web", &json!({"trafficDistribution": distribution}));
        world.until_backends(distribution, "web", &[LOCAL]);
        world.patch_service("web", &json!({"trafficDistribution": null}));
        world.until_backends("no preference", "web", &[LOCAL, REMOTE]);
    }

    let affinity =
        |rows: &[Value], seconds: Value| !rows.is_empty() && rows.iter().all(|row| row["affinity_s"] == seconds);
    world.patch_service("web", &json!({"sessionAffinity": "ClientIP"}));
    world.until("affinity", "web", |rows| affinity(rows, json!(10800)));
    let timeout = json!({"clientIP": {"timeoutSeconds": 60}});
    world.patch_service("web", &json!({"sessionAffinityConfig": timeout}));
    world.until("a shorter one", "web", |rows| affinity(rows, json!(60)));
    world.patch_service(
        "web",
        &json!({"sessionAffinity": "None", "sessionAffinityConfig": null}),
    );
    world.until("none", "web", |rows| affinity(rows, Value::Null));
}

fn kinds_and_addresses(world: &mut World<'_>) {
    let port =
        |node_port: u16| json!({"ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": node_port}]});
    world.patch_service("web", &json!({"type": "NodePort"}));
    world.until("a NodePort", "web", |rows| lead(rows, "NodePort", &[LOCAL, REMOTE]));
    world.patch_service("web", &port(30080));
    world.until("another NodePort", "web", |rows| {
        has(rows, "NodePort", "192.0.2.1:30080") && rows.iter().filter(|row| row["kind"] == "NodePort").count() == 1
    });

    world.patch_service("web", &json!({"externalIPs": ["198.51.100.9"]}));
    world.until("an external IP", "web", |rows| {
        has(rows, "ExternalIP", "198.51.100.9:80")
    });
    world.patch_service("web", &json!({"externalIPs": null}));
    world.until("none any more", "web", |rows| lacks(rows, "ExternalIP"));

    world.patch_service("web", &json!({"type": "LoadBalancer"}));
    let ingress =
        |mode: &str| json!({"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.80", "ipMode": mode}]}}});
    let balancer = "198.51.100.80:80";
    world.cluster.patch(SERVICE, "default/web", "status", &ingress("VIP"));
    world.until("a load balancer", "web", |rows| has(rows, "LoadBalancer", balancer));
    world.cluster.patch(SERVICE, "default/web", "status", &ingress("Proxy"));
    world.until("one that is a proxy", "web", |rows| lacks(rows, "LoadBalancer"));
    world.cluster.patch(SERVICE, "default/web", "status", &ingress("VIP"));
    world.until("a load balancer again", "web", |rows| {
        has(rows, "LoadBalancer", balancer)
    });
    let restricted = |rows: &[Value], is: bool| {
        let mut balancers = rows.iter().filter(|row| row["kind"] == "LoadBalancer");
        balancers.all(|row| row["source_ranges"] == is) && has(rows, "LoadBalancer", balancer)
    };
    world.patch_service("web", &json!({"loadBalancerSourceRanges": ["203.0.113.0/24"]}));
    world.until("restricted", "web", |rows| restricted(rows, true));
    world.patch_service("web", &json!({"loadBalancerSourceRanges": null}));
    world.until("open", "web", |rows| restricted(rows, false));
}

fn policies(world: &mut World<'_>) {
    world.patch_service("web", &json!({"externalTrafficPolicy": "Local"}));
    world.until("clients outside stay here, others do not", "web", |rows| {
        let outside = ["NodePort", "LoadBalancer"].map(|kind| lead(rows, kind, &[LOCAL]));
        let inside = rows.iter().all(|row| backends(row, "internal").len() == 2);
        outside == [true, true] && inside && lead(rows, "ClusterIP", &[LOCAL, REMOTE])
    });
    let service = world.cluster.get(SERVICE, "default/web").expect("it is there");
    let health = format!("192.0.2.1:{}", service["spec"]["healthCheckNodePort"]);
    let answers = |world: &World<'_>, code: u16| world.node.ask(&health, "/").is_ok_and(|answer| answer.code() == code);
    poll("the health check answers", PATIENCE, || {
        answers(world, 200).then_some(())
    });
    world.pod_runs("web-1", 1, 10, false);
    poll("it says that nobody is here", PATIENCE, || {
        answers(world, 503).then_some(())
    });
    world.until("dropped outside, served inside", "web", |rows| {
        let outside = rows.iter().filter(|row| row["kind"] != "ClusterIP");
        outside.clone().count() == 2
            && outside
                .into_iter()
                .all(|row| row["external"] == "drop" && row["internal"] == "backends")
    });
    world.patch_service("web", &json!({"externalTrafficPolicy": "Cluster"}));
    world.until("clients outside go anywhere", "web", |rows| {
        lead(rows, "NodePort", &[REMOTE])
    });
    poll("nothing listens any more", PATIENCE, || {
        world.node.ask(&health, "/").is_err().then_some(())
    });

    world.patch_service("web", &json!({"internalTrafficPolicy": "Local"}));
    world.until("the ClusterIP drops", "web", |rows| {
        let mut rows = rows.iter().filter(|row| row["kind"] == "ClusterIP").peekable();
        rows.peek().is_some() && rows.all(|row| row["external"] == "drop" && row["internal"] == "drop")
    });
    world.pod_runs("web-1", 1, 10, true);
    world.until_served("the ClusterIP stays here", "web", TARGET, &[LOCAL]);
    world.patch_service("web", &json!({"internalTrafficPolicy": "Cluster"}));
    world.until_backends("and goes anywhere again", "web", &[LOCAL, REMOTE]);
}

fn families_and_owners(world: &mut World<'_>) {
    world.patch_service(
        "web",
        &json!({"type": "ClusterIP", "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}),
    );
    world.until("a ClusterIP alone", "web", |rows| {
        lacks(rows, "NodePort") && lacks(rows, "LoadBalancer")
    });

    world.patch_service("web", &json!({"ipFamilyPolicy": "PreferDualStack"}));
    let v6 = ["[fd00:10:244:1::10]:8080", "[fd00:10:244:2::10]:8080"].map(str::to_owned);
    world.until("both families", "web", |rows| {
        let mut rows = rows.iter().map(|row| backends(row, "external"));
        rows.len() == 2 && rows.any(|backends| backends == v6.clone().into())
    });
    world.patch_service("web", &json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]}));
    world.until("one family again", "web", |rows| {
        rows.len() == 1 && lead(rows, "ClusterIP", &[LOCAL, REMOTE])
    });

    let label = |value: Value| json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": value}}});
    world
        .cluster
        .patch(SERVICE, "default/web", "", &label(json!("another")));
    world.until("another proxy has it", "web", <[Value]>::is_empty);
    world.cluster.patch(SERVICE, "default/web", "", &label(Value::Null));
    world.until_backends("it is ours again", "web", &[LOCAL, REMOTE]);
    world.patch_service(
        "web",
        &json!({"type": "ExternalName", "externalName": "example.com", "clusterIP": null, "clusterIPs": null}),
    );
    world.until("it is a name only", "web", <[Value]>::is_empty);
}
