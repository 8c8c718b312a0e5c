//! What the user's processes do, as the supervisor sees it: programs they execute, files they write, connections they
//! attempt; and the filter that keeps them from reaching the supervisor.

mod calls;
mod filter;
mod launch;
mod notify;
mod queue;
mod read;
mod see;
mod sys;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentsandbox_api::action::{Action, Capture, Means};
use agentsandbox_api::run::FromSupervisor;

use crate::protocol::Channel;
use launch::Launcher;
use queue::Queue;

pub use queue::Figures;
pub use read::{image, parent};

/// Stack of each of our threads.
const STACK_BYTES: usize = 256 << 10;
/// Actions of one message, in bytes as JSON: a message is at most twice as long.
const BATCH_BYTES: usize = 32 << 10;
/// Beyond so many bytes that the recorder has not taken, no more is sent.
const UNSENT_MAX: usize = 64 << 10;
/// How long the recorder may take for what is left at the end.
const LAST_ACTIONS: Duration = Duration::from_secs(5);

/// The capture of one run.
pub struct Capturing {
    launcher: Launcher,
    queue: Arc<Queue>,
    means: Means,
}

impl Capturing {
    /// Chooses the means by trying: the kernel's own name says nothing. Fails if not even the filter can be had.
    pub fn begin() -> io::Result<Self> {
        let queue = Arc::new(Queue::new()?);
        let listening = Launcher::begin(|| {
            let program = filter::program(Some(filter::NOTIFY));
            let listener = sys::install(&program, true)?;
            listener.ok_or_else(|| io::ErrorKind::Unsupported.into())
        });
        if let Ok((launcher, listener, launching)) = listening {
            let served = queue.clone();
            std::thread::Builder::new()
                .stack_size(STACK_BYTES)
                .spawn(move || notify::serve(&listener, &served, &launching))?;
            return Ok(Self {
                launcher,
                queue,
                means: Means::SeccompNotify,
            });
        }
        let (launcher, _, _) = Launcher::begin(|| sys::install(&filter::program(None), false))?;
        Ok(Self {
            launcher,
            queue,
            means: Means::None,
        })
    }

    /// What is captured, and how.
    pub fn means(&self) -> Capture {
        Capture {
            commands: self.means,
            files: self.means,
            network: self.means,
        }
    }

    /// Starts a process of the user. `meanwhile` is called every few milliseconds until it executes.
    pub fn spawn(&self, command: Command, meanwhile: impl FnMut()) -> io::Result<Child> {
        self.launcher.spawn(command, meanwhile)
    }

    /// Writes down what the supervisor itself did or saw.
    pub fn note(&self, action: Action) {
        self.queue.note(action);
    }

    /// Writes down that a process has ended, if it executed anything.
    pub fn note_exit(&self, ended: &crate::sys::Ended) {
        let pid = u32::try_from(ended.pid).unwrap_or_default();
        if self.queue.has_executed(pid) {
            self.queue.note(Action::Exit {
                pid,
                code: ended.code,
                signal: ended.signal,
            });
        }
    }

    /// Sends what can be sent without waiting.
    pub fn pump(&self, channel: &mut Channel) -> io::Result<()> {
        loop {
            channel.flush()?;
            if channel.queued() > UNSENT_MAX {
                return Ok(());
            }
            let actions = self.queue.take(BATCH_BYTES);
            if actions.is_empty() {
                return Ok(());
            }
            channel.queue(&FromSupervisor::Actions { actions })?;
        }
    }

    /// Sends all that is left, once nothing of the user's lives; what the recorder does not take in time is lost, and
    /// counted.
    pub fn finish(&self, channel: Option<&mut Channel>) -> Figures {
        self.queue.close();
        if let Some(channel) = channel {
            let until = Instant::now() + LAST_ACTIONS;
            while Instant::now() < until && self.pump(channel).is_ok() && channel.queued() > 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        self.queue.give_up();
        self.queue.figures()
    }

    /// Why the capture has broken down, if so: then nobody answers system calls any more.
    pub fn failure(&self) -> Option<String> {
        self.queue.failure()
    }

    /// What it counted.
    pub fn figures(&self) -> Figures {
        self.queue.figures()
    }
}

impl AsFd for Capturing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}
