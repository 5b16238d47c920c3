//! Brings the objects of the API server to what a stage of a round says.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use super::api::{ApiServer, Response};
use super::manifest::Manifest;

/// How long the API server may take to finish a deletion.
const DELETION: Duration = Duration::from_secs(10);

/// The objects that are there now.
#[derive(Debug, Default)]
pub struct Store {
    there: Vec<Manifest>,
}

/// What the API server thought of the objects.
#[derive(Debug, PartialEq, Eq)]
pub enum Applied {
    /// They are there.
    Yes,
    /// It refused one, with this reason.
    Refused(String),
}

impl Store {
    /// Deletes what is no longer wanted, and what is named to be made anew; then makes and replaces the rest.
    pub fn apply(&mut self, api: &ApiServer, wanted: &[Manifest], anew: &[String]) -> anyhow::Result<Applied> {
        let is_wanted = |there: &Manifest| wanted.iter().any(|manifest| manifest.path() == there.path());
        let gone: Vec<Manifest> = self
            .there
            .extract_if(.., |there| !is_wanted(there) || anew.contains(&there.path()))
            .collect();
        for manifest in &gone {
            delete(api, manifest)?;
        }
        for manifest in wanted {
            let path = manifest.path();
            let known = self.there.iter().position(|there| there.path() == path);
            if known.is_some_and(|index| self.there[index] == *manifest) {
                continue;
            }
            let mut response = match known {
                Some(_) => api.replace(&path, &manifest.object)?,
                None => api.create(&manifest.collection, &manifest.object)?,
            };
            if response.is_success()
                && let Some(status) = &manifest.status
            {
                response = api.patch(&format!("{path}/status"), &json!({ "status": status }))?;
            }
            let mut there = manifest.clone();
            let refused = !response.is_success();
            if refused {
                // Whatever of it is there will not be taken for what is wanted.
                there.object = Value::Null;
            }
            match known {
                Some(index) => self.there[index] = there,
                None => self.there.push(there),
            }
            if refused {
                return Ok(Applied::Refused(refusal(manifest, &response)));
            }
        }
        Ok(Applied::Yes)
    }
}

fn refusal(manifest: &Manifest, response: &Response) -> String {
    format!("{}: {} {}", manifest.path(), response.status, response.message())
}

fn delete(api: &ApiServer, manifest: &Manifest) -> anyhow::Result<()> {
    let path = manifest.path();
    api.delete(&path)?;
    let deadline = Instant::now() + DELETION;
    while api.get(&path)?.status != 404 {
        ensure!(Instant::now() < deadline, "{path} is not deleted after {DELETION:?}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
