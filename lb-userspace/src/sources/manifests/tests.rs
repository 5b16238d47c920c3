use std::path::Path;

use super::*;

/// A folder that is removed in the end.
struct TestFolder(PathBuf);

impl TestFolder {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("fairway-manifests-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("temporary folder");
        Self(dir)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).expect("temporary file");
    }

    fn options(&self) -> Options {
        Options {
            dir: self.0.clone(),
            node_name: "node-1".into(),
            service_cidrs: vec![
                "10.96.0.0/16".parse().expect("range"),
                "fd00:96::/108".parse().expect("range"),
            ],
        }
    }

    fn read(&self) -> Objects {
        read(&self.options()).expect("the folder is there")
    }
}

impl Drop for TestFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn service(name: &str, spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn messages(objects: &Objects) -> Vec<String> {
    let text = |problem: &Problem| problem.to_string();
    let own = objects.problems.iter().map(text);
    own.chain(objects.services.iter().flat_map(|s| s.problems.iter().map(text)))
        .collect()
}

#[test]
fn documents_lists_and_json_are_read_and_other_kinds_ignored() {
    let folder = TestFolder::new("kinds");
    folder.write(
        "a.yaml",
        &format!(
            "{}{}",
            service("one", "{ports: [{port: 80}]}"),
            service("two", "{ports: [{port: 80}]}")
        ),
    );
    folder.write(
        "b.yml",
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: three}, spec: {ports: [{port: 1}]}}\n\
         - {apiVersion: v1, kind: Node, metadata: {name: node-1}}\n- {apiVersion: apps/v1, kind: Deployment, metadata: {name: x}}\n",
    );
    folder.write(
        "c.json",
        r#"{"kind": "ServiceList", "apiVersion": "v1", "items": [{"metadata": {"name": "four"}, "spec": {"ports": [{"port": 1}]}}]}"#,
    );
    folder.write("notes.txt", "not: [a manifest");
    folder.write(".hidden.yaml", "not: [a manifest");
    let objects = folder.read();
    let names: Vec<&str> = objects.services.iter().map(|s| &*s.key.name).collect();
    assert_eq!(names, ["four", "one", "three", "two"]);
    assert!(objects.node.is_some());
    assert_eq!(messages(&objects), Vec::<String>::new());
}

#[test]
fn what_an_api_server_fills_in_is_filled_in() {
    let folder = TestFolder::new("defaults");
    folder.write("a.yaml", &service("web", "{type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80}, {name: u, port: 80, protocol: UDP}]}"));
    folder.write(
        "b.yaml",
        &service("dual", "{ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}"),
    );
    folder.write(
        "c.yaml",
        &service(
            "given",
            "{clusterIP: 10.96.7.7, type: NodePort, ports: [{port: 80, nodePort: 31000}]}",
        ),
    );
    folder.write("d.yaml", &service("six", "{ipFamilies: [IPv6], ports: [{port: 80}]}"));
    folder.write("e.yaml", &service("none", "{clusterIP: None, ports: [{port: 80}]}"));
    let objects = folder.read();
    assert_eq!(messages(&objects), Vec::<String>::new());
    let [dual, given, none, six, web] = &objects.services[..] else {
        panic!("five Services")
    };
    assert_eq!(web.cluster_ips.len(), 1);
    assert!(web.cluster_ips[0].is_ipv4());
    assert!((30_000..=32_767).contains(&web.ports[0].node_port));
    assert_eq!(
        web.ports[0].node_port, web.ports[1].node_port,
        "one number for both protocols"
    );
    assert!((30_000..=32_767).contains(&web.health_check_node_port));
    assert_ne!(web.health_check_node_port, web.ports[0].node_port);
    assert_eq!(dual.cluster_ips.len(), 2);
    assert_eq!(
        given.cluster_ips,
        ["10.96.7.7".parse::<std::net::IpAddr>().expect("address")]
    );
    assert_eq!(given.ports[0].node_port, 31_000);
    assert!(six.cluster_ips[0].is_ipv6());
    assert!(none.cluster_ips.is_empty());
}

#[test]
fn assignments_are_the_same_every_time_and_stay_when_others_come_and_go() {
    let folder = TestFolder::new("stable");
    let spec = "{type: NodePort, ports: [{port: 80}]}";
    let all: Vec<String> = (0..40).map(|n| service(&format!("s{n}"), spec)).collect();
    folder.write("a.yaml", &all.concat());
    let before = folder.read();
    assert_eq!(before, folder.read());
    folder.write("a.yaml", &all[..20].concat());
    let after = folder.read();
    let kept = after
        .services
        .iter()
        .filter(|service| before.services.contains(service))
        .count();
    assert!(kept >= 19, "{kept} of 20 kept what they had");
    let addrs: HashSet<_> = before.services.iter().flat_map(|s| &s.cluster_ips).collect();
    let ports: HashSet<_> = before.services.iter().map(|s| s.ports[0].node_port).collect();
    assert_eq!((addrs.len(), ports.len()), (40, 40));
}

#[test]
fn explicit_values_are_never_given_to_others() {
    let folder = TestFolder::new("explicit");
    folder.write("a.yaml", &service("web", "{type: NodePort, ports: [{port: 80}]}"));
    let before = folder.read();
    let (addr, port) = (before.services[0].cluster_ips[0], before.services[0].ports[0].node_port);
    folder.write(
        "z.yaml",
        &service(
            "zzz",
            &format!("{{type: NodePort, clusterIP: {addr}, ports: [{{port: 80, nodePort: {port}}}]}}"),
        ),
    );
    let after = folder.read();
    assert_ne!(after.services[0].cluster_ips[0], addr);
    assert_ne!(after.services[0].ports[0].node_port, port);
    assert_eq!(after.services[1].cluster_ips[0], addr);
}

#[test]
fn without_ranges_a_service_that_lacks_a_cluster_ip_is_reported() {
    let folder = TestFolder::new("no-ranges");
    folder.write(
        "a.yaml",
        &format!(
            "{}{}",
            service("web", "{ports: [{port: 80}]}"),
            service("ok", "{clusterIP: 10.0.0.1, ports: [{port: 80}]}")
        ),
    );
    let objects = read(&Options {
        service_cidrs: Vec::new(),
        ..folder.options()
    })
    .expect("folder");
    assert_eq!(
        messages(&objects),
        [
            "Service default/web: spec.clusterIPs: it has no ClusterIP; write one down, or start the agent with \
          --service-cidrs to have it assigned"
        ]
    );
    assert_eq!(objects.services.iter().filter(|s| !s.cluster_ips.is_empty()).count(), 1);
}

#[test]
fn a_status_alone_is_merged_onto_the_service() {
    let folder = TestFolder::new("status");
    let status =
        "apiVersion: v1\nkind: Service\nmetadata: {name: NAME}\nstatus: {loadBalancer: {ingress: [{ip: 192.0.2.9}]}}\n";
    folder.write("a-status.yaml", &status.replace("NAME", "web"));
    folder.write("b.yaml", &service("web", "{type: LoadBalancer, ports: [{port: 80}]}"));
    folder.write("c-status.yaml", &status.replace("NAME", "nobody"));
    let objects = folder.read();
    assert_eq!(objects.services.len(), 1);
    assert_eq!(objects.services[0].load_balancer_ips.len(), 1);
    assert_eq!(objects.problems.len(), 1);
    assert_eq!(objects.problems[0].field, "Service default/nobody");
}

#[test]
fn a_file_that_does_not_parse_is_reported_and_its_last_good_content_stays() {
    let folder = TestFolder::new("broken");
    folder.write("a.yaml", &service("web", "{clusterIP: 10.0.0.1, ports: [{port: 80}]}"));
    folder.write("b.yaml", &service("ok", "{clusterIP: 10.0.0.2, ports: [{port: 80}]}"));
    let options = folder.options();
    let mut manifests = Manifests::new(options.dir.clone(), options.service_cidrs.clone());
    let mut read = || light(manifests.read().expect("folder"), &options.node_name);
    let good = read();
    for broken in [
        "spec: [",
        "just text",
        "kind: Service\nmetadata: {name: web}\nspec: {ports: [{port: eighty}]}",
        &format!(
            "{}---\nmetadata: {{}}\n",
            service("web", "{clusterIP: 10.0.0.9, ports: [{port: 80}]}")
        ),
    ] {
        folder.write("a.yaml", broken);
        let objects = read();
        assert_eq!(objects.services, good.services, "{broken}");
        assert_eq!(objects.problems.len(), 1, "{broken}");
        assert!(
            objects.problems[0]
                .message
                .ends_with("(its last good content stays in use)")
        );
    }
    folder.write("a.yaml", &service("web", "{clusterIP: 10.0.0.3, ports: [{port: 80}]}"));
    let objects = read();
    assert!(objects.problems.is_empty());
    assert_ne!(objects.services, good.services);
    std::fs::remove_file(folder.0.join("a.yaml")).expect("remove");
    assert_eq!(read().services.len(), 1);
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let options = Options {
        dir: Path::new("/nonexistent/fairway").into(),
        node_name: "n".into(),
        service_cidrs: Vec::new(),
    };
    assert!(read(&options).is_err());
}

#[test]
fn a_file_may_be_half_written_until_it_is_closed_renamed_or_removed() {
    use notify::event::{
        AccessKind, AccessMode, CreateKind, DataChange, EventKind, MetadataKind, ModifyKind, RemoveKind, RenameMode,
    };
    let created = EventKind::Create(CreateKind::File);
    let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
    let renamed = EventKind::Modify(ModifyKind::Name(RenameMode::To));
    let removed = EventKind::Remove(RemoveKind::File);
    let read = EventKind::Access(AccessKind::Close(AccessMode::Read));
    let protected = EventKind::Modify(ModifyKind::Metadata(MetadataKind::Permissions));
    let mut unfinished = Unfinished::default();
    // What happens to which file, whether that is a change, and how many files may be half written then.
    let steps = [
        (created, "a", true, 1),
        (written, "a", true, 1),
        (written, "b", true, 2),
        (read, "a", false, 2),
        (protected, "a", true, 2),
        (closed, "a", true, 1),
        (removed, "b", true, 0),
        (renamed, "c", true, 0),
        (read, "c", false, 0),
        (protected, "c", true, 0),
    ];
    for (kind, path, change, files) in steps {
        let event = notify::Event::new(kind).add_path(path.into());
        assert_eq!(unfinished.take(&event), change, "{kind:?} of {path}");
        assert_eq!(unfinished.0.len(), files, "{kind:?} of {path}");
    }
}

#[tokio::test]
async fn every_change_of_the_folder_is_told() {
    let folder = TestFolder::new("watch");
    folder.write("a.yaml", &service("web", "{clusterIP: 10.0.0.1, ports: [{port: 80}]}"));
    let (sender, mut receiver) = mpsc::channel(16);
    let task = tokio::spawn(run(folder.options(), sender));
    let mut next = async || loop {
        let event = timeout(Duration::from_secs(10), receiver.recv())
            .await
            .expect("in time")
            .expect("event");
        if let Event::Services(services) = event {
            break services.iter().map(|s| s.key.name.to_string()).collect::<Vec<_>>();
        }
    };
    assert_eq!(next().await, ["web"]);
    folder.write("b.yaml", &service("db", "{clusterIP: 10.0.0.2, ports: [{port: 80}]}"));
    assert_eq!(next().await, ["db", "web"]);
    std::fs::rename(folder.0.join("a.yaml"), folder.0.join("a.off")).expect("rename");
    assert_eq!(next().await, ["db"]);
    drop(receiver);
    task.await.expect("task").expect("source");
}
