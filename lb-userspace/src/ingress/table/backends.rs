//! From the backends that Ingresses name to addresses.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Backend, BackendProtocol, Upstream};
use crate::ingress::objects::{BackendRef, Findings, Objects, PortRef, Service, ServiceKind, ServicePort, Slice};
use crate::model::{ObjectKey, Reason};

/// Finds backends; each port of a Service once.
pub(super) struct Backends<'a> {
    objects: &'a Objects,
    upstream: Upstream,
    /// By Service; made when first needed.
    slices: Option<HashMap<&'a ObjectKey, Vec<&'a Slice>>>,
    known: HashMap<(ObjectKey, u16), Arc<Backend>>,
}

/// Why a Service port cannot be a backend.
struct Fault {
    reason: Reason,
    part: &'static str,
    message: String,
    remedy: &'static str,
}

impl<'a> Backends<'a> {
    pub(super) fn new(objects: &'a Objects, upstream: Upstream) -> Self {
        Self {
            objects,
            upstream,
            slices: None,
            known: HashMap::new(),
        }
    }

    /// The backend that is named at `field` by an Ingress in `namespace`.
    pub(super) fn find(
        &mut self,
        namespace: &Arc<str>,
        backend: &BackendRef,
        field: &str,
        findings: &mut Findings,
    ) -> Arc<Backend> {
        let (name, port) = match backend {
            BackendRef::Service { name, port } => (name, port),
            // It has been reported with the Ingress.
            BackendRef::None(message) => return none(ObjectKey::new(namespace, ""), 0, message),
        };
        let key = ObjectKey {
            namespace: Arc::clone(namespace),
            name: Arc::clone(name),
        };
        match self.service_port(&key, port) {
            Ok((service, port)) => {
                if matches!(port.app_protocol.as_deref(), Some("https" | "kubernetes.io/wss")) {
                    findings.report_as(
                        Reason::NotSupported,
                        format!("{field}.service"),
                        format!(
                            "port {} of Service {key} has appProtocol `{}`, and TLS to backends is not supported: \
                             they are spoken to in plain HTTP",
                            port.port,
                            port.app_protocol.as_deref().unwrap_or_default()
                        ),
                        "name a port of the Service that speaks plain HTTP",
                    );
                }
                self.known_or_new(service, port)
            }
            Err(fault) => {
                findings.report_as(
                    fault.reason,
                    format!("{field}.service{}", fault.part),
                    format!("{}, so requests are answered with 503", fault.message),
                    fault.remedy,
                );
                let number = match port {
                    PortRef::Number(number) => *number,
                    PortRef::Name(_) => 0,
                };
                none(key, number, &fault.message)
            }
        }
    }

    fn service_port(&self, key: &ObjectKey, port: &PortRef) -> Result<(&'a Service, &'a ServicePort), Fault> {
        let service: &'a Service = self.objects.services.get(key).ok_or_else(|| Fault {
            reason: Reason::BackendNotFound,
            part: ".name",
            message: format!("there is no Service {key}"),
            remedy: "create it, or name another one",
        })?;
        if service.kind == ServiceKind::ExternalName {
            return Err(Fault {
                reason: Reason::NotSupported,
                part: ".name",
                message: format!("Service {key} is of type ExternalName, which is not supported as a backend"),
                remedy: "name a Service with endpoints",
            });
        }
        let found = service.ports.iter().find(|candidate| match port {
            PortRef::Number(number) => candidate.port == *number,
            PortRef::Name(name) => candidate.name == *name,
        });
        let found = found.ok_or_else(|| Fault {
            reason: Reason::BackendNotFound,
            part: ".port",
            message: format!("Service {key} has no TCP port {port}"),
            remedy: "name a port that it has",
        })?;
        Ok((service, found))
    }

    fn known_or_new(&mut self, service: &'a Service, port: &'a ServicePort) -> Arc<Backend> {
        let key = (service.key.clone(), port.port);
        if let Some(known) = self.known.get(&key) {
            return Arc::clone(known);
        }
        let addrs = match &service.kind {
            ServiceKind::ClusterIps(ips) if self.upstream == Upstream::Service => {
                ips.iter().map(|ip| SocketAddr::new(*ip, port.port)).collect()
            }
            _ => self.endpoints(service, port),
        };
        let new = Arc::new(Backend {
            service: service.key.clone(),
            port: port.port,
            protocol: BackendProtocol::of(port.app_protocol.as_deref()),
            problem: addrs
                .is_empty()
                .then(|| format!("Service {} has no ready endpoints", service.key)),
            addrs,
        });
        self.known.insert(key, Arc::clone(&new));
        new
    }

    /// The endpoints of a port that are ready; if none is, those that are going away but still serve (KEP-1669).
    fn endpoints(&mut self, service: &Service, port: &ServicePort) -> Vec<SocketAddr> {
        let objects = self.objects;
        let slices = self.slices.get_or_insert_with(|| {
            let mut slices: HashMap<&ObjectKey, Vec<&Slice>> = HashMap::new();
            for slice in objects.slices.values() {
                slices.entry(&slice.service).or_default().push(slice);
            }
            slices
        });
        let (mut ready, mut terminating) = (BTreeSet::new(), BTreeSet::new());
        for slice in slices.get(&service.key).into_iter().flatten() {
            for (_, number) in slice.ports.iter().filter(|(name, _)| *name == port.name) {
                for endpoint in &slice.endpoints {
                    let set = if endpoint.terminating {
                        &mut terminating
                    } else {
                        &mut ready
                    };
                    set.insert(SocketAddr::new(endpoint.addr, *number));
                }
            }
        }
        let usable = if ready.is_empty() { terminating } else { ready };
        usable.into_iter().collect()
    }
}

fn none(service: ObjectKey, port: u16, message: &str) -> Arc<Backend> {
    Arc::new(Backend {
        service,
        port,
        protocol: BackendProtocol::Http1,
        addrs: Vec::new(),
        problem: Some(message.to_owned()),
    })
}

impl BackendProtocol {
    /// What a port with this `appProtocol` speaks.
    fn of(app_protocol: Option<&str>) -> Self {
        match app_protocol {
            Some("kubernetes.io/h2c" | "grpc") => Self::H2c,
            _ => Self::Http1,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.service.name {
            "" => f.write_str("(none)"),
            _ => write!(f, "{}:{}", self.service, self.port),
        }
    }
}
