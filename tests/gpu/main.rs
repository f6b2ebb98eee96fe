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
mod plans;
mod random_functions;
mod real;
mod regroup;
mod robust;
mod soak;
mod sound;
mod streams;
#[path = "../support/mod.rs"]
mod support;
mod tail;
mod tiles;
mod tuned;
mod ways;

use libtest_mimic::{Arguments, Failed};
use std::sync::{PoisonError, RwLock};
use tilewright::Device;

/// A test: its name and what it does on the GPU.
type Test = (&'static str, fn(&Device) -> Result<(), Failed>);

const GROUPS: [&[Test]; 22] = [
    backward::TESTS,
    backward::calls::TESTS,
    caller::TESTS,
    choice::TESTS,
    folded::TESTS,
    forward::TESTS,
    functions::TESTS,
    mask::TESTS,
    plans::TESTS,
    random_functions::TESTS,
    real::TESTS,
    regroup::TESTS,
    robust::TESTS,
    soak::TESTS,
    sound::TESTS,
    sound::beside::TESTS,
    sound::captures::TESTS,
    streams::TESTS,
    tail::TESTS,
    tiles::TESTS,
    tuned::TESTS,
    ways::TESTS,
];

/// Tests beside which no other may run.
const ALONE: &[&str] = &["sound::building_breaks_no_capture_of_another_thread"];

/// Another policy than the first schedule that is valid, for a process that a test starts for itself.
const POLICY: &str = "TILEWRIGHT_TEST_POLICY";

static TURNS: RwLock<()> = RwLock::new(());

/// A GPU, and what a test does on it.
type Run = (Device, fn(&Device) -> Result<(), Failed>);

fn by_itself((device, test): &Run) -> Result<(), Failed> {
    let _turn = TURNS.write().unwrap_or_else(PoisonError::into_inner);
    test(device)
}

fn beside_others((device, test): &Run) -> Result<(), Failed> {
    let _turn = TURNS.read().unwrap_or_else(PoisonError::into_inner);
    test(device)
}

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
        std::env::set_var("TILEWRIGHT_POLICY", std::env::var_os(POLICY).unwrap_or("first-valid".into()));
    }
    let device = needs::gpu();
    if !arguments.list {
        needs::say(&device);
    }
    let tests = GROUPS.into_iter().flatten();
    let trials = tests.map(|&(name, test)| {
        // A stream's capture is everybody's in CUDA's strictest mode: raw calls of other tests would break it.
        let alone = ALONE.contains(&name);
        let run = if alone { by_itself } else { beside_others };
        needs::needing(name, &device.clone().map(|device| (device, test)), run)
    });
    let trials = trials.collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
