//! `toolchain`: finds NVRTC, or installs it.

use super::error::CliError;
use super::progress::note;
use super::report::Report;
use clap::Subcommand;
use serde_json::json;
use std::fmt::Write;
use tilewright::output::shown;
use tilewright::toolchain::{Environment, Toolchain, install};

#[derive(Subcommand)]
pub enum ToolchainCommand {
    /// Say which NVRTC is used and which places were looked at.
    Find,
    /// Install NVRTC into Tilewright's data folder (two packages of pip, a 92 MB download).
    Install,
}

pub fn run(command: &ToolchainCommand, offline: bool) -> Result<Report, CliError> {
    match command {
        ToolchainCommand::Find => describe(&Toolchain::find()?, None),
        ToolchainCommand::Install if offline => Err(CliError::Offline),
        ToolchainCommand::Install => {
            let folder = install(&Environment::current(), &note)?;
            let toolchain = Toolchain::find()?;
            let elsewhere = !toolchain.library().starts_with(&folder);
            let remark = elsewhere.then(|| {
                format!(
                    "{} is installed; the NVRTC above comes before it in the search and stays in use",
                    shown(&folder)
                )
            });
            describe(&toolchain, remark)
        }
    }
}

fn describe(toolchain: &Toolchain, remark: Option<String>) -> Result<Report, CliError> {
    let (major, minor) = toolchain.version();
    let mut text = format!("NVRTC {major}.{minor}: {}\n", shown(toolchain.library()));
    let _ = writeln!(text, "headers:    {}", shown(toolchain.include_dir()));
    let _ = writeln!(text, "looked at:");
    for place in toolchain.searched() {
        let _ = writeln!(text, "  {place}");
    }
    if let Some(remark) = &remark {
        let _ = writeln!(text, "{remark}");
    }
    let json = json!({
        "version": format!("{major}.{minor}"),
        "library": toolchain.library().to_string_lossy(),
        "include": toolchain.include_dir().to_string_lossy(),
        "searched": toolchain.searched(),
        "remark": remark,
    });
    Ok(Report::new(text, &json))
}
