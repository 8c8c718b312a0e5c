//! Headers of tar archives: POSIX ustar and pax, and GNU's long names.

use std::io;

use super::refused;

/// A header, and the unit that everything is padded to, in bytes.
pub const BLOCK: usize = 512;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// Attributes of the next entry (pax).
    Attributes,
    /// Attributes of all entries (pax): nothing here needs any.
    Defaults,
    /// The next entry's name (GNU).
    LongName,
    /// The next entry's link target (GNU).
    LongTarget,
}

/// One header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Its path.
    pub path: Vec<u8>,
    /// Where a link leads.
    pub target: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Bytes of content that follow.
    pub size: u64,
    /// Unix time of the last change, in seconds.
    pub changed: u64,
}

impl Header {
    /// Reads a header; `None` if the block is empty, as at an archive's end.
    pub fn read(block: &[u8; BLOCK]) -> io::Result<Option<Self>> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if number(&block[148..156])? != u64::from(checksum(block)) {
            return Err(refused("this is no tar archive: a header's checksum is wrong"));
        }
        let mut path = text(&block[..100]).to_vec();
        if &block[257..263] == b"ustar\0" && block[345] != 0 {
            let mut whole = text(&block[345..500]).to_vec();
            whole.push(b'/');
            whole.append(&mut path);
            path = whole;
        }
        let kind = match block[156] {
            b'0' | b'7' | 0 if path.ends_with(b"/") => Kind::Folder,
            b'0' | b'7' | 0 => Kind::File,
            b'5' => Kind::Folder,
            b'2' => Kind::Link,
            b'x' => Kind::Attributes,
            b'g' => Kind::Defaults,
            b'L' => Kind::LongName,
            b'K' => Kind::LongTarget,
            other => {
                let what = match other {
                    b'1' => "a hard link",
                    b'3' | b'4' => "a device",
                    b'6' => "a named pipe",
                    _ => "of an unknown kind",
                };
                let path = String::from_utf8_lossy(&path).into_owned();
                return Err(refused(format!(
                    "{path} is {what}; only files, folders and symbolic links are unpacked"
                )));
            }
        };
        Ok(Some(Self {
            kind,
            path,
            target: text(&block[157..257]).to_vec(),
            mode: u32::try_from(number(&block[100..108])? & 0o777).unwrap_or_default(),
            size: number(&block[124..136])?,
            changed: number(&block[136..148]).unwrap_or_default(),
        }))
    }

    /// The header's blocks, with those of its long names before it.
    pub fn blocks(&self) -> Vec<u8> {
        let mut blocks = Vec::with_capacity(BLOCK);
        let mut attributes = Vec::new();
        if self.path.len() > 100 {
            attribute(&mut attributes, "path", &self.path);
        }
        if self.target.len() > 100 {
            attribute(&mut attributes, "linkpath", &self.target);
        }
        // Eleven octal digits.
        if self.size > 0o777_7777_7777 {
            attribute(&mut attributes, "size", self.size.to_string().as_bytes());
        }
        if !attributes.is_empty() {
            let of_attributes = Self {
                kind: Kind::Attributes,
                path: b"pax".to_vec(),
                target: Vec::new(),
                mode: 0o644,
                size: attributes.len() as u64,
                changed: 0,
            };
            blocks.extend(of_attributes.block());
            blocks.extend(&attributes);
            blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
        }
        blocks.extend(self.block());
        blocks
    }

    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        let short = |bytes: &[u8]| bytes[..bytes.len().min(100)].to_vec();
        put(0, &short(&self.path));
        put(100, format!("{:07o}\0", self.mode & 0o777).as_bytes());
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", self.size & 0o777_7777_7777).as_bytes());
        put(
            136,
            format!("{:011o}\0", self.changed & 0o777_7777_7777).as_bytes(),
        );
        let kind = match self.kind {
            Kind::File => b"0",
            Kind::Folder => b"5",
            Kind::Link => b"2",
            Kind::Attributes => b"x",
            Kind::Defaults => b"g",
            Kind::LongName => b"L",
            Kind::LongTarget => b"K",
        };
        put(156, kind);
        put(157, &short(&self.target));
        put(257, b"ustar\x0000");
        let sum = checksum(&block);
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

fn checksum(block: &[u8; BLOCK]) -> u32 {
    let all: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let field: u32 = block[148..156].iter().map(|byte| u32::from(*byte)).sum();
    all - field + 8 * u32::from(b' ')
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// An octal number, or a binary one where the first bit is set (GNU).
fn number(field: &[u8]) -> io::Result<u64> {
    let wrong = || refused("this is no tar archive: a number in a header is wrong");
    if field[0] & 0x80 != 0 {
        return field[1..]
            .iter()
            .try_fold(u64::from(field[0] & 0x7f), |number, byte| {
                Ok(number.checked_mul(256).ok_or_else(wrong)? + u64::from(*byte))
            });
    }
    let digits: Vec<u8> = field
        .iter()
        .copied()
        .skip_while(|byte| *byte == b' ')
        .take_while(|byte| *byte != 0 && *byte != b' ')
        .collect();
    digits.iter().try_fold(0_u64, |number, digit| match digit {
        b'0'..=b'7' => Ok(number.checked_mul(8).ok_or_else(wrong)? + u64::from(digit - b'0')),
        _ => Err(wrong()),
    })
}

/// Appends one pax attribute: its own length, in decimal digits, is part of it.
fn attribute(attributes: &mut Vec<u8>, name: &str, value: &[u8]) {
    let rest = name.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    attributes.extend(format!("{length} {name}=").as_bytes());
    attributes.extend(value);
    attributes.push(b'\n');
}

/// Applies pax attributes to the entry that they stand before.
pub fn apply(attributes: &[u8], header: &mut Header) -> io::Result<()> {
    let wrong = || refused("this is no tar archive: attributes of an entry are wrong");
    let mut rest = attributes;
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let length: usize = std::str::from_utf8(&rest[..space])
            .ok()
            .and_then(|length| length.parse().ok())
            .ok_or_else(wrong)?;
        let record = rest.get(space + 1..length).ok_or_else(wrong)?;
        rest = &rest[length..];
        let record = record.strip_suffix(b"\n").ok_or_else(wrong)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        let (name, value) = (&record[..equals], &record[equals + 1..]);
        match name {
            b"path" => header.path = value.to_vec(),
            b"linkpath" => header.target = value.to_vec(),
            b"size" => {
                header.size = std::str::from_utf8(value)
                    .ok()
                    .and_then(|size| size.parse().ok())
                    .ok_or_else(wrong)?;
            }
            _ if name.starts_with(b"GNU.sparse") => {
                return Err(refused(
                    "sparse files are not unpacked; make the archive without --sparse",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_in_a_header_or_its_attributes_confuses(bytes in proptest::collection::vec(any::<u8>(), BLOCK), attributes in ".{0,80}") {
            let mut block: [u8; BLOCK] = bytes.try_into().unwrap();
            let _ = Header::read(&block);
            let sum = checksum(&block);
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            if let Ok(Some(mut header)) = Header::read(&block) {
                let _ = apply(attributes.as_bytes(), &mut header);
            }
        }

        #[test]
        fn a_header_is_read_as_it_was_written(path in "[a-zäß/]{1,300}", target in "[a-z]{0,300}", size in 0_u64..1 << 40, mode in 0_u32..0o1000) {
            let header = Header { kind: Kind::Link, path: path.into_bytes(), target: target.into_bytes(), mode, size, changed: 7 };
            let blocks = header.blocks();
            prop_assert!(blocks.len().is_multiple_of(BLOCK));
            let at = blocks.len() - BLOCK;
            let mut read = Header::read(blocks[at..].try_into().unwrap()).unwrap().unwrap();
            if at > 0 {
                let of_attributes = Header::read(blocks[..BLOCK].try_into().unwrap()).unwrap().unwrap();
                let length = usize::try_from(of_attributes.size).unwrap();
                apply(&blocks[BLOCK..BLOCK + length], &mut read).unwrap();
            }
            prop_assert_eq!(read, header);
        }
    }
}
