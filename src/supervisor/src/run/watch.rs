//! What is worth a record beside the user's own system calls: a resource that is nearly used up, and processes that
//! the supervisor's tree did not start.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use agentsandbox_api::action::Action;

use super::capture::{self, Capturing};
use super::stat::{self, Stat};

/// Of memory, processes and disk: from this share on there is a warning, in percent.
const NEARLY: u64 = 80;
/// Of time.
const NEARLY_OVER: u64 = 90;
/// Between two looks at all processes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So many foreign processes are remembered, and so many of them recorded in one look.
const REMEMBERED_MAX: usize = 1024;
const LOOK_MAX: usize = 64;

/// Warns once of each resource.
#[derive(Default)]
pub struct Warnings(BTreeSet<&'static str>);

impl Warnings {
    /// The warning, if this is the first time that so much is used.
    pub fn check(&mut self, resource: &'static str, used: u64, limit: u64) -> Option<Action> {
        let share = if resource == "time" { NEARLY_OVER } else { NEARLY };
        let nearly = u128::from(used) * 100 >= u128::from(limit) * u128::from(share);
        (limit > 0 && nearly && self.0.insert(resource)).then(|| Action::Warning {
            resource: resource.to_owned(),
            used,
            limit,
        })
    }
}

/// Finds processes from outside: the container runtime starts them for a raw `kubectl exec`, so their parent has no
/// number in this pid namespace.
pub struct Foreign {
    known: BTreeSet<u32>,
    /// Seen once without arguments: the runtime's own program before it becomes the one that was asked for, or one that
    /// nobody may read. The next look tells.
    unclear: BTreeSet<u32>,
    next: Instant,
}

impl Foreign {
    /// Knows none.
    pub fn new() -> Self {
        Self {
            known: BTreeSet::new(),
            unclear: BTreeSet::new(),
            next: Instant::now(),
        }
    }

    /// Looks, if it is time, and writes down what was not there before and what is gone.
    pub fn look(&mut self, capturing: &Capturing) {
        if Instant::now() < self.next {
            return;
        }
        let begun = Instant::now();
        let untold = capturing.untold();
        let pids: BTreeSet<u32> = stat::processes().collect();
        capturing.note_gone(untold.difference(&pids));
        let present: BTreeSet<u32> = pids
            .into_iter()
            .filter(|pid| *pid != std::process::id() && Stat::of(*pid).is_some_and(|stat| stat.parent == 0))
            .take(REMEMBERED_MAX)
            .collect();
        let new: Vec<u32> = present.difference(&self.known).copied().take(LOOK_MAX).collect();
        self.known.retain(|pid| present.contains(pid));
        self.known.extend(&new);
        // Never more than a twentieth of the time.
        self.next = Instant::now() + LOOK_EVERY.max(begun.elapsed() * 20);
        let gone: Vec<u32> = self.unclear.difference(&present).copied().collect();
        for pid in new.into_iter().chain(gone) {
            let (path, argv) = Stat::of(pid)
                .and_then(|stat| capture::image(pid, &stat).ok())
                .map(|image| (image.path, image.argv))
                .unwrap_or_default();
            if argv.is_empty() && self.unclear.insert(pid) {
                self.known.remove(&pid);
                continue;
            }
            self.unclear.remove(&pid);
            capturing.note(Action::Foreign { pid, path, argv });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_resource_is_warned_of_once_and_in_time() {
        let mut warnings = Warnings::default();
        assert!(warnings.check("memory", 79, 100).is_none());
        assert!(warnings.check("memory", 80, 100).is_some());
        assert!(warnings.check("memory", 99, 100).is_none());
        assert!(warnings.check("time", 89, 100).is_none());
        assert!(warnings.check("time", 90, 100).is_some());
        assert!(warnings.check("disk", 0, 0).is_none());
        assert!(warnings.check("processes", u64::MAX, u64::MAX).is_some());
    }
}
