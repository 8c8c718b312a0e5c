//! Attacks on [`unpack`](super::unpack): nothing outside the target is written, whatever the archive says.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::{PermissionsExt, symlink};

struct Made(tar::Builder<Vec<u8>>);

impl Made {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// An entry whose name is written as it is, which the builder itself would refuse.
    fn entry(mut self, kind: tar::EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o6777);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(tar::EntryType::Regular, name, "", content)
    }

    fn folder(self, name: &str) -> Self {
        self.entry(tar::EntryType::Directory, name, "", b"")
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A folder with a victim beside the target.
struct Place {
    home: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("victim"), "untouched").unwrap();
        Self { home }
    }

    fn target(&self) -> PathBuf {
        self.home.path().join("target")
    }

    fn unpack(&self, archive: &[u8]) -> Result<Transferred, ArchiveError> {
        unpack(archive, &self.target(), Bounds::default())
    }

    /// Names beside the target, which must be the victim alone.
    fn is_untouched(&self) {
        let mut names: Vec<_> = fs::read_dir(self.home.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.retain(|name| name != "target");
        assert_eq!(names, ["victim"]);
        assert_eq!(
            fs::read_to_string(self.home.path().join("victim")).unwrap(),
            "untouched"
        );
    }
}

#[test]
fn a_folder_becomes_the_target_whatever_its_name() {
    for root in [".", "out", "./out", "a/b"] {
        let place = Place::new();
        let archive = Made::new()
            .folder(root)
            .file(&format!("{root}/x"), b"1")
            .file(&format!("{root}/deep/y"), b"23")
            .bytes();
        let done = place.unpack(&archive).unwrap();
        assert_eq!((done.files, done.bytes, done.skipped), (2, 3, 0));
        assert_eq!(fs::read_to_string(place.target().join("deep/y")).unwrap(), "23");
        let mode = fs::metadata(place.target().join("x"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7000, 0, "no set-user-id");
        place.is_untouched();
    }
    let place = Place::new();
    place.unpack(&Made::new().file("x", b"one").bytes()).unwrap();
    assert_eq!(fs::read_to_string(place.target()).unwrap(), "one");
}

#[test]
fn paths_that_lead_out_end_it() {
    for path in [
        "/etc/x",
        "../victim",
        "out/../../victim",
        "out/x/../../../victim",
        "..",
        "/",
        "",
    ] {
        for archive in [
            Made::new().file(path, b"evil").bytes(),
            Made::new().folder("out").file(path, b"evil").bytes(),
            Made::new().folder("out").folder(path).bytes(),
        ] {
            let place = Place::new();
            assert!(
                matches!(place.unpack(&archive), Err(ArchiveError::Path(_))),
                "{path}"
            );
            place.is_untouched();
        }
    }
    // Beside the root as well: one thing was asked for.
    let place = Place::new();
    let archive = Made::new().folder("out").file("other", b"evil").bytes();
    assert!(matches!(place.unpack(&archive), Err(ArchiveError::Path(_))));
}

#[test]
fn long_names_are_held_to_the_same_rules() {
    for name in ["../victim", "out/../../victim", "/tmp/victim"] {
        let pax = format!("{} path={name}\n", name.len() + 9);
        assert_eq!(
            pax.len().to_string(),
            pax.split(' ').next().unwrap(),
            "length of the record"
        );
        for archive in [
            Made::new()
                .folder("out")
                .entry(tar::EntryType::GNULongName, "././@LongLink", "", name.as_bytes())
                .file("out/x", b"evil")
                .bytes(),
            Made::new()
                .folder("out")
                .entry(tar::EntryType::XHeader, "pax", "", pax.as_bytes())
                .file("out/x", b"evil")
                .bytes(),
        ] {
            let place = Place::new();
            assert!(
                matches!(place.unpack(&archive), Err(ArchiveError::Path(_))),
                "{name}"
            );
            place.is_untouched();
        }
    }
    let huge = vec![b'a'; 1 << 20];
    let place = Place::new();
    let archive = Made::new()
        .entry(tar::EntryType::GNULongName, "l", "", &huge)
        .bytes();
    assert!(matches!(place.unpack(&archive), Err(ArchiveError::Malformed(_))));
}

#[test]
fn links_and_devices_are_left_out_and_lead_nowhere() {
    let place = Place::new();
    let archive = Made::new()
        .folder("out")
        .entry(tar::EntryType::Symlink, "out/a", "../victim", b"")
        .entry(tar::EntryType::Symlink, "out/up", "..", b"")
        .entry(tar::EntryType::Link, "out/hard", "../victim", b"")
        .entry(tar::EntryType::Char, "out/null", "", b"")
        .entry(tar::EntryType::Block, "out/disk", "", b"")
        .entry(tar::EntryType::Fifo, "out/pipe", "", b"")
        .file("out/a", b"evil")
        .file("out/up/victim", b"evil")
        .file("out/hard", b"evil")
        .bytes();
    let done = place.unpack(&archive).unwrap();
    assert_eq!((done.skipped, done.files), (6, 3));
    assert_eq!(done.first_skipped.as_deref(), Some("out/a"));
    assert!(fs::symlink_metadata(place.target().join("a")).unwrap().is_file());
    assert!(fs::symlink_metadata(place.target().join("up")).unwrap().is_dir());
    place.is_untouched();
}

#[test]
fn links_that_were_there_before_are_not_written_through() {
    let place = Place::new();
    fs::create_dir(place.target()).unwrap();
    symlink("../victim", place.target().join("a")).unwrap();
    symlink("..", place.target().join("up")).unwrap();
    fs::hard_link(place.home.path().join("victim"), place.target().join("hard")).unwrap();
    place
        .unpack(
            &Made::new()
                .folder("out")
                .file("out/a", b"evil")
                .file("out/hard", b"evil")
                .bytes(),
        )
        .unwrap();
    place.is_untouched();
    let through = Made::new().folder("out").file("out/up/victim", b"evil").bytes();
    assert!(matches!(place.unpack(&through), Err(ArchiveError::InTheWay(_))));
    let made = Made::new().folder("out").folder("out/up/new").bytes();
    assert!(matches!(place.unpack(&made), Err(ArchiveError::InTheWay(_))));
    place.is_untouched();
}

#[test]
fn bytes_and_entries_are_bounded() {
    let archive = Made::new()
        .folder("o")
        .file("o/a", b"12345")
        .file("o/b", b"6789")
        .bytes();
    for (bytes, entries, fits) in [(9, 3, true), (8, 3, false), (9, 2, false), (0, 3, false)] {
        let place = Place::new();
        let done = unpack(
            &archive[..],
            &place.target(),
            Bounds {
                bytes,
                entries,
                ..Bounds::default()
            },
        );
        assert_eq!(done.is_ok(), fits, "{bytes} {entries}: {done:?}");
    }
    // A header that claims more than there is.
    let place = Place::new();
    let mut short = Made::new().file("x", &[7; 2000]).bytes();
    short.truncate(1024);
    assert!(matches!(place.unpack(&short), Err(ArchiveError::Malformed(_))));
    assert!(matches!(place.unpack(&[]), Err(ArchiveError::Empty)));
}

#[test]
fn what_is_packed_unpacks_and_links_stay_behind() {
    let place = Place::new();
    let source = place.home.path().join("source");
    fs::create_dir_all(source.join("deep").join("x".repeat(120))).unwrap();
    fs::write(source.join("deep").join("x".repeat(120)).join("file"), "content").unwrap();
    fs::write(source.join("run.sh"), "#!").unwrap();
    fs::set_permissions(source.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("../victim", source.join("secret")).unwrap();
    let mut archive = Vec::new();
    let packed = pack(&source, "name", &mut archive, Bounds::default()).unwrap();
    assert_eq!((packed.files, packed.bytes, packed.skipped), (2, 9, 1));
    fs::remove_dir_all(&source).unwrap();
    let done = place.unpack(&archive).unwrap();
    assert_eq!((done.files, done.bytes, done.skipped), (2, 9, 0));
    let mode = fs::metadata(place.target().join("run.sh"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o700, 0o700);
    place.is_untouched();
    let few = Bounds {
        bytes: 8,
        entries: 10,
        ..Bounds::default()
    };
    assert!(matches!(
        pack(&place.target(), "n", io::sink(), few),
        Err(ArchiveError::Bytes(8))
    ));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_write_outside(
        names in prop::collection::vec("[./a]{1,8}", 1..6),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let place = Place::new();
        let mut made = Made::new();
        for (number, name) in names.iter().enumerate() {
            made = match number % 3 {
                0 => made.folder(name),
                1 => made.entry(tar::EntryType::Symlink, name, "..", b""),
                _ => made.file(name, b"evil"),
            };
        }
        let mut archive = made.bytes();
        for (index, byte) in flips {
            let at = index.index(archive.len());
            archive[at] = byte;
        }
        let _ = place.unpack(&archive);
        place.is_untouched();
    }
}

#[test]
fn times_of_change_are_packed() {
    let place = Place::new();
    let changed = UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    let victim = place.home.path().join("victim");
    fs::File::options()
        .write(true)
        .open(&victim)
        .unwrap()
        .set_modified(changed)
        .unwrap();
    let mut archive = Vec::new();
    pack(place.home.path(), "home", &mut archive, Bounds::default()).unwrap();
    let mut archive = tar::Archive::new(&archive[..]);
    let times: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().header().mtime().unwrap())
        .collect();
    assert!(times[0] > 1_700_000_000, "{times:?}");
    assert_eq!(times[1], 1_700_000_000);
}

#[test]
fn what_is_itself_no_file_or_folder_is_an_error() {
    let place = Place::new();
    let link = Made::new().entry(tar::EntryType::Symlink, "out", "/etc/passwd", b"");
    let refused = place.unpack(&link.bytes());
    assert!(
        matches!(&refused, Err(ArchiveError::Kind(name)) if name == "out"),
        "{refused:?}"
    );
    let device = pack(Path::new("/dev/null"), "x", &mut Vec::new(), Bounds::default());
    assert!(matches!(device, Err(ArchiveError::Kind(_))), "{device:?}");
}
