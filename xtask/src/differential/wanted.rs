//! The differences that are wanted: `xtask/differential/wanted.yaml`, by rule and with a reason each.
//!
//! A rule says of a difference in what respect it may be, at which frontends and for whom, what each proxy may do, and
//! which facts about the objects must hold. It names no object, address or seed.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use super::change::Round;
use super::model::{Cluster, Endpoint, Family, Policy, Port, Protocol, Service, Slice, Type};
use super::plan;
use super::probes::{Frontend, Origin, Role, Target};
use super::seen::{Aspect, Verdict};

/// The file.
const WANTED: &str = include_str!("../../differential/wanted.yaml");

/// A rule.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rule {
    /// Its name.
    pub rule: String,
    /// Why Fairway is not as kube-proxy here.
    pub reason: String,
    /// When it holds.
    when: When,
}

/// Conditions, all of which must hold. An empty list allows everything.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct When {
    aspect: Vec<Aspect>,
    frontend: Vec<Frontend>,
    origin: Vec<Origin>,
    protocol: Vec<Protocol>,
    /// What kube-proxy may do.
    kube_proxy: Vec<Verdict>,
    /// What Fairway may do.
    fairway: Vec<Verdict>,
    /// What must be so.
    facts: Vec<Fact>,
    /// What must not be so.
    unless: Vec<Fact>,
}

/// What is so about the Service of a difference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fact {
    /// It has session affinity.
    Affinity,
    /// The address and port were one of its frontends before the step, and are no longer or were not for a moment.
    Gone,
    /// The address and port are one of its frontends since the step.
    New,
    /// Its frontends lead to different endpoints.
    SeveralSets,
    /// No endpoint of its port serves.
    NoServingEndpoint,
    /// Some endpoint says that it is ready and does not serve, or said so before the step: objects change one after the
    /// other, and kube-proxy looks at all flows at the first that does.
    ReadyWithoutServing,
    /// A process of the node under test is an endpoint.
    ProcessAsEndpoint,
    /// Its load balancer addresses are restricted to some clients.
    SourceRanges,
}

/// A difference, as far as rules look at it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// In what respect.
    pub aspect: Aspect,
    /// Where the probes went.
    pub target: Target,
    /// What that is.
    pub role: Role,
    /// Who asked.
    pub origin: Origin,
    /// What kube-proxy did.
    pub kube_proxy: BTreeSet<Verdict>,
    /// What Fairway did.
    pub fairway: BTreeSet<Verdict>,
}

/// All rules.
pub fn rules() -> anyhow::Result<Vec<Rule>> {
    parse(WANTED).context("xtask/differential/wanted.yaml")
}

fn parse(text: &str) -> anyhow::Result<Vec<Rule>> {
    let rules: Vec<Rule> = serde_saphyr::from_str(text).context("understand the rules")?;
    let mut names = BTreeSet::new();
    for rule in &rules {
        ensure!(names.insert(&rule.rule), "rule {} is there twice", rule.rule);
        ensure!(!rule.reason.trim().is_empty(), "rule {} has no reason", rule.rule);
        let When { aspect, frontend, .. } = &rule.when;
        let (aspects, frontends) = (aspect.len(), frontend.len());
        ensure!(
            aspects > 0 && frontends > 0,
            "rule {} does not say of which aspect or frontend it is",
            rule.rule
        );
    }
    Ok(rules)
}

/// The rule by which this difference is wanted.
pub fn wanted<'a>(rules: &'a [Rule], shape: &Shape, facts: &BTreeSet<Fact>) -> Option<&'a Rule> {
    rules.iter().find(|rule| rule.when.holds(shape, facts))
}

impl When {
    fn holds(&self, shape: &Shape, facts: &BTreeSet<Fact>) -> bool {
        let one_of = |allowed: &[Verdict], seen: &BTreeSet<Verdict>| {
            allowed.is_empty() || seen.iter().all(|verdict| allowed.contains(verdict))
        };
        among(&self.aspect, &shape.aspect)
            && among(&self.frontend, &shape.role.frontend)
            && among(&self.origin, &shape.origin)
            && among(&self.protocol, &shape.target.protocol)
            && one_of(&self.kube_proxy, &shape.kube_proxy)
            && one_of(&self.fairway, &shape.fairway)
            && self.facts.iter().all(|fact| facts.contains(fact))
            && !self.unless.iter().any(|fact| facts.contains(fact))
    }
}

fn among<T: PartialEq>(allowed: &[T], item: &T) -> bool {
    allowed.is_empty() || allowed.contains(item)
}

/// The facts about the Service of a target after so many steps.
pub fn facts(round: &Round, stage: usize, shape: &Shape) -> BTreeSet<Fact> {
    let mut facts = BTreeSet::new();
    let stages = round.stages();
    let Some(key) = &shape.role.service else { return facts };
    let last = stage.checked_sub(1).map(|index| &stages[index]);
    let before = last.and_then(|cluster| cluster.service(key));
    let now = stages[stage].service(key);
    let mut note = |fact, holds: bool| {
        if holds {
            facts.insert(fact);
        }
    };
    note(Fact::Affinity, now.is_some_and(|service| service.affinity_s.is_some()));
    let had = before.is_some_and(|service| is_frontend(service, shape));
    let has = now.is_some_and(|service| is_frontend(service, shape));
    let step = stage.checked_sub(1).map(|index| &round.steps[index]);
    let made_anew = step.is_some_and(|step| step.recreated().any(|recreated| recreated == key));
    note(Fact::Gone, had && (!has || made_anew));
    let is_local = |service: &Service| {
        service.internal == Policy::Local || (service.is_externally_accessible() && service.external == Policy::Local)
    };
    note(Fact::SeveralSets, now.is_some_and(is_local));
    note(Fact::New, has && !had);
    note(
        Fact::SourceRanges,
        now.is_some_and(|service| !service.source_ranges.is_empty()),
    );
    let endpoints = endpoints(&stages[stage], shape);
    let serves = |endpoint: &Endpoint| endpoint.conditions.serving != Some(false);
    let is_ready = |endpoint: &Endpoint| endpoint.conditions.ready != Some(false);
    note(
        Fact::NoServingEndpoint,
        now.is_some() && !endpoints.iter().any(|endpoint| serves(endpoint)),
    );
    let earlier = last.map(|cluster| self::endpoints(cluster, shape)).unwrap_or_default();
    let mut at_any_time = earlier.iter().chain(&endpoints);
    note(
        Fact::ReadyWithoutServing,
        at_any_time.any(|endpoint| is_ready(endpoint) && !serves(endpoint)),
    );
    let own = plan::node(Family::of(&shape.target.addr.ip())).to_string();
    note(
        Fact::ProcessAsEndpoint,
        endpoints
            .iter()
            .any(|endpoint| endpoint.addresses.first() == Some(&own)),
    );
    facts
}

/// Whether the address and port are one of the Service's.
fn is_frontend(service: &Service, shape: &Shape) -> bool {
    let Target { addr, protocol } = &shape.target;
    let ip = addr.ip();
    let owns = match shape.role.frontend {
        Frontend::LoadBalancer => {
            let mut vips = service.ingress.iter().filter(|entry| entry.mode != Some("Proxy"));
            service.kind == Type::LoadBalancer && vips.any(|entry| entry.ip == Some(ip))
        }
        Frontend::ExternalIp => service.external_ips.contains(&ip),
        Frontend::NodePort | Frontend::NodePortElsewhere | Frontend::NodePortLoopback => {
            service.kind == Type::NodePort || (service.kind == Type::LoadBalancer && !service.without_node_ports)
        }
        _ => service.cluster_ips.contains(&ip),
    };
    let number = |port: &Port| match shape.role.frontend {
        Frontend::NodePort | Frontend::NodePortElsewhere | Frontend::NodePortLoopback => port.node_port,
        _ => port.port,
    };
    let mut ports = service.ports.iter();
    let has_port = ports.any(|port| (number(port), port.protocol) == (addr.port(), *protocol));
    service.has_cluster_ips() && service.proxy_name.is_none() && owns && has_port
}

/// The endpoints of the Service's port in the family of the target.
fn endpoints<'a>(cluster: &'a Cluster, shape: &'a Shape) -> Vec<&'a Endpoint> {
    let Some(key) = &shape.role.service else {
        return Vec::new();
    };
    let family = Family::of(&shape.target.addr.ip()).name();
    let name = shape.role.port.as_deref().unwrap_or_default();
    let has_port = |slice: &&Slice| {
        let mut ports = slice.ports.iter();
        ports.any(|port| {
            port.name == name && port.protocol == shape.target.protocol && port.port.is_some_and(|number| number != 0)
        })
    };
    let slices = cluster
        .slices_of(key)
        .filter(|slice| slice.address_type == family && !slice.headless);
    slices.filter(has_port).flat_map(|slice| &slice.endpoints).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::change::{Change, Step};
    use crate::differential::model::{Conditions, Key, SlicePort};

    const RULES: &str = "
- rule: loopback
  reason: people use it
  when: {aspect: [verdict], frontend: [node-port-loopback], origin: [node], fairway: [forward]}
- rule: gone
  reason: nobody answers there
  when:
    aspect: [established]
    frontend: [cluster-ip]
    protocol: [udp]
    kube-proxy: [kept]
    facts: [gone]
    unless: [affinity]
";

    fn shape(aspect: Aspect, frontend: Frontend, protocol: Protocol) -> Shape {
        Shape {
            aspect,
            target: Target {
                addr: "172.30.0.40:80".parse().expect("an address"),
                protocol,
            },
            role: Role {
                frontend,
                service: None,
                port: None,
            },
            origin: Origin::Node,
            kube_proxy: BTreeSet::from([Verdict::Kept]),
            fairway: BTreeSet::from([Verdict::Forward]),
        }
    }

    fn rule_for(shape: &Shape, facts: &[Fact]) -> Option<String> {
        let rules = parse(RULES).expect("the rules are right");
        wanted(&rules, shape, &facts.iter().copied().collect()).map(|rule| rule.rule.clone())
    }

    #[test]
    fn the_rules_of_the_repository_can_be_read() {
        rules().expect("every rule is right");
    }

    #[test]
    fn a_rule_holds_only_where_all_that_it_says_is_so() {
        let loopback = shape(Aspect::Verdict, Frontend::NodePortLoopback, Protocol::Tcp);
        assert_eq!(rule_for(&loopback, &[]).as_deref(), Some("loopback"));
        let silent = Shape {
            fairway: BTreeSet::from([Verdict::Forward, Verdict::Drop]),
            ..loopback.clone()
        };
        assert_eq!(rule_for(&silent, &[]), None);
        let elsewhere = shape(Aspect::Verdict, Frontend::NodePort, Protocol::Tcp);
        assert_eq!(rule_for(&elsewhere, &[]), None);
        let of_a_pod = Shape {
            origin: Origin::Pod,
            ..loopback
        };
        assert_eq!(rule_for(&of_a_pod, &[]), None);
    }

    #[test]
    fn facts_are_demanded_and_forbidden() {
        let gone = shape(Aspect::Established, Frontend::ClusterIp, Protocol::Udp);
        assert_eq!(rule_for(&gone, &[Fact::Gone]).as_deref(), Some("gone"));
        assert_eq!(rule_for(&gone, &[]), None);
        assert_eq!(rule_for(&gone, &[Fact::Gone, Fact::Affinity]), None);
        let tcp = shape(Aspect::Established, Frontend::ClusterIp, Protocol::Tcp);
        assert_eq!(rule_for(&tcp, &[Fact::Gone]), None);
    }

    #[test]
    fn an_endpoint_that_was_ready_without_serving_before_the_step_counts_and_an_earlier_one_does_not() {
        let contradicting = Conditions {
            serving: Some(false),
            ..Conditions::READY
        };
        let key = Key {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        };
        let endpoint = Endpoint {
            addresses: vec!["10.180.0.11".to_owned()],
            node: None,
            zone: None,
            conditions: contradicting,
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
        };
        let slice = Slice {
            key: key.clone(),
            service: Some(key.name.clone()),
            headless: false,
            address_type: "IPv4",
            ports: vec![SlicePort {
                name: "dns".to_owned(),
                protocol: Protocol::Udp,
                port: Some(53),
            }],
            endpoints: vec![endpoint],
        };
        let serve = || Step {
            changes: vec![Change::Conditions("10.180.0.11".to_owned(), Conditions::READY)],
        };
        let round = Round {
            start: Cluster {
                slices: vec![slice],
                ..Cluster::default()
            },
            steps: vec![serve(), serve()],
        };
        let mut shape = shape(Aspect::Established, Frontend::ClusterIp, Protocol::Udp);
        shape.role.service = Some(key);
        shape.role.port = Some("dns".to_owned());
        let says_so = |stage| facts(&round, stage, &shape).contains(&Fact::ReadyWithoutServing);
        assert_eq!([0, 1, 2].map(says_so), [true, true, false]);
    }

    #[test]
    fn a_rule_must_have_a_reason_and_say_what_it_is_about() {
        for text in [
            "- {rule: a, reason: ' ', when: {aspect: [verdict], frontend: [cluster-ip]}}",
            "- {rule: a, reason: b, when: {aspect: [verdict]}}",
            "- {rule: a, reason: b, when: {aspect: [verdict], frontend: [cluster-ip], fact: [x]}}",
            "- {rule: a, reason: b, when: {aspect: [verdict], frontend: [cluster-ip], facts: [moonshine]}}",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
