//! The action log: one record a line, from the recorder's own output.

use std::pin::Pin;
use std::time::Duration;

use agentsandbox_api::action::Action;
use agentsandbox_api::names::CONTAINER_RECORDER;
use futures::{Stream, StreamExt, stream};
use kube::api::LogParams;
use serde::Deserialize;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::compat::FuturesAsyncReadCompatExt;

use crate::{Error, Result, Sandbox, Until};

/// Longest line that is taken, in bytes. A record holds at most 8 KiB.
const LINE_MAX: usize = 64 << 10;
/// Pause before a log that is not there yet, or broke, is asked for again.
const PAUSE: Duration = Duration::from_secs(1);

/// One record of the action log.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The line as it was written; its SHA-256 is what the next record names.
    pub line: String,
    /// Its number, from 0.
    pub sequence: u64,
    /// When, RFC 3339 with milliseconds.
    pub time: String,
    /// Class number in OCSF.
    pub class: u16,
    /// What happened; `None` if a newer recorder wrote what this version does not know. Texts are the sandbox's own.
    pub action: Option<Action>,
}

#[derive(Deserialize)]
struct Envelope {
    seq: u64,
    time: String,
    class: u16,
    #[serde(flatten)]
    action: serde_json::Value,
}

impl Record {
    /// The record that a line holds; `None` for any other line.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let envelope: Envelope = serde_json::from_str(line).ok()?;
        Some(Self {
            line: line.to_owned(),
            sequence: envelope.seq,
            time: envelope.time,
            class: envelope.class,
            action: serde_json::from_value(envelope.action).ok(),
        })
    }
}

impl Sandbox {
    /// The records of the action log, in their order: those that there are, or only the last `tail` of them. With
    /// `follow`, waits for the start and goes on to the end of the run; a connection that breaks is made again, and no
    /// record comes twice. To check that none is missing or changed, hash the lines and compare with the status.
    pub fn log(&self, follow: bool, tail: Option<i64>) -> impl Stream<Item = Result<Record>> + use<> {
        let cursor = Cursor {
            sandbox: self.clone(),
            follow,
            tail,
            lines: None,
            ended: !follow,
            next: 0,
        };
        stream::try_unfold(cursor, async |mut cursor| {
            let record = cursor.record().await?;
            Ok(record.map(|record| (record, cursor)))
        })
    }

    async fn log_lines(&self, follow: bool, tail: Option<i64>) -> Result<Lines> {
        let pod = self.pod_name().await?;
        let parameters = LogParams {
            container: Some(CONTAINER_RECORDER.to_owned()),
            follow,
            tail_lines: tail,
            ..LogParams::default()
        };
        let log = self.pods().log_stream(&pod, &parameters).await?;
        let codec = LinesCodec::new_with_max_length(LINE_MAX);
        Ok(Box::pin(FramedRead::new(log.compat(), codec)))
    }
}

type Lines = Pin<Box<dyn Stream<Item = Result<String, LinesCodecError>> + Send>>;

/// How far a log was read.
struct Cursor {
    sandbox: Sandbox,
    follow: bool,
    tail: Option<i64>,
    lines: Option<Lines>,
    /// Whether the run had ended before the lines were asked for: when they end, nothing more comes.
    ended: bool,
    /// Number of the next record.
    next: u64,
}

impl Cursor {
    async fn record(&mut self) -> Result<Option<Record>> {
        loop {
            let Some(lines) = &mut self.lines else {
                self.open().await?;
                continue;
            };
            match lines.next().await {
                Some(Ok(line)) => {
                    // After a broken connection the log is read from its beginning.
                    let record = Record::parse(&line).filter(|record| record.sequence >= self.next);
                    if let Some(record) = record {
                        self.next = record.sequence + 1;
                        self.ended |= matches!(record.action, Some(Action::End { .. }));
                        return Ok(Some(record));
                    }
                }
                None if self.ended => return Ok(None),
                Some(Err(error)) if self.ended => return Err(Error::Recorder(error.to_string())),
                Some(Err(_)) | None => {
                    self.lines = None;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn open(&mut self) -> Result<()> {
        if self.follow {
            let seen = self.sandbox.wait(Until::Started, None, |_| {}).await?;
            self.ended = crate::verdict(&seen).is_some();
        }
        match self.sandbox.log_lines(self.follow, self.tail.take()).await {
            Ok(lines) => self.lines = Some(lines),
            // The container is not there yet.
            Err(Error::Kube(kube::Error::Api(status))) if status.code == 400 && !self.ended => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_told_from_other_lines() {
        let record = Record::parse(
            r#"{"seq":3,"time":"2026-01-02T03:04:05.678Z","class":1007,"activity":"exit","pid":7,"code":1,"prev":"ab"}"#,
        )
        .unwrap();
        assert_eq!((record.sequence, record.class), (3, 1007));
        assert!(matches!(record.action, Some(Action::Exit { pid: 7, .. })));
        let newer =
            Record::parse(r#"{"seq":3,"time":"t","class":1,"activity":"unheardOf","prev":"ab"}"#).unwrap();
        assert_eq!(newer.action, None);
        for line in ["", "recorder: hello", "{}", "[1]", r#"{"seq":"x"}"#] {
            assert_eq!(Record::parse(line), None, "{line}");
        }
    }
}
