//! `/healthz` and `/livez`, word for word as kube-proxy 1.37 answers them (`pkg/proxy/healthcheck/proxy_health.go`).
//!
//! `/livez` is about the agent alone. `/healthz` also fails when the node is about to go away, so that load balancers
//! that ask it stop sending to a node that the cluster autoscaler removes (KEP-3836).

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::Router;
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use jiff::Timestamp;
use serde::Serialize;

use super::{Condition, Health};
use crate::observe::metrics::Metrics;

/// What kube-proxy says where there was no update yet: Go's time zero.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The headers of every answer about health.
pub(super) const HEADERS: [(HeaderName, HeaderValue); 2] = [
    (CONTENT_TYPE, HeaderValue::from_static("application/json")),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Families>,
}

/// Both families are written together, so what is true of one is true of the other.
#[derive(Serialize)]
struct Families {
    #[serde(rename = "IPv4")]
    v4: FamilyStatus,
    #[serde(rename = "IPv6")]
    v6: FamilyStatus,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyStatus {
    last_updated: String,
    healthy: bool,
}

/// `/healthz` and `/livez`.
pub fn routes(health: &Arc<Health>, metrics: &Arc<Metrics>) -> Router {
    let route = |about_node: bool, count: fn(&Metrics, StatusCode)| {
        let (health, metrics) = (Arc::clone(health), Arc::clone(metrics));
        any(move || async move {
            let (status, body) = answer(&health.condition(Instant::now()), SystemTime::now(), about_node);
            count(&metrics, status);
            respond(status, body)
        })
    };
    Router::new()
        .route("/healthz", route(true, Metrics::healthz_answered))
        .route("/livez", route(false, Metrics::livez_answered))
}

fn respond(status: StatusCode, body: String) -> Response {
    (status, HEADERS, body).into_response()
}

/// The answer, whether or not it is about the node as well.
fn answer(condition: &Condition, now: SystemTime, about_node: bool) -> (StatusCode, String) {
    let good = condition.healthy && (condition.node_eligible || !about_node);
    let applied = condition.applied.map_or_else(|| NEVER.to_owned(), written);
    let family = FamilyStatus {
        last_updated: applied.clone(),
        healthy: condition.healthy,
    };
    let body = Body {
        // A healthy proxy says that it is up to date, whether or not anything has changed.
        last_updated: if good { written(now) } else { applied },
        current_time: written(now),
        node_eligible: about_node.then_some(condition.node_eligible),
        healthy: condition.healthy,
        status: condition.applied.is_some().then(|| Families {
            v4: family.clone(),
            v6: family,
        }),
    };
    let status = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, serde_json::to_string(&body).unwrap_or_default())
}

/// By RFC 3339, in UTC.
fn written(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| NEVER.to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: &str = r#""currentTime":"2026-03-01T12:00:00Z""#;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_772_366_400 + second)
    }

    fn condition(healthy: bool, node_eligible: bool) -> Condition {
        Condition {
            healthy,
            node_eligible,
            applied: Some(at(0) - Duration::from_secs(90)),
        }
    }

    fn status(healthy: bool) -> String {
        let family = format!(r#"{{"lastUpdated":"2026-03-01T11:58:30Z","healthy":{healthy}}}"#);
        format!(r#""status":{{"IPv4":{family},"IPv6":{family}}}}}"#)
    }

    #[test]
    fn a_healthy_agent_answers_200_and_says_that_it_is_up_to_date() {
        let up_to_date = format!(r#"{{"lastUpdated":"2026-03-01T12:00:00Z",{NOW}"#);
        let (code, body) = answer(&condition(true, true), at(0), true);
        assert_eq!(code, StatusCode::OK);
        assert_eq!(
            body,
            format!(r#"{up_to_date},"nodeEligible":true,"healthy":true,{}"#, status(true))
        );
        let (code, body) = answer(&condition(true, true), at(0), false);
        assert_eq!(code, StatusCode::OK);
        assert_eq!(body, format!(r#"{up_to_date},"healthy":true,{}"#, status(true)));
    }

    #[test]
    fn an_agent_that_lags_behind_answers_503_and_since_when() {
        for about_node in [true, false] {
            let (code, body) = answer(&condition(false, true), at(0), about_node);
            assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
            let since = format!(r#"{{"lastUpdated":"2026-03-01T11:58:30Z",{NOW}"#);
            assert!(body.starts_with(&since) && body.ends_with(&status(false)), "{body}");
        }
    }

    #[test]
    fn a_node_that_goes_away_fails_healthz_alone() {
        let (code, body) = answer(&condition(true, false), at(0), true);
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.contains(r#""nodeEligible":false,"healthy":true"#), "{body}");
        assert_eq!(answer(&condition(true, false), at(0), false).0, StatusCode::OK);
    }

    #[test]
    fn an_agent_that_starts_answers_200_without_a_status_of_families() {
        let starting = Condition {
            applied: None,
            ..condition(true, true)
        };
        let (code, body) = answer(&starting, at(0), false);
        assert_eq!(code, StatusCode::OK);
        assert_eq!(
            body,
            format!(r#"{{"lastUpdated":"2026-03-01T12:00:00Z",{NOW},"healthy":true}}"#)
        );
    }

    #[tokio::test]
    async fn answers_have_kube_proxys_headers() {
        let response = respond(StatusCode::OK, "{}".to_owned());
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        assert_eq!(header("content-type"), Some("application/json"));
        assert_eq!(header("x-content-type-options"), Some("nosniff"));
    }
}
