//! The two families of maps, so that one function serves both.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::abi::{Addr4, Addr6, Family, LpmKey, V4, V6};

use super::{FamilyContents, FamilyOp, MapContents, Op};
use crate::model::IpFamily;

/// A family of addresses that has maps.
pub trait MapFamily: Family {
    /// The family as a value.
    const FAMILY: IpFamily;

    /// The address, if it is of this family.
    fn addr(addr: IpAddr) -> Option<Self::Addr>;

    /// The family's maps.
    fn contents(maps: &MapContents) -> &FamilyContents<Self>;

    /// The family's maps.
    fn contents_mut(maps: &mut MapContents) -> &mut FamilyContents<Self>;

    /// A change of one of the family's maps.
    fn op(op: FamilyOp<Self>) -> Op;

    /// The range as a key, if it is of this family.
    fn lpm_key(net: &IpNet) -> Option<LpmKey<Self::Addr>> {
        Self::addr(net.network()).map(|addr| LpmKey {
            prefix_len: u32::from(net.prefix_len()),
            addr,
        })
    }
}

impl MapFamily for V4 {
    const FAMILY: IpFamily = IpFamily::V4;

    fn addr(addr: IpAddr) -> Option<Addr4> {
        match addr {
            IpAddr::V4(addr) => Some(addr.into()),
            IpAddr::V6(_) => None,
        }
    }

    fn contents(maps: &MapContents) -> &FamilyContents<Self> {
        &maps.v4
    }

    fn contents_mut(maps: &mut MapContents) -> &mut FamilyContents<Self> {
        &mut maps.v4
    }

    fn op(op: FamilyOp<Self>) -> Op {
        Op::V4(op)
    }
}

impl MapFamily for V6 {
    const FAMILY: IpFamily = IpFamily::V6;

    fn addr(addr: IpAddr) -> Option<Addr6> {
        match addr {
            IpAddr::V4(_) => None,
            IpAddr::V6(addr) => Some(addr.into()),
        }
    }

    fn contents(maps: &MapContents) -> &FamilyContents<Self> {
        &maps.v6
    }

    fn contents_mut(maps: &mut MapContents) -> &mut FamilyContents<Self> {
        &mut maps.v6
    }

    fn op(op: FamilyOp<Self>) -> Op {
        Op::V6(op)
    }
}
