use std::fmt::Write as _;
use std::time::Instant;

use super::*;
use crate::ingress::objects::ClassOptions;
use crate::ingress::objects::fixtures::{objects, told};

const ANY_CLASS: fn() -> ClassOptions = || ClassOptions {
    without_class: true,
    ..ClassOptions::default()
};

fn built(yaml: &str, upstream: Upstream) -> Built {
    let objects = objects(yaml);
    let (ours, mut problems) = objects.ours(&ANY_CLASS());
    let mut built = build(&ours, &objects, upstream);
    problems.append(&mut built.problems);
    built.problems = problems;
    built
}

/// Manifests of an Ingress with these rules: host, then path type, path and Service; a `default` is the default backend.
fn ingress(name: &str, created: &str, rules: &[&str]) -> String {
    let yaml =
        format!("---\nkind: Ingress\nmetadata: {{name: {name}, creationTimestamp: '{created}T00:00:00Z'}}\nspec:\n");
    let backend = |service: &str| format!("{{service: {{name: {service}, port: {{number: 80}}}}}}");
    let (mut default, mut listed) = (String::new(), String::new());
    for rule in rules {
        let words: Vec<&str> = rule.split_whitespace().collect();
        let written = match words[..] {
            ["default", service] => writeln!(default, "  defaultBackend: {}", backend(service)),
            [host] => writeln!(listed, "  - {{host: '{host}'}}"),
            [host, kind, path, service] => writeln!(
                listed,
                "  - {{host: '{}', http: {{paths: [{{path: '{path}', pathType: {kind}, backend: {}}}]}}}}",
                host.trim_start_matches("(any)"),
                backend(service)
            ),
            _ => panic!("`{rule}` is no rule"),
        };
        written.expect("a string can be written to");
    }
    if !listed.is_empty() {
        listed.insert_str(0, "  rules:\n");
    }
    yaml + &default + &listed
}

/// The Service that a request goes to; `-` if there is none.
fn service(table: &Table, host: &str, path: &str) -> String {
    table
        .route(host, path)
        .map_or("-".to_owned(), |route| route.backend.service.name.to_string())
}

/// Rules of one Ingress, and requests `host path -> service`.
fn check(rules: &[&str], requests: &[&str]) {
    let built = built(&ingress("web", "2025-01-01", rules), Upstream::Service);
    for request in requests {
        let (asked, wanted) = request.split_once(" -> ").expect("host path -> service");
        let (host, path) = asked.split_once(' ').expect("host path");
        assert_eq!(service(&built.table, host, path), wanted, "{rules:?}: {request}");
    }
}

/// The table of examples of path types in the documentation of Ingress
/// (kubernetes.io/docs/concepts/services-networking/ingress/#examples).
#[test]
fn paths_match_as_in_the_examples_of_the_documentation() {
    check(&["h Prefix / s"], &["h / -> s", "h /any -> s", "h /any/path/ -> s"]);
    check(
        &["h Exact /foo s"],
        &["h /foo -> s", "h /bar -> -", "h /foo/ -> -", "h /foo/bar -> -"],
    );
    check(&["h Exact /foo/ s"], &["h /foo -> -", "h /foo/ -> s"]);
    check(&["h Prefix /foo s"], &["h /foo -> s", "h /foo/ -> s"]);
    check(&["h Prefix /foo/ s"], &["h /foo -> s", "h /foo/ -> s"]);
    check(&["h Prefix /aaa/bb s"], &["h /aaa/bbb -> -"]);
    check(
        &["h Prefix /aaa/bbb s"],
        &["h /aaa/bbb -> s", "h /aaa/bbb/ -> s", "h /aaa/bbb/ccc -> s"],
    );
    check(&["h Prefix /aaa/bbb/ s"], &["h /aaa/bbb -> s"]);
    check(
        &["h Prefix /aaa/bbb s"],
        &["h /aaa/bbbxyz -> -", "h /aaa -> -", "h /AAA/bbb -> -"],
    );
    check(&["h Prefix / root", "h Prefix /aaa aaa"], &["h /aaa/ccc -> aaa"]);
    check(
        &["h Prefix / root", "h Prefix /aaa aaa", "h Prefix /aaa/bbb bbb"],
        &["h /aaa/bbb -> bbb", "h /aaa/bb -> aaa", "h /ccc -> root"],
    );
    check(
        &["default other", "h Prefix /aaa aaa"],
        &["h /ccc -> other", "h /aaa -> aaa"],
    );
    check(
        &["h Prefix /foo prefix", "h Exact /foo exact"],
        &["h /foo -> exact", "h /foo/ -> prefix", "h /foo/bar -> prefix"],
    );
}

#[test]
fn the_longest_path_is_first_and_an_exact_one_before_a_prefix() {
    check(
        &[
            "h Prefix /a a",
            "h Prefix /a/b/c c",
            "h Prefix /a/b b",
            "h Exact /a/b/ exact",
        ],
        &[
            "h /a/b/c/d -> c",
            "h /a/b/cc -> b",
            "h /a/b/ -> exact",
            "h /a/b -> b",
            "h /a/bb -> a",
            "h / -> -",
        ],
    );
    check(
        &["h ImplementationSpecific /a a", "h Exact /a exact"],
        &["h /a -> exact", "h /a/b -> a", "h /ab -> -"],
    );
}

/// The table of wildcard hosts in the same document.
#[test]
fn a_wildcard_is_one_label() {
    check(
        &["*.foo.com Prefix / s"],
        &[
            "bar.foo.com / -> s",
            "baz.bar.foo.com / -> -",
            "foo.com / -> -",
            ".foo.com / -> -",
        ],
    );
    check(
        &["foo.bar.com Prefix /bar service1", "*.foo.com Prefix /foo service2"],
        &[
            "foo.bar.com /bar -> service1",
            "bar.foo.com /foo -> service2",
            "bar.foo.com /bar -> -",
        ],
    );
}

/// Fan-out and name-based hosts of the same document.
#[test]
fn hosts_and_paths_fan_out() {
    check(
        &["foo.bar.com Prefix /foo service1", "foo.bar.com Prefix /bar service2"],
        &[
            "foo.bar.com /foo/x -> service1",
            "foo.bar.com /bar -> service2",
            "foo.bar.com / -> -",
            "bar.foo.com /foo -> -",
        ],
    );
    check(
        &[
            "first.bar.com Prefix / service1",
            "second.bar.com Prefix / service2",
            "(any) Prefix / service3",
        ],
        &[
            "first.bar.com / -> service1",
            "second.bar.com /x -> service2",
            "third.bar.com / -> service3",
            "192.0.2.1 / -> service3",
        ],
    );
    check(&["default test"], &["any.host /any -> test", " / -> test"]);
}

#[test]
fn the_most_specific_host_answers_alone_and_what_it_has_no_path_for_goes_to_default_backends() {
    let rules = [
        "a.foo.com Prefix /api exact",
        "*.foo.com Prefix / wildcard",
        "(any) Prefix / any",
    ];
    check(
        &rules,
        &[
            "a.foo.com /api -> exact",
            "a.foo.com /other -> -",
            "b.foo.com /api -> wildcard",
            "c.com /api -> any",
        ],
    );
    let built = built(
        &(ingress(
            "first",
            "2024-01-01",
            &["default first", "*.foo.com Prefix /w wildcard"],
        ) + &ingress(
            "second",
            "2025-01-01",
            &["default second", "a.foo.com Prefix /api exact", "b.foo.com"],
        )),
        Upstream::Service,
    );
    let service = |host, path| service(&built.table, host, path);
    assert_eq!(service("a.foo.com", "/api"), "exact");
    assert_eq!(
        service("a.foo.com", "/x"),
        "second",
        "the default backend of the Ingress with this host"
    );
    assert_eq!(service("b.foo.com", "/x"), "second", "a rule without paths");
    assert_eq!(service("c.foo.com", "/x"), "first");
    assert_eq!(service("d.com", "/x"), "first", "the oldest default backend");
    assert_eq!((built.table.hosts(), built.table.routes()), (3, 6));
}

#[test]
fn hosts_are_compared_without_case_and_with_or_without_the_dot_of_the_root() {
    check(
        &["foo.com Prefix / exact", "*.foo.com Prefix / wildcard"],
        &[
            "FOO.com / -> exact",
            "foo.com. / -> exact",
            "Bar.Foo.Com. / -> wildcard",
            "foo.com.. / -> -",
        ],
    );
}

#[test]
fn no_way_of_writing_a_path_leads_past_a_rule() {
    check(
        &["h Prefix / open", "h Prefix /admin admin", "h Exact /admin/login login"],
        &[
            "h /x/../admin -> admin",
            "h /x/%2e%2e/admin -> admin",
            "h //admin -> admin",
            "h /./admin/. -> admin",
            "h /%61dmin/users -> admin",
            "h /x/..;jsessionid=1/admin -> admin",
            "h /admin/x/../login -> login",
            "h //admin//login -> login",
            "h /admin/../x -> open",
            "h /admin%2Flogin -> open",
        ],
    );
    check(
        &["h Prefix /%EA%B0%80 encoded", "h Prefix /나 clear"],
        &["h /가 -> encoded", "h /%eb%82%98/x -> clear"],
    );
}

#[test]
fn several_ingresses_of_a_host_are_one_and_of_one_path_the_oldest_has_it() {
    let built = built(
        &(ingress(
            "late",
            "2025-01-01",
            &["h Prefix /a mine", "h Exact /a exact", "h Prefix /b b"],
        ) + &ingress("early", "2024-01-01", &["h Prefix /a/ first", "h Prefix /c c"])
            + &ingress("same", "2026-01-01", &["h Prefix /c c"])),
        Upstream::Service,
    );
    assert_eq!(service(&built.table, "h", "/a/x"), "first");
    assert_eq!(service(&built.table, "h", "/a"), "exact");
    assert_eq!(service(&built.table, "h", "/b"), "b");
    assert_eq!(service(&built.table, "h", "/c"), "c");
    let conflicts: Vec<_> = built
        .problems
        .iter()
        .filter(|problem| problem.reason.name() == "RuleConflict")
        .cloned()
        .collect();
    assert_eq!(
        told(&conflicts),
        "RuleConflict Ingress default/late: spec.rules[0].http.paths[0]: Ingress default/early, which is older, has host \
         `h` and path `/a/` (Prefix) too, and requests go to its backend default/first:80; remove one of them\n"
    );
}

#[test]
fn of_several_ingresses_that_are_only_a_default_backend_the_oldest_counts() {
    let built = built(
        &(ingress("late", "2025-01-01", &["default late"]) + &ingress("early", "2024-01-01", &["default early"])),
        Upstream::Service,
    );
    assert_eq!(service(&built.table, "any", "/"), "early");
    assert!(
        told(&built.problems).contains(
            "RuleConflict Ingress default/late: spec.defaultBackend: Ingress default/early has a default backend too and is \
             older, so this one gets no requests; give this Ingress rules, or remove one of them\n"
        ),
        "{}",
        told(&built.problems)
    );
}

const SERVICES: &str = "
kind: Service
metadata: {name: web}
spec:
  clusterIPs: [10.96.0.1, 'fd00::1']
  ports:
  - {name: http, port: 80}
  - {name: grpc, port: 9000, appProtocol: kubernetes.io/h2c}
  - {name: tls, port: 443, appProtocol: https}
  - {name: dns, port: 53, protocol: UDP}
---
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, clusterIPs: [None], ports: [{name: http, port: 80, targetPort: 8080}]}
---
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}
---
kind: EndpointSlice
metadata: {name: headless-1, labels: {kubernetes.io/service-name: headless, service.kubernetes.io/headless: ''}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}, {name: other, port: 9090, protocol: TCP}]
endpoints:
- {addresses: [10.244.1.2], conditions: {ready: true}}
- {addresses: [10.244.1.1], conditions: {ready: true}}
- {addresses: [10.244.1.3], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.244.1.4], conditions: {ready: false}}
---
kind: EndpointSlice
metadata: {name: headless-2, labels: {kubernetes.io/service-name: headless, service.kubernetes.io/headless: ''}}
addressType: IPv6
ports: [{name: http, port: 8081, protocol: TCP}]
endpoints: [{addresses: ['fd01::1'], conditions: {ready: true}}, {addresses: ['fd01::1'], conditions: {ready: true}}]
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.244.2.1], conditions: {ready: false, serving: true, terminating: true}}]
---
";

fn backend(port: &str, name: &str, upstream: Upstream) -> (String, String) {
    let built = built(
        &format!(
            "{SERVICES}kind: Ingress\nmetadata: {{name: it}}\nspec: {{defaultBackend: {{service: {{name: {name}, port: {{{port}}}}}}}}}"
        ),
        upstream,
    );
    let backend = &built.table.route("h", "/").expect("all go there").backend;
    let addrs: Vec<_> = backend.addrs.iter().map(ToString::to_string).collect();
    (
        format!("{backend} {:?} {}", backend.protocol, addrs.join(" ")),
        told(&built.problems),
    )
}

#[test]
fn backends_are_cluster_ips_or_endpoints_by_number_or_name_of_the_port() {
    let backend = |port, name, upstream| {
        let (backend, problems) = backend(port, name, upstream);
        assert_eq!(problems, "");
        backend
    };
    assert_eq!(
        backend("number: 80", "web", Upstream::Service),
        "default/web:80 Http1 10.96.0.1:80 [fd00::1]:80"
    );
    assert_eq!(
        backend("name: grpc", "web", Upstream::Service),
        "default/web:9000 H2c 10.96.0.1:9000 [fd00::1]:9000"
    );
    let endpoints = "default/headless:80 Http1 10.244.1.1:8080 10.244.1.2:8080 [fd01::1]:8081";
    assert_eq!(backend("name: http", "headless", Upstream::Service), endpoints);
    assert_eq!(backend("number: 80", "headless", Upstream::Endpoints), endpoints);
    assert_eq!(
        backend("number: 80", "web", Upstream::Endpoints),
        "default/web:80 Http1 10.244.2.1:8080",
        "none is ready, so what still serves does"
    );
    assert_eq!(
        backend("number: 9000", "web", Upstream::Endpoints),
        "default/web:9000 H2c "
    );
}

#[test]
fn what_cannot_be_a_backend_is_told_and_answers_503() {
    let problem = |port, name| {
        let (backend, problems) = backend(port, name, Upstream::Service);
        assert!(backend.ends_with("Http1 "), "it has no addresses: {backend}");
        problems
    };
    insta::assert_snapshot!(
        [
            problem("number: 80", "missing"),
            problem("number: 81", "web"),
            problem("name: https", "web"),
            problem("number: 53", "web"),
            problem("number: 80", "outside"),
            problem("number: 0", "web"),
        ]
        .concat()
    );
    let (backend, problems) = backend("name: tls", "web", Upstream::Service);
    assert_eq!(backend, "default/web:443 Http1 10.96.0.1:443 [fd00::1]:443");
    assert!(problems.contains("TLS to backends is not supported"), "{problems}");
}

#[test]
fn a_route_tells_what_it_comes_from() {
    let built = built(
        &ingress("web", "2025-01-01", &["*.foo.com Prefix /api/ s", "default d"]),
        Upstream::Service,
    );
    let route = built.table.route("a.foo.com", "/api/x").expect("there is one");
    assert_eq!(
        (&*route.host, &*route.path, route.ingress.to_string()),
        ("*.foo.com", "/api/", "default/web".to_owned())
    );
    let route = built.table.route("b.com", "/").expect("there is one");
    assert_eq!((&*route.host, &*route.path), ("*", "*"));
}

/// Prints what it takes to build the table of 1,000 Ingresses and to look up in one with 1,000 hosts or 1,000 paths.
#[test]
fn a_thousand_hosts_and_a_thousand_paths_are_looked_up_like_one() {
    let hosts: String = (0..1000)
        .map(|number| {
            ingress(
                &format!("web-{number}"),
                "2025-01-01",
                &[&format!("h{number}.com Prefix / s{number}")],
            )
        })
        .collect();
    let paths: Vec<String> = (0..1000)
        .map(|number| format!("h Prefix /p{number}/a s{number}"))
        .collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let all = objects(&(hosts + &ingress("paths", "2025-01-01", &paths)));
    let (ours, _) = all.ours(&ANY_CLASS());
    let began = Instant::now();
    let built = build(&ours, &all, Upstream::Service);
    println!(
        "table of 1,001 Ingresses and 2,000 routes: built in {:?}",
        began.elapsed()
    );
    assert_eq!((built.table.hosts(), built.table.routes()), (1001, 2000));
    let began = Instant::now();
    for number in 0..1000 {
        assert_eq!(
            service(&built.table, &format!("h{number}.com"), "/x"),
            format!("s{number}")
        );
        assert_eq!(
            service(&built.table, "h", &format!("/p{number}/a/b")),
            format!("s{number}")
        );
    }
    println!("2,000 lookups: {:?}", began.elapsed());
    assert_eq!(
        built.table.exact["h"].lengths,
        [7, 6, 5],
        "so many hashes of a path at most"
    );
}
