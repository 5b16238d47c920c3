//! Objects of an API server, written and read as an administrator.

use std::panic::{AssertUnwindSafe, catch_unwind};

use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::api_server::ApiServer;
use super::node::PATIENCE;
use super::poll;

/// The client of a test that is no asynchronous one. It works in the network namespace of the thread that uses it.
pub struct Cluster {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Cluster {
    /// That of this server.
    pub fn of(server: &ApiServer) -> Self {
        // All on this thread: it is the one that is in the namespace.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let client = runtime.block_on(server.client());
        Self { runtime, client }
    }

    /// See [`apply_manifests_for_users`].
    pub fn apply_manifests_for_users(&self) {
        self.runtime.block_on(apply_manifests_for_users(&self.client));
    }

    /// Applies `deploy/crds.yaml`, and waits until the server has these kinds.
    pub fn apply_definitions(&self) {
        for definition in documents(include_str!("../../../deploy/crds.yaml")) {
            self.apply(&definition);
        }
        poll("AddressPools are served", PATIENCE, || {
            let ask = AssertUnwindSafe(|| self.list_all("fairway.io/v1alpha1/AddressPool"));
            catch_unwind(ask).is_ok().then_some(())
        });
    }

    /// Creates or changes an object.
    pub fn apply(&self, object: &Value) {
        self.runtime.block_on(apply(&self.client, object));
    }

    /// Changes the object of this kind by a merge patch; `part` is `status`, for example, or nothing.
    pub fn patch(&self, kind: &str, name: &str, part: &str, patch: &Value) -> Value {
        let (api, parameters) = (self.api(kind, name), PatchParams::default());
        let patch = Patch::Merge(patch);
        let patched = self.runtime.block_on(async {
            match part {
                "" => api.patch(last(name), &parameters, &patch).await,
                part => api.patch_subresource(part, last(name), &parameters, &patch).await,
            }
        });
        let patched = patched.unwrap_or_else(|error| panic!("cannot change {kind} {name}: {error}"));
        serde_json::to_value(patched).expect("it is JSON")
    }

    /// The object of this kind, if there is one.
    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        let found = self.runtime.block_on(self.api(kind, name).get_opt(last(name)));
        let found = found.unwrap_or_else(|error| panic!("cannot read {kind} {name}: {error}"));
        found.map(|object| serde_json::to_value(object).expect("it is JSON"))
    }

    /// All objects of this kind in a namespace.
    pub fn list(&self, kind: &str, namespace: &str) -> Vec<Value> {
        let api = self.api(kind, &format!("{namespace}/"));
        let list = self.runtime.block_on(api.list(&ListParams::default()));
        let list = list.unwrap_or_else(|error| panic!("cannot list {kind}: {error}"));
        let values = list
            .items
            .into_iter()
            .map(|object| serde_json::to_value(object).expect("it is JSON"));
        values.collect()
    }

    /// All objects of this kind, which has no namespace.
    pub fn list_all(&self, kind: &str) -> Vec<Value> {
        let list = self.runtime.block_on(self.api(kind, "").list(&ListParams::default()));
        let list = list.unwrap_or_else(|error| panic!("cannot list {kind}: {error}"));
        let values = list.items.into_iter();
        values
            .map(|object| serde_json::to_value(object).expect("it is JSON"))
            .collect()
    }

    /// Deletes an object, within so many seconds if it is a Pod.
    pub fn delete(&self, kind: &str, name: &str, grace_s: Option<u32>) {
        let parameters = DeleteParams {
            grace_period_seconds: grace_s,
            ..DeleteParams::default()
        };
        let deleted = self
            .runtime
            .block_on(self.api(kind, name).delete(last(name), &parameters));
        deleted.unwrap_or_else(|error| panic!("cannot delete {kind} {name}: {error}"));
    }

    /// For objects of a kind such as `v1/Service` or `discovery.k8s.io/v1/EndpointSlice`, named `namespace/name`, or
    /// `name` if they have no namespace.
    fn api(&self, kind: &str, name: &str) -> Api<DynamicObject> {
        let (version, kind) = kind.rsplit_once('/').expect("a version and a kind");
        let object = json!({"apiVersion": version, "kind": kind});
        let namespace = name.split_once('/').map(|(namespace, _)| namespace);
        api(&self.client, &object, namespace)
    }
}

/// The documents of a file.
pub fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).expect("it is YAML")
}

/// The name behind the namespace.
fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.pointer(field).and_then(Value::as_str).unwrap_or_default()
}

/// For objects of the kind of this one.
fn api(client: &Client, object: &Value, namespace: Option<&str>) -> Api<DynamicObject> {
    let version = text(object, "/apiVersion");
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, text(object, "/kind")));
    match namespace {
        None => Api::all_with(client.clone(), &resource),
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
    }
}

/// Applies an object as `kubectl apply --validate=strict` does.
pub async fn apply(client: &Client, object: &Value) {
    let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
    let namespace = Some(text(object, "/metadata/namespace")).filter(|namespace| !namespace.is_empty());
    let parameters = PatchParams::apply("test").validation_strict();
    api(client, object, namespace)
        .patch(name, &parameters, &Patch::Apply(object))
        .await
        .unwrap_or_else(|error| panic!("cannot apply {kind} {name}: {error}"));
}

/// Gives the user `agent` the rights that `deploy/fairway.yaml` gives the agent: the user stands for the service
/// account, for which somebody would have to issue tokens.
pub async fn apply_manifests_for_users(client: &Client) {
    let manifests = include_str!("../../../deploy/fairway.yaml");
    let manifests = documents(manifests);
    for object in &manifests {
        apply(client, object).await;
    }
    for kind in ["ClusterRoleBinding", "RoleBinding"] {
        let binding = manifests.iter().find(|object| object["kind"] == kind);
        let mut binding = binding.expect("there is one").clone();
        binding["metadata"]["name"] = json!("test");
        binding["subjects"] = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "agent"}]);
        apply(client, &binding).await;
    }
}
