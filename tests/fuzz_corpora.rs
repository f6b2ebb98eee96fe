//! The inputs that fuzzing has found, and those it starts from, through the functions that it runs. See `fuzz/run`.

#[path = "../fuzz/src/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a thread of a pool has, in an unoptimised build too.
const STACK: usize = 2 << 20;

#[test]
fn every_input_that_is_kept_is_answered() {
    // Nothing here may find what the user has.
    let data = tempfile::tempdir().unwrap();
    // SAFETY: no other thread of this process runs yet; it has one test.
    unsafe { std::env::set_var("TILEWRIGHT_DATA", data.path()) };
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut seen = 0;
    for (name, target) in targets::TARGETS {
        let mut files: Vec<_> =
            fs::read_dir(corpus.join(name)).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        for file in files {
            let input = fs::read(&file).unwrap();
            let start = Instant::now();
            let run = move || target(&input);
            let done = std::thread::Builder::new().stack_size(STACK).spawn(run).unwrap().join();
            assert!(done.is_ok(), "{}", file.display());
            let took = start.elapsed();
            assert!(took < Duration::from_secs(60), "{} took {took:?}", file.display());
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen} inputs");
}
