//! Bounded reads of what another process passes to the kernel. Everything read is the adversary's.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use agentsandbox_api::action::{Action, Basis};

use super::calls::Place;
use super::sys;
use crate::run::stat::Stat;

/// Most bytes of one record's texts.
pub const TEXT_MAX: usize = 4096;
/// Most bytes of what a program's arguments are observed to be.
const ARGV_MAX: usize = TEXT_MAX / 2;
/// Most arguments of a program.
const ARGUMENTS_MAX: usize = 256;
/// Reads end at the end of a page: the next one may not be there.
const PAGE_BYTES: usize = 4096;
const PAGE: u64 = PAGE_BYTES as u64;
/// So many pages are read ahead for one system call at most.
const PAGES_MAX: usize = 32;
/// Pages that are no farther apart are read with those between.
const PAGES_NEAR: u64 = 4;
/// Most texts are short.
const FIRST_PIECE: usize = 256;
/// Bytes of a `struct sockaddr_in`.
const INET_BYTES: usize = 16;
const AT_FDCWD: i32 = libc::AT_FDCWD;

/// A text, and whether it was longer.
pub struct Text {
    pub bytes: Vec<u8>,
    pub cut: bool,
}

/// How memory of a stopped thread is read.
pub trait Memory {
    /// Reads as much as can be read in one piece.
    fn read(&self, address: u64, into: &mut [u8]) -> io::Result<usize> {
        self.read_pieces(&[(address, into.len())], into)
    }

    /// Reads pieces of memory, given by address and length, one after the other, up to the first that can't be read.
    fn read_pieces(&self, pieces: &[(u64, usize)], into: &mut [u8]) -> io::Result<usize>;
}

/// Memory of a thread that waits for the listener.
pub struct OfThread(pub u32);

impl Memory for OfThread {
    /// For a call the kernel also reads what its process itself may not read, such as memory that is only for writing.
    fn read(&self, address: u64, into: &mut [u8]) -> io::Result<usize> {
        self.read_pieces(&[(address, into.len())], into).or_else(|error| {
            let is_bad = is_bad_address(&error);
            let anyhow = || File::open(format!("/proc/{}/mem", self.0))?.read_at(into, address);
            is_bad
                .then(anyhow)
                .and_then(Result::ok)
                .filter(|read| *read > 0)
                .ok_or(error)
        })
    }

    fn read_pieces(&self, pieces: &[(u64, usize)], into: &mut [u8]) -> io::Result<usize> {
        sys::read_memory(self.0, pieces, into)
    }
}

/// Whether an address leads nowhere, as far as can be seen.
pub fn is_bad_address(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EFAULT)
}

/// Reads as much as there is room for.
fn read_whole(memory: &impl Memory, address: u64, into: &mut [u8]) -> io::Result<()> {
    let mut read = 0;
    while read < into.len() {
        match memory.read(address.wrapping_add(read as u64), &mut into[read..])? {
            0 => return Err(io::Error::from_raw_os_error(libc::EFAULT)),
            more => read += more,
        }
    }
    Ok(())
}

/// Room for pages, kept from one system call to the next: to get it anew costs more than to fill it.
#[derive(Default)]
pub struct Pages {
    /// Where those begin that were read.
    known: Vec<u64>,
    bytes: Vec<u8>,
}

/// Memory of which some pages were read before: a system call costs more than what it copies, and what a call's arguments
/// lead to mostly lies together.
pub struct Ahead<'a, M> {
    memory: &'a M,
    pages: &'a mut Pages,
}

impl<'a, M: Memory> Ahead<'a, M> {
    /// Nothing was read yet.
    pub fn of(memory: &'a M, pages: &'a mut Pages) -> Self {
        pages.known.clear();
        Self { memory, pages }
    }

    /// Reads the pages of these addresses in one go, and what lies between them if that is little; what can't be read is
    /// left to who wants it.
    pub fn read_ahead(&mut self, addresses: &[u64]) {
        let Pages { known, bytes } = &mut *self.pages;
        let mut wanted: Vec<u64> = addresses.iter().map(|address| address - address % PAGE).collect();
        if let (Some(first), Some(last)) = (wanted.iter().min(), wanted.iter().max())
            && last - first < PAGES_NEAR * PAGE
        {
            wanted = (*first..=*last).step_by(PAGE_BYTES).collect();
        }
        let mut pieces: Vec<(u64, usize)> = Vec::new();
        for page in wanted {
            let is_wanted = pieces.iter().any(|(wanted, _)| *wanted == page);
            if !known.contains(&page) && !is_wanted && known.len() + pieces.len() < PAGES_MAX {
                pieces.push((page, PAGE_BYTES));
            }
        }
        if pieces.is_empty() {
            return;
        }
        let begin = known.len() * PAGE_BYTES;
        let end = begin + pieces.len() * PAGE_BYTES;
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        let read = self.memory.read_pieces(&pieces, &mut bytes[begin..end]);
        let whole = read.unwrap_or_default() / PAGE_BYTES;
        known.extend(pieces.iter().take(whole).map(|(page, _)| *page));
    }

    /// What was read from an address on, if its page was and holds so much.
    fn known(&self, address: u64, length: usize) -> Option<&[u8]> {
        let within = address % PAGE;
        let page = self
            .pages
            .known
            .iter()
            .position(|page| *page == address - within)?;
        let page = self.pages.bytes.chunks_exact(PAGE_BYTES).nth(page)?;
        page.get(usize::try_from(within).ok()?..)?.get(..length)
    }
}

impl<M: Memory> Memory for Ahead<'_, M> {
    fn read(&self, address: u64, into: &mut [u8]) -> io::Result<usize> {
        match self.known(address, into.len()) {
            Some(bytes) => {
                into.copy_from_slice(bytes);
                Ok(into.len())
            }
            None => self.memory.read(address, into),
        }
    }

    fn read_pieces(&self, pieces: &[(u64, usize)], into: &mut [u8]) -> io::Result<usize> {
        self.memory.read_pieces(pieces, into)
    }
}

fn to_page_end(address: u64) -> usize {
    usize::try_from(PAGE - address % PAGE).unwrap_or(1)
}

/// The text at an address, up to its NUL, at most so long.
pub fn text(memory: &impl Memory, address: u64, longest: usize) -> io::Result<Text> {
    let mut bytes = Vec::new();
    let mut piece = [0; FIRST_PIECE];
    while bytes.len() < longest {
        let at = address.wrapping_add(bytes.len() as u64);
        let length = to_page_end(at).min(FIRST_PIECE).min(longest - bytes.len());
        let read = memory.read(at, &mut piece[..length])?;
        if read == 0 {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        if let Some(end) = piece[..read].iter().position(|byte| *byte == 0) {
            bytes.extend_from_slice(&piece[..end]);
            return Ok(Text { bytes, cut: false });
        }
        bytes.extend_from_slice(&piece[..read]);
    }
    Ok(Text { bytes, cut: true })
}

/// A vector of texts, at most so many bytes in all; and whether there was more.
pub fn texts(
    memory: &mut Ahead<'_, impl Memory>,
    address: u64,
    longest: usize,
) -> io::Result<(Vec<String>, bool)> {
    let (mut found, mut room) = (Vec::new(), longest);
    if address == 0 {
        return Ok((found, false));
    }
    let mut pointers = [0; 16 * 8];
    for chunk in (0_u64..).step_by(pointers.len()).take(ARGUMENTS_MAX / 16) {
        let at = address.wrapping_add(chunk);
        // Pointers that cross a page are read one by one below.
        let mut read = memory.read(at, &mut pointers[..to_page_end(at).min(16 * 8)])?;
        while read < pointers.len() {
            let next = (read + 8).min(pointers.len()) / 8 * 8;
            let begin = read;
            match memory.read(at.wrapping_add(begin as u64), &mut pointers[begin..next]) {
                Ok(more) if more > 0 => read = begin + more,
                // The end of the vector may be the end of its memory.
                _ => break,
            }
            if pointers[..read / 8 * 8].chunks_exact(8).any(|p| p == [0; 8]) {
                break;
            }
        }
        let addresses = pointers[..read / 8 * 8].chunks_exact(8);
        let addresses: Vec<u64> = addresses
            .map(|pointer| u64::from_ne_bytes(pointer.try_into().unwrap_or_default()))
            .collect();
        let texts = addresses.split(|address| *address == 0).next();
        memory.read_ahead(texts.unwrap_or_default());
        for address in &addresses {
            if *address == 0 {
                return Ok((found, false));
            }
            if room == 0 {
                return Ok((found, true));
            }
            let text = text(memory, *address, room)?;
            room -= text.bytes.len().min(room);
            // An empty argument takes room too, as there may be many.
            room = room.saturating_sub(1);
            found.push(String::from_utf8_lossy(&text.bytes).into_owned());
            if text.cut {
                return Ok((found, true));
            }
        }
        if read < pointers.len() {
            return Ok((found, true));
        }
    }
    Ok((found, true))
}

/// A path argument, made absolute where the folder it is relative to is known; and whether it was cut.
pub fn path(
    memory: &impl Memory,
    thread: u32,
    arguments: &[u64; 6],
    place: Place,
    longest: usize,
) -> io::Result<(String, bool)> {
    let Text { bytes, cut } = text(memory, arguments[usize::from(place.path)], longest)?;
    let name = String::from_utf8_lossy(&bytes).into_owned();
    if name.starts_with('/') {
        return Ok((name, cut));
    }
    let folder = place.folder.map_or(AT_FDCWD, |folder| {
        // The kernel takes the low half, as a signed number.
        i32::from_ne_bytes(low(arguments[usize::from(folder)]).to_ne_bytes())
    });
    let link = if folder == AT_FDCWD {
        format!("/proc/{thread}/cwd")
    } else {
        format!("/proc/{thread}/fd/{folder}")
    };
    let Ok(folder) = std::fs::read_link(link) else {
        return Ok((name, cut));
    };
    let folder = folder.to_string_lossy();
    let whole = match (name.as_str(), folder.as_ref()) {
        ("", folder) => folder.to_owned(),
        (name, "/") => format!("/{name}"),
        (name, folder) => format!("{folder}/{name}"),
    };
    let end = whole.floor_char_boundary(longest);
    Ok((whole[..end].to_owned(), cut || end < whole.len()))
}

/// The low half of a register.
pub fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default()
}

/// Where a datagram or connection goes: an address and a port, or the path of a local socket.
#[derive(Debug, PartialEq, Eq)]
pub struct Peer {
    pub address: String,
    pub port: Option<u16>,
    /// Whether it is an IP address.
    pub ip: bool,
}

/// A socket address; `None` for families that lead nowhere (`AF_UNSPEC`, netlink). `is_sent_to` says that something is sent
/// there, and not only connected.
pub fn peer(memory: &impl Memory, address: u64, length: u64, is_sent_to: bool) -> io::Result<Option<Peer>> {
    let mut bytes = [0; 128];
    let length = usize::try_from(low(length))
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    read_whole(memory, address, &mut bytes[..length])?;
    Ok(parse_peer(&bytes[..length], is_sent_to))
}

fn parse_peer(bytes: &[u8], is_sent_to: bool) -> Option<Peer> {
    let family = i32::from(u16::from_ne_bytes(bytes.first_chunk().copied()?));
    let port = || Some(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?));
    match family {
        // A datagram goes there as well.
        libc::AF_UNSPEC if !is_sent_to || bytes.len() < INET_BYTES => None,
        libc::AF_INET | libc::AF_UNSPEC => {
            let address: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some(Peer {
                address: std::net::Ipv4Addr::from(address).to_string(),
                port: port(),
                ip: true,
            })
        }
        libc::AF_INET6 => {
            let address: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            Some(Peer {
                address: std::net::Ipv6Addr::from(address).to_string(),
                port: port(),
                ip: true,
            })
        }
        libc::AF_UNIX => {
            let path = bytes.get(2..)?;
            // An abstract name begins with NUL, and is written with `@` as everywhere.
            let (prefix, path) = match path.split_first() {
                Some((0, name)) => ("@", name),
                _ => ("", path),
            };
            let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
            Some(Peer {
                address: format!("{prefix}{}", String::from_utf8_lossy(&path[..end])),
                port: None,
                ip: false,
            })
        }
        _ => None,
    }
}

/// The address in a `struct msghdr`, if it has one.
pub fn message_peer(memory: &impl Memory, header: u64) -> io::Result<Option<Peer>> {
    let mut bytes = [0; 16];
    read_whole(memory, header, &mut bytes)?;
    let number = |at: usize| bytes[at..].first_chunk().copied().map_or(0, u64::from_ne_bytes);
    match number(0) {
        0 => Ok(None),
        address => peer(memory, address, number(8), true),
    }
}

/// What a process executes now: its program and its arguments.
#[derive(Debug, PartialEq, Eq)]
pub struct Image {
    pub path: String,
    pub argv: Vec<String>,
    pub cut: bool,
}

impl Image {
    /// As an action of a process; its parent is told with the first program.
    pub fn observed(self, pid: u32, parent: Option<u32>) -> Action {
        let Self { path, argv, cut } = self;
        Action::Exec {
            basis: Basis::Observed,
            pid,
            parent,
            path,
            argv,
            cut,
        }
    }
}

/// What the kernel says that a process executes; `stat` was read before. Each file of `/proc` that is opened costs more
/// than to read it.
pub fn image(pid: u32, stat: &Stat) -> io::Result<Image> {
    let (path, path_cut) = program(pid)?;
    let bytes = match arguments(stat, pid) {
        Some(bytes) => bytes,
        None => command_line(pid)?,
    };
    let whole = bytes.len() <= ARGV_MAX;
    let bytes = &bytes[..bytes.len().min(ARGV_MAX)];
    let argv = bytes
        .strip_suffix(&[0])
        .unwrap_or(bytes)
        .split(|byte| *byte == 0)
        .take(ARGUMENTS_MAX)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect();
    Ok(Image {
        path,
        argv,
        cut: path_cut || !whole,
    })
}

/// The file that a process executes, and whether its path was cut.
pub fn program(pid: u32) -> io::Result<(String, bool)> {
    let path = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    let path = path.to_string_lossy();
    let end = path.floor_char_boundary(TEXT_MAX / 2);
    Ok((path[..end].to_owned(), end < path.len()))
}

/// Arguments as `/proc` has them, and one byte more than are kept.
fn command_line(pid: u32) -> io::Result<Vec<u8>> {
    let mut bytes = [0; ARGV_MAX + 1];
    // The kernel gives all that there is room for at once.
    let length = File::open(format!("/proc/{pid}/cmdline"))?.read(&mut bytes)?;
    Ok(bytes[..length].to_vec())
}

/// Arguments as a process holds them, and one byte more than are kept.
fn arguments(stat: &Stat, pid: u32) -> Option<Vec<u8>> {
    let (begin, end) = stat.layout.arguments;
    let length = usize::try_from(end.checked_sub(begin)?).ok()?;
    if begin == 0 || length == 0 {
        return None;
    }
    let mut bytes = vec![0; length.min(ARGV_MAX + 1)];
    let read = OfThread(pid).read(begin, &mut bytes).ok()?;
    (read == bytes.len()).then_some(bytes)
}

/// The process of a thread; the thread's own number if it is gone.
pub fn process_of(thread: u32) -> u32 {
    if sys::is_process(thread) {
        return thread;
    }
    std::fs::read_to_string(format!("/proc/{thread}/status"))
        .ok()
        .and_then(|status| {
            status
                .lines()
                .find_map(|line| line.strip_prefix("Tgid:"))?
                .trim()
                .parse()
                .ok()
        })
        .unwrap_or(thread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    /// Memory from an address on; reads beyond its end are short, as the kernel's.
    struct Fake {
        base: u64,
        bytes: Vec<u8>,
    }

    impl Fake {
        fn piece(&self, address: u64, length: usize) -> Option<&[u8]> {
            let begin = usize::try_from(address.checked_sub(self.base)?).ok()?;
            let bytes = self.bytes.get(begin..).filter(|bytes| !bytes.is_empty())?;
            Some(&bytes[..length.min(bytes.len())])
        }
    }

    impl Memory for Fake {
        fn read_pieces(&self, pieces: &[(u64, usize)], into: &mut [u8]) -> io::Result<usize> {
            let mut read = 0;
            for (address, length) in pieces {
                let piece = match self.piece(*address, *length) {
                    Some(piece) => piece,
                    None if read == 0 => return Err(io::ErrorKind::InvalidInput.into()),
                    None => break,
                };
                into[read..read + piece.len()].copy_from_slice(piece);
                read += piece.len();
                if piece.len() < *length {
                    break;
                }
            }
            Ok(read)
        }
    }

    #[test]
    fn texts_are_read_up_to_their_nul_and_not_beyond_the_bound() {
        let memory = Fake {
            base: 4000,
            bytes: [vec![b'x'; 3000], vec![0]].concat(),
        };
        let whole = text(&memory, 4000, TEXT_MAX).unwrap();
        assert_eq!((whole.bytes.len(), whole.cut), (3000, false));
        let part = text(&memory, 4000, 100).unwrap();
        assert_eq!((part.bytes.len(), part.cut), (100, true));
        assert!(text(&memory, 1, 10).is_err());
        assert!(text(&memory, u64::MAX, 10).is_err());
    }

    #[test]
    fn an_endless_vector_ends() {
        // Each pointer leads to the same text.
        let mut bytes: Vec<u8> = (0..10_000).flat_map(|_| 8192_u64.to_ne_bytes()).collect();
        bytes[..2].copy_from_slice(b"a\0");
        let vector = Fake { base: 8192, bytes };
        let (found, cut) = texts(&mut Ahead::of(&vector, &mut Pages::default()), 8192 + 8, TEXT_MAX).unwrap();
        assert_eq!((found.len(), cut), (ARGUMENTS_MAX, true));
    }

    #[test]
    fn what_was_read_ahead_is_what_is_there() {
        let mut bytes = vec![b'x'; 8192];
        bytes[..4].copy_from_slice(b"one\0");
        bytes[4092..4100].copy_from_slice(b"acro\0ss\0");
        let memory = Fake {
            base: 2 * PAGE,
            bytes,
        };
        let (first, across, missing, long) = (2 * PAGE, 3 * PAGE - 4, 9 * PAGE, 2 * PAGE + 100);
        let found = |text: io::Result<Text>| text.map(|text| (text.bytes, text.cut)).ok();
        // What comes after a page that can't be read is read when it is wanted.
        let mut pages = Pages::default();
        for order in [[first, across, missing, long], [missing, long, across, first]] {
            let mut ahead = Ahead::of(&memory, &mut pages);
            ahead.read_ahead(&order);
            for address in order {
                assert_eq!(
                    found(text(&ahead, address, TEXT_MAX)),
                    found(text(&memory, address, TEXT_MAX))
                );
            }
        }
        let nothing = Fake {
            base: 2 * PAGE,
            bytes: Vec::new(),
        };
        let mut ahead = Ahead::of(&memory, &mut pages);
        ahead.read_ahead(&[first]);
        let kept = Ahead {
            memory: &nothing,
            pages: ahead.pages,
        };
        assert_eq!(
            found(text(&kept, first, TEXT_MAX)),
            Some((b"one".to_vec(), false))
        );
        assert!(text(&kept, across, TEXT_MAX).is_err());
    }

    #[test]
    fn this_process_can_read_itself() {
        let argument = c"--flag".as_ptr() as u64;
        let vector = [argument, argument, 0];
        let me = OfThread(sys::thread());
        let (found, cut) = texts(
            &mut Ahead::of(&me, &mut Pages::default()),
            vector.as_ptr() as u64,
            TEXT_MAX,
        )
        .unwrap();
        assert_eq!(
            (found.as_slice(), cut),
            (["--flag".to_owned(), "--flag".to_owned()].as_slice(), false)
        );
        assert!(text(&me, 0, 10).is_err());
    }

    #[test]
    fn what_a_process_executes_is_seen_in_its_memory_as_in_proc() {
        // It waits for a line that never comes.
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "read line", "name", ""])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        // Until then the command may not have been loaded.
        while Stat::of(pid).and_then(|stat| arguments(&stat, pid)).is_none() {
            std::thread::yield_now();
        }
        let stat = Stat::of(pid).unwrap();
        assert_eq!(arguments(&stat, pid).unwrap(), command_line(pid).unwrap());
        let image = image(pid, &stat).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(image.argv, ["/bin/sh", "-c", "read line", "name", ""]);
        assert_eq!(Path::new(&image.path), std::fs::canonicalize("/bin/sh").unwrap());
        assert_eq!((stat.parent, image.cut), (std::process::id(), false));
    }

    #[test]
    fn a_threads_process_is_found() {
        let thread = std::thread::spawn(|| (sys::thread(), process_of(sys::thread())));
        let (thread, process) = thread.join().unwrap();
        assert_ne!(thread, process);
        assert_eq!(process, std::process::id());
        assert_eq!(process_of(process), process);
    }

    #[test]
    fn addresses_of_each_family_are_read() {
        let inet = [2, 0, 0, 80, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        let peer = parse_peer(&inet, false).unwrap();
        assert_eq!((peer.address.as_str(), peer.port), ("10.0.0.1", Some(80)));
        assert_eq!(parse_peer(b"\x01\0/run/x\0", false).unwrap().address, "/run/x");
        assert_eq!(parse_peer(b"\x01\0\0name", false).unwrap().address, "@name");
        for bytes in [&[0, 0][..], &[2], &[2, 0, 1]] {
            assert_eq!(parse_peer(bytes, true), None);
        }
    }

    #[test]
    fn a_datagram_without_a_family_goes_where_one_of_ipv4_does() {
        let unspecified = [0, 0, 0, 80, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        let sent = parse_peer(&unspecified, true).unwrap();
        assert_eq!((sent.address.as_str(), sent.port), ("10.0.0.1", Some(80)));
        // To connect so is to disconnect, and the kernel takes no shorter one.
        assert_eq!(parse_peer(&unspecified, false), None);
        assert_eq!(parse_peer(&unspecified[..15], true), None);
    }

    proptest! {
        #[test]
        fn nothing_in_memory_makes_a_read_fail_badly(
            bytes in proptest::collection::vec(any::<u8>(), 1..600), at: u64, near in 0_u64..600, longest in 0_usize..5000,
        ) {
            let memory = Fake { base: 4096 - 100, bytes };
            let mut pages = Pages::default();
            for address in [at, memory.base + near] {
                if let Ok(text) = text(&memory, address, longest) {
                    prop_assert!(text.bytes.len() <= longest);
                }
                if let Ok((found, _)) = texts(&mut Ahead::of(&memory, &mut pages), address, longest) {
                    prop_assert!(found.len() <= ARGUMENTS_MAX);
                }
                let _ = peer(&memory, address, at, true);
                let _ = message_peer(&memory, address);
            }
        }
    }
}
