use super::fixtures::{objects, told};
use super::*;

fn ours(objects: &Objects, options: &ClassOptions) -> (Vec<String>, String) {
    let (ours, problems) = objects.ours(options);
    let names = ours.iter().map(|ingress| ingress.key.name.to_string()).collect();
    (names, told(&problems))
}

const CLASSES: &str = "
kind: IngressClass
metadata: {name: fairway}
spec: {controller: fairway.io/ingress}
---
kind: IngressClass
metadata: {name: public}
spec: {controller: fairway.io/ingress}
---
kind: IngressClass
metadata: {name: nginx}
spec: {controller: k8s.io/ingress-nginx}
---
";

const INGRESSES: &str = "
kind: Ingress
metadata: {name: none}
spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}
---
kind: Ingress
metadata: {name: ours}
spec: {ingressClassName: public, defaultBackend: {service: {name: web, port: {number: 80}}}}
---
kind: Ingress
metadata: {name: anothers}
spec: {ingressClassName: nginx, defaultBackend: {service: {name: web, port: {number: 80}}}}
---
kind: Ingress
metadata: {name: unknown}
spec: {ingressClassName: nobodys, defaultBackend: {service: {name: web, port: {number: 80}}}}
---
kind: Ingress
metadata: {name: annotated, annotations: {kubernetes.io/ingress.class: fairway}}
spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}
---
kind: Ingress
metadata: {name: annotated-for-another, annotations: {kubernetes.io/ingress.class: nginx}}
spec: {ingressClassName: fairway, defaultBackend: {service: {name: web, port: {number: 80}}}}
";

#[test]
fn an_ingress_is_ours_by_its_class_whether_named_by_the_field_or_by_the_annotation() {
    let all = objects(&format!("{CLASSES}{INGRESSES}"));
    let (names, problems) = ours(&all, &ClassOptions::default());
    assert_eq!(names, ["annotated", "ours"]);
    assert_eq!(problems, "");
    let of_annotation = &all.ingresses[&ObjectKey::new("default", "annotated-for-another")].problems;
    assert_eq!(
        told(of_annotation),
        "InvalidField Ingress default/annotated-for-another: spec.ingressClassName: it is `fairway`, but the annotation \
         kubernetes.io/ingress.class is `nginx` and counts; remove the annotation\n"
    );
}

#[test]
fn an_ingress_without_a_class_is_ours_if_our_class_is_the_default_one_or_if_we_are_told_so() {
    let without = ClassOptions {
        without_class: true,
        ..ClassOptions::default()
    };
    let all = objects(&format!("{CLASSES}{INGRESSES}"));
    assert_eq!(ours(&all, &without).0, ["annotated", "none", "ours"]);
    let default = CLASSES.replace(
        "{name: public}",
        "{name: public, annotations: {ingressclass.kubernetes.io/is-default-class: 'true'}}",
    );
    let all = objects(&format!("{default}{INGRESSES}"));
    assert_eq!(ours(&all, &ClassOptions::default()).0, ["annotated", "none", "ours"]);
    let anothers = CLASSES.replace(
        "{name: nginx}",
        "{name: nginx, annotations: {ingressclass.kubernetes.io/is-default-class: 'true'}}",
    );
    let all = objects(&format!("{anothers}{INGRESSES}"));
    assert_eq!(ours(&all, &ClassOptions::default()).0, ["annotated", "ours"]);
    assert_eq!(ours(&all, &without).0, ["annotated", "none", "ours"]);
}

#[test]
fn of_two_default_classes_the_newest_counts_and_ours_is_told() {
    let mark = "annotations: {ingressclass.kubernetes.io/is-default-class: 'true'}";
    let classes = CLASSES
        .replace(
            "{name: fairway}",
            &format!("{{name: fairway, creationTimestamp: '2024-01-01T00:00:00Z', {mark}}}"),
        )
        .replace(
            "{name: nginx}",
            &format!("{{name: nginx, creationTimestamp: '2025-01-01T00:00:00Z', {mark}}}"),
        );
    let all = objects(&format!("{classes}{INGRESSES}"));
    let (names, problems) = ours(&all, &ClassOptions::default());
    assert_eq!(names, ["annotated", "ours"]);
    assert_eq!(
        problems,
        "InvalidField IngressClass fairway: metadata.annotations[ingressclass.kubernetes.io/is-default-class]: nginx is \
         marked as the default class too, is newer and counts; leave one class marked\n"
    );
}

#[test]
fn a_class_of_our_name_that_nobody_made_is_asked_for_and_parameters_are_told() {
    let all = objects(
        "
kind: Ingress
metadata: {name: web}
spec: {ingressClassName: fairway, defaultBackend: {service: {name: web, port: {number: 80}}}}
---
kind: IngressClass
metadata: {name: public}
spec: {controller: fairway.io/ingress, parameters: {kind: Thing, name: it}}
",
    );
    let (names, problems) = ours(&all, &ClassOptions::default());
    assert_eq!(names, [""; 0]);
    assert_eq!(
        problems,
        "NotSupported IngressClass public: spec.parameters: the class has no parameters that are known, and these have no \
         effect; remove them\n\
         InvalidField Ingress default/web: spec.ingressClassName: there is no IngressClass `fairway`, so the Ingress is not \
         served; create it with spec.controller fairway.io/ingress\n"
    );
}

#[test]
fn the_oldest_is_first_and_among_equals_the_first_by_namespace_and_name() {
    let all = objects(
        "
kind: Ingress
metadata: {name: b, namespace: shop, creationTimestamp: '2025-01-01T00:00:00Z'}
---
kind: Ingress
metadata: {name: a, namespace: shop, creationTimestamp: '2025-01-01T00:00:00Z'}
---
kind: Ingress
metadata: {name: c, namespace: cafe, creationTimestamp: '2025-01-01T00:00:00Z'}
---
kind: Ingress
metadata: {name: z, namespace: shop, creationTimestamp: '2024-01-01T00:00:00Z'}
",
    );
    let without = ClassOptions {
        without_class: true,
        ..ClassOptions::default()
    };
    assert_eq!(ours(&all, &without).0, ["z", "c", "a", "b"]);
}

#[test]
fn what_the_api_would_have_refused_is_left_out_with_a_word_and_the_rest_counts() {
    let all = objects(
        "
kind: Ingress
metadata: {name: web, annotations: {nginx.ingress.kubernetes.io/rewrite-target: /, fairway.io/magic: 'yes', team: shop}}
spec:
  tls:
  - {hosts: [good.example.com, Bad.example.com], secretName: cert}
  - {}
  rules:
  - host: 10.0.0.1
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
  - host: good.example.com
    http:
      paths:
      - {path: /good, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}
      - {path: bad, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}
      - {path: /a/../b, pathType: Exact, backend: {service: {name: web, port: {number: 80}}}}
      - {path: /a/.., pathType: Exact, backend: {service: {name: web, port: {number: 80}}}}
      - {path: /bad, pathType: Regex, backend: {service: {name: web, port: {number: 80}}}}
      - {path: '/odd(/|$)(.*)', pathType: ImplementationSpecific, backend: {service: {name: web, port: {number: 80}}}}
      - {pathType: ImplementationSpecific, backend: {service: {name: web, port: {name: http}}}}
      - {path: /none, pathType: Exact, backend: {service: {name: web, port: {number: 80, name: http}}}}
      - {path: /bucket, pathType: Exact, backend: {resource: {apiGroup: k8s.example.com, kind: Bucket, name: icons}}}
  - host: empty.example.com
",
    );
    let ingress = &all.ingresses[&ObjectKey::new("default", "web")];
    let paths: Vec<_> = ingress
        .rules
        .iter()
        .flat_map(|rule| rule.paths.iter().flatten())
        .collect();
    let texts: Vec<_> = paths.iter().map(|path| &*path.path).collect();
    assert_eq!(texts, ["/good", "/odd(/|$)(.*)", "/", "/none", "/bucket"]);
    assert!(matches!(&paths[2].backend, BackendRef::Service { port: PortRef::Name(name), .. } if **name == *"http"));
    assert!(matches!(&paths[4].backend, BackendRef::None(_)));
    assert_eq!(ingress.tls.len(), 1);
    assert_eq!(*ingress.tls[0].hosts, [Host::Exact("good.example.com".into())]);
    insta::assert_snapshot!(told(&ingress.problems));
}

#[test]
fn addresses_for_clients_are_those_of_the_load_balancer_then_external_ips_then_cluster_ips() {
    let service = |spec: &str, status: &str| {
        let all = objects(&format!(
            "kind: Service\nmetadata: {{name: web}}\nspec: {spec}\nstatus: {status}"
        ));
        let addresses = all.services.values().next().expect("there is one").addresses.clone();
        addresses
            .iter()
            .map(|address| format!("{address:?}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let spec = "{clusterIPs: [10.96.0.1, 'fd00::1'], externalIPs: [192.0.2.1]}";
    assert_eq!(
        service(
            spec,
            "{loadBalancer: {ingress: [{ip: 198.51.100.1}, {hostname: lb.example.com}]}}"
        ),
        "Ip(198.51.100.1) Hostname(\"lb.example.com\")"
    );
    assert_eq!(service(spec, "{}"), "Ip(192.0.2.1)");
    assert_eq!(
        service("{clusterIPs: [10.96.0.1, 'fd00::1']}", "{}"),
        "Ip(10.96.0.1) Ip(fd00::1)"
    );
    assert_eq!(service("{clusterIP: None}", "{}"), "");
    let pending = "{type: LoadBalancer, clusterIPs: [10.96.0.1]}";
    assert_eq!(service(pending, "{}"), "", "it waits for its addresses");
}
