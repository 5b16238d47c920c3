//! Makes a round happen in both labs and compares: new connections at every stage, and what a step makes of those that
//! were there before it.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;

use super::change::{Change, Round, Step};
use super::established::{self, By, Held};
use super::lab::Lab;
use super::manifest;
use super::model::Cluster;
use super::probes::{Origin, Role, Target, role, targets};
use super::question::{Focus, Question, questions};
use super::seen::{Aspect, Flow, Seen, difference};
use super::side::Ask;
use super::store::Applied;
use super::wanted::{self, Shape};

/// How often a difference is looked at again, each time with more connections and later, before it counts: objects of
/// kinds that the marker does not cover (Nodes, `ServiceCIDR`s) may come after it, and work may be left that follows.
const LOOKS: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(300),
    Duration::from_millis(700),
];
/// Long enough for the shortest affinity to end.
const AFFINITY_ENDS: Duration = Duration::from_millis(1_300);
/// Affinity of this many seconds does not end while a round is made.
const LASTING_AFFINITY_S: u32 = 30;
/// The shortest affinity. It may end at any time, and has ended after a wait.
const SHORT_AFFINITY_S: u32 = 1;

/// What became of a round.
#[derive(Debug)]
pub enum Outcome {
    /// The API server refused an object.
    Refused(String),
    /// It ran to its end.
    Done(Findings),
}

/// What a round has shown.
#[derive(Debug, Default)]
pub struct Findings {
    /// How many connections were opened.
    pub connections: usize,
    /// How many questions were asked of both: targets by origins by stages.
    pub probes: usize,
    /// In what they differ.
    pub differences: Vec<Difference>,
}

/// A difference between the two.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The number of steps that had been made.
    pub stage: usize,
    /// What differs.
    pub shape: Shape,
    /// What kube-proxy did, in words.
    pub kube_proxy: String,
    /// What Fairway did, in words.
    pub fairway: String,
    /// The rule that wants it.
    pub rule: Option<String>,
}

/// A stage of a round: so many of its steps have been made.
type Moment<'a> = (&'a Round, usize);

/// What became of the first connection of each client of each question, on both sides.
#[derive(Clone, Debug, Default)]
struct First {
    /// Which question an ask is of.
    indices: Vec<usize>,
    asks: Vec<Ask>,
    flows: [Vec<Flow>; 2],
}

impl First {
    /// Those that this is so of.
    fn filtered(&self, wanted: impl Fn(&Ask) -> bool) -> Self {
        let kept: Vec<usize> = (0..self.asks.len())
            .filter(|index| wanted(&self.asks[*index]))
            .collect();
        Self {
            indices: kept.iter().map(|index| self.indices[*index]).collect(),
            asks: kept.iter().map(|index| self.asks[*index].clone()).collect(),
            flows: self
                .flows
                .each_ref()
                .map(|flows| kept.iter().map(|index| flows[*index].clone()).collect()),
        }
    }

    /// Whether somebody answers a question, on either side.
    fn is_answered(&self, questions: usize) -> Vec<bool> {
        let mut answered = vec![false; questions];
        for flows in &self.flows {
            for (index, flow) in self.indices.iter().zip(flows) {
                answered[*index] |= flow.backend().is_some();
            }
        }
        answered
    }
}

impl Lab {
    /// Makes a round happen, and compares whatever `focus` covers.
    pub fn run(&mut self, round: &Round, focus: &Focus) -> anyhow::Result<Outcome> {
        if let Applied::Refused(reason) = self.come_to(&Cluster::default(), &[])? {
            return Ok(Outcome::Refused(reason));
        }
        let targets = targets(round);
        let mut findings = Findings::default();
        let mut held: Option<Held> = None;
        let mut first = First::default();
        let stages = round.stages();
        for (stage, cluster) in stages.iter().enumerate() {
            let step = stage.checked_sub(1).map(|index| &round.steps[index]);
            let anew = step.map(recreated).unwrap_or_default();
            if let Applied::Refused(reason) = self.come_to(cluster, &anew)? {
                return Ok(Outcome::Refused(reason));
            }
            if step.is_some_and(|step| step.changes.contains(&Change::Wait)) {
                thread::sleep(AFFINITY_ENDS);
            }
            if let Some(held) = held.take() {
                self.compare_established(held, (round, stage), &targets, &mut findings)?;
            }
            if stage > 0 {
                let around = &stages[stage - 1..=stage];
                self.compare_bound(&first, (round, stage), around, &targets, &mut findings)?;
            }
            let questions = questions(&targets, cluster, stage, focus);
            let looks = match focus {
                Focus::All => LOOKS.as_slice(),
                Focus::Like(_) => &LOOKS[..1],
            };
            first = self.compare_new(&questions, (round, stage), looks, &mut findings)?;
            if stage < round.steps.len() {
                let asks = established::openings(&questions, &first.is_answered(questions.len()));
                held = Some(Held(self.both(|side| side.open(&asks))?, asks));
            }
        }
        Ok(Outcome::Done(findings))
    }

    /// Opens connections on both, and again where they differ.
    fn compare_new(
        &mut self,
        questions: &[Question],
        at: Moment<'_>,
        looks: &[Duration],
        findings: &mut Findings,
    ) -> anyhow::Result<First> {
        findings.probes += questions.len();
        let mut open: Vec<&Question> = questions.iter().collect();
        let first = self.see_first(&open, 0)?;
        let mut differences = Vec::new();
        for look in 0..=looks.len() {
            let once = match look.checked_sub(1) {
                None => first.clone(),
                Some(again) => {
                    thread::sleep(looks[again]);
                    self.see_first(&open, look)?
                }
            };
            let seen = self.see_more(&open, look, once)?;
            findings.connections += seen.iter().flatten().map(Seen::connections).sum::<usize>();
            let [kube_proxy, fairway] = seen;
            differences.clear();
            let mut left = Vec::new();
            for ((question, kube_proxy), fairway) in open.iter().zip(kube_proxy).zip(fairway) {
                let affinity = question.affinity_s.is_some();
                let many = question.has_many_clients();
                let Some(aspect) = difference(&kube_proxy, &fairway, affinity, many) else {
                    continue;
                };
                let shape = Shape {
                    aspect,
                    target: question.target.clone(),
                    role: question.role.clone(),
                    origin: question.origin,
                    kube_proxy: kube_proxy.verdict_set(),
                    fairway: fairway.verdict_set(),
                };
                let words = (kube_proxy.to_string(), fairway.to_string());
                let difference = self.difference(at, shape, words);
                // What is wanted is looked at once more, to be no accident, and not over and over.
                if difference.rule.is_some() && look > 0 {
                    findings.differences.push(difference);
                } else {
                    left.push(*question);
                    differences.push(difference);
                }
            }
            open = left;
            if open.is_empty() {
                break;
            }
        }
        findings.differences.extend(differences);
        Ok(first)
    }

    /// Has each client of each question ask once.
    fn see_first(&mut self, questions: &[&Question], look: usize) -> anyhow::Result<First> {
        let of_question = |(index, question): (usize, &&Question)| {
            let asks = question.asks(look, 1).into_iter();
            asks.map(move |ask| (index, ask)).collect::<Vec<_>>()
        };
        let (indices, asks): (Vec<usize>, Vec<Ask>) = questions.iter().enumerate().flat_map(of_question).unzip();
        let flows = self.both(|side| side.ask(&asks))?;
        let flows = flows.map(|flows| flows.into_iter().flatten().collect());
        Ok(First { indices, asks, flows })
    }

    /// Asks more often where somebody answers: only there chance decides who.
    fn see_more(&mut self, questions: &[&Question], look: usize, first: First) -> anyhow::Result<[Vec<Seen>; 2]> {
        let is_answered = first.is_answered(questions.len());
        let mut seen = first.flows.map(|flows| {
            let mut seen = vec![Seen::default(); questions.len()];
            for (index, flow) in first.indices.iter().zip(&flows) {
                seen[*index].add(flow);
            }
            seen
        });
        let mut more = Vec::new();
        for (index, question) in questions.iter().enumerate().filter(|(index, _)| is_answered[*index]) {
            more.extend(
                question
                    .asks(look, question.times(look))
                    .into_iter()
                    .map(|ask| (index, ask)),
            );
        }
        let asks: Vec<Ask> = more.iter().map(|(_, ask)| ask.clone()).collect();
        let answers = self.both(|side| side.ask(&asks))?;
        for (seen, answers) in seen.iter_mut().zip(answers) {
            for ((index, _), flows) in more.iter().zip(answers) {
                flows.iter().for_each(|flow| seen[*index].add(flow));
            }
        }
        Ok(seen)
    }

    /// What a step has made of connections that were open.
    fn compare_established(
        &mut self,
        held: Held,
        at: Moment<'_>,
        targets: &BTreeMap<Target, Role>,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let Held(opened, asks) = held;
        let [mut kube_proxy, mut fairway] = opened.map(|side| side.into_iter().unzip::<_, _, Vec<_>, Vec<Flow>>());
        let before = [kube_proxy.1, fairway.1];
        let mut found = Vec::new();
        for look in 0..=LOOKS.len() {
            let [one, other] = self.sides();
            let after = [one.ask_again(&mut kube_proxy.0)?, other.ask_again(&mut fairway.0)?];
            found = established::compare(By::Backend, &asks, &before, &after);
            // A flow may be cut a little after the change has been applied.
            match LOOKS.get(look) {
                Some(wait) if found.iter().any(|found| found.differs.is_some()) => thread::sleep(*wait),
                _ => break,
            }
        }
        self.note(Aspect::Established, found, at, targets, findings)
    }

    /// Whether clients that were bound to a backend still are, or are no longer if their time is over. Clients whose
    /// binding the step ended are left out: what they meet then is chance.
    fn compare_bound(
        &mut self,
        bound: &First,
        at: Moment<'_>,
        around: &[Cluster],
        targets: &BTreeMap<Target, Role>,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let (round, stage) = at;
        let step = &round.steps[stage - 1];
        let made_anew: BTreeSet<_> = step.recreated().collect();
        let timeout = |ask: &Ask| {
            let key = targets
                .get(&ask.target())?
                .service
                .as_ref()
                .filter(|key| !made_anew.contains(key))?;
            let mut timeouts = around.iter().map(|cluster| cluster.service(key)?.affinity_s);
            let first = timeouts.next()?;
            timeouts.all(|timeout| timeout == first).then_some(first)?
        };
        let is_outside = |ask: &Ask| ask.origin == Origin::Outside;
        let lasting =
            bound.filtered(|ask| is_outside(ask) && timeout(ask).is_some_and(|timeout| timeout >= LASTING_AFFINITY_S));
        self.compare_clients(By::Backend, &lasting, at, targets, findings)?;
        if step.changes.contains(&Change::Wait) {
            let over = bound.filtered(|ask| is_outside(ask) && timeout(ask) == Some(SHORT_AFFINITY_S));
            self.compare_clients(By::Target, &over, at, targets, findings)?;
        }
        Ok(())
    }

    fn compare_clients(
        &mut self,
        by: By,
        bound: &First,
        at: Moment<'_>,
        targets: &BTreeMap<Target, Role>,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let after = self.both(|side| side.ask(&bound.asks))?;
        let after = after.map(|flows| flows.into_iter().flatten().collect::<Vec<_>>());
        let found = established::compare(by, &bound.asks, &bound.flows, &after);
        self.note(Aspect::Affinity, found, at, targets, findings)
    }

    /// Adds what was found of connections that are older than the step.
    fn note(
        &self,
        aspect: Aspect,
        found: Vec<established::Found>,
        at: Moment<'_>,
        targets: &BTreeMap<Target, Role>,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        for found in found {
            findings.probes += 1;
            let Some(differs) = found.differs else { continue };
            let role = targets.get(&found.target).context("only targets were asked")?.clone();
            let words = (differs.words(&differs.kube_proxy), differs.words(&differs.fairway));
            let shape = Shape {
                aspect,
                target: found.target,
                role,
                origin: found.origin,
                kube_proxy: differs.kube_proxy,
                fairway: differs.fairway,
            };
            findings.differences.push(self.difference(at, shape, words));
        }
        Ok(())
    }

    fn difference(&self, (round, stage): Moment<'_>, shape: Shape, words: (String, String)) -> Difference {
        // An address and port may be of one Service first, and then of another: either may explain it.
        let since = role(&round.stages()[stage], &shape.target);
        let since = since.map(|role| Shape { role, ..shape.clone() });
        let rule = [&shape].into_iter().chain(&since).find_map(|shape| {
            let facts = wanted::facts(round, stage, shape);
            wanted::wanted(self.rules(), shape, &facts).map(|rule| rule.rule.clone())
        });
        let (kube_proxy, fairway) = words;
        Difference {
            stage,
            shape,
            kube_proxy,
            fairway,
            rule,
        }
    }
}

/// The paths of the objects that a step makes anew.
fn recreated(step: &Step) -> Vec<String> {
    let services = step.recreated().map(manifest::service_path);
    services
        .chain(step.recreated_slices().map(manifest::slice_path))
        .collect()
}
