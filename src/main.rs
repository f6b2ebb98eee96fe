//! The `tilewright` command.

fn main() -> std::process::ExitCode {
    tilewright::cli::main()
}

/// Runs before `main`, and before Rust opens `/dev/null` in the place of a standard output that is closed.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = tilewright::cli::look_at_standard_output;
