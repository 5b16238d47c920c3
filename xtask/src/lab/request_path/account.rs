//! What happened to one request, hop by hop.
//!
//! Each hop is told by whom it concerns: the neighbour's table of neighbours, `fairway flows` of the nodes, the access log of
//! the Ingress controller, the pod's answer. Where two of them do not fit, the request did not go as it has to.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::super::Lab;
use super::super::plan::{NODES, PODS, Place};
use super::super::wire::{Seen, Web, WebAnswer};
use super::{APPLICATION, HOST, INGRESS_PODS, Wanted};

/// A connection that a node translated, as `fairway flows -o json` shows it.
struct Flow {
    hook: String,
    client: Option<SocketAddr>,
    frontend: SocketAddr,
    backend: SocketAddr,
    snat: Option<SocketAddr>,
    passed_on: bool,
}

impl Lab {
    /// The account of a request that the neighbour has sent.
    pub(super) fn account(
        &self,
        wanted: &Wanted,
        request: &Web,
        answer: &WebAnswer,
        announcing: usize,
    ) -> anyhow::Result<String> {
        let scheme = if wanted.tls { "https" } else { "http" };
        let url = format!("{scheme}://{HOST}{}", request.path);
        ensure!(
            answer.status == 200,
            "{url} was answered {}: {}",
            answer.status,
            answer.body
        );
        let seen: Seen = serde_json::from_str(&answer.body).context("understand the pod's answer")?;
        let (address, local) = (request.target.ip(), answer.local);
        let node = NODES[announcing].name;

        let mut text = String::new();
        let door = if wanted.by_ingress { "Ingress" } else { "directly" };
        let family = if wanted.v6 { "IPv6" } else { "IPv4" };
        let took = answer.took_us as f64 / 1000.0;
        _ = writeln!(
            text,
            "{url} from a neighbour, {door}, {family}: 200 OK in {took:.1} ms\n"
        );
        let service = wanted.service;
        line(
            &mut text,
            "address",
            &format!("{address}, which a pool gave to Service {service}"),
        );

        let (mac, how) = self.resolved(address)?;
        let device = self.link_address(Place::Node(announcing))?;
        ensure!(
            mac == device,
            "{url}: the neighbour found {address} at {mac}, and {node}, which announces it, is {device}"
        );
        line(
            &mut text,
            "announced",
            &format!("{address} is at {mac}, {how} said: eth0 of {node}"),
        );

        let (first, node) = self.translated(&mut text, announcing, local, request.target)?;
        let source = first.snat.unwrap_or(local);

        if wanted.by_ingress {
            self.ingress(&mut text, request, &first, &seen)?;
        } else {
            ensure!(
                first.backend == seen.destination && source == seen.source,
                "{url}: {node} sent it from {source} to {}, and the pod saw {} to {}",
                first.backend,
                seen.source,
                seen.destination
            );
        }
        line(
            &mut text,
            &seen.pod,
            &format!("saw        {} -> {}: {}", seen.source, seen.destination, seen.request),
        );
        ensure!(answer.peer == request.target, "the answer came from {}", answer.peer);
        line(
            &mut text,
            "and back",
            &format!("the neighbour's socket has the answer from {}", answer.peer),
        );
        text.push('\n');
        Ok(text)
    }

    /// From the neighbour to the address and on, by the node that announces it or the one that it passes packets on to.
    /// Returns the connection, and the name of the node that has translated it.
    fn translated(
        &self,
        text: &mut String,
        announcing: usize,
        local: SocketAddr,
        target: SocketAddr,
    ) -> anyhow::Result<(Flow, &'static str)> {
        let met = |text: &mut String, node: usize| -> anyhow::Result<Flow> {
            let found = self.flow(node, |flow| flow.client == Some(local) && flow.frontend == target)?;
            let what = format!("by {:<7} {local} -> {target}", found.hook);
            line(text, NODES[node].name, &what);
            Ok(found)
        };
        let mut node = announcing;
        let mut found = met(text, node)?;
        if found.passed_on {
            let backend = found.backend.ip();
            let pod = PODS.iter().find(|pod| pod.addr(backend.is_ipv6()) == backend);
            let pod = pod.with_context(|| format!("{backend} is no pod"))?;
            node = pod.node;
            let (name, mac) = (NODES[node].name, self.link_address(Place::Node(node))?);
            line(
                text,
                "",
                &format!("passed on  as it is, to {mac}: {name}, the node of {}", pod.name),
            );
            found = met(text, node)?;
            ensure!(!found.passed_on, "{name} passes on what it is to translate");
        }
        let source = found.snat.unwrap_or(local);
        line(text, "", &format!("becomes    {source} -> {}", found.backend));
        Ok((found, NODES[node].name))
    }

    /// From the Ingress controller's pod to the application's.
    fn ingress(&self, text: &mut String, request: &Web, first: &Flow, seen: &Seen) -> anyhow::Result<()> {
        let pod = INGRESS_PODS
            .into_iter()
            .find(|&pod| PODS[pod].addr(first.backend.is_ipv6()) == first.backend.ip());
        let pod = pod.with_context(|| format!("{} is no pod of the Ingress controller", first.backend))?;
        let log = self.access_log(pod);
        // It is written after the answer.
        let entry = self.until(&log, |_| {
            let lines = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
            let mut entries = lines
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            entries
                .find(|entry| entry["request_id"] == *request.id)
                .with_context(|| format!("{} says nothing of the request", log.display()))
        })?;
        let field = |name: &str| entry[name].as_str().unwrap_or("?");
        ensure!(
            field("service") == APPLICATION,
            "it was sent to Service {}",
            field("service")
        );
        let upstream: SocketAddr = field("upstream").parse().context("understand the access log")?;
        line(
            text,
            PODS[pod].name,
            &format!(
                "fairway ingress: host {}, path {}: Ingress {} -> Service {} at {upstream}",
                field("host"),
                field("path"),
                field("ingress"),
                field("service")
            ),
        );
        let node = PODS[pod].node;
        // A translated socket is known by what it asked for and what it got.
        let second = self.flow(node, |flow| {
            let same = flow.client.is_none() || [flow.client, flow.snat].contains(&Some(seen.source));
            same && flow.frontend == upstream && flow.backend == seen.destination
        })?;
        let client = second
            .client
            .map_or_else(|| "its socket".to_owned(), |client| client.to_string());
        let source = second.snat.map_or_else(|| client.clone(), |snat| snat.to_string());
        line(
            text,
            NODES[node].name,
            &format!("by {:<7} {client} -> {}", second.hook, second.frontend),
        );
        line(text, "", &format!("becomes    {source} -> {}", second.backend));
        Ok(())
    }

    /// The link address at which the neighbour has found an address, and by which protocol.
    fn resolved(&self, address: IpAddr) -> anyhow::Result<(String, &'static str)> {
        let table = self.script(
            Place::Neighbour,
            &format!("ip -json neighbour show to {address} dev eth0\n"),
        )?;
        let table: Value = serde_json::from_str(&table).context("understand ip neighbour")?;
        let found = table.pointer("/0/lladdr").and_then(Value::as_str);
        let found = found.with_context(|| format!("the neighbour has not found {address} on the LAN"))?;
        Ok((found.to_owned(), if address.is_ipv6() { "NDP" } else { "ARP" }))
    }

    fn link_address(&self, place: Place) -> anyhow::Result<String> {
        let links = self.script(place, "ip -json link show dev eth0\n")?;
        let links: Value = serde_json::from_str(&links).context("understand ip link")?;
        let own = links.pointer("/0/address").and_then(Value::as_str);
        Ok(own.context("eth0 has no link address")?.to_owned())
    }

    /// The connection of a node that is meant.
    fn flow(&self, node: usize, meant: impl Fn(&Flow) -> bool) -> anyhow::Result<Flow> {
        let flows = self.observe(node, "flows")?;
        let mut all = flows.as_array().into_iter().flatten().filter_map(flow);
        all.find(meant)
            .with_context(|| format!("{} has translated no such connection", NODES[node].name))
    }
}

fn flow(shown: &Value) -> Option<Flow> {
    let text = |name: &str| shown.get(name).and_then(Value::as_str);
    let socket = |name: &str| text(name).and_then(|text| text.parse().ok());
    Some(Flow {
        hook: text("hook")?.to_owned(),
        client: socket("client"),
        frontend: socket("frontend")?,
        backend: socket("backend")?,
        snat: socket("snat"),
        passed_on: shown.get("passed_on").and_then(Value::as_bool)?,
    })
}

fn line(text: &mut String, who: &str, what: &str) {
    _ = writeln!(text, "  {who:<10} {what}");
}
