//! What a user names as an output: one way to write all of it, whatever has the name.
//!
//! | what has the name | what is done |
//! |---|---|
//! | nothing, a file | the content is written beside it and takes the name with one rename: it is there whole or not at all |
//! | a symbolic link | the same with what the link names; the link stays |
//! | a pipe, a device | the content is written into it |
//! | this process's standard output (`/dev/stdout`) | the content goes where other output of the process goes, in its turn |
//! | a file whose folder cannot be written to, or whose owner a new file would not have | it is overwritten where it lies |
//! | a folder, a socket | an error |
//! | a symbolic link of another user's in a folder for all, such as `/tmp` | an error, as Linux has it |
//!
//! A file keeps its permissions and its owner; a new one has those that the user's umask leaves. Other names of a file (hard
//! links) keep the old content. A process that is killed while it writes may leave a `.tilewright-….partial`, which the next
//! one that writes to the folder removes.
//!
//! ```
//! # fn main() -> std::io::Result<()> {
//! # let folder = tempfile::tempdir()?;
//! use tilewright::output::Output;
//!
//! let path = folder.path().join("result");
//! // A place that cannot be written to is found out before the work is done.
//! let output = Output::open(&path)?;
//! output.write(b"content")?;
//! assert_eq!(std::fs::read(&path)?, b"content");
//! # Ok(())
//! # }
//! ```

mod partial;
#[cfg(unix)]
mod pipe;
mod printable;

pub(crate) use printable::lossy;
pub use printable::{printable, printable_json, printable_lines, shown};

use partial::Partial;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// As many links follow each other at most.
const LINKS: usize = 40;

/// A place to write to, known to take something.
#[derive(Debug)]
pub struct Output {
    /// As the user names it.
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    StandardOutput,
    /// A pipe or a device.
    Stream(File),
    /// A file that cannot be replaced.
    Overwrite(File),
    /// A file, or none yet. It is open if it is there.
    Beside {
        target: PathBuf,
        file: Option<File>,
    },
}

impl Output {
    /// Standard output, which messages call `-`.
    pub fn standard() -> Self {
        Output { path: PathBuf::from("-"), place: Place::StandardOutput }
    }

    /// Whether `path` leads to this process's standard output, by way of links or not: `/dev/stdout`, `/proc/self/fd/1`. What
    /// else is written to standard output would lie over what is written to such a place by itself.
    pub fn is_standard(path: &Path) -> bool {
        follow(path).is_ok_and(|target| is_standard_output(&target))
    }

    /// Looks at what has the name `path` and makes sure that it can be written to. Nothing is changed yet. A pipe has ten
    /// seconds to get a reader.
    ///
    /// # Errors
    /// A folder or a socket, links in a circle, a link of another user's in a folder for all, a pipe that nobody reads, a
    /// place that this user may not write to.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Output { path: path.to_owned(), place: place(path)? })
    }

    /// The place as the user named it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes everything.
    ///
    /// # Errors
    /// What the system says. A file that is replaced is then as it was; one that is overwritten where it lies is not.
    pub fn write(self, bytes: &[u8]) -> io::Result<()> {
        match self.place {
            Place::StandardOutput => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes).and_then(|()| stdout.flush())
            }
            Place::Stream(mut file) => file.write_all(bytes),
            Place::Overwrite(file) => overwrite(file, bytes),
            Place::Beside { target, file } => match fs::symlink_metadata(&target) {
                // It was made something else meanwhile.
                Ok(found) if !found.is_file() => Output::open(&self.path)?.write(bytes),
                found => replace(&target, found.ok().as_ref(), file, bytes),
            },
        }
    }
}

/// What is to be done with what has the name.
fn place(path: &Path) -> io::Result<Place> {
    if path.as_os_str().is_empty() {
        return Err(refused(ErrorKind::InvalidInput, "the name is empty; name a file"));
    }
    let target = follow(path)?;
    if is_standard_output(&target) {
        return Ok(Place::StandardOutput);
    }
    match fs::metadata(&target) {
        Ok(found) if found.is_dir() => Err(refused(ErrorKind::IsADirectory, "it is a folder")),
        Ok(found) if found.is_file() => existing(target),
        Ok(found) => stream(&target, &found),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if target.as_os_str().as_encoded_bytes().ends_with(b"/") || target.file_name().is_none() {
                return Err(refused(ErrorKind::IsADirectory, "it is named as a folder is"));
            }
            let folder = folder_of(&target);
            Partial::probe(folder)?;
            Ok(Place::Beside { target, file: None })
        }
        Err(error) => Err(error),
    }
}

/// Follows links to what they name, which need not be there.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match fs::symlink_metadata(&path) {
            // What these links say is no path: the system follows them.
            Ok(found) if found.is_symlink() && !is_descriptor(&path) => {
                check_link(&path, &found)?;
                path = folder_of(&path).join(fs::read_link(&path)?);
            }
            Ok(_) => return Ok(path),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(refused(ErrorKind::InvalidInput, "it is a symbolic link that leads in a circle"))
}

/// Refuses a link that somebody put into a folder for all: what this user writes would go where that one wants it. It is the
/// rule of `fs.protected_symlinks`, which does not see the links that are followed here.
#[cfg(unix)]
fn check_link(link: &Path, found: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    const STICKY_FOR_ALL: u32 = 0o1002;
    let folder = fs::metadata(folder_of(link))?;
    let ours = rustix::process::geteuid().as_raw();
    if folder.mode() & STICKY_FOR_ALL != STICKY_FOR_ALL || [ours, folder.uid()].contains(&found.uid()) {
        return Ok(());
    }
    let why = format!(
        "{} is a symbolic link of user {} in a folder that everybody may write to, and is not followed: it must belong to you or \
         to the folder's owner",
        shown(link),
        found.uid()
    );
    Err(io::Error::new(ErrorKind::PermissionDenied, why))
}

#[cfg(not(unix))]
fn check_link(_link: &Path, _found: &Metadata) -> io::Result<()> {
    Ok(())
}

/// Whether a link stands for an open file: `/dev/fd/3`, `/proc/self/fd/3`.
fn is_descriptor(link: &Path) -> bool {
    folder_of(link).canonicalize().is_ok_and(|folder| folder.starts_with("/proc"))
}

/// Whether that file is what this process has for standard output.
fn is_standard_output(link: &Path) -> bool {
    let is_own = |folder: &Path| {
        folder.ends_with("fd")
            && Path::new("/proc/self").canonicalize().is_ok_and(|own| folder.starts_with(own))
    };
    link.file_name().is_some_and(|name| name == "1")
        && folder_of(link).canonicalize().is_ok_and(|folder| is_own(&folder))
}

fn existing(target: PathBuf) -> io::Result<Place> {
    // A file that may not be written to is not replaced either, though its folder would allow that.
    let file = match OpenOptions::new().write(true).open(&target) {
        Ok(file) => Some(file),
        // A program that runs can be replaced.
        Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => None,
        Err(error) => return Err(error),
    };
    match (Partial::probe(folder_of(&target)), file) {
        (_, Some(file)) if is_descriptor(&target) => Ok(Place::Overwrite(file)),
        (Ok(()), file) => Ok(Place::Beside { target, file }),
        (Err(error), Some(file)) if is_refusal(&error) => Ok(Place::Overwrite(file)),
        (Err(error), _) => Err(error),
    }
}

#[cfg(unix)]
fn stream(target: &Path, found: &Metadata) -> io::Result<Place> {
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    let kind = found.file_type();
    if kind.is_socket() {
        return Err(refused(
            ErrorKind::InvalidInput,
            "it is a socket; a file, a pipe or a device was needed",
        ));
    }
    if kind.is_fifo() {
        return pipe::open(target).map(Place::Stream);
    }
    // A terminal must not become this process's.
    let flags = rustix::fs::OFlags::NOCTTY.bits() as i32;
    OpenOptions::new().write(true).custom_flags(flags).open(target).map(Place::Stream)
}

#[cfg(not(unix))]
fn stream(target: &Path, _found: &Metadata) -> io::Result<Place> {
    OpenOptions::new().write(true).open(target).map(Place::Stream)
}

/// Gives the file `target` a new content by way of one beside it. `found` is what has the name now, and `file` the same,
/// open.
fn replace(target: &Path, found: Option<&Metadata>, file: Option<File>, bytes: &[u8]) -> io::Result<()> {
    let write = || {
        let mut partial = Partial::create(folder_of(target))?;
        if let Some(found) = found {
            partial.take_after(found)?;
        }
        partial.publish(bytes, target)
    };
    match (write(), file) {
        // Its owner cannot be kept; or others' files in this folder may not be replaced (`/tmp`); or it is mounted by itself.
        (Err(error), Some(file)) if is_refusal(&error) => overwrite(file, bytes),
        (result, _) => result,
    }
}

fn overwrite(mut file: File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)?;
    file.sync_all()
}

/// Whether this may not be done here, although it might be done otherwise.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::ResourceBusy
    )
}

fn refused(kind: ErrorKind, why: &'static str) -> io::Error {
    io::Error::new(kind, why)
}

/// The folder that a path's last part lies in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
