use serde_json::{Value, json};

use super::*;

/// A cluster that lives from one decision to the next: statuses are all that is kept.
#[derive(Default)]
struct World {
    pools: Vec<AddressPool>,
    namespaces: BTreeMap<String, Labels>,
    services: Vec<Service>,
    only_class: bool,
}

impl World {
    fn with_pool(blocks: &[&str]) -> Self {
        let mut world = Self::default();
        world.pool("default", 1, blocks, json!({}));
        world
    }

    /// Adds a pool, of blocks such as `192.0.2.0/24` and `192.0.2.1-192.0.2.9`, and other fields.
    fn pool(&mut self, name: &str, created_s: i64, blocks: &[&str], mut spec: Value) {
        let blocks = blocks.iter().map(|block| match block.split_once('-') {
            Some((start, stop)) => json!({"start": start, "stop": stop}),
            None => json!({"cidr": block}),
        });
        spec["blocks"] = blocks.collect();
        let pool = json!({
            "apiVersion": "fairway.io/v1alpha1", "kind": "AddressPool",
            "metadata": {"name": name, "creationTimestamp": time(created_s)},
            "spec": spec,
        });
        self.pools.retain(|other| other.metadata.name.as_deref() != Some(name));
        self.pools.push(serde_json::from_value(pool).expect("it is a pool"));
    }

    /// Adds a Service of namespace `shop` unless the name has another, with annotations and other fields of its spec.
    fn service(&mut self, name: &str, created_s: i64, annotations: Value, spec: Value) -> &mut Service {
        let (namespace, name) = name.split_once('/').unwrap_or(("shop", name));
        let mut service = json!({
            "metadata": {
                "namespace": namespace, "name": name, "creationTimestamp": time(created_s),
            },
            "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                     "ports": [{"port": 80, "protocol": "TCP"}], "selector": {"app": name}},
        });
        service["metadata"]["annotations"] = annotations;
        if let Value::Object(fields) = spec {
            for (field, value) in fields {
                service["spec"][field] = value;
            }
        }
        self.services
            .push(serde_json::from_value(service).expect("it is a Service"));
        self.services.last_mut().expect("it was added")
    }

    fn plan(&self) -> Plan {
        let settings = Settings {
            class: "fairway.io/fairway".into(),
            only_class: self.only_class,
        };
        let input = Input {
            pools: self.pools.iter().collect(),
            namespaces: self
                .namespaces
                .iter()
                .map(|(name, labels)| (name.as_str(), labels))
                .collect(),
            services: self.services.iter().collect(),
        };
        allocate(&input, &settings)
    }

    /// Decides, and writes what was decided into the statuses.
    fn settle(&mut self) -> Plan {
        let plan = self.plan();
        for service in &mut self.services {
            let key = key_of(service);
            if let Some(decision) = plan.services.get(&key) {
                service.status = Some(super::super::status::decided(
                    service,
                    decision,
                    k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
                ));
            }
        }
        plan
    }

    fn named(&mut self, name: &str) -> &mut Service {
        let found = self
            .services
            .iter_mut()
            .find(|service| service.metadata.name.as_deref() == Some(name));
        found.expect("it was added")
    }

    /// The addresses in a Service's status.
    fn shows(&mut self, name: &str) -> Vec<String> {
        present(self.named(name)).map(|address| address.to_string()).collect()
    }
}

fn time(seconds: i64) -> String {
    k8s_openapi::jiff::Timestamp::from_second(seconds)
        .expect("it is a time")
        .to_string()
}

fn key_of(service: &Service) -> ObjectKey {
    let meta = &service.metadata;
    ObjectKey::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

/// Addresses and reason that a Service of namespace `shop` is given.
fn given(plan: &Plan, name: &str) -> (Vec<String>, &'static str) {
    match plan.services.get(&ObjectKey::new("shop", name)) {
        Some(Decision::Ours { addresses, finding }) => {
            let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            assert_eq!(
                finding.assigned,
                finding.reason == "Assigned" || finding.reason == "AddressOutsidePools"
            );
            (texts, finding.reason)
        }
        other => panic!("{name}: {other:?}"),
    }
}

fn one(address: &str) -> (Vec<String>, &'static str) {
    (vec![address.to_owned()], "Assigned")
}

fn none(reason: &'static str) -> (Vec<String>, &'static str) {
    (Vec::new(), reason)
}

const DUAL: [&str; 2] = ["IPv6", "IPv4"];

#[test]
fn services_are_given_the_lowest_free_addresses_in_the_order_of_their_age() {
    let mut world = World::with_pool(&["192.0.2.0/30", "2001:db8::/64"]);
    world.service("young", 3, json!({}), json!({}));
    world.service("old", 1, json!({}), json!({}));
    world.service("b", 2, json!({}), json!({}));
    world.service("a", 2, json!({}), json!({}));
    world.service("v6", 9, json!({}), json!({"ipFamilies": ["IPv6"]}));
    let plan = world.plan();
    assert_eq!(given(&plan, "old"), one("192.0.2.0"));
    assert_eq!(given(&plan, "a"), one("192.0.2.1"));
    assert_eq!(given(&plan, "b"), one("192.0.2.2"));
    assert_eq!(given(&plan, "young"), one("192.0.2.3"));
    assert_eq!(given(&plan, "v6"), one("2001:db8::"));
    assert_eq!(plan.problems, []);
    let tally = &plan.pools["default"];
    assert_eq!((tally.used, tally.free), (5, (1 << 64) - 1));
}

#[test]
fn the_first_pool_by_name_that_serves_gives_and_the_next_when_it_is_full() {
    let mut world = World::default();
    world.pool("b", 1, &["192.0.2.8/32"], json!({}));
    world.pool("a", 2, &["192.0.2.9/32"], json!({}));
    world.pool("0-disabled", 1, &["192.0.2.0/30"], json!({"disabled": true}));
    for (name, age) in [("one", 1), ("two", 2), ("three", 3)] {
        world.service(name, age, json!({}), json!({}));
    }
    let plan = world.plan();
    assert_eq!(given(&plan, "one"), one("192.0.2.9"));
    assert_eq!(given(&plan, "two"), one("192.0.2.8"));
    assert_eq!(given(&plan, "three"), none("Exhausted"));
    assert_eq!(plan.pools["a"].waiting, 1);
    assert_eq!(plan.pools["0-disabled"].waiting, 0);
    assert_eq!(plan.problems[0].reason, Reason::Exhausted);
}

#[test]
fn selectors_of_pools_choose_by_the_labels_of_services_and_of_their_namespaces() {
    let mut world = World::default();
    world.pool(
        "gold",
        1,
        &["192.0.2.0/30"],
        json!({"serviceSelector": {"matchLabels": {"tier": "gold"}}}),
    );
    world.pool(
        "team",
        1,
        &["192.0.2.4/30"],
        json!({"namespaceSelector": {"matchLabels": {"team": "a"}}}),
    );
    let named = json!({"matchLabels": {"kubernetes.io/metadata.name": "unlisted"}});
    world.pool("name", 1, &["192.0.2.8/30"], json!({"namespaceSelector": named}));
    world
        .namespaces
        .insert("shop".into(), BTreeMap::from([("team".into(), "a".into())]));
    world.service("plain", 1, json!({}), json!({}));
    world.service("rich", 2, json!({}), json!({})).metadata.labels =
        Some(BTreeMap::from([("tier".into(), "gold".into())]));
    world.service("unlisted/web", 3, json!({}), json!({}));
    world.service("other/web", 4, json!({}), json!({}));
    let plan = world.plan();
    assert_eq!(given(&plan, "plain"), one("192.0.2.4"));
    assert_eq!(given(&plan, "rich"), one("192.0.2.0"));
    let of = |namespace| match &plan.services[&ObjectKey::new(namespace, "web")] {
        Decision::Ours { addresses, finding } => (addresses.clone(), finding.reason),
        other => panic!("{other:?}"),
    };
    assert_eq!(of("unlisted"), (vec!["192.0.2.8".parse().unwrap()], "Assigned"));
    assert_eq!(of("other"), (vec![], "NoPool"));
}

#[test]
fn a_requested_address_is_given_or_nothing_is() {
    let mut world = World::with_pool(&["192.0.2.0/29", "2001:db8::/64"]);
    world.pool("off", 1, &["192.0.2.16/29"], json!({"disabled": true}));
    world.service("first", 1, json!({}), json!({}));
    world.service("field", 2, json!({}), json!({"loadBalancerIP": "192.0.2.5"}));
    world.service(
        "note",
        3,
        json!({"fairway.io/addresses": "192.0.2.6"}),
        json!({"loadBalancerIP": "192.0.2.1"}),
    );
    world.service("taken", 4, json!({"fairway.io/addresses": "192.0.2.6"}), json!({}));
    world.service("outside", 5, json!({"fairway.io/addresses": "198.51.100.1"}), json!({}));
    world.service("disabled", 6, json!({"fairway.io/addresses": "192.0.2.17"}), json!({}));
    world.service("family", 7, json!({"fairway.io/addresses": "2001:db8::5"}), json!({}));
    world.service(
        "twice",
        8,
        json!({"fairway.io/addresses": "192.0.2.2,192.0.2.3"}),
        json!({}),
    );
    world.service("words", 9, json!({"fairway.io/addresses": "the lowest"}), json!({}));
    let plan = world.settle();
    assert_eq!(given(&plan, "first"), one("192.0.2.0"));
    assert_eq!(given(&plan, "field"), one("192.0.2.5"));
    assert_eq!(given(&plan, "note"), one("192.0.2.6"));
    assert_eq!(given(&plan, "taken"), none("RequestedAddressTaken"));
    assert_eq!(given(&plan, "outside"), none("RequestedAddressNotInPool"));
    assert_eq!(given(&plan, "disabled"), none("RequestedAddressNotInPool"));
    for name in ["family", "twice", "words"] {
        assert_eq!(given(&plan, name), none("InvalidField"), "{name}");
    }
    // It is given the address once that can be had: when the status of the other no longer shows it.
    world
        .services
        .retain(|service| service.metadata.name.as_deref() != Some("note"));
    assert_eq!(given(&world.settle(), "taken"), one("192.0.2.6"));
}

#[test]
fn an_older_service_that_asks_later_does_not_get_what_a_younger_one_has() {
    let mut world = World::with_pool(&["192.0.2.0/29"]);
    world.service("young", 5, json!({}), json!({}));
    assert_eq!(given(&world.settle(), "young"), one("192.0.2.0"));
    world.service("old", 1, json!({"fairway.io/addresses": "192.0.2.0"}), json!({}));
    let plan = world.settle();
    assert_eq!(given(&plan, "young"), one("192.0.2.0"));
    assert_eq!(given(&plan, "old"), none("RequestedAddressTaken"));
}

#[test]
fn what_a_service_asks_for_anew_takes_the_place_of_what_it_has() {
    let mut world = World::with_pool(&["192.0.2.0/29"]);
    world.pool("other", 1, &["198.51.100.0/29"], json!({}));
    world.service("web", 1, json!({}), json!({}));
    assert_eq!(given(&world.settle(), "web"), one("192.0.2.0"));
    let notes = |name: &str, text: &str| Some(BTreeMap::from([(format!("fairway.io/{name}"), text.to_owned())]));
    world.named("web").metadata.annotations = notes("addresses", "192.0.2.4");
    assert_eq!(given(&world.settle(), "web"), one("192.0.2.4"));
    world.named("web").metadata.annotations = notes("pool", "other");
    assert_eq!(given(&world.settle(), "web"), one("198.51.100.0"));
    world.named("web").metadata.annotations = notes("pool", "missing, default");
    assert_eq!(given(&world.settle(), "web"), one("192.0.2.0"));
    world.named("web").metadata.annotations = notes("pool", "missing");
    let plan = world.settle();
    assert_eq!(given(&plan, "web"), none("NoPool"));
    assert!(
        plan.problems[0].message.contains("the pool missing"),
        "{:?}",
        plan.problems
    );
}

#[test]
fn services_with_one_share_key_have_one_address_as_long_as_their_ports_differ() {
    let mut world = World::with_pool(&["192.0.2.0/29"]);
    let key = json!({"fairway.io/share-key": "k"});
    world.service("http", 1, key.clone(), json!({}));
    world.service(
        "https",
        2,
        key.clone(),
        json!({"ports": [{"port": 443, "protocol": "TCP"}]}),
    );
    world.service(
        "http3",
        3,
        key.clone(),
        json!({"ports": [{"port": 443, "protocol": "UDP"}]}),
    );
    world.service("again", 4, key.clone(), json!({}));
    let asks = json!({"fairway.io/share-key": "k", "fairway.io/addresses": "192.0.2.0"});
    world.service("clash", 5, asks.clone(), json!({}));
    world.service("joins", 6, asks, json!({"ports": [{"port": 22}]}));
    world.service(
        "alone",
        7,
        json!({"fairway.io/addresses": "192.0.2.0"}),
        json!({"ports": [{"port": 23}]}),
    );
    world.service(
        "other",
        8,
        json!({"fairway.io/share-key": "l"}),
        json!({"ports": [{"port": 24}]}),
    );
    let plan = world.settle();
    for name in ["http", "https", "http3", "joins"] {
        assert_eq!(given(&plan, name), one("192.0.2.0"), "{name}");
    }
    assert_eq!(given(&plan, "again"), one("192.0.2.1"));
    assert_eq!(given(&plan, "clash"), none("SharingRefused"));
    assert_eq!(given(&plan, "alone"), none("RequestedAddressTaken"));
    assert_eq!(given(&plan, "other"), one("192.0.2.2"));
    assert_eq!(plan.pools["default"].used, 3);
    // A sharer whose ports come to clash later is given another address; the older one stays.
    world.named("https").spec.as_mut().unwrap().ports = world.named("http").spec.as_ref().unwrap().ports.clone();
    let plan = world.settle();
    assert_eq!(given(&plan, "http"), one("192.0.2.0"));
    assert_ne!(given(&plan, "https").0, ["192.0.2.0"]);
    assert_eq!(given(&world.plan(), "https"), given(&plan, "https"));
}

#[test]
fn a_younger_sharer_that_has_an_address_is_joined_by_an_older_one() {
    let mut world = World::with_pool(&["192.0.2.0/29"]);
    let key = json!({"fairway.io/share-key": "k", "fairway.io/addresses": "192.0.2.5"});
    world.service("young", 5, key, json!({}));
    world.settle();
    world.service(
        "old",
        1,
        json!({"fairway.io/share-key": "k"}),
        json!({"ports": [{"port": 443}]}),
    );
    assert_eq!(given(&world.settle(), "old"), one("192.0.2.5"));
}

#[test]
fn sharers_with_policy_local_have_the_same_pods() {
    let mut world = World::with_pool(&["192.0.2.0/29"]);
    let local =
        |port: u16, app: Value| json!({"ports": [{"port": port}], "selector": app, "externalTrafficPolicy": "Local"});
    let key = json!({"fairway.io/share-key": "k"});
    world.service("a", 1, key.clone(), local(1, json!({"app": "web"})));
    world.service("same", 2, key.clone(), local(2, json!({"app": "web"})));
    world.service("others", 3, key.clone(), local(3, json!({"app": "api"})));
    world.service(
        "cluster",
        4,
        key.clone(),
        json!({"ports": [{"port": 4}], "selector": {"app": "web"}}),
    );
    // Nobody knows which pods are behind those without a selector.
    world.service("manual", 5, json!({"fairway.io/share-key": "m"}), local(1, json!({})));
    world.service("manual2", 6, json!({"fairway.io/share-key": "m"}), local(2, json!({})));
    let plan = world.plan();
    assert_eq!(given(&plan, "a"), one("192.0.2.0"));
    assert_eq!(given(&plan, "same"), one("192.0.2.0"));
    assert_eq!(given(&plan, "others"), one("192.0.2.1"));
    assert_eq!(given(&plan, "cluster"), one("192.0.2.2"));
    assert_eq!(given(&plan, "manual"), one("192.0.2.3"));
    assert_eq!(given(&plan, "manual2"), one("192.0.2.4"));
}

#[test]
fn namespaces_share_only_if_both_services_say_so() {
    let mut world = World::with_pool(&["192.0.2.0/29"]);
    let across = json!({"fairway.io/share-key": "k", "fairway.io/share-across-namespaces": "true"});
    let within = json!({"fairway.io/share-key": "k"});
    let address = |plan: &Plan, namespace: &str, name: &str| match &plan.services[&ObjectKey::new(namespace, name)] {
        Decision::Ours { addresses, .. } => addresses[0].to_string(),
        other => panic!("{other:?}"),
    };
    world.service("a/one", 1, across.clone(), json!({}));
    world.service("b/two", 2, across.clone(), json!({"ports": [{"port": 2}]}));
    world.service("c/three", 3, within.clone(), json!({"ports": [{"port": 3}]}));
    // It could share with the one of its namespace, but not with the other that shares with that.
    world.service("a/four", 4, within, json!({"ports": [{"port": 4}]}));
    let plan = world.plan();
    assert_eq!(address(&plan, "a", "one"), address(&plan, "b", "two"));
    assert_eq!(address(&plan, "c", "three"), "192.0.2.1");
    assert_eq!(address(&plan, "a", "four"), "192.0.2.2");
}

#[test]
fn dual_stack_is_both_the_primary_family_first_or_what_there_is_or_nothing_as_the_policy_says() {
    let mut world = World::with_pool(&["192.0.2.0/29", "2001:db8::/126"]);
    let spec = |policy| json!({"ipFamilies": DUAL, "ipFamilyPolicy": policy});
    world.service("require", 1, json!({}), spec("RequireDualStack"));
    world.service("prefer", 2, json!({}), spec("PreferDualStack"));
    world.service("single", 3, json!({}), spec("SingleStack"));
    let asks = json!({"fairway.io/addresses": "192.0.2.7, 2001:db8::3"});
    world.service("asks", 4, asks.clone(), spec("RequireDualStack"));
    world.service("late", 5, asks, spec("RequireDualStack"));
    world.service(
        "half",
        6,
        json!({"fairway.io/addresses": "2001:db8::3"}),
        spec("PreferDualStack"),
    );
    let plan = world.plan();
    assert_eq!(
        given(&plan, "require"),
        (vec!["2001:db8::".into(), "192.0.2.0".into()], "Assigned")
    );
    assert_eq!(
        given(&plan, "prefer"),
        (vec!["2001:db8::1".into(), "192.0.2.1".into()], "Assigned")
    );
    assert_eq!(given(&plan, "single"), one("2001:db8::2"));
    assert_eq!(
        given(&plan, "asks"),
        (vec!["2001:db8::3".into(), "192.0.2.7".into()], "Assigned")
    );
    assert_eq!(given(&plan, "late"), none("RequestedAddressTaken"));
    let half = &plan.services[&ObjectKey::new("shop", "half")];
    assert!(
        matches!(half, Decision::Ours { addresses, finding } if addresses.len() == 1 && finding.assigned
            && finding.reason == "RequestedAddressTaken"),
        "{half:?}"
    );
}

#[test]
fn nothing_half_is_given_and_the_second_family_comes_when_there_is_one() {
    let mut world = World::with_pool(&["192.0.2.0/29"]);
    let spec = |policy| json!({"ipFamilies": DUAL, "ipFamilyPolicy": policy});
    world.service("require", 1, json!({}), spec("RequireDualStack"));
    world.service("prefer", 2, json!({}), spec("PreferDualStack"));
    let plan = world.settle();
    assert_eq!(given(&plan, "require"), none("NoPool"));
    assert_eq!(given(&plan, "prefer"), one("192.0.2.0"));
    assert_eq!(plan.pools["default"].used, 1);
    world.pool("six", 9, &["2001:db8::/64"], json!({}));
    let plan = world.settle();
    assert_eq!(
        given(&plan, "prefer"),
        (vec!["2001:db8::1".into(), "192.0.2.0".into()], "Assigned")
    );
    assert_eq!(
        given(&plan, "require"),
        (vec!["2001:db8::".into(), "192.0.2.1".into()], "Assigned")
    );
}

#[test]
fn an_address_in_use_stays_whatever_becomes_of_its_pool() {
    let mut world = World::with_pool(&["192.0.2.0/29"]);
    world.service("web", 5, json!({}), json!({}));
    world.settle();
    world.service("older", 1, json!({}), json!({}));
    world.pool("0", 1, &["198.51.100.0/24"], json!({}));
    assert_eq!(given(&world.settle(), "web"), one("192.0.2.0"));
    let nobody = json!({"matchLabels": {"nobody": "has"}});
    for spec in [
        json!({"disabled": true}),
        json!({"serviceSelector": nobody}),
        json!({"avoidFirstAndLast": true}),
    ] {
        world.pool("default", 1, &["192.0.2.0/29"], spec);
        assert_eq!(given(&world.settle(), "web"), one("192.0.2.0"));
    }
    // Without its block it stays too, which is reported; nobody else is given it when the block is back.
    world.pool("default", 1, &["192.0.2.4/30"], json!({}));
    let plan = world.settle();
    assert_eq!(given(&plan, "web"), (vec!["192.0.2.0".into()], "AddressOutsidePools"));
    assert_eq!(plan.problems[0].reason, Reason::AddressOutsidePools);
    world.pools.clear();
    assert_eq!(
        given(&world.settle(), "web"),
        (vec!["192.0.2.0".into()], "AddressOutsidePools")
    );
}

#[test]
fn a_pool_that_grows_over_another_moves_nobody() {
    let mut world = World::default();
    world.pool("old", 1, &["192.0.2.0/30"], json!({}));
    world.pool("young", 2, &["192.0.2.4/30"], json!({}));
    world.service("web", 1, json!({"fairway.io/pool": "young"}), json!({}));
    assert_eq!(given(&world.settle(), "web"), one("192.0.2.4"));
    world.pool("old", 1, &["192.0.2.0/29"], json!({}));
    assert_eq!(given(&world.settle(), "web"), one("192.0.2.4"));
}

#[test]
fn of_two_services_that_show_one_address_the_older_keeps_it() {
    let mut world = World::with_pool(&["192.0.2.0/29"]);
    for (name, age) in [("young", 2), ("old", 1), ("same-age", 2)] {
        let service = world.service(name, age, json!({}), json!({}));
        service.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.3"}]}})).unwrap();
    }
    let plan = world.settle();
    assert_eq!(given(&plan, "old"), one("192.0.2.3"));
    assert_eq!(given(&plan, "same-age"), one("192.0.2.0"));
    assert_eq!(given(&plan, "young"), one("192.0.2.1"));
    assert_eq!(world.plan(), plan);
}

#[test]
fn classes_say_whose_a_service_is() {
    let mut world = World::with_pool(&["192.0.2.0/29"]);
    world.service("none", 1, json!({}), json!({}));
    world.service("ours", 2, json!({}), json!({"loadBalancerClass": "fairway.io/fairway"}));
    world.service(
        "theirs",
        3,
        json!({}),
        json!({"loadBalancerClass": "example.com/other"}),
    );
    world.service("cluster", 4, json!({}), json!({"type": "ClusterIP"}));
    let names = |plan: &Plan| plan.services.keys().map(|key| key.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&world.plan()), ["none", "ours"]);
    world.only_class = true;
    assert_eq!(names(&world.plan()), ["ours"]);
}

#[test]
fn a_service_that_is_no_longer_ours_loses_what_we_wrote_and_its_address_is_free_after_that() {
    let mut world = World::with_pool(&["192.0.2.0/32"]);
    world.service("web", 1, json!({}), json!({}));
    world.settle();
    world.service("next", 2, json!({}), json!({}));
    world.named("web").spec.as_mut().unwrap().type_ = Some("ClusterIP".into());
    let plan = world.settle();
    let address = "192.0.2.0".parse().unwrap();
    assert_eq!(
        plan.services[&ObjectKey::new("shop", "web")],
        Decision::Withdrawn(vec![address])
    );
    // As long as it stands in the status of one it is not given to another.
    assert_eq!(given(&plan, "next"), none("Exhausted"));
    assert!(world.shows("web").is_empty());
    let plan = world.settle();
    assert_eq!(given(&plan, "next"), one("192.0.2.0"));
    assert!(!plan.services.contains_key(&ObjectKey::new("shop", "web")));
    let deleted = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
    world.named("next").metadata.deletion_timestamp = Some(deleted);
    let plan = world.settle();
    assert_eq!(
        plan.services[&ObjectKey::new("shop", "next")],
        Decision::Withdrawn(vec![address])
    );
}

#[test]
fn the_status_of_another_controllers_service_is_not_touched_and_its_addresses_are_not_given() {
    let mut world = World::with_pool(&["192.0.2.0/30"]);
    let shows = |ip: &str| serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": ip}]}})).unwrap();
    let foreign = json!({"loadBalancerClass": "example.com/other"});
    world.service("foreign", 1, json!({}), foreign.clone()).status = shows("192.0.2.0");
    // One without a class that somebody else has served before.
    world.service("claimed", 2, json!({}), json!({})).status = shows("203.0.113.9");
    let host = json!({"loadBalancer": {"ingress": [{"hostname": "lb.example.com"}]}});
    world.service("host", 3, json!({}), json!({})).status = serde_json::from_value(host).unwrap();
    // One that was ours, and has been given to another controller, which has written an address of its own.
    let mut moved = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}, {"ip": "192.0.2.2"}]}});
    moved["conditions"] = json!([{"type": CONDITION, "status": "True", "reason": "Assigned", "message": "",
                                  "lastTransitionTime": time(1)}]);
    world.service("moved", 4, json!({}), foreign).status = serde_json::from_value(moved).unwrap();
    world.service("web", 5, json!({}), json!({}));
    let plan = world.settle();
    assert_eq!(given(&plan, "web"), one("192.0.2.1"));
    let names: Vec<_> = plan.services.keys().map(|key| &*key.name).collect();
    assert_eq!(names, ["moved", "web"]);
    assert_eq!(world.shows("moved"), ["203.0.113.7"]);
    let told: Vec<_> = plan
        .problems
        .iter()
        .map(|problem| (&*problem.object.name, problem.reason))
        .collect();
    assert_eq!(
        told,
        [
            ("claimed", Reason::OfAnotherController),
            ("host", Reason::OfAnotherController)
        ]
    );
}

#[test]
fn a_service_given_to_another_controller_does_not_take_along_an_address_that_it_shares() {
    let sharing = json!({"fairway.io/share-key": "web"});
    let foreign = || Some("example.com/other".to_owned());
    for both_leave in [false, true] {
        let mut world = World::with_pool(&["192.0.2.0/32"]);
        world.service("web", 1, sharing.clone(), json!({}));
        let tls = json!({"ports": [{"port": 443, "protocol": "TCP"}]});
        world.service("tls", 2, sharing.clone(), tls);
        world.settle();
        world.pool("default", 1, &["192.0.2.1/32"], json!({}));
        world.settle();
        assert_eq!(
            (world.shows("web"), world.shows("tls")),
            (vec!["192.0.2.0".into()], vec!["192.0.2.0".into()])
        );
        world.named("tls").spec.as_mut().unwrap().load_balancer_class = foreign();
        if both_leave {
            world.named("web").spec.as_mut().unwrap().load_balancer_class = foreign();
        }
        world.settle();
        assert_eq!(
            (world.shows("web"), world.shows("tls")),
            (vec!["192.0.2.0".into()], vec![])
        );
    }
}

#[test]
fn node_ports_are_not_needed() {
    let mut world = World::with_pool(&["192.0.2.0/30"]);
    world.service("web", 1, json!({}), json!({"allocateLoadBalancerNodePorts": false}));
    assert_eq!(given(&world.plan(), "web"), one("192.0.2.0"));
}

#[test]
fn thousands_of_services_and_a_prefix_of_ipv6_take_milliseconds() {
    let mut world = World::with_pool(&["2001:db8::/64", "10.0.0.0/8"]);
    for number in 0..5_000 {
        let spec = json!({"ipFamilies": DUAL, "ipFamilyPolicy": "RequireDualStack"});
        world.service(&format!("s{number}"), number, json!({}), spec);
    }
    let mut fastest = std::time::Duration::MAX;
    for _ in 0..3 {
        let began = std::time::Instant::now();
        let plan = world.settle();
        fastest = fastest.min(began.elapsed());
        assert_eq!(plan.pools["default"].used, 10_000);
    }
    // A search that looked at each address would take years; this leaves room for a slow machine and a debug build.
    assert!(fastest < std::time::Duration::from_secs(10), "{fastest:?}");
}
