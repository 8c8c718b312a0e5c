//! How full the writable folders are: nothing below the kubelet's slow eviction bounds an `emptyDir` on most nodes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One walk looks at most at so many entries; more are a disk limit of their own.
const ENTRIES_MAX: usize = 500_000;
/// One walk takes at most so long.
const TIME_MAX: Duration = Duration::from_millis(500);
/// Between two walks, at least.
const PAUSE_MIN: Duration = Duration::from_millis(250);

/// Watches folders against their limits.
pub struct DiskWatch {
    folders: Vec<(PathBuf, u64)>,
    next: Instant,
}

impl DiskWatch {
    /// Watches each folder for its bytes.
    pub fn new(folders: Vec<(PathBuf, u64)>) -> Self {
        Self {
            folders,
            next: Instant::now() + PAUSE_MIN,
        }
    }

    /// Walks, if it is time; says which folder is over its limit. A walk never takes more than a twentieth of the time.
    pub fn check(&mut self) -> Option<String> {
        let begun = Instant::now();
        if begun < self.next {
            return None;
        }
        let over = self.folders.iter().find_map(|(folder, limit)| {
            let used = bytes_in(folder, begun + TIME_MAX);
            (used > *limit).then(|| {
                format!(
                    "{} holds {used} bytes, at most {limit} are allowed",
                    folder.display()
                )
            })
        });
        self.next = Instant::now() + (begun.elapsed() * 20).max(PAUSE_MIN);
        over
    }
}

/// Bytes on disk below a folder, on its own file system, without following links.
fn bytes_in(folder: &Path, until: Instant) -> u64 {
    let Ok(root) = std::fs::symlink_metadata(folder) else {
        return 0;
    };
    let (mut bytes, mut entries, mut pending) = (0, 0, vec![folder.to_path_buf()]);
    while let Some(next) = pending.pop() {
        let Ok(listing) = std::fs::read_dir(&next) else {
            continue;
        };
        for entry in listing.flatten() {
            entries += 1;
            if entries > ENTRIES_MAX || entries % 1024 == 0 && Instant::now() > until {
                return bytes;
            }
            // `DirEntry::metadata` does not follow links.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != root.dev() {
                continue;
            }
            bytes += meta.blocks() * 512;
            if meta.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    bytes
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
        let bytes = bytes_in(&folder, Instant::now() + Duration::from_secs(5));
        std::fs::remove_dir_all(&folder).unwrap();
        assert!((1 << 20..2 << 20).contains(&bytes), "{bytes}");
    }
}
