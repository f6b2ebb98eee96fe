//! The command, run as a user runs it.
//!
//! What the command says without NVRTC is tested where there is none; nothing here installs it.

#[cfg(unix)]
#[path = "support/files.rs"]
mod files;
#[path = "cli/support.rs"]
mod support;

#[path = "cli/bad_input.rs"]
mod bad_input;
#[path = "cli/demo.rs"]
mod demo;
#[path = "cli/failures.rs"]
mod failures;
#[path = "cli/generator.rs"]
mod generator;
#[path = "cli/outputs.rs"]
mod outputs;
#[path = "cli/run.rs"]
mod run;
#[path = "cli/templates.rs"]
mod templates;
