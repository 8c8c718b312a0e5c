//! The action log of the run, on standard output: a thread writes, so that a stalled pipe never stalls the recorder.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agentsandbox_action_log::chain::Chain;
use agentsandbox_action_log::record::prepare;
use agentsandbox_action_log::time::Time;
use agentsandbox_api::action::{Action, AuditSummary, Basis, Capture, Means, Seen};

use crate::sys;

/// All records of a run, in bytes: below one rotation of the kubelet (`containerLogMaxSize`, 10 MiB unless configured),
/// which frames each line by some 50 bytes.
const BUDGET: usize = 8 << 20;
/// What of it is kept for refused calls and connections, and for what does not come from the sandbox.
const RESERVE: usize = 1 << 20;
/// What of that is kept for what does not come from the sandbox: steps, processes from outside, what the supervisor does and
/// what it finds changed in the end.
const OWN: usize = 512 << 10;
/// What of that is kept for the last records.
const LAST: usize = 64 << 10;
/// So much may wait to be written before no more actions are taken from the supervisor, which makes the command wait.
const QUEUE: usize = 256 << 10;
/// Between the first two `Suppressed` records; doubled for each, so that they stay few in a long run.
const SUPPRESSED_EVERY: Duration = Duration::from_secs(1);
/// How long the end of the run waits for a stalled pipe.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The log of one run.
pub struct Log {
    chain: Chain,
    /// The first record, until it is written.
    begin: Option<Action>,
    summary: AuditSummary,
    spent: usize,
    claimed: u64,
    observed: u64,
    suppressed: u64,
    suppressed_at: Option<Instant>,
    suppressed_every: Duration,
    /// Of the files that changed, so many had no room.
    unlisted: u64,
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<(String, Chain)>,
    bytes: usize,
    /// The chain up to the last record that was written whole.
    written: Chain,
    /// The pipe takes nothing any more.
    broken: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_to(&self, mut out: impl Write) {
        loop {
            let mut state = self.state();
            while state.lines.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let Some((line, chain)) = state.lines.pop_front() else {
                continue;
            };
            drop(state);
            let written = out.write_all(line.as_bytes()).and_then(|()| out.flush());
            let mut state = self.state();
            state.bytes = state.bytes.saturating_sub(line.len());
            if written.is_err() {
                state.broken = true;
                self.changed.notify_all();
                return;
            }
            state.written = chain;
            self.changed.notify_all();
        }
    }
}

impl Log {
    /// A log that begins with this record; its means of capture are set by [`Log::captures`].
    pub fn start(begin: Action, out: impl Write + Send + 'static) -> Self {
        let queue = Arc::new(Queue::default());
        let writing = queue.clone();
        let thread = std::thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || writing.write_to(out));
        queue.state().broken = thread.is_err();
        Self {
            chain: Chain::default(),
            begin: Some(begin),
            summary: AuditSummary::default(),
            spent: 0,
            claimed: 0,
            observed: 0,
            suppressed: 0,
            suppressed_at: None,
            suppressed_every: SUPPRESSED_EVERY,
            unlisted: 0,
            queue,
        }
    }

    /// What is captured, and how: known before the first record is written.
    pub fn captures(&mut self, capture: Capture) {
        self.summary.capture = capture;
        if let Some(Action::Begin { capture: field, .. }) = &mut self.begin {
            *field = capture;
        }
    }

    /// Whether actions of the supervisor may be taken. A broken pipe is no reason to wait: nothing will be written.
    pub fn has_room(&self) -> bool {
        let state = self.queue.state();
        state.bytes < QUEUE || state.broken
    }

    /// Counts actions of which the supervisor could not read the details, and those that it saw and could not send.
    pub fn missed(&mut self, unreadable: u64, lost: u64) {
        self.summary.unreadable = unreadable;
        self.summary.lost = lost;
    }

    /// Writes an action down, or counts it if the run's share of the log is used up. Never waits.
    pub fn write(&mut self, seen: Seen) {
        self.write_within(seen, None);
    }

    fn write_within(&mut self, mut seen: Seen, room: Option<usize>) {
        if let Some(begin) = self.begin.take() {
            self.append(seen.at_ms, begin);
        }
        match &mut seen.action {
            Action::Exec { basis, .. } => match basis {
                Basis::Claimed => self.claimed += 1,
                Basis::Observed => self.observed += 1,
            },
            Action::Changes { files, unlisted, .. } => {
                self.summary.files_changed = Some(*files);
                *unlisted += self.unlisted;
            }
            _ => {}
        }
        let room = room.unwrap_or_else(|| room_for(&seen.action));
        if self.spent >= room {
            self.unlisted += u64::from(matches!(seen.action, Action::Change { .. }));
            self.suppressed += 1;
            self.summary.suppressed += 1;
            self.tell_suppressed(seen.at_ms);
        } else {
            self.append(seen.at_ms, seen.action);
        }
    }

    fn tell_suppressed(&mut self, at_ms: u64) {
        let now = Instant::now();
        let due = self
            .suppressed_at
            .is_none_or(|at| now.duration_since(at) >= self.suppressed_every);
        if due && self.spent < BUDGET - LAST {
            if self.suppressed_at.replace(now).is_some() {
                self.suppressed_every *= 2;
            }
            let records = std::mem::take(&mut self.suppressed);
            self.append(at_ms, Action::Suppressed { records });
        }
    }

    fn append(&mut self, at_ms: u64, action: Action) {
        let class = action.class();
        let mut line = self.chain.line(Time(at_ms), class, &prepare(action));
        line.push('\n');
        self.spent += line.len();
        let mut state = self.queue.state();
        state.bytes += line.len();
        state.lines.push_back((line, self.chain.clone()));
        self.queue.changed.notify_all();
    }

    /// The log in figures, as far as it is written.
    pub fn summary(&self) -> AuditSummary {
        let state = self.queue.state();
        let programs = if self.observed > 0 {
            self.observed
        } else {
            self.claimed
        };
        AuditSummary {
            records: state.written.records(),
            head: state.written.head(),
            lost: self.summary.lost + self.chain.records() - state.written.records(),
            // Of what a program claimed before its start, some failed: what was seen afterwards counts, if anything was.
            commands: (self.summary.capture.commands != Means::None).then_some(programs),
            ..self.summary.clone()
        }
    }

    /// Writes the last record, and waits so long at most until everything is written. What is not by then is lost: it
    /// leaves the queue, but for the record that the pipe is just taking.
    pub fn finish(&mut self, end: Action, patience: Duration) -> AuditSummary {
        let at_ms = sys::now_ms();
        if self.suppressed > 0 {
            let records = std::mem::take(&mut self.suppressed);
            self.write_within(
                Seen {
                    at_ms,
                    action: Action::Suppressed { records },
                },
                Some(usize::MAX),
            );
        }
        self.write_within(Seen { at_ms, action: end }, Some(usize::MAX));
        let until = Instant::now() + patience;
        let mut state = self.queue.state();
        while state.written.records() < self.chain.records() && !state.broken {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self
                .queue
                .changed
                .wait_timeout(state, left)
                .map_or_else(|error| error.into_inner().0, |(state, _)| state);
        }
        state.lines.clear();
        drop(state);
        self.summary()
    }
}

/// Up to which size of the log an action is written.
fn room_for(action: &Action) -> usize {
    match action {
        Action::Exec { .. }
        | Action::Exit { .. }
        | Action::Open { .. }
        | Action::Remove { .. }
        | Action::Rename { .. }
        | Action::MakeFolder { .. } => BUDGET - RESERVE,
        Action::Connect { .. } | Action::Refused { .. } => BUDGET - OWN,
        // These come when the command has ended, and so after all that could leave no room for them.
        Action::Change { .. }
        | Action::Foreign { .. }
        | Action::Step { .. }
        | Action::StepEnd { .. }
        | Action::StepRefused { .. }
        | Action::Signal { .. }
        | Action::Warning { .. }
        | Action::Suppressed { .. } => BUDGET - LAST,
        Action::Changes { .. } | Action::Begin { .. } | Action::End { .. } => usize::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentsandbox_action_log::verify::{Expected, verify};
    use agentsandbox_api::action::Change;
    use agentsandbox_api::reason::Reason;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Standard output, as a test sees it. A gate stalls it until something comes through.
    struct Pipe {
        lines: Sender<Vec<u8>>,
        gate: Option<Receiver<()>>,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if let Some(gate) = &self.gate {
                gate.recv().map_err(|_| std::io::ErrorKind::BrokenPipe)?;
            }
            self.lines
                .send(bytes.to_vec())
                .map_err(|_| std::io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn begin() -> Action {
        Action::Begin {
            namespace: "team".into(),
            sandbox: "agent".into(),
            pod_uid: "pod".into(),
            run_id: String::new(),
            policy: "default".into(),
            capture: Capture::default(),
        }
    }

    fn end() -> Action {
        Action::End {
            reason: Reason::Completed,
            exit_code: Some(0),
        }
    }

    fn exec(path: &str) -> Seen {
        Seen {
            at_ms: 1,
            action: Action::Exec {
                basis: Basis::Claimed,
                pid: 2,
                parent: None,
                path: path.into(),
                argv: vec![path.into()],
                cut: false,
            },
        }
    }

    fn text(lines: &Receiver<Vec<u8>>) -> String {
        String::from_utf8(lines.try_iter().flatten().collect()).unwrap()
    }

    fn open(gate: Option<Receiver<()>>) -> (Log, Receiver<Vec<u8>>) {
        let (send, lines) = channel();
        let mut log = Log::start(begin(), Pipe { lines: send, gate });
        log.captures(Capture {
            commands: Means::SeccompNotify,
            ..Capture::default()
        });
        (log, lines)
    }

    fn holds(log: &str, summary: &AuditSummary) -> bool {
        let expected = Expected {
            records: summary.records,
            head: summary.head.clone(),
        };
        verify(log, Some(&expected)).broken.is_none()
    }

    #[test]
    fn the_log_begins_ends_and_is_what_the_summary_says() {
        let (mut log, lines) = open(None);
        log.write(exec("/bin/true"));
        let summary = log.finish(end(), PATIENCE);
        let written = text(&lines);
        assert!(holds(&written, &summary), "{written}");
        assert_eq!((summary.records, summary.lost, summary.commands), (3, 0, Some(1)));
        let activities: Vec<String> = written
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["activity"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        assert_eq!(activities, ["begin", "exec", "end"]);
        assert!(written.contains("\"commands\":\"SeccompNotify\""), "{written}");
    }

    #[test]
    fn a_flood_stays_in_its_budget_and_what_matters_is_still_written() {
        let (mut log, lines) = open(None);
        let path = "x".repeat(2000);
        for _ in 0..10_000 {
            log.write(exec(&path));
        }
        log.write(Seen {
            at_ms: 2,
            action: Action::Refused {
                pid: 2,
                call: "kill(1, 9)".into(),
            },
        });
        let summary = log.finish(end(), Duration::from_mins(1));
        let written = text(&lines);
        assert!(written.len() <= BUDGET, "{}", written.len());
        assert!(holds(&written, &summary));
        assert!(
            summary.suppressed > 5000 && summary.commands == Some(10_000),
            "{summary:?}"
        );
        for part in [
            "kill(1, 9)",
            "\"activity\":\"suppressed\"",
            "\"activity\":\"end\"",
        ] {
            assert!(written.contains(part), "{part}");
        }
    }

    #[test]
    fn a_flood_hides_no_change_of_a_file_and_what_has_no_room_is_told() {
        let (mut log, lines) = open(None);
        for _ in 0..10_000 {
            log.write(exec(&"x".repeat(2000)));
        }
        let write = |log: &mut Log, action| log.write(Seen { at_ms: 2, action });
        for file in 0..1000 {
            let action = Action::Change {
                path: format!("{file}{}", "x".repeat(1000)),
                change: Change::Created,
                size: Some(1),
                mode: Some(0o644),
                sha256: Some("0".repeat(64)),
            };
            write(&mut log, action);
        }
        let changes = Action::Changes {
            files: 1200,
            unlisted: 200,
            incomplete: None,
        };
        write(&mut log, changes);
        let summary = log.finish(end(), Duration::from_mins(1));
        let written = text(&lines);
        assert!(written.len() <= BUDGET && holds(&written, &summary));
        let listed = written.matches("\"activity\":\"change\"").count();
        assert!((300..1000).contains(&listed), "{listed}");
        assert!(
            written.contains(&format!("\"unlisted\":{}", 1200 - listed)),
            "{}",
            &written[written.len() - 1000..]
        );
    }

    #[test]
    fn a_flood_of_what_has_the_reserve_leaves_room_for_steps_and_the_end() {
        let (mut log, lines) = open(None);
        for _ in 0..20_000 {
            let call = "c".repeat(500);
            log.write(Seen {
                at_ms: 2,
                action: Action::Refused { pid: 2, call },
            });
        }
        for step in 1..=100 {
            log.write(Seen {
                at_ms: 3,
                action: Action::Step {
                    step,
                    pid: None,
                    argv: vec!["a".repeat(1000)],
                },
            });
        }
        let summary = log.finish(end(), Duration::from_mins(1));
        let written = text(&lines);
        assert!(written.len() <= BUDGET && holds(&written, &summary));
        assert_eq!(written.matches("\"activity\":\"step\"").count(), 100);
        assert!(written.trim_end().ends_with('}') && written.contains("\"activity\":\"end\""));
    }

    #[test]
    fn a_stalled_pipe_fills_the_queue_and_the_end_does_not_wait_for_it() {
        let (open_gate, gate) = channel();
        let (mut log, lines) = open(Some(gate));
        open_gate.send(()).unwrap();
        let mut written = 0_u64;
        while log.has_room() {
            log.write(exec(&"x".repeat(1000)));
            written += 1;
        }
        assert!(written > 50);
        let summary = log.finish(end(), Duration::from_millis(50));
        // `Begin` went through; the rest is lost, and the summary speaks of what was written.
        assert_eq!((summary.records, summary.lost), (1, written + 1));
        assert!(holds(&text(&lines), &summary));
    }

    #[test]
    fn a_broken_pipe_ends_nothing_and_is_told() {
        let (mut log, lines) = open(None);
        drop(lines);
        log.write(exec("/bin/true"));
        let summary = log.finish(end(), PATIENCE);
        assert_eq!((summary.records, summary.head, summary.lost), (0, None, 3));
        assert!(log.has_room());
    }
}
