//! A certificate that is made for one run.

use anyhow::Context as _;
use serde_json::json;

/// A certificate and its key, signed by itself.
pub(super) struct Certificate {
    host: String,
    pem: String,
    key: String,
}

impl Certificate {
    /// For a host.
    pub(super) fn make(host: &str) -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed([host.to_owned()]).context("make a certificate")?;
        Ok(Self {
            host: host.to_owned(),
            pem: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
        })
    }

    /// The certificate.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// What a user adds for HTTPS: the Secret, and an Ingress that names it for the host.
    pub(super) fn manifests(&self) -> String {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "myapp-tls"}, "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": self.pem, "tls.key": self.key},
        });
        let backend = json!({"service": {"name": "my-spring-app", "port": {"number": 80}}});
        let ingress = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "my-ingress-tls"},
            "spec": {
                "tls": [{"hosts": [self.host], "secretName": "myapp-tls"}],
                "rules": [{"host": self.host, "http": {"paths": [
                    {"path": "/account", "pathType": "Prefix", "backend": backend},
                ]}}],
            },
        });
        // JSON is YAML.
        format!("{secret}\n---\n{ingress}\n")
    }
}
