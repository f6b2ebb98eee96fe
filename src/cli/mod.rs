//! The command line: one file for each subcommand, each of which turns its arguments into a `Report`.

mod args;
mod bundle;
mod cache;
mod compile;
mod demo;
mod doctor;
mod emit;
mod error;
mod files;
mod inspect;
mod mask_image;
mod nvrtc;
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
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Block-sparse attention kernels: generated, compiled at run time, and run on the GPU or CPU at hand.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, max_term_width = 120)]
struct Cli {
    /// Print one JSON document instead of text; of a failure, `{"error": {"kind", "message", "status"}}`.
    #[arg(long, global = true)]
    json: bool,
    /// Download nothing: where there is no NVRTC, do without.
    #[arg(long, global = true)]
    offline: bool,
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
    fn run(&self, offline: bool) -> Result<Report, CliError> {
        match self {
            Command::Demo(args) => demo::run(args, offline),
            Command::Run(args) => run::run(args, offline),
            Command::Emit(args) => emit::run(args),
            Command::Compile(args) => compile::run(args, offline),
            Command::Inspect(args) => inspect::run(args),
            Command::Tune(args) => tune::run(args),
            Command::Cache(command) => cache::run(command),
            Command::Export(args) => bundle::run_export(args),
            Command::Import(args) => bundle::run_import(args),
            Command::Doctor => doctor::run(),
            Command::Toolchain(command) => toolchain::run(command, offline),
        }
    }
}

/// Notes whether standard output is closed: what is written to it would be lost, and nobody told. Called before `main`.
#[cfg(target_os = "linux")]
pub extern "C" fn look_at_standard_output() {
    files::look_at_standard_output();
}

/// Runs the command: 0 when all is well, 1 for a failure, 2 for arguments that make no sense.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misread(&error),
    };
    log();
    let done = cli.command.run(cli.offline).and_then(|report| {
        report.print(cli.json)?;
        Ok(report.ok)
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if cli.json => {
            report::print_failure(error.kind(), &error.to_string(), FAILURE);
            ExitCode::FAILURE
        }
        Err(error) => {
            progress::note(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs a command line and keeps what it would have said: for `fuzz/`.
///
/// # Errors
/// The text of any error.
pub fn quietly(line: &[&str]) -> Result<String, String> {
    let cli = Cli::try_parse_from(line).map_err(|error| error.to_string())?;
    cli.command.run(true).map(|report| report.text).map_err(|error| error.to_string())
}

/// The status of a command that failed.
const FAILURE: u8 = 1;

/// What is said of arguments that make no sense, and of a question for help.
fn misread(error: &clap::Error) -> ExitCode {
    let status = error.exit_code() as u8;
    // What comes behind `--` is no option.
    let mut arguments = std::env::args_os().skip(1).take_while(|argument| argument != "--");
    match error.use_stderr() && arguments.any(|argument| argument == "--json") {
        true => {
            let text = error.render().to_string();
            report::print_failure("usage", text.trim_start_matches("error: ").trim_end(), status);
        }
        // Where it cannot be printed nobody reads it.
        false => drop(error.print()),
    }
    ExitCode::from(status)
}

/// What the library warns of goes to standard error; `TILEWRIGHT_LOG=debug` shows every hit, miss, compile and race.
fn log() {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .with_env_var("TILEWRIGHT_LOG")
        .from_env_lossy();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time();
    // A standard error that nobody reads must not end the command.
    log.log_internal_errors(false).init();
}
