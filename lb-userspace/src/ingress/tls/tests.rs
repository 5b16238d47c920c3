use base64_of::base64;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use super::*;
use crate::ingress::objects::fixtures::{objects, told};
use crate::ingress::objects::{ClassOptions, Objects};
use crate::model::ObjectKey;

mod base64_of {
    /// As a Secret has it (RFC 4648, section 4).
    pub(super) fn base64(text: &str) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut encoded = String::new();
        for chunk in text.as_bytes().chunks(3) {
            let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            for place in 0..4 {
                let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
                encoded.push(if place <= chunk.len() { char::from(digit) } else { '=' });
            }
        }
        encoded
    }
}

const NOW_S: i64 = 1_750_000_000;

/// A certificate for these names, valid in these years, and its key.
fn pem(names: &[&str], years: (i32, i32)) -> (String, String) {
    let key = KeyPair::generate().expect("there are random numbers");
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).expect("the names are right");
    params.not_before = date_time_ymd(years.0, 1, 1);
    params.not_after = date_time_ymd(years.1, 1, 1);
    let certificate = params.self_signed(&key).expect("it can be signed");
    (certificate.pem(), key.serialize_pem())
}

fn secret_of_type(name: &str, kind: &str, certificate: &str, key: &str) -> String {
    format!(
        "---\nkind: Secret\nmetadata: {{name: {name}}}\ntype: {kind}\ndata: {{tls.crt: '{}', tls.key: '{}'}}\n",
        base64(certificate),
        base64(key)
    )
}

fn secret(name: &str, names: &[&str]) -> String {
    let (certificate, key) = pem(names, (2020, 2100));
    secret_of_type(name, "kubernetes.io/tls", &certificate, &key)
}

/// An Ingress with these entries of `spec.tls`.
fn ingress(name: &str, created: &str, tls: &str) -> String {
    format!(
        "---\nkind: Ingress\nmetadata: {{name: {name}, creationTimestamp: '{created}T00:00:00Z'}}\n\
         spec: {{defaultBackend: {{service: {{name: web, port: {{number: 80}}}}}}, tls: {tls}}}\n"
    )
}

struct Fixture {
    objects: Objects,
    built: Built,
}

fn fixture(yaml: &str, default_certificate: Option<&str>) -> Fixture {
    let objects = objects(yaml);
    let options = Options {
        self_signed: self_signed().expect("it can be made"),
        default_certificate: default_certificate.map(|name| ObjectKey::new("default", name)),
        now_s: NOW_S,
    };
    let class = ClassOptions {
        without_class: true,
        ..ClassOptions::default()
    };
    let built = build(&objects.ours(&class).0, &objects, &options);
    Fixture { objects, built }
}

impl Fixture {
    /// The name of the Secret whose certificate a client is shown; `-` if it is none's.
    fn shown(&self, name: Option<&str>) -> String {
        let shown = self.built.certificates.find(name).expect("there is always one");
        let secret = self.objects.secrets.values().find(|secret| {
            secret
                .certificate()
                .is_ok_and(|certificate| certificate.certified.cert == shown.cert)
        });
        secret.map_or("-".to_owned(), |secret| secret.key.name.to_string())
    }

    fn problems(&self) -> String {
        told(&self.built.problems)
    }
}

#[test]
fn the_name_that_a_client_asks_for_decides_an_exact_one_before_a_wildcard() {
    let yaml = secret("exact", &["a.foo.com"])
        + &secret("wildcard", &["*.foo.com"])
        + &ingress(
            "web",
            "2025-01-01",
            "[{hosts: [a.foo.com], secretName: exact}, {hosts: ['*.foo.com'], secretName: wildcard}]",
        );
    let fixture = fixture(&yaml, None);
    assert_eq!(fixture.problems(), "");
    assert_eq!(fixture.shown(Some("a.foo.com")), "exact");
    assert_eq!(fixture.shown(Some("A.Foo.com")), "exact");
    assert_eq!(fixture.shown(Some("b.foo.com")), "wildcard");
    for other in [None, Some("foo.com"), Some("c.b.foo.com"), Some("")] {
        assert_eq!(fixture.shown(other), "-", "{other:?}");
    }
    let certificates = &fixture.built.certificates;
    assert!(certificates.serves("a.foo.com") && certificates.serves("b.foo.com"));
    assert!(!certificates.serves("foo.com"));
    assert_eq!(certificates.names(), 2);
    assert_eq!(format!("{certificates:?}"), r#"{"a.foo.com", "*.foo.com"}"#);
}

#[test]
fn without_hosts_a_certificate_is_for_all_names_in_it() {
    let yaml = secret("it", &["a.com", "*.b.com", "UPPER.com"]) + &ingress("web", "2025-01-01", "[{secretName: it}]");
    let fixture = fixture(&yaml, None);
    assert_eq!(fixture.problems(), "");
    let shown = ["a.com", "x.b.com", "upper.com", "c.com"].map(|name| fixture.shown(Some(name)));
    assert_eq!(shown, ["it", "it", "it", "-"]);
}

#[test]
fn the_default_certificate_is_that_of_its_secret_or_one_that_is_made() {
    let yaml = secret("mine", &["default.example.com"]);
    assert_eq!(fixture(&yaml, Some("mine")).shown(None), "mine");
    let missing = fixture(&yaml, Some("missing"));
    assert_eq!(missing.shown(Some("any")), "-");
    assert!(
        missing
            .problems()
            .starts_with("BadCertificate Secret default/missing: "),
        "{}",
        missing.problems()
    );
    let broken = fixture(&secret_of_type("broken", "Opaque", "", ""), Some("broken"));
    assert_eq!(broken.shown(None), "-");
    assert!(
        broken
            .problems()
            .contains("Secret default/broken: type: it is `Opaque`"),
        "{}",
        broken.problems()
    );
}

#[test]
fn of_two_secrets_for_one_host_that_of_the_oldest_ingress_is_used() {
    let yaml = secret("old", &["a.com"])
        + &secret("new", &["a.com", "b.com"])
        + &ingress("late", "2025-01-01", "[{hosts: [a.com, b.com], secretName: new}]")
        + &ingress("early", "2024-01-01", "[{hosts: [a.com], secretName: old}]")
        + &ingress("same", "2026-01-01", "[{hosts: [a.com], secretName: old}]");
    let fixture = fixture(&yaml, None);
    assert_eq!(fixture.shown(Some("a.com")), "old");
    assert_eq!(fixture.shown(Some("b.com")), "new");
    assert_eq!(
        fixture.problems(),
        "RuleConflict Ingress default/late: spec.tls[0]: Ingress default/early, which is older, has `a.com` with Secret \
         default/old, which is what clients are shown; name the same Secret, or remove one of them\n"
    );
}

#[test]
fn hosts_without_a_secret_have_tls_with_the_default_certificate() {
    let fixture = fixture(&ingress("web", "2025-01-01", "[{hosts: [a.com]}]"), None);
    assert_eq!(fixture.problems(), "");
    assert!(fixture.built.certificates.serves("a.com"));
    assert_eq!(fixture.shown(Some("a.com")), "-");
}

#[test]
fn what_is_wrong_with_a_secret_is_told_with_its_name_and_field_and_nothing_of_the_key() {
    let (certificate, key) = pem(&["a.com"], (2020, 2100));
    let (_, other_key) = pem(&["a.com"], (2020, 2100));
    let (expired, expired_key) = pem(&["a.com"], (2000, 2001));
    let (early, early_key) = pem(&["a.com"], (2099, 2100));
    let cut = &key[..key.len() / 2];
    let cases = [
        ("type", secret_of_type("s", "Opaque", &certificate, &key)),
        ("no certificate", secret_of_type("s", "kubernetes.io/tls", "", &key)),
        ("no key", secret_of_type("s", "kubernetes.io/tls", &certificate, "")),
        (
            "certificate is text",
            secret_of_type("s", "kubernetes.io/tls", "hello", &key),
        ),
        (
            "key is text",
            secret_of_type("s", "kubernetes.io/tls", &certificate, "hello"),
        ),
        (
            "key is cut",
            secret_of_type("s", "kubernetes.io/tls", &certificate, cut),
        ),
        (
            "certificate is none",
            secret_of_type(
                "s",
                "kubernetes.io/tls",
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                &key,
            ),
        ),
        (
            "another's key",
            secret_of_type("s", "kubernetes.io/tls", &certificate, &other_key),
        ),
        ("missing", String::new()),
        (
            "expired",
            secret_of_type("s", "kubernetes.io/tls", &expired, &expired_key),
        ),
        (
            "not yet valid",
            secret_of_type("s", "kubernetes.io/tls", &early, &early_key),
        ),
        ("another name", secret("s", &["b.com"])),
    ];
    let mut all = String::new();
    for (what, secret) in cases {
        let fixture = fixture(
            &(secret + &ingress("web", "2025-01-01", "[{hosts: [a.com], secretName: s}]")),
            None,
        );
        let problems = fixture.problems();
        assert!(
            fixture.built.certificates.serves("a.com"),
            "{what}: what was to be encrypted is not served in clear"
        );
        let usable = matches!(what, "expired" | "not yet valid" | "another name");
        assert_eq!(fixture.shown(Some("a.com")) == "s", usable, "{what}");
        let lines: Vec<&str> = key.lines().filter(|line| line.len() > 20).collect();
        assert!(!lines.iter().any(|line| problems.contains(line)), "{what}: {problems}");
        all.push_str(&format!("# {what}\n{problems}"));
    }
    insta::assert_snapshot!(all);
}
