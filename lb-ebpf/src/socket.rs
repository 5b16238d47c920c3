//! Sockets: the destination that a process asks for, and the peer that it is told.
//!
//! An IPv6 socket may talk IPv4 (`::ffff:a.b.c.d`, as most dual-stack runtimes do): such addresses are looked up
//! as the IPv4 addresses they are.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use lb_common::abi::{Addr4, Addr6, Address, DropReason, Hook, Outcome, Port, V4, V6, protocol};
use lb_common::datapath::socket::{Answer, Request, restore, translate};
use lb_common::env::Env;

use crate::env::Kernel;

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ETIMEDOUT: i32 = 110;
const ECONNREFUSED: i32 = 111;

/// What an IPv4 address in an IPv6 socket begins with, as words in memory order.
const MAPPED: [u32; 3] = [0, 0, 0xffff_u32.to_be()];

/// What is called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    /// connect(2).
    Connect,
    /// sendto(2) or sendmsg(2), with a destination.
    Send,
    /// recvfrom(2), recvmsg(2), getpeername(2).
    Tell,
}

/// The address that a socket asks for or is told, of the family that its packets have.
enum Asked {
    V4(Addr4),
    V6(Addr6),
}

/// A socket address, as the kernel shows it to us.
struct SocketAddress {
    ctx: *mut bpf_sock_addr,
    is_v6: bool,
    call: Call,
}

// SAFETY of all blocks in this impl: the kernel gives a valid context for the whole run; its fields are plain
// numbers, those written here may be written at the hooks that these programs are for, and the helpers take
// nothing else.
impl SocketAddress {
    #[inline(always)]
    fn asked(&self) -> Asked {
        // SAFETY: see above.
        unsafe {
            if !self.is_v6 {
                return Asked::V4(Addr4::from_words([(*self.ctx).user_ip4, 0, 0, 0]));
            }
            let [a, b, c, d] = (*self.ctx).user_ip6;
            if [a, b, c] == MAPPED {
                Asked::V4(Addr4::from_words([d, 0, 0, 0]))
            } else {
                Asked::V6(Addr6::from_words([a, b, c, d]))
            }
        }
    }

    /// The IPv4 address that the socket is bound to, or the message is to be sent from; zero if none.
    #[inline(always)]
    fn source_v4(&self) -> Addr4 {
        // SAFETY: see above; where `sk` is read it is a socket, whose fields are plain numbers.
        let word = unsafe {
            match self.call {
                Call::Connect => (&raw const (*(*self.ctx).__bindgen_anon_1.sk).src_ip4).read_volatile(),
                Call::Send if !self.is_v6 => (*self.ctx).msg_src_ip4,
                Call::Send | Call::Tell => 0,
            }
        };
        Addr4::from_words([word, 0, 0, 0])
    }

    /// The IPv6 address that the socket is bound to, or the message is to be sent from; zero if none.
    #[inline(always)]
    fn source_v6(&self) -> Addr6 {
        // SAFETY: as in `source_v4`. One word at a time: wider loads are not allowed here.
        let words = unsafe {
            match self.call {
                Call::Connect => {
                    let sk = (*self.ctx).__bindgen_anon_1.sk;
                    [
                        (&raw const (*sk).src_ip6[0]).read_volatile(),
                        (&raw const (*sk).src_ip6[1]).read_volatile(),
                        (&raw const (*sk).src_ip6[2]).read_volatile(),
                        (&raw const (*sk).src_ip6[3]).read_volatile(),
                    ]
                }
                Call::Send => (*self.ctx).msg_src_ip6,
                Call::Tell => [0; 4],
            }
        };
        Addr6::from_words(words)
    }

    #[inline(always)]
    fn request<A>(&self, addr: A, source: A) -> Request<A> {
        // SAFETY: see above.
        unsafe {
            Request {
                cookie: bpf_get_socket_cookie(self.ctx.cast()),
                netns_cookie: bpf_get_netns_cookie(self.ctx.cast()),
                protocol: (*self.ctx).protocol as u8,
                addr,
                port: Port::from_raw((*self.ctx).user_port as u16),
                source,
            }
        }
    }

    #[inline(always)]
    fn set_v4(&self, addr: Addr4, port: Port) {
        let [word, ..] = addr.words();
        // SAFETY: see above.
        unsafe {
            if self.is_v6 {
                (*self.ctx).user_ip6[3] = word;
            } else {
                (*self.ctx).user_ip4 = word;
            }
            (*self.ctx).user_port = u32::from(port.raw());
        }
    }

    #[inline(always)]
    fn set_v6(&self, addr: Addr6, port: Port) {
        let [a, b, c, d] = addr.words();
        // SAFETY: see above. One word at a time: wider stores are not allowed here.
        unsafe {
            (&raw mut (*self.ctx).user_ip6[0]).write_volatile(a);
            (&raw mut (*self.ctx).user_ip6[1]).write_volatile(b);
            (&raw mut (*self.ctx).user_ip6[2]).write_volatile(c);
            (&raw mut (*self.ctx).user_ip6[3]).write_volatile(d);
            (*self.ctx).user_port = u32::from(port.raw());
        }
    }

    /// A socket asks for a destination.
    #[inline(always)]
    fn ask(&self) -> i32 {
        match self.asked() {
            Asked::V4(addr) => match translate::<V4, _>(&Kernel, &self.request(addr, self.source_v4())) {
                Answer::Leave => return ALLOW,
                Answer::Refuse => return refuse(),
                Answer::Drop(reason) => return self.lose(reason),
                Answer::Use(addr, port) => self.set_v4(addr, port),
            },
            Asked::V6(addr) => match translate::<V6, _>(&Kernel, &self.request(addr, self.source_v6())) {
                Answer::Leave => return ALLOW,
                Answer::Refuse => return refuse(),
                Answer::Drop(reason) => return self.lose(reason),
                Answer::Use(addr, port) => self.set_v6(addr, port),
            },
        }
        Kernel.count(Hook::Socket, Outcome::Translated);
        ALLOW
    }

    /// Fails as a process fails whose packets are dropped: TCP has waited for nothing, and is told so at once; to send a
    /// datagram is not permitted (EPERM, which is also what a drop by netfilter gives).
    #[inline(always)]
    fn lose(&self, reason: DropReason) -> i32 {
        Kernel.count(Hook::Socket, Outcome::Dropped(reason));
        // SAFETY: see above; the helper takes a number.
        unsafe {
            if (*self.ctx).protocol == u32::from(protocol::TCP) {
                bpf_set_retval(-ETIMEDOUT);
            }
        }
        REFUSE
    }

    /// A socket is told its peer, or the sender of a datagram.
    #[inline(always)]
    fn tell(&self) -> i32 {
        match self.asked() {
            Asked::V4(addr) => {
                if let Some((addr, port)) = restore::<V4, _>(&Kernel, &self.request(addr, Addr4::default())) {
                    self.set_v4(addr, port);
                }
            }
            Asked::V6(addr) => {
                if let Some((addr, port)) = restore::<V6, _>(&Kernel, &self.request(addr, Addr6::default())) {
                    self.set_v6(addr, port);
                }
            }
        }
        ALLOW
    }
}

#[inline(always)]
fn refuse() -> i32 {
    Kernel.count(Hook::Socket, Outcome::Rejected);
    // SAFETY: the helper takes a number. (Without it the process would be told EPERM.)
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    REFUSE
}

macro_rules! programs {
    ($($(#[$doc:meta])* $name:ident $hook:ident $is_v6:literal $call:ident $method:ident;)+) => {
        $($(#[$doc])*
        #[cgroup_sock_addr($hook)]
        fn $name(ctx: SockAddrContext) -> i32 {
            SocketAddress { ctx: ctx.sock_addr, is_v6: $is_v6, call: Call::$call }.$method()
        })+
    };
}

programs! {
    /// connect(2) on an IPv4 socket.
    fairway_connect4 connect4 false Connect ask;
    /// connect(2) on an IPv6 socket.
    fairway_connect6 connect6 true Connect ask;
    /// sendto(2) and sendmsg(2) on an unconnected IPv4 datagram socket.
    fairway_sendmsg4 sendmsg4 false Send ask;
    /// sendto(2) and sendmsg(2) on an unconnected IPv6 datagram socket.
    fairway_sendmsg6 sendmsg6 true Send ask;
    /// recvfrom(2) and recvmsg(2) on an IPv4 datagram socket.
    fairway_recvmsg4 recvmsg4 false Tell tell;
    /// recvfrom(2) and recvmsg(2) on an IPv6 datagram socket.
    fairway_recvmsg6 recvmsg6 true Tell tell;
    /// getpeername(2) on an IPv4 socket.
    fairway_getpeername4 getpeername4 false Tell tell;
    /// getpeername(2) on an IPv6 socket.
    fairway_getpeername6 getpeername6 true Tell tell;
}
