//! The few system calls that the standard library does not offer, each behind a safe function.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Makes this process unreadable for others of the same user: no ptrace, no `/proc/1/mem`.
pub fn forbid_dumping() {
    // SAFETY: prctl with these constants takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// The kernel's release, as `uname -r` says.
pub fn kernel_release() -> String {
    // SAFETY: an all-zero utsname is valid, and uname fills the one it is given with NUL-terminated text.
    unsafe {
        let mut name: libc::utsname = std::mem::zeroed();
        if libc::uname(&raw mut name) != 0 {
            return String::new();
        }
        CStr::from_ptr(name.release.as_ptr())
            .to_string_lossy()
            .into_owned()
    }
}

/// The effective user.
pub fn uid() -> u32 {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() }
}

/// Bytes from the kernel's randomness (getrandom(2), which waits until it is seeded).
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        // SAFETY: the pointer and length are those of the rest of a live array.
        let got = unsafe { libc::getrandom(bytes[filled..].as_mut_ptr().cast(), N - filled, 0) };
        match usize::try_from(got) {
            Ok(got) => filled += got,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(bytes)
}

/// Asks a silent peer every 5 s whether it is still there, and gives it up after 3 questions without an answer.
pub fn keep_alive(stream: &std::net::TcpStream) -> io::Result<()> {
    for (level, option, value) in [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 5),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 5),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3),
    ] {
        let value: libc::c_int = value;
        let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
        // SAFETY: the pointer is to a live integer of the length that is given with it.
        let set = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                length,
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Signals as they arrive, with who sent them.
pub struct Signals(OwnedFd);

/// One signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// Its number.
    pub number: i32,
    /// Whether somebody outside this pid namespace sent it by kill(2): senders inside have a process id here. Whoever
    /// writes the signal's origin by hand (sigqueue(3)) can leave that out, and is known by a negative code; the kernel's
    /// own signals, as those of a descriptor's events, have a positive one.
    pub from_outside: bool,
}

impl Signals {
    /// Takes these signals as events from now on.
    pub fn take(numbers: &[i32]) -> io::Result<Self> {
        // SAFETY: the set is initialised by sigemptyset before use; signalfd returns a new descriptor or -1.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for number in numbers {
                libc::sigaddset(&raw mut set, *number);
            }
            if libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// The next signal that has arrived, if any.
    pub fn next(&self) -> Option<Signal> {
        // SAFETY: an all-zero signalfd_siginfo is valid, and read writes at most its size into it.
        unsafe {
            let mut info: libc::signalfd_siginfo = std::mem::zeroed();
            let size = size_of::<libc::signalfd_siginfo>();
            let read = libc::read(self.0.as_raw_fd(), (&raw mut info).cast(), size);
            (usize::try_from(read) == Ok(size)).then(|| Signal {
                number: i32::try_from(info.ssi_signo).unwrap_or_default(),
                from_outside: info.ssi_pid == 0 && info.ssi_code == libc::SI_USER,
            })
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of the descriptors can be read, or for so long.
pub fn wait_readable(descriptors: &[BorrowedFd<'_>], timeout: Duration) {
    let awaited: Vec<Awaited<'_>> = descriptors.iter().copied().map(Awaited::read).collect();
    wait(&awaited, timeout);
}

/// A descriptor to wait for: until it can be read, until it can be written, or only until its other side is gone.
pub struct Awaited<'a> {
    /// The descriptor.
    pub fd: BorrowedFd<'a>,
    /// Wait until it can be read.
    pub read: bool,
    /// Wait until it can be written.
    pub write: bool,
}

impl<'a> Awaited<'a> {
    /// Waits until it can be read.
    pub fn read(fd: BorrowedFd<'a>) -> Self {
        Self {
            fd,
            read: true,
            write: false,
        }
    }
}

/// Waits until something happens to one of the descriptors, or for so long. Returns for each whether its other side is
/// gone.
pub fn wait(awaited: &[Awaited<'_>], timeout: Duration) -> Vec<bool> {
    let mut polled: Vec<libc::pollfd> = awaited
        .iter()
        .map(|awaited| libc::pollfd {
            fd: awaited.fd.as_raw_fd(),
            events: if awaited.read { libc::POLLIN } else { 0 }
                | if awaited.write { libc::POLLOUT } else { 0 },
            revents: 0,
        })
        .collect();
    // Rounded up, so that a deadline is not polled for in a loop of zero waits.
    let millis = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    // SAFETY: the pointer and length are those of a live vector.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, millis) };
    polled
        .iter()
        .map(|polled| polled.revents & (libc::POLLHUP | libc::POLLERR) != 0)
        .collect()
}

/// Reads and writes of this descriptor never wait from now on.
pub fn never_wait(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: fcntl with these commands takes no pointers.
    unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        if flags < 0 || libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A child that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its process id.
    pub pid: i32,
    /// Its exit code, if it exited.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
}

impl Ended {
    /// What waitpid(2) says of a child that has ended.
    pub fn of(pid: i32, status: i32) -> Self {
        Self {
            pid,
            code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
            signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
        }
    }
}

/// What `reap` found.
pub enum Reaped {
    /// A child that has ended.
    One(Ended),
    /// Children live on.
    NoneYet,
    /// There are no children.
    NoChildren,
}

/// Reaps one child, without waiting.
pub fn reap() -> Reaped {
    let mut status = 0;
    // SAFETY: the pointer is to a live integer.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    match pid {
        0 => Reaped::NoneYet,
        // A child that made process 1 its tracer has stopped, and not ended.
        pid if pid > 0 && libc::WIFSTOPPED(status) => reap(),
        pid if pid > 0 => Reaped::One(Ended::of(pid, status)),
        _ => Reaped::NoChildren,
    }
}

/// Sends a signal to every other process of this pid namespace; only process 1 of one may.
pub fn kill_everything() {
    if std::process::id() == 1 {
        // SAFETY: kill takes no pointers; -1 as process 1 reaches this namespace alone.
        unsafe { libc::kill(-1, libc::SIGKILL) };
    }
}

/// Sends a signal to one process, but not to process 1.
pub fn signal(pid: i32, signal: i32) {
    if pid > 1 {
        // SAFETY: kill takes no pointers.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Asks every other process of this pid namespace to end; only process 1 of one may.
pub fn ask_everything_to_end() {
    if std::process::id() == 1 {
        // SAFETY: kill takes no pointers; -1 as process 1 reaches this namespace alone.
        unsafe { libc::kill(-1, libc::SIGTERM) };
    }
}

/// Sends a signal to a process group.
pub fn signal_group(group: i32, signal: i32) {
    if group > 1 {
        // SAFETY: kill takes no pointers.
        unsafe { libc::kill(-group, signal) };
    }
}

/// Starts a session of its own. Called between fork and exec.
pub fn new_session() -> io::Result<()> {
    // SAFETY: setsid has no preconditions and is async-signal-safe.
    if unsafe { libc::setsid() } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Gives a new process the signals back that process 1 takes as events. Called between fork and exec: the standard
/// library leaves the mask as it is.
pub fn unblock_signals() -> io::Result<()> {
    // SAFETY: the set is initialised by sigemptyset before use; both calls are async-signal-safe.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        match libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// A resource limit.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// Processes and threads of this user.
    Processes,
    /// Size of any one file.
    FileSize,
    /// Size of core dumps.
    Core,
}

/// Sets a limit, soft and hard. Called between fork and exec.
pub fn set_limit(limit: Limit, value: u64) -> io::Result<()> {
    let resource = match limit {
        Limit::Processes => libc::RLIMIT_NPROC,
        Limit::FileSize => libc::RLIMIT_FSIZE,
        Limit::Core => libc::RLIMIT_CORE,
    };
    let both = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: the pointer is to a live rlimit; setrlimit is async-signal-safe.
    if unsafe { libc::setrlimit(resource, &raw const both) } != 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// What all ended children used: CPU time, and the largest resident set of any one of them in bytes.
pub fn children_usage() -> (Duration, u64) {
    // SAFETY: an all-zero rusage is valid, and getrusage fills the one it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let time = |t: libc::timeval| {
        Duration::from_secs(u64::try_from(t.tv_sec).unwrap_or_default())
            + Duration::from_micros(u64::try_from(t.tv_usec).unwrap_or_default())
    };
    (
        time(usage.ru_utime) + time(usage.ru_stime),
        u64::try_from(usage.ru_maxrss).unwrap_or_default() * 1024,
    )
}

/// A folder, held by descriptor, below which nothing follows a symbolic link.
pub struct Folder(OwnedFd);

impl Folder {
    /// Opens a folder of ours.
    pub fn open(path: &str) -> io::Result<Self> {
        open_at(libc::AT_FDCWD, path, libc::O_RDONLY | libc::O_DIRECTORY, 0).map(Self)
    }

    /// Opens a folder that somebody named, whatever leads there.
    pub fn open_path(path: &std::path::Path) -> io::Result<Self> {
        std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(path)
            .map(|folder| Self(folder.into()))
    }

    /// The same folder, held once more.
    pub fn again(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Sets the folder's permission bits.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        // SAFETY: fchmod takes no pointers.
        if unsafe { libc::fchmod(self.0.as_raw_fd(), mode & 0o777) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Removes a file of this folder, if there is one; no folder.
    pub fn remove_file(&self, name: &str) -> io::Result<()> {
        let name = CString::new(name)?;
        // SAFETY: the name is NUL-terminated and outlives the call.
        if unsafe { libc::unlinkat(self.0.as_raw_fd(), name.as_ptr(), 0) } != 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Makes a symbolic link in this folder.
    pub fn link(&self, name: &str, target: &str) -> io::Result<()> {
        let (name, target) = (CString::new(name)?, CString::new(target)?);
        // SAFETY: both names are NUL-terminated and outlive the call.
        if unsafe { libc::symlinkat(target.as_ptr(), self.0.as_raw_fd(), name.as_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Makes a file in this folder that was not there.
    pub fn create_new(&self, name: &str) -> io::Result<File> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        open_at(self.0.as_raw_fd(), name, flags, 0o600).map(File::from)
    }

    /// Opens a folder in this one, and makes it if it is missing.
    pub fn enter(&self, name: &str) -> io::Result<Self> {
        let c_name = CString::new(name)?;
        // SAFETY: the name is NUL-terminated and outlives the call.
        let made = unsafe { libc::mkdirat(self.0.as_raw_fd(), c_name.as_ptr(), 0o755) };
        if made != 0 && io::Error::last_os_error().kind() != io::ErrorKind::AlreadyExists {
            return Err(io::Error::last_os_error());
        }
        open_at(
            self.0.as_raw_fd(),
            name,
            libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW,
            0,
        )
        .map(Self)
    }

    /// Creates a file in this folder, or truncates the one that is there.
    pub fn create(&self, name: &str, mode: u32) -> io::Result<File> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_NOFOLLOW | libc::O_NONBLOCK;
        open_at(self.0.as_raw_fd(), name, flags, mode).map(File::from)
    }
}

/// Opens a file of the adversary's: no symbolic link is followed, and a pipe does not make us wait.
pub fn open_untrusted(path: &str) -> io::Result<File> {
    let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    open_at(libc::AT_FDCWD, path, flags, 0).map(File::from)
}

fn open_at(folder: i32, path: &str, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    let path = CString::new(path)?;
    // SAFETY: the path is NUL-terminated and outlives the call; a result of 0 or above is a new descriptor.
    unsafe {
        let fd = libc::openat(folder, path.as_ptr(), flags | libc::O_CLOEXEC, mode);
        if fd < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}

/// Runs a hook between fork and exec of a command.
pub fn before_exec(
    command: &mut std::process::Command,
    hook: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    use std::os::unix::process::CommandExt;
    // SAFETY: every hook here makes only async-signal-safe system calls, and allocates nothing.
    unsafe { command.pre_exec(hook) };
}

/// Unix time in milliseconds.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_with_an_origin_written_by_hand_is_not_from_outside() {
        let signals = Signals::take(&[libc::SIGUSR1]).unwrap();
        // SAFETY: an all-zero siginfo is valid; the call reads it, and signals this thread only.
        let sent = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            info.si_signo = libc::SIGUSR1;
            info.si_code = libc::SI_QUEUE;
            libc::syscall(
                libc::SYS_rt_tgsigqueueinfo,
                libc::getpid(),
                libc::gettid(),
                libc::SIGUSR1,
                &raw mut info,
            )
        };
        assert_eq!(sent, 0);
        let signal = signals.next().unwrap();
        assert_eq!((signal.number, signal.from_outside), (libc::SIGUSR1, false));
    }

    #[test]
    fn a_signal_of_a_descriptors_events_is_not_from_outside() {
        /// `fcntl` commands, and a kind of owner, that libc does not name.
        const F_SETSIG: libc::c_int = 10;
        const F_SETOWN_EX: libc::c_int = 15;
        const F_OWNER_TID: libc::c_int = 0;
        let signals = Signals::take(&[libc::SIGUSR2]).unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        // SAFETY: the owner is two live integers, which the call reads; it is this thread alone.
        let set = unsafe {
            let owner = [F_OWNER_TID, libc::gettid()];
            let fd = reader.as_raw_fd();
            [
                libc::fcntl(fd, F_SETOWN_EX, owner.as_ptr()),
                libc::fcntl(fd, F_SETSIG, libc::SIGUSR2),
                libc::fcntl(fd, libc::F_SETFL, libc::O_ASYNC),
            ]
        };
        assert_eq!(set, [0; 3]);
        std::io::Write::write_all(&mut writer, b"x").unwrap();
        let signal = signals.next().unwrap();
        assert_eq!((signal.number, signal.from_outside), (libc::SIGUSR2, false));
    }
}
