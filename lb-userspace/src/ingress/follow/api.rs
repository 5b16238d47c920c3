//! Objects from the Kubernetes API.

use std::marker::PhantomData;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use kube::Client;
use kube::runtime::watcher;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::state::{Change, Named, News};
use crate::ingress::objects::{Class, Ingress, Secret, Service, Slice};
use crate::ingress::table::Upstream;
use crate::sources::kube::contact::Contact;
use crate::sources::kube::follow::{Feed, follow as follow_kind};

/// Marks the slices of a headless Service.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// What is to be allowed.
const NEEDS: &str = "the Ingress controller's ClusterRole needs get, list and watch of services, secrets, \
                     endpointslices.discovery.k8s.io, ingresses.networking.k8s.io and \
                     ingressclasses.networking.k8s.io";

/// Spawns a task for each kind.
pub(super) fn follow(tasks: &mut JoinSet<()>, client: &Client, upstream: Upstream, news: &mpsc::Sender<News>) {
    let contact = Arc::new(Contact::new(NEEDS));
    let all = watcher::Config::default;
    // Others are needed for nothing where requests are sent to ClusterIPs.
    let slices = match upstream {
        Upstream::Service => all().labels(HEADLESS),
        Upstream::Endpoints => all(),
    };
    // Those of other types are none of our business.
    let secrets = all().fields("type=kubernetes.io/tls");
    macro_rules! follow {
        ($Light:ty, $selection:expr) => {{
            let feed = Watched::<$Light> {
                selection: $selection,
                kind: PhantomData,
            };
            tasks.spawn(follow_kind(feed, client.clone(), Arc::clone(&contact), news.clone()))
        }};
    }
    follow!(Class, all());
    follow!(Ingress, all());
    follow!(Service, all());
    follow!(Slice, slices);
    follow!(Secret, secrets);
}

/// A kind of objects and which of them are followed.
struct Watched<T> {
    selection: watcher::Config,
    kind: PhantomData<fn() -> T>,
}

macro_rules! watched {
    ($($Light:ty, $Object:ty, $News:ident, $name:literal;)*) => {
        $(impl Feed for Watched<$Light> {
            type Object = $Object;
            type Light = $Light;
            type News = News;
            const NAME: &'static str = $name;

            fn requests(&self) -> Vec<watcher::Config> {
                vec![self.selection.clone().streaming_lists(), self.selection.clone()]
            }

            fn light(&self, object: &$Object) -> $Light {
                <$Light>::from(object)
            }

            fn all(&mut self, list: Vec<$Light>) -> Option<News> {
                Some(News::$News(Change::All(list)))
            }

            fn changed(&mut self, object: $Light) -> Option<News> {
                Some(News::$News(Change::One(object)))
            }

            fn gone(&mut self, object: $Light) -> Option<News> {
                Some(News::$News(Change::Gone(Named::key(&object).clone())))
            }
        })*
    };
}

watched! {
    Ingress, networking::Ingress, Ingresses, "Ingresses";
    Class, networking::IngressClass, Classes, "IngressClasses";
    Service, core::Service, Services, "Services";
    Slice, discovery::EndpointSlice, Slices, "EndpointSlices";
    Secret, core::Secret, Secrets, "Secrets";
}
