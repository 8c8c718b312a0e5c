//! `unpack` and `pack`: tar streams into and out of a sandbox, for images that have no tar. They run as ordinary
//! processes of a step, as the run's user, and can do no more than its command could.

mod header;
mod pack;
mod unpack;

use std::io::{self, Write};
use std::path::Path;

/// Most entries of one archive.
const ENTRIES_MAX: u64 = 500_000;
/// Most folders on the way to an entry.
const DEPTH_MAX: usize = 64;
/// Longest path, in bytes.
const PATH_MAX: usize = 4_096;

/// Unpacks standard input into a folder; returns the exit code.
pub fn unpack(folder: &str) -> i32 {
    told(
        "unpack",
        unpack::unpack(&mut io::stdin().lock(), Path::new(folder)),
    )
}

/// Writes a file or folder to standard output; returns the exit code.
pub fn pack(path: &str) -> i32 {
    let mut out = io::BufWriter::with_capacity(64 << 10, io::stdout().lock());
    told(
        "pack",
        pack::pack(Path::new(path), &mut out).and_then(|()| out.flush()),
    )
}

fn told(what: &str, result: io::Result<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("sandbox-supervisor: {what}: {error}");
            1
        }
    }
}

fn refused(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}
