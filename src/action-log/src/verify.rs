//! Checks a saved log: numbers, chain, and what a status says of it.

use serde::Deserialize;

use crate::chain::{Sha, hex, parse_hex, sha256};

/// What a status says of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Records.
    pub records: u64,
    /// Hash of the last record, in hexadecimal digits.
    pub head: Option<String>,
}

/// What is wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A record has another number than the one that is due: records are missing, doubled or out of order.
    Sequence {
        /// The number that is due.
        expected: u64,
        /// The record's.
        found: u64,
    },
    /// A record does not hold the hash of the one before: one of the two was changed.
    Chain,
    /// There are fewer or more records than the status says.
    Records {
        /// What the status says.
        expected: u64,
        /// What the log holds.
        found: u64,
    },
    /// The last record is another than the one that the status names.
    Head,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sequence { expected, found } => {
                write!(f, "record {found} stands where record {expected} is due")
            }
            Self::Chain => {
                f.write_str("this record does not follow from the one before: one of them was changed")
            }
            Self::Records { expected, found } => {
                write!(f, "the log holds {found} records, the status says {expected}")
            }
            Self::Head => f.write_str("the last record is not the one that the status names"),
        }
    }
}

/// The first thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The line of the saved log, from 1; of the last record, where the log as a whole is wrong.
    pub line: u64,
    /// What is wrong.
    pub problem: Problem,
}

/// What a saved log was found to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Records of the run.
    pub records: u64,
    /// Lines that are none: what the program says besides, and records of other runs.
    pub foreign: u64,
    /// Records that were written again after a restart of the gateway, see [`Verifier::of_gateway`].
    pub replaced: u64,
    /// Hash of the last record.
    pub head: Option<String>,
    /// The first thing that is wrong.
    pub broken: Option<Broken>,
}

/// Takes a saved log line by line.
#[derive(Clone, Debug, Default)]
pub struct Verifier {
    /// The run whose records count, in a log of many runs.
    pod_uid: Option<String>,
    /// The hash of each record.
    hashes: Vec<Sha>,
    lines: u64,
    last_record: u64,
    report: Report,
}

/// What is checked of a record. Everything else is covered by its hash.
#[derive(Deserialize)]
struct Record {
    seq: u64,
    #[serde(rename = "time")]
    _time: String,
    #[serde(rename = "class")]
    _class: u16,
    #[serde(default)]
    prev: Option<String>,
    #[serde(default)]
    run: Option<Run>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    pod_uid: String,
}

impl Verifier {
    /// Of a recorder's log: one run, one chain.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Of an egress gateway's log: of the records of many runs, those of this pod count. A gateway that was restarted
    /// goes on from the last record that the status held, so that the last few numbers may be given again: these are
    /// counted in [`Report::replaced`].
    #[must_use]
    pub fn of_gateway(pod_uid: impl Into<String>) -> Self {
        Self {
            pod_uid: Some(pod_uid.into()),
            ..Self::default()
        }
    }

    /// The next line, with or without its end and the time stamp of `kubectl logs --timestamps`.
    pub fn line(&mut self, line: &str) {
        self.lines += 1;
        let text = without_timestamp(line.trim_end_matches(['\n', '\r']));
        let record = text
            .starts_with('{')
            .then(|| serde_json::from_str::<Record>(text).ok())
            .flatten()
            .filter(|record| match &self.pod_uid {
                Some(pod_uid) => record.run.as_ref().is_some_and(|run| run.pod_uid == *pod_uid),
                None => true,
            });
        match record {
            Some(record) => self.record(&record, text),
            None => self.report.foreign += 1,
        }
    }

    fn record(&mut self, record: &Record, text: &str) {
        let due = self.hashes.len() as u64;
        let prev = match &record.prev {
            Some(prev) => parse_hex(prev).map(Some),
            None => Some(None),
        };
        if self.pod_uid.is_some() && record.seq < due {
            let at = usize::try_from(record.seq).unwrap_or_default();
            let before = at.checked_sub(1).map(|at| self.hashes[at]);
            if prev == Some(before) {
                self.report.replaced += due - record.seq;
                self.hashes.truncate(at);
            }
        }
        let due = self.hashes.len() as u64;
        if record.seq != due {
            self.breaks(Problem::Sequence {
                expected: due,
                found: record.seq,
            });
        } else if prev != Some(self.hashes.last().copied()) {
            self.breaks(Problem::Chain);
        }
        self.hashes.push(sha256(text.as_bytes()));
        self.last_record = self.lines;
    }

    fn breaks(&mut self, problem: Problem) {
        let line = self.lines;
        self.report.broken.get_or_insert(Broken { line, problem });
    }

    /// What was found, with what the status says if it is known.
    #[must_use]
    pub fn finish(mut self, expected: Option<&Expected>) -> Report {
        self.lines = self.last_record;
        self.report.records = self.hashes.len() as u64;
        self.report.head = self.hashes.last().map(|hash| hex(hash));
        if let Some(expected) = expected {
            let found = self.report.records;
            if found != expected.records {
                self.breaks(Problem::Records {
                    expected: expected.records,
                    found,
                });
            } else if self.report.head != expected.head {
                self.breaks(Problem::Head);
            }
        }
        self.report
    }
}

/// Checks the recorder's log of one run.
#[must_use]
pub fn verify(log: &str, expected: Option<&Expected>) -> Report {
    let mut verifier = Verifier::new();
    for line in log.lines() {
        verifier.line(line);
    }
    verifier.finish(expected)
}

/// A line without a leading time stamp, such as `2026-01-02T03:04:05.678901234Z `.
fn without_timestamp(line: &str) -> &str {
    match line.split_once(' ') {
        Some((stamp, rest))
            if (20..=40).contains(&stamp.len())
                && stamp.as_bytes()[10] == b'T'
                && stamp.bytes().all(|byte| {
                    byte.is_ascii_digit() || matches!(byte, b'-' | b':' | b'.' | b'T' | b'Z' | b'+')
                }) =>
        {
            rest
        }
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Chain;
    use crate::time::Time;
    use proptest::prelude::*;
    use serde_json::json;

    fn log(records: usize) -> (Vec<String>, Expected) {
        let mut chain = Chain::default();
        let lines = (0..records)
            .map(|n| {
                chain.line(
                    Time(n as u64),
                    1007,
                    &json!({"activity": "open", "path": format!("/workspace/{n}")}),
                )
            })
            .collect();
        let expected = Expected {
            records: chain.records(),
            head: chain.head(),
        };
        (lines, expected)
    }

    #[test]
    fn a_whole_log_holds_with_timestamps_and_foreign_lines() {
        let (lines, expected) = log(4);
        let report = verify(&lines.join("\n"), Some(&expected));
        assert_eq!((report.records, report.foreign, report.broken), (4, 0, None));
        let mut stamped: Vec<String> = lines
            .iter()
            .map(|line| format!("2026-01-02T03:04:05.678901234Z {line}\r"))
            .collect();
        stamped.insert(2, "sandbox-supervisor: port 1: in use".to_owned());
        stamped.push("{\"seq\": 1}".to_owned());
        stamped.push("\r".to_owned());
        let report = verify(&stamped.join("\n"), Some(&expected));
        assert_eq!((report.records, report.foreign, report.broken), (4, 3, None));
        assert_eq!(report.head, expected.head);
        assert_eq!(verify("", None), Report::default());
    }

    #[test]
    fn what_is_cut_altered_doubled_or_moved_is_found_at_its_line() {
        let (lines, expected) = log(5);
        let changed = |change: &dyn Fn(&mut Vec<String>)| {
            let mut lines = lines.clone();
            change(&mut lines);
            verify(&lines.join("\n"), Some(&expected))
                .broken
                .map(|broken| (broken.line, broken.problem))
        };
        let sequence = |expected, found| Problem::Sequence { expected, found };
        assert_eq!(changed(&|lines| drop(lines.remove(0))), Some((1, sequence(0, 1))));
        assert_eq!(changed(&|lines| drop(lines.remove(2))), Some((3, sequence(2, 3))));
        assert_eq!(
            changed(&|lines| drop(lines.pop())),
            Some((
                4,
                Problem::Records {
                    expected: 5,
                    found: 4
                }
            ))
        );
        assert_eq!(changed(&|lines| lines.swap(1, 2)), Some((2, sequence(1, 2))));
        assert_eq!(
            changed(&|lines| lines.insert(1, lines[0].clone())),
            Some((2, sequence(1, 0)))
        );
        assert_eq!(
            changed(&|lines| lines[2] = lines[2].replace("/2", "/x")),
            Some((4, Problem::Chain))
        );
        assert_eq!(
            changed(&|lines| lines[4] = lines[4].replace("/4", "/x")),
            Some((5, Problem::Head))
        );
        assert_eq!(
            changed(&|lines| lines.clear()),
            Some((
                0,
                Problem::Records {
                    expected: 5,
                    found: 0
                }
            ))
        );
    }

    #[test]
    fn a_log_that_was_chained_anew_is_not_the_one_of_the_status() {
        let (mut lines, expected) = log(3);
        let mut chain = Chain::default();
        for line in &mut lines {
            *line = chain.line(Time(9), 1007, &json!({"activity": "open", "path": "/harmless"}));
        }
        let broken = verify(&lines.join("\n"), Some(&expected)).broken;
        assert_eq!(
            broken,
            Some(Broken {
                line: 3,
                problem: Problem::Head
            })
        );
        assert_eq!(verify(&lines.join("\n"), None).broken, None);
    }

    #[test]
    fn a_gateways_log_is_read_run_by_run_and_over_a_restart() {
        let record = |chain: &mut Chain, pod: &str, n: u64| {
            chain.line(
                Time(n),
                4001,
                &json!({"run": {"podUid": pod, "namespace": "x"}, "action": "allow"}),
            )
        };
        let (mut ours, mut other) = (Chain::default(), Chain::default());
        let mut lines = vec![
            record(&mut ours, "a", 0),
            record(&mut other, "b", 0),
            record(&mut ours, "a", 1),
        ];
        let (records, head) = (ours.records(), ours.head().unwrap());
        lines.push(record(&mut ours, "a", 2));
        // Its status did not hold the last record yet.
        let mut restarted = Chain::resume(records, &head).unwrap();
        lines.push(record(&mut restarted, "a", 3));
        lines.push(record(&mut restarted, "a", 4));
        let expected = Expected {
            records: restarted.records(),
            head: restarted.head(),
        };
        let read = |lines: &[String]| {
            let mut verifier = Verifier::of_gateway("a");
            for line in lines {
                verifier.line(line);
            }
            verifier.finish(Some(&expected))
        };
        let report = read(&lines);
        assert_eq!(
            (report.records, report.foreign, report.replaced, report.broken),
            (4, 1, 1, None)
        );
        lines.remove(4);
        assert!(read(&lines).broken.is_some());
    }

    proptest! {
        #[test]
        fn no_single_changed_byte_goes_unseen(at in 0_usize..1000, to in b' '..b'~') {
            let (lines, expected) = log(6);
            let log = lines.join("\n");
            let mut bytes = log.clone().into_bytes();
            let at = at % bytes.len();
            let same = bytes[at] == to;
            bytes[at] = to;
            let report = verify(&String::from_utf8(bytes).unwrap(), Some(&expected));
            prop_assert_eq!(report.broken.is_none(), same);
        }

        #[test]
        fn any_lines_are_taken(lines in any::<String>()) {
            let _ = verify(&lines, None);
        }
    }
}
