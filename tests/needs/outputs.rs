//! Outputs that are devices, and those among the files of other users.

use crate::commands::{command, nowhere, small_input, stderr, tilewright, with, writers};
use crate::files::{copy_program, names};
use crate::needs::Test;
use crate::support::{NOBODY, set_mode};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use safetensors::SafeTensors;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use tilewright::output::Output;

/// With devices.
pub const DEVICES: &[Test<()>] = &[
    ("outputs::devices_take_the_content_and_stay", devices_take_the_content_and_stay),
    ("outputs::every_command_writes_to_devices", every_command_writes_to_devices),
];

/// As root.
pub const USERS: &[Test<()>] = &[
    (
        "outputs::a_file_in_a_folder_that_cannot_be_written_to_is_overwritten",
        a_file_in_a_folder_that_cannot_be_written_to_is_overwritten,
    ),
    ("outputs::what_cannot_be_quarantined_is_not_said_to_be", what_cannot_be_quarantined_is_not_said_to_be),
    (
        "outputs::another_users_link_in_a_folder_for_all_is_not_followed",
        another_users_link_in_a_folder_for_all_is_not_followed,
    ),
];

/// A device that takes everything, and one that is always full.
const NULL: u32 = 3;
const FULL: u32 = 7;

fn make(device: u32, path: &Path) -> std::io::Result<()> {
    let mode = Mode::from_raw_mode(0o666);
    Ok(mknodat(CWD, path, FileType::CharacterDevice, mode, makedev(1, device))?)
}

/// Whether devices can be made in the folder of temporary files, and opened there.
pub fn can_make_devices() -> std::io::Result<()> {
    let dir = tempfile::tempdir()?;
    [NULL, FULL].iter().try_for_each(|&device| {
        let path = dir.path().join(device.to_string());
        make(device, &path)?;
        File::options().write(true).open(&path).map(drop)
    })
}

fn is_device(path: &Path) -> bool {
    fs::symlink_metadata(path).expect("it is there").file_type().is_char_device()
}

fn devices_take_the_content_and_stay(_: &()) {
    let dir = tempfile::tempdir().expect("a folder");
    let (null, full, link) = (dir.path().join("null"), dir.path().join("full"), dir.path().join("link"));
    make(NULL, &null).and_then(|()| make(FULL, &full)).expect("devices");
    symlink("null", &link).expect("a link");
    let write = |path: &Path, content: &[u8]| Output::open(path)?.write(content);
    for path in [&null, &link] {
        write(path, b"into the void").expect("it takes everything");
    }
    assert_eq!(write(&full, b"x").expect_err("it is full").kind(), ErrorKind::StorageFull);
    assert!(is_device(&null) && is_device(&full));
    assert_eq!(names(dir.path()), ["full", "link", "null"]);
}

fn every_command_writes_to_devices(_: &()) {
    let dir = tempfile::tempdir().expect("a folder");
    let (null, full) = (dir.path().join("null"), dir.path().join("full"));
    make(NULL, &null).and_then(|()| make(FULL, &full)).expect("devices");
    for (arguments, _) in writers(&small_input(dir.path())) {
        let run = |to: &Path| command().args(with(&arguments, to)).output().expect("the command starts");
        let done = run(&null);
        assert!(done.status.success(), "{arguments:?}: {}", stderr(&done));
        let done = run(&full);
        assert_eq!(done.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&done).contains("No space left on device"), "{arguments:?}: {}", stderr(&done));
        assert!(is_device(&null) && is_device(&full), "{arguments:?}");
    }
    assert_eq!(names(dir.path()), ["full", "in.safetensors", "null"]);
}

/// The command as another user runs it.
pub fn as_nobody(folder: &Path) -> Command {
    let program = folder.join("tilewright");
    if !program.exists() {
        copy_program(env!("CARGO_BIN_EXE_tilewright"), &program);
        for path in [folder, &program] {
            set_mode(path, 0o755);
        }
    }
    let mut command = Command::new(program);
    command.uid(NOBODY).gid(NOBODY).current_dir("/").env("HOME", folder).env("TILEWRIGHT_NVRTC", nowhere());
    command
}

/// What the kernel does where `fs.protected_symlinks` is set.
fn another_users_link_in_a_folder_for_all_is_not_followed(_: &()) {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &Path| Output::open(path)?.write(b"new");
    let other = NOBODY - 1;
    for (mode, owner, link_owner, follows) in [
        (0o1777, 0, NOBODY, false),
        (0o1777, other, NOBODY, false),
        (0o1777, 0, 0, true),
        (0o1777, other, 0, true),
        (0o1777, NOBODY, NOBODY, true),
        (0o0777, 0, NOBODY, true),
        (0o1755, 0, NOBODY, true),
    ] {
        let case = format!("{mode:o} of {owner}, link of {link_owner}");
        let folder = dir.path().join(format!("{mode:o}-{owner}-{link_owner}"));
        let (link, secret, new) = (folder.join("link"), dir.path().join("secret"), folder.join("to-new"));
        fs::create_dir(&folder).unwrap();
        fs::write(&secret, "old").unwrap();
        symlink(&secret, &link).and_then(|()| symlink("new", &new)).unwrap();
        // A link of one's own that leads to the other.
        let outer = dir.path().join(format!("{mode:o}-{owner}-{link_owner}-outer"));
        symlink(&link, &outer).unwrap();
        for path in [&link, &new] {
            lchown(path, Some(link_owner), None).unwrap();
        }
        chown(&folder, Some(owner), None).unwrap();
        set_mode(&folder, mode);
        for path in [&link, &new, &outer] {
            let result = write(path);
            assert_eq!(result.is_ok(), follows, "{case}: {result:?}");
            let Err(error) = result else { continue };
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{case}");
            assert!(error.to_string().contains("is a symbolic link of user 65534"), "{case}: {error}");
        }
        let content = fs::read_to_string(&secret).unwrap();
        assert_eq!(
            (content.as_str(), folder.join("new").exists()),
            (if follows { "new" } else { "old" }, follows),
            "{case}"
        );
    }
}

fn what_cannot_be_quarantined_is_not_said_to_be(_: &()) {
    let dir = tempfile::tempdir().unwrap();
    let (cache, broken) = (dir.path().join("cache"), dir.path().join("cache/v1/sm_80/pool-0"));
    fs::create_dir_all(&broken).unwrap();
    for folder in broken.ancestors().take_while(|folder| *folder != dir.path()) {
        set_mode(folder, 0o755);
    }
    let verify = |mut command: Command| {
        let done = command.args(["cache", "verify"]).env("TILEWRIGHT_CACHE", &cache).output().unwrap();
        assert_eq!(done.status.code(), Some(1), "{}", stderr(&done));
        String::from_utf8(done.stdout).unwrap()
    };
    let said = verify(as_nobody(dir.path()));
    assert!(
        broken.exists() && said.contains("they stay where they are, for nothing can be moved there"),
        "{said}"
    );
    let said = verify(command());
    assert!(!broken.exists() && said.contains("they are in quarantine"), "{said}");
}

fn a_file_in_a_folder_that_cannot_be_written_to_is_overwritten(_: &()) {
    let dir = tempfile::tempdir().unwrap();
    let input = small_input(dir.path());
    set_mode(Path::new(&input), 0o644);
    let run = |to: &Path| {
        let mut command = as_nobody(dir.path());
        command.args(["run", "--device", "cpu", "--input", &input, "--output"]).arg(to).output().unwrap()
    };
    // Root's folders: nothing can be made there; anything can; anything, but others' files cannot be replaced (`/tmp`).
    for (mode, owner) in [(0o555, 0), (0o777, 0), (0o1777, 0), (0o555, NOBODY)] {
        let folder = dir.path().join(format!("{mode:o}-{owner}"));
        fs::create_dir(&folder).unwrap();
        let file = folder.join("file");
        fs::write(&file, vec![1; 1 << 20]).unwrap();
        set_mode(&file, 0o666);
        chown(&folder, Some(owner), None).unwrap();
        set_mode(&folder, mode);
        let before = fs::metadata(&file).unwrap();
        let done = run(&file);
        assert!(done.status.success(), "{mode:o}: {}", stderr(&done));
        let content = fs::read(&file).unwrap();
        SafeTensors::deserialize(&content).expect("all of it, and nothing after it");
        let after = fs::metadata(&file).unwrap();
        assert_eq!((after.ino(), after.uid(), after.mode()), (before.ino(), 0, before.mode()), "{mode:o}");
        assert_eq!(names(&folder), ["file"]);

        let done = run(&folder.join("new"));
        assert_eq!(done.status.success(), mode & 0o222 == 0o222, "{mode:o}: {}", stderr(&done));
        // What may not be written to is not replaced.
        set_mode(&file, 0o444);
        let done = run(&file);
        assert_eq!(done.status.code(), Some(1));
        assert!(stderr(&done).contains("Permission denied") && fs::read(&file).unwrap() == content);
    }
    // Root replaces a file of another user's, who keeps it.
    let file = dir.path().join("own");
    fs::write(&file, "old").unwrap();
    chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
    let to = file.to_str().unwrap();
    assert!(tilewright(&["run", "--device", "cpu", "--input", &input, "--output", to]).status.success());
    let after = fs::metadata(&file).unwrap();
    assert_eq!((after.uid(), after.gid()), (NOBODY, NOBODY));
}
