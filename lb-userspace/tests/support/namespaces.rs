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
        let path = self.path(name);
        thread::spawn(move || {
            enter(&path);
            work()
        })
    }

    /// Runs something in a namespace and waits for it.
    pub fn within<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        within(&self.path(name), work)
    }

    /// Where a namespace is found.
    pub fn path(&self, name: &str) -> String {
        format!("/run/netns/{}", self.name(name))
    }
}

/// Runs something in a namespace that is found there, and waits for it.
pub fn within<T: Send>(path: &str, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let entered = scope.spawn(move || {
            enter(path);
            work()
        });
        entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Enters a namespace with this thread.
fn enter(path: &str) {
    let namespace = File::open(path).unwrap_or_else(|error| panic!("cannot open {path}: {error}"));
    setns(namespace, CloneFlags::CLONE_NEWNET).unwrap_or_else(|error| panic!("cannot enter {path}: {error}"));
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
    serve(listener, move |connection| {
        Ok(format!("{pod} {}", connection.peer_addr()?.ip()))
    });
}

/// Answers every HTTP request with the address and port that it came to, until the test ends.
pub fn serve_http_by_address(listener: &TcpListener) {
    serve(listener, |connection| Ok(connection.local_addr()?.to_string()));
}

fn serve(listener: &TcpListener, answer: impl Fn(&TcpStream) -> std::io::Result<String> + Clone + Send + 'static) {
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else { continue };
        let answer = answer.clone();
        thread::spawn(move || -> std::io::Result<()> {
            connection.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut request = BufReader::new(connection.try_clone()?);
            let mut line = String::new();
            while request.read_line(&mut line)? > 2 {
                line.clear();
            }
            let body = answer(&connection)?;
            let length = body.len();
            write!(
                connection,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            )
        });
    }
}

/// An answer by HTTP.
#[derive(Debug)]
pub struct Answer {
    /// Its first line, and its headers.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// Its status code.
    pub fn code(&self) -> u16 {
        let code = self.head.split(' ').nth(1).and_then(|code| code.parse().ok());
        code.unwrap_or_else(|| panic!("no status in {self:?}"))
    }
}

/// Sends a request, and returns the body of the answer.
///
/// # Errors
/// As the connection fails.
pub fn get_http(target: SocketAddr) -> std::io::Result<String> {
    Ok(ask_http(target, "/")?.body)
}

/// Sends a request for this path.
///
/// # Errors
/// As the connection fails.
pub fn ask_http(target: SocketAddr, path: &str) -> std::io::Result<Answer> {
    let limit = Duration::from_secs(5);
    let mut connection = TcpStream::connect_timeout(&target, limit)?;
    connection.set_read_timeout(Some(limit))?;
    write!(
        connection,
        "GET {path} HTTP/1.1\r\nHost: myapp.example.com\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok(Answer {
        head: head.to_owned(),
        body: body.to_owned(),
    })
}
