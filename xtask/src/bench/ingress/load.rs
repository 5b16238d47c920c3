//! Clients: wrk, and what it prints.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::servers::host;
use crate::process;

/// A kind of load.
pub struct Load {
    /// Hosts that are asked for in turn.
    pub hosts: usize,
    /// Each request has a connection of its own.
    pub close: bool,
    /// Connections at a time.
    pub connections: u16,
    /// How long it takes.
    pub seconds: u16,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    pub requests_per_second: f64,
    pub p99_ms: f64,
    /// Requests that failed or were not answered with 2xx or 3xx.
    pub errors: u64,
}

impl Load {
    /// Puts it on a port.
    ///
    /// # Errors
    /// If wrk does not run.
    pub fn run(&self, folder: &Path, port: u16) -> Result<Measured> {
        let script = folder.join("wrk.lua");
        fs::write(&script, self.script()).with_context(|| format!("cannot write {}", script.display()))?;
        let mut command = Command::new("wrk");
        command
            .args(["--threads", "2", "--latency", "--timeout", "10s"])
            .args(["--connections", &self.connections.to_string()])
            .args(["--duration", &format!("{}s", self.seconds)])
            .arg("--script")
            .arg(script)
            .arg(format!("http://127.0.0.1:{port}/"));
        let text = process::output(&mut command)?;
        parse(&text).with_context(|| format!("wrk's answer is not understood:\n{text}"))
    }

    fn script(&self) -> String {
        let close = if self.close {
            r#", ["Connection"] = "close""#
        } else {
            ""
        };
        let hosts: Vec<_> = (0..self.hosts).map(|number| format!("{:?}", host(number))).collect();
        // The requests are made once, so that making them is not what is measured.
        format!(
            r#"local hosts = {{{}}}
local requests, at = {{}}, 0
function init()
  for number, host in ipairs(hosts) do
    requests[number] = wrk.format("GET", "/", {{["Host"] = host{close}}})
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
"#,
            hosts.join(", ")
        )
    }
}

fn parse(text: &str) -> Option<Measured> {
    let behind = |start: &str| {
        let mut lines = text.lines().map(str::trim);
        lines.find_map(|line| line.strip_prefix(start)).map(str::trim)
    };
    let socket_errors = behind("Socket errors:").map_or(0, |line| {
        let words = line.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok());
        words.sum()
    });
    let refused = behind("Non-2xx or 3xx responses:").map_or(Some(0), |number| number.parse().ok())?;
    Some(Measured {
        requests_per_second: behind("Requests/sec:")?.parse().ok()?,
        p99_ms: milliseconds(behind("99%")?)?,
        errors: socket_errors + refused,
    })
}

fn milliseconds(text: &str) -> Option<f64> {
    let units = [("us", 0.001), ("ms", 1.0), ("s", 1000.0), ("m", 60_000.0)];
    units.into_iter().find_map(|(unit, factor)| {
        let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
        Some(number * factor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_understood() {
        let text = "Running 2s test @ http://127.0.0.1:8080/\n  2 threads and 32 connections\n  Thread Stats   Avg\n\
                    \x20 Latency Distribution\n     50%  736.00us\n     90%    1.73ms\n     99%    3.25ms\n\
                    \x20 84120 requests in 2.10s, 20.14MB read\n  Socket errors: connect 1, read 2, write 0, timeout 3\n\
                    \x20 Non-2xx or 3xx responses: 4\nRequests/sec:  40057.36\nTransfer/sec:      9.59MB\n";
        let expected = Measured {
            requests_per_second: 40057.36,
            p99_ms: 3.25,
            errors: 10,
        };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(milliseconds("736.00us"), Some(0.736));
        assert_eq!(milliseconds("1.20s"), Some(1200.0));
        assert_eq!(parse("no idea"), None);
    }
}
