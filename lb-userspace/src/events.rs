//! Kubernetes Events for what is wrong with objects, so that `kubectl describe` shows it where its owner looks.
//!
//! A task of its own writes them: the loop hands it what is wrong now and goes on. A cluster has an agent on every node,
//! and what is wrong with an object is wrong on all of them. So an Event has a name that follows from what it says:
//! whichever agent writes it first has written it for all, and the others are told that it exists. What comes from a
//! node's own state (a port in use, a full map) has the node in its name, one Event for each node.
//!
//! As long as something is wrong its Event is renewed, since the API server forgets Events after a while. No agent ever
//! writes many at a time, and none waits for an Event or fails because of one.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, ObjectReference, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::api::networking::v1::{Ingress, IngressClass, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

use crate::ipam::pool::AddressPool;
use crate::model::{ObjectKind, Problem};
use crate::sources::kube::{self as source, Access};

/// Who reports.
const CONTROLLER: &str = "fairway";
/// Events about objects without a namespace are kept here.
const NAMESPACE_OF_OTHERS: &str = "default";

/// What concerns every node is written after up to this, so that the first of a thousand agents spares the others most of
/// the work.
const SPREAD: Duration = Duration::from_secs(5);
/// An Event is renewed after this; API servers keep them for an hour.
const RENEW: Duration = Duration::from_secs(30 * 60);
/// After a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// After a refusal, which somebody has to lift.
const AGAIN_REFUSED: Duration = Duration::from_secs(10 * 60);
/// A request may take this long.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many Events may be written at once ...
const BURST: u32 = 20;
/// ... and one more each time that this has passed.
const PACE: Duration = Duration::from_secs(10);

/// The API's limits, in bytes.
const NOTE_LIMIT: usize = 1024;
const NAME_LIMIT: usize = 200;
const INSTANCE_LIMIT: usize = 128;

/// Writes Events about what is wrong at each time, until the agent ends.
pub async fn write(access: Access, node: Arc<str>, mut problems: watch::Receiver<Vec<Problem>>) {
    let client = match source::client(&access).await {
        Ok(client) => client,
        Err(error) => {
            warn!(%error, "no Events are written");
            return;
        }
    };
    let writer = Writer { client, node };
    let mut plan = Plan::new(Arc::clone(&writer.node));
    loop {
        plan.update(&problems.borrow_and_update(), Instant::now());
        let due = plan.next();
        tokio::select! {
            changed = problems.changed() => if changed.is_err() {
                return;
            },
            () = async {
                match due {
                    Some((at, _)) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            } => if let Some((_, problem)) = due {
                let renewals = plan.renewals(&problem);
                let written = writer.write(&problem, renewals).await;
                plan.done(&problem, &written, Instant::now());
            },
        }
    }
}

/// How an attempt to write an Event ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Written {
    /// It is there.
    Yes,
    /// Not now.
    Failed,
    /// The agent may not.
    Refused,
}

/// What is to be written when.
struct Plan {
    node: Arc<str>,
    due: HashMap<Problem, Due>,
    /// Events that may be written at once.
    credit: u32,
    /// When the next one is added to them.
    credit_at: Instant,
    /// It has been said that the agent may not write Events.
    refused: bool,
}

#[derive(Clone, Copy)]
struct Due {
    at: Instant,
    /// How often its Event has been written.
    written: i32,
}

impl Plan {
    fn new(node: Arc<str>) -> Self {
        Self {
            node,
            due: HashMap::new(),
            credit: BURST,
            credit_at: Instant::now(),
            refused: false,
        }
    }

    /// These are wrong now, and nothing else.
    fn update(&mut self, problems: &[Problem], now: Instant) {
        let present: HashSet<&Problem> = problems.iter().collect();
        self.due.retain(|problem, _| present.contains(problem));
        for problem in present.into_iter().filter(|problem| problem.kind != ObjectKind::File) {
            if !self.due.contains_key(problem) {
                let at = now + spread(problem, &self.node);
                self.due.insert(problem.clone(), Due { at, written: 0 });
            }
        }
    }

    /// What is to be written next, and when.
    fn next(&self) -> Option<(Instant, Problem)> {
        let (problem, due) = self.due.iter().min_by_key(|(_, due)| due.at)?;
        let allowed = if self.credit == 0 { self.credit_at } else { due.at };
        Some((due.at.max(allowed), problem.clone()))
    }

    fn renewals(&self, problem: &Problem) -> i32 {
        self.due.get(problem).map_or(0, |due| due.written)
    }

    fn done(&mut self, problem: &Problem, written: &Written, now: Instant) {
        while self.credit < BURST && self.credit_at <= now {
            self.credit += 1;
            self.credit_at += PACE;
        }
        if self.credit == BURST {
            self.credit_at = now + PACE;
        }
        self.credit = self.credit.saturating_sub(1);
        let pause = match written {
            Written::Yes => RENEW,
            Written::Failed => AGAIN,
            Written::Refused => AGAIN_REFUSED,
        };
        if *written == Written::Refused && !self.refused {
            self.refused = true;
            warn!(
                "the Kubernetes API refuses Events; the agent's ClusterRole needs create and patch of events.events.k8s.io"
            );
        }
        if let Some(due) = self.due.get_mut(problem) {
            due.at = now + pause;
            due.written += i32::from(*written == Written::Yes);
        }
    }
}

/// Which part of [`SPREAD`] this agent waits: another one for each node and problem.
fn spread(problem: &Problem, node: &str) -> Duration {
    if problem.reason.of_this_node() {
        return Duration::ZERO;
    }
    SPREAD.mul_f64(f64::from((hash(problem, Some(node)) >> 32) as u32) / f64::from(u32::MAX))
}

/// The same for every agent of a version.
fn hash(problem: &Problem, node: Option<&str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    problem.hash(&mut hasher);
    node.hash(&mut hasher);
    hasher.finish()
}

/// Writes Events.
struct Writer {
    client: Client,
    node: Arc<str>,
}

impl Writer {
    /// Writes the Event of a problem, which has been written so often before.
    async fn write(&self, problem: &Problem, renewals: i32) -> Written {
        let result = timeout(PATIENCE, self.try_write(problem, renewals)).await;
        match result {
            Ok(Ok(())) => Written::Yes,
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => Written::Refused,
            Ok(Err(error)) => {
                debug!(%error, %problem, "an Event could not be written");
                Written::Failed
            }
            Err(_) => Written::Failed,
        }
    }

    async fn try_write(&self, problem: &Problem, renewals: i32) -> Result<(), kube::Error> {
        let regarding = self.reference(problem).await?;
        let Some(regarding) = regarding else {
            // The object is gone; the loop will hear of it.
            return Ok(());
        };
        let event = event(problem, regarding, &self.node, Timestamp::now());
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let name = event.metadata.name.clone().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if renewals > 0 {
            let series = EventSeries {
                count: renewals + 1,
                last_observed_time: MicroTime(Timestamp::now()),
            };
            let patch = Patch::Merge(json!({"series": series}));
            match events.patch(&name, &PatchParams::default(), &patch).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                patched => return patched.map(drop),
            }
        }
        match events.create(&PostParams::default(), &event).await {
            // Another agent has written it, or this one before it was started again.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            created => created.map(drop),
        }
    }

    /// The object as an Event names it. Its uid is asked for now, rather than kept of every object.
    async fn reference(&self, problem: &Problem) -> Result<Option<ObjectReference>, kube::Error> {
        let (namespace, name) = (&*problem.object.namespace, &*problem.object.name);
        match problem.kind {
            ObjectKind::Service => self.namespaced::<Service>(namespace, name).await,
            ObjectKind::EndpointSlice => self.namespaced::<EndpointSlice>(namespace, name).await,
            ObjectKind::Node => self.of_cluster::<Node>(name).await,
            ObjectKind::ServiceCidr => self.of_cluster::<ServiceCIDR>(name).await,
            ObjectKind::AddressPool => self.of_cluster::<AddressPool>(name).await,
            ObjectKind::Namespace => self.of_cluster::<Namespace>(name).await,
            ObjectKind::Ingress => self.namespaced::<Ingress>(namespace, name).await,
            ObjectKind::IngressClass => self.of_cluster::<IngressClass>(name).await,
            ObjectKind::Secret => self.namespaced::<Secret>(namespace, name).await,
            ObjectKind::File => Ok(None),
        }
    }

    async fn namespaced<K>(&self, namespace: &str, name: &str) -> Result<Option<ObjectReference>, kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        reference(&Api::<K>::namespaced(self.client.clone(), namespace), name).await
    }

    async fn of_cluster<K>(&self, name: &str) -> Result<Option<ObjectReference>, kube::Error>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        reference(&Api::<K>::all(self.client.clone()), name).await
    }
}

async fn reference<K>(api: &Api<K>, name: &str) -> Result<Option<ObjectReference>, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let found = api.get_metadata_opt(name).await?;
    Ok(found.map(|object| ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: object.metadata.namespace,
        name: object.metadata.name,
        uid: object.metadata.uid,
        ..ObjectReference::default()
    }))
}

fn event(problem: &Problem, regarding: ObjectReference, node: &Arc<str>, now: Timestamp) -> Event {
    let of_node = problem.reason.of_this_node().then_some(&**node);
    let object = cut(&problem.object.name, NAME_LIMIT).trim_end_matches(['-', '.']);
    let note = format!("{}: {}; {}", problem.field, problem.message, problem.remedy);
    Event {
        metadata: ObjectMeta {
            namespace: regarding
                .namespace
                .clone()
                .or_else(|| Some(NAMESPACE_OF_OTHERS.to_owned())),
            name: Some(format!("{object}.{:016x}", hash(problem, of_node))),
            ..ObjectMeta::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(problem.reason.name().to_owned()),
        action: Some("Program".to_owned()),
        note: Some(cut(&note, NOTE_LIMIT).to_owned()),
        regarding: Some(regarding),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(cut(node, INSTANCE_LIMIT).to_owned()),
        ..Event::default()
    }
}

/// The beginning of a text, if it is longer than so many bytes.
fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectKey, Reason};

    fn problem(name: &str, reason: Reason) -> Problem {
        Problem {
            kind: ObjectKind::Service,
            object: ObjectKey::new("shop", name),
            field: "spec.externalIPs[0]".into(),
            message: "`x` is not an IP address and is left out".into(),
            remedy: "write it as an IPv4 or IPv6 address".into(),
            reason,
        }
    }

    fn on(node: &str, problem: &Problem) -> Event {
        let regarding = ObjectReference {
            namespace: Some("shop".to_owned()),
            uid: Some("1-2-3".to_owned()),
            ..ObjectReference::default()
        };
        event(problem, regarding, &node.into(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn what_is_wrong_on_every_node_is_one_event_and_what_is_wrong_on_a_node_is_its_own() {
        let name = |node: &str, problem: &Problem| on(node, problem).metadata.name.expect("it has a name");
        let shared = problem("web", Reason::InvalidField);
        assert_eq!(name("node-1", &shared), name("node-2", &shared));
        assert!(name("node-1", &shared).starts_with("web."));
        assert_ne!(
            name("node-1", &shared),
            name("node-1", &problem("api", Reason::InvalidField))
        );
        let own = problem("web", Reason::FailedToStartServiceHealthcheck);
        assert_ne!(name("node-1", &own), name("node-2", &own));
        assert_eq!(name("node-1", &own), name("node-1", &own));
    }

    #[test]
    fn an_event_says_what_is_wrong_where_and_what_to_do_within_the_limits_of_the_api() {
        let event = on("node-1", &problem("web", Reason::InvalidField));
        assert_eq!(
            event.note.as_deref(),
            Some("spec.externalIPs[0]: `x` is not an IP address and is left out; write it as an IPv4 or IPv6 address")
        );
        assert_eq!(
            (event.type_.as_deref(), event.reason.as_deref()),
            (Some("Warning"), Some("InvalidField"))
        );
        let mut long = problem(&format!("{}-slice", "n".repeat(199)), Reason::MapFull);
        long.message = "é".repeat(2000);
        let event = on(&"node".repeat(60), &long);
        assert_eq!(event.note.map(|note| note.len()), Some(1023));
        assert_eq!(event.metadata.name.map(|name| name.len()), Some(199 + 17));
        assert_eq!(event.reporting_instance.map(|name| name.len()), Some(128));
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_written_at_a_pace_and_renewed_while_things_are_wrong() {
        let problems: Vec<Problem> = (0..25).map(|n| problem(&format!("web-{n}"), Reason::MapFull)).collect();
        let began = Instant::now();
        let mut plan = Plan::new("node-1".into());
        plan.update(&problems, began);
        let mut when = Vec::new();
        for _ in &problems {
            let (at, problem) = plan.next().expect("there is more");
            let at = at.max(when.last().copied().unwrap_or(began));
            plan.done(&problem, &Written::Yes, at);
            when.push(at);
        }
        assert_eq!(when[19], began, "so many at once");
        let later: Vec<_> = when[20..].iter().map(|at| at.duration_since(began).as_secs()).collect();
        assert_eq!(later, [10, 20, 30, 40, 50]);
        let (at, first) = plan.next().expect("they are renewed");
        assert_eq!((at, plan.renewals(&first)), (began + RENEW, 1));
        plan.update(&[], at);
        assert!(plan.next().is_none(), "what is mended is not renewed");
    }

    #[tokio::test(start_paused = true)]
    async fn what_concerns_every_node_waits_a_little_and_files_have_no_events() {
        let now = Instant::now();
        let mut plan = Plan::new("node-1".into());
        let shared = problem("web", Reason::InvalidField);
        let mut of_file = shared.clone();
        of_file.kind = ObjectKind::File;
        plan.update(&[shared, of_file], now);
        let (at, _) = plan.next().expect("one is to be written");
        assert!(at > now && at <= now + SPREAD);
        assert_eq!(plan.due.len(), 1);
    }
}
