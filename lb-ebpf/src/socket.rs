//! Sockets: the destination that a process asks for, and the peer that it is told.
//!
//! An IPv6 socket may talk IPv4 (`::ffff:a.b.c.d`, as most dual-stack runtimes do): such addresses are looked up
//! as the IPv4 addresses they are.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use lb_common::abi::{Addr4, Addr6, Address, Hook, Outcome, Port, V4, V6};
use lb_common::datapath::socket::{Answer, Request, restore, translate};
use lb_common::env::Env;

use crate::env::Kernel;

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// What an IPv4 address in an IPv6 socket begins with, as words in memory order.
const MAPPED: [u32; 3] = [0, 0, 0xffff_u32.to_be()];

/// The address that a socket asks for or is told, of the family that its packets have.
enum Asked {
    V4(Addr4),
    V6(Addr6),
}

/// A socket address, as the kernel shows it to us.
struct SocketAddress {
    ctx: *mut bpf_sock_addr,
    is_v6: bool,
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

    #[inline(always)]
    fn request<A>(&self, addr: A) -> Request<A> {
        // SAFETY: see above.
        unsafe {
            Request {
                cookie: bpf_get_socket_cookie(self.ctx.cast()),
                netns_cookie: bpf_get_netns_cookie(self.ctx.cast()),
                protocol: (*self.ctx).protocol as u8,
                addr,
                port: Port::from_raw((*self.ctx).user_port as u16),
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
            Asked::V4(addr) => match translate::<V4, _>(&Kernel, &self.request(addr)) {
                Answer::Leave => return ALLOW,
                Answer::Refuse => return refuse(),
                Answer::Use(addr, port) => self.set_v4(addr, port),
            },
            Asked::V6(addr) => match translate::<V6, _>(&Kernel, &self.request(addr)) {
                Answer::Leave => return ALLOW,
                Answer::Refuse => return refuse(),
                Answer::Use(addr, port) => self.set_v6(addr, port),
            },
        }
        Kernel.count(Hook::Socket, Outcome::Translated);
        ALLOW
    }

    /// A socket is told its peer, or the sender of a datagram.
    #[inline(always)]
    fn tell(&self) -> i32 {
        match self.asked() {
            Asked::V4(addr) => {
                if let Some((addr, port)) = restore::<V4, _>(&Kernel, &self.request(addr)) {
                    self.set_v4(addr, port);
                }
            }
            Asked::V6(addr) => {
                if let Some((addr, port)) = restore::<V6, _>(&Kernel, &self.request(addr)) {
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
    ($($(#[$doc:meta])* $name:ident $hook:ident $is_v6:literal $method:ident;)+) => {
        $($(#[$doc])*
        #[cgroup_sock_addr($hook)]
        fn $name(ctx: SockAddrContext) -> i32 {
            SocketAddress { ctx: ctx.sock_addr, is_v6: $is_v6 }.$method()
        })+
    };
}

programs! {
    /// connect(2) on an IPv4 socket.
    fairway_connect4 connect4 false ask;
    /// connect(2) on an IPv6 socket.
    fairway_connect6 connect6 true ask;
    /// sendto(2) and sendmsg(2) on an unconnected IPv4 datagram socket.
    fairway_sendmsg4 sendmsg4 false ask;
    /// sendto(2) and sendmsg(2) on an unconnected IPv6 datagram socket.
    fairway_sendmsg6 sendmsg6 true ask;
    /// recvfrom(2) and recvmsg(2) on an IPv4 datagram socket.
    fairway_recvmsg4 recvmsg4 false tell;
    /// recvfrom(2) and recvmsg(2) on an IPv6 datagram socket.
    fairway_recvmsg6 recvmsg6 true tell;
    /// getpeername(2) on an IPv4 socket.
    fairway_getpeername4 getpeername4 false tell;
    /// getpeername(2) on an IPv6 socket.
    fairway_getpeername6 getpeername6 true tell;
}
