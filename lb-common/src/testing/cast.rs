//! Who is who in the scenarios, in both families.
//!
//! ```text
//!   CLIENT_1, CLIENT_2 ── router (CLIENT_MAC) ──┬── NODE_1: this node. POD_1, POD_2 live here (device 5)
//!                                               └── NODE_2: POD_3, POD_4 live there (by device 1)
//! ```

use super::World;
use super::env::FamilyMaps;
use crate::abi::{Addr4, Addr6, Mac, V4, V6};
use crate::datapath::Ip;

/// A family with its cast of addresses, and its maps in a [`World`].
pub trait Cast: Ip {
    /// The family's name.
    const NAME: &'static str;
    /// Somebody outside the cluster.
    const CLIENT_1: Self::Addr;
    /// Somebody else outside the cluster.
    const CLIENT_2: Self::Addr;
    /// This node, on its uplink.
    const NODE_1: Self::Addr;
    /// Another node.
    const NODE_2: Self::Addr;
    /// This node, as its own pods see it.
    const GATEWAY: Self::Addr;
    /// A pod on this node, backend 1.
    const POD_1: Self::Addr;
    /// Another pod on this node, backend 2.
    const POD_2: Self::Addr;
    /// A pod on the other node, backend 3.
    const POD_3: Self::Addr;
    /// Another pod on the other node, backend 4.
    const POD_4: Self::Addr;
    /// Prefix of this node's pods, and its length.
    const POD_CIDR: (Self::Addr, u32);
    /// A ClusterIP.
    const CLUSTER_IP: Self::Addr;
    /// Prefix of ClusterIPs, and its length.
    const SERVICE_CIDR: (Self::Addr, u32);
    /// An address in the Service CIDR that no Service has.
    const UNASSIGNED: Self::Addr;
    /// The address of a Service of type LoadBalancer.
    const VIP: Self::Addr;
    /// An external IP of a Service.
    const EXTERNAL_IP: Self::Addr;

    /// The family's maps.
    fn maps(world: &World) -> &FamilyMaps<Self::Addr>;
    /// The family's maps, to change them.
    fn maps_mut(world: &mut World) -> &mut FamilyMaps<Self::Addr>;
}

/// The router towards the clients.
pub const CLIENT_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0xc1]);
/// This node, on its uplink.
pub const NODE_1_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x01]);
/// The other node.
pub const NODE_2_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x02]);
/// Another router, that takes over.
pub const OTHER_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0xc2]);

const fn v4(a: u8, b: u8, c: u8, d: u8) -> Addr4 {
    Addr4::from_octets([a, b, c, d])
}

/// `2001:db8:net::host`.
const fn v6(net: u16, host: u16) -> Addr6 {
    let ([a, b], [c, d]) = (net.to_be_bytes(), host.to_be_bytes());
    Addr6::from_octets([0x20, 0x01, 0x0d, 0xb8, a, b, 0, 0, 0, 0, 0, 0, 0, 0, c, d])
}

impl Cast for V4 {
    const NAME: &'static str = "IPv4";
    const CLIENT_1: Addr4 = v4(203, 0, 113, 1);
    const CLIENT_2: Addr4 = v4(203, 0, 113, 2);
    const NODE_1: Addr4 = v4(192, 0, 2, 1);
    const NODE_2: Addr4 = v4(192, 0, 2, 2);
    const GATEWAY: Addr4 = v4(10, 244, 1, 1);
    const POD_1: Addr4 = v4(10, 244, 1, 11);
    const POD_2: Addr4 = v4(10, 244, 1, 12);
    const POD_3: Addr4 = v4(10, 244, 2, 13);
    const POD_4: Addr4 = v4(10, 244, 2, 14);
    const POD_CIDR: (Addr4, u32) = (v4(10, 244, 1, 0), 24);
    const CLUSTER_IP: Addr4 = v4(10, 96, 0, 10);
    const SERVICE_CIDR: (Addr4, u32) = (v4(10, 96, 0, 0), 16);
    const UNASSIGNED: Addr4 = v4(10, 96, 77, 77);
    const VIP: Addr4 = v4(198, 51, 100, 10);
    const EXTERNAL_IP: Addr4 = v4(198, 51, 100, 99);

    fn maps(world: &World) -> &FamilyMaps<Addr4> {
        &world.v4
    }

    fn maps_mut(world: &mut World) -> &mut FamilyMaps<Addr4> {
        &mut world.v4
    }
}

impl Cast for V6 {
    const NAME: &'static str = "IPv6";
    const CLIENT_1: Addr6 = v6(0xc, 1);
    const CLIENT_2: Addr6 = v6(0xc, 2);
    const NODE_1: Addr6 = v6(0xa, 1);
    const NODE_2: Addr6 = v6(0xa, 2);
    const GATEWAY: Addr6 = v6(0x1244, 1);
    const POD_1: Addr6 = v6(0x1244, 11);
    const POD_2: Addr6 = v6(0x1244, 12);
    const POD_3: Addr6 = v6(0x2244, 13);
    const POD_4: Addr6 = v6(0x2244, 14);
    const POD_CIDR: (Addr6, u32) = (v6(0x1244, 0), 64);
    const CLUSTER_IP: Addr6 = v6(0x96, 10);
    const SERVICE_CIDR: (Addr6, u32) = (v6(0x96, 0), 112);
    const UNASSIGNED: Addr6 = v6(0x96, 77);
    const VIP: Addr6 = v6(0xb, 10);
    const EXTERNAL_IP: Addr6 = v6(0xb, 99);

    fn maps(world: &World) -> &FamilyMaps<Addr6> {
        &world.v6
    }

    fn maps_mut(world: &mut World) -> &mut FamilyMaps<Addr6> {
        &mut world.v6
    }
}
