//! How full the writable folders are: nothing below the kubelet's slow eviction bounds an `emptyDir` on most nodes.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::stat;

/// So many entries at most may lie below one folder: they use the host's inodes, and looking at them uses time.
const ENTRIES_MAX: usize = 500_000;
/// One step of a walk takes about so long at most; the next step goes on from there.
const STEP_MAX: Duration = Duration::from_millis(100);
/// Between two steps, at least.
const PAUSE_MIN: Duration = Duration::from_millis(250);

/// Watches folders against their limits.
pub struct DiskWatch {
    walks: Vec<Walk>,
    next: Instant,
}

impl DiskWatch {
    /// Watches each folder for its bytes.
    pub fn new(folders: Vec<(PathBuf, u64)>) -> Self {
        Self {
            walks: folders
                .into_iter()
                .map(|(folder, limit)| Walk::new(folder, limit))
                .collect(),
            next: Instant::now() + PAUSE_MIN,
        }
    }

    /// Looks on, if it is time; says which folder is over its limit. Never takes more than a twentieth of the time.
    pub fn check(&mut self) -> Option<String> {
        let begun = Instant::now();
        if begun < self.next {
            return None;
        }
        let held = held();
        for walk in &mut self.walks {
            let below = held.values().filter(|file| file.path.starts_with(&walk.folder));
            walk.held = below.map(|file| file.bytes).sum();
        }
        let over = self
            .walks
            .iter_mut()
            .find_map(|walk| walk.step(Instant::now() + STEP_MAX));
        self.next = Instant::now() + (begun.elapsed() * 20).max(PAUSE_MIN);
        over
    }

    /// Bytes in all folders, by the last whole walk of each.
    pub fn used(&self) -> Option<u64> {
        self.walks.iter().map(|walk| Some(walk.found? + walk.held)).sum()
    }
}

/// A file without a name that a process holds open.
struct Held {
    /// Where it was, as the kernel tells it.
    path: PathBuf,
    bytes: u64,
}

/// Files that have no name any more, by device and number: no walk finds them, and they use room until they are closed.
fn held() -> BTreeMap<(u64, u64), Held> {
    let mut found = BTreeMap::new();
    for process in stat::processes().filter(|process| *process != std::process::id()) {
        let descriptors = std::fs::read_dir(format!("/proc/{process}/fd"));
        for descriptor in descriptors.into_iter().flatten().flatten() {
            let descriptor = descriptor.path();
            // Follows the kernel's own link to the file, whatever became of its name.
            let meta = std::fs::metadata(&descriptor)
                .ok()
                .filter(std::fs::Metadata::is_file);
            let (Some(meta), Ok(path)) = (meta, std::fs::read_link(&descriptor)) else {
                continue;
            };
            // gVisor tells the last name only by the path.
            let is_nameless =
                meta.nlink() == 0 || path.as_os_str().as_encoded_bytes().ends_with(b" (deleted)");
            if is_nameless {
                let bytes = meta.blocks() * 512;
                found.insert((meta.dev(), meta.ino()), Held { path, bytes });
            }
        }
    }
    found
}

/// A walk through one folder, on its own file system and without following links, that begins anew when it is done.
struct Walk {
    folder: PathBuf,
    limit: u64,
    bytes: u64,
    /// Bytes of files without a name.
    held: u64,
    entries: usize,
    pending: Vec<PathBuf>,
    /// Bytes that the last whole walk found.
    found: Option<u64>,
}

impl Walk {
    fn new(folder: PathBuf, limit: u64) -> Self {
        let pending = vec![folder.clone()];
        Self {
            folder,
            limit,
            bytes: 0,
            held: 0,
            entries: 0,
            pending,
            found: None,
        }
    }

    /// Goes on until the walk is done or it is this late. What was found so far already counts.
    fn step(&mut self, until: Instant) -> Option<String> {
        let device = std::fs::symlink_metadata(&self.folder).ok()?.dev();
        while let Some(next) = self.pending.pop() {
            // A folder that can't be read belongs to the command, which may make it readable later.
            for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
                self.entries += 1;
                // `DirEntry::metadata` does not follow links.
                let Ok(meta) = entry.metadata() else { continue };
                if meta.dev() != device {
                    continue;
                }
                self.bytes += meta.blocks() * 512;
                if meta.is_dir() {
                    self.pending.push(entry.path());
                }
                if self.is_over() {
                    return Some(self.begin_anew());
                }
            }
            if Instant::now() > until {
                return None;
            }
        }
        if self.is_over() {
            return Some(self.begin_anew());
        }
        let found = self.bytes;
        self.begin_anew();
        self.found = Some(found);
        None
    }

    fn is_over(&self) -> bool {
        self.bytes + self.held > self.limit || self.entries > ENTRIES_MAX
    }

    /// Forgets what was found, and says it.
    fn begin_anew(&mut self) -> String {
        let found = format!(
            "{} holds {} bytes in {} entries and in files without a name; at most {} bytes and {ENTRIES_MAX} entries are allowed",
            self.folder.display(),
            self.bytes + self.held,
            self.entries,
            self.limit
        );
        *self = Self {
            held: self.held,
            ..Self::new(std::mem::take(&mut self.folder), self.limit)
        };
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn nested_files_count_and_links_do_not_lead_out() {
        let folder = std::env::temp_dir().join(format!("disk-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("a/b")).unwrap();
        std::fs::write(folder.join("a/b/file"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("/usr", folder.join("out")).unwrap();
        let later = || Instant::now() + Duration::from_secs(5);
        let fits = Walk::new(folder.clone(), 2 << 20).step(later());
        let over = Walk::new(folder.clone(), 1 << 20).step(later());
        // A walk that has no time goes on where it stopped.
        let mut hurried = Walk::new(folder.clone(), 1 << 20);
        let steps: Vec<bool> = (0..3).map(|_| hurried.step(Instant::now()).is_some()).collect();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(fits, None);
        assert!(over.unwrap().contains("holds 10"));
        assert_eq!(steps, [false, false, true]);
    }

    #[test]
    fn a_file_without_a_name_counts_as_long_as_somebody_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let script = "exec 3>file 4<file; rm file; head -c 1048576 /dev/zero >&3; echo written; read end";
        let mut holder = Command::new("sh")
            .args(["-c", script])
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut said)
            .unwrap();
        let watch = |limit| {
            let mut watch = DiskWatch::new(vec![(folder.path().to_owned(), limit)]);
            watch.next = Instant::now();
            let over = watch.check();
            (over, watch.used())
        };
        let (fits, used) = watch(2 << 20);
        assert_eq!(fits, None);
        // It has two descriptors, and is one file.
        assert_eq!(used.unwrap() >> 20, 1);
        assert!(watch(1 << 19).0.unwrap().contains("holds 10"));
        drop(holder.stdin.take());
        holder.wait().unwrap();
        assert_eq!(watch(1 << 19).0, None);
    }
}
