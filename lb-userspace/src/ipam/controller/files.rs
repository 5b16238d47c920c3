//! The controller on a folder of manifests: what an API server would keep in `status` is kept in one file of that folder.
//!
//! The file is the store, as statuses are in a cluster: what stands in it stays. So it is written as a whole to a hidden
//! file beside it, which then takes its place; and as long as it cannot be read nothing is decided.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::warn;

use super::report::{Report, Tidings};
use super::stopped;
use crate::ipam::allocate::{self, Decision, Input, Plan, allocate};
use crate::ipam::status;
use crate::model::Problem;
use crate::sources::manifests::Manifests;
use crate::sources::manifests::files::Objects;

/// The file that statuses are written to.
pub const FILE: &str = "fairway-addresses.yaml";
/// The same while it is being written.
const DRAFT: &str = ".fairway-addresses.yaml.draft";
/// Locked by the one controller of the folder.
const LOCK: &str = ".fairway-addresses.lock";
const HEAD: &str =
    "# Written by `fairway controller`: which Service has which address. What stands here stays, so keep the file.\n";
/// What was decided may make other things possible, so it is decided again at once; not for ever, though.
const ROUNDS: usize = 100;

/// Decides and writes whenever something in the folder changes, until the controller is to end.
pub(super) async fn run(
    dir: &Path,
    service_cidrs: Vec<IpNet>,
    settings: &allocate::Settings,
    report: &Report,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let _lock = lock(dir)?;
    readable(&dir.join(FILE))?;
    report.leads(true);
    let mut manifests = Manifests::new(dir.to_owned(), service_cidrs);
    manifests.watch();
    let mut tidings = Tidings::default();
    let mut first = true;
    loop {
        report.alive();
        match decide(&mut manifests, dir, settings, report, &mut tidings) {
            Ok(()) => first = false,
            Err(error) if first => return Err(error),
            Err(error) => warn!(
                error = format!("{error:#}"),
                "addresses could not be written; the last ones stay"
            ),
        }
        let round = std::time::Duration::from_secs(20);
        tokio::select! {
            () = manifests.changed() => {}
            // What failed is tried again, and whoever asks for health is answered.
            () = tokio::time::sleep(round) => {}
            () = stopped(&mut stopping) => return Ok(()),
        }
    }
}

/// Decides by what the folder holds until nothing changes any more.
fn decide(
    manifests: &mut Manifests,
    dir: &Path,
    settings: &allocate::Settings,
    report: &Report,
    tidings: &mut Tidings,
) -> anyhow::Result<()> {
    for _ in 0..ROUNDS {
        readable(&dir.join(FILE))?;
        let shown = manifests.read()?;
        let began = Instant::now();
        let mut plan = plan(&shown.objects, settings);
        report.decided(&plan, began.elapsed());
        // Its documents about Services that are gone are about to go.
        let own_file = |problem: &Problem| problem.object.name.ends_with(FILE);
        plan.problems
            .extend(shown.problems.into_iter().filter(|problem| !own_file(problem)));
        tidings.tell(&plan);
        if !write(dir, &documents(&shown.objects, &plan)?)? {
            break;
        }
    }
    Ok(())
}

fn plan(objects: &Objects, settings: &allocate::Settings) -> Plan {
    let namespaces = objects.namespaces.iter();
    let labels = namespaces.filter_map(|(key, namespace)| Some((&*key.name, namespace.metadata.labels.as_ref()?)));
    let input = Input {
        pools: objects.pools.values().collect(),
        namespaces: labels.collect(),
        services: objects.services.values().collect(),
    };
    allocate(&input, settings)
}

/// The text of the file.
fn documents(objects: &Objects, plan: &Plan) -> anyhow::Result<String> {
    let now = Timestamp::now();
    let services = plan.services.iter().filter_map(|(key, decision)| {
        let service = objects
            .services
            .get(key)
            .filter(|_| matches!(decision, Decision::Ours { .. }))?;
        Some(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": &*key.name, "namespace": &*key.namespace},
            "status": status::decided(service, decision, now),
        }))
    });
    let pools = objects.pools.iter().filter_map(|(key, pool)| {
        let tally = plan.pools.get(&*key.name)?;
        Some(json!({
            "apiVersion": "fairway.io/v1alpha1",
            "kind": "AddressPool",
            "metadata": {"name": &*key.name},
            "status": status::of_pool(pool, tally, now),
        }))
    });
    let mut text = HEAD.to_owned();
    for document in services.chain(pools) {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&document).context("write YAML")?);
    }
    Ok(text)
}

/// Puts the text into the file, if it is another than before; tells whether it was.
fn write(dir: &Path, text: &str) -> anyhow::Result<bool> {
    let (path, draft) = (dir.join(FILE), dir.join(DRAFT));
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    if before == text || before.is_empty() && text == HEAD {
        return Ok(false);
    }
    let write = || {
        let mut file = File::create(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&draft, &path)
    };
    write().with_context(|| format!("write {}", path.display()))?;
    Ok(true)
}

/// Fails if the file is there and cannot be understood: who has which address would be forgotten.
fn readable(path: &Path) -> anyhow::Result<()> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let read: Result<Vec<Value>, _> = serde_saphyr::from_multiple(&text);
    if let Err(error) = read {
        let error = error.to_string();
        bail!(
            "{} says which Service has which address and cannot be understood ({}): restore it, or remove it to have all \
             addresses given anew",
            path.display(),
            error.lines().next().unwrap_or_default()
        );
    }
    Ok(())
}

/// Locks the folder for this process, until the result is dropped or the process ends.
fn lock(dir: &Path) -> anyhow::Result<Flock<File>> {
    let path = dir.join(LOCK);
    let open = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let file = open.with_context(|| format!("open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::anyhow!(
            "a controller for the folder {} is running already ({error}): stop it, or give this one another folder",
            dir.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A folder that is removed when this is dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("fairway-ipam-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn put(&self, name: &str, text: &str) {
            std::fs::write(self.0.join(name), text).unwrap();
        }

        fn decide(&self) -> anyhow::Result<()> {
            let settings = allocate::Settings {
                class: "fairway.io/fairway".into(),
                only_class: false,
            };
            let mut manifests = Manifests::new(self.0.clone(), vec!["10.96.0.0/16".parse().unwrap()]);
            decide(
                &mut manifests,
                &self.0,
                &settings,
                &Report::new(),
                &mut Tidings::default(),
            )
        }

        fn file(&self) -> String {
            std::fs::read_to_string(self.0.join(FILE)).unwrap_or_default()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _gone = std::fs::remove_dir_all(&self.0);
        }
    }

    fn pool(cidr: &str) -> String {
        format!(
            "{{apiVersion: fairway.io/v1alpha1, kind: AddressPool, metadata: {{name: default}}, spec: {{blocks: [{{cidr: {cidr}}}]}}}}"
        )
    }

    fn service(name: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{type: LoadBalancer, ports: [{{port: 80}}]}}}}"
        )
    }

    #[test]
    fn a_service_keeps_its_address_over_restarts_and_whatever_comes_before_it() {
        let folder = Folder::new("keeps");
        folder.put("pool.yaml", &pool("192.0.2.0/30"));
        folder.put("web.yaml", &service("web"));
        folder.decide().unwrap();
        let first = folder.file();
        assert!(first.contains("192.0.2.0") && first.contains("VIP"), "{first}");
        assert!(first.contains("used: \"1\"") || first.contains("used: '1'"), "{first}");
        folder.decide().unwrap();
        assert_eq!(folder.file(), first, "nothing has changed");
        folder.put("api.yaml", &service("api"));
        folder.decide().unwrap();
        let objects = |folder: &Folder| Manifests::new(folder.0.clone(), Vec::new()).read().unwrap().objects;
        let addresses: Vec<_> = objects(&folder).services.values().flat_map(allocate::present).collect();
        let wanted: Vec<std::net::IpAddr> = ["192.0.2.1", "192.0.2.0"].map(|text| text.parse().unwrap()).into();
        assert_eq!(addresses, wanted, "api, then web");
        std::fs::remove_file(folder.0.join("web.yaml")).unwrap();
        folder.decide().unwrap();
        assert!(!folder.file().contains("192.0.2.0 of"), "{}", folder.file());
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_not_replaced() {
        let folder = Folder::new("broken");
        folder.put("pool.yaml", &pool("192.0.2.0/30"));
        folder.put(FILE, "a: [");
        let error = folder.decide().unwrap_err().to_string();
        assert!(error.contains("restore it"), "{error}");
        assert_eq!(folder.file(), "a: [");
    }

    #[test]
    fn a_folder_has_one_controller() {
        let folder = Folder::new("lock");
        let held = lock(&folder.0).unwrap();
        let error = lock(&folder.0).map(drop).unwrap_err().to_string();
        assert!(error.contains("is running already"), "{error}");
        drop(held);
        assert!(lock(&folder.0).is_ok());
    }
}
