//! The command line: one file for each subcommand, each of which turns its arguments into a [`Report`].

mod args;
mod bundle;
mod cache;
mod compile;
mod demo;
mod doctor;
mod emit;
mod error;
mod inspect;
mod mask_image;
mod progress;
mod report;
mod run;
mod table;
mod tensor_file;
mod toolchain;
mod tune;
mod variants;

use clap::{Parser, Subcommand};
use error::CliError;
use report::Report;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Block-sparse attention kernels: generated, compiled at run time, and run on the GPU or CPU at hand.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, max_term_width = 120)]
struct Cli {
    /// Print one JSON document instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run sparse attention on tensors of a trained video transformer and show what came of it.
    Demo(demo::DemoArgs),
    /// Run sparse attention on tensors of your own, from a safetensors file to another.
    Run(run::RunArgs),
    /// Generate bindings, sources and a manifest from a folder of kernels.
    Emit(emit::EmitArgs),
    /// Compile the shipped kernels and report registers, spills and shared memory.
    Compile(compile::CompileArgs),
    /// Show the kernels there are, or one kernel's candidates, source and ptxas report.
    Inspect(inspect::InspectArgs),
    /// Time the schedules of some shapes on this GPU, keep the fastest, and explain the choice.
    Tune(tune::TuneArgs),
    /// List, verify, prune or clear the cache of compiled kernels.
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Write the compiled kernels and tuning records of the cache to one file, for other machines.
    Export(bundle::ExportArgs),
    /// Bring what a bundle holds into the cache, verified.
    Import(bundle::ImportArgs),
    /// Check what this machine has for Tilewright: GPU, driver, NVRTC, data folder, kernel cache.
    Doctor,
    /// Find or install NVRTC, NVIDIA's run-time compiler.
    #[command(subcommand)]
    Toolchain(toolchain::ToolchainCommand),
}

impl Command {
    fn run(&self) -> Result<Report, CliError> {
        match self {
            Command::Demo(args) => demo::run(args),
            Command::Run(args) => run::run(args),
            Command::Emit(args) => emit::run(args),
            Command::Compile(args) => compile::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Tune(args) => tune::run(args),
            Command::Cache(command) => cache::run(command),
            Command::Export(args) => bundle::run_export(args),
            Command::Import(args) => bundle::run_import(args),
            Command::Doctor => doctor::run(),
            Command::Toolchain(command) => toolchain::run(command),
        }
    }
}

/// Runs the command: 0 when all is well, 1 for a failure, 2 (clap's) for arguments that make no sense.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log();
    match cli.command.run() {
        Ok(report) => match print(&report, cli.json) {
            Ok(()) if report.ok => ExitCode::SUCCESS,
            Ok(()) => ExitCode::FAILURE,
            Err(error) => fail(&error),
        },
        Err(error) => fail(&error),
    }
}

/// Runs a command line and keeps what it would have said: for `fuzz/`.
///
/// # Errors
/// The text of any error.
pub fn quietly(line: &[&str]) -> Result<String, String> {
    let cli = Cli::try_parse_from(line).map_err(|error| error.to_string())?;
    cli.command.run().map(|report| report.text).map_err(|error| error.to_string())
}

/// What the library warns of goes to standard error; `TILEWRIGHT_LOG=debug` shows every hit, miss, compile and race.
fn log() {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .with_env_var("TILEWRIGHT_LOG")
        .from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
}

fn fail(error: &CliError) -> ExitCode {
    progress::note(&format!("error: {error}"));
    ExitCode::FAILURE
}

/// Writes the report to standard output. A reader that has seen enough (`| head`) is no failure.
fn print(report: &Report, json: bool) -> Result<(), CliError> {
    let mut text = if json { format!("{:#}", report.json) } else { report.text.clone() };
    text.truncate(text.trim_end().len());
    text.push('\n');
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CliError::Stdout(error)),
        _ => Ok(()),
    }
}
