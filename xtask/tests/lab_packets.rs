//! What is not seen on every path: sockets that were not translated, and more than one segment at once.

mod common;

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use xtask::lab::plan::{Network, Place};
use xtask::lab::wire::download_byte;
use xtask::lab::{Form, Lab};

/// Load balancer addresses and ClusterIPs of `my-spring-app-dual`.
const FRONTENDS: [&str; 4] = ["198.51.100.81", "[2001:db8:100::81]", "10.96.0.81", "[fd00:10:96::81]"];

/// Bytes that fill many segments, and that leave a socket as segments to be cut by a device (GSO).
const BYTES: u64 = 2_000_000;

/// Runs curl in the namespace of a place, but not in its cgroup: no socket of it is translated.
fn curl(lab: &Lab, place: Place, arguments: &str) -> String {
    let script = format!("curl --silent --show-error --fail --max-time 20 {arguments}");
    lab.script(place, &script)
        .unwrap_or_else(|error| panic!("{place:?} {arguments}: {error:#}"))
}

fn served_without_sockets(network: Network, test: &str) {
    let Some(mut lab) = common::lab(network, test) else {
        return;
    };
    lab.wait_for_services(Form::LoadBalancer).expect("the agents work");
    for frontend in FRONTENDS {
        for _ in 0..12 {
            let answer = curl(&lab, Place::Node(0), &format!("http://{frontend}/"));
            assert!(answer.contains("\"pod\""), "{frontend}: {answer}");
        }
    }
    assert_eq!(lab.martians().expect("counters can be read"), []);
}

#[test]
fn a_node_process_whose_socket_was_not_translated_is_served_by_its_packets() {
    served_without_sockets(
        Network::Routed,
        "a_node_process_whose_socket_was_not_translated_is_served_by_its_packets",
    );
}

#[test]
fn a_node_process_whose_socket_was_not_translated_is_served_through_an_overlay() {
    served_without_sockets(
        Network::Vxlan,
        "a_node_process_whose_socket_was_not_translated_is_served_through_an_overlay",
    );
}

#[test]
fn a_node_process_whose_socket_was_not_translated_is_served_by_pods_on_bridges() {
    served_without_sockets(
        Network::Bridge,
        "a_node_process_whose_socket_was_not_translated_is_served_by_pods_on_bridges",
    );
}

#[test]
fn uploads_and_downloads_of_many_segments_arrive_whole() {
    let test = "uploads_and_downloads_of_many_segments_arrive_whole";
    let nonce = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock")
        .as_nanos();
    let file = std::env::temp_dir().join(format!("fairway-upload-{}-{nonce}", std::process::id()));
    for network in [Network::Routed, Network::Vxlan] {
        let Some(mut lab) = common::lab(network, test) else {
            return;
        };
        lab.wait_for_services(Form::LoadBalancer).expect("the agents work");
        let bytes: Vec<u8> = (0..BYTES).map(download_byte).collect();
        fs::write(&file, bytes).expect("a file can be written");
        let wanted = format!("{BYTES} of {BYTES} bytes are right\n");
        for place in [Place::Client, Place::Pod(0), Place::Node(0)] {
            let known = if place == Place::Client {
                &FRONTENDS[..2]
            } else {
                &FRONTENDS[..]
            };
            for frontend in known {
                let upload = format!(
                    "--header Expect: --data-binary @{} http://{frontend}/upload",
                    file.display()
                );
                let download = format!(
                    "--output /dev/null --write-out '%{{size_download}}' 'http://{frontend}/download?bytes={BYTES}'"
                );
                for _ in 0..3 {
                    assert_eq!(curl(&lab, place, &upload), wanted, "{place:?} to {frontend}");
                    assert_eq!(
                        curl(&lab, place, &download),
                        BYTES.to_string(),
                        "{place:?} from {frontend}"
                    );
                }
            }
        }
        assert_eq!(lab.martians().expect("counters can be read"), []);
    }
    fs::remove_file(&file).expect("the file was written");
}
