//! The Leases by which nodes agree on who announces an address, through a real API server, with the rights that
//! `deploy/fairway.yaml` gives the agent. What follows from them is tested in `announce.rs`.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fairway::announce::lease::api::InApi;
use fairway::announce::lease::{Claim, Leases as _, Record, Records};
use fairway::announce::view::{Standing, View};
use fairway::sources::kube::{Access, client};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use support::api_server::ApiServer;
use support::cluster::apply_manifests_for_users;
use support::skip;
use tokio::sync::watch;
use tokio::time::timeout;

const NAMESPACE: &str = "kube-system";
/// Whatever is waited for has to come within this.
const PATIENCE: Duration = Duration::from_secs(60);

fn record(node: &str, renewed: Timestamp) -> Record {
    Record {
        node: node.into(),
        held: true,
        acquired: Timestamp::from_second(1_700_000_000).expect("a time"),
        transitions: 0,
        renewed,
        duration: Duration::from_secs(2),
        claim: Claim {
            pools: ["default".into()].into(),
            ..Claim::default()
        },
    }
}

fn now() -> Timestamp {
    Timestamp::from_microsecond(Timestamp::now().as_microsecond()).expect("a time")
}

/// Waits until the Leases are as wanted.
async fn until(seen: &mut watch::Receiver<Option<Records>>, wanted: impl Fn(&Records) -> bool) -> Records {
    let seen = seen.wait_for(|records| records.as_ref().is_some_and(&wanted));
    let seen = timeout(PATIENCE, seen).await.expect("it is seen").expect("it goes on");
    seen.clone().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_see_each_others_leases_and_one_that_is_given_up_at_once() {
    let programs = match ApiServer::programs() {
        Ok(programs) => programs,
        Err(reason) => return skip("nodes_see_each_others_leases_and_one_that_is_given_up_at_once", &reason),
    };
    let server = ApiServer::start(&programs);
    apply_manifests_for_users(&server.client().await).await;
    let access = Access::Kubeconfig(server.kubeconfig_for("agent", server.port()));
    let agent = client(&access).await.expect("the kubeconfig is right");
    let [one, other] = [(); 2].map(|()| Arc::new(InApi::new(agent.clone(), NAMESPACE)));

    let (told, mut seen) = watch::channel(None);
    let follower = tokio::spawn({
        let other = Arc::clone(&other);
        async move { other.follow(told).await }
    });
    // One node renews, the other sees it, and both Leases lie in the API as such.
    for _ in 0..3 {
        for (leases, node) in [(&one, "node-1"), (&other, "node-2")] {
            let written = record(node, now());
            leases.write(&written).await.expect("the agent may");
            let records = until(&mut seen, |records| records.get(node) == Some(&written)).await;
            assert!(records.keys().all(|name| name.starts_with("node-")));
        }
    }
    let api: Api<Lease> = Api::namespaced(server.client().await, NAMESPACE);
    let lease = api.get("fairway-node-node-1").await.expect("it is there");
    let spec = lease.spec.clone().expect("it has one");
    assert_eq!(
        (spec.holder_identity.as_deref(), spec.lease_duration_seconds),
        (Some("node-1"), Some(2))
    );

    // Given up, it is free at once for those who watch.
    let mut view = View::new("node-2".into(), Duration::from_secs(2));
    view.take(&seen.borrow().clone().unwrap_or_default(), Instant::now());
    assert!(view.standing("node-1").is_some_and(Standing::is_live));
    let mut given_up = record("node-1", now());
    given_up.held = false;
    let began = Instant::now();
    one.write(&given_up).await.expect("the agent may");
    let records = until(&mut seen, |records| {
        records.get("node-1").is_some_and(|record| !record.held)
    })
    .await;
    println!(
        "a Lease that is given up is seen after {} ms",
        began.elapsed().as_millis()
    );
    view.take(&records, Instant::now());
    assert_eq!(view.standing("node-1"), Some(Standing::Released));

    // One that is deleted is gone as well.
    api.delete("fairway-node-node-1", &kube::api::DeleteParams::default())
        .await
        .expect("an administrator may");
    until(&mut seen, |records| !records.contains_key("node-1")).await;
    drop(seen);
    timeout(PATIENCE, follower)
        .await
        .expect("it ends")
        .expect("it does not panic");
}
