//! What the command prints.

use std::time::Duration;

use agentsandbox_api::names::CONTAINER_AGENT;
use futures::{AsyncReadExt, pin_mut};
use kube::api::LogParams;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::{Error, Result, Sandbox, Until};

/// Pause before a log that is not there yet, or broke, is asked for again.
const PAUSE: Duration = Duration::from_millis(250);
/// Bytes moved at once.
const PIECE: usize = 32 << 10;

impl Sandbox {
    /// Writes what the command has printed, standard output and standard error together, byte by byte as it came. It
    /// is the sandbox's own text: a terminal acts on what is in it. With `follow`, waits for the start and goes on to
    /// the end of the run; a connection that breaks is made again where it broke, unless the node has rotated the log
    /// meanwhile. Returns the number of bytes.
    pub async fn output(&self, follow: bool, sink: &mut (impl AsyncWrite + Unpin)) -> Result<u64> {
        let mut written = 0;
        loop {
            // Asked before the log is read: what ends meanwhile is read once more.
            let ended = if follow {
                let seen = self.wait(Until::Started, None, |_| {}).await?;
                crate::verdict(&seen).is_some()
            } else {
                true
            };
            let pod = self.pod_name().await?;
            match self.copy_log(&pod, follow, &mut written, sink).await {
                Ok(()) if ended => return Ok(written),
                // The container is not there yet.
                Err(Error::Kube(kube::Error::Api(status))) if status.code == 400 && !ended => {}
                Err(Error::Kube(kube::Error::Api(status))) if status.code == 400 => return Ok(written),
                Err(Error::Kube(kube::Error::Api(status))) if status.code == 404 => {
                    // Removed between two looks. The next look says why.
                    if ended {
                        return Err(Error::NoPod {
                            name: self.name().to_owned(),
                            phase: "ended".to_owned(),
                            reason: ", its pod was removed".to_owned(),
                        });
                    }
                }
                Err(Error::Kube(error @ kube::Error::Api(_))) => return Err(error.into()),
                Err(error @ Error::Io(_)) => return Err(error),
                Err(error) if ended => return Err(error),
                Ok(()) | Err(_) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn copy_log(
        &self,
        pod: &str,
        follow: bool,
        written: &mut u64,
        sink: &mut (impl AsyncWrite + Unpin),
    ) -> Result<()> {
        let parameters = LogParams {
            container: Some(CONTAINER_AGENT.to_owned()),
            follow,
            ..LogParams::default()
        };
        let log = self.pods().log_stream(pod, &parameters).await?;
        pin_mut!(log);
        let mut known = *written;
        let mut buffer = vec![0; PIECE];
        loop {
            let length = match log.read(&mut buffer).await {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) => return Err(Error::Disconnected(error.to_string())),
            };
            let skip = usize::try_from(known).unwrap_or(usize::MAX).min(length);
            known -= skip as u64;
            sink.write_all(&buffer[skip..length]).await?;
            sink.flush().await?;
            *written += (length - skip) as u64;
        }
        Ok(())
    }
}
