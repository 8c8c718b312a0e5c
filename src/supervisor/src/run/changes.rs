//! What a run made of its workspace: a picture of all files before the command starts, compared with what is there after
//! everything has been killed.
//!
//! Folders are walked by descriptor: no link is followed, no mount entered, and nothing but regular files is opened. What a
//! command took from itself the right to read is read all the same: it is ours as well.
//! Everything is bounded, and what was not looked at is said.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agentsandbox_action_log::chain::hex;
use agentsandbox_api::action::{Action, Change};
use sha2::{Digest, Sha256};

/// Bounds of one walk and of what it tells.
#[derive(Clone, Copy)]
struct Bounds {
    /// Entries looked at.
    entries: usize,
    /// Folders in one another.
    depth: usize,
    /// Time of a walk, reading included.
    time: Duration,
    /// Bytes read for their hashes.
    hashed: u64,
    /// Files with a record of their own.
    listed: u64,
}

const BOUNDS: Bounds = Bounds {
    entries: 20_000,
    depth: 64,
    time: Duration::from_secs(2),
    hashed: 256 << 20,
    listed: 1_000,
};

/// By what a file is known to be the same: nobody but the kernel sets the time of its last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Print {
    inode: u64,
    size: u64,
    mode: u32,
    changed: (i64, i64),
}

impl Print {
    fn of(meta: &Metadata) -> Self {
        Self {
            inode: meta.ino(),
            size: meta.size(),
            mode: meta.mode() & 0o7777,
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// The workspace before the run.
pub struct Before {
    folder: PathBuf,
    files: BTreeMap<PathBuf, Print>,
    /// Why not everything was seen, if so.
    incomplete: Option<String>,
    /// When that was, in seconds since 1970.
    taken: i64,
    bounds: Bounds,
}

impl Before {
    /// Looks at a folder, which may be large: a claim keeps what earlier runs left.
    pub fn take(folder: &str) -> Self {
        Self::within(folder.into(), BOUNDS)
    }

    fn within(folder: PathBuf, bounds: Bounds) -> Self {
        let mut files = BTreeMap::new();
        let mut walk = Walk::new(bounds);
        walk.folder(&folder, &mut |path, meta, _| {
            files.insert(path, Print::of(meta));
        });
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            folder,
            files,
            incomplete: walk.incomplete.map(|why| format!("before the run: {why}")),
            taken: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            bounds,
        }
    }

    /// What has become of it: a record for each file, and at the end one that counts them all.
    pub fn compare(mut self) -> Vec<Action> {
        let (mut changes, mut files) = (Vec::new(), 0);
        let (mut hashed, listed) = (self.bounds.hashed, self.bounds.listed);
        let unseen_before = self.incomplete.is_some();
        let mut walk = Walk::new(self.bounds);
        let until = walk.until;
        walk.folder(&self.folder, &mut |path, meta, open| {
            let change = match self.files.remove(&path) {
                Some(before) if before == Print::of(meta) => return,
                Some(_) => Change::Modified,
                // It was there and not looked at.
                None if unseen_before && meta.ctime() < self.taken => return,
                None => Change::Created,
            };
            files += 1;
            if files <= listed {
                let hash = (meta.size() <= hashed)
                    .then(|| open().and_then(|read| hash(&read.file, meta.size(), until)));
                let sha256 = hash.and_then(Result::ok).flatten();
                hashed -= if sha256.is_some() { meta.size() } else { 0 };
                changes.push(Action::Change {
                    change,
                    path: path.to_string_lossy().into_owned(),
                    size: Some(meta.size()),
                    mode: Some(meta.mode() & 0o7777),
                    sha256,
                });
            }
        });
        // What was not met may only not have been reached.
        if walk.incomplete.is_none() {
            for path in self.files.into_keys() {
                files += 1;
                if files <= listed {
                    changes.push(Action::Change {
                        change: Change::Deleted,
                        path: path.to_string_lossy().into_owned(),
                        size: None,
                        mode: None,
                        sha256: None,
                    });
                }
            }
        }
        changes.push(Action::Changes {
            files,
            unlisted: files.saturating_sub(listed),
            incomplete: walk.incomplete.or(self.incomplete),
        });
        changes
    }
}

/// SHA-256 of a file's content; `None` if it is not what its size says, or takes too long.
fn hash(file: &File, size: u64, until: Instant) -> io::Result<Option<String>> {
    let mut hash = Sha256::new();
    let mut buffer = [0; 16 << 10];
    let mut read = 0;
    let mut content = file.take(size.saturating_add(1));
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok((read == size).then(|| hex(&hash.finalize()))),
            length => {
                read += length as u64;
                hash.update(&buffer[..length]);
            }
        }
        if Instant::now() > until {
            return Ok(None);
        }
    }
}

/// One walk through a folder and what is below it.
struct Walk {
    bounds: Bounds,
    device: Option<u64>,
    entries: usize,
    until: Instant,
    incomplete: Option<String>,
}

/// Gets the path of a regular file relative to the folder, what is known of it, and a way to open it.
type Visit<'a> = dyn FnMut(PathBuf, &Metadata, &dyn Fn() -> io::Result<Opened>) + 'a;

impl Walk {
    fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            device: None,
            entries: 0,
            until: Instant::now() + bounds.time,
            incomplete: None,
        }
    }

    fn folder(&mut self, folder: &Path, visit: &mut Visit<'_>) {
        match open(folder, libc::O_DIRECTORY) {
            Ok(folder) => self.below(&folder.file, Path::new(""), 0, visit),
            Err(error) => self.incomplete = Some(format!("{}: {error}", folder.display())),
        }
    }

    fn below(&mut self, folder: &File, name: &Path, depth: usize, visit: &mut Visit<'_>) {
        if depth > self.bounds.depth {
            return self.stop(format!("folders more than {} deep", self.bounds.depth));
        }
        let Ok(device) = folder.metadata().map(|meta| meta.dev()) else {
            return;
        };
        if *self.device.get_or_insert(device) != device {
            return;
        }
        // The name under which a descriptor can be walked and what is in it be opened, whatever becomes of its path.
        let here = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&here).into_iter().flatten().flatten() {
            self.entries += 1;
            if self.entries > self.bounds.entries {
                self.stop(format!("more than {} entries", self.bounds.entries));
                break;
            }
            names.push(entry.file_name());
        }
        names.sort_unstable();
        for entry in names {
            if Instant::now() > self.until {
                return self.stop(format!("more than {} s", self.bounds.time.as_secs()));
            }
            self.entry(&here, name, &entry, depth, visit);
        }
    }

    fn entry(&mut self, here: &Path, name: &Path, entry: &OsStr, depth: usize, visit: &mut Visit<'_>) {
        let (path, name) = (here.join(entry), name.join(entry));
        let Ok(meta) = path.symlink_metadata() else { return };
        if meta.is_file() {
            visit(name, &meta, &|| open(&path, libc::O_NONBLOCK));
        } else if meta.is_dir() {
            match open(&path, libc::O_DIRECTORY) {
                Ok(folder) => self.below(&folder.file, &name, depth + 1, visit),
                Err(_) => self.stop(format!("{} can't be read", name.display())),
            }
        }
    }

    /// The first reason counts.
    fn stop(&mut self, why: String) {
        self.incomplete.get_or_insert(why);
    }
}

/// Something that was opened for reading, with the permissions that it had if these forbade it. It gets them back.
struct Opened {
    file: File,
    forbidding: Option<Permissions>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(permissions) = self.forbidding.take() {
            let _ = self.file.set_permissions(permissions);
        }
    }
}

fn reading(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Opens for reading what is itself no link.
fn open(path: &Path, flags: i32) -> io::Result<Opened> {
    match reading(path, flags | libc::O_NOFOLLOW) {
        // A folder may be listed and what is in it not be reached.
        Ok(file) if flags & libc::O_DIRECTORY == 0 || file.metadata()?.mode() & 0o100 != 0 => Ok(Opened {
            file,
            forbidding: None,
        }),
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        _ => open_forbidden(path, flags),
    }
}

/// Opens what its permissions forbid to read, by others for as long as it is open.
fn open_forbidden(path: &Path, flags: i32) -> io::Result<Opened> {
    let found = reading(path, libc::O_PATH | libc::O_NOFOLLOW)?;
    let permissions = found.metadata()?.permissions();
    // Leads to just this one, whatever has its name.
    let link = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    std::fs::set_permissions(&link, Permissions::from_mode(permissions.mode() | 0o500))?;
    let opened = reading(&link, flags);
    match opened {
        Ok(file) => Ok(Opened {
            file,
            forbidding: Some(permissions),
        }),
        Err(error) => {
            let _ = std::fs::set_permissions(&link, permissions);
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn changes(actions: &[Action]) -> Vec<(Change, &str, Option<u64>)> {
        actions
            .iter()
            .filter_map(|action| match action {
                Action::Change {
                    change, path, size, ..
                } => Some((*change, path.as_str(), *size)),
                _ => None,
            })
            .collect()
    }

    fn summary(actions: &[Action]) -> (u64, u64, Option<&str>) {
        match actions.last() {
            Some(Action::Changes {
                files,
                unlisted,
                incomplete,
            }) => (*files, *unlisted, incomplete.as_deref()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn new_changed_and_deleted_files_are_told_and_links_lead_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        for name in ["same", "a/changed", "a/b/gone", "mode"] {
            fs::write(at(name), "1").unwrap();
        }
        let before = Before::take(folder.path().to_str().unwrap());
        fs::write(at("a/changed"), "2").unwrap();
        fs::remove_file(at("a/b/gone")).unwrap();
        fs::set_permissions(at("mode"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(at("a/new"), "abc").unwrap();
        symlink("/etc/passwd", at("link")).unwrap();
        symlink("/etc", at("folder-link")).unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(at("pipe"))
            .status()
            .unwrap();
        assert!(made.success());
        let found = before.compare();
        assert_eq!(
            changes(&found),
            [
                (Change::Modified, "a/changed", Some(1)),
                (Change::Created, "a/new", Some(3)),
                (Change::Modified, "mode", Some(1)),
                (Change::Deleted, "a/b/gone", None),
            ]
        );
        assert_eq!(summary(&found), (4, 0, None));
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(
            found
                .iter()
                .any(|action| matches!(action, Action::Change { sha256: Some(hash), .. } if hash == abc))
        );
    }

    #[test]
    fn what_the_command_forbade_itself_to_read_is_told_as_well() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mode = |name: &str| fs::metadata(at(name)).unwrap().mode() & 0o7777;
        let forbid = |name: &str, mode| fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
        fs::write(at("gone"), "1").unwrap();
        let before = Before::take(folder.path().to_str().unwrap());
        fs::remove_file(at("gone")).unwrap();
        for (name, forbidding) in [("closed", 0), ("listed", 0o400), ("entered", 0o100)] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("file"), "abc").unwrap();
            forbid(&format!("{name}/file"), 0);
            forbid(name, forbidding);
        }
        let found = before.compare();
        assert_eq!(
            changes(&found),
            [
                (Change::Created, "closed/file", Some(3)),
                (Change::Created, "entered/file", Some(3)),
                (Change::Created, "listed/file", Some(3)),
                (Change::Deleted, "gone", None),
            ]
        );
        assert_eq!(summary(&found), (4, 0, None));
        let hashed = |action: &&Action| {
            matches!(
                action,
                Action::Change {
                    sha256: Some(_),
                    mode: Some(0),
                    ..
                }
            )
        };
        assert_eq!(found.iter().filter(hashed).count(), 3);
        assert_eq!(
            (mode("closed"), mode("listed"), mode("entered")),
            (0, 0o400, 0o100)
        );
        forbid("closed", 0o700);
        assert_eq!(mode("closed/file"), 0);
    }

    #[test]
    fn every_bound_is_held_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = || folder.path().to_owned();
        let before = |bounds| Before::within(path(), bounds);
        let (listed, hashed) = (
            before(Bounds { listed: 2, ..BOUNDS }),
            before(Bounds { hashed: 5, ..BOUNDS }),
        );
        let (entries, depth, time) = (
            before(Bounds { entries: 3, ..BOUNDS }),
            before(Bounds { depth: 0, ..BOUNDS }),
            before(Bounds {
                time: Duration::ZERO,
                ..BOUNDS
            }),
        );
        fs::create_dir(folder.path().join("folder")).unwrap();
        for name in ["one", "two", "three", "folder/four"] {
            fs::write(folder.path().join(name), "four").unwrap();
        }
        assert_eq!(summary(&listed.compare()), (4, 2, None));
        let found = hashed.compare();
        let with_hash = |action: &&Action| matches!(action, Action::Change { sha256: Some(_), .. });
        assert_eq!(found.iter().filter(with_hash).count(), 1);
        assert_eq!(summary(&entries.compare()).2, Some("more than 3 entries"));
        assert_eq!(summary(&depth.compare()).2, Some("folders more than 0 deep"));
        assert_eq!(summary(&time.compare()).2, Some("more than 0 s"));
    }

    #[test]
    fn what_was_there_before_a_walk_that_stopped_is_not_new() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["one", "two", "three"] {
            fs::write(folder.path().join(name), "old").unwrap();
        }
        let mut before = Before::within(folder.path().to_owned(), Bounds { entries: 1, ..BOUNDS });
        before.taken += 5;
        before.bounds = BOUNDS;
        let found = before.compare();
        assert_eq!(
            summary(&found),
            (0, 0, Some("before the run: more than 1 entries"))
        );
    }
}
