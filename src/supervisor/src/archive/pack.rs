//! Writes a file or folder as a tar stream. Its entries begin with the name of what was asked for, as `tar -C PARENT
//! -c NAME` would have it. Links are packed as such and never followed; pipes, sockets and devices are left out.

use std::fs::Metadata;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::header::{BLOCK, Header, Kind};
use super::{DEPTH_MAX, ENTRIES_MAX, refused};
use crate::sys;

/// Packs `path`.
pub fn pack(path: &Path, target: &mut impl Write) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let kind = path.symlink_metadata().map_err(named)?.file_type();
    if !kind.is_file() && !kind.is_dir() && !kind.is_symlink() {
        return Err(named(refused("neither a file nor a folder")));
    }
    // `..` and `/` have no name of their own.
    let name = match path.file_name() {
        Some(name) => PathBuf::from(name),
        None => path
            .canonicalize()
            .map_err(named)?
            .file_name()
            .map_or_else(|| PathBuf::from("root"), PathBuf::from),
    };
    let mut pending = vec![(path.to_owned(), name, 0)];
    let mut entries = 0;
    while let Some((source, name, depth)) = pending.pop() {
        entries += 1;
        if entries > ENTRIES_MAX || depth > DEPTH_MAX {
            return Err(refused(format!(
                "there are more than {ENTRIES_MAX} entries, or folders deeper than {DEPTH_MAX}"
            )));
        }
        // What is gone meanwhile is left out.
        let Ok(meta) = source.symlink_metadata() else {
            continue;
        };
        if meta.is_dir() {
            put(target, &meta, Kind::Folder, &name, Path::new(""), 0)?;
            let mut below: Vec<PathBuf> = std::fs::read_dir(&source)?
                .flatten()
                .map(|entry| entry.path())
                .collect();
            below.sort_unstable();
            // The last is taken first.
            for path in below.into_iter().rev() {
                let name = name.join(path.file_name().unwrap_or_default());
                pending.push((path, name, depth + 1));
            }
        } else if meta.is_symlink() {
            if let Ok(to) = source.read_link() {
                put(target, &meta, Kind::Link, &name, &to, 0)?;
            }
        } else if meta.is_file() {
            put_file(target, &source, &name)?;
        }
    }
    target.write_all(&[0; 2 * BLOCK])
}

fn put_file(target: &mut impl Write, source: &Path, name: &Path) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", source.display()));
    let file = sys::open_untrusted(&source.to_string_lossy()).map_err(named)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Ok(());
    }
    put(target, &meta, Kind::File, name, Path::new(""), meta.len())?;
    let copied = io::copy(&mut file.take(meta.len()), target)?;
    // A file that shrank meanwhile is filled up, as tar does: its size stands in the stream already.
    let padded = meta.len().next_multiple_of(BLOCK as u64);
    io::copy(&mut io::repeat(0).take(padded - copied), target).map(|_| ())
}

fn put(
    target: &mut impl Write,
    meta: &Metadata,
    kind: Kind,
    name: &Path,
    to: &Path,
    size: u64,
) -> io::Result<()> {
    let header = Header {
        kind,
        path: name.as_os_str().as_bytes().to_vec(),
        target: to.as_os_str().as_bytes().to_vec(),
        mode: meta.mode() & 0o777,
        size,
        changed: u64::try_from(meta.mtime()).unwrap_or_default(),
    };
    target.write_all(&header.blocks())
}
