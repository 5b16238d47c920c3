//! The rules of matching once more, written down as they are read, to compare the table with.

use super::{Built, Upstream, build};
use crate::ingress::objects::{BackendRef, ClassName, Host, Ingress, Objects, PathKind, PathRule, Rule};
use crate::model::ObjectKey;

use std::sync::Arc;

use proptest::prelude::*;

/// The elements of a path, and whether there is a `/` at its end.
fn elements(path: &str) -> Option<(Vec<Vec<u8>>, bool)> {
    let mut found = Vec::new();
    let mut open = true;
    for element in path.strip_prefix('/')?.split('/') {
        let element = decoded(element);
        let name: Vec<u8> = element.iter().copied().take_while(|byte| *byte != b';').collect();
        open = true;
        if name == b".." {
            found.pop();
        } else if name != b"." && !element.is_empty() {
            found.push(element);
            open = false;
        }
    }
    Some((found, open))
}

fn decoded(element: &str) -> Vec<u8> {
    let mut parts = element.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let code = part
            .get(..2)
            .filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match code.map(|code| u8::from_str_radix(code, 16).expect("two digits")) {
            Some(b'/') => bytes.extend([b"%2F", &part.as_bytes()[2..]].concat()),
            Some(byte) => bytes.extend([&[byte], &part.as_bytes()[2..]].concat()),
            None => bytes.extend([b"%", part.as_bytes()].concat()),
        }
    }
    bytes
}

fn path_matches(rule: &PathRule, path: &str) -> bool {
    let (wanted, wanted_open) = elements(&rule.path).expect("it begins with a slash");
    match elements(path) {
        Some((asked, open)) if rule.kind == PathKind::Exact => asked == wanted && open == wanted_open,
        Some((asked, _)) => asked.starts_with(&wanted),
        // Only the root is a beginning of nothing.
        None => path.is_empty() && rule.kind == PathKind::Prefix && wanted.is_empty(),
    }
}

fn host_matches(rule: &Host, host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    match rule {
        Host::Any => true,
        Host::Exact(name) => host == &**name,
        Host::Wildcard(behind) => {
            let labels: Vec<&str> = host.split('.').collect();
            labels.len() > 1 && !labels[0].is_empty() && labels[1..].join(".") == **behind
        }
    }
}

/// The name of the Service that answers: of those with the most specific host, that with the longest path, then that with
/// an Exact one, then the oldest.
fn answers<'a>(ours: &'a [Arc<Ingress>], host: &str, path: &str) -> Option<&'a str> {
    let rules = || {
        ours.iter()
            .flat_map(|ingress| ingress.rules.iter().map(move |rule| (ingress, rule)))
    };
    let best = rules()
        .map(|(_, rule)| &rule.host)
        .filter(|rule| host_matches(rule, host))
        .max();
    let of_host = || rules().filter(|(_, rule)| Some(&rule.host) == best);
    let mut matching: Vec<&PathRule> = of_host()
        .flat_map(|(_, rule)| rule.paths.iter().flatten())
        .filter(|rule| path_matches(rule, path))
        .collect();
    matching.sort_by_key(|rule| {
        let (elements, _) = elements(&rule.path).expect("it begins with a slash");
        std::cmp::Reverse((elements.len(), rule.kind == PathKind::Exact))
    });
    let of_path = matching.first().map(|rule| &rule.backend);
    let of_host = || of_host().find_map(|(ingress, _)| ingress.default_backend.as_ref());
    let of_all = || ours.iter().find_map(|ingress| ingress.default_backend.as_ref());
    let backend = of_path.or_else(of_host).or_else(of_all)?;
    match backend {
        BackendRef::Service { name, .. } => Some(name),
        BackendRef::None(_) => None,
    }
}

fn answers_by_table<'a>(built: &'a Built, host: &str, path: &str) -> Option<&'a str> {
    built.table.route(host, path).map(|route| &*route.backend.service.name)
}

fn backend() -> impl Strategy<Value = BackendRef> {
    (0..30_u8).prop_map(|number| BackendRef::Service {
        name: format!("service-{number}").into(),
        port: crate::ingress::objects::PortRef::Number(80),
    })
}

fn host() -> impl Strategy<Value = Host> {
    prop_oneof![
        Just(Host::Any),
        prop::sample::select(vec!["x", "a.x", "b.a.x", "y"]).prop_map(|name| Host::Exact(name.into())),
        prop::sample::select(vec!["x", "a.x", "y"]).prop_map(|name| Host::Wildcard(name.into())),
    ]
}

fn rule_path() -> impl Strategy<Value = Arc<str>> {
    let element = prop::sample::select(vec!["a", "b", "aa", "%61", "a;b", ".b", "100%"]);
    (prop::collection::vec(element, 0..4), any::<bool>()).prop_map(|(elements, open)| {
        let end = if open && !elements.is_empty() { "/" } else { "" };
        format!("/{}{end}", elements.join("/")).into()
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    let kind = prop::sample::select(vec![PathKind::Exact, PathKind::Prefix]);
    let path = (rule_path(), kind, backend()).prop_map(|(path, kind, backend)| PathRule {
        index: 0,
        path,
        kind,
        backend,
    });
    let paths = prop::option::weighted(0.9, prop::collection::vec(path, 0..4));
    (host(), paths).prop_map(|(host, paths)| Rule {
        index: 0,
        host,
        paths: paths.map(Into::into),
    })
}

fn ingresses() -> impl Strategy<Value = Vec<Arc<Ingress>>> {
    let ingress = (
        prop::collection::vec(rule(), 0..4),
        prop::option::weighted(0.3, backend()),
    );
    prop::collection::vec(ingress, 0..4).prop_map(|all| {
        let all = all.into_iter().enumerate();
        all.map(|(number, (rules, default_backend))| {
            Arc::new(Ingress {
                key: ObjectKey::new("shop", &format!("ingress-{number}")),
                created_s: 0,
                class: ClassName::None,
                default_backend,
                rules: rules.into(),
                tls: Box::default(),
                status: Box::default(),
                problems: Vec::new(),
            })
        })
        .collect()
    })
}

fn request() -> impl Strategy<Value = (String, String)> {
    let hosts = [
        "x", "a.x", "b.a.x", "c.a.x", "c.b.a.x", "A.X.", "y", "z.y", "", ".x", "[::1]",
    ];
    let tokens = [
        "/", "/", "/", "a", "b", "aa", "%61", ".", "..", "%2e", ";b", "100%", "%2F", "%",
    ];
    let path = prop::collection::vec(prop::sample::select(tokens.to_vec()), 0..8);
    let path = (path, prop::bool::weighted(0.95))
        .prop_map(|(tokens, rooted)| format!("{}{}", if rooted { "/" } else { "" }, tokens.concat()));
    (prop::sample::select(hosts.to_vec()).prop_map(str::to_owned), path)
}

proptest! {
    #[test]
    fn the_table_answers_as_the_rules_are_read(
        ours in ingresses(),
        requests in prop::collection::vec(request(), 1..30),
    ) {
        let references: Vec<_> = ours.iter().collect();
        let built = build(&references, &Objects::default(), Upstream::Service);
        for (host, path) in requests {
            prop_assert_eq!(
                answers_by_table(&built, &host, &path),
                answers(&ours, &host, &path),
                "{} {}", host, path
            );
        }
    }

    #[test]
    fn no_request_makes_it_panic(ours in ingresses(), host in ".{0,20}", path in "[/.%;a-f0-9]{0,20}|.{0,20}") {
        let references: Vec<_> = ours.iter().collect();
        let built = build(&references, &Objects::default(), Upstream::Endpoints);
        prop_assert_eq!(answers_by_table(&built, &host, &path), answers(&ours, &host, &path));
    }
}
