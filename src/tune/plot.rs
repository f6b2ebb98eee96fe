//! A record as a picture: a bar for each candidate, the fastest on top.

use super::table::one_line;
use super::{Row, TuneRecord};
use crate::codegen::Rejection;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const WIDTH: i32 = 1000;
const LEFT: i32 = 300;
const RIGHT: i32 = 150;
const TOP: i32 = 84;
const STEP: i32 = 26;
const BAR: i32 = 16;

const INK: RGBColor = RGBColor(32, 36, 44);
const FAINT: RGBColor = RGBColor(110, 118, 129);
const GRID: RGBColor = RGBColor(226, 229, 234);
const WINNER: RGBColor = RGBColor(24, 128, 92);
const OTHER: RGBColor = RGBColor(108, 142, 191);
const LEFT_EARLY: RGBColor = RGBColor(184, 199, 220);

type Drawing<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Result<'a> =
    std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

impl TuneRecord {
    /// An SVG of the candidates: bars from fast to slow, from zero, then the rejected with their reasons.
    pub fn plot(&self, pruned: &[Rejection]) -> String {
        let rows = self.rows(pruned);
        let height = TOP + STEP * rows.len() as i32 + 40;
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
        // Drawing into a string has nothing to fail on.
        if let Err(error) = draw(&area, self, &rows, height) {
            tracing::warn!(%error, "the plot is incomplete");
        }
        drop(area);
        svg
    }
}

fn draw<'a>(area: &Drawing<'a>, record: &TuneRecord, rows: &[Row], height: i32) -> Result<'a> {
    area.fill(&WHITE)?;
    text(area, &record.title(), (20, 14), 18, INK, HPos::Left)?;
    text(area, &record.key().bucket.to_string(), (20, 40), 12, FAINT, HPos::Left)?;
    let bars = || rows.iter().filter(|row| row.rejected.is_none());
    let longest = bars().filter_map(|row| row.median_us).fold(0.0, f64::max);
    let step = tick(longest);
    let x = |us: f64| LEFT + ((WIDTH - LEFT - RIGHT) as f64 * us / longest.max(f64::MIN_POSITIVE)) as i32;
    let bottom = TOP + STEP * bars().count() as i32;
    let digits = (-step.log10().floor()).max(0.0) as usize;
    for tick in (0..).map(|n| f64::from(n) * step).take_while(|us| *us <= longest) {
        area.draw(&PathElement::new([(x(tick), TOP - 6), (x(tick), bottom)], GRID))?;
        text(area, &format!("{tick:.digits$} µs"), (x(tick), TOP - 20), 11, FAINT, HPos::Center)?;
    }
    for (place, row) in rows.iter().enumerate() {
        let y = TOP + STEP * place as i32 + (STEP - BAR) / 2;
        let ink = if row.rejected.is_some() { FAINT } else { INK };
        text(area, &row.schedule, (LEFT - 10, y + 1), 12, ink, HPos::Right)?;
        if let Some(reason) = &row.rejected {
            text(area, &format!("rejected: {}", one_line(reason)), (LEFT, y + 1), 12, FAINT, HPos::Left)?;
            continue;
        }
        let Some(median) = row.median_us else { continue };
        let colour = match (row.winner, row.eliminated) {
            (true, _) => WINNER,
            (false, true) => LEFT_EARLY,
            (false, false) => OTHER,
        };
        area.draw(&Rectangle::new([(LEFT, y), (x(median), y + BAR)], colour.filled()))?;
        let relative = row.relative.map_or(String::new(), |share| format!(" ({share:.2}×)"));
        text(area, &format!("{median:.1} µs{relative}"), (x(median) + 6, y + 1), 12, INK, HPos::Left)?;
    }
    let legend = "median of one launch; green: the winner, pale: left the race early";
    text(area, legend, (LEFT, height - 26), 11, FAINT, HPos::Left)?;
    area.present()
}

fn text<'a>(
    area: &Drawing<'a>,
    text: &str,
    at: (i32, i32),
    size: i32,
    colour: RGBColor,
    align: HPos,
) -> Result<'a> {
    // plotters writes a font's size divided by 1.24.
    let style =
        ("sans-serif", f64::from(size) * 1.24).into_font().color(&colour).pos(Pos::new(align, VPos::Top));
    area.draw(&Text::new(text.to_owned(), at, style))
}

/// A round number that divides the axis into two to five parts.
fn tick(longest: f64) -> f64 {
    if longest <= 0.0 {
        return 1.0;
    }
    let decade = 10f64.powf(longest.log10().floor());
    [0.2, 0.5, 1.0, 2.0]
        .into_iter()
        .map(|part| part * decade)
        .find(|step| longest / step <= 5.0)
        .unwrap_or(decade)
}
