//! A real kube-apiserver with its etcd, on loopback, for one test.
//!
//! `cargo xtask test` builds both and names their folder in `FAIRWAY_KUBE_BIN`. Each server has ports and a folder of its
//! own, so tests run side by side.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs};

use fairway::sources::kube::{Access, client};

use super::poll;
use super::ports::free_address;
use super::process::Program;

/// ClusterIPs are taken from these.
pub const SERVICE_CIDRS: &str = "172.30.0.0/16,fd00:172:30::/112";
/// Who the server knows, with their groups: an administrator, and somebody who may do what roles allow.
pub const USERS: [(&str, &str); 2] = [("admin", "system:masters"), ("agent", "agents")];
/// What of kube-controller-manager is run: it makes the pods of Deployments, and EndpointSlices of all kinds.
const CONTROLLERS: &str = "deployment-controller,replicaset-controller,endpoints-controller,endpointslice-controller,\
                           endpointslice-mirroring-controller";
/// How long a server may take to start.
const START: Duration = Duration::from_secs(180);

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    bin: PathBuf,
    dir: PathBuf,
    /// Words before every command, to run it in a network namespace for example.
    prefix: Vec<String>,
    etcd_port: u16,
    etcd_peer_port: u16,
    port: u16,
    etcd: Option<Program>,
    server: Option<Program>,
}

impl ApiServer {
    /// The folder with kube-apiserver and etcd, if there is one; the reason if not.
    pub fn programs() -> Result<PathBuf, String> {
        let folders = ["FAIRWAY_KUBE_BIN", "KUBEBUILDER_ASSETS"];
        let mut folders = folders.iter().filter_map(env::var_os).map(PathBuf::from);
        let complete = |folder: &PathBuf| {
            ["kube-apiserver", "etcd"]
                .iter()
                .all(|name| folder.join(name).is_file())
        };
        let Some(folder) = folders.find(complete) else {
            return Err(
                "needs kube-apiserver and etcd: `cargo xtask test` builds them, or set FAIRWAY_KUBE_BIN to \
                        what `cargo xtask kubernetes` prints"
                    .to_owned(),
            );
        };
        if Command::new("openssl").arg("version").output().is_err() {
            return Err("needs openssl, to make the API server's key".to_owned());
        }
        Ok(folder)
    }

    /// The folder as above, if it has kubectl and the controllers as well.
    pub fn programs_with_controllers() -> Result<PathBuf, String> {
        let folder = Self::programs()?;
        let mut others = ["kube-controller-manager", "kubectl"].into_iter();
        match others.find(|name| !folder.join(name).is_file()) {
            None => Ok(folder),
            Some(name) => Err(format!("needs {name} in {}", folder.display())),
        }
    }

    /// Runs kubectl as an administrator, with these words and this input, and returns what it says; panics if it fails.
    pub fn kubectl(&self, words: &[&str], input: &str) -> String {
        let mut kubectl = Command::new(self.bin.join("kubectl"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            // Nothing of this user's own.
            .env("KUBECACHEDIR", self.dir.join("kubectl-cache"))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run kubectl: {error}"));
        let mut stdin = kubectl.stdin.take().expect("it is a pipe");
        stdin.write_all(input.as_bytes()).expect("kubectl takes its input");
        drop(stdin);
        let output = kubectl.wait_with_output().expect("kubectl ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {words:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts the controllers. They are told of nothing but this server, and wait for it when it is away.
    pub fn start_controllers(&self) -> Program {
        let arguments = [
            format!("--kubeconfig={}", self.kubeconfig().display()),
            format!("--controllers={CONTROLLERS}"),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
            "--kube-api-qps=500".to_owned(),
            "--kube-api-burst=500".to_owned(),
        ];
        self.run("kube-controller-manager", &arguments)
    }

    /// Starts etcd and an API server, and waits until it is ready.
    pub fn start(bin: &Path) -> Self {
        Self::start_in(bin, &[])
    }

    /// Starts both with these words before their commands, such as `nsenter --net=/run/netns/NAME`. The ports are free
    /// in this process's namespace only.
    pub fn start_in(bin: &Path, prefix: &[&str]) -> Self {
        let ports = [(); 3].map(|()| free_address().port());
        let dir = env::temp_dir().join(format!("fairway-api-{}-{}", std::process::id(), ports[0]));
        fs::create_dir_all(&dir).expect("the folder for temporary files can be written");
        let mut server = Self {
            bin: bin.to_owned(),
            dir,
            prefix: prefix.iter().map(ToString::to_string).collect(),
            etcd_port: ports[0],
            etcd_peer_port: ports[1],
            port: ports[2],
            etcd: None,
            server: None,
        };
        server.prepare();
        server.start_etcd();
        server.start_server();
        server
    }

    /// A kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_for("admin", self.port)
    }

    /// A kubeconfig of one of [`USERS`], for a server or proxy on this port of loopback.
    pub fn kubeconfig_for(&self, user: &str, port: u16) -> PathBuf {
        self.write_kubeconfig(user, &format!("token-of-{user}"), port)
    }

    /// A kubeconfig of a service account, as its pods have it.
    pub fn kubeconfig_of_account(&self, namespace: &str, name: &str) -> PathBuf {
        let token = self.kubectl(&["create", "token", name, "--namespace", namespace], "");
        self.write_kubeconfig(name, token.trim(), self.port)
    }

    fn write_kubeconfig(&self, user: &str, token: &str, port: u16) -> PathBuf {
        let path = self.dir.join(format!("kubeconfig-{user}-{port}"));
        let text = format!(
            "apiVersion: v1
kind: Config
clusters: [{{name: test, cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority: '{}'}}}}]
users: [{{name: {user}, user: {{token: {token}}}}}]
contexts: [{{name: test, context: {{cluster: test, user: {user}}}}}]
current-context: test
",
            self.dir.join("certificates/apiserver.crt").display()
        );
        fs::write(&path, text).expect("can be written");
        path
    }

    /// Where the server listens on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A client of an administrator. It works in the network namespace in which it is first used.
    pub async fn client(&self) -> kube::Client {
        client(&Access::Kubeconfig(self.kubeconfig()))
            .await
            .expect("the kubeconfig is right")
    }

    /// Kills the API server. Etcd goes on.
    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
    }

    /// Starts the API server again, at the same address and with the same objects.
    pub fn start_again(&mut self) {
        self.start_server();
    }

    /// Makes etcd forget all that was before now: who asks for what happened since an earlier version is told that it
    /// is gone (410). Call it while the API server is stopped, since its own memory of changes would answer.
    pub fn forget_history(&self) {
        // The gRPC gateway of etcd speaks JSON; numbers are strings in it.
        let range = self.etcd_call("kv/range", r#"{"key":"AA=="}"#);
        let revision = range
            .split(r#""revision":""#)
            .nth(1)
            .and_then(|rest| rest.split('"').next())
            .unwrap_or_else(|| panic!("etcd tells no revision: {range}"))
            .to_owned();
        self.etcd_call(
            "kv/compaction",
            &format!(r#"{{"revision":"{revision}","physical":true}}"#),
        );
    }

    fn etcd_call(&self, method: &str, body: &str) -> String {
        let url = format!("http://127.0.0.1:{}/v3/{method}", self.etcd_port);
        let mut words = self.prefix.clone();
        words.extend(["curl", "-sS", "--fail-with-body", "-d", body, &url].map(str::to_owned));
        let output = Command::new(&words[0]).args(&words[1..]).output().expect("curl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{url}: {text}");
        text
    }

    fn prepare(&self) {
        let key = self.dir.join("service-accounts.key");
        let made = Command::new("openssl")
            .args([
                "genpkey",
                "-algorithm",
                "RSA",
                "-pkeyopt",
                "rsa_keygen_bits:2048",
                "-out",
            ])
            .arg(&key)
            .output()
            .expect("openssl runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let tokens: String = USERS
            .iter()
            .map(|(user, group)| format!("token-of-{user},{user},{user},{group}\n"))
            .collect();
        fs::write(self.dir.join("tokens.csv"), tokens).expect("can be written");
    }

    fn run(&self, name: &str, arguments: &[String]) -> Program {
        let program = self.bin.join(name).display().to_string();
        let words: Vec<&str> = self
            .prefix
            .iter()
            .map(String::as_str)
            .chain([program.as_str()])
            .chain(arguments.iter().map(String::as_str))
            .collect();
        Program::start(name, &words, &self.dir.join(format!("{name}.log")))
    }

    fn start_etcd(&mut self) {
        let client = format!("http://127.0.0.1:{}", self.etcd_port);
        let peer = format!("http://127.0.0.1:{}", self.etcd_peer_port);
        let arguments = [
            format!("--data-dir={}", self.dir.join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--unsafe-no-fsync".to_owned(),
            "--quota-backend-bytes=4000000000".to_owned(),
        ];
        self.etcd = Some(self.run("etcd", &arguments));
    }

    fn start_server(&mut self) {
        let key = self.dir.join("service-accounts.key").display().to_string();
        let arguments = [
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=192.0.2.1".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--secure-port={}", self.port),
            format!("--cert-dir={}", self.dir.join("certificates").display()),
            format!("--token-auth-file={}", self.dir.join("tokens.csv").display()),
            "--authorization-mode=RBAC".to_owned(),
            format!("--service-account-key-file={key}"),
            format!("--service-account-signing-key-file={key}"),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--max-requests-inflight=2000".to_owned(),
            "--max-mutating-requests-inflight=1000".to_owned(),
        ];
        self.server = Some(self.run("kube-apiserver", &arguments));
        let url = format!("https://127.0.0.1:{}/readyz", self.port);
        poll("the API server is ready", START, || {
            if let Some(etcd) = &mut self.etcd {
                etcd.must_run();
            }
            if let Some(server) = &mut self.server {
                server.must_run();
            }
            let mut words = self.prefix.clone();
            words.extend(
                [
                    "curl",
                    "-sk",
                    "-m",
                    "5",
                    "-H",
                    "Authorization: Bearer token-of-admin",
                    &url,
                ]
                .map(str::to_owned),
            );
            let output = Command::new(&words[0]).args(&words[1..]).output().expect("curl runs");
            (output.stdout == b"ok").then_some(())
        });
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
        self.etcd = None;
        if std::thread::panicking() {
            eprintln!("logs of the API server are left in {}", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}
