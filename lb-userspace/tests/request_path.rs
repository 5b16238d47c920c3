//! The whole path of a request on a real API server, with kubectl as a user has it: what is created there gets an address,
//! is announced, and serves a client that found it by ARP; what is deleted is withdrawn. The controllers run with what
//! `deploy/` says: its arguments, the rights of its service accounts.
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
use support::cluster::documents;
use support::namespaces::within;
use support::node::{PATIENCE, binary};
use support::poll;
use support::process::Program;
use support::world::{POD as POD_KIND, World, world};

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
/// The namespace of the Ingress controller, and its Service there.
const INGRESS: (&str, &str) = ("fairway-ingress", "ingress");

/// A manifest that users have.
fn manifest(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
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

/// Starts what a Deployment's pods would run, with its arguments and the rights of its service account.
fn start(world: &World<'_>, manifests: &str) -> Program {
    let objects = documents(manifests);
    let deployment = objects.iter().find(|object| object["kind"] == "Deployment");
    let deployment = deployment.expect("there is a Deployment");
    let text = |at: &str| deployment.pointer(at).and_then(Value::as_str).expect("it is set");
    let pod = "/spec/template/spec";
    let namespace = text("/metadata/namespace");
    let account = text(&format!("{pod}/serviceAccountName"));
    let arguments = deployment.pointer(&format!("{pod}/containers/0/args"));
    let arguments = arguments.and_then(Value::as_array).into_iter().flatten();
    let mut words = vec![binary().display().to_string()];
    words.extend(arguments.map(|word| word.as_str().expect("it is text").to_owned()));
    let kubeconfig = world.server.kubeconfig_of_account(namespace, account);
    words.extend(["--kubeconfig".into(), kubeconfig.display().to_string()]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Program::start(account, &words, &world.node.folder.join(format!("{account}.log")))
}

/// The first address in the status of an object.
fn address(world: &World<'_>, kind: &str, name: &str) -> Option<IpAddr> {
    let object = world.cluster.get(kind, name)?;
    let ip = object
        .pointer("/status/loadBalancer/ingress/0/ip")
        .and_then(Value::as_str);
    ip.and_then(|ip| ip.parse().ok())
}

/// Has the first pod of the Ingress controller's Deployment run, at the node's own address.
fn ingress_runs(world: &mut World<'_>) {
    let (namespace, _) = INGRESS;
    let pod = poll("the Deployment has a pod", PATIENCE, || {
        world.must_run();
        let pods = world.cluster.list(POD_KIND, namespace);
        pods.first()?["metadata"]["name"].as_str().map(str::to_owned)
    });
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"namespace": namespace, "name": pod},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "node"},
    });
    world.server.kubectl(&["create", "-f", "-"], &binding.to_string());
    world.pod_runs_at(&format!("{namespace}/{pod}"), &["192.0.2.1"], true);
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
        let files = ["deploy/controller.yaml", "deploy/ingress.yaml"].map(manifest);
        let mut programs = files.each_ref().map(|file| {
            world.server.kubectl(&["apply", "-f", "-"], file);
            start(world, file)
        });

        world.server.kubectl(&["apply", "-f", "-"], POOL);
        ingress_runs(world);
        world.create_pod(POD.0, "my-spring-app", "node");
        world.pod_runs(POD.0, 1, POD.1, true);
        // As the document has them.
        let documents = [
            manifest("examples/loadbalancer/my-spring-app.yaml"),
            manifest("examples/request-path/my-ingress.yaml"),
        ];
        for document in &documents {
            world.server.kubectl(&["apply", "-f", "-"], document);
        }

        let mut given = |kind: &str, name: &str| {
            poll(&format!("an address for {name}"), PATIENCE, || {
                world.must_run();
                programs.iter_mut().for_each(Program::must_run);
                address(world, kind, name)
            })
        };
        let door = given("v1/Service", &format!("{}/{}", INGRESS.0, INGRESS.1));
        let direct = given("v1/Service", "default/my-spring-app");
        assert_ne!(door, direct);
        assert_eq!(given("networking.k8s.io/v1/Ingress", "default/my-ingress"), door);
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
        world
            .server
            .kubectl(&["delete", "service", INGRESS.1, "--namespace", INGRESS.0], "");
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
        programs.into_iter().for_each(Program::kill);
    });
}
