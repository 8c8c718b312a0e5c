//! From a system call to what it does.

use std::io;

use agentsandbox_api::action::{Action, Basis};
use agentsandbox_api::run::Transport;

use super::calls::{self, Guard, Kind, Rule};
use super::read::{self, Ahead, Memory, Pages, Peer, TEXT_MAX};
use super::sys;
use crate::run::stat::Stat;

/// Of an array of messages so many are looked at, as the kernel takes at most so many at once.
const MESSAGES_MAX: u32 = 1024;
/// To more addresses nothing is sent by one call: what it adds to the log must stay little.
const PEERS_MAX: usize = 64;
/// Bytes of a `struct mmsghdr`.
const MESSAGE_BYTES: u64 = 64;
/// `ptrace` request by which a process lets its parent trace it.
const TRACE_ME: u32 = libc::PTRACE_TRACEME;

/// A system call of a thread that waits.
pub struct Call<'a> {
    pub number: i32,
    pub arguments: &'a [u64; 6],
    pub thread: u32,
    /// Its process.
    pub process: u32,
    /// Whether all processes are traced, by us.
    pub is_traced: bool,
}

/// What a call is.
pub enum Sight {
    /// Something to write down.
    Seen(Vec<Action>),
    /// The process ends with this code.
    Exit(i32),
    /// Nothing of interest.
    Nothing,
    /// It would reach the supervisor, or do more at once than can be written down; the text names it.
    Refuse(String),
}

/// Whether a call executes a program.
pub fn is_exec(number: i32) -> bool {
    calls::find(number).is_some_and(|rule| matches!(rule.kind, Kind::Exec { .. }))
}

/// The exec of a process that is being started by us: until then it is as unreadable as we are, and needs no look.
pub fn start(pid: u32, (path, argv): (String, Vec<String>)) -> Action {
    Action::Exec {
        basis: Basis::Claimed,
        pid,
        parent: Some(std::process::id()),
        path,
        argv,
        cut: false,
    }
}

/// What a call does. An error says that its memory could not be read; if that is a bad address, the call must fail with it:
/// another thread could make the address good before the kernel looks there.
pub fn look(memory: &impl Memory, pages: &mut Pages, call: &Call<'_>) -> io::Result<Sight> {
    let Some(rule) = calls::find(call.number) else {
        return Ok(Sight::Nothing);
    };
    let (arguments, pid) = (call.arguments, call.process);
    let path = |place, longest| read::path(memory, call.thread, arguments, place, longest);
    let seen = |action| Ok(Sight::Seen(vec![action]));
    match rule.kind {
        Kind::Absent => Ok(Sight::Nothing),
        Kind::Exec { place, argv } => {
            let argv = arguments[usize::from(argv)];
            let mut memory = Ahead::of(memory, pages);
            memory.read_ahead(&[arguments[usize::from(place.path)], argv]);
            let (path, path_cut) = read::path(&memory, call.thread, arguments, place, TEXT_MAX / 2)?;
            let room = TEXT_MAX - path.len().min(TEXT_MAX);
            let (argv, argv_cut) = read::texts(&mut memory, argv, room)?;
            seen(Action::Exec {
                basis: Basis::Claimed,
                pid,
                parent: None,
                path,
                argv,
                cut: path_cut || argv_cut,
            })
        }
        // What a parent gets to see of it.
        Kind::Exit => Ok(Sight::Exit(
            i32::try_from(read::low(arguments[0]) & 0xff).unwrap_or_default(),
        )),
        Kind::Open(place) => seen(Action::Open {
            pid,
            path: path(place, TEXT_MAX)?.0,
        }),
        Kind::Remove(place) => seen(Action::Remove {
            pid,
            path: path(place, TEXT_MAX)?.0,
        }),
        Kind::MakeFolder(place) => seen(Action::MakeFolder {
            pid,
            path: path(place, TEXT_MAX)?.0,
        }),
        Kind::Rename { from, to } => seen(Action::Rename {
            pid,
            path: path(from, TEXT_MAX / 2)?.0,
            to: path(to, TEXT_MAX / 2)?.0,
        }),
        Kind::Connect {
            address,
            length,
            flags,
        } => {
            let peer = read::peer(
                memory,
                arguments[usize::from(address)],
                arguments[usize::from(length)],
                flags.is_some(),
            )?;
            let transport = flags.map(|flags| transport(arguments[usize::from(flags)]));
            Ok(connects(pid, peer, transport))
        }
        Kind::SendMessage { header, count, flags } => {
            let transport = Some(transport(arguments[usize::from(flags)]));
            let header = arguments[usize::from(header)];
            let count = count.map_or(1, |count| {
                read::low(arguments[usize::from(count)]).min(MESSAGES_MAX)
            });
            let mut actions: Vec<Action> = Vec::new();
            for index in 0..u64::from(count) {
                let peer = read::message_peer(memory, header.wrapping_add(index * MESSAGE_BYTES))?;
                if let Sight::Seen(more) = connects(pid, peer, transport) {
                    // Many messages to one address are one attempt.
                    for action in more {
                        if actions.last() != Some(&action) {
                            actions.push(action);
                        }
                    }
                }
                if actions.len() > PEERS_MAX {
                    return Ok(Sight::Refuse(describe(rule, arguments)));
                }
            }
            Ok(if actions.is_empty() {
                Sight::Nothing
            } else {
                Sight::Seen(actions)
            })
        }
        Kind::Guard(guard) => Ok(if reaches_supervisor(guard, call) {
            Sight::Refuse(describe(rule, arguments))
        } else {
            Sight::Nothing
        }),
    }
}

/// By what something is sent to an address: a datagram, unless it is the first of a connection (TCP Fast Open).
fn transport(flags: u64) -> Transport {
    let opens = read::low(flags) & libc::MSG_FASTOPEN.cast_unsigned() != 0;
    if opens { Transport::Tcp } else { Transport::Udp }
}

fn connects(pid: u32, peer: Option<Peer>, transport: Option<Transport>) -> Sight {
    let Some(Peer { address, port, ip }) = peer else {
        return Sight::Nothing;
    };
    Sight::Seen(vec![Action::Connect {
        pid,
        address,
        port,
        transport: transport.filter(|_| ip),
    }])
}

/// Whether the target is process 1 or a thread of it. Decided by values alone, which nobody can change meanwhile.
fn reaches_supervisor(guard: Guard, call: &Call<'_>) -> bool {
    let value = |at: u8| i32::from_ne_bytes(read::low(call.arguments[usize::from(at)]).to_ne_bytes());
    // Zero is the caller's own group: a session of its own, never the supervisor's.
    let group = |group: i32| group > 0 && group == sys::own_group();
    let process = |target: i32| match target {
        ..=-2 => group(target.checked_neg().unwrap_or(i32::MAX)),
        // All processes but process 1 and the caller: kill(2).
        -1 | 0 => false,
        target => is_own_task(target),
    };
    match guard {
        Guard::Process(argument) => process(value(argument)),
        // All have a tracer, but for who is just being started: it shall get ours.
        Guard::Ptrace if call.is_traced => true,
        // A parent that is process 1 would get the stops of its child for ends.
        Guard::Ptrace if read::low(call.arguments[0]) == TRACE_ME => {
            Stat::of(call.thread).is_none_or(|stat| stat.parent == std::process::id())
        }
        Guard::Ptrace => process(value(1)),
        Guard::Priority => match value(0) {
            0 => process(value(1)),
            1 => group(value(1)),
            // All processes of a user: the supervisor has the same.
            _ => true,
        },
        Guard::IoPriority => match value(0) {
            1 => process(value(1)),
            2 => group(value(1)),
            _ => true,
        },
    }
}

/// Whether a number is that of a thread of this process.
fn is_own_task(target: i32) -> bool {
    u32::try_from(target).is_ok_and(|target| {
        target == std::process::id() || std::path::Path::new(&format!("/proc/self/task/{target}")).exists()
    })
}

fn describe(rule: &Rule, arguments: &[u64; 6]) -> String {
    let value = |at: usize| i32::from_ne_bytes(read::low(arguments[at]).to_ne_bytes());
    format!("{}({}, {})", rule.name, value(0), value(1))
}
