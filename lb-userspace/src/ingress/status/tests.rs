use super::*;
use crate::ingress::objects::fixtures::objects;

fn ingress(name: &str, status: &str) -> String {
    format!("---\nkind: Ingress\nmetadata: {{name: {name}}}\nstatus: {{loadBalancer: {{ingress: {status}}}}}\n")
}

fn keys(names: &[&str]) -> HashSet<ObjectKey> {
    names.iter().map(|name| ObjectKey::new("default", name)).collect()
}

fn addresses() -> [Address; 2] {
    [
        Address::Ip("192.0.2.1".parse().expect("an address")),
        Address::Hostname("lb.example.com".into()),
    ]
}

const RIGHT: &str = "[{ip: 192.0.2.1}, {hostname: lb.example.com}]";

fn differing(wanted: &Wanted) -> Vec<String> {
    let differing = wanted.differing.iter();
    differing
        .map(|(key, addresses)| format!("{}: {}", key.name, Listed(addresses)))
        .collect()
}

#[test]
fn only_what_differs_is_written_and_nothing_of_others() {
    let all = objects(
        &(ingress("right", RIGHT)
            + &ingress("new", "[]")
            + &ingress("old", "[{ip: 192.0.2.9}]")
            + &ingress("another", "[]")),
    );
    let ours = keys(&["right", "new", "old"]);
    let wanted = Wanted::of(&all, &ours, &HashSet::new(), &addresses());
    assert_eq!(
        differing(&wanted),
        ["new: 192.0.2.1 lb.example.com", "old: 192.0.2.1 lb.example.com"]
    );
    let wanted = Wanted::of(&all, &ours, &HashSet::new(), &[]);
    assert_eq!(
        differing(&wanted),
        ["old: ", "right: "],
        "without addresses they are cleared"
    );
}

#[test]
fn what_leaves_us_is_cleared() {
    let all = objects(&(ingress("left", RIGHT) + &ingress("another", RIGHT)));
    let wanted = Wanted::of(&all, &HashSet::new(), &keys(&["left"]), &addresses());
    assert_eq!(differing(&wanted), ["left: "]);
}

#[test]
fn a_status_is_written_as_the_api_has_it_and_cleared_by_null() {
    assert_eq!(
        status(&addresses()).to_string(),
        r#"{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"},{"hostname":"lb.example.com"}]}}"#
    );
    assert_eq!(status(&[]).to_string(), r#"{"loadBalancer":{"ingress":null}}"#);
}

#[test]
fn the_file_has_a_document_for_each_of_ours_and_is_replaced_as_a_whole() {
    let dir = std::env::temp_dir().join(format!("fairway-ingress-status-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the folder for temporary files can be written");
    let all = objects(&ingress("web", "[]"));
    let wanted = Wanted::of(&all, &keys(&["web"]), &HashSet::new(), &addresses());
    let content = file(&wanted).expect("there is something to say");
    assert_eq!(
        content,
        "# The status of Ingresses, written by `fairway ingress`.\n---\n\
         {\"apiVersion\":\"networking.k8s.io/v1\",\"kind\":\"Ingress\",\"metadata\":{\"name\":\"web\",\"namespace\":\"default\"},\
         \"status\":{\"loadBalancer\":{\"ingress\":[{\"ip\":\"192.0.2.1\"},{\"hostname\":\"lb.example.com\"}]}}}\n"
    );
    write_file(&dir, Some(&content)).expect("it can be written");
    let written = || {
        let names = std::fs::read_dir(&dir).expect("it is there");
        names
            .map(|entry| entry.expect("it can be read").file_name())
            .collect::<Vec<_>>()
    };
    assert_eq!(written(), [FILE]);
    assert_eq!(std::fs::read_to_string(dir.join(FILE)).expect("it is there"), content);
    let nothing = Wanted::of(&all, &keys(&["web"]), &HashSet::new(), &[]);
    write_file(&dir, file(&nothing).as_deref()).expect("it can be removed");
    assert_eq!(written(), [""; 0]);
    write_file(&dir, None).expect("it is so already");
    std::fs::remove_dir(&dir).expect("it is empty");
}
