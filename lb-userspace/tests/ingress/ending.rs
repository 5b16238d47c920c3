//! The beginning and the end of the process.

use std::time::{Duration, Instant};

use axum::body::Body;
use hyper::Request;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use crate::client::{Reply, connect, get, http1, http2, request};
use crate::lab::PATIENCE;
use crate::one_host;

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_in_order_and_finishes_what_it_has_begun() {
    let (mut lab, _backend) = one_host("ends", &["--drain-delay", "1s"]).await;
    let mut slow = http1(connect(lab.http).await.unwrap()).await.unwrap();
    let mut kept = http1(connect(lab.http).await.unwrap()).await.unwrap();
    let mut streams = http2(connect(lab.http).await.unwrap()).await.unwrap();
    let over_http2 = |path: &str| {
        Request::get(format!("http://a.example{path}"))
            .body(Body::empty())
            .unwrap()
    };
    let mut idle = connect(lab.http).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .await
        .unwrap();
    let reply = Reply::of(kept.send_request(request("a.example", "/")).await.unwrap())
        .await
        .unwrap();
    assert_ne!(
        reply.headers.get("connection").map(http::HeaderValue::as_bytes),
        Some(&b"close"[..])
    );
    assert_eq!(
        Reply::of(streams.send_request(over_http2("/")).await.unwrap())
            .await
            .unwrap()
            .status,
        200
    );

    lab.signal(Signal::SIGTERM);
    lab.until("it is not ready", async || lab.readiness().await == Some(503))
        .await;
    // It goes on for those who do not know yet, and lets go of those who do not ask anything.
    assert_eq!(get(lab.http, "a.example", "/").await.status, 200);
    kept.ready().await.expect("the connection is kept");
    let reply = Reply::of(kept.send_request(request("a.example", "/")).await.unwrap())
        .await
        .unwrap();
    assert_eq!(
        (reply.status, reply.headers["connection"].as_bytes()),
        (200, &b"close"[..])
    );
    assert_eq!(
        Reply::of(streams.send_request(over_http2("/")).await.unwrap())
            .await
            .unwrap()
            .status,
        200
    );

    // These are under way when no more connections are taken.
    sleep(Duration::from_millis(300)).await;
    let slow_http1 =
        tokio::spawn(async move { Reply::of(slow.send_request(request("a.example", "/slow")).await?).await });
    let asked = streams.send_request(over_http2("/slow"));
    let slow_http2 = tokio::spawn(async move { Reply::of(asked.await?).await });
    lab.until("no more connections are taken", async || {
        connect(lab.http).await.is_err()
    })
    .await;
    assert!(
        !slow_http1.is_finished() && !slow_http2.is_finished(),
        "they were not under way"
    );
    let mut rest = Vec::new();
    timeout(PATIENCE, idle.read_to_end(&mut rest))
        .await
        .expect("an idle connection is closed")
        .unwrap();
    assert_eq!(slow_http1.await.unwrap().unwrap().status, 200);
    assert_eq!(slow_http2.await.unwrap().unwrap().status, 200);
    let mut ended = None;
    let deadline = Instant::now() + PATIENCE;
    while ended.is_none() && Instant::now() < deadline {
        ended = lab.ended_well();
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(ended, Some(true), "{}", lab.log());
    assert!(lab.log().contains("every request was answered"), "{}", lab.log());
    assert_eq!(
        lab.access_log().iter().filter(|line| line["path"] == "/slow").count(),
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_longer_than_the_grace_is_cut_off_and_a_second_signal_ends_at_once() {
    for (signals, grace, at_most) in [(1, "1s", 3), (2, "1m", 2)] {
        let (mut lab, _backend) = one_host("grace", &["--grace", grace]).await;
        let mut connection = http1(connect(lab.http).await.unwrap()).await.unwrap();
        let asked = tokio::spawn(async move { connection.send_request(request("a.example", "/silent")).await.is_ok() });
        sleep(Duration::from_millis(100)).await;
        let began = Instant::now();
        for _ in 0..signals {
            lab.signal(Signal::SIGTERM);
            sleep(Duration::from_millis(100)).await;
        }
        let mut ended = None;
        while ended.is_none() {
            assert!(
                began.elapsed() < Duration::from_secs(at_most),
                "it is still there\n{}",
                lab.log()
            );
            ended = lab.ended_well();
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(ended, Some(true), "{}", lab.log());
        assert!(!asked.await.unwrap(), "a request that was cut off has an answer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_ready_once_all_objects_are_read_and_takes_nobody_before() {
    let (lab, _backend) = one_host("ready", &[]).await;
    // The first answer after it was ready is by the rules already.
    assert_eq!(get(lab.http, "a.example", "/").await.status, 200);
    assert_eq!(get(lab.metrics, "metrics", "/healthz").await.text(), "ok\n");
}
