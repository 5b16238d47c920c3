//! `fairway agent`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use ipnet::IpNet;
use lb_common::abi::{Config, config_flags};

use super::log::Log;
use super::objects::{self, Objects};
use crate::agent::{self, AnnounceSettings, Listen, Origin, TelemetrySettings};
use crate::datapath::attach::{Glob, Options, TcMode, XdpMode};
use crate::datapath::load::Drops;
use crate::datapath::pin::{self, PinDir};
use crate::datapath::probe;
use crate::desired::{LocalPods, NodePortAddresses, Settings};
use crate::maps::table::Sizes;
use crate::sources::{kube, manifests};
use crate::sys;

/// Run the node agent: load the data path and keep it equal to what Services say.
///
/// Loads the programs, attaches them to the network devices of the network namespace that it runs in, and keeps their
/// maps equal to what Services and EndpointSlices say.
///
/// Objects come from a folder of manifests (--manifests), from the Kubernetes API that a kubeconfig file names
/// (--kubeconfig), else, in a pod, from the cluster's own API. When the API goes away, traffic goes on by what is
/// known. When the agent ends, the programs go on by themselves; the next agent takes over from them without
/// losing a connection. `fairway cleanup` removes everything.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    fairway agent --node-name $(hostname) --manifests ./manifests --service-cidrs 10.96.0.0/16\n  \
    fairway agent --node-name $(hostname) --kubeconfig ~/.kube/config --cluster-cidr 10.244.0.0/16")]
pub struct Args {
    /// Name of this node, as EndpointSlices and the Node object have it.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: String,

    #[command(flatten)]
    objects: Objects,

    /// The ranges of pod addresses: clients in them are pods, others are masqueraded on their way to a ClusterIP.
    /// `node` stands for the ranges in the own Node object (`spec.podCIDRs`); with `none` pods are not told from
    /// other clients.
    #[arg(
        long,
        value_name = "CIDR,..|node|none",
        value_delimiter = ',',
        default_value = "node",
        help_heading = "Services"
    )]
    cluster_cidr: Vec<String>,

    /// Know pods by the devices that they come in by instead of by their addresses: those whose names begin so. A port
    /// of a bridge counts by the bridge's name.
    #[arg(
        long,
        value_name = "PREFIX,..",
        value_delimiter = ',',
        value_parser = device_name,
        conflicts_with_all = ["cluster_cidr", "pod_bridge"],
        help_heading = "Services"
    )]
    pod_interface_prefix: Vec<String>,

    /// Know pods by the bridge that they come in by, through whichever of its ports, instead of by their addresses.
    #[arg(
        long,
        value_name = "NAME",
        value_parser = device_name,
        conflicts_with = "cluster_cidr",
        help_heading = "Services"
    )]
    pod_bridge: Option<String>,

    /// The ranges of ClusterIPs, where no ServiceCIDR objects say them. Packets to an address in them that no Service
    /// has are dropped; with --manifests, Services without a ClusterIP get one from them.
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',', help_heading = "Services")]
    service_cidrs: Vec<IpNet>,

    /// Serve the Services that the label service.kubernetes.io/service-proxy-name gives to the proxy of this name, and
    /// no others. [default: those without the label]
    #[arg(long, value_name = "NAME", value_parser = label_value, help_heading = "Services")]
    service_proxy_name: Option<String>,

    /// On which of the node's addresses NodePorts are served: on the `primary` one of each family, or on those in
    /// these ranges.
    #[arg(
        long,
        value_name = "CIDR,..|primary",
        default_value = "primary",
        help_heading = "Services"
    )]
    nodeport_addresses: NodePorts,

    /// Masquerade every connection to a ClusterIP.
    #[arg(long, help_heading = "Services")]
    masquerade_all: bool,

    /// The ports for source translation. [default: the largest range free of ip_local_port_range and 30000-32767]
    #[arg(long, value_name = "FIRST-LAST", help_heading = "Services")]
    snat_ports: Option<PortRange>,

    /// Attach to devices with these names only; `*` and `?` stand for others. [default: all but loopback]
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', help_heading = "Hooks")]
    devices: Vec<Glob>,

    /// Do not attach to devices with these names.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', help_heading = "Hooks")]
    exclude_devices: Vec<Glob>,

    /// Devices for XDP. [default: those that default routes lead to]
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', help_heading = "Hooks")]
    uplinks: Vec<Glob>,

    /// How XDP runs on uplinks.
    #[arg(long, value_enum, default_value_t, help_heading = "Hooks")]
    xdp: XdpMode,

    /// Log every packet that is dropped, with hook (0 XDP, 1 TC ingress, 2 TC egress) and reason (the number that
    /// docs/operations.md explains). They are counted in any case, see `fairway status`.
    #[arg(long, help_heading = "Hooks")]
    log_drops: bool,

    /// How TC programs are attached.
    #[arg(long, value_enum, default_value_t, help_heading = "Hooks")]
    attach: TcMode,

    /// Translate the sockets of the node's processes and pods in this cgroup (v2), at once as they connect; `none` to
    /// translate packets only. [default: where cgroup2 is mounted; pods are left out there if the agent is not in the
    /// network namespace of the machine's first process, since others' processes are below it then]
    #[arg(long, value_name = "PATH", help_heading = "Hooks")]
    cgroup: Option<PathBuf>,

    /// Where `/healthz` and `/livez` are answered: 200 while what the API says is in force, else 503. `/healthz` is also
    /// 503 once the node is to be removed. 0.0.0.0 stands for all addresses of both families; `none` for nowhere.
    #[arg(
        long,
        value_name = "ADDRESS:PORT|none",
        default_value = "0.0.0.0:10256",
        help_heading = "Health and metrics"
    )]
    healthz_address: Listen,

    /// Where metrics are told (`/metrics`, for Prometheus); `none` for nowhere.
    #[arg(
        long,
        value_name = "ADDRESS:PORT|none",
        default_value = "127.0.0.1:10249",
        help_heading = "Health and metrics"
    )]
    metrics_address: Listen,

    /// Whether this node may announce load balancer addresses on its local networks: answer ARP and NDP for them. Which
    /// addresses, on which devices and by which nodes is said by AddressPools.
    #[arg(long, value_enum, default_value_t, help_heading = "Announcement")]
    announce: Announce,

    /// Whether what comes in for an announced address goes, as it is, to the node of the endpoint, which answers the client
    /// itself; so connections outlive that another node announces the address. (externalTrafficPolicy Cluster; the node
    /// has to be a neighbour that holds a Lease.) Else this node translates it, and the answers come back by it.
    #[arg(long, value_enum, default_value_t, help_heading = "Announcement")]
    announce_pass_on: PassOn,

    /// How long another node waits, after this one was last heard of, before it announces in its place: 1 to 60 seconds.
    /// The Lease that says so is renewed every third of it.
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = lease_duration,
        default_value = "2s",
        help_heading = "Announcement"
    )]
    announce_lease_duration: Duration,

    /// The namespace of these Leases. (With --manifests they are files in its folder .fairway/leases.)
    #[arg(
        long,
        value_name = "NAMESPACE",
        default_value = "kube-system",
        help_heading = "Announcement"
    )]
    lease_namespace: String,

    /// Where maps and links are pinned. Agents that run side by side need one each.
    #[arg(long, value_name = "PATH", default_value = pin::DEFAULT, help_heading = "State")]
    pin_dir: PathBuf,

    /// Connections of each family.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().connections, help_heading = "Sizes")]
    max_connections: u32,

    /// Addresses and ports of Services, of each family.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().frontends, help_heading = "Sizes")]
    max_frontends: u32,

    /// Endpoints of Services, of each family.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().backends, help_heading = "Sizes")]
    max_backends: u32,

    /// Slots for the tables of all Services together.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().maglev, help_heading = "Sizes")]
    max_maglev_slots: u32,

    /// Clients remembered for session affinity, of each family.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().affinity, help_heading = "Sizes")]
    max_affinity: u32,

    /// Source ranges of load balancers, of each family.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().source_ranges, help_heading = "Sizes")]
    max_source_ranges: u32,

    /// Sockets remembered that were translated, of each family.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().sockets, help_heading = "Sizes")]
    max_sockets: u32,

    #[command(flatten)]
    log: Log,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum Announce {
    /// It may.
    #[default]
    On,
    /// It announces nothing.
    Off,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
enum PassOn {
    /// It goes to the node of the endpoint.
    #[default]
    On,
    /// This node translates all of it.
    Off,
}

#[derive(Clone, Debug)]
struct NodePorts(NodePortAddresses);

impl FromStr for NodePorts {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "primary" {
            return Ok(Self(NodePortAddresses::Primary));
        }
        let ranges: Result<Vec<IpNet>, _> = text.split(',').map(|range| range.trim().parse()).collect();
        Ok(Self(NodePortAddresses::Within(ranges?)))
    }
}

#[derive(Clone, Copy, Debug)]
struct PortRange(u16, u16);

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("`{text}` is not two ports, the lower one first, such as 20000-29999");
        let (first, last) = text.split_once('-').ok_or_else(form)?;
        let parse = |port: &str| port.trim().parse::<u16>().map_err(|_| form());
        let (first, last) = (parse(first)?, parse(last)?);
        if first == 0 || first > last {
            Err(form())
        } else {
            Ok(Self(first, last))
        }
    }
}

/// Runs the agent until it is told to end.
pub fn run(args: Args) -> anyhow::Result<()> {
    args.log.start()?;
    let agent = args.settings()?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(agent::run(agent))
}

impl Args {
    fn settings(self) -> anyhow::Result<agent::Settings> {
        let cookie = sys::netns_cookie().context("ask for the cookie of the network namespace (Linux 5.14 has it)")?;
        let PortRange(snat_port_min, snat_port_max) = self.snat_ports.unwrap_or_else(|| {
            let (first, last) = probe::snat_ports();
            PortRange(first, last)
        });
        let node_name: std::sync::Arc<str> = self.node_name.as_str().into();
        let proxy_name: Option<std::sync::Arc<str>> = self.service_proxy_name.as_deref().map(Into::into);
        let node = Settings {
            node_name: node_name.clone(),
            proxy_name: proxy_name.clone(),
            local_pods: match self.pod_bridge {
                Some(bridge) => LocalPods::Bridge(bridge),
                None if !self.pod_interface_prefix.is_empty() => LocalPods::Interfaces(self.pod_interface_prefix),
                None => local_pods(&self.cluster_cidr)?,
            },
            node_port_addresses: self.nodeport_addresses.0,
            service_cidrs: self.service_cidrs.clone(),
            masquerade_all: self.masquerade_all,
            datapath: Config {
                hz: sys::hz(),
                snat_port_min,
                snat_port_max,
                netns_cookie_low: half(cookie),
                netns_cookie_high: half(cookie >> 32),
                flags: if self.cgroup.is_some() || probe::network_is_the_machines(cookie) {
                    config_flags::POD_SOCKETS
                } else {
                    0
                },
                ..Config::default()
            },
        };
        let origin = match self.objects.source()? {
            objects::Source::Manifests(dir) => Origin::Manifests(manifests::Options {
                dir,
                node_name,
                service_cidrs: self.service_cidrs,
            }),
            objects::Source::Api(access) => Origin::Api(kube::Options {
                access,
                node_name,
                proxy_name,
            }),
        };
        Ok(agent::Settings {
            node,
            origin,
            pins: PinDir::new(self.pin_dir),
            hooks: Options {
                tc: self.attach,
                xdp: self.xdp,
                devices: self.devices,
                exclude: self.exclude_devices,
                uplinks: self.uplinks,
                cgroup: probe::cgroup(self.cgroup.as_deref())?,
            },
            sizes: Sizes {
                connections: self.max_connections,
                frontends: self.max_frontends,
                backends: self.max_backends,
                maglev: self.max_maglev_slots,
                affinity: self.max_affinity,
                source_ranges: self.max_source_ranges,
                sockets: self.max_sockets,
            },
            drops: if self.log_drops { Drops::Logged } else { Drops::Counted },
            announce: (self.announce == Announce::On).then_some(AnnounceSettings {
                lease_duration: self.announce_lease_duration,
                lease_namespace: self.lease_namespace,
                passes_on: self.announce_pass_on == PassOn::On,
            }),
            telemetry: TelemetrySettings {
                healthz: self.healthz_address,
                metrics: self.metrics_address,
            },
        })
    }
}

/// Whole seconds, as the API keeps the duration of a Lease.
fn lease_duration(text: &str) -> Result<Duration, String> {
    let seconds = text.strip_suffix('s').unwrap_or(text).parse::<u64>().ok();
    let seconds = seconds.filter(|seconds| (1..=60).contains(seconds));
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| "it is not a number of whole seconds from 1 to 60, such as 2s".to_owned())
}

/// What the value of a label may be: a name that nothing can carry would serve no Service at all.
fn label_value(text: &str) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends =
        text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.ends_with(|c: char| c.is_ascii_alphanumeric());
    if ends && text.len() <= 63 && text.chars().all(inner) {
        Ok(text.to_owned())
    } else {
        Err(
            "it is not the value of a label: up to 63 letters, digits, `-`, `_` and `.`, the first and the last a \
             letter or digit"
                .into(),
        )
    }
}

fn half(wide: u64) -> u32 {
    u32::try_from(wide & u64::from(u32::MAX)).unwrap_or(0)
}

/// A device's name, or the beginning of one: what the kernel would take, so that a slip of the hand is found.
fn device_name(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty() && text.len() < 16 && !text.contains(|c: char| c == '/' || c.is_whitespace());
    if is_name {
        Ok(text.to_owned())
    } else {
        Err("a device's name has 1 to 15 characters, none of them a slash or a blank".to_owned())
    }
}

fn local_pods(ranges: &[String]) -> anyhow::Result<LocalPods> {
    match ranges {
        [only] if only == "none" => Ok(LocalPods::Unknown),
        [only] if only == "node" => Ok(LocalPods::OfNodeObject),
        ranges => ranges
            .iter()
            .map(|range| {
                range
                    .trim()
                    .parse()
                    .with_context(|| format!("understand --cluster-cidr {range}"))
            })
            .collect::<anyhow::Result<_>>()
            .map(LocalPods::Cidrs),
    }
}
