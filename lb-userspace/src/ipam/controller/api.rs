//! The controller on the Kubernetes API: waits for the Lease, then lists, decides and writes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Service, ServiceStatus};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use super::election::{Election, Error, Intent, Intents, Term, Timing};
use super::objects::{Store, follow_all};
use super::report::{Report, Tidings};
use super::stopped;
use crate::events;
use crate::ipam::allocate::{self, Decision, Finding, Plan, allocate, present};
use crate::ipam::pool::AddressPool;
use crate::ipam::status;
use crate::model::{ObjectKey, Problem};
use crate::sources::kube::{Access, client};

/// Who writes, in the API's records of who manages which field.
const MANAGER: &str = "fairway-controller";
/// At most so many writes are announced at a time: an announcement has to fit into an annotation (256 KiB).
const ANNOUNCED: usize = 256;
/// So many writes are under way at a time.
const AT_A_TIME: usize = 16;
/// A request may take this long.
const PATIENCE: Duration = Duration::from_secs(10);
/// After a write that failed it is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Which API, and who asks.
pub(super) struct Place {
    pub(super) access: Access,
    pub(super) lease_namespace: String,
    pub(super) timing: Timing,
    pub(super) identity: String,
}

/// Waits for the Lease and leads, again and again, until the controller is to end.
pub(super) async fn run(
    place: &Place,
    settings: &allocate::Settings,
    report: &Arc<Report>,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let client = client(&place.access).await?;
    let (problems, for_events) = watch::channel(Vec::new());
    tokio::spawn(events::write(
        place.access.clone(),
        place.identity.as_str().into(),
        for_events,
    ));
    let mut election = Election::new(
        client.clone(),
        &place.lease_namespace,
        place.identity.clone(),
        place.timing,
    );
    loop {
        let Some(term) = wait_for_lease(&mut election, place, report, &mut stopping).await else {
            return Ok(());
        };
        info!(identity = place.identity, "leading");
        report.leads(true);
        let mut leader = Leader::new(&client, settings, report, &problems, term);
        let ended = leader.lead(&mut stopping).await;
        report.leads(false);
        // Whoever leads next tells what is wrong.
        problems.send_replace(Vec::new());
        match ended {
            Ended::Stopped => {
                let outstanding = leader.outstanding;
                if let Err(error) = leader.term.release(&outstanding).await {
                    debug!(%error, "the Lease is not released, and expires");
                }
                return Ok(());
            }
            Ended::Lost(error) => {
                warn!(error = error.to_string(), "no longer leading");
                report.standby();
            }
        }
    }
}

/// The Lease, when it can be had; `None`: the controller is to end.
async fn wait_for_lease(
    election: &mut Election,
    place: &Place,
    report: &Report,
    stopping: &mut watch::Receiver<bool>,
) -> Option<Term> {
    let mut told = false;
    loop {
        report.alive();
        let attempt = tokio::select! {
            attempt = election.attempt() => attempt,
            () = stopped(stopping) => return None,
        };
        match attempt {
            Ok(Some(term)) => return Some(term),
            Ok(None) => {
                if !told {
                    info!("another instance leads; waiting");
                }
                told = true;
                report.standby();
            }
            Err(error) => {
                report.unready();
                let remedy = "is the API reachable, and do deploy/controller.yaml's roles allow Leases?";
                let namespace = &place.lease_namespace;
                if told {
                    debug!(%error, "the Lease still cannot be had");
                } else {
                    warn!(
                        error = text(&error),
                        namespace, remedy, "the Lease cannot be had; it is tried again"
                    );
                }
                told = true;
            }
        }
        tokio::select! {
            () = sleep(place.timing.renew) => {}
            () = stopped(stopping) => return None,
        }
    }
}

fn text(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", text(source)),
        None => error.to_string(),
    }
}

/// Why a term has ended.
enum Ended {
    /// The controller is to end.
    Stopped,
    /// Somebody else may lead.
    Lost(Error),
}

/// Who leads.
struct Leader<'a> {
    client: Client,
    settings: &'a allocate::Settings,
    report: &'a Arc<Report>,
    problems: &'a watch::Sender<Vec<Problem>>,
    term: Term,
    store: Store,
    /// Writes of addresses that may have succeeded, or may yet, without our having heard of it.
    outstanding: Intents,
    tidings: Tidings,
}

/// A status that is to be written.
struct Write {
    key: ObjectKey,
    service: Service,
    status: ServiceStatus,
    /// Addresses that do not stand in the status yet.
    new: Vec<IpAddr>,
}

/// How a write has ended.
pub(super) enum Written {
    /// This is what the API has now.
    Yes(Box<Service>),
    /// It has not happened, and will not.
    No,
    /// It was not tried, for want of time.
    Later,
    /// It may have happened.
    Unknown,
}

impl<'a> Leader<'a> {
    fn new(
        client: &Client,
        settings: &'a allocate::Settings,
        report: &'a Arc<Report>,
        problems: &'a watch::Sender<Vec<Problem>>,
        term: Term,
    ) -> Self {
        Self {
            client: client.clone(),
            settings,
            report,
            problems,
            outstanding: term.written().clone(),
            term,
            store: Store::default(),
            tidings: Tidings::default(),
        }
    }

    async fn lead(&mut self, stopping: &mut watch::Receiver<bool>) -> Ended {
        // Begun only now, so the lists hold all that the leaders before have written.
        let (_tasks, mut inbox) = follow_all(&self.client);
        let mut due: Option<Instant> = None;
        loop {
            self.report.alive();
            if Instant::now() >= self.term.deadline() {
                return Ended::Lost(Error::Silent);
            }
            tokio::select! {
                biased;
                () = stopped(stopping) => return Ended::Stopped,
                () = sleep_until(self.term.renewal()) => {
                    if let Err(ended) = self.renew().await {
                        return ended;
                    }
                }
                () = async {
                    match due {
                        Some(at) => sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => {
                    due = None;
                    while let Ok(news) = inbox.try_recv() {
                        self.store.take(news);
                    }
                    match self.round().await {
                        Ok(None) => {}
                        Ok(Some(pause)) => due = Some(Instant::now() + pause),
                        Err(ended) => return ended,
                    }
                }
                Some(news) = inbox.recv() => {
                    let mut changed = self.store.take(news);
                    while let Ok(news) = inbox.try_recv() {
                        changed |= self.store.take(news);
                    }
                    if changed && self.store.is_complete() {
                        due = Some(Instant::now());
                    }
                }
            }
        }
    }

    /// Renews the Lease. Not being able to is no end as long as it has not expired.
    async fn renew(&mut self) -> Result<(), Ended> {
        let outstanding = self.outstanding.clone();
        match self.term.renew(&outstanding).await {
            Ok(()) => Ok(()),
            Err(error @ Error::Lost(_)) => Err(Ended::Lost(error)),
            Err(error) => {
                warn!(
                    error = text(&error),
                    "the Lease could not be renewed; it is tried again"
                );
                sleep(AGAIN.min(self.term.deadline().saturating_duration_since(Instant::now()))).await;
                Ok(())
            }
        }
    }

    /// Decides, and writes a part of what differs. If there is more to do, or to do again: after how long.
    async fn round(&mut self) -> Result<Option<Duration>, Ended> {
        let began = Instant::now();
        let services = self.store.services();
        // Of the others it is known what has become of them.
        self.outstanding.retain(|key, intent| {
            let version = services.get(key).and_then(ResourceExt::resource_version);
            version.as_ref() == Some(&intent.resource_version)
        });
        let promised = promises(services, &self.outstanding);
        let plan = allocate(&self.store.input(&promised), self.settings);
        let took = began.elapsed();
        let mut writes = differences(services, &plan);
        self.tell(&plan, took);
        let all = writes.len();
        writes.truncate(ANNOUNCED.saturating_sub(self.outstanding.len()));
        let (tried, failed) = self.write(writes).await?;
        debug!(services = plan.services.len(), writes = all, tried, failed, "decided");
        if failed > 0 {
            return Ok(Some(AGAIN));
        }
        if tried < all {
            return Ok(Some(if tried == 0 { AGAIN } else { Duration::ZERO }));
        }
        Ok(self.write_pools(&plan).await.then_some(AGAIN))
    }

    /// Announces these writes, then does them; tells how many were tried, and how many failed.
    async fn write(&mut self, writes: Vec<Write>) -> Result<(usize, usize), Ended> {
        let mut intents = self.outstanding.clone();
        for write in writes.iter().filter(|write| !write.new.is_empty()) {
            let intent = Intent {
                resource_version: write.service.resource_version().unwrap_or_default(),
                addresses: write.new.clone(),
            };
            intents.insert(write.key.clone(), intent);
        }
        if intents != *self.term.written() {
            match self.term.renew(&intents).await {
                Ok(()) => {}
                Err(error @ Error::Lost(_)) => return Err(Ended::Lost(error)),
                Err(error) => {
                    warn!(
                        error = text(&error),
                        "nothing is written, since the Lease could not be; it is tried again"
                    );
                    return Ok((0, writes.len()));
                }
            }
        }
        self.outstanding = intents;
        // What is not begun by then waits for the next round, which renews the Lease.
        let until = self
            .term
            .renewal()
            .max(Instant::now() + Duration::from_millis(50))
            .min(self.term.deadline());
        let client = &self.client;
        let deadline = self.term.deadline();
        let results: Vec<(ObjectKey, Written)> = stream::iter(writes)
            .map(|write| async move {
                let written = write_service(client, &write, until, deadline).await;
                (write.key, written)
            })
            .buffer_unordered(AT_A_TIME)
            .collect()
            .await;
        let (mut tried, mut failed) = (0, 0);
        for (key, written) in results {
            self.report.written(&written);
            tried += usize::from(!matches!(written, Written::Later));
            failed += usize::from(matches!(written, Written::No | Written::Unknown));
            match written {
                Written::Yes(service) => {
                    self.outstanding.remove(&key);
                    self.store.written(*service);
                }
                Written::No | Written::Later => {
                    self.outstanding.remove(&key);
                }
                Written::Unknown => {}
            }
        }
        Ok((tried, failed))
    }

    /// Writes the status of pools where it differs; tells whether any could not be written.
    async fn write_pools(&mut self, plan: &Plan) -> bool {
        let now = Timestamp::now();
        let api: Api<AddressPool> = Api::all(self.client.clone());
        let mut failed = false;
        let mut answers = Vec::new();
        for (key, pool) in self.store.pools() {
            let Some(tally) = plan.pools.get(&*key.name) else {
                continue;
            };
            let status = status::of_pool(pool, tally, now);
            if pool.status.as_ref() == Some(&status) || Instant::now() >= self.term.deadline() {
                continue;
            }
            let patch = json!({"metadata": {"resourceVersion": pool.resource_version()}, "status": status});
            let written = timeout_at(self.term.deadline(), patch_status(&api, &key.name, &patch)).await;
            match written {
                Ok(Ok(pool)) => answers.push(pool),
                // The change that is in the way is heard of.
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
                Ok(Err(error)) => {
                    warn!(
                        pool = &*key.name,
                        error = text(&error),
                        "the status of a pool could not be written"
                    );
                    failed = true;
                }
                Err(_) => failed = true,
            }
        }
        for pool in answers {
            self.store.pool_written(pool);
        }
        failed
    }

    fn tell(&mut self, plan: &Plan, took: Duration) {
        self.report.decided(plan, took);
        if self.tidings.tell(plan) {
            self.problems.send_replace(plan.problems.clone());
        }
    }
}

/// The Services that are about to have addresses, as they will be.
fn promises(services: &BTreeMap<ObjectKey, Service>, outstanding: &Intents) -> BTreeMap<ObjectKey, Service> {
    let promised = outstanding.iter().filter_map(|(key, intent)| {
        let mut service = services.get(key)?.clone();
        // Of each family the promised one counts; the other is not given to anybody else.
        let others = present(&service).filter(|address| !intent.addresses.contains(address));
        let addresses = intent.addresses.iter().copied().chain(others).collect();
        let finding = Finding {
            assigned: true,
            reason: "Assigned",
            message: String::new(),
        };
        let decision = Decision::Ours { addresses, finding };
        service.status = Some(status::decided(&service, &decision, Timestamp::now()));
        Some((key.clone(), service))
    });
    promised.collect()
}

/// What is to be written. Addresses are taken away before others are given.
fn differences(services: &BTreeMap<ObjectKey, Service>, plan: &Plan) -> Vec<Write> {
    let now = Timestamp::now();
    let mut writes: Vec<Write> = plan
        .services
        .iter()
        .filter_map(|(key, decision)| {
            let service = services.get(key)?;
            let status = status::decided(service, decision, now);
            if status::stands(service, &status) {
                return None;
            }
            let before: Vec<IpAddr> = present(service).collect();
            let new = match decision {
                Decision::Ours { addresses, .. } => {
                    let new = addresses.iter().copied();
                    new.filter(|address| !before.contains(address)).collect()
                }
                Decision::Withdrawn(_) => Vec::new(),
            };
            Some(Write {
                key: key.clone(),
                service: service.clone(),
                status,
                new,
            })
        })
        .collect();
    writes.sort_by_key(|write| !write.new.is_empty());
    writes
}

async fn write_service(client: &Client, write: &Write, until: Instant, deadline: Instant) -> Written {
    let now = Instant::now();
    if now >= until {
        return Written::Later;
    }
    let namespace = &*write.key.namespace;
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    let balancer = write.status.load_balancer.as_ref();
    let patch = json!({
        "metadata": {"resourceVersion": write.service.resource_version()},
        "status": {
            "loadBalancer": {"ingress": balancer.and_then(|balancer| balancer.ingress.as_ref())},
            "conditions": write.status.conditions,
        },
    });
    let written = timeout_at(
        deadline.min(now + PATIENCE),
        patch_status(&api, &write.key.name, &patch),
    )
    .await;
    let failed = match written {
        Ok(Ok(service)) => return Written::Yes(Box::new(service)),
        // It has been changed or deleted since; the news of that is on its way.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => return Written::No,
        Ok(Err(kube::Error::Api(status))) if (400..500).contains(&status.code) => {
            warn!(service = %write.key, code = status.code, error = status.message, "the API refuses a status");
            return Written::No;
        }
        Ok(Err(error)) => text(&error),
        Err(_) => "the API does not answer".to_owned(),
    };
    warn!(service = %write.key, error = failed, "a status could not be written; it is tried again");
    Written::Unknown
}

async fn patch_status<K>(api: &Api<K>, name: &str, patch: &Value) -> Result<K, kube::Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let parameters = PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    };
    api.patch_status(name, &parameters, &Patch::Merge(patch)).await
}

impl Written {
    /// In one word.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Yes(_) => "written",
            Self::No => "refused",
            Self::Later => "postponed",
            Self::Unknown => "unanswered",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(version: &str, ip: Option<&str>) -> Service {
        let ingress: Vec<Value> = ip.into_iter().map(|ip| json!({"ip": ip})).collect();
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "web", "resourceVersion": version},
            "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"]},
            "status": {"loadBalancer": {"ingress": ingress}},
        }))
        .unwrap()
    }

    fn pool() -> AddressPool {
        serde_json::from_value(json!({
            "apiVersion": "fairway.io/v1alpha1", "kind": "AddressPool", "metadata": {"name": "default"},
            "spec": {"blocks": [{"cidr": "192.0.2.0/30"}]},
        }))
        .unwrap()
    }

    fn plan(services: &BTreeMap<ObjectKey, Service>, outstanding: &Intents) -> Plan {
        let (pool, promised) = (pool(), promises(services, outstanding));
        let input = allocate::Input {
            pools: vec![&pool],
            services: services
                .iter()
                .map(|(key, service)| promised.get(key).unwrap_or(service))
                .collect(),
            ..allocate::Input::default()
        };
        let settings = allocate::Settings {
            class: "fairway.io/fairway".into(),
            only_class: false,
        };
        allocate(&input, &settings)
    }

    fn addresses(plan: &Plan, name: &str) -> Vec<String> {
        match &plan.services[&ObjectKey::new("shop", name)] {
            Decision::Ours { addresses, .. } => addresses.iter().map(ToString::to_string).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_address_that_a_leader_before_may_be_writing_is_the_services_and_nobody_elses() {
        let (web, api) = (ObjectKey::new("shop", "web"), ObjectKey::new("shop", "api"));
        let mut other = service("6", None);
        other.metadata.name = Some("api".into());
        let services = BTreeMap::from([(web.clone(), service("5", None)), (api, other)]);
        let intent = Intent {
            resource_version: "5".into(),
            addresses: vec!["192.0.2.0".parse().unwrap()],
        };
        let outstanding = Intents::from([(web, intent)]);
        let plan = plan(&services, &outstanding);
        assert_eq!(
            (addresses(&plan, "web"), addresses(&plan, "api")),
            (vec!["192.0.2.0".into()], vec!["192.0.2.1".into()])
        );
        // It is written all the same, which settles whose it is.
        let writes = differences(&services, &plan);
        assert!(
            writes
                .iter()
                .any(|write| write.key.name.as_ref() == "web" && write.new.len() == 1)
        );
    }

    #[test]
    fn a_move_that_may_be_under_way_is_carried_on_with_both_addresses_kept_from_others() {
        let web = ObjectKey::new("shop", "web");
        let services = BTreeMap::from([(web.clone(), service("5", Some("192.0.2.0")))]);
        let intent = Intent {
            resource_version: "5".into(),
            addresses: vec!["192.0.2.3".parse().unwrap()],
        };
        let plan = plan(&services, &Intents::from([(web, intent)]));
        assert_eq!(addresses(&plan, "web"), ["192.0.2.3"]);
        assert_eq!(plan.pools["default"].used, 2);
    }
}
