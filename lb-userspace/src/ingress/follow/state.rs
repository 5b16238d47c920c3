//! What is known, and what it means.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use rustls::sign::CertifiedKey;

use super::Source;
use crate::ingress::objects::{Class, Ingress, Objects, Secret, Service, Slice};
use crate::ingress::table::{self, Config};
use crate::ingress::tls;
use crate::model::{ObjectKey, Problem};

/// A change of what is known.
#[derive(Debug)]
pub(super) enum News {
    /// Of Ingresses.
    Ingresses(Change<Ingress>),
    /// Of IngressClasses.
    Classes(Change<Class>),
    /// Of Services.
    Services(Change<Service>),
    /// Of EndpointSlices.
    Slices(Change<Slice>),
    /// Of Secrets.
    Secrets(Change<Secret>),
    /// Everything, and what is wrong where it comes from.
    Everything(Box<Objects>, Vec<Problem>),
}

/// A change of objects of one kind.
#[derive(Debug)]
pub(super) enum Change<T> {
    /// These are all.
    All(Vec<T>),
    /// This one is new or another.
    One(T),
    /// This one is gone.
    Gone(ObjectKey),
}

/// An object that has a name.
pub(super) trait Named: PartialEq {
    /// Its name.
    fn key(&self) -> &ObjectKey;
}

macro_rules! named {
    ($($Kind:ty),*) => {
        $(impl Named for $Kind {
            fn key(&self) -> &ObjectKey {
                &self.key
            }
        })*
    };
}

named!(Ingress, Class, Service, Slice, Secret);

impl<T: Named> Change<T> {
    /// Makes the change; whether it is one.
    fn make(self, objects: &mut BTreeMap<ObjectKey, Arc<T>>, listed: &mut bool) -> bool {
        match self {
            Self::All(list) => {
                let list = list.into_iter().map(|new| (new.key().clone(), Arc::new(new)));
                replace(objects, list.collect(), listed)
            }
            Self::One(new) => {
                let same = objects.get(new.key()).is_some_and(|known| **known == new);
                if !same {
                    objects.insert(new.key().clone(), Arc::new(new));
                }
                !same
            }
            Self::Gone(key) => objects.remove(&key).is_some(),
        }
    }
}

/// Puts a complete list in the place of what is known; whether anything is another, or known for the first time. What is
/// the same stays the same: a Secret that was looked into need not be again.
fn replace<T: PartialEq>(
    known: &mut BTreeMap<ObjectKey, Arc<T>>,
    mut list: BTreeMap<ObjectKey, Arc<T>>,
    listed: &mut bool,
) -> bool {
    let mut news = !std::mem::replace(listed, true) || list.len() != known.len();
    for (key, new) in &mut list {
        match known.get(key) {
            Some(same) if same == new => *new = Arc::clone(same),
            _ => news = true,
        }
    }
    *known = list;
    news
}

/// Everything that is known.
pub(super) struct State {
    pub(super) objects: Objects,
    source: Source,
    self_signed: Arc<CertifiedKey>,
    /// What is wrong where objects come from.
    problems: Vec<Problem>,
    listed: Listed,
}

/// Which kinds have been listed completely.
#[derive(Default)]
struct Listed {
    ingresses: bool,
    classes: bool,
    services: bool,
    slices: bool,
    secrets: bool,
}

/// What it means.
pub(super) struct Built {
    pub(super) config: Config,
    /// Everything that is wrong, each thing once, in order.
    pub(super) problems: Vec<Problem>,
    /// The Ingresses that are served.
    pub(super) ours: HashSet<ObjectKey>,
}

impl State {
    pub(super) fn new(source: &Source, self_signed: Arc<CertifiedKey>) -> Self {
        Self {
            objects: Objects::default(),
            source: source.clone(),
            self_signed,
            problems: Vec::new(),
            listed: Listed::default(),
        }
    }

    /// Takes a change in; whether it is one.
    pub(super) fn take(&mut self, news: News) -> bool {
        let (objects, listed) = (&mut self.objects, &mut self.listed);
        match news {
            News::Ingresses(change) => change.make(&mut objects.ingresses, &mut listed.ingresses),
            News::Classes(change) => change.make(&mut objects.classes, &mut listed.classes),
            News::Services(change) => change.make(&mut objects.services, &mut listed.services),
            News::Slices(change) => change.make(&mut objects.slices, &mut listed.slices),
            News::Secrets(change) => change.make(&mut objects.secrets, &mut listed.secrets),
            News::Everything(all, problems) => {
                let all = *all;
                let others = std::mem::replace(&mut self.problems, problems) != self.problems;
                replace(&mut objects.ingresses, all.ingresses, &mut listed.ingresses)
                    | replace(&mut objects.classes, all.classes, &mut listed.classes)
                    | replace(&mut objects.services, all.services, &mut listed.services)
                    | replace(&mut objects.slices, all.slices, &mut listed.slices)
                    | replace(&mut objects.secrets, all.secrets, &mut listed.secrets)
                    | others
            }
        }
    }

    /// Whether all kinds have been listed.
    pub(super) const fn complete(&self) -> bool {
        let Listed {
            ingresses,
            classes,
            services,
            slices,
            secrets,
        } = self.listed;
        ingresses && classes && services && slices && secrets
    }

    /// What it means at this time, Unix seconds.
    pub(super) fn build(&self, now_s: i64) -> Built {
        let (ours, mut problems) = self.objects.ours(&self.source.class);
        problems.extend(self.problems.iter().cloned());
        let table = table::build(&ours, &self.objects, self.source.upstream);
        problems.extend(table.problems);
        let options = tls::Options {
            self_signed: Arc::clone(&self.self_signed),
            default_certificate: self.source.default_certificate.clone(),
            now_s,
        };
        let certificates = tls::build(&ours, &self.objects, &options);
        problems.extend(certificates.problems);
        problems.sort_unstable();
        problems.dedup();
        Built {
            config: Config {
                table: table.table,
                certificates: Arc::new(certificates.certificates),
            },
            problems,
            ours: ours.iter().map(|ingress| ingress.key.clone()).collect(),
        }
    }
}
