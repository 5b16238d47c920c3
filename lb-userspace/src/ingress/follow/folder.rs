//! Objects from a folder of manifests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use tokio::sync::mpsc;
use tracing::warn;

use super::state::News;
use crate::ingress::objects::{Class, Ingress, Objects, Secret, Service, Slice};
use crate::model::ObjectKey;
use crate::sources::manifests::{Error, Manifests, Shown};

/// A folder of manifests.
pub(super) struct Folder {
    manifests: Manifests,
}

impl Folder {
    /// The one with this path.
    pub(super) fn new(dir: PathBuf, service_cidrs: Vec<IpNet>) -> Self {
        let mut manifests = Manifests::new(dir, service_cidrs);
        manifests.watch();
        Self { manifests }
    }

    /// Everything in it.
    pub(super) fn read(&mut self) -> Result<News, Error> {
        let shown = self.manifests.read()?;
        Ok(everything(shown))
    }

    /// Sends everything after every change, until nobody listens. If the folder cannot be read, nothing is sent.
    pub(super) async fn follow(mut self, news: mpsc::Sender<News>) {
        loop {
            tokio::select! {
                () = self.manifests.changed() => {}
                () = news.closed() => return,
            }
            match self.read() {
                Ok(all) => {
                    if news.send(all).await.is_err() {
                        return;
                    }
                }
                Err(error) => warn!(
                    error = &error as &dyn std::error::Error,
                    "manifests cannot be read, the last state stays"
                ),
            }
        }
    }
}

fn everything(shown: Shown) -> News {
    let Shown { objects, problems, .. } = shown;
    let all = Objects {
        ingresses: light(objects.ingresses, |object| Ingress::from(&object)),
        classes: light(objects.ingress_classes, |object| Class::from(&object)),
        services: light(objects.services, |object| Service::from(&object)),
        slices: light(objects.slices, |object| Slice::from(&object)),
        secrets: light(objects.secrets, |object| Secret::from(&object)),
    };
    News::Everything(Box::new(all), problems)
}

fn light<K, L>(objects: BTreeMap<ObjectKey, K>, convert: impl Fn(K) -> L) -> BTreeMap<ObjectKey, Arc<L>>
where
    K: Resource<DynamicType = ()>,
{
    let objects = objects.into_iter().map(|(key, mut object)| {
        // A manifest need not name the namespace `default`.
        let meta: &mut ObjectMeta = object.meta_mut();
        meta.namespace = Some(key.namespace.to_string()).filter(|namespace| !namespace.is_empty());
        (key, Arc::new(convert(object)))
    });
    objects.collect()
}
