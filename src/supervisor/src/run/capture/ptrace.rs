//! System calls of tracing (ptrace(2)), each behind a safe function.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::launch::{START_PATIENCE, START_USUAL};
use super::sys::install;
use crate::sys::Ended;

/// Between two looks at a child that is being started.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// What a traced thread has stopped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A call that the filter names, before it is made.
    Call,
    /// It has loaded a program.
    Executed,
    /// It has made a process or thread.
    Born,
    /// A signal is about to be delivered.
    Signal(i32),
    /// It is stopped by a signal, with its whole process.
    Group,
}

/// What has happened to a child.
pub enum Waited {
    /// A traced thread has stopped.
    Stopped(i32, Stop),
    /// A child, or a traced thread, has ended.
    Ended(Ended),
    /// Nothing new.
    Nothing,
    /// There are no children.
    NoChildren,
}

/// Looks for news of any child or traced thread, without waiting.
pub fn wait_any() -> Waited {
    let mut status = 0;
    // SAFETY: the pointer is to a live integer.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
    match pid {
        0 => Waited::Nothing,
        pid if pid < 0 => Waited::NoChildren,
        pid if !libc::WIFSTOPPED(status) => Waited::Ended(Ended::of(pid, status)),
        pid => {
            let stop = match status >> 16 {
                libc::PTRACE_EVENT_SECCOMP => Stop::Call,
                libc::PTRACE_EVENT_EXEC => Stop::Executed,
                0 if is_group_stop(pid) => Stop::Group,
                0 => Stop::Signal(libc::WSTOPSIG(status)),
                _ => Stop::Born,
            };
            Waited::Stopped(pid, stop)
        }
    }
}

/// A stop of a whole process has no signal to tell of (ptrace(2), "Group-stop").
fn is_group_stop(pid: i32) -> bool {
    // SAFETY: an all-zero siginfo_t is valid, and the request writes one.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::ptrace(libc::PTRACE_GETSIGINFO, pid, 0, &raw mut info) < 0
            && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
    }
}

/// Lets a stopped thread go on, with a signal if it is not 0. One that was killed meanwhile can't.
pub fn go_on(pid: i32, signal: i32) {
    // SAFETY: the request takes no pointers.
    unsafe { libc::ptrace(libc::PTRACE_CONT, pid, 0, libc::c_long::from(signal)) };
}

/// A child between fork and exec, in a process group of its own: takes the filter, has its parent's thread trace it, and
/// waits until that does.
///
/// Only who can be read can be traced, and other processes of the same user can then reach it. So it gives up every
/// descriptor but one and its standard ones, and is under the filter before: what it could still do for them is nothing
/// that they can't do themselves.
pub fn let_trace(program: &[libc::sock_filter], keep: RawFd) -> io::Result<()> {
    let kept = u32::try_from(keep).map_err(|_| io::ErrorKind::InvalidInput)?;
    let close = |first: u32, last: u32| {
        if first > last {
            return Ok(());
        }
        // SAFETY: close_range takes values only; nothing in this child uses these descriptors any more.
        match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    close(3, kept.saturating_sub(1))?;
    close(kept.saturating_add(1).max(3), u32::MAX)?;
    install(program, false)?;
    // SAFETY: none takes pointers; all are system calls alone. The group is this process.
    let done = unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
            && libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == 0
            && libc::kill(0, libc::SIGSTOP) == 0
    };
    if done {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Waits for the stop of a child that lets itself be traced, and has it and all that it starts stop at what the filter
/// names.
pub fn begin_tracing(pid: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESECCOMP
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_EXITKILL;
    let status = wait_started(pid)?;
    if !libc::WIFSTOPPED(status) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: the pointer is to a live integer; the requests take none.
    unsafe {
        let mut status = 0;
        if libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, libc::c_long::from(options)) < 0
            || libc::ptrace(libc::PTRACE_CONT, pid, 0, 0) < 0
        {
            let error = io::Error::last_os_error();
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, &raw mut status, libc::__WALL);
            return Err(error);
        }
    }
    Ok(())
}

/// Waits for the first news of a child. Others of the same user can stop it before it lets itself be traced, and of that
/// there is no news: it is let go on, and killed if that does not help.
fn wait_started(pid: i32) -> io::Result<i32> {
    let begun = Instant::now();
    let mut status = 0;
    loop {
        // SAFETY: the pointer is to a live integer; the signals reach a child that was not waited for.
        unsafe {
            match libc::waitpid(pid, &raw mut status, libc::__WALL | libc::WNOHANG) {
                0 => {}
                found if found == pid => return Ok(status),
                _ => return Err(io::Error::last_os_error()),
            }
            if begun.elapsed() > START_PATIENCE {
                libc::kill(pid, libc::SIGKILL);
            } else if begun.elapsed() > START_USUAL {
                libc::kill(pid, libc::SIGCONT);
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Whether this thread can trace a child that has a filter.
pub fn try_tracing(program: &[libc::sock_filter]) -> io::Result<()> {
    // SAFETY: the child only makes system calls, and does not return; the pointer is to a live integer.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::setsid();
            let tried = let_trace(program, libc::STDERR_FILENO);
            libc::_exit(i32::from(tried.is_err()));
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        begin_tracing(pid)?;
        let mut status = 0;
        while libc::waitpid(pid, &raw mut status, libc::__WALL) == pid {
            if !libc::WIFSTOPPED(status) {
                let works = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
                return works
                    .then_some(())
                    .ok_or_else(|| io::ErrorKind::Unsupported.into());
            }
            go_on(pid, 0);
        }
    }
    Err(io::Error::last_os_error())
}

/// Starts a command without waiting for its exec. If that fails, the child says why: its error number, in four bytes.
pub fn fork_and_execute(command: &mut std::process::Command, errors: &impl AsRawFd) -> io::Result<i32> {
    use std::os::unix::process::CommandExt;
    // SAFETY: glibc leaves its allocator usable in the child of a process with threads, and no other thread of ours ever
    // touches the environment; beyond that the child makes system calls only, and does not return.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            let error = command.exec().raw_os_error().unwrap_or(libc::EIO);
            libc::write(errors.as_raw_fd(), (&raw const error).cast(), size_of::<i32>());
            libc::_exit(127);
        }
        if pid < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(pid)
        }
    }
}

/// A call at which a thread has stopped.
pub struct Registers {
    /// The call's number.
    pub number: i32,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// What a thread that has stopped at a call asks for.
#[cfg(target_arch = "x86_64")]
pub fn registers(pid: i32) -> io::Result<Registers> {
    let all = all_registers(pid)?;
    Ok(Registers {
        number: i32::try_from(all.orig_rax.cast_signed()).unwrap_or(-1),
        arguments: [all.rdi, all.rsi, all.rdx, all.r10, all.r8, all.r9],
    })
}

/// Makes the call at which a thread has stopped fail instead.
#[cfg(target_arch = "x86_64")]
pub fn refuse(pid: i32, error: i32) -> io::Result<()> {
    let mut all = all_registers(pid)?;
    // No call at all has this number; the result is then left as it is.
    all.orig_rax = u64::MAX;
    all.rax = i64::from(-error).cast_unsigned();
    set_registers(pid, libc::NT_PRSTATUS, &mut all)
}

/// What a thread that has stopped at a call asks for.
#[cfg(target_arch = "aarch64")]
pub fn registers(pid: i32) -> io::Result<Registers> {
    let all = all_registers(pid)?;
    let mut arguments = [0; 6];
    arguments.copy_from_slice(&all.regs[..6]);
    Ok(Registers {
        number: i32::try_from(all.regs[8]).unwrap_or(-1),
        arguments,
    })
}

/// Makes the call at which a thread has stopped fail instead.
#[cfg(target_arch = "aarch64")]
pub fn refuse(pid: i32, error: i32) -> io::Result<()> {
    /// `NT_ARM_SYSTEM_CALL`.
    const SYSTEM_CALL: i32 = 0x404;
    let mut all = all_registers(pid)?;
    set_registers(pid, SYSTEM_CALL, &mut -1_i32)?;
    all.regs[0] = i64::from(-error).cast_unsigned();
    set_registers(pid, libc::NT_PRSTATUS, &mut all)
}

fn all_registers(pid: i32) -> io::Result<libc::user_regs_struct> {
    // SAFETY: all-zero registers are valid, and the request writes at most their length.
    unsafe {
        let mut all: libc::user_regs_struct = std::mem::zeroed();
        let mut vector = libc::iovec {
            iov_base: (&raw mut all).cast(),
            iov_len: size_of_val(&all),
        };
        let set = libc::c_long::from(libc::NT_PRSTATUS);
        if libc::ptrace(libc::PTRACE_GETREGSET, pid, set, &raw mut vector) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(all)
    }
}

fn set_registers<T>(pid: i32, set: i32, registers: &mut T) -> io::Result<()> {
    let mut vector = libc::iovec {
        iov_base: std::ptr::from_mut(registers).cast(),
        iov_len: size_of::<T>(),
    };
    // SAFETY: the request reads as much as the vector says, which is the value's own size.
    let done = unsafe {
        libc::ptrace(
            libc::PTRACE_SETREGSET,
            pid,
            libc::c_long::from(set),
            &raw mut vector,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
