//! The tables of what was measured, and the verdict.

use std::path::Path;

use anyhow::{Context, Result};

use super::peers::Peer;
use super::question::{Asked, Question};
use super::{Measured, Results};
use crate::report::Circumstances;
use crate::table::{render, render_columns};

/// What one key may take, in milliseconds.
const KEY_MS_MAX: f64 = 1.0;
/// What the whole table may take, by the time of a query that is written by hand.
const WHOLE_MAX: f64 = 2.0;

impl Results {
    fn of(&self, question: Question, asked: Asked, is_indexed: bool) -> Option<&Measured> {
        self.measured.iter().find(|measured| {
            measured.question == question
                && measured.asked == asked
                && measured.is_indexed == is_indexed
        })
    }

    /// By the time of the same history by hand.
    fn ratio(&self, question: Question, asked: Asked, is_indexed: bool) -> Option<f64> {
        let by_hand = self.of(question.by_time(), asked.by_hand()?, is_indexed)?;
        Some(self.of(question, asked, is_indexed)?.ms / by_hand.ms)
    }

    fn table(&self, is_indexed: bool) -> String {
        let peers = [Asked::Peer(Peer::Periods), Asked::Peer(Peer::TableLog)];
        let cell = |question, asked| {
            let found = self.of(question, asked, is_indexed);
            found.map_or_else(String::new, |measured| shown(measured.ms))
        };
        let ratio = |question, asked| {
            let ratio = self.ratio(question, asked, is_indexed);
            ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"))
        };
        let mut header = vec![
            "milliseconds",
            "waltrail's history",
            "by hand",
            "ratio",
            "the README's history",
            "by hand",
            "ratio",
        ];
        if is_indexed {
            header.extend(peers.iter().map(|peer| peer.name()));
        }
        let is_asked = |question: &Question| {
            let mut all = self.measured.iter();
            all.any(|one| (one.question, one.is_indexed) == (*question, is_indexed))
        };
        let asked = Question::ALL.into_iter().filter(is_asked);
        let rows = asked.map(|question| {
            let mut row = vec![question.name().to_owned()];
            for (asked, by_hand) in [
                (Asked::Made, Asked::MadeByHand),
                (Asked::Plain, Asked::PlainByHand),
            ] {
                row.extend([
                    cell(question, asked),
                    cell(question, by_hand),
                    ratio(question, asked),
                ]);
            }
            if is_indexed {
                row.extend(peers.iter().map(|peer| cell(question, *peer)));
            }
            row
        });
        render_columns(&header, 1, rows)
    }

    fn verdict(&self) -> String {
        let ours = [Asked::Made, Asked::Plain];
        let worst = |values: &dyn Fn(Question, Asked) -> Option<f64>| {
            let all = Question::ALL
                .into_iter()
                .flat_map(|q| ours.map(|asked| (q, asked)));
            all.filter_map(|(question, asked)| values(question, asked))
                .fold(0.0, f64::max)
        };
        let key = worst(&|question, asked| {
            let is_state = question.is_of_a_key() && question.moment().is_some();
            let measured = self.of(question, asked, true)?;
            is_state.then_some(measured.ms)
        });
        let whole = |is_indexed| {
            worst(&|question, asked| {
                let ratio = self.ratio(question, asked, is_indexed)?;
                question.is_whole().then_some(ratio)
            })
        };
        let row = |what: &str, most: f64, got: f64| {
            let met = if got <= most { "met" } else { "missed" };
            [
                what.to_owned(),
                format!("{most}"),
                shown(got),
                met.to_owned(),
            ]
        };
        let rows = [
            ("one key beside its indexes, ms", KEY_MS_MAX, key),
            (
                "whole table beside its indexes, by hand",
                WHOLE_MAX,
                whole(true),
            ),
            ("whole table without them, by hand", WHOLE_MAX, whole(false)),
        ];
        // What was not asked took no time.
        let rows = rows.into_iter().filter(|(_, _, got)| *got > 0.0);
        render(
            ["the worst of them", "at most", "measured", ""],
            1,
            rows.map(|(what, most, got)| row(what, most, got)),
        )
    }
}

/// Three figures that count.
fn shown(ms: f64) -> String {
    match ms {
        ms if ms.is_infinite() => format!("over {},000", super::SECONDS_MAX),
        ms if ms < 10.0 => format!("{ms:.2}"),
        ms if ms < 100.0 => format!("{ms:.1}"),
        ms => format!("{ms:.0}"),
    }
}

/// Everything, as Markdown.
#[must_use]
pub fn document(circumstances: &Circumstances, results: &Results) -> String {
    let mut text = circumstances.lines().join("\n");
    text.push_str(&format!(
        "\n\nBeside the indexes that `check` prints:\n\n{}\n",
        results.table(true)
    ));
    text.push_str(&format!("\nWithout them:\n\n{}\n", results.table(false)));
    for index in &results.indexes {
        text.push_str(&format!(
            "\n- {} {:.1} s, {:.0} MB",
            index.statement, index.seconds, index.megabytes
        ));
    }
    for why in &results.left_out {
        text.push_str(&format!("\n- {why}"));
    }
    text.push_str(&format!("\n\n{}\n", results.verdict()));
    text
}

/// Writes every median.
///
/// # Errors
/// The file cannot be written.
pub fn write_csv(path: &Path, results: &Results) -> Result<()> {
    let mut csv = csv::Writer::from_path(path)
        .with_context(|| format!("could not write {}", path.display()))?;
    csv.write_record(["rows", "question", "asked", "indexed", "times", "median_ms"])?;
    for measured in &results.measured {
        csv.write_record([
            results.size.rows.to_string(),
            measured.question.name().to_owned(),
            measured.asked.name().to_owned(),
            measured.is_indexed.to_string(),
            measured.times.to_string(),
            format!("{:.4}", measured.ms),
        ])?;
    }
    Ok(csv.flush()?)
}
