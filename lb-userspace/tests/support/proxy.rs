//! A wire to a server that can be cut.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Passes connections on to a server on loopback. Cut, it ends all connections and refuses new ones.
#[derive(Debug)]
pub struct Proxy {
    server: u16,
    port: u16,
    task: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port for the server that listens on `server`.
    pub async fn start(server: u16) -> Self {
        let listener = listen(0).await.into_std().expect("it is a socket");
        Self::behind(listener, server).await
    }

    /// Takes connections from a listener, which may be of another network namespace.
    pub async fn behind(listener: std::net::TcpListener, server: u16) -> Self {
        let port = listener.local_addr().expect("it is bound").port();
        listener.set_nonblocking(true).expect("it can be");
        let listener = TcpListener::from_std(listener).expect("it is a socket");
        let task = Some(tokio::spawn(serve(listener, server)));
        Self { server, port, task }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends all connections and refuses new ones.
    pub async fn cut(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await;
        }
    }

    /// Listens again, on the same port.
    pub async fn mend(&mut self) {
        let listener = listen(self.port).await;
        self.task = Some(tokio::spawn(serve(listener, self.server)));
    }
}

async fn listen(port: u16) -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap_or_else(|error| panic!("cannot listen on port {port}: {error}"))
}

async fn serve(listener: TcpListener, server: u16) {
    // Its tasks end when this one is aborted.
    let mut connections = JoinSet::new();
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            continue;
        };
        connections.spawn(async move {
            let server = SocketAddr::from((Ipv4Addr::LOCALHOST, server));
            if let Ok(mut server) = TcpStream::connect(server).await {
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}
