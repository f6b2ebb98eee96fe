//! The inputs that fuzzing has found, and those it starts from, through the functions that it runs: a test for each. See
//! `fuzz/run`.

#[path = "../fuzz/src/targets.rs"]
mod targets;

use libtest_mimic::{Arguments, Failed, Trial};
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What a thread of a pool has, in an unoptimised build too.
const STACK: usize = 2 << 20;

fn main() -> ExitCode {
    // Nothing here may find what the user has.
    let data = tempfile::tempdir().expect("a temporary folder can be made");
    // SAFETY: this is the only thread.
    unsafe { std::env::set_var("TILEWRIGHT_DATA", data.path()) };
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut trials = Vec::new();
    for &(name, target) in targets::TARGETS {
        let files = fs::read_dir(corpus.join(name)).expect("every target has a corpus");
        let mut files: Vec<_> = files.map(|file| file.expect("the folder can be read").path()).collect();
        files.sort();
        assert!(files.len() > 1, "{name} has a corpus of {} inputs", files.len());
        trials.extend(files.into_iter().map(|file| {
            let title = format!("{name}::{}", file.file_name().unwrap_or_default().display());
            Trial::test(title, move || answered(target, &file))
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs an input on a small stack.
fn answered(target: fn(&[u8]), file: &Path) -> Result<(), Failed> {
    let input = fs::read(file)?;
    let start = Instant::now();
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || target(&input))?;
    thread.join().map_err(|_| "it panics")?;
    let took = start.elapsed();
    if took > Duration::from_secs(60) { Err(format!("it takes {took:?}").into()) } else { Ok(()) }
}
