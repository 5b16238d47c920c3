//! Which Service has which address: a function of pools, namespaces, Services and what stands in their status.
//!
//! ```text
//! pools ────┐
//! Services ─┼─► who shows what ─► 1. those who have an address keep it ─► 2. the others get one ─► Plan
//! labels ───┘
//! ```
//!
//! The status of Services is the only store, so a controller that starts anew goes on where the one before ended. What
//! follows from that:
//!
//! - An address in use stays. Blocks, selectors and `disabled` of a pool decide about new addresses only. It is given up
//!   when the Service itself asks for another address, pool or family, when sharers can no longer share, or when an older
//!   Service has it as well.
//! - Whatever stands in any Service's status is given to nobody else as long as it stands there, also if it is another
//!   controller's or about to be cleared.
//! - Services are served by age, then by name; each is given the lowest free address of the first pool, by name, that serves
//!   it and has one of the family. The order in which objects come does not matter.
//! - What a Service asks for by name it is given, or nothing.
//!
//! The work is in the number of objects: blocks are intervals, and the search for a free address looks at addresses in use
//! only.

mod claim;
mod occupancy;
mod pools;
mod ranges;

pub(crate) use claim::{CONDITION, present};
pub(crate) use pools::Labels;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;

use self::claim::{Claim, Standing};
use self::occupancy::{Occupancy, Refusal};
use self::pools::Pools;
use self::ranges::{Ranges, address, index, number};
use super::pool::AddressPool;
use crate::model::{IpFamily, ObjectKey, Problem, Reason};

/// The label that the API server gives every namespace, with its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Which Services are ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Services with this `spec.loadBalancerClass` are.
    pub class: String,
    /// Those without a class are not.
    pub only_class: bool,
}

/// What is decided about. The order of objects does not matter.
#[derive(Clone, Debug, Default)]
pub struct Input<'a> {
    /// All pools.
    pub pools: Vec<&'a AddressPool>,
    /// The labels of namespaces.
    pub namespaces: BTreeMap<&'a str, &'a BTreeMap<String, String>>,
    /// All Services of the cluster.
    pub services: Vec<&'a Service>,
}

/// What is to be.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// The Services whose status is ours to write.
    pub services: BTreeMap<ObjectKey, Decision>,
    /// The pools, by name.
    pub pools: BTreeMap<String, Tally>,
    /// What is wrong with Services and pools.
    pub problems: Vec<Problem>,
}

/// What the status of a Service is to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It is ours.
    Ours {
        /// Its addresses, the one of its primary family first.
        addresses: Vec<IpAddr>,
        /// What its Condition says.
        finding: Finding,
    },
    /// It is no longer ours: these addresses and the Condition are taken out of its status.
    Withdrawn(Vec<IpAddr>),
}

/// What has become of a Service, as a Condition says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Whether it has what it asks for.
    pub assigned: bool,
    /// In one word.
    pub reason: &'static str,
    /// In a sentence.
    pub message: String,
}

/// What has become of a pool.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Tally {
    /// Its addresses in use.
    pub used: u128,
    /// Those that are not, and may be given.
    pub free: u128,
    /// Services that could have been given an address of it, had there been one.
    pub waiting: usize,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// Decides.
pub fn allocate<'a>(input: &'a Input<'a>, settings: &Settings) -> Plan {
    let pools = Pools::new(&input.pools);
    let mut claims: Vec<Claim<'_>> = input
        .services
        .iter()
        .map(|service| Claim::new(service, &pools, settings))
        .collect();
    claims.sort_by(|one, two| one.order().cmp(&two.order()));
    let mut allocation = Allocation {
        cursors: vec![[0; 2]; pools.all.len()],
        waiting: vec![0; pools.all.len()],
        occupancy: Occupancy::default(),
        namespaces: &input.namespaces,
        pools,
        plan: Plan::default(),
    };
    let kept: Vec<Kept> = claims.iter().map(|claim| allocation.keep(claim)).collect();
    for (claim, kept) in claims.iter().zip(kept) {
        match claim.standing {
            Standing::Ours => allocation.give(claim, kept),
            Standing::Departed => allocation.withdraw(claim),
            Standing::Claimed => allocation.leave(claim),
            Standing::Others => {}
        }
    }
    allocation.finish()
}

/// The addresses that a Service has, by family.
type Kept = [Option<IpAddr>; 2];

struct Allocation<'a> {
    pools: Pools,
    occupancy: Occupancy<'a>,
    namespaces: &'a BTreeMap<&'a str, &'a Labels>,
    /// For each pool and family a number below which nothing is free any more.
    cursors: Vec<[u128; 2]>,
    /// For each pool the Services that it could not serve for want of an address.
    waiting: Vec<usize>,
    plan: Plan,
}

/// Why a Service is not given an address.
struct Failure {
    reason: Reason,
    field: &'static str,
    message: String,
    remedy: String,
}

impl<'a> Allocation<'a> {
    /// Lets a Service keep what it has, where that may stay. To be called in the order of claims.
    fn keep(&mut self, claim: &Claim<'a>) -> Kept {
        let mut kept = Kept::default();
        for address in claim.present.iter().copied() {
            let at = index(IpFamily::of(&address));
            if claim.standing == Standing::Ours && kept[at].is_none() && self.may_stay(claim, address) {
                self.occupancy.take(address, claim);
                kept[at] = Some(address);
            } else if kept[at] != Some(address) {
                self.occupancy.block(address, claim);
            }
        }
        kept
    }

    fn may_stay(&self, claim: &Claim<'a>, address: IpAddr) -> bool {
        let family = IpFamily::of(&address);
        let wanted = claim.families.contains(&family);
        let asked_for = claim.requested(family).is_none_or(|requested| requested == address);
        // An address whose block is gone is of a pool that nobody can name any more, and a pool that grows over another
        // takes no address from those who named that.
        let named = || self.pools.all.iter().filter(|pool| claim.names(&pool.name));
        let of_its_pools =
            claim.pools.is_empty() || self.pools.owner(address).is_none() || named().any(|pool| pool.mentions(address));
        wanted && asked_for && of_its_pools && self.occupancy.may_keep(address, claim).is_ok()
    }

    /// Gives a Service the addresses that it lacks.
    fn give(&mut self, claim: &Claim<'a>, mut kept: Kept) {
        let mut failures = Vec::new();
        let missing = claim
            .families
            .iter()
            .copied()
            .filter(|family| kept[index(*family)].is_none());
        let missing: Vec<IpFamily> = if claim.invalid.is_some() {
            Vec::new()
        } else {
            missing.collect()
        };
        let mut found = Vec::new();
        for family in missing {
            match self.find(claim, family) {
                Ok(address) => found.push(address),
                Err(failure) => failures.push((family, failure)),
            }
        }
        if claim.all_or_nothing && !failures.is_empty() {
            found.clear();
        }
        for address in found {
            self.occupancy.take(address, claim);
            kept[index(IpFamily::of(&address))] = Some(address);
        }
        let addresses: Vec<IpAddr> = claim
            .families
            .iter()
            .filter_map(|family| kept[index(*family)])
            .collect();
        // Where one family is enough, the lack of the other is no fault unless an address of it was asked for.
        let enough = !addresses.is_empty() && !claim.all_or_nothing;
        failures.retain(|(family, _)| !enough || claim.requested(*family).is_some());
        let finding = self.judge(claim, &addresses, failures);
        self.plan
            .services
            .insert(claim.key.clone(), Decision::Ours { addresses, finding });
    }

    /// Says what has become of a Service, and reports what is wrong with it.
    fn judge(&mut self, claim: &Claim<'a>, addresses: &[IpAddr], failures: Vec<(IpFamily, Failure)>) -> Finding {
        let failures = failures.into_iter().map(|(_, failure)| {
            let Failure {
                reason,
                field,
                message,
                remedy,
            } = failure;
            claim.problem(field, message, remedy, reason)
        });
        let problems: Vec<Problem> = claim.invalid.iter().cloned().chain(failures).collect();
        let assigned =
            !addresses.is_empty() && (problems.is_empty() || !claim.all_or_nothing && claim.invalid.is_none());
        let stray = addresses.iter().find(|address| self.pools.owner(**address).is_none());
        let finding = match (problems.first(), stray) {
            (Some(problem), _) => Finding {
                assigned,
                reason: problem.reason.name(),
                message: format!("{}; {}", problem.message, problem.remedy),
            },
            (None, Some(stray)) => {
                let message = format!("{stray} is in no pool any more, and stays with the Service");
                let remedy = "add its block to a pool again, or make the Service anew to give it another address";
                let reason = Reason::AddressOutsidePools;
                self.plan
                    .problems
                    .push(claim.problem("status.loadBalancer.ingress", message.clone(), remedy, reason));
                Finding {
                    assigned,
                    reason: reason.name(),
                    message,
                }
            }
            (None, None) => Finding {
                assigned,
                reason: "Assigned",
                message: self.origins(addresses),
            },
        };
        self.plan.problems.extend(problems);
        finding
    }

    /// Addresses with the pools that they are of.
    fn origins(&self, addresses: &[IpAddr]) -> String {
        let named = addresses.iter().map(|address| match self.pools.owner(*address) {
            Some(pool) => format!("{address} of pool {}", self.pools.all[pool].name),
            None => address.to_string(),
        });
        named.collect::<Vec<_>>().join(", ")
    }

    /// An address for a Service, which is not yet taken for it.
    fn find(&mut self, claim: &Claim<'a>, family: IpFamily) -> Result<IpAddr, Failure> {
        let pools = self.serving(claim, family);
        if let Some(address) = claim.requested(family) {
            return self.find_requested(claim, address, &pools);
        }
        if pools.is_empty() {
            return Err(self.no_pool(claim, family));
        }
        if let Some(address) = self.find_shared(claim, family, &pools) {
            return Ok(address);
        }
        for &pool in &pools {
            if let Some(address) = self.lowest_free(pool, family) {
                return Ok(address);
            }
        }
        for &pool in &pools {
            self.waiting[pool] += 1;
        }
        let names: Vec<&str> = pools.iter().map(|pool| self.pools.all[*pool].name.as_str()).collect();
        Err(Failure {
            reason: Reason::Exhausted,
            field: "status.loadBalancer.ingress",
            message: format!(
                "no {family} address is free in {}, so it waits for one",
                names.join(", ")
            ),
            remedy: "add a block to a pool that serves it, or delete Services that are not needed".into(),
        })
    }

    /// The pools that may give a Service an address of this family, by name.
    fn serving(&self, claim: &Claim<'a>, family: IpFamily) -> Vec<usize> {
        let none = Labels::new();
        let namespace = &*claim.key.namespace;
        let mut labels = self.namespaces.get(namespace).map_or(&none, |labels| *labels);
        let named;
        if !labels.contains_key(NAMESPACE_NAME) {
            let mut with_name = labels.clone();
            with_name.insert(NAMESPACE_NAME.to_owned(), namespace.to_owned());
            named = with_name;
            labels = &named;
        }
        let pools = self.pools.all.iter().enumerate();
        let serving = pools.filter(|(_, pool)| {
            !pool.given[index(family)].is_empty() && claim.names(&pool.name) && pool.serves(claim.labels, labels)
        });
        serving.map(|(position, _)| position).collect()
    }

    fn find_requested(&self, claim: &Claim<'a>, address: IpAddr, pools: &[usize]) -> Result<IpAddr, Failure> {
        let at = index(IpFamily::of(&address));
        let refuse = |reason, message: String, remedy: &str| Failure {
            reason,
            field: claim.requested_in,
            message: format!("{message}; it waits for the address"),
            remedy: remedy.into(),
        };
        let owner = self.pools.owner(address);
        let serves =
            owner.is_some_and(|pool| pools.contains(&pool) && self.pools.all[pool].given[at].contains(number(address)));
        if !serves {
            let message = match owner.map(|pool| &self.pools.all[pool]) {
                None => format!("it asks for {address}, which is in no pool"),
                Some(pool) if pool.disabled => {
                    format!("it asks for {address} of pool {}, which is disabled", pool.name)
                }
                Some(pool) => format!(
                    "it asks for {address}, and pool {} does not give it to this Service",
                    pool.name
                ),
            };
            let remedy = "ask for an address of a pool that serves it, or change the pool";
            return Err(refuse(Reason::RequestedAddressNotInPool, message, remedy));
        }
        match self.occupancy.may_get(address, claim) {
            Ok(()) => Ok(address),
            Err(Refusal::Taken(by)) => Err(refuse(
                Reason::RequestedAddressTaken,
                format!("it asks for {address}, which Service {by} has"),
                "ask for another one, or let the two share it by a common fairway.io/share-key",
            )),
            Err(Refusal::Sharing(why)) => Err(refuse(
                Reason::SharingRefused,
                format!("it asks for {address} and cannot share it: {why}"),
                "ask for another one, or change what keeps the two apart",
            )),
        }
    }

    /// An address that its sharers have: of the first pool by name, the lowest.
    fn find_shared(&self, claim: &Claim<'a>, family: IpFamily, pools: &[usize]) -> Option<IpAddr> {
        let shared = self.occupancy.shared_by(claim.share_key?);
        let usable = shared.filter_map(|address| {
            let pool = self.pools.owner(address).filter(|pool| pools.contains(pool))?;
            let given = &self.pools.all[pool].given[index(family)];
            let fits = IpFamily::of(&address) == family && given.contains(number(address));
            (fits && self.occupancy.may_get(address, claim).is_ok()).then_some((pool, address))
        });
        usable.min().map(|(_, address)| address)
    }

    fn lowest_free(&mut self, pool: usize, family: IpFamily) -> Option<IpAddr> {
        let at = index(family);
        let cursor = &mut self.cursors[pool][at];
        let occupancy = &self.occupancy;
        let free = |number: u128| occupancy.is_free(address(family, number));
        match self.pools.all[pool].given[at].first_from(*cursor, free) {
            Some(number) => {
                *cursor = number;
                Some(address(family, number))
            }
            None => {
                *cursor = u128::MAX;
                None
            }
        }
    }

    fn no_pool(&self, claim: &Claim<'a>, family: IpFamily) -> Failure {
        let known = |name: &&&str| self.pools.all.iter().any(|pool| pool.name == **name);
        let message = match claim.pools.iter().find(|name| !known(name)) {
            _ if self.pools.all.is_empty() => "there is no AddressPool".to_owned(),
            Some(name) => format!("the pool {name} that it names does not exist"),
            None if claim.pools.is_empty() => format!("no pool gives {family} addresses to this Service"),
            None => format!(
                "no pool that it names ({}) gives it {family} addresses",
                claim.pools.join(", ")
            ),
        };
        Failure {
            reason: Reason::NoPool,
            field: if claim.pools.is_empty() {
                "spec.type"
            } else {
                "metadata.annotations[fairway.io/pool]"
            },
            message: format!("{message}, so it has no {family} address"),
            remedy: "make an AddressPool with blocks of the family whose selectors choose it and that is not disabled"
                .into(),
        }
    }

    /// What is ours is taken from a Service that is no longer so.
    fn withdraw(&mut self, claim: &Claim<'a>) {
        // Where another class has it, its new controller may have written addresses already: ours are those of a pool, and
        // of those that are in no pool any more the ones that it has shared.
        let of_another_class = claim.is_load_balancer;
        let ours = |address: &IpAddr| {
            !of_another_class
                || self.pools.owner(*address).is_some()
                || self.occupancy.stays_with_another(*address, claim)
        };
        let addresses = claim.present.iter().copied().filter(ours).collect();
        self.plan
            .services
            .insert(claim.key.clone(), Decision::Withdrawn(addresses));
    }

    /// A Service that another controller serves keeps its status as it is.
    fn leave(&mut self, claim: &Claim<'a>) {
        self.plan.problems.push(claim.problem(
            "status.loadBalancer.ingress",
            "it has a status that Fairway has not written, of no pool, and is left to whoever has".into(),
            "give one of the two controllers a spec.loadBalancerClass of its own (--only-class), or clear the status",
            Reason::OfAnotherController,
        ));
    }

    fn finish(mut self) -> Plan {
        let mut tallies: Vec<(u128, u128)> = vec![(0, 0); self.pools.all.len()];
        for address in self.occupancy.addresses() {
            if let Some(pool) = self.pools.owner(address) {
                let given = &self.pools.all[pool].given[index(IpFamily::of(&address))];
                tallies[pool].0 += 1;
                tallies[pool].1 += u128::from(given.contains(number(address)));
            }
        }
        for ((pool, (used, used_of_given)), waiting) in self.pools.all.into_iter().zip(tallies).zip(self.waiting) {
            let all = pool.given.iter().map(Ranges::count).fold(0, u128::saturating_add);
            self.plan.problems.extend(pool.problems.iter().cloned());
            let tally = Tally {
                used,
                free: all.saturating_sub(used_of_given),
                waiting,
                problems: pool.problems,
            };
            self.plan.pools.insert(pool.name, tally);
        }
        let distinct: BTreeSet<Problem> = self.plan.problems.into_iter().collect();
        self.plan.problems = distinct.into_iter().collect();
        self.plan
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
