//! Archives out of and into a sandbox.
//!
//! An archive from a sandbox is hostile until proven otherwise. [`unpack`] makes regular files and folders, and nothing
//! else: links, devices and pipes are left out and counted. Paths that are absolute or hold `..` end it. It writes
//! through no symbolic link, not even one that was in the target before. Bytes, entries, depth and names are bounded
//! before anything is kept of them.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest path of an entry, in bytes.
const PATH_MAX: usize = 4096;
/// Longest extension record that is read, in bytes.
const EXTENSION_MAX: u64 = 64 << 10;
/// Deepest folder.
const DEPTH_MAX: usize = 64;

/// Ceilings of one transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most bytes of all files together.
    pub bytes: u64,
    /// Most entries.
    pub entries: u64,
    /// Longest time in seconds, after which the sandbox ends the transfer.
    pub seconds: u32,
}

impl Default for Bounds {
    /// 1 GiB in 100,000 entries, within 10 minutes.
    fn default() -> Self {
        Self {
            bytes: 1 << 30,
            entries: 100_000,
            seconds: 600,
        }
    }
}

/// What a transfer came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Entries that are no regular files or folders, and were left out.
    pub skipped: u64,
    /// The first of them: text of the sandbox, not to be trusted.
    pub first_skipped: Option<String>,
}

/// Why a transfer ended early. What was written before stays.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A path would lead out of the target, or can't be a path.
    #[error("the archive holds the path {0:?}, which is absolute, leads upwards, is too long or too deep")]
    Path(String),
    /// The archive is longer than allowed.
    #[error("the archive holds more than {0} bytes")]
    Bytes(u64),
    /// The archive has more entries than allowed.
    #[error("the archive holds more than {0} entries")]
    Entries(u64),
    /// A file would be written through a symbolic link, or a folder lies where a file is to be.
    #[error("{} is in the way: a link, or a file where a folder is needed", .0.display())]
    InTheWay(PathBuf),
    /// The archive is none, ends early, or uses what is not supported.
    #[error("the archive can't be read: {0}")]
    Malformed(String),
    /// What was asked for is itself a link or a device.
    #[error("{0:?} is no regular file or folder")]
    Kind(String),
    /// The archive has nothing in it.
    #[error("there is nothing at that path")]
    Empty,
    /// Reading or writing failed here.
    #[error("{}: {error}", path.display())]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
}

impl ArchiveError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |error| Self::Io { path, error }
    }

    fn malformed(error: &io::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// Unpacks an archive that holds one file or folder: its first entry names it, and the others lie below. It becomes
/// `target`, whatever it was called. If it is itself neither, that is an error.
pub fn unpack(archive: impl Read, target: &Path, bounds: Bounds) -> Result<Transferred, ArchiveError> {
    // Headers and paddings are no bytes of files; what a header may weigh bounds them too.
    let ceiling = bounds
        .bytes
        .saturating_add(bounds.entries.saturating_mul(4096))
        .saturating_add(1 << 20);
    let mut archive = tar::Archive::new(archive.take(ceiling));
    let mut done = Transferred::default();
    let mut entries = 0;
    let mut root: Option<PathBuf> = None;
    let mut long_name: Option<Vec<u8>> = None;
    // Raw: the reader would keep long names in memory, however long.
    for entry in archive
        .entries()
        .map_err(|error| ArchiveError::malformed(&error))?
        .raw(true)
    {
        let mut entry = entry.map_err(|error| ArchiveError::malformed(&error))?;
        entries += 1;
        if entries > bounds.entries {
            return Err(ArchiveError::Entries(bounds.entries));
        }
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() {
            long_name = Some(extension(&mut entry)?);
            continue;
        }
        if kind.is_gnu_longlink() {
            extension(&mut entry)?;
            continue;
        }
        if kind.is_pax_local_extensions() {
            let text = extension(&mut entry)?;
            for pair in tar::PaxExtensions::new(&text) {
                let pair = pair.map_err(|error| ArchiveError::malformed(&error))?;
                match pair.key_bytes() {
                    b"path" => long_name = Some(pair.value_bytes().to_vec()),
                    b"size" => return Err(ArchiveError::Malformed("a size outside the header".to_owned())),
                    _ => {}
                }
            }
            continue;
        }
        if kind.is_pax_global_extensions() {
            continue;
        }
        let name = long_name
            .take()
            .unwrap_or_else(|| entry.path_bytes().into_owned());
        let path = plain_path(&name)?;
        let below = match &root {
            None => {
                root = Some(path);
                PathBuf::new()
            }
            Some(root) => match path.strip_prefix(root) {
                Ok(below) => below.to_owned(),
                Err(_) => return Err(ArchiveError::Path(String::from_utf8_lossy(&name).into_owned())),
            },
        };
        let size = entry
            .header()
            .size()
            .map_err(|error| ArchiveError::malformed(&error))?;
        let mode = entry.header().mode().unwrap_or(0o644);
        if kind.is_dir() {
            make_folders(target, &below)?;
        } else if kind.is_file() || kind.is_contiguous() {
            if done.bytes.saturating_add(size) > bounds.bytes {
                return Err(ArchiveError::Bytes(bounds.bytes));
            }
            write_file(&mut entry, target, &below, size, mode)?;
            done.files += 1;
            done.bytes += size;
        } else if below.as_os_str().is_empty() {
            return Err(ArchiveError::Kind(String::from_utf8_lossy(&name).into_owned()));
        } else {
            done.skipped += 1;
            done.first_skipped
                .get_or_insert_with(|| String::from_utf8_lossy(&name).into_owned());
        }
    }
    if root.is_none() {
        return Err(ArchiveError::Empty);
    }
    Ok(done)
}

/// The content of an extension record.
fn extension(entry: &mut impl Read) -> Result<Vec<u8>, ArchiveError> {
    let mut content = Vec::new();
    entry
        .take(EXTENSION_MAX + 1)
        .read_to_end(&mut content)
        .map_err(|error| ArchiveError::malformed(&error))?;
    if content.len() as u64 > EXTENSION_MAX {
        return Err(ArchiveError::Malformed(
            "an extension record is too long".to_owned(),
        ));
    }
    while content.last() == Some(&0) {
        content.pop();
    }
    Ok(content)
}

/// A path of plain names only.
fn plain_path(name: &[u8]) -> Result<PathBuf, ArchiveError> {
    let refuse =
        || ArchiveError::Path(String::from_utf8_lossy(&name[..name.len().min(PATH_MAX)]).into_owned());
    let text = std::str::from_utf8(name).map_err(|_| refuse())?;
    // A backslash or colon is a plain character here and a separator or drive elsewhere.
    if text.is_empty()
        || text.len() > PATH_MAX
        || text.contains('\0')
        || cfg!(windows) && text.contains(['\\', ':'])
    {
        return Err(refuse());
    }
    let mut path = PathBuf::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(refuse()),
        }
    }
    if path.components().count() > DEPTH_MAX {
        return Err(refuse());
    }
    Ok(path)
}

/// Makes `below` in `target`, a folder at a time, each looked at: none may be a link. `target` itself is the user's
/// word, and may be one.
fn make_folders(target: &Path, below: &Path) -> Result<PathBuf, ArchiveError> {
    if !target.is_dir() {
        fs::create_dir(target).map_err(ArchiveError::at(target))?;
    }
    let mut folder = target.to_owned();
    for name in below {
        folder.push(name);
        match fs::symlink_metadata(&folder) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(ArchiveError::InTheWay(folder)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(&folder).map_err(ArchiveError::at(&folder))?;
            }
            Err(error) => return Err(ArchiveError::at(&folder)(error)),
        }
    }
    Ok(folder)
}

/// Writes a regular file. One that is there is replaced, not written through: it may have another name elsewhere.
fn write_file(
    content: &mut impl Read,
    target: &Path,
    below: &Path,
    size: u64,
    mode: u32,
) -> Result<(), ArchiveError> {
    let path = match (below.parent(), below.file_name()) {
        (Some(parent), Some(name)) => make_folders(target, parent)?.join(name),
        _ => target.to_owned(),
    };
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() => return Err(ArchiveError::InTheWay(path)),
        Ok(_) => fs::remove_file(&path).map_err(ArchiveError::at(&path))?,
        Err(_) => {}
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Permission bits only: no set-user-id. The user's umask holds, and the user may always change the file.
        options.mode(mode & 0o777 | 0o600);
    }
    let mut file = options.open(&path).map_err(ArchiveError::at(&path))?;
    let copied = io::copy(content, &mut file).map_err(|error| ArchiveError::malformed(&error))?;
    if copied < size {
        return Err(ArchiveError::Malformed("it ends early".to_owned()));
    }
    Ok(())
}

/// Packs a file or folder as `name`. Symbolic links in a folder are not followed: they, and whatever else is no regular
/// file or folder, are left out and counted. `source` itself may be a link to one. Times of change are kept.
pub fn pack(
    source: &Path,
    name: &str,
    archive: impl Write,
    bounds: Bounds,
) -> Result<Transferred, ArchiveError> {
    let mut packer = Packer {
        archive: tar::Builder::new(archive),
        bounds,
        entries: 0,
        done: Transferred::default(),
    };
    let kind = fs::metadata(source).map_err(ArchiveError::at(source))?;
    packer.add(source, &plain_path(name.as_bytes())?, &kind, 0)?;
    packer
        .archive
        .into_inner()
        .and_then(|mut inner| inner.flush())
        .map_err(ArchiveError::at(source))?;
    Ok(packer.done)
}

struct Packer<W: Write> {
    archive: tar::Builder<W>,
    bounds: Bounds,
    entries: u64,
    done: Transferred,
}

impl<W: Write> Packer<W> {
    fn add(
        &mut self,
        source: &Path,
        name: &Path,
        kind: &fs::Metadata,
        depth: usize,
    ) -> Result<(), ArchiveError> {
        self.entries += 1;
        if self.entries > self.bounds.entries {
            return Err(ArchiveError::Entries(self.bounds.entries));
        }
        if depth > DEPTH_MAX {
            return Err(ArchiveError::Path(name.display().to_string()));
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode_of(kind));
        header.set_mtime(kind.modified().map_or(0, seconds));
        if kind.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_size(0);
            self.archive
                .append_data(&mut header, name, io::empty())
                .map_err(ArchiveError::at(source))?;
            let mut children: Vec<_> = fs::read_dir(source)
                .and_then(Iterator::collect::<io::Result<_>>)
                .map_err(ArchiveError::at(source))?;
            children.sort_by_key(fs::DirEntry::file_name);
            for child in children {
                let path = child.path();
                let kind = fs::symlink_metadata(&path).map_err(ArchiveError::at(&path))?;
                self.add(&path, &name.join(child.file_name()), &kind, depth + 1)?;
            }
        } else if kind.is_file() {
            let file = fs::File::open(source).map_err(ArchiveError::at(source))?;
            let size = kind.len();
            if self.done.bytes.saturating_add(size) > self.bounds.bytes {
                return Err(ArchiveError::Bytes(self.bounds.bytes));
            }
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(size);
            // A file that grows meanwhile must not spill into the next header; one that shrinks is filled up.
            let content = file.chain(io::repeat(0)).take(size);
            self.archive
                .append_data(&mut header, name, content)
                .map_err(ArchiveError::at(source))?;
            self.done.files += 1;
            self.done.bytes += size;
        } else if depth == 0 {
            return Err(ArchiveError::Kind(source.display().to_string()));
        } else {
            self.done.skipped += 1;
            self.done
                .first_skipped
                .get_or_insert_with(|| source.display().to_string());
        }
        Ok(())
    }
}

/// A time as archives hold it: whole seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(unix)]
fn mode_of(kind: &fs::Metadata) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    kind.permissions().mode() & 0o777
}

#[cfg(not(unix))]
fn mode_of(kind: &fs::Metadata) -> u32 {
    if kind.is_dir() { 0o755 } else { 0o644 }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
