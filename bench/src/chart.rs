//! The results as a picture: bars of medians, with a whisker, group by group.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::contender::Contender;
use crate::latency::Turn;
use crate::report::{Results, latency_places, summaries, turns_of};
use crate::table::median;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: i32 = 1_000;
const MARGIN: i32 = 24;
/// Where the bars begin, and where the longest ends.
const LEFT: i32 = 285;
const RIGHT: i32 = WIDTH - 150;
const BAR: i32 = 17;
const BAR_GAP: i32 = 4;
const GROUP_GAP: i32 = 16;
const HEAD: i32 = 86;
const PANEL_HEAD: i32 = 34;
const PANEL_FOOT: i32 = 38;
/// The library writes a size in other units than SVG's.
const FONT_UNIT: f64 = 1.24;
const FONT: &str = "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif";
const INK: RGBColor = RGBColor(33, 37, 41);
const FAINT: RGBColor = RGBColor(108, 117, 125);
const GRID: RGBColor = RGBColor(222, 226, 230);

fn color(contender: Contender) -> RGBColor {
    match contender {
        Contender::Waltrail => RGBColor(11, 114, 133),
        Contender::Streaming => RGBColor(116, 178, 190),
        Contender::Recvlogical => RGBColor(173, 181, 189),
        Contender::Subscription => RGBColor(232, 142, 50),
    }
}

/// One bar.
pub(crate) struct Bar {
    pub name: &'static str,
    pub color: RGBColor,
    pub value: f64,
    pub whisker: [f64; 2],
    pub note: String,
}

/// Bars that are compared.
pub(crate) struct Group {
    pub name: String,
    pub bars: Vec<Bar>,
}

/// Groups with one axis.
pub(crate) struct Panel {
    pub title: String,
    pub unit: &'static str,
    pub groups: Vec<Group>,
}

impl Panel {
    fn height(&self) -> i32 {
        let group = |group: &Group| group.bars.len() as i32 * (BAR + BAR_GAP) + GROUP_GAP;
        PANEL_HEAD + self.groups.iter().map(group).sum::<i32>() + PANEL_FOOT
    }
}

/// Draws the chart.
///
/// # Errors
/// The file cannot be written.
pub fn draw(path: &Path, results: &Results) -> Result<()> {
    let panels = [drains(results), latencies(&results.turns)];
    let title = "waltrail beside others that read the same WAL";
    draw_panels(path, title, &results.circumstances.lines(), &panels)
}

/// Draws panels below each other.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn draw_panels(
    path: &Path,
    title: &str,
    lines: &[String],
    panels: &[Panel],
) -> Result<()> {
    let panels: Vec<&Panel> = panels
        .iter()
        .filter(|panel| !panel.groups.is_empty())
        .collect();
    let height = HEAD + panels.iter().map(|panel| panel.height()).sum::<i32>();
    let size = (WIDTH.cast_unsigned(), height.cast_unsigned());
    let area = SVGBackend::new(path, size).into_drawing_area();
    paint(&area, title, lines, &panels)
        .map_err(|error| anyhow!("the chart cannot be drawn: {error}"))
}

type Painted = std::result::Result<(), Box<dyn std::error::Error>>;

fn paint(area: &Area<'_>, title: &str, lines: &[String], panels: &[&Panel]) -> Painted {
    area.fill(&WHITE)?;
    text(area, title, 22, INK, (MARGIN, 26), HPos::Left)?;
    for (n, line) in lines.iter().enumerate() {
        text(
            area,
            line,
            12,
            FAINT,
            (MARGIN, 50 + 17 * n as i32),
            HPos::Left,
        )?;
    }
    let mut top = HEAD;
    for panel in panels {
        paint_panel(area, panel, top)?;
        top += panel.height();
    }
    Ok(area.present()?)
}

fn drains(results: &Results) -> Panel {
    let mut groups: Vec<Group> = Vec::new();
    for line in summaries(&results.runs) {
        let name = format!("{}, {}", line.workload, line.transport.name());
        if groups.last().is_none_or(|group| group.name != name) {
            groups.push(Group {
                name: name.clone(),
                bars: Vec::new(),
            });
        }
        let bar = Bar {
            name: line.contender.name(),
            color: color(line.contender),
            value: line.seconds[0],
            whisker: [line.seconds[1], line.seconds[2]],
            note: match line.contender {
                Contender::Waltrail => format!("{:.2} s", line.seconds[0]),
                _ => format!("{:.2} s  (×{:.2})", line.seconds[0], line.by_waltrail),
            },
        };
        if let Some(group) = groups.last_mut() {
            group.bars.push(bar);
        }
    }
    Panel {
        title: "Time to drain, median and range (× waltrail). pg_recvlogical writes to /dev/null, the subscription \
                keeps a plain copy"
            .to_owned(),
        unit: "s",
        groups,
    }
}

fn latencies(turns: &[Turn]) -> Panel {
    let groups = latency_places(turns).map(|transport| Group {
        name: transport.name().to_owned(),
        bars: [Contender::Waltrail, Contender::Subscription]
            .into_iter()
            .map(|contender| {
                let here = turns_of(turns, transport, contender);
                let p50 = median(here.iter().map(|turn| turn.p50_ms));
                let p99 = median(here.iter().map(|turn| turn.p99_ms));
                Bar {
                    name: contender.name(),
                    color: color(contender),
                    value: p50,
                    whisker: [p50, p99],
                    note: format!("{p50:.2} / {p99:.2} ms"),
                }
            })
            .collect(),
    });
    Panel {
        title:
            "From COMMIT to visible in the target, idle, one client: p50 (bar) and p99 (whisker)"
                .to_owned(),
        unit: "ms",
        groups: groups.collect(),
    }
}

fn paint_panel(area: &Area<'_>, panel: &Panel, top: i32) -> Painted {
    text(area, &panel.title, 14, INK, (MARGIN, top + 12), HPos::Left)?;
    let bars = || panel.groups.iter().flat_map(|group| &group.bars);
    let most = bars()
        .map(|bar| bar.whisker[1].max(bar.value))
        .fold(0.0, f64::max);
    let step = step(most);
    let end = (most / step).ceil() * step;
    let x = |value: f64| LEFT + (value / end * f64::from(RIGHT - LEFT)).round() as i32;
    let floor = top + panel.height() - PANEL_FOOT;
    let mut tick = 0.0;
    while tick <= end + step / 2.0 {
        let at = x(tick);
        line(area, [(at, top + PANEL_HEAD - 6), (at, floor)], GRID, 1)?;
        let label = format!("{} {}", trimmed(tick), panel.unit);
        text(area, &label, 11, FAINT, (at, floor + 11), HPos::Center)?;
        tick += step;
    }
    let mut y = top + PANEL_HEAD;
    for group in &panel.groups {
        let middle = y + group.bars.len() as i32 * (BAR + BAR_GAP) / 2 - BAR_GAP / 2;
        text(area, &group.name, 13, INK, (MARGIN, middle), HPos::Left)?;
        for bar in &group.bars {
            paint_bar(area, bar, y, x)?;
            y += BAR + BAR_GAP;
        }
        y += GROUP_GAP;
    }
    Ok(())
}

fn paint_bar(area: &Area<'_>, bar: &Bar, y: i32, x: impl Fn(f64) -> i32) -> Painted {
    let middle = y + BAR / 2;
    text(area, bar.name, 12, INK, (LEFT - 8, middle), HPos::Right)?;
    let corners = [(LEFT, y), (x(bar.value), y + BAR)];
    area.draw(&Rectangle::new(corners, bar.color.filled()))?;
    let [low, high] = bar.whisker.map(&x);
    line(area, [(low, middle), (high, middle)], INK, 1)?;
    for end in [low, high] {
        line(area, [(end, middle - 4), (end, middle + 4)], INK, 1)?;
    }
    let note = high.max(x(bar.value)) + 8;
    text(area, &bar.note, 12, INK, (note, middle), HPos::Left)
}

fn line(area: &Area<'_>, ends: [(i32, i32); 2], color: RGBColor, width: u32) -> Painted {
    Ok(area.draw(&PathElement::new(ends, color.stroke_width(width)))?)
}

fn text(
    area: &Area<'_>,
    text: &str,
    size: i32,
    color: RGBColor,
    at: (i32, i32),
    anchor: HPos,
) -> Painted {
    let style = TextStyle::from((FONT, f64::from(size) * FONT_UNIT).into_font())
        .color(&color)
        .pos(Pos::new(anchor, VPos::Center));
    Ok(area.draw_text(text, &style, at)?)
}

/// The distance of the marks on an axis that reaches to `most`: 1, 2 or 5 times a power of ten.
fn step(most: f64) -> f64 {
    let rough = (most / 6.0).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(rough.log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|times| times * power >= rough);
    times.unwrap_or(10.0) * power
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::{step, trimmed};

    #[test]
    fn marks_are_round_numbers() {
        assert_eq!(step(9.6), 2.0);
        assert_eq!(step(3.1), 1.0);
        assert!((step(0.5) - 0.1).abs() < 1e-12);
        assert_eq!(trimmed(0.1 + 0.2), "0.3");
        assert_eq!(trimmed(10.0), "10");
    }
}
