//! What both labs are asked: a target, who asks it, and how often so that chance plays no part in the answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::model::{Cluster, Family};
use super::plan::{self, CLIENT_PODS, CLIENTS};
use super::probes::{Origin, Role, Target, most_backends, origins};
use super::side::Ask;
use super::wanted::Shape;

/// One target and who asks it.
#[derive(Clone, Debug)]
pub struct Question {
    /// Where it goes.
    pub target: Target,
    /// What that is.
    pub role: Role,
    /// Who asks.
    pub origin: Origin,
    /// The Service's session affinity: its timeout in seconds.
    pub affinity_s: Option<u32>,
    stage: usize,
    most_backends: usize,
}

/// Which of a round's questions are asked: all, or those of one kind.
#[derive(Clone, Debug)]
pub enum Focus {
    /// All.
    All,
    /// Those like this one.
    Like(Box<Shape>),
}

impl Focus {
    fn covers(&self, target: &Target, role: &Role, origin: Origin) -> bool {
        match self {
            Self::All => true,
            Self::Like(shape) => {
                origin == shape.origin
                    && target.protocol == shape.target.protocol
                    && role.frontend == shape.role.frontend
                    && role.service == shape.role.service
            }
        }
    }
}

/// The questions of a stage.
pub fn questions(targets: &BTreeMap<Target, Role>, cluster: &Cluster, stage: usize, focus: &Focus) -> Vec<Question> {
    let mut questions = Vec::new();
    for (target, role) in targets {
        for origin in origins(target) {
            if !focus.covers(target, role, origin) {
                continue;
            }
            let service = role.service.as_ref().and_then(|key| cluster.service(key));
            questions.push(Question {
                target: target.clone(),
                role: role.clone(),
                origin,
                affinity_s: service.and_then(|service| service.affinity_s),
                stage,
                most_backends: most_backends(cluster, target, role),
            });
        }
    }
    questions
}

impl Question {
    /// Whether many clients ask. Where affinity binds a client to a backend, only many of them meet all.
    pub fn has_many_clients(&self) -> bool {
        self.affinity_s.is_some() && self.origin == Origin::Outside
    }

    /// How often each client asks so that the chance of missing a backend is small. Looking again, more often, so that
    /// the chance of missing one in every look is nil.
    pub fn times(&self, look: usize) -> usize {
        if self.has_many_clients() {
            return 1;
        }
        let times = (2 * self.most_backends) << look;
        times.div_ceil(self.clients(look).len())
    }

    /// What the clients ask if each does so many times.
    pub fn asks(&self, look: usize, times: usize) -> Vec<Ask> {
        let ask = |client| Ask {
            origin: self.origin,
            client,
            addr: self.target.addr,
            protocol: self.target.protocol,
            times: times as u32,
        };
        self.clients(look).into_iter().map(ask).collect()
    }

    /// Who asks. Many clients are others at each look: affinity binds those that have asked already.
    pub fn clients(&self, look: usize) -> Vec<IpAddr> {
        let family = Family::of(&self.target.addr.ip());
        match self.origin {
            Origin::Outside if self.has_many_clients() => (0..CLIENTS)
                .map(|index| plan::client(family, self.stage, look, index))
                .collect(),
            Origin::Outside => vec![plan::client(family, self.stage, 0, 0)],
            Origin::Pod => (0..CLIENT_PODS).map(|index| plan::pod(family, index)).collect(),
            Origin::Node if self.target.addr.ip().is_loopback() => match family {
                Family::V4 => vec![Ipv4Addr::LOCALHOST.into()],
                Family::V6 => vec![Ipv6Addr::LOCALHOST.into()],
            },
            Origin::Node => vec![plan::node(family)],
        }
    }
}
