//! Whether what became of a packet's connections is what has to become of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::case::{Expect, Share, Snat, Verdict};
use crate::world::Observation;

/// What there is to know beside the observations.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// What is expected.
    pub expect: &'a Expect,
    /// Every address of the node.
    pub node: &'a [IpAddr],
    /// Whether one client's connections go to one backend, so that not every one can be seen.
    pub one_backend: bool,
    /// Where those of the packet went that `same_backend_as` names.
    pub same_as: Option<&'a BTreeSet<SocketAddr>>,
    /// Where clients were pinned to before, where that must not bind any more.
    pub pins: Option<&'a BTreeMap<IpAddr, SocketAddr>>,
}

/// Which backends connections reached, and how many each.
pub fn backends(seen: &[Observation]) -> BTreeMap<SocketAddr, usize> {
    let mut backends = BTreeMap::new();
    for observation in seen {
        if let Observation::Forward { backend, .. } = observation {
            *backends.entry(*backend).or_default() += 1;
        }
    }
    backends
}

/// Where each client's connections went last.
pub fn pins(seen: &[Observation]) -> BTreeMap<IpAddr, SocketAddr> {
    seen.iter()
        .filter_map(|observation| match observation {
            Observation::Forward { backend, client, .. } => Some((client.ip(), *backend)),
            _ => None,
        })
        .collect()
}

/// What is not as it has to be.
pub fn differences(terms: &Terms<'_>, seen: &[Observation]) -> Vec<String> {
    let expect = terms.expect;
    let mut wrong = Vec::new();
    // What a packet meets on its way to an address that none leads to is nobody's business.
    let unreachable = expect
        .unspecified_backends
        .iter()
        .any(|backend| is_nowhere(backend.ip()));
    let is_verdict = |observation: &Observation| match (expect.verdict, observation) {
        (Verdict::Forward, Observation::Forward { .. })
        | (Verdict::Reject, Observation::Reject)
        | (Verdict::Drop, Observation::Drop)
        | (Verdict::Pass, Observation::Pass) => true,
        (Verdict::Forward, Observation::Drop | Observation::Reject | Observation::Other(_)) => unreachable,
        _ => false,
    };
    if seen.is_empty() || !seen.iter().all(is_verdict) {
        wrong.push(format!("{} expected; seen: {}", Wanted(expect), Seen(seen)));
        return wrong;
    }
    if expect.verdict != Verdict::Forward {
        return wrong;
    }
    let reached = backends(seen);
    let allowed =
        |backend: &SocketAddr| expect.backends.contains(backend) || expect.unspecified_backends.contains(backend);
    if !reached.keys().all(allowed) {
        wrong.push(format!("{} expected; seen: {}", Wanted(expect), Seen(seen)));
    }
    let missed: Vec<String> = expect
        .backends
        .iter()
        .filter(|backend| !terms.one_backend && !reached.contains_key(backend))
        .map(ToString::to_string)
        .collect();
    if !missed.is_empty() {
        wrong.push(format!("never chosen: {}; seen: {}", missed.join(", "), Seen(seen)));
    }
    wrong.extend(sources(terms, seen));
    if expect.sticky {
        wrong.extend(one_each(seen));
    }
    if let (Some(name), Some(before)) = (&expect.same_backend_as, terms.same_as) {
        let now: BTreeSet<SocketAddr> = reached.keys().copied().collect();
        if now != *before || before.len() != 1 {
            wrong.push(format!(
                "the backend of `{name}` expected, {}; seen: {}",
                List(before),
                Seen(seen)
            ));
        }
    }
    if expect.share == Some(Share::Uniform) {
        wrong.extend(uneven(expect, &reached));
    }
    if let Some(before) = terms.pins
        && expect.backends.len() > 1
        && !pins(seen)
            .iter()
            .any(|(client, backend)| before.get(client).is_some_and(|pinned| pinned != backend))
    {
        wrong.push(format!(
            "each of {} clients went where it was pinned to before",
            before.len()
        ));
    }
    wrong
}

/// The sources that backends saw.
fn sources(terms: &Terms<'_>, seen: &[Observation]) -> Option<String> {
    let wanted = terms.expect.snat?;
    let wrong: Vec<&Observation> = seen
        .iter()
        .filter(|observation| {
            let Observation::Forward {
                backend,
                source,
                client,
            } = observation
            else {
                return false;
            };
            let of_node = terms.node.contains(&source.ip());
            let kept = source.ip() == client.ip();
            !match wanted {
                Snat::Any => true,
                Snat::Node => of_node,
                Snat::None => kept,
                Snat::HairpinOnly if backend.ip() == client.ip() => of_node,
                Snat::HairpinOnly => kept,
            }
        })
        .collect();
    let Observation::Forward {
        backend,
        source,
        client,
    } = wrong.first()?
    else {
        return None;
    };
    let wanted = match wanted {
        Snat::Node => "an address of the node",
        Snat::None => "the client's address",
        Snat::HairpinOnly => "the client's address, or the node's if the client reaches itself,",
        Snat::Any => return None,
    };
    Some(format!(
        "{wanted} expected as source; {} of {} saw another: {client} was seen as {source} by {backend}",
        wrong.len(),
        seen.len()
    ))
}

/// Whether each client's connections went to one backend.
fn one_each(seen: &[Observation]) -> Option<String> {
    let mut of_client: BTreeMap<IpAddr, BTreeSet<SocketAddr>> = BTreeMap::new();
    for observation in seen {
        if let Observation::Forward { backend, client, .. } = observation {
            of_client.entry(client.ip()).or_default().insert(*backend);
        }
    }
    let (client, backends) = of_client.iter().find(|(_, backends)| backends.len() > 1)?;
    Some(format!("one backend for {client} expected; seen: {}", List(backends)))
}

/// Pearson's test of even shares, of a kind that one in millions of even choices fails.
fn uneven(expect: &Expect, reached: &BTreeMap<SocketAddr, usize>) -> Option<String> {
    /// Standard deviations.
    const CONFIDENCE: f64 = 5.0;
    let counts: Vec<f64> = expect
        .backends
        .iter()
        .map(|backend| reached.get(backend).copied().unwrap_or(0) as f64)
        .collect();
    let freedom = counts.len() as f64 - 1.0;
    if freedom < 1.0 {
        return None;
    }
    let even = counts.iter().sum::<f64>() / counts.len() as f64;
    let statistic: f64 = counts.iter().map(|count| (count - even).powi(2) / even.max(1.0)).sum();
    // Wilson and Hilferty: the cube root of chi-squared over its freedom is nearly normal.
    let spread = 2.0 / (9.0 * freedom);
    let bound = freedom * (1.0 - spread + CONFIDENCE * spread.sqrt()).powi(3);
    (statistic > bound).then(|| {
        let shares: Vec<String> = expect
            .backends
            .iter()
            .zip(&counts)
            .map(|(backend, count)| format!("{backend} {count}"))
            .collect();
        format!("even shares expected; seen: {}", shares.join(", "))
    })
}

/// Addresses that no packet to another host can have.
fn is_nowhere(addr: IpAddr) -> bool {
    let link_local = match addr {
        IpAddr::V4(addr) => addr.is_link_local() || addr.is_broadcast(),
        IpAddr::V6(addr) => addr.is_unicast_link_local() || addr.to_ipv4_mapped().is_some(),
    };
    link_local || addr.is_loopback() || addr.is_unspecified() || addr.is_multicast()
}

struct Wanted<'a>(&'a Expect);

impl fmt::Display for Wanted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.verdict)?;
        if self.0.verdict == Verdict::Forward {
            write!(f, " to {}", List(&self.0.backends))?;
        }
        Ok(())
    }
}

struct List<T>(T);

impl<T: IntoIterator<Item = I> + Copy, I: fmt::Display> fmt::Display for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.into_iter().enumerate() {
            let before = if index == 0 { "" } else { " or " };
            write!(f, "{before}{item}")?;
        }
        Ok(())
    }
}

/// What was seen, each kind once with its number.
pub struct Seen<'a>(pub &'a [Observation]);

impl fmt::Display for Seen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for observation in self.0 {
            *kinds.entry(kind(observation)).or_default() += 1;
        }
        if kinds.is_empty() {
            return f.write_str("nothing");
        }
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        const SHOWN: usize = 6;
        for (index, (kind, count)) in kinds.iter().take(SHOWN).enumerate() {
            let before = if index == 0 { "" } else { "; " };
            write!(f, "{before}{count} x {kind}")?;
        }
        if kinds.len() > SHOWN {
            write!(f, "; and {} more", kinds.len() - SHOWN)?;
        }
        Ok(())
    }
}

fn kind(observation: &Observation) -> String {
    match observation {
        Observation::Forward { backend, .. } => format!("forward to {backend}"),
        Observation::Reject => "reject".to_owned(),
        Observation::Drop => "drop".to_owned(),
        Observation::Pass => "pass".to_owned(),
        Observation::Cut => "cut".to_owned(),
        Observation::Other(text) => text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "10.180.0.1:8080";
    const B: &str = "10.180.1.1:8080";

    fn forward(backend: &str, source: &str, client: &str) -> Observation {
        Observation::Forward {
            backend: backend.parse().expect("a backend"),
            source: source.parse().expect("a source"),
            client: client.parse().expect("a client"),
        }
    }

    fn many(counts: &[(&str, usize)]) -> Vec<Observation> {
        let each =
            |(backend, count): &(&str, usize)| vec![forward(backend, "198.51.100.7:1", "198.51.100.7:1"); *count];
        counts.iter().flat_map(each).collect()
    }

    fn expect(text: &str) -> Expect {
        serde_saphyr::from_str(text).expect("an expectation")
    }

    fn judge(expectation: &str, seen: &[Observation]) -> Vec<String> {
        let expect = expect(expectation);
        let one_backend = expect.sticky;
        let node = ["192.0.2.11".parse().expect("an address")];
        differences(
            &Terms {
                expect: &expect,
                node: &node,
                one_backend,
                same_as: None,
                pins: None,
            },
            seen,
        )
    }

    const BOTH: &str = "{verdict: forward, backends: ['10.180.0.1:8080', '10.180.1.1:8080'], snat: none";

    #[test]
    fn every_backend_is_to_be_seen_and_no_other() {
        assert_eq!(judge(&format!("{BOTH}}}"), &many(&[(A, 3), (B, 3)])), [""; 0]);
        assert!(judge(&format!("{BOTH}}}"), &many(&[(A, 6)]))[0].starts_with("never chosen: 10.180.1.1:8080"));
        let third = many(&[(A, 3), (B, 3), ("10.180.2.1:8080", 1)]);
        assert!(judge(&format!("{BOTH}}}"), &third)[0].contains("1 x forward to 10.180.2.1:8080"));
    }

    #[test]
    fn one_connection_that_ends_otherwise_is_told() {
        let mut seen = many(&[(A, 3), (B, 3)]);
        seen.push(Observation::Drop);
        assert!(judge(&format!("{BOTH}}}"), &seen)[0].contains("1 x drop"));
        assert_eq!(judge("{verdict: reject}", &[Observation::Drop]).len(), 1);
        assert_eq!(judge("{verdict: drop}", &[]).len(), 1, "nothing was tried");
    }

    #[test]
    fn the_source_is_the_node_s_or_the_client_s() {
        let node = [forward(A, "192.0.2.11:61000", "198.51.100.7:1")];
        let one = "{verdict: forward, backends: ['10.180.0.1:8080'], snat: ";
        assert_eq!(judge(&format!("{one}node}}"), &node), [""; 0]);
        assert!(judge(&format!("{one}none}}"), &node)[0].contains("was seen as 192.0.2.11:61000"));
        assert_eq!(judge(&format!("{one}hairpin-only}}"), &node).len(), 1);
        let itself = [forward(A, "192.0.2.11:61000", "10.180.0.1:1")];
        assert_eq!(judge(&format!("{one}hairpin-only}}"), &itself), [""; 0]);
    }

    #[test]
    fn shares_are_even_within_what_chance_allows() {
        let uniform = format!("{BOTH}, share: uniform}}");
        assert_eq!(judge(&uniform, &many(&[(A, 320), (B, 280)])), [""; 0]);
        assert!(judge(&uniform, &many(&[(A, 400), (B, 200)]))[0].starts_with("even shares"));
    }

    #[test]
    fn a_client_that_sticks_has_one_backend() {
        let sticky = format!("{BOTH}, sticky: true}}");
        assert_eq!(judge(&sticky, &many(&[(A, 3)])), [""; 0]);
        assert!(judge(&sticky, &many(&[(A, 3), (B, 1)]))[0].starts_with("one backend for 198.51.100.7"));
    }

    #[test]
    fn an_expired_pin_must_not_bind_everybody() {
        let expect = expect(&format!("{BOTH}, repin: true}}"));
        let seen = [
            forward(A, "1.1.1.1:1", "1.1.1.1:1"),
            forward(B, "2.2.2.2:1", "2.2.2.2:1"),
        ];
        let judge = |before: &BTreeMap<IpAddr, SocketAddr>| {
            let terms = Terms {
                expect: &expect,
                node: &[],
                one_backend: false,
                same_as: None,
                pins: Some(before),
            };
            differences(&terms, &seen)
        };
        let mut before = pins(&seen);
        assert!(judge(&before)[0].contains("pinned to before"));
        before.insert("1.1.1.1".parse().expect("an address"), B.parse().expect("a backend"));
        assert_eq!(judge(&before), [""; 0]);
    }
}
