//! From objects to a table.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::backends::Backends;
use super::{Paths, Route, Table, path};
use crate::ingress::objects::{BackendRef, Findings, Host, Ingress, Objects, PathKind, PathRule};
use crate::model::{ObjectKind, Problem, Reason};

/// Where requests are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Upstream {
    /// To the ClusterIPs of Services; the node's Service proxy chooses the endpoint. Headless Services have none, so
    /// requests for them are sent to endpoints.
    #[default]
    Service,
    /// To endpoints.
    Endpoints,
}

/// A table, and what is wrong with what it was built from.
#[derive(Debug)]
pub struct Built {
    /// The table.
    pub table: Table,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Builds the table of these Ingresses, the oldest first. It depends on the objects alone.
pub fn build(ours: &[&Arc<Ingress>], objects: &Objects, upstream: Upstream) -> Built {
    let mut builder = Builder {
        table: Table::default(),
        backends: Backends::new(objects, upstream),
        problems: Vec::new(),
    };
    for ingress in ours {
        builder.add(ingress);
    }
    let mut table = builder.table;
    let hosts = table.exact.values_mut().chain(table.wildcard.values_mut());
    hosts.chain([&mut table.any]).for_each(Paths::finish);
    Built {
        table,
        problems: builder.problems,
    }
}

/// The routes of one path type, by path.
type Routes = HashMap<Box<[u8]>, Arc<Route>>;

struct Builder<'a> {
    table: Table,
    backends: Backends<'a>,
    problems: Vec<Problem>,
}

impl Builder<'_> {
    fn add(&mut self, ingress: &Ingress) {
        let mut findings = Findings::new(ObjectKind::Ingress, &ingress.key);
        findings.problems.extend(ingress.problems.iter().cloned());
        let mut scope = Scope {
            ingress,
            backends: &mut self.backends,
            findings: &mut findings,
        };
        let default = ingress.default_backend.as_ref();
        let default = default.map(|backend| scope.backend(backend, "spec.defaultBackend"));
        let default_route = |host: Arc<str>| {
            default.as_ref().map(|backend| {
                Arc::new(Route {
                    ingress: ingress.key.clone(),
                    host,
                    path: "*".into(),
                    backend: Arc::clone(backend),
                })
            })
        };
        for rule in &ingress.rules {
            let host: Arc<str> = rule.host.to_string().into();
            let paths = match &rule.host {
                Host::Any => &mut self.table.any,
                Host::Wildcard(behind) => self.table.wildcard.entry((&**behind).into()).or_default(),
                Host::Exact(name) => self.table.exact.entry((&**name).into()).or_default(),
            };
            for path in rule.paths.iter().flatten() {
                scope.add_path(paths, path, rule.index, &host);
            }
            if let Some(route) = default_route(host) {
                scope.add_default(&mut paths.default, route, rule.paths.is_none().then_some(rule.index));
            }
        }
        if let Some(route) = default_route("*".into()) {
            let none = ingress.rules.is_empty();
            match &self.table.default {
                None => self.table.default = Some(route),
                Some(older) if none => scope.findings.report_as(
                    Reason::RuleConflict,
                    "spec.defaultBackend",
                    format!(
                        "Ingress {} has a default backend too and is older, so this one gets no requests",
                        older.ingress
                    ),
                    "give this Ingress rules, or remove one of them",
                ),
                Some(_) => {}
            }
        }
        self.problems.extend(findings.problems);
    }
}

/// What is needed while the rules of one Ingress are added.
struct Scope<'a, 'b> {
    ingress: &'a Ingress,
    backends: &'a mut Backends<'b>,
    findings: &'a mut Findings,
}

impl Scope<'_, '_> {
    fn backend(&mut self, backend: &BackendRef, field: &str) -> Arc<super::Backend> {
        self.backends
            .find(&self.ingress.key.namespace, backend, field, self.findings)
    }

    fn add_path(&mut self, paths: &mut Paths, rule: &PathRule, index: usize, host: &Arc<str>) {
        let field = format!("spec.rules[{index}].http.paths[{}]", rule.index);
        let route = Route {
            ingress: self.ingress.key.clone(),
            host: Arc::clone(host),
            path: Arc::clone(&rule.path),
            backend: self.backend(&rule.backend, &format!("{field}.backend")),
        };
        let path = path::canonical(&rule.path);
        let (of_kind, key): (&mut Routes, &[u8]) = match rule.kind {
            PathKind::Exact => (&mut paths.exact, &*path),
            PathKind::Prefix => (&mut paths.prefixes, path.strip_suffix(b"/").unwrap_or(&path)),
        };
        match of_kind.entry(key.into()) {
            Entry::Vacant(place) => {
                place.insert(Arc::new(route));
            }
            Entry::Occupied(place) if place.get().backend != route.backend => {
                let first = place.get();
                let whose = if first.ingress == route.ingress {
                    "an earlier rule of this Ingress".to_owned()
                } else {
                    format!("Ingress {}, which is older,", first.ingress)
                };
                self.findings.report_as(
                    Reason::RuleConflict,
                    field,
                    format!(
                        "{whose} has host `{host}` and path `{}` ({}) too, and requests go to its backend {}",
                        first.path, rule.kind, first.backend
                    ),
                    "remove one of them",
                );
            }
            Entry::Occupied(_) => {}
        }
    }

    /// `rule`: the place of a rule that is for nothing but the default backend.
    fn add_default(&mut self, default: &mut Option<Arc<Route>>, route: Arc<Route>, rule: Option<usize>) {
        match default {
            None => *default = Some(route),
            Some(older) if older.backend != route.backend => {
                let field = rule.map_or_else(|| "spec.defaultBackend".into(), |index| format!("spec.rules[{index}]"));
                self.findings.report_as(
                    Reason::RuleConflict,
                    field,
                    format!(
                        "Ingress {}, which is older, has a default backend for host `{}` too, and requests go to it",
                        older.ingress, route.host
                    ),
                    "remove one of them",
                );
            }
            Some(_) => {}
        }
    }
}

impl Paths {
    /// Sorts what lookups need sorted.
    fn finish(&mut self) {
        self.lengths = self.prefixes.keys().map(|prefix| prefix.len()).collect();
        self.lengths.sort_unstable_by_key(|length| Reverse(*length));
        self.lengths.dedup();
    }
}
