//! A case as it is written.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
pub struct Case {
    pub id: String,
    pub node: Node,
    #[serde(default)]
    pub config: Config,
    pub objects: Vec<Value>,
    #[serde(default)]
    pub packets: Vec<Packet>,
    #[serde(default)]
    pub health: Vec<Health>,
    #[serde(default)]
    pub conntrack: Vec<Value>,
    #[serde(default)]
    pub steps: Vec<Step>,
}

#[derive(Deserialize)]
pub struct Node {
    pub name: String,
    pub zone: Option<String>,
    pub ips: Vec<IpAddr>,
    #[serde(default)]
    pub other_ips: Vec<IpAddr>,
    pub pod_cidrs: Vec<String>,
}

#[derive(Deserialize, Default)]
pub struct Config {
    #[serde(default)]
    pub service_cidrs: Vec<String>,
    pub nodeport_addresses: Option<Vec<String>>,
}

#[derive(Deserialize)]
pub struct Step {
    #[serde(default)]
    pub delete: Vec<Reference>,
    #[serde(default)]
    pub apply: Vec<Value>,
    #[serde(default)]
    pub packets: Vec<Packet>,
    #[serde(default)]
    pub health: Vec<Health>,
    #[serde(default)]
    pub conntrack: Vec<Value>,
}

#[derive(Deserialize)]
pub struct Reference {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

#[derive(Deserialize)]
pub struct Packet {
    pub name: Option<String>,
    pub at: Option<u32>,
    pub from: String,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub proto: String,
    pub port: u16,
    pub flows: Option<String>,
    pub expect: Expect,
}

#[derive(Deserialize)]
pub struct Expect {
    pub verdict: String,
    #[serde(default)]
    pub backends: Vec<SocketAddr>,
    #[serde(default)]
    pub unspecified_backends: Vec<SocketAddr>,
    pub snat: Option<String>,
    pub share: Option<String>,
    #[serde(default)]
    pub sticky: bool,
    pub same_backend_as: Option<String>,
    #[serde(default)]
    pub repin: bool,
}

#[derive(Deserialize)]
pub struct Health {
    pub node_port: u16,
    pub status: Value,
    pub local_endpoints: Option<usize>,
}
