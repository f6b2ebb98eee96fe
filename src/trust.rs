//! Who may change what is executed. A cubin is code, and so are a library and the headers that go into a kernel.
//!
//! A file or a folder is trusted when it belongs to this user, to root or to whoever owns the program that runs, and
//! nobody else may write to it. A path is trusted when the file and every folder above it are: whoever may write
//! to a folder can put something else in the place of what is in it, a link too.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

/// What lets other users put something in the place of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "exposure", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Exposure {
    /// It is another user's.
    #[error("belongs to user {owner}, and not to user {user}, who runs this, or to root")]
    Owner {
        /// The user it belongs to.
        owner: u32,
        /// The user of this process.
        user: u32,
    },
    /// Others may write to it.
    #[error("has mode {mode:03o}, which lets other users write to it")]
    Writable {
        /// Its permissions.
        mode: u32,
    },
}

/// Why a path cannot be trusted.
#[derive(Debug)]
pub(crate) enum Distrust {
    /// Others may replace this, which the path leads through.
    Exposed(PathBuf, Exposure),
    /// It could not be looked at.
    Io(PathBuf, io::Error),
}

/// The most links on the way to a file, as the system has it.
const LINKS: usize = 40;

/// The path without links, when others can change neither what it names, nor a folder above, nor a link on the way.
///
/// What is checked is what has to be opened: the path as it was given may lead elsewhere a moment later.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, Distrust> {
    let absolute = std::path::absolute(path).map_err(|error| Distrust::Io(path.to_path_buf(), error))?;
    let mut left: Vec<OsString> = parts(&absolute);
    let (mut real, mut links) = (PathBuf::new(), 0);
    // Every folder is looked at before its entries are: nobody else can change them from then on.
    while let Some(part) = left.pop() {
        if part == ".." {
            real.pop();
            continue;
        }
        let next = real.join(&part);
        let metadata = look_at(&next)?;
        if !metadata.is_symlink() {
            check(&next, &metadata, Part::Above)?;
            real = next;
            continue;
        }
        owner(&metadata).map_err(|exposure| Distrust::Exposed(next.clone(), exposure))?;
        let target = fs::read_link(&next).map_err(|error| Distrust::Io(next.clone(), error))?;
        links += 1;
        if links > LINKS {
            return Err(Distrust::Io(
                path.to_path_buf(),
                io::Error::other("too many links lead to each other"),
            ));
        }
        // One that is absolute begins with the root, and so replaces what is before it.
        left.extend(parts(&target));
    }
    check(&real, &look_at(&real)?, Part::Itself)?;
    Ok(real)
}

/// The parts of a path, the last one first.
fn parts(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev().filter(|part| *part != Component::CurDir);
    parts.map(|part| part.as_os_str().to_owned()).collect()
}

fn look_at(path: &Path) -> Result<Metadata, Distrust> {
    fs::symlink_metadata(path).map_err(|error| Distrust::Io(path.to_path_buf(), error))
}

fn check(path: &Path, metadata: &Metadata, part: Part) -> Result<(), Distrust> {
    exposure(path, metadata, part).map_err(|exposure| Distrust::Exposed(path.to_path_buf(), exposure))
}

/// What a file or a folder is to the path that is checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// What the path names, made with whatever mask its maker had: a group of one user may write to it.
    Itself,
    /// What Tilewright makes for itself: no group may write to it.
    Private,
    /// A folder above it: one for all (`/tmp`) will do, where everybody can remove nothing but what is theirs.
    Above,
}

/// Checks the owner and the mode of one file or folder.
#[cfg(unix)]
pub(crate) fn exposure(path: &Path, metadata: &Metadata, part: Part) -> Result<(), Exposure> {
    use std::os::unix::fs::MetadataExt;
    const GROUP_WRITES: u32 = 0o020;
    const OTHERS_WRITE: u32 = 0o002;
    const STICKY: u32 = 0o1000;
    owner(metadata)?;
    let (mode, user) = (metadata.mode(), rustix::process::geteuid().as_raw());
    let shared = part == Part::Above && mode & STICKY != 0;
    let group = mode & GROUP_WRITES != 0
        && (part == Part::Private || !groups::is_ours_alone(path, metadata.gid(), user));
    match (mode & OTHERS_WRITE != 0 || group) && !shared {
        true => Err(Exposure::Writable { mode: mode & 0o7777 }),
        false => Ok(()),
    }
}

/// Checks the owner alone: a link has no mode.
#[cfg(unix)]
fn owner(metadata: &Metadata) -> Result<(), Exposure> {
    use std::os::unix::fs::MetadataExt;
    let (owner, user) = (metadata.uid(), rustix::process::geteuid().as_raw());
    match owner == user || owner == 0 || owns_the_program(owner) {
        true => Ok(()),
        false => Err(Exposure::Owner { owner, user }),
    }
}

#[cfg(not(unix))]
fn owner(_metadata: &Metadata) -> Result<(), Exposure> {
    Ok(())
}

/// Elsewhere a user's folders are private by inheritance.
#[cfg(not(unix))]
pub(crate) fn exposure(_path: &Path, _metadata: &Metadata, _part: Part) -> Result<(), Exposure> {
    Ok(())
}

/// Whether it is whoever owns the system's programs or the program that runs: they can run what they like in this user's name.
/// The first is nobody known in a user namespace without root, the second often an administrator whose Python all share.
#[cfg(unix)]
fn owns_the_program(owner: u32) -> bool {
    use std::os::unix::fs::MetadataExt;
    let program = std::env::current_exe().ok();
    let mut programs = program.as_deref().into_iter().chain([Path::new("/usr")]);
    programs.any(|path| fs::metadata(path).is_ok_and(|metadata| metadata.uid() == owner))
}

/// Groups of one: where every user has a group of their own, what they make is often the group's to write.
#[cfg(unix)]
mod groups {
    use std::fs;
    use std::path::Path;

    /// Whether the group that may write to a path has no members but this user and root. What cannot be known is not so.
    pub(super) fn is_ours_alone(path: &Path, group: u32, user: u32) -> bool {
        let (Ok(users), Ok(groups)) = (fs::read_to_string("/etc/passwd"), fs::read_to_string("/etc/group"))
        else {
            return false;
        };
        !has_acl(path) && has_no_others(&users, &groups, group, user)
    }

    /// Reads `/etc/passwd` and `/etc/group`.
    pub(super) fn has_no_others(users: &str, groups: &str, group: u32, user: u32) -> bool {
        let number = |field: Option<&str>| field.and_then(|field| field.parse::<u32>().ok());
        let trusted = |uid: u32| uid == user || uid == 0;
        let mut names = Vec::new();
        for line in users.lines() {
            let mut fields = line.split(':');
            let name = fields.next().unwrap_or_default();
            let (uid, gid) = (number(fields.nth(1)), number(fields.next()));
            match uid.is_some_and(trusted) {
                true => names.push(name),
                false if gid == Some(group) => return false,
                false => {}
            }
        }
        let members = groups.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (number(fields.get(2).copied()) == Some(group))
                .then(|| fields.get(3).copied().unwrap_or_default())
        });
        members.is_some_and(|members| {
            members.split(',').filter(|member| !member.is_empty()).all(|member| names.contains(&member))
        })
    }

    /// Whether an access list says more than the mode does: the mode then shows the most that anybody on it may do.
    #[cfg(target_os = "linux")]
    fn has_acl(path: &Path) -> bool {
        let mut value = [0_u8; 1024];
        match rustix::fs::getxattr(path, "system.posix_acl_access", &mut value[..]) {
            Ok(bytes) => bytes > 0,
            Err(error) => error == rustix::io::Errno::RANGE,
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn has_acl(_path: &Path) -> bool {
        false
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode is set");
    }

    #[test]
    fn every_folder_above_counts_and_links_do_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().canonicalize().expect("a path");
        let (folder, link) = (root.join("a/b"), root.join("link"));
        fs::create_dir_all(&folder).expect("folders");
        let file = folder.join("file");
        fs::write(&file, "").expect("a file");
        symlink(&folder, &link).expect("a link");
        let all = [&file, &folder, &root.join("a")];
        let reset = || all.iter().for_each(|path| set_mode(path, 0o755));
        reset();
        assert_eq!(resolve(&link.join("file")).expect("it is ours"), file);
        for path in all {
            set_mode(path, 0o757);
            let found = resolve(&link.join("file")).expect_err("others may write there");
            let Distrust::Exposed(found, Exposure::Writable { mode: 0o757 }) = found else {
                panic!("{found:?}")
            };
            assert_eq!(&found, path);
            // In a folder for all nobody can remove what is another's; the file itself has no such protection.
            set_mode(path, 0o1777);
            assert_eq!(resolve(&link.join("file")).is_ok(), path != &file, "{}", path.display());
            reset();
        }
        assert!(matches!(resolve(&root.join("nothing")), Err(Distrust::Io(..))));
    }

    /// Who may change a link on the way decides which of this user's files is meant.
    #[test]
    fn links_are_followed_as_the_system_does_and_their_folders_count() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().canonicalize().expect("a path");
        let path = |name: &str| root.join(name);
        for name in ["real/lib", "way"] {
            fs::create_dir_all(path(name)).expect("folders");
        }
        fs::write(path("real/lib/file"), "").expect("a file");
        fs::write(path("real/file"), "").expect("a file");
        symlink("../real", path("way/up")).expect("a link");
        symlink(path("way/up/lib"), path("way/absolute")).expect("a link");
        symlink("absolute/file", path("way/file")).expect("a link");
        for name in
            ["way/file", "way/absolute/file", "way/up/lib/./file", "way/up/lib/../file", "way/../real/file"]
        {
            let real = path(name).canonicalize().expect("it leads to a file");
            assert_eq!(resolve(&path(name)).expect(name), real, "{name}");
        }
        symlink("round", path("way/round")).expect("a link");
        assert!(matches!(resolve(&path("way/round")), Err(Distrust::Io(..))));
        set_mode(&path("way"), 0o757);
        let found = resolve(&path("way/file")).expect_err("the links are anybody's");
        assert!(matches!(&found, Distrust::Exposed(found, _) if *found == path("way")), "{found:?}");
        assert!(resolve(&path("real/lib/file")).is_ok());
        set_mode(&path("way"), 0o1777);
        assert!(resolve(&path("way/file")).is_ok(), "our link in a folder for all");
    }

    #[test]
    fn a_group_of_one_is_as_good_as_its_user() {
        let users = "root:x:0:0::/:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\nyou:x:1001:1001::/:/bin/sh\nhim:x:7:50::/:/\n";
        let groups =
            "root:x:0:\nme:x:1000:\nyou:x:1001:me\nours:x:40:me,you\nstaff:x:50:\nlab:x:60:root,me\n";
        for (group, alone) in
            [(1000, true), (1001, false), (40, false), (50, false), (60, true), (0, true), (99, false)]
        {
            assert_eq!(groups::has_no_others(users, groups, group, 1000), alone, "group {group}");
        }
        assert!(!groups::has_no_others("", "me:x:1000:me\n", 1000, 1000), "a name that cannot be looked up");
        assert!(!groups::has_no_others("damaged\n:::\n", "", 1000, 1000));
    }
}
