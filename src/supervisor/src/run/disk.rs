//! How full the writable folders are: nothing below the kubelet's slow eviction bounds an `emptyDir` on most nodes.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

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
        let over = self
            .walks
            .iter_mut()
            .find_map(|walk| walk.step(Instant::now() + STEP_MAX));
        self.next = Instant::now() + (begun.elapsed() * 20).max(PAUSE_MIN);
        over
    }

    /// Bytes in all folders, by the last whole walk of each.
    pub fn used(&self) -> Option<u64> {
        self.walks.iter().map(|walk| walk.found).sum()
    }
}

/// A walk through one folder, on its own file system and without following links, that begins anew when it is done.
struct Walk {
    folder: PathBuf,
    limit: u64,
    bytes: u64,
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
                if self.bytes > self.limit || self.entries > ENTRIES_MAX {
                    return Some(self.begin_anew());
                }
            }
            if Instant::now() > until {
                return None;
            }
        }
        let found = self.bytes;
        self.begin_anew();
        self.found = Some(found);
        None
    }

    /// Forgets what was found, and says it.
    fn begin_anew(&mut self) -> String {
        let found = format!(
            "{} holds {} bytes in {} entries; at most {} bytes and {ENTRIES_MAX} entries are allowed",
            self.folder.display(),
            self.bytes,
            self.entries,
            self.limit
        );
        *self = Self::new(std::mem::take(&mut self.folder), self.limit);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
