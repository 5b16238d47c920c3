//! The files of a folder and the objects in them.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::debug;

use crate::model::{ObjectKey, ObjectKind, Problem, Reason};

/// The API's namespace for objects that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// A folder with the last good content of each file.
#[derive(Debug)]
pub(super) struct Folder {
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

/// An object as it is written.
#[derive(Clone, Debug)]
enum Object {
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    Node(Box<Node>),
    ServiceCidr(Box<ServiceCIDR>),
}

/// All objects of a folder, by name.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) services: BTreeMap<ObjectKey, Service>,
    pub(super) slices: BTreeMap<ObjectKey, EndpointSlice>,
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) service_cidrs: BTreeMap<String, ServiceCIDR>,
}

impl Folder {
    pub(super) const fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            files: BTreeMap::new(),
        }
    }

    /// Reads what has changed; tells what is wrong with files.
    pub(super) fn read(&mut self) -> io::Result<Vec<Problem>> {
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

    /// The objects of all files. A later one of the same name stands in place of an earlier one; one that has only
    /// a status gives it to the other.
    pub(super) fn objects(&self, problems: &mut Vec<Problem>) -> Objects {
        let mut objects = Objects::default();
        let mut statuses = Vec::new();
        for (path, file) in &self.files {
            for object in &file.objects {
                match object.clone() {
                    Object::Service(service) if service.spec.is_none() && service.status.is_some() => {
                        statuses.push((path, service));
                    }
                    Object::Service(service) => {
                        let key = key(&service.metadata);
                        if objects.services.insert(key.clone(), *service).is_some() {
                            problems.push(twice(path, ObjectKind::Service, &key));
                        }
                    }
                    Object::EndpointSlice(slice) => {
                        let key = key(&slice.metadata);
                        if objects.slices.insert(key.clone(), *slice).is_some() {
                            problems.push(twice(path, ObjectKind::EndpointSlice, &key));
                        }
                    }
                    Object::Node(node) => {
                        let name = node.metadata.name.clone().unwrap_or_default();
                        if objects.nodes.insert(name.clone(), *node).is_some() {
                            problems.push(twice(path, ObjectKind::Node, &ObjectKey::new("", &name)));
                        }
                    }
                    Object::ServiceCidr(cidr) => {
                        let name = cidr.metadata.name.clone().unwrap_or_default();
                        if objects.service_cidrs.insert(name.clone(), *cidr).is_some() {
                            problems.push(twice(path, ObjectKind::ServiceCidr, &ObjectKey::new("", &name)));
                        }
                    }
                }
            }
        }
        for (path, status) in statuses {
            let key = key(&status.metadata);
            match objects.services.get_mut(&key) {
                Some(service) => service.status = status.status,
                None => problems.push(problem(
                    path,
                    format!("Service {key}"),
                    "it has a status only, and no document defines the Service",
                    "add the Service, or remove the document",
                )),
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
    match kind.as_str() {
        "Service" => objects.push(Object::Service(object(document)?)),
        "EndpointSlice" => objects.push(Object::EndpointSlice(object(document)?)),
        "Node" => objects.push(Object::Node(object(document)?)),
        "ServiceCIDR" => objects.push(Object::ServiceCidr(object(document)?)),
        "List" | "ServiceList" | "EndpointSliceList" | "NodeList" | "ServiceCIDRList" => {
            let item_kind = kind.strip_suffix("List").filter(|kind| !kind.is_empty());
            let Value::Object(mut list) = document else {
                return Ok(());
            };
            let Some(Value::Array(items)) = list.remove("items") else {
                return Err("it is a list without `items`".into());
            };
            for item in items {
                add(item, item_kind, objects)?;
            }
        }
        other => debug!(
            kind = other,
            "a manifest of a kind that says nothing of traffic is ignored"
        ),
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

fn key(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectKey {
    let namespace = meta.namespace.as_deref().filter(|namespace| !namespace.is_empty());
    ObjectKey::new(
        namespace.unwrap_or(DEFAULT_NAMESPACE),
        meta.name.as_deref().unwrap_or_default(),
    )
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
