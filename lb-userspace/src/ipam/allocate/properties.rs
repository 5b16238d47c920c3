//! What holds after any sequence of changes.

use std::collections::HashMap;

use k8s_openapi::jiff::Timestamp;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::status;
use super::claim::has_condition;
use super::*;

/// What a Service says, in small numbers so that much of it collides.
#[derive(Clone, Debug)]
struct Asks {
    created_s: u8,
    port: u8,
    policy: u8,
    primary_v6: bool,
    share_key: Option<u8>,
    across: bool,
    local: bool,
    requested: Option<u8>,
    pool: Option<u8>,
    class: u8,
    kind: u8,
}

#[derive(Clone, Debug)]
enum Change {
    /// A Service is made, or changed.
    Service(u8, Asks),
    Delete(u8),
    /// A pool is made, or changed.
    Pool {
        name: u8,
        created_s: u8,
        v4: (u8, u8),
        v6: (u8, u8),
        disabled: bool,
    },
    DeletePool(u8),
    /// Blocks are added to a pool.
    Grow {
        name: u8,
        at: u8,
    },
    /// A controller ends in the middle of its writes; the next one knows statuses only.
    Crash {
        after_writes: u8,
    },
}

fn asks() -> impl Strategy<Value = Asks> {
    let who = (0..4_u8, 0..3_u8, 0..3_u8, any::<bool>());
    let shares = (option::of(0..2_u8), any::<bool>(), any::<bool>());
    let wants = (
        option::weighted(0.3, 0..14_u8),
        option::weighted(0.2, 0..3_u8),
        0..8_u8,
        0..8_u8,
    );
    (who, shares, wants).prop_map(|(who, shares, wants)| Asks {
        created_s: who.0,
        port: who.1,
        policy: who.2,
        primary_v6: who.3,
        share_key: shares.0,
        across: shares.1,
        local: shares.2,
        requested: wants.0,
        pool: wants.1,
        class: wants.2,
        kind: wants.3,
    })
}

fn change() -> impl Strategy<Value = Change> {
    let range = || (0..12_u8, 0..6_u8);
    prop_oneof![
        6 => (0..10_u8, asks()).prop_map(|(name, asks)| Change::Service(name, asks)),
        2 => (0..10_u8).prop_map(Change::Delete),
        3 => (0..3_u8, 0..3_u8, range(), range(), prop::bool::weighted(0.2)).prop_map(
            |(name, created_s, v4, v6, disabled)| Change::Pool { name, created_s, v4, v6, disabled }
        ),
        1 => (0..3_u8).prop_map(Change::DeletePool),
        2 => (0..3_u8, 0..12_u8).prop_map(|(name, at)| Change::Grow { name, at }),
        2 => (0..6_u8).prop_map(|after_writes| Change::Crash { after_writes }),
    ]
}

#[derive(Default)]
struct World {
    pools: BTreeMap<String, AddressPool>,
    services: BTreeMap<ObjectKey, Service>,
}

fn v4(at: u8) -> String {
    format!("192.0.2.{at}")
}

fn v6(at: u8) -> String {
    format!("2001:db8::{at:x}")
}

fn time(seconds: u8) -> String {
    Timestamp::from_second(seconds.into()).unwrap().to_string()
}

fn service(name: u8, asks: &Asks) -> Service {
    let mut annotations = json!({});
    if let Some(key) = asks.share_key {
        annotations["fairway.io/share-key"] = json!(format!("k{key}"));
    }
    if asks.across {
        annotations["fairway.io/share-across-namespaces"] = json!("true");
    }
    if let Some(at) = asks.requested {
        let address = if asks.primary_v6 { v6(at) } else { v4(at) };
        annotations["fairway.io/addresses"] = json!(address);
    }
    if let Some(pool) = asks.pool {
        annotations["fairway.io/pool"] = json!(format!("p{pool}"));
    }
    let families = if asks.primary_v6 {
        ["IPv6", "IPv4"]
    } else {
        ["IPv4", "IPv6"]
    };
    let policy = ["SingleStack", "PreferDualStack", "RequireDualStack"][usize::from(asks.policy)];
    let mut spec = json!({
        "type": if asks.kind == 0 { "ClusterIP" } else { "LoadBalancer" },
        "ipFamilies": families,
        "ipFamilyPolicy": policy,
        "ports": [{"port": u16::from(asks.port) + 80, "protocol": "TCP"}],
        "selector": {"app": "web"},
        "externalTrafficPolicy": if asks.local { "Local" } else { "Cluster" },
    });
    if asks.class == 0 {
        spec["loadBalancerClass"] = json!("example.com/other");
    }
    let metadata = json!({
        "namespace": format!("n{}", name % 2), "name": format!("s{name}"),
        "creationTimestamp": time(asks.created_s), "annotations": annotations,
    });
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("it is a Service")
}

fn block(first: &str, last: &str) -> Value {
    json!({"start": first, "stop": last})
}

impl World {
    fn plan(&self) -> Plan {
        self.plan_of(self.services.values().collect(), self.pools.values().collect())
    }

    fn plan_of(&self, services: Vec<&Service>, pools: Vec<&AddressPool>) -> Plan {
        let settings = Settings {
            class: "fairway.io/fairway".into(),
            only_class: false,
        };
        let input = Input {
            pools,
            services,
            namespaces: BTreeMap::new(),
        };
        allocate(&input, &settings)
    }

    /// Whether the change is one of a Service itself, and which.
    fn change(&mut self, change: &Change) -> Option<ObjectKey> {
        match change {
            Change::Service(name, asks) => {
                let mut made = service(*name, asks);
                let key = ObjectKey::new(&format!("n{}", name % 2), &format!("s{name}"));
                if let Some(before) = self.services.get(&key) {
                    made.metadata.creation_timestamp = before.metadata.creation_timestamp.clone();
                    made.status = before.status.clone();
                }
                self.services.insert(key.clone(), made);
                return Some(key);
            }
            Change::Delete(name) => {
                self.services.retain(|key, _| *key.name != format!("s{name}"));
            }
            Change::Pool {
                name,
                created_s,
                v4: four,
                v6: six,
                disabled,
            } => {
                let pool = json!({
                    "apiVersion": "fairway.io/v1alpha1", "kind": "AddressPool",
                    "metadata": {"name": format!("p{name}"), "creationTimestamp": time(*created_s)},
                    "spec": {"disabled": disabled, "blocks": [
                        block(&v4(four.0), &v4(four.0 + four.1)), block(&v6(six.0 + 1), &v6(six.0 + 1 + six.1)),
                    ]},
                });
                self.pools
                    .insert(format!("p{name}"), serde_json::from_value(pool).expect("it is a pool"));
            }
            Change::DeletePool(name) => {
                self.pools.remove(&format!("p{name}"));
            }
            Change::Grow { name, at } => {
                if let Some(pool) = self.pools.get_mut(&format!("p{name}")) {
                    let more = [block(&v4(*at), &v4(at + 2)), block(&v6(at + 1), &v6(at + 2))];
                    let more = more
                        .into_iter()
                        .map(|block| serde_json::from_value(block).expect("it is a block"));
                    pool.spec.blocks.extend(more);
                }
            }
            Change::Crash { after_writes } => {
                self.write(&self.plan(), usize::from(*after_writes));
            }
        }
        None
    }

    /// Writes the first of the decisions into statuses, as a controller does; tells whether any was news.
    fn write(&mut self, plan: &Plan, most: usize) -> bool {
        let mut news = false;
        for (key, decision) in plan.services.iter().take(most) {
            let service = self
                .services
                .get_mut(key)
                .expect("only Services that exist are decided about");
            let decided = status::decided(service, decision, Timestamp::UNIX_EPOCH);
            news |= !status::stands(service, &decided);
            service.status = Some(decided);
        }
        news
    }

    /// What Services have that say who gave it to them. What one has taken along when it left is its own affair.
    fn given(&self) -> BTreeMap<ObjectKey, Vec<IpAddr>> {
        let given = self.services.iter().filter(|(_, service)| has_condition(service));
        given
            .map(|(key, service)| (key.clone(), present(service).collect()))
            .collect()
    }

    /// No two show one address, but for those that may share it; a Service that has changed since may no longer.
    fn check_sharing(&self, changed: &[ObjectKey]) -> Result<(), TestCaseError> {
        let mut by_address: HashMap<IpAddr, Vec<&Service>> = HashMap::new();
        for (_, service) in self.services.iter().filter(|(key, _)| !changed.contains(key)) {
            for address in present(service) {
                by_address.entry(address).or_default().push(service);
            }
        }
        for (address, sharers) in by_address {
            for (at, one) in sharers.iter().enumerate() {
                for two in &sharers[at + 1..] {
                    prop_assert!(may_share(one, two), "{address}: {one:?} and {two:?}");
                }
            }
        }
        Ok(())
    }
}

fn annotation<'a>(service: &'a Service, name: &str) -> Option<&'a str> {
    service
        .metadata
        .annotations
        .as_ref()?
        .get(&format!("fairway.io/{name}"))
        .map(String::as_str)
}

/// The rule, written once more.
fn may_share(one: &Service, two: &Service) -> bool {
    let spec = |service: &Service| service.spec.clone().unwrap_or_default();
    let key = annotation(one, "share-key").is_some() && annotation(one, "share-key") == annotation(two, "share-key");
    let across = |service| annotation(service, "share-across-namespaces") == Some("true");
    let space = one.metadata.namespace == two.metadata.namespace || across(one) && across(two);
    let port = |service| spec(service).ports.unwrap_or_default()[0].port;
    let policy = spec(one).external_traffic_policy == spec(two).external_traffic_policy;
    key && space && port(one) != port(two) && policy
}

/// Whether the Service names pools, and this address is of none of them any more: then it moves when a pool that it does not
/// name comes to have the address.
fn is_stray(pools: &BTreeMap<String, AddressPool>, service: &Service, address: IpAddr) -> bool {
    let Some(name) = annotation(service, "pool") else {
        return false;
    };
    let blocks = pools
        .get(name)
        .map(|pool| pool.spec.blocks.as_slice())
        .unwrap_or_default();
    let end = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<IpAddr>().ok());
    !blocks
        .iter()
        .any(|block| end(&block.start) <= Some(address) && Some(address) <= end(&block.stop))
}

/// Whether the Service may lose an address because of what others do: it depends on its sharers.
fn shares(service: &Service) -> bool {
    annotation(service, "share-key").is_some()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nobody_has_anothers_address_and_nobody_is_moved_by_what_others_do(changes in vec(change(), 1..25)) {
        let mut world = World::default();
        let mut before = world.given();
        let (mut changed, mut pools_changed) = (Vec::new(), false);
        for (position, change) in changes.iter().enumerate() {
            changed.extend(world.change(change));
            pools_changed |= matches!(change, Change::Pool { .. } | Change::DeletePool(_));
            world.check_sharing(&changed)?;
            if matches!(changes.get(position + 1), Some(Change::Crash { .. })) {
                continue;
            }
            let mut plan = world.plan();
            let reversed = world.plan_of(world.services.values().rev().collect(), world.pools.values().rev().collect());
            prop_assert_eq!(&plan, &reversed);

            let mut rounds = 0;
            while world.write(&plan, usize::MAX) {
                rounds += 1;
                prop_assert!(rounds < 30, "it does not come to rest");
                plan = world.plan();
            }
            world.check_sharing(&[])?;

            for (key, had) in &before {
                let Some(service) = world.services.get(key) else { continue };
                let excused = changed.contains(key) || shares(service);
                let stray = had.iter().any(|address| is_stray(&world.pools, service, *address));
                if excused || stray || pools_changed && annotation(service, "pool").is_some() {
                    continue;
                }
                let has: Vec<IpAddr> = present(service).collect();
                prop_assert!(had.iter().all(|address| has.contains(address)), "{key}: {had:?} has become {has:?}");
                if matches!(service.spec.as_ref().unwrap().ip_family_policy.as_deref(), Some("RequireDualStack")) {
                    prop_assert!(has.len() != 1 || had.len() == 1, "{key} was given half of what it requires: {has:?}");
                }
            }
            before = world.given();
            changed.clear();
            pools_changed = false;
        }
    }

    #[test]
    fn no_input_makes_it_panic(
        texts in vec("[0-9a-f:./, -]{0,20}|\\PC{0,8}", 24),
        created in vec(option::of(any::<i16>()), 6),
        same_name in any::<bool>(),
    ) {
        let time = |at: usize| created[at].map(|second| Timestamp::from_second(second.into()).unwrap().to_string());
        let text = |at: usize| texts[at % texts.len()].clone();
        let services: Vec<Service> = (0..3).map(|at| serde_json::from_value(json!({
            "metadata": {
                "name": if same_name { "s".into() } else { text(at) }, "namespace": text(at + 1), "creationTimestamp": time(at),
                "annotations": {"fairway.io/addresses": text(at + 2), "fairway.io/pool": text(at + 3),
                                "fairway.io/share-key": text(at + 4), "fairway.io/share-across-namespaces": text(at + 5)},
            },
            "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv6", text(at + 6), "IPv4"], "ipFamilyPolicy": "PreferDualStack",
                     "ports": [{"port": -1, "protocol": text(at + 7)}], "loadBalancerIP": text(at + 8)},
            "status": {"loadBalancer": {"ingress": [{"ip": text(at + 9)}, {"hostname": text(at + 10)}]}},
        })).unwrap()).collect();
        let pools: Vec<AddressPool> = (0..3).map(|at| serde_json::from_value(json!({
            "apiVersion": "fairway.io/v1alpha1", "kind": "AddressPool",
            "metadata": {"name": text(at), "creationTimestamp": time(at + 3)},
            "spec": {"blocks": [{"cidr": text(at + 11)}, {"start": text(at + 12), "stop": text(at + 13)}, {"stop": text(at)},
                                {"cidr": "::1:0:0:0/64"}, {"cidr": "0.0.0.0/0"}, {"start": "1::", "stop": "f::"}],
                     "serviceSelector": {"matchExpressions": [{"key": text(at + 14), "operator": text(at + 15)}]}},
        })).unwrap()).collect();
        let world = World::default();
        let plan = world.plan_of(services.iter().collect(), pools.iter().collect());
        for (service, decision) in services.iter().zip(plan.services.values()) {
            status::decided(service, decision, Timestamp::UNIX_EPOCH);
        }
        for (pool, tally) in pools.iter().zip(plan.pools.values()) {
            status::of_pool(pool, tally, Timestamp::UNIX_EPOCH);
        }
    }
}
