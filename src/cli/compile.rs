//! `compile`: the shipped variants on the architectures asked for.

use super::args::ArchList;
use super::error::CliError;
use super::progress::note;
use super::report::Report;
use super::{table, variants};
use clap::Args;
use serde_json::json;
use std::fmt::Write;
use std::time::Instant;
use tilewright::codegen::KernelSource;
use tilewright::kernels;
use tilewright::toolchain::Toolchain;

#[derive(Args)]
pub struct CompileArgs {
    /// Architectures with commas between, such as `sm_80,sm_90a`, or `all` that the shipped kernels are checked on.
    #[arg(long, default_value = "all")]
    arch: ArchList,
    /// Only this kernel.
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
}

/// The shipped kernel of that name.
pub fn kernel(name: &str) -> Result<&'static KernelSource, CliError> {
    kernels::ALL.iter().copied().find(|source| source.name == name).ok_or_else(|| {
        let known: Vec<&str> = kernels::ALL.iter().map(|source| source.name.as_ref()).collect();
        CliError::NoKernel { found: name.to_owned(), known: known.join(", ") }
    })
}

pub fn run(args: &CompileArgs) -> Result<Report, CliError> {
    let sources = match &args.kernel {
        Some(name) => vec![kernel(name)?],
        None => kernels::ALL.to_vec(),
    };
    let toolchain = Toolchain::find_or_install(note)?;
    let mut jobs = Vec::new();
    for source in sources {
        jobs.extend(variants::shipped(source, &args.arch.0)?);
    }
    let start = Instant::now();
    let reports = variants::compile(&toolchain, &jobs);
    let seconds = start.elapsed().as_secs_f64();

    let all = || reports.iter().flat_map(|report| report.compiled.iter().map(move |one| (report, one)));
    let failed = all().filter(|(_, one)| one.ptxas.is_none()).count();
    let spilled = all().filter(|(_, one)| one.ptxas.is_some_and(|ptxas| ptxas.spills())).count();
    let ok = all().all(|(_, one)| one.is_good());

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
    let json = json!({
        "nvrtc": format!("{major}.{minor}"),
        "seconds": seconds,
        "compilations": count,
        "failed": failed,
        "spilled": spilled,
        "variants": reports,
    });
    Ok(Report::new(text, &json).with_outcome(ok))
}
