//! Changes of objects while clients ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use hyper::Request;
use rustls::pki_types::CertificateDer;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::backends::echo;
use crate::client::{Error, Reply, connect, get, http1, http2, request, shown, tls};
use crate::lab::{Lab, backend_address, ingress, service, tls_ingress};
use crate::protocols::certificate;

/// Clients that ask without end, over connections that they keep and over new ones. Every answer has to be a 200.
struct Load {
    over: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Result<(), Error>>>,
}

impl Load {
    fn start(at: std::net::SocketAddr, host: &'static str) -> Self {
        let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = (0..4)
            .map(|number| {
                let (over, asked) = (Arc::clone(&over), Arc::clone(&asked));
                tokio::spawn(async move {
                    let mut connection = http1(connect(at).await?).await?;
                    while !over.load(Ordering::Relaxed) {
                        if number % 2 == 0 {
                            connection = http1(connect(at).await?).await?;
                        }
                        connection.ready().await?;
                        let reply = Reply::of(connection.send_request(request(host, "/")).await?).await?;
                        if reply.status != 200 {
                            return Err(format!("{reply:?}").into());
                        }
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        Self { over, asked, clients }
    }

    /// Waits until so many more were answered.
    async fn go_on(&self, lab: &Lab, requests: usize) {
        let until = self.asked.load(Ordering::Relaxed) + requests;
        lab.until("clients are answered", async || {
            self.asked.load(Ordering::Relaxed) >= until
        })
        .await;
    }

    /// How many were answered.
    async fn end(self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        for client in self.clients {
            client
                .await
                .expect("clients do not panic")
                .expect("every request is answered with 200");
        }
        self.asked.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ingresses_and_services_change_without_one_failed_request() {
    let (blue_at, green_at) = (backend_address(), backend_address());
    let (_blue, _green) = (echo("blue", blue_at).await, echo("green", green_at).await);
    let documents = [service("blue", blue_at, ""), service("green", green_at, "")];
    let lab = Lab::launch("reload", &documents, &[]);
    lab.put("web", &ingress("web", "a.example", "blue", 8080));
    lab.until_ready().await;
    lab.until("the rule is in force", async || {
        get(lab.http, "a.example", "/").await.status == 200
    })
    .await;
    let load = Load::start(lab.http, "a.example");
    for (number, color) in ["green", "blue", "green", "blue", "green"].into_iter().enumerate() {
        // The rule changes, and others come and go.
        lab.put("web", &ingress("web", "a.example", color, 8080));
        lab.put("other", &ingress("other", &format!("{number}.example"), color, 8080));
        lab.until("the change is in force", async || {
            let reply = get(lab.http, "a.example", "/").await;
            reply.status == 200 && reply.json()["backend"] == color
        })
        .await;
        load.go_on(&lab, 50).await;
    }
    // The Service itself moves.
    lab.put(
        "first",
        &[service("blue", blue_at, ""), service("green", blue_at, "")].join("---\n"),
    );
    lab.until("the Service has moved", async || {
        get(lab.http, "a.example", "/").await.json()["backend"] == "blue"
    })
    .await;
    load.go_on(&lab, 50).await;
    let asked = load.end().await;
    assert!(asked >= 300, "{asked} requests");
    assert_eq!(get(lab.http, "0.example", "/").await.status, 404);
    assert_eq!(get(lab.http, "4.example", "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_shown_at_once_and_no_connection_is_lost() {
    let at = backend_address();
    let _backend = echo("one", at).await;
    let (old, old_secret) = certificate("web-tls", &["a.example"]);
    let (new, new_secret) = certificate("web-tls", &["a.example"]);
    let lab = Lab::launch(
        "certificate",
        &[
            service("web", at, ""),
            tls_ingress("web", "a.example", "web", at.port()),
        ],
        &[],
    );
    lab.put("secret", &old_secret);
    lab.until_ready().await;
    let https = lab.https;
    let trusted = [old.clone(), new.clone()];
    lab.until("the certificate is shown", async || {
        tls(https, "a.example", &trusted, &[]).await.is_ok()
    })
    .await;

    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<JoinHandle<Result<Vec<CertificateDer<'static>>, Error>>> = (0..3)
        .map(|_| {
            let (over, trusted) = (Arc::clone(&over), trusted.clone());
            tokio::spawn(async move {
                let kept = tls(https, "a.example", &trusted, &["h2"]).await?;
                let mut kept = http2(kept).await?;
                let mut seen = vec![];
                while !over.load(Ordering::Relaxed) {
                    let stream = tls(https, "a.example", &trusted, &["http/1.1"]).await?;
                    let certificate = shown(&stream);
                    if seen.last() != Some(&certificate) {
                        seen.push(certificate);
                    }
                    let mut connection = http1(stream).await?;
                    let over_new = Reply::of(connection.send_request(request("a.example", "/")).await?).await?;
                    let asked = Request::get("https://a.example/").body(Body::empty())?;
                    let over_kept = Reply::of(kept.send_request(asked).await?).await?;
                    if (over_new.status, over_kept.status) != (200, 200) {
                        return Err(format!("{over_new:?} {over_kept:?}").into());
                    }
                }
                Ok(seen)
            })
        })
        .collect();
    sleep(Duration::from_millis(200)).await;
    lab.put("secret", &new_secret);
    lab.until("the new one is shown", async || {
        let stream = tls(https, "a.example", &trusted, &[]).await.unwrap();
        shown(&stream) == new
    })
    .await;
    sleep(Duration::from_millis(200)).await;
    over.store(true, Ordering::Relaxed);
    for client in clients {
        let seen = client.await.unwrap().expect("every request is answered with 200");
        assert_eq!(seen, [old.clone(), new.clone()], "the certificates did not change once");
    }
}
