//! From the API's types to ours.

mod node;
mod pool;
mod service;
mod service_cidr;
mod slice;

use std::net::IpAddr;

use ipnet::IpNet;

use super::{ObjectKey, ObjectKind, Problem, Protocol, Reason};

/// Gathers what is wrong with one object.
#[derive(Debug)]
pub(crate) struct Findings {
    kind: ObjectKind,
    object: ObjectKey,
    pub(crate) problems: Vec<Problem>,
}

impl Findings {
    pub(crate) fn new(kind: ObjectKind, object: &ObjectKey) -> Self {
        Self {
            kind,
            object: object.clone(),
            problems: Vec::new(),
        }
    }

    /// A field that says what cannot be served.
    pub(crate) fn report(&mut self, field: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) {
        self.report_as(Reason::InvalidField, field, message, remedy);
    }

    /// As [`Self::report`], for another reason.
    pub(crate) fn report_as(
        &mut self,
        reason: Reason,
        field: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.problems.push(Problem {
            kind: self.kind,
            object: self.object.clone(),
            field: field.into(),
            message: message.into(),
            remedy: remedy.into(),
            reason,
        });
    }

    /// The address that is written there, if it is one that traffic can be sent to.
    fn address(&mut self, field: impl Fn() -> String, text: &str) -> Option<IpAddr> {
        let Ok(addr) = text.parse::<IpAddr>().map(|addr| addr.to_canonical()) else {
            self.report(
                field(),
                format!("`{text}` is not an IP address and is left out"),
                "write it as an IPv4 or IPv6 address",
            );
            return None;
        };
        if let Some(what) = unusable(&addr) {
            self.report(
                field(),
                format!("{addr} is {what} and is left out"),
                "use an address that packets can be sent to",
            );
            return None;
        }
        Some(addr)
    }

    /// The number that is written there, if it is that of a port.
    fn port(&mut self, field: impl Fn() -> String, number: i32) -> Option<u16> {
        match u16::try_from(number) {
            Ok(port) if port > 0 => Some(port),
            _ => {
                self.report(
                    field(),
                    format!("{number} is not a port number and is left out"),
                    "use a number from 1 to 65535",
                );
                None
            }
        }
    }

    /// The protocol that is written there; TCP if none is.
    fn protocol(&mut self, field: impl Fn() -> String, name: Option<&str>) -> Option<Protocol> {
        let Some(name) = name else {
            return Some(Protocol::Tcp);
        };
        let protocol = Protocol::from_api(name);
        if protocol.is_none() {
            self.report(
                field(),
                format!("`{name}` is not a protocol with ports and the port is left out"),
                "use TCP, UDP or SCTP",
            );
        }
        protocol
    }
}

/// The range that is written there, blanks around it ignored.
fn range(text: &str) -> Option<IpNet> {
    text.trim().parse::<IpNet>().ok().map(|net| net.trunc())
}

/// What makes an address one that nothing can be sent to, in words.
const fn unusable(addr: &IpAddr) -> Option<&'static str> {
    let (link_local, loopback, multicast, unspecified) = match addr {
        IpAddr::V4(a) => (
            a.is_link_local(),
            a.is_loopback(),
            a.is_multicast() || a.is_broadcast(),
            a.is_unspecified(),
        ),
        IpAddr::V6(a) => (
            a.is_unicast_link_local(),
            a.is_loopback(),
            a.is_multicast(),
            a.is_unspecified(),
        ),
    };
    if unspecified {
        Some("the unspecified address")
    } else if loopback {
        Some("a loopback address")
    } else if multicast {
        Some("a multicast or broadcast address")
    } else if link_local {
        Some("a link-local address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
