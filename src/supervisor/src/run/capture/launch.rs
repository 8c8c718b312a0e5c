//! Where every process of the user is born: one thread that carries the filter, so that all of them inherit it and
//! no other thread of the supervisor does.

use std::io;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::sys::{self, Bell, Shared};

/// A process usually executes its program within this time. One that does not may have been stopped by another one of the
/// same user, and is told to go on.
pub const START_USUAL: Duration = Duration::from_secs(1);
/// One that has not by then is killed, since whoever starts it waits for it.
pub const START_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at one that takes long.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the launcher is starting, for whoever looks at its first system calls.
pub struct Launching {
    thread: u32,
    pid: Shared,
    program: Mutex<Option<(String, Vec<String>)>>,
}

impl Launching {
    /// The launcher's own thread.
    pub fn thread(&self) -> u32 {
        self.thread
    }

    /// Program and arguments, if this is the process that is being started.
    pub fn program_of(&self, pid: u32) -> Option<(String, Vec<String>)> {
        let program = self.program.lock().unwrap_or_else(PoisonError::into_inner);
        program
            .clone()
            .filter(|_| u32::try_from(self.pid.get()) == Ok(pid))
    }

    fn set(&self, program: Option<(String, Vec<String>)>) {
        self.pid.set(0);
        *self.program.lock().unwrap_or_else(PoisonError::into_inner) = program;
    }
}

/// A process to start.
pub struct Order {
    /// How. Its ends of pipes are closed here when it has started.
    pub command: Command,
    /// Program and arguments, as they are written down.
    pub program: (String, Vec<String>),
    /// Who waits: for its number, or why there is none.
    pub reply: Sender<io::Result<i32>>,
}

/// Starts processes of the user.
pub struct Launcher {
    orders: Sender<Order>,
    bell: Option<Arc<Bell>>,
    launching: Option<Arc<Launching>>,
}

impl Launcher {
    /// Starts the thread, and has it prepare itself. What the preparation returns comes back; if it fails there is no
    /// launcher.
    pub fn begin<T: Send + 'static>(
        prepare: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<(Self, T, Arc<Launching>)> {
        let (orders, taken) = channel::<Order>();
        let (ready, prepared) = channel();
        std::thread::Builder::new()
            .stack_size(super::STACK_BYTES)
            .spawn(move || {
                let begun = Shared::new().and_then(|pid| prepare().map(|result| (pid, result)));
                let launching = match begun {
                    Ok((pid, result)) => {
                        let launching = Arc::new(Launching {
                            thread: sys::thread(),
                            pid,
                            program: Mutex::new(None),
                        });
                        if ready.send(Ok((result, launching.clone()))).is_err() {
                            return;
                        }
                        launching
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                serve(&taken, &launching);
            })?;
        let (result, launching) = prepared.recv().map_err(io::Error::other)??;
        let launcher = Self {
            orders,
            bell: None,
            launching: Some(launching.clone()),
        };
        Ok((launcher, result, launching))
    }

    /// A launcher whose thread takes orders when its bell rings.
    pub fn ringing(orders: Sender<Order>, bell: Arc<Bell>) -> Self {
        Self {
            orders,
            bell: Some(bell),
            launching: None,
        }
    }

    /// Starts a command, and waits until it executes or can't.
    pub fn spawn(&self, command: Command, program: (String, Vec<String>)) -> io::Result<i32> {
        let (reply, result) = channel();
        let order = Order {
            command,
            program,
            reply,
        };
        self.orders.send(order).map_err(io::Error::other)?;
        if let Some(bell) = &self.bell {
            bell.ring();
        }
        let begun = Instant::now();
        loop {
            match result.recv_timeout(LOOK_EVERY) {
                Ok(started) => return started,
                Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(RecvTimeoutError::Timeout) => self.hurry(begun.elapsed()),
            }
        }
    }

    /// Sees to it that a process which others have stopped before its exec goes on, or ends.
    fn hurry(&self, waited: Duration) {
        // A tracer sees to those that it starts.
        let Some(launching) = &self.launching else { return };
        match launching.pid.get() {
            // It was stopped before it could say which one it is.
            0 if waited > START_PATIENCE => crate::sys::kill_everything(),
            pid if waited > START_PATIENCE => crate::sys::signal(pid, libc::SIGKILL),
            pid if waited > START_USUAL => crate::sys::signal(pid, libc::SIGCONT),
            _ => {}
        }
    }
}

fn serve(orders: &Receiver<Order>, launching: &Launching) {
    for order in orders {
        let Order {
            mut command,
            program,
            reply,
        } = order;
        launching.set(Some(program));
        let pid = launching.pid;
        crate::sys::before_exec(&mut command, move || {
            pid.set(i32::try_from(std::process::id()).unwrap_or_default());
            Ok(())
        });
        let result = command.spawn();
        drop(command);
        launching.set(None);
        let pid = result.map(|child| i32::try_from(child.id()).unwrap_or(i32::MAX));
        if reply.send(pid).is_err() {
            return;
        }
    }
}
