//! A door to the API server in a node's network namespace: connections to a port of its loopback are carried to the
//! server on this machine's. So both nodes reach one server without a device more than a node has.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context as _, anyhow};
use nix::sched::{CloneFlags, setns};

/// Opens a door in this namespace and tells its port. It is open as long as this process lives.
pub fn open(netns: &Path, server: u16) -> anyhow::Result<u16> {
    let namespace = File::open(netns).with_context(|| format!("open {}", netns.display()))?;
    let (says_port, port) = mpsc::channel();
    let (hands_over, comes) = mpsc::channel::<TcpStream>();
    // A socket belongs to the namespace in which it is made, whoever uses it later.
    thread::spawn(move || {
        let listener = setns(&namespace, CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .and_then(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => return drop(says_port.send(Err(error))),
        };
        if says_port.send(listener.local_addr().map(|addr| addr.port())).is_err() {
            return;
        }
        for stream in listener.incoming().flatten() {
            if hands_over.send(stream).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for inside in comes {
            if let Ok(outside) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, server))) {
                carry(&inside, &outside);
                carry(&outside, &inside);
            }
        }
    });
    let port = port.recv().map_err(|_| anyhow!("the thread at the door has ended"))?;
    port.with_context(|| format!("listen on loopback in {}", netns.display()))
}

fn carry(from: &TcpStream, to: &TcpStream) {
    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else {
        return;
    };
    thread::spawn(move || {
        // Whatever ends it, the other side is told.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}
