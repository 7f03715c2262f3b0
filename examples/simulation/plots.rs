//! The plots, as SVG: panels of lines under one legend.

use std::error::Error;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use steadfast_sim::{Report, Slice};

use crate::experiments::{BUDGETS, CROWDS, Findings, JITTERS, Mean, SHARES, STRATEGIES};

type Drawn = Result<(), Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// How a line is drawn.
#[derive(Clone, Copy)]
struct Pen {
    colour: RGBColor,
    broken: bool,
}

// Told apart by people who do not see red and green (Okabe and Ito). A line that runs over another
// is broken.
const RED: Pen = Pen { colour: RGBColor(213, 94, 0), broken: false };
const ORANGE: Pen = Pen { colour: RGBColor(230, 159, 0), broken: true };
const BLUE: Pen = Pen { colour: RGBColor(0, 114, 178), broken: false };
const GREEN: Pen = Pen { colour: RGBColor(0, 158, 115), broken: false };

/// The standard budget is green wherever it stands, and no budget red.
const BUDGET_PENS: [Pen; 4] = [RED, ORANGE, BLUE, GREEN];
const STRATEGY_PENS: [Pen; 4] = [RED, ORANGE, GREEN, BLUE];
const JITTER_PENS: [Pen; 3] = [RED, ORANGE, BLUE];
const INK: RGBColor = RGBColor(40, 40, 40);
const TROUBLE: RGBColor = RGBColor(238, 238, 238);
const LEGEND_HEIGHT: i32 = 34;
const FONT: &str = "sans-serif";

/// Slices of a tenth of a second that make one point of a timeline.
const SLICES_A_POINT: usize = 10;

/// A plot with its file name.
pub(crate) struct Plot {
    pub(crate) name: &'static str,
    pub(crate) svg: String,
}

struct Panel {
    title: String,
    x_label: &'static str,
    y_label: &'static str,
    x: Range<f64>,
    y: Range<f64>,
    /// The time of the trouble.
    shaded: Option<Range<f64>>,
    lines: Vec<(Pen, Points)>,
}

type Points = Vec<(f64, f64)>;

pub(crate) fn all(findings: &Findings) -> Result<Vec<Plot>, Box<dyn Error>> {
    let budgets = legend(BUDGETS.iter().map(|budget| budget.name), &BUDGET_PENS);
    let strategies = legend(STRATEGIES.iter().map(|strategy| strategy.name), &STRATEGY_PENS);
    let jitters = legend(JITTERS.iter().map(|(name, _)| *name), &JITTER_PENS);
    Ok(vec![
        plot("recovery", (1000, 640), &budgets, 2, &recovery(findings))?,
        plot("share", (1000, 380), &strategies, 2, &share(findings))?,
        plot("contention", (1000, 380), &jitters, 2, &contention(findings))?,
        plot("herd", (1000, 320), &[], 3, &herd(findings))?,
    ])
}

fn legend(names: impl Iterator<Item = &'static str>, pens: &[Pen]) -> Vec<(&'static str, Pen)> {
    names.zip(pens.iter().copied()).collect()
}

// ---- what is in them
// --------------------------------------------------------------------------------------------------

/// Above what the clients send, below what comes of it; on the left the server that restarts, on
/// the right the one that keeps its queue.
fn recovery(findings: &Findings) -> Vec<Panel> {
    let [_, hanging, frozen] = &findings.outages;
    let panel = |title: &str, y_label, top, count: fn(&Slice) -> u64, reports: &[Report]| Panel {
        title: title.to_owned(),
        x_label: "seconds",
        y_label,
        x: 0.0..100.0,
        y: 0.0..top,
        shaded: Some(10.0..40.0),
        lines: BUDGET_PENS.into_iter().zip(reports.iter().map(|report| timeline(report, count))).collect(),
    };
    let sent = |title, reports: &[Report]| panel(title, "requests sent, x", 7.0, |slice| slice.requests, reports);
    let answered = |reports: &[Report]| panel("", "operations that succeed, x", 1.25, |slice| slice.answered, reports);
    vec![
        sent("hung, then restarted with an empty queue", hanging),
        sent("frozen, then goes on with its queue", frozen),
        answered(hanging),
        answered(frozen),
    ]
}

/// As multiples of the thousand operations per second that the clients start.
#[allow(clippy::cast_precision_loss, reason = "thousands")]
fn timeline(report: &Report, count: fn(&Slice) -> u64) -> Vec<(f64, f64)> {
    let points = report.timeline().chunks_exact(SLICES_A_POINT).enumerate().map(|(place, slices)| {
        let seconds = SLICES_A_POINT as f64 / 10.0;
        let counted = slices.iter().map(count).sum::<u64>() as f64;
        ((place as f64 + 0.5) * seconds, counted / seconds / 1000.0)
    });
    points.collect()
}

fn share(findings: &Findings) -> Vec<Panel> {
    let line = |reports: &Vec<Report>, value: fn(&Report) -> f64| -> Vec<_> {
        SHARES.iter().zip(reports).map(|(share, report)| (f64::from(*share), value(report))).collect()
    };
    let panel = |title: &str, y_label, top, value: fn(&Report) -> f64| Panel {
        title: title.to_owned(),
        x_label: "requests that fail, %",
        y_label,
        x: 0.0..100.0,
        y: 0.0..top,
        shaded: None,
        lines: STRATEGY_PENS.into_iter().zip(findings.shares.iter().map(|reports| line(reports, value))).collect(),
    };
    vec![
        panel("the load", "requests for each operation", 4.5, |report| report.during().attempts_per_operation()),
        panel("what comes of it", "operations that succeed, %", 105.0, |report| report.during().success() * 100.0),
    ]
}

fn contention(findings: &Findings) -> Vec<Panel> {
    let line = |means: &Vec<Mean>, value: fn(&Mean) -> f64| -> Points {
        CROWDS.iter().zip(means).map(|(crowd, mean)| (f64::from(*crowd), value(mean))).collect()
    };
    let panel = |title: &str, y_label, top, value: fn(&Mean) -> f64| Panel {
        title: title.to_owned(),
        x_label: "clients that contend",
        y_label,
        x: 0.0..100.0,
        y: 0.0..top,
        shaded: None,
        lines: JITTER_PENS.into_iter().zip(findings.contention.iter().map(|means| line(means, value))).collect(),
    };
    vec![
        panel("the work", "calls, all clients together", 2000.0, |mean| mean.calls),
        panel("the time", "seconds until the last is through", 70.0, |mean| mean.seconds),
    ]
}

#[allow(clippy::cast_precision_loss, reason = "thousands")]
fn herd(findings: &Findings) -> Vec<Panel> {
    let panel = |((name, _), (pen, report)): (&(&str, _), (Pen, &Report))| {
        let steps = report.timeline().iter().enumerate().skip(10).flat_map(|(place, slice)| {
            let from = place as f64 / 10.0 - 1.0;
            [(from, slice.requests as f64), (from + 0.1, slice.requests as f64)]
        });
        Panel {
            title: (*name).to_owned(),
            x_label: "seconds",
            y_label: "requests in a tenth of a second",
            x: 0.0..2.5,
            y: 0.0..2000.0,
            shaded: Some(0.0..0.5),
            lines: vec![(Pen { broken: false, ..pen }, steps.take_while(|(at, _)| *at <= 2.5).collect())],
        }
    };
    JITTERS.iter().zip(JITTER_PENS.into_iter().zip(&findings.herds)).map(panel).collect()
}

// ---- how they are drawn
// -----------------------------------------------------------------------------------------------

/// Panels in rows, under the legend if there is one.
fn plot(
    name: &'static str,
    size: (u32, u32),
    legend: &[(&str, Pen)],
    columns: usize,
    panels: &[Panel],
) -> Result<Plot, Box<dyn Error>> {
    let mut svg = String::new();
    {
        let whole = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        whole.fill(&WHITE)?;
        let rest = if legend.is_empty() { whole } else { under_legend(&whole, legend)? };
        let areas = rest.split_evenly((panels.len().div_ceil(columns), columns));
        areas.iter().zip(panels).try_for_each(|(area, panel)| draw(area, panel))?;
        rest.present()?;
    }
    Ok(Plot { name, svg })
}

fn under_legend<'a>(whole: &Area<'a>, entries: &[(&str, Pen)]) -> Result<Area<'a>, Box<dyn Error>> {
    let (legend, rest) = whole.split_vertically(LEGEND_HEIGHT);
    let width = i32::try_from(legend.dim_in_pixel().0)? / i32::try_from(entries.len())?;
    for (place, (name, pen)) in entries.iter().enumerate() {
        let (x, y) = (i32::try_from(place)? * width + 24, LEGEND_HEIGHT / 2);
        let style = pen.colour.stroke_width(3);
        let strokes = if pen.broken { vec![(0, 10), (16, 26)] } else { vec![(0, 26)] };
        for (from, to) in strokes {
            legend.draw(&PathElement::new([(x + from, y), (x + to, y)], style))?;
        }
        let text = (FONT, 14).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
        legend.draw(&Text::new((*name).to_owned(), (x + 34, y), text))?;
    }
    Ok(rest)
}

fn draw(area: &Area<'_>, panel: &Panel) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, 16).into_font().color(&INK))
        .margin(10)
        .margin_right(22)
        .x_label_area_size(38)
        .y_label_area_size(58)
        .build_cartesian_2d(panel.x.clone(), panel.y.clone())?;
    if let Some(shaded) = &panel.shaded {
        let corners = [(shaded.start, panel.y.start), (shaded.end, panel.y.end)];
        chart.draw_series([Rectangle::new(corners, TROUBLE.filled())])?;
    }
    chart
        .configure_mesh()
        .disable_x_mesh()
        .max_light_lines(0)
        .bold_line_style(RGBColor(221, 221, 221))
        .axis_style(INK)
        .label_style((FONT, 13).into_font().color(&INK))
        .axis_desc_style((FONT, 13).into_font().color(&INK))
        .x_desc(panel.x_label)
        .y_desc(panel.y_label)
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&short)
        .y_label_formatter(&short)
        .draw()?;
    for (pen, points) in &panel.lines {
        let (style, points) = (pen.colour.stroke_width(2), points.iter().copied());
        if pen.broken {
            chart.draw_series(DashedLineSeries::new(points, 8, 6, style))?;
        } else {
            chart.draw_series(LineSeries::new(points, style))?;
        }
    }
    Ok(())
}

/// As few digits as there are.
fn short(value: &f64) -> String {
    let rounded = (value * 100.0).round() / 100.0;
    format!("{rounded}")
}
