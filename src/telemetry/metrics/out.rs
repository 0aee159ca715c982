//! One family of metrics after the other, as the encoder wants them.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::telemetry::histogram::Histogram;

pub(super) struct Out<'a, 'e>(pub(super) &'a mut DescriptorEncoder<'e>);

impl Out<'_, '_> {
    pub(super) fn info(
        &mut self,
        name: &str,
        help: &str,
        labels: &impl EncodeLabelSet,
    ) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Info)?
            .encode_info(labels)
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counter_if_known(name, help, Some(value))
    }

    pub(super) fn counter_if_known(
        &mut self,
        name: &str,
        help: &str,
        value: Option<u64>,
    ) -> fmt::Result {
        let counter = MetricType::Counter;
        let encoder = self.0.encode_descriptor(name, help, None, counter)?;
        match value {
            Some(value) => ConstCounter::new(value).encode(encoder),
            None => Ok(()),
        }
    }

    pub(super) fn seconds_counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let counter = MetricType::Counter;
        let encoder = self.0.encode_descriptor(name, help, None, counter)?;
        ConstCounter::new(value).encode(encoder)
    }

    /// A counter for each set of labels.
    pub(super) fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let counter = MetricType::Counter;
        let mut family = self.0.encode_descriptor(name, help, None, counter)?;
        for (labels, value) in values {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.gauge_if_known(name, help, Some(value))
    }

    /// Where it is not known there is no sample.
    pub(super) fn gauge_if_known(
        &mut self,
        name: &str,
        help: &str,
        value: Option<f64>,
    ) -> fmt::Result {
        let gauge = MetricType::Gauge;
        let encoder = self.0.encode_descriptor(name, help, None, gauge)?;
        match value {
            Some(value) => ConstGauge::new(value).encode(encoder),
            None => Ok(()),
        }
    }

    /// A gauge for each value of one label.
    pub(super) fn gauges<'l>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl IntoIterator<Item = (&'l str, f64)>,
    ) -> fmt::Result {
        let gauge = MetricType::Gauge;
        let mut family = self.0.encode_descriptor(name, help, None, gauge)?;
        for (of, value) in values {
            ConstGauge::new(value).encode(family.encode_family(&[(label, of)])?)?;
        }
        Ok(())
    }

    /// `unit`: so many of the histogram's numbers are 1.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        help: &str,
        histogram: &Histogram,
        unit: f64,
    ) -> fmt::Result {
        let buckets = histogram.buckets();
        let buckets = buckets.map(|(bound, count)| (bound as f64 / unit, count));
        let mut buckets: Vec<(f64, u64)> = buckets.collect();
        buckets.push((f64::INFINITY, histogram.beyond()));
        let sum = histogram.sum() as f64 / unit;
        let count = histogram.count();
        self.0
            .encode_descriptor(name, help, None, MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}
