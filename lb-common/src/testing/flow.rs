//! Connections, and the entries that they have.

use std::vec::Vec;

use super::Cast;
use super::cast::CLIENT_MAC;
use super::packet::DEVICE;
use super::scene::{BY_NODE_2, BY_POD_DEVICE, CLIENT_PORT, EARLIER, NOW, SNAT_PORT, TARGET, WEB};
use crate::abi::{Connection, Direction, Mac, Port, Tuple, conn_flags, protocol, tcp_state};

/// An entry of the connection table.
pub type Entry<A> = (Tuple<A>, Connection<A>);

/// A connection, and the entries that it has by the picture at [`crate::abi::Connection`].
#[derive(Clone, Debug)]
pub struct Flow<F: Cast> {
    /// The protocol.
    pub protocol: u8,
    /// The client.
    pub client: (F::Addr, u16),
    /// The frontend that it talks to.
    pub frontend: (F::Addr, u16),
    /// The backend that answers.
    pub backend: (F::Addr, u16),
    /// The address and port that the backend sees, if not the client's.
    pub snat: Option<(F::Addr, u16)>,
    /// The client's port inside the node, where another connection has its own one already.
    pub port: Option<u16>,
    /// Flags that all entries have.
    pub flags: u8,
    /// State of the entry for the client's packets into the node.
    pub state: u8,
    /// Id of the backend.
    pub backend_id: u32,
    /// The backend's next hop.
    pub adjacency: u32,
    /// Id of the Service port.
    pub service_port: u32,
    /// Where the client was met.
    pub ifindex: u32,
    /// The client's next hop.
    pub client_mac: Mac,
    /// When it was last seen.
    pub last_seen: u32,
}

impl<F: Cast> Flow<F> {
    /// A new TCP connection of `CLIENT_1` to a frontend, led to this backend.
    pub fn to(frontend: (F::Addr, u16), backend_id: u32) -> Self {
        let (addr, adjacency, flags) = match backend_id {
            1 => (F::POD_1, BY_POD_DEVICE, conn_flags::LOCAL),
            2 => (F::POD_2, BY_POD_DEVICE, conn_flags::LOCAL),
            3 => (F::POD_3, BY_NODE_2, 0),
            _ => (F::POD_4, BY_NODE_2, 0),
        };
        Self {
            protocol: protocol::TCP,
            client: (F::CLIENT_1, CLIENT_PORT),
            frontend,
            backend: (addr, TARGET),
            snat: None,
            port: None,
            flags,
            state: tcp_state::CONFIRMED,
            backend_id,
            adjacency,
            service_port: WEB,
            ifindex: DEVICE,
            client_mac: CLIENT_MAC,
            last_seen: NOW,
        }
    }

    /// The same of another client.
    #[must_use]
    pub fn of(mut self, client: (F::Addr, u16)) -> Self {
        self.client = client;
        self
    }

    /// The same by UDP.
    #[must_use]
    pub fn by_udp(mut self) -> Self {
        self.protocol = protocol::UDP;
        self
    }

    /// The same by SCTP.
    #[must_use]
    pub fn by_sctp(mut self) -> Self {
        self.protocol = protocol::SCTP;
        self
    }

    /// The same, made by XDP.
    #[must_use]
    pub fn by_xdp(mut self) -> Self {
        self.flags |= conn_flags::BY_XDP;
        self
    }

    /// The same with source translation to this address and [`SNAT_PORT`].
    #[must_use]
    pub fn behind(mut self, address: F::Addr) -> Self {
        self.snat = Some((address, SNAT_PORT));
        self
    }

    /// The same with another source port inside the node: [`SNAT_PORT`].
    #[must_use]
    pub fn with_own_port(mut self) -> Self {
        self.port = Some(SNAT_PORT);
        self
    }

    /// The same, passed on to the backend's node.
    #[must_use]
    pub fn passed_on(mut self) -> Self {
        self.flags |= conn_flags::PASSED_ON;
        self
    }

    /// The same, made some time ago.
    #[must_use]
    pub fn old(mut self) -> Self {
        self.last_seen = EARLIER;
        self
    }

    /// The client as the backend's side of the node sees it.
    fn inner_client(&self) -> (F::Addr, u16) {
        (self.client.0, self.port.unwrap_or(self.client.1))
    }

    fn key(&self, direction: Direction, src: (F::Addr, u16), dst: (F::Addr, u16)) -> Tuple<F::Addr> {
        Tuple::new(
            direction,
            self.protocol,
            (src.0, Port::new(src.1)),
            (dst.0, Port::new(dst.1)),
        )
    }

    /// Key of the entry for the client's packets into the node.
    pub fn primary(&self) -> Tuple<F::Addr> {
        self.key(Direction::Ingress, self.client, self.frontend)
    }

    /// Key of the entry for replies out of the node.
    pub fn reply(&self) -> Tuple<F::Addr> {
        self.key(Direction::Egress, self.backend, self.inner_client())
    }

    /// Key of the entry for replies into the node.
    ///
    /// # Panics
    /// If there is no source translation.
    pub fn reply_in(&self) -> Tuple<F::Addr> {
        self.key(Direction::Ingress, self.backend, self.snat.expect("has SNAT"))
    }

    /// Key of the entry for the client's packets out of the node, of a connection with source translation.
    pub fn out(&self) -> Tuple<F::Addr> {
        self.key(Direction::Egress, self.inner_client(), self.backend)
    }

    /// The two entries of a connection that a process of the node began: key and value of the one for its packets
    /// out of the node, then of the one for replies into the node.
    ///
    /// # Panics
    /// If there is no source translation.
    pub fn entries_of_node(&self) -> [Entry<F::Addr>; 2] {
        let snat = self.snat.expect("has SNAT");
        let [forward, reply]: [Entry<F::Addr>; 2] = Flow {
            snat: None,
            port: None,
            flags: self.flags | conn_flags::NODE | conn_flags::SNAT | conn_flags::BOTH,
            ..self.clone()
        }
        .entries()
        .try_into()
        .expect("two entries");
        let forward_value = Connection {
            src: snat.0,
            src_port: Port::new(snat.1),
            ..forward.1
        };
        [
            (self.key(Direction::Egress, self.client, self.frontend), forward_value),
            (self.reply_in(), reply.1),
        ]
    }

    /// All its entries.
    pub fn entries(&self) -> Vec<Entry<F::Addr>> {
        let snat = if self.snat.is_some() { conn_flags::SNAT } else { 0 };
        let both = if self.port.is_some() { conn_flags::BOTH } else { 0 };
        let value = |src: (F::Addr, u16), dst: (F::Addr, u16), flags| Connection {
            src: src.0,
            dst: dst.0,
            src_port: Port::new(src.1),
            dst_port: Port::new(dst.1),
            last_seen: self.last_seen,
            adjacency: self.adjacency,
            service_port: self.service_port,
            backend: self.backend_id,
            ifindex: self.ifindex,
            client_mac: self.client_mac,
            state: 0,
            flags: self.flags | snat | flags,
        };
        let seen_by_backend = match self.snat {
            Some(snat) if self.port.is_none() => snat,
            _ => self.inner_client(),
        };
        if self.flags & conn_flags::PASSED_ON != 0 {
            let mut only = value(self.client, self.frontend, conn_flags::FORWARD);
            only.state = self.state;
            return [(self.primary(), only)].into();
        }
        let mut primary = value(seen_by_backend, self.backend, conn_flags::FORWARD | both);
        primary.state = self.state;
        let mut entries: Vec<_> = [
            (self.primary(), primary),
            (self.reply(), value(self.frontend, self.client, both)),
        ]
        .into();
        if let Some(snat) = self.snat {
            let mut reply_in = value(self.frontend, self.inner_client(), 0);
            if self.port.is_some() {
                reply_in.ifindex = 0;
            }
            entries.push((self.reply_in(), reply_in));
            entries.push((self.out(), value(snat, self.frontend, conn_flags::FORWARD)));
        }
        entries
    }
}
