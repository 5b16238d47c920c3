//! Known connections, and the writing of new ones. The table's layout is drawn at [`crate::abi::Connection`].

use super::frontend::{self, Origin};
use super::parse::{Headers, Ip};
use super::rewrite::{self, Translation};
use super::{Progress, Step, Verdict, announce, done, not_ours, select};
use crate::abi::{
    AnnouncedKey, Connection, Direction, DropReason, Family, Hook, Mac, Outcome, Port, Tuple, backend_flags,
    config_flags, conn_flags, frontend_flags, tcp_state,
};
use crate::env::{ConnectionEntry, Draft, Env, InsertError, Packet, Tables};
use crate::hash;
use crate::wire::tcp_flags;

/// How often another port is tried when one is taken.
const PORT_TRIES: u32 = 16;

/// Whether a packet that hits an entry opens a new connection all the same: a SYN on a connection that has been
/// closed, or whose backend no Service uses any more.
#[inline(always)]
pub fn starts_anew<F: Family, E: Tables<F>>(env: &E, entry: &E::Entry, headers: &Headers<F>) -> bool {
    const ALL: u8 = tcp_flags::SYN | tcp_flags::ACK | tcp_flags::FIN | tcp_flags::RST;
    if headers.tcp_flags & ALL != tcp_flags::SYN {
        return false;
    }
    let known = entry.get();
    if known.flags & conn_flags::FORWARD == 0 {
        return false;
    }
    known.state & (tcp_state::FIN | tcp_state::RST) != 0
        || env
            .backend(known.backend)
            .is_none_or(|backend| backend.flags & backend_flags::LIVE == 0)
}

/// A packet of a known connection: notes that it was seen, and translates it.
#[inline(always)]
pub(super) fn follow<F: Ip, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    headers: &Headers<F>,
    entry: &<E as Tables<F>>::Entry,
) -> Step {
    let now = env.now();
    let known: Connection<F::Addr> = entry.get();
    if matches!(P::HOOK, Hook::Xdp) && known.flags & conn_flags::NODE != 0 && known.ifindex != packet.ifindex() {
        return not_ours::<P, E>(env); // To be delivered by another device, which TC can do.
    }
    let state = known.state | tcp_state::CONFIRMED | closing(headers.tcp_flags);
    // Written only when it changes: the cache line may be shared with another CPU.
    if now != known.last_seen || state != known.state {
        entry.touch(now, state);
    }
    if matches!(P::HOOK, Hook::Xdp) {
        if known.flags & conn_flags::FORWARD != 0
            && let Some(macs) = rewrite::macs(packet)
            && (macs.src != known.client_mac || packet.ifindex() != known.ifindex)
        {
            if came_back::<F, P, E>(packet, env, entry) {
                return not_ours::<P, E>(env); // TC sees to it.
            }
            learn::<F, E>(env, headers, entry, macs.src, packet.ifindex());
        }
        if address_frame::<F, P, E>(packet, env, headers, &known).is_some() {
            return send::<F, P, E>(packet, env, headers, &entry.get());
        }
    }
    // XDP hands on to TC what it cannot pass on: translated to what it is.
    if !matches!(P::HOOK, Hook::Xdp) && known.flags & conn_flags::PASSED_ON != 0 {
        return pass_on::<F, P, E>(packet, env, headers, known.adjacency);
    }
    hand_on::<F, P, E>(packet, env, headers, &entry.get())
}

/// What became of a connection that a packet would open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    /// Its entries are written.
    Connection,
    /// The packet is to no frontend.
    NoFrontend,
    /// The frontend has nobody to send to, and the client is to be told.
    NoBackend,
}

/// Notes in the draft, beside the packet's tuple, what else the packet tells of the connection that it would open.
#[inline(always)]
pub fn describe<F: Ip, P: Packet>(packet: &P, headers: &Headers<F>, draft: &mut Draft<F::Addr>) {
    draft.primary.ifindex = packet.ifindex();
    draft.primary.client_mac = rewrite::macs(packet).map_or_else(Mac::default, |macs| macs.src);
    draft.primary.state = closing(headers.tcp_flags);
    draft.primary.flags = conn_flags::FORWARD
        | match P::HOOK {
            Hook::Xdp => conn_flags::BY_XDP,
            Hook::Egress => conn_flags::NODE | conn_flags::BOTH | conn_flags::SNAT,
            _ => 0,
        };
    if !matches!(P::HOOK, Hook::Egress) && P::ETHERNET && !packet.is_tagged_beside() {
        draft.primary.flags |= conn_flags::PASSED_ON; // It could be: `choose` and `divert` decide.
    }
}

/// Finds a backend for the described connection: looks up the frontend, lets the client in, chooses. Everything it
/// needs lies in the draft, so that the kernel has it out of line, off the way of known connections.
///
/// # Errors
/// If the frontend's policy drops the client.
#[inline(always)]
pub fn choose<F: Family, E: Env + Tables<F>>(env: &E) -> Result<Opening, DropReason> {
    let mut draft = Tables::<F>::draft(env).ok_or(DropReason::TableFull)?;
    let draft = &mut *draft;
    let Some(found) = frontend::lookup_of_packet::<F, E>(
        env,
        draft.primary_key.dst,
        draft.primary_key.dst_port,
        draft.primary_key.protocol,
    ) else {
        let is_unassigned = env.config().flags & config_flags::SERVICE_CIDRS != 0
            && Tables::<F>::is_service_address(env, &draft.primary_key.dst);
        return if is_unassigned {
            Err(DropReason::UnassignedServiceAddress)
        } else {
            Ok(Opening::NoFrontend)
        };
    };
    let origin = if draft.primary.flags & conn_flags::NODE != 0 {
        Origin::Node
    } else if is_of_pod::<F, E>(env, &draft.primary_key.src, draft.primary.ifindex) {
        Origin::Pod
    } else {
        Origin::External
    };
    let client = frontend::admit::<F, E>(env, &found, draft.primary_key.src, origin)?;
    let Some(chosen) = select::backend::<F, E>(env, &found, client, hash::flow(&draft.primary_key))? else {
        return Ok(Opening::NoBackend);
    };
    let primary = &mut draft.primary;
    primary.src = draft.primary_key.src;
    primary.src_port = draft.primary_key.src_port;
    primary.dst = chosen.backend.addr;
    primary.dst_port = chosen.backend.port;
    primary.last_seen = env.now();
    primary.adjacency = u32::from(chosen.backend.adjacency);
    primary.service_port = found.service_port;
    primary.backend = chosen.id;
    let is_elsewhere = chosen.backend.flags & backend_flags::NODE_ADDRESS == 0;
    // Hairpin: a pod reaches itself. It would answer itself directly, were its own address the source.
    if origin.is_masqueraded(&found) && is_elsewhere || chosen.backend.addr == draft.primary_key.src {
        primary.flags |= conn_flags::SNAT;
    }
    if chosen.backend.flags & backend_flags::LOCAL != 0 {
        primary.flags |= conn_flags::LOCAL;
    }
    // The other node chooses anew, by the same tables: to whom a client is pinned it could not know.
    const KIND: u32 = frontend_flags::LOAD_BALANCER | frontend_flags::MASQUERADE_EXTERNAL;
    let may_pass_on = origin == Origin::External
        && found.flags & (KIND | frontend_flags::AFFINITY) == KIND
        && chosen.backend.flags & (backend_flags::LOCAL | backend_flags::NODE_ADDRESS) == 0;
    if !may_pass_on {
        primary.flags &= !conn_flags::PASSED_ON;
    }
    draft.reply.adjacency = u32::from(chosen.backend.node);
    Ok(Opening::Connection)
}

/// Has the described connection passed on to the backend's node, if it may be and this node announces its address there
/// now, and that node is a neighbour on the same network. Other nodes translate what they get, so nothing goes in circles,
/// but where entries of both have outlived a change: see [`readdress`]. Whether it is passed on.
#[inline(never)]
fn divert<F: Family, E: Env + Tables<F>>(env: &E, draft: &mut Draft<F::Addr>) -> bool {
    let (node, ifindex) = (draft.reply.adjacency, draft.primary.ifindex);
    let key = AnnouncedKey {
        addr: draft.primary_key.dst,
        ifindex,
    };
    let is_next = Tables::<F>::adjacency(env, node).is_some_and(|next| next.is_fast_by(ifindex));
    let is_passed_on = node != 0 && is_next && announce::may_answer::<F, E>(env, &key);
    if is_passed_on {
        (draft.primary.dst, draft.primary.dst_port) = (draft.primary_key.dst, draft.primary_key.dst_port);
        draft.primary.adjacency = node;
        draft.primary.flags &= !conn_flags::SNAT;
    } else {
        draft.primary.flags &= !conn_flags::PASSED_ON;
    }
    is_passed_on
}

/// Whether a packet that came in by this device is of a pod on this node.
#[inline(always)]
fn is_of_pod<F: Family, E: Env + Tables<F>>(env: &E, src: &F::Addr, ifindex: u32) -> bool {
    if env.config().flags & config_flags::POD_DEVICES != 0 {
        env.is_pod_device(ifindex)
    } else {
        Tables::<F>::is_pod_address(env, src)
    }
}

/// Writes the entries of the drafted connection, replies first, so that whoever finds the primary one finds all. What
/// is written before an error expires by itself: the client sends its packet again.
///
/// # Errors
/// If there is no room in the table, no port or no address to masquerade with.
#[inline(always)]
pub fn record<F: Family, E: Env + Tables<F>>(env: &E) -> Result<(), DropReason> {
    let mut draft = Tables::<F>::draft(env).ok_or(DropReason::TableFull)?;
    let draft = &mut *draft;
    if draft.primary.flags & conn_flags::PASSED_ON != 0 && divert::<F, E>(env, draft) {
        return Tables::<F>::put_connection(env, &draft.primary_key, &draft.primary).map_err(|_| DropReason::TableFull);
    }
    if draft.primary.flags & conn_flags::NODE != 0 {
        record_of_node::<F, E>(env, draft)
    } else {
        record_of_client::<F, E>(env, draft)
    }
}

/// Writes the two or four entries of a connection whose packets come into the node.
#[inline(always)]
fn record_of_client<F: Family, E: Env + Tables<F>>(env: &E, draft: &mut Draft<F::Addr>) -> Result<(), DropReason> {
    // Back out of the node: the backend's address becomes the frontend's.
    let key = draft.primary_key;
    draft.reply_key = Tuple {
        src: draft.primary.dst,
        dst: key.src,
        src_port: draft.primary.dst_port,
        dst_port: key.src_port,
        direction: Direction::Egress as u8,
        ..key
    };
    draft.reply = Connection {
        src: key.dst,
        dst: key.src,
        src_port: key.dst_port,
        dst_port: key.src_port,
        state: 0,
        flags: draft.primary.flags & !conn_flags::FORWARD,
        ..draft.primary
    };
    claim_reply::<F, E>(env, draft)?;
    if draft.primary.flags & conn_flags::SNAT != 0 {
        masquerade::<F, E>(env, draft)?;
    }
    Tables::<F>::put_connection(env, &draft.primary_key, &draft.primary).map_err(|_| DropReason::TableFull)
}

/// Writes the two entries of a connection that a process of the node began, and whose packets are translated as they
/// leave: always with source translation, so that replies find their way back here, and always both halves at once.
#[inline(always)]
fn record_of_node<F: Family, E: Env + Tables<F>>(env: &E, draft: &mut Draft<F::Addr>) -> Result<(), DropReason> {
    let key = draft.primary_key;
    let address = masquerade_address::<F, E>(env, draft.primary.adjacency)?;
    draft.reply_key = Tuple {
        src: draft.primary.dst,
        dst: address,
        src_port: draft.primary.dst_port,
        dst_port: Port::default(),
        direction: Direction::Ingress as u8,
        ..key
    };
    draft.reply = Connection {
        src: key.dst,
        dst: key.src,
        src_port: key.dst_port,
        dst_port: key.src_port,
        state: 0,
        flags: draft.primary.flags & !conn_flags::FORWARD,
        ..draft.primary
    };
    let port = claim(env, |env, port| {
        draft.reply_key.dst_port = port;
        Tables::<F>::add_connection(env, &draft.reply_key, &draft.reply)
    })?;
    draft.primary.src = address;
    draft.primary.src_port = port;
    Tables::<F>::put_connection(env, &draft.primary_key, &draft.primary).map_err(|_| DropReason::TableFull)
}

/// The address that masquerading uses on the way to a backend.
#[inline(always)]
fn masquerade_address<F: Family, E: Tables<F>>(env: &E, adjacency: u32) -> Result<F::Addr, DropReason> {
    match env.adjacency(adjacency) {
        Some(next) if next.masquerade != F::Addr::default() => Ok(next.masquerade),
        _ => Err(DropReason::NoMasqueradeAddress),
    }
}

/// Writes the two further entries of a connection with source translation.
#[inline(always)]
fn masquerade<F: Family, E: Env + Tables<F>>(env: &E, draft: &mut Draft<F::Addr>) -> Result<(), DropReason> {
    let address = masquerade_address::<F, E>(env, draft.primary.adjacency)?;
    // Back into the node: the masquerade address becomes the client's, as the backend's side of the node sees it.
    draft.reply_in_key = Tuple {
        dst: address,
        direction: Direction::Ingress as u8,
        ..draft.reply_key
    };
    if draft.primary.flags & conn_flags::BOTH != 0 {
        draft.reply.flags &= !conn_flags::BOTH;
        draft.reply.dst_port = draft.reply_key.dst_port;
        draft.reply.ifindex = 0; // XDP must not answer the client: TC egress restores its port.
    }
    let port = claim(env, |env, port| {
        draft.reply_in_key.dst_port = port;
        Tables::<F>::add_connection(env, &draft.reply_in_key, &draft.reply)
    })?;
    // Out of the node: the client's address becomes the masquerade address. The frontend is kept beside.
    draft.out_key = Tuple {
        src: draft.reply_key.dst,
        dst: draft.reply_key.src,
        src_port: draft.reply_key.dst_port,
        dst_port: draft.reply_key.src_port,
        ..draft.reply_key
    };
    draft.out = Connection {
        src: address,
        src_port: port,
        dst: draft.primary_key.dst,
        dst_port: draft.primary_key.dst_port,
        flags: draft.primary.flags & !conn_flags::BOTH,
        state: 0,
        ..draft.primary
    };
    if draft.primary.flags & conn_flags::BOTH == 0 {
        draft.primary.src = address;
        draft.primary.src_port = port;
    }
    Tables::<F>::put_connection(env, &draft.out_key, &draft.out).map_err(|_| DropReason::TableFull)
}

/// Adds the entry for replies as they leave the node. The client keeps its port towards the backend, unless another
/// connection of the client has it there, by another frontend: then this one gets another port as it enters the
/// node, and its own back as it leaves ([`conn_flags::BOTH`]).
#[inline(always)]
fn claim_reply<F: Family, E: Env + Tables<F>>(env: &E, draft: &mut Draft<F::Addr>) -> Result<(), DropReason> {
    match Tables::<F>::add_connection(env, &draft.reply_key, &draft.reply) {
        Ok(()) => return Ok(()),
        Err(InsertError::Full) => return Err(DropReason::TableFull),
        Err(InsertError::Exists) => {}
    }
    // By another frontend even one that has been closed: its last segments may be on their way, and the backend may
    // still wait for them on that very port.
    let is_same = Tables::<F>::connection(env, &draft.reply_key).is_none_or(|entry| {
        let other: Connection<F::Addr> = entry.get();
        other.src == draft.reply.src && other.src_port == draft.reply.src_port
    });
    if is_same {
        return Tables::<F>::put_connection(env, &draft.reply_key, &draft.reply).map_err(|_| DropReason::TableFull);
    }
    draft.reply.flags |= conn_flags::BOTH;
    draft.primary.flags |= conn_flags::BOTH;
    let port = claim(env, |env, port| {
        draft.reply_key.dst_port = port;
        Tables::<F>::add_connection(env, &draft.reply_key, &draft.reply)
    })?;
    draft.primary.src_port = port;
    Ok(())
}

/// Tries ports of the range for source translation, from a random one on, until one is free.
#[inline(always)]
fn claim<E: Env>(env: &E, mut add: impl FnMut(&E, Port) -> Result<(), InsertError>) -> Result<Port, DropReason> {
    let config = env.config();
    let ports = u32::from(config.snat_port_max)
        .wrapping_sub(u32::from(config.snat_port_min))
        .wrapping_add(1);
    let random = env.random();
    for attempt in 0..PORT_TRIES {
        // Scattered, not in a row: where one port is taken its neighbours often are.
        let spread = random.wrapping_add(attempt.wrapping_mul(0x9E37_79B1));
        let offset = (u64::from(spread).wrapping_mul(u64::from(ports)) >> 32) as u16;
        let port = Port::new(config.snat_port_min.wrapping_add(offset));
        match add(env, port) {
            Ok(()) => return Ok(port),
            Err(InsertError::Full) => return Err(DropReason::TableFull),
            Err(InsertError::Exists) => {}
        }
    }
    Err(DropReason::SnatPortsExhausted)
}

/// Translates the packet and hands it on: to the node's stack, or out of the device, or, if a process of the node is
/// at its other end, where that process's packets go and come from.
#[inline(always)]
fn hand_on<F: Ip, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    headers: &Headers<F>,
    known: &Connection<F::Addr>,
) -> Step {
    let mut t = Translation::of(headers);
    let both = known.flags & conn_flags::BOTH != 0;
    if matches!(P::HOOK, Hook::Egress) || both {
        t.src = Some((known.src, known.src_port));
    }
    if !matches!(P::HOOK, Hook::Egress) || both {
        t.dst = Some((known.dst, known.dst_port));
    }
    packet.translate(&t).ok_or(DropReason::Malformed)?;
    let mut verdict = Verdict::Pass;
    if known.flags & conn_flags::NODE != 0 {
        match P::HOOK {
            Hook::Egress => {
                let next = Tables::<F>::adjacency(env, known.adjacency).ok_or(DropReason::NoMasqueradeAddress)?;
                packet.aim(next.ifindex);
                verdict = Verdict::Output;
            }
            Hook::Ingress if known.ifindex != packet.ifindex() => {
                if P::ETHERNET {
                    rewrite::link(packet, known.client_mac, known.client_mac).ok_or(DropReason::Malformed)?;
                }
                packet.aim(known.ifindex);
                verdict = Verdict::Deliver;
            }
            _ => {}
        }
    }
    done::<P, E>(env, verdict, Outcome::Translated)
}

/// Passes the packet on, as it is, to the node of the backend, which is reached by the device that it came in by. If it
/// is not any more, another way is to be chosen.
///
/// In TC the packet may be larger than the device takes: it has been put together of several that came in there, and is
/// taken apart again.
#[inline(never)]
fn pass_on<F: Ip, P: Packet, E: Env + Tables<F>>(
    packet: &mut P,
    env: &E,
    headers: &Headers<F>,
    adjacency: u32,
) -> Step {
    // A frame with a tag is for another device; the stack tells the sender that no hops are left.
    if headers.tagged || packet.is_tagged_beside() || F::extent(packet, headers).is_none_or(|extent| extent.hops <= 1) {
        return not_ours::<P, E>(env);
    }
    if readdress::<F, P, E>(packet, env, adjacency).is_none() {
        return Ok(Progress::Open);
    }
    let mut t = Translation::of(headers);
    t.hops = 1;
    F::rewrite(packet, &t).ok_or(DropReason::Malformed)?;
    done::<P, E>(env, Verdict::Reflect, Outcome::Forwarded)
}

/// Addresses the frame to this next hop, if it is reached by the device that the packet came in by. It may be unresolved
/// just now: its last link address serves until there is another. What that node itself has passed on does not go back
/// to it, but is translated: each has an entry for the other, of which one is of a time when things were different.
#[inline(always)]
pub(super) fn readdress<F: Family, P: Packet, E: Tables<F>>(packet: &mut P, env: &E, adjacency: u32) -> Option<()> {
    let next = env.adjacency(adjacency)?;
    let is_known = next.dst_mac != Mac::default() && next.ifindex == packet.ifindex();
    if !is_known || rewrite::macs(packet)?.src == next.dst_mac {
        return None;
    }
    rewrite::link(packet, next.src_mac, next.dst_mac)
}

/// Sends the packet, whose frame is addressed already, out by the device that it came in by.
#[inline(always)]
fn send<F: Ip, P: Packet, E: Env>(packet: &mut P, env: &E, headers: &Headers<F>, known: &Connection<F::Addr>) -> Step {
    let mut t = Translation::of(headers);
    t.src = Some((known.src, known.src_port));
    t.dst = Some((known.dst, known.dst_port));
    t.hops = 1;
    packet.translate(&t).ok_or(DropReason::Malformed)?;
    done::<P, E>(env, Verdict::Reflect, Outcome::Forwarded)
}

/// Addresses the frame to the packet's next hop, if it can leave by the device that it came in by, without the stack:
/// the backend's next hop, or on the way back the client's.
#[inline(always)]
fn address_frame<F: Ip, P: Packet, E: Tables<F>>(
    packet: &mut P,
    env: &E,
    headers: &Headers<F>,
    known: &Connection<F::Addr>,
) -> Option<()> {
    if headers.tagged || known.flags & conn_flags::BOTH != 0 {
        return None;
    }
    if known.flags & conn_flags::FORWARD == 0 {
        let answered_here = known.ifindex == packet.ifindex() && known.client_mac != Mac::default();
        if !answered_here || F::extent(packet, headers)?.hops <= 1 {
            return None;
        }
        let own = rewrite::macs(packet)?.dst;
        return rewrite::link(packet, own, known.client_mac);
    }
    if known.flags & conn_flags::LOCAL != 0 {
        return None;
    }
    let next = env.adjacency(known.adjacency)?;
    let extent = F::extent(packet, headers)?;
    if !next.is_fast_by(packet.ifindex()) || extent.len > u32::from(next.mtu) || extent.hops <= 1 {
        return None;
    }
    rewrite::link(packet, next.src_mac, next.dst_mac)
}

/// Whether the node has passed the packet on that it would be passed on to, see [`readdress`].
#[inline(never)]
fn came_back<F: Family, P: Packet, E: Tables<F>>(packet: &P, env: &E, entry: &E::Entry) -> bool {
    let known = entry.get();
    known.flags & conn_flags::PASSED_ON != 0
        && rewrite::macs(packet).is_some_and(|macs| {
            env.adjacency(known.adjacency)
                .is_some_and(|next| next.dst_mac == macs.src)
        })
}

/// The client is met by another next hop than before, or on another device: answer it there.
#[inline(always)]
fn learn<F: Ip, E: Env + Tables<F>>(
    env: &E,
    headers: &Headers<F>,
    entry: &<E as Tables<F>>::Entry,
    client_mac: Mac,
    ifindex: u32,
) {
    let known: Connection<F::Addr> = entry.get();
    entry.learn(client_mac, ifindex);
    if known.flags & conn_flags::SNAT != 0 {
        let back = Tuple::new(
            Direction::Ingress,
            headers.protocol,
            (known.dst, known.dst_port),
            (known.src, known.src_port),
        );
        if let Some(reply) = Tables::<F>::connection(env, &back) {
            reply.learn(client_mac, ifindex);
        }
    }
}

/// What a packet's TCP flags say of the end of its connection.
#[inline(always)]
fn closing(flags: u8) -> u8 {
    (if flags & tcp_flags::FIN != 0 { tcp_state::FIN } else { 0 })
        | (if flags & tcp_flags::RST != 0 { tcp_state::RST } else { 0 })
}
