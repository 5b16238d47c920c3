//! What a Service asks for, and what it has.

use std::net::IpAddr;
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;

use super::pools::Labels;
use super::ranges::index;
use super::{Pools, Settings};
use crate::model::{IpFamily, ObjectKey, ObjectKind, Problem, Reason};

/// The addresses that a Service asks for, one of each family at most.
pub const ADDRESSES: &str = "fairway.io/addresses";
/// The pools that a Service asks for an address of.
pub const POOL: &str = "fairway.io/pool";
/// Services with the same key may have one address together.
pub const SHARE_KEY: &str = "fairway.io/share-key";
/// With `"true"`, also with Services of other namespaces that say the same.
pub const SHARE_ACROSS: &str = "fairway.io/share-across-namespaces";
/// The type of the Condition that says what has become of a Service.
pub const CONDITION: &str = "fairway.io/AddressAssigned";

static NO_LABELS: LazyLock<Labels> = LazyLock::new(Labels::new);

/// Whose a Service is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// Ours to give addresses to.
    Ours,
    /// No longer ours, and something of ours is in its status.
    Departed,
    /// Another's, or nobody's: its status is not touched.
    Others,
    /// It could be ours, but another controller has given it what is in its status.
    Claimed,
}

/// What a Service asks for, and what it has.
pub(crate) struct Claim<'a> {
    pub(crate) key: ObjectKey,
    created: Option<Timestamp>,
    pub(crate) standing: Standing,
    /// Whether it is of type LoadBalancer, and not being deleted.
    pub(crate) is_load_balancer: bool,
    pub(crate) labels: &'a Labels,
    /// The families that it wants, the primary one first.
    pub(crate) families: Vec<IpFamily>,
    /// Whether it wants both or nothing.
    pub(crate) all_or_nothing: bool,
    /// The addresses that it asks for, by family.
    pub(crate) requested: [Option<IpAddr>; 2],
    /// The field that they are in.
    pub(crate) requested_in: &'static str,
    /// What cannot be understood of that. It is given nothing until that is corrected.
    pub(crate) invalid: Option<Problem>,
    /// The pools that it asks for; empty = any.
    pub(crate) pools: Vec<&'a str>,
    pub(crate) share_key: Option<&'a str>,
    pub(crate) share_across: bool,
    /// Protocol and number of each port.
    pub(crate) ports: Vec<(&'a str, i32)>,
    /// `externalTrafficPolicy: Local`.
    pub(crate) local: bool,
    pub(crate) selector: &'a Labels,
    /// The addresses in its status, in their order.
    pub(crate) present: Vec<IpAddr>,
}

impl<'a> Claim<'a> {
    /// That of a Service.
    pub(crate) fn new(service: &'a Service, pools: &Pools, settings: &Settings) -> Self {
        let meta = &service.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        let key = ObjectKey::new(meta.namespace.as_deref().unwrap_or_default(), name);
        let annotation = |name| {
            meta.annotations
                .as_ref()
                .and_then(|all| all.get(name))
                .map(|text| text.trim())
        };
        let spec = service.spec.as_ref();
        let families = families(service);
        let mut claim = Self {
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
            standing: standing(service, pools, settings),
            is_load_balancer: is_load_balancer(service),
            labels: meta.labels.as_ref().unwrap_or(&NO_LABELS),
            all_or_nothing: spec.and_then(|spec| spec.ip_family_policy.as_deref()) == Some("RequireDualStack"),
            requested: [None, None],
            requested_in: "spec.loadBalancerIP",
            invalid: None,
            pools: names(annotation(POOL).unwrap_or_default()).collect(),
            share_key: annotation(SHARE_KEY).filter(|key| !key.is_empty()),
            share_across: annotation(SHARE_ACROSS) == Some("true"),
            ports: spec
                .and_then(|spec| spec.ports.as_deref())
                .map(ports)
                .unwrap_or_default(),
            local: spec.and_then(|spec| spec.external_traffic_policy.as_deref()) == Some("Local"),
            selector: spec.and_then(|spec| spec.selector.as_ref()).unwrap_or(&NO_LABELS),
            present: present(service).collect(),
            families,
            key,
        };
        let field = spec
            .and_then(|spec| spec.load_balancer_ip.as_deref())
            .unwrap_or_default();
        let text = annotation(ADDRESSES).filter(|text| !text.is_empty());
        if text.is_some() {
            claim.requested_in = "metadata.annotations[fairway.io/addresses]";
        }
        if let Err((message, remedy)) = claim.request(text.unwrap_or(field)) {
            let message = format!("{message}, so it is given no new address");
            claim.invalid = Some(claim.problem(claim.requested_in, message, remedy, Reason::InvalidField));
        }
        claim
    }

    /// What claims are served by: the older Service first, then the name.
    pub(crate) fn order(&self) -> (Option<Timestamp>, &ObjectKey) {
        (self.created, &self.key)
    }

    /// The address of a family that it asks for.
    pub(crate) fn requested(&self, family: IpFamily) -> Option<IpAddr> {
        self.requested[index(family)]
    }

    /// Whether it would take an address of this pool.
    pub(crate) fn names(&self, pool: &str) -> bool {
        self.pools.is_empty() || self.pools.contains(&pool)
    }

    /// Something that is wrong with it.
    pub(crate) fn problem(&self, field: &str, message: String, remedy: impl Into<String>, reason: Reason) -> Problem {
        Problem {
            kind: ObjectKind::Service,
            object: self.key.clone(),
            field: field.into(),
            message,
            remedy: remedy.into(),
            reason,
        }
    }

    fn request(&mut self, text: &str) -> Result<(), (String, &'static str)> {
        for text in names(text) {
            let address: IpAddr = text.parse().map_err(|_| {
                let form = "write IPv4 or IPv6 addresses, with a comma between them";
                (format!("`{text}` is not an address"), form)
            })?;
            let family = IpFamily::of(&address);
            if !self.families.contains(&family) {
                let message = format!("it asks for {address}, and {family} is not among its families");
                return Err((message, "add the family to spec.ipFamilies, or take the address away"));
            }
            if let Some(other) = self.requested[index(family)].filter(|other| *other != address) {
                let message = format!("it asks for {other} and for {address}, both of one family");
                return Err((message, "name one address for each family"));
            }
            self.requested[index(family)] = Some(address);
        }
        Ok(())
    }
}

/// The addresses in a Service's status.
pub(crate) fn present(service: &Service) -> impl Iterator<Item = IpAddr> {
    let entries = ingress(service).iter();
    entries.filter_map(|entry| entry.ip.as_deref().and_then(|ip| ip.parse().ok()))
}

/// The entries of a Service's status.
fn ingress(service: &Service) -> &[k8s_openapi::api::core::v1::LoadBalancerIngress] {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    balancer
        .and_then(|balancer| balancer.ingress.as_deref())
        .unwrap_or_default()
}

/// Whether our Condition is in its status.
pub(super) fn has_condition(service: &Service) -> bool {
    let conditions = service.status.as_ref().and_then(|status| status.conditions.as_deref());
    conditions.is_some_and(|all| all.iter().any(|condition| condition.type_ == CONDITION))
}

fn standing(service: &Service, pools: &Pools, settings: &Settings) -> Standing {
    let spec = service.spec.as_ref();
    let class = spec.and_then(|spec| spec.load_balancer_class.as_deref());
    let by_name = class == Some(&settings.class);
    let our_class = by_name || class.is_none() && !settings.only_class;
    let in_our_pools = || present(service).any(|address| pools.owner(address).is_some());
    let ours = has_condition(service) || our_class && in_our_pools();
    match (is_load_balancer(service) && our_class, ours) {
        (true, false) if !by_name && !ingress(service).is_empty() => Standing::Claimed,
        (true, _) => Standing::Ours,
        (false, true) => Standing::Departed,
        (false, false) => Standing::Others,
    }
}

fn is_load_balancer(service: &Service) -> bool {
    let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
    kind == Some("LoadBalancer") && service.metadata.deletion_timestamp.is_none()
}

/// The families that a Service wants, the primary one first. The API server writes them into each Service.
fn families(service: &Service) -> Vec<IpFamily> {
    let spec = service.spec.as_ref();
    let listed = spec.and_then(|spec| spec.ip_families.as_deref()).unwrap_or_default();
    let mut families = Vec::new();
    for name in listed {
        let family = match name.as_str() {
            "IPv4" => IpFamily::V4,
            "IPv6" => IpFamily::V6,
            _ => continue,
        };
        if !families.contains(&family) {
            families.push(family);
        }
    }
    if families.is_empty() {
        families.push(IpFamily::V4);
    }
    let policy = spec.and_then(|spec| spec.ip_family_policy.as_deref());
    if !matches!(policy, Some("PreferDualStack" | "RequireDualStack")) {
        families.truncate(1);
    }
    families
}

fn ports(ports: &[k8s_openapi::api::core::v1::ServicePort]) -> Vec<(&str, i32)> {
    let ports = ports.iter();
    ports
        .map(|port| (port.protocol.as_deref().unwrap_or("TCP"), port.port))
        .collect()
}

/// What is between commas.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty())
}
