//! What has to be changed in the maps, in an order that breaks nothing on the way.
//!
//! Make before break: a frontend is written only when the backends and tables it leads to are there, and what it led
//! to before is removed only after it.

use std::collections::HashSet;
use std::hash::Hash;

use lb_common::abi::{Backend, backend_flags};

use super::lower::{Lowering, Touched};
use crate::maps::{FamilyContents, FamilyOp, MapContents, MapFamily, Op};

/// The stages of a run, in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Stage {
    /// What frontends need: settings, backends, filter bits, tables, members, ranges.
    Make,
    /// Frontends that are new or lead elsewhere; then the ranges of Services, which drop what has no frontend.
    Switch,
    /// What is no longer wanted, in the reverse order.
    Break,
}

impl Stage {
    pub(super) const ALL: [Self; 3] = [Self::Make, Self::Switch, Self::Break];
}

/// The changes that a stage has to make. Tables are computed one by one as they are asked for: together they are large.
pub(super) fn diff<'a>(
    stage: Stage,
    lowering: &'a Lowering,
    actual: &MapContents,
) -> impl Iterator<Item = Op> + use<'a> {
    let wanted = &lowering.wanted;
    let shared = &lowering.shared;
    let everything = shared.everything;
    let mut ops = Vec::new();
    let members = keys(everything, &shared.touched_members, || {
        wanted
            .affinity_members
            .union(&actual.affinity_members)
            .copied()
            .collect()
    });
    match stage {
        Stage::Make => {
            if wanted.config != actual.config {
                ops.push(Op::SetConfig(wanted.config));
            }
            make(&wanted.v4, &actual.v4, &lowering.v4.touched, everything, &mut ops);
            make(&wanted.v6, &actual.v6, &lowering.v6.touched, everything, &mut ops);
            filter(lowering, actual, &mut ops);
            let added = members.iter().filter(|m| wanted.affinity_members.contains(m));
            let added = added.filter(|m| !actual.affinity_members.contains(m));
            ops.extend(added.copied().map(Op::AddAffinityMember));
        }
        Stage::Switch => {
            switch(&wanted.v4, &actual.v4, &lowering.v4.touched, everything, &mut ops);
            switch(&wanted.v6, &actual.v6, &lowering.v6.touched, everything, &mut ops);
        }
        Stage::Break => {
            unmake(&wanted.v4, &actual.v4, &lowering.v4.touched, everything, &mut ops);
            unmake(&wanted.v6, &actual.v6, &lowering.v6.touched, everything, &mut ops);
            let removed = members.iter().filter(|m| !wanted.affinity_members.contains(m));
            let removed = removed.filter(|m| actual.affinity_members.contains(m));
            ops.extend(removed.copied().map(Op::RemoveAffinityMember));
        }
    }
    let unwritten = shared.unwritten.iter().filter(move |_| stage == Stage::Make);
    let tables = unwritten.map(|(content, set)| Op::SetMaglev {
        offset: set.offset,
        slots: lowering.table(content, set.size),
    });
    ops.into_iter().chain(tables)
}

fn make<F: MapFamily>(
    wanted: &FamilyContents<F>,
    actual: &FamilyContents<F>,
    touched: &Touched<F>,
    everything: bool,
    ops: &mut Vec<Op>,
) {
    for (id, backend) in backends(wanted, actual, touched, everything, true) {
        ops.push(F::op(FamilyOp::SetBackend(id, backend)));
    }
    let ranges = keys(everything, &touched.source_ranges, || {
        wanted.source_ranges.iter().copied().collect()
    });
    for range in ranges {
        if wanted.source_ranges.contains(&range) && !actual.source_ranges.contains(&range) {
            ops.push(F::op(FamilyOp::AddSourceRange(range)));
        }
    }
    if touched.cidrs || everything {
        for cidr in wanted.pod_cidrs.difference(&actual.pod_cidrs) {
            ops.push(F::op(FamilyOp::AddPodCidr(*cidr)));
        }
    }
}

fn switch<F: MapFamily>(
    wanted: &FamilyContents<F>,
    actual: &FamilyContents<F>,
    touched: &Touched<F>,
    everything: bool,
    ops: &mut Vec<Op>,
) {
    let frontends = keys(everything, &touched.frontends, || {
        wanted.frontends.keys().copied().collect()
    });
    let mut others = Vec::new();
    for key in frontends {
        if let Some(frontend) = wanted.frontends.get(&key)
            && actual.frontends.get(&key) != Some(frontend)
        {
            let op = F::op(FamilyOp::SetFrontend(key, *frontend));
            // "Every other port rejects" comes after the ports that do not.
            let list = if key.protocol == 0 { &mut others } else { &mut *ops };
            list.push(op);
        }
    }
    ops.append(&mut others);
    if touched.cidrs || everything {
        for cidr in wanted.service_cidrs.difference(&actual.service_cidrs) {
            ops.push(F::op(FamilyOp::AddServiceCidr(*cidr)));
        }
    }
}

fn unmake<F: MapFamily>(
    wanted: &FamilyContents<F>,
    actual: &FamilyContents<F>,
    touched: &Touched<F>,
    everything: bool,
    ops: &mut Vec<Op>,
) {
    if touched.cidrs || everything {
        for cidr in actual.service_cidrs.difference(&wanted.service_cidrs) {
            ops.push(F::op(FamilyOp::RemoveServiceCidr(*cidr)));
        }
    }
    for key in keys(everything, &touched.frontends, || {
        actual.frontends.keys().copied().collect()
    }) {
        if actual.frontends.contains_key(&key) && !wanted.frontends.contains_key(&key) {
            ops.push(F::op(FamilyOp::RemoveFrontend(key)));
        }
    }
    if touched.cidrs || everything {
        for cidr in actual.pod_cidrs.difference(&wanted.pod_cidrs) {
            ops.push(F::op(FamilyOp::RemovePodCidr(*cidr)));
        }
    }
    let ranges = keys(everything, &touched.source_ranges, || {
        actual.source_ranges.iter().copied().collect()
    });
    for range in ranges {
        if actual.source_ranges.contains(&range) && !wanted.source_ranges.contains(&range) {
            ops.push(F::op(FamilyOp::RemoveSourceRange(range)));
        }
    }
    for (id, backend) in backends(wanted, actual, touched, everything, false) {
        ops.push(F::op(FamilyOp::SetBackend(id, backend)));
    }
}

/// The backends that have to be written and are (`live`) or are not in use.
fn backends<F: MapFamily>(
    wanted: &FamilyContents<F>,
    actual: &FamilyContents<F>,
    touched: &Touched<F>,
    everything: bool,
    live: bool,
) -> Vec<(u32, Backend<F::Addr>)> {
    let differs = |id: u32| {
        let backend = wanted.backend(id);
        let of_stage = (backend.flags & backend_flags::LIVE != 0) == live;
        (of_stage && backend != actual.backend(id)).then_some((id, backend))
    };
    if everything {
        let len = wanted.backends.len().max(actual.backends.len()) as u32;
        (1..len).filter_map(differs).collect()
    } else {
        let mut ids: Vec<u32> = touched.backends.iter().copied().collect();
        ids.sort_unstable();
        ids.into_iter().filter_map(differs).collect()
    }
}

fn filter(lowering: &Lowering, actual: &MapContents, ops: &mut Vec<Op>) {
    let wanted = &lowering.wanted;
    let shared = &lowering.shared;
    let mut bucket_op = |bucket: u32| {
        let index = bucket as usize;
        let bits = wanted.filter[index] & !actual.filter[index];
        if bits != 0 {
            ops.push(Op::SetFilter { bucket, bits });
        }
    };
    if shared.everything {
        (0..wanted.filter.len() as u32).for_each(&mut bucket_op);
    } else {
        shared.touched_filter.iter().copied().for_each(&mut bucket_op);
    }
    let mut port_op = |port: u16| {
        let bit = |bytes: &[u8]| bytes[usize::from(port >> 3)] & (1 << (port & 7)) != 0;
        if bit(&wanted.node_ports) && !bit(&actual.node_ports) {
            ops.push(Op::SetNodePort(port));
        }
    };
    if shared.everything {
        (0..=u16::MAX).for_each(&mut port_op);
    } else {
        shared.touched_node_ports.iter().copied().for_each(&mut port_op);
    }
}

/// The keys to look at: those touched, or all.
fn keys<K: Copy + Eq + Hash>(everything: bool, touched: &HashSet<K>, all: impl FnOnce() -> Vec<K>) -> Vec<K> {
    if everything {
        all()
    } else {
        touched.iter().copied().collect()
    }
}
