//! The objects half of the Ingress controller against a real kube-apiserver: what becomes of Ingresses, which status they
//! get, what is told of them. No request is served here.

mod support;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use fairway::ingress::follow::{Observer, Origin, Source, run};
use fairway::ingress::objects::ClassOptions;
use fairway::ingress::table::{Config, Upstream};
use fairway::model::{ObjectKey, Problem};
use fairway::sources::kube::Access;
use serde_json::{Value, json};
use support::api_server::ApiServer;
use support::cluster::Cluster;
use support::{poll, skip};
use tokio::sync::watch;

/// Whatever is written has to have its effect within this.
const PATIENCE: Duration = Duration::from_secs(60);

/// As it stands in the description of how a request travels: without a class, without a namespace.
const MY_INGRESS: &str = "
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: my-ingress
spec:
  rules:
    - host: myapp.example.com
      http:
        paths:
          - path: /
            pathType: Prefix
            backend:
              service:
                name: my-spring-app
                port:
                  number: 80
";

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: my-spring-app}
spec:
  clusterIP: 172.30.0.80
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIPs: [172.30.0.80, 'fd00:172:30::80']
  selector: {app: my-spring-app}
  ports: [{protocol: TCP, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: front}
spec:
  type: LoadBalancer
  selector: {app: fairway-ingress}
  ports: [{port: 80}]
";

/// All that the controller is allowed to do, which is all that it needs.
fn role() -> [Value; 2] {
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    let read: &[&str] = &["get", "list", "watch"];
    let rules = json!([
        rule("", &["services", "secrets"], read),
        rule("discovery.k8s.io", &["endpointslices"], read),
        rule("networking.k8s.io", &["ingresses", "ingressclasses"], read),
        rule("networking.k8s.io", &["ingresses/status"], &["patch"]),
        rule("events.k8s.io", &["events"], &["create", "patch"]),
    ]);
    let group = "rbac.authorization.k8s.io";
    let version = format!("{group}/v1");
    [
        json!({"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": "ingress"}, "rules": rules}),
        json!({
            "apiVersion": version,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "ingress"},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "ingress"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": "agent"}],
        }),
    ]
}

/// The problems that were published last.
#[derive(Default)]
struct Seen(Mutex<Vec<String>>);

impl Observer for Seen {
    fn published(&self, _hosts: usize, _routes: usize, problems: &[Problem], _took: Duration) {
        *self.0.lock().expect("nobody panicked") = problems.iter().map(ToString::to_string).collect();
    }
}

/// What `fairway ingress` runs of this.
struct Controller {
    runtime: tokio::runtime::Runtime,
    config: Arc<ArcSwap<Config>>,
    ready: watch::Receiver<bool>,
    seen: Arc<Seen>,
}

impl Controller {
    fn start(kubeconfig: PathBuf, without_class: bool) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let config = Arc::new(ArcSwap::from_pointee(
            Config::empty().expect("a certificate can be made"),
        ));
        let seen = Arc::new(Seen::default());
        let (ready, is_ready) = watch::channel(false);
        let source = Source {
            origin: Origin::Api(Access::Kubeconfig(kubeconfig)),
            class: ClassOptions {
                without_class,
                ..ClassOptions::default()
            },
            upstream: Upstream::Service,
            default_certificate: None,
            publish_service: Some(ObjectKey::new("default", "front")),
            instance: "fairway-ingress-1".into(),
        };
        let (published, observer) = (Arc::clone(&config), Arc::clone(&seen) as Arc<dyn Observer>);
        runtime.spawn(async move {
            run(source, published, ready, observer)
                .await
                .expect("the kubeconfig is right");
        });
        Self {
            runtime,
            config,
            ready: is_ready,
            seen,
        }
    }

    fn until_ready(&self) {
        poll("the controller is ready", PATIENCE, || {
            self.ready.borrow().then_some(())
        });
    }

    /// The Service and the addresses to which a request goes.
    fn route(&self, host: &str, path: &str) -> Option<(String, Vec<String>)> {
        let config = self.config.load();
        let backend = &config.table.route(host, path)?.backend;
        Some((
            backend.service.name.to_string(),
            backend.addrs.iter().map(ToString::to_string).collect(),
        ))
    }

    fn until_routed(&self, what: &str, host: &str, path: &str, service: Option<&str>) {
        poll(what, PATIENCE, || {
            let routed = self.route(host, path).map(|(service, _)| service);
            (routed.as_deref() == service).then_some(())
        });
    }

    fn problems(&self) -> Vec<String> {
        self.seen.0.lock().expect("nobody panicked").clone()
    }

    fn stop(self) {
        self.runtime.shutdown_background();
    }
}

struct Fixture {
    server: ApiServer,
    cluster: Cluster,
    /// An administrator's, written once: programs read it at any time.
    kubeconfig: PathBuf,
}

impl Fixture {
    fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        let mut kubectl = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        let mut stdin = kubectl.stdin.take().expect("it is piped");
        stdin.write_all(input.as_bytes()).expect("it reads");
        drop(stdin);
        let output = kubectl.wait_with_output().expect("kubectl ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{arguments:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    fn apply(&self, manifests: &str) {
        self.kubectl(&["apply", "-f", "-"], manifests);
    }

    /// What `kubectl get ingress` shows as ADDRESS.
    fn address(&self, ingress: &str) -> String {
        let shown = self.kubectl(&["get", "ingress", ingress], "");
        let lines: Vec<&str> = shown.lines().collect();
        // Columns are told apart by where they begin: one without a value is blank.
        let columns: Vec<usize> = ["ADDRESS", "PORTS"]
            .iter()
            .filter_map(|title| lines[0].find(title))
            .collect();
        lines[1][columns[0]..columns[1]].trim().to_owned()
    }

    fn until_address(&self, what: &str, ingress: &str, address: &str) {
        poll(what, PATIENCE, || (self.address(ingress) == address).then_some(()));
    }

    fn until_event(&self, kind: &str, name: &str, reason: &str, part: &str) {
        poll(&format!("an Event {reason} of {kind} {name}"), PATIENCE, || {
            let events = self.cluster.list("events.k8s.io/v1/Event", "default");
            let found = events.iter().any(|event| {
                let text = |field: &str| event.pointer(field).and_then(Value::as_str).unwrap_or_default();
                text("/regarding/kind") == kind
                    && text("/regarding/name") == name
                    && text("/reason") == reason
                    && text("/note").contains(part)
            });
            found.then_some(())
        });
    }
}

fn fixture(test: &str) -> Option<Fixture> {
    if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        skip(test, "needs kubectl");
        return None;
    }
    match ApiServer::programs() {
        Ok(programs) => {
            let server = ApiServer::start(&programs);
            let cluster = Cluster::of(&server);
            let kubeconfig = server.kubeconfig();
            Some(Fixture {
                server,
                cluster,
                kubeconfig,
            })
        }
        Err(reason) => {
            skip(test, &reason);
            None
        }
    }
}

/// An Ingress for a host with this backend, and TLS with this Secret.
fn ingress(name: &str, host: &str, service: &str, secret: &str) -> String {
    let tls = if secret.is_empty() {
        String::new()
    } else {
        format!("tls: [{{hosts: [{host}], secretName: {secret}}}], ")
    };
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: {name}}}\nspec: {{{tls}rules: [{{host: {host}, \
         http: {{paths: [{{path: /, pathType: Prefix, backend: {{service: {{name: {service}, port: {{number: 80}}}}}}}}]}}}}]}}\n"
    )
}

#[test]
fn ingresses_are_served_and_told_of_and_have_the_addresses_of_the_controllers_service() {
    let Some(mut fixture) =
        fixture("ingresses_are_served_and_told_of_and_have_the_addresses_of_the_controllers_service")
    else {
        return;
    };
    fixture.apply(SERVICES);
    fixture.apply(MY_INGRESS);
    role().iter().for_each(|object| fixture.cluster.apply(object));
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.10"}, {"ip": "2001:db8::10"}]}}});
    fixture.cluster.patch("v1/Service", "default/front", "status", &status);

    let controller = Controller::start(fixture.server.kubeconfig_for("agent", fixture.server.port()), true);
    controller.until_ready();
    let addrs = ["172.30.0.80:80", "[fd00:172:30::80]:80"].map(str::to_owned).to_vec();
    assert_eq!(
        controller.route("myapp.example.com", "/hello"),
        Some(("my-spring-app".into(), addrs))
    );
    assert_eq!(controller.problems(), [""; 0]);
    fixture.until_address("the Ingress has the addresses", "my-ingress", "192.0.2.10,2001:db8::10");

    clash(&fixture, &controller);
    certificates(&fixture, &controller);
    headless(&fixture, &controller);
    api_away_and_back(&mut fixture, &controller);

    fixture.kubectl(&["delete", "service", "front"], "");
    fixture.until_address("the addresses go with the Service", "my-ingress", "");
    controller.stop();
}

fn clash(fixture: &Fixture, controller: &Controller) {
    // Times of creation are whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    fixture.apply(&ingress("clash", "myapp.example.com", "other", ""));
    fixture.until_event(
        "Ingress",
        "clash",
        "RuleConflict",
        "Ingress default/my-ingress, which is older",
    );
    fixture.until_event(
        "Ingress",
        "clash",
        "BackendNotFound",
        "there is no Service default/other",
    );
    controller.until_routed("the older one goes on", "myapp.example.com", "/", Some("my-spring-app"));
    fixture.kubectl(&["delete", "ingress", "clash"], "");
}

fn certificates(fixture: &Fixture, controller: &Controller) {
    let secret = |certificate: &str, key: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"namespace": "default", "name": "secure-cert"},
            "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": certificate, "tls.key": key},
        })
    };
    let made = rcgen::generate_simple_self_signed(["secure.example.com".to_owned()]).expect("it can be made");
    let other = rcgen::KeyPair::generate().expect("it can be made");
    fixture.apply(&ingress("secure", "secure.example.com", "my-spring-app", "secure-cert"));
    fixture.until_event(
        "Ingress",
        "secure",
        "BadCertificate",
        "there is no Secret default/secure-cert",
    );
    fixture.cluster.apply(&secret(&made.cert.pem(), &other.serialize_pem()));
    fixture.until_event(
        "Secret",
        "secure-cert",
        "BadCertificate",
        "the key is not that of the certificate",
    );
    fixture
        .cluster
        .apply(&secret(&made.cert.pem(), &made.signing_key.serialize_pem()));
    poll("the certificate is used", PATIENCE, || {
        let config = controller.config.load();
        let shown = config
            .certificates
            .find(Some("secure.example.com"))
            .expect("there is always one");
        (shown.cert[0] == *made.cert.der()).then_some(())
    });
    let config = controller.config.load();
    assert!(config.certificates.serves("secure.example.com") && !config.certificates.serves("myapp.example.com"));
    assert_eq!(controller.problems(), [""; 0]);
    fixture.until_address("it has the addresses too", "secure", "192.0.2.10,2001:db8::10");
}

fn headless(fixture: &Fixture, controller: &Controller) {
    fixture.apply(
        "
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: headless-1
  labels: {kubernetes.io/service-name: headless, service.kubernetes.io/headless: ''}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.244.1.10], conditions: {ready: true}}]
",
    );
    fixture.apply(&ingress("headless", "headless.example.com", "headless", ""));
    let wanted = Some(("headless".to_owned(), vec!["10.244.1.10:8080".to_owned()]));
    poll("a headless Service is served by its endpoints", PATIENCE, || {
        (controller.route("headless.example.com", "/") == wanted).then_some(())
    });
}

fn api_away_and_back(fixture: &mut Fixture, controller: &Controller) {
    fixture.server.stop();
    std::thread::sleep(Duration::from_secs(2));
    assert!(*controller.ready.borrow());
    for host in ["myapp.example.com", "secure.example.com", "headless.example.com"] {
        assert!(
            controller.route(host, "/").is_some_and(|(_, addrs)| !addrs.is_empty()),
            "{host} goes on"
        );
    }
    fixture.server.start_again();
    fixture.apply(&ingress("later", "later.example.com", "my-spring-app", ""));
    controller.until_routed(
        "what is written afterwards",
        "later.example.com",
        "/",
        Some("my-spring-app"),
    );
    fixture.kubectl(&["delete", "ingress", "later"], "");
    controller.until_routed("and what is deleted", "later.example.com", "/", None);
}

#[test]
fn classes_decide_whose_an_ingress_is_at_run_time_and_two_replicas_write_one_status() {
    let Some(fixture) = fixture("classes_decide_whose_an_ingress_is_at_run_time_and_two_replicas_write_one_status")
    else {
        return;
    };
    fixture.apply(SERVICES);
    let class = |name: &str, controller: &str| {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IngressClass",
            "metadata": {"name": name},
            "spec": {"controller": controller},
        })
    };
    fixture.cluster.apply(&class("other", "example.com/other"));
    let classed = |name: &str, class: &str| {
        ingress(name, &format!("{name}.example.com"), "my-spring-app", "")
            .replace("spec: {", &format!("spec: {{ingressClassName: {class}, "))
    };
    fixture.apply(&classed("ours", "fairway"));
    fixture.apply(&classed("others", "other"));
    fixture.apply(&ingress("plain", "plain.example.com", "my-spring-app", ""));
    let status = json!({"status": {"loadBalancer": {"ingress": [{"hostname": "lb.example.com"}]}}});
    fixture.cluster.patch("v1/Service", "default/front", "status", &status);

    let replicas = [(); 2].map(|()| Controller::start(fixture.kubeconfig.clone(), false));
    replicas.iter().for_each(Controller::until_ready);
    let controller = &replicas[0];
    assert_eq!(controller.route("ours.example.com", "/"), None);
    assert!(
        controller.problems()[0].contains("there is no IngressClass `fairway`"),
        "{:?}",
        controller.problems()
    );
    fixture.cluster.apply(&class("fairway", "fairway.io/ingress"));
    controller.until_routed("the class is there", "ours.example.com", "/", Some("my-spring-app"));
    for host in ["others.example.com", "plain.example.com"] {
        assert_eq!(controller.route(host, "/"), None, "{host}");
    }
    fixture.until_address("it has the name", "ours", "lb.example.com");
    let version = || {
        let object = fixture
            .cluster
            .get("networking.k8s.io/v1/Ingress", "default/ours")
            .expect("it is there");
        object["metadata"]["resourceVersion"]
            .as_str()
            .expect("it has one")
            .to_owned()
    };
    let before = version();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(version(), before, "nobody writes what is so already");
    assert_eq!(
        fixture.address("others") + &fixture.address("plain"),
        "",
        "what is not ours is left alone"
    );

    // Given to another controller, its status is no longer ours.
    let patch = json!({"spec": {"ingressClassName": "other"}});
    fixture
        .cluster
        .patch("networking.k8s.io/v1/Ingress", "default/ours", "", &patch);
    controller.until_routed("it is another's", "ours.example.com", "/", None);
    fixture.until_address("the status is cleared", "ours", "");
    replicas.into_iter().for_each(Controller::stop);
}

/// Prints how long it takes from a write to the API until it is served, with 1,000 Ingresses.
#[test]
fn a_thousand_ingresses_are_listed_and_a_change_of_one_is_served_soon() {
    let Some(fixture) = fixture("a_thousand_ingresses_are_listed_and_a_change_of_one_is_served_soon") else {
        return;
    };
    fixture.apply(SERVICES);
    let all: String = (0..1000)
        .map(|number| {
            ingress(
                &format!("web-{number}"),
                &format!("h{number}.example.com"),
                "my-spring-app",
                "",
            )
        })
        .collect();
    fixture.kubectl(&["create", "-f", "-"], &all);
    let began = Instant::now();
    let controller = Controller::start(fixture.kubeconfig.clone(), true);
    controller.until_ready();
    println!("1,000 Ingresses are listed and published after {:?}", began.elapsed());
    assert!(controller.route("h999.example.com", "/").is_some());
    let began = Instant::now();
    while (0..1000).any(|number| controller.route(&format!("h{number}.example.com"), "/").is_none()) {
        assert!(began.elapsed() < PATIENCE);
    }
    for round in 0..3 {
        let host = format!("changed-{round}.example.com");
        let patch = json!({"spec": {"rules": [{"host": host, "http": {"paths": [{
            "path": "/", "pathType": "Prefix", "backend": {"service": {"name": "my-spring-app", "port": {"number": 80}}},
        }]}}]}});
        let began = Instant::now();
        fixture
            .cluster
            .patch("networking.k8s.io/v1/Ingress", "default/web-7", "", &patch);
        let written = began.elapsed();
        controller.until_routed("the change", &host, "/", Some("my-spring-app"));
        println!(
            "a change is served after {:?}, of which the write takes {written:?}",
            began.elapsed()
        );
    }
    controller.stop();
}
