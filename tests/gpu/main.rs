//! What runs on a GPU, against the f64 oracle. Without a GPU every test here is listed as ignored, with the reason.

mod backward;
mod caller;
mod choice;
mod folded;
mod forward;
mod functions;
mod mask;
#[path = "../support/needs.rs"]
mod needs;
mod random_functions;
mod real;
mod regroup;
mod robust;
mod soak;
mod sound;
mod streams;
#[path = "../support/mod.rs"]
mod support;
mod tiles;
mod tuned;
mod ways;

use libtest_mimic::{Arguments, Failed};
use tilewright::Device;

/// A test: its name and what it does on the GPU.
type Test = (&'static str, fn(&Device) -> Result<(), Failed>);

const GROUPS: [&[Test]; 20] = [
    backward::TESTS,
    backward::calls::TESTS,
    caller::TESTS,
    choice::TESTS,
    folded::TESTS,
    forward::TESTS,
    functions::TESTS,
    mask::TESTS,
    random_functions::TESTS,
    real::TESTS,
    regroup::TESTS,
    robust::TESTS,
    soak::TESTS,
    sound::TESTS,
    sound::beside::TESTS,
    sound::captures::TESTS,
    streams::TESTS,
    tiles::TESTS,
    tuned::TESTS,
    ways::TESTS,
];

fn main() -> std::process::ExitCode {
    if choice::child() {
        return std::process::ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let cache = tempfile::tempdir().expect("a folder for the cache");
    // SAFETY: nothing else runs yet. The tests start from an empty cache of their own; where they do not ask for the tuner,
    // the preferred schedule is enough.
    unsafe {
        std::env::set_var("TILEWRIGHT_CACHE", cache.path().join("tilewright"));
        std::env::set_var("TILEWRIGHT_POLICY", "first-valid");
    }
    let device = needs::gpu();
    if !arguments.list {
        needs::say(&device);
    }
    let tests = GROUPS.into_iter().flatten();
    let trials = tests.map(|&(name, test)| needs::needing(name, &device, test)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
