//! The two labs with their API server, side by side.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};

use super::api::ApiServer;
use super::manifest::manifests;
use super::marker::Marker;
use super::model::{Cluster, Family, Protocol};
use super::plan;
use super::side::{FAIRWAY, KUBE_PROXY, Side};
use super::store::{Applied, Store};
use super::wanted::Rule;

/// How long a proxy may take to apply a change. Loading programs takes seconds on a busy machine.
const APPLIES: Duration = Duration::from_secs(20);

/// How long a `ServiceCIDR` takes from the API server to a proxy at most.
const SERVICE_CIDR_COMES: Duration = Duration::from_millis(200);

/// Both labs.
#[derive(Debug)]
pub struct Lab {
    sides: [Side; 2],
    store: Store,
    marker: Marker,
    service_cidrs: BTreeSet<String>,
    rules: Vec<Rule>,
    api: ApiServer,
    folder: PathBuf,
    stop: Arc<AtomicBool>,
}

/// The programs that a lab is made of.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The folder with kube-apiserver, etcd and kube-proxy.
    pub kubernetes: PathBuf,
    /// Fairway.
    pub fairway: PathBuf,
}

impl Lab {
    /// Starts everything. It ends when the value is dropped.
    pub fn up(programs: &Programs, rules: Vec<Rule>, stop: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("fairway-differential-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let api = ApiServer::start(&programs.kubernetes, &folder)?;
        let mut store = Store::default();
        // kube-proxy waits half a minute for its Node if it is not there.
        let node = manifests(&Cluster::default());
        ensure!(
            store.apply(&api, &node, &[])? == Applied::Yes,
            "the API server refuses the Node"
        );
        let kube_proxy = Side::with_kube_proxy(&programs.kubernetes.join(KUBE_PROXY), &api, &folder)?;
        let fairway = Side::with_fairway(&programs.fairway, &api, &folder)?;
        let mut lab = Self {
            sides: [kube_proxy, fairway],
            store,
            marker: Marker::default(),
            service_cidrs: BTreeSet::new(),
            rules,
            api,
            folder,
            stop,
        };
        lab.listen()?;
        lab.come_to(&Cluster::default(), &[])?;
        Ok(lab)
    }

    /// The differences that are wanted.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Where the logs of everything are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn listen(&mut self) -> anyhow::Result<()> {
        let mut at = Marker::backends();
        for family in Family::ALL {
            let pods = (0..plan::PODS).flat_map(|index| [plan::pod(family, index), plan::remote_pod(family, index)]);
            for ip in pods.chain([plan::node(family), plan::other_node(family)]) {
                for port in plan::TARGET_PORTS {
                    at.extend(Protocol::ALL.map(|protocol| (SocketAddr::new(ip, port), protocol)));
                }
            }
        }
        self.both(|side| side.listen(&at))?;
        Ok(())
    }

    /// Both sides, kube-proxy's first.
    pub const fn sides(&mut self) -> &mut [Side; 2] {
        &mut self.sides
    }

    /// Does something on both sides at the same time.
    pub fn both<T: Send>(&mut self, work: impl Fn(&mut Side) -> anyhow::Result<T> + Sync) -> anyhow::Result<[T; 2]> {
        ensure!(!self.stop.load(Ordering::Relaxed), "interrupted");
        let [one, other] = &mut self.sides;
        let work = &work;
        let (one, other) = thread::scope(|scope| {
            let other = scope.spawn(move || work(other));
            (work(one), other.join())
        });
        let other = other.map_err(|_| anyhow!("a thread of the lab panicked"))?;
        Ok([one.context(KUBE_PROXY)?, other.context(FAIRWAY)?])
    }

    fn wait_for_mark(&mut self) -> anyhow::Result<()> {
        let asks = self.marker.advance(&self.api)?;
        let deadline = Instant::now() + APPLIES;
        self.both(|side| {
            loop {
                let answers = side.ask(&asks)?;
                if answers.iter().flatten().all(|flow| flow.backend().is_some()) {
                    return Ok(());
                }
                side.must_run()?;
                if Instant::now() > deadline {
                    bail!(
                        "a change is not applied after {APPLIES:?}: {answers:?}\n{}",
                        side.log_end()
                    );
                }
            }
        })?;
        Ok(())
    }

    /// kube-proxy takes a change of `ServiceCIDR`s with its next full sync, an hour later perhaps. A change of the Node's
    /// zone makes it do one at once.
    fn have_all_synced(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        thread::sleep(SERVICE_CIDR_COMES);
        let elsewhere = Cluster {
            zone: Some("zone-elsewhere".to_owned()),
            ..cluster.clone()
        };
        for state in [&elsewhere, cluster] {
            let applied = self.store.apply(&self.api, &manifests(state), &[])?;
            ensure!(applied == Applied::Yes, "the API server refuses the Node: {applied:?}");
        }
        Ok(())
    }

    /// Brings the objects to this state and waits until both proxies have applied it.
    pub fn come_to(&mut self, cluster: &Cluster, anew: &[String]) -> anyhow::Result<Applied> {
        if let Applied::Refused(reason) = self.store.apply(&self.api, &manifests(cluster), anew)? {
            return Ok(Applied::Refused(reason));
        }
        if self.service_cidrs != cluster.service_cidrs {
            self.service_cidrs.clone_from(&cluster.service_cidrs);
            self.have_all_synced(cluster)?;
        }
        for _ in 0..Marker::MARKS {
            self.wait_for_mark()?;
        }
        Ok(Applied::Yes)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
