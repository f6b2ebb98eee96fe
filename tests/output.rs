//! Outputs, whatever has their name: files, links, pipes, folders, sockets. Devices are in tests/needs.
#![cfg(unix)]

#[path = "support/files.rs"]
mod files;

use files::names;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use tempfile::TempDir;
use tilewright::output::Output;

/// Longer than what is replaced, and shorter.
const CONTENTS: [&[u8]; 3] = [b"new content that is long", b"new", b""];

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    Output::open(path)?.write(content)
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).expect("it is there").ino()
}

#[test]
fn files_are_replaced_as_a_whole_and_keep_their_permissions() {
    let dir = folder();
    let path = dir.path().join("file");
    write(&path, b"first").expect("a new file");
    // What any new file has.
    File::create(dir.path().join("any")).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path), mode(&dir.path().join("any")));
    for content in CONTENTS {
        for bits in [0o600, 0o644, 0o640, 0o755] {
            fs::set_permissions(&path, Permissions::from_mode(bits)).unwrap();
            let (before, mut old) = (inode(&path), File::open(&path).unwrap());
            let (mut seen, expected) = (Vec::new(), fs::read(&path).unwrap());
            write(&path, content).expect("it is replaced");
            assert_eq!((fs::read(&path).unwrap(), mode(&path)), (content.to_vec(), bits));
            assert_ne!(inode(&path), before, "readers would see half of it");
            old.read_to_end(&mut seen).unwrap();
            assert_eq!(seen, expected, "who has the old file open reads it to its end");
        }
    }
    assert_eq!(names(dir.path()), ["any", "file"], "nothing is left behind");
}

#[test]
fn looking_at_a_place_changes_nothing() {
    let dir = folder();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    fs::write(&old, "content").unwrap();
    for path in [&old, &new] {
        drop(Output::open(path).expect("it can be written to"));
    }
    assert_eq!((fs::read(&old).unwrap(), names(dir.path())), (b"content".to_vec(), vec!["old".to_owned()]));
}

#[test]
fn links_stay_and_what_they_name_is_written() {
    for content in CONTENTS {
        let dir = folder();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("below")).unwrap();
        fs::write(at("below/file"), "old").unwrap();
        fs::create_dir(at("links")).unwrap();
        // Relative to the link's folder, absolute, by way of another, by way of a folder that is one.
        symlink("../below/file", at("links/relative")).unwrap();
        symlink(at("below/file"), at("absolute")).unwrap();
        symlink("links/relative", at("chain")).unwrap();
        symlink("below", at("folder")).unwrap();
        for name in ["links/relative", "absolute", "chain", "folder/file"] {
            fs::write(at("below/file"), "old").unwrap();
            write(&at(name), content).expect(name);
            assert_eq!(fs::read(at("below/file")).unwrap(), content, "{name}");
        }
        // What is not there yet is made where the link says.
        symlink("../below/new", at("links/dangling")).unwrap();
        write(&at("links/dangling"), content).expect("a new file");
        assert_eq!(fs::read(at("below/new")).unwrap(), content);
        for name in ["links/relative", "absolute", "chain", "links/dangling"] {
            assert!(fs::symlink_metadata(at(name)).unwrap().is_symlink(), "{name}");
        }
        assert_eq!(
            (names(&at("links")), names(&at("below"))),
            (vec!["dangling".to_owned(), "relative".to_owned()], vec!["file".to_owned(), "new".to_owned()],)
        );
    }
}

#[test]
fn what_cannot_be_written_to_is_said_and_left_alone() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("folder")).unwrap();
    symlink("folder", at("to-folder")).unwrap();
    fs::write(at("file"), "old").unwrap();
    symlink("round", at("round")).unwrap();
    symlink("second", at("first")).unwrap();
    symlink("first", at("second")).unwrap();
    symlink("nowhere/file", at("to-nowhere")).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    let before = names(dir.path());
    for (name, kind, says) in [
        ("folder", ErrorKind::IsADirectory, "it is a folder"),
        ("to-folder", ErrorKind::IsADirectory, "it is a folder"),
        ("folder/..", ErrorKind::IsADirectory, "it is a folder"),
        ("new/", ErrorKind::IsADirectory, "named as a folder"),
        ("socket", ErrorKind::InvalidInput, "it is a socket"),
        ("round", ErrorKind::InvalidInput, "circle"),
        ("first", ErrorKind::InvalidInput, "circle"),
        ("nowhere/file", ErrorKind::NotFound, ""),
        ("to-nowhere", ErrorKind::NotFound, ""),
        ("file/below", ErrorKind::NotADirectory, ""),
    ] {
        let error = Output::open(&at(name)).expect_err(name);
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert!(error.to_string().contains(says), "{name}: {error}");
    }
    assert_eq!(Output::open(Path::new("")).unwrap_err().to_string(), "the name is empty; name a file");
    assert_eq!(names(dir.path()), before);
    assert!(fs::symlink_metadata(at("socket")).unwrap().file_type().is_socket());
}

#[test]
fn pipes_get_the_content_and_stay() {
    let dir = folder();
    let (pipe, link) = (dir.path().join("pipe"), dir.path().join("link"));
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    symlink("pipe", &link).unwrap();
    for path in [&pipe, &link] {
        let from = pipe.clone();
        let reader = std::thread::spawn(move || fs::read(from).unwrap());
        write(path, CONTENTS[0]).expect("somebody reads");
        assert_eq!(reader.join().unwrap(), CONTENTS[0]);
        assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    }
    assert_eq!(names(dir.path()), ["link", "pipe"]);
    // A reader that leaves is an error, not the end of the process.
    let (reader, writer) = std::io::pipe().unwrap();
    let output = Output::open(Path::new(&format!("/dev/fd/{}", writer.as_raw_fd()))).unwrap();
    drop(reader);
    assert_eq!(output.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn open_files_by_their_number() {
    let dir = folder();
    let path = dir.path().join("file");
    fs::write(&path, "old content").unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let before = inode(&path);
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    write(Path::new(&name), b"new").expect("it is written to");
    assert_eq!((fs::read(&path).unwrap(), inode(&path)), (b"new".to_vec(), before), "the file that is open");
    let (mut reader, writer) = std::io::pipe().unwrap();
    write(Path::new(&format!("/dev/fd/{}", writer.as_raw_fd())), b"by the pipe").unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "by the pipe");
    // Standard output, and what is only called alike.
    let (fd, link) = (dir.path().join("fd"), dir.path().join("link"));
    fs::create_dir(&fd).and_then(|()| symlink("/dev/stdout", &link)).unwrap();
    fs::write(fd.join("1"), "").unwrap();
    for path in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1"].map(Path::new) {
        assert!(Output::is_standard(path), "{}", path.display());
    }
    assert!(Output::is_standard(&link));
    for path in
        [Path::new("/dev/stderr"), Path::new("/dev/fd/2"), &path, &fd.join("1"), &dir.path().join("1")]
    {
        assert!(!Output::is_standard(path), "{}", path.display());
    }
}

#[test]
fn what_killed_processes_left_is_removed_and_nothing_else() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    let (dead, alive_name) = (".tilewright-DeadA1.partial", ".tilewright-alive2.partial");
    // The last ones are a user's: no name is drawn like that.
    for name in [dead, alive_name, "x.partial", ".tilewright-notes", ".tilewright-notes.partial"] {
        fs::write(at(name), "half of it").unwrap();
    }
    symlink("x.partial", at(".tilewright-aLink3.partial")).unwrap();
    fs::create_dir(at(".tilewright-folder.partial")).unwrap();
    let alive = File::open(at(alive_name)).unwrap();
    alive.lock().unwrap();
    write(&at("file"), b"content").unwrap();
    let left = [
        ".tilewright-aLink3.partial",
        alive_name,
        ".tilewright-folder.partial",
        ".tilewright-notes",
        ".tilewright-notes.partial",
        "file",
        "x.partial",
    ];
    assert_eq!(names(dir.path()), left);
    drop(alive);
    write(&at("file"), b"content").unwrap();
    assert!(!at(alive_name).exists());
    assert_eq!(fs::read(at("x.partial")).unwrap(), b"half of it");
}

#[test]
fn many_writers_of_one_file_leave_one_whole_content() {
    let dir = folder();
    let path = dir.path().join("file");
    std::thread::scope(|scope| {
        for number in 0..8_u8 {
            let path = &path;
            scope.spawn(move || (0..20).for_each(|_| write(path, &[number; 9999]).expect("it is written")));
        }
        for _ in 0..200 {
            let found = fs::read(&path).unwrap_or_default();
            assert!(found.is_empty() || found == vec![found[0]; 9999], "half of it was seen");
        }
    });
    assert_eq!((names(dir.path()), fs::read(&path).unwrap().len()), (vec!["file".to_owned()], 9999));
}
