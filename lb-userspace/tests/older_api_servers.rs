//! The API source against servers that do not understand the best ways of asking: a few lines of HTTP that answer as such
//! servers do.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use fairway::model::{Policy, Standing};
use fairway::sources::Event;
use fairway::sources::kube::{Access, Options, run};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// What a server makes of a list that is asked for as a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Streams {
    /// It knows of it, and refuses.
    Refused,
    /// It does not know of it, and sends changes, of which there are none.
    Ignored,
}

/// Starts a server that lists one Service and one slice, and cannot select Services by a field. Returns its port.
fn server(streams: Streams) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || serve(&connection, streams));
        }
    });
    port
}

fn serve(mut connection: &TcpStream, streams: Streams) -> std::io::Result<()> {
    let mut lines = BufReader::new(connection).lines();
    while let Some(request) = lines.next().transpose()? {
        // No request has a body.
        while !lines.next().transpose()?.unwrap_or_default().is_empty() {}
        let has = |text: &str| request.contains(text);
        let (status, body) = if has("/servicecidrs?") {
            refusal(404, "NotFound", "the server could not find the requested resource")
        } else if has("sendInitialEvents=true") && streams == Streams::Refused {
            refusal(422, "Invalid", "sendInitialEvents is forbidden for watch")
        } else if has("/services?") && has("fieldSelector=spec.clusterIP") && !has("sendInitialEvents") {
            refusal(400, "BadRequest", "field label not supported: spec.clusterIP")
        } else if has("watch=true") {
            // Headers, and then nothing, for as long as anybody wants to hear it.
            write!(
                connection,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            )?;
            continue;
        } else {
            (200, list(&request))
        };
        let body = body.to_string();
        let length = body.len();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        write!(connection, "{head}{body}")?;
    }
    Ok(())
}

fn refusal(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    (code, status)
}

fn list(request: &str) -> Value {
    let metadata = json!({"name": "web", "namespace": "shop", "resourceVersion": "7"});
    let (kind, version, items) = if request.contains("/services?") {
        // Before 1.20 a Service said nothing of families and lists, before 1.22 nothing of its internal policy, before
        // 1.29 a load balancer's address nothing of its mode.
        let spec =
            json!({"type": "LoadBalancer", "clusterIP": "172.30.0.80", "ports": [{"port": 80, "protocol": "TCP"}]});
        let status = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.80"}]}});
        (
            "ServiceList",
            "v1",
            json!([{"metadata": metadata, "spec": spec, "status": status}]),
        )
    } else if request.contains("/endpointslices?") {
        // Before 1.22 the only condition was whether an endpoint is ready, and even that could be left out.
        let endpoints = json!([
            {"addresses": ["10.0.0.1"], "nodeName": "node-1"},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
        ]);
        let mut metadata = metadata;
        metadata["labels"] = json!({"kubernetes.io/service-name": "web"});
        let ports = json!([{"name": "", "port": 8080, "protocol": "TCP"}]);
        let slice = json!({"metadata": metadata, "addressType": "IPv4", "endpoints": endpoints, "ports": ports});
        ("EndpointSliceList", "discovery.k8s.io/v1", json!([slice]))
    } else {
        ("NodeList", "v1", json!([]))
    };
    json!({"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": "7"}, "items": items})
}

/// What the source says first.
async fn first_events(streams: Streams) -> Vec<Event> {
    let port = server(streams);
    let kubeconfig = std::env::temp_dir().join(format!("fairway-older-{}-{port}", std::process::id()));
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    std::fs::write(&kubeconfig, text.to_string()).expect("the folder for temporary files can be written");
    let (sender, mut events) = mpsc::channel(8);
    let options = Options {
        access: Access::Kubeconfig(kubeconfig.clone()),
        node_name: "node-1".into(),
        proxy_name: None,
    };
    let task = tokio::spawn(run(options, sender));
    let mut said = Vec::new();
    while said.len() < 5 {
        let event = timeout(Duration::from_secs(40), events.recv())
            .await
            .expect("the lists come");
        said.push(event.expect("the source goes on"));
    }
    task.abort();
    let _ = std::fs::remove_file(kubeconfig);
    said
}

/// The same, as names of events with the number of objects.
async fn first_names(streams: Streams) -> Vec<String> {
    let events = first_events(streams).await;
    let mut names: Vec<String> = events
        .iter()
        .map(|event| match event {
            Event::Services(list) => format!("Services {}", list.len()),
            Event::EndpointSlices(list) => format!("EndpointSlices {}", list.len()),
            Event::Node(node) => format!("Node {}", node.is_some()),
            Event::Pools(pools) => format!("AddressPools {}", pools.len()),
            Event::ServiceCidrs(ranges) => format!("ServiceCIDRs {}", ranges.is_some()),
            other => panic!("unexpected: {other:?}"),
        })
        .collect();
    names.sort();
    names
}

const ALL: [&str; 5] = [
    "AddressPools 0",
    "EndpointSlices 1",
    "Node false",
    "ServiceCIDRs false",
    "Services 1",
];

#[tokio::test]
async fn a_server_that_refuses_streams_and_field_selectors_is_asked_for_plain_lists() {
    assert_eq!(first_names(Streams::Refused).await, ALL);
}

#[tokio::test]
async fn fields_that_older_servers_do_not_have_mean_what_they_meant_there() {
    for event in first_events(Streams::Refused).await {
        match event {
            Event::Services(list) => {
                let [service] = &*list else {
                    panic!("one Service, not {list:?}");
                };
                let addr = |text: &str| -> Vec<IpAddr> { vec![text.parse().expect("an address")] };
                assert_eq!(service.standing, Standing::Served);
                assert_eq!(service.cluster_ips, addr("172.30.0.80"));
                assert_eq!(service.load_balancer_ips, addr("198.51.100.80"));
                assert_eq!(
                    (service.internal_policy, service.external_policy),
                    (Policy::Cluster, Policy::Cluster)
                );
                assert_eq!((service.affinity_timeout_s, service.health_check_node_port), (None, 0));
                assert_eq!(service.problems, []);
            }
            Event::EndpointSlices(list) => {
                let conditions = list[0].endpoints.iter().map(|e| (e.ready, e.serving, e.terminating));
                assert_eq!(
                    conditions.collect::<Vec<_>>(),
                    [(true, true, false), (false, true, false)]
                );
                assert_eq!(list[0].endpoints[0].node.as_deref(), Some("node-1"));
                assert_eq!((&list[0].problems[..], list[0].ports.len()), (&[][..], 1));
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_server_that_does_not_know_of_streamed_lists_is_asked_for_plain_lists_after_a_while() {
    assert_eq!(first_names(Streams::Ignored).await, ALL);
}
