//! What can go wrong, in words for the person at the terminal.

use std::path::{Path, PathBuf};

/// Why the cluster could not be built, started or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine lacks something.
    #[error("{0}")]
    Prerequisite(String),
    /// A program of the system or of the cluster failed.
    #[error("{program} failed ({status}): {output}")]
    Command {
        /// What was run.
        program: String,
        /// How it ended.
        status: String,
        /// The last of what it said.
        output: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate could not be made.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A part did not become ready.
    #[error("{what} was not ready within {seconds} s; see `cluster logs {part}`")]
    NotReady {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
        /// Whose log to read.
        part: &'static str,
    },
    /// Something is left over.
    #[error("left over after `down`: {0}")]
    LeftOver(String),
}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

/// Names the file in an I/O error.
pub trait InFile<T> {
    /// Names the file in an I/O error.
    fn in_file(self, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> InFile<T> for std::io::Result<T> {
    fn in_file(self, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io {
            path: path.as_ref().to_owned(),
            source,
        })
    }
}
