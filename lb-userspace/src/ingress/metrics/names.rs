//! The name of every metric of `fairway ingress`, with what it tells. Counters get `_total` behind theirs.

use crate::observe::metrics::samples::{Name, names};

names! {
    BUILD = gauge("fairway_build_info", "1, with the version as a label");
    REQUESTS = counter("fairway_ingress_requests", "Requests by Ingress, Service, class of status (0xx: the client was gone before) and protocol");
    DURATION = histogram("fairway_ingress_request_duration_seconds", "Time from the head of a request to the end of its answer, by Ingress");
    RECEIVED = counter("fairway_ingress_request_bytes", "Bytes of requests' bodies, by Ingress and Service");
    SENT = counter("fairway_ingress_response_bytes", "Bytes of answers' bodies, by Ingress and Service");
    CONNECT_FAILURES = counter("fairway_ingress_backend_connect_failures", "Connections to backends that could not be made, by Service");
    RETRIES = counter("fairway_ingress_backend_retries", "Requests that were sent once more, by Service");
    CONNECTIONS = gauge("fairway_ingress_connections", "Open connections of clients, by listener");
    ACCEPTED = counter("fairway_ingress_accepted_connections", "Connections of clients, by listener");
    REFUSED = counter("fairway_ingress_refused_connections", "Connections that ended before their first request: TLS handshakes and PROXY headers that failed");
    GENERATION = counter("fairway_ingress_config_generations", "Routing tables that were put in force");
    HOSTS = gauge("fairway_ingress_hosts", "Hosts that are served");
    ROUTES = gauge("fairway_ingress_routes", "Rules that are in force");
    PUBLISH = gauge("fairway_ingress_config_duration_seconds", "What making the last routing table took");
    PROBLEMS = gauge("fairway_ingress_problems", "What is wrong with objects at present, by kind, object, field and reason; 1 each");
    DROPPED = counter("fairway_ingress_access_log_dropped_lines", "Lines of the access log that nobody took in time");
}
