//! The numbers as metrics, when somebody asks.

use std::array;
use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, TypedMetric};

use super::Metrics;
use super::names;
use super::series::{BOUNDS, Traffic};
use crate::model::ObjectKey;
use crate::observe::metrics::samples::{self, family, single};

/// All metrics.
#[derive(Debug)]
pub(super) struct Scrape(pub(super) Arc<Metrics>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let version = [("version", env!("CARGO_PKG_VERSION").to_owned())];
        family(&mut encoder, names::BUILD, [(version, ConstGauge::new(1_u64))])?;
        self.requests(&mut encoder)?;
        self.backends(&mut encoder)?;
        self.connections(&mut encoder)?;
        self.config(&mut encoder)
    }
}

fn read(number: &AtomicU64) -> u64 {
    number.load(Ordering::Relaxed)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "durations of requests are far below 2^53 microseconds"
)]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

impl Scrape {
    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let series = self.0.known.all();
        let all = || {
            let ingresses = series.iter();
            ingresses.flat_map(|(ingress, services)| services.iter().map(move |(service, t)| (ingress, service, t)))
        };
        let pair = |ingress: &ObjectKey, service: &ObjectKey| {
            [("ingress", ingress.to_string()), ("service", service.to_string())]
        };
        let routed = all().flat_map(|(ingress, service, traffic)| {
            let names = pair(ingress, service);
            traffic.requests.seen().map(move |seen| (names.clone(), seen))
        });
        let nobody = [("ingress", String::new()), ("service", String::new())];
        let unrouted = self.0.unrouted.seen().map(|seen| (nobody.clone(), seen));
        let counted = routed
            .chain(unrouted)
            .map(|([ingress, service], (protocol, class, count))| {
                let (code, protocol) = (("code", class.to_owned()), ("protocol", protocol.name().to_owned()));
                ([ingress, service, code, protocol], ConstCounter::new(count))
            });
        family(encoder, names::REQUESTS, counted)?;
        let durations = series.iter().map(|(ingress, services)| {
            let labels = [("ingress", ingress.to_string())];
            (labels, Durations::of(services))
        });
        family(encoder, names::DURATION, durations)?;
        for (name, of) in [
            (
                names::RECEIVED,
                (|traffic| &traffic.received) as fn(&Traffic) -> &AtomicU64,
            ),
            (names::SENT, |traffic| &traffic.sent),
        ] {
            let samples =
                all().map(|(ingress, service, traffic)| (pair(ingress, service), ConstCounter::new(read(of(traffic)))));
            family(encoder, name, samples)?;
        }
        Ok(())
    }

    fn backends(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let series = self.0.known.all();
        for (name, of) in [
            (
                names::CONNECT_FAILURES,
                (|traffic| &traffic.connect_failures) as fn(&Traffic) -> &AtomicU64,
            ),
            (names::RETRIES, |traffic| &traffic.retries),
        ] {
            let mut by_service: BTreeMap<&ObjectKey, u64> = BTreeMap::new();
            for (service, traffic) in series.values().flatten() {
                *by_service.entry(service).or_default() += read(of(traffic));
            }
            let samples = by_service
                .into_iter()
                .map(|(service, count)| ([("service", service.to_string())], ConstCounter::new(count)));
            family(encoder, name, samples)?;
        }
        Ok(())
    }

    fn connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let listeners = ["http", "https"].map(|listener| [("listener", listener.to_owned())]);
        let open = listeners.clone().into_iter().zip(&self.0.open);
        let open = open.map(|(labels, open)| (labels, ConstGauge::new(read(open))));
        family(encoder, names::CONNECTIONS, open)?;
        let accepted = listeners.into_iter().zip(&self.0.accepted);
        let accepted = accepted.map(|(labels, accepted)| (labels, ConstCounter::new(read(accepted))));
        family(encoder, names::ACCEPTED, accepted)?;
        single(encoder, names::REFUSED, &ConstCounter::new(read(&self.0.refused)))?;
        single(encoder, names::DROPPED, &ConstCounter::new(read(&self.0.dropped)))
    }

    fn config(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        single(encoder, names::GENERATION, &ConstCounter::new(read(&self.0.generation)))?;
        single(encoder, names::HOSTS, &ConstGauge::new(read(&self.0.hosts)))?;
        single(encoder, names::ROUTES, &ConstGauge::new(read(&self.0.routes)))?;
        let took = seconds(read(&self.0.publish_micros));
        single(encoder, names::PUBLISH, &ConstGauge::new(took))?;
        let problems = self.0.problems.lock().unwrap_or_else(PoisonError::into_inner).clone();
        samples::problems(encoder, names::PROBLEMS, &problems)
    }
}

/// A histogram of an Ingress.
struct Durations {
    sum: f64,
    count: u64,
    buckets: [(f64, u64); BOUNDS.len() + 1],
}

impl Durations {
    fn of(services: &HashMap<ObjectKey, Arc<Traffic>>) -> Self {
        let total =
            |of: &dyn Fn(&Traffic) -> &AtomicU64| services.values().map(|traffic| read(of(traffic))).sum::<u64>();
        let buckets = array::from_fn(|at| {
            let bound = BOUNDS.get(at).map_or(f64::INFINITY, |bound| seconds(*bound));
            (bound, total(&|traffic| &traffic.durations[at]))
        });
        Self {
            sum: seconds(total(&|traffic| &traffic.micros)),
            count: buckets.iter().map(|(_, count)| count).sum(),
            buckets,
        }
    }
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_histogram::<NoLabelSet>(self.sum, self.count, &self.buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
