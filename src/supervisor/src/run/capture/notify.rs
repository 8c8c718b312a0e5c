//! Looks at each system call that the kernel asks about (seccomp user notification), writes it down, and lets it go on.
//!
//! What a call's pointers lead to may change between our look and the kernel's, so nothing is ever decided by it, and
//! the record says `claimed`. Soon afterwards `/proc` shows what is really executed; that record says `observed`.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agentsandbox_api::action::{Action, Basis};

use super::launch::Launching;
use super::queue::Queue;
use super::read::{self, Image, OfThread, Pages};
use super::see::{self, Sight};
use super::sys::{Alarm, Listener, Notification};
use super::{ROOM_EVERY, STACK_BYTES};

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
    before: Option<String>,
    /// Whether it executes a program for the first time, as far as is remembered.
    is_first: bool,
    due: Instant,
    again: bool,
}

/// What is to be done later, by a thread of its own: the one that answers waits for nothing but calls.
struct Later {
    listener: Listener,
    queue: Arc<Queue>,
    alarm: Alarm,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    claims: VecDeque<Claim>,
    /// Calls that were written down and wait for room in the queue.
    held: Vec<Notification>,
    /// Nothing will come any more.
    is_over: bool,
}

/// Starts the threads that look at calls, for as long as any may come.
pub fn begin(listener: Listener, queue: &Arc<Queue>, launching: Arc<Launching>) -> io::Result<()> {
    let later = Arc::new(Later {
        listener,
        queue: queue.clone(),
        alarm: Alarm::new()?,
        waiting: Mutex::default(),
    });
    let thread = || std::thread::Builder::new().stack_size(STACK_BYTES);
    let served = later.clone();
    thread().spawn(move || served.serve())?;
    thread().spawn(move || {
        let mut notifier = Notifier {
            later: &later,
            launching: &launching,
            pages: Pages::default(),
        };
        let error = notifier.serve();
        later
            .queue
            .fail(format!("system calls can't be looked at any more: {error}"));
        later.waiting().is_over = true;
        later.alarm.set(Duration::ZERO);
    })?;
    Ok(())
}

struct Notifier<'a> {
    later: &'a Later,
    launching: &'a Launching,
    pages: Pages,
}

impl Notifier<'_> {
    /// Looks at calls until none can come any more; why.
    fn serve(&mut self) -> io::Error {
        loop {
            match self.later.listener.receive() {
                Ok(Some(notification)) => self.look(&notification),
                Ok(None) => {}
                Err(error) => return error,
            }
        }
    }

    fn look(&mut self, notification: &Notification) {
        let Later { listener, queue, .. } = self.later;
        let thread = notification.thread;
        // The thread that starts processes is filtered as they are.
        if thread == self.launching.thread() {
            return listener.answer(notification, None);
        }
        // Nobody waits for a process that is being started, but the one who would make room.
        let is_ours = self.launching.program_of(thread).is_some();
        let executed = self.later.observe_earlier(thread);
        let call = see::Call {
            number: notification.number,
            arguments: &notification.arguments,
            thread,
            // Who had claimed an exec and is still there is a process.
            process: executed
                .as_ref()
                .map_or_else(|| read::process_of(thread), |_| thread),
            is_traced: false,
        };
        let refuse = match see::look(&OfThread(thread), &mut self.pages, &call) {
            Ok(Sight::Seen(actions)) => {
                // Else its process is gone, and what was read may be another's.
                if listener.is_valid(notification) {
                    for action in actions {
                        self.write_down(action, executed.as_deref());
                    }
                }
                None
            }
            Ok(Sight::Exit(code)) => {
                if queue.has_executed(call.process) {
                    queue.push(Action::Exit {
                        pid: call.process,
                        code: Some(code),
                        signal: None,
                    });
                }
                None
            }
            Ok(Sight::Nothing) => None,
            Ok(Sight::Refuse(refused)) => {
                queue.push(Action::Refused {
                    pid: call.process,
                    call: refused,
                });
                Some(libc::EPERM)
            }
            Err(error) => {
                if listener.is_valid(notification) {
                    self.could_not_read(&call, &error);
                }
                None
            }
        };
        if refuse.is_none() && !is_ours && queue.is_full() {
            self.later.hold(*notification);
        } else {
            listener.answer(notification, refuse);
        }
    }

    /// An action of a process, of which it may be known what it executes now.
    fn write_down(&self, action: Action, executed: Option<&str>) {
        if let Action::Exec { pid, argv, .. } = &action {
            self.claimed(*pid, argv.clone(), executed);
        }
        self.later.queue.push(action);
    }

    fn claimed(&self, pid: u32, argv: Vec<String>, executed: Option<&str>) {
        let look = || read::program(pid).map(|(path, _)| path).ok();
        self.later.observe_soon(Claim {
            pid,
            argv,
            before: executed.map(str::to_owned).or_else(look),
            is_first: self.later.queue.executed(pid),
            due: Instant::now() + OBSERVE_AFTER,
            again: false,
        });
    }

    /// What was started by us is known without a look: until its exec it is as unreadable as we are. A bad address is
    /// the program's own mistake, and fails in the kernel as well. All else hides something.
    fn could_not_read(&self, call: &see::Call<'_>, error: &io::Error) {
        if see::is_exec(call.number)
            && let Some(program) = self.launching.program_of(call.thread)
        {
            return self.write_down(see::start(call.process, program), None);
        }
        if error.raw_os_error() != Some(libc::EFAULT) {
            self.later.queue.unreadable();
        }
    }
}

impl Later {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is due whenever the alarm rings.
    fn serve(&self) {
        loop {
            self.alarm.wait();
            let mut waiting = self.waiting();
            if waiting.is_over {
                return;
            }
            self.observe_due(&mut waiting);
            self.let_go(&mut waiting);
            if !waiting.held.is_empty() {
                self.alarm.set(ROOM_EVERY);
            } else if !waiting.claims.is_empty() {
                self.alarm.set(OBSERVE_AFTER);
            }
        }
    }

    /// Keeps a call until there is room in the queue.
    fn hold(&self, notification: Notification) {
        self.waiting().held.push(notification);
        self.alarm.set(ROOM_EVERY);
    }

    /// Lets all go on that were held up, once there is room.
    fn let_go(&self, waiting: &mut Waiting) {
        if !waiting.held.is_empty() && !self.queue.is_full() {
            for notification in waiting.held.drain(..) {
                self.listener.answer(&notification, None);
            }
        }
    }

    fn observe_soon(&self, claim: Claim) {
        let mut waiting = self.waiting();
        waiting.claims.push_back(claim);
        while waiting.claims.len() > PENDING_MAX
            && let Some(oldest) = waiting.claims.pop_front()
        {
            self.observe(&mut waiting, oldest, false);
        }
        self.alarm.set(OBSERVE_AFTER);
    }

    /// A process that acts again has done what it claimed before; what it executes, if that was looked at.
    fn observe_earlier(&self, thread: u32) -> Option<String> {
        let mut waiting = self.waiting();
        let at = waiting.claims.iter().position(|claim| claim.pid == thread)?;
        let claim = waiting.claims.remove(at)?;
        self.observe(&mut waiting, claim, true)
    }

    fn observe_due(&self, waiting: &mut Waiting) {
        let now = Instant::now();
        for claim in std::mem::take(&mut waiting.claims) {
            if claim.due <= now {
                self.observe(waiting, claim, false);
            } else {
                waiting.claims.push_back(claim);
            }
        }
    }

    /// Looks at what a process executes; `last` says that it will not change any more.
    fn observe(&self, waiting: &mut Waiting, claim: Claim, last: bool) -> Option<String> {
        let Image {
            path,
            argv,
            cut,
            parent,
        } = read::image(claim.pid, claim.is_first).ok()?;
        let executed = path.clone();
        // The same program with other arguments than claimed: the exec failed, or has not happened yet.
        if argv != claim.argv && claim.before.as_ref() == Some(&path) {
            if !last && !claim.again {
                waiting.claims.push_back(Claim {
                    due: Instant::now() + OBSERVE_AGAIN,
                    again: true,
                    before: Some(path),
                    ..claim
                });
            }
        } else {
            self.queue.push(Action::Exec {
                basis: Basis::Observed,
                pid: claim.pid,
                parent,
                path,
                argv,
                cut,
            });
        }
        Some(executed)
    }
}
