//! From Ingresses and Secrets to certificates.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use rustls::sign::CertifiedKey;

use super::Certificates;
use crate::ingress::objects::{Certificate, Findings, Host, Ingress, Objects, Tls, Validity};
use crate::model::{ObjectKey, ObjectKind, Problem, Reason};

/// What certificates depend on besides objects.
#[derive(Clone, Debug)]
pub struct Options {
    /// For clients that ask for a name without a certificate, or for none.
    pub self_signed: Arc<CertifiedKey>,
    /// The Secret to be used in place of that.
    pub default_certificate: Option<ObjectKey>,
    /// What time it is, Unix seconds.
    pub now_s: i64,
}

/// Certificates, and what is wrong with what they come from.
#[derive(Debug)]
pub struct Built {
    /// The certificates.
    pub certificates: Certificates,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Builds the certificates of these Ingresses, the oldest first.
pub fn build(ours: &[&Arc<Ingress>], objects: &Objects, options: &Options) -> Built {
    let mut builder = Builder {
        objects,
        options,
        certificates: Certificates::new(Arc::clone(&options.self_signed)),
        owners: HashMap::new(),
        secrets: HashMap::new(),
        problems: Vec::new(),
    };
    if let Some(key) = &options.default_certificate
        && let Some(certificate) = builder.secret(key)
    {
        builder.certificates.default = Arc::clone(&certificate.certified);
    }
    for ingress in ours {
        let mut findings = Findings::new(ObjectKind::Ingress, &ingress.key);
        for tls in &ingress.tls {
            builder.add(ingress, tls, &mut findings);
        }
        builder.problems.extend(findings.problems);
    }
    if let Some(key) = &options.default_certificate
        && !objects.secrets.contains_key(key)
    {
        builder.problems.push(no_default(key));
    }
    Built {
        certificates: builder.certificates,
        problems: builder.problems,
    }
}

struct Builder<'a> {
    objects: &'a Objects,
    options: &'a Options,
    certificates: Certificates,
    /// Which Ingress has a host first, and with which Secret.
    owners: HashMap<Host, (&'a ObjectKey, Option<ObjectKey>)>,
    /// The certificates looked at so far; what is wrong with a Secret is said once.
    secrets: HashMap<ObjectKey, Option<&'a Certificate>>,
    problems: Vec<Problem>,
}

impl<'a> Builder<'a> {
    fn add(&mut self, ingress: &'a Ingress, tls: &'a Tls, findings: &mut Findings) {
        let field = format!("spec.tls[{}]", tls.index);
        let key = tls.secret.as_ref().map(|name| ObjectKey {
            namespace: Arc::clone(&ingress.key.namespace),
            name: Arc::clone(name),
        });
        let certificate = key.as_ref().and_then(|key| self.secret(key));
        if let Some(key) = &key
            && certificate.is_none()
        {
            let what = if self.objects.secrets.contains_key(key) {
                format!("Secret {key} cannot be used (see there)")
            } else {
                format!("there is no Secret {key} of type kubernetes.io/tls")
            };
            findings.report_as(
                Reason::BadCertificate,
                format!("{field}.secretName"),
                format!("{what}, so clients are shown the default certificate"),
                "create or correct the Secret",
            );
        }
        let hosts = match certificate {
            Some(certificate) if tls.hosts.is_empty() => &certificate.names,
            _ => &tls.hosts,
        };
        for host in hosts {
            if self.is_anothers(ingress, host, key.as_ref(), &field, findings) {
                continue;
            }
            if let (Some(certificate), Some(key)) = (certificate, &key)
                && !certificate.covers(host)
            {
                findings.report_as(
                    Reason::BadCertificate,
                    format!("{field}.hosts"),
                    format!(
                        "`{host}` is not among the names of the certificate in Secret {key}, which is used all the same"
                    ),
                    "use a certificate with this name (subjectAltName)",
                );
            }
            let certified = certificate.map(|certificate| Arc::clone(&certificate.certified));
            match host {
                Host::Exact(name) => self.certificates.exact.insert((&**name).into(), certified),
                Host::Wildcard(behind) => self.certificates.wildcard.insert((&**behind).into(), certified),
                Host::Any => None,
            };
        }
    }

    /// Whether another entry has the host already. It is told if it has another Secret there.
    fn is_anothers(
        &mut self,
        ingress: &'a Ingress,
        host: &Host,
        secret: Option<&ObjectKey>,
        field: &str,
        findings: &mut Findings,
    ) -> bool {
        match self.owners.entry(host.clone()) {
            Entry::Vacant(place) => {
                place.insert((&ingress.key, secret.cloned()));
                false
            }
            Entry::Occupied(place) => {
                let (owner, used) = place.get();
                if used.as_ref() != secret {
                    let used = used
                        .as_ref()
                        .map_or("the default certificate".to_owned(), |used| format!("Secret {used}"));
                    let whose = if **owner == ingress.key {
                        "an earlier entry of this Ingress".to_owned()
                    } else {
                        format!("Ingress {owner}, which is older,")
                    };
                    findings.report_as(
                        Reason::RuleConflict,
                        field,
                        format!("{whose} has `{host}` with {used}, which is what clients are shown"),
                        "name the same Secret, or remove one of them",
                    );
                }
                true
            }
        }
    }

    /// The certificate in a Secret, if it can be used.
    fn secret(&mut self, key: &ObjectKey) -> Option<&'a Certificate> {
        if let Some(known) = self.secrets.get(key) {
            return *known;
        }
        let secret = self.objects.secrets.get(key)?;
        let mut findings = Findings::new(ObjectKind::Secret, key);
        let certificate = match secret.certificate() {
            Ok(certificate) => {
                check_time(certificate.validity, self.options.now_s, &mut findings);
                Some(certificate)
            }
            Err(fault) => {
                findings.report_as(
                    Reason::BadCertificate,
                    fault.field,
                    format!("{}; clients are shown the default certificate", fault.message),
                    fault.remedy,
                );
                None
            }
        };
        self.problems.extend(findings.problems);
        self.secrets.insert(key.clone(), certificate);
        certificate
    }
}

fn check_time(validity: Validity, now_s: i64, findings: &mut Findings) {
    let day = |second: i64| Timestamp::from_second(second).map_or_else(|_| second.to_string(), |time| time.to_string());
    if now_s > validity.not_after_s {
        findings.report_as(
            Reason::BadCertificate,
            "data[tls.crt]",
            format!(
                "the certificate has expired ({}), and clients refuse it",
                day(validity.not_after_s)
            ),
            "renew it",
        );
    } else if now_s < validity.not_before_s {
        findings.report_as(
            Reason::BadCertificate,
            "data[tls.crt]",
            format!(
                "the certificate is not valid before {}, and clients refuse it",
                day(validity.not_before_s)
            ),
            "use one that is valid now, or set the clock",
        );
    }
}

fn no_default(key: &ObjectKey) -> Problem {
    Problem {
        kind: ObjectKind::Secret,
        object: key.clone(),
        field: "metadata.name".into(),
        message:
            "there is no such Secret of type kubernetes.io/tls; the default certificate is one that is signed by itself"
                .into(),
        remedy: "create the Secret, or name another one by --default-tls-secret".into(),
        reason: Reason::BadCertificate,
    }
}
