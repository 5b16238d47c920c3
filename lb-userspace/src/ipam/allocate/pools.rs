//! Pools as allocation looks at them: which addresses each has, and to which Services it gives them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::jiff::Timestamp;
use kube::core::{Selector, SelectorExt as _};

use super::ranges::{Range, Ranges, address, index, number};
use crate::ipam::pool::{AddressPool, Block};
use crate::model::{IpFamily, ObjectKey, ObjectKind, Problem, Reason};

/// A label with its value, as objects have them.
pub(crate) type Labels = BTreeMap<String, String>;

/// Addresses that are nobody's to give: unspecified, loopback, link-local, multicast, broadcast, IPv4 written as IPv6.
const SPECIAL: [&str; 10] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "::1/128",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];

/// A pool.
pub(crate) struct Pool {
    pub(crate) name: String,
    /// What is wrong with it; the rest of it is used.
    pub(crate) problems: Vec<Problem>,
    pub(crate) disabled: bool,
    /// The addresses of its blocks by family.
    written: [Ranges; 2],
    /// The same but for those that an older pool has.
    pub(crate) held: [Ranges; 2],
    /// Those of them that may be given: [`AddressPoolSpec::avoid_first_and_last`] takes some away.
    ///
    /// [`AddressPoolSpec::avoid_first_and_last`]: crate::ipam::pool::AddressPoolSpec::avoid_first_and_last
    pub(crate) given: [Ranges; 2],
    /// `None`: it cannot be understood, so it selects nothing.
    services: Option<Selector>,
    namespaces: Option<Selector>,
}

impl Pool {
    /// Whether it may give a new address to a Service with these labels, in a namespace with those.
    pub(crate) fn serves(&self, service: &Labels, namespace: &Labels) -> bool {
        let selects = |selector: &Option<Selector>, labels| selector.as_ref().is_some_and(|it| it.matches(labels));
        !self.disabled && selects(&self.services, service) && selects(&self.namespaces, namespace)
    }

    /// Whether this address is in one of its blocks, also if an older pool has it.
    pub(crate) fn mentions(&self, address: IpAddr) -> bool {
        self.written[index(IpFamily::of(&address))].contains(number(address))
    }
}

/// All pools, in the order of their names.
pub(crate) struct Pools {
    pub(crate) all: Vec<Pool>,
    /// Intervals in order, with the pool that has them.
    owners: [Vec<(Range, usize)>; 2],
}

impl Pools {
    /// The pools that these objects describe. An address in two of them is the older one's.
    pub(crate) fn new(objects: &[&AddressPool]) -> Self {
        let mut by_age: Vec<&AddressPool> = objects.to_vec();
        by_age.sort_by_key(|object| (age(object), object.metadata.name.clone()));
        let mut all: Vec<Pool> = Vec::with_capacity(by_age.len());
        let mut taken: [Ranges; 2] = Default::default();
        for object in by_age {
            let mut pool = Pool::from(object);
            for family in IpFamily::ALL {
                let at = index(family);
                if !pool.held[at].intersection(&taken[at]).is_empty() {
                    let overlaps = all
                        .iter()
                        .filter_map(|older| overlap(&pool, older, family))
                        .collect::<Vec<_>>();
                    pool.problems.extend(overlaps);
                }
                pool.held[at] = pool.held[at].without(&taken[at]);
                pool.given[at] = pool.given[at].without(&taken[at]);
                taken[at] = taken[at].union(&pool.held[at]);
            }
            all.push(pool);
        }
        all.sort_by(|one, two| one.name.cmp(&two.name));
        let owners = IpFamily::ALL.map(|family| {
            let ranges = all.iter().enumerate();
            let mut ranges: Vec<_> = ranges
                .flat_map(|(pool, held)| held.held[index(family)].iter().map(move |range| (range, pool)))
                .collect();
            ranges.sort_unstable();
            ranges
        });
        Self { all, owners }
    }

    /// Which pool has this address, whether or not it may be given.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<usize> {
        let (owners, number) = (&self.owners[index(IpFamily::of(&address))], number(address));
        let after = owners.partition_point(|(range, _)| range.first <= number);
        let (range, pool) = owners.get(after.checked_sub(1)?)?;
        (number <= range.last).then_some(*pool)
    }
}

fn age(object: &AddressPool) -> Option<Timestamp> {
    object.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// What the younger pool has to be told of the older one's addresses, if it has some of them.
fn overlap(younger: &Pool, older: &Pool, family: IpFamily) -> Option<Problem> {
    let both = younger.held[index(family)].intersection(&older.held[index(family)]);
    let first = both.iter().next()?.text(family);
    Some(problem(
        &younger.name,
        "spec.blocks".into(),
        format!(
            "{} of its {family} addresses ({first}{}) are also in the older pool {}, which keeps them",
            both.count(),
            if both.iter().nth(1).is_some() {
                " and others"
            } else {
                ""
            },
            older.name
        ),
        "take them out of one of the two pools",
        Reason::PoolOverlap,
    ))
}

impl From<&AddressPool> for Pool {
    fn from(object: &AddressPool) -> Self {
        let name = object.metadata.name.clone().unwrap_or_default();
        let mut problems = Vec::new();
        let (mut held, mut avoided): ([Vec<Range>; 2], [Vec<Range>; 2]) = Default::default();
        for (position, block) in object.spec.blocks.iter().enumerate() {
            match addresses(block) {
                Ok((family, range, is_cidr)) => {
                    held[index(family)].push(range);
                    // Of two addresses and of one, none would be left (RFC 3021 for two).
                    if object.spec.avoid_first_and_last && is_cidr && range.last - range.first > 1 {
                        let ends = [range.first, range.last].map(|end| Range { first: end, last: end });
                        avoided[index(family)].extend(ends);
                    }
                }
                Err((field, message, remedy)) => problems.push(problem(
                    &name,
                    format!("spec.blocks[{position}]{field}"),
                    format!("{message}; the block is left out"),
                    remedy,
                    Reason::InvalidField,
                )),
            }
        }
        let mut selector = |field: &str, selector: &Option<LabelSelector>| match understood(selector.clone()) {
            Ok(selector) => Some(selector),
            Err(error) => {
                problems.push(problem(
                    &name,
                    format!("spec.{field}"),
                    format!("{error}, so the pool gives no new addresses"),
                    "use In and NotIn with values, Exists and DoesNotExist without",
                    Reason::InvalidField,
                ));
                None
            }
        };
        let services = selector("serviceSelector", &object.spec.service_selector);
        let namespaces = selector("namespaceSelector", &object.spec.namespace_selector);
        let held = held.map(Ranges::of);
        let [mut given_v4, mut given_v6] = held.clone();
        let [avoided_v4, avoided_v6] = avoided.map(Ranges::of);
        given_v4 = given_v4.without(&avoided_v4);
        given_v6 = given_v6.without(&avoided_v6);
        Self {
            name,
            problems,
            disabled: object.spec.disabled,
            written: held.clone(),
            held,
            given: [given_v4, given_v6],
            services,
            namespaces,
        }
    }
}

/// The selector in a form that can be asked; without one, all.
fn understood(selector: Option<LabelSelector>) -> Result<Selector, String> {
    let selector = selector.unwrap_or_default();
    for requirement in selector.match_expressions.iter().flatten() {
        let (operator, key) = (requirement.operator.as_str(), &requirement.key);
        let values = requirement.values.as_ref().is_some_and(|values| !values.is_empty());
        let sound = match operator {
            "In" | "NotIn" => values,
            "Exists" | "DoesNotExist" => !values,
            _ => return Err(format!("the operator `{operator}` for `{key}` does not exist")),
        };
        if !sound {
            return Err(format!(
                "the operator {operator} for `{key}` {}",
                if values { "has values" } else { "has no values" }
            ));
        }
    }
    selector
        .try_into()
        .map_err(|error: kube::core::ParseExpressionError| error.to_string())
}

/// What is wrong with a block: the field within it, what about it, and what to do.
type BadBlock = (&'static str, String, &'static str);

/// The addresses of a block, and whether they are a CIDR.
fn addresses(block: &Block) -> Result<(IpFamily, Range, bool), BadBlock> {
    const FORM: &str = "write either `cidr`, such as 192.0.2.0/24, or `start` and `stop`";
    let found = match (&block.cidr, &block.start, &block.stop) {
        (Some(cidr), None, None) => {
            let net: IpNet = cidr.trim().parse().map_err(|_| {
                (
                    ".cidr",
                    format!("`{cidr}` is not a prefix"),
                    "write it as 192.0.2.0/24 or 2001:db8::/64",
                )
            })?;
            if net != net.trunc() {
                let message = format!("`{cidr}` has bits behind its length: it begins at {}", net.trunc());
                return Err((
                    ".cidr",
                    message,
                    "write the prefix that is meant, or a single address with /32 or /128",
                ));
            }
            (IpFamily::of(&net.network()), net_range(net), true)
        }
        (None, Some(start), Some(stop)) => {
            let parse = |field, text: &str| {
                let parsed: Result<IpAddr, _> = text.trim().parse();
                parsed.map_err(|_| {
                    (
                        field,
                        format!("`{text}` is not an address"),
                        "write an IPv4 or IPv6 address",
                    )
                })
            };
            let (first, last) = (parse(".start", start)?, parse(".stop", stop)?);
            let family = IpFamily::of(&first);
            if family != IpFamily::of(&last) {
                let message = format!("{first} and {last} are not of one family");
                return Err(("", message, "write one block for each family"));
            }
            let range = Range {
                first: number(first),
                last: number(last),
            };
            if range.first > range.last {
                return Err((
                    "",
                    format!("{last} comes before {first}"),
                    "write the lower address as `start`",
                ));
            }
            (family, range, false)
        }
        (None, None, None) => return Err(("", "it names no addresses".into(), FORM)),
        _ => {
            return Err((
                "",
                "it is neither a `cidr` alone nor a `start` with a `stop`".into(),
                FORM,
            ));
        }
    };
    let (family, range, _) = found;
    for net in SPECIAL.iter().filter_map(|text| text.parse::<IpNet>().ok()) {
        let special = net_range(net);
        if IpFamily::of(&net.network()) == family && special.first <= range.last && range.first <= special.last {
            let first = address(family, special.first.max(range.first));
            let message = format!("{first} in it is of {net}, which no Service can have");
            return Err(("", message, "leave these addresses out"));
        }
    }
    Ok(found)
}

fn net_range(net: IpNet) -> Range {
    Range {
        first: number(net.network()),
        last: number(net.broadcast()),
    }
}

fn problem(pool: &str, field: String, message: String, remedy: &str, reason: Reason) -> Problem {
    Problem {
        kind: ObjectKind::AddressPool,
        object: ObjectKey::new("", pool),
        field,
        message,
        remedy: remedy.into(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> Block {
        match text.split_once('-') {
            Some((start, stop)) => Block {
                start: Some(start.into()),
                stop: Some(stop.into()),
                ..Block::default()
            },
            None => Block {
                cidr: Some(text.into()),
                ..Block::default()
            },
        }
    }

    fn pool(name: &str, created_s: i64, blocks: &[&str]) -> AddressPool {
        let mut pool = AddressPool::default();
        pool.metadata.name = Some(name.into());
        let created = Timestamp::from_second(created_s).expect("it is a time");
        pool.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(created));
        pool.spec.blocks = blocks.iter().copied().map(block).collect();
        pool
    }

    fn texts(pool: &Pool) -> Vec<String> {
        let families = IpFamily::ALL.into_iter();
        let ranges = families.flat_map(|family| pool.given[index(family)].iter().map(move |range| range.text(family)));
        ranges.collect()
    }

    #[test]
    fn a_pool_has_prefixes_and_ranges_of_both_families() {
        let object = pool(
            "a",
            1,
            &["192.0.2.0/30", "2001:db8::10-2001:db8::1f", "198.51.100.7-198.51.100.7"],
        );
        let found = Pool::from(&object);
        assert_eq!(found.problems, []);
        assert_eq!(
            texts(&found),
            ["192.0.2.0-192.0.2.3", "198.51.100.7", "2001:db8::10-2001:db8::1f"]
        );
    }

    #[test]
    fn the_ends_of_prefixes_are_left_out_where_that_is_asked_for_and_something_is_left() {
        let mut object = pool(
            "a",
            1,
            &[
                "192.0.2.0/29",
                "192.0.2.16/31",
                "192.0.2.32/32",
                "192.0.2.64-192.0.2.66",
                "2001:db8::/126",
            ],
        );
        object.spec.avoid_first_and_last = true;
        assert_eq!(
            texts(&Pool::from(&object)),
            [
                "192.0.2.1-192.0.2.6",
                "192.0.2.16-192.0.2.17",
                "192.0.2.32",
                "192.0.2.64-192.0.2.66",
                "2001:db8::1-2001:db8::2"
            ]
        );
    }

    #[test]
    fn a_bad_block_is_reported_and_the_others_are_used() {
        let object = pool(
            "a",
            1,
            &[
                "192.0.2.5/24",
                "nonsense",
                "192.0.2.9-192.0.2.1",
                "192.0.2.1-2001:db8::1",
                "127.0.0.0/30",
                "224.0.0.0-224.0.0.9",
                "::/0",
                "192.0.2.128/30",
            ],
        );
        let found = Pool::from(&object);
        assert_eq!(texts(&found), ["192.0.2.128-192.0.2.131"]);
        let fields: Vec<_> = found.problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.blocks[0].cidr",
                "spec.blocks[1].cidr",
                "spec.blocks[2]",
                "spec.blocks[3]",
                "spec.blocks[4]",
                "spec.blocks[5]",
                "spec.blocks[6]"
            ]
        );
        let mut both = block("192.0.2.0/24");
        both.start = Some("192.0.2.1".into());
        for block in [both, Block::default()] {
            assert!(addresses(&block).is_err(), "{block:?}");
        }
    }

    #[test]
    fn an_address_in_two_pools_is_the_older_ones() {
        let (old, young) = (pool("z", 1, &["192.0.2.4/30"]), pool("a", 2, &["192.0.2.0/29"]));
        let pools = Pools::new(&[&young, &old]);
        let names: Vec<_> = pools.all.iter().map(|pool| (pool.name.as_str(), texts(pool))).collect();
        assert_eq!(
            names,
            [
                ("a", vec!["192.0.2.0-192.0.2.3".to_owned()]),
                ("z", vec!["192.0.2.4-192.0.2.7".to_owned()])
            ]
        );
        assert_eq!(pools.all[0].problems[0].reason, Reason::PoolOverlap);
        assert_eq!(pools.all[1].problems, []);
        let owner = |text: &str| pools.owner(text.parse().expect("it is an address"));
        assert_eq!(
            [owner("192.0.2.3"), owner("192.0.2.4"), owner("192.0.2.8"), owner("::1")],
            [Some(0), Some(1), None, None]
        );
    }

    #[test]
    fn selectors_have_all_operators_and_one_that_makes_no_sense_selects_nothing() {
        let labels = |texts: &[(&str, &str)]| -> Labels {
            let pairs = texts
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            pairs.collect()
        };
        let selector = |json: serde_json::Value| -> Option<LabelSelector> {
            Some(serde_json::from_value(json).expect("it is a selector"))
        };
        let mut object = pool("a", 1, &["192.0.2.0/30"]);
        object.spec.service_selector = selector(serde_json::json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["front", "edge"]},
                {"key": "stage", "operator": "NotIn", "values": ["test"]},
                {"key": "public", "operator": "Exists"},
                {"key": "internal", "operator": "DoesNotExist"},
            ],
        }));
        object.spec.namespace_selector = selector(serde_json::json!({"matchLabels": {"team": "shop"}}));
        let found = Pool::from(&object);
        let (good, shop) = (
            labels(&[("app", "web"), ("tier", "edge"), ("public", "")]),
            labels(&[("team", "shop")]),
        );
        assert!(found.serves(&good, &shop));
        assert!(!found.serves(&good, &labels(&[])));
        for (key, value) in [("app", "api"), ("tier", "back"), ("stage", "test"), ("internal", "")] {
            let mut other = good.clone();
            other.insert(key.into(), value.into());
            assert!(!found.serves(&other, &shop), "{key}={value}");
        }
        for expression in [
            serde_json::json!({"key": "a", "operator": "In"}),
            serde_json::json!({"key": "a", "operator": "Exists", "values": ["b"]}),
            serde_json::json!({"key": "a", "operator": "Gt", "values": ["1"]}),
        ] {
            object.spec.service_selector = selector(serde_json::json!({"matchExpressions": [expression]}));
            let found = Pool::from(&object);
            assert!(!found.serves(&good, &shop));
            assert_eq!(found.problems[0].field, "spec.serviceSelector");
        }
    }
}
