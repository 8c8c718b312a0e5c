//! System calls of the capture that the standard library does not offer, each behind a safe function.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use crate::sys::Ended;

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER` and `_WAIT_KILLABLE_RECV` (Linux 5.19): signals do not interrupt a call that is
/// being looked at, so that programs with frequent ones (Go) make progress.
const NEW_LISTENER: libc::c_ulong = 1 << 3;
const WAIT_KILLABLE: libc::c_ulong = 1 << 5;
/// The requests of the listener, as `linux/seccomp.h` numbers them.
const RECEIVE: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;
const IS_VALID: u64 = 0x4008_2102;
const SET_FLAGS: u64 = 0x4008_2104;
/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` (Linux 6.6): the answering side hands its processor over.
const SYNC_WAKE_UP: u64 = 1;
const CONTINUE: u32 = 1;

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Notification {
    /// Its number, for the answer.
    pub id: u64,
    /// The thread, as this pid namespace numbers it.
    pub thread: u32,
    flags: u32,
    /// The system call.
    pub number: i32,
    /// Its ABI.
    pub arch: u32,
    pointer: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

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
        pid if !libc::WIFSTOPPED(status) => Waited::Ended(Ended {
            pid,
            code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
            signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
        }),
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

/// A child between fork and exec: has its parent's thread trace it, and waits until that does.
pub fn let_trace() -> io::Result<()> {
    // SAFETY: neither takes pointers; raise is async-signal-safe.
    unsafe {
        if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) < 0 || libc::raise(libc::SIGSTOP) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
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
    let mut status = 0;
    // SAFETY: the pointer is to a live integer; the requests take none.
    unsafe {
        if libc::waitpid(pid, &raw mut status, libc::__WALL) != pid || !libc::WIFSTOPPED(status) {
            return Err(io::ErrorKind::Unsupported.into());
        }
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

/// Whether this thread can trace a child that has a filter.
pub fn try_tracing(program: &[libc::sock_filter]) -> io::Result<()> {
    // SAFETY: the child only makes system calls, and does not return; the pointer is to a live integer.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            let tried = let_trace().and_then(|()| install(program, false));
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

/// Where notifications arrive.
pub struct Listener(OwnedFd);

/// Installs a filter for this thread and what it starts from now on, with a listener if there shall be one.
pub fn install(program: &[libc::sock_filter], listen: bool) -> io::Result<Option<Listener>> {
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut(),
    };
    let load = |flags: libc::c_ulong| {
        // SAFETY: the program's pointer and length are those of a live slice, which the kernel only reads.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const program,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(result)
        }
    };
    // SAFETY: prctl with these constants takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if !listen {
        return load(0).map(|_| None);
    }
    let fd = load(NEW_LISTENER | WAIT_KILLABLE).or_else(|_| load(NEW_LISTENER))?;
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else owns it.
    let listener = Listener(unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: this request takes a value. Kernels that do not know it are merely slower.
    unsafe { libc::ioctl(listener.0.as_raw_fd(), SET_FLAGS as _, SYNC_WAKE_UP) };
    Ok(Some(listener))
}

impl Listener {
    /// The next notification; `None` if it was withdrawn or nothing came in time.
    pub fn receive(&self, timeout: Option<Duration>) -> io::Result<Option<Notification>> {
        if let Some(timeout) = timeout {
            let mut polled = libc::pollfd {
                fd: self.0.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let millis = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
            // SAFETY: the pointer is to one live pollfd.
            if unsafe { libc::poll(&raw mut polled, 1, millis) } == 0 {
                return Ok(None);
            }
        }
        let mut notification = Notification::default();
        // SAFETY: the request writes a `struct seccomp_notif`, which is what the pointer is to.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), RECEIVE as _, &raw mut notification) } == 0 {
            return Ok(Some(notification));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Its process was killed meanwhile.
            Some(libc::ENOENT | libc::EINTR) => Ok(None),
            _ => Err(error),
        }
    }

    /// Whether the thread still waits: then what was read of it was its own.
    pub fn is_valid(&self, notification: &Notification) -> bool {
        // SAFETY: the request reads the number that the pointer is to.
        unsafe { libc::ioctl(self.0.as_raw_fd(), IS_VALID as _, &raw const notification.id) == 0 }
    }

    /// Lets the call through, or makes it fail. A thread that is gone needs no answer.
    pub fn answer(&self, notification: &Notification, refuse: Option<i32>) {
        let answer = Answer {
            id: notification.id,
            value: 0,
            error: refuse.map_or(0, |error| -error),
            flags: if refuse.is_some() { 0 } else { CONTINUE },
        };
        // SAFETY: the request reads a `struct seccomp_notif_resp`, which is what the pointer is to.
        unsafe { libc::ioctl(self.0.as_raw_fd(), SEND as _, &raw const answer) };
    }
}

/// Reads memory of another process (process_vm_readv(2)): as much as can be read in one piece.
pub fn read_memory(thread: u32, address: u64, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: into.len(),
    };
    let thread = libc::pid_t::try_from(thread).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the local vector is a live buffer of that length; the remote one is never dereferenced here.
    let read = unsafe { libc::process_vm_readv(thread, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Whether a thread is its process's first, whose number is the process's own.
pub fn is_process(thread: u32) -> bool {
    let Ok(thread) = libc::pid_t::try_from(thread) else {
        return false;
    };
    // SAFETY: tgkill takes values only; signal 0 is none, and only asks whether the pair exists.
    let found = unsafe { libc::syscall(libc::SYS_tgkill, thread, thread, 0) };
    found == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

/// This thread's id.
pub fn thread() -> u32 {
    // SAFETY: gettid has no preconditions.
    u32::try_from(unsafe { libc::gettid() }).unwrap_or_default()
}

/// This process's group, as its pid namespace numbers it.
pub fn own_group() -> i32 {
    // SAFETY: getpgrp has no preconditions.
    unsafe { libc::getpgrp() }
}

/// A number that a child between fork and exec can still tell us: a page of shared memory, held for ever.
#[derive(Clone, Copy)]
pub struct Shared(&'static AtomicI32);

impl Shared {
    /// Zero.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a new anonymous mapping is zeroed, aligned, and valid for the whole life of the program, as nobody
        // unmaps it; an atomic may be shared between processes.
        unsafe {
            let page = libc::mmap(
                std::ptr::null_mut(),
                size_of::<AtomicI32>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if page == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(&*page.cast::<AtomicI32>()))
        }
    }

    /// Says it.
    pub fn set(self, value: i32) {
        self.0.store(value, Ordering::Release);
    }

    /// What was said last.
    pub fn get(self) -> i32 {
        self.0.load(Ordering::Acquire)
    }
}

/// A descriptor that wakes a poll.
pub struct Bell(OwnedFd);

impl Bell {
    /// Silent.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd returns a new descriptor or -1.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor, and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Makes it readable.
    pub fn ring(&self) {
        let one = 1_u64;
        // SAFETY: the pointer is to the 8 bytes that an eventfd takes.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Makes it silent.
    pub fn hush(&self) {
        let mut count = 0_u64;
        // SAFETY: the pointer is to the 8 bytes that an eventfd gives.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl std::os::fd::AsFd for Bell {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
