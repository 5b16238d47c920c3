//! Which Ingresses are ours.
//!
//! An Ingress names an IngressClass, and an IngressClass names the controller that serves it. The annotation from before
//! there were IngressClasses still counts, and before the field, as the API demands it of controllers. What has no class
//! at all is for the class that is marked as the default one.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Findings, Ingress, Objects};
use crate::model::{ObjectKey, ObjectKind, Problem, Reason};

/// Names the class in the way from before IngressClasses.
const LEGACY_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// Marks the class of Ingresses that name none.
const DEFAULT_ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";

/// Which classes are ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClassOptions {
    /// IngressClasses whose `spec.controller` is this are ours.
    pub controller: Arc<str>,
    /// The name that the legacy annotation has for us, whether there is an IngressClass of this name or not.
    pub name: Arc<str>,
    /// Ingresses without a class are ours even if no class of ours is the default one.
    pub without_class: bool,
}

impl ClassOptions {
    /// The `spec.controller` of our IngressClasses.
    pub const CONTROLLER: &str = "fairway.io/ingress";
    /// The name of our IngressClass in the manifests for deployment.
    pub const NAME: &str = "fairway";
}

impl Default for ClassOptions {
    fn default() -> Self {
        Self {
            controller: Self::CONTROLLER.into(),
            name: Self::NAME.into(),
            without_class: false,
        }
    }
}

/// An IngressClass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Class {
    /// Its name; it has no namespace.
    pub key: ObjectKey,
    /// When it was created, Unix seconds.
    pub created_s: i64,
    /// Who serves it.
    pub controller: Arc<str>,
    /// It is that of Ingresses that name none.
    pub default: bool,
    /// It has parameters, which we know none of.
    pub parameters: bool,
}

impl From<&api::IngressClass> for Class {
    fn from(object: &api::IngressClass) -> Self {
        let meta = &object.metadata;
        let spec = object.spec.as_ref();
        Self {
            key: ObjectKey::new("", meta.name.as_deref().unwrap_or_default()),
            created_s: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            controller: spec
                .and_then(|spec| spec.controller.as_deref())
                .unwrap_or_default()
                .into(),
            default: annotation(meta, DEFAULT_ANNOTATION).is_some_and(|value| value == "true"),
            parameters: spec.is_some_and(|spec| spec.parameters.is_some()),
        }
    }
}

/// The class that an Ingress names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClassName {
    /// None.
    None,
    /// That of this name, by the field.
    Field(Arc<str>),
    /// That of this name, by the legacy annotation.
    Annotation(Arc<str>),
}

impl ClassName {
    pub(super) fn read(object: &api::Ingress, findings: &mut Findings) -> Self {
        let field = object.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref());
        let field = field.filter(|name| !name.is_empty());
        let annotation = annotation(&object.metadata, LEGACY_ANNOTATION).filter(|name| !name.is_empty());
        if let (Some(annotation), Some(field)) = (annotation, field)
            && annotation != field
        {
            findings.report(
                "spec.ingressClassName",
                format!("it is `{field}`, but the annotation {LEGACY_ANNOTATION} is `{annotation}` and counts"),
                "remove the annotation",
            );
        }
        match (annotation, field) {
            (Some(name), _) => Self::Annotation(name.into()),
            (None, Some(name)) => Self::Field(name.into()),
            (None, None) => Self::None,
        }
    }
}

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

impl Objects {
    /// Our Ingresses, the oldest first, and what is wrong with classes. Of the same age, the first by namespace and name
    /// is taken for older.
    pub fn ours(&self, options: &ClassOptions) -> (Vec<&Arc<Ingress>>, Vec<Problem>) {
        let mut problems = Vec::new();
        let classes = Classes::of(&self.classes, options, &mut problems);
        let mut ours: Vec<_> = self
            .ingresses
            .values()
            .filter(|ingress| {
                let missing = classes.missing(&ingress.class);
                if missing {
                    problems.push(class_is_missing(ingress, options));
                }
                classes.ours(&ingress.class)
            })
            .collect();
        // The map is in the order of names, and the sort keeps it among equals.
        ours.sort_by_key(|ingress| ingress.created_s);
        (ours, problems)
    }
}

struct Classes<'a> {
    all: &'a BTreeMap<ObjectKey, Arc<Class>>,
    options: &'a ClassOptions,
    default_is_ours: bool,
}

impl<'a> Classes<'a> {
    fn of(all: &'a BTreeMap<ObjectKey, Arc<Class>>, options: &'a ClassOptions, problems: &mut Vec<Problem>) -> Self {
        // Of several default classes an API server takes the newest one, and the first name of those
        // (`plugin/pkg/admission/network/defaultingressclass` of Kubernetes 1.26 and later).
        let mut defaults: Vec<_> = all.values().filter(|class| class.default).collect();
        defaults.sort_by_key(|class| std::cmp::Reverse(class.created_s));
        let default = defaults.first();
        for class in all.values().filter(|class| class.controller == options.controller) {
            let mut findings = Findings::new(ObjectKind::IngressClass, &class.key);
            if class.parameters {
                findings.report_as(
                    Reason::NotSupported,
                    "spec.parameters",
                    "the class has no parameters that are known, and these have no effect",
                    "remove them",
                );
            }
            if class.default
                && let Some(default) = default
                && default.key != class.key
            {
                findings.report(
                    format!("metadata.annotations[{DEFAULT_ANNOTATION}]"),
                    format!(
                        "{} is marked as the default class too, is newer and counts",
                        default.key
                    ),
                    "leave one class marked",
                );
            }
            problems.extend(findings.problems);
        }
        Self {
            all,
            options,
            default_is_ours: default.is_some_and(|class| class.controller == options.controller),
        }
    }

    fn controller(&self, name: &Arc<str>) -> Option<&str> {
        let key = ObjectKey {
            namespace: "".into(),
            name: Arc::clone(name),
        };
        self.all.get(&key).map(|class| &*class.controller)
    }

    fn ours(&self, name: &ClassName) -> bool {
        match name {
            ClassName::None => self.options.without_class || self.default_is_ours,
            ClassName::Field(name) => self.controller(name) == Some(&*self.options.controller),
            ClassName::Annotation(name) => match self.controller(name) {
                Some(controller) => controller == &*self.options.controller,
                None => *name == self.options.name,
            },
        }
    }

    /// Whether it is a class that we should have, but nobody made.
    fn missing(&self, name: &ClassName) -> bool {
        matches!(name, ClassName::Field(name) if *name == self.options.name && self.controller(name).is_none())
    }
}

fn class_is_missing(ingress: &Ingress, options: &ClassOptions) -> Problem {
    Problem {
        kind: ObjectKind::Ingress,
        object: ingress.key.clone(),
        field: "spec.ingressClassName".into(),
        message: format!(
            "there is no IngressClass `{}`, so the Ingress is not served",
            options.name
        ),
        remedy: format!("create it with spec.controller {}", options.controller),
        reason: Reason::InvalidField,
    }
}
