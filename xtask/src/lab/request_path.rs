//! The whole path of a request: an address out of a pool, its announcement, the Ingress controller, the application's
//! Service, a pod, and back.
//!
//! ```text
//!   neighbour ─ ARP/NDP ─► node that announces ─► pod of `fairway ingress` ─► ClusterIP ─► pod of the application
//! ```
//!
//! Nothing but the manifests in `examples/request-path` says where anything is. The neighbour has no route: it finds the
//! address as any host on a LAN finds another. [`account`] tells what happened to one request, hop by hop.

mod account;
mod certificate;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use self::certificate::Certificate;
use super::Lab;
use super::agent::tail;
use super::plan::{NODES, Node, PODS, Place, SERVICE_CIDRS};
use super::wire::{Outcome, Task, Web, WebAnswer};

/// The host of the document's Ingress.
const HOST: &str = "myapp.example.com";
/// The pods in which the Ingress controller runs, by their index in [`PODS`].
const INGRESS_PODS: [usize; 2] = [1, 3];
/// The Ingress controller's Service.
const INGRESS_SERVICE: &str = "fairway-ingress/fairway-ingress";
/// The document's Service.
const APPLICATION: &str = "default/my-spring-app";
/// The application with addresses of both families.
const APPLICATION_DUAL: &str = "default/my-spring-app-dual";
/// Where each Ingress controller tells whether it is ready.
const READY_PORT: u16 = 10_254;
/// How long each thing may take to come about.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked for.
const POLL: Duration = Duration::from_millis(50);

/// What is asked for, and by which door.
struct Wanted {
    /// The Service of type LoadBalancer that the request is sent to.
    service: &'static str,
    /// Whether that is the Ingress controller's.
    by_ingress: bool,
    v6: bool,
    tls: bool,
    path: &'static str,
}

impl Lab {
    /// Starts what a cluster has beside the agents, sends a request on each way that the document names, and tells hop by
    /// hop where it went.
    ///
    /// # Errors
    /// If something did not come about, or a request did not go as it has to.
    pub fn request_path(&mut self, examples: &Path) -> anyhow::Result<String> {
        let certificate = Certificate::make(HOST)?;
        self.use_manifests(&examples.join("request-path"))?;
        fs::write(self.manifests().join("myapp-tls.yaml"), certificate.manifests())?;
        self.start_controllers()?;

        let way = |v6, tls, path| Wanted {
            service: INGRESS_SERVICE,
            by_ingress: true,
            v6,
            tls,
            path,
        };
        let mut text = String::new();
        for wanted in [
            way(false, false, "/"),
            way(true, false, "/"),
            way(false, true, "/"),
            way(true, true, "/"),
        ] {
            text += &self.request(&wanted, &certificate)?;
        }
        // The document's other form of the Service: with an address of its own.
        let document = examples.join("loadbalancer/my-spring-app.yaml");
        fs::copy(&document, self.manifests().join("my-spring-app.yaml"))
            .with_context(|| format!("copy {}", document.display()))?;
        for (service, v6) in [(APPLICATION, false), (APPLICATION_DUAL, true)] {
            let wanted = Wanted {
                service,
                by_ingress: false,
                ..way(v6, false, "/")
            };
            text += &self.request(&wanted, &certificate)?;
        }
        Ok(text)
    }

    /// Starts `fairway controller` and `fairway ingress`.
    fn start_controllers(&mut self) -> anyhow::Result<()> {
        let fairway = self.description.fairway.clone().context("this lab has no agents")?;
        let cidrs = SERVICE_CIDRS.join(",");
        let mut command = self.command(Place::Node(0), &fairway);
        command
            .args(["controller", "--service-cidrs", &cidrs, "--manifests"])
            .arg(self.manifests());
        self.controllers.push(self.start(&mut command, "fairway-controller")?);
        for pod in INGRESS_PODS {
            let mut command = self.command(Place::Pod(pod), &fairway);
            command
                .args(["ingress", "--service-cidrs", &cidrs, "--manifests"])
                .arg(self.manifests())
                // The document's Ingress names no class.
                .arg("--watch-without-class")
                .args(["--publish-service", INGRESS_SERVICE])
                .args(["--http-address", "[::]:8000", "--https-address", "[::]:8443"])
                .arg("--access-log")
                .arg(self.access_log(pod))
                .args(["--instance", PODS[pod].name]);
            let log = format!("fairway-ingress-{}", PODS[pod].name);
            self.controllers.push(self.start(&mut command, &log)?);
        }
        for pod in INGRESS_PODS {
            let ready = Web {
                target: SocketAddr::from(([127, 0, 0, 1], READY_PORT)),
                host: "localhost".to_owned(),
                path: "/readyz".to_owned(),
                id: String::new(),
                trusted: None,
            };
            let log = self.log(&format!("fairway-ingress-{}", PODS[pod].name));
            self.until(&log, |lab| match lab.web(Place::Pod(pod), &ready)? {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => bail!("fairway ingress in {} is not ready: {}", PODS[pod].name, answer.body),
                Err(error) => bail!("fairway ingress in {} does not answer: {error}", PODS[pod].name),
            })?;
        }
        Ok(())
    }

    /// One request, once all that it needs is there, and the account of it.
    fn request(&mut self, wanted: &Wanted, certificate: &Certificate) -> anyhow::Result<String> {
        let address = self.address(wanted)?;
        let port = if wanted.tls { 443 } else { 80 };
        let target = SocketAddr::new(address, port);
        self.wait_until(|frontends| {
            let programmed = frontends
                .iter()
                .any(|f| f.address == target && f.service.starts_with(wanted.service));
            ensure!(programmed, "{target} of {} is not programmed", wanted.service);
            Ok(())
        })?;
        let announcing = self.announcing(address)?;
        let id = format!("{}-{}-{}", wanted.service.replace('/', "-"), address, port);
        let request = Web {
            target,
            host: HOST.to_owned(),
            path: wanted.path.to_owned(),
            id,
            trusted: wanted.tls.then(|| certificate.pem().to_owned()),
        };
        let answer = self
            .web(Place::Neighbour, &request)?
            .map_err(|error| anyhow::anyhow!("the neighbour asked {target} for {HOST}: {error}"))?;
        self.account(wanted, &request, &answer, announcing)
    }

    fn web(&self, place: Place, request: &Web) -> anyhow::Result<Result<WebAnswer, String>> {
        match self.ask(place, &Task::Web(request.clone()))? {
            Outcome::Web(answer) => Ok(answer),
            _ => bail!(
                "the client in {} answered something else than it was asked",
                place.name()
            ),
        }
    }

    /// The address that the controller has given a Service.
    fn address(&self, wanted: &Wanted) -> anyhow::Result<IpAddr> {
        let file = self.manifests().join("fairway-addresses.yaml");
        self.until(&self.log("fairway-controller"), |_| {
            let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text).context("understand given addresses")?;
            let given = documents.iter().filter(|document| name(document) == wanted.service);
            let given = given.filter_map(|document| document.pointer("/status/loadBalancer/ingress")?.as_array());
            let addresses = given
                .flatten()
                .filter_map(|entry| entry.get("ip")?.as_str()?.parse().ok());
            let mut of_family = addresses.filter(|address: &IpAddr| address.is_ipv6() == wanted.v6);
            of_family
                .next()
                .with_context(|| format!("{} has been given no address yet", wanted.service))
        })
    }

    /// The one node that says that it announces an address, once all count with all: until then addresses move.
    fn announcing(&self, address: IpAddr) -> anyhow::Result<usize> {
        self.until(&self.log(&format!("fairway-{}", NODES[0].name)), |lab| {
            let mut here = Vec::new();
            for (node, Node { name, .. }) in NODES.iter().enumerate() {
                let told = lab.observe(node, "announcements")?;
                let nodes = told.get("nodes").and_then(Value::as_array).into_iter().flatten();
                let candidates = nodes.filter(|one| one["lease"] == "candidate").count();
                ensure!(
                    candidates == NODES.len(),
                    "{name} counts with {candidates} nodes for announcing"
                );
                let all = told.get("addresses").and_then(Value::as_array).into_iter().flatten();
                let mut own = all.filter(|one| one["address"].as_str().and_then(|a| a.parse().ok()) == Some(address));
                if own.any(|one| one["here"] == true) {
                    here.push(node);
                }
            }
            match here[..] {
                [node] => Ok(node),
                _ => bail!("{address} is announced by {} nodes", here.len()),
            }
        })
    }

    /// Where an Ingress controller writes of its requests.
    fn access_log(&self, pod: usize) -> PathBuf {
        self.log(&format!("access-{}", PODS[pod].name))
    }

    /// Waits until something succeeds. If it never does, the end of a log may say why.
    fn until<T>(&self, log: &Path, what: impl Fn(&Self) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.check_stop()?;
            match what(self) {
                Err(error) if Instant::now() > deadline => return Err(error.context(tail(log))),
                Err(_) => thread::sleep(POLL),
                result => return result,
            }
        }
    }
}

/// Namespace and name of an object.
fn name(object: &Value) -> String {
    let meta = |name: &str| object.pointer(&format!("/metadata/{name}")).and_then(Value::as_str);
    format!(
        "{}/{}",
        meta("namespace").unwrap_or("default"),
        meta("name").unwrap_or_default()
    )
}
