//! Looks at each system call that the kernel asks about (seccomp user notification), writes it down, and lets it go on.
//!
//! What a call's pointers lead to may change between our look and the kernel's, so nothing is ever decided by it, and
//! the record says `claimed`. Soon afterwards `/proc` shows what is really executed; that record says `observed`.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agentsandbox_api::action::Action;

use super::launch::Launching;
use super::queue::Queue;
use super::read::{self, OfThread, Pages};
use super::see::{self, Sight};
use super::sys::{Alarm, Listener, Notification};
use super::{ROOM_EVERY, STACK_BYTES};
use crate::run::stat::{Layout, Stat};

/// How long after an exec `/proc` is looked at, if the process neither acts nor ends before.
const OBSERVE_AFTER: Duration = Duration::from_millis(10);
/// When it is looked at once more, if the exec was still going on.
const OBSERVE_AGAIN: Duration = Duration::from_millis(100);
/// So many observations wait at most; beyond that the oldest are made at once.
const PENDING_MAX: usize = 256;

/// An exec that was claimed and not yet observed.
#[derive(Clone, Copy)]
struct Claim {
    pid: u32,
    /// Who claimed it. If it executes, it is the process's first thread from then on.
    thread: u32,
    before: Before,
    due: Instant,
    again: bool,
}

/// A process that has not executed yet what it claims.
#[derive(Clone, Copy)]
struct Before {
    /// An exec changes it. What the program itself writes, such as its arguments, says nothing.
    layout: Layout,
    /// Whether it executes a program for the first time, as far as is remembered.
    is_first: bool,
}

/// What has become of a claim.
enum Outcome {
    /// It executed, and that is written down.
    Executed(Layout),
    /// It executes what it executed before: the exec failed, or has not happened yet.
    Unchanged,
    /// Its process is gone, or can't be looked at, which is counted.
    Unknown,
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
    /// Calls that were written down and wait for room in the queue, and with which error they then fail, if so.
    held: Vec<(Notification, Option<i32>)>,
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
        let before = self.later.observe_earlier(thread);
        let call = see::Call {
            number: notification.number,
            arguments: &notification.arguments,
            thread,
            // Who had claimed an exec and is still there is a process.
            process: before.map_or_else(|| read::process_of(thread), |_| thread),
            is_traced: false,
        };
        let refuse = match see::look(&OfThread(thread), &mut self.pages, &call) {
            Ok(Sight::Seen(actions)) => {
                // Else its process is gone, and what was read may be another's.
                if listener.is_valid(notification) {
                    for action in actions {
                        self.write_down(action, thread, before);
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
            Ok(Sight::Refuse(refused)) => {
                queue.push(Action::Refused {
                    pid: call.process,
                    call: refused,
                });
                Some(libc::EPERM)
            }
            Err(error) if listener.is_valid(notification) => self.could_not_read(&call, &error),
            Ok(Sight::Nothing) | Err(_) => None,
        };
        if !is_ours && queue.is_full() {
            self.later.hold(*notification, refuse);
        } else {
            listener.answer(notification, refuse);
        }
    }

    /// An action of a thread, of whose process it may be known what it was.
    fn write_down(&self, action: Action, thread: u32, before: Option<Before>) {
        if let Action::Exec { pid, .. } = action {
            let is_first = self.later.queue.executed(pid);
            self.later.observe_soon(Claim {
                pid,
                thread,
                before: before.unwrap_or_else(|| Before {
                    layout: Stat::of(pid).map_or_else(Layout::default, |stat| stat.layout),
                    is_first,
                }),
                due: Instant::now() + OBSERVE_AFTER,
                again: false,
            });
        }
        self.later.queue.push(action);
    }

    /// What was started by us is known without a look: until its exec it is as unreadable as we are. A bad address fails
    /// here, as it would in the kernel. All else hides something.
    fn could_not_read(&self, call: &see::Call<'_>, error: &io::Error) -> Option<i32> {
        if see::is_exec(call.number)
            && let Some(program) = self.launching.program_of(call.thread)
        {
            self.write_down(see::start(call.process, program), call.thread, None);
            return None;
        }
        if read::is_bad_address(error) {
            return Some(libc::EFAULT);
        }
        self.later.queue.unreadable();
        None
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
    fn hold(&self, notification: Notification, refuse: Option<i32>) {
        self.waiting().held.push((notification, refuse));
        self.alarm.set(ROOM_EVERY);
    }

    /// Lets all go on that were held up, once there is room.
    fn let_go(&self, waiting: &mut Waiting) {
        if !waiting.held.is_empty() && !self.queue.is_full() {
            for (notification, refuse) in waiting.held.drain(..) {
                self.listener.answer(&notification, refuse);
            }
        }
    }

    fn observe_soon(&self, claim: Claim) {
        let mut waiting = self.waiting();
        waiting.claims.push_back(claim);
        while waiting.claims.len() > PENDING_MAX
            && let Some(oldest) = waiting.claims.pop_front()
        {
            self.observe_or_wait(&mut waiting, oldest);
        }
        self.alarm.set(OBSERVE_AFTER);
    }

    /// A thread that acts again has done what it claimed before, or failed. Another one of its process says nothing, unless
    /// it took its place, as a thread that executes takes that of the first. What is known of a process so.
    fn observe_earlier(&self, thread: u32) -> Option<Before> {
        let mut waiting = self.waiting();
        let is_meant = |claim: &Claim| claim.thread == thread || claim.pid == thread;
        let at = waiting.claims.iter().position(is_meant)?;
        let claim = *waiting.claims.get(at)?;
        let before = match self.observe(&claim) {
            Outcome::Executed(layout) => Some(Before {
                layout,
                is_first: false,
            }),
            Outcome::Unchanged if claim.thread != thread => return None,
            Outcome::Unchanged => Some(claim.before),
            Outcome::Unknown => None,
        };
        waiting.claims.remove(at);
        before.filter(|_| claim.pid == thread)
    }

    fn observe_due(&self, waiting: &mut Waiting) {
        let now = Instant::now();
        for claim in std::mem::take(&mut waiting.claims) {
            if claim.due <= now {
                self.observe_or_wait(waiting, claim);
            } else {
                waiting.claims.push_back(claim);
            }
        }
    }

    /// Looks at what a process executes, and once more later if that is what it executed before.
    fn observe_or_wait(&self, waiting: &mut Waiting, claim: Claim) {
        if matches!(self.observe(&claim), Outcome::Unchanged) && !claim.again {
            waiting.claims.push_back(Claim {
                due: Instant::now() + OBSERVE_AGAIN,
                again: true,
                ..claim
            });
        }
    }

    /// Looks at what a process executes, and writes it down if that is not what it executed before.
    fn observe(&self, claim: &Claim) -> Outcome {
        let Some(stat) = Stat::of(claim.pid) else {
            return Outcome::Unknown;
        };
        if stat.layout == claim.before.layout {
            return Outcome::Unchanged;
        }
        match read::image(claim.pid, &stat) {
            // It is just being loaded.
            Ok(_) if stat.layout.arguments.1 == 0 => Outcome::Unchanged,
            Ok(image) => {
                let parent = claim.before.is_first.then_some(stat.parent);
                self.queue.push(image.observed(claim.pid, parent));
                Outcome::Executed(stat.layout)
            }
            Err(error) => {
                self.queue.not_observed(&error);
                Outcome::Unknown
            }
        }
    }
}
