//! `emit`: brings a folder of generated files up to date with its kernels.

use super::error::CliError;
use super::report::Report;
use clap::Args;
use serde_json::json;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use tilewright::codegen::sync_with;
use tilewright::output::{Output, shown};

#[derive(Args)]
pub struct EmitArgs {
    /// The folder of kernels: one folder each, with a kernel.rs and a template for every body.
    #[arg(long, value_name = "DIR", default_value = "templates")]
    templates: PathBuf,
    /// The folder of generated files. Earlier ones that the generator no longer makes are removed from it; files of other
    /// origin stay.
    #[arg(long, value_name = "DIR", default_value = "generated")]
    out: PathBuf,
    /// Only say what differs, and fail if anything does.
    #[arg(long)]
    check: bool,
}

pub fn run(args: &EmitArgs) -> Result<Report, CliError> {
    let write = |path: &Path, text: &str| Output::open(path)?.write(text.as_bytes());
    let difference = sync_with(&args.templates, &args.out, args.check, write)?;
    let (stale, extra) = if args.check { ("out of date", "not generated") } else { ("written", "removed") };
    let mut text = String::new();
    for (what, names) in [(stale, &difference.stale), (extra, &difference.extra)] {
        for name in names {
            let _ = writeln!(text, "{what}: {}", shown(&args.out.join(name)));
        }
    }
    let ok = !args.check || difference.is_empty();
    let _ = match ok {
        true => writeln!(text, "{} is up to date with {}", shown(&args.out), shown(&args.templates)),
        false => writeln!(text, "{} is out of date: run this without --check", shown(&args.out)),
    };
    let json = json!({
        "templates": args.templates.to_string_lossy(),
        "out": args.out.to_string_lossy(),
        "check": args.check,
        "stale": difference.stale,
        "extra": difference.extra,
        "up_to_date": ok,
    });
    Ok(Report::new(text, &json).with_outcome(ok))
}
