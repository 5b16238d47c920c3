//! What UDP sockets were given for a frontend, and when it is forgotten.
//!
//! The programs translate a socket's datagrams to the node's own addresses, where no packet meets a hook, and give it
//! the same backend again as long as it is noted ([`socket_side::FRONTEND`]). As with connections, what no longer serves
//! goes, and the next datagram finds another.

use std::collections::HashSet;

use lb_common::abi::{Address, Backend, Peer, SocketKey, socket_side};

use crate::maps::MapsError;
use crate::maps::bpf::BpfMap;
use crate::reconcile::Pair;

/// The table of one family.
pub type Table<A> = BpfMap<SocketKey<A>, Peer<A>>;

/// Whether a note names a backend that no longer serves its Service port. `backend` is what `BACKENDS` holds under the
/// backend id of the note now.
pub fn is_stale<A: Address>(
    key: &SocketKey<A>,
    given: &Peer<A>,
    backend: Option<Backend<A>>,
    serving: &HashSet<Pair>,
) -> bool {
    let is_same = backend.is_some_and(|b| (b.addr, b.port) == (given.addr, given.port));
    key.side == socket_side::FRONTEND && !(is_same && serving.contains(&(given.service_port, given.backend)))
}

/// Removes the notes for which `is_stale` is true; returns how many.
///
/// # Errors
/// If the map cannot be read or written.
pub fn forget<A: Address>(
    table: &Table<A>,
    is_stale: impl Fn(&SocketKey<A>, &Peer<A>) -> bool,
) -> Result<usize, MapsError> {
    let mut stale = Vec::new();
    table.walk(|chunk| {
        let found = chunk.iter().filter(|(key, given)| is_stale(key, given));
        stale.extend(found.map(|(key, _)| *key));
    })?;
    table.remove_all(&stale)?;
    Ok(stale.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::abi::{Addr4, Port, protocol};

    #[test]
    fn a_note_is_stale_when_its_backend_serves_no_more() {
        let (addr, port) = (Addr4::from_octets([10, 0, 0, 3]), Port::new(53));
        let key = SocketKey {
            protocol: protocol::UDP,
            side: socket_side::FRONTEND,
            ..SocketKey::default()
        };
        let given = Peer {
            addr,
            port,
            service_port: 7,
            backend: 3,
            ..Peer::default()
        };
        let backend = Some(Backend {
            addr,
            port,
            ..Backend::default()
        });
        let serving = HashSet::from([(7, 3)]);
        assert!(!is_stale(&key, &given, backend, &serving));
        assert!(is_stale(&key, &given, backend, &HashSet::from([(8, 3)])));
        assert!(is_stale(&key, &given, Some(Backend::default()), &serving));
        assert!(is_stale(&key, &given, None, &serving));
        let told = SocketKey {
            side: socket_side::BACKEND,
            ..key
        };
        assert!(!is_stale(&told, &given, None, &HashSet::new()));
    }
}
