//! One flow, as its client knows it: a socket that asks, and what it hears.

use std::io::{self, ErrorKind, IoSliceMut, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use socket2::Socket;

use super::observer::port_is;
use super::plan::{From, Protocol, plain};
use super::sctp::{self, Chunk, Packet};
use super::sockets::{any_address, end_at_once, first_sequence, tell_errors, without_port};
use super::wire::{REQUEST_BYTES, Request, ipv4, ports};

/// What a client has heard since it asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Heard {
    /// The answer.
    Answer,
    /// That there is nobody: a reset, an ICMP port unreachable, or the word of its own kernel.
    Refusal,
    /// That an established connection is over.
    End,
    /// Something else.
    Other(String),
}

/// The client's side of a flow.
#[derive(Debug)]
pub(super) struct Client {
    socket: Socket,
    pub protocol: Protocol,
    /// Its own address and port.
    pub local: SocketAddr,
    /// Where it sends.
    pub target: SocketAddr,
    /// Its number, and that of its last request.
    pub asked: Request,
    /// Whether the socket itself knows where it sends.
    connected: bool,
    pub heard: Option<Heard>,
}

/// How a client is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub from: From,
    pub protocol: Protocol,
    pub local: SocketAddr,
    pub target: SocketAddr,
    pub flow: u32,
    pub connected: bool,
    /// Whether it is bound to its address, or has the kernel choose that.
    pub bound: bool,
}

impl Client {
    /// Opens a flow: what its first packet meets is heard later, but for what the kernel says at once.
    ///
    /// # Errors
    /// `AddrInUse` if somebody has that port.
    pub fn open(socket: Socket, plan: &Plan) -> io::Result<Self> {
        let v6 = plan.local.is_ipv6();
        if plan.from == From::External {
            any_address(&socket, v6)?;
        }
        tell_errors(&socket, v6)?;
        match plan.protocol {
            Protocol::Sctp => socket.bind(&without_port(plan.local.ip()))?,
            _ if plan.bound => socket.bind(&plan.local.into())?,
            _ => socket.bind(&SocketAddr::new(unspecified(v6), plan.local.port()).into())?,
        }
        let mut client = Self {
            socket,
            protocol: plan.protocol,
            local: plan.local,
            target: plan.target,
            asked: Request {
                flow: plan.flow,
                number: 0,
            },
            connected: plan.connected || plan.protocol != Protocol::Udp,
            heard: None,
        };
        let opened = client.begin();
        client.take_note(opened);
        if let Some(local) = client.socket.local_addr()?.as_socket()
            && !local.ip().is_unspecified()
            && plan.protocol != Protocol::Sctp
        {
            client.local = plain(local);
        }
        Ok(client)
    }

    fn begin(&mut self) -> io::Result<()> {
        let v6 = self.local.is_ipv6();
        match self.protocol {
            Protocol::Tcp => {
                end_at_once(&self.socket)?;
                first_sequence(&self.socket, self.asked.flow)?;
                match self.socket.connect(&self.target.into()) {
                    Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
                    other => other,
                }
            }
            Protocol::Udp => {
                if self.connected {
                    self.socket.connect(&self.target.into())?;
                }
                self.send_question()
            }
            Protocol::Sctp => {
                self.socket.attach_filter(&port_is(2, self.local.port(), v6))?;
                self.socket.connect(&without_port(self.target.ip()))?;
                self.send_packet(Chunk::Init)
            }
        }
    }

    /// Asks once more. What was said about an earlier request and not heard yet is not about this one.
    pub fn ask(&mut self) {
        self.heard = None;
        if self.protocol == Protocol::Udp {
            _ = self.socket.take_error();
            while self.next_error().is_some() {}
        }
        self.asked.number += 1;
        let sent = self.send_question();
        self.take_note(sent);
    }

    fn send_question(&mut self) -> io::Result<()> {
        let question = self.asked.question();
        match self.protocol {
            Protocol::Tcp => self.socket.write_all(&question),
            Protocol::Udp if self.connected => match self.socket.send(&question) {
                // It was refused when it connected: whoever goes on asking connects again.
                Err(error) if error.raw_os_error() == Some(libc::EDESTADDRREQ) => {
                    self.socket.connect(&self.target.into())?;
                    self.socket.send(&question).map(drop)
                }
                sent => sent.map(drop),
            },
            Protocol::Udp => self.socket.send_to(&question, &self.target.into()).map(drop),
            Protocol::Sctp => self.send_packet(Chunk::Heartbeat(self.asked)),
        }
    }

    fn send_packet(&self, chunk: Chunk) -> io::Result<()> {
        let packet = Packet {
            source: self.local.port(),
            destination: self.target.port(),
            flow: self.asked.flow,
            chunk,
        };
        self.socket.send(&packet.bytes()).map(drop)
    }

    fn take_note(&mut self, sent: io::Result<()>) {
        match sent {
            // The node's own filter (EPERM) or a device's (ENOBUFS) has dropped it: it is lost like any packet that is.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOBUFS)) => {}
            Err(error) => _ = self.heard.get_or_insert_with(|| told(&error)),
            Ok(()) => {}
        }
    }

    pub fn raw_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.socket)
    }

    /// Takes what is there to be heard.
    pub fn listen(&mut self) {
        if self.heard.is_some() {
            return;
        }
        self.heard = match self.protocol {
            Protocol::Tcp if self.asked.number == 0 => self.hear_handshake(),
            Protocol::Tcp => self.hear_stream(),
            Protocol::Udp => self.hear_datagram(),
            Protocol::Sctp => self.hear_packets(),
        };
    }

    /// An ICMP error goes to the queue even where the socket is busy and keeps it from itself.
    fn hear_handshake(&self) -> Option<Heard> {
        if let Some(icmp) = self.next_error() {
            return Some(icmp.heard());
        }
        match self.socket.take_error() {
            Ok(Some(error)) | Err(error) => Some(told(&error)),
            Ok(None) => self.socket.peer_addr().is_ok().then_some(Heard::Answer),
        }
    }

    fn hear_stream(&self) -> Option<Heard> {
        let mut answer = [0; REQUEST_BYTES];
        loop {
            match (&self.socket).read(&mut answer) {
                Ok(0) => return Some(Heard::End),
                Ok(length) if self.is_late(&answer[..length]) => {}
                Ok(length) => return self.hear_answer(&answer[..length]),
                Err(error) => return heard_by(&error),
            }
        }
    }

    fn hear_datagram(&self) -> Option<Heard> {
        let mut answer = [0; 64];
        loop {
            match nix::sys::socket::recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut answer) {
                Ok((length, from)) => {
                    let from = from.as_ref().and_then(socket_address);
                    if self.is_late(&answer[..length]) {
                        continue;
                    }
                    if from.is_some_and(|from| from != self.target) {
                        return Some(Heard::Other(format!(
                            "{} answered instead of {}",
                            plain_or_none(from),
                            self.target
                        )));
                    }
                    return self.hear_answer(&answer[..length]);
                }
                Err(Errno::EAGAIN) => return self.next_error().map(|icmp| icmp.heard()),
                Err(error) => return heard_by(&error.into()),
            }
        }
    }

    /// Whether this answers another request than the last.
    fn is_late(&self, bytes: &[u8]) -> bool {
        Request::from_answer(bytes).is_some_and(|request| request != self.asked)
    }

    fn hear_answer(&self, bytes: &[u8]) -> Option<Heard> {
        if Request::from_answer(bytes) == Some(self.asked) {
            return Some(Heard::Answer);
        }
        Some(Heard::Other(format!("an answer that is none: {bytes:02x?}")))
    }

    fn hear_packets(&mut self) -> Option<Heard> {
        let mut buffer = [0; 2048];
        loop {
            match (&self.socket).read(&mut buffer) {
                Ok(length) => {
                    let bytes = &buffer[..length];
                    let transport = if self.local.is_ipv4() { ipv4(bytes)?.2 } else { bytes };
                    let Some(packet) = Packet::parse(transport) else {
                        continue;
                    };
                    if packet.source != self.target.port() || packet.flow != self.asked.flow {
                        continue;
                    }
                    if !sctp::is_whole(transport) {
                        return Some(Heard::Other("an answer whose checksum is wrong".to_owned()));
                    }
                    match packet.chunk {
                        Chunk::InitAck => self.send_packet(Chunk::CookieEcho).ok()?,
                        Chunk::CookieAck if self.asked.number == 0 => return Some(Heard::Answer),
                        Chunk::HeartbeatAck(request) if request == self.asked => return Some(Heard::Answer),
                        Chunk::Abort => return Some(Heard::End),
                        _ => {}
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // A raw socket is told errors of all packets between these two addresses: see the queue.
                Err(_) => {}
            }
        }
        while let Some(icmp) = self.next_error() {
            if icmp.port == Some(self.local.port()) {
                return Some(icmp.heard());
            }
        }
        None
    }

    /// The next ICMP error in the socket's queue.
    fn next_error(&self) -> Option<Icmp> {
        let mut packet = [0; 512];
        let mut parts = [IoSliceMut::new(&mut packet)];
        let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
        let flags = MsgFlags::MSG_ERRQUEUE;
        let message =
            recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
        let (error, port_unreachable) = message.cmsgs().ok()?.find_map(|cmsg| match cmsg {
            ControlMessageOwned::Ipv4RecvErr(error, _) => Some((error, (3, 3))),
            ControlMessageOwned::Ipv6RecvErr(error, _) => Some((error, (1, 4))),
            _ => None,
        })?;
        let length = message.bytes;
        Some(Icmp {
            kind: (error.ee_type, error.ee_code),
            port_unreachable,
            by_icmp: matches!(error.ee_origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6),
            errno: error.ee_errno,
            port: ports(&packet[..length]).map(|(source, _)| source),
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // TCP is reset as its socket is closed.
        if self.protocol == Protocol::Sctp {
            _ = self.send_packet(Chunk::Abort);
        }
    }
}

/// An ICMP error about a client's packet.
struct Icmp {
    kind: (u8, u8),
    port_unreachable: (u8, u8),
    by_icmp: bool,
    errno: u32,
    /// The source port of that packet, where the queue keeps it from its transport header on.
    port: Option<u16>,
}

impl Icmp {
    fn heard(&self) -> Heard {
        if self.by_icmp && self.kind == self.port_unreachable {
            return Heard::Refusal;
        }
        let error = io::Error::from_raw_os_error(self.errno.cast_signed());
        if !self.by_icmp {
            return told(&error);
        }
        Heard::Other(format!("ICMP type {} code {}: {error}", self.kind.0, self.kind.1))
    }
}

/// What a socket's error says, if it says anything.
fn heard_by(error: &io::Error) -> Option<Heard> {
    (error.kind() != ErrorKind::WouldBlock).then(|| told(error))
}

fn told(error: &io::Error) -> Heard {
    match error.kind() {
        ErrorKind::ConnectionRefused => Heard::Refusal,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Heard::End,
        _ => Heard::Other(error.to_string()),
    }
}

fn unspecified(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    }
}

fn socket_address(from: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = from.as_sockaddr_in().map(|addr| SocketAddr::V4((*addr).into()));
    let addr = v4.or_else(|| from.as_sockaddr_in6().map(|addr| SocketAddr::V6((*addr).into())))?;
    Some(plain(addr))
}

fn plain_or_none(addr: Option<SocketAddr>) -> String {
    addr.map_or_else(|| "nobody".to_owned(), |addr| addr.to_string())
}
