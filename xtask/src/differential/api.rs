//! A real API server with its etcd on loopback of this machine, and requests to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::plan::SERVICE_CIDRS;
use super::program::Program;
use crate::ports::free_address;

/// The administrator's token.
const TOKEN: &str = "token-of-admin";
/// How long it may take to start.
const START: Duration = Duration::from_secs(120);
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    folder: PathBuf,
    port: u16,
    agent: ureq::Agent,
    // The server ends before its store.
    server: Program,
    etcd: Program,
}

/// What the server said to a request.
#[derive(Debug)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The object, or the reason why not.
    pub body: Value,
}

impl Response {
    /// Whether it was done.
    pub const fn is_success(&self) -> bool {
        self.status / 100 == 2
    }

    /// The server's reason.
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

impl ApiServer {
    /// Starts etcd and the server out of the programs in `bin`, with its files in `folder`, and waits until it is ready.
    pub fn start(bin: &Path, folder: &Path) -> anyhow::Result<Self> {
        let [client_port, peer_port, port] = [(); 3].map(|()| free_address().port());
        let key = folder.join("service-accounts.key");
        let made = Command::new("openssl")
            .args(["genpkey", "-quiet", "-algorithm", "RSA", "-out"])
            .arg(&key)
            .output()
            .context("run openssl, which makes the API server's key")?;
        ensure!(
            made.status.success(),
            "openssl: {}",
            String::from_utf8_lossy(&made.stderr).trim()
        );
        let tokens = folder.join("tokens.csv");
        fs::write(&tokens, format!("{TOKEN},admin,admin,\"system:masters\"\n")).context("write the tokens")?;

        let etcd = Program::start("etcd", &etcd(bin, folder, client_port, peer_port), folder)?;
        let mut command = Command::new(bin.join("kube-apiserver"));
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{client_port}"))
            .arg(format!("--service-cluster-ip-range={}", SERVICE_CIDRS.join(",")))
            .args(["--bind-address=127.0.0.1", "--advertise-address=192.0.2.1"])
            .args(["--endpoint-reconciler-type=none", "--authorization-mode=AlwaysAllow"])
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", folder.join("certificates").display()))
            .arg(format!("--token-auth-file={}", tokens.display()))
            .arg(format!("--service-account-key-file={}", key.display()))
            .arg(format!("--service-account-signing-key-file={}", key.display()))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg("--disable-admission-plugins=ServiceAccount");
        let server = Program::start("kube-apiserver", &command, folder)?;
        let mut api = Self {
            folder: folder.to_owned(),
            port,
            agent: ureq::Agent::new_with_defaults(),
            server,
            etcd,
        };
        api.wait_until_ready()?;
        Ok(api)
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let certificate = self.certificate();
        let deadline = Instant::now() + START;
        loop {
            if certificate.is_file() && self.agent_trusting(&certificate).is_ok() {
                let ready = self
                    .agent
                    .get(self.url("/readyz"))
                    .header("Authorization", bearer())
                    .call();
                if ready.is_ok_and(|response| response.status() == 200) {
                    return Ok(());
                }
            }
            self.must_run()?;
            ensure!(
                Instant::now() < deadline,
                "the API server is not ready:\n{}",
                self.server.log_end()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn certificate(&self) -> PathBuf {
        self.folder.join("certificates/apiserver.crt")
    }

    fn agent_trusting(&mut self, certificate: &Path) -> anyhow::Result<()> {
        let pem = fs::read(certificate)?;
        let items = ureq::tls::parse_pem(&pem).collect::<Result<Vec<_>, _>>()?;
        let roots: Vec<Certificate<'static>> = items
            .into_iter()
            .filter_map(|item| match item {
                ureq::tls::PemItem::Certificate(certificate) => Some(certificate),
                _ => None,
            })
            .collect();
        ensure!(!roots.is_empty(), "{} has no certificate", certificate.display());
        // Another part of the process may have chosen a provider already; any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&roots))
            .build();
        self.agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        Ok(())
    }

    /// An error if it or its store has ended.
    pub fn must_run(&mut self) -> anyhow::Result<()> {
        self.etcd.must_run()?;
        self.server.must_run()
    }

    /// Its port on loopback.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// A kubeconfig for a server or proxy on this port of loopback.
    pub fn kubeconfig(&self, name: &str, port: u16) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(format!("kubeconfig-{name}"));
        let text = format!(
            "apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority: '{}'}}}}]
users: [{{name: u, user: {{token: {TOKEN}}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
",
            self.certificate().display()
        );
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    /// Reads an object.
    pub fn get(&self, path: &str) -> anyhow::Result<Response> {
        answer(
            self.agent.get(self.url(path)).header("Authorization", bearer()).call(),
            path,
        )
    }

    /// Deletes an object.
    pub fn delete(&self, path: &str) -> anyhow::Result<Response> {
        answer(
            self.agent
                .delete(self.url(path))
                .header("Authorization", bearer())
                .call(),
            path,
        )
    }

    /// Makes an object in a collection.
    pub fn create(&self, collection: &str, object: &Value) -> anyhow::Result<Response> {
        let request = self.agent.post(self.url(collection)).content_type("application/json");
        answer(
            request.header("Authorization", bearer()).send(object.to_string()),
            collection,
        )
    }

    /// Replaces an object.
    pub fn replace(&self, path: &str, object: &Value) -> anyhow::Result<Response> {
        let request = self.agent.put(self.url(path)).content_type("application/json");
        answer(request.header("Authorization", bearer()).send(object.to_string()), path)
    }

    /// Changes some fields of an object: a merge patch.
    pub fn patch(&self, path: &str, fields: &Value) -> anyhow::Result<Response> {
        let request = self
            .agent
            .patch(self.url(path))
            .content_type("application/merge-patch+json");
        answer(request.header("Authorization", bearer()).send(fields.to_string()), path)
    }
}

fn bearer() -> String {
    format!("Bearer {TOKEN}")
}

fn answer(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>, path: &str) -> anyhow::Result<Response> {
    let mut response = result.with_context(|| format!("ask the API server for {path}"))?;
    let text = response
        .body_mut()
        .read_to_string()
        .with_context(|| format!("read the answer for {path}"))?;
    let status = response.status().as_u16();
    if status >= 500 {
        bail!("the API server answers {status} for {path}: {text}");
    }
    Ok(Response {
        status,
        body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
    })
}

fn etcd(bin: &Path, folder: &Path, client_port: u16, peer_port: u16) -> Command {
    let (client, peer) = (
        format!("http://127.0.0.1:{client_port}"),
        format!("http://127.0.0.1:{peer_port}"),
    );
    let mut command = Command::new(bin.join("etcd"));
    command
        .arg(format!("--data-dir={}", folder.join("etcd").display()))
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=default={peer}"))
        .arg("--unsafe-no-fsync");
    command
}
