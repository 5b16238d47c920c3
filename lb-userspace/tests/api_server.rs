//! The API source against a real kube-apiserver and etcd.

mod support;

use std::collections::{BTreeMap, HashSet};
use std::mem::{Discriminant, discriminant};
use std::path::PathBuf;
use std::time::Duration;

use fairway::desired::{LocalAddresses, NodeState, Settings};
use fairway::maps::fake::FakeMaps;
use fairway::model::{EndpointSlice, Node, ObjectKey, Service};
use fairway::reconcile::{NoNextHops, Reconciler};
use fairway::sources::Event;
use fairway::sources::kube::{Access, Options, run};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use support::api_server::ApiServer;
use support::cluster::apply_manifests_for_users;
use support::proxy::Proxy;
use support::skip;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

/// Whatever a source says has to come within this.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it is watched that nothing comes.
const QUIET: Duration = Duration::from_millis(700);

/// A running source, and what it has said.
struct Source {
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
    services: BTreeMap<ObjectKey, Service>,
    slices: BTreeMap<ObjectKey, EndpointSlice>,
    node: Option<Node>,
    service_cidrs: Option<Vec<IpNet>>,
    lists: usize,
    /// What has been told of so far.
    told: HashSet<Discriminant<Event>>,
}

impl Source {
    fn start(kubeconfig: PathBuf) -> Self {
        Self::start_as(kubeconfig, None)
    }

    /// Starts as a proxy with a name.
    fn start_as(kubeconfig: PathBuf, proxy_name: Option<&str>) -> Self {
        let (sender, events) = mpsc::channel(64);
        let options = Options {
            access: Access::Kubeconfig(kubeconfig),
            node_name: "node-1".into(),
            proxy_name: proxy_name.map(Into::into),
        };
        let task = tokio::spawn(async move { run(options, sender).await.expect("the kubeconfig is right") });
        Self {
            events,
            task,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            node: None,
            service_cidrs: None,
            lists: 0,
            told: HashSet::new(),
        }
    }

    fn take(&mut self, event: Event) {
        self.told.insert(discriminant(&event));
        match event {
            Event::Services(list) => {
                self.lists += 1;
                self.services = list.into_iter().map(|service| (service.key.clone(), service)).collect();
            }
            Event::EndpointSlices(list) => {
                self.lists += 1;
                self.slices = list.into_iter().map(|slice| (slice.key.clone(), slice)).collect();
            }
            Event::Node(node) => self.node = node,
            Event::ServiceCidrs(ranges) => self.service_cidrs = ranges,
            Event::Service(service) => {
                self.services.insert(service.key.clone(), service);
            }
            Event::ServiceGone(key) => {
                self.services.remove(&key);
            }
            Event::EndpointSlice(slice) => {
                self.slices.insert(slice.key.clone(), slice);
            }
            Event::EndpointSliceGone(key) => {
                self.slices.remove(&key);
            }
            Event::Problems(_) | Event::Pools(_) => {}
        }
    }

    /// Takes events until the state is as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(self) {
            let event = timeout_at(deadline, self.events.recv()).await.unwrap_or_else(|_| {
                panic!(
                    "{what}: not within {PATIENCE:?}; Services {:?}, slices {:?}",
                    self.services.keys(),
                    self.slices.keys()
                )
            });
            self.take(event.expect("the source goes on"));
        }
    }

    /// Waits until every kind has been listed.
    async fn until_listed(&mut self) {
        let others = [Event::Node(None), Event::ServiceCidrs(None), Event::Pools(Vec::new())];
        self.until("all lists", |source| {
            source.lists >= 2 && others.iter().all(|kind| source.told.contains(&discriminant(kind)))
        })
        .await;
    }

    /// Panics if the source says something.
    async fn says_nothing(&mut self) {
        if let Ok(event) = timeout(QUIET, self.events.recv()).await {
            panic!("nothing should have been said, but {event:?} was");
        }
    }

    fn has(&self, service: &str) -> bool {
        self.services.contains_key(&key(service))
    }

    fn has_slice(&self, slice: &str) -> bool {
        self.slices.contains_key(&key(slice))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

/// The objects of a cluster, as an administrator changes them.
struct Cluster {
    services: Api<core::Service>,
    slices: Api<discovery::EndpointSlice>,
    nodes: Api<core::Node>,
    service_cidrs: Api<networking::ServiceCIDR>,
}

impl Cluster {
    fn of(client: &Client) -> Self {
        Self {
            services: Api::default_namespaced(client.clone()),
            slices: Api::default_namespaced(client.clone()),
            nodes: Api::all(client.clone()),
            service_cidrs: Api::all(client.clone()),
        }
    }

    async fn create_service(&self, name: &str) {
        self.create_service_with(name, json!({})).await;
    }

    /// A Service with a port 80, and more in its `spec`.
    async fn create_service_with(&self, name: &str, spec: serde_json::Value) {
        let mut service = json!({
            "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
        });
        for (field, value) in spec.as_object().expect("a spec has fields") {
            service["spec"][field] = value.clone();
        }
        let service = serde_json::from_value(service).expect("it is a Service");
        self.services
            .create(&PostParams::default(), &service)
            .await
            .unwrap_or_else(|error| panic!("cannot create the Service {name}: {error}"));
    }

    /// A slice of the Service of this name, with these addresses.
    async fn create_slice(&self, name: &str, service: &str, addresses: &[&str]) {
        let endpoints: Vec<_> = addresses
            .iter()
            .map(|address| json!({"addresses": [address], "conditions": {"ready": true}, "nodeName": "node-1"}))
            .collect();
        let slice = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints,
        }))
        .expect("it is an EndpointSlice");
        self.slices
            .create(&PostParams::default(), &slice)
            .await
            .unwrap_or_else(|error| panic!("cannot create the EndpointSlice {name}: {error}"));
    }

    async fn label_service(&self, name: &str, label: &str, value: Option<&str>) {
        let patch = json!({"metadata": {"labels": {label: value}}});
        self.services
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap_or_else(|error| panic!("cannot label the Service {name}: {error}"));
    }

    async fn label_slice(&self, name: &str, label: &str, value: Option<&str>) {
        let patch = json!({"metadata": {"labels": {label: value}}});
        self.slices
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap_or_else(|error| panic!("cannot label the EndpointSlice {name}: {error}"));
    }

    async fn delete_service(&self, name: &str) {
        self.services
            .delete(name, &DeleteParams::default())
            .await
            .unwrap_or_else(|error| panic!("cannot delete the Service {name}: {error}"));
    }

    async fn delete_slice(&self, name: &str) {
        self.slices
            .delete(name, &DeleteParams::default())
            .await
            .unwrap_or_else(|error| panic!("cannot delete the EndpointSlice {name}: {error}"));
    }
}

/// A server of the test's own; `None` if there is none here, which has been said then.
fn server(test: &str) -> Option<ApiServer> {
    match ApiServer::programs() {
        Ok(programs) => Some(ApiServer::start(&programs)),
        Err(reason) => {
            skip(test, &reason);
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_appear_change_and_go() {
    let Some(server) = server("objects_appear_change_and_go") else {
        return;
    };
    let cluster = Cluster::of(&server.client().await);
    cluster.create_service("before").await;
    cluster.create_slice("before-1", "before", &["10.0.0.1"]).await;

    let mut source = Source::start(server.kubeconfig());
    source.until_listed().await;
    assert!(source.has("before") && source.has_slice("before-1"));
    let service = &source.services[&key("before")];
    assert_eq!(service.ports[0].port, 80);
    assert_eq!(service.cluster_ips.len(), 1);
    let slice = &source.slices[&key("before-1")];
    assert_eq!(slice.service, Some(key("before")));
    assert_eq!(slice.endpoints[0].addr.to_string(), "10.0.0.1");
    assert_eq!(slice.endpoints[0].node.as_deref(), Some("node-1"));

    cluster
        .create_service_with(
            "both",
            json!({"type": "NodePort", "ipFamilyPolicy": "RequireDualStack"}),
        )
        .await;
    cluster.create_slice("both-1", "both", &["10.0.0.2", "10.0.0.3"]).await;
    source
        .until("a new Service and its slice", |source| {
            source.has("both") && source.has_slice("both-1")
        })
        .await;
    assert_eq!(source.services[&key("both")].cluster_ips.len(), 2);
    assert!(source.services[&key("both")].ports[0].node_port >= 30_000);

    let patch = json!({"endpoints": [{"addresses": ["10.0.0.4"]}]});
    cluster
        .slices
        .patch("both-1", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .expect("a slice can be changed");
    source
        .until("the changed slice", |source| {
            let endpoints = &source.slices[&key("both-1")].endpoints;
            endpoints.len() == 1 && endpoints[0].addr.to_string() == "10.0.0.4"
        })
        .await;

    cluster.delete_slice("both-1").await;
    cluster.delete_service("both").await;
    source
        .until("both gone", |source| !source.has("both") && !source.has_slice("both-1"))
        .await;
    assert!(source.has("before") && source.has_slice("before-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_with_a_name_is_told_of_the_services_given_to_it_and_no_others() {
    let Some(server) = server("a_proxy_with_a_name_is_told_of_the_services_given_to_it_and_no_others") else {
        return;
    };
    const LABEL: &str = "service.kubernetes.io/service-proxy-name";
    let cluster = Cluster::of(&server.client().await);
    for name in ["given", "plain", "others"] {
        cluster.create_service(name).await;
    }
    cluster.label_service("given", LABEL, Some("fairway")).await;
    cluster.label_service("others", LABEL, Some("another")).await;
    let mut source = Source::start_as(server.kubeconfig(), Some("fairway"));
    source.until_listed().await;
    assert!(source.has("given") && !source.has("plain") && !source.has("others"));
    cluster.label_service("plain", LABEL, Some("fairway")).await;
    cluster.label_service("given", LABEL, None).await;
    source
        .until("the labels that changed", |source| {
            source.has("plain") && !source.has("given")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn service_cidrs_are_told_and_followed() {
    let Some(server) = server("service_cidrs_are_told_and_followed") else {
        return;
    };
    let cluster = Cluster::of(&server.client().await);
    let mut source = Source::start(server.kubeconfig());
    let ranges = |texts: &[&str]| -> Option<Vec<IpNet>> {
        Some(texts.iter().map(|text| text.parse().expect("a range")).collect())
    };
    let before = ranges(&["172.30.0.0/16", "fd00:172:30::/112"]);
    source
        .until("the server's own ranges", |source| source.service_cidrs == before)
        .await;
    let more = serde_json::from_value(json!({
        "metadata": {"name": "more"}, "spec": {"cidrs": ["172.31.0.0/24"]},
    }))
    .expect("it is a ServiceCIDR");
    cluster
        .service_cidrs
        .create(&PostParams::default(), &more)
        .await
        .expect("a ServiceCIDR can be created");
    let after = ranges(&["172.30.0.0/16", "172.31.0.0/24", "fd00:172:30::/112"]);
    source
        .until("a further range", |source| source.service_cidrs == after)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ours_is_left_out_and_labels_take_effect_at_run_time() {
    let Some(server) = server("what_is_not_ours_is_left_out_and_labels_take_effect_at_run_time") else {
        return;
    };
    const OTHER: &str = "service.kubernetes.io/service-proxy-name";
    const HEADLESS: &str = "service.kubernetes.io/headless";
    let cluster = Cluster::of(&server.client().await);
    for name in ["ours", "others"] {
        cluster.create_service(name).await;
        cluster.create_slice(&format!("{name}-1"), name, &["10.0.0.1"]).await;
    }
    cluster
        .create_service_with("headless", json!({"clusterIP": "None"}))
        .await;
    cluster.create_slice("headless-1", "headless", &["10.0.0.1"]).await;
    cluster.label_service("others", OTHER, Some("")).await;
    cluster.label_slice("headless-1", HEADLESS, Some("")).await;

    let mut source = Source::start(server.kubeconfig());
    source.until_listed().await;
    assert!(source.has("ours") && !source.has("others") && !source.has("headless"));
    assert!(source.has_slice("ours-1") && !source.has_slice("headless-1"));
    assert!(source.has_slice("others-1"), "only the Service's label counts");

    cluster.label_service("ours", OTHER, Some("another")).await;
    source.until("ours is given away", |source| !source.has("ours")).await;
    cluster.label_service("others", OTHER, None).await;
    source.until("others comes to us", |source| source.has("others")).await;
    cluster.label_service("ours", OTHER, None).await;
    source.until("ours comes back", |source| source.has("ours")).await;

    cluster.label_slice("ours-1", HEADLESS, Some("")).await;
    source
        .until("the slice is hidden", |source| !source.has_slice("ours-1"))
        .await;
    cluster.label_slice("ours-1", HEADLESS, None).await;
    source
        .until("the slice comes back", |source| source.has_slice("ours-1"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_own_node_is_told_and_others_are_not() {
    let Some(server) = server("the_own_node_is_told_and_others_are_not") else {
        return;
    };
    let cluster = Cluster::of(&server.client().await);
    let create = async |name: &str, zone: &str| {
        let node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
            "spec": {"podCIDRs": ["10.244.1.0/24"]},
        }))
        .expect("it is a Node");
        cluster
            .nodes
            .create(&PostParams::default(), &node)
            .await
            .expect("a Node can be created");
    };
    create("node-2", "b").await;

    let mut source = Source::start(server.kubeconfig());
    source.until_listed().await;
    assert_eq!(source.node, None);

    create("node-1", "a").await;
    source.until("the own Node", |source| source.node.is_some()).await;
    let node = source.node.clone().expect("it is there");
    assert_eq!((&*node.name, node.zone.as_deref()), ("node-1", Some("a")));

    // What a kubelet writes all the time is not news.
    let patch = json!({"metadata": {"annotations": {"beat": "1"}}});
    for name in ["node-1", "node-2"] {
        cluster
            .nodes
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .expect("a Node can be changed");
    }
    source.says_nothing().await;

    cluster
        .nodes
        .delete("node-1", &DeleteParams::default())
        .await
        .expect("a Node can be deleted");
    source
        .until("the own Node is gone", |source| source.node.is_none())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_said_before_the_api_answers_and_nothing_is_lost_when_it_restarts() {
    let Some(mut server) = server("nothing_is_said_before_the_api_answers_and_nothing_is_lost_when_it_restarts") else {
        return;
    };
    let cluster = Cluster::of(&server.client().await);
    cluster.create_service("stays").await;
    cluster.create_slice("stays-1", "stays", &["10.0.0.1"]).await;

    server.stop();
    let mut source = Source::start(server.kubeconfig());
    source.says_nothing().await;
    server.start_again();
    source.until_listed().await;
    assert!(source.has("stays") && source.has_slice("stays-1"));

    server.stop();
    source.says_nothing().await;
    server.start_again();
    let cluster = Cluster::of(&server.client().await);
    cluster.create_service("later").await;
    cluster.delete_slice("stays-1").await;
    source
        .until("changes after the restart", |source| {
            source.has("later") && !source.has_slice("stays-1")
        })
        .await;
    assert!(source.has("stays"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_the_api_was_lost_is_noticed_even_when_its_history_is_gone() {
    let Some(mut server) = server("what_happened_while_the_api_was_lost_is_noticed_even_when_its_history_is_gone")
    else {
        return;
    };
    let cluster = Cluster::of(&server.client().await);
    for name in ["stays", "goes", "goes-too"] {
        cluster.create_service(name).await;
        cluster.create_slice(&format!("{name}-1"), name, &["10.0.0.1"]).await;
    }
    let mut proxy = Proxy::start(server.port()).await;
    let mut source = Source::start(server.kubeconfig_for("admin", proxy.port()));
    source.until_listed().await;

    // Still in the server's history: the watch goes on where it was.
    proxy.cut().await;
    cluster.delete_service("goes").await;
    cluster.delete_slice("goes-1").await;
    source.says_nothing().await;
    proxy.mend().await;
    source
        .until("deletions during the first loss", |source| {
            !source.has("goes") && !source.has_slice("goes-1")
        })
        .await;
    assert_eq!(source.lists, 2, "the watch was resumed");

    // Gone from it (410): a new list takes the place of the old one.
    proxy.cut().await;
    cluster.delete_service("goes-too").await;
    cluster.delete_slice("goes-too-1").await;
    cluster.create_service("comes").await;
    server.stop();
    server.forget_history();
    server.start_again();
    source.says_nothing().await;
    assert!(source.has("goes-too"), "what is known stays in force");
    proxy.mend().await;
    source
        .until("what happened during the second loss", |source| {
            !source.has("goes-too") && !source.has_slice("goes-too-1") && source.has("comes")
        })
        .await;
    assert!(source.has("stays") && source.has_slice("stays-1"));
    assert!(source.lists >= 3, "there was a new list");
}

/// The reconcile loop over maps in memory.
fn reconciler() -> Reconciler<FakeMaps, NoNextHops> {
    let node = NodeState {
        settings: Settings {
            node_name: "node-1".into(),
            ..Settings::default()
        },
        local: LocalAddresses::default(),
        object: None,
        service_cidrs: None,
    };
    Reconciler::restore(FakeMaps::default(), NoNextHops, node).expect("maps in memory can be read")
}

/// What the maps hold of this address, as text.
fn lines_of(reconciler: &Reconciler<FakeMaps, NoNextHops>, address: &str) -> Vec<String> {
    let maps = reconciler.maps();
    let mut lines = maps.contents.lines(&maps.maglev);
    lines.retain(|line| line.contains(address));
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_the_api_comes_to_stand_in_the_maps() {
    let Some(server) = server("what_is_written_to_the_api_comes_to_stand_in_the_maps") else {
        return;
    };
    let cluster = Cluster::of(&server.client().await);
    cluster
        .create_service_with("web", json!({"clusterIP": "172.30.0.80"}))
        .await;
    cluster.create_slice("web-1", "web", &["10.0.0.1", "10.0.0.2"]).await;

    let mut source = Source::start(server.kubeconfig());
    let mut reconciler = reconciler();
    let mut frontend_becomes = async |wanted: &[&str]| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lines = lines_of(&reconciler, "172.30.0.80:80 tcp");
            // The backends stand between brackets, in order.
            let backends = lines.first().and_then(|line| line.split(['[', ']']).nth(1));
            if lines.len() <= 1 && backends.unwrap_or("no frontend").split(' ').eq(wanted.iter().copied()) {
                break;
            }
            let event = timeout_at(deadline, source.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("wanted {wanted:?}, but there is {lines:#?}"));
            reconciler.take(event.expect("the source goes on"));
            let report = reconciler.reconcile();
            assert!(report.failures.is_empty(), "{:?}", report.failures);
        }
    };
    frontend_becomes(&["10.0.0.1:8080", "10.0.0.2:8080"]).await;
    cluster.create_slice("web-2", "web", &["10.0.0.3"]).await;
    frontend_becomes(&["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"]).await;
    cluster.delete_slice("web-1").await;
    frontend_becomes(&["10.0.0.3:8080"]).await;
    cluster.delete_service("web").await;
    frontend_becomes(&["no", "frontend"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manifests_for_users_are_valid_and_their_role_is_enough_for_the_agent() {
    let Some(server) = server("the_manifests_for_users_are_valid_and_their_role_is_enough_for_the_agent") else {
        return;
    };
    let client = server.client().await;
    let cluster = Cluster::of(&client);
    cluster.create_service("web").await;

    // Without a role the server refuses, and nothing is said; with it the source goes on by itself.
    let mut source = Source::start(server.kubeconfig_for("agent", server.port()));
    source.says_nothing().await;

    apply_manifests_for_users(&client).await;
    source.until_listed().await;
    assert!(source.has("web"));
    cluster.create_slice("web-1", "web", &["10.0.0.1"]).await;
    source.until("a change", |source| source.has_slice("web-1")).await;
}
