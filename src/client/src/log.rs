//! The action log: one record a line, from the recorder's own output.

use agentsandbox_api::action::Action;
use agentsandbox_api::names::CONTAINER_RECORDER;
use futures::{AsyncBufReadExt, Stream, TryStreamExt};
use kube::api::LogParams;
use serde::Deserialize;

use crate::{Error, Result, Sandbox};

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
    /// The lines of the recorder's output: the records of the action log, and whatever else it says. `tail` limits
    /// them to the last so many.
    pub async fn log_lines(
        &self,
        follow: bool,
        tail: Option<i64>,
    ) -> Result<impl Stream<Item = Result<String>> + use<>> {
        let pod = self.pod_name().await?;
        let parameters = LogParams {
            container: Some(CONTAINER_RECORDER.to_owned()),
            follow,
            tail_lines: tail,
            ..LogParams::default()
        };
        let log = self.pods().log_stream(&pod, &parameters).await?;
        Ok(log
            .lines()
            .map_err(|error| Error::Disconnected(error.to_string())))
    }

    /// The records of the action log. To check that none is missing or changed, use the lines and the head in status.
    pub async fn log(
        &self,
        follow: bool,
        tail: Option<i64>,
    ) -> Result<impl Stream<Item = Result<Record>> + use<>> {
        let lines = self.log_lines(follow, tail).await?;
        Ok(lines.try_filter_map(async |line| Ok(Record::parse(&line))))
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
