//! System calls of the capture that the standard library does not offer, each behind a safe function.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` (Linux 5.19): signals do not interrupt a call that is
/// being looked at, so that programs with frequent ones (Go) make progress.
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
    let fd = load(libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | WAIT_KILLABLE)
        .or_else(|_| load(libc::SECCOMP_FILTER_FLAG_NEW_LISTENER))?;
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just returned this descriptor, and nobody else owns it.
    let listener = Listener(unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: this request takes a value. Kernels that do not know it are merely slower.
    unsafe { libc::ioctl(listener.0.as_raw_fd(), SET_FLAGS as _, SYNC_WAKE_UP) };
    Ok(Some(listener))
}

impl Listener {
    /// The next notification; `None` if it was withdrawn. Fails when no process with the filter is left.
    pub fn receive(&self) -> io::Result<Option<Notification>> {
        let mut notification = Notification::default();
        // SAFETY: the request writes a `struct seccomp_notif`, which is what the pointer is to.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), RECEIVE as _, &raw mut notification) } == 0 {
            return Ok(Some(notification));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Its process was killed meanwhile.
            Some(libc::ENOENT) if !self.is_orphaned() => Ok(None),
            Some(libc::EINTR) => Ok(None),
            _ => Err(error),
        }
    }

    /// Whether no process with the filter is left: then nothing will ever come.
    fn is_orphaned(&self) -> bool {
        let mut polled = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the pointer is to one live structure, and nothing is waited for.
        unsafe { libc::poll(&raw mut polled, 1, 0) };
        polled.revents & libc::POLLHUP != 0
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

/// A timer that rings once. To set it makes a virtual machine ask its host, which costs more than all else that is done
/// for one system call; so it is set once for all that is due about the same time.
pub struct Alarm {
    timer: OwnedFd,
    is_set: AtomicBool,
}

impl Alarm {
    /// Not set.
    pub fn new() -> io::Result<Self> {
        // SAFETY: timerfd_create takes values, and returns a new descriptor or -1.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: the kernel has just returned this descriptor, and nobody else owns it.
            timer: unsafe { OwnedFd::from_raw_fd(fd) },
            is_set: AtomicBool::new(false),
        })
    }

    /// Lets it ring after some time, unless it is set already.
    pub fn set(&self, after: Duration) {
        if self.is_set.swap(true, Ordering::AcqRel) {
            return;
        }
        // SAFETY: an all-zero itimerspec is valid.
        let mut once: libc::itimerspec = unsafe { std::mem::zeroed() };
        once.it_value = libc::timespec {
            tv_sec: libc::time_t::try_from(after.as_secs()).unwrap_or(libc::time_t::MAX),
            // All zeros would unset it.
            tv_nsec: after.subsec_nanos().max(1).into(),
        };
        // SAFETY: the pointer is to a live itimerspec, and the old value is not asked for. With such values it can't fail.
        unsafe { libc::timerfd_settime(self.timer.as_raw_fd(), 0, &raw const once, std::ptr::null_mut()) };
    }

    /// Waits until it rings.
    pub fn wait(&self) {
        let mut rung = 0_u64;
        // SAFETY: the pointer is to the 8 bytes that a timer gives.
        unsafe { libc::read(self.timer.as_raw_fd(), (&raw mut rung).cast(), 8) };
        self.is_set.store(false, Ordering::Release);
    }
}

/// Reads pieces of another process's memory (process_vm_readv(2)), given by address and length, one after the other, up
/// to the first that can't be read whole.
pub fn read_memory(thread: u32, pieces: &[(u64, usize)], into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote: Vec<_> = pieces
        .iter()
        .map(|(address, length)| libc::iovec {
            iov_base: *address as *mut libc::c_void,
            iov_len: *length,
        })
        .collect();
    let thread = libc::pid_t::try_from(thread).map_err(|_| io::ErrorKind::InvalidInput)?;
    let count = libc::c_ulong::try_from(remote.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the local vector is a live buffer of that length, beyond which nothing is written; the remote ones are never
    // dereferenced here.
    let read = unsafe { libc::process_vm_readv(thread, &raw const local, 1, remote.as_ptr(), count, 0) };
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

/// Whatever wakes this thread, or what it starts from now on, does not take the processor from who runs there
/// (`SCHED_BATCH`). Only speed depends on it.
pub fn let_others_finish() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is to a live structure, which the kernel only reads; 0 is this thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
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

#[cfg(test)]
mod tests {
    use super::super::read::{Memory, OfThread, is_bad_address};

    #[test]
    fn memory_that_is_only_for_writing_is_read_and_what_is_not_there_is_a_bad_address() {
        // SAFETY: a new anonymous mapping is this test's own; it is written within its bounds, and unmapped once.
        let (address, unmapped) = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let map = |protection| libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
            let (kept, gone) = (map(libc::PROT_WRITE), map(libc::PROT_READ));
            assert!(kept != libc::MAP_FAILED && gone != libc::MAP_FAILED);
            std::ptr::copy_nonoverlapping(b"text".as_ptr(), kept.cast(), 4);
            libc::munmap(gone, 4096);
            (kept as u64, gone as u64)
        };
        let me = OfThread(super::thread());
        let mut bytes = [0; 4];
        assert!(is_bad_address(
            &me.read_pieces(&[(address, 4)], &mut bytes).unwrap_err()
        ));
        assert_eq!(me.read(address, &mut bytes).unwrap(), 4);
        assert_eq!(&bytes, b"text");
        assert!(is_bad_address(&me.read(unmapped, &mut bytes).unwrap_err()));
    }
}
