//! Objects for tests, from manifests.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Class, Ingress, Objects, Secret, Service, Slice};
use crate::model::Problem;

fn object<T: DeserializeOwned>(document: Value) -> T {
    serde_json::from_value(document).expect("the manifest is right")
}

/// The objects of these documents; without a namespace they are in `default`.
pub(crate) fn objects(yaml: &str) -> Objects {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).expect("it is YAML");
    let mut objects = Objects::default();
    for mut document in documents {
        let namespace = &mut document["metadata"]["namespace"];
        if namespace.is_null() {
            *namespace = "default".into();
        }
        match document["kind"].as_str() {
            Some("Ingress") => {
                let ingress = Ingress::from(&object::<networking::Ingress>(document));
                objects.ingresses.insert(ingress.key.clone(), Arc::new(ingress));
            }
            Some("IngressClass") => {
                let class = Class::from(&object::<networking::IngressClass>(document));
                objects.classes.insert(class.key.clone(), Arc::new(class));
            }
            Some("Service") => {
                let service = Service::from(&object::<core::Service>(document));
                objects.services.insert(service.key.clone(), Arc::new(service));
            }
            Some("EndpointSlice") => {
                let slice = Slice::from(&object::<discovery::EndpointSlice>(document));
                objects.slices.insert(slice.key.clone(), Arc::new(slice));
            }
            Some("Secret") => {
                let secret = Secret::from(&object::<core::Secret>(document));
                objects.secrets.insert(secret.key.clone(), Arc::new(secret));
            }
            other => panic!("no fixture is a {other:?}"),
        }
    }
    objects
}

/// The problems as one text, a line each.
pub(crate) fn told(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|problem| format!("{} {problem}\n", problem.reason.name()))
        .collect()
}
