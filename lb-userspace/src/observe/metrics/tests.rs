use super::*;
use crate::model::{ObjectKey, ObjectKind, Reason};

fn metrics() -> Metrics {
    let connections = Connections {
        family: "IPv4".into(),
        connections: 3,
        entries: 6,
        capacity: 1024,
        ..Connections::default()
    };
    let nowhere = PinDir::new("/nonexistent");
    Metrics::new(&nowhere, Arc::new(Mutex::new(vec![connections])))
}

fn reconcile(metrics: &Metrics, report: &Report) {
    let no_local = [
        NoLocal::default(),
        NoLocal {
            internal: 0,
            external: 2,
        },
    ];
    metrics.reconciled(report, Duration::from_micros(40), Numbers::default(), no_local);
}

/// The value of a sample, if it is there.
fn value(text: &str, sample: &str) -> Option<f64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.map(|value| value.parse().expect("it is a number"))
}

fn millis_from_now(offset: i64) -> i64 {
    let now = i64::try_from(since_epoch(SystemTime::now()).as_millis()).expect("it fits");
    now + offset
}

#[test]
fn every_metric_is_told_and_documented() {
    let metrics = metrics();
    metrics.queued();
    let triggers = vec![(IpFamily::V4, millis_from_now(10_000))];
    reconcile(
        &metrics,
        &Report {
            triggers,
            ..Report::default()
        },
    );
    metrics.healthz_answered(StatusCode::OK);
    metrics.livez_answered(StatusCode::OK);
    let text = metrics.text();
    let docs = include_str!("../../../../docs/operations.md");
    for Name { name, kind, .. } in names::ALL {
        let end = match kind {
            prometheus_client::metrics::MetricType::Counter => "_total",
            _ => "",
        };
        let described = format!("# TYPE {name}{end} {}\n", kind.as_str());
        assert!(text.contains(&described), "no {name}{end} in\n{text}");
        assert!(
            docs.contains(&format!("`{name}{end}`")),
            "docs/operations.md lacks {name}{end}"
        );
    }
    assert_eq!(text.matches("# TYPE ").count(), names::ALL.len());
    assert_eq!(value(&text, r#"fairway_connections{ip_family="IPv4"}"#), Some(3.0));
}

#[test]
fn the_latency_of_a_change_is_measured_once_it_is_in_force_unless_it_is_older_than_the_agent() {
    const COUNT: &str = r#"kubeproxy_network_programming_duration_seconds_count{ip_family="IPv6"}"#;
    let metrics = metrics();
    let triggers = vec![
        (IpFamily::V6, millis_from_now(-10_000)),
        (IpFamily::V6, millis_from_now(60)),
    ];
    reconcile(
        &metrics,
        &Report {
            triggers,
            ..Report::default()
        },
    );
    let text = metrics.text();
    assert_eq!(value(&text, COUNT), Some(1.0), "{text}");
    let bucket = |limit: &str| {
        let name = "kubeproxy_network_programming_duration_seconds_bucket";
        value(&text, &format!(r#"{name}{{le="{limit}",ip_family="IPv6"}}"#))
    };
    for limit in [
        "0.0", "0.25", "0.5", "1.0", "59.0", "60.0", "115.0", "120.0", "300.0", "+Inf",
    ] {
        assert_eq!(bucket(limit), Some(1.0), "bucket {limit} in\n{text}");
    }
}

#[test]
fn a_failure_does_not_count_as_a_sync() {
    const LAST: &str = r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}"#;
    let metrics = metrics();
    let failed = crate::maps::MapsError::Read {
        map: "CONFIG",
        source: std::io::Error::other("no"),
    };
    reconcile(
        &metrics,
        &Report {
            failures: vec![failed],
            ..Report::default()
        },
    );
    let text = metrics.text();
    assert_eq!(value(&text, LAST), None);
    assert_eq!(value(&text, "fairway_map_failures_total"), Some(1.0));
    let lacking = r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="external",ip_family="IPv6"}"#;
    assert_eq!(value(&text, lacking), Some(2.0));
    reconcile(&metrics, &Report::default());
    assert!(value(&metrics.text(), LAST).is_some_and(|at| at > 1e9));
}

#[test]
fn problems_are_told_once_each_and_leave() {
    let problem = |message: &str| Problem {
        kind: ObjectKind::Service,
        object: ObjectKey::new("shop", "web"),
        field: "spec.externalIPs[\"a\"]".into(),
        message: message.into(),
        remedy: "mend it".into(),
        reason: Reason::InvalidField,
    };
    let metrics = metrics();
    metrics.problems(&[problem("one"), problem("other")]);
    let sample = "fairway_problem{kind=\"Service\",namespace=\"shop\",name=\"web\",\
                  field=\"spec.externalIPs[\\\"a\\\"]\",reason=\"InvalidField\"} 1\n";
    assert_eq!(metrics.text().matches(sample).count(), 1, "{}", metrics.text());
    metrics.problems(&[]);
    assert!(!metrics.text().contains("fairway_problem{"));
}
