//! `fairway controller` against a real API server, and on a folder of manifests.
//!
//! Against the API it has the rights that `deploy/controller.yaml` gives it and no others.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, PostParams};
use kube::runtime::watcher;
use serde_json::{Value, json};
use support::api_server::ApiServer;
use support::cluster::{Cluster, documents};
use support::node::binary;
use support::ports::free_address;
use support::process::Program;
use support::{poll, skip};

/// Whatever is waited for has to come within this.
const PATIENCE: Duration = Duration::from_secs(60);
const POOL: &str = "fairway.io/v1alpha1/AddressPool";

/// A Service as its owner writes it.
const MY_SPRING_APP: &str = "
apiVersion: v1
kind: Service
metadata:
  name: my-spring-app
spec:
  type: LoadBalancer
  selector:
    app: my-spring-app
  ports:
    - protocol: TCP
      port: 80
      targetPort: 8080
";

/// A folder that is removed when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("fairway-controller-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the folder for temporary files can be written");
        Self(dir)
    }

    fn put(&self, name: &str, text: &str) {
        // As editors do, so that nobody meets half a file.
        let draft = self.0.join(format!(".{name}"));
        std::fs::write(&draft, text).expect("can be written");
        std::fs::rename(&draft, self.0.join(name)).expect("can be renamed");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

fn controller(name: &str, folder: &Path, arguments: &[&str]) -> Program {
    let fairway = binary().display().to_string();
    let mut words = vec![fairway.as_str(), "controller", "--log-format", "json"];
    words.extend(arguments);
    Program::start(name, &words, &folder.join(format!("{name}.log")))
}

/// Makes what has to be there: the kinds, and the rights of the controller for the user `agent`.
fn prepare(cluster: &Cluster) {
    cluster.apply_definitions();
    for mut object in documents(include_str!("../../deploy/controller.yaml")) {
        cluster.apply(&object);
        if object["kind"].as_str().is_some_and(|kind| kind.ends_with("Binding")) {
            object["metadata"]["name"] = json!("test");
            object["subjects"] = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "agent"}]);
            cluster.apply(&object);
        }
    }
}

fn pool(name: &str, blocks: &Value) -> Value {
    json!({
        "apiVersion": "fairway.io/v1alpha1", "kind": "AddressPool", "metadata": {"name": name}, "spec": {"blocks": blocks},
    })
}

fn service(name: &str, spec: Value) -> Value {
    let mut service = documents(MY_SPRING_APP).remove(0);
    service["metadata"] = json!({"name": name, "namespace": "default"});
    if let Value::Object(fields) = spec {
        for (field, value) in fields {
            service["spec"][field] = value;
        }
    }
    service
}

fn addresses(object: &Value) -> Vec<String> {
    let entries = object.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
    let ips = entries.into_iter().flatten().filter_map(|entry| entry["ip"].as_str());
    ips.map(str::to_owned).collect()
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<(&'a str, &'a str)> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == kind)?;
    Some((found["status"].as_str()?, found["reason"].as_str()?))
}

/// Waits until a Service of namespace `default` has an address.
fn address_of(cluster: &Cluster, name: &str) -> String {
    poll("the Service has an address", PATIENCE, || {
        let object = cluster.get("v1/Service", &format!("default/{name}"))?;
        addresses(&object).into_iter().next()
    })
}

/// What `kubectl` prints, if there is one.
fn kubectl(folder: &Path, server: &ApiServer, arguments: &[&str]) -> Option<String> {
    let own = folder.join("kubectl");
    let program = if own.is_file() { own } else { "kubectl".into() };
    let output = Command::new(program)
        .arg("--kubeconfig")
        .arg(server.kubeconfig())
        .args(arguments)
        .output()
        .ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_service_is_given_its_address_and_what_is_wrong_is_said_where_its_owner_looks() {
    let test = "a_service_is_given_its_address_and_what_is_wrong_is_said_where_its_owner_looks";
    let programs = match ApiServer::programs() {
        Ok(programs) => programs,
        Err(reason) => return skip(test, &reason),
    };
    let server = ApiServer::start(&programs);
    let cluster = Cluster::of(&server);
    let folder = Folder::new("api");
    let kubeconfig = server.kubeconfig_for("agent", server.port()).display().to_string();
    for object in documents(include_str!("../../deploy/controller.yaml")) {
        if object["kind"] != "Deployment" {
            cluster.apply(&object);
        }
    }
    // It may come before its kind, and says what to do.
    let bind = |kind: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{kind}Binding"),
               "metadata": {"name": "early", "namespace": if kind == "Role" { json!("kube-system") } else { Value::Null }},
               "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "fairway-controller"},
               "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "agent"}]})
    };
    for kind in ["ClusterRole", "Role"] {
        cluster.apply(&bind(kind));
    }
    let metrics_address = free_address().to_string();
    let mut running = controller(
        "controller",
        &folder.0,
        &["--kubeconfig", &kubeconfig, "--metrics-address", &metrics_address],
    );
    poll("it asks for its kind", PATIENCE, || {
        running.must_run();
        running
            .log()
            .contains("fairway crds | kubectl apply -f -")
            .then_some(())
    });
    assert!(
        ask(&metrics_address, "/readyz").starts_with("503"),
        "it is not ready without its kind"
    );
    prepare(&cluster);

    // The API server itself refuses a block that is none.
    let wrong = json!([{"cidr": "192.0.2.0/30", "start": "192.0.2.1", "stop": "192.0.2.2"}]);
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cluster.apply(&pool("wrong", &wrong))));
    assert!(
        refused.is_err(),
        "a block that is both a prefix and a range has been taken"
    );
    let pair = json!([{"cidr": "192.0.2.8/31"}, {"start": "2001:db8::a", "stop": "2001:db8::f"}]);
    cluster.apply(&pool("default", &pair));

    let mut manifest = documents(MY_SPRING_APP).remove(0);
    manifest["metadata"]["namespace"] = json!("default");
    cluster.apply(&manifest);
    assert_eq!(address_of(&cluster, "my-spring-app"), "192.0.2.8");
    let object = cluster.get("v1/Service", "default/my-spring-app").expect("it is there");
    assert_eq!(
        object["status"]["loadBalancer"]["ingress"],
        json!([{"ip": "192.0.2.8", "ipMode": "VIP"}])
    );
    assert_eq!(
        condition(&object, "fairway.io/AddressAssigned"),
        Some(("True", "Assigned"))
    );
    if let Some(table) = kubectl(&programs, &server, &["get", "svc", "my-spring-app"]) {
        let row = table.lines().nth(1).expect("there is a row");
        assert_eq!(
            row.split_whitespace().nth(3),
            Some("192.0.2.8"),
            "EXTERNAL-IP in {table}"
        );
    }

    // Both families, without node ports; then one too many.
    let dual = json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"], "allocateLoadBalancerNodePorts": false});
    cluster.apply(&service("dual", dual));
    address_of(&cluster, "dual");
    let object = cluster.get("v1/Service", "default/dual").expect("it is there");
    assert_eq!(addresses(&object), ["2001:db8::a", "192.0.2.9"]);
    assert_eq!(object.pointer("/spec/ports/0/nodePort"), None);
    cluster.apply(&service("late", json!({})));
    let is = |name: &str, wanted: (&str, &str)| {
        let name = format!("default/{name}");
        poll("the Condition says what has become of it", PATIENCE, || {
            let object = cluster.get("v1/Service", &name)?;
            (condition(&object, "fairway.io/AddressAssigned") == Some(wanted)).then_some(())
        });
    };
    is("late", ("False", "Exhausted"));
    poll("an Event tells of it", PATIENCE, || {
        let events = cluster.list("events.k8s.io/v1/Event", "default");
        let told = |event: &Value| event["reason"] == "Exhausted" && event["regarding"]["name"] == "late";
        events.iter().any(told).then_some(())
    });
    poll("the pool says so", PATIENCE, || {
        let object = cluster.get(POOL, "default")?;
        let status = (object["status"]["used"].as_str()?, object["status"]["free"].as_str()?);
        (status == ("3", "5") && condition(&object, "Exhausted")?.0 == "True").then_some(())
    });
    let metrics = ask(&metrics_address, "/metrics");
    for line in [
        "fairway_pool_addresses_used{pool=\"default\"} 3",
        "fairway_pool_addresses_free{pool=\"default\"} 5",
        "fairway_load_balancers_waiting{reason=\"Exhausted\"} 1",
        "fairway_controller_leader 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert!(
        ask(&metrics_address, "/healthz").starts_with("200") && ask(&metrics_address, "/readyz").starts_with("200")
    );

    // One that waits is served as soon as an address is free; a restart moves nobody.
    cluster.delete("v1/Service", "default/my-spring-app", None);
    assert_eq!(address_of(&cluster, "late"), "192.0.2.8");
    running.kill();
    let mut running = controller(
        "controller",
        &folder.0,
        &["--kubeconfig", &kubeconfig, "--metrics-address", "none"],
    );
    cluster.apply(&service("another", json!({})));
    is("another", ("False", "Exhausted"));
    assert_eq!(address_of(&cluster, "late"), "192.0.2.8");

    // What is no longer of the type loses what we wrote; its Condition too.
    cluster.patch(
        "v1/Service",
        "default/late",
        "",
        &json!({"spec": {"type": "ClusterIP"}}),
    );
    assert_eq!(address_of(&cluster, "another"), "192.0.2.8");
    poll("nothing of ours is left", PATIENCE, || {
        let object = cluster.get("v1/Service", "default/late")?;
        (addresses(&object).is_empty() && condition(&object, "fairway.io/AddressAssigned").is_none()).then_some(())
    });
    for name in ["dual", "another", "late"] {
        cluster.delete("v1/Service", &format!("default/{name}"), None);
    }
    poll("all addresses are free", PATIENCE, || {
        let object = cluster.get(POOL, "default")?;
        (object["status"]["used"] == "0" && condition(&object, "Exhausted")?.0 == "False").then_some(())
    });
    running.must_run();
}

/// Status code and body of an answer.
fn ask(at: &str, path: &str) -> String {
    let output = Command::new("curl")
        .args(["-s", "-m", "5", "-w", "\n%{http_code}", &format!("http://{at}{path}")])
        .output()
        .expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').unwrap_or_default();
    format!("{code} {body}")
}

/// What has been seen in the statuses of Services, at any time.
#[derive(Default)]
struct Seen {
    now: BTreeMap<String, BTreeSet<String>>,
    faults: Vec<String>,
}

impl Seen {
    fn take(&mut self, service: &Service) {
        let name = service.metadata.name.clone().unwrap_or_default();
        let value = serde_json::to_value(service).expect("it is JSON");
        let has: BTreeSet<String> = addresses(&value).into_iter().collect();
        let had = self.now.get(&name).cloned().unwrap_or_default();
        if !had.is_subset(&has) || has.len() > 1 {
            self.faults.push(format!("{name} had {had:?} and has {has:?}"));
        }
        for (other, theirs) in self.now.iter().filter(|(other, _)| **other != name) {
            if !theirs.is_disjoint(&has) {
                self.faults.push(format!("{name} and {other} have {has:?}"));
            }
        }
        self.now.insert(name, has);
    }
}

/// Leaders are killed and stopped in the middle of their work, again and again.
#[test]
fn no_address_is_given_twice_and_none_moves_while_leaders_die() {
    const SERVICES: usize = 500;
    let test = "no_address_is_given_twice_and_none_moves_while_leaders_die";
    let programs = match ApiServer::programs() {
        Ok(programs) => programs,
        Err(reason) => return skip(test, &reason),
    };
    let server = ApiServer::start(&programs);
    let cluster = Cluster::of(&server);
    let folder = Folder::new("race");
    prepare(&cluster);
    cluster.apply(&pool(
        "default",
        &json!([{"cidr": "198.51.100.0/24"}, {"cidr": "203.0.113.0/24"}, {"cidr": "192.0.2.0/26"}]),
    ));
    let kubeconfig = server.kubeconfig_for("agent", server.port()).display().to_string();
    let mut started = 0;
    let mut start = || {
        started += 1;
        let times = [
            "--lease-duration",
            "1",
            "--lease-renewal",
            "0.3",
            "--metrics-address",
            "none",
        ];
        let arguments = [&["--kubeconfig", kubeconfig.as_str()], times.as_slice()].concat();
        controller(&format!("controller-{started}"), &folder.0, &arguments)
    };
    let mut instances = vec![start(), start()];

    let seen = Arc::new(Mutex::new(Seen::default()));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = runtime.block_on(server.client());
    let services: Api<Service> = Api::namespaced(client, "default");
    let (watched, into) = (services.clone(), Arc::clone(&seen));
    runtime.spawn(async move {
        let mut events = std::pin::pin!(watcher(
            watched,
            watcher::Config::default().fields("metadata.name!=kubernetes")
        ));
        while let Some(event) = events.next().await {
            if let Ok(watcher::Event::Apply(service) | watcher::Event::InitApply(service)) = event {
                into.lock().expect("nobody panics with it").take(&service);
            }
        }
    });
    runtime.spawn(async move {
        let made = futures::stream::iter(0..SERVICES).for_each_concurrent(4, |number| {
            let services = services.clone();
            async move {
                let object = service(&format!("s{number}"), json!({"allocateLoadBalancerNodePorts": false}));
                let object: Service = serde_json::from_value(object).expect("it is a Service");
                services
                    .create(&PostParams::default(), &object)
                    .await
                    .expect("it is made");
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
        });
        made.await;
    });

    let assigned = |seen: &Mutex<Seen>| {
        let seen = seen.lock().expect("nobody panics with it");
        seen.now.values().filter(|addresses| !addresses.is_empty()).count()
    };
    let began = Instant::now();
    let (mut changes, mut before) = (0, 0);
    let mut stopped: Option<Program> = None;
    while assigned(&seen) < SERVICES {
        assert!(began.elapsed() < 2 * PATIENCE, "{} of {SERVICES}", assigned(&seen));
        std::thread::sleep(Duration::from_millis(10));
        // It has done some of its work, and is about to do more.
        if assigned(&seen) < (before + 20).min(SERVICES) {
            continue;
        }
        let Some(holder) = leader(&cluster).map(|holder| format!("\"identity\":\"{holder}\"")) else {
            continue;
        };
        let Some(position) = instances.iter().position(|instance| instance.log().contains(&holder)) else {
            continue;
        };
        before = assigned(&seen);
        changes += 1;
        let instance = instances.remove(position);
        if changes % 3 == 0 && stopped.is_none() {
            // It wakes up when another leads, in the middle of what it was about to do.
            instance.signal("STOP");
            stopped = Some(instance);
        } else {
            instance.kill();
        }
        if let Some(program) = stopped.take_if(|_| changes % 3 == 2) {
            program.signal("CONT");
            instances.push(program);
        }
        while instances.len() < 2 {
            instances.push(start());
        }
    }
    if let Some(program) = stopped {
        program.signal("CONT");
        instances.push(program);
    }
    assert!(changes >= 5, "leaders were killed {changes} times only");
    poll("the pool says so", PATIENCE, || {
        let object = cluster.get(POOL, "default")?;
        (object["status"]["used"] == SERVICES.to_string().as_str()).then_some(())
    });
    let seen = seen.lock().expect("nobody panics with it");
    assert!(seen.faults.is_empty(), "{:#?}", seen.faults);
    let distinct: BTreeSet<&String> = seen.now.values().flatten().collect();
    assert_eq!((seen.now.len(), distinct.len()), (SERVICES, SERVICES));
    eprintln!(
        "{SERVICES} Services in {:?}, with {changes} leaders killed or stopped",
        began.elapsed()
    );
}

/// Who leads, by the Lease.
fn leader(cluster: &Cluster) -> Option<String> {
    let lease = cluster.get("coordination.k8s.io/v1/Lease", "kube-system/fairway-controller")?;
    lease.pointer("/spec/holderIdentity")?.as_str().map(str::to_owned)
}

#[test]
fn a_folder_has_its_addresses_in_a_file_and_one_controller() {
    let folder = Folder::new("manifests");
    let logs = Folder::new("manifests-logs");
    folder.put(
        "pool.yaml",
        &pool("default", &json!([{"cidr": "192.0.2.0/30"}])).to_string(),
    );
    folder.put("app.yaml", MY_SPRING_APP);
    let dir = folder.0.display().to_string();
    let arguments = [
        "--manifests",
        &dir,
        "--service-cidrs",
        "10.96.0.0/16",
        "--metrics-address",
        "none",
    ];
    let mut running = controller("controller", &logs.0, &arguments);
    let written = |name: &str| {
        let text = std::fs::read_to_string(folder.0.join("fairway-addresses.yaml")).ok()?;
        let all: Vec<Value> = serde_saphyr::from_multiple(&text).expect("what is there is always whole");
        all.into_iter().find(|document| document["metadata"]["name"] == name)
    };
    let service = |name: &str| {
        poll("the Service has an address", PATIENCE, || {
            addresses(&written(name)?).into_iter().next()
        })
    };
    assert_eq!(service("my-spring-app"), "192.0.2.0");

    let mut second = controller("second", &logs.0, &arguments);
    let status = poll("the second one ends", PATIENCE, || second.ended());
    assert!(
        !status.success() && second.log().contains("is running already"),
        "{}",
        second.log()
    );

    folder.put("another.yaml", &MY_SPRING_APP.replace("my-spring-app", "a-spring-app"));
    assert_eq!(service("a-spring-app"), "192.0.2.1");
    assert_eq!(service("my-spring-app"), "192.0.2.0");
    running.must_run();
    running.kill();
    let mut running = controller("controller", &logs.0, &arguments);
    std::fs::remove_file(folder.0.join("another.yaml")).expect("it is there");
    poll("its address is free again", PATIENCE, || {
        running.must_run();
        (written("a-spring-app").is_none() && written("default")?["status"]["used"] == "1").then_some(())
    });
    assert_eq!(service("my-spring-app"), "192.0.2.0");
}
