//! `fairway controller`.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use ipnet::IpNet;

use super::log::Log;
use super::objects::{self, Objects};
use crate::agent::Listen;
use crate::ipam::allocate;
use crate::ipam::controller::{self, Origin, Timing};

/// Run the address controller: give Services of type LoadBalancer addresses from pools.
///
/// Pools are objects of the kind AddressPool (`fairway crds` prints its definition). Addresses are written into the status
/// of Services, where the agents take them from.
///
/// Objects come from the Kubernetes API that a kubeconfig file names (--kubeconfig), else, in a pod, from the cluster's own
/// API; any number of instances may run, and a Lease decides which of them acts. With --manifests they come from a folder,
/// and addresses are written to the file fairway-addresses.yaml in it.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    fairway controller --manifests ./manifests --service-cidrs 10.96.0.0/16\n  \
    fairway controller --kubeconfig ~/.kube/config")]
pub struct Args {
    #[command(flatten)]
    objects: Objects,

    /// With --manifests: the ranges of ClusterIPs, as the agents have them. The family of the first is that of Services which
    /// do not say what family they are of.
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',', help_heading = "Objects")]
    service_cidrs: Vec<IpNet>,

    /// Give addresses to Services with this `spec.loadBalancerClass`.
    #[arg(
        long,
        value_name = "CLASS",
        default_value = "fairway.io/fairway",
        help_heading = "Services"
    )]
    load_balancer_class: String,

    /// Leave Services without a class alone, for another controller.
    #[arg(long, help_heading = "Services")]
    only_class: bool,

    /// The namespace of the Lease `fairway-controller`.
    #[arg(long, value_name = "NAME", default_value = "kube-system", help_heading = "Leading")]
    lease_namespace: String,

    /// An instance that has not renewed the Lease for so many seconds no longer leads.
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = seconds, help_heading = "Leading")]
    lease_duration: Duration,

    /// The Lease is renewed every so many seconds, at most half of --lease-duration.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds, help_heading = "Leading")]
    lease_renewal: Duration,

    /// Where metrics are told (`/metrics`, for Prometheus), `/healthz` and `/readyz` are answered; `none` for nowhere.
    #[arg(
        long,
        value_name = "ADDRESS:PORT|none",
        default_value = "127.0.0.1:10264",
        help_heading = "Health and metrics"
    )]
    metrics_address: Listen,

    #[command(flatten)]
    log: Log,
}

/// Runs it.
pub fn run(args: Args) -> anyhow::Result<()> {
    args.log.start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(controller::run(args.settings()?))
}

impl Args {
    fn settings(self) -> anyhow::Result<controller::Settings> {
        ensure!(
            self.lease_renewal * 2 <= self.lease_duration,
            "--lease-renewal has to be at most half of --lease-duration, so that one lost request does not lose the Lease"
        );
        let (lease_namespace, timing) = (
            self.lease_namespace,
            Timing {
                duration: self.lease_duration,
                renew: self.lease_renewal,
            },
        );
        let origin = match self.objects.source()? {
            objects::Source::Manifests(dir) => Origin::Manifests {
                dir,
                service_cidrs: self.service_cidrs,
            },
            objects::Source::Api(access) => Origin::Api {
                access,
                lease_namespace,
                timing,
            },
        };
        Ok(controller::Settings {
            origin,
            services: allocate::Settings {
                class: self.load_balancer_class,
                only_class: self.only_class,
            },
            telemetry: self.metrics_address.0,
        })
    }
}

/// A time in seconds, also a part of one.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| format!("`{text}` is not a number of seconds"))?;
    let limits = 0.1..=60.0;
    if limits.contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("it has to be between 0.1 and 60 seconds".to_owned())
    }
}
