//! Attaching: which program runs where, and how that survives the agent.
//!
//! Every attachment is a BPF link with a pin. A restarted agent opens the pins and replaces the programs of the
//! links, so that every packet meets the old program or the new one. Only clsact filters, for kernels before 6.6,
//! have no links: they are replaced in place and known by their handle.

mod glob;
mod hooks;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::PathBuf;

use aya::Ebpf;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::load::{self, LoadError};
use super::pin::{PinDir, PinError};
use crate::netlink::network::{Device, DeviceKind, Network};
use crate::sys;

pub use glob::Glob;
pub use hooks::{AttachError, remove_filters};
use hooks::{Direction, SOCKET_HOOKS};

/// Where programs are to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How TC programs are attached.
    pub tc: TcMode,
    /// How XDP is attached.
    pub xdp: XdpMode,
    /// Devices to attach to; all if empty.
    pub devices: Vec<Glob>,
    /// Devices to leave alone.
    pub exclude: Vec<Glob>,
    /// Devices for XDP; those of the default routes if empty.
    pub uplinks: Vec<Glob>,
    /// The cgroup whose processes' sockets are translated.
    pub cgroup: Option<PathBuf>,
}

/// How TC programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum TcMode {
    /// By TCX where the kernel has it (6.6), else by clsact.
    #[default]
    Auto,
    /// By TCX links.
    Tcx,
    /// By filters of the clsact queueing discipline.
    Clsact,
}

/// How XDP is attached to uplinks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum XdpMode {
    /// Native where the driver can, else generic, else not at all. Not on veth devices (the nodes of kind have such
    /// uplinks): their packets may come with unfinished checksums, which XDP cannot tell, and what XDP sends back is
    /// lost unless the other end has a program too (`veth_xdp_flush` in drivers/net/veth.c, Linux 6.18).
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the stack.
    Generic,
    /// Not at all.
    Off,
}

/// What is attached to a device.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Attached {
    /// The device's name.
    pub device: String,
    /// Its index.
    pub ifindex: u32,
    /// How the ingress program is attached: `tcx` or `clsact`.
    pub ingress: Option<String>,
    /// How the egress program is attached.
    pub egress: Option<String>,
    /// How XDP runs: `native` or `generic`; `None` if it does not.
    pub xdp: Option<String>,
    /// Whether it is an uplink.
    pub uplink: bool,
    /// What could not be attached, and why.
    pub problems: Vec<String>,
}

/// The loaded programs and where they run.
pub struct Attacher {
    ebpf: Ebpf,
    pins: PinDir,
    options: Options,
    /// `None` until the first attempt has shown whether the kernel has TCX.
    tcx: Option<bool>,
    devices: BTreeMap<u32, Attached>,
    sockets: Vec<&'static str>,
    problems: Vec<String>,
}

impl Attacher {
    /// Takes the loaded programs. Nothing is attached yet.
    pub fn new(ebpf: Ebpf, pins: PinDir, options: Options) -> Self {
        let tcx = match options.tc {
            TcMode::Auto => None,
            TcMode::Tcx => Some(true),
            TcMode::Clsact => Some(false),
        };
        Self {
            ebpf,
            pins,
            options,
            tcx,
            devices: BTreeMap::new(),
            sockets: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Attaches to what is in the snapshot and was not yet attached to, and forgets devices that are gone.
    /// Returns whether anything changed.
    pub fn sync(&mut self, network: &Network) -> bool {
        let mut changed = false;
        let gone: Vec<_> = self
            .devices
            .keys()
            .filter(|i| !network.devices.contains_key(i))
            .copied()
            .collect();
        for index in gone {
            self.devices.remove(&index);
            self.unpin_device(index);
            changed = true;
        }
        let uplinks = self.uplinks(network);
        let wanted: Vec<_> = network.devices.values().filter(|d| self.wants(d)).collect();
        for device in wanted {
            let known = self.devices.get(&device.index);
            // A device that was an uplink stays one: detaching XDP resets some drivers, and routes come and go.
            let uplink = uplinks.contains(&device.index) || known.is_some_and(|k| k.uplink);
            let settled =
                known.is_some_and(|k| k.device == device.name && (k.uplink || !uplink) && k.problems.is_empty());
            if settled {
                continue;
            }
            let attached = self.attach_device(device, uplink);
            if known_problems(self.devices.get(&device.index)) != attached.problems {
                for problem in &attached.problems {
                    warn!(device = device.name, problem, "could not attach everything");
                }
            }
            if self.devices.get(&device.index) != Some(&attached) {
                info!(
                    device = device.name,
                    ingress = attached.ingress.as_deref().unwrap_or("none"),
                    egress = attached.egress.as_deref().unwrap_or("none"),
                    xdp = attached
                        .xdp
                        .as_deref()
                        .unwrap_or(if uplink { "none" } else { "not an uplink" }),
                    "attached"
                );
                self.devices.insert(device.index, attached);
                changed = true;
            }
        }
        changed
    }

    /// Removes pins of links that nobody wants any more: after a start, when everything is attached.
    pub fn prune(&mut self, network: &Network) {
        let mut wanted: BTreeSet<String> = self.sockets.iter().map(|hook| (*hook).to_owned()).collect();
        for attached in self.devices.values() {
            let index = attached.ifindex;
            let tcx = |how: &Option<String>| how.as_deref() == Some("tcx");
            wanted.extend(tcx(&attached.ingress).then(|| Direction::Ingress.link(index)));
            wanted.extend(tcx(&attached.egress).then(|| Direction::Egress.link(index)));
            wanted.extend(attached.xdp.is_some().then(|| hooks::xdp_link(index)));
        }
        for link in self.pins.pinned_links() {
            if !wanted.contains(&link) {
                info!(link, "removing a link that is not wanted any more");
                if let Err(error) = PinDir::unpin(&self.pins.link(&link)) {
                    warn!(%error, "could not remove a link");
                }
            }
        }
        for device in network.devices.values() {
            let clsact = |how: &Option<String>| how.as_deref() == Some("clsact");
            let attached = self.devices.get(&device.index);
            if !attached.is_some_and(|a| clsact(&a.ingress)) {
                remove_filters(&device.name);
            }
        }
        for version in self.pins.other_versions() {
            match PinDir::remove_version(&version) {
                Ok(_) => info!(path = %version.display(), "removed the pins of another layout"),
                Err(error) => warn!(%error, "could not remove the pins of another layout"),
            }
        }
    }

    /// Attaches the socket programs to the cgroup, if one was given.
    pub fn attach_sockets(&mut self) {
        let Some(cgroup) = self.options.cgroup.clone() else {
            return;
        };
        for hook in SOCKET_HOOKS {
            match hooks::attach_socket(&mut self.ebpf, &self.pins, hook, &cgroup) {
                Ok(()) => self.sockets.push(hook.link),
                Err(error) => {
                    warn!(hook = hook.link, cgroup = %cgroup.display(), %error, "sockets are not translated here");
                    self.problems
                        .push(format!("{} on {}: {error}", hook.link, cgroup.display()));
                }
            }
        }
        info!(cgroup = %cgroup.display(), hooks = self.sockets.len(), "sockets are translated");
    }

    /// Pins a program that others run by hand.
    ///
    /// # Errors
    /// If it is not there or cannot be pinned.
    pub fn pin_program(&mut self, name: &'static str) -> Result<(), AttachError> {
        let path = self.pins.program(name);
        PinDir::unpin(&path)?;
        let program = load::xdp(&mut self.ebpf, name)?;
        sys::pin(&program.fd()?.as_fd(), &path).map_err(|source| {
            AttachError::Pin(PinError::Io {
                what: "pin",
                path,
                source,
            })
        })
    }

    /// The devices with our XDP program: those from which packets may be sent at once.
    pub fn fast_devices(&self) -> BTreeSet<u32> {
        self.devices
            .values()
            .filter(|a| a.xdp.is_some())
            .map(|a| a.ifindex)
            .collect()
    }

    /// What is attached where.
    pub fn attached(&self) -> Vec<Attached> {
        self.devices.values().cloned().collect()
    }

    /// The socket programs that are attached.
    pub fn sockets(&self) -> &[&'static str] {
        &self.sockets
    }

    /// The cgroup they are attached to.
    pub fn cgroup(&self) -> Option<&PathBuf> {
        self.options.cgroup.as_ref()
    }

    /// What could not be attached.
    pub fn problems(&self) -> Vec<String> {
        let of_device = |a: &Attached| {
            a.problems
                .iter()
                .map(|p| format!("{}: {p}", a.device))
                .collect::<Vec<_>>()
        };
        self.problems
            .iter()
            .cloned()
            .chain(self.devices.values().flat_map(of_device))
            .collect()
    }

    fn wants(&self, device: &Device) -> bool {
        let known = matches!(device.kind, DeviceKind::Ethernet | DeviceKind::Layer3);
        let named = |globs: &[Glob]| globs.iter().any(|g| g.matches(&device.name));
        known && (self.options.devices.is_empty() || named(&self.options.devices)) && !named(&self.options.exclude)
    }

    fn uplinks(&self, network: &Network) -> BTreeSet<u32> {
        let uplinks = &self.options.uplinks;
        let named = |d: &&Device| uplinks.iter().any(|g| g.matches(&d.name));
        if uplinks.is_empty() {
            network.default_route_devices()
        } else {
            network.devices.values().filter(named).map(|d| d.index).collect()
        }
    }

    fn attach_device(&mut self, device: &Device, uplink: bool) -> Attached {
        let mut attached = Attached {
            device: device.name.clone(),
            ifindex: device.index,
            uplink,
            ..Attached::default()
        };
        // Egress first: a connection must not be made before its replies can be translated.
        for direction in [Direction::Egress, Direction::Ingress] {
            match self.attach_tc(device, direction) {
                Ok(how) if direction == Direction::Ingress => attached.ingress = Some(how.into()),
                Ok(how) => attached.egress = Some(how.into()),
                Err(error) => attached.problems.push(format!("TC {}: {error}", direction.name())),
            }
        }
        let wanted = match self.options.xdp {
            XdpMode::Auto => !device.veth,
            XdpMode::Native | XdpMode::Generic => true,
            XdpMode::Off => false,
        };
        if uplink && device.kind == DeviceKind::Ethernet && wanted {
            match hooks::attach_xdp(&mut self.ebpf, &self.pins, device, self.options.xdp) {
                Ok(how) => attached.xdp = Some(how.into()),
                Err(error) => {
                    attached
                        .problems
                        .push(format!("XDP: {error}; packets take the slower way through TC"));
                }
            }
        }
        attached
    }

    fn attach_tc(&mut self, device: &Device, direction: Direction) -> Result<&'static str, AttachError> {
        if self.tcx != Some(false) {
            match hooks::attach_tcx(&mut self.ebpf, &self.pins, device, direction) {
                Ok(()) => {
                    self.tcx = Some(true);
                    return Ok("tcx");
                }
                Err(error) if self.tcx.is_none() && error.is_unsupported() => {
                    info!(
                        kernel = load::kernel_release(),
                        "this kernel has no TCX (6.6 has): using clsact"
                    );
                    self.tcx = Some(false);
                }
                Err(error) => return Err(error),
            }
        }
        hooks::attach_clsact(&mut self.ebpf, device, direction).map(|()| "clsact")
    }

    fn unpin_device(&self, index: u32) {
        for link in [
            Direction::Ingress.link(index),
            Direction::Egress.link(index),
            hooks::xdp_link(index),
        ] {
            if let Err(error) = PinDir::unpin(&self.pins.link(&link)) {
                warn!(%error, "could not remove the link of a device that is gone");
            }
        }
    }
}

fn known_problems(attached: Option<&Attached>) -> Vec<String> {
    attached.map(|a| a.problems.clone()).unwrap_or_default()
}

impl From<LoadError> for AttachError {
    fn from(error: LoadError) -> Self {
        Self::Program(error.to_string())
    }
}
