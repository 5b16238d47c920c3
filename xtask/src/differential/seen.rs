//! What the probes of one target saw under one proxy, in a form in which two proxies can be held side by side: the choice
//! of a backend is random in one and a hash in the other, so sets are compared, not answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// What became of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// A backend answered.
    Forward,
    /// The client was told that nobody is there.
    Reject,
    /// Nothing came of it.
    Drop,
    /// It arrived untranslated where routing leads.
    Pass,
    /// A connection from before a change is answered by the backend that it had.
    Kept,
    /// It is answered by another one.
    Moved,
    /// It was cut.
    Reset,
    /// Something else.
    Other,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::Reject => "reject",
            Self::Drop => "drop",
            Self::Pass => "pass",
            Self::Kept => "kept",
            Self::Moved => "moved",
            Self::Reset => "reset",
            Self::Other => "other",
        })
    }
}

/// Whom a backend took for its client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The client itself.
    Kept,
    /// The node.
    Node,
    /// Somebody else.
    Stranger,
}

/// One connection.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Flow {
    /// A backend answered this client.
    Answered {
        /// The backend.
        backend: SocketAddr,
        /// Whom it saw.
        source: Source,
        /// Who asked.
        client: IpAddr,
    },
    /// No backend did.
    Unanswered(Verdict, String),
}

impl Flow {
    /// What became of it.
    pub const fn verdict(&self) -> Verdict {
        match self {
            Self::Answered { .. } => Verdict::Forward,
            Self::Unanswered(verdict, _) => *verdict,
        }
    }

    /// Who answered.
    pub const fn backend(&self) -> Option<SocketAddr> {
        match self {
            Self::Answered { backend, .. } => Some(*backend),
            Self::Unanswered(..) => None,
        }
    }
}

/// What all connections of one origin to one target saw.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// How often each came of it.
    pub verdicts: BTreeMap<Verdict, usize>,
    /// Words about verdicts, where there are any.
    pub notes: BTreeSet<String>,
    /// Which backends each client met.
    pub by_client: BTreeMap<IpAddr, BTreeSet<SocketAddr>>,
    /// Whom a backend saw, by whether it was its own client.
    pub sources: BTreeMap<(SocketAddr, bool), BTreeSet<Source>>,
}

impl Seen {
    /// Adds a connection.
    pub fn add(&mut self, flow: &Flow) {
        *self.verdicts.entry(flow.verdict()).or_default() += 1;
        match flow {
            Flow::Answered {
                backend,
                source,
                client,
            } => {
                self.by_client.entry(*client).or_default().insert(*backend);
                let itself = backend.ip() == *client;
                self.sources.entry((*backend, itself)).or_default().insert(*source);
            }
            Flow::Unanswered(_, note) if note.is_empty() => {}
            Flow::Unanswered(_, note) => {
                self.notes.insert(note.clone());
            }
        }
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.verdicts.values().sum()
    }

    /// The backends that answered.
    pub fn backends(&self) -> BTreeSet<SocketAddr> {
        self.by_client.values().flatten().copied().collect()
    }

    /// Whether some client met several backends.
    pub fn strays(&self) -> bool {
        self.by_client.values().any(|backends| backends.len() > 1)
    }

    /// What became of the connections, whatever the number.
    pub fn verdict_set(&self) -> BTreeSet<Verdict> {
        self.verdicts.keys().copied().collect()
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (verdict, times)) in self.verdicts.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{verdict} x{times}")?;
        }
        for (index, (backend, itself)) in self.sources.keys().enumerate() {
            let sources = &self.sources[&(*backend, *itself)];
            let sources: Vec<&str> = sources
                .iter()
                .map(|source| match source {
                    Source::Kept => "source kept",
                    Source::Node => "from the node",
                    Source::Stranger => "from somebody else",
                })
                .collect();
            let comma = if index == 0 { " to " } else { ", " };
            let itself = if *itself { "itself, " } else { "" };
            write!(f, "{comma}{backend} ({itself}{})", sources.join(" or "))?;
        }
        for note in &self.notes {
            write!(f, "; {note}")?;
        }
        Ok(())
    }
}

/// In what respect two proxies differ.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aspect {
    /// What becomes of new connections.
    Verdict,
    /// Which backends they meet.
    Backends,
    /// Whom these see.
    Source,
    /// Whether a client meets the same one again.
    Affinity,
    /// What becomes of a connection that was there before a change.
    Established,
}

/// In what the two differ, if they do: the first respect that counts. Affinity binds each client to a backend, so that
/// only where there are many clients all backends must be met.
pub fn difference(a: &Seen, b: &Seen, affinity: bool, many_clients: bool) -> Option<Aspect> {
    if a.verdict_set() != b.verdict_set() {
        return Some(Aspect::Verdict);
    }
    if (!affinity || many_clients) && a.backends() != b.backends() {
        return Some(Aspect::Backends);
    }
    if affinity && a.strays() != b.strays() {
        return Some(Aspect::Affinity);
    }
    let mut common = a
        .sources
        .iter()
        .filter_map(|(key, sources)| Some((sources, b.sources.get(key)?)));
    common.any(|(a, b)| a != b).then_some(Aspect::Source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(backend: &str, source: Source, client: &str) -> Flow {
        Flow::Answered {
            backend: backend.parse().expect("an address"),
            source,
            client: client.parse().expect("an address"),
        }
    }

    fn seen(flows: &[Flow]) -> Seen {
        let mut seen = Seen::default();
        for flow in flows {
            seen.add(flow);
        }
        seen
    }

    const A: &str = "10.0.0.1:80";
    const B: &str = "10.0.0.2:80";

    #[test]
    fn other_choices_among_the_same_backends_are_no_difference() {
        let one = seen(&[
            answered(A, Source::Kept, "1.1.1.1"),
            answered(B, Source::Kept, "1.1.1.2"),
        ]);
        let other = seen(&[
            answered(B, Source::Kept, "1.1.1.1"),
            answered(A, Source::Kept, "1.1.1.2"),
        ]);
        assert_eq!(difference(&one, &other, false, true), None);
        assert_eq!(difference(&one, &other, true, true), None);
    }

    #[test]
    fn a_backend_that_only_one_of_them_meets_is_a_difference_unless_a_client_is_bound() {
        let one = seen(&[answered(A, Source::Kept, "1.1.1.1")]);
        let other = seen(&[answered(B, Source::Kept, "1.1.1.1")]);
        assert_eq!(difference(&one, &other, false, false), Some(Aspect::Backends));
        assert_eq!(difference(&one, &other, true, true), Some(Aspect::Backends));
        assert_eq!(difference(&one, &other, true, false), None);
    }

    #[test]
    fn verdicts_come_before_all_else() {
        let one = seen(&[answered(A, Source::Kept, "1.1.1.1")]);
        let other = seen(&[Flow::Unanswered(Verdict::Drop, String::new())]);
        assert_eq!(difference(&one, &other, false, false), Some(Aspect::Verdict));
        let both = seen(&[
            answered(A, Source::Kept, "1.1.1.1"),
            Flow::Unanswered(Verdict::Drop, String::new()),
        ]);
        assert_eq!(difference(&one, &both, false, false), Some(Aspect::Verdict));
    }

    #[test]
    fn sources_are_compared_where_both_met_the_backend_alike() {
        let kept = seen(&[
            answered(A, Source::Kept, "1.1.1.1"),
            answered(A, Source::Node, "10.0.0.1"),
        ]);
        let other = seen(&[answered(A, Source::Node, "1.1.1.1")]);
        let itself = seen(&[answered(A, Source::Node, "10.0.0.1")]);
        assert_eq!(difference(&kept, &other, false, false), Some(Aspect::Source));
        assert_eq!(difference(&kept, &itself, false, false), None);
    }

    #[test]
    fn only_one_of_them_keeping_its_clients_is_a_difference() {
        let sticky = seen(&[
            answered(A, Source::Kept, "1.1.1.1"),
            answered(B, Source::Kept, "1.1.1.2"),
        ]);
        let loose = seen(&[
            answered(A, Source::Kept, "1.1.1.1"),
            answered(B, Source::Kept, "1.1.1.1"),
        ]);
        assert_eq!(difference(&sticky, &loose, true, true), Some(Aspect::Affinity));
        assert_eq!(difference(&sticky, &loose, false, true), None);
    }
}
