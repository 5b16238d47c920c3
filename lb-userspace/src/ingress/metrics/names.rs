//! The name of every metric of `fairway ingress`, with what it tells. Counters get `_total` behind theirs.

use prometheus_client::metrics::MetricType;

/// Name, description, type.
pub(super) type Name = (&'static str, &'static str, MetricType);

macro_rules! names {
    ($($constant:ident = $kind:ident($name:literal, $help:literal);)*) => {
        $(#[doc = $help] pub(super) const $constant: Name = ($name, $help, MetricType::$kind);)*
        /// All of them.
        #[cfg(test)]
        pub(super) const ALL: &[Name] = &[$($constant),*];
    };
}

names! {
    BUILD = Gauge("fairway_build_info", "1, with the version as a label");
    REQUESTS = Counter("fairway_ingress_requests", "Requests by Ingress, Service, class of status (0xx: the client was gone before) and protocol");
    DURATION = Histogram("fairway_ingress_request_duration_seconds", "Time from the head of a request to the end of its answer, by Ingress");
    RECEIVED = Counter("fairway_ingress_request_bytes", "Bytes of requests' bodies, by Ingress and Service");
    SENT = Counter("fairway_ingress_response_bytes", "Bytes of answers' bodies, by Ingress and Service");
    CONNECT_FAILURES = Counter("fairway_ingress_backend_connect_failures", "Connections to backends that could not be made, by Service");
    RETRIES = Counter("fairway_ingress_backend_retries", "Requests that were sent once more, by Service");
    CONNECTIONS = Gauge("fairway_ingress_connections", "Open connections of clients, by listener");
    ACCEPTED = Counter("fairway_ingress_accepted_connections", "Connections of clients, by listener");
    REFUSED = Counter("fairway_ingress_refused_connections", "Connections that ended before their first request: TLS handshakes and PROXY headers that failed");
    GENERATION = Counter("fairway_ingress_config_generations", "Routing tables that were put in force");
    HOSTS = Gauge("fairway_ingress_hosts", "Hosts that are served");
    ROUTES = Gauge("fairway_ingress_routes", "Rules that are in force");
    PUBLISH = Gauge("fairway_ingress_config_duration_seconds", "What making the last routing table took");
    PROBLEMS = Gauge("fairway_ingress_problems", "What is wrong with objects at present, by kind, object, field and reason; 1 each");
    DROPPED = Counter("fairway_ingress_access_log_dropped_lines", "Lines of the access log that nobody took in time");
}
