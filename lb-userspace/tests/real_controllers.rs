//! The agent behind the real controllers of Kubernetes: Deployments, Services and what becomes of them, step by step.
//! Judged by `fairway services` and by requests of a client outside.

#[path = "real_controllers/fields.rs"]
mod fields;
mod support;

use serde_json::{Value, json};
use support::proxy::Proxy;
use support::world::{SERVICE, World, runs, terminating, world};
use support::{node::PATIENCE, poll};

const TARGET: &str = "172.30.0.80:80";

/// A Service of the pods with this label, at [`TARGET`].
fn service(name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "default", "name": name},
        "spec": {
            "clusterIP": "172.30.0.80",
            "selector": {"app": app},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}],
        },
    })
}

/// A Deployment whose pods are on this node. They keep running for a while when they are deleted.
fn deployment(replicas: u32, port: u16) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "nodeName": "node",
                    "terminationGracePeriodSeconds": 600,
                    "containers": [{
                        "name": "app",
                        "image": "app",
                        "ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}],
                    }],
                },
            },
        },
    })
}

#[test]
fn a_deployment_is_followed_step_by_step() {
    world("a_deployment_is_followed_step_by_step", "deploy", |world| {
        world.start_agent(world.server.port());
        world.cluster.apply(&service("web", "web"));
        world.cluster.apply(&deployment(2, 8080));
        rolling_update(world);
        scale_to_nobody_and_back(world);
        same_address_for_another_service(world);
        endpoints_written_by_hand(world);
    });
}

/// Says of the one pod that is new that it runs, under this number, and returns its name.
fn new_pod_runs(world: &mut World<'_>, number: u8, ready: bool) -> String {
    let new = world.pods(1, |pod| !runs(pod) && !terminating(pod)).remove(0);
    world.pod_runs(&new, 1, number, ready);
    new
}

fn rolling_update(world: &mut World<'_>) {
    const OLD: [&str; 2] = ["10.244.1.10:8080", "10.244.1.11:8080"];
    const NEW: [&str; 2] = ["10.244.1.12:9090", "10.244.1.13:9090"];
    world.until_served("no pod runs yet", "web", TARGET, &[]);
    let pods = world.pods(2, |pod| !runs(pod));
    world.pod_runs(&pods[0], 1, 10, true);
    world.until_backends("one pod is ready", "web", &OLD[..1]);
    world.pod_runs(&pods[1], 1, 11, true);
    world.until_served("both are", "web", TARGET, &OLD);

    // Another version, whose port of the same name has another number.
    world.cluster.apply(&deployment(2, 9090));
    let first = new_pod_runs(world, 12, false);
    world.until_backends("a pod that is not ready gets nothing", "web", &OLD);
    world.pod_runs(&first, 1, 12, true);
    // The controller takes one of the old pods out as soon as the new one is ready.
    let out = world.pods(1, terminating).remove(0);
    let (left, out_address) = if out == pods[0] {
        (OLD[1], OLD[0])
    } else {
        (OLD[0], OLD[1])
    };
    world.until_served("an old pod goes, a new one came", "web", TARGET, &[left, NEW[0]]);
    new_pod_runs(world, 13, true);
    world.pods(2, terminating);
    world.until_served("the last old pod goes", "web", TARGET, &NEW);
    world.pod_is_gone(&out);
    let last = world.pods(1, terminating).remove(0);
    world.pod_is_gone(&last);
    world.pods(0, terminating);
    world.until_backends(&format!("they are gone, {out_address} first"), "web", &NEW);
}

fn scale_to_nobody_and_back(world: &mut World<'_>) {
    const BOTH: [&str; 2] = ["10.244.1.12:9090", "10.244.1.13:9090"];
    world.cluster.apply(&deployment(0, 9090));
    let going = world.pods(2, terminating);
    let of_12 = world.pods(1, |pod| pod["status"]["podIP"] == "10.244.1.12").remove(0);
    // Nobody else is there, and they still serve.
    world.until_served(
        "terminating pods serve as long as there is no other",
        "web",
        TARGET,
        &BOTH,
    );
    world.pod_runs(&of_12, 1, 12, false);
    world.until_served("one of them has ended its work", "web", TARGET, &BOTH[1..]);
    for pod in &going {
        world.pod_is_gone(pod);
    }
    world.until_served("nobody is left", "web", TARGET, &[]);
    world.cluster.apply(&deployment(1, 9090));
    let pod = new_pod_runs(world, 14, true);
    world.until_served("one is back", "web", TARGET, &["10.244.1.14:9090"]);
    world.pod_runs(&pod, 1, 14, false);
    world.until_served("its probe fails", "web", TARGET, &[]);
    world.pod_runs(&pod, 1, 14, true);
    world.until_served("its probe succeeds again", "web", TARGET, &["10.244.1.14:9090"]);
}

fn same_address_for_another_service(world: &mut World<'_>) {
    world.cluster.delete(SERVICE, "default/web", None);
    world.until("a Service that is deleted is gone", "web", <[Value]>::is_empty);
    world.create_pod("db-1", "db", "node");
    world.pod_runs("db-1", 1, 20, true);
    let mut other = service("db", "db");
    other["spec"]["ports"][0]["targetPort"] = json!(8080);
    world.cluster.apply(&other);
    world.until_served("another Service has its address", "db", TARGET, &["10.244.1.20:8080"]);
    world.cluster.delete(SERVICE, "default/db", None);
    world.cluster.apply(&service("web", "web"));
    world.until_served("and the first one has it again", "web", TARGET, &["10.244.1.14:9090"]);
    assert!(world.rows("db").is_empty());
}

/// Endpoints of a Service without a selector, as people write them: a controller mirrors them into slices.
fn endpoints_written_by_hand(world: &mut World<'_>) {
    let mut service = service("manual", "");
    service["spec"]["clusterIP"] = json!("172.30.0.90");
    service["spec"]["selector"] = Value::Null;
    world.cluster.apply(&service);
    let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
    let endpoints = |addresses: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {"namespace": "default", "name": "manual"},
            "subsets": [{"addresses": addresses, "ports": ports}],
        })
    };
    world
        .cluster
        .apply(&endpoints(json!([{"ip": "10.244.1.30"}, {"ip": "10.244.1.31"}])));
    let target = "172.30.0.90:80";
    world.until_served(
        "two by hand",
        "manual",
        target,
        &["10.244.1.30:8080", "10.244.1.31:8080"],
    );
    world.cluster.apply(&endpoints(json!([{"ip": "10.244.1.31"}])));
    world.until_served("one of them leaves", "manual", target, &["10.244.1.31:8080"]);
}

#[test]
fn the_api_may_be_lost_and_what_happened_meanwhile_is_caught_up_with() {
    world(
        "the_api_may_be_lost_and_what_happened_meanwhile_is_caught_up_with",
        "lost",
        |world| {
            // Made here, its threads are in the node's namespace.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("a runtime");
            let mut wire = runtime.block_on(Proxy::start(world.server.port()));
            world.start_agent(wire.port());
            for number in [10, 11, 12] {
                let name = format!("web-{number}");
                world.create_pod(&name, "web", "node");
                world.pod_runs(&name, 1, number, true);
            }
            let mut web = service("web", "web");
            web["spec"]["ports"][0]["targetPort"] = json!(8080);
            world.cluster.apply(&web);
            let all = ["10.244.1.10:8080", "10.244.1.11:8080", "10.244.1.12:8080"];
            world.until_served("it is there", "web", TARGET, &all);

            // A watch that is cut goes on where it was.
            runtime.block_on(wire.cut());
            world.pod_runs("web-10", 1, 10, false);
            slice_has(world, "web", 2);
            assert_eq!(world.reached(TARGET).len(), 3, "what is known stays in force");
            runtime.block_on(wire.mend());
            world.until_served("the watch is resumed", "web", TARGET, &all[1..]);

            // If the server does not know any more what happened since, there is a new list (410 Gone).
            runtime.block_on(wire.cut());
            world.pod_runs("web-11", 1, 11, false);
            slice_has(world, "web", 1);
            world.cluster.delete(SERVICE, "default/web", None);
            web["metadata"]["name"] = json!("web2");
            world.cluster.apply(&web);
            slice_has(world, "web2", 1);
            world.server.stop();
            world.server.forget_history();
            world.server.start_again();
            runtime.block_on(wire.mend());
            world.until_served("a new list", "web2", TARGET, &all[2..]);
            assert!(world.rows("web").is_empty());

            // The server itself goes away for a while, for everybody.
            world.server.stop();
            assert_eq!(world.reached(TARGET).len(), 1, "what is known stays in force");
            let health = world.node.ask("127.0.0.1:10256", "/healthz");
            assert_eq!(health.expect("it answers").code(), 200);
            world.server.start_again();
            world.pod_runs("web-10", 1, 10, true);
            world.until_served("what changes afterwards arrives", "web2", TARGET, &[all[0], all[2]]);
        },
    );
}

/// Waits until the controller has written that so many endpoints of a Service are ready.
fn slice_has(world: &mut World<'_>, service: &str, ready: usize) {
    poll(&format!("{ready} ready in the slice of {service}"), PATIENCE, || {
        world.must_run();
        let mut slices = world.cluster.list("discovery.k8s.io/v1/EndpointSlice", "default");
        slices.retain(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service);
        let endpoints = slices
            .iter()
            .filter_map(|slice| slice["endpoints"].as_array())
            .flatten();
        let count = endpoints
            .filter(|endpoint| endpoint["conditions"]["ready"] == true)
            .count();
        (count == ready).then_some(())
    });
}
