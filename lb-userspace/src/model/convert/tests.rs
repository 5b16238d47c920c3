use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use crate::model::{EndpointSlice, Node, Policy, Protocol, Service, Standing};

fn service(yaml: &str) -> Service {
    Service::from(&serde_saphyr::from_str::<core::Service>(yaml).expect("test YAML"))
}

fn slice(yaml: &str) -> EndpointSlice {
    EndpointSlice::from(&serde_saphyr::from_str::<discovery::EndpointSlice>(yaml).expect("test YAML"))
}

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
";

fn web(spec: &str) -> Service {
    service(&format!("{WEB}spec: {spec}\n"))
}

fn fields(problems: &[crate::model::Problem]) -> Vec<&str> {
    problems.iter().map(|problem| problem.field.as_str()).collect()
}

#[test]
fn a_service_without_a_cluster_ip_or_with_an_external_name_is_not_served() {
    assert_eq!(web("{clusterIP: None}").standing, Standing::Headless);
    assert_eq!(web("{clusterIP: ''}").standing, Standing::Headless);
    assert_eq!(
        web("{type: ExternalName, clusterIP: 10.0.0.1}").standing,
        Standing::ExternalName
    );
    assert_eq!(web("{clusterIP: 10.0.0.1}").standing, Standing::Served);
}

#[test]
fn the_label_for_a_proxy_counts_even_if_it_is_empty() {
    let with_label = service(
        "
metadata: {name: web, namespace: default, labels: {service.kubernetes.io/service-proxy-name: ''}}
spec: {clusterIP: 10.0.0.1}
",
    );
    assert_eq!(with_label.proxy_name.as_deref(), Some(""));
    assert_eq!(web("{clusterIP: 10.0.0.1}").proxy_name, None);
}

#[test]
fn cluster_ips_are_matched_with_ip_families_by_place() {
    let dual = web("{clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 'fd00::1'], ipFamilies: [IPv4, IPv6]}");
    assert_eq!(dual.cluster_ips.len(), 2);
    let single = web("{clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 'fd00::1'], ipFamilies: [IPv4]}");
    assert_eq!(
        single.cluster_ips,
        ["10.0.0.1".parse::<std::net::IpAddr>().expect("address")]
    );
    let swapped = web("{clusterIPs: [10.0.0.1], ipFamilies: [IPv6]}");
    assert_eq!(fields(&swapped.problems), ["spec.clusterIPs[0]"]);
    assert!(swapped.cluster_ips.is_empty());
    assert_eq!(web("{clusterIP: 'fd00::1'}").cluster_ips.len(), 1);
}

#[test]
fn only_addresses_that_are_served_here_are_taken_from_the_status() {
    let lb = service(&format!(
        "{WEB}spec: {{type: LoadBalancer, clusterIP: 10.0.0.1}}
status:
  loadBalancer:
    ingress:
      - {{ip: 192.0.2.1}}
      - {{ip: 192.0.2.2, ipMode: VIP}}
      - {{ip: 192.0.2.3, ipMode: Proxy}}
      - {{hostname: lb.example.com}}
      - {{ip: nonsense}}
"
    ));
    let addrs: Vec<String> = lb.load_balancer_ips.iter().map(ToString::to_string).collect();
    assert_eq!(addrs, ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(fields(&lb.problems), ["status.loadBalancer.ingress[4].ip"]);
}

#[test]
fn what_is_wrong_is_reported_and_the_rest_counts() {
    let bad = web(
        "{clusterIP: 10.0.0.1, externalIPs: [127.0.0.1, 192.0.2.9], externalTrafficPolicy: Nearby, \
         sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: -1}}, ports: [\
         {port: 80, nodePort: 70000}, {port: 0, name: b}, {port: 81, protocol: ICMP, name: c}, {port: 80, name: d}]}",
    );
    assert_eq!(
        fields(&bad.problems),
        [
            "spec.externalIPs[0]",
            "spec.externalTrafficPolicy",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            "spec.ports[0].nodePort",
            "spec.ports[1].port",
            "spec.ports[2].protocol",
            "spec.ports[3]",
        ]
    );
    assert_eq!(bad.external_ips.len(), 1);
    assert_eq!(bad.external_policy, Policy::Cluster);
    assert_eq!(bad.affinity_timeout_s, Some(10_800));
    assert_eq!(bad.ports.len(), 1);
    assert_eq!((bad.ports[0].port, bad.ports[0].node_port), (80, 0));
}

#[test]
fn an_unreadable_source_range_restricts_both_families() {
    let lb = web("{type: LoadBalancer, clusterIP: 10.0.0.1, loadBalancerSourceRanges: [' 192.0.2.0/24 ', oops]}");
    assert_eq!(lb.source_ranges.nets.len(), 1);
    for family in crate::model::IpFamily::ALL {
        assert!(lb.source_ranges.restrict(family));
    }
    let v4 = web("{type: LoadBalancer, clusterIP: 10.0.0.1, loadBalancerSourceRanges: [192.0.2.0/24]}");
    assert!(v4.source_ranges.restrict(crate::model::IpFamily::V4));
    assert!(!v4.source_ranges.restrict(crate::model::IpFamily::V6));
}

const SLICE: &str = "
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
";

#[test]
fn conditions_that_are_not_set_mean_ready_serving_and_not_terminating() {
    let slice = slice(&format!(
        "{SLICE}endpoints: [{{addresses: [10.1.0.1]}}]\nports: [{{name: '', port: 80}}]\n"
    ));
    let endpoint = &slice.endpoints[0];
    assert!(endpoint.ready && endpoint.serving && !endpoint.terminating);
    assert_eq!(slice.ports[0].protocol, Protocol::Tcp);
}

#[test]
fn only_the_first_address_of_an_endpoint_counts_and_it_has_to_be_of_the_slices_family() {
    let slice = slice(&format!(
        "{SLICE}endpoints: [{{addresses: [10.1.0.1, 10.1.0.2]}}, {{addresses: []}}, {{addresses: ['fd00::1']}}, \
         {{addresses: [127.0.0.1]}}]\n"
    ));
    assert_eq!(slice.endpoints.len(), 1);
    assert_eq!(
        fields(&slice.problems),
        ["endpoints[2].addresses[0]", "endpoints[3].addresses[0]"]
    );
}

#[test]
fn slice_ports_without_a_name_or_number_are_left_out() {
    let slice = slice(&format!(
        "{SLICE}endpoints: []\nports: [{{port: 80}}, {{name: a}}, {{name: b, port: 0}}, {{name: c, port: 80}}]\n"
    ));
    assert_eq!(slice.ports.len(), 1);
    assert_eq!(fields(&slice.problems), ["ports[0]", "ports[1]", "ports[2]"]);
}

#[test]
fn slices_of_names_of_nobody_and_for_headless_services_are_left_out() {
    let fqdn = slice(
        "metadata: {name: a, namespace: b, labels: {kubernetes.io/service-name: w}}\naddressType: FQDN\nendpoints: []",
    );
    assert!(fqdn.service.is_none() && fqdn.problems.is_empty());
    let orphan = slice("metadata: {name: a, namespace: b}\naddressType: IPv4\nendpoints: []");
    assert!(orphan.service.is_none());
    assert_eq!(
        fields(&orphan.problems),
        ["metadata.labels[kubernetes.io/service-name]"]
    );
    let headless = slice(
        "metadata: {name: a, namespace: b, labels: {kubernetes.io/service-name: w, service.kubernetes.io/headless: ''}}\n\
         addressType: IPv4\nendpoints: []",
    );
    assert!(headless.service.is_none() && headless.problems.is_empty());
}

#[test]
fn endpoints_of_one_slice_share_their_names_and_hints() {
    let endpoint = "{addresses: [10.1.0.1], nodeName: n, hints: {forZones: [{name: z}], forNodes: [{name: n}]}}";
    let slice = slice(&format!("{SLICE}endpoints: [{endpoint}, {endpoint}]\n"));
    let [a, b] = &*slice.endpoints else {
        panic!("two endpoints")
    };
    let (a_hints, b_hints) = (a.hints.as_ref().expect("hints"), b.hints.as_ref().expect("hints"));
    assert!(std::sync::Arc::ptr_eq(a_hints, b_hints));
    assert!(std::sync::Arc::ptr_eq(
        &a_hints.nodes[0],
        a.node.as_ref().expect("node")
    ));
}

#[test]
fn a_node_gives_its_internal_addresses_first() {
    let node = Node::from(
        &serde_saphyr::from_str::<core::Node>(
            "
metadata: {name: n, labels: {topology.kubernetes.io/zone: z}}
spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, 'fd00:1::/64'], taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}
status: {addresses: [{type: Hostname, address: n}, {type: ExternalIP, address: 192.0.2.1}, {type: InternalIP, address: 10.9.0.1}]}
",
        )
        .expect("test YAML"),
    );
    let addrs: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addrs, ["10.9.0.1", "192.0.2.1"]);
    assert_eq!(node.pod_cidrs.len(), 2);
    assert_eq!(node.zone.as_deref(), Some("z"));
    assert!(node.leaving);
}
