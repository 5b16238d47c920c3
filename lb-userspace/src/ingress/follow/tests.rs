use std::sync::Mutex;

use super::state::Change;
use super::*;
use crate::ingress::objects::fixtures::{objects, told};
use crate::ingress::objects::{Ingress, Objects};

/// Remembers what was published.
#[derive(Default)]
struct Seen(Mutex<Vec<(usize, String)>>);

impl Observer for Seen {
    fn published(&self, hosts: usize, _routes: usize, problems: &[Problem], took: Duration) {
        println!("{hosts} hosts were built in {took:?}");
        self.0.lock().expect("nobody panicked").push((hosts, told(problems)));
    }
}

fn source(origin: Origin) -> Source {
    Source {
        origin,
        class: ClassOptions {
            without_class: true,
            ..ClassOptions::default()
        },
        upstream: Upstream::Service,
        default_certificate: None,
        publish_service: Some(ObjectKey::new("default", "front")),
        instance: "test".into(),
    }
}

fn empty() -> Arc<ArcSwap<Config>> {
    Arc::new(ArcSwap::from_pointee(
        Config::empty().expect("a certificate can be made"),
    ))
}

struct Running {
    news: mpsc::Sender<News>,
    config: Arc<ArcSwap<Config>>,
    ready: watch::Receiver<bool>,
    seen: Arc<Seen>,
    wanted: watch::Receiver<status::Wanted>,
}

/// A publisher that is told of objects by hand.
fn publisher() -> Running {
    let (news, inbox) = mpsc::channel(QUEUE);
    let (ready, is_ready) = watch::channel(false);
    let (problems, _) = watch::channel(Vec::new());
    let (wanted, wanted_now) = watch::channel(status::Wanted::default());
    let (config, seen) = (empty(), Arc::new(Seen::default()));
    let source = source(Origin::Manifests {
        dir: PathBuf::new(),
        service_cidrs: Vec::new(),
    });
    let publisher = Publisher {
        state: State::new(&source, config.load().certificates.default_certificate()),
        source,
        config: Arc::clone(&config),
        ready,
        observer: Arc::clone(&seen) as Arc<dyn Observer>,
        problems,
        wanted,
        told: HashSet::new(),
        ours: HashSet::new(),
        leaving: HashSet::new(),
    };
    tokio::spawn(publisher.run(inbox));
    Running {
        news,
        config,
        ready: is_ready,
        seen,
        wanted: wanted_now,
    }
}

fn manifests(count: usize) -> String {
    let service = "kind: Service\nmetadata: {name: web}\nspec: {clusterIPs: [10.96.0.1], ports: [{port: 80}]}\n";
    let ingresses = (0..count).map(|number| ingress(&format!("h{number}.com"), number));
    std::iter::once(service.to_owned()).chain(ingresses).collect()
}

fn ingress(host: &str, number: usize) -> String {
    format!(
        "---\nkind: Ingress\nmetadata: {{name: web-{number}}}\nspec: {{rules: [{{host: {host}, http: {{paths: [\
         {{path: /, pathType: Prefix, backend: {{service: {{name: web, port: {{number: 80}}}}}}}}]}}}}]}}\n"
    )
}

fn list<T: Clone>(objects: &std::collections::BTreeMap<ObjectKey, Arc<T>>) -> Vec<T> {
    objects.values().map(|object| T::clone(object)).collect()
}

fn one(yaml: &str) -> Ingress {
    let all = objects(yaml);
    list(&all.ingresses).remove(0)
}

/// Waits until a request for the host is for the backend, or for none.
async fn served(config: &ArcSwap<Config>, host: &str, wanted: bool) {
    let served = async {
        while config.load().table.route(host, "/").is_some() != wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), served)
        .await
        .unwrap_or_else(|_| panic!("{host} served: {wanted}, not within 20 s"));
}

#[tokio::test]
async fn nothing_is_published_before_every_kind_is_listed() {
    let mut running = publisher();
    let Objects {
        ingresses, services, ..
    } = objects(&manifests(1));
    let first = [
        News::Ingresses(Change::All(list(&ingresses))),
        News::Services(Change::All(list(&services))),
        News::Classes(Change::All(Vec::new())),
        News::Slices(Change::All(Vec::new())),
    ];
    for news in first {
        running.news.send(news).await.expect("it listens");
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!*running.ready.borrow() && running.seen.0.lock().expect("nobody panicked").is_empty());
    running
        .news
        .send(News::Secrets(Change::All(Vec::new())))
        .await
        .expect("it listens");
    running.ready.wait_for(|ready| *ready).await.expect("it becomes ready");
    served(&running.config, "h0.com", true).await;
    assert_eq!(*running.seen.0.lock().expect("nobody panicked"), [(1, String::new())]);
    assert!(running.wanted.has_changed().expect("it runs"));
}

/// Prints how long a change of one Ingress among 1,000 takes.
#[tokio::test]
async fn a_lone_change_among_a_thousand_is_published_at_once() {
    let mut running = publisher();
    let all = objects(&manifests(1000));
    running
        .news
        .send(News::Everything(Box::new(all), Vec::new()))
        .await
        .expect("it listens");
    running.ready.wait_for(|ready| *ready).await.expect("it becomes ready");
    tokio::time::sleep(Duration::from_millis(500)).await;
    for round in 0..3 {
        let host = format!("new-{round}.com");
        let changed = one(&ingress(&host, 7));
        let began = Instant::now();
        running
            .news
            .send(News::Ingresses(Change::One(changed)))
            .await
            .expect("it listens");
        served(&running.config, &host, true).await;
        println!("a change among 1,000 Ingresses is served after {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    running
        .news
        .send(News::Ingresses(Change::Gone(ObjectKey::new("default", "web-7"))))
        .await
        .expect("it listens");
    served(&running.config, "new-2.com", false).await;
    served(&running.config, "h8.com", true).await;
}

#[tokio::test]
async fn a_burst_is_published_a_few_times_only() {
    let mut running = publisher();
    running
        .news
        .send(News::Everything(Box::new(objects(&manifests(500))), Vec::new()))
        .await
        .expect("it listens");
    running.ready.wait_for(|ready| *ready).await.expect("it becomes ready");
    for number in 0..500 {
        let changed = one(&ingress(&format!("burst-{number}.com"), number));
        running
            .news
            .send(News::Ingresses(Change::One(changed)))
            .await
            .expect("it listens");
    }
    served(&running.config, "burst-499.com", true).await;
    let published = running.seen.0.lock().expect("nobody panicked").len();
    println!("500 changes were published {published} times");
    assert!(published < 400, "{published}");
}

#[tokio::test]
async fn what_changes_nothing_is_not_published() {
    let mut running = publisher();
    running
        .news
        .send(News::Everything(Box::new(objects(&manifests(2))), Vec::new()))
        .await
        .expect("it listens");
    running.ready.wait_for(|ready| *ready).await.expect("it becomes ready");
    let same = one(&ingress("h1.com", 1));
    running
        .news
        .send(News::Ingresses(Change::One(same)))
        .await
        .expect("it listens");
    running
        .news
        .send(News::Ingresses(Change::Gone(ObjectKey::new("default", "unknown"))))
        .await
        .expect("it listens");
    let other = one(&ingress("other.com", 1));
    running
        .news
        .send(News::Ingresses(Change::One(other)))
        .await
        .expect("it listens");
    served(&running.config, "other.com", true).await;
    assert_eq!(running.seen.0.lock().expect("nobody panicked").len(), 2);
}

#[tokio::test]
async fn a_folder_is_followed_and_gets_the_status() {
    let dir = std::env::temp_dir().join(format!("fairway-ingress-follow-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the folder for temporary files can be written");
    let front = "kind: Service\nmetadata: {name: front}\nspec: {type: LoadBalancer, ports: [{port: 80}]}\n---\n";
    let addresses = "kind: Service\nmetadata: {name: front}\nstatus: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n";
    let web = "kind: Service\nmetadata: {name: my-spring-app}\nspec: {ports: [{port: 80, targetPort: 8080}]}\n---\n";
    // As a user writes it: no namespace, no class.
    let ingress = "
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
    std::fs::write(dir.join("all.yaml"), format!("{front}{web}{ingress}")).expect("it can be written");
    let (config, seen) = (empty(), Arc::new(Seen::default()));
    let (ready, mut is_ready) = watch::channel(false);
    let origin = Origin::Manifests {
        dir: dir.clone(),
        service_cidrs: vec![
            "10.96.0.0/16".parse().expect("a range"),
            "fd00::/112".parse().expect("a range"),
        ],
    };
    let task = tokio::spawn(run(
        source(origin),
        Arc::clone(&config),
        ready,
        Arc::clone(&seen) as Arc<dyn Observer>,
    ));
    is_ready.wait_for(|ready| *ready).await.expect("it becomes ready");
    let backend = Arc::clone(
        &config
            .load()
            .table
            .route("myapp.example.com", "/hello")
            .expect("it is served")
            .backend,
    );
    assert_eq!(
        (backend.service.to_string(), backend.addrs.len()),
        ("default/my-spring-app:80".replace(":80", ""), 1)
    );
    assert_eq!(seen.0.lock().expect("nobody panicked")[0], (1, String::new()));

    std::fs::write(dir.join("fairway-addresses.yaml"), addresses).expect("it can be written");
    let file = dir.join("fairway-ingresses.yaml");
    let until = |what: &'static str, is_so: Box<dyn Fn() -> bool>| async move {
        let wait = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .unwrap_or_else(|_| panic!("{what}: not within 20 s"));
    };
    let path = file.clone();
    until(
        "the status is written",
        Box::new(move || std::fs::read_to_string(&path).is_ok_and(|text| text.contains("192.0.2.1"))),
    )
    .await;
    std::fs::remove_file(dir.join("fairway-addresses.yaml")).expect("it is there");
    until("the status is cleared", Box::new(move || !file.exists())).await;
    std::fs::write(dir.join("all.yaml"), format!("{front}{web}")).expect("it can be written");
    served(&config, "myapp.example.com", false).await;

    // What cannot be read changes nothing.
    std::fs::write(dir.join("all.yaml"), format!("{front}{web}{ingress}")).expect("it can be written");
    served(&config, "myapp.example.com", true).await;
    std::fs::write(dir.join("all.yaml"), "kind: [").expect("it can be written");
    let problems = Arc::clone(&seen);
    until(
        "the file is told of",
        Box::new(move || {
            let seen = problems.0.lock().expect("nobody panicked");
            seen.last().is_some_and(|(_, problems)| problems.contains("all.yaml"))
        }),
    )
    .await;
    assert!(config.load().table.route("myapp.example.com", "/").is_some());
    task.abort();
    std::fs::remove_dir_all(&dir).expect("it is there");
}
