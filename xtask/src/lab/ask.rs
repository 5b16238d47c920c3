//! A request on every path that the Services of the examples have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{bail, ensure};

use super::Lab;
use super::paths::{self, Case, Door, Service};
use super::plan::{NODES, Place};
use super::programmed;
use super::report::{Flows, Report};
use super::wire::{Outcome, Task};

/// The most requests of one kind that are sent to meet every pod of a Service. With four pods one of them is missed
/// less often than once in a hundred million times.
const AT_MOST: usize = 80;

/// The two forms of the Service `my-spring-app`: a folder of examples each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Of type LoadBalancer.
    LoadBalancer,
    /// Of type ClusterIP.
    ClusterIp,
}

impl Form {
    /// Its folder in `examples/`.
    pub const fn folder(self) -> &'static str {
        match self {
            Self::LoadBalancer => "loadbalancer",
            Self::ClusterIp => "clusterip",
        }
    }
}

impl Lab {
    /// Gives the agents the manifests of a form, and sends requests on every path that its Services have.
    pub fn every_path(&mut self, examples: &Path, form: Form) -> anyhow::Result<Report> {
        self.use_manifests(&examples.join(form.folder()))?;
        let services = self.wait_for_services(form)?;
        let mut report = Report::default();
        self.announce(0)?;
        self.send(&paths::cases(&services, 0), &mut report)?;
        if form == Form::LoadBalancer {
            // The other node announces the addresses: that matters to those outside only.
            self.announce(1)?;
            let mut cases = paths::cases(&services, 1);
            cases.retain(|case| case.from == Place::Client && matches!(case.door, Door::LoadBalancer(_)));
            self.send(&cases, &mut report)?;
        }
        Ok(report)
    }

    fn send(&self, cases: &[Case], report: &mut Report) -> anyhow::Result<()> {
        let mut answers = Vec::new();
        for place in Place::ALL {
            // One process for those requests of a place that so many pods may answer.
            let mut by_pods: BTreeMap<usize, Vec<&Case>> = BTreeMap::new();
            for case in cases.iter().filter(|case| case.from == place) {
                by_pods.entry(case.pods().len()).or_default().push(case);
            }
            for (pods, cases) in by_pods {
                let requests = cases.iter().map(|case| case.request.clone()).collect();
                let Outcome::Answers(got) = self.ask(
                    place,
                    &Task::Spread {
                        requests,
                        pods,
                        at_most: AT_MOST,
                    },
                )?
                else {
                    bail!(
                        "the client in {} answered something else than it was asked",
                        place.name()
                    );
                };
                for case in cases {
                    let own: Vec<_> = got
                        .iter()
                        .filter(|answer| answer.request == case.request)
                        .cloned()
                        .collect();
                    let met: BTreeSet<_> = own
                        .iter()
                        .flat_map(|answer| &answer.result)
                        .map(|seen| &seen.pod)
                        .collect();
                    if met.len() < pods && own.iter().all(|answer| answer.result.is_ok()) {
                        let (name, target, sent) = (place.name(), case.request.target, own.len());
                        report
                            .failures
                            .push(format!("{name} -> {target}: of {sent} requests only {met:?} got any"));
                    }
                    answers.extend(own.into_iter().map(|answer| (case, answer)));
                }
            }
        }
        let mut flows = Flows::default();
        for node in 0..NODES.len() {
            flows.add(node, &self.observe(node, "flows")?);
        }
        for (case, answer) in &answers {
            report.add(self.network(), case, answer, &flows);
        }
        Ok(())
    }

    /// Waits until both agents have programmed the Services of a form, and tells where these can be reached.
    pub fn wait_for_services(&mut self, form: Form) -> anyhow::Result<Vec<Service>> {
        // What the manifests say themselves.
        let written = |name: &str, n: u16, local: bool| Service {
            name: name.to_owned(),
            cluster_ips: [
                format!("10.96.0.{n}").parse().ok(),
                format!("fd00:10:96::{n}").parse().ok(),
            ],
            load_balancer: match form {
                Form::LoadBalancer => [
                    format!("198.51.100.{n}").parse().ok(),
                    format!("2001:db8:100::{n}").parse().ok(),
                ],
                Form::ClusterIp => [None, None],
            },
            node_port: (form == Form::LoadBalancer).then_some(30000 + n),
            local,
            udp: true,
        };
        let mut services = vec![written("my-spring-app-dual", 81, false)];
        if form == Form::LoadBalancer {
            services.push(written("my-spring-app-local", 82, true));
        }
        // The document leaves ClusterIP and NodePort to the cluster, and here to the agents, who assign alike.
        let document = self.wait_until(|frontends| {
            for address in services
                .iter()
                .flat_map(|s| s.cluster_ips.iter().chain(&s.load_balancer))
                .flatten()
            {
                ensure!(
                    frontends.iter().any(|f| f.address.ip() == *address),
                    "{address} is not programmed"
                );
            }
            // One form of the document's Service has what the other has not.
            let node_port = frontends.iter().any(|f| f.kind == "NodePort");
            ensure!(
                node_port == (form == Form::LoadBalancer),
                "the manifests have not been read again"
            );
            programmed::document_service(frontends, form == Form::LoadBalancer)
        })?;
        services.push(document);
        Ok(services)
    }
}
