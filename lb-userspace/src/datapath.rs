//! The kernel side of the agent: what is loaded, where it is attached, and what of it outlives the agent.
//!
//! ```text
//!   probe ──► what this machine offers          pin ──► <pin-dir>/v1/{maps,links,programs}
//!   load  ──► maps (taken over if pinned), programs, verified
//!   attach ─► XDP on uplinks, TC on every device, sock_addr on the cgroup; links pinned, replaced on restart
//! ```

pub mod attach;
pub mod load;
pub mod pin;
pub mod probe;
