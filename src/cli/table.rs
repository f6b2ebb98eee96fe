//! Tables for people.

use super::variants::{ArchReport, VariantReport};
use comfy_table::{Cell, CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

/// Columns of text where the width of the terminal is not known.
const WIDTH: u16 = 118;

/// A line below the headings and nothing else.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// A table with these headings.
pub fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_content_arrangement(ContentArrangement::Dynamic);
    if !table.is_tty() {
        table.set_width(WIDTH);
    }
    table.set_header(headings.iter().copied());
    table
}

/// A cell with a number in it.
pub fn number(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// Milliseconds with three digits that count.
pub fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 100.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.2} s", ms / 1e3),
    }
}

/// A row for each variant: registers of a thread on each architecture in a column of its own, or, `folded`, in one for all.
pub fn variants(reports: &[VariantReport], folded: bool) -> Table {
    let mut archs: Vec<&str> = Vec::new();
    for compiled in reports.iter().flat_map(|report| &report.compiled) {
        if !archs.contains(&compiled.arch.as_str()) {
            archs.push(&compiled.arch);
        }
    }
    let folded = folded || archs.len() == 1;
    // A column each is narrow: the heading has two lines.
    let of_archs: Vec<String> = archs.iter().map(|arch| format!("regs\n{arch}")).collect();
    let mut headings = vec!["kernel", "variant", "shared"];
    match archs[..] {
        [] => {}
        _ if folded => headings.extend(["registers", "spills", "compile"]),
        _ => headings.extend(of_archs.iter().map(String::as_str).chain(["spills", "compile"])),
    }
    let mut table = table(&headings);
    for report in reports {
        let of = |arch: &str| report.compiled.iter().find(|compiled| compiled.arch == arch);
        let shared = report.compiled.iter().map(|compiled| compiled.shared_bytes).max();
        let mut row = vec![
            Cell::new(&report.kernel),
            Cell::new(describe(report)),
            number(kibibytes(shared.unwrap_or(report.budget.smem_bytes))),
        ];
        match folded {
            true if archs.is_empty() => {}
            true => row.push(number(register_range(report))),
            false => {
                row.extend(archs.iter().map(|arch| number(of(arch).map_or("–".to_owned(), registers_of))))
            }
        }
        if !archs.is_empty() {
            row.push(number(spills(report)));
            let slowest = report.compiled.iter().map(|compiled| compiled.compile_ms).fold(0.0, f64::max);
            row.push(number(milliseconds(slowest)));
        }
        table.add_row(row);
    }
    table
}

/// `56`, or `48–56` where architectures differ.
fn register_range(report: &VariantReport) -> String {
    if report.compiled.iter().any(|compiled| compiled.ptxas.is_none()) {
        return "failed".to_owned();
    }
    let counts = || report.compiled.iter().filter_map(|compiled| compiled.ptxas).map(|ptxas| ptxas.registers);
    match (counts().min(), counts().max()) {
        (Some(least), Some(most)) if least != most => format!("{least}–{most}"),
        (Some(count), _) => count.to_string(),
        _ => "–".to_owned(),
    }
}

fn registers_of(compiled: &ArchReport) -> String {
    compiled.ptxas.map_or("failed".to_owned(), |report| report.registers.to_string())
}

/// Bytes spilled, or `none`.
fn spills(report: &VariantReport) -> String {
    let bytes: u32 = report
        .compiled
        .iter()
        .filter_map(|compiled| compiled.ptxas)
        .map(|ptxas| ptxas.spill_store_bytes + ptxas.spill_load_bytes)
        .sum();
    if bytes == 0 { "none".to_owned() } else { format!("{bytes} B") }
}

/// The name's parts behind the kernel's: `sm80 bf16 d128 q128 kv64 warps4 stages1`.
fn describe(report: &VariantReport) -> String {
    report.name.trim_start_matches(&report.kernel).replace('_', " ").trim().to_owned()
}

fn kibibytes(bytes: i64) -> String {
    if bytes == 0 { "0".to_owned() } else { format!("{:.1} KiB", bytes as f64 / 1024.0) }
}
