//! The choice of a backend: the one the client is pinned to, else the Maglev slot of the flow.

use super::frontend::Client;
use crate::abi::{AffinityEntry, AffinityKey, Backend, DropReason, Family, Frontend, backend_flags, frontend_flags};
use crate::env::{Env, Tables};

/// A backend, chosen.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<F: Family> {
    /// Its id.
    pub id: u32,
    /// What is known of it.
    pub backend: Backend<F::Addr>,
}

/// Chooses a backend for a new connection. `Ok(None)` means that the client is to be told: there is none.
///
/// # Errors
/// The reason to drop, where the frontend's policy has no backend for clients from there, or where a slot leads
/// nowhere.
#[inline(always)]
pub fn backend<F: Family, E: Env + Tables<F>>(
    env: &E,
    frontend: &Frontend,
    client: Client<F>,
    flow: u32,
) -> Result<Option<Chosen<F>>, DropReason> {
    let (set, drop) = client.origin.backends(frontend);
    if set.size == 0 {
        return drop.map_or(Ok(None), Err);
    }
    if frontend.flags & frontend_flags::AFFINITY == 0 {
        let id = by_maglev(env, set.offset, set.size, flow)?;
        return live::<F, E>(env, id).map(Some);
    }
    let key = AffinityKey {
        client: client.addr,
        service_port: frontend.service_port,
    };
    let now = env.now();
    let id = match Tables::<F>::affinity(env, &key) {
        Some(pinned) if is_fresh(env, &pinned, frontend, now) && env.is_member(set.offset, pinned.backend) => {
            pinned.backend
        }
        _ => by_maglev(env, set.offset, set.size, flow)?,
    };
    let chosen = live::<F, E>(env, id)?;
    Tables::<F>::pin(
        env,
        &key,
        &AffinityEntry {
            backend: id,
            last_used: now,
        },
    );
    Ok(Some(chosen))
}

/// The backend id in the flow's slot. The hash is scaled to the table's size by multiplication, which spreads as
/// evenly as a remainder and needs no division.
#[inline(always)]
fn by_maglev<E: Env>(env: &E, offset: u32, size: u32, flow: u32) -> Result<u32, DropReason> {
    let slot = (u64::from(flow).wrapping_mul(u64::from(size)) >> 32) as u32;
    env.maglev(offset.wrapping_add(slot)).ok_or(DropReason::NoBackend)
}

#[inline(always)]
fn live<F: Family, E: Tables<F>>(env: &E, id: u32) -> Result<Chosen<F>, DropReason> {
    match env.backend(id) {
        Some(backend) if id != 0 && backend.flags & backend_flags::LIVE != 0 => Ok(Chosen { id, backend }),
        _ => Err(DropReason::NoBackend),
    }
}

/// Whether a pin still binds: the timeout runs from the client's last new connection.
#[inline(always)]
fn is_fresh<E: Env>(env: &E, pinned: &AffinityEntry, frontend: &Frontend, now: u32) -> bool {
    let idle = now.wrapping_sub(pinned.last_used);
    u64::from(idle) < u64::from(frontend.affinity_timeout_s).wrapping_mul(u64::from(env.config().hz))
}
