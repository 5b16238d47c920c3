//! Which certificate a client is shown.
//!
//! By the name that it asks for (SNI): the certificate for exactly this name, else that for all names with one label
//! before the rest, else the default one. That is made and signed by itself when the program starts, unless a Secret is
//! named for it. A new certificate is a new set of certificates: connections that exist are not touched.

mod build;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

pub use build::{Built, Options, build};

use super::objects::{label_behind, lower};

/// The name in the certificate that is made here: whoever sees it should know what it is.
const DEFAULT_NAME: &str = "fairway-ingress-default.invalid";

/// Certificates by the names that clients ask for.
pub struct Certificates {
    /// `None`: the default one, since that of the Secret cannot be used or none is named.
    exact: HashMap<Box<str>, Option<Arc<CertifiedKey>>>,
    /// By the name behind the first label.
    wildcard: HashMap<Box<str>, Option<Arc<CertifiedKey>>>,
    default: Arc<CertifiedKey>,
}

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be made or signed.
    #[error("cannot make the default certificate")]
    Make(#[from] rcgen::Error),
    /// It cannot be used.
    #[error("cannot use the default certificate that was just made")]
    Use(#[from] rustls::Error),
}

impl Certificates {
    /// Nothing but a default certificate.
    pub fn new(default: Arc<CertifiedKey>) -> Self {
        Self {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
            default,
        }
    }

    /// The certificate for a client that asks for this name, or for none.
    pub fn find(&self, server_name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let found = server_name.and_then(|name| self.of_name(name)).and_then(Option::as_ref);
        Some(Arc::clone(found.unwrap_or(&self.default)))
    }

    /// The certificate for names that have none.
    pub fn default_certificate(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.default)
    }

    /// Whether an Ingress has TLS for this host. It has, too, if its Secret cannot be used: what was to be encrypted
    /// is not to be had in clear because of that.
    pub fn serves(&self, host: &str) -> bool {
        self.of_name(host).is_some()
    }

    /// How many names there are certificates for.
    pub fn names(&self) -> usize {
        self.exact.len() + self.wildcard.len()
    }

    fn of_name(&self, name: &str) -> Option<&Option<Arc<CertifiedKey>>> {
        let name = lower(name);
        let exact = self.exact.get(&*name);
        exact.or_else(|| label_behind(&name).and_then(|behind| self.wildcard.get(behind)))
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = self.exact.keys().map(ToString::to_string);
        let names = exact.chain(self.wildcard.keys().map(|behind| format!("*.{behind}")));
        f.debug_set().entries(names).finish()
    }
}

/// Makes a certificate that nobody has signed but itself, for names that have none.
///
/// # Errors
/// If no key or certificate can be made, which is when the system gives no random numbers.
pub fn self_signed() -> Result<Arc<CertifiedKey>, Error> {
    let made = rcgen::generate_simple_self_signed([DEFAULT_NAME.to_owned()])?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let chain = vec![made.cert.der().clone()];
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &ring::default_provider())?))
}

#[cfg(test)]
mod tests;
