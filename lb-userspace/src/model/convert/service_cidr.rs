//! ServiceCIDRs.

use k8s_openapi::api::networking::v1 as api;

use super::{Findings, range};
use crate::model::{ObjectKey, ObjectKind, ServiceCidr};

impl From<&api::ServiceCIDR> for ServiceCidr {
    fn from(object: &api::ServiceCIDR) -> Self {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let mut findings = Findings::new(ObjectKind::ServiceCidr, &ObjectKey::new("", name));
        let texts = object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
        let mut ranges = Vec::new();
        for (index, text) in texts.enumerate() {
            match range(text) {
                Some(net) => ranges.push(net),
                None => findings.report(
                    format!("spec.cidrs[{index}]"),
                    format!("`{text}` is not a range of addresses and is left out"),
                    "write it as an address, a slash and a prefix length",
                ),
            }
        }
        Self {
            name: name.into(),
            ranges,
            problems: findings.problems,
        }
    }
}
