//! Which system calls are seen, which are refused, and where their arguments are.

/// `AUDIT_ARCH_*` of the ABI that this program itself uses.
#[cfg(target_arch = "x86_64")]
pub const NATIVE_ARCH: u32 = 0xc000_003e;
/// `AUDIT_ARCH_*` of the ABI that this program itself uses.
#[cfg(target_arch = "aarch64")]
pub const NATIVE_ARCH: u32 = 0xc000_00b7;

/// Flags of an open that may change something. `O_TMPFILE` without its `O_DIRECTORY`.
const WRITING: u32 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u32 | TEMPORARY;
const TEMPORARY: u32 = 0o20_000_000;

/// Flags of clone(2) and unshare(2) that make namespaces; what clone takes for its signal is `CLONE_NEWTIME` for unshare.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// Commands of fcntl(2) and ioctl(2) by which a descriptor gets an owner, as the kernel's headers number them.
const F_SETOWN: u32 = libc::F_SETOWN as u32;
const F_SETOWN_EX: u32 = 15;
const FIOSETOWN: u32 = 0x8901;
const SIOCSPGRP: u32 = 0x8902;

/// What the filter looks at.
#[derive(Clone, Copy, Debug)]
pub enum Test {
    /// Always this error.
    Fail(i32),
    /// Always asked for.
    Ask,
    /// Asked for if an argument has one of these bits.
    AskIfAny { argument: u8, bits: u32 },
    /// Asked for if an argument of 64 bits is not zero.
    AskIfPointer(u8),
    /// Asked for if an argument of 32 bits is not zero.
    AskUnlessZero(u8),
    /// Refused if the first argument is one of these, or one of these while the second is zero.
    FailIfFirst {
        any: &'static [u32],
        with_zero: &'static [u32],
    },
    /// Refused if an argument has one of these bits.
    FailIfAny { argument: u8, bits: u32 },
    /// By the second argument, a command: some are refused, and one is asked for unless its argument of 32 bits is zero.
    Command {
        fail: &'static [u32],
        ask: Option<(u32, u8)>,
    },
}

/// Where a path's arguments are: the folder it is relative to, if the call has one, and the path.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub folder: Option<u8>,
    pub path: u8,
}

/// What a call does, for the log.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Refused in any case.
    Absent,
    Exec {
        place: Place,
        argv: u8,
    },
    /// The process ends, with the code in the first argument.
    Exit,
    Open(Place),
    Remove(Place),
    Rename {
        from: Place,
        to: Place,
    },
    MakeFolder(Place),
    /// An address and its length.
    Connect {
        address: u8,
        length: u8,
        /// Flags of what is sent there, if the call sends.
        flags: Option<u8>,
    },
    /// A message header, or an array of them with its length.
    SendMessage {
        header: u8,
        count: Option<u8>,
        flags: u8,
    },
    /// Must not reach the supervisor.
    Guard(Guard),
}

/// By what a call names its target.
#[derive(Clone, Copy, Debug)]
pub enum Guard {
    /// A process, thread or (negative) process group in this argument.
    Process(u8),
    /// A request, and a process or thread in the second argument.
    Ptrace,
    /// Kind of target and target, for setpriority(2): process, group, user.
    Priority,
    /// The same for `ioprio_set(2)`, numbered otherwise.
    IoPriority,
}

/// One call.
pub struct Rule {
    pub number: libc::c_long,
    pub name: &'static str,
    pub test: Test,
    pub kind: Kind,
}

const fn rule(number: libc::c_long, name: &'static str, test: Test, kind: Kind) -> Rule {
    Rule {
        number,
        name,
        test,
        kind,
    }
}

const fn at(path: u8) -> Place {
    Place { folder: None, path }
}

const fn below(folder: u8, path: u8) -> Place {
    Place {
        folder: Some(folder),
        path,
    }
}

const fn guard(number: libc::c_long, name: &'static str) -> Rule {
    rule(
        number,
        name,
        Test::AskUnlessZero(0),
        Kind::Guard(Guard::Process(0)),
    )
}

const fn absent(number: libc::c_long, name: &'static str) -> Rule {
    rule(number, name, Test::Fail(libc::ENOSYS), Kind::Absent)
}

const NO_VSOCK: Test = Test::FailIfFirst {
    any: &[libc::AF_VSOCK as u32],
    with_zero: &[],
};

/// Every call that the filter knows, the frequent ones first. All others are let through.
pub const RULES: &[Rule] = &[
    rule(
        libc::SYS_openat,
        "openat",
        Test::AskIfAny {
            argument: 2,
            bits: WRITING,
        },
        Kind::Open(below(0, 1)),
    ),
    rule(
        libc::SYS_sendto,
        "sendto",
        Test::AskIfPointer(4),
        Kind::Connect {
            address: 4,
            length: 5,
            flags: Some(3),
        },
    ),
    rule(
        libc::SYS_sendmsg,
        "sendmsg",
        Test::Ask,
        Kind::SendMessage {
            header: 1,
            count: None,
            flags: 2,
        },
    ),
    rule(
        libc::SYS_execve,
        "execve",
        Test::Ask,
        Kind::Exec {
            place: at(0),
            argv: 1,
        },
    ),
    rule(libc::SYS_exit_group, "exit_group", Test::Ask, Kind::Exit),
    rule(
        libc::SYS_connect,
        "connect",
        Test::Ask,
        Kind::Connect {
            address: 1,
            length: 2,
            flags: None,
        },
    ),
    rule(
        libc::SYS_sendmmsg,
        "sendmmsg",
        Test::Ask,
        Kind::SendMessage {
            header: 1,
            count: Some(2),
            flags: 3,
        },
    ),
    rule(
        libc::SYS_execveat,
        "execveat",
        Test::Ask,
        Kind::Exec {
            place: below(0, 1),
            argv: 2,
        },
    ),
    rule(
        libc::SYS_unlinkat,
        "unlinkat",
        Test::Ask,
        Kind::Remove(below(0, 1)),
    ),
    #[cfg(target_arch = "x86_64")]
    rule(
        libc::SYS_renameat,
        "renameat",
        Test::Ask,
        Kind::Rename {
            from: below(0, 1),
            to: below(2, 3),
        },
    ),
    #[cfg(target_arch = "aarch64")]
    rule(
        38,
        "renameat",
        Test::Ask,
        Kind::Rename {
            from: below(0, 1),
            to: below(2, 3),
        },
    ),
    rule(
        libc::SYS_renameat2,
        "renameat2",
        Test::Ask,
        Kind::Rename {
            from: below(0, 1),
            to: below(2, 3),
        },
    ),
    rule(
        libc::SYS_linkat,
        "linkat",
        Test::Ask,
        Kind::Rename {
            from: below(0, 1),
            to: below(2, 3),
        },
    ),
    rule(
        libc::SYS_symlinkat,
        "symlinkat",
        Test::Ask,
        Kind::Open(below(1, 2)),
    ),
    rule(
        libc::SYS_mkdirat,
        "mkdirat",
        Test::Ask,
        Kind::MakeFolder(below(0, 1)),
    ),
    rule(libc::SYS_mknodat, "mknodat", Test::Ask, Kind::Open(below(0, 1))),
    rule(libc::SYS_truncate, "truncate", Test::Ask, Kind::Open(at(0))),
    #[cfg(target_arch = "x86_64")]
    rule(
        libc::SYS_open,
        "open",
        Test::AskIfAny {
            argument: 1,
            bits: WRITING,
        },
        Kind::Open(at(0)),
    ),
    #[cfg(target_arch = "x86_64")]
    rule(libc::SYS_creat, "creat", Test::Ask, Kind::Open(at(0))),
    #[cfg(target_arch = "x86_64")]
    rule(libc::SYS_unlink, "unlink", Test::Ask, Kind::Remove(at(0))),
    #[cfg(target_arch = "x86_64")]
    rule(libc::SYS_rmdir, "rmdir", Test::Ask, Kind::Remove(at(0))),
    #[cfg(target_arch = "x86_64")]
    rule(
        libc::SYS_rename,
        "rename",
        Test::Ask,
        Kind::Rename {
            from: at(0),
            to: at(1),
        },
    ),
    #[cfg(target_arch = "x86_64")]
    rule(
        libc::SYS_link,
        "link",
        Test::Ask,
        Kind::Rename {
            from: at(0),
            to: at(1),
        },
    ),
    #[cfg(target_arch = "x86_64")]
    rule(libc::SYS_symlink, "symlink", Test::Ask, Kind::Open(at(1))),
    #[cfg(target_arch = "x86_64")]
    rule(libc::SYS_mkdir, "mkdir", Test::Ask, Kind::MakeFolder(at(0))),
    #[cfg(target_arch = "x86_64")]
    rule(libc::SYS_mknod, "mknod", Test::Ask, Kind::Open(at(0))),
    // Its flags lie behind a pointer; programs fall back to openat.
    absent(libc::SYS_openat2, "openat2"),
    // These do other calls' work past every filter.
    absent(libc::SYS_io_uring_setup, "io_uring_setup"),
    absent(libc::SYS_io_uring_enter, "io_uring_enter"),
    absent(libc::SYS_io_uring_register, "io_uring_register"),
    // It stops the kernel's own reads of a process's memory for as long as the process likes.
    absent(libc::SYS_userfaultfd, "userfaultfd"),
    // Where processes are traced, one without us as its tracer could take another, which would get its stops in our place.
    // And who is root of a namespace can mount file systems of its own, at which whoever looks waits for ever.
    rule(
        libc::SYS_clone,
        "clone",
        Test::FailIfAny {
            argument: 0,
            bits: libc::CLONE_UNTRACED as u32 | NAMESPACES,
        },
        Kind::Absent,
    ),
    rule(
        libc::SYS_unshare,
        "unshare",
        Test::FailIfAny {
            argument: 0,
            bits: NAMESPACES | libc::CLONE_NEWTIME as u32,
        },
        Kind::Absent,
    ),
    // Its flags lie behind a pointer; programs fall back to clone.
    absent(libc::SYS_clone3, "clone3"),
    // Their target is a descriptor, which another thread can exchange meanwhile. Programs fall back to kill.
    absent(libc::SYS_pidfd_send_signal, "pidfd_send_signal"),
    absent(libc::SYS_process_madvise, "process_madvise"),
    // Who gets the signals of a descriptor's events (F_SETSIG chooses which) could be process 1.
    rule(
        libc::SYS_fcntl,
        "fcntl",
        Test::Command {
            fail: &[F_SETOWN_EX],
            ask: Some((F_SETOWN, 2)),
        },
        Kind::Guard(Guard::Process(2)),
    ),
    rule(
        libc::SYS_ioctl,
        "ioctl",
        Test::Command {
            fail: &[FIOSETOWN, SIOCSPGRP],
            ask: None,
        },
        Kind::Absent,
    ),
    // A process that can't be read can't be recorded, and one that moves its parts in memory seems to have executed.
    rule(
        libc::SYS_prctl,
        "prctl",
        Test::FailIfFirst {
            any: &[libc::PR_SET_MM as u32],
            with_zero: &[libc::PR_SET_DUMPABLE as u32],
        },
        Kind::Absent,
    ),
    // From a virtual machine these lead to its host and to its own agent, past every rule for the network.
    rule(libc::SYS_socket, "socket", NO_VSOCK, Kind::Absent),
    rule(libc::SYS_socketpair, "socketpair", NO_VSOCK, Kind::Absent),
    // Threads of the supervisor come and go, so each target is looked up; it is a value, and can't change meanwhile.
    guard(libc::SYS_kill, "kill"),
    guard(libc::SYS_tkill, "tkill"),
    guard(libc::SYS_tgkill, "tgkill"),
    guard(libc::SYS_rt_sigqueueinfo, "rt_sigqueueinfo"),
    guard(libc::SYS_rt_tgsigqueueinfo, "rt_tgsigqueueinfo"),
    guard(libc::SYS_pidfd_open, "pidfd_open"),
    guard(libc::SYS_prlimit64, "prlimit64"),
    guard(libc::SYS_process_vm_readv, "process_vm_readv"),
    guard(libc::SYS_process_vm_writev, "process_vm_writev"),
    guard(libc::SYS_sched_setaffinity, "sched_setaffinity"),
    guard(libc::SYS_sched_setscheduler, "sched_setscheduler"),
    guard(libc::SYS_sched_setparam, "sched_setparam"),
    guard(libc::SYS_sched_setattr, "sched_setattr"),
    rule(libc::SYS_ptrace, "ptrace", Test::Ask, Kind::Guard(Guard::Ptrace)),
    rule(
        libc::SYS_setpriority,
        "setpriority",
        Test::Ask,
        Kind::Guard(Guard::Priority),
    ),
    rule(
        libc::SYS_ioprio_set,
        "ioprio_set",
        Test::Ask,
        Kind::Guard(Guard::IoPriority),
    ),
];

/// The rule of a call.
pub fn find(number: i32) -> Option<&'static Rule> {
    RULES
        .iter()
        .find(|rule| rule.number == libc::c_long::from(number))
}
