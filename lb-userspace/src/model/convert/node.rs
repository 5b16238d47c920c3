//! Nodes.

use k8s_openapi::api::core::v1 as api;

use super::{Findings, range};
use crate::model::{Node, ObjectKey, ObjectKind};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The cluster autoscaler sets it on a node that it is about to remove (KEP-3836).
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

impl From<&api::Node> for Node {
    fn from(object: &api::Node) -> Self {
        let meta = &object.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        let mut findings = Findings::new(ObjectKind::Node, &ObjectKey::new("", name));
        let listed = object
            .status
            .iter()
            .flat_map(|status| status.addresses.iter().flatten());
        let mut addresses = Vec::new();
        for wanted in ["InternalIP", "ExternalIP"] {
            for (index, entry) in listed.clone().enumerate().filter(|(_, entry)| entry.type_ == wanted) {
                let addr = findings.address(|| format!("status.addresses[{index}].address"), &entry.address);
                addresses.extend(addr);
            }
        }
        let spec = object.spec.as_ref();
        let many = spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten());
        let single = spec
            .iter()
            .filter(|spec| spec.pod_cidrs.is_none())
            .flat_map(|spec| &spec.pod_cidr);
        let mut pod_cidrs = Vec::new();
        for (index, text) in many.chain(single).enumerate() {
            match range(text) {
                Some(net) => pod_cidrs.push(net),
                None => findings.report(
                    format!("spec.podCIDRs[{index}]"),
                    format!("`{text}` is not a range of addresses and is left out"),
                    "write it as an address, a slash and a prefix length",
                ),
            }
        }
        let tainted = spec.is_some_and(|s| s.taints.iter().flatten().any(|taint| taint.key == AUTOSCALER_TAINT));
        Self {
            name: name.into(),
            zone: meta
                .labels
                .as_ref()
                .and_then(|labels| labels.get(ZONE_LABEL))
                .filter(|zone| !zone.is_empty())
                .map(|zone| zone.as_str().into()),
            addresses,
            pod_cidrs,
            leaving: tainted || meta.deletion_timestamp.is_some(),
            labels: meta.labels.clone().unwrap_or_default(),
            problems: findings.problems,
        }
    }
}
