//! What is decided, as it stands in the status of Services and pools.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Service, ServiceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::allocate::{CONDITION, Decision, Tally};
use super::pool::{AddressPool, AddressPoolStatus};

/// Traffic is delivered to the node with the load balancer's address as its destination (KEP-1860).
const MODE: &str = "VIP";

/// The status that a Service is to have.
pub(crate) fn decided(service: &Service, decision: &Decision, now: Timestamp) -> ServiceStatus {
    let mut status = service.status.clone().unwrap_or_default();
    let before = status
        .load_balancer
        .take()
        .and_then(|balancer| balancer.ingress)
        .unwrap_or_default();
    let ingress = match decision {
        Decision::Ours { addresses, .. } => {
            let kept = |address: &IpAddr| before.iter().find(|entry| says(entry, *address)).cloned();
            addresses
                .iter()
                .map(|address| kept(address).unwrap_or_else(|| entry(*address)))
                .collect()
        }
        Decision::Withdrawn(addresses) => {
            let stays = |entry: &LoadBalancerIngress| !addresses.iter().any(|address| of(entry) == Some(*address));
            before.into_iter().filter(stays).collect::<Vec<_>>()
        }
    };
    status.load_balancer = Some(LoadBalancerStatus {
        ingress: (!ingress.is_empty()).then_some(ingress),
    });
    let mut conditions = status.conditions.take().unwrap_or_default();
    match decision {
        Decision::Ours { finding, .. } => {
            let condition = Condition {
                type_: CONDITION.into(),
                status: truth(finding.assigned).into(),
                reason: finding.reason.into(),
                message: finding.message.clone(),
                observed_generation: service.metadata.generation,
                last_transition_time: Time(now),
            };
            put(&mut conditions, condition);
        }
        Decision::Withdrawn(_) => conditions.retain(|condition| condition.type_ != CONDITION),
    }
    status.conditions = (!conditions.is_empty()).then_some(conditions);
    status
}

/// Whether the status that a Service has says the same as this one.
pub(crate) fn stands(service: &Service, status: &ServiceStatus) -> bool {
    let ingress = |status: &ServiceStatus| {
        let balancer = status.load_balancer.as_ref();
        balancer
            .and_then(|balancer| balancer.ingress.clone())
            .unwrap_or_default()
    };
    let conditions = |status: &ServiceStatus| status.conditions.clone().unwrap_or_default();
    let nothing = ServiceStatus::default();
    let before = service.status.as_ref().unwrap_or(&nothing);
    ingress(before) == ingress(status) && conditions(before) == conditions(status)
}

/// The status that a pool is to have.
pub(crate) fn of_pool(pool: &AddressPool, tally: &Tally, now: Timestamp) -> AddressPoolStatus {
    let mut status = pool.status.clone().unwrap_or_default();
    let generation = pool.metadata.generation;
    status.used = tally.used.to_string();
    status.free = tally.free.to_string();
    status.observed_generation = generation;
    let mut say = |kind: &str, holds: bool, reason: &str, message: String| {
        let condition = Condition {
            type_: kind.into(),
            status: truth(holds).into(),
            reason: reason.into(),
            message,
            observed_generation: generation,
            last_transition_time: Time(now),
        };
        put(&mut status.conditions, condition);
    };
    match tally.problems.as_slice() {
        [] => say("Ready", true, "Ready", String::new()),
        [first, others @ ..] => {
            let mut message = format!("{}: {}; {}", first.field, first.message, first.remedy);
            if !others.is_empty() {
                message.push_str(&format!(" (and {} more)", others.len()));
            }
            say("Ready", false, first.reason.name(), message);
        }
    }
    match tally.waiting {
        0 => say("Exhausted", false, "Sufficient", String::new()),
        _ => say(
            "Exhausted",
            true,
            "NoFreeAddress",
            "a Service could not be given an address".into(),
        ),
    }
    status
}

/// Sets a Condition. Its time stays unless its status changes.
fn put(conditions: &mut Vec<Condition>, mut condition: Condition) {
    match conditions.iter_mut().find(|before| before.type_ == condition.type_) {
        Some(before) => {
            if before.status == condition.status {
                condition.last_transition_time = before.last_transition_time.clone();
            }
            *before = condition;
        }
        None => conditions.push(condition),
    }
}

const fn truth(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

fn of(entry: &LoadBalancerIngress) -> Option<IpAddr> {
    entry.ip.as_deref().and_then(|ip| ip.parse().ok())
}

/// Whether an entry says what ours would. Servers that do not know the mode leave it out.
fn says(entry: &LoadBalancerIngress, address: IpAddr) -> bool {
    of(entry) == Some(address) && entry.ip_mode.as_deref().is_none_or(|mode| mode == MODE) && entry.hostname.is_none()
}

fn entry(address: IpAddr) -> LoadBalancerIngress {
    LoadBalancerIngress {
        ip: Some(address.to_string()),
        ip_mode: Some(MODE.into()),
        ..LoadBalancerIngress::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::allocate::Finding;
    use super::*;

    fn ours(address: &str, assigned: bool) -> Decision {
        Decision::Ours {
            addresses: vec![address.parse().unwrap()],
            finding: Finding {
                assigned,
                reason: "Assigned",
                message: "m".into(),
            },
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_status_that_has_been_written_stands() {
        let mut service = Service::default();
        let status = decided(&service, &ours("192.0.2.1", true), at(1));
        assert!(!stands(&service, &status));
        let ingress = json!([{"ip": "192.0.2.1", "ipMode": "VIP"}]);
        assert_eq!(
            serde_json::to_value(&status).unwrap()["loadBalancer"]["ingress"],
            ingress
        );
        service.status = Some(status);
        let again = decided(&service, &ours("192.0.2.1", true), at(2));
        assert!(stands(&service, &again), "time alone changes nothing");
        let changed = decided(&service, &ours("192.0.2.1", false), at(3));
        assert_eq!(changed.conditions.unwrap()[0].last_transition_time.0, at(3));
    }

    #[test]
    fn a_server_that_leaves_out_the_mode_is_not_written_to_again_and_again() {
        let mut service = Service::default();
        let mut status = decided(&service, &ours("192.0.2.1", true), at(1));
        status.load_balancer.as_mut().unwrap().ingress.as_mut().unwrap()[0].ip_mode = None;
        service.status = Some(status);
        assert!(stands(&service, &decided(&service, &ours("192.0.2.1", true), at(2))));
    }

    #[test]
    fn what_others_wrote_is_left() {
        let status = json!({
            "loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"ip": "203.0.113.1"}, {"hostname": "a.example.com"}]},
            "conditions": [{"type": "example.com/Theirs", "status": "True", "reason": "R", "message": "",
                            "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        });
        let service = Service {
            status: serde_json::from_value(status.clone()).unwrap(),
            ..Service::default()
        };
        let both = decided(&service, &ours("192.0.2.1", true), at(1));
        let types: Vec<_> = both
            .conditions
            .iter()
            .flatten()
            .map(|condition| condition.type_.as_str())
            .collect();
        assert_eq!(types, ["example.com/Theirs", CONDITION]);
        let without = Service {
            status: Some(both),
            ..service.clone()
        };
        let address = "192.0.2.1".parse().unwrap();
        let cleared = decided(&without, &Decision::Withdrawn(vec![address]), at(2));
        assert_eq!(
            serde_json::to_value(&cleared).unwrap()["conditions"],
            status["conditions"]
        );
        let cleared = decided(&service, &Decision::Withdrawn(vec![address]), at(2));
        let rest = json!([{"ip": "203.0.113.1"}, {"hostname": "a.example.com"}]);
        assert_eq!(serde_json::to_value(&cleared).unwrap()["loadBalancer"]["ingress"], rest);
    }
}
