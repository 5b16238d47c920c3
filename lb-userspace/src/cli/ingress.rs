//! `fairway ingress`.

use std::net::SocketAddr;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use ipnet::IpNet;

use super::log::Log;
use super::objects::{self, Objects};
use crate::agent::Listen;
use crate::ingress::follow::{Origin, Source};
use crate::ingress::objects::ClassOptions;
use crate::ingress::table::Upstream;
use crate::ingress::{self, AccessLogTarget, Backends, Clients, Settings};
use crate::model::ObjectKey;

/// Where the kernel tells the host's name; in a pod that is the pod's.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// Run the Ingress controller: HTTP and HTTPS from outside the cluster to Services, by Ingress objects.
///
/// Listens for clients, and sends each request to the Service that an Ingress names for its host and path. Changes of
/// Ingresses, Services and Secrets are in force at once; no connection is lost over them. Addresses, ports and
/// certificates come from objects only.
///
/// Objects come from a folder of manifests (--manifests), from the Kubernetes API that a kubeconfig file names
/// (--kubeconfig), else, in a pod, from the cluster's own API. When the API goes away, requests go on by what is known.
///
/// On SIGTERM it is not ready any more, goes on for --drain-delay so that load balancers learn of it, then takes no more
/// connections and finishes its requests, all within --grace. A second signal ends it at once.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    fairway ingress --manifests ./manifests --service-cidrs 10.96.0.0/16\n  \
    fairway ingress --kubeconfig ~/.kube/config --publish-service fairway/ingress")]
pub struct Args {
    #[command(flatten)]
    objects: Objects,

    /// With --manifests, Services without a ClusterIP get one from these ranges.
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',', help_heading = "Objects")]
    service_cidrs: Vec<IpNet>,

    /// Serve the Ingresses whose annotation kubernetes.io/ingress.class is this. Others name an IngressClass.
    #[arg(long, value_name = "NAME", default_value = ClassOptions::NAME, help_heading = "Objects")]
    ingress_class: String,

    /// Serve the Ingresses of every IngressClass whose `spec.controller` is this.
    #[arg(
        long,
        value_name = "NAME",
        default_value = ClassOptions::CONTROLLER,
        help_heading = "Objects"
    )]
    controller_name: String,

    /// Serve Ingresses without a class as well, also where no IngressClass of this controller is the default one.
    #[arg(long, help_heading = "Objects")]
    watch_without_class: bool,

    /// The Service whose addresses are written into the status of Ingresses: the one that clients come by.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = object, help_heading = "Objects")]
    publish_service: Option<ObjectKey>,

    /// The Secret with the certificate for clients that name no host, or one that has none. [default: a self-signed one]
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = object, help_heading = "Objects")]
    default_tls_secret: Option<ObjectKey>,

    /// Where requests are sent: to the ClusterIP of a Service, so that its session affinity and traffic policy hold and
    /// whatever serves ClusterIPs chooses the pod, or to its endpoints in turn.
    #[arg(long, value_enum, default_value_t, help_heading = "Backends")]
    upstream: To,

    /// A connection to a backend is made within this, else the next address is tried.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "3s", help_heading = "Backends")]
    connect_timeout: Duration,

    /// A backend is silent for this long at most, before its answer and within it. WebSockets count.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1m", help_heading = "Backends")]
    backend_timeout: Duration,

    /// A connection to a backend is kept for this long without a request. Shorter than what backends do themselves
    /// (Node.js: 5 seconds), else a request meets a connection that is being closed.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "4s", help_heading = "Backends")]
    backend_idle_timeout: Duration,

    /// A connection to a backend is used for this long. Connections to a ClusterIP stay with one pod: this is when new
    /// pods get their part, and when those that are to end are left.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1m", help_heading = "Backends")]
    backend_lifetime: Duration,

    /// Connections to backends without a request that are kept, of all backends together.
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Backends")]
    backend_kept_connections: usize,

    /// Where HTTP is served. `[::]` stands for all addresses of both families; `none` for nowhere.
    #[arg(
        long,
        value_name = "ADDRESS:PORT,..|none",
        value_delimiter = ',',
        default_value = "[::]:8080",
        help_heading = "Clients"
    )]
    http_address: Vec<Listen>,

    /// Where HTTPS is served.
    #[arg(
        long,
        value_name = "ADDRESS:PORT,..|none",
        value_delimiter = ',',
        default_value = "[::]:8443",
        help_heading = "Clients"
    )]
    https_address: Vec<Listen>,

    /// Peers that begin every connection with a PROXY header (version 1 or 2): load balancers that hide the client
    /// otherwise. Their connections without one are refused; from others such a header is not understood.
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',', help_heading = "Clients")]
    proxy_protocol: Vec<IpNet>,

    /// Peers whose X-Forwarded headers are believed and added to. Those of all others are replaced.
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',', help_heading = "Clients")]
    trusted_proxies: Vec<IpNet>,

    /// Connections of clients at a time. More have to wait.
    #[arg(long, value_name = "N", default_value_t = 16_384, help_heading = "Clients")]
    max_connections: usize,

    /// A TLS handshake is done within this.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s", help_heading = "Clients")]
    handshake_timeout: Duration,

    /// The head of a request is there within this, counted from its first byte, however often a byte comes.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "15s", help_heading = "Clients")]
    head_timeout: Duration,

    /// A client neither sends anything of a body nor takes anything of an answer for this long at most.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1m", help_heading = "Clients")]
    client_timeout: Duration,

    /// A client's connection is kept for this long without a request.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1m", help_heading = "Clients")]
    client_idle_timeout: Duration,

    /// Requests of an HTTP/1.1 connection, after which it is closed. [default: any number]
    #[arg(long, value_name = "N", help_heading = "Clients")]
    client_requests: Option<u32>,

    /// Where the access log goes, one JSON object a line: `stdout`, `off`, or a file.
    #[arg(long, value_name = "stdout|off|FILE", default_value_t = AccessLogTarget::Stdout, help_heading = "Telemetry")]
    access_log: AccessLogTarget,

    /// Where health (`/healthz`), readiness (`/readyz`) and metrics (`/metrics`) are told; `none` for nowhere.
    #[arg(
        long,
        value_name = "ADDRESS:PORT|none",
        default_value = "[::]:10254",
        help_heading = "Telemetry"
    )]
    metrics_address: Listen,

    /// From being told to end until no more connections are taken.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5s", help_heading = "Process")]
    drain_delay: Duration,

    /// From being told to end until what is left is cut off. A pod's terminationGracePeriodSeconds should be longer.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s", help_heading = "Process")]
    grace: Duration,

    /// Threads that carry requests. [default: as many as there are processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Process")]
    threads: Option<u16>,

    /// The name of this instance in Events. [default: the host's name]
    #[arg(long, env = "POD_NAME", value_name = "NAME", help_heading = "Process")]
    instance: Option<String>,

    #[command(flatten)]
    log: Log,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum To {
    /// The ClusterIP.
    #[default]
    Service,
    /// The endpoints.
    Endpoints,
}

/// Serves until it is told to end.
pub fn run(args: Args) -> anyhow::Result<()> {
    args.log.start()?;
    let settings = args.settings()?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(ingress::run(settings))
}

impl Args {
    fn settings(self) -> anyhow::Result<Settings> {
        let origin = match self.objects.source()? {
            objects::Source::Manifests(dir) => Origin::Manifests {
                dir,
                service_cidrs: self.service_cidrs,
            },
            objects::Source::Api(access) => Origin::Api(access),
        };
        let instance = match self.instance {
            Some(name) => name,
            None => std::fs::read_to_string(HOST_NAME)
                .with_context(|| format!("read the host's name from {HOST_NAME}; --instance stands in for it"))?
                .trim()
                .to_owned(),
        };
        let places = |listen: &[Listen]| listen.iter().filter_map(|listen| listen.0).collect::<Vec<SocketAddr>>();
        let (http, https) = (places(&self.http_address), places(&self.https_address));
        ensure!(
            !http.is_empty() || !https.is_empty(),
            "--http-address and --https-address are both `none`: there is nothing to serve"
        );
        ensure!(self.max_connections > 0, "--max-connections 0 would let nobody in");
        Ok(Settings {
            source: Source {
                origin,
                class: ClassOptions {
                    controller: self.controller_name.into(),
                    name: self.ingress_class.into(),
                    without_class: self.watch_without_class,
                },
                upstream: match self.upstream {
                    To::Service => Upstream::Service,
                    To::Endpoints => Upstream::Endpoints,
                },
                default_certificate: self.default_tls_secret,
                publish_service: self.publish_service,
                instance: instance.into(),
            },
            http,
            https,
            metrics: self.metrics_address,
            access_log: self.access_log,
            clients: Clients {
                proxies: self.proxy_protocol,
                trusted: self.trusted_proxies,
                connections: self.max_connections,
                handshake: self.handshake_timeout,
                head: self.head_timeout,
                silence: self.client_timeout,
                idle: self.client_idle_timeout,
                requests: self.client_requests,
            },
            backends: Backends {
                connect: self.connect_timeout,
                silence: self.backend_timeout,
                idle: self.backend_idle_timeout,
                lifetime: self.backend_lifetime,
                kept: self.backend_kept_connections,
            },
            drain_delay: self.drain_delay,
            grace: self.grace,
            threads: match self.threads {
                Some(threads) => threads.into(),
                None => thread::available_parallelism().map_or(1, Into::into),
            },
        })
    }
}

/// A time: a number with its unit.
fn duration(text: &str) -> Result<Duration, String> {
    let form = || format!("`{text}` is not a time such as 500ms, 5s, 2m or 1h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(form)?;
    let (number, unit) = text.split_at(digits);
    let number = u32::from_str(number).map_err(|_| form())?;
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return Err(form()),
    };
    Ok(unit * number)
}

/// An object, as `namespace/name`.
fn object(text: &str) -> Result<ObjectKey, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(ObjectKey::new(namespace, name))
        }
        _ => Err(format!("`{text}` is not an object as NAMESPACE/NAME")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["", "5", "s", "5 s", "-5s", "5d", "99999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn objects_have_a_namespace() {
        assert_eq!(object("a/b"), Ok(ObjectKey::new("a", "b")));
        for wrong in ["b", "/b", "a/", "a/b/c", ""] {
            assert!(object(wrong).is_err(), "{wrong}");
        }
    }
}
