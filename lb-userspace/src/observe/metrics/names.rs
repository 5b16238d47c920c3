//! The name of every metric, with what it tells. Counters get `_total` behind theirs.
//!
//! Metrics that kube-proxy has keep its names (`pkg/proxy/metrics/metrics.go`, 1.37), so that dashboards, alerts and
//! Kubernetes' own service level queries go on working.

use super::samples::{Name, names};

names! {
    SYNC_DURATION = histogram("kubeproxy_sync_proxy_rules_duration_seconds", "Time to bring the maps up to date with what has changed");
    SYNC_LAST = gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When everything was in force last");
    SYNC_QUEUED = gauge("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "When something changed last");
    PROGRAMMING_DURATION = histogram("kubeproxy_network_programming_duration_seconds", "Time from a change of pods or Services until its EndpointSlice is in force on this node");
    ENDPOINT_CHANGES = counter("kubeproxy_sync_proxy_rules_endpoint_changes", "EndpointSlices that were told of");
    SERVICE_CHANGES = counter("kubeproxy_sync_proxy_rules_service_changes", "Services that were told of");
    NO_LOCAL_ENDPOINTS = gauge("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "Service ports with policy Local and endpoints on other nodes only");
    HEALTHZ = counter("kubeproxy_proxy_healthz", "Answers of /healthz by status code");
    LIVEZ = counter("kubeproxy_proxy_livez", "Answers of /livez by status code");

    BUILD = gauge("fairway_build_info", "1, with the version as a label");
    PACKETS = counter("fairway_packets", "Packets by hook and by what became of them; for sockets, calls");
    SERVICES = gauge("fairway_services", "Services that are served");
    SLICES = gauge("fairway_endpoint_slices", "EndpointSlices");
    ENDPOINTS = gauge("fairway_endpoints", "Endpoints in EndpointSlices");
    MAP_CHANGES = counter("fairway_map_changes", "Entries of maps that were written or removed for changes");
    MAP_FAILURES = counter("fairway_map_failures", "Entries of maps that could not be written or removed; they are tried again");
    MAP_REPAIRS = counter("fairway_map_repairs", "Entries of maps that an audit found to be wrong, and repaired");
    CONNECTIONS = gauge("fairway_connections", "Connections");
    TABLE_ENTRIES = gauge("fairway_connection_table_entries", "Entries of the connection table, two or four for each connection");
    TABLE_CAPACITY = gauge("fairway_connection_table_capacity", "Entries that the connection table has room for");
    CONNECTIONS_REMOVED = counter("fairway_connections_removed", "Connections that were over and were removed");
    ANNOUNCED = gauge("fairway_announced_addresses", "Addresses that this node announces");
    TAKE_OVERS = counter("fairway_announcement_take_overs", "Addresses that this node has begun to announce");
    LEASE_RENEWALS = counter("fairway_announcement_lease_renewals", "Renewals of the Lease by which this node may announce");
    LEASE_FAILURES = counter("fairway_announcement_lease_failures", "Renewals of that Lease that failed; they are tried again");
    PROBLEM = gauge("fairway_problem", "1 for everything that is wrong with an object at present");

    PROCESS_CPU = counter("process_cpu_seconds", "Processor time of the agent");
    PROCESS_MEMORY = gauge("process_resident_memory_bytes", "Memory of the agent");
    PROCESS_FILES = gauge("process_open_fds", "File descriptors of the agent");
    PROCESS_START = gauge("process_start_time_seconds", "When the agent started");
}
