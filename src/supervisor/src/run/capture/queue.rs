//! What was seen and not yet sent: bounded, and never dropped while the run lasts. Who has something to add when it is
//! full waits, and with it the process that acts: its log is stalled, so it is too.

use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use agentsandbox_api::action::{Action, Seen};

use super::sys::Bell;
use crate::sys::now_ms;

/// Most records that wait.
const RECORDS_MAX: usize = 4096;
/// Most bytes of them, as JSON.
const BYTES_MAX: usize = 1 << 20;
/// From this share on the main loop is woken, in percent.
const WAKE_PERCENT: usize = 25;
/// So many processes are remembered for their exit; of more only the program is recorded.
const EXECUTED_MAX: usize = 16 << 10;

/// The queue between whoever sees and the main loop, which sends.
pub struct Queue {
    state: Mutex<State>,
    room: Condvar,
    bell: Bell,
}

#[derive(Default)]
struct State {
    /// Each with its length as JSON.
    waiting: VecDeque<(Seen, usize)>,
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
            room: Condvar::new(),
            bell: Bell::new()?,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what was seen now. Waits for room; once closed, counts it as lost.
    pub fn push(&self, action: Action) {
        let (seen, length) = measured(action);
        let mut state = self.state();
        while !state.closed && state.is_full() {
            self.bell.ring();
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            state.figures.lost += 1;
            return;
        }
        state.add(seen, length);
        let much = state.bytes * 100 > BYTES_MAX * WAKE_PERCENT;
        if much || state.waiting.len() * 100 > RECORDS_MAX * WAKE_PERCENT {
            self.bell.ring();
        }
    }

    /// Adds what the main loop itself did or saw: it can't wait for itself.
    pub fn note(&self, action: Action) {
        let (seen, length) = measured(action);
        self.state().add(seen, length);
    }

    /// Takes what fits into so many bytes, the oldest first; one record in any case.
    pub fn take(&self, bytes: usize) -> Vec<Seen> {
        let (mut taken, mut room) = (Vec::new(), bytes);
        let mut state = self.state();
        while let Some((_, length)) = state.waiting.front() {
            if *length > room && !taken.is_empty() {
                break;
            }
            room = room.saturating_sub(*length);
            if let Some((seen, length)) = state.waiting.pop_front() {
                state.bytes -= length;
                taken.push(seen);
            }
        }
        if state.waiting.is_empty() {
            self.bell.hush();
        }
        self.room.notify_all();
        taken
    }

    /// Takes nothing more; whoever waits for room goes on.
    pub fn close(&self) {
        self.state().closed = true;
        self.room.notify_all();
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

    /// Remembers a process that executes a program.
    pub fn executed(&self, pid: u32) {
        let mut state = self.state();
        if state.executed.len() < EXECUTED_MAX {
            state.executed.insert(pid);
        }
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

fn measured(action: Action) -> (Seen, usize) {
    let seen = Seen {
        at_ms: now_ms(),
        action,
    };
    let length = serde_json::to_vec(&seen).map_or(0, |json| json.len());
    (seen, length)
}

impl State {
    fn is_full(&self) -> bool {
        self.waiting.len() >= RECORDS_MAX || self.bytes >= BYTES_MAX
    }

    fn add(&mut self, seen: Seen, length: usize) {
        self.bytes += length;
        self.waiting.push_back((seen, length));
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
    use std::sync::Arc;

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
    fn a_full_queue_makes_wait_and_loses_nothing() {
        let queue = Arc::new(Queue::new().unwrap());
        let total = u32::try_from(RECORDS_MAX).unwrap() + 500;
        let pushing = std::thread::spawn({
            let queue = queue.clone();
            move || (0..total).for_each(|pid| queue.push(open(pid)))
        });
        let mut taken = 0;
        while taken < total as usize {
            let batch = queue.take(32 << 10);
            taken += batch.len();
            if batch.is_empty() {
                std::thread::yield_now();
            }
        }
        pushing.join().unwrap();
        assert_eq!(queue.figures(), Figures::default());
    }

    #[test]
    fn who_waits_goes_on_when_the_run_is_over_and_is_counted() {
        let queue = Arc::new(Queue::new().unwrap());
        (0..RECORDS_MAX).for_each(|_| queue.push(open(1)));
        let waiting = std::thread::spawn({
            let queue = queue.clone();
            move || queue.push(open(0))
        });
        queue.close();
        waiting.join().unwrap();
        queue.give_up();
        assert_eq!(queue.figures().lost, RECORDS_MAX as u64 + 1);
    }
}
