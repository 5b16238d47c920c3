//! The client, what it asks and hears, and those who answer in the pods.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::Lab;

/// Any address of the family, any port.
pub fn unspecified(address: IpAddr) -> SocketAddr {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    any.parse().expect("an address")
}

/// Answers every datagram with the pod's name and what it said.
pub fn serve_udp(name: &str) {
    let socket = UdpSocket::bind("[::]:8080").expect("the port is free");
    let mut buffer = [0; 64];
    while let Ok((len, from)) = socket.recv_from(&mut buffer) {
        let answer = [name.as_bytes(), b" ", &buffer[..len]].concat();
        let _gone = socket.send_to(&answer, from);
    }
}

/// Answers every byte of a connection with the pod's name.
pub fn serve_tcp(name: &'static str) {
    let listener = TcpListener::bind("[::]:8080").expect("the port is free");
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else { continue };
        std::thread::spawn(move || {
            let mut byte = [0];
            while connection.read_exact(&mut byte).is_ok() && connection.write_all(name.as_bytes()).is_ok() {}
        });
    }
}

/// A connection to [`serve_tcp`].
pub struct Talk(TcpStream);

impl Talk {
    pub fn open(to: SocketAddr, limit: Duration) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    pub fn say(&mut self, byte: &str) -> std::io::Result<String> {
        self.0.write_all(byte.as_bytes())?;
        let mut name = [0; 4];
        self.0.read_exact(&mut name)?;
        Ok(String::from_utf8_lossy(&name).into_owned())
    }

    /// Says so many bytes at once, in packets as large as they come, and hears the answers to all of them.
    pub fn say_much(&mut self, bytes: usize) -> std::io::Result<()> {
        self.0.write_all(&vec![0; bytes])?;
        self.0.read_exact(&mut vec![0; 4 * bytes])
    }
}

/// Hears every frame of a device.
pub struct Ears {
    socket: std::os::fd::OwnedFd,
    device: usize,
}

impl Ears {
    pub fn open(device: &str, limit: Duration) -> Self {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        );
        let socket = socket.expect("root may hear");
        let limit = TimeVal::new(0, i64::try_from(limit.as_micros()).expect("it is short"));
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit).expect("a limit can be set");
        let device = if_nametoindex(device).expect("there is one") as usize;
        Self { socket, device }
    }

    /// The next frame, if one comes in time.
    pub fn hear(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2048];
        let (len, from) = recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut frame).ok()?;
        frame.truncate(len);
        // A frame to a VLAN or a bridge is heard on the device below, too.
        let is_its_own = from.is_some_and(|from| from.ifindex() == self.device);
        (is_its_own && len >= 42).then_some(frame)
    }
}

/// The link address that a frame gives as an answer to who has the address, if it is one.
pub fn answer(frame: &[u8], address: IpAddr) -> Option<[u8; 6]> {
    let found: &[u8] = match address {
        IpAddr::V4(address) => {
            let is_answer = frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[28..32] == address.octets();
            is_answer.then(|| &frame[22..28])?
        }
        IpAddr::V6(address) => {
            let is_answer = frame.len() >= 86
                && frame[12..14] == [0x86, 0xdd]
                && (frame[20], frame[54]) == (58, 136)
                && frame[62..78] == address.octets();
            is_answer.then(|| &frame[80..86])?
        }
    };
    Some(found.try_into().expect("six bytes"))
}

/// A question of the client's for an IPv4 address.
pub fn question(client: [u8; 6], address: IpAddr) -> Vec<u8> {
    let IpAddr::V4(address) = address else {
        panic!("ARP is for IPv4")
    };
    let mut frame = [
        &[0xff; 6][..],
        &client,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &client,
        &[192, 0, 2, 100],
    ]
    .concat();
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// What a client that asks 200 times a second lives through.
pub struct Asking {
    stop: Arc<AtomicBool>,
    udp: JoinHandle<Trace>,
    tcp: JoinHandle<Trace>,
}

/// When it was asked, and whether that was answered.
pub type Trace = Vec<(Instant, bool)>;

pub const EVERY: Duration = Duration::from_millis(5);
/// An answer has to come within this.
pub const SOON: Duration = Duration::from_millis(400);

impl Asking {
    pub fn start(lab: &Lab, address: &str) -> Self {
        let to = SocketAddr::new(address.parse().expect("an address"), 80);
        let stop = Arc::new(AtomicBool::new(false));
        let (stop_udp, stop_tcp) = (Arc::clone(&stop), Arc::clone(&stop));
        Self {
            stop,
            udp: lab.namespaces.spawn("client", move || ask_by_udp(to, &stop_udp)),
            tcp: lab.namespaces.spawn("client", move || ask_by_tcp(to, &stop_tcp)),
        }
    }

    /// Stops, prints the longest times without an answer and returns the longer one.
    pub fn longest_gap(self, what: &str) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let traces = [("UDP", self.udp), ("new TCP connections", self.tcp)];
        let gaps = traces.map(|(how, trace)| {
            let trace = trace.join().expect("the client goes on");
            let lost = trace.iter().filter(|(_, answered)| !answered).count();
            let gap = longest_gap(&trace);
            println!(
                "{what}: {how}: longest gap {} ms, {lost} of {} requests lost",
                gap.as_millis(),
                trace.len()
            );
            assert!(trace.len() > 100, "the client hardly asked");
            gap
        });
        gaps[0].max(gaps[1])
    }
}

/// From the last request that was answered before some were not, to the next that was.
pub fn longest_gap(trace: &Trace) -> Duration {
    let mut longest = Duration::ZERO;
    let mut last_answered: Option<Instant> = None;
    let mut lost = false;
    for (at, answered) in trace {
        if !answered {
            lost = true;
            continue;
        }
        if let Some(last) = last_answered.filter(|_| lost) {
            longest = longest.max(*at - last);
        }
        (last_answered, lost) = (Some(*at), false);
    }
    if let (true, Some(last), Some((end, _))) = (lost, last_answered, trace.last()) {
        // Not answered to the end, when the last requests had no time left.
        longest = longest.max(end.saturating_duration_since(last).saturating_sub(SOON));
    }
    longest
}

pub fn ask_by_udp(to: SocketAddr, stop: &AtomicBool) -> Trace {
    let socket = UdpSocket::bind(unspecified(to.ip())).expect("a port is free");
    socket.connect(to).expect("it has a route");
    let hears = socket.try_clone().expect("it can be cloned");
    hears.set_read_timeout(Some(SOON)).expect("a limit can be set");
    let (mut sent, done) = (Vec::new(), Arc::new(AtomicBool::new(false)));
    let ended = Arc::clone(&done);
    let answers = std::thread::spawn(move || {
        let mut answered = BTreeSet::new();
        let mut buffer = [0; 64];
        loop {
            match hears.recv(&mut buffer) {
                Ok(len) => {
                    let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
                    answered.extend(text.split(' ').nth(1).and_then(|number| number.parse::<usize>().ok()));
                }
                Err(_) if ended.load(Ordering::Relaxed) => return answered,
                Err(_) => {}
            }
        }
    });
    while !stop.load(Ordering::Relaxed) {
        let number = sent.len().to_string();
        sent.push(Instant::now());
        // An error that came back for an earlier one is this one's loss.
        let _lost = socket.send(number.as_bytes());
        std::thread::sleep(EVERY);
    }
    done.store(true, Ordering::Relaxed);
    let answered = answers.join().expect("it hears");
    let sent = sent.into_iter().enumerate();
    sent.map(|(number, at)| (at, answered.contains(&number))).collect()
}

pub fn ask_by_tcp(to: SocketAddr, stop: &AtomicBool) -> Trace {
    let mut asked = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let at = Instant::now();
        let answer = std::thread::spawn(move || Talk::open(to, SOON).and_then(|mut talk| talk.say("x")).is_ok());
        asked.push((at, answer));
        std::thread::sleep(EVERY);
    }
    let trace = asked
        .into_iter()
        .map(|(at, answer)| (at, answer.join().expect("it ends")));
    trace.collect()
}
