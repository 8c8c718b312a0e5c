//! What was seen and not yet sent: never dropped while the run lasts, and bounded, because whoever acts while it is full is
//! not let go on before there is room again. So it holds at most one record more for each thread that there may be.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agentsandbox_api::action::{Action, Seen};

use super::sys::Bell;
use crate::sys::now_ms;

/// Most records that wait.
const RECORDS_MAX: usize = 4096;
/// Most bytes of memory that they take.
const BYTES_MAX: usize = 1 << 20;
/// From this share on the main loop is woken, in percent.
const WAKE_PERCENT: usize = 25;
/// So many processes are remembered for their exit; of more only the program is recorded.
const EXECUTED_MAX: usize = 16 << 10;

/// The queue between whoever sees and the main loop, which sends.
pub struct Queue {
    state: Mutex<State>,
    bell: Bell,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Seen>,
    /// Of memory that they take.
    bytes: usize,
    closed: bool,
    figures: Figures,
    executed: HashSet<u32>,
    failed: Option<String>,
}

/// What the queue counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Actions of which path or arguments could not be read.
    pub unreadable: u64,
    /// Actions that came after the queue was closed, or were not sent before the end.
    pub lost: u64,
}

impl Queue {
    /// Empty.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            bell: Bell::new()?,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what was seen now; once closed, counts it as lost.
    pub fn push(&self, action: Action) {
        let at_ms = now_ms();
        let mut state = self.state();
        if state.closed {
            state.figures.lost += 1;
            return;
        }
        state.add(Seen { at_ms, action });
        let much = state.bytes * 100 > BYTES_MAX * WAKE_PERCENT;
        if much || state.waiting.len() * 100 > RECORDS_MAX * WAKE_PERCENT {
            self.bell.ring();
        }
    }

    /// Whether whoever acts must wait until some of it is taken.
    pub fn is_full(&self) -> bool {
        let state = self.state();
        !state.closed && (state.waiting.len() >= RECORDS_MAX || state.bytes >= BYTES_MAX)
    }

    /// Takes what fits into so many bytes of JSON, the oldest first; one record in any case.
    pub fn take(&self, bytes: usize) -> Vec<Seen> {
        let (mut taken, mut room) = (Vec::new(), bytes);
        // Records are measured while others may push: nobody whose call is looked at waits for it.
        while let Some(seen) = self.next() {
            let length = json_bytes(&seen);
            if length > room && !taken.is_empty() {
                self.state().put_back(seen);
                break;
            }
            room = room.saturating_sub(length);
            taken.push(seen);
        }
        let state = self.state();
        if state.waiting.is_empty() {
            self.bell.hush();
        }
        taken
    }

    /// The oldest. The lock ends here, and not with the body of a loop over it.
    fn next(&self) -> Option<Seen> {
        self.state().next()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.state().waiting.is_empty()
    }

    /// Takes nothing more, and holds nobody up any more.
    pub fn close(&self) {
        self.state().closed = true;
    }

    /// Gives up what still waits, and counts it.
    pub fn give_up(&self) {
        let mut state = self.state();
        state.figures.lost += state.waiting.len() as u64;
        state.waiting.clear();
        state.bytes = 0;
    }

    /// Counts an action that can't be read.
    pub fn unreadable(&self) {
        self.state().figures.unreadable += 1;
    }

    /// What a process executes could not be looked at: if it is still there, it hides.
    pub fn not_observed(&self, error: &std::io::Error) {
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            self.unreadable();
        }
    }

    /// Remembers a process that executes a program; whether it was not remembered before.
    pub fn executed(&self, pid: u32) -> bool {
        let mut state = self.state();
        let is_new = !state.executed.contains(&pid);
        if state.executed.len() < EXECUTED_MAX {
            state.executed.insert(pid);
        }
        is_new
    }

    /// The processes that executed a program and of which no end was asked for.
    pub fn executing(&self) -> BTreeSet<u32> {
        self.state().executed.iter().copied().collect()
    }

    /// Whether a process that has ended executed a program; asked once.
    pub fn has_executed(&self, pid: u32) -> bool {
        self.state().executed.remove(&pid)
    }

    /// The capture has broken down.
    pub fn fail(&self, why: String) {
        self.state().failed = Some(why);
        self.bell.ring();
    }

    /// Why it has broken down, if so.
    pub fn failure(&self) -> Option<String> {
        self.state().failed.clone()
    }

    /// What it counted.
    pub fn figures(&self) -> Figures {
        self.state().figures
    }
}

impl State {
    fn add(&mut self, seen: Seen) {
        self.bytes += seen.action.memory_bytes();
        self.waiting.push_back(seen);
    }

    fn next(&mut self) -> Option<Seen> {
        let seen = self.waiting.pop_front()?;
        self.bytes -= seen.action.memory_bytes();
        Some(seen)
    }

    /// The one that was taken last.
    fn put_back(&mut self, seen: Seen) {
        self.bytes += seen.action.memory_bytes();
        self.waiting.push_front(seen);
    }
}

fn json_bytes(seen: &Seen) -> usize {
    let mut length = Length(0);
    let _ = serde_json::to_writer(&mut length, seen);
    length.0
}

/// Counts what is written.
struct Length(usize);

impl std::io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(pid: u32) -> Action {
        Action::Open {
            pid,
            path: "/x".to_owned(),
        }
    }

    #[test]
    fn order_is_kept_and_a_batch_is_bounded() {
        let queue = Queue::new().unwrap();
        (0..100).for_each(|pid| queue.push(open(pid)));
        let mut all = Vec::new();
        loop {
            let batch = queue.take(200);
            if batch.is_empty() {
                break;
            }
            assert!(batch.len() < 10);
            all.extend(batch.into_iter().map(|seen| seen.action));
        }
        assert_eq!(all, (0..100).map(open).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_queue_says_so_until_some_is_taken_and_counts_what_comes_too_late() {
        let queue = Queue::new().unwrap();
        (0..RECORDS_MAX).for_each(|_| queue.push(open(1)));
        assert!(queue.is_full());
        queue.take(100);
        assert!(!queue.is_full());
        queue.push(open(1));
        queue.close();
        assert!(!queue.is_full());
        queue.push(open(1));
        let waiting = queue.state().waiting.len();
        queue.give_up();
        assert_eq!(queue.figures().lost, waiting as u64 + 1);
        assert!(queue.take(100).is_empty());
    }

    #[test]
    fn large_records_fill_it_before_they_are_many() {
        let long_path = Action::Open {
            pid: 1,
            path: "x".repeat(4096),
        };
        let empty_arguments = Action::StepRefused {
            argv: vec![String::new(); 256],
            reason: String::new(),
        };
        for large in [long_path, empty_arguments] {
            let queue = Queue::new().unwrap();
            while !queue.is_full() {
                queue.push(large.clone());
            }
            assert!(queue.state().waiting.len() < RECORDS_MAX / 8);
        }
    }
}
