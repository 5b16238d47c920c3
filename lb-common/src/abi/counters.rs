//! What is counted: for each hook, each outcome, in packets.
//!
//! The numbers are part of the map layout and of what operators see: append, never renumber.

/// Where a program runs.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Hook {
    /// XDP, on uplinks.
    Xdp = 0,
    /// TC ingress, on every device.
    Ingress = 1,
    /// TC egress, on every device.
    Egress = 2,
    /// Socket level: connect, sendmsg, recvmsg, getpeername.
    Socket = 3,
}

/// Why a packet is dropped by us.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DropReason {
    /// A policy of Local with no endpoint on this node.
    NoLocalEndpoint = 0,
    /// The client is in none of the Service's source ranges.
    SourceRange = 1,
    /// The address lies in a Service CIDR and no Service owns it.
    UnassignedServiceAddress = 2,
    /// The connection table is full.
    TableFull = 3,
    /// No port is left for source translation.
    SnatPortsExhausted = 4,
    /// Source translation is needed and the node has no address for it.
    NoMasqueradeAddress = 5,
    /// The packet could not be rewritten (too short for its own headers, or the kernel refused).
    Malformed = 6,
    /// A backend set names a backend that is not there.
    NoBackend = 7,
}

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Left as it came: to no frontend, of no connection.
    NotOurs,
    /// Of a known connection: translated and handed on to the node's stack.
    Translated,
    /// Of a known connection: translated and sent out by XDP.
    Forwarded,
    /// The first of a connection, which was recorded. Counted beside `Translated` or `Forwarded`.
    Connection,
    /// Answered with an ICMP port unreachable.
    Rejected,
    /// Dropped.
    Dropped(DropReason),
    /// An ARP request or a neighbour solicitation for an announced address: answered.
    Answered,
    /// The same, left as it came: the time has passed for which the agent was sure that it is this node's to answer.
    Lapsed,
}

/// Slots per hook in `COUNTERS`, an array per CPU of 64-bit packet counts.
const SLOTS_PER_HOOK: u32 = 32;
const FIRST_DROP_SLOT: u32 = 8;

/// Slots in `COUNTERS`.
pub const COUNTER_SLOTS: u32 = 4 * SLOTS_PER_HOOK;

impl Outcome {
    /// Every outcome there is.
    pub const ALL: [Self; 15] = [
        Self::NotOurs,
        Self::Translated,
        Self::Forwarded,
        Self::Connection,
        Self::Rejected,
        Self::Dropped(DropReason::NoLocalEndpoint),
        Self::Dropped(DropReason::SourceRange),
        Self::Dropped(DropReason::UnassignedServiceAddress),
        Self::Dropped(DropReason::TableFull),
        Self::Dropped(DropReason::SnatPortsExhausted),
        Self::Dropped(DropReason::NoMasqueradeAddress),
        Self::Dropped(DropReason::Malformed),
        Self::Dropped(DropReason::NoBackend),
        Self::Answered,
        Self::Lapsed,
    ];

    /// Index of its count in `COUNTERS`.
    #[inline(always)]
    pub const fn slot(self, hook: Hook) -> u32 {
        let outcome = match self {
            Self::NotOurs => 0,
            Self::Translated => 1,
            Self::Forwarded => 2,
            Self::Connection => 3,
            Self::Rejected => 4,
            Self::Answered => 5,
            Self::Lapsed => 6,
            Self::Dropped(reason) => FIRST_DROP_SLOT.wrapping_add(reason as u32),
        };
        (hook as u32).wrapping_mul(SLOTS_PER_HOOK).wrapping_add(outcome)
    }

    /// Its name, as metrics and tables show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotOurs => "not_ours",
            Self::Translated => "translated",
            Self::Forwarded => "forwarded",
            Self::Connection => "connection",
            Self::Rejected => "rejected",
            Self::Answered => "answered",
            Self::Lapsed => "lapsed",
            Self::Dropped(DropReason::NoLocalEndpoint) => "drop_no_local_endpoint",
            Self::Dropped(DropReason::SourceRange) => "drop_source_range",
            Self::Dropped(DropReason::UnassignedServiceAddress) => "drop_unassigned_service_address",
            Self::Dropped(DropReason::TableFull) => "drop_table_full",
            Self::Dropped(DropReason::SnatPortsExhausted) => "drop_snat_ports_exhausted",
            Self::Dropped(DropReason::NoMasqueradeAddress) => "drop_no_masquerade_address",
            Self::Dropped(DropReason::Malformed) => "drop_malformed",
            Self::Dropped(DropReason::NoBackend) => "drop_no_backend",
        }
    }
}

impl Hook {
    /// Every hook there is.
    pub const ALL: [Self; 4] = [Self::Xdp, Self::Ingress, Self::Egress, Self::Socket];

    /// Its name, as metrics and tables show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Ingress => "tc_ingress",
            Self::Egress => "tc_egress",
            Self::Socket => "socket",
        }
    }
}
