//! Backends and clients that are broken, slow, or mean.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use hyper::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use crate::backends::{closes_kept_connections, says};
use crate::client::{Error, Reply, connect, get, http1, raw, request};
use crate::lab::{Lab, backend_address, ingress, service};
use crate::one_host;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_meets_a_closed_kept_connection_and_is_repeated_only_if_it_may_be() {
    let at = backend_address();
    let backend = closes_kept_connections(at).await;
    let documents = [service("web", at, ""), ingress("web", "a.example", "web", at.port())];
    // One thread: the second request is bound to find the connection of the first one.
    let lab = Lab::start("closed", &documents, &["--threads", "1"]).await;
    let mut connection = http1(connect(lab.http).await.unwrap()).await.unwrap();
    let mut ask = async |method: &str| -> Result<u16, Error> {
        let request = Request::builder().method(method).uri("/").header("host", "a.example");
        connection.ready().await?;
        let response = connection.send_request(request.body(Body::empty())?).await?;
        Ok(Reply::of(response).await?.status)
    };
    // The first one is answered; the second one is closed upon, and repeated over another connection.
    assert_eq!(ask("GET").await.unwrap(), 200);
    assert_eq!(ask("GET").await.unwrap(), 200);
    assert_eq!(backend.seen.aborted.load(Ordering::Relaxed), 1);
    // What a POST did there is not known.
    assert_eq!(ask("POST").await.unwrap(), 502);
    assert_eq!(backend.seen.aborted.load(Ordering::Relaxed), 2);
    assert_eq!(backend.seen.requests.load(Ordering::Relaxed), 2);
    let metrics = lab.metrics().await;
    assert!(
        metrics.contains(r#"fairway_ingress_backend_retries_total{service="default/web"} 1"#),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_answers_are_a_502_and_never_reach_the_client() {
    for answer in [
        &b"nonsense\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"",
    ] {
        let at = backend_address();
        let _backend = says(at, answer).await;
        let documents = [service("web", at, ""), ingress("web", "a.example", "web", at.port())];
        let lab = Lab::start("broken", &documents, &[]).await;
        let reply = get(lab.http, "a.example", "/").await;
        let expected = (502, "The backend did not give a valid answer.\n");
        assert_eq!((reply.status, reply.text()), expected, "{}", answer.escape_ascii());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_backend_is_a_504() {
    let (lab, _backend) = one_host("silent", &["--backend-timeout", "300ms"]).await;
    let began = Instant::now();
    let reply = get(lab.http, "a.example", "/silent").await;
    assert_eq!(
        (reply.status, reply.text()),
        (504, "The backend did not answer in time.\n")
    );
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // The next one is none the worse.
    assert_eq!(get(lab.http, "a.example", "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_cut_off() {
    let flags = [
        "--head-timeout",
        "400ms",
        "--client-timeout",
        "400ms",
        "--client-idle-timeout",
        "1s",
    ];
    let (lab, _backend) = one_host("slow-clients", &flags).await;
    // No head, half a head, and half a body.
    for begun in [
        "",
        "GET / HTTP/1.1\r\nHost: a.ex",
        "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 9\r\n\r\nhalf",
    ] {
        let mut stream = connect(lab.http).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "{begun:?} is still waited for");
    }
    // A head that trickles in.
    let mut stream = connect(lab.http).await.unwrap();
    let began = Instant::now();
    while stream.write_all(b"G").await.is_ok() {
        sleep(Duration::from_millis(100)).await;
        assert!(began.elapsed() < Duration::from_secs(5), "a trickle holds a connection");
    }
    // A kept connection without a request.
    let mut stream = connect(lab.http).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .await
        .unwrap();
    let ended = timeout(Duration::from_secs(5), stream.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "an idle connection is kept");
    lab.until("connections are counted down", async || {
        lab.metrics()
            .await
            .contains(r#"fairway_ingress_connections{listener="http"} 0"#)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_its_client_gives_up_is_given_up_at_the_backend() {
    let (lab, backend) = one_host("given-up", &[]).await;
    let mut stream = connect(lab.http).await.unwrap();
    stream
        .write_all(b"GET /drip HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .await
        .unwrap();
    stream.read_u8().await.unwrap();
    assert_eq!(backend.seen.aborted.load(Ordering::Relaxed), 0);
    drop(stream);
    lab.until("the backend learns of it", async || {
        backend.seen.aborted.load(Ordering::Relaxed) == 1
    })
    .await;
}

/// Requests that two readers could take for different ones are refused, or reach the backend as one.
#[tokio::test(flavor = "multi_thread")]
async fn requests_cannot_be_smuggled() {
    let (lab, backend) = one_host("smuggled", &[]).await;
    let refused = [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
        "GET http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: +1\r\n\r\nx",
        "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nX : 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\n X: folded\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nX: a\0b\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    ];
    for bytes in refused {
        let answer = raw(lab.http, bytes.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") || answer.is_empty(),
            "{bytes:?}: {answer}"
        );
    }
    assert_eq!(
        backend.seen.requests.load(Ordering::Relaxed),
        0,
        "one of them came through"
    );
    // With both lengths the chunks count, and the connection ends: what follows is nobody's request.
    let both = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
                3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let answer = raw(lab.http, both.as_bytes()).await;
    assert!(answer.contains(r#""received":3"#), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
    assert_eq!(backend.seen.requests.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_clients_than_are_allowed_wait() {
    let (lab, _backend) = one_host("full", &["--max-connections", "2", "--client-idle-timeout", "1s"]).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut connection = http1(connect(lab.http).await.unwrap()).await.unwrap();
        let reply = Reply::of(connection.send_request(request("a.example", "/")).await.unwrap()).await;
        assert_eq!(reply.unwrap().status, 200);
        held.push(connection);
    }
    // It is served as soon as one of the others was idle for long enough.
    let began = Instant::now();
    assert_eq!(get(lab.http, "a.example", "/").await.status, 200);
    assert!(
        began.elapsed() > Duration::from_millis(500),
        "it was served beside them: {:?}",
        began.elapsed()
    );
}
