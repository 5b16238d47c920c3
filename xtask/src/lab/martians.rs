//! What strict reverse path filters have dropped. Fairway changes addresses beside the stack, so this has to stay
//! at nothing.

use anyhow::{Context as _, bail};

use super::Lab;
use super::plan::Place;

impl Lab {
    /// Packets that reverse path filters have dropped, for each node and pod that has dropped any.
    pub fn martians(&self) -> anyhow::Result<Vec<(Place, u64)>> {
        let mut dropped = Vec::new();
        for place in Place::ALL {
            let count = filtered(&self.script(place, "cat /proc/net/netstat")?)?;
            if count > 0 {
                dropped.push((place, count));
            }
        }
        Ok(dropped)
    }
}

/// The count of `IPReversePathFilter` in the text of `/proc/net/netstat`: names in one line, counts in the next.
fn filtered(netstat: &str) -> anyhow::Result<u64> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (Some(names), Some(counts)) = (lines.next(), lines.next()) else {
        bail!("/proc/net/netstat has no TcpExt")
    };
    let column = names.split_whitespace().position(|name| name == "IPReversePathFilter");
    let column = column.context("/proc/net/netstat has no IPReversePathFilter")?;
    let count = counts
        .split_whitespace()
        .nth(column)
        .context("/proc/net/netstat has a column too few")?;
    count.parse().context("read /proc/net/netstat")
}

#[cfg(test)]
mod tests {
    use super::filtered;

    #[test]
    fn the_martian_count_is_found_by_its_column() {
        let text = "TcpExt: SyncookiesSent IPReversePathFilter TCPTimeouts\nTcpExt: 1 7 3\nIpExt: A\nIpExt: 5\n";
        assert_eq!(filtered(text).ok(), Some(7));
        assert!(filtered("IpExt: A\nIpExt: 5\n").is_err());
    }
}
