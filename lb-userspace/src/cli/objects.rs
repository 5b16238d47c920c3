//! The flags that say where objects come from.

use std::path::PathBuf;

use anyhow::ensure;

use crate::sources::kube::Access;

/// Where objects come from; `--service-cidrs` says something else to each process.
#[derive(clap::Args, Debug)]
pub struct Objects {
    /// Take objects from the YAML and JSON files of this folder, and follow its changes.
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig", help_heading = "Objects")]
    manifests: Option<PathBuf>,

    /// Take objects from the API that this kubeconfig's current context names.
    #[arg(long, value_name = "FILE", help_heading = "Objects")]
    kubeconfig: Option<PathBuf>,
}

/// Where objects come from.
pub enum Source {
    /// A folder that exists.
    Manifests(PathBuf),
    /// The Kubernetes API.
    Api(Access),
}

impl Objects {
    /// Where they come from.
    ///
    /// # Errors
    /// If the folder is none, or nothing is said outside a cluster.
    pub fn source(self) -> anyhow::Result<Source> {
        match (self.manifests, self.kubeconfig) {
            (Some(dir), _) => {
                ensure!(dir.is_dir(), "--manifests {} is not a folder", dir.display());
                Ok(Source::Manifests(dir))
            }
            (None, Some(file)) => Ok(Source::Api(Access::Kubeconfig(file))),
            (None, None) => {
                ensure!(
                    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
                    "this is not a pod of a cluster: give --manifests DIR or --kubeconfig FILE"
                );
                Ok(Source::Api(Access::InCluster))
            }
        }
    }
}
