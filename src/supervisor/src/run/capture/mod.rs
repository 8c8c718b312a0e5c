//! What the user's processes do, as the supervisor sees it: programs they execute, files they write, connections they
//! attempt; and the filter that keeps them from reaching the supervisor.

mod calls;
mod filter;
mod launch;
mod notify;
mod ptrace;
mod queue;
mod read;
mod see;
mod sys;
mod trace;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentsandbox_api::action::{Action, Capture, Means};
use agentsandbox_api::run::{FromRecorder, FromSupervisor};

use crate::protocol::{Channel, Received};
use crate::sys::{Awaited, Reaped, Signals};
use launch::Launcher;
use queue::Queue;
use trace::Ends;

pub use queue::Figures;
pub use read::image;

/// Stack of each of our threads.
const STACK_BYTES: usize = 256 << 10;
/// Between two looks for room in the queue, while somebody waits for it.
const ROOM_EVERY: Duration = Duration::from_millis(2);
/// Actions of one message, in bytes as JSON: a message is at most twice as long.
const BATCH_BYTES: usize = 32 << 10;
/// So many messages are sent before the recorder says that it has written one down: a stalled log fills the queue, and not
/// the connection, by which the end must still be told.
const MESSAGES_MAX: u32 = 8;
/// How long the recorder may take for what is left at the end.
const LAST_ACTIONS: Duration = Duration::from_secs(3);

/// The capture of one run.
pub struct Capturing {
    launcher: Launcher,
    queue: Arc<Queue>,
    means: Means,
    reaping: Reaping,
    /// Messages that the recorder has not said to have taken.
    unanswered: u32,
}

/// Who waits for children.
enum Reaping {
    /// The main loop, when one of their signals has come.
    Here(Signals),
    /// The tracer, which tells it.
    Told(Arc<Ends>),
}

impl Capturing {
    /// Chooses the means by trying: the kernel's own name says nothing. Fails if not even the filter can be had.
    pub fn begin() -> io::Result<Self> {
        let queue = Arc::new(Queue::new()?);
        let children = || Signals::take(&[libc::SIGCHLD]);
        let (launcher, means, reaping) = if let Ok(launcher) = by_notification(&queue) {
            (launcher, Means::SeccompNotify, Reaping::Here(children()?))
        } else if let Ok((launcher, ends)) = trace::begin(&queue, children()?) {
            (launcher, Means::Ptrace, Reaping::Told(ends))
        } else {
            let (launcher, _, _) = Launcher::begin(|| sys::install(&filter::program(None), false))?;
            (launcher, Means::None, Reaping::Here(children()?))
        };
        Ok(Self {
            launcher,
            queue,
            means,
            reaping,
            unanswered: 0,
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

    /// Starts a process of the user; its number.
    pub fn spawn(&self, command: Command, argv: &[String]) -> io::Result<i32> {
        let path = command.get_program().to_string_lossy().into_owned();
        self.launcher.spawn(command, (path, argv.to_vec()))
    }

    /// A child that has ended.
    pub fn reap(&self) -> Reaped {
        match &self.reaping {
            Reaping::Here(children) => {
                while children.next().is_some() {}
                let reaped = crate::sys::reap();
                if let Reaped::One(ended) = &reaped {
                    self.note_exit(ended);
                }
                reaped
            }
            Reaping::Told(ends) => ends.next(),
        }
    }

    /// What to wait for: children's ends, and actions that the recorder has room for.
    pub fn awaited(&self) -> Vec<Awaited<'_>> {
        let mut awaited = vec![Awaited::read(match &self.reaping {
            Reaping::Here(children) => children.as_fd(),
            Reaping::Told(ends) => ends.bell().as_fd(),
        })];
        if self.unanswered < MESSAGES_MAX {
            awaited.push(Awaited::read(self.queue.as_fd()));
        }
        awaited
    }

    /// Writes down what the supervisor itself did or saw.
    pub fn note(&self, action: Action) {
        self.queue.push(action);
    }

    /// Writes down that a process has ended, if it executed anything.
    fn note_exit(&self, ended: &crate::sys::Ended) {
        let pid = u32::try_from(ended.pid).unwrap_or_default();
        if self.queue.has_executed(pid) {
            self.queue.push(Action::Exit {
                pid,
                code: ended.code,
                signal: ended.signal,
            });
        }
    }

    /// Processes that executed a program and have not said their exit code; a tracer misses none.
    pub fn untold(&self) -> BTreeSet<u32> {
        match self.reaping {
            Reaping::Here(_) => self.queue.executing(),
            Reaping::Told(_) => BTreeSet::new(),
        }
    }

    /// Writes down that processes are gone without an exit code, and not to us: a signal ended them.
    pub fn note_gone<'a>(&self, gone: impl Iterator<Item = &'a u32>) {
        for pid in gone {
            if self.queue.has_executed(*pid) {
                self.queue.push(Action::Exit {
                    pid: *pid,
                    code: None,
                    signal: None,
                });
            }
        }
    }

    /// Sends what the recorder has room for, without waiting.
    pub fn pump(&mut self, channel: &mut Channel) -> io::Result<()> {
        while self.unanswered < MESSAGES_MAX {
            let actions = self.queue.take(BATCH_BYTES);
            if actions.is_empty() {
                break;
            }
            channel.queue(&FromSupervisor::Actions { actions })?;
            self.unanswered += 1;
        }
        channel.flush()
    }

    /// The recorder has written so many messages down.
    pub fn taken(&mut self, messages: u32) {
        self.unanswered = self.unanswered.saturating_sub(messages);
    }

    /// Sends all that is left, once nothing of the user's lives; what the recorder does not take in time is lost, and
    /// counted.
    pub fn finish(&mut self, channel: Option<&mut Channel>, last: Vec<Action>) -> Figures {
        for action in last {
            self.queue.push(action);
        }
        self.queue.close();
        if let Some(channel) = channel {
            let until = Instant::now() + LAST_ACTIONS;
            while Instant::now() < until && self.pump(channel).is_ok() && !self.queue.is_empty() {
                match channel.receive::<FromRecorder>() {
                    Received::Message(FromRecorder::Taken { messages }) => self.taken(messages),
                    Received::Broken => break,
                    Received::Message(_) => {}
                    Received::Nothing => {
                        crate::sys::wait_readable(&[channel.stream().as_fd()], Duration::from_millis(20));
                    }
                }
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

/// The kernel asks a thread of ours about each call.
fn by_notification(queue: &Arc<Queue>) -> io::Result<Launcher> {
    let (launcher, listener, launching) = Launcher::begin(|| {
        // Else a call that is answered takes the processor from the thread that answers, and an exec, which looks for
        // an idle processor, then moves to another one for its sake.
        sys::let_others_finish();
        let listener = sys::install(&filter::program(Some(filter::NOTIFY)), true)?;
        listener.ok_or_else(|| io::ErrorKind::Unsupported.into())
    })?;
    notify::begin(listener, queue, launching)?;
    Ok(launcher)
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentsandbox_api::action::{Basis, Seen};
    use std::net::{TcpListener, TcpStream};

    /// Both ends of a connection to a recorder.
    fn connection() -> (Channel, Channel) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        let channel = |stream| Channel::new(stream, 1 << 20).unwrap();
        (channel(ours), channel(theirs))
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn argv(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    /// Whether a child has ended. It is not reaped: whoever waits for any child takes those of other tests.
    fn is_over(pid: i32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    }

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < Duration::from_mins(1), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the recorder is sent until a process is over, each message answered.
    fn record(capturing: &mut Capturing, pid: i32) -> Vec<Action> {
        let (mut ours, mut theirs) = connection();
        let mut actions: Vec<Seen> = Vec::new();
        until("the end", || {
            let was_over = is_over(pid);
            capturing.pump(&mut ours).unwrap();
            while let Received::Message(message) = theirs.receive::<FromSupervisor>() {
                if let FromSupervisor::Actions { actions: more } = message {
                    actions.extend(more);
                    capturing.taken(1);
                }
            }
            was_over && capturing.queue.is_empty()
        });
        actions.into_iter().map(|seen| seen.action).collect()
    }

    #[test]
    fn what_a_process_does_is_told_and_it_does_not_reach_us() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file").display().to_string();
        let mut capturing = Capturing::begin().unwrap();
        assert_eq!(capturing.means().commands, Means::SeccompNotify);
        let us = std::process::id();
        let script = format!("cat /etc/hostname > {file}; kill -9 {us} 2>/dev/null; exit 3");
        let pid = capturing.spawn(shell(&script), &argv(&script)).unwrap();
        let actions = record(&mut capturing, pid);
        let pid = u32::try_from(pid).unwrap();
        let claimed = |path: &str| {
            actions.iter().position(|action| {
                matches!(action, Action::Exec { basis: Basis::Claimed, path: found, .. } if found.ends_with(path))
            })
        };
        let places = [
            claimed("sh"),
            actions
                .iter()
                .position(|action| matches!(action, Action::Open { path, .. } if *path == file)),
            claimed("cat"),
            actions.iter().position(|action| {
                *action
                    == Action::Refused {
                        pid,
                        call: format!("kill({us}, 9)"),
                    }
            }),
            actions.iter().position(|action| {
                *action
                    == Action::Exit {
                        pid,
                        code: Some(3),
                        signal: None,
                    }
            }),
        ];
        assert!(places.iter().all(Option::is_some), "{places:?} in {actions:#?}");
        assert!(places.is_sorted(), "{places:?} in {actions:#?}");
        assert_eq!(capturing.figures(), Figures::default());
    }

    #[test]
    fn a_process_that_a_signal_ended_is_told_though_another_waited_for_it() {
        let mut capturing = Capturing::begin().unwrap();
        let script = "sh -c 'kill -9 $$'; true";
        let pid = capturing.spawn(shell(script), &argv(script)).unwrap();
        let actions = record(&mut capturing, pid);
        let killed = actions
            .iter()
            .find_map(|action| match action {
                Action::Exec { pid, argv, .. } if argv.last().is_some_and(|last| last == "kill -9 $$") => {
                    Some(*pid)
                }
                _ => None,
            })
            .unwrap();
        assert_eq!(capturing.untold(), BTreeSet::from([killed]));
        capturing.note_gone([killed].iter());
        capturing.note_gone([killed].iter());
        let told: Vec<Action> = capturing
            .queue
            .take(BATCH_BYTES)
            .into_iter()
            .map(|seen| seen.action)
            .collect();
        let gone = Action::Exit {
            pid: killed,
            code: None,
            signal: None,
        };
        assert_eq!(told, [gone]);
    }

    #[test]
    fn a_program_that_is_not_there_is_not_started() {
        let capturing = Capturing::begin().unwrap();
        let missing = capturing.spawn(Command::new("/no/such/program"), &argv(""));
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn who_acts_while_nothing_is_written_waits_and_nothing_is_lost() {
        const OPENS: usize = 9_000;
        let mut capturing = Capturing::begin().unwrap();
        let script = format!("i=0; while [ $i -lt {OPENS} ]; do : > /dev/null; i=$((i+1)); done");
        let pid = capturing.spawn(shell(&script), &argv(&script)).unwrap();
        until("a full queue", || capturing.queue.is_full());
        // A recorder that answers nothing is not sent more than its window.
        let (mut ours, _theirs) = connection();
        capturing.pump(&mut ours).unwrap();
        capturing.pump(&mut ours).unwrap();
        assert_eq!(capturing.unanswered, MESSAGES_MAX);
        until("a full queue again", || capturing.queue.is_full());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!is_over(pid));
        // What is started meanwhile does not wait for who would make room for it.
        let second = capturing.spawn(shell("exit 0"), &argv("exit 0")).unwrap();
        assert!(second > 0);
        capturing.taken(MESSAGES_MAX);
        let actions = record(&mut capturing, pid);
        let opens = actions
            .iter()
            .filter(|action| matches!(action, Action::Open { path, .. } if path == "/dev/null"));
        let sent_before = OPENS - opens.count();
        assert!((1..OPENS / 2).contains(&sent_before), "{sent_before}");
        assert_eq!(capturing.figures(), Figures::default());
    }
}
