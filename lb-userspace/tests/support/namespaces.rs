//! Network namespaces for one test, and threads in them.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

/// Namespaces that are removed when this is dropped.
#[derive(Debug)]
pub struct Namespaces {
    prefix: String,
    names: Vec<&'static str>,
}

impl Namespaces {
    /// Why there can be none here, if so.
    pub fn missing() -> Option<String> {
        if !nix::unistd::geteuid().is_root() {
            return Some("needs root, to make network namespaces".to_owned());
        }
        let ip = Command::new("ip").arg("-V").output();
        ip.is_err().then(|| "needs the command ip (iproute2)".to_owned())
    }

    /// Makes these namespaces and runs the lines of a script, in which `@NAME` stands for a namespace's full name.
    pub fn new(prefix: &str, names: &[&'static str], script: &str) -> Self {
        let namespaces = Self {
            prefix: format!("fw-{prefix}-{}", std::process::id()),
            names: names.to_vec(),
        };
        for name in names {
            run(&format!(
                "ip netns add {0} && ip -n {0} link set lo up",
                namespaces.name(name)
            ));
        }
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let mut line = line.to_owned();
            for name in names {
                line = line.replace(&format!("@{name}"), &namespaces.name(name));
            }
            run(&line);
        }
        namespaces
    }

    /// The full name of a namespace.
    pub fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Runs something in a thread in a namespace. Whatever it starts is there as well.
    pub fn spawn<T: Send + 'static>(&self, name: &str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let path = format!("/run/netns/{}", self.name(name));
        thread::spawn(move || {
            let namespace = File::open(&path).unwrap_or_else(|error| panic!("cannot open {path}: {error}"));
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap_or_else(|error| panic!("cannot enter {path}: {error}"));
            work()
        })
    }

    /// Runs something in a namespace and waits for it.
    pub fn within<T: Send + 'static>(&self, name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self.spawn(name, work).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", &self.name(name)]).status();
        }
    }
}

fn run(line: &str) {
    let output = Command::new("sh").args(["-c", line]).output().expect("sh runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{line}` failed: {error}");
}

/// Answers every HTTP request with this pod's name and the source that it saw, until the test ends.
pub fn serve_http(listener: &TcpListener, pod: &'static str) {
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else { continue };
        thread::spawn(move || -> std::io::Result<()> {
            connection.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut request = BufReader::new(connection.try_clone()?);
            let mut line = String::new();
            while request.read_line(&mut line)? > 2 {
                line.clear();
            }
            let body = format!("{pod} {}", connection.peer_addr()?.ip());
            let length = body.len();
            write!(
                connection,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            )
        });
    }
}

/// Sends a request, and returns the body of the answer.
///
/// # Errors
/// As the connection fails.
pub fn get_http(target: SocketAddr) -> std::io::Result<String> {
    let limit = Duration::from_secs(5);
    let mut connection = TcpStream::connect_timeout(&target, limit)?;
    connection.set_read_timeout(Some(limit))?;
    write!(
        connection,
        "GET / HTTP/1.1\r\nHost: myapp.example.com\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned())
}
