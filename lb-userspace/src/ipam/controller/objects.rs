//! The objects that the leader decides about, as the API tells of them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::ipam::allocate::{Input, Labels};
use crate::ipam::pool::AddressPool;
use crate::model::ObjectKey;

/// After a failure it is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// News on their way.
const QUEUE: usize = 1024;

/// What the API tells.
pub(super) enum News {
    Service(Box<Event<Service>>),
    Pool(Box<Event<AddressPool>>),
    Namespace(Box<Event<PartialObjectMeta<Namespace>>>),
}

impl News {
    /// Whether a list is about to come, which may fail yet.
    fn begins(&self) -> bool {
        match self {
            Self::Service(event) => matches!(**event, Event::Init),
            Self::Pool(event) => matches!(**event, Event::Init),
            Self::Namespace(event) => matches!(**event, Event::Init),
        }
    }
}

/// Lists and follows all kinds, from now on, as long as the result lives.
pub(super) fn follow_all(client: &Client) -> (JoinSet<()>, mpsc::Receiver<News>) {
    let (news, inbox) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    let all = watcher::Config::default;
    let services = watcher::watcher(Api::all(client.clone()), all())
        .map(|event| event.map(|event| News::Service(Box::new(event))));
    tasks.spawn(follow("Services", services, news.clone()));
    let pools =
        watcher::watcher(Api::all(client.clone()), all()).map(|event| event.map(|event| News::Pool(Box::new(event))));
    tasks.spawn(follow("AddressPools", pools, news.clone()));
    let namespaces = watcher::watcher(Api::all(client.clone()), all())
        .map(|event| event.map(|event| News::Namespace(Box::new(event))));
    tasks.spawn(follow("Namespaces", namespaces, news));
    (tasks, inbox)
}

async fn follow(
    kind: &'static str,
    stream: impl futures::Stream<Item = Result<News, watcher::Error>>,
    news: mpsc::Sender<News>,
) {
    let mut stream = std::pin::pin!(stream);
    let mut told = false;
    while let Some(item) = stream.next().await {
        match item {
            Ok(event) => {
                // A watcher says that it begins before it has asked for anything.
                told &= event.begins();
                if news.send(event).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let failure = crate::sources::kube::failure(&error);
                if told {
                    debug!(kind, error = failure.text, "objects still cannot be followed");
                } else {
                    told = true;
                    tell(kind, &failure);
                }
                sleep(AGAIN).await;
            }
        }
    }
}

/// Says why a kind cannot be followed, and what to do.
fn tell(kind: &'static str, failure: &crate::sources::kube::Failure) {
    match failure.code {
        Some(404) if kind == "AddressPools" => warn!(
            "the API server does not know AddressPools: install their definition by \
             `fairway crds | kubectl apply -f -`; until then no address is given"
        ),
        Some(code @ (401 | 403)) => warn!(
            kind,
            code,
            error = failure.text,
            "the Kubernetes API refuses the controller; deploy/controller.yaml has the ClusterRole that it needs"
        ),
        _ => debug!(
            kind,
            error = failure.text,
            "objects cannot be followed; what is known stays in force"
        ),
    }
}

/// All objects.
#[derive(Default)]
pub(super) struct Store {
    services: Listed<Service>,
    pools: Listed<AddressPool>,
    namespaces: Listed<PartialObjectMeta<Namespace>>,
}

impl Store {
    /// Takes news; tells whether anything is another than before.
    pub(super) fn take(&mut self, news: News) -> bool {
        match news {
            News::Service(event) => self.services.take(*event),
            News::Pool(event) => self.pools.take(*event),
            News::Namespace(event) => self.namespaces.take(*event),
        }
    }

    /// Whether all kinds have been listed completely.
    pub(super) fn is_complete(&self) -> bool {
        self.services.complete && self.pools.complete && self.namespaces.complete
    }

    pub(super) fn services(&self) -> &BTreeMap<ObjectKey, Service> {
        &self.services.all
    }

    pub(super) fn pools(&self) -> &BTreeMap<ObjectKey, AddressPool> {
        &self.pools.all
    }

    /// A Service as the API answered to a write of ours.
    pub(super) fn written(&mut self, service: Service) {
        self.services.put(service);
    }

    /// A pool as the API answered to a write of ours.
    pub(super) fn pool_written(&mut self, pool: AddressPool) {
        self.pools.put(pool);
    }

    /// What is decided about, with some Services as they may be about to become.
    pub(super) fn input<'a>(&'a self, promised: &'a BTreeMap<ObjectKey, Service>) -> Input<'a> {
        let namespaces = self.namespaces.all.iter().filter_map(|(key, object)| {
            let labels: &Labels = object.metadata.labels.as_ref()?;
            Some((&*key.name, labels))
        });
        let services = self.services.all.iter();
        Input {
            pools: self.pools.all.values().collect(),
            namespaces: namespaces.collect(),
            services: services
                .map(|(key, service)| promised.get(key).unwrap_or(service))
                .collect(),
        }
    }
}

/// The objects of a kind.
struct Listed<K> {
    all: BTreeMap<ObjectKey, K>,
    /// A list that is not complete yet.
    coming: BTreeMap<ObjectKey, K>,
    complete: bool,
}

impl<K> Default for Listed<K> {
    fn default() -> Self {
        Self {
            all: BTreeMap::new(),
            coming: BTreeMap::new(),
            complete: false,
        }
    }
}

impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned> Listed<K> {
    fn take(&mut self, event: Event<K>) -> bool {
        match event {
            Event::Init => {
                self.coming.clear();
                false
            }
            Event::InitApply(object) => {
                let (key, object) = keyed(object);
                self.coming.insert(key, object);
                false
            }
            Event::InitDone => {
                let mut all = std::mem::take(&mut self.coming);
                // A list may have been read before a write of ours that has been answered since.
                for (key, known) in std::mem::take(&mut self.all) {
                    if let Some(listed) = all.get_mut(&key)
                        && is_later(known.resource_version().as_deref(), listed)
                    {
                        *listed = known;
                    }
                }
                self.all = all;
                self.complete = true;
                true
            }
            Event::Apply(object) => self.put(object),
            Event::Delete(object) => self.all.remove(&keyed(object).0).is_some(),
        }
    }

    /// Takes an object unless a later version of it is known: our own writes are answered before they are told of.
    fn put(&mut self, object: K) -> bool {
        let (key, object) = keyed(object);
        let version = object.resource_version();
        if self
            .all
            .get(&key)
            .is_some_and(|known| !is_later(version.as_deref(), known))
        {
            return false;
        }
        self.all.insert(key, object);
        true
    }
}

/// Whether a resource version is later than that of an object. The API server's are numbers that grow (KEP-5504).
fn is_later<K: Resource>(version: Option<&str>, known: &K) -> bool {
    let known = known.meta().resource_version.as_deref();
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u128>().ok());
    match (number(version), number(known)) {
        (Some(version), Some(known)) => version > known,
        _ => version != known,
    }
}

/// An object with its name, without what we do not need of it.
fn keyed<K: Resource<DynamicType = ()>>(mut object: K) -> (ObjectKey, K) {
    let meta = object.meta_mut();
    meta.managed_fields = None;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let key = ObjectKey::new(namespace, meta.name.as_deref().unwrap_or_default());
    (key, object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, version: &str) -> Service {
        let mut service = Service::default();
        service.metadata.name = Some(name.into());
        service.metadata.resource_version = Some(version.into());
        service
    }

    #[test]
    fn nothing_is_complete_before_all_kinds_are_listed() {
        let mut store = Store::default();
        store.take(News::Service(Box::new(Event::Init)));
        store.take(News::Service(Box::new(Event::InitApply(service("web", "1")))));
        assert!(store.services().is_empty());
        store.take(News::Service(Box::new(Event::InitDone)));
        store.take(News::Pool(Box::new(Event::InitDone)));
        assert!(!store.is_complete());
        store.take(News::Namespace(Box::new(Event::InitDone)));
        assert!(store.is_complete());
        assert_eq!(store.services().len(), 1);
    }

    #[test]
    fn an_older_version_does_not_take_the_place_of_one_that_a_write_was_answered_with() {
        let mut store = Store::default();
        store.written(service("web", "10"));
        assert!(!store.take(News::Service(Box::new(Event::Apply(service("web", "9"))))));
        assert!(!store.take(News::Service(Box::new(Event::Apply(service("web", "10"))))));
        assert!(store.take(News::Service(Box::new(Event::Apply(service("web", "11"))))));
        assert!(store.take(News::Service(Box::new(Event::Delete(service("web", "12"))))));
        assert!(store.services().is_empty());
    }

    #[test]
    fn a_list_that_was_read_before_a_write_of_ours_does_not_undo_it() {
        let mut store = Store::default();
        store.written(service("web", "10"));
        store.written(service("gone", "10"));
        for event in [Event::Init, Event::InitApply(service("web", "9")), Event::InitDone] {
            store.take(News::Service(Box::new(event)));
        }
        let versions: Vec<_> = store
            .services()
            .values()
            .map(|service| service.metadata.resource_version.clone())
            .collect();
        assert_eq!(versions, [Some("10".to_owned())]);
    }
}
