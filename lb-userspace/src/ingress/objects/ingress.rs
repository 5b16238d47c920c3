//! Ingresses.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::networking::v1 as api;

use super::{BackendRef, ClassName, Findings, names};
use crate::model::{ObjectKey, ObjectKind, Problem, Reason};

/// Annotations with these beginnings tell other controllers what to do.
const ANNOTATIONS_OF_OTHERS: [&str; 14] = [
    "alb.ingress.kubernetes.io/",
    "appgw.ingress.kubernetes.io/",
    "haproxy-ingress.github.io/",
    "haproxy.org/",
    "ingress.kubernetes.io/",
    "ingress.cilium.io/",
    "konghq.com/",
    "nginx.com/",
    "nginx.ingress.kubernetes.io/",
    "nginx.org/",
    "projectcontour.io/",
    "traefik.containo.us/",
    "traefik.ingress.kubernetes.io/",
    "traefik.io/",
];
/// Ours. There are none for Ingresses yet, so whatever is written there is a mistake.
const OUR_ANNOTATIONS: &str = "fairway.io/";

/// What the API refuses in a path (`pkg/apis/networking/validation` of Kubernetes 1.30 and later).
const FORBIDDEN_IN_PATHS: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
const FORBIDDEN_AT_THE_END: [&str; 2] = ["/.", "/.."];
/// Characters that nobody writes into a path, but into a pattern.
const OF_PATTERNS: [char; 12] = ['*', '(', ')', '[', ']', '{', '}', '|', '^', '$', '\\', '?'];

/// An Ingress.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ingress {
    /// Namespace and name.
    pub key: ObjectKey,
    /// When it was created, Unix seconds. Where two Ingresses claim one thing, the older one has it.
    pub created_s: i64,
    /// The class that it names.
    pub class: ClassName,
    /// Where requests go that no rule is for.
    pub default_backend: Option<BackendRef>,
    /// Its rules that can be served.
    pub rules: Box<[Rule]>,
    /// What it says of certificates.
    pub tls: Box<[Tls]>,
    /// The addresses in its status.
    pub status: Box<[Address]>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// What an Ingress says of a host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Its place in `spec.rules`.
    pub index: usize,
    /// The host.
    pub host: Host,
    /// Its paths that can be served. `None`: it names none, so all are for the Ingress's default backend.
    pub paths: Option<Box<[PathRule]>>,
}

/// For which hosts a rule is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Host {
    /// For those that no other rule names.
    Any,
    /// For those that have exactly one label before `.` and this name.
    Wildcard(Arc<str>),
    /// For this one.
    Exact(Arc<str>),
}

impl Host {
    /// The host as it is written, if it can be.
    fn read(text: &str) -> Result<Self, &'static str> {
        match (names::fault(text), text.strip_prefix("*.")) {
            _ if text.is_empty() => Ok(Self::Any),
            (Some(fault), _) => Err(fault),
            (None, Some(name)) => Ok(Self::Wildcard(name.into())),
            (None, None) => Ok(Self::Exact(text.into())),
        }
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Wildcard(name) => write!(f, "*.{name}"),
            Self::Exact(name) => f.write_str(name),
        }
    }
}

/// A path of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathRule {
    /// Its place in `http.paths`.
    pub index: usize,
    /// The path as it is written; begins with `/`.
    pub path: Arc<str>,
    /// How requests are compared with it.
    pub kind: PathKind,
    /// Where they go.
    pub backend: BackendRef,
}

/// How requests are compared with a path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum PathKind {
    /// The whole path is this one.
    Exact,
    /// The path begins with the elements of this one. `ImplementationSpecific` is this as well.
    Prefix,
}

impl std::fmt::Display for PathKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Exact => "Exact",
            Self::Prefix => "Prefix",
        })
    }
}

/// What an Ingress says of certificates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tls {
    /// Its place in `spec.tls`.
    pub index: usize,
    /// For which hosts; empty = for all names in the certificate.
    pub hosts: Box<[Host]>,
    /// The Secret with the certificate; `None` = the default certificate.
    pub secret: Option<Arc<str>>,
}

/// Where something is reached.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Address {
    /// At an address.
    Ip(IpAddr),
    /// At a name.
    Hostname(Arc<str>),
}

impl Address {
    pub(super) fn read(ip: Option<&str>, hostname: Option<&str>) -> Option<Self> {
        let ip = ip.and_then(|ip| ip.parse().ok()).map(Self::Ip);
        ip.or_else(|| {
            hostname
                .filter(|name| !name.is_empty())
                .map(|name| Self::Hostname(name.into()))
        })
    }
}

impl From<&api::Ingress> for Ingress {
    fn from(object: &api::Ingress) -> Self {
        let meta = &object.metadata;
        let key = ObjectKey::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        let mut findings = Findings::new(ObjectKind::Ingress, &key);
        let empty = api::IngressSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let class = ClassName::read(object, &mut findings);
        annotations(object, &mut findings);
        let default_backend = spec
            .default_backend
            .as_ref()
            .map(|backend| BackendRef::read(backend, "spec.defaultBackend", &mut findings));
        if default_backend.is_none() && spec.rules.iter().flatten().next().is_none() {
            findings.report(
                "spec",
                "it has neither rules nor a default backend, and serves nothing",
                "give it one of them",
            );
        }
        let rules = rules(spec, default_backend.is_some(), &mut findings);
        let tls = tls(spec, &mut findings);
        let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let entries = status.into_iter().flat_map(|status| status.ingress.iter().flatten());
        Self {
            created_s: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            class,
            default_backend,
            rules,
            tls,
            status: entries
                .filter_map(|entry| Address::read(entry.ip.as_deref(), entry.hostname.as_deref()))
                .collect(),
            problems: findings.problems,
            key,
        }
    }
}

fn annotations(object: &api::Ingress, findings: &mut Findings) {
    let names: Vec<&str> = object
        .metadata
        .annotations
        .iter()
        .flat_map(|all| all.keys().map(String::as_str))
        .collect();
    let of_others = |name: &&str| ANNOTATIONS_OF_OTHERS.iter().any(|prefix| name.starts_with(prefix));
    let others: Vec<&str> = names.iter().copied().filter(of_others).collect();
    if !others.is_empty() {
        findings.report_as(
            Reason::NotSupported,
            "metadata.annotations",
            format!(
                "some are for another controller and have no effect: {}",
                others.join(", ")
            ),
            "remove them, or see to it that the Ingress does without",
        );
    }
    for name in names.into_iter().filter(|name| name.starts_with(OUR_ANNOTATIONS)) {
        findings.report(
            format!("metadata.annotations[{name}]"),
            "there is no such annotation for Ingresses, and it has no effect",
            "remove it",
        );
    }
}

fn rules(spec: &api::IngressSpec, has_default: bool, findings: &mut Findings) -> Box<[Rule]> {
    let mut rules = Vec::new();
    for (index, rule) in spec.rules.iter().flatten().enumerate() {
        let field = format!("spec.rules[{index}]");
        let text = rule.host.as_deref().unwrap_or_default();
        let host = match Host::read(text) {
            Ok(host) => host,
            Err(fault) => {
                findings.report(
                    format!("{field}.host"),
                    format!("`{text}` {fault}; the rule is left out"),
                    "use a name such as shop.example.com, or *.example.com for all names with one label before it",
                );
                continue;
            }
        };
        if rule.http.is_none() && !has_default {
            findings.report(
                format!("{field}.http"),
                "it has no paths, and the Ingress has no default backend for them",
                "give it paths, or the Ingress a spec.defaultBackend",
            );
        }
        let paths = rule.http.as_ref().map(|http| {
            let paths = http.paths.iter().enumerate();
            paths
                .filter_map(|(index, path)| read_path(path, index, &field, findings))
                .collect()
        });
        rules.push(Rule { index, host, paths });
    }
    rules.into()
}

fn read_path(path: &api::HTTPIngressPath, index: usize, rule: &str, findings: &mut Findings) -> Option<PathRule> {
    let field = format!("{rule}.http.paths[{index}]");
    let (kind, specific) = match path.path_type.as_str() {
        "Exact" => (PathKind::Exact, false),
        "Prefix" => (PathKind::Prefix, false),
        "ImplementationSpecific" => (PathKind::Prefix, true),
        other => {
            findings.report(
                format!("{field}.pathType"),
                format!("`{other}` is unknown; the path is left out"),
                "use Exact, Prefix or ImplementationSpecific",
            );
            return None;
        }
    };
    let text = match path.path.as_deref() {
        None | Some("") if specific => "/",
        text => text.unwrap_or_default(),
    };
    if let Some(fault) = path_fault(text) {
        findings.report(
            format!("{field}.path"),
            format!("`{text}` {fault}; the path is left out"),
            "write the path that clients ask for, beginning with `/`",
        );
        return None;
    }
    if text.contains(OF_PATTERNS) {
        findings.report_as(
            Reason::NotSupported,
            format!("{field}.path"),
            format!("`{text}` looks like a pattern, and is compared as it is written"),
            "write out the paths or their beginnings",
        );
    }
    Some(PathRule {
        index,
        path: text.into(),
        kind,
        backend: BackendRef::read(&path.backend, &format!("{field}.backend"), findings),
    })
}

/// Why the API does not allow the path, in words.
fn path_fault(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return Some("does not begin with `/`".to_owned());
    }
    if let Some(part) = FORBIDDEN_IN_PATHS.iter().find(|part| path.contains(**part)) {
        return Some(format!("must not contain `{part}`"));
    }
    let end = FORBIDDEN_AT_THE_END.iter().find(|end| path.ends_with(**end))?;
    Some(format!("must not end with `{end}`"))
}

fn tls(spec: &api::IngressSpec, findings: &mut Findings) -> Box<[Tls]> {
    let mut all = Vec::new();
    for (index, tls) in spec.tls.iter().flatten().enumerate() {
        let mut hosts = Vec::new();
        let listed = tls.hosts.as_deref().unwrap_or_default();
        for (number, text) in listed.iter().enumerate() {
            match Host::read(text) {
                Ok(Host::Any) | Err(_) => findings.report(
                    format!("spec.tls[{index}].hosts[{number}]"),
                    format!("`{text}` {}; it is left out", names::fault(text).unwrap_or("is empty")),
                    "use a name such as shop.example.com, or *.example.com for all names with one label before it",
                ),
                Ok(host) => hosts.push(host),
            }
        }
        let secret = tls.secret_name.as_deref().filter(|name| !name.is_empty());
        if secret.is_none() && listed.is_empty() {
            findings.report(
                format!("spec.tls[{index}]"),
                "it names neither hosts nor a Secret, and says nothing",
                "remove it, or name them",
            );
        }
        // With hosts that are all wrong it is not for all names.
        if !hosts.is_empty() || (listed.is_empty() && secret.is_some()) {
            all.push(Tls {
                index,
                hosts: hosts.into(),
                secret: secret.map(Into::into),
            });
        }
    }
    all.into()
}
