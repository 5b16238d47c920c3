//! Reading what the agents say that they have programmed.

use std::net::SocketAddr;

use anyhow::Context as _;
use serde_json::Value;

use super::paths::Service;

/// The port of the document's Service: it has no name.
const DOCUMENT: &str = "default/my-spring-app";

/// One frontend, as `fairway services -o json` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frontend {
    /// The Service's port: namespace, name, port.
    pub service: String,
    /// What it is: ClusterIP, NodePort, LoadBalancer or ExternalIP.
    pub kind: String,
    /// Address and port.
    pub address: SocketAddr,
}

/// All frontends in the output of `fairway services -o json`.
pub fn frontends(services: &Value) -> Vec<Frontend> {
    let text = |entry: &Value, name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    services
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let address = text(entry, "address").parse().ok()?;
            Some(Frontend {
                service: text(entry, "service"),
                kind: text(entry, "kind"),
                address,
            })
        })
        .collect()
}

/// The Service of the document, whose ClusterIP and NodePort the agents have chosen.
///
/// # Errors
/// If a part of it is not programmed yet.
pub fn document_service(frontends: &[Frontend], load_balancer: bool) -> anyhow::Result<Service> {
    let of_kind = |kind: &str| {
        let found = frontends.iter().find(|f| f.service == DOCUMENT && f.kind == kind);
        found
            .map(|frontend| frontend.address)
            .with_context(|| format!("the {kind} of my-spring-app is not programmed"))
    };
    Ok(Service {
        name: "my-spring-app".to_owned(),
        cluster_ips: [Some(of_kind("ClusterIP")?.ip()), None],
        load_balancer: [
            if load_balancer {
                Some(of_kind("LoadBalancer")?.ip())
            } else {
                None
            },
            None,
        ],
        node_port: if load_balancer {
            Some(of_kind("NodePort")?.port())
        } else {
            None
        },
        local: false,
        udp: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_s_service_is_known_when_each_of_its_frontends_is_programmed() {
        let entry =
            |kind: &str, frontend: &str| serde_json::json!({"service": DOCUMENT, "kind": kind, "address": frontend});
        let mut entries = vec![
            entry("ClusterIP", "10.96.0.7:80"),
            entry("NodePort", "172.18.0.11:31000"),
        ];
        let some = frontends(&Value::Array(entries.clone()));
        assert!(document_service(&some, true).is_err());
        entries.push(entry("LoadBalancer", "198.51.100.80:80"));
        let all = frontends(&Value::Array(entries));
        let service = document_service(&all, true).expect("all of it is there");
        assert_eq!(service.node_port, Some(31000));
        assert_eq!(service.load_balancer[0], "198.51.100.80".parse().ok());
    }
}
