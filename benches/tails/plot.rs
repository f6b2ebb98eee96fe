//! Error against time as a picture: a panel for each layer and order, a line for each tail.

use super::measure::{Line, Panel, Point, Report};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const WIDTH: i32 = 480;
const HEIGHT: i32 = 340;
/// Around a panel's axes.
const LEFT: i32 = 54;
const RIGHT: i32 = 18;
const ABOVE: i32 = 40;
const BELOW: i32 = 44;
/// For the title and the legend.
const TOP: i32 = 62;

const INK: RGBColor = RGBColor(32, 36, 44);
const FAINT: RGBColor = RGBColor(110, 118, 129);
const GRID: RGBColor = RGBColor(226, 229, 234);
/// A tail has a colour, by whatever its blocks are selected.
const COLOURS: [(&str, RGBColor); 4] = [
    ("none", RGBColor(140, 146, 156)),
    ("block", RGBColor(66, 112, 178)),
    ("row 64", RGBColor(24, 128, 92)),
    ("row 128", RGBColor(208, 120, 40)),
];

type Drawing<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Result<'a> =
    std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// An SVG, two panels side by side.
pub fn svg(report: &Report) -> String {
    let columns = report.panels.len().min(2) as i32;
    let rows = report.panels.len().div_ceil(2) as i32;
    let mut svg = String::new();
    let size = ((columns * WIDTH).max(620) as u32, (TOP + rows * HEIGHT) as u32);
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    draw(&area, report).expect("a string has nothing to fail on");
    drop(area);
    svg
}

fn draw<'a>(area: &Drawing<'a>, report: &Report) -> Result<'a> {
    area.fill(&WHITE)?;
    let title = format!("Relative L1 error to dense attention against the time of a call, {}", report.device);
    text(area, &title, (14, 12), 14, INK, (HPos::Left, VPos::Top))?;
    let mut x = 14;
    for line in &report.panels[0].lines {
        let name = if line.tail == "none" { "no tail".to_owned() } else { format!("{} tail", line.tail) };
        let name = if line.scores == "keys" { format!("{name}, by keys") } else { name };
        area.draw(&PathElement::new([(x, 44), (x + 20, 44)], colour_of(line).stroke_width(2)))?;
        mark(area, line, (x + 10, 44))?;
        text(area, &name, (x + 26, 44), 12, INK, (HPos::Left, VPos::Center))?;
        x += if line.scores == "keys" { 156 } else { 104 };
    }
    text(area, "┆ dense", (x, 44), 12, FAINT, (HPos::Left, VPos::Center))?;
    for (at, panel) in report.panels.iter().enumerate() {
        let at = at as i32;
        draw_panel(area, panel, (at % 2 * WIDTH, TOP + at / 2 * HEIGHT))?;
    }
    area.present()
}

fn draw_panel<'a>(area: &Drawing<'a>, panel: &Panel, (left, top): (i32, i32)) -> Result<'a> {
    let points = || panel.lines.iter().flat_map(|line| &line.points);
    let times = || points().map(|point| point.ms).chain([panel.dense_ms]);
    let least = times().fold(f64::INFINITY, f64::min) / 1.1;
    let most = times().fold(0.0, f64::max) * 1.1;
    let highest = points().map(|point| point.error).fold(0.0, f64::max) * 1.06;
    let [x0, x1] = [left + LEFT, left + WIDTH - RIGHT];
    let [y0, y1] = [top + HEIGHT - BELOW, top + ABOVE];
    // Time by its logarithm, the error from 0.
    let x = |ms: f64| x0 + (f64::from(x1 - x0) * (ms / least).ln() / (most / least).ln()).round() as i32;
    let y = |error: f64| y0 - (f64::from(y0 - y1) * error / highest).round() as i32;

    let title = format!("{}, {}, {:?}", panel.file, panel.order, panel.shape);
    text(area, &title, (x0, top + 14), 12, INK, (HPos::Left, VPos::Top))?;
    for error in linear_ticks(highest) {
        area.draw(&PathElement::new([(x0, y(error)), (x1, y(error))], GRID))?;
        text(area, &format!("{error:.2}"), (x0 - 6, y(error)), 11, FAINT, (HPos::Right, VPos::Center))?;
    }
    for ms in logarithmic_ticks(least, most) {
        area.draw(&PathElement::new([(x(ms), y0), (x(ms), y1)], GRID))?;
        text(area, &format!("{ms} ms"), (x(ms), y0 + 6), 11, FAINT, (HPos::Center, VPos::Top))?;
    }
    text(area, "time of a call, logarithmic", (x1, y0 + 24), 11, FAINT, (HPos::Right, VPos::Top))?;
    let dense = x(panel.dense_ms);
    for dash in (y1..y0).step_by(7) {
        area.draw(&PathElement::new([(dense, dash), (dense, (dash + 3).min(y0))], FAINT))?;
    }
    for line in &panel.lines {
        let at = |point: &Point| (x(point.ms), y(point.error));
        let path: Vec<(i32, i32)> = line.points.iter().map(at).collect();
        area.draw(&PathElement::new(path.clone(), colour_of(line).stroke_width(2)))?;
        for place in path {
            mark(area, line, place)?;
        }
    }
    // The shares, once.
    for point in &panel.lines[0].points {
        let label = format!("{} %", (1000.0 * point.top_k).round() / 10.0);
        text(area, &label, (x(point.ms) + 4, y(point.error) - 4), 10, FAINT, (HPos::Left, VPos::Bottom))?;
    }
    Ok(())
}

fn colour_of(line: &Line) -> RGBColor {
    COLOURS.iter().find(|(tail, _)| *tail == line.tail).map_or(INK, |(_, colour)| *colour)
}

/// A point of a line: full where blocks are selected by means, hollow where by keys.
fn mark<'a>(area: &Drawing<'a>, line: &Line, place: (i32, i32)) -> Result<'a> {
    let colour = colour_of(line);
    if line.scores == "keys" {
        area.draw(&Circle::new(place, 4, WHITE.filled()))?;
        return area.draw(&Circle::new(place, 4, colour.stroke_width(2)));
    }
    area.draw(&Circle::new(place, 3, colour.filled()))
}

fn text<'a>(
    area: &Drawing<'a>,
    text: &str,
    at: (i32, i32),
    size: i32,
    colour: RGBColor,
    (across, down): (HPos, VPos),
) -> Result<'a> {
    // plotters writes a font's size divided by 1.24.
    let style = ("sans-serif", f64::from(size) * 1.24).into_font().color(&colour);
    area.draw(&Text::new(text.to_owned(), at, style.pos(Pos::new(across, down))))
}

/// Round numbers from 0 that divide an axis into three to six parts.
fn linear_ticks(highest: f64) -> impl Iterator<Item = f64> {
    let decade = 10f64.powf(highest.log10().floor());
    let parts = [0.2, 0.5, 1.0, 2.0].map(|part| part * decade);
    let step = parts.into_iter().find(|step| highest / step <= 6.0).unwrap_or(decade);
    (0..).map(move |n| f64::from(n) * step).take_while(move |at| *at <= highest)
}

/// 1, 2 and 5 of every decade.
fn logarithmic_ticks(least: f64, most: f64) -> impl Iterator<Item = f64> {
    let decades = -4..6;
    let all = decades.flat_map(|decade: i32| {
        [1.0, 2.0, 5.0].map(|n| if decade < 0 { n / 10f64.powi(-decade) } else { n * 10f64.powi(decade) })
    });
    all.filter(move |at| (least..=most).contains(at))
}
