//! A record as a table, for people.

use super::TuneRecord;
use crate::codegen::Rejection;
use comfy_table::{Cell, CellAlignment, LineStyle, Table, TableStyle};

/// A line below the headings and nothing else.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

impl TuneRecord {
    /// The table of candidates as text: two lines that say what was tuned, a line for each candidate, the winner
    /// marked `*`. For `pruned` see [`rows`](Self::rows).
    pub fn explain(&self, pruned: &[Rejection]) -> String {
        let mut table = Table::new();
        table.load_style(STYLE);
        table.set_header([
            "",
            "schedule",
            "registers",
            "shared",
            "blocks/SM",
            "compile ms",
            "median µs",
            "relative",
            "",
        ]);
        for row in self.rows(pruned) {
            let note = match (&row.rejected, row.eliminated) {
                (Some(reason), _) => format!("rejected: {}", one_line(reason)),
                (None, true) => "left early".to_owned(),
                (None, false) => String::new(),
            };
            table.add_row([
                Cell::new(if row.winner { "*" } else { "" }),
                Cell::new(&row.schedule),
                number(row.registers.map(|n| n.to_string())),
                number(row.smem_bytes.map(|bytes| format!("{:.1} KiB", bytes as f64 / 1024.0))),
                number(row.blocks_per_sm.map(|n| n.to_string())),
                number(row.compile_ms.map(|ms| format!("{ms:.0}"))),
                number(row.median_us.map(|us| format!("{us:.1}"))),
                number(row.relative.map(|share| format!("{share:.3}×"))),
                Cell::new(note),
            ]);
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        format!("{}\n{}\n\n{}\n", self.title(), self.key().bucket, lines.join("\n"))
    }

    /// `forward on NVIDIA H200 (sm_90a, 132 SMs)`.
    pub(super) fn title(&self) -> String {
        format!("{} on {}", self.key().kernel(), self.key().device)
    }
}

/// The first line of a reason, as a compiler's message goes on for pages, without what no text file may hold.
pub(super) fn one_line(reason: &str) -> String {
    const LONGEST: usize = 100;
    let line = reason.lines().next().unwrap_or_default().trim_end();
    let clean = line.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = clean.take(LONGEST).collect();
    if line.chars().count() > LONGEST {
        short.push('…');
    }
    short
}

fn number(text: Option<String>) -> Cell {
    Cell::new(text.unwrap_or_else(|| "–".to_owned())).set_alignment(CellAlignment::Right)
}
