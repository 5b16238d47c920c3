//! What arrives in a world, and who answers: one thread over all sockets of all its namespaces.
//!
//! In each namespace raw sockets see whatever is delivered to its stack, after all translation. They only look.
//! Servers are sockets of the kernel at the addresses that they serve, so that a namespace without one refuses
//! what arrives as any host would.

use std::collections::HashMap;
use std::io::{ErrorKind, IoSliceMut, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context as _;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn6, SockaddrStorage, recvfrom, recvmsg, setsockopt, sockopt,
};
use socket2::{SockFilter, Socket};

use super::plan::{Protocol, plain};
use super::sctp;
use super::sockets::{any_address, without_port};
use super::wire::{Arrival, REQUEST_BYTES, Request, asked_by_udp, ipv4, opened_by_tcp, ports};

/// Room for packets that nobody has looked at yet.
const RECEIVE_BYTES: usize = 8 << 20;
/// Connections that wait to be taken.
const BACKLOG: i32 = 4096;

/// What arrived, by request.
type Arrivals = Arc<Mutex<HashMap<Request, Vec<Arrival>>>>;

/// The thread, as others see it.
#[derive(Debug)]
pub(super) struct Observer {
    arrivals: Arrivals,
    orders: Sender<Order>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    Watch(u64, Watched),
    Forget(u64),
    Settle(Sender<()>),
    End,
}

/// A socket under observation.
#[derive(Debug)]
pub(super) enum Watched {
    /// Every packet of a protocol in a namespace.
    Every {
        socket: Socket,
        protocol: Protocol,
        v6: bool,
    },
    Tcp(TcpListener),
    Udp(UdpSocket),
    /// Answers on one port of the address that it is bound to.
    Sctp(Socket),
    Connection {
        stream: TcpStream,
        unread: Vec<u8>,
    },
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Every { socket, .. } | Self::Sctp(socket) => socket.as_fd(),
            Self::Tcp(socket) => socket.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
            Self::Connection { stream, .. } => stream.as_fd(),
        }
    }
}

/// Makes a raw socket one that sees every packet.
pub(super) fn every(socket: Socket, protocol: Protocol, v6: bool) -> anyhow::Result<Watched> {
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BYTES).context("enlarge a receive buffer")?;
    if v6 {
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true).context("ask for destinations")?;
    }
    if protocol == Protocol::Tcp {
        socket.attach_filter(&only_syns(v6)).context("filter SYNs")?;
    }
    Ok(Watched::Every { socket, protocol, v6 })
}

/// Makes a socket a server. IPv4 raw sockets see packets from the IP header on, IPv6 ones from the next one.
pub(super) fn serve(socket: Socket, at: SocketAddr, protocol: Protocol) -> anyhow::Result<Watched> {
    let prepare = || -> std::io::Result<()> {
        any_address(&socket, at.is_ipv6())?;
        match protocol {
            Protocol::Tcp => {
                socket.set_reuse_address(true)?;
                socket.bind(&at.into())?;
                socket.listen(BACKLOG)
            }
            Protocol::Udp => {
                setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BYTES)?;
                socket.bind(&at.into())
            }
            Protocol::Sctp => {
                setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BYTES)?;
                socket.bind(&without_port(at.ip()))?;
                socket.attach_filter(&port_is(2, at.port(), at.is_ipv6()))
            }
        }
    };
    prepare().with_context(|| format!("serve {protocol:?} at {at}"))?;
    Ok(match protocol {
        Protocol::Tcp => Watched::Tcp(socket.into()),
        Protocol::Udp => Watched::Udp(socket.into()),
        Protocol::Sctp => Watched::Sctp(socket),
    })
}

/// A filter of segments that open a connection.
fn only_syns(v6: bool) -> Vec<SockFilter> {
    let mut filter = load(0x30, 0x50, 13, v6);
    filter.push(SockFilter::new(0x54, 0, 0, 0x12)); // A &= SYN | ACK
    filter.extend(accept_if(2)); // SYN alone
    filter
}

/// A filter of packets whose port at this offset of their transport header is that one.
pub(super) fn port_is(offset: u32, port: u16, v6: bool) -> Vec<SockFilter> {
    let mut filter = load(0x28, 0x48, offset, v6);
    filter.extend(accept_if(u32::from(port)));
    filter
}

/// `A = transport[offset]`, with the instruction for an absolute or for an indexed load.
fn load(absolute: u16, indexed: u16, offset: u32, v6: bool) -> Vec<SockFilter> {
    if v6 {
        vec![SockFilter::new(absolute, 0, 0, offset)]
    } else {
        // X = the length of the IPv4 header
        vec![SockFilter::new(0xb1, 0, 0, 0), SockFilter::new(indexed, 0, 0, offset)]
    }
}

fn accept_if(value: u32) -> [SockFilter; 3] {
    [
        SockFilter::new(0x15, 0, 1, value),
        SockFilter::new(0x06, 0, 0, u32::MAX),
        SockFilter::new(0x06, 0, 0, 0),
    ]
}

impl Observer {
    pub fn start() -> anyhow::Result<Self> {
        let wake =
            Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("make an event")?);
        let (orders, taken) = channel();
        let arrivals = Arrivals::default();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll")?;
        epoll
            .add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))
            .context("watch for orders")?;
        let thread = Thread {
            epoll,
            wake: Arc::clone(&wake),
            orders: taken,
            arrivals: Arc::clone(&arrivals),
            watched: HashMap::new(),
            next_connection: FIRST_CONNECTION,
        };
        Ok(Self {
            arrivals,
            orders,
            wake,
            thread: Some(std::thread::spawn(move || thread.run())),
        })
    }

    /// Observes a socket from now on.
    pub fn watch(&self, token: u64, watched: Watched) -> anyhow::Result<()> {
        self.order(Order::Watch(token, watched))
    }

    /// Closes it. Connections that a server has taken stay.
    pub fn forget(&self, token: u64) -> anyhow::Result<()> {
        self.order(Order::Forget(token))
    }

    /// Waits until everything that has been delivered by now has been seen.
    pub fn settle(&self) -> anyhow::Result<()> {
        let (done, wait) = channel();
        self.order(Order::Settle(done))?;
        wait.recv().context("the observer has ended")
    }

    fn order(&self, order: Order) -> anyhow::Result<()> {
        self.orders.send(order).ok().context("the observer has ended")?;
        self.wake.write(1).context("wake the observer")?;
        Ok(())
    }

    /// Where a request has arrived.
    pub fn arrivals(&self, request: Request) -> Vec<Arrival> {
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.get(&request).cloned().unwrap_or_default()
    }

    /// Forgets what has arrived.
    pub fn clear(&self) {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        _ = self.order(Order::End);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

const WAKE: u64 = u64::MAX;
/// Connections have numbers from here on, other sockets those that they were given.
const FIRST_CONNECTION: u64 = 1 << 32;

struct Thread {
    epoll: Epoll,
    wake: Arc<EventFd>,
    orders: Receiver<Order>,
    arrivals: Arrivals,
    watched: HashMap<u64, Watched>,
    next_connection: u64,
}

impl Thread {
    fn run(mut self) {
        let mut events = vec![EpollEvent::empty(); 256];
        loop {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(ready) => ready,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return,
            };
            let tokens: Vec<u64> = events[..ready].iter().map(EpollEvent::data).collect();
            // Orders wait until nothing else is there to be seen: that is what settling means.
            if tokens == [WAKE] {
                _ = self.wake.read();
                while let Ok(order) = self.orders.try_recv() {
                    match order {
                        Order::Watch(token, watched) => self.add(token, watched),
                        Order::Forget(token) => _ = self.watched.remove(&token),
                        Order::Settle(done) => _ = done.send(()),
                        Order::End => return,
                    }
                }
            }
            for token in tokens {
                self.look(token);
            }
        }
    }

    fn add(&mut self, token: u64, watched: Watched) {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
        if self.epoll.add(&watched, event).is_ok() {
            self.watched.insert(token, watched);
        }
    }

    fn look(&mut self, token: u64) {
        let Some(watched) = self.watched.get_mut(&token) else {
            return;
        };
        let mut arrived = Vec::new();
        let mut taken = Vec::new();
        let open = match watched {
            Watched::Every { socket, protocol, v6 } => every_packet(socket, *protocol, *v6, &mut arrived),
            Watched::Tcp(listener) => {
                while let Ok((stream, _)) = listener.accept() {
                    taken.push(stream);
                }
                true
            }
            Watched::Udp(socket) => {
                answer_datagrams(socket);
                true
            }
            Watched::Sctp(socket) => {
                answer_sctp(socket);
                true
            }
            Watched::Connection { stream, unread } => {
                answer_stream(stream, unread, &mut arrived).is_ok_and(|open| open)
            }
        };
        if !open {
            self.watched.remove(&token);
        }
        for stream in taken {
            if stream.set_nonblocking(true).is_ok() {
                let unread = Vec::new();
                self.add(self.next_connection, Watched::Connection { stream, unread });
                self.next_connection += 1;
            }
        }
        if !arrived.is_empty() {
            let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            for (request, arrival) in arrived {
                let seen = arrivals.entry(request).or_default();
                if !seen.contains(&arrival) {
                    seen.push(arrival);
                }
            }
        }
    }
}

fn every_packet(socket: &Socket, protocol: Protocol, v6: bool, arrived: &mut Vec<(Request, Arrival)>) -> bool {
    let mut buffer = [0; 2048];
    loop {
        let received = if v6 {
            receive_v6(socket, &mut buffer)
        } else {
            let mut socket = socket;
            match socket.read(&mut buffer) {
                Ok(length) => ipv4(&buffer[..length]).map(Some),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                // An ICMP error that concerns a packet of this namespace: not about this socket's doing.
                Err(_) => continue,
            }
        };
        let Some(received) = received else { return true };
        if let Some((source, destination, transport)) = received
            && let Some(found) = arrival(protocol, source, destination, transport)
        {
            arrived.push(found);
        }
    }
}

/// The next packet: its source, its destination, and its bytes from the transport header on. Nothing if there is
/// none, an inner nothing if it has no destination.
fn receive_v6<'a>(socket: &Socket, buffer: &'a mut [u8]) -> Option<Option<(IpAddr, IpAddr, &'a [u8])>> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let (length, source, destination) = loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty()) {
            Ok(message) => {
                let info = message.cmsgs().ok().and_then(|mut cmsgs| {
                    cmsgs.find_map(|cmsg| match cmsg {
                        ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
                        _ => None,
                    })
                });
                break (message.bytes, message.address.map(|addr| IpAddr::from(addr.ip())), info);
            }
            Err(nix::errno::Errno::EAGAIN) => return None,
            Err(_) => {}
        }
    };
    let bytes = &buffer[..length];
    Some(
        source
            .zip(destination)
            .map(|(source, destination)| (source, destination, bytes)),
    )
}

fn arrival(protocol: Protocol, source: IpAddr, destination: IpAddr, transport: &[u8]) -> Option<(Request, Arrival)> {
    let (source_port, destination_port) = ports(transport)?;
    let request = match protocol {
        Protocol::Tcp => opened_by_tcp(transport)?,
        Protocol::Udp => asked_by_udp(transport)?,
        Protocol::Sctp => sctp::Packet::parse(transport)?.request()?,
    };
    let arrival = Arrival {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
        whole: protocol != Protocol::Sctp || sctp::is_whole(transport),
    };
    Some((request, arrival))
}

fn answer_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                if let Some(request) = Request::from_question(&buffer[..length]) {
                    _ = socket.send_to(&request.answer(), from);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => {}
        }
    }
}

fn answer_sctp(socket: &Socket) {
    let mut buffer = [0; 2048];
    loop {
        match recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, from)) => {
                let bytes = &buffer[..length];
                let received = match from.as_ref().and_then(address) {
                    Some(from @ IpAddr::V4(_)) => ipv4(bytes).map(|(_, _, transport)| (from, transport)),
                    Some(from) => Some((from, bytes)),
                    None => None,
                };
                if let Some((from, transport)) = received
                    && sctp::is_whole(transport)
                    && let Some(answer) = sctp::Packet::parse(transport).and_then(|packet| packet.answer())
                {
                    _ = socket.send_to(&answer.bytes(), &without_port(from));
                }
            }
            Err(nix::errno::Errno::EAGAIN) => return,
            Err(_) => {}
        }
    }
}

fn address(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|addr| IpAddr::from(addr.ip()));
    v4.or_else(|| from.as_sockaddr_in6().map(|addr| IpAddr::from(addr.ip())))
}

/// Answers what has come on a connection. Whether it goes on.
fn answer_stream(
    mut stream: &TcpStream,
    unread: &mut Vec<u8>,
    arrived: &mut Vec<(Request, Arrival)>,
) -> std::io::Result<bool> {
    let mut buffer = [0; 256];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => unread.extend(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    let whole = unread.len() / REQUEST_BYTES * REQUEST_BYTES;
    for bytes in unread.drain(..whole).collect::<Vec<u8>>().chunks(REQUEST_BYTES) {
        if let Some(request) = Request::from_question(bytes) {
            let arrival = Arrival {
                source: plain(stream.peer_addr()?),
                destination: plain(stream.local_addr()?),
                whole: true,
            };
            arrived.push((request, arrival));
            stream.write_all(&request.answer())?;
        }
    }
    Ok(true)
}
