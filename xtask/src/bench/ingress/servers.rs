//! The servers that are measured, and the one behind them. Each ends when it is dropped.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use xtask::ports::free_address;

/// A server answers within this, also with a thousand rules.
const PATIENCE: Duration = Duration::from_secs(20);

/// The host of this number.
pub fn host(number: usize) -> String {
    format!("h{number}.example")
}

/// A program.
struct Server(Child);

impl Server {
    fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let copy = file.try_clone().context("a file can be shared")?;
        let child = command.stdin(Stdio::null()).stdout(copy).stderr(file).spawn();
        child.map(Self).with_context(|| format!("cannot run {command:?}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM twice: at once, and with all its workers.
        let pid = i32::try_from(self.0.id()).map(Pid::from_raw);
        for _ in 0..2 {
            if let Ok(pid) = pid {
                let _gone = kill(pid, Signal::SIGTERM);
            }
            thread::sleep(Duration::from_millis(50));
        }
        let _ended = self.0.wait();
    }
}

/// nginx with this configuration of `http`.
fn nginx(folder: &Path, name: &str, http: &str) -> Result<Server> {
    let own = folder.join(name);
    fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
    let configuration = format!(
        "daemon off;\nworker_processes auto;\nworker_rlimit_nofile 65536;\npid nginx.pid;\nerror_log error.log;\n\
         events {{ worker_connections 16384; }}\n\
         http {{\n\
           access_log off;\n\
           client_body_temp_path body;\n  proxy_temp_path proxy;\n  fastcgi_temp_path fastcgi;\n\
           uwsgi_temp_path uwsgi;\n  scgi_temp_path scgi;\n\
           tcp_nodelay on;\n  keepalive_requests 1000000;\n\
           server_names_hash_max_size 8192;\n  server_names_hash_bucket_size 128;\n\
         {http}}}\n"
    );
    let file = own.join("nginx.conf");
    fs::write(&file, configuration).with_context(|| format!("cannot write {}", file.display()))?;
    let program = crate::process::find("nginx").context("nginx is not installed")?;
    let mut command = Command::new(program);
    command
        .arg("-p")
        .arg(&own)
        .arg("-e")
        .arg("error.log")
        .arg("-c")
        .arg(&file);
    Server::start(&mut command, &own.join("log"))
}

/// The backend.
pub struct Backend {
    pub port: u16,
    _server: Server,
}

impl Backend {
    /// Starts it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(folder: &Path) -> Result<Self> {
        let port = free_address().port();
        let http = format!(
            "  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 {:?}; }} }}\n",
            "x".repeat(100)
        );
        let server = nginx(folder, "backend", &http)?;
        until_it_answers(port, "any")?;
        Ok(Self { port, _server: server })
    }
}

/// nginx as a proxy.
pub struct Nginx {
    pub port: u16,
    _server: Server,
}

impl Nginx {
    /// Starts it with so many hosts.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(folder: &Path, hosts: usize, backend: u16) -> Result<Self> {
        let port = free_address().port();
        let mut http = format!(
            "  upstream backend {{ server 127.0.0.1:{backend}; keepalive 128; keepalive_requests 1000000; }}\n"
        );
        http.push_str(
            "  proxy_http_version 1.1;\n  proxy_set_header Connection \"\";\n  proxy_set_header Host $http_host;\n\
             \x20 proxy_set_header X-Real-IP $remote_addr;\n  proxy_set_header X-Forwarded-For $remote_addr;\n\
             \x20 proxy_set_header X-Forwarded-Proto $scheme;\n  proxy_set_header X-Forwarded-Host $http_host;\n\
             \x20 proxy_set_header X-Forwarded-Port $server_port;\n  proxy_set_header X-Request-ID $request_id;\n",
        );
        writeln!(
            http,
            "  server {{ listen 127.0.0.1:{port} default_server backlog=4096; return 404; }}"
        )?;
        for number in 0..hosts {
            writeln!(
                http,
                "  server {{ listen 127.0.0.1:{port}; server_name {}; location / {{ proxy_pass http://backend; }} }}",
                host(number)
            )?;
        }
        let server = nginx(folder, &format!("proxy-{hosts}"), &http)?;
        Ok(Self { port, _server: server })
    }
}

/// Fairway as a proxy.
pub struct Fairway {
    pub port: u16,
    manifests: PathBuf,
    backend: u16,
    _server: Server,
}

impl Fairway {
    /// Starts it with so many hosts.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(program: &Path, folder: &Path, hosts: usize, backend: u16) -> Result<Self> {
        let own = folder.join(format!("fairway-{hosts}"));
        let manifests = own.join("manifests");
        fs::create_dir_all(&manifests).with_context(|| format!("cannot make {}", manifests.display()))?;
        let mut text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {{name: fairway}}\n\
             spec: {{controller: fairway.io/ingress}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: backend}}\n\
             spec: {{clusterIP: 127.0.0.1, ports: [{{port: {backend}}}]}}\n"
        );
        for number in 0..hosts {
            writeln!(
                text,
                "---\n{}",
                ingress(&format!("rule-{number}"), &host(number), backend)
            )?;
        }
        fs::write(manifests.join("all.yaml"), text).context("cannot write the manifests")?;
        let port = free_address().port();
        let mut command = Command::new(program);
        command
            .args([
                "ingress",
                "--access-log",
                "off",
                "--metrics-address",
                "none",
                "--https-address",
                "none",
            ])
            .args([
                "--service-cidrs",
                "127.0.0.0/8",
                "--http-address",
                &format!("127.0.0.1:{port}"),
            ])
            .arg("--manifests")
            .arg(&manifests);
        let server = Server::start(&mut command, &own.join("log"))?;
        Ok(Self {
            port,
            manifests,
            backend,
            _server: server,
        })
    }

    /// Adds a rule for one more host.
    ///
    /// # Errors
    /// If the manifest cannot be written.
    pub fn add(&self, host: &str) -> Result<()> {
        let hidden = self.manifests.join(".new.yaml");
        fs::write(&hidden, ingress("new", host, self.backend)).context("cannot write a manifest")?;
        fs::rename(hidden, self.manifests.join("new.yaml")).context("cannot rename a manifest")
    }
}

fn ingress(name: &str, host: &str, port: u16) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: {name}}}\n\
         spec:\n  ingressClassName: fairway\n  rules:\n    - host: {host}\n      http:\n        paths:\n          \
         - {{path: /, pathType: Prefix, backend: {{service: {{name: backend, port: {{number: {port}}}}}}}}}\n"
    )
}

/// Asks for a host until the answer is 200.
///
/// # Errors
/// If it is not for too long.
pub fn until_it_answers(port: u16, host: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = None;
    while Instant::now() < deadline {
        match ask(port, host) {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => return Ok(()),
            other => last = Some(other),
        }
        thread::sleep(Duration::from_millis(1));
    }
    bail!("port {port} does not answer for {host} within {PATIENCE:?}: {last:?}")
}

fn ask(port: u16, host: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
