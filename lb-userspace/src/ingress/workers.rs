//! The threads that carry requests.
//!
//! Each has a runtime, a proxy and a pool of connections to backends of its own, so that a request stays on the thread that
//! took its connection, and no thread waits for another. All of them take connections from the same listeners: whoever has
//! nothing to do takes the next one.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use pingora::apps::HttpServerApp as _;
use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use tokio::runtime::Builder;
use tokio::sync::mpsc;

use super::engine::{Engine, TRIES};
use super::listen::{self, Spoken};
use super::{Shared, Stage};

/// Bytes of a request's body that an HTTP/2 client may send before they are taken, for a stream and for a connection.
const STREAM_WINDOW: u32 = 1 << 18;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// The threads.
#[derive(Debug)]
pub struct Workers(Vec<JoinHandle<()>>);

impl Workers {
    /// Starts as many as `threads`.
    ///
    /// # Errors
    /// If a thread or its runtime cannot be had.
    pub fn start(threads: usize, listeners: &[(TcpListener, Spoken)], shared: &Arc<Shared>) -> io::Result<Self> {
        let mut workers = Vec::with_capacity(threads);
        for number in 0..threads {
            let own: Vec<_> = listeners
                .iter()
                .map(|(listener, spoken)| Ok((listener.try_clone()?, spoken.clone())))
                .collect::<io::Result<_>>()?;
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let shared = Arc::clone(shared);
            let worker = thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || runtime.block_on(work(own, shared, threads)))?;
            workers.push(worker);
        }
        Ok(Self(workers))
    }

    /// Whether all of them have ended.
    pub fn ended(&self) -> bool {
        self.0.iter().all(JoinHandle::is_finished)
    }
}

async fn work(listeners: Vec<(TcpListener, Spoken)>, shared: Arc<Shared>, threads: usize) {
    let proxy = Arc::new(proxy(&shared, threads));
    let (alive, mut over) = mpsc::channel::<()>(1);
    for (listener, spoken) in listeners {
        let (shared, proxy, alive) = (Arc::clone(&shared), Arc::clone(&proxy), alive.clone());
        tokio::spawn(async move { listen::accept(listener, spoken, shared, proxy, alive).await });
    }
    drop(alive);
    let mut stage = shared.stage.subscribe();
    // The sender lives as long as the process.
    let closing = stage.wait_for(|stage| *stage >= Stage::Closing).await.is_ok();
    debug_assert!(closing, "stages are told as long as there are workers");
    // Connections without a request end.
    proxy.http_cleanup().await;
    tokio::select! {
        // The last connection has ended.
        _ = over.recv() => {}
        _ = stage.wait_for(|stage| *stage >= Stage::Over) => {}
    }
}

fn proxy(shared: &Arc<Shared>, threads: usize) -> HttpProxy<Engine> {
    let conf = ServerConf {
        threads: 1,
        max_retries: usize::from(TRIES),
        upstream_keepalive_pool_size: (shared.backends.kept / threads).max(1),
        ..ServerConf::default()
    };
    let mut proxy = HttpProxy::new(Engine::new(Arc::clone(shared)), Arc::new(conf));
    proxy.handle_init_modules();
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(shared.clients.idle);
    options.keepalive_request_limit = shared.clients.requests;
    proxy.server_options = Some(options);
    let mut http2 = default_h2_options();
    http2.initial_window_size(STREAM_WINDOW);
    http2.initial_connection_window_size(CONNECTION_WINDOW);
    proxy.h2_options = Some(http2);
    proxy
}
