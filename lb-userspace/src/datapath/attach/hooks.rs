//! Attaching one program to one hook.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::pin::PinError as AyaPinError;
use aya::programs::links::{CgroupAttachMode, FdLink, Link, LinkError};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{LinkOrder, ProgramError, TcAttachType, XdpMode as AyaXdpMode, tc};

use super::XdpMode;
use crate::datapath::load;
use crate::datapath::pin::{PinDir, PinError};
use crate::netlink::network::{Device, DeviceKind, XdpState};
use crate::sys;

/// Priority and handle by which our clsact filters are known.
const FILTER_PRIORITY: u16 = 0x4657;
const FILTER_HANDLE: TcHandle = TcHandle::new(0, 0x4657);

/// `enum bpf_link_type` in `include/uapi/linux/bpf.h`.
const LINK_CGROUP: u32 = 3;
const LINK_XDP: u32 = 6;
const LINK_TCX: u32 = 11;

/// A program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The program is not loaded.
    #[error("{0}")]
    Program(String),
    /// aya refused.
    #[error(transparent)]
    Attach(#[from] ProgramError),
    /// aya refused, about clsact.
    #[error(transparent)]
    Tc(#[from] TcError),
    /// The kernel made something that cannot be pinned.
    #[error("this kernel has no BPF link for it: {0}")]
    Link(#[from] LinkError),
    /// It was attached and could not be pinned.
    #[error("cannot pin the link: {0}")]
    PinLink(#[from] AyaPinError),
    /// A pin could not be removed.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A path could not be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// What.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl AttachError {
    /// Whether the kernel does not know this way of attaching.
    pub fn is_unsupported(&self) -> bool {
        let code = match self {
            Self::Attach(ProgramError::SyscallError(e)) => e.io_error.raw_os_error(),
            _ => None,
        };
        matches!(code, Some(libc::EINVAL | libc::EOPNOTSUPP))
    }
}

/// Which way packets pass a TC hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Into the node.
    Ingress,
    /// Out of the node.
    Egress,
}

impl Direction {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The name of the link's pin.
    pub fn link(self, ifindex: u32) -> String {
        format!("{}_{ifindex}", self.name())
    }

    fn program(self, kind: DeviceKind) -> &'static str {
        match (self, kind) {
            (Self::Ingress, DeviceKind::Layer3) => "fairway_ingress_l3",
            (Self::Ingress, _) => "fairway_ingress",
            (Self::Egress, DeviceKind::Layer3) => "fairway_egress_l3",
            (Self::Egress, _) => "fairway_egress",
        }
    }

    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    /// Before all others where packets come in, so that they see the pod's address; after all others where packets
    /// leave, for the same reason.
    fn order(self) -> LinkOrder {
        match self {
            Self::Ingress => LinkOrder::first(),
            Self::Egress => LinkOrder::last(),
        }
    }
}

/// The name of the pin of a device's XDP link.
pub fn xdp_link(ifindex: u32) -> String {
    format!("xdp_{ifindex}")
}

/// Replaces the program of a pinned link, if there is one that is still attached to its target.
///
/// A link whose target is gone, or was another, is unpinned.
fn take_over(path: &Path, kind: u32, target: (u32, Option<u32>), program: BorrowedFd<'_>) -> Result<bool, AttachError> {
    let link = match sys::open_pinned(path) {
        Ok(link) => link,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => {
            return Err(AttachError::Open {
                path: path.to_owned(),
                source,
            });
        }
    };
    let info = sys::link_info(&link).unwrap_or_default();
    let same = info.kind == kind && info.target == target.0 && target.1.is_none_or(|detail| info.detail == detail);
    if same && sys::replace_program(&link, program).is_ok() {
        return Ok(true);
    }
    PinDir::unpin(path)?;
    Ok(false)
}

/// Attaches by a TCX link.
pub fn attach_tcx(ebpf: &mut Ebpf, pins: &PinDir, device: &Device, direction: Direction) -> Result<(), AttachError> {
    let program = load::classifier(ebpf, direction.program(device.kind))?;
    let path = pins.link(&direction.link(device.index));
    if take_over(&path, LINK_TCX, (device.index, None), program.fd()?.as_fd())? {
        return Ok(());
    }
    let options = TcAttachOptions::TcxOrder(direction.order());
    let id = program.attach_with_options(&device.name, direction.attach_type(), options)?;
    FdLink::try_from(program.take_link(id)?)?.pin(&path)?;
    Ok(())
}

/// Attaches by a filter of the clsact queueing discipline, in place of our own earlier one.
pub fn attach_clsact(ebpf: &mut Ebpf, device: &Device, direction: Direction) -> Result<(), AttachError> {
    let program = load::classifier(ebpf, direction.program(device.kind))?;
    // It may be there already; if it is not and cannot be made, attaching says so.
    let _there = tc::qdisc_add_clsact(&device.name);
    let options = NlOptions {
        priority: FILTER_PRIORITY,
        handle: FILTER_HANDLE,
        classid: None,
    };
    let attach = direction.attach_type();
    let id = match program.attach_with_options(&device.name, attach, TcAttachOptions::Netlink(options)) {
        Ok(id) => id,
        Err(_) => {
            let old = SchedClassifierLink::attached(&device.name, attach, FILTER_PRIORITY, FILTER_HANDLE, None)
                .map_err(|source| AttachError::Open {
                    path: device.name.clone().into(),
                    source,
                })?;
            program.attach_to_link(old)?
        }
    };
    // The filter stays without us; dropping the link would remove it.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Removes our clsact filters from a device; those of others stay, and so does the queueing discipline. Returns
/// how many there were.
pub fn remove_filters(device: &str) -> usize {
    let remove = |attach| {
        SchedClassifierLink::attached(device, attach, FILTER_PRIORITY, FILTER_HANDLE, None)
            .ok()
            .and_then(|link| link.detach().ok())
    };
    [TcAttachType::Ingress, TcAttachType::Egress]
        .into_iter()
        .filter_map(remove)
        .count()
}

/// Attaches XDP; returns the mode that it runs in.
pub fn attach_xdp(ebpf: &mut Ebpf, pins: &PinDir, device: &Device, mode: XdpMode) -> Result<&'static str, AttachError> {
    let program = load::xdp(ebpf, "fairway_xdp")?;
    let path = pins.link(&xdp_link(device.index));
    let running = match device.xdp {
        XdpState::Generic => "generic",
        XdpState::Native | XdpState::None => "native",
    };
    let acceptable = match mode {
        XdpMode::Auto => true,
        XdpMode::Native => device.xdp == XdpState::Native,
        XdpMode::Generic => device.xdp == XdpState::Generic,
        XdpMode::Off => false,
    };
    if !acceptable {
        if let Ok(link) = sys::open_pinned(&path) {
            // It fails if the device is gone, and then nothing is attached.
            let _gone = sys::detach_link(&link);
        }
        PinDir::unpin(&path)?;
    } else if take_over(&path, LINK_XDP, (device.index, None), program.fd()?.as_fd())? {
        return Ok(running);
    }
    let modes: &[_] = match mode {
        XdpMode::Auto => &[(AyaXdpMode::Driver, "native"), (AyaXdpMode::Skb, "generic")],
        XdpMode::Native => &[(AyaXdpMode::Driver, "native")],
        XdpMode::Generic => &[(AyaXdpMode::Skb, "generic")],
        XdpMode::Off => &[],
    };
    let mut refused = None;
    for (mode, name) in modes {
        match program.attach_to_if_index(device.index, *mode) {
            Ok(id) => {
                FdLink::try_from(program.take_link(id)?)?.pin(&path)?;
                if let Some(error) = refused {
                    tracing::info!(device = device.name, %error, "no native XDP: using generic");
                }
                return Ok(name);
            }
            Err(error) => refused = Some(cause(&error)),
        }
    }
    Err(AttachError::Program(
        refused.unwrap_or_else(|| "switched off".to_owned()),
    ))
}

/// The innermost error's text: what the kernel said.
fn cause(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// A hook of the socket layer.
#[derive(Clone, Copy, Debug)]
pub struct SocketHook {
    /// Name of the program.
    pub program: &'static str,
    /// Name of the link's pin, and what operators see.
    pub link: &'static str,
}

/// All hooks of the socket layer. Those that translate back come first.
pub const SOCKET_HOOKS: [SocketHook; 8] = [
    SocketHook {
        program: "fairway_getpeername4",
        link: "getpeername4",
    },
    SocketHook {
        program: "fairway_getpeername6",
        link: "getpeername6",
    },
    SocketHook {
        program: "fairway_recvmsg4",
        link: "recvmsg4",
    },
    SocketHook {
        program: "fairway_recvmsg6",
        link: "recvmsg6",
    },
    SocketHook {
        program: "fairway_sendmsg4",
        link: "sendmsg4",
    },
    SocketHook {
        program: "fairway_sendmsg6",
        link: "sendmsg6",
    },
    SocketHook {
        program: "fairway_connect4",
        link: "connect4",
    },
    SocketHook {
        program: "fairway_connect6",
        link: "connect6",
    },
];

/// Attaches a socket program to a cgroup, beside those of others.
pub fn attach_socket(ebpf: &mut Ebpf, pins: &PinDir, hook: SocketHook, cgroup: &Path) -> Result<(), AttachError> {
    let open = |source| AttachError::Open {
        path: cgroup.to_owned(),
        source,
    };
    let directory = File::open(cgroup).map_err(open)?;
    // The id of a cgroup is the number of its inode.
    let id = directory.metadata().map_err(open)?.ino().to_le_bytes();
    let half = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap_or_default());
    let target = (half(&id[..4]), Some(half(&id[4..])));
    let program = load::sock_addr(ebpf, hook.program)?;
    let path = pins.link(hook.link);
    if take_over(&path, LINK_CGROUP, target, program.fd()?.as_fd())? {
        return Ok(());
    }
    // Links of cgroups take no flags and always allow others beside them (kernel/bpf/cgroup.c, 6.18).
    let link = program.attach(&directory, CgroupAttachMode::Single)?;
    FdLink::try_from(program.take_link(link)?)?.pin(&path)?;
    Ok(())
}
