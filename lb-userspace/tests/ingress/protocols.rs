//! What clients and backends speak: TLS, HTTP/2, gRPC, WebSocket, bodies of any size, the PROXY protocol.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::body::Body;
use futures::{SinkExt as _, StreamExt as _};
use hyper::Request;
use hyper::server::conn as server;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tonic::transport::Endpoint;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::backends::{BIG, big_body, echo};
use crate::client::{Reply, connect, http1, http2, raw, request, shown, tls};
use crate::lab::{Lab, PATIENCE, backend_address, ingress, secret, service, tls_ingress};
use crate::one_host;

/// A certificate for these names, and its manifest.
pub fn certificate(secret_name: &str, names: &[&str]) -> (CertificateDer<'static>, String) {
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate can be made");
    let manifest = secret(secret_name, &made.cert.pem(), &made.signing_key.serialize_pem());
    (made.cert.der().clone(), manifest)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_shown_the_certificate_of_their_name_and_speak_http2_or_http1() {
    let at = backend_address();
    let _backend = echo("one", at).await;
    let (first, first_secret) = certificate("a-tls", &["a.example"]);
    let (second, second_secret) = certificate("b-tls", &["*.b.example"]);
    let documents = [
        service("web", at, ""),
        tls_ingress("a", "a.example", "web", at.port()),
        tls_ingress("b", "*.b.example", "web", at.port()),
        first_secret,
        second_secret,
    ];
    let lab = Lab::start("tls", &documents, &[]).await;
    for (name, expected) in [("a.example", &first), ("x.b.example", &second)] {
        let trusted = [first.clone(), second.clone()];
        let stream = tls(lab.https, name, &trusted, &["h2", "http/1.1"]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        assert_eq!(shown(&stream), *expected, "{name}");
        let mut connection = http2(stream).await.unwrap();
        let asked = Request::get(format!("https://{name}/x"))
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(Body::empty())
            .unwrap();
        let reply = Reply::of(connection.send_request(asked).await.unwrap()).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        let told = reply.json();
        assert_eq!(told["version"], "HTTP/1.1");
        assert_eq!(told["headers"]["host"], json!([name]));
        assert_eq!(told["headers"]["cookie"], json!(["a=1; b=2"]));
        assert_eq!(told["headers"]["x-forwarded-proto"], json!(["https"]));
        assert_eq!(told["headers"]["x-forwarded-port"], json!(["443"]));
        assert_eq!(told["headers"]["x-forwarded-host"], json!([name]));
        // Many at a time.
        let asked: Vec<_> = (0..50)
            .map(|_| {
                let asked = Request::get(format!("https://{name}/x")).body(Body::empty()).unwrap();
                let response = connection.send_request(asked);
                async { Reply::of(response.await.unwrap()).await.unwrap().status }
            })
            .collect();
        assert_eq!(futures::future::join_all(asked).await, [200; 50]);

        let stream = tls(lab.https, name, &trusted, &["http/1.1"]).await.unwrap();
        let mut connection = http1(stream).await.unwrap();
        let reply = Reply::of(connection.send_request(request(name, "/")).await.unwrap())
            .await
            .unwrap();
        assert_eq!(reply.status, 200);
    }
    // A name that has no certificate gets one that nobody trusts.
    assert!(tls(lab.https, "c.example", &[first, second], &[]).await.is_err());
    let line = lab
        .access_log()
        .into_iter()
        .find(|line| line["protocol"] == "HTTP/2")
        .expect("a line");
    assert_eq!(line["tls"], "TLSv1.3", "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_goes_through_with_its_streams_and_trailers() {
    let at = backend_address();
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("shop", ServingStatus::Serving).await;
    let listener = TcpListener::bind(at).await.unwrap();
    let backend = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(health.clone());
            let connection = server::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
        }
    });
    let (trusted, secret) = certificate("grpc-tls", &["grpc.example"]);
    let documents = [
        service("grpc", at, "kubernetes.io/h2c"),
        tls_ingress("grpc", "grpc.example", "grpc", at.port()),
        secret,
    ];
    let lab = Lab::start("grpc", &documents, &[]).await;

    // Without TLS, by prior knowledge.
    let origin = "http://grpc.example".parse().unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{}", lab.http))
        .unwrap()
        .origin(origin);
    let mut client = HealthClient::new(endpoint.connect().await.unwrap());
    let ask = |service: &str| HealthCheckRequest {
        service: service.into(),
    };
    let answer = client.check(ask("shop")).await.unwrap().into_inner();
    assert_eq!(answer.status, ServingStatus::Serving as i32);
    // The status of a failed call is in the trailers.
    let refused = client.check(ask("nothing")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound, "{refused:?}");
    // A stream that goes on.
    let mut stream = client.watch(ask("shop")).await.unwrap().into_inner();
    for status in [
        ServingStatus::Serving,
        ServingStatus::NotServing,
        ServingStatus::Serving,
    ] {
        reporter.set_service_status("shop", status).await;
        let seen = timeout(PATIENCE, async {
            loop {
                let update = stream.message().await.unwrap().expect("the stream goes on");
                if update.status == status as i32 {
                    break;
                }
            }
        });
        seen.await.unwrap_or_else(|_| panic!("{status:?} never came"));
    }

    // Over TLS, as bytes.
    let stream = tls(lab.https, "grpc.example", &[trusted], &["h2"]).await.unwrap();
    let mut connection = http2(stream).await.unwrap();
    let message = [&[0, 0, 0, 0, 6][..], b"\x0a\x04shop"].concat();
    let asked = Request::post("https://grpc.example/grpc.health.v1.Health/Check")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::from(message))
        .unwrap();
    let mut response = connection.send_request(asked).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut trailers = None;
    while let Some(frame) =
        std::future::poll_fn(|cx| hyper::body::Body::poll_frame(std::pin::Pin::new(response.body_mut()), cx)).await
    {
        if let Ok(seen) = frame.unwrap().into_trailers() {
            trailers = Some(seen);
        }
    }
    assert_eq!(trailers.expect("there are trailers")["grpc-status"], "0");
    backend.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_go_through_both_ways() {
    let at = backend_address();
    let listener = TcpListener::bind(at).await.unwrap();
    let backend = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.unwrap();
            }
        }
    });
    let documents = [service("ws", at, ""), ingress("ws", "ws.example", "ws", at.port())];
    let lab = Lab::start("websocket", &documents, &[]).await;
    let stream = connect(lab.http).await.unwrap();
    let (mut socket, response) = tokio_tungstenite::client_async("ws://ws.example/chat", stream)
        .await
        .unwrap();
    assert_eq!(response.status(), 101);
    for length in [1, 1000, 1 << 20] {
        let message = Message::binary(vec![7; length]);
        socket.send(message.clone()).await.unwrap();
        let echoed = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(echoed, message);
    }
    socket.close(None).await.unwrap();
    while let Ok(Some(Ok(_))) = timeout(PATIENCE, socket.next()).await {}
    timeout(PATIENCE, backend)
        .await
        .expect("the backend learns of the end")
        .unwrap();
    lab.until("it is counted", async || {
        let metrics = lab.metrics().await;
        metrics.contains(r#"service="default/ws",code="1xx",protocol="websocket"} 1"#)
    })
    .await;
}

/// Takes an answer's body and throws it away; how long it was.
async fn length(response: hyper::Response<hyper::body::Incoming>) -> usize {
    let mut body = Body::new(response.into_body()).into_data_stream();
    let mut length = 0;
    while let Some(chunk) = body.next().await {
        length += chunk.expect("it comes whole").len();
    }
    length
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_pass_either_way_and_are_never_held() {
    let at = backend_address();
    let _backend = echo("one", at).await;
    let (trusted, secret) = certificate("web-tls", &["a.example"]);
    let documents = [
        service("web", at, ""),
        tls_ingress("web", "a.example", "web", at.port()),
        secret,
    ];
    let lab = Lab::start("big", &documents, &[]).await;
    let before = lab.peak_memory();

    let mut connection = http1(connect(lab.http).await.unwrap()).await.unwrap();
    let response = connection.send_request(request("a.example", "/big")).await.unwrap();
    assert_eq!(length(response).await, BIG);
    let upload = Request::post("/").header("host", "a.example").body(big_body()).unwrap();
    connection.ready().await.expect("the connection is kept");
    let told = Reply::of(connection.send_request(upload).await.unwrap())
        .await
        .unwrap()
        .json();
    assert_eq!(told["received"], BIG);

    let stream = tls(lab.https, "a.example", &[trusted], &["h2"]).await.unwrap();
    let mut connection = http2(stream).await.unwrap();
    let asked = Request::get("https://a.example/big").body(Body::empty()).unwrap();
    assert_eq!(length(connection.send_request(asked).await.unwrap()).await, BIG);
    let upload = Request::post("https://a.example/").body(big_body()).unwrap();
    let told = Reply::of(connection.send_request(upload).await.unwrap())
        .await
        .unwrap()
        .json();
    assert_eq!(told["received"], BIG);

    let grown = lab.peak_memory() - before;
    assert!(grown < 40 << 20, "it grew by {} MB", grown >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_waits_until_the_backend_wants_it() {
    let (lab, _backend) = one_host("continue", &[]).await;
    let mut stream = connect(lab.http).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 25];
    timeout(PATIENCE, stream.read_exact(&mut first))
        .await
        .expect("it is told to go on")
        .unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut answer = vec![0; 12];
    timeout(PATIENCE, stream.read_exact(&mut answer))
        .await
        .expect("it is answered")
        .unwrap();
    assert_eq!(answer, b"HTTP/1.1 200");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_a_load_balancer_are_known_by_its_proxy_header() {
    let (lab, _backend) = one_host("proxy-header", &["--proxy-protocol", "127.0.0.1/32"]).await;
    let get = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    let version_1 = format!("PROXY TCP6 2001:db8::7 2001:db8::1 4711 80\r\n{get}");
    let mut version_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    version_2.extend([192, 0, 2, 7, 192, 0, 2, 1, 18, 103, 0, 80]);
    version_2.extend(get.as_bytes());
    for (bytes, client) in [(version_1.into_bytes(), "2001:db8::7"), (version_2, "192.0.2.7")] {
        let answer = raw(lab.http, &bytes).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            answer.contains(&format!(r#""x-forwarded-for":["{client}"]"#)),
            "{answer}"
        );
    }
    // Without a header nothing is guessed.
    assert_eq!(raw(lab.http, get.as_bytes()).await, "");
    // Others cannot name a client: the first line is no request.
    let outside = connect_from(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), lab.http).await;
    let (mut read, mut write) = outside.into_split();
    write
        .write_all(format!("PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n{get}").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    let _end = timeout(Duration::from_secs(5), read.read_to_string(&mut answer))
        .await
        .expect("it ends");
    assert!(!answer.contains("200 OK"), "{answer}");
    // As before for them.
    let outside = connect_from(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), lab.http).await;
    let mut connection = http1(outside).await.unwrap();
    let told = Reply::of(connection.send_request(request("a.example", "/")).await.unwrap())
        .await
        .unwrap()
        .json();
    assert_eq!(told["headers"]["x-forwarded-for"], json!(["127.0.0.2"]));
}

async fn connect_from(source: IpAddr, at: SocketAddr) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket can be made");
    socket.bind((source, 0).into()).expect("an address of the loopback");
    let connected = timeout(PATIENCE, socket.connect(at)).await.expect("it answers");
    connected.expect("it listens")
}
