//! Fake kernels, other processes and small disks.
#![allow(dead_code, reason = "each test target uses its own part")]

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;
use tilewright::cache::{CubinKey, KernelCache};
use tilewright::compile::{Cubin, OPTIONS, PtxasReport};

pub const ROLE: &str = "TILEWRIGHT_TEST_ROLE";
pub const FOLDER: &str = "TILEWRIGHT_TEST_FOLDER";
pub const NUMBER: &str = "TILEWRIGHT_TEST_NUMBER";

/// A kernel that was never compiled. Kernels of one number are equal.
pub struct Kernel {
    pub key: CubinKey,
    pub source: String,
    pub cubin: Cubin,
}

pub fn kernel(number: usize) -> Kernel {
    kernel_of(number, 300, (13, 0))
}

/// With a cubin of so many bytes and a version of NVRTC.
pub fn kernel_of(number: usize, bytes: usize, nvrtc: (i32, i32)) -> Kernel {
    let (name, arch) = (format!("kernel{number}"), "sm_90a");
    let source = format!("extern \"C\" __global__ void {name}() {{}}\n");
    // An ELF header without tables.
    let mut elf = vec![0_u8; bytes.max(64)];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    for (i, byte) in elf.iter_mut().enumerate().skip(64) {
        *byte = (i * 31 + number * 7 + nvrtc.1 as usize) as u8;
    }
    let report = PtxasReport { registers: 100 + number as u32, ..PtxasReport::default() };
    // SAFETY: it never reaches a driver.
    let mut cubin = unsafe { Cubin::from_code([&name, arch], nvrtc, &source, elf, report) };
    cubin.compile_time = Duration::from_millis(123);
    cubin.warnings = vec!["an unused variable".to_owned()];
    Kernel { key: CubinKey::new(&name, arch, &source, OPTIONS, nvrtc), source, cubin }
}

impl Kernel {
    pub fn put(&self, cache: &KernelCache) {
        cache.put(&self.key, &self.source, &self.cubin).expect("it is stored");
    }

    pub fn is_in(&self, cache: &KernelCache) -> bool {
        let found = cache.get(&self.key);
        if let Some(found) = &found {
            assert_eq!(*found, self.cubin, "never a wrong kernel");
        }
        found.is_some()
    }

    /// The entry's folder.
    pub fn folder(&self, cache: &KernelCache) -> PathBuf {
        let name = format!("{}-{}", self.key.name(), self.key.hash());
        cache.root().join("v1").join(self.key.arch()).join(name)
    }
}

/// An empty cache, as long as the folder lives.
pub fn cache() -> (TempDir, KernelCache) {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = KernelCache::at(&dir.path().join("cache")).expect("a cache");
    (dir, cache)
}

/// A process that plays a role of `child` in tests/cache.rs, or of `role` in tests/needs.rs.
pub fn child(role: &str, folder: &Path) -> Command {
    child_of(&std::env::current_exe().expect("this program"), role, folder)
}

pub fn child_of(program: &Path, role: &str, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["child", "--exact", "--ignored", "--nocapture"]);
    command.env(ROLE, role).env(FOLDER, folder).stdout(Stdio::null()).stdin(Stdio::null());
    command
}

/// What the parent told this process.
pub fn told_folder() -> PathBuf {
    PathBuf::from(std::env::var_os(FOLDER).expect("a folder"))
}

pub fn told_number() -> usize {
    std::env::var(NUMBER).expect("a number").parse().expect("a number")
}

/// Waits for something that another process does.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Everything below a folder.
pub fn all_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        found.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(all_below(&entry.path()));
        }
    }
    found
}

/// What processes are still writing, or left behind.
pub fn temporaries(cache: &KernelCache) -> Vec<PathBuf> {
    let temporary = |path: &PathBuf| path.to_string_lossy().contains("/.tmp-");
    all_below(cache.root()).into_iter().filter(temporary).collect()
}

/// How many things lie in the quarantine.
pub fn quarantined(cache: &KernelCache) -> usize {
    fs::read_dir(cache.root().join("v1/quarantine")).map_or(0, Iterator::count)
}

pub fn set_time(path: &Path, time: SystemTime) {
    File::open(path).and_then(|file| file.set_modified(time)).expect("its time is set");
}

pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// A disk of its own, gone when dropped.
pub struct Disk {
    pub folder: TempDir,
}

impl Disk {
    pub fn mount(size: &str) -> Self {
        Self::try_mount(size).expect("a disk can be mounted")
    }

    /// None where a disk cannot be mounted.
    pub fn try_mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let options = format!("size={size},mode=700");
        let disk = Self { folder };
        (is_root() && mount(&["-t", "tmpfs", "-o", &options, "tmpfs"], disk.path())).then_some(disk)
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn make_read_only(&self) {
        assert!(mount(&["-o", "remount,ro"], self.path()), "it is mounted read-only");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).stderr(Stdio::null()).status();
    }
}

fn mount(arguments: &[&str], place: &Path) -> bool {
    let status = Command::new("mount").args(arguments).arg(place).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Nobody else may write to what is made. Root's is for all to read, as what root installs.
pub fn makes_private_files(folder: &Path) {
    let (folders, files) = if is_root() { (0o755, 0o644) } else { (0o700, 0o600) };
    let cache = KernelCache::at(&folder.join("cache")).expect("a cache");
    kernel(1).put(&cache);
    cache.write_record("device", "file", b"{}").expect("it is written");
    fs::write(kernel(1).folder(&cache).join("kernel.cu"), "damaged").expect("it is written");
    assert!(!kernel(1).is_in(&cache));
    kernel(1).put(&cache);
    let _lock = cache.lock("lock", std::time::Duration::ZERO).expect("a lock");
    let mut paths = all_below(cache.root());
    paths.push(cache.root().to_path_buf());
    assert!(paths.len() > 15, "{paths:?}");
    for path in paths {
        let metadata = fs::symlink_metadata(&path).expect("it is there");
        let mode = metadata.permissions().mode() & 0o777;
        // Who may read a file may hold its lock.
        let file = if path.extension().is_some_and(|end| end == "lock") { 0o600 } else { files };
        assert_eq!(mode, if metadata.is_dir() { folders } else { file }, "{}", path.display());
    }
}

/// A user that owns nothing.
pub const NOBODY: u32 = 65534;

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode is set");
}
