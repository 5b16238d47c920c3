//! `fairway ingress` on loopback: a real process with a folder of manifests, between clients and backends of every kind.
//! Needs no privileges.

#[path = "ingress/backends.rs"]
mod backends;
#[path = "ingress/client.rs"]
mod client;
#[path = "ingress/ending.rs"]
mod ending;
#[path = "ingress/failures.rs"]
mod failures;
#[path = "ingress/lab.rs"]
mod lab;
#[path = "ingress/protocols.rs"]
mod protocols;
#[path = "ingress/reload.rs"]
mod reload;
mod support;

use std::sync::atomic::Ordering;

use axum::body::Body;
use backends::echo;
use client::{Reply, connect, get, http1, request};
use hyper::Request;
use lab::{Lab, backend_address, ingress, service};
use serde_json::{Value, json};

/// A lab with one host, `a.example`, whose backend tells what it was asked.
async fn one_host(name: &str, flags: &[&str]) -> (Lab, backends::Backend) {
    let at = backend_address();
    let backend = echo("one", at).await;
    let documents = [service("web", at, ""), ingress("web", "a.example", "web", at.port())];
    (Lab::start(name, &documents, flags).await, backend)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_to_the_service_of_their_host_as_they_are() {
    let (lab, backend) = one_host("as-they-are", &[]).await;
    let mut connection = http1(connect(lab.http).await.unwrap()).await.unwrap();
    let post = Request::post("/a%2Fb/../c?q=1&r")
        .header("host", "A.example:80")
        .header("x-mine", "1")
        .header("x-mine", "2")
        .header("te", "trailers")
        .header("connection", "x-hop")
        .header("x-hop", "gone")
        .body(Body::from("hello"))
        .unwrap();
    let reply = Reply::of(connection.send_request(post).await.unwrap()).await.unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    let told = reply.json();
    assert_eq!(told["backend"], "one");
    assert_eq!(told["method"], "POST");
    assert_eq!(told["target"], "/a%2Fb/../c?q=1&r");
    assert_eq!(told["received"], 5);
    assert_eq!(told["headers"]["host"], json!(["A.example:80"]));
    assert_eq!(told["headers"]["x-mine"], json!(["1", "2"]));
    for hop in ["te", "connection", "x-hop"] {
        assert_eq!(told["headers"][hop], Value::Null, "{told:#}");
    }

    // A hundred requests of one client, some of them without a body in the answer, take one connection to the backend.
    for number in 0..100 {
        let method = if number % 5 == 0 { "HEAD" } else { "GET" };
        let head = Request::builder().method(method).uri("/x").header("host", "a.example");
        connection.ready().await.expect("the connection is kept");
        let response = connection
            .send_request(head.body(Body::empty()).unwrap())
            .await
            .unwrap();
        let length = response.headers()["content-length"].clone();
        let reply = Reply::of(response).await.unwrap();
        assert_eq!(reply.status, 200);
        let expected = if method == "HEAD" {
            0
        } else {
            length.to_str().unwrap().parse().unwrap()
        };
        assert_eq!(reply.body.len(), expected);
    }
    let connections = backend.seen.connections.load(Ordering::Relaxed);
    assert!(connections <= 2, "{connections} connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_rule_or_no_backend_is_told_so_without_a_word_about_us() {
    let (gone, none) = (backend_address(), backend_address());
    let documents = [
        service("gone", gone, ""),
        ingress("gone", "gone.example", "gone", gone.port()),
        ingress("none", "none.example", "none", none.port()),
    ];
    let lab = Lab::start("no-backend", &documents, &[]).await;
    let cases = [
        ("other.example", 404, "Nothing is served at this host and path.\n"),
        ("none.example", 503, "No backend is available at present.\n"),
        ("gone.example", 503, "No backend is available at present.\n"),
    ];
    for (host, status, text) in cases {
        let reply = get(lab.http, host, "/").await;
        assert_eq!((reply.status, reply.text()), (status, text), "{host}");
        assert_eq!(reply.headers["content-type"], "text/plain; charset=utf-8");
        assert_eq!(reply.headers.get("server"), None);
    }
    let log = lab.access_log();
    let line = log
        .iter()
        .find(|line| line["host"] == "none.example")
        .expect("it is in the log");
    assert!(
        line["failure"].as_str().is_some_and(|why| why.contains("none")),
        "{line}"
    );
    let metrics = lab.metrics().await;
    assert!(
        metrics.contains(r#"fairway_ingress_requests_total{ingress="",service="",code="4xx",protocol="http/1"} 1"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"fairway_ingress_backend_connect_failures_total{service="default/gone"} 3"#),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_cannot_say_who_they_are_unless_they_are_trusted() {
    const SPOOFED: [(&str, &str); 4] = [
        ("x-forwarded-for", "198.51.100.7"),
        ("x-forwarded-proto", "https"),
        ("x-real-ip", "198.51.100.7"),
        ("x-request-id", "given-1"),
    ];
    for (flags, for_, real, proto) in [
        (&[][..], "127.0.0.1", "127.0.0.1", "http"),
        (
            &["--trusted-proxies", "127.0.0.0/8"][..],
            "198.51.100.7, 127.0.0.1",
            "198.51.100.7",
            "https",
        ),
    ] {
        let (lab, _backend) = one_host("forwarded", flags).await;
        let mut connection = http1(connect(lab.http).await.unwrap()).await.unwrap();
        let mut spoofed = request("a.example:8080", "/");
        for (name, value) in SPOOFED {
            spoofed.headers_mut().insert(name, value.parse().unwrap());
        }
        let told = Reply::of(connection.send_request(spoofed).await.unwrap())
            .await
            .unwrap()
            .json();
        let headers = &told["headers"];
        assert_eq!(headers["x-forwarded-for"], json!([for_]));
        assert_eq!(headers["x-real-ip"], json!([real]));
        assert_eq!(headers["x-forwarded-proto"], json!([proto]));
        assert_eq!(headers["x-forwarded-host"], json!(["a.example:8080"]));
        assert_eq!(headers["x-forwarded-port"], json!(["8080"]));
        assert_eq!(headers["x-request-id"], json!(["given-1"]));
        lab.until("the line is written", async || {
            lab.access_log()
                .iter()
                .any(|line| line["client"] == real && line["request_id"] == "given-1")
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_and_the_metrics_tell_of_every_request() {
    let (lab, backend) = one_host("telemetry", &[]).await;
    let mut asked = request("a.example", "/x?secret");
    asked.headers_mut().insert("user-agent", "tests/1".parse().unwrap());
    let mut connection = http1(connect(lab.http).await.unwrap()).await.unwrap();
    let reply = Reply::of(connection.send_request(asked).await.unwrap()).await.unwrap();
    let id = reply.json()["headers"]["x-request-id"][0].as_str().unwrap().to_owned();
    assert_eq!(id.len(), 32);
    lab.until("the line is written", async || !lab.access_log().is_empty())
        .await;
    let mut line = lab.access_log().remove(0);
    for varying in ["time", "duration_ms", "upstream_ms"] {
        assert!(!line[varying].take().is_null(), "{varying} is not told");
    }
    let expected = json!({
        "time": null, "duration_ms": null, "upstream_ms": null, "client": "127.0.0.1", "method": "GET",
        "host": "a.example", "path": "/x", "protocol": "HTTP/1.1", "status": 200, "bytes_in": 0,
        "bytes_out": reply.body.len(), "upstream": backend.at.to_string(), "ingress": "default/web",
        "service": "default/web", "request_id": id, "user_agent": "tests/1",
    });
    assert_eq!(line, expected);
    let metrics = lab.metrics().await;
    for sample in [
        r#"fairway_ingress_requests_total{ingress="default/web",service="default/web",code="2xx",protocol="http/1"} 1"#,
        r#"fairway_ingress_request_duration_seconds_count{ingress="default/web"} 1"#,
        r#"fairway_ingress_connections{listener="http"} 1"#,
        "fairway_ingress_hosts 1",
        "fairway_ingress_routes 1",
    ] {
        assert!(metrics.contains(sample), "{sample} is not in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_take_turns_and_one_that_is_gone_is_passed_over() {
    let (at, other, gone) = (backend_address(), backend_address(), backend_address());
    let (one, two) = (echo("one", at).await, echo("two", other).await);
    let slice = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints: [{{addresses: ['{}']}}, {{addresses: ['{}']}}, {{addresses: ['{}']}}]
",
        at.ip(),
        other.ip(),
        gone.ip()
    );
    let documents = [
        service("web", at, ""),
        ingress("web", "a.example", "web", at.port()),
        slice,
    ];
    let lab = Lab::start("endpoints", &documents, &["--upstream", "endpoints"]).await;
    for _ in 0..30 {
        let reply = get(lab.http, "a.example", "/").await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let requests = [&one, &two].map(|backend| backend.seen.requests.load(Ordering::Relaxed));
    assert_eq!(requests.iter().sum::<usize>(), 30);
    assert!(requests.iter().all(|count| (8..=22).contains(count)), "{requests:?}");
}
