use crate::tune::DeviceLock;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const FOLDER: &str = "TILEWRIGHT_TEST_LOCK_FOLDER";

/// Not a test: the other process of the tests below.
#[test]
#[ignore = "holds a lock until its standard input closes"]
fn hold() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let lock = DeviceLock::acquire(Path::new(&folder), "GPU-1", Duration::from_secs(10), || {});
    println!("\nheld: {}", lock.is_held());
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// Another process that holds the lock, until dropped.
struct Holder(Child);

impl Holder {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tune::tests::lock::hold", "--ignored", "--nocapture"])
            .env(FOLDER, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let held = lines.map_while(Result::ok).find(|line| line.starts_with("held: "));
        assert_eq!(held.as_deref(), Some("held: true"));
        Holder(child)
    }

    /// The hard way, as the system would.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_lock_held_by_another_process_times_out_and_the_work_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut holder = Holder::start(folder.path());
    let (start, mut waited) = (Instant::now(), 0);
    let lock = DeviceLock::acquire(folder.path(), "GPU-1", Duration::from_millis(200), || waited += 1);
    assert!(!lock.is_held());
    assert_eq!(waited, 1);
    assert!(start.elapsed() >= Duration::from_millis(200));
    // Another GPU has another lock.
    assert!(DeviceLock::acquire(folder.path(), "GPU-2", Duration::ZERO, || {}).is_held());
    // A killed process holds nothing.
    holder.kill();
    assert!(DeviceLock::acquire(folder.path(), "GPU-1", Duration::from_secs(10), || {}).is_held());
}

#[test]
fn a_lock_given_back_is_free() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let lock = DeviceLock::acquire(folder.path(), "GPU-1", Duration::ZERO, || panic!("it is free"));
        assert!(lock.is_held());
        assert!(lock.path().starts_with(folder.path()));
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_no_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let lock = DeviceLock::acquire(&file.path().join("locks"), "GPU-1", Duration::from_secs(10), || {});
    assert!(!lock.is_held());
}
