//! The objects as the API has them.
//!
//! What an object may not say because of what it is (a traffic policy for external traffic that cannot come, ports of
//! nodes for a ClusterIP) is left out here, so that changes of one field need not know of the others.

use serde_json::{Map, Value, json};

use super::model::{Cluster, Conditions, Endpoint, Ingress, Key, Policy, Service, Slice, Type};
use super::plan::{EXTRA_SERVICE_CIDRS, NODE, POD_CIDRS, node};
use crate::differential::model::Family;

/// Manages the slices, so that nobody takes them for their own.
const MANAGER: &str = "differential.fairway.test";

/// An object and where the API keeps it.
#[derive(Clone, PartialEq, Debug)]
pub struct Manifest {
    /// The path of its collection.
    pub collection: String,
    /// Its name.
    pub name: String,
    /// The object.
    pub object: Value,
    /// Its status, if it is to have one.
    pub status: Option<Value>,
}

impl Manifest {
    /// The path of the object.
    pub fn path(&self) -> String {
        format!("{}/{}", self.collection, self.name)
    }
}

/// The path of a Service.
pub fn service_path(key: &Key) -> String {
    format!("/api/v1/namespaces/{}/services/{}", key.namespace, key.name)
}

/// The path of an `EndpointSlice`.
pub fn slice_path(key: &Key) -> String {
    format!(
        "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices/{}",
        key.namespace, key.name
    )
}

/// All objects of a cluster, Services first.
pub fn manifests(cluster: &Cluster) -> Vec<Manifest> {
    let services = cluster.services.iter().map(service);
    let slices = cluster.slices.iter().map(slice);
    let cidrs = cluster.service_cidrs.iter().map(|range| service_cidr(range));
    services
        .chain(slices)
        .chain(cidrs)
        .chain([node_object(cluster)])
        .collect()
}

/// An object without the fields that are null.
fn compact(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                fields
                    .map(|(name, value)| (name, compact(value)))
                    .collect::<Map<_, _>>(),
            )
        }
        Value::Array(items) => Value::Array(items.into_iter().map(compact).collect()),
        other => other,
    }
}

fn service(service: &Service) -> Manifest {
    let kind = match service.kind {
        Type::ClusterIp | Type::Headless => "ClusterIP",
        Type::NodePort => "NodePort",
        Type::LoadBalancer => "LoadBalancer",
        Type::ExternalName => "ExternalName",
    };
    let balanced = service.kind == Type::LoadBalancer;
    let node_ports = service.kind == Type::NodePort || (balanced && !service.without_node_ports);
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| {
            json!({
                "name": (!port.name.is_empty()).then_some(&port.name),
                "protocol": port.protocol.name(),
                "port": port.port,
                "nodePort": node_ports.then_some(port.node_port),
            })
        })
        .collect();
    let mut spec = json!({ "type": kind, "ports": ports });
    if service.kind == Type::ExternalName {
        spec["externalName"] = json!("elsewhere.example.com");
    } else if service.kind == Type::Headless {
        spec["clusterIP"] = json!("None");
        spec["clusterIPs"] = json!(["None"]);
    } else {
        let families: Vec<_> = service.cluster_ips.iter().map(|ip| Family::of(ip).name()).collect();
        spec["clusterIP"] = json!(service.cluster_ips.first());
        spec["clusterIPs"] = json!(service.cluster_ips);
        spec["ipFamilyPolicy"] = json!(if families.len() > 1 {
            "RequireDualStack"
        } else {
            "SingleStack"
        });
        spec["ipFamilies"] = json!(families);
        spec["internalTrafficPolicy"] = json!(service.internal.name());
    }
    if service.kind != Type::ExternalName {
        spec["externalIPs"] = json!((!service.external_ips.is_empty()).then_some(&service.external_ips));
        if let Some(timeout) = service.affinity_s {
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": timeout } });
        }
    }
    if service.is_externally_accessible() {
        spec["externalTrafficPolicy"] = json!(service.external.name());
    }
    if balanced {
        spec["allocateLoadBalancerNodePorts"] = json!(!service.without_node_ports);
        spec["loadBalancerSourceRanges"] = json!((!service.source_ranges.is_empty()).then_some(&service.source_ranges));
        if service.external == Policy::Local {
            spec["healthCheckNodePort"] = json!(service.health_check_node_port);
        }
    }
    let labels = service
        .proxy_name
        .as_ref()
        .map(|name| json!({ "service.kubernetes.io/service-proxy-name": name }));
    let status = json!({ "loadBalancer": { "ingress": ingress(&service.ingress) } });
    Manifest {
        collection: format!("/api/v1/namespaces/{}/services", service.key.namespace),
        name: service.key.name.clone(),
        object: compact(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": service.key.name, "namespace": service.key.namespace, "labels": labels },
            "spec": spec,
        })),
        status: balanced.then(|| compact(status)),
    }
}

fn ingress(entries: &[Ingress]) -> Vec<Value> {
    entries
        .iter()
        .map(|entry| json!({ "ip": entry.ip, "hostname": entry.hostname, "ipMode": entry.ip.and(entry.mode) }))
        .collect()
}

fn slice(slice: &Slice) -> Manifest {
    let mut labels = json!({ "endpointslice.kubernetes.io/managed-by": MANAGER });
    if let Some(service) = &slice.service {
        labels["kubernetes.io/service-name"] = json!(service);
    }
    if slice.headless {
        labels["service.kubernetes.io/headless"] = json!("");
    }
    let ports: Vec<Value> = slice
        .ports
        .iter()
        .map(|port| json!({ "name": port.name, "protocol": port.protocol.name(), "port": port.port }))
        .collect();
    Manifest {
        collection: format!(
            "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices",
            slice.key.namespace
        ),
        name: slice.key.name.clone(),
        object: compact(json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": slice.key.name, "namespace": slice.key.namespace, "labels": labels },
            "addressType": slice.address_type,
            "ports": ports,
            "endpoints": slice.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        })),
        status: None,
    }
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let Conditions {
        ready,
        serving,
        terminating,
    } = endpoint.conditions;
    let named = |names: &[String]| -> Option<Vec<Value>> {
        (!names.is_empty()).then(|| names.iter().map(|name| json!({ "name": name })).collect())
    };
    let (zones, nodes) = (named(&endpoint.for_zones), named(&endpoint.for_nodes));
    let hints = (zones.is_some() || nodes.is_some()).then(|| json!({ "forZones": zones, "forNodes": nodes }));
    json!({
        "addresses": endpoint.addresses,
        "conditions": { "ready": ready, "serving": serving, "terminating": terminating },
        "nodeName": endpoint.node,
        "zone": endpoint.zone,
        "hints": hints,
    })
}

fn service_cidr(range: &str) -> Manifest {
    let place = EXTRA_SERVICE_CIDRS.iter().position(|extra| *extra == range);
    let name = format!("extra-{}", place.unwrap_or(EXTRA_SERVICE_CIDRS.len()));
    Manifest {
        collection: "/apis/networking.k8s.io/v1/servicecidrs".to_owned(),
        name: name.clone(),
        object: json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": { "name": name },
            "spec": { "cidrs": [range] },
        }),
        status: None,
    }
}

fn node_object(cluster: &Cluster) -> Manifest {
    let addresses: Vec<Value> = Family::ALL
        .iter()
        .map(|family| json!({ "type": "InternalIP", "address": node(*family) }))
        .collect();
    Manifest {
        collection: "/api/v1/nodes".to_owned(),
        name: NODE.to_owned(),
        object: compact(json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": NODE,
                "labels": { "kubernetes.io/hostname": NODE, "topology.kubernetes.io/zone": cluster.zone },
            },
            "spec": { "podCIDR": POD_CIDRS[0], "podCIDRs": POD_CIDRS },
        })),
        status: Some(json!({ "addresses": addresses })),
    }
}

/// The objects as a person would write them, for a report.
pub fn yaml(cluster: &Cluster) -> String {
    let mut documents = Vec::new();
    for manifest in manifests(cluster) {
        let mut object = manifest.object;
        if let Some(status) = manifest.status {
            object["status"] = status;
        }
        documents.push(serde_saphyr::to_string(&object).unwrap_or_else(|error| format!("# {error}\n")));
    }
    documents.join("---\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::generate::round;
    use crate::differential::random::Random;

    #[test]
    fn what_a_service_may_not_say_is_left_out() {
        for number in 0..200 {
            let cluster = round(&mut Random::of_round(5, number)).start;
            for (service, manifest) in cluster.services.iter().zip(manifests(&cluster)) {
                let spec = &manifest.object["spec"];
                let has = |field: &str| spec.get(field).is_some();
                assert_eq!(has("externalTrafficPolicy"), service.is_externally_accessible());
                assert_eq!(has("internalTrafficPolicy"), service.has_cluster_ips());
                assert!(!has("loadBalancerSourceRanges") || service.kind == Type::LoadBalancer);
                assert_eq!(manifest.status.is_some(), service.kind == Type::LoadBalancer);
            }
        }
    }

    #[test]
    fn objects_are_found_by_their_names() {
        let cluster = round(&mut Random::of_round(1, 1)).start;
        let paths: Vec<String> = manifests(&cluster).iter().map(Manifest::path).collect();
        let services = cluster.services.iter().map(|service| service_path(&service.key));
        let slices = cluster.slices.iter().map(|slice| slice_path(&slice.key));
        let expected: Vec<String> = services.chain(slices).collect();
        assert_eq!(paths[..expected.len()], expected);
    }

    #[test]
    fn the_yaml_has_a_document_for_each_object() {
        let cluster = round(&mut Random::of_round(1, 1)).start;
        let text = yaml(&cluster);
        assert_eq!(text.split("---\n").count(), manifests(&cluster).len());
        assert!(!text.contains("null"), "{text}");
    }
}
