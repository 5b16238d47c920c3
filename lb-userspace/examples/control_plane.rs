//! Measures the control plane alone, without a kernel: 5,000 Services of 50 endpoints each. Times are CPU times, but
//! for those of single changes.
//!
//! ```text
//! cargo run --release -p lb-userspace --example control_plane [SERVICES [ENDPOINTS]]
//! ```

use std::net::IpAddr;
use std::time::{Duration, Instant};

use fairway::desired::{LocalAddresses, LocalPods, NodeState, Settings};
use fairway::maps::{Limits, MapContents, Maps, MapsError, Op};
use fairway::model::{
    Endpoint, EndpointSlice, IpFamily, ObjectKey, Policy, Protocol, Service, ServicePort, SlicePort, SourceRanges,
    Standing,
};
use fairway::reconcile::{NoNextHops, Reconciler};
use fairway::sources::Event;

/// Maps of which only the Maglev tables are kept, as one array.
struct Sink {
    maglev: Vec<u32>,
    contents: MapContents,
    keep: bool,
}

impl Maps for Sink {
    fn limits(&self) -> Limits {
        Limits {
            frontends: 1 << 20,
            backends: 1 << 20,
            maglev: self.maglev.len() as u32,
        }
    }

    fn dump(&mut self) -> Result<MapContents, MapsError> {
        Ok(self.contents.clone())
    }

    fn apply(&mut self, op: &Op) -> Result<(), MapsError> {
        if let Op::SetMaglev { offset, slots } = op {
            self.maglev[*offset as usize..][..slots.len()].copy_from_slice(slots);
        } else if self.keep {
            self.contents.apply(op);
        }
        Ok(())
    }

    fn read_maglev(&mut self, offset: u32, len: u32, slots: &mut Vec<u32>) -> Result<(), MapsError> {
        slots.extend_from_slice(&self.maglev[offset as usize..][..len as usize]);
        Ok(())
    }
}

fn main() {
    let number = |place, default| {
        std::env::args()
            .nth(place)
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let services: u32 = number(1, 5000);
    let endpoints: u32 = number(2, 50);
    println!("{services} Services of {endpoints} endpoints");

    let all_services: Vec<Service> = (0..services).map(service).collect();
    let all_slices: Vec<EndpointSlice> = (0..services).map(|n| slice(n, endpoints)).collect();
    println!("objects in memory: {} MB", resident_mb());

    let mut maps = Sink {
        maglev: vec![0; 1 << 24],
        contents: MapContents::default(),
        keep: true,
    };
    maps = run("first start", maps, &all_services, &all_slices, endpoints);
    run("restart", maps, &all_services, &all_slices, endpoints);
}

fn run(name: &str, maps: Sink, services: &[Service], slices: &[EndpointSlice], endpoints: u32) -> Sink {
    let start = cpu_time();
    let mut reconciler = Reconciler::restore(maps, NoNextHops, node()).expect("these maps can be read");
    println!("{name}: restore {:?}", cpu_time().saturating_sub(start));
    reconciler.take(Event::Services(services.to_vec()));
    reconciler.take(Event::EndpointSlices(slices.to_vec()));
    let start = cpu_time();
    let report = reconciler.reconcile();
    println!(
        "{name}: {} changes in {:?}, {} MB",
        report.ops,
        cpu_time().saturating_sub(start),
        resident_mb()
    );

    let mut times = Vec::new();
    for n in 0..200 {
        let service = n * 7 % services.len() as u32;
        reconciler.take(Event::EndpointSlice(slice(service, endpoints + 1 - n % 2)));
        let start = Instant::now();
        reconciler.reconcile();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    println!(
        "{name}: one slice changed: median {:?}, worst {:?}",
        times[100], times[199]
    );
    for n in 0..services.len() as u32 {
        reconciler.take(Event::EndpointSlice(slice(n, endpoints)));
    }
    reconciler.reconcile();
    let start = cpu_time();
    let report = reconciler.audit().expect("these maps can be read");
    println!(
        "{name}: audit {:?}, {} repairs",
        cpu_time().saturating_sub(start),
        report.ops
    );
    let maps = reconciler.maps_mut();
    Sink {
        maglev: std::mem::take(&mut maps.maglev),
        contents: std::mem::take(&mut maps.contents),
        keep: true,
    }
}

fn node() -> NodeState {
    NodeState {
        settings: Settings {
            node_name: "node-0".into(),
            local_pods: LocalPods::Cidrs(vec!["10.0.0.0/24".parse().expect("a range")]),
            ..Settings::default()
        },
        local: LocalAddresses::default(),
        object: None,
        service_cidrs: None,
    }
}

fn service(n: u32) -> Service {
    Service {
        key: ObjectKey::new("default", &format!("service-{n}")),
        created_s: 0,
        proxy_name: None,
        standing: Standing::Served,
        cluster_ips: vec![IpAddr::from((0xac10_0000 + n).to_be_bytes())],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: SourceRanges::default(),
        internal_policy: Policy::Cluster,
        external_policy: Policy::Cluster,
        affinity_timeout_s: None,
        health_check_node_port: 0,
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 0,
        }],
        problems: Vec::new(),
    }
}

fn slice(n: u32, endpoints: u32) -> EndpointSlice {
    let node: std::sync::Arc<str> = format!("node-{}", n % 100).into();
    EndpointSlice {
        key: ObjectKey::new("default", &format!("service-{n}-a")),
        service: Some(ObjectKey::new("default", &format!("service-{n}"))),
        family: IpFamily::V4,
        ports: vec![SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: (0..endpoints)
            .map(|i| Endpoint {
                addr: IpAddr::from((0x0a00_0000 + n * 64 + i).to_be_bytes()),
                ready: true,
                serving: true,
                terminating: false,
                node: Some(node.clone()),
                hints: None,
            })
            .collect(),
        last_change_ms: None,
        problems: Vec::new(),
    }
}

/// Time that this thread has spent on a CPU.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let on_cpu = stat.split(' ').next().and_then(|text| text.parse().ok());
    Duration::from_nanos(on_cpu.unwrap_or(0))
}

/// Resident memory of this process, megabytes.
fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kb.unwrap_or(0) / 1024
}
