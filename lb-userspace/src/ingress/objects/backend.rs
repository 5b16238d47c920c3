//! What an Ingress names as the place where requests go.

use std::sync::Arc;

use k8s_openapi::api::networking::v1 as api;

use super::Findings;
use crate::model::Reason;

/// What a rule names.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum BackendRef {
    /// A port of a Service in the Ingress's namespace.
    Service {
        /// Its name.
        name: Arc<str>,
        /// Which port.
        port: PortRef,
    },
    /// Nothing that can be served, and why. Requests are answered with 503.
    None(Arc<str>),
}

/// Which port of a Service.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum PortRef {
    /// By its number.
    Number(u16),
    /// By its name.
    Name(Arc<str>),
}

impl std::fmt::Display for PortRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => write!(f, "`{name}`"),
        }
    }
}

impl BackendRef {
    /// What is written at `field`.
    pub(super) fn read(backend: &api::IngressBackend, field: &str, findings: &mut Findings) -> Self {
        match Self::try_read(backend) {
            Ok(read) => read,
            Err(Fault {
                reason,
                part,
                message,
                remedy,
            }) => {
                let answered = format!("{message}, so requests are answered with 503");
                findings.report_as(reason, format!("{field}{part}"), answered, remedy);
                Self::None(message.into())
            }
        }
    }

    fn try_read(backend: &api::IngressBackend) -> Result<Self, Fault> {
        if let Some(resource) = &backend.resource {
            let (kind, name) = (&resource.kind, &resource.name);
            return Err(Fault {
                reason: Reason::NotSupported,
                part: ".resource",
                message: format!("a resource ({kind} `{name}`) as a backend is not supported"),
                remedy: "name a Service",
            });
        }
        let Some(service) = backend.service.as_ref().filter(|service| !service.name.is_empty()) else {
            return Err(invalid(
                ".service",
                "it names no Service".into(),
                "name a Service and its port",
            ));
        };
        let port = service.port.as_ref();
        let name = port
            .and_then(|port| port.name.as_deref())
            .filter(|name| !name.is_empty());
        let number = port.and_then(|port| port.number).filter(|number| *number != 0);
        let port = match (name, number) {
            (Some(name), None) => PortRef::Name(name.into()),
            (None, Some(number)) => match u16::try_from(number) {
                Ok(number) => PortRef::Number(number),
                Err(_) => {
                    return Err(invalid(
                        ".service.port.number",
                        format!("{number} is not a port number"),
                        "use a number from 1 to 65535",
                    ));
                }
            },
            (None, None) => {
                return Err(invalid(
                    ".service.port",
                    "it names no port".into(),
                    "give the name or the number of a port of the Service",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(invalid(
                    ".service.port",
                    "it has a name and a number".into(),
                    "give one of them only",
                ));
            }
        };
        Ok(Self::Service {
            name: service.name.as_str().into(),
            port,
        })
    }
}

struct Fault {
    reason: Reason,
    part: &'static str,
    message: String,
    remedy: &'static str,
}

const fn invalid(part: &'static str, message: String, remedy: &'static str) -> Fault {
    Fault {
        reason: Reason::InvalidField,
        part,
        message,
        remedy,
    }
}
