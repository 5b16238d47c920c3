//! The files of a folder and the objects in them.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Namespace, Node, Secret, Service, ServiceStatus};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass, IngressStatus, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::debug;

use crate::ipam::pool::{AddressPool, AddressPoolStatus};
use crate::model::{ObjectKey, ObjectKind, Problem, Reason};

/// The API's namespace for objects that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// A folder with the last good content of each file.
#[derive(Debug)]
pub(crate) struct Folder {
    dir: PathBuf,
    files: BTreeMap<PathBuf, File>,
}

#[derive(Debug, Default)]
struct File {
    /// Hash of the text that was read last, good or not.
    text: Option<u64>,
    objects: Vec<Object>,
    problem: Option<Problem>,
}

/// Defines what an object is from the kinds that are read: their place in [`Objects`], their name in a manifest and in a
/// problem, and whether they have a namespace.
macro_rules! kinds {
    ($($field:ident: $Kind:ident, $Named:ident, $namespaced:literal;)*) => {
        /// An object as it is written.
        #[derive(Clone, Debug)]
        enum Object {
            $($Kind(Box<$Kind>),)*
            Status(ObjectKey, Status),
        }

        /// All objects of a folder, by name.
        #[derive(Debug, Default)]
        pub(crate) struct Objects {
            $(pub(crate) $field: BTreeMap<ObjectKey, $Kind>,)*
        }

        impl Object {
            /// The object in a document of this kind; `None`: we do not read such.
            fn read(kind: &str, document: Value) -> Option<Result<Self, String>> {
                match kind {
                    $(stringify!($Kind) => Some(object(document).map(Self::$Kind)),)*
                    _ => None,
                }
            }
        }

        impl Objects {
            /// Adds an object in place of an earlier one of its name. If there was one: its kind and name.
            fn add(&mut self, object: Object) -> Option<(ObjectKind, ObjectKey)> {
                match object {
                    $(Object::$Kind(object) => {
                        let key = key(&object.metadata, $namespaced);
                        let before = self.$field.insert(key.clone(), *object);
                        before.map(|_| (ObjectKind::$Named, key))
                    })*
                    Object::Status(..) => None,
                }
            }
        }
    };
}

kinds! {
    services: Service, Service, true;
    slices: EndpointSlice, EndpointSlice, true;
    nodes: Node, Node, false;
    service_cidrs: ServiceCIDR, ServiceCidr, false;
    pools: AddressPool, AddressPool, false;
    namespaces: Namespace, Namespace, false;
    ingresses: Ingress, Ingress, true;
    ingress_classes: IngressClass, IngressClass, false;
    secrets: Secret, Secret, true;
}

/// What a controller has written of an object that stands elsewhere: a document with a `status` and no `spec`.
#[derive(Clone, Debug)]
enum Status {
    Service(ServiceStatus),
    Ingress(IngressStatus),
    AddressPool(AddressPoolStatus),
}

impl Status {
    /// The status in a document of this kind, if it is nothing but that.
    fn read(kind: &str, document: &Value) -> Option<Result<Object, String>> {
        let status = document.get("status").filter(|status| !status.is_null())?;
        if document.get("spec").is_some_and(|spec| !spec.is_null()) {
            return None;
        }
        let status = status.clone();
        let read = match kind {
            "Service" => serde_json::from_value(status).map(Self::Service),
            "Ingress" => serde_json::from_value(status).map(Self::Ingress),
            "AddressPool" => serde_json::from_value(status).map(Self::AddressPool),
            _ => return None,
        };
        let meta = |name| document.pointer(&format!("/metadata/{name}")).and_then(Value::as_str);
        let meta = ObjectMeta {
            name: meta("name").map(str::to_owned),
            namespace: meta("namespace").map(str::to_owned),
            ..ObjectMeta::default()
        };
        let key = key(&meta, kind != "AddressPool");
        Some(match read {
            Ok(status) => Ok(Object::Status(key, status)),
            Err(error) => Err(format!("`{}`: {error}", key.name)),
        })
    }

    fn kind(&self) -> ObjectKind {
        match self {
            Self::Service(_) => ObjectKind::Service,
            Self::Ingress(_) => ObjectKind::Ingress,
            Self::AddressPool(_) => ObjectKind::AddressPool,
        }
    }
}

impl Objects {
    /// Gives a status to its object; `false`: there is no such object.
    fn give(&mut self, key: &ObjectKey, status: Status) -> bool {
        match status {
            Status::Service(status) => give(self.services.get_mut(key).map(|object| &mut object.status), status),
            Status::Ingress(status) => give(self.ingresses.get_mut(key).map(|object| &mut object.status), status),
            Status::AddressPool(status) => give(self.pools.get_mut(key).map(|object| &mut object.status), status),
        }
    }
}

fn give<T>(place: Option<&mut Option<T>>, status: T) -> bool {
    place.map(|place| *place = Some(status)).is_some()
}

impl Folder {
    pub(crate) const fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            files: BTreeMap::new(),
        }
    }

    /// Reads what has changed; tells what is wrong with files.
    pub(crate) fn read(&mut self) -> io::Result<Vec<Problem>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if is_manifest(&path) {
                found.push(path);
            }
        }
        self.files.retain(|path, _| found.contains(path));
        for path in found {
            let file = self.files.entry(path.clone()).or_default();
            file.read(&path);
        }
        Ok(self.files.values().filter_map(|file| file.problem.clone()).collect())
    }

    /// The objects of all files. A later one of the same name stands in place of an earlier one; a status in a document of
    /// its own is given to its object.
    pub(crate) fn objects(&self, problems: &mut Vec<Problem>) -> Objects {
        let mut objects = Objects::default();
        let mut statuses = Vec::new();
        for (path, file) in &self.files {
            for object in &file.objects {
                match object.clone() {
                    Object::Status(key, status) => statuses.push((path, key, status)),
                    object => {
                        if let Some((kind, key)) = objects.add(object) {
                            problems.push(twice(path, kind, &key));
                        }
                    }
                }
            }
        }
        for (path, key, status) in statuses {
            let kind = status.kind();
            if !objects.give(&key, status) {
                problems.push(problem(
                    path,
                    format!("{kind} {key}"),
                    &format!("it has a status only, and no document defines the {kind}"),
                    &format!("add the {kind}, or remove the document"),
                ));
            }
        }
        objects
    }
}

impl File {
    fn read(&mut self, path: &Path) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            // It has gone since the folder was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                *self = Self::default();
                return;
            }
            Err(error) => {
                self.text = None;
                self.problem = Some(problem(
                    path,
                    "",
                    &self.consequence(&error),
                    "make it readable, UTF-8 text",
                ));
                return;
            }
        };
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = Some(hasher.finish());
        if self.text == hash {
            return;
        }
        self.text = hash;
        match parse(path, &text) {
            Ok(objects) => {
                self.objects = objects;
                self.problem = None;
            }
            Err((place, error)) => {
                self.problem = Some(problem(path, place, &self.consequence(&error), "correct it"));
            }
        }
    }

    fn consequence(&self, error: &dyn std::fmt::Display) -> String {
        // A YAML error goes on with a picture of the place.
        let text = error.to_string();
        let what = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        if self.objects.is_empty() {
            format!("{what} (nothing of the file is used)")
        } else {
            format!("{what} (its last good content stays in use)")
        }
    }
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json")) && !path.is_dir()
}

/// The objects in a file, or what is wrong and where.
fn parse(path: &Path, text: &str) -> Result<Vec<Object>, (String, String)> {
    let documents: Vec<Value> = if path.extension().is_some_and(|extension| extension == "json") {
        let documents = serde_json::Deserializer::from_str(text).into_iter();
        let documents: Result<_, serde_json::Error> = documents.collect();
        documents.map_err(|error| (String::new(), error.to_string()))?
    } else {
        serde_saphyr::from_multiple_with_options(text, yaml_options())
            .map_err(|error| (String::new(), error.to_string()))?
    };
    let mut objects = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        add(document, None, &mut objects).map_err(|error| (format!("document {}", index + 1), error))?;
    }
    Ok(objects)
}

/// Files are an operator's own and may be large.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_documents: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
    }
}

/// Adds the object in this document, or those in this list. Items of a list may leave out their kind.
fn add(document: Value, item_kind: Option<&str>, objects: &mut Vec<Object>) -> Result<(), String> {
    if document.is_null() {
        return Ok(());
    }
    let field = |name| document.get(name).and_then(Value::as_str);
    let Some(kind) = field("kind").or(item_kind).map(str::to_owned) else {
        return Err("it has no `kind`, so it is not a Kubernetes object".into());
    };
    if let Some(item_kind) = kind.strip_suffix("List") {
        let item_kind = Some(item_kind).filter(|kind| !kind.is_empty());
        let Value::Object(mut list) = document else {
            return Ok(());
        };
        let Some(Value::Array(items)) = list.remove("items") else {
            return Err("it is a list without `items`".into());
        };
        for item in items {
            add(item, item_kind, objects)?;
        }
        return Ok(());
    }
    if let Some(object) = Status::read(&kind, &document).or_else(|| Object::read(&kind, document)) {
        objects.push(object?);
    } else {
        debug!(kind, "a manifest of a kind that says nothing of traffic is ignored");
    }
    Ok(())
}

fn object<T: DeserializeOwned>(document: Value) -> Result<Box<T>, String> {
    let name = document.pointer("/metadata/name").and_then(Value::as_str);
    let Some(name) = name.filter(|name| !name.is_empty()).map(str::to_owned) else {
        return Err("it has no `metadata.name`".into());
    };
    let object = serde_json::from_value(document);
    object.map(Box::new).map_err(|error| format!("`{name}`: {error}"))
}

fn key(meta: &ObjectMeta, namespaced: bool) -> ObjectKey {
    let name = meta.name.as_deref().unwrap_or_default();
    if !namespaced {
        return ObjectKey::new("", name);
    }
    let namespace = meta.namespace.as_deref().filter(|namespace| !namespace.is_empty());
    ObjectKey::new(namespace.unwrap_or(DEFAULT_NAMESPACE), name)
}

fn problem(path: &Path, field: impl Into<String>, message: &str, remedy: &str) -> Problem {
    let field = field.into();
    Problem {
        kind: ObjectKind::File,
        object: ObjectKey::new("", &path.display().to_string()),
        field: if field.is_empty() { "content".into() } else { field },
        message: message.into(),
        remedy: remedy.into(),
        reason: Reason::InvalidField,
    }
}

fn twice(path: &Path, kind: ObjectKind, key: &ObjectKey) -> Problem {
    problem(
        path,
        format!("{kind} {key}"),
        "it has been defined before, and the last definition counts",
        "remove one of them",
    )
}
