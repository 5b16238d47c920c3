//! A real `fairway ingress` on loopback, with a folder of manifests.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::sleep;

use crate::client;
use crate::support::ports::free_address;
use crate::support::process::Program;

/// Whatever is waited for has to come within this.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The process, with all that is written for it. Everything is removed when this is dropped.
pub struct Lab {
    folder: PathBuf,
    program: Program,
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub metrics: SocketAddr,
}

/// An address of its own for a backend, where a Service has it as its ClusterIP: a port of 127.0.0.0/8.
pub fn backend_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let [_, _, high, low] = std::process::id().to_be_bytes();
    // Tests of other processes have others.
    let ip = Ipv4Addr::new(127, 1 + high % 100, low, 1 + number[1]);
    (ip, 8080).into()
}

/// A Service at this address; what its port speaks.
pub fn service(name: &str, at: SocketAddr, protocol: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  clusterIP: {}
  ports: [{{port: {}, appProtocol: '{protocol}'}}]
",
        at.ip(),
        at.port()
    )
}

/// An Ingress that sends a host's requests to this Service.
pub fn ingress(name: &str, host: &str, service: &str, port: u16) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: {name}}}
spec:
  ingressClassName: fairway
  rules:
    - host: '{host}'
      http:
        paths:
          - {{path: /, pathType: Prefix, backend: {{service: {{name: {service}, port: {{number: {port}}}}}}}}}
"
    )
}

/// An Ingress with TLS by the Secret `{name}-tls`.
pub fn tls_ingress(name: &str, host: &str, service: &str, port: u16) -> String {
    ingress(name, host, service, port) + &format!("  tls: [{{hosts: ['{host}'], secretName: {name}-tls}}]\n")
}

/// A Secret with a certificate, in PEM.
pub fn secret(name: &str, certificate: &str, key: &str) -> String {
    let indent = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    format!(
        "apiVersion: v1
kind: Secret
metadata: {{name: {name}}}
type: kubernetes.io/tls
stringData:
  tls.crt: |
{}  tls.key: |
{}",
        indent(certificate),
        indent(key)
    )
}

const CLASS: &str = "apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: fairway}
spec: {controller: fairway.io/ingress}
";

impl Lab {
    /// Starts it with these documents and flags, and waits until it is ready.
    pub async fn start(name: &str, documents: &[String], flags: &[&str]) -> Self {
        let lab = Self::launch(name, documents, flags);
        lab.until_ready().await;
        lab
    }

    /// Starts it.
    pub fn launch(name: &str, documents: &[String], flags: &[&str]) -> Self {
        let folder = std::env::temp_dir().join(format!("fw-ingress-{name}-{}", std::process::id()));
        let manifests = folder.join("manifests");
        fs::create_dir_all(&manifests).expect("a folder can be made");
        fs::write(manifests.join("class.yaml"), CLASS).expect("a file can be written");
        fs::write(manifests.join("first.yaml"), documents.join("---\n")).expect("a file can be written");
        let [http, https, metrics] = [(); 3].map(|()| free_address());
        let binary = std::env::var("FAIRWAY_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_fairway").into());
        let (http_text, https_text, metrics_text) = (http.to_string(), https.to_string(), metrics.to_string());
        let access_log = folder.join("access.log");
        let mut command = vec![
            &*binary,
            "ingress",
            "--manifests",
            path(&manifests),
            "--service-cidrs",
            "127.0.0.0/8",
            "--http-address",
            &http_text,
            "--https-address",
            &https_text,
            "--metrics-address",
            &metrics_text,
            "--access-log",
            path(&access_log),
        ];
        if !flags.contains(&"--drain-delay") {
            command.extend(["--drain-delay", "500ms"]);
        }
        command.extend(flags);
        let program = Program::start("fairway-ingress", &command, &folder.join("log"));
        Self {
            program,
            http,
            https,
            metrics,
            folder,
        }
    }

    /// Waits until it is ready.
    pub async fn until_ready(&self) {
        self.until("it is ready", async || self.readiness().await == Some(200))
            .await;
    }

    /// Asks again and again; fails after a while, with what the process has logged.
    pub async fn until(&self, what: &str, mut ask: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !ask().await {
            assert!(
                Instant::now() < deadline,
                "{what}: not within {PATIENCE:?}\n{}",
                self.program.log_end()
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// What `/readyz` answers; `None`: nobody does.
    pub async fn readiness(&self) -> Option<u16> {
        client::try_get(self.metrics, "metrics", "/readyz")
            .await
            .ok()
            .map(|reply| reply.status)
    }

    /// Writes a manifest, at once as a whole.
    pub fn put(&self, name: &str, text: &str) {
        let manifests = self.folder.join("manifests");
        let hidden = manifests.join(format!(".{name}"));
        fs::write(&hidden, text).expect("a file can be written");
        fs::rename(hidden, manifests.join(format!("{name}.yaml"))).expect("a file can be renamed");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it can be signalled");
    }

    fn pid(&self) -> Pid {
        let pid = self.program.pid().expect("it runs");
        Pid::from_raw(i32::try_from(pid).expect("a process id"))
    }

    /// Whether it has ended well.
    pub fn ended_well(&mut self) -> Option<bool> {
        self.program.ended().map(|status| status.success())
    }

    /// The most memory that it has ever used, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .expect("Linux tells");
        let kilobytes: u64 = line
            .split_whitespace()
            .nth(1)
            .and_then(|text| text.parse().ok())
            .expect("a number");
        kilobytes * 1024
    }

    /// The lines of the access log so far.
    pub fn access_log(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.folder.join("access.log")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a line is JSON"))
            .collect()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.program.log()
    }

    /// Its metrics.
    pub async fn metrics(&self) -> String {
        let reply = client::get(self.metrics, "metrics", "/metrics").await;
        reply.text().to_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.folder);
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}
