//! `fairway crds`.

use std::io::Write as _;

use anyhow::Context as _;
use clap::ValueEnum;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

use crate::ipam::pool::AddressPool;

/// Print the definitions of Fairway's own kinds of objects, for `kubectl apply -f -`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// How they are printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum Output {
    /// One YAML document for each.
    #[default]
    Yaml,
    /// One JSON list.
    Json,
}

/// Prints them.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let text = match args.output {
        Output::Yaml => yaml()?,
        Output::Json => json()?,
    };
    // A reader that has seen enough (`| head`) is no failure.
    let _closed = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn definitions() -> [CustomResourceDefinition; 1] {
    [AddressPool::crd()]
}

fn yaml() -> anyhow::Result<String> {
    let mut text = String::new();
    for definition in definitions() {
        if !text.is_empty() {
            text.push_str("---\n");
        }
        text.push_str(&serde_saphyr::to_string(&definition).context("write YAML")?);
    }
    Ok(text)
}

fn json() -> anyhow::Result<String> {
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": definitions()});
    Ok(serde_json::to_string_pretty(&list).context("write JSON")? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_for_kubectl_is_what_is_printed() {
        assert!(
            include_str!("../../../deploy/crds.yaml") == yaml().expect("it is written"),
            "renew it: `fairway crds > deploy/crds.yaml`"
        );
    }

    #[test]
    fn both_forms_say_the_same() {
        let yaml: Vec<serde_json::Value> = serde_saphyr::from_multiple(&yaml().expect("it is written")).expect("YAML");
        let json: serde_json::Value = serde_json::from_str(&json().expect("it is written")).expect("JSON");
        assert_eq!(serde_json::Value::Array(yaml), json["items"]);
    }

    #[test]
    fn the_definition_says_how_blocks_are_written() {
        let json: serde_json::Value = serde_json::from_str(&json().expect("it is written")).expect("JSON");
        let schema = "/items/0/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/blocks";
        let blocks = json.pointer(schema).expect("there are blocks");
        assert!(
            blocks["items"]["x-kubernetes-validations"][0]["rule"].is_string(),
            "{blocks}"
        );
        assert_eq!(
            json.pointer("/items/0/spec/versions/0/subresources/status"),
            Some(&serde_json::json!({}))
        );
    }
}
