//! Files in and out of a session, as steps.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use agentsandbox_api::names::PATH_WORKSPACE;
use tokio::task::JoinHandle;
use tokio_util::io::SyncIoBridge;

use crate::archive::{self, ArchiveError, Bounds, Transferred};
use crate::exec::Input;
use crate::step::{RunningStep, StepOutput, collect};
use crate::{Error, Result, Sandbox};

/// Most bytes kept of what a transfer says on standard error.
const COMPLAINT_MAX: usize = 16 << 10;
/// Most bytes read beside the files: headers, padding.
const PADDING_MAX: u64 = 1 << 20;

impl Sandbox {
    /// Copies a file or folder out of the sandbox; it becomes `target`. Nothing outside of `target` is written; see
    /// [`archive`]. Relative paths of the sandbox start at the workspace.
    pub async fn download(&self, path: &str, target: &Path, bounds: Bounds) -> Result<Transferred> {
        let target = target.to_owned();
        self.fetch(path, bounds.seconds, move |stream| {
            archive::unpack(stream, &target, bounds)
        })
        .await
    }

    /// The content of one regular file of the sandbox, at most `limit` bytes. Nothing is written here.
    pub async fn read_file(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        self.fetch(path, Bounds::default().seconds, move |stream| {
            regular_file(stream, limit)
        })
        .await
    }

    /// Copies a file or folder to `path` of the sandbox; folders above it are made.
    pub async fn upload(&self, source: &Path, path: &str, bounds: Bounds) -> Result<Transferred> {
        let (folder, name) = place(path)?;
        let source = source.to_owned();
        self.send(&folder, bounds.seconds, move |stream| {
            archive::pack(&source, &name, stream, bounds)
        })
        .await
    }

    /// Writes a file to `path` of the sandbox; folders above it are made. `mode` are permission bits.
    pub async fn write_file(&self, path: &str, content: Vec<u8>, mode: u32) -> Result<()> {
        let (folder, name) = place(path)?;
        self.send(&folder, Bounds::default().seconds, move |stream| {
            one_file(stream, &name, &content, mode)
        })
        .await
    }

    async fn fetch<T: Send + 'static>(
        &self,
        path: &str,
        seconds: u32,
        take: impl FnOnce(&mut dyn Read) -> Result<T, ArchiveError> + Send + 'static,
    ) -> Result<T> {
        let words = [
            "step",
            "--attended",
            "--timeout",
            &seconds.to_string(),
            "--get",
            path,
        ];
        let mut running = self.transfer(words, Input::Held, seconds).await?;
        let stdout = running.stdout.take().ok_or_else(broken)?;
        let complaint = tokio::spawn(collect(running.stderr.take(), COMPLAINT_MAX));
        let mut stream = SyncIoBridge::new(stdout);
        let taken = tokio::task::spawn_blocking(move || {
            let taken = take(&mut stream);
            // What follows the archive's end is padding; the sender waits until it is read.
            if taken.is_ok() {
                let _ = std::io::copy(&mut (&mut stream).take(PADDING_MAX), &mut std::io::sink());
            }
            taken
        });
        let taken = taken.await.map_err(std::io::Error::other)?;
        match taken {
            // An archive that broke off: the sender says why.
            Ok(_) | Err(ArchiveError::Empty | ArchiveError::Malformed(_)) => {
                end(running, complaint).await?;
                Ok(taken?)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn send<T: Send + 'static>(
        &self,
        folder: &str,
        seconds: u32,
        give: impl FnOnce(&mut dyn Write) -> Result<T, ArchiveError> + Send + 'static,
    ) -> Result<T> {
        let words = ["step", "--timeout", &seconds.to_string(), "--put", folder];
        let mut running = self.transfer(words, Input::Passed, seconds).await?;
        let stdin = running.stdin.take().ok_or_else(broken)?;
        drop(running.stdout.take());
        let complaint = tokio::spawn(collect(running.stderr.take(), COMPLAINT_MAX));
        let mut stream = SyncIoBridge::new(stdin);
        let given = tokio::task::spawn_blocking(move || {
            let given = give(&mut stream);
            // Without its end the receiver would wait for more.
            if given.is_ok() {
                let _ = stream.shutdown();
            }
            given
        });
        let given = given.await.map_err(std::io::Error::other)?;
        // After a broken pipe the receiver says why.
        if given.is_ok() || is_broken_pipe(&given) {
            end(running, complaint).await?;
        }
        Ok(given?)
    }

    /// One step that moves files, which may last so many seconds.
    async fn transfer<const N: usize>(
        &self,
        words: [&str; N],
        input: Input,
        seconds: u32,
    ) -> Result<RunningStep> {
        let most = Duration::from_secs(seconds.into());
        let words = words.into_iter().map(str::to_owned).collect();
        self.exec(words, input, Some(most)).await
    }
}

/// Folder and name of a path of the sandbox, which starts at the workspace if it is relative.
fn place(path: &str) -> Result<(String, String), ArchiveError> {
    let path = path.trim_end_matches('/');
    let whole = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{PATH_WORKSPACE}/{path}")
    };
    match whole.rsplit_once('/') {
        Some((folder, name)) if !matches!(name, "" | "." | "..") && !path.is_empty() => {
            let folder = if folder.is_empty() { "/" } else { folder };
            Ok((folder.to_owned(), name.to_owned()))
        }
        _ => Err(ArchiveError::Path(path.to_owned())),
    }
}

fn broken() -> Error {
    Error::Disconnected(String::new())
}

fn is_broken_pipe<T>(given: &Result<T, ArchiveError>) -> bool {
    matches!(given, Err(ArchiveError::Io { error, .. }) if error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The transfer's end at the other side.
async fn end(running: RunningStep, complaint: JoinHandle<Result<Vec<u8>>>) -> Result<()> {
    let exit_code = running.wait().await?;
    let stderr = complaint.await.map_err(std::io::Error::other)??;
    let output = StepOutput {
        exit_code,
        stdout: Vec::new(),
        stderr,
    }
    .refused()?;
    if output.exit_code == 0 {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Recorder(if said.is_empty() {
        format!("exit code {exit_code}")
    } else {
        said
    }))
}

/// An archive of one file that was changed now.
fn one_file(stream: impl Write, name: &str, content: &[u8], mode: u32) -> Result<(), ArchiveError> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode & 0o777);
    header.set_mtime(archive::seconds(SystemTime::now()));
    let mut archive = tar::Builder::new(stream);
    archive
        .append_data(&mut header, name, content)
        .and_then(|()| archive.into_inner())
        .map(drop)
        .map_err(|error| ArchiveError::Io {
            path: name.into(),
            error,
        })
}

/// The archive's first entry, which must be a regular file.
fn regular_file(archive: &mut dyn Read, limit: u64) -> Result<Vec<u8>, ArchiveError> {
    let malformed = |error: std::io::Error| ArchiveError::Malformed(error.to_string());
    let mut archive = tar::Archive::new(archive.take(limit.saturating_add(PADDING_MAX)));
    for entry in archive.entries().map_err(malformed)?.raw(true) {
        let entry = entry.map_err(malformed)?;
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() || kind.is_pax_global_extensions() {
            continue;
        }
        if !kind.is_file() {
            return Err(ArchiveError::Malformed("it is no regular file".to_owned()));
        }
        let size = entry.size();
        if size > limit {
            return Err(ArchiveError::Bytes(limit));
        }
        let mut content = Vec::new();
        entry
            .take(limit.saturating_add(1))
            .read_to_end(&mut content)
            .map_err(malformed)?;
        if content.len() as u64 != size {
            return Err(ArchiveError::Malformed("it ends early".to_owned()));
        }
        return Ok(content);
    }
    Err(ArchiveError::Empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(kind: tar::EntryType, content: &[u8]) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_data(&mut header, "x", content).unwrap();
        archive.into_inner().unwrap()
    }

    #[test]
    fn one_regular_file_within_the_limit_is_read() {
        let file = archive(tar::EntryType::Regular, b"12345");
        assert_eq!(regular_file(&mut &file[..], 5).unwrap(), b"12345");
        assert!(matches!(
            regular_file(&mut &file[..], 4),
            Err(ArchiveError::Bytes(4))
        ));
        assert!(matches!(
            regular_file(&mut &file[..514], 5),
            Err(ArchiveError::Malformed(_))
        ));
        let folder = archive(tar::EntryType::Directory, b"");
        assert!(matches!(
            regular_file(&mut &folder[..], 4),
            Err(ArchiveError::Malformed(_))
        ));
        assert!(matches!(regular_file(&mut &b""[..], 4), Err(ArchiveError::Empty)));
    }

    #[test]
    fn a_file_that_is_written_was_changed_now() {
        let before = archive::seconds(SystemTime::now());
        let mut written = Vec::new();
        one_file(&mut written, "x", b"12", 0o4644).unwrap();
        let mut written = tar::Archive::new(&written[..]);
        let entry = written.entries().unwrap().next().unwrap().unwrap();
        let header = entry.header();
        assert!(header.mtime().unwrap() >= before);
        assert_eq!((header.mode().unwrap(), header.size().unwrap()), (0o644, 2));
    }

    #[test]
    fn paths_start_at_the_workspace_and_name_something() {
        for (path, folder, name) in [
            ("a", "/workspace", "a"),
            ("data/x/", "/workspace/data", "x"),
            ("/tmp/a", "/tmp", "a"),
            ("/a", "/", "a"),
        ] {
            assert_eq!(place(path).unwrap(), (folder.to_owned(), name.to_owned()));
        }
        for path in ["", "/", "a/..", "."] {
            assert!(place(path).is_err(), "{path}");
        }
    }
}
