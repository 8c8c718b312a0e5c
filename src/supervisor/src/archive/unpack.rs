//! Unpacks a tar stream below a folder, never through a symbolic link, and never out of it.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use super::header::{self, BLOCK, Header, Kind};
use super::{DEPTH_MAX, ENTRIES_MAX, PATH_MAX, refused};
use crate::sys::Folder;

/// Longest attributes of one entry, in bytes.
const ATTRIBUTES_MAX: u64 = 64 << 10;

/// Unpacks a stream, which must come to its end.
pub fn unpack(source: &mut impl Read, target: &Path) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    let root = Folder::open_path(target)?;
    // Folders get their mode at the end: one that is read-only could not be filled.
    let mut folders: BTreeMap<Vec<String>, u32> = BTreeMap::new();
    let mut entries = 0;
    let (mut attributes, mut name, mut link) = (Vec::new(), None, None);
    loop {
        let mut block = [0; BLOCK];
        source.read_exact(&mut block).map_err(cut)?;
        let Some(mut entry) = Header::read(&block)? else {
            break;
        };
        entries += 1;
        if entries > ENTRIES_MAX {
            return Err(refused(format!(
                "the archive has more than {ENTRIES_MAX} entries"
            )));
        }
        match entry.kind {
            Kind::Attributes => attributes = small(source, entry.size)?,
            Kind::Defaults => drop(small(source, entry.size)?),
            Kind::LongName => name = Some(long(small(source, entry.size)?)),
            Kind::LongTarget => link = Some(long(small(source, entry.size)?)),
            Kind::File | Kind::Folder | Kind::Link => {
                entry.path = name.take().unwrap_or(entry.path);
                entry.target = link.take().unwrap_or(entry.target);
                header::apply(&std::mem::take(&mut attributes), &mut entry)?;
                let shown = String::from_utf8_lossy(&entry.path).into_owned();
                place(source, &root, &entry, &mut folders)
                    .map_err(|error| io::Error::new(error.kind(), format!("{shown}: {error}")))?;
            }
        }
    }
    for (parts, mode) in folders.iter().rev() {
        descend(&root, parts)?.set_mode(*mode)?;
    }
    // What follows the end is padding; whoever sends it need not fail.
    io::copy(source, &mut io::sink()).map(|_| ())
}

fn place(
    source: &mut impl Read,
    root: &Folder,
    entry: &Header,
    folders: &mut BTreeMap<Vec<String>, u32>,
) -> io::Result<()> {
    let mut parts = split(&entry.path)?;
    if entry.kind == Kind::Folder {
        skip(source, entry.size)?;
        descend(root, &parts)?;
        if !parts.is_empty() {
            folders.insert(parts, entry.mode);
        }
        return Ok(());
    }
    let name = parts.pop().ok_or_else(|| refused("this names no file"))?;
    let folder = descend(root, &parts)?;
    folder.remove_file(&name)?;
    if entry.kind == Kind::Link {
        skip(source, entry.size)?;
        let target =
            std::str::from_utf8(&entry.target).map_err(|_| refused("the link's target is no UTF-8"))?;
        return folder.link(&name, target);
    }
    let mut file = folder.create_new(&name)?;
    let copied = io::copy(&mut source.take(entry.size), &mut file)?;
    if copied < entry.size {
        return Err(cut(io::ErrorKind::UnexpectedEof.into()));
    }
    skip_padding(source, entry.size)?;
    // The mask must not take away what the archive grants.
    file.set_permissions(Permissions::from_mode(entry.mode))?;
    // Zero is no time, and many programs take none so early. One that the file system can't hold is no reason to fail.
    if entry.changed != 0 {
        let _ = file.set_modified(UNIX_EPOCH + Duration::from_secs(entry.changed & 0xffff_ffff));
    }
    Ok(())
}

/// The parts of a path below the folder; an error if it leaves it.
fn split(path: &[u8]) -> io::Result<Vec<String>> {
    if path.len() > PATH_MAX {
        return Err(refused("the path is too long"));
    }
    let path = std::str::from_utf8(path).map_err(|_| refused("the path is no UTF-8"))?;
    if path.starts_with('/') || path.contains('\0') {
        return Err(refused("only relative paths are unpacked"));
    }
    let parts: Vec<String> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .map(str::to_owned)
        .collect();
    if parts.iter().any(|part| part == "..") {
        return Err(refused("the path leaves the folder"));
    }
    if parts.len() > DEPTH_MAX {
        return Err(refused(format!("the path is deeper than {DEPTH_MAX} folders")));
    }
    Ok(parts)
}

fn descend(root: &Folder, parts: &[String]) -> io::Result<Folder> {
    parts
        .iter()
        .try_fold(root.again()?, |folder, part| folder.enter(part))
}

/// A small content, held whole.
fn small(source: &mut impl Read, size: u64) -> io::Result<Vec<u8>> {
    if size > ATTRIBUTES_MAX {
        return Err(refused("the attributes of an entry are too long"));
    }
    let mut content = Vec::new();
    source.take(size).read_to_end(&mut content)?;
    if (content.len() as u64) < size {
        return Err(cut(io::ErrorKind::UnexpectedEof.into()));
    }
    skip_padding(source, size)?;
    Ok(content)
}

/// GNU's long names end with a NUL.
fn long(mut name: Vec<u8>) -> Vec<u8> {
    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
    name
}

fn skip(source: &mut impl Read, size: u64) -> io::Result<()> {
    io::copy(&mut source.take(size), &mut io::sink())?;
    skip_padding(source, size)
}

fn skip_padding(source: &mut impl Read, size: u64) -> io::Result<()> {
    let padding = size.next_multiple_of(BLOCK as u64) - size;
    io::copy(&mut source.take(padding), &mut io::sink()).map(|_| ())
}

fn cut(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        io::Error::new(error.kind(), "the archive ends before its end")
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(std::path::PathBuf);

    impl Place {
        fn new(test: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("unpack-{test}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn entry(kind: Kind, path: &str, target: &str, content: &[u8]) -> Vec<u8> {
        changed_at(1_000_000_000, kind, path, target, content)
    }

    fn changed_at(changed: u64, kind: Kind, path: &str, target: &str, content: &[u8]) -> Vec<u8> {
        let header = Header {
            kind,
            path: path.into(),
            target: target.into(),
            mode: 0o640,
            size: content.len() as u64,
            changed,
        };
        let mut blocks = header.blocks();
        blocks.extend(content);
        blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
        blocks
    }

    fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut all = entries.concat();
        all.resize(all.len() + 2 * BLOCK, 0);
        all
    }

    #[test]
    fn what_was_packed_comes_back() {
        let (from, to) = (Place::new("from"), Place::new("to"));
        let deep = format!("{}/{}", "d".repeat(90), "f".repeat(120));
        std::fs::create_dir_all(from.0.join("top/empty")).unwrap();
        std::fs::create_dir_all(from.0.join("top").join("d".repeat(90))).unwrap();
        std::fs::write(from.0.join("top").join(&deep), b"deep").unwrap();
        std::fs::write(from.0.join("top/run.sh"), vec![7; 70_000]).unwrap();
        std::fs::set_permissions(from.0.join("top/run.sh"), Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("run.sh", from.0.join("top/link")).unwrap();
        let mut packed = Vec::new();
        super::super::pack::pack(&from.0.join("top"), &mut packed).unwrap();
        unpack(&mut packed.as_slice(), &to.0).unwrap();
        assert_eq!(std::fs::read(to.0.join("top").join(&deep)).unwrap(), b"deep");
        assert_eq!(std::fs::read(to.0.join("top/run.sh")).unwrap(), vec![7; 70_000]);
        let mode = std::fs::metadata(to.0.join("top/run.sh"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(
            std::fs::read_link(to.0.join("top/link")).unwrap(),
            Path::new("run.sh")
        );
        assert!(to.0.join("top/empty").is_dir());
        // A link that is asked for is packed as one.
        let mut link = Vec::new();
        super::super::pack::pack(&from.0.join("top/link"), &mut link).unwrap();
        assert_eq!(link[156], b'2');
        assert!(super::super::pack::pack(Path::new("/dev/null"), &mut Vec::new()).is_err());
        assert!(super::super::pack::pack(&from.0.join("none"), &mut Vec::new()).is_err());
        // Over what is there, too.
        unpack(&mut packed.as_slice(), &to.0).unwrap();
    }

    #[test]
    fn a_file_keeps_its_time_and_one_without_is_of_now() {
        let place = Place::new("times");
        let begun = std::time::SystemTime::now() - Duration::from_secs(2);
        let files = archive(&[
            entry(Kind::File, "timed", "", b"x"),
            changed_at(0, Kind::File, "untimed", "", b"x"),
        ]);
        unpack(&mut files.as_slice(), &place.0).unwrap();
        let changed = |name: &str| std::fs::metadata(place.0.join(name)).unwrap().modified().unwrap();
        assert_eq!(changed("timed"), UNIX_EPOCH + Duration::from_secs(1_000_000_000));
        assert!(changed("untimed") >= begun);
    }

    #[test]
    fn nothing_leaves_the_folder() {
        let place = Place::new("leaves");
        let outside = place.0.join("outside");
        let target = place.0.join("in");
        std::fs::create_dir_all(&outside).unwrap();
        let through = outside.to_str().unwrap();
        for (entries, part) in [
            (vec![entry(Kind::File, "../x", "", b"x")], "leaves the folder"),
            (
                vec![entry(Kind::File, "a/../../x", "", b"x")],
                "leaves the folder",
            ),
            (vec![entry(Kind::File, "/etc/x", "", b"x")], "relative"),
            (
                vec![
                    entry(Kind::Link, "l", through, b""),
                    entry(Kind::File, "l/x", "", b"x"),
                ],
                "l/x",
            ),
            (
                vec![
                    entry(Kind::Link, "m", through, b""),
                    entry(Kind::Folder, "m", "", b""),
                ],
                "m",
            ),
            (vec![entry(Kind::File, &"d/".repeat(70), "", b"x")], "deeper"),
        ] {
            let error = unpack(&mut archive(&entries).as_slice(), &target).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        // A link that is there is replaced, not followed.
        std::fs::write(outside.join("file"), b"old").unwrap();
        std::os::unix::fs::symlink(outside.join("file"), target.join("file")).unwrap();
        unpack(
            &mut archive(&[entry(Kind::File, "file", "", b"new")]).as_slice(),
            &target,
        )
        .unwrap();
        assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"old");
        assert_eq!(std::fs::read(target.join("file")).unwrap(), b"new");
    }

    #[test]
    fn what_is_cut_short_huge_or_no_archive_is_an_error() {
        let place = Place::new("cut");
        let whole = archive(&[entry(Kind::File, "a", "", b"content")]);
        for length in [0, 100, 512, 600, 1024] {
            let error = unpack(&mut &whole[..length], &place.0).unwrap_err();
            assert!(error.to_string().contains("before its end"), "{length}: {error}");
        }
        assert!(unpack(&mut vec![b'x'; 2048].as_slice(), &place.0).is_err());
        let mut hard_link = entry(Kind::File, "b", "", b"");
        hard_link[156] = b'1';
        let sum: u32 = hard_link[..148]
            .iter()
            .chain(&hard_link[156..512])
            .map(|b| u32::from(*b))
            .sum();
        hard_link[148..156].copy_from_slice(format!("{:06o}\0 ", sum + 256).as_bytes());
        let error = unpack(&mut archive(&[hard_link]).as_slice(), &place.0).unwrap_err();
        assert!(error.to_string().contains("hard link"), "{error}");
        // A size that is claimed is not believed before the bytes are there.
        let claim = Header {
            kind: Kind::File,
            path: b"huge".to_vec(),
            target: Vec::new(),
            mode: 0o644,
            size: u64::MAX / 2,
            changed: 0,
        };
        assert!(unpack(&mut claim.blocks().as_slice(), &place.0).is_err());
        assert_eq!(std::fs::metadata(place.0.join("huge")).unwrap().len(), 0);
    }
}
