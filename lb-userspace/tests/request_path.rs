//! The whole path of a request on a real API server, with kubectl as a user has it: what is created there gets an address,
//! is announced, and serves a client that found it by ARP; what is deleted is withdrawn.
//!
//! ```text
//! client 192.0.2.2 ── eth0 192.0.2.1 ┌──────┐ ── pod 10.244.1.16 of my-spring-app
//!                                    │ node │    `fairway agent`, `controller` and `ingress`, API server on loopback
//!                                    └──────┘
//! ```

mod support;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::namespaces::within;
use support::node::{PATIENCE, binary};
use support::poll;
use support::process::Program;
use support::world::{World, world};

/// The pod of the application, and what the client is to hear from it.
const POD: (&str, u8, &str) = ("my-spring-app-1", 16, "10.244.1.16:8080");
/// Addresses of the client's own network.
const POOL: &str = "
apiVersion: fairway.io/v1alpha1
kind: AddressPool
metadata: {name: default}
spec:
  blocks: [{start: 192.0.2.100, stop: 192.0.2.109}]
";
/// The Ingress controller, whose pod is in the node's own network.
const INGRESS: &str = "
apiVersion: v1
kind: Service
metadata: {name: fairway-ingress, namespace: default}
spec:
  type: LoadBalancer
  selector: {app: fairway-ingress}
  ports: [{name: http, port: 80, targetPort: 8000}]
";

/// A manifest that users of the document have.
fn example(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// What is asked of the host of the document's Ingress, from the client: status and body.
fn ask(client: &str, address: IpAddr) -> std::io::Result<(u16, String)> {
    within(client, move || {
        let limit = Duration::from_secs(3);
        let mut connection = TcpStream::connect_timeout(&SocketAddr::new(address, 80), limit)?;
        connection.set_read_timeout(Some(limit))?;
        connection.write_all(b"GET / HTTP/1.1\r\nHost: myapp.example.com\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.unwrap_or(0), body.to_owned()))
    })
}

/// Starts another of Fairway's processes beside the agent.
fn start(world: &World<'_>, name: &str, flags: &[&str]) -> Program {
    let (fairway, kubeconfig) = (binary().display().to_string(), world.server.kubeconfig());
    let kubeconfig = kubeconfig.display().to_string();
    let mut words = vec![&*fairway, name, "--kubeconfig", &kubeconfig];
    words.extend(flags);
    Program::start(name, &words, &world.node.folder.join(format!("{name}.log")))
}

/// The first address in the status of an object.
fn address(world: &World<'_>, kind: &str, name: &str) -> Option<IpAddr> {
    let object = world.cluster.get(kind, &format!("default/{name}"))?;
    let ip = object
        .pointer("/status/loadBalancer/ingress/0/ip")
        .and_then(Value::as_str);
    ip.and_then(|ip| ip.parse().ok())
}

/// A pod that runs and is ready, at one of the node's addresses or at its own.
fn pod_at(world: &World<'_>, name: &str, app: &str, address: &str) {
    world.create_pod(name, app, "node");
    let status = json!({
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    });
    let name = format!("default/{name}");
    world
        .cluster
        .patch(support::world::POD, &name, "status", &json!({"status": status}));
}

#[test]
fn what_a_user_creates_with_kubectl_serves_a_client_and_what_is_deleted_is_withdrawn() {
    const NAME: &str = "what_a_user_creates_with_kubectl_serves_a_client_and_what_is_deleted_is_withdrawn";
    world(NAME, "path", |world| {
        let client = world.node.namespaces.path("client");
        let definitions = Command::new(binary()).arg("crds").output().expect("fairway runs");
        let definitions = String::from_utf8(definitions.stdout).expect("it is text");
        world.server.kubectl(&["apply", "-f", "-"], &definitions);
        world.server.kubectl(
            &[
                "wait",
                "--for=condition=Established",
                "crd/addresspools.fairway.io",
                "--timeout=30s",
            ],
            "",
        );
        world.start_agent(world.server.port());
        let mut controller = start(world, "controller", &[]);
        let mut ingress = start(
            world,
            "ingress",
            &[
                "--http-address=192.0.2.1:8000",
                "--https-address=none",
                "--publish-service=default/fairway-ingress",
                "--watch-without-class",
            ],
        );

        world.server.kubectl(&["apply", "-f", "-"], POOL);
        world.server.kubectl(&["apply", "-f", "-"], INGRESS);
        pod_at(world, "fairway-ingress-1", "fairway-ingress", "192.0.2.1");
        world.create_pod(POD.0, "my-spring-app", "node");
        world.pod_runs(POD.0, 1, POD.1, true);
        // As the document has them.
        let documents = [
            example("loadbalancer/my-spring-app.yaml"),
            example("request-path/my-ingress.yaml"),
        ];
        for document in &documents {
            world.server.kubectl(&["apply", "-f", "-"], document);
        }

        let mut given = |kind, name| {
            poll(&format!("an address for {name}"), PATIENCE, || {
                world.must_run();
                controller.must_run();
                ingress.must_run();
                address(world, kind, name)
            })
        };
        let door = given("v1/Service", "fairway-ingress");
        let direct = given("v1/Service", "my-spring-app");
        assert_ne!(door, direct);
        assert_eq!(given("networking.k8s.io/v1/Ingress", "my-ingress"), door);
        let shown = world.server.kubectl(&["get", "svc,ingress"], "");
        println!("{shown}");
        let row = |name: &str| shown.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        assert!(row("service/my-spring-app").contains(&direct.to_string()), "{shown}");
        assert!(
            row("ingress.networking.k8s.io/my-ingress").contains(&door.to_string()),
            "{shown}"
        );

        // By the Ingress, and directly. The client has no entry for either address but what ARP tells.
        for address in [door, direct] {
            let answer = poll(&format!("an answer from {address}"), PATIENCE, || {
                world.must_run();
                ask(&client, address).ok().filter(|(status, _)| *status == 200)
            });
            assert_eq!(answer.1, POD.2);
        }

        for document in &documents {
            world.server.kubectl(&["delete", "-f", "-"], document);
        }
        world.server.kubectl(&["delete", "-f", "-"], INGRESS);
        poll("the addresses are free again", PATIENCE, || {
            let pool = world.cluster.get("fairway.io/v1alpha1/AddressPool", "default")?;
            (pool["status"]["used"] == "0").then_some(())
        });
        poll("nobody answers for the addresses", PATIENCE, || {
            let flush = Command::new("nsenter")
                .arg(format!("--net={client}"))
                .args(["ip", "neighbour", "flush", "dev", "eth0"])
                .status();
            assert!(flush.expect("ip runs").success());
            [door, direct]
                .iter()
                .all(|address| ask(&client, *address).is_err())
                .then_some(())
        });
        controller.kill();
        ingress.kill();
    });
}
