//! The processes that belong to a step, as far as can be told.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use agentsandbox_api::names::ENV_STEP;

use super::stat::{self, Stat};
use crate::sys;

/// Rounds of looking for processes that were born during the last one.
const ROUNDS: usize = 8;
/// How much of a process's environment is searched, in bytes.
const ENVIRONMENT_MAX: u64 = 64 << 10;

/// Kills the process that a step was started as, and whatever is of its session, its group or its descent, or carries
/// its number. A process that left all of these behind lives on until the session ends.
pub fn kill(leader: Option<i32>, step: u64) {
    if let Some(leader) = leader {
        sys::signal_group(leader, libc::SIGKILL);
    }
    let leader = leader
        .and_then(|leader| u32::try_from(leader).ok())
        .unwrap_or(NOBODY);
    let mut known = BTreeSet::from([leader]);
    for _ in 0..ROUNDS {
        let found = members(leader, step, &known);
        let fresh: Vec<u32> = found.difference(&known).copied().collect();
        for pid in found.iter().filter_map(|pid| i32::try_from(*pid).ok()) {
            sys::signal(pid, libc::SIGKILL);
        }
        known.extend(found);
        if fresh.is_empty() {
            return;
        }
    }
}

/// No process has this number.
const NOBODY: u32 = u32::MAX;

fn members(leader: u32, step: u64, known: &BTreeSet<u32>) -> BTreeSet<u32> {
    let processes: BTreeMap<u32, Stat> = stat::processes()
        .filter_map(|pid| Some((pid, Stat::of(pid)?)))
        .collect();
    let mark = format!("{ENV_STEP}={step}");
    let mut found: BTreeSet<u32> = processes
        .iter()
        .filter(|(pid, stat)| {
            **pid == leader
                || stat.group == leader
                || stat.session == leader
                || known.contains(&stat.parent)
                || carries(**pid, &mark)
        })
        .map(|(pid, _)| *pid)
        .collect();
    // Their descendants, down to the last.
    loop {
        let children: Vec<u32> = processes
            .iter()
            .filter(|(pid, stat)| found.contains(&stat.parent) && !found.contains(*pid))
            .map(|(pid, _)| *pid)
            .collect();
        if children.is_empty() {
            found.remove(&1);
            return found;
        }
        found.extend(children);
    }
}

fn carries(pid: u32, mark: &str) -> bool {
    let mut environment = Vec::new();
    std::fs::File::open(format!("/proc/{pid}/environ"))
        .and_then(|file| file.take(ENVIRONMENT_MAX).read_to_end(&mut environment))
        .is_ok_and(|_| {
            environment
                .split(|byte| *byte == 0)
                .any(|entry| entry == mark.as_bytes())
        })
}
