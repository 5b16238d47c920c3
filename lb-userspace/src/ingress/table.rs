//! From a host and a path to a backend.
//!
//! ```text
//! host ──► exact name ──► or: the name behind the first label ──► or: rules without a host
//!              │                      │                                  │
//!              └── paths of the host: Exact, then the longest Prefix ────┘
//!                                     │ none matches
//!                                     ▼
//!                  default backend of the host, else that of all
//! ```
//!
//! The most specific host that any Ingress names answers, and no other: who owns `shop.example.com` need not expect that
//! a rule for `*.example.com` answers for paths that are not listed. Rules of several Ingresses for one host are one set.
//!
//! A table is built as a whole from all objects ([`build`]) and never changes. A lookup costs one hash of the host, one of
//! the path, and one for each length that prefixes of this host have: neither the number of hosts nor that of paths
//! counts. Paths are compared in a canonical form ([`path`]).

mod backends;
mod build;
mod path;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

pub use build::{Built, Upstream, build};

use super::objects::{label_behind, lower};
use super::tls::{self, Certificates};
use crate::model::ObjectKey;

/// Everything that decides about requests, at one time.
#[derive(Debug)]
pub struct Config {
    /// Where requests go.
    pub table: Table,
    /// The certificates that clients are shown.
    pub certificates: Arc<Certificates>,
}

impl Config {
    /// One with no routes and a certificate that is signed by itself, for the time before objects are known.
    ///
    /// # Errors
    /// If no certificate can be made.
    pub fn empty() -> Result<Self, tls::Error> {
        Ok(Self {
            table: Table::default(),
            certificates: Arc::new(Certificates::new(tls::self_signed()?)),
        })
    }
}

/// From hosts and paths to routes.
#[derive(Debug, Default)]
pub struct Table {
    exact: HashMap<Box<str>, Paths>,
    /// By the name behind the first label.
    wildcard: HashMap<Box<str>, Paths>,
    /// Of rules without a host.
    any: Paths,
    /// Of requests that no rule is for.
    default: Option<Arc<Route>>,
}

/// The paths of a host.
#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<Box<[u8]>, Arc<Route>>,
    /// Without the `/` at their ends, so that of the root is empty.
    prefixes: HashMap<Box<[u8]>, Arc<Route>>,
    /// The lengths of the prefixes, the longest first.
    lengths: Vec<usize>,
    /// Where the rest goes.
    default: Option<Arc<Route>>,
}

/// Where requests for a host and path go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The Ingress that says so.
    pub ingress: ObjectKey,
    /// The host as it is written there: `*.example.com` has one label before it, `*` is every host.
    pub host: Arc<str>,
    /// The path as it is written there; `*` is every path (of a default backend).
    pub path: Arc<str>,
    /// Where they go.
    pub backend: Arc<Backend>,
}

/// A port of a Service, with its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backend {
    /// The Service; without a name if the Ingress names none.
    pub service: ObjectKey,
    /// The port of the Service; 0 if there is none.
    pub port: u16,
    /// What is spoken there.
    pub protocol: BackendProtocol,
    /// Where it is reached: the Service's ClusterIPs, that of its first family first, or its endpoints in the order of
    /// their addresses. Empty: nothing serves, and requests are answered with 503.
    pub addrs: Vec<SocketAddr>,
    /// Why there are no addresses.
    pub problem: Option<String>,
}

/// What a backend speaks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BackendProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS and without an upgrade (KEP-3726).
    H2c,
}

impl Table {
    /// Where a request goes; `None`: there is nothing for it.
    ///
    /// `host` is as in the request, without the port; letters of any case, and a dot at the end, are the same host.
    /// `path` is as in the request line, without the query.
    pub fn route(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        let host = lower(host);
        let exact = self.exact.get(&*host);
        let paths = exact.or_else(|| label_behind(&host).and_then(|behind| self.wildcard.get(behind)));
        paths.unwrap_or(&self.any).route(path).or(self.default.as_ref())
    }

    /// All routes, default backends included.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Route>> {
        let paths = self.exact.values().chain(self.wildcard.values()).chain([&self.any]);
        paths.flat_map(Paths::all).chain(&self.default)
    }

    /// How many hosts are named.
    pub fn hosts(&self) -> usize {
        self.exact.len() + self.wildcard.len()
    }

    /// How many paths lead somewhere, default backends included.
    pub fn routes(&self) -> usize {
        let paths = self.exact.values().chain(self.wildcard.values()).chain([&self.any]);
        paths.map(Paths::count).sum::<usize>() + usize::from(self.default.is_some())
    }
}

impl Paths {
    fn route(&self, path: &str) -> Option<&Arc<Route>> {
        let path = path::canonical(path);
        let exact = self.exact.get(&*path);
        exact.or_else(|| self.longest_prefix(&path)).or(self.default.as_ref())
    }

    fn longest_prefix(&self, path: &[u8]) -> Option<&Arc<Route>> {
        // An element ends where the path does or a `/` stands.
        let ends = |length: &&usize| path.get(**length).map_or(path.len() == **length, |byte| *byte == b'/');
        let mut lengths = self.lengths.iter().filter(ends);
        lengths.find_map(|length| self.prefixes.get(path.get(..*length)?))
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.exact.values().chain(self.prefixes.values()).chain(&self.default)
    }

    fn count(&self) -> usize {
        self.exact.len() + self.prefixes.len() + usize::from(self.default.is_some())
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
