//! Looks at each system call that the kernel asks about (seccomp user notification), writes it down, and lets it go on.
//!
//! What a call's pointers lead to may change between our look and the kernel's, so nothing is ever decided by it, and
//! the record says `claimed`. Soon afterwards `/proc` shows what is really executed; that record says `observed`.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentsandbox_api::action::{Action, Basis};

use super::ROOM_EVERY;
use super::launch::Launching;
use super::queue::Queue;
use super::read::{self, Image, OfThread};
use super::see::{self, Sight};
use super::sys::{Alarm, Listener, Notification};

/// How long after an exec `/proc` is looked at, if the process neither acts nor ends before.
const OBSERVE_AFTER: Duration = Duration::from_millis(10);
/// When it is looked at once more, if the exec was still going on.
const OBSERVE_AGAIN: Duration = Duration::from_millis(100);
/// So many observations wait at most; beyond that the oldest are made at once.
const PENDING_MAX: usize = 256;

/// An exec that was claimed and not yet observed.
struct Claim {
    pid: u32,
    argv: Vec<String>,
    /// What the process executed before.
    before: Option<std::path::PathBuf>,
    due: Instant,
    again: bool,
}

/// Runs as long as there is anything to listen to.
pub fn serve(listener: &Listener, alarm: Alarm, queue: &Arc<Queue>, launching: &Launching) {
    let mut notifier = Notifier {
        listener,
        alarm,
        queue,
        launching,
        pending: VecDeque::new(),
        held: Vec::new(),
    };
    loop {
        match notifier.receive() {
            Ok(Some(notification)) => notifier.look(&notification),
            Ok(None) => {}
            Err(error) => return queue.fail(format!("system calls can't be looked at any more: {error}")),
        }
        notifier.observe_due();
        notifier.let_go();
    }
}

struct Notifier<'a> {
    listener: &'a Listener,
    alarm: Alarm,
    queue: &'a Queue,
    launching: &'a Launching,
    pending: VecDeque<Claim>,
    /// Calls that were written down and wait for room in the queue.
    held: Vec<Notification>,
}

impl Notifier<'_> {
    /// The next call, or nothing when something else is to be done.
    fn receive(&mut self) -> io::Result<Option<Notification>> {
        if !self.held.is_empty() {
            self.alarm.set(ROOM_EVERY);
        } else if !self.pending.is_empty() {
            self.alarm.set(OBSERVE_AFTER);
        } else {
            return self.listener.receive(None);
        }
        self.listener.receive(Some(&mut self.alarm))
    }

    fn look(&mut self, notification: &Notification) {
        // The thread that starts processes is filtered as they are.
        if notification.thread == self.launching.thread() {
            return self.listener.answer(notification, None);
        }
        // Nobody waits for a process that is being started, but the one who would make room.
        let is_ours = self.launching.program_of(notification.thread).is_some();
        self.observe_earlier(notification.thread);
        let thread = notification.thread;
        let memory = OfThread(thread);
        let call = see::Call {
            number: notification.number,
            arguments: &notification.arguments,
            thread,
            process: read::process_of(thread),
        };
        let sight = see::look(&memory, &call);
        let refuse = match sight {
            Ok(Sight::Seen(actions)) => {
                // Else its process is gone, and what was read may be another's.
                if self.listener.is_valid(notification) {
                    for action in actions {
                        self.write_down(action);
                    }
                }
                None
            }
            Ok(Sight::Exit(code)) => {
                if self.queue.has_executed(call.process) {
                    self.queue.push(Action::Exit {
                        pid: call.process,
                        code: Some(code),
                        signal: None,
                    });
                }
                None
            }
            Ok(Sight::Nothing) => None,
            Ok(Sight::Refuse(refused)) => {
                self.queue.push(Action::Refused {
                    pid: call.process,
                    call: refused,
                });
                Some(libc::EPERM)
            }
            Err(error) => {
                if self.listener.is_valid(notification) {
                    self.could_not_read(&call, &error);
                }
                None
            }
        };
        if refuse.is_none() && !is_ours && self.queue.is_full() {
            self.held.push(*notification);
        } else {
            self.listener.answer(notification, refuse);
        }
    }

    /// Lets all go on that were held up, once there is room.
    fn let_go(&mut self) {
        if !self.held.is_empty() && !self.queue.is_full() {
            for notification in self.held.drain(..) {
                self.listener.answer(&notification, None);
            }
        }
    }

    fn write_down(&mut self, action: Action) {
        if let Action::Exec { pid, argv, .. } = &action {
            self.claimed(*pid, argv.clone());
        }
        self.queue.push(action);
    }

    fn claimed(&mut self, pid: u32, argv: Vec<String>) {
        self.queue.executed(pid);
        self.pending.push_back(Claim {
            pid,
            argv,
            before: std::fs::read_link(format!("/proc/{pid}/exe")).ok(),
            due: Instant::now() + OBSERVE_AFTER,
            again: false,
        });
    }

    /// What was started by us is known without a look: until its exec it is as unreadable as we are. A bad address is
    /// the program's own mistake, and fails in the kernel as well. All else hides something.
    fn could_not_read(&mut self, call: &see::Call<'_>, error: &io::Error) {
        if see::is_exec(call.number)
            && let Some(program) = self.launching.program_of(call.thread)
        {
            return self.write_down(see::start(call.process, program));
        }
        if error.raw_os_error() != Some(libc::EFAULT) {
            self.queue.unreadable();
        }
    }

    /// A process that acts again has done what it claimed before.
    fn observe_earlier(&mut self, thread: u32) {
        if let Some(at) = self.pending.iter().position(|claim| claim.pid == thread)
            && let Some(claim) = self.pending.remove(at)
        {
            self.observe(claim, true);
        }
    }

    fn observe_due(&mut self) {
        while self.pending.len() > PENDING_MAX
            && let Some(oldest) = self.pending.pop_front()
        {
            self.observe(oldest, false);
        }
        if self.pending.is_empty() || !self.alarm.has_rung() {
            return;
        }
        let now = Instant::now();
        for claim in std::mem::take(&mut self.pending) {
            if claim.due <= now {
                self.observe(claim, false);
            } else {
                self.pending.push_back(claim);
            }
        }
    }

    fn observe(&mut self, claim: Claim, last: bool) {
        let Ok(Image {
            path,
            argv,
            cut,
            parent,
        }) = read::image(claim.pid)
        else {
            return;
        };
        // The same program with other arguments than claimed: the exec failed, or has not happened yet.
        if argv != claim.argv
            && claim
                .before
                .is_some_and(|before| before.to_string_lossy() == path)
        {
            if !last && !claim.again {
                self.pending.push_back(Claim {
                    due: Instant::now() + OBSERVE_AGAIN,
                    again: true,
                    before: Some(path.into()),
                    ..claim
                });
            }
            return;
        }
        self.queue.push(Action::Exec {
            basis: Basis::Observed,
            pid: claim.pid,
            parent,
            path,
            argv,
            cut,
        });
    }
}
