//! What a world is made from, where an address of it lives, and how things of it are named on the machine.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::ensure;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// What a world is made from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Spec {
    /// Its name on the machine: up to 24 letters, digits and hyphens. An earlier world of this name is removed.
    pub name: String,
    /// This repository's own program, which makes sockets in the node's cgroup.
    pub xtask: PathBuf,
    /// The node's primary addresses.
    pub ips: Vec<IpAddr>,
    /// Further local addresses of the node.
    pub other_ips: Vec<IpAddr>,
    /// Whatever has an address in here is a pod on the node.
    pub pod_cidrs: Vec<IpNet>,
    /// Whether pods are in the node's cgroup, so that their sockets are translated where they connect. If not, a
    /// [`From::Pod`] is as [`From::PodOutsideCgroup`].
    pub pods_in_cgroup: bool,
}

impl Spec {
    /// Every address of the node.
    pub fn node_addresses(&self) -> Vec<IpAddr> {
        self.ips.iter().chain(&self.other_ips).copied().collect()
    }

    /// Where an address of this world lives.
    pub fn place(&self, addr: IpAddr) -> Place {
        if addr.is_loopback() || self.ips.contains(&addr) || self.other_ips.contains(&addr) {
            Place::Node
        } else if self.pod_cidrs.iter().any(|cidr| cidr.contains(&addr)) {
            Place::Pod(addr)
        } else {
            Place::Outside
        }
    }

    /// Addresses of pods that nothing else uses, for many clients: the last ones of the CIDR that holds `like`.
    pub fn spare_pods(&self, like: IpAddr, taken: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
        let Some(cidr) = self.pod_cidrs.iter().find(|cidr| cidr.contains(&like)) else {
            return Vec::new();
        };
        // The very last address is a broadcast in IPv4; /64s are not walked from their end.
        (1..=SPARE_PODS)
            .filter_map(|back| match cidr {
                IpNet::V4(net) => u32::from(net.broadcast())
                    .checked_sub(back)
                    .map(|addr| IpAddr::V4(addr.into())),
                IpNet::V6(net) => {
                    let last = u128::from(net.broadcast());
                    last.checked_sub(u128::from(back)).map(|addr| IpAddr::V6(addr.into()))
                }
            })
            .filter(|addr| cidr.contains(addr) && !taken(*addr))
            .collect()
    }
}

/// Addresses near to one off the node: within the smallest ranges that hold it first.
pub(crate) fn neighbours(of: IpAddr) -> impl Iterator<Item = IpAddr> {
    const COUNT: u8 = 127;
    (1..=COUNT).map(move |distance| match of {
        IpAddr::V4(addr) => IpAddr::V4((u32::from(addr) ^ u32::from(distance)).into()),
        IpAddr::V6(addr) => IpAddr::V6((u128::from(addr) ^ u128::from(distance)).into()),
    })
}

/// Whether two addresses are in the same of these ranges.
pub(crate) fn is_alike(ranges: &[IpNet], one: IpAddr, other: IpAddr) -> bool {
    ranges
        .iter()
        .all(|range| range.contains(&one) == range.contains(&other))
}

/// How many pods at most are clients at a time when there are to be many.
const SPARE_PODS: u32 = 128;

/// Where something is in a world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// The node itself.
    Node,
    /// The pod with this address.
    Pod(IpAddr),
    /// One namespace with many pods' addresses, all of them clients.
    Crowd,
    /// Off the node: clients, other nodes with their pods, the way to everything else.
    Outside,
}

/// What connections speak.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, from a socket of the kernel.
    Tcp,
    /// UDP, from a connected socket of the kernel.
    Udp,
    /// SCTP. The kernel need not have it: its packets are made here.
    Sctp,
}

impl Protocol {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Its number in IP headers.
    pub(super) const fn number(self) -> i32 {
        match self {
            Self::Tcp => libc::IPPROTO_TCP,
            Self::Udp => libc::IPPROTO_UDP,
            Self::Sctp => libc::IPPROTO_SCTP,
        }
    }
}

/// Who opens a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum From {
    /// Someone off the node, with any address.
    External,
    /// A pod on the node.
    Pod,
    /// A process of the node.
    NodeProcess,
    /// A pod whose sockets no hook of the node's cgroup sees, so that its packets have to be translated.
    PodOutsideCgroup,
    /// The same of a process of the node.
    NodeProcessOutsideCgroup,
}

impl From {
    /// Whether it is a pod.
    pub const fn is_pod(self) -> bool {
        matches!(self, Self::Pod | Self::PodOutsideCgroup)
    }

    /// Whether it is a process of the node.
    pub const fn is_node_process(self) -> bool {
        matches!(self, Self::NodeProcess | Self::NodeProcessOutsideCgroup)
    }

    /// Whether its sockets are made in the node's cgroup.
    pub const fn is_in_cgroup(self) -> bool {
        matches!(self, Self::Pod | Self::NodeProcess)
    }
}

/// The names of a world on the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Names(String);

impl Names {
    /// How the names of all worlds' namespaces and cgroups begin.
    pub const PREFIX: &str = "fairway-world-";

    pub fn new(name: &str) -> anyhow::Result<Self> {
        let fine = !name.is_empty() && name.len() <= 24 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        ensure!(
            fine,
            "name {name:?} of a world: up to 24 letters, digits and hyphens are allowed"
        );
        Ok(Self(name.to_owned()))
    }

    /// The worlds of which there is something, by their namespaces and cgroups.
    pub fn existing(cgroups: &Path) -> Vec<Self> {
        let names = |folder: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect()
        };
        let all = names(Path::new("/run/netns")).into_iter().chain(names(cgroups));
        let mut found: Vec<String> = all
            .filter_map(|name| Some(name.strip_prefix(Self::PREFIX)?.split('.').next()?.to_owned()))
            .collect();
        found.sort();
        found.dedup();
        found.into_iter().map(Self).collect()
    }

    /// The world's own name.
    pub fn name(&self) -> &str {
        &self.0
    }

    pub fn root(&self) -> String {
        format!("{}{}", Self::PREFIX, self.0)
    }

    /// The namespace of the node, of the outside, or with this number for pods.
    pub fn netns(&self, part: &str) -> String {
        format!("{}.{part}", self.root())
    }

    pub fn netns_path(&self, part: &str) -> PathBuf {
        PathBuf::from("/run/netns").join(self.netns(part))
    }

    /// All namespaces that there are of this world.
    pub fn existing_netns(&self) -> Vec<String> {
        let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let prefix = self.netns("");
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(&prefix))
            .collect()
    }

    /// The object file of the program on the other side of the uplink.
    pub fn pass_object(&self) -> PathBuf {
        std::env::temp_dir().join(format!("{}.pass.o", self.root()))
    }
}

/// Shows an address as the cases have it: `ip:port` or `[v6]:port`, without a scope.
pub(super) fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            name: "test".to_owned(),
            xtask: PathBuf::new(),
            ips: vec!["192.0.2.11".parse().expect("an address")],
            other_ips: vec!["192.0.2.111".parse().expect("an address")],
            pod_cidrs: vec![
                "10.180.0.0/24".parse().expect("a range"),
                "2001:db8::/64".parse().expect("a range"),
            ],
            pods_in_cgroup: true,
        }
    }

    #[test]
    fn an_address_lives_in_one_place() {
        let place = |text: &str| spec().place(text.parse().expect("an address"));
        assert_eq!(place("192.0.2.111"), Place::Node);
        assert_eq!(place("127.0.0.1"), Place::Node);
        assert_eq!(place("10.180.0.9"), Place::Pod([10, 180, 0, 9].into()));
        assert_eq!(place("10.180.1.9"), Place::Outside);
    }

    #[test]
    fn spare_pods_are_in_the_client_s_range_and_free() {
        let taken: IpAddr = [10, 180, 0, 253].into();
        let spare = spec().spare_pods([10, 180, 0, 9].into(), |addr| addr == taken);
        assert_eq!(spare.len(), SPARE_PODS as usize - 1);
        assert!(
            spare
                .iter()
                .all(|addr| *addr != taken && spec().place(*addr) == Place::Pod(*addr))
        );
        let six = spec().spare_pods("2001:db8::9".parse().expect("an address"), |_| false);
        assert_eq!(six.len(), SPARE_PODS as usize);
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        assert!(Names::new("../x").is_err());
        assert!(Names::new("diff-12-a").is_ok());
    }
}
