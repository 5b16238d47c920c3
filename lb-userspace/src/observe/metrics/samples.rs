//! What the metrics of Fairway's processes are made of: names, and samples that are made when somebody asks.

use std::collections::BTreeSet;
use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::model::Problem;

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    /// Its name.
    pub name: &'static str,
    /// What it tells.
    pub help: &'static str,
    /// What it is.
    pub kind: MetricType,
}

impl Name {
    pub(crate) const fn gauge(name: &'static str, help: &'static str) -> Self {
        let kind = MetricType::Gauge;
        Self { name, help, kind }
    }

    pub(crate) const fn counter(name: &'static str, help: &'static str) -> Self {
        let kind = MetricType::Counter;
        Self { name, help, kind }
    }

    pub(crate) const fn histogram(name: &'static str, help: &'static str) -> Self {
        let kind = MetricType::Histogram;
        Self { name, help, kind }
    }
}

/// Defines the names of a process.
macro_rules! names {
    ($($constant:ident = $make:ident($name:literal, $help:literal);)*) => {
        $(#[doc = $help] pub const $constant: Name = Name::$make($name, $help);)*
        /// All of them.
        #[cfg(test)]
        pub const ALL: &[Name] = &[$($constant),*];
    };
}
pub(crate) use names;

/// Labels with their values.
type Labels<const N: usize> = [(&'static str, String); N];

/// A metric with labels.
pub(crate) fn family<const N: usize, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    Name { name, help, kind }: Name,
    samples: impl IntoIterator<Item = (Labels<N>, M)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in samples {
        value.encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

/// A metric without labels.
pub(crate) fn single(
    encoder: &mut DescriptorEncoder<'_>,
    Name { name, help, kind }: Name,
    value: &impl EncodeMetric,
) -> fmt::Result {
    value.encode(encoder.encode_descriptor(name, help, None, kind)?)
}

/// What is wrong with objects: 1 for each.
pub(crate) fn problems(encoder: &mut DescriptorEncoder<'_>, name: Name, problems: &[Problem]) -> fmt::Result {
    // Several things can be wrong with one field, and each sample has to be there once.
    let labels: BTreeSet<Labels<5>> = problems
        .iter()
        .map(|problem| {
            [
                ("kind", problem.kind.to_string()),
                ("namespace", problem.object.namespace.to_string()),
                ("name", problem.object.name.to_string()),
                ("field", problem.field.clone()),
                ("reason", problem.reason.name().to_owned()),
            ]
        })
        .collect();
    let samples = labels.into_iter().map(|labels| (labels, ConstGauge::new(1_u64)));
    family(encoder, name, samples)
}
