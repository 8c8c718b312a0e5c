//! Where every process of the user is born: one thread that carries the filter, so that all of them inherit it and
//! no other thread of the supervisor does.

use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::sys::{self, Shared};

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

type Order = (Command, Sender<io::Result<Child>>);

/// Starts processes of the user.
pub struct Launcher {
    orders: Sender<Order>,
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
        Ok((Self { orders }, result, launching))
    }

    /// Starts a command, and waits until it executes or can't.
    pub fn spawn(&self, command: Command) -> io::Result<Child> {
        let (send, result) = channel();
        self.orders.send((command, send)).map_err(io::Error::other)?;
        result.recv().map_err(io::Error::other)?
    }
}

fn serve(orders: &Receiver<Order>, launching: &Launching) {
    for (mut command, reply) in orders {
        let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
        let program = text(command.get_program());
        let argv = std::iter::once(program.clone())
            .chain(command.get_args().map(text))
            .collect();
        launching.set(Some((program, argv)));
        let pid = launching.pid;
        crate::sys::before_exec(&mut command, move || {
            pid.set(i32::try_from(std::process::id()).unwrap_or_default());
            Ok(())
        });
        let result = command.spawn();
        launching.set(None);
        if reply.send(result).is_err() {
            return;
        }
    }
}
