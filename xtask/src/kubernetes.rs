//! Real Kubernetes components for tests: a kube-apiserver with its etcd and its controller manager and, to compare with
//! and to look around, kube-proxy and kubectl.
//!
//! They are built from their Go modules (`xtask/kubernetes/go.mod` pins Kubernetes and names every staging module by
//! its published version, since `go install` refuses modules with replace directives) and kept in
//! `target/kubernetes/<versions>/`. Cold, the API server alone takes 3 to 4 minutes on two cores; what is there
//! already costs nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::process;

/// Which programs to bring.
#[derive(Args)]
pub struct Options {
    /// The programs, separated by commas. Default: all.
    #[arg(long, value_enum, value_delimiter = ',')]
    components: Vec<Component>,
}

/// Brings the programs and prints the folder that they are in.
///
/// # Errors
/// See [`ensure_components`].
pub fn run(options: &Options) -> Result<()> {
    let components = if options.components.is_empty() {
        &Component::ALL
    } else {
        options.components.as_slice()
    };
    println!("{}", ensure_components(components)?.display());
    Ok(())
}

/// A program of Kubernetes, or its store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Component {
    /// The API server.
    KubeApiserver,
    /// The store of the API server.
    Etcd,
    /// Makes EndpointSlices from Services and Pods, among others.
    KubeControllerManager,
    /// What Fairway replaces: the peer in measurements.
    KubeProxy,
    /// The command line.
    Kubectl,
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::KubeApiserver,
        Self::Etcd,
        Self::KubeControllerManager,
        Self::KubeProxy,
        Self::Kubectl,
    ];
    /// Those that the tests need.
    pub const FOR_TESTS: [Self; 4] = [
        Self::KubeApiserver,
        Self::Etcd,
        Self::KubeControllerManager,
        Self::Kubectl,
    ];

    /// Name of the program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::KubeApiserver => "kube-apiserver",
            Self::Etcd => "etcd",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeProxy => "kube-proxy",
            Self::Kubectl => "kubectl",
        }
    }
}

/// The folder with what the tests need ([`Component::FOR_TESTS`]), built first if it is not there.
///
/// # Errors
/// See [`ensure_components`].
pub fn ensure() -> Result<PathBuf> {
    ensure_components(&Component::FOR_TESTS)
}

/// The folder with these programs, built first if they are not there.
///
/// Where `KUBEBUILDER_ASSETS` is set and its folder has all of them, that folder is taken.
///
/// # Errors
/// If Go is missing, or a build fails.
pub fn ensure_components(components: &[Component]) -> Result<PathBuf> {
    let missing_in = |dir: &Path| -> Vec<Component> {
        let there = |component: &Component| dir.join(component.program()).is_file();
        components
            .iter()
            .copied()
            .filter(|component| !there(component))
            .collect()
    };

    if let Some(assets) = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) {
        let missing = missing_in(&assets);
        if missing.is_empty() {
            return Ok(assets);
        }
        let names: Vec<_> = missing.iter().map(|component| component.program()).collect();
        eprintln!(
            "KUBEBUILDER_ASSETS={} lacks {}: building our own instead",
            assets.display(),
            names.join(", ")
        );
    }

    let modules = process::workspace().join("xtask/kubernetes");
    let versions = Versions::required_by(&modules)?;
    let out = versions.folder();
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;

    for component in missing_in(&out) {
        build(component, &modules, &versions.kubernetes, &out)?;
    }
    Ok(out)
}

/// Where [`ensure`] puts what it builds.
///
/// # Errors
/// If the modules cannot be read.
pub fn folder() -> Result<PathBuf> {
    Ok(Versions::required_by(&process::workspace().join("xtask/kubernetes"))?.folder())
}

/// What the modules pin.
struct Versions {
    kubernetes: String,
    etcd: String,
}

impl Versions {
    fn required_by(modules: &Path) -> Result<Self> {
        Ok(Self {
            kubernetes: required_version(&modules.join("go.mod"), "k8s.io/kubernetes")?,
            etcd: required_version(&modules.join("etcd/go.mod"), "go.etcd.io/etcd/server/v3")?,
        })
    }

    fn folder(&self) -> PathBuf {
        process::target_dir().join(format!("kubernetes/{}-etcd-{}", self.kubernetes, self.etcd))
    }
}

/// Builds one program. Its name appears in `out` only when it is complete, so an interrupted build is made again.
fn build(component: Component, modules: &Path, kubernetes: &str, out: &Path) -> Result<()> {
    let program = component.program();
    let (dir, package) = match component {
        Component::Etcd => (modules.join("etcd"), "go.etcd.io/etcd/server/v3".to_owned()),
        _ => (modules.to_owned(), format!("k8s.io/kubernetes/cmd/{program}")),
    };
    // The version that the program tells: clients decide by it what the server can do.
    let minor = kubernetes.split('.').nth(1).unwrap_or("0");
    let version = "k8s.io/component-base/version";
    let ldflags = match component {
        Component::Etcd => "-s -w".to_owned(),
        _ => {
            format!("-s -w -X {version}.gitVersion={kubernetes} -X {version}.gitMajor=1 -X {version}.gitMinor={minor}")
        }
    };

    if process::find("go").is_none() {
        bail!(
            "go is missing: {program} is built from its Go module; install Go 1.26 or newer, or set KUBEBUILDER_ASSETS \
             to a folder with the programs"
        );
    }
    let partial = out.join(format!(".{program}.{}", std::process::id()));
    let mut go = Command::new("go");
    go.args(["build", "-trimpath", "-buildvcs=false", "-ldflags", &ldflags, "-o"])
        .arg(&partial)
        .arg(&package)
        .current_dir(&dir)
        .env("CGO_ENABLED", "0");
    let built = process::step(
        &format!("Building {program} (minutes at the first time; afterwards it is kept)"),
        &mut go,
    );
    if built.is_err() {
        let _ = fs::remove_file(&partial);
    }
    built?;
    fs::rename(&partial, out.join(program)).with_context(|| format!("cannot put {program} into {}", out.display()))
}

/// The version of `module` that `go_mod` requires.
fn required_version(go_mod: &Path, module: &str) -> Result<String> {
    let text = fs::read_to_string(go_mod).with_context(|| format!("cannot read {}", go_mod.display()))?;
    let mut versions = text.lines().filter_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten()
    });
    let version = versions
        .next()
        .with_context(|| format!("{} does not require {module}", go_mod.display()))?;
    ensure!(
        version.starts_with('v'),
        "{module} has the version {version:?} in {}",
        go_mod.display()
    );
    Ok(version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_to_build_are_read_from_the_modules() {
        let versions =
            Versions::required_by(&process::workspace().join("xtask/kubernetes")).expect("both are required");
        assert!(versions.kubernetes.starts_with("v1."), "{}", versions.kubernetes);
        assert!(versions.etcd.starts_with("v3."), "{}", versions.etcd);
    }
}
