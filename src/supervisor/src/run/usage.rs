//! What the run uses, from the cgroup that the container sees, version 2 or 1, or from `getrusage`.

use std::path::Path;
use std::time::Duration;

use agentsandbox_api::run::{Figure, MeasuredUsage, UsageSource};

use crate::sys;

/// Where the container's own cgroup is mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// Reads figures of one container.
pub struct Meter {
    version: Option<UsageSource>,
    oom_kills_before: u64,
    sampled_memory: u64,
    sampled_processes: u64,
}

impl Meter {
    /// Begins to measure.
    pub fn new() -> Self {
        let version = if Path::new(ROOT).join("cgroup.controllers").exists() {
            Some(UsageSource::CgroupV2)
        } else if Path::new(ROOT).join("cpuacct").exists() || Path::new(ROOT).join("memory").exists() {
            Some(UsageSource::CgroupV1)
        } else {
            None
        };
        let mut meter = Self {
            version,
            oom_kills_before: 0,
            sampled_memory: 0,
            sampled_processes: 0,
        };
        meter.oom_kills_before = Self::oom_kills();
        meter
    }

    /// Looks at what no kernel keeps a peak of. Returns the processes and threads there are, and the memory in use
    /// where the kernel inside does not bound it itself.
    pub fn sample(&mut self) -> (u64, Option<u64>) {
        let processes = number("pids/pids.current")
            .or_else(|| number("pids.current"))
            .or_else(count_tasks)
            .unwrap_or_default();
        // The supervisor and its threads are not the run's.
        let processes = processes.saturating_sub(own_tasks());
        self.sampled_processes = self.sampled_processes.max(processes);
        let unbounded = (self.version == Some(UsageSource::CgroupV1)
            && number("memory/memory.max_usage_in_bytes").is_none())
        .then(|| number("memory/memory.usage_in_bytes"))
        .flatten();
        self.sampled_memory = self.sampled_memory.max(unbounded.unwrap_or_default());
        (processes, unbounded)
    }

    /// Whether the kernel killed for memory since the start.
    pub fn was_oom_killed(&self) -> bool {
        Self::oom_kills() > self.oom_kills_before
    }

    /// All figures; what can't be measured is absent.
    pub fn usage(&self, wall: Duration) -> MeasuredUsage {
        let (rusage_cpu, rusage_memory) = sys::children_usage();
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let v2 = |value: Option<u64>| {
            value.map(|value| Figure {
                value,
                source: UsageSource::CgroupV2,
            })
        };
        let v1 = |value: Option<u64>| {
            value.map(|value| Figure {
                value,
                source: UsageSource::CgroupV1,
            })
        };
        let sampled = |value: u64| {
            (value > 0).then_some(Figure {
                value,
                source: UsageSource::Sampled,
            })
        };
        let cpu = v2(keyed("cpu.stat", "usage_usec").map(|usec| usec / 1000))
            .or_else(|| v1(number("cpuacct/cpuacct.usage").map(|nsec| nsec / 1_000_000)))
            .or(Some(Figure {
                value: millis(rusage_cpu),
                source: UsageSource::Rusage,
            }));
        let memory = v2(number("memory.peak"))
            .or_else(|| v1(number("memory/memory.max_usage_in_bytes")))
            .or_else(|| sampled(self.sampled_memory.max(rusage_memory)));
        let disk = v2(text("io.stat").map(|text| sum_of(&text, "wbytes=")))
            .or_else(|| v1(text("blkio/blkio.throttle.io_service_bytes").map(|text| v1_writes(&text))));
        let processes = v2(number("pids.peak").map(|peak| peak.saturating_sub(own_tasks())))
            .or_else(|| sampled(self.sampled_processes));
        let network = std::fs::read_to_string("/proc/net/dev")
            .ok()
            .map(|text| network_bytes(&text));
        MeasuredUsage {
            wall_ms: Some(millis(wall)),
            cpu_ms: cpu,
            memory_peak_bytes: memory,
            disk_written_bytes: disk.filter(|figure| figure.value > 0),
            processes_peak: processes,
            bytes_sent: network.map(|(_, sent)| sent),
            bytes_received: network.map(|(received, _)| received),
        }
    }

    fn oom_kills() -> u64 {
        keyed("memory.events", "oom_kill")
            .or_else(|| keyed("memory/memory.oom_control", "oom_kill"))
            .unwrap_or_default()
    }
}

/// Memory in use now, in bytes, where the kernel says so: without what it could give back at once.
pub fn memory() -> Option<u64> {
    let used = number("memory.current").or_else(|| number("memory/memory.usage_in_bytes"))?;
    let cache =
        keyed("memory.stat", "inactive_file").or_else(|| keyed("memory/memory.stat", "total_inactive_file"));
    Some(used.saturating_sub(cache.unwrap_or_default()))
}

/// Threads of the supervisor itself.
pub fn own_tasks() -> u64 {
    std::fs::read_dir("/proc/self/task").map_or(1, |tasks| tasks.count() as u64)
}

fn text(file: &str) -> Option<String> {
    std::fs::read_to_string(Path::new(ROOT).join(file)).ok()
}

fn number(file: &str) -> Option<u64> {
    text(file)?.trim().parse().ok()
}

fn keyed(file: &str, key: &str) -> Option<u64> {
    text(file)?
        .lines()
        .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

/// The sum of all `key=value` in a text such as `io.stat`'s.
fn sum_of(text: &str, key: &str) -> u64 {
    text.split_whitespace()
        .filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok())
        .sum()
}

fn v1_writes(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(" Write ")?.1.trim().parse::<u64>().ok())
        .sum()
}

/// Bytes received and sent by all interfaces but loopback, from the text of `/proc/net/dev`.
fn network_bytes(text: &str) -> (u64, u64) {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(interface, _)| interface.trim() != "lo")
        .fold((0, 0), |(received, sent), (_, figures)| {
            let mut figures = figures
                .split_whitespace()
                .map(|figure| figure.parse::<u64>().unwrap_or_default());
            (
                received + figures.next().unwrap_or_default(),
                sent + figures.nth(7).unwrap_or_default(),
            )
        })
}

/// Processes and threads of this pid namespace.
fn count_tasks() -> Option<u64> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    Some(
        processes
            .filter(|entry| {
                entry
                    .file_name()
                    .to_str()
                    .is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()))
            })
            .map(|entry| std::fs::read_dir(entry.path().join("task")).map_or(1, |tasks| tasks.count() as u64))
            .sum(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_kernels_texts() {
        assert_eq!(
            sum_of("254:0 rbytes=1 wbytes=20 rios=1\n254:1 wbytes=5", "wbytes="),
            25
        );
        assert_eq!(
            v1_writes("254:0 Read 7\n254:0 Write 11\n254:0 Total 18\n1:1 Write 2\nTotal 20"),
            13
        );
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  eth0: 100 1 0 0 0 0 0 0 250 2 0 0 0 0 0 0\n";
        assert_eq!(network_bytes(dev), (100, 250));
    }
}
