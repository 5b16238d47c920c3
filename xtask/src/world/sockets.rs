//! Sockets in the namespaces of a world, held by this process.
//!
//! A socket belongs to the namespace of the thread and to the cgroup of the process that made it, and stays there
//! whoever uses it. So a thread enters a namespace to make sockets; and for those that have to be in the node's
//! cgroup, where its hooks see them, a small process lives there, makes them, and this one takes them over.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use super::plan::Protocol;

/// Which sockets to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// The namespace.
    pub netns: PathBuf,
    pub v6: bool,
    pub kind: Kind,
    pub count: usize,
}

/// What a socket is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub(super) enum Kind {
    /// A client, or a server, of this protocol.
    Of(Protocol),
    /// Sees every packet of this protocol that is delivered in the namespace.
    Every(Protocol),
}

impl Order {
    /// Makes them in this process's cgroup.
    pub fn make(&self) -> anyhow::Result<Vec<Socket>> {
        let netns = File::open(&self.netns).with_context(|| format!("open {}", self.netns.display()))?;
        let (v6, kind, count) = (self.v6, self.kind, self.count);
        // A thread of its own, since it does not come back from the namespace.
        let made = std::thread::spawn(move || {
            nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).context("enter a namespace")?;
            (0..count).map(|_| make(v6, kind)).collect()
        });
        made.join()
            .map_err(|_| anyhow::anyhow!("the thread that makes sockets panicked"))?
    }
}

fn make(v6: bool, kind: Kind) -> anyhow::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let (kind, protocol) = match kind {
        Kind::Of(Protocol::Tcp) => (Type::STREAM, Protocol::Tcp),
        Kind::Of(Protocol::Udp) => (Type::DGRAM, Protocol::Udp),
        Kind::Of(Protocol::Sctp) => (Type::RAW, Protocol::Sctp),
        Kind::Every(protocol) => (Type::RAW, protocol),
    };
    let socket = Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol.number().into()));
    let socket = socket.with_context(|| format!("make a {protocol:?} socket"))?;
    if v6 && kind != Type::RAW {
        socket.set_only_v6(true).context("keep a socket to IPv6")?;
    }
    Ok(socket)
}

/// Lets a socket have an address that its namespace does not have.
pub(super) fn any_address(socket: &Socket, v6: bool) -> std::io::Result<()> {
    if v6 {
        socket.set_freebind_v6(true)?;
        socket.set_ip_transparent_v6(true)
    } else {
        socket.set_freebind_v4(true)?;
        socket.set_ip_transparent_v4(true)
    }
}

/// Has ICMP errors queued at a client's socket, beside what they do to it.
pub(super) fn tell_errors(socket: &Socket, v6: bool) -> std::io::Result<()> {
    if v6 {
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
    }
    Ok(())
}

use nix::{setsockopt_impl, sockopt_impl};
sockopt_impl!(
    /// The queue whose sequence number is set while a socket is under repair (include/uapi/linux/tcp.h).
    RepairQueue,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_REPAIR_QUEUE,
    u32
);
sockopt_impl!(
    /// The next sequence number of that queue.
    QueueSequence,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_QUEUE_SEQ,
    u32
);

/// Chooses the sequence number that a TCP socket's SYN will have.
///
/// `connect` keeps one that is set already: `tcp_v4_connect` in net/ipv4/tcp_ipv4.c (Linux 6.18) and its likes.
pub(super) fn first_sequence(socket: &Socket, number: u32) -> std::io::Result<()> {
    const SEND_QUEUE: u32 = 2;
    setsockopt(&socket, sockopt::TcpRepair, &1)?;
    setsockopt(&socket, RepairQueue, &SEND_QUEUE)?;
    setsockopt(&socket, QueueSequence, &number)?;
    setsockopt(&socket, sockopt::TcpRepair, &0)?;
    Ok(())
}

/// A closed connection leaves nothing behind.
pub(super) fn end_at_once(socket: &Socket) -> std::io::Result<()> {
    socket.set_linger(Some(Duration::ZERO))
}

/// An address for a raw socket, which has no port.
pub(super) fn without_port(addr: IpAddr) -> SockAddr {
    SocketAddr::new(addr, 0).into()
}

/// The process in the node's cgroup that makes sockets.
#[derive(Debug)]
pub(super) struct Maker {
    child: Child,
    process: OwnedFd,
    orders: ChildStdin,
    made: BufReader<ChildStdout>,
}

impl Maker {
    /// Starts it; `command` runs in the cgroup.
    pub fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the process that makes sockets")?;
        let (Some(orders), Some(made)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the process that makes sockets has no pipes")
        };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let process = pidfd_open(pid.context("a process has an id")?, PidfdFlags::empty());
        Ok(Self {
            child,
            process: process.context("open the process that makes sockets")?,
            orders,
            made: BufReader::new(made),
        })
    }

    /// Has sockets made.
    pub fn make(&mut self, order: &Order) -> anyhow::Result<Vec<Socket>> {
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        self.orders.write_all(line.as_bytes()).context("order sockets")?;
        let mut answer = String::new();
        self.made.read_line(&mut answer).context("wait for sockets")?;
        let made: Result<Vec<i32>, String> =
            serde_json::from_str(&answer).context("understand the process that makes sockets; has it ended?")?;
        let numbers = made.map_err(anyhow::Error::msg)?;
        let taken = numbers.into_iter().map(|number| {
            let fd = pidfd_getfd(self.process.as_fd(), number, PidfdGetfdFlags::empty());
            Ok(Socket::from(fd.context("take a socket over")?))
        });
        let taken: anyhow::Result<Vec<Socket>> = taken.collect();
        // It lets go of its own.
        self.orders.write_all(b"\n").context("order sockets")?;
        taken
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// The hidden command: makes the sockets that each line of the input orders and keeps them until the next line.
pub fn make_sockets() -> anyhow::Result<()> {
    let mut held: Vec<Socket> = Vec::new();
    for line in std::io::stdin().lines() {
        let line = line.context("read an order")?;
        held.clear();
        if line.is_empty() {
            continue;
        }
        let order: Order = serde_json::from_str(&line).context("understand an order")?;
        let answer: Result<Vec<i32>, String> = match order.make() {
            Ok(made) => {
                held = made;
                Ok(held.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect())
            }
            Err(error) => Err(format!("{error:#}")),
        };
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

/// Allows this process as many open files as it may have at all.
pub(super) fn many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}
