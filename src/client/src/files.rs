//! Files in and out of a session, as steps.

use std::io::{Read, Write};
use std::path::Path;

use agentsandbox_api::names::PATH_SUPERVISOR_IN_IMAGE;
use tokio::task::JoinHandle;
use tokio_util::io::SyncIoBridge;

use crate::archive::{self, ArchiveError, Bounds, Transferred};
use crate::step::{RunningStep, StepOutput, collect};
use crate::{Error, Result, Sandbox};

/// Most bytes kept of what a transfer says on standard error.
const COMPLAINT_MAX: usize = 16 << 10;
/// Most bytes read beside the files: headers, padding.
const PADDING_MAX: u64 = 1 << 20;

fn words(direction: &str, path: &str) -> Vec<String> {
    vec![
        PATH_SUPERVISOR_IN_IMAGE.to_owned(),
        "step".to_owned(),
        direction.to_owned(),
        path.to_owned(),
    ]
}

impl Sandbox {
    /// Copies a file or folder out of the sandbox; it becomes `target`. Nothing outside of `target` is written; see
    /// [`archive`].
    pub async fn download(&self, path: &str, target: &Path, bounds: Bounds) -> Result<Transferred> {
        let target = target.to_owned();
        self.fetch(path, move |stream| archive::unpack(stream, &target, bounds))
            .await
    }

    /// The content of a file of the sandbox, at most `limit` bytes.
    pub async fn read_file(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        self.fetch(path, move |stream| only_file(stream, limit)).await
    }

    /// Copies a file or folder into the folder `folder` of the sandbox, as `name`.
    pub async fn upload(
        &self,
        source: &Path,
        folder: &str,
        name: &str,
        bounds: Bounds,
    ) -> Result<Transferred> {
        let (source, name) = (source.to_owned(), name.to_owned());
        self.send(folder, move |stream| {
            archive::pack(&source, &name, stream, bounds)
        })
        .await
    }

    /// Writes a file into the folder `folder` of the sandbox. `mode` are permission bits.
    pub async fn write_file(&self, folder: &str, name: &str, content: Vec<u8>, mode: u32) -> Result<()> {
        let name = name.to_owned();
        self.send(folder, move |stream| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(mode & 0o777);
            let mut archive = tar::Builder::new(stream);
            archive
                .append_data(&mut header, &name, &content[..])
                .and_then(|()| archive.into_inner())
                .map(drop)
                .map_err(|error| ArchiveError::Io {
                    path: name.into(),
                    error,
                })
        })
        .await
    }

    async fn fetch<T: Send + 'static>(
        &self,
        path: &str,
        take: impl FnOnce(&mut dyn Read) -> Result<T, ArchiveError> + Send + 'static,
    ) -> Result<T> {
        let mut running = self.exec(words("--get", path), false).await?;
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
        give: impl FnOnce(&mut dyn Write) -> Result<T, ArchiveError> + Send + 'static,
    ) -> Result<T> {
        let mut running = self.exec(words("--put", folder), true).await?;
        let stdin = running.stdin.take().ok_or_else(broken)?;
        let complaint = tokio::spawn(collect(running.stderr.take(), COMPLAINT_MAX));
        let printed = tokio::spawn(collect(running.stdout.take(), COMPLAINT_MAX));
        let mut stream = SyncIoBridge::new(stdin);
        let given = tokio::task::spawn_blocking(move || {
            let given = give(&mut stream);
            // Without its end the receiver would wait for more; after a failure it must not take it for complete.
            if given.is_ok() {
                let _ = stream.shutdown();
            }
            given
        });
        let given = given.await.map_err(std::io::Error::other)?;
        // After a broken pipe the receiver says why.
        if given.is_ok() || is_broken_pipe(&given) {
            end(running, complaint).await?;
            printed.await.map_err(std::io::Error::other)??;
        }
        Ok(given?)
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

/// A regular file, which must be the archive's only entry.
fn only_file(archive: &mut dyn Read, limit: u64) -> Result<Vec<u8>, ArchiveError> {
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
        let mut content = Vec::new();
        entry
            .take(limit.saturating_add(1))
            .read_to_end(&mut content)
            .map_err(malformed)?;
        if content.len() as u64 > limit {
            return Err(ArchiveError::Bytes(limit));
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
        assert_eq!(only_file(&mut &file[..], 5).unwrap(), b"12345");
        assert!(matches!(
            only_file(&mut &file[..], 4),
            Err(ArchiveError::Bytes(4))
        ));
        let folder = archive(tar::EntryType::Directory, b"");
        assert!(matches!(
            only_file(&mut &folder[..], 4),
            Err(ArchiveError::Malformed(_))
        ));
        assert!(matches!(only_file(&mut &b""[..], 4), Err(ArchiveError::Empty)));
    }
}
