//! What needs something that not every machine has: NVRTC, root, a disk of one's own. Where that is missing, the test is listed
//! as ignored, with the reason. What needs a GPU is in tests/gpu.
#![cfg(unix)]

#[path = "support/needs.rs"]
mod needs;
#[path = "cache/support.rs"]
mod support;

#[path = "needs/ahead.rs"]
mod ahead;
#[path = "needs/bundle.rs"]
mod bundle;
#[path = "needs/compile.rs"]
mod compile;
#[path = "needs/disk.rs"]
mod disk;
#[path = "needs/listed.rs"]
mod listed;
#[path = "needs/users.rs"]
mod users;

use libtest_mimic::Arguments;
use needs::{Lack, Need, needing, plain};

/// Being root, and so anybody.
fn root() -> Need<()> {
    let why = || "only root can be somebody else".to_owned();
    support::is_root().then_some(()).ok_or_else(|| Lack { what: "not root", why: why(), fails: false })
}

/// A disk that can be full or read-only.
fn disk() -> Need<()> {
    let why = || "only root can mount one, and not in every container".to_owned();
    let disk = support::Disk::try_mount("64k").map(drop);
    disk.ok_or_else(|| Lack { what: "no disk to mount", why: why(), fails: false })
}

/// What another process does; see `support::child`.
fn role(role: &str) {
    match role {
        "private" => users::private(),
        "read" => users::read(),
        "locked_out" => users::locked_out(),
        "trusting" => users::trusting(),
        role => panic!("{role:?} is no role"),
    }
}

fn main() -> std::process::ExitCode {
    if let Ok(name) = std::env::var(support::ROLE) {
        role(&name);
        return std::process::ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let out = tempfile::tempdir().expect("a folder");
    // SAFETY: nothing else runs yet. A `build.rs`, whose part a test plays, finds these set.
    unsafe {
        std::env::set_var("OUT_DIR", out.path());
        std::env::set_var("CARGO_MANIFEST_DIR", ahead::example());
    }
    let (nvrtc, root, disk) = (needs::nvrtc(), root(), disk());
    if !arguments.list {
        needs::say(&nvrtc);
        needs::say(&root);
        needs::say(&disk);
    }
    let with_nvrtc = [ahead::TESTS, bundle::TESTS, compile::TESTS].into_iter().flatten();
    let trials = with_nvrtc
        .map(|&(name, test)| needing(name, &nvrtc, test))
        .chain(users::TESTS.iter().map(|&(name, test)| needing(name, &root, test)))
        .chain(disk::TESTS.iter().map(|&(name, test)| needing(name, &disk, test)))
        .chain([plain("listed::every_test_is_run_or_ignored", listed::every_test_is_run_or_ignored)])
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
