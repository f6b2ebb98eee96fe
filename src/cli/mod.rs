//! The command line: one file for each subcommand, each of which turns its arguments into a `Report`.

mod advice;
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
mod source;
mod table;
mod templates;
mod tensor_file;
mod toolchain;
mod tune;
mod variants;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use error::CliError;
use files::Destination;
use report::{Report, Stream};
use serde_json::json;
use std::ffi::OsStr;
use std::process::ExitCode;
use tilewright::output::printable;
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
    /// Compile the shipped kernels, or those of a folder, and report registers, spills and shared memory.
    Compile(compile::CompileArgs),
    /// Show the kernels there are, or one kernel's candidates, source and ptxas report.
    Inspect(inspect::InspectArgs),
    /// Time the schedules of some shapes, or of a kernel of your own, on this GPU, keep the fastest, and explain the choice.
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
    /// Where the command writes what it makes.
    fn destinations(&self) -> Vec<&Destination> {
        match self {
            Command::Demo(args) => args.png.iter().collect(),
            Command::Run(args) => vec![&args.output],
            Command::Compile(args) => args.bundle.iter().collect(),
            Command::Tune(args) => args.plot.iter().chain(&args.export).collect(),
            Command::Export(args) => vec![&args.file],
            _ => Vec::new(),
        }
    }

    /// Where it says what came of it.
    fn stream(&self) -> Stream {
        match self.destinations().into_iter().any(Destination::is_standard) {
            true => Stream::StandardError,
            false => Stream::StandardOutput,
        }
    }

    fn run(&self, offline: bool) -> Result<Report, CliError> {
        if let [one, other, ..] = self.destinations()[..]
            && one.is_same(other)
        {
            return Err(CliError::OnePlace { path: other.path().to_owned() });
        }
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
    let stream = cli.command.stream();
    let done = cli.command.run(cli.offline).and_then(|report| {
        report.print(cli.json, stream)?;
        Ok(report.ok)
    });
    ended(done, cli.json, stream)
}

/// Says of a failure what it is, and gives the status.
fn ended(done: Result<bool, CliError>, json: bool, stream: Stream) -> ExitCode {
    match done {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => {}
        Err(error) if json => report::print_failure(error.kind(), &error.told(), FAILURE, stream),
        Err(error) => progress::note(&format!("error: {}", error.told())),
    }
    ExitCode::from(FAILURE)
}

/// Runs a command line and keeps what it would have said: for `fuzz/`.
///
/// # Errors
/// The text of any error.
pub fn quietly(line: &[&str]) -> Result<String, String> {
    let cli = Cli::try_parse_from(line).map_err(|error| error.to_string())?;
    cli.command.run(true).map(|report| report.text).map_err(|error| error.to_string())
}

/// The command line that makes the call that missed the cache: for `tests/gpu`, which runs it.
pub fn tune_command(call: &tilewright::tune::Call) -> Option<String> {
    advice::tune_command(call)
}

/// The status of a command that failed.
const FAILURE: u8 = 1;

/// What is said of arguments that make no sense, and of a question for help or the version.
fn misread(error: &clap::Error) -> ExitCode {
    let status = error.exit_code() as u8;
    // What comes behind `--` is no option.
    let json = std::env::args_os()
        .skip(1)
        .take_while(|argument| argument != "--")
        .any(|argument| argument == "--json");
    if !error.use_stderr() {
        let version = json!({ "version": env!("CARGO_PKG_VERSION") });
        let printed = match json && error.kind() == ErrorKind::DisplayVersion {
            true => Report::new(String::new(), &version).print(true, Stream::StandardOutput),
            // With colours where they are seen.
            false => report::unless_unread(error.print()),
        };
        return ended(printed.map(|()| true), json, Stream::StandardOutput);
    }
    let text = error.render().to_string();
    match json {
        true => {
            let text = text.trim_start_matches("error: ").trim_end();
            report::print_failure("usage", text, status, Stream::StandardOutput);
        }
        false if std::env::args_os().all(|argument| is_plain(&argument)) => drop(error.print()),
        // An argument may be a file's name, which clap shows as it is.
        false => progress::note(text.trim_end()),
    }
    ExitCode::from(status)
}

/// Whether a terminal takes an argument for nothing but text.
fn is_plain(argument: &OsStr) -> bool {
    argument.to_str().is_some_and(|argument| printable(argument) == argument)
}

/// What the library warns of goes to standard error; `TILEWRIGHT_LOG=debug` shows every hit, miss, compile and race.
fn log() {
    let asked = std::env::var("TILEWRIGHT_LOG").unwrap_or_default();
    let read = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).parse(&asked);
    let filter = read.unwrap_or_else(|error| {
        progress::note(&format!(
            "warning: TILEWRIGHT_LOG is ignored, write it as `debug` or `warn`: {error}"
        ));
        EnvFilter::new("warn")
    });
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| progress::Log).without_time();
    // A standard error that nobody reads must not end the command.
    log.log_internal_errors(false).init();
}
