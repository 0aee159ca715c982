//! Why a stream or a backlog was not read any further, and what follows from it.

use super::Ended;
use crate::config::Source;
use crate::fault::{Disposition, Exit, Fault, Gap, Result, Side};
use crate::lsn::Lsn;
use crate::pipeline::{Altered, Pipeline, PipelineError};
use crate::schema::plan::PlanError;
use crate::source::stream::StreamError;
use crate::transaction::OrderError;
use crate::wire;

/// Why no further message can be taken.
pub(super) enum Stop {
    /// The same changes can be read as text.
    NeedsText(PipelineError),
    /// The same changes can be read once the history is prepared for them.
    Altered(Box<Altered>),
    /// The connection to the source failed, or the source reported an error.
    Source(wire::Error),
    Fault(Fault),
}

impl Stop {
    /// `history_end`: everything up to there was handed to the target.
    pub(super) fn ended(self, source: &Source, history_end: Lsn) -> Result<Ended> {
        match self {
            Self::NeedsText(why) => {
                tracing::info!(reason = %why, "asking for the changes again as text");
                Ok(Ended::NeedsText)
            }
            Self::Altered(altered) => {
                let table = &altered.table;
                if let Some((was, now)) = &altered.renamed {
                    tracing::warn!(%table, was, now, "a column was renamed: the history goes on under its new name");
                }
                tracing::info!(%table, "its columns have changed: reading the catalogs again");
                Ok(Ended::Altered(altered))
            }
            Self::Source(error) => Err(stream_fault(error, &source.publication, history_end)),
            Self::Fault(fault) => Err(fault),
        }
    }
}

impl From<wire::Error> for Stop {
    fn from(error: wire::Error) -> Self {
        Self::Source(error)
    }
}

impl From<StreamError> for Stop {
    fn from(error: StreamError) -> Self {
        Self::Fault(match error {
            StreamError::Wire(error) => return Self::Source(error),
            StreamError::Ended => {
                Fault::reconnect("the source ended the stream: it is shutting down")
                    .of(Side::Source)
            }
            StreamError::Frame(error) => {
                Fault::halt(Exit::HistoryWouldBeWrong, "the stream cannot be read")
                    .caused_by(error)
                    .see("the-stream-cannot-be-read")
            }
        })
    }
}

impl Stop {
    /// What `pipeline` refused.
    pub(super) fn at(error: PipelineError, pipeline: &Pipeline) -> Self {
        let leaves_out = error.is_of_a_transaction().then(|| pipeline.commit_lsn());
        match (Self::from(error), leaves_out.flatten()) {
            (Self::Fault(fault), Some(lsn)) => Self::Fault(fault.or_leave_out(lsn)),
            (stop, _) => stop,
        }
    }
}

impl From<PipelineError> for Stop {
    fn from(error: PipelineError) -> Self {
        if error.needs_text() {
            return Self::NeedsText(error);
        }
        let error = match error {
            PipelineError::Altered(altered) => return Self::Altered(altered),
            error => error,
        };
        let (anchor, remedy) = match &error {
            PipelineError::Order(OrderError::Unrecognized(_)) => (
                "the-source-was-restored-from-an-older-state",
                "correct source.dsn; or remove the history rows that the source does not have, then: waltrail accept-gap --source-replaced"
                    .to_owned(),
            ),
            PipelineError::Plan(error @ PlanError::Inexact(_)) => {
                ("a-history-column-changes-values", error.remedy())
            }
            PipelineError::Plan(_) => (
                "nothing-in-common",
                "change the history table so that it fits, and start again".to_owned(),
            ),
            _ => (
                "the-stream-cannot-be-read",
                "the slot keeps what follows; report this with the versions of both servers"
                    .to_owned(),
            ),
        };
        let fault = Fault::halt(Exit::HistoryWouldBeWrong, error.to_string());
        Self::Fault(fault.remedy(remedy).see(anchor))
    }
}

/// What follows from an error of the stream or the backlog, when the history ends at `history_end`.
fn stream_fault(error: wire::Error, publication: &str, history_end: Lsn) -> Fault {
    let disposition = error.disposition();
    let broke = Fault::new(disposition, "the stream from the source broke").of(Side::Source);
    let Some(report) = error.server() else {
        return match error {
            wire::Error::Protocol(_) => broke.see("the-stream-cannot-be-read"),
            _ => broke,
        }
        .caused_by(error);
    };
    let gap = Gap {
        from: history_end,
        to: None,
        histories: Vec::new(),
    };
    let fault = match (report.code.as_str(), disposition) {
        ("42704", _) => {
            let at = report
                .lsn
                .map_or_else(|| format!("after {history_end}"), |lsn| format!("at {lsn}"));
            let what = format!(
                "publication \"{publication}\" did not exist {at}: changes from there are not published, and the history \
                 ends at {history_end}"
            );
            Fault::halt(Exit::HistoryWouldBeWrong, what)
                .remedy("to let the history go on with this gap, run: waltrail accept-gap")
                .see("the-publication-was-missing")
        }
        ("58P01", _) => broke
            .after(history_end)
            .remedy("WAL that the slot needs was removed on the source; to let the history go on with this gap, run: waltrail accept-gap")
            .see("wal-was-removed"),
        (_, Disposition::RetryFew | Disposition::Halt(Exit::HistoryWouldBeWrong)) => {
            Fault::new(disposition, "the source could not send a change")
                .of(Side::Source)
                .after(history_end)
                .remedy("see the source's log; to let the history go on with this gap, run: waltrail accept-gap")
                .see("a-change-cannot-be-sent")
        }
        _ => return broke.caused_by(error),
    };
    fault.missing(gap).caused_by(error)
}
