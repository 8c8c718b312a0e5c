//! Looks at system calls where the kernel has no notifications for it: every process of the user is traced (ptrace(2)),
//! and stops at the calls that the filter names.
//!
//! Only the thread that starts a process may trace it, so this one starts them all. It alone waits for children, since a
//! stop can't be told from an end before it is taken.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentsandbox_api::action::Action;

use super::launch::{Launcher, Order};
use super::ptrace::{self, Stop, Waited};
use super::queue::Queue;
use super::read::{self, OfThread, Pages};
use super::see::{self, Sight};
use super::sys::Bell;
use super::{ROOM_EVERY, STACK_BYTES, filter};
use crate::run::stat::Stat;
use crate::sys::{Ended, Reaped, Signals, never_wait, wait_readable};

/// Nothing else would be missed for so long.
const IDLE: Duration = Duration::from_mins(1);

/// Children that have ended, as they are told to the main loop.
pub struct Ends {
    state: Mutex<EndsState>,
    bell: Bell,
}

#[derive(Default)]
struct EndsState {
    ended: VecDeque<Ended>,
    has_children: bool,
}

impl Ends {
    fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            bell: Bell::new()?,
        })
    }

    fn state(&self) -> MutexGuard<'_, EndsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `crate::sys::reap` would say.
    pub fn next(&self) -> Reaped {
        let mut state = self.state();
        match state.ended.pop_front() {
            Some(ended) => Reaped::One(ended),
            None if state.has_children => {
                self.bell.hush();
                Reaped::NoneYet
            }
            None => {
                self.bell.hush();
                Reaped::NoChildren
            }
        }
    }

    /// Readable when there is something new.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    fn push(&self, ended: Ended) {
        self.state().ended.push_back(ended);
        self.bell.ring();
    }

    fn set_children(&self, has_children: bool) {
        let mut state = self.state();
        if std::mem::replace(&mut state.has_children, has_children) != has_children {
            self.bell.ring();
        }
    }
}

/// A process that has been started and does not execute yet.
struct Starting {
    pid: i32,
    program: (String, Vec<String>),
    errors: File,
    reply: Sender<io::Result<i32>>,
}

/// Traces.
struct Tracer {
    orders: Receiver<Order>,
    ordered: Arc<Bell>,
    children: Signals,
    ends: Arc<Ends>,
    queue: Arc<Queue>,
    known: HashSet<i32>,
    /// Threads that stopped at a call which is written down, and wait for room in the queue.
    held: Vec<i32>,
    starting: Option<Starting>,
    pages: Pages,
}

/// Starts the tracing thread, if a trial shows that it can do its work. `children` has the signals of children.
pub fn begin(queue: &Arc<Queue>, children: Signals) -> io::Result<(Launcher, Arc<Ends>)> {
    let (ends, ordered) = (Arc::new(Ends::new()?), Arc::new(Bell::new()?));
    let (send, orders) = std::sync::mpsc::channel();
    let (ready, tried) = std::sync::mpsc::channel();
    let tracer = Tracer {
        orders,
        ordered: ordered.clone(),
        children,
        ends: ends.clone(),
        queue: queue.clone(),
        known: HashSet::new(),
        held: Vec::new(),
        starting: None,
        pages: Pages::default(),
    };
    std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let works = ptrace::try_tracing(&filter::program(Some(filter::TRACE)));
            let goes_on = works.is_ok();
            if ready.send(works).is_ok() && goes_on {
                tracer.serve();
            }
        })?;
    tried.recv().map_err(io::Error::other)??;
    Ok((Launcher::ringing(send, ordered), ends))
}

impl Tracer {
    fn serve(mut self) {
        loop {
            self.take_all();
            self.let_go();
            self.hear_start();
            if self.starting.is_none() {
                match self.orders.try_recv() {
                    Ok(order) => {
                        self.start(order);
                        continue;
                    }
                    Err(TryRecvError::Empty) => {}
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let mut awaited = vec![self.children.as_fd(), self.ordered.as_fd()];
            if let Some(starting) = &self.starting {
                awaited.push(starting.errors.as_fd());
            }
            wait_readable(&awaited, if self.held.is_empty() { IDLE } else { ROOM_EVERY });
            while self.children.next().is_some() {}
            self.ordered.hush();
        }
    }

    /// Everything that has happened to children until now.
    fn take_all(&mut self) {
        loop {
            match ptrace::wait_any() {
                Waited::Stopped(pid, stop) => self.stopped(pid, stop),
                Waited::Ended(ended) => self.ended(ended),
                Waited::Nothing => return,
                Waited::NoChildren => return self.ends.set_children(false),
            }
        }
    }

    fn stopped(&mut self, pid: i32, stop: Stop) {
        match stop {
            Stop::Call => self.look(pid),
            Stop::Executed => {
                self.observe(pid);
                ptrace::go_on(pid, 0);
            }
            // A child of it comes with a stop of its own.
            Stop::Born | Stop::Group => ptrace::go_on(pid, 0),
            // So that comes first, and is no signal that anybody sent.
            Stop::Signal(libc::SIGSTOP) if self.known.insert(pid) => ptrace::go_on(pid, 0),
            Stop::Signal(signal) => ptrace::go_on(pid, signal),
        }
    }

    fn ended(&mut self, ended: Ended) {
        self.known.remove(&ended.pid);
        self.held.retain(|pid| *pid != ended.pid);
        let pid = u32::try_from(ended.pid).unwrap_or_default();
        if self.queue.has_executed(pid) {
            self.queue.push(Action::Exit {
                pid,
                code: ended.code,
                signal: ended.signal,
            });
        }
        self.ends.push(ended);
    }

    fn look(&mut self, pid: i32) {
        // Killed meanwhile, if not: its end comes next.
        let Ok(registers) = ptrace::registers(pid) else {
            return;
        };
        let thread = u32::try_from(pid).unwrap_or_default();
        let call = see::Call {
            number: registers.number,
            arguments: &registers.arguments,
            thread,
            process: read::process_of(thread),
            is_traced: true,
        };
        let refuse = match see::look(&OfThread(thread), &mut self.pages, &call) {
            Ok(Sight::Seen(actions)) => {
                for action in actions {
                    self.write_down(action);
                }
                None
            }
            Ok(Sight::Nothing | Sight::Exit(_)) => None,
            Ok(Sight::Refuse(refused)) => {
                self.queue.push(Action::Refused {
                    pid: call.process,
                    call: refused,
                });
                Some(libc::EPERM)
            }
            Err(error) => self.could_not_read(&call, &error),
        };
        if let Some(error) = refuse
            && ptrace::refuse(pid, error).is_err()
        {
            // A call that can't be refused must not be made.
            crate::sys::signal(pid, libc::SIGKILL);
        }
        let is_ours = self.starting.as_ref().is_some_and(|starting| starting.pid == pid);
        if !is_ours && self.queue.is_full() {
            self.held.push(pid);
        } else {
            ptrace::go_on(pid, 0);
        }
    }

    fn write_down(&self, action: Action) {
        if let Action::Exec { pid, .. } = &action {
            self.queue.executed(*pid);
        }
        self.queue.push(action);
    }

    /// What was started by us is known without a look: until its exec it is as unreadable as we are. A bad address fails
    /// here, as it would in the kernel. All else hides something.
    fn could_not_read(&self, call: &see::Call<'_>, error: &io::Error) -> Option<i32> {
        let ours = self
            .starting
            .as_ref()
            .filter(|starting| u32::try_from(starting.pid) == Ok(call.thread) && see::is_exec(call.number));
        if let Some(starting) = ours {
            self.write_down(see::start(call.process, starting.program.clone()));
        } else if read::is_bad_address(error) {
            return Some(libc::EFAULT);
        } else {
            self.queue.unreadable();
        }
        None
    }

    /// What has just been loaded, before its first instruction.
    fn observe(&self, pid: i32) {
        let pid = u32::try_from(pid).unwrap_or_default();
        let Some(stat) = Stat::of(pid) else {
            return;
        };
        match read::image(pid, &stat) {
            Ok(image) => self.write_down(image.observed(pid, Some(stat.parent))),
            Err(error) => self.queue.not_observed(&error),
        }
    }

    /// Lets all go on that were held up, once there is room.
    fn let_go(&mut self) {
        if !self.held.is_empty() && !self.queue.is_full() {
            for pid in self.held.drain(..) {
                ptrace::go_on(pid, 0);
            }
        }
    }

    fn start(&mut self, order: Order) {
        let Order {
            mut command,
            program,
            reply,
        } = order;
        match born(&mut command) {
            Ok((pid, errors)) => {
                self.ends.set_children(true);
                self.known.insert(pid);
                self.starting = Some(Starting {
                    pid,
                    program,
                    errors,
                    reply,
                });
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Whether the process that is being started executes, or can't.
    fn hear_start(&mut self) {
        let Some(starting) = &mut self.starting else {
            return;
        };
        let result = match failure(&mut starting.errors) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // The kernel closed it when it loaded the program, or when it killed the process, which is told apart.
            Ok(None) => Ok(starting.pid),
            Ok(Some(error)) | Err(error) => Err(error),
        };
        if let Some(starting) = self.starting.take() {
            let _ = starting.reply.send(result);
        }
    }
}

/// Starts a process that is traced from its exec on; its number, and where it says why it can't execute.
fn born(command: &mut Command) -> io::Result<(i32, File)> {
    let filter = filter::program(Some(filter::TRACE));
    let (errors, writer) = io::pipe()?;
    let keep = writer.as_raw_fd();
    crate::sys::before_exec(command, move || ptrace::let_trace(&filter, keep));
    never_wait(errors.as_fd())?;
    let mut errors = File::from(OwnedFd::from(errors));
    let pid = ptrace::fork_and_execute(command, &writer)?;
    drop(writer);
    match ptrace::begin_tracing(pid) {
        Ok(()) => Ok((pid, errors)),
        // It may have failed before it could be traced.
        Err(error) => Err(failure(&mut errors).ok().flatten().unwrap_or(error)),
    }
}

/// Why a process can't execute, if it says so; it says nothing when it can.
fn failure(errors: &mut File) -> io::Result<Option<io::Error>> {
    let mut number = [0; 4];
    let read = errors.read(&mut number)?;
    Ok((read == number.len()).then(|| io::Error::from_raw_os_error(i32::from_ne_bytes(number))))
}
