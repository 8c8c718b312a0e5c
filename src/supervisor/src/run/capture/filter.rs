//! The filter of system calls that every process of the user inherits, as a program for the kernel (seccomp(2)).
//!
//! It sees numbers and register values only. What hides behind a pointer it can't judge, so such calls are let through
//! after they were noted, or answered as if the kernel did not have them.

use super::calls::{Guard, Kind, NATIVE_ARCH, RULES, Test};

/// Let the call through.
pub const ALLOW: u32 = 0x7fff_0000;
/// Ask the listener (`SECCOMP_RET_USER_NOTIF`).
pub const NOTIFY: u32 = 0x7fc0_0000;
/// Stop for the tracer (`SECCOMP_RET_TRACE`); without one the call fails with `ENOSYS`.
pub const TRACE: u32 = 0x7ff0_0000;
/// Fail with the error in the low 16 bits.
const ERRNO: u32 = 0x0005_0000;

/// Numbers from here on are those of the x32 ABI.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

/// Operations of the kernel's machine, as `linux/bpf_common.h` composes them: load a word, jump if equal, if any bit is
/// set, if at least as great; return a constant.
const LOAD: u16 = 0x20;
const IS: u16 = 0x15;
const HAS: u16 = 0x45;
#[cfg(target_arch = "x86_64")]
const FROM: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

fn low(argument: u8) -> u32 {
    16 + 8 * u32::from(argument)
}

fn op(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

fn give(value: u32) -> libc::sock_filter {
    op(RETURN, value, 0, 0)
}

fn error(number: i32) -> u32 {
    ERRNO | number.unsigned_abs()
}

/// The program. `ask` is what becomes of calls that shall be seen, such as [`NOTIFY`], or `None` if nobody looks; then
/// what can be refused by value still is.
pub fn program(ask: Option<u32>) -> Vec<libc::sock_filter> {
    // A foreign ABI has other numbers: its programs see a kernel without it.
    let mut program = vec![
        op(LOAD, ARCH, 0, 0),
        op(IS, NATIVE_ARCH, 1, 0),
        give(error(libc::ENOSYS)),
        op(LOAD, NUMBER, 0, 0),
    ];
    #[cfg(target_arch = "x86_64")]
    program.extend([op(FROM, X32, 0, 1), give(error(libc::ENOSYS))]);
    // The kernel remembers which calls are let through whatever their arguments: for these no program runs at all.
    for rule in RULES {
        let number = u32::try_from(rule.number).unwrap_or(u32::MAX);
        let test = match (rule.kind, ask) {
            // A process that is being started asks its tracer to be one. Any other has one already.
            (Kind::Guard(Guard::Ptrace), Some(TRACE)) => Test::AskUnlessZero(0),
            _ => rule.test,
        };
        let block = block(test, rule.kind, ask);
        let length = u8::try_from(block.len()).unwrap_or(u8::MAX);
        program.push(op(IS, number, 0, length));
        program.extend(block);
    }
    program.push(give(ALLOW));
    program
}

fn block(test: Test, kind: Kind, ask: Option<u32>) -> Vec<libc::sock_filter> {
    // A tracer hears of every end anyway.
    let seen = ask
        .filter(|ask| *ask != TRACE || !matches!(kind, Kind::Exit))
        .unwrap_or(ALLOW);
    match test {
        Test::Fail(number) => vec![give(error(number))],
        Test::Ask => vec![give(seen)],
        Test::AskIfAny { argument, bits } => vec![
            op(LOAD, low(argument), 0, 0),
            op(HAS, bits, 0, 1),
            give(seen),
            give(ALLOW),
        ],
        Test::AskIfPointer(argument) => vec![
            op(LOAD, low(argument), 0, 0),
            op(IS, 0, 0, 2),
            op(LOAD, low(argument) + 4, 0, 0),
            op(IS, 0, 1, 0),
            give(seen),
            give(ALLOW),
        ],
        Test::AskUnlessZero(argument) => unless_zero(argument, kind, ask, seen),
        Test::FailIfAny { argument, bits } => vec![
            op(LOAD, low(argument), 0, 0),
            op(HAS, bits, 0, 1),
            give(error(libc::EPERM)),
            give(ALLOW),
        ],
        Test::Command { fail, ask: asked } => {
            let mut block = vec![op(LOAD, low(1), 0, 0)];
            for command in fail {
                block.extend([op(IS, *command, 0, 1), give(error(libc::EPERM))]);
            }
            if let Some((command, argument)) = asked {
                block.extend([op(IS, command, 1, 0), give(ALLOW)]);
                block.extend(unless_zero(argument, kind, ask, seen));
            } else {
                block.push(give(ALLOW));
            }
            block
        }
        Test::FailIfFirst { any, with_zero } => {
            let mut block = vec![op(LOAD, low(0), 0, 0)];
            for value in any {
                block.extend([op(IS, *value, 0, 1), give(error(libc::EPERM))]);
            }
            for value in with_zero {
                block.extend([
                    op(IS, *value, 0, 4),
                    op(LOAD, low(1), 0, 0),
                    op(IS, 0, 0, 1),
                    give(error(libc::EPERM)),
                    give(ALLOW),
                ]);
            }
            block.push(give(ALLOW));
            block
        }
    }
}

fn unless_zero(argument: u8, kind: Kind, ask: Option<u32>, seen: u32) -> Vec<libc::sock_filter> {
    let mut block = vec![op(LOAD, low(argument), 0, 0), op(IS, 0, 0, 1), give(ALLOW)];
    // Without anybody to ask, process 1 itself is what can be told by value.
    if ask.is_none() && matches!(kind, Kind::Guard(_)) {
        block.extend([op(IS, 1, 0, 1), give(error(libc::EPERM)), give(ALLOW)]);
    } else {
        block.push(give(seen));
    }
    block
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;
    use proptest::prelude::*;

    /// What the kernel would do: the instructions that [`program`] uses.
    fn run(program: &[libc::sock_filter], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let load = |offset: u32| match offset {
            NUMBER => number,
            ARCH => arch,
            _ => {
                let argument = arguments[(offset as usize - 16) / 8];
                let half = if offset.is_multiple_of(8) {
                    argument
                } else {
                    argument >> 32
                };
                read::low(half)
            }
        };
        let (mut at, mut a) = (0, 0);
        loop {
            let op = program[at];
            at += 1;
            let jump = match op.code {
                LOAD => {
                    a = load(op.k);
                    continue;
                }
                RETURN => return op.k,
                IS => a == op.k,
                HAS => a & op.k != 0,
                #[cfg(target_arch = "x86_64")]
                FROM => a >= op.k,
                _ => panic!("unknown instruction"),
            };
            at += usize::from(if jump { op.jt } else { op.jf });
        }
    }

    fn verdict(number: libc::c_long, arguments: [u64; 6]) -> u32 {
        run(
            &program(Some(NOTIFY)),
            NATIVE_ARCH,
            u32::try_from(number).unwrap(),
            arguments,
        )
    }

    #[test]
    fn reading_costs_nothing_and_writing_is_seen() {
        let open = |flags: i32| {
            verdict(
                libc::SYS_openat,
                [u64::MAX, 1, u64::from(flags.unsigned_abs()), 0, 0, 0],
            )
        };
        assert_eq!(open(libc::O_RDONLY | libc::O_CLOEXEC | libc::O_DIRECTORY), ALLOW);
        for flags in [
            libc::O_WRONLY,
            libc::O_RDWR,
            libc::O_CREAT,
            libc::O_TRUNC,
            libc::O_TMPFILE,
        ] {
            assert_eq!(open(flags), NOTIFY, "{flags:o}");
        }
        assert_eq!(verdict(libc::SYS_read, [1; 6]), ALLOW);
        for number in [libc::SYS_execve, libc::SYS_exit_group] {
            assert_eq!(verdict(number, [1; 6]), NOTIFY);
        }
        assert_eq!(verdict(libc::SYS_openat2, [1; 6]), error(libc::ENOSYS));
    }

    #[test]
    fn a_datagram_is_seen_if_it_has_an_address_anywhere_in_memory() {
        let send = |address| verdict(libc::SYS_sendto, [3, 1, 1, 0, address, 16]);
        assert_eq!(send(0), ALLOW);
        assert_eq!(send(1), NOTIFY);
        assert_eq!(send(1 << 32), NOTIFY);
    }

    #[test]
    fn foreign_abis_do_not_exist() {
        let filter = program(Some(NOTIFY));
        for arch in [0x4000_0003, 0x4000_0028, 0, NATIVE_ARCH ^ 1] {
            assert_eq!(run(&filter, arch, 11, [1; 6]), error(libc::ENOSYS));
        }
        #[cfg(target_arch = "x86_64")]
        assert_eq!(run(&filter, NATIVE_ARCH, X32 | 0x3b, [1; 6]), error(libc::ENOSYS));
    }

    #[test]
    fn what_could_reach_process_one_is_asked_for_or_refused() {
        assert_eq!(verdict(libc::SYS_kill, [1, 9, 0, 0, 0, 0]), NOTIFY);
        // Only the low half counts for the kernel, so it does here.
        assert_eq!(verdict(libc::SYS_kill, [1 << 32, 9, 0, 0, 0, 0]), ALLOW);
        assert_eq!(verdict(libc::SYS_prlimit64, [0, 7, 1, 0, 0, 0]), ALLOW);
        let nobody = program(None);
        let alone = |number: libc::c_long, first| {
            run(
                &nobody,
                NATIVE_ARCH,
                u32::try_from(number).unwrap(),
                [first, 0, 0, 0, 0, 0],
            )
        };
        assert_eq!(alone(libc::SYS_kill, 1), error(libc::EPERM));
        assert_eq!(alone(libc::SYS_kill, 77), ALLOW);
        assert_eq!(alone(libc::SYS_execve, 1), ALLOW);
        let dumpable = |value| verdict(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, value, 0, 0, 0, 0]);
        assert_eq!(dumpable(0), error(libc::EPERM));
        assert_eq!(dumpable(1), ALLOW);
        let first = |number, value: i32| verdict(number, [u64::from(value.cast_unsigned()), 2, 0, 0, 0, 0]);
        assert_eq!(first(libc::SYS_prctl, libc::PR_SET_MM), error(libc::EPERM));
        assert_eq!(first(libc::SYS_prctl, libc::PR_SET_NAME), ALLOW);
        for number in [libc::SYS_socket, libc::SYS_socketpair] {
            assert_eq!(first(number, libc::AF_VSOCK), error(libc::EPERM));
            assert_eq!(first(number, libc::AF_UNIX), ALLOW);
            assert_eq!(first(number, libc::AF_INET6), ALLOW);
        }
        for number in [
            libc::SYS_io_uring_setup,
            libc::SYS_pidfd_send_signal,
            libc::SYS_process_madvise,
        ] {
            assert_eq!(verdict(number, [1; 6]), error(libc::ENOSYS));
        }
    }

    #[test]
    fn no_descriptor_gets_process_one_for_its_owner() {
        let fcntl = |command: i32, value| {
            let command = u64::from(command.unsigned_abs());
            verdict(libc::SYS_fcntl, [3, command, value, 0, 0, 0])
        };
        assert_eq!(fcntl(libc::F_SETOWN, 0), ALLOW);
        assert_eq!(fcntl(libc::F_SETOWN, 1), NOTIFY);
        assert_eq!(fcntl(libc::F_SETOWN, u64::from(u32::MAX)), NOTIFY);
        assert_eq!(fcntl(15, 1), error(libc::EPERM));
        for command in [libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC] {
            assert_eq!(fcntl(command, 1), ALLOW);
        }
        let ioctl = |command| verdict(libc::SYS_ioctl, [3, command, 1, 0, 0, 0]);
        assert_eq!(ioctl(0x8901), error(libc::EPERM));
        assert_eq!(ioctl(0x8902), error(libc::EPERM));
        assert_eq!(ioctl(libc::TCGETS), ALLOW);
    }

    #[test]
    fn nobody_has_a_namespace_of_its_own_or_a_child_without_a_tracer() {
        let made = |number: libc::c_long, flags: i32| {
            verdict(number, [u64::from(flags.cast_unsigned()), 0, 0, 0, 0, 0])
        };
        let thread = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_FILES;
        for flags in [libc::SIGCHLD, thread, libc::CLONE_VFORK | libc::SIGCHLD] {
            assert_eq!(made(libc::SYS_clone, flags), ALLOW);
        }
        for flag in [
            libc::CLONE_UNTRACED,
            libc::CLONE_NEWUSER,
            libc::CLONE_NEWNS,
            libc::CLONE_NEWPID,
            libc::CLONE_NEWNET,
        ] {
            assert_eq!(made(libc::SYS_clone, flag | libc::SIGCHLD), error(libc::EPERM));
        }
        assert_eq!(made(libc::SYS_unshare, libc::CLONE_FILES), ALLOW);
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWTIME] {
            assert_eq!(made(libc::SYS_unshare, flag), error(libc::EPERM));
        }
        assert_eq!(verdict(libc::SYS_clone3, [0; 6]), error(libc::ENOSYS));
    }

    proptest! {
        #[test]
        fn every_call_gets_a_verdict_that_is_known(number: u32, native: bool, arguments: [u64; 6]) {
            let arch = if native { NATIVE_ARCH } else { 0x4000_0003 };
            for ask in [Some(NOTIFY), Some(TRACE), None] {
                let verdict = run(&program(ask), arch, number % 600, arguments);
                prop_assert!([ALLOW, NOTIFY, TRACE, error(libc::EPERM), error(libc::ENOSYS)].contains(&verdict));
            }
        }
    }
}
