//! `export` and `import`: what the kernel cache holds as one file, and back.

use super::args::ArchList;
use super::cache::bytes;
use super::error::CliError;
use super::files::Destination;
use super::report::Report;
use super::source::Source;
use clap::Args;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use tilewright::bundle::{BundleError, Contents, ExportReport, RecordName, export_to, import, import_from};
use tilewright::cache::{CubinKey, KernelCache};
use tilewright::output::{printable, shown};

#[derive(Args)]
pub struct ExportArgs {
    /// The bundle to write, `-` for standard output; a file that has its name is replaced.
    #[arg(value_name = "FILE")]
    pub file: Destination,
    /// Only kernels and tuning records of these architectures, such as `sm_80,sm_90a`.
    #[arg(long, allow_hyphen_values = true)]
    arch: Option<ArchList>,
}

#[derive(Args)]
pub struct ImportArgs {
    /// A bundle from where you would run programs from, for the kernels in it are code; `-` for standard input.
    #[arg(value_name = "FILE")]
    file: Source,
}

pub fn run_export(args: &ExportArgs) -> Result<Report, CliError> {
    // Without a cache there is nothing to export, and no reason to make one.
    let Some(cache) = KernelCache::open_existing()? else {
        return Err(BundleError::Empty { cache: KernelCache::folder()? }.into());
    };
    let archs: Option<Vec<&str>> =
        args.arch.as_ref().map(|list| list.0.iter().map(|arch| arch.name()).collect());
    let contents = archs.as_ref().map_or(Contents::Everything, |archs| Contents::Archs(archs));
    let report = export_to(&cache, &contents, args.file.open("FILE")?)?;
    Ok(Report::new(exported(&report), &exported_json(&report)))
}

/// An export in words.
pub fn exported(report: &ExportReport) -> String {
    let mut text = String::new();
    for (what, why) in &report.skipped {
        let _ = writeln!(text, "left out {}: {}", printable(what), printable(why));
    }
    let _ = writeln!(
        text,
        "{}: {} kernels and {} tuning records in {} (unpacked {})\nblake3 {}",
        shown(&report.path),
        report.kernels.len(),
        report.records.len(),
        bytes(report.bytes),
        bytes(report.content_bytes),
        report.blake3
    );
    text
}

/// The same for programs.
pub fn exported_json(report: &ExportReport) -> Value {
    let records: Vec<_> =
        report.records.iter().map(|id| json!({ "device": id.device, "file": id.file })).collect();
    json!({
        "path": report.path.to_string_lossy(),
        "kernels": kernels(&report.kernels),
        "records": records,
        "bytes": report.bytes,
        "content_bytes": report.content_bytes,
        "blake3": report.blake3,
        "skipped": reasons(&report.skipped),
    })
}

pub fn run_import(args: &ImportArgs) -> Result<Report, CliError> {
    let cache = KernelCache::open()?;
    // SAFETY: the user names the file, as with any program to be run; the help says that it is one.
    let report = unsafe {
        match args.file.is_standard() {
            true => import_from(&cache, Path::new("standard input"), std::io::stdin())?,
            false => import(&cache, args.file.path())?,
        }
    };
    let mut text = String::new();
    for (what, why) in &report.refused {
        let _ = writeln!(text, "refused {}: {}", printable(what), printable(why));
    }
    let _ = writeln!(
        text,
        "{} kernels are new, {} were there; {} tuning records are new, {} replaced others, {} were there: {}",
        report.added.len(),
        report.present.len(),
        report.added_records.len(),
        report.replaced_records.len(),
        report.present_records.len(),
        shown(cache.root())
    );
    if report.removed > 0 {
        let _ = writeln!(
            text,
            "{} other kernels, those that were used the longest time ago, were removed to keep the limit of {}",
            report.removed,
            bytes(cache.limit())
        );
    }
    let records = |names: &[RecordName]| -> Vec<Value> {
        names.iter().map(|name| json!({ "device": name.device, "file": name.file })).collect()
    };
    let json = json!({
        "cache": cache.root().to_string_lossy(),
        "added": kernels(&report.added),
        "present": kernels(&report.present),
        "added_records": records(&report.added_records),
        "replaced_records": records(&report.replaced_records),
        "present_records": records(&report.present_records),
        "removed": report.removed,
        "refused": reasons(&report.refused),
    });
    Ok(Report::new(text, &json).with_outcome(report.refused.is_empty()))
}

fn kernels(keys: &[CubinKey]) -> Vec<Value> {
    keys.iter().map(|key| json!({ "name": key.name(), "arch": key.arch(), "hash": key.hash() })).collect()
}

fn reasons(pairs: &[(String, String)]) -> Vec<Value> {
    pairs.iter().map(|(what, why)| json!({ "what": what, "reason": why })).collect()
}
