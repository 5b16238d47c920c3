//! The view of announced addresses.

use super::table;
use crate::announce::status::{Announcement, Announcements};

/// For a terminal.
pub fn table(announcements: &Announcements) -> String {
    if !announcements.enabled {
        return "this node announces nothing: its agent runs with `--announce off`, or has not heard of all objects yet"
            .to_owned();
    }
    let mut addresses = table::plain(&["ADDRESS", "SERVICES", "POOL", "NODE", "HERE", "DEVICES", "CANDIDATES"]);
    for announcement in &announcements.addresses {
        addresses.add_row([
            announcement.address.to_string(),
            announcement.services.join(", "),
            announcement.pool.clone(),
            announcement.node.clone().unwrap_or_else(|| "nobody".to_owned()),
            if announcement.here { "yes" } else { "no" }.to_owned(),
            announcement.devices.join(", "),
            announcement.candidates.join(", "),
        ]);
    }
    let mut nodes = table::plain(&["NODE", "LEASE", "MAY ANNOUNCE FOR"]);
    for node in &announcements.nodes {
        nodes.add_row([node.node.clone(), node.lease.clone(), node.pools.join(", ")]);
    }
    let mut parts = vec![table::text(&addresses), table::text(&nodes)];
    let reasons: Vec<String> = announcements.addresses.iter().flat_map(reasons).collect();
    if !reasons.is_empty() {
        parts.push(format!("who may not announce:\n{}", reasons.join("\n")));
    }
    parts.join("\n\n")
}

fn reasons(announcement: &Announcement) -> Vec<String> {
    let others = announcement.others.iter();
    let line = others.map(|other| format!("  {}, {}: {}", announcement.address, other.node, other.reason));
    line.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::announce::status::{NodeLease, Other};

    #[test]
    fn the_table_says_who_announces_and_why_others_may_not() {
        let announcements = Announcements {
            enabled: true,
            held: true,
            nodes: vec![NodeLease {
                node: "node1".into(),
                lease: "candidate".into(),
                pools: vec!["default".into()],
            }],
            addresses: vec![Announcement {
                address: "192.0.2.10".parse().expect("an address"),
                services: vec!["shop/web".into()],
                pool: "default".into(),
                node: Some("node1".into()),
                here: true,
                devices: vec!["eth0".into()],
                candidates: vec!["node1".into()],
                others: vec![Other {
                    node: "node2".into(),
                    reason: "its Lease was not renewed in time".into(),
                }],
            }],
        };
        let text = table(&announcements);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            lines[1],
            ["192.0.2.10", "shop/web", "default", "node1", "yes", "eth0", "node1"]
        );
        assert_eq!(lines[4], ["node1", "candidate", "default"]);
        assert!(
            text.ends_with("\n  192.0.2.10, node2: its Lease was not renewed in time"),
            "{text}"
        );
        assert!(table(&Announcements::default()).contains("--announce off"));
    }
}
