//! AddressPools.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::Findings;
use crate::ipam::pool::{AddressPool, AnnouncementMode, Block};
use crate::model::pool::{Pool, Requirement, Selector};
use crate::model::{ObjectKey, ObjectKind};

impl From<&AddressPool> for Pool {
    fn from(object: &AddressPool) -> Self {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let mut findings = Findings::new(ObjectKind::AddressPool, &ObjectKey::new("", name));
        let mut ranges = Vec::new();
        for (index, block) in object.spec.blocks.iter().enumerate() {
            match range_of(block) {
                Ok(range) => ranges.push(range),
                Err(message) => findings.report(
                    format!("spec.blocks[{index}]"),
                    format!("{message}, so nobody announces its addresses"),
                    "give it either `cidr`, or `start` and `stop` of one family, the lower one first",
                ),
            }
        }
        let announcement = &object.spec.announcement;
        let nodes = selector(announcement.node_selector.as_ref(), &mut findings);
        Self {
            name: name.into(),
            ranges,
            is_announced: announcement.mode == AnnouncementMode::L2,
            nodes,
            interfaces: announcement.interfaces.clone(),
            problems: findings.problems,
        }
    }
}

fn range_of(block: &Block) -> Result<(IpAddr, IpAddr), String> {
    let address = |text: &str| {
        let parsed = text.trim().parse::<IpAddr>();
        parsed.map_err(|_| format!("`{text}` is not an IP address"))
    };
    match (&block.cidr, &block.start, &block.stop) {
        (Some(cidr), None, None) => {
            let net: IpNet = cidr.trim().parse().map_err(|_| format!("`{cidr}` is not a prefix"))?;
            Ok((net.network(), net.broadcast()))
        }
        (None, Some(start), Some(stop)) => {
            let (first, last) = (address(start)?, address(stop)?);
            if first.is_ipv4() == last.is_ipv4() && first <= last {
                Ok((first, last))
            } else {
                Err(format!("{first} to {last} is not a range"))
            }
        }
        _ => Err("it is neither a prefix nor a range".to_owned()),
    }
}

fn selector(selector: Option<&LabelSelector>, findings: &mut Findings) -> Selector {
    let Some(selector) = selector else {
        return Selector::default();
    };
    let labels = selector.match_labels.iter().flatten();
    let mut requirements: Vec<Requirement> = labels
        .map(|(key, value)| Requirement::In(key.clone(), vec![value.clone()]))
        .collect();
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let key = expression.key.clone();
        let values = expression.values.clone().unwrap_or_default();
        requirements.push(match expression.operator.as_str() {
            "In" => Requirement::In(key, values),
            "NotIn" => Requirement::NotIn(key, values),
            "Exists" => Requirement::Exists(key),
            "DoesNotExist" => Requirement::DoesNotExist(key),
            other => {
                findings.report(
                    format!("spec.announcement.nodeSelector.matchExpressions[{index}].operator"),
                    format!("`{other}` is unknown, so no node announces addresses of the pool"),
                    "use In, NotIn, Exists or DoesNotExist",
                );
                Requirement::Unreadable
            }
        });
    }
    Selector { requirements }
}
