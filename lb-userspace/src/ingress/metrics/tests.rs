use std::net::SocketAddr;

use super::names::ALL;
use super::*;
use crate::ingress::table::{Backend, BackendProtocol};
use crate::model::{ObjectKind, Reason};
use crate::observe::metrics::samples::Name;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn route(ingress: &str, service: &str) -> Arc<Route> {
    let backend = Backend {
        service: key(service),
        port: 80,
        protocol: BackendProtocol::Http1,
        addrs: Vec::<SocketAddr>::new(),
        problem: None,
    };
    Arc::new(Route {
        ingress: key(ingress),
        host: "a.example".into(),
        path: "/".into(),
        backend: Arc::new(backend),
    })
}

fn samples(metrics: &Arc<Metrics>, name: &str) -> Vec<String> {
    let text = text(metrics);
    let lines = text.lines().filter(|line| line.starts_with(name));
    let mut lines: Vec<_> = lines.map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn requests_are_counted_by_object_class_and_protocol() {
    let metrics = Arc::<Metrics>::default();
    let traffic = metrics.traffic(&key("web"), &key("front"));
    let took = Duration::from_millis(7);
    traffic.count(Protocol::Http1, 200, took, 10, 100);
    traffic.count(Protocol::Http1, 204, took, 10, 0);
    traffic.count(Protocol::Http2, 503, Duration::from_secs(90), 0, 1);
    metrics.unrouted(Protocol::Http1, 404);
    let expected = [
        r#"fairway_ingress_requests_total{ingress="",service="",code="4xx",protocol="http/1"} 1"#,
        r#"fairway_ingress_requests_total{ingress="shop/web",service="shop/front",code="2xx",protocol="http/1"} 2"#,
        r#"fairway_ingress_requests_total{ingress="shop/web",service="shop/front",code="5xx",protocol="http/2"} 1"#,
    ];
    assert_eq!(samples(&metrics, "fairway_ingress_requests_total"), expected);
    let durations = samples(&metrics, "fairway_ingress_request_duration_seconds_bucket");
    for (bound, count) in [("0.005", 0), ("0.01", 2), ("60.0", 2), ("+Inf", 3)] {
        let line =
            format!(r#"fairway_ingress_request_duration_seconds_bucket{{le="{bound}",ingress="shop/web"}} {count}"#);
        assert!(durations.contains(&line), "{line} is not in {durations:#?}");
    }
    let sent = r#"fairway_ingress_response_bytes_total{ingress="shop/web",service="shop/front"} 101"#;
    assert_eq!(samples(&metrics, "fairway_ingress_response_bytes_total"), [sent]);
}

#[test]
fn what_is_gone_from_the_table_loses_its_series() {
    let metrics = Arc::<Metrics>::default();
    for (ingress, service) in [("web", "front"), ("web", "back"), ("old", "front")] {
        metrics
            .traffic(&key(ingress), &key(service))
            .count(Protocol::Http1, 200, Duration::ZERO, 0, 0);
    }
    let routes = [route("web", "front")];
    metrics.published(routes.iter(), 1, &[], Duration::from_millis(2));
    let left = samples(&metrics, "fairway_ingress_requests_total");
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(
        left[0].contains(r#"ingress="shop/web",service="shop/front""#),
        "{left:?}"
    );
    assert_eq!(
        samples(&metrics, "fairway_ingress_routes"),
        ["fairway_ingress_routes 1"]
    );
    let generations = "fairway_ingress_config_generations_total 1";
    assert_eq!(samples(&metrics, "fairway_ingress_config_generations"), [generations]);
}

#[test]
fn connections_are_counted_while_they_last() {
    let metrics = Arc::<Metrics>::default();
    let (one, other) = (metrics.opened(true), metrics.opened(false));
    assert_eq!(metrics.open(), 2);
    drop(other);
    let expected = [
        r#"fairway_ingress_connections{listener="http"} 0"#,
        r#"fairway_ingress_connections{listener="https"} 1"#,
    ];
    assert_eq!(samples(&metrics, "fairway_ingress_connections{"), expected);
    drop(one);
    assert_eq!(metrics.open(), 0);
}

#[test]
fn every_metric_is_explained_in_the_documentation() {
    let metrics = Arc::<Metrics>::default();
    let problem = Problem {
        kind: ObjectKind::Ingress,
        object: key("web"),
        field: "spec.rules[0].host".into(),
        message: "it is wrong".into(),
        remedy: "write it anew".into(),
        reason: Reason::InvalidField,
    };
    metrics.published([].into_iter(), 0, &[problem.clone(), problem], Duration::ZERO);
    metrics
        .traffic(&key("web"), &key("front"))
        .count(Protocol::Http1, 200, Duration::ZERO, 0, 0);
    let text = text(&metrics);
    let documentation = include_str!("../../../../docs/ingress-operations.md");
    for Name { name, kind, .. } in ALL {
        let name = format!(
            "{name}{}",
            if matches!(kind, prometheus_client::metrics::MetricType::Counter) {
                "_total"
            } else {
                ""
            }
        );
        assert!(
            text.contains(&format!("\n# TYPE {name} ")) || text.starts_with(&format!("# HELP {name} ")),
            "{name} is not told:\n{text}"
        );
        assert!(
            documentation.contains(&format!("`{name}")),
            "{name} is not in docs/ingress-operations.md"
        );
    }
}
