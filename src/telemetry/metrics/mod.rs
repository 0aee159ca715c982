//! What a scrape gets. The one place where a metric has its name.
//!
//! ```text
//!   progress, snapshot ---> stream.rs  --+
//!   what was observed ----> servers.rs --+--> the registry --> OpenMetrics, or the text format 0.0.4
//!   /proc/self -----------> process.rs --+
//! ```
//!
//! Labels are names of tables, never values of rows. Nothing is counted for a scrape's sake but what `progress.rs` says.

mod out;
mod process;
mod servers;
mod stream;

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text, text};
use prometheus_client::registry::Registry;
use tracing_appender::non_blocking::ErrorCounter;

use super::observer::Observed;
use super::progress::Progress;
use crate::snapshot::Shared;
use out::Out;

/// What the metrics are taken from at each scrape.
#[derive(Clone, Debug)]
pub struct Sources {
    pub(crate) progress: Arc<Progress>,
    /// The recording of rows that exist already.
    pub(crate) snapshot: Arc<Shared>,
    log_lines_dropped: ErrorCounter,
    observed: Observed,
}

impl Sources {
    /// Without an observer of the servers.
    pub fn new(
        progress: Arc<Progress>,
        snapshot: Arc<Shared>,
        log_lines_dropped: ErrorCounter,
    ) -> Self {
        Self {
            progress,
            snapshot,
            log_lines_dropped,
            observed: Observed::channel().1,
        }
    }

    pub(crate) fn observed(self, observed: Observed) -> Self {
        Self { observed, ..self }
    }
}

/// All metrics: ours under the prefix `waltrail_`, and those of the process.
pub fn registry(sources: Sources) -> Registry {
    let mut registry = Registry::default();
    registry
        .sub_registry_with_prefix("waltrail")
        .register_collector(Box::new(sources));
    registry.register_collector(Box::new(process::ProcessMetrics));
    registry
}

impl Collector for Sources {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(&mut encoder);
        let labels = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("commit", crate::COMMIT),
        ];
        out.info("build", "The version that runs", &labels)?;
        out.counter(
            "log_lines_dropped",
            "Log lines lost because their reader was too slow",
            self.log_lines_dropped.dropped_lines() as u64,
        )?;
        stream::stream(self, &mut out)?;
        stream::flow(self, &mut out)?;
        stream::snapshot(self, &mut out)?;
        servers::servers(self, &mut out)
    }
}

/// The two formats that Prometheus reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    /// Version 0.0.4.
    Text,
}

impl Format {
    /// OpenMetrics where the header `Accept` prefers it; else text, which people read as well.
    pub fn accepted(accept: Option<&str>) -> Self {
        let accept = accept.unwrap_or_default();
        let (open, text) = (quality(accept, true), quality(accept, false));
        match open > 0.0 && open >= text {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => prometheus_text::CONTENT_TYPE,
        }
    }

    /// # Errors
    /// None that the encoder is known to have.
    pub fn encode(self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut out = String::new();
        match self {
            Self::OpenMetrics => text::encode(&mut out, registry)?,
            Self::Text => prometheus_text::encode(&mut out, registry)?,
        }
        Ok(out)
    }
}

/// How much a header `Accept` wants a format (RFC 9110, section 12.5.1); 0: not at all.
fn quality(accept: &str, open_metrics: bool) -> f64 {
    let of = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let (mut quality, mut fits) = (1.0, true);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => quality = value.trim().parse().unwrap_or(0.0),
                "version" => fits &= value.trim() == if open_metrics { "1.0.0" } else { "0.0.4" },
                _ => {}
            }
        }
        let wanted = if open_metrics {
            "application/openmetrics-text"
        } else {
            "text/plain"
        };
        match kind.eq_ignore_ascii_case(wanted) && fits {
            true => quality,
            false => 0.0,
        }
    };
    accept.split(',').map(of).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_the_client_accepts() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, wanted) in [
            (None, Format::Text),
            (Some("*/*"), Format::Text),
            (
                Some("text/html,application/xhtml+xml,*/*;q=0.8"),
                Format::Text,
            ),
            (Some(prometheus), Format::OpenMetrics),
            (Some("application/openmetrics-text"), Format::OpenMetrics),
            (
                Some("Application/OpenMetrics-Text; Version=1.0.0"),
                Format::OpenMetrics,
            ),
            (
                Some("application/openmetrics-text;version=0.0.1"),
                Format::Text,
            ),
            (Some("application/openmetrics-text;q=0"), Format::Text),
            (
                Some("text/plain;version=0.0.4,application/openmetrics-text;version=1.0.0;q=0.5"),
                Format::Text,
            ),
            (Some("\u{0}rubbish;;;q=x,"), Format::Text),
        ] {
            assert_eq!(Format::accepted(accept), wanted, "{accept:?}");
        }
    }
}
