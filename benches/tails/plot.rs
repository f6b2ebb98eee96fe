//! Error against time as a picture: a row for each layer, its orders side by side on the same axes, a line for each tail.

use super::measure::{Line, Panel, Point, Report};
use plotters::prelude::*;
use plotters::style::FontTransform;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A panel's axes, and what is around them.
const WIDTH: i32 = 400;
const HEIGHT: i32 = 250;
const LEFT: i32 = 66;
const BETWEEN: i32 = 46;
const RIGHT: i32 = 26;
const ABOVE: i32 = 46;
const BELOW: i32 = 50;
/// For the titles and the legend.
const TOP: i32 = 88;

const INK: RGBColor = RGBColor(32, 36, 44);
const FAINT: RGBColor = RGBColor(100, 108, 120);
const GRID: RGBColor = RGBColor(230, 233, 237);
/// A tail has a colour, whatever its blocks are scored by.
const COLOURS: [(&str, RGBColor); 4] = [
    ("none", RGBColor(128, 134, 144)),
    ("block", RGBColor(52, 104, 178)),
    ("row 64", RGBColor(20, 134, 96)),
    ("row 128", RGBColor(214, 112, 32)),
];
const BY_KEYS: &str = ", by keys";

type Drawing<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Result<'a> =
    std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// An SVG.
pub fn svg(report: &Report) -> String {
    let rows: Vec<&[Panel]> = report.panels.chunk_by(|one, next| one.name == next.name).collect();
    let columns = rows.iter().map(|row| row.len()).max().unwrap_or(1).max(2) as i32;
    let width = LEFT + columns * WIDTH + (columns - 1) * BETWEEN + RIGHT;
    let height = TOP + rows.len() as i32 * (ABOVE + HEIGHT + BELOW);
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (width as u32, height as u32)).into_drawing_area();
    draw(&area, report, &rows).expect("a string has nothing to fail on");
    drop(area);
    svg
}

fn draw<'a>(area: &Drawing<'a>, report: &Report, rows: &[&[Panel]]) -> Result<'a> {
    area.fill(&WHITE)?;
    let [q, kv] = report.block;
    let device = report.device.split(" (").next().unwrap_or_default();
    let title = format!(
        "Error against time, with tails and without: {device}, blocks of {q}×{kv}; at the grey dots the share of blocks kept"
    );
    text(area, &title, (14, 12), 14, INK, (HPos::Left, VPos::Top))?;
    let error = "Error: Σ |out − dense| ÷ Σ |dense|, the mean over the heads. 0 is dense attention, 1 as far off as an output of zeros. Both axes are logarithmic.";
    text(area, error, (14, 35), 12, FAINT, (HPos::Left, VPos::Top))?;
    let mut x = 14;
    for line in &report.panels[0].lines {
        let (tail, by_keys) = tail_of(line);
        let name = match tail.split_once(' ') {
            None if tail == "none" => "no tail".to_owned(),
            None => tail.to_owned(),
            Some((tail, keys)) => format!("{tail}, {keys} keys"),
        };
        let name = if by_keys { format!("{name}{BY_KEYS}") } else { name };
        area.draw(&PathElement::new([(x, 68), (x + 22, 68)], colour_of(line).stroke_width(2)))?;
        mark(area, line, (x + 11, 68))?;
        text(area, &name, (x + 28, 68), 12, INK, (HPos::Left, VPos::Center))?;
        x += 52 + 6 * name.chars().count() as i32;
    }
    dashes(area, [(x + 4, 61), (x + 4, 76)])?;
    text(area, "dense attention", (x + 11, 68), 12, INK, (HPos::Left, VPos::Center))?;
    for (at, row) in rows.iter().enumerate() {
        let axes = Axes::of(row, TOP + at as i32 * (ABOVE + HEIGHT + BELOW) + ABOVE);
        for (column, panel) in row.iter().enumerate() {
            let axes = Axes { left: LEFT + column as i32 * (WIDTH + BETWEEN), ..axes };
            draw_panel(area, panel, &axes, column == 0)?;
        }
    }
    area.present()
}

/// Where things are in a panel: both axes are logarithmic.
struct Axes {
    left: i32,
    top: i32,
    /// The least and the most.
    ms: [f64; 2],
    error: [f64; 2],
}

impl Axes {
    /// Axes that the panels of a row share.
    fn of(row: &[Panel], top: i32) -> Self {
        let points = || row.iter().flat_map(|panel| &panel.lines).flat_map(|line| &line.points);
        let times = || points().map(|point| point.ms).chain(row.iter().map(|panel| panel.dense_ms));
        Axes { left: LEFT, top, ms: range(times()), error: range(points().map(|point| point.error)) }
    }

    fn x(&self, ms: f64) -> i32 {
        self.left + (f64::from(WIDTH) * part(ms, self.ms)).round() as i32
    }

    fn y(&self, error: f64) -> i32 {
        self.top + HEIGHT - (f64::from(HEIGHT) * part(error, self.error)).round() as i32
    }
}

/// The least and the most, with some room.
fn range(numbers: impl Iterator<Item = f64>) -> [f64; 2] {
    let widened = |[least, most]: [f64; 2], number: f64| [least.min(number), most.max(number)];
    let [least, most] = numbers.fold([f64::INFINITY, 0.0], widened);
    [least / 1.2, most * 1.2]
}

/// How far along a range a number is, by logarithms.
fn part(number: f64, [least, most]: [f64; 2]) -> f64 {
    (number / least).ln() / (most / least).ln()
}

fn draw_panel<'a>(area: &Drawing<'a>, panel: &Panel, axes: &Axes, is_first: bool) -> Result<'a> {
    let [x0, x1] = [axes.left, axes.left + WIDTH];
    let [y0, y1] = [axes.top + HEIGHT, axes.top];
    let shape = panel.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ");
    text(
        area,
        &format!("{}, {}", panel.name, panel.order),
        (x0, y1 - 22),
        13,
        INK,
        (HPos::Left, VPos::Center),
    )?;
    text(area, &shape, (x1, y1 - 22), 11, FAINT, (HPos::Right, VPos::Center))?;
    for (error, digits) in ticks(axes.error) {
        let y = axes.y(error);
        area.draw(&PathElement::new([(x0, y), (x1, y)], GRID))?;
        text(area, &format!("{error:.digits$}"), (x0 - 7, y), 11, FAINT, (HPos::Right, VPos::Center))?;
    }
    for (ms, digits) in ticks(axes.ms) {
        let x = axes.x(ms);
        area.draw(&PathElement::new([(x, y0), (x, y1)], GRID))?;
        text(area, &format!("{ms:.digits$}"), (x, y0 + 6), 11, FAINT, (HPos::Center, VPos::Top))?;
    }
    area.draw(&PathElement::new([(x0, y0), (x1, y0)], FAINT))?;
    let time = "time of a call (mask, tail, attention), ms";
    text(area, time, ((x0 + x1) / 2, y0 + 23), 11, FAINT, (HPos::Center, VPos::Top))?;
    if is_first {
        let turned = font(11).transform(FontTransform::Rotate270);
        let style = turned.color(&FAINT).pos(Pos::new(HPos::Center, VPos::Bottom));
        area.draw(&Text::new("error: relative L1 distance to dense", (x0 - 46, (y0 + y1) / 2), style))?;
    }
    text(area, "↙ better", (x0 + 6, y0 - 6), 11, FAINT, (HPos::Left, VPos::Bottom))?;
    dashes(area, [(axes.x(panel.dense_ms), y1), (axes.x(panel.dense_ms), y0)])?;
    for line in &panel.lines {
        let at = |point: &Point| (axes.x(point.ms), axes.y(point.error));
        // Shares that keep as many blocks of a short row are one point.
        let mut points = line.points.clone();
        points.dedup_by(|next, point| next.kept == point.kept);
        let path: Vec<(i32, i32)> = points.iter().map(at).collect();
        area.draw(&PathElement::new(path.clone(), colour_of(line).stroke_width(2)))?;
        for place in path {
            mark(area, line, place)?;
        }
    }
    // The shares, once, as far as there is room.
    let mut last = (i32::MIN / 2, i32::MIN / 2);
    for point in &panel.lines[0].points {
        let at = (axes.x(point.ms) + 6, axes.y(point.error) - 4);
        if at.0 - last.0 < 38 && (at.1 - last.1).abs() < 12 {
            continue;
        }
        last = at;
        let label = format!("{:.1} %", 100.0 * point.kept);
        text(area, &label, at, 10, FAINT, (HPos::Left, VPos::Bottom))?;
    }
    Ok(())
}

/// A dashed line downwards.
fn dashes<'a>(area: &Drawing<'a>, [(x, from), (_, to)]: [(i32, i32); 2]) -> Result<'a> {
    for dash in (from..to).step_by(6) {
        area.draw(&PathElement::new([(x, dash), (x, (dash + 3).min(to))], INK))?;
    }
    Ok(())
}

fn font(size: i32) -> FontDesc<'static> {
    // plotters writes a font's size divided by 1.24.
    ("sans-serif", f64::from(size) * 1.24).into_font()
}

/// A line's tail, and whether its blocks are scored by keys.
fn tail_of(line: &Line) -> (&str, bool) {
    line.tail.strip_suffix(BY_KEYS).map_or((&line.tail, false), |tail| (tail, true))
}

fn colour_of(line: &Line) -> RGBColor {
    let (tail, _) = tail_of(line);
    COLOURS.iter().find(|(name, _)| *name == tail).map_or(INK, |(_, colour)| *colour)
}

/// A point of a line: hollow where blocks are scored by keys.
fn mark<'a>(area: &Drawing<'a>, line: &Line, place: (i32, i32)) -> Result<'a> {
    let colour = colour_of(line);
    if tail_of(line).1 {
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
    let style = font(size).color(&colour).pos(Pos::new(across, down));
    area.draw(&Text::new(text.to_owned(), at, style))
}

/// 1, 2 and 5 of every decade, with the digits they need.
fn ticks([least, most]: [f64; 2]) -> impl Iterator<Item = (f64, usize)> {
    let all = (-4..6).flat_map(|decade: i32| {
        [1.0, 2.0, 5.0].map(|n| (n * 10f64.powi(decade), decade.min(0).unsigned_abs() as usize))
    });
    all.filter(move |(at, _)| (least..=most).contains(at))
}
