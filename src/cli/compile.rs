//! `compile`: the shipped variants, or those of a folder of kernels, on the architectures asked for.

use super::args::ArchList;
use super::bundle::{exported, exported_json};
use super::error::CliError;
use super::files::Destination;
use super::nvrtc;
use super::report::Report;
use super::templates::Kernels;
use super::{table, variants};
use clap::Args;
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Instant;
use tilewright::bundle::{Contents, ExportReport, export_to};
use tilewright::cache::{CacheError, CubinKey, KernelCache};
use tilewright::codegen::Variant;
use tilewright::compile::{Cubin, OPTIONS};
use tilewright::output::{Output, shown};

#[derive(Args)]
pub struct CompileArgs {
    /// Architectures with commas between, such as `sm_80,sm_90a`, or `all` that the shipped kernels are checked on.
    #[arg(long, default_value = "all", allow_hyphen_values = true)]
    arch: ArchList,
    /// Compile the kernels of this folder, each a folder with kernel.rs and its bodies, instead of the shipped ones.
    #[arg(long, value_name = "DIR")]
    templates: Option<PathBuf>,
    /// Only this kernel.
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
    /// Write the compiled kernels to a bundle, for `tilewright import` on other machines. Neither a GPU nor the cache is
    /// touched. `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub bundle: Option<Destination>,
}

pub fn run(args: &CompileArgs, offline: bool) -> Result<Report, CliError> {
    let kernels = Kernels::of(args.templates.as_deref())?;
    let sources = match &args.kernel {
        Some(name) => vec![kernels.named(name)?],
        None => kernels.all().collect(),
    };
    // What is wrong with a declaration is said before NVRTC is fetched.
    let mut jobs = Vec::new();
    for source in sources {
        jobs.extend(kernels.placed(variants::shipped(source, &args.arch.0))?);
    }
    let output = args.bundle.as_ref().map(|file| file.open("--bundle")).transpose()?;
    let toolchain = nvrtc::find_or_install(offline)?;
    let start = Instant::now();
    let mut cubins = Vec::new();
    let reports = variants::compile_with(&toolchain, &jobs, |variant, cubin| {
        if output.is_some() {
            cubins.push((variant.clone(), cubin.clone()));
        }
    });
    let seconds = start.elapsed().as_secs_f64();

    let all = || reports.iter().flat_map(|report| report.compiled.iter().map(move |one| (report, one)));
    let failed = all().filter(|(_, one)| one.ptxas.is_none()).count();
    let spilled = all().filter(|(_, one)| one.preferred && one.spills()).count();
    let passed_over = all().filter(|(_, one)| !one.preferred && one.spills()).count();
    let ok = all().all(|(_, one)| one.is_good());
    // Half a bundle would be missed only where it is used.
    let bundled = match output {
        Some(output) if failed == 0 => Some(bundle(&cubins, output)?),
        _ => None,
    };

    let mut text = table::variants(&reports, false).to_string();
    text.push('\n');
    for (report, one) in all() {
        if let Some(error) = &one.error {
            let _ = writeln!(text, "\n{} on {}: {error}", report.name, one.arch);
        } else if !one.is_good() {
            let _ = writeln!(text, "\n{} spills on {}", report.name, one.arch);
        }
    }
    let (major, minor) = toolchain.version();
    let count = all().count();
    let _ = writeln!(
        text,
        "{count} compilations with NVRTC {major}.{minor} in {seconds:.1} s: {failed} failed, {spilled} with spills"
    );
    if passed_over > 0 {
        let _ = writeln!(
            text,
            "{passed_over} more spill where another schedule is preferred: they are not taken there"
        );
    }
    if let Some(bundled) = &bundled {
        text.push_str(&exported(bundled));
    } else if let Some(file) = &args.bundle {
        let _ = writeln!(text, "{} was not written, because not everything compiled", shown(file.path()));
    }
    let json = json!({
        "bundle": bundled.as_ref().map(exported_json),
        "nvrtc": format!("{major}.{minor}"),
        "seconds": seconds,
        "compilations": count,
        "failed": failed,
        "spilled": spilled,
        "passed_over": passed_over,
        "variants": reports,
    });
    Ok(Report::new(text, &json).with_outcome(ok))
}

/// Writes cubins to a bundle, by way of a cache of their own.
fn bundle(cubins: &[(Variant, Cubin)], output: Output) -> Result<ExportReport, CliError> {
    let folder = tempfile::tempdir().map_err(CliError::TemporaryFolder)?;
    let cache = KernelCache::at(folder.path())?.with_limit(u64::MAX);
    let put = |(variant, cubin): &(Variant, Cubin)| -> Result<(), CacheError> {
        let key = CubinKey::new(&variant.name, &cubin.arch, &variant.source, OPTIONS, cubin.nvrtc);
        cache.put(&key, &variant.source, cubin)
    };
    cubins.iter().try_for_each(put)?;
    Ok(export_to(&cache, &Contents::Everything, output)?)
}
