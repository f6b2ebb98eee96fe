//! Who may change what is executed. A cubin is code, and so are a library and the headers that go into a kernel.
//!
//! A file or a folder is trusted when it belongs to this user, to root or to whoever owns the system's own programs,
//! and nobody else may write to it. A path is trusted when the file and every folder above it are: whoever may write
//! to a folder can put something else in the place of what is in it.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// What lets other users put something in the place of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "exposure", rename_all = "snake_case")]
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

/// The path without links, when others can change neither what it names nor a folder above.
///
/// What is checked is what has to be opened: a link on the way may lead elsewhere a moment later.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, Distrust> {
    let io = |path: &Path, error| Distrust::Io(path.to_path_buf(), error);
    let real = path.canonicalize().map_err(|error| io(path, error))?;
    for (place, part) in real.ancestors().enumerate() {
        let metadata = fs::symlink_metadata(part).map_err(|error| io(part, error))?;
        let part_of = if place == 0 { Part::Itself } else { Part::Above };
        exposure(part, &metadata, part_of)
            .map_err(|exposure| Distrust::Exposed(part.to_path_buf(), exposure))?;
    }
    Ok(real)
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
    let (owner, user) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != user && owner != 0 && system_owner() != Some(owner) {
        return Err(Exposure::Owner { owner, user });
    }
    let mode = metadata.mode();
    let shared = part == Part::Above && mode & STICKY != 0;
    let group = mode & GROUP_WRITES != 0
        && (part == Part::Private || !groups::is_ours_alone(path, metadata.gid(), user));
    match (mode & OTHERS_WRITE != 0 || group) && !shared {
        true => Err(Exposure::Writable { mode: mode & 0o7777 }),
        false => Ok(()),
    }
}

/// Elsewhere a user's folders are private by inheritance.
#[cfg(not(unix))]
pub(crate) fn exposure(_path: &Path, _metadata: &Metadata, _part: Part) -> Result<(), Exposure> {
    Ok(())
}

/// Who owns the system's programs: in a user namespace that does not know root it is the number that stands for strangers.
#[cfg(unix)]
fn system_owner() -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/usr").ok().map(|metadata| metadata.uid())
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
