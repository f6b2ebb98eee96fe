//! `cache`: what the kernel cache holds, and its upkeep.

use super::error::CliError;
use super::report::Report;
use super::table::{milliseconds, number, table};
use clap::{Args, Subcommand};
use comfy_table::Cell;
use serde_json::json;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use tilewright::cache::{Entry, KernelCache, PruneReport, VerifyReport, parse_size};
use tilewright::output::{printable, shown};

#[derive(Subcommand)]
pub enum CacheCommand {
    /// List the compiled kernels and the tuning records.
    List,
    /// Read everything and compare it with its digests; what is damaged is moved to the quarantine.
    Verify,
    /// Remove the kernels that were used the longest time ago, and the quarantine.
    Prune(PruneArgs),
    /// Remove everything: kernels, tuning records, the quarantine.
    Clear,
    /// Print the cache's folder.
    Path,
}

#[derive(Args)]
pub struct PruneArgs {
    /// Bytes that may be left, such as 500M or 2G; without it the limit that every process keeps
    /// (`TILEWRIGHT_CACHE_LIMIT`, 2G by default).
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    max: Option<u64>,
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "write a number of bytes, such as 1048576, 500M or 2G".to_owned())
}

pub fn run(command: &CacheCommand) -> Result<Report, CliError> {
    let folder = KernelCache::folder()?;
    let root = folder.canonicalize().unwrap_or(folder);
    if let CacheCommand::Path = command {
        return Ok(Report::new(shown(&root), &json!({ "path": root.to_string_lossy() })));
    }
    // Looking at a cache does not make one.
    let cache = KernelCache::open_existing()?;
    let cache = cache.as_ref();
    Ok(match command {
        CacheCommand::List => list(cache, &root),
        CacheCommand::Verify => verify(cache.map(KernelCache::verify).unwrap_or_default()),
        CacheCommand::Prune(args) => {
            let max = args.max.unwrap_or_else(KernelCache::default_limit);
            prune(cache.map(|cache| cache.prune(max)).transpose()?.unwrap_or_default(), max)
        }
        CacheCommand::Clear => clear(cache)?,
        CacheCommand::Path => unreachable!("it was answered above"),
    })
}

fn list(cache: Option<&KernelCache>, root: &Path) -> Report {
    let (entries, records) = cache.map(|cache| (cache.entries(), cache.records())).unwrap_or_default();
    let limit = KernelCache::default_limit();
    let total: u64 = entries.iter().map(|entry| entry.bytes).sum();
    let mut table =
        table(&["kernel", "architecture", "NVRTC", "registers", "size", "compile", "used", "hash"]);
    for entry in &entries {
        let (major, minor) = entry.key.nvrtc();
        table.add_row([
            Cell::new(entry.key.name()),
            Cell::new(entry.key.arch()),
            Cell::new(format!("{major}.{minor}")),
            number(entry.report.registers),
            number(bytes(entry.bytes)),
            number(compile_time(entry)),
            number(ago(entry.used)),
            Cell::new(&entry.key.hash()[..8]),
        ]);
    }
    let mut text = String::new();
    if !entries.is_empty() {
        let _ = writeln!(text, "{table}\n");
    }
    for record in &records {
        let _ = writeln!(text, "tuned on {}: {}", printable(&record.device), printable(&record.file));
    }
    let _ = writeln!(
        text,
        "{} kernels ({} of at most {}) and {} tuning records in {}",
        entries.len(),
        bytes(total),
        bytes(limit),
        records.len(),
        shown(root)
    );
    let records: Vec<_> = records
        .iter()
        .map(|record| json!({ "device": record.device, "file": record.file, "path": record.path.to_string_lossy() }))
        .collect();
    let json = json!({
        "path": root.to_string_lossy(),
        "limit_bytes": limit,
        "bytes": total,
        "kernels": entries.iter().map(entry_json).collect::<Vec<_>>(),
        "records": records,
    });
    Report::new(text, &json)
}

/// How long the compilation took; a bundle does not say.
fn compile_time(entry: &Entry) -> String {
    match entry.compile_time.is_zero() {
        true => "–".to_owned(),
        false => milliseconds(entry.compile_time.as_secs_f64() * 1e3),
    }
}

fn entry_json(entry: &Entry) -> serde_json::Value {
    let (major, minor) = entry.key.nvrtc();
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    json!({
        "name": entry.key.name(),
        "arch": entry.key.arch(),
        "nvrtc": format!("{major}.{minor}"),
        "options": entry.key.options(),
        "hash": entry.key.hash(),
        "source_blake3": entry.key.source_blake3(),
        "path": entry.path.to_string_lossy(),
        "bytes": entry.bytes,
        "ptxas": entry.report,
        "compile_ms": entry.compile_time.as_secs_f64() * 1e3,
        "created": entry.created,
        "used": entry.used.map(seconds),
    })
}

fn verify(report: VerifyReport) -> Report {
    let mut text = String::new();
    for (path, why) in report.broken.iter().chain(&report.unread) {
        let _ = writeln!(text, "{}: {}", shown(path), printable(why));
    }
    let _ = write!(text, "{} kernels and {} tuning records are sound", report.entries, report.records);
    if report.other_schema > 0 {
        let _ = write!(text, ", {} are another version's", report.other_schema);
    }
    if !report.unread.is_empty() {
        let _ = write!(text, ", {} could not be read and are not used", report.unread.len());
    }
    let (broken, left) = (report.broken.len(), report.left.len());
    if broken > 0 {
        let _ = write!(text, ", {broken} are not; ");
        let moved = "in quarantine and made anew when they are needed";
        let stay = "stay where they are, for nothing can be moved there: they are passed over, and made anew in every process; \
                    run this again where the cache can be written to";
        let _ = match left {
            0 => write!(text, "they are {moved}"),
            _ if left == broken => write!(text, "they {stay}"),
            _ => write!(text, "{} are {moved}, {left} {stay}", broken - left),
        };
    }
    text.push('\n');
    let listed = |list: &[(PathBuf, String)]| -> Vec<_> {
        list.iter().map(|(path, why)| json!({ "path": path.to_string_lossy(), "reason": why })).collect()
    };
    let [broken, left, unread] = [&report.broken, &report.left, &report.unread].map(|list| listed(list));
    let json = json!({
        "kernels": report.entries,
        "records": report.records,
        "other_schema": report.other_schema,
        "broken": broken,
        "left": left,
        "unread": unread,
    });
    Report::new(text, &json).with_outcome(report.broken.is_empty() && report.unread.is_empty())
}

fn prune(report: PruneReport, max: u64) -> Report {
    let text = format!(
        "removed {} kernels and freed {}; {} are left ({} of at most {})",
        report.removed,
        bytes(report.freed_bytes),
        report.kept,
        bytes(report.kept_bytes),
        bytes(max)
    );
    let json = json!({
        "removed": report.removed,
        "freed_bytes": report.freed_bytes,
        "kept": report.kept,
        "kept_bytes": report.kept_bytes,
        "max_bytes": max,
    });
    Report::new(text, &json).with_outcome(report.kept_bytes <= max)
}

fn clear(cache: Option<&KernelCache>) -> Result<Report, CliError> {
    let report = cache.map(KernelCache::clear).transpose()?.unwrap_or_default();
    let text = format!(
        "removed {} kernels and {} tuning records and freed {}",
        report.entries,
        report.records,
        bytes(report.freed_bytes)
    );
    let left = cache.map_or(0, |cache| cache.entries().len());
    let json = json!({
        "kernels": report.entries,
        "records": report.records,
        "freed_bytes": report.freed_bytes,
        "left": left,
    });
    Ok(Report::new(text, &json).with_outcome(left == 0))
}

pub(super) fn bytes(bytes: u64) -> String {
    match bytes as f64 {
        small if small < 1024.0 => format!("{bytes} B"),
        kib if kib < 1024.0 * 1024.0 => format!("{:.1} KiB", kib / 1024.0),
        mib if mib < 1024.0 * 1024.0 * 1024.0 => format!("{:.1} MiB", mib / (1024.0 * 1024.0)),
        gib => format!("{:.1} GiB", gib / (1024.0 * 1024.0 * 1024.0)),
    }
}

fn ago(used: Option<SystemTime>) -> String {
    match used.map(|used| used.elapsed()) {
        Some(Ok(age)) if age.as_secs() >= 48 * 3600 => format!("{} d ago", age.as_secs() / 86_400),
        Some(Ok(age)) if age.as_secs() >= 3600 => format!("{} h ago", age.as_secs() / 3600),
        Some(Ok(_)) => "lately".to_owned(),
        // A clock that was set back.
        Some(Err(_)) | None => "?".to_owned(),
    }
}
