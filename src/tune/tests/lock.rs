use crate::tune::DeviceLock;
use crate::tune::lock::{holder, holder_in};
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
    let lock = DeviceLock::acquire(Path::new(&folder), "GPU-1", Duration::from_secs(10), |_| {});
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
    let lock = DeviceLock::acquire(folder.path(), "GPU-1", Duration::from_millis(200), |_| waited += 1);
    assert!(!lock.is_held());
    assert_eq!(waited, 1);
    assert!(start.elapsed() >= Duration::from_millis(200));
    // Another GPU has another lock.
    assert!(DeviceLock::acquire(folder.path(), "GPU-2", Duration::ZERO, |_| {}).is_held());
    // A killed process holds nothing.
    holder.kill();
    assert!(DeviceLock::acquire(folder.path(), "GPU-1", Duration::from_secs(10), |_| {}).is_held());
}

#[test]
fn a_lock_given_back_is_free() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let lock = DeviceLock::acquire(folder.path(), "GPU-1", Duration::ZERO, |_| panic!("it is free"));
        assert!(lock.is_held());
        assert!(lock.path().starts_with(folder.path()));
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_no_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let lock = DeviceLock::acquire(&file.path().join("locks"), "GPU-1", Duration::from_secs(10), |_| {});
    assert!(!lock.is_held());
}

/// Anybody can hold a lock in a folder for all: that costs a process the patience of one lock, not of one for every kernel.
#[test]
fn a_process_waits_for_a_lock_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut holder = Holder::start(folder.path());
    let patience = Duration::from_millis(300);
    let (start, mut waited) = (Instant::now(), 0);
    for _ in 0..20 {
        assert!(!DeviceLock::acquire(folder.path(), "GPU-1", patience, |_| waited += 1).is_held());
    }
    assert_eq!(waited, 1);
    assert!((patience..10 * patience).contains(&start.elapsed()), "{:?}", start.elapsed());
    // What is free is still taken.
    holder.kill();
    assert!(DeviceLock::acquire(folder.path(), "GPU-1", patience, |_| {}).is_held());
}

#[test]
fn who_holds_a_lock_is_said() {
    let locks = "1: POSIX  ADVISORY  WRITE 11 08:01:456 0 EOF
2: -> FLOCK  ADVISORY  WRITE 12 08:01:456 0 EOF
3: FLOCK  ADVISORY  WRITE 13 08:02:456 0 EOF
4: FLOCK  ADVISORY  WRITE 14 08:01:456 0 EOF
5: FLOCK  ADVISORY  WRITE 0 08:01:789 0 EOF\ncut short\n";
    let device = rustix::fs::makedev(8, 1);
    assert_eq!(holder_in(locks, device, 456), Some(14));
    // A process of another container has no number here.
    assert_eq!((holder_in(locks, device, 789), holder_in("", device, 456)), (None, None));

    let folder = tempfile::tempdir().unwrap();
    let child = Holder::start(folder.path());
    let file = std::fs::File::open(folder.path().join("tilewright-gpu-1.lock"));
    let said = holder(&file.expect("the lock file"));
    let process = format!("process {}", child.0.id());
    assert!(said.starts_with(&process) || said.contains("does not show"), "{said}");
}

/// What another user puts in the lock's place is neither followed nor waited for.
#[test]
fn a_pipe_in_the_place_of_a_lock_is_no_hang() {
    let folder = tempfile::tempdir().unwrap();
    let path = DeviceLock::acquire(folder.path(), "GPU-1", Duration::ZERO, |_| {}).path().to_owned();
    std::fs::remove_file(&path).unwrap();
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    assert!(!DeviceLock::acquire(folder.path(), "GPU-1", Duration::from_secs(10), |_| {}).is_held());
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(folder.path().join("elsewhere"), &path).unwrap();
    assert!(!DeviceLock::acquire(folder.path(), "GPU-1", Duration::from_secs(10), |_| {}).is_held());
    assert!(!folder.path().join("elsewhere").exists());
}
