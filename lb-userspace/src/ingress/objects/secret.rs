//! TLS Secrets and the certificates in them.
//!
//! A Secret is kept as it came and looked into when an Ingress first names it: a cluster may have thousands of which a
//! few are ours. Nothing of a key is ever logged.

use std::fmt;
use std::sync::{Arc, OnceLock};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1 as api;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::sign::CertifiedKey;
use rustls::{Error as TlsError, InconsistentKeys};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::Host;
use super::names;
use crate::model::ObjectKey;

/// The type of Secrets with a certificate and its key.
const TYPE: &str = "kubernetes.io/tls";
/// Where they are in it.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// A Secret.
pub struct Secret {
    /// Namespace and name.
    pub key: ObjectKey,
    content: Content,
    certificate: OnceLock<Result<Certificate, Unusable>>,
}

#[derive(PartialEq, Eq)]
struct Content {
    kind: Box<str>,
    certificate: Option<Box<[u8]>>,
    key: Option<Box<[u8]>>,
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Certificate {
    /// The chain and the key.
    pub certified: Arc<CertifiedKey>,
    /// The names that it is for.
    pub names: Box<[Host]>,
    /// When it is valid.
    pub validity: Validity,
}

/// When a certificate is valid, Unix seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// From this on.
    pub not_before_s: i64,
    /// Up to and with this.
    pub not_after_s: i64,
}

/// Why there is no certificate in a Secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unusable {
    /// The field of the Secret.
    pub field: &'static str,
    /// What is wrong with it.
    pub message: String,
    /// What to do.
    pub remedy: &'static str,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("key", &self.key).finish_non_exhaustive()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key && self.content == other.content
    }
}

impl From<&api::Secret> for Secret {
    fn from(object: &api::Secret) -> Self {
        let meta = &object.metadata;
        let bytes = |name: &str| -> Option<Box<[u8]>> {
            // A folder of manifests may say it in clear, as one may to an API server.
            let clear = object
                .string_data
                .as_ref()
                .and_then(|all| all.get(name))
                .map(String::as_bytes);
            let encoded = object
                .data
                .as_ref()
                .and_then(|all| all.get(name))
                .map(|ByteString(bytes)| bytes.as_slice());
            clear.or(encoded).filter(|bytes| !bytes.is_empty()).map(Into::into)
        };
        Self {
            key: ObjectKey::new(
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default(),
            ),
            content: Content {
                kind: object.type_.as_deref().unwrap_or("Opaque").into(),
                certificate: bytes(CERTIFICATE),
                key: bytes(KEY),
            },
            certificate: OnceLock::new(),
        }
    }
}

impl Secret {
    /// The certificate in it.
    ///
    /// # Errors
    /// If there is none, or it cannot be used.
    pub fn certificate(&self) -> Result<&Certificate, &Unusable> {
        self.certificate.get_or_init(|| self.content.read()).as_ref()
    }
}

impl Content {
    fn read(&self) -> Result<Certificate, Unusable> {
        if &*self.kind != TYPE {
            return Err(unusable(
                "type",
                format!("it is `{}`", self.kind),
                "make it a Secret of type kubernetes.io/tls",
            ));
        }
        let chain = chain(self.certificate.as_deref())?;
        let key = private_key(self.key.as_deref())?;
        let first = chain.first().ok_or_else(|| missing("data[tls.crt]", "certificate"))?;
        let (names, validity) = look_into(first)?;
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| match error {
            TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => unusable(
                "data[tls.key]",
                "the key is not that of the certificate in tls.crt".to_owned(),
                "put a certificate and its own key into it, the certificate first in its chain",
            ),
            error => unusable(
                "data[tls.key]",
                format!("the key cannot be used: {error}"),
                "use an unencrypted RSA (2048 bits or more), ECDSA (P-256, P-384) or Ed25519 key",
            ),
        })?;
        Ok(Certificate {
            certified: Arc::new(certified),
            names,
            validity,
        })
    }
}

fn chain(pem: Option<&[u8]>) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    const FIELD: &str = "data[tls.crt]";
    let pem = pem.ok_or_else(|| missing(FIELD, "certificate"))?;
    let chain: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(unusable(
            FIELD,
            "there is no PEM certificate in it".to_owned(),
            "put the chain into it as PEM (BEGIN CERTIFICATE), the certificate of the hosts first",
        )),
        Ok(chain) => Ok(chain),
        Err(error) => Err(unusable(
            FIELD,
            format!("it is not PEM: {error}"),
            "put the chain into it as PEM",
        )),
    }
}

fn private_key(pem: Option<&[u8]>) -> Result<PrivateKeyDer<'static>, Unusable> {
    const FIELD: &str = "data[tls.key]";
    let pem = pem.ok_or_else(|| missing(FIELD, "key"))?;
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound => unusable(
            FIELD,
            "there is no unencrypted PEM private key in it".to_owned(),
            "put the key into it as PEM (BEGIN PRIVATE KEY)",
        ),
        // The error of a line quotes it, and it may be a part of the key.
        _ => unusable(
            FIELD,
            "it is not PEM".to_owned(),
            "put the key into it as PEM (BEGIN PRIVATE KEY)",
        ),
    })
}

/// The names and the validity of a certificate. Names that no host can have are left out.
fn look_into(certificate: &CertificateDer<'_>) -> Result<(Box<[Host]>, Validity), Unusable> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| {
        unusable(
            "data[tls.crt]",
            format!("the certificate cannot be read: {error}"),
            "put an X.509 certificate into it",
        )
    })?;
    let alternatives = parsed.subject_alternative_name().ok().flatten();
    let general = alternatives.iter().flat_map(|extension| &extension.value.general_names);
    let names = general.filter_map(|name| match name {
        GeneralName::DNSName(name) => {
            let name = names::lower(name);
            match name.strip_prefix("*.") {
                _ if names::fault(&name).is_some() => None,
                Some(behind) => Some(Host::Wildcard(behind.into())),
                None => Some(Host::Exact((&*name).into())),
            }
        }
        _ => None,
    });
    let validity = Validity {
        not_before_s: parsed.validity().not_before.timestamp(),
        not_after_s: parsed.validity().not_after.timestamp(),
    };
    Ok((names.collect(), validity))
}

fn missing(field: &'static str, what: &str) -> Unusable {
    unusable(
        field,
        format!("there is no {what}"),
        "put a PEM certificate into tls.crt and its key into tls.key",
    )
}

const fn unusable(field: &'static str, message: String, remedy: &'static str) -> Unusable {
    Unusable { field, message, remedy }
}

impl Certificate {
    /// Whether a client that asks for this host would find it among the names. A wildcard covers one label, and a host
    /// that is one is covered by the same one only (RFC 6125, section 6.4.3).
    pub fn covers(&self, host: &Host) -> bool {
        self.names.iter().any(|name| match (name, host) {
            (Host::Wildcard(behind), Host::Exact(host)) => names::label_behind(host) == Some(behind),
            (name, host) => name == host,
        })
    }
}
