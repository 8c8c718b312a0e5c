//! The processes that belong to a step, as far as can be told.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use agentsandbox_api::names::ENV_STEP;

use crate::sys;

/// Rounds of looking for processes that were born during the last one.
const ROUNDS: usize = 8;
/// How much of a process's environment is searched, in bytes.
const ENVIRONMENT_MAX: u64 = 64 << 10;

/// Kills the process that a step was started as, and whatever is of its session, its group or its descent, or carries
/// its number. A process that left all of these behind lives on until the session ends.
pub fn kill(leader: Option<i32>, step: u64) {
    let leader = leader.unwrap_or(NOBODY);
    sys::signal_group(leader, libc::SIGKILL);
    let mut known = BTreeSet::from([leader]);
    for _ in 0..ROUNDS {
        let found = members(leader, step, &known);
        let fresh: Vec<i32> = found.difference(&known).copied().collect();
        for pid in &found {
            sys::signal(*pid, libc::SIGKILL);
        }
        known.extend(found);
        if fresh.is_empty() {
            return;
        }
    }
}

/// No process has this number.
const NOBODY: i32 = -1;

/// What `/proc/PID/stat` says: parent, group and session.
struct Stat {
    parent: i32,
    group: i32,
    session: i32,
}

fn members(leader: i32, step: u64, known: &BTreeSet<i32>) -> BTreeSet<i32> {
    let processes: BTreeMap<i32, Stat> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, parse(&text)?))
        })
        .collect();
    let mark = format!("{ENV_STEP}={step}");
    let mut found: BTreeSet<i32> = processes
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
        let children: Vec<i32> = processes
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

fn carries(pid: i32, mark: &str) -> bool {
    let mut environment = Vec::new();
    std::fs::File::open(format!("/proc/{pid}/environ"))
        .and_then(|file| file.take(ENVIRONMENT_MAX).read_to_end(&mut environment))
        .is_ok_and(|_| {
            environment
                .split(|byte| *byte == 0)
                .any(|entry| entry == mark.as_bytes())
        })
}

/// The program's name, in brackets, may hold anything.
fn parse(text: &str) -> Option<Stat> {
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace().skip(1);
    Some(Stat {
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
        session: fields.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_does_not_confuse() {
        let stat = parse("12 (a) 1 2 3 (x)) S 7 8 9 0").unwrap();
        assert_eq!((stat.parent, stat.group, stat.session), (7, 8, 9));
        assert!(parse("12 no brackets").is_none());
    }
}
