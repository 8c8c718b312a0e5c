//! The cluster's processes: started in its namespace, remembered by pid and start time, ended by both.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{InFile, Result};
use crate::layout::Layout;

/// A process that was started, recognisable even after its pid was given to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its pid.
    pub pid: i32,
    /// Its start, in clock ticks since boot (proc_pid_stat(5), field 22).
    pub ticks: u64,
}

impl Started {
    /// Whether this very process still runs.
    #[must_use]
    pub fn is_alive(self) -> bool {
        start_ticks(self.pid) == Some(self.ticks)
    }

    /// Sends it a signal.
    pub fn signal(self, signal: Signal) {
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Its resident memory, in bytes.
    #[must_use]
    pub fn resident_bytes(self) -> u64 {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid)).unwrap_or_default();
        statm
            .split_whitespace()
            .nth(1)
            .and_then(|pages| pages.parse::<u64>().ok())
            .unwrap_or_default()
            * 4096
    }
}

/// Where a part runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the cluster's network namespace.
    Inside,
    /// In the namespace that plays the outside world.
    Outside,
    /// In the host's.
    Host,
}

/// Starts a part in the background, with its output in its log, and remembers it.
pub fn start(
    layout: &Layout,
    part: &str,
    place: Place,
    program: &Path,
    arguments: &[String],
    path: &[PathBuf],
) -> Result<Started> {
    let log = layout.log(part);
    let out = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .in_file(&log)?;
    let err = out.try_clone().in_file(&log)?;
    // A child is no process-group leader, so neither setsid nor nsenter forks: the pid stays the part's own.
    let mut command = Command::new("setsid");
    match place {
        Place::Inside => drop(
            command
                .arg("nsenter")
                .arg(format!("--net={}", layout.netns_path())),
        ),
        Place::Outside => drop(
            command
                .arg("nsenter")
                .arg(format!("--net=/run/netns/{}", layout.outside_netns())),
        ),
        Place::Host => {}
    }
    let folders: Vec<String> = path.iter().map(|folder| folder.display().to_string()).collect();
    let search = format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        folders.join(":")
    );
    command
        .arg(program)
        .args(arguments)
        .env("PATH", search.trim_start_matches(':'))
        .current_dir("/");
    let child = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .in_file(program)?;
    let pid = i32::try_from(child.id()).unwrap_or_default();
    let started = Started {
        pid,
        ticks: start_ticks(pid).unwrap_or_default(),
    };
    let file = layout.file("run").join(part);
    fs::write(&file, format!("{} {}", started.pid, started.ticks)).in_file(&file)?;
    Ok(started)
}

/// The process of a part, if it was started.
#[must_use]
pub fn find(layout: &Layout, part: &str) -> Option<Started> {
    let text = fs::read_to_string(layout.file("run").join(part)).ok()?;
    let (pid, ticks) = text.trim().split_once(' ')?;
    Some(Started {
        pid: pid.parse().ok()?,
        ticks: ticks.parse().ok()?,
    })
}

/// Ends processes: asks first, and kills what has not ended by then.
pub fn end(processes: &[Started], patience: Duration) {
    for process in processes {
        process.signal(Signal::SIGTERM);
    }
    let begun = Instant::now();
    while processes.iter().any(|process| process.is_alive()) && begun.elapsed() < patience {
        std::thread::sleep(Duration::from_millis(20));
    }
    for process in processes {
        process.signal(Signal::SIGKILL);
    }
    let begun = Instant::now();
    while processes.iter().any(|process| process.is_alive()) && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every process whose command line names this cluster's state folder, or which lives in one of its namespaces:
/// shims and sandboxes that containerd started.
#[must_use]
pub fn strays(layout: &Layout) -> Vec<(Started, String)> {
    let state = format!("{}/", layout.state.display());
    let namespaces: Vec<u64> = [layout.netns(), layout.outside_netns()]
        .iter()
        .filter_map(|name| inode(&Path::new("/run/netns").join(name)))
        .collect();
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let ticks = start_ticks(pid)?;
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let cgroups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let inside = inode(&entry.path().join("ns/net")).is_some_and(|inode| namespaces.contains(&inode));
            let ours =
                command.contains(&state) || inside || cgroups.contains(&format!("/{}/", layout.cgroup()));
            (ours && pid != own).then_some((Started { pid, ticks }, command))
        })
        .collect()
}

fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).ok().map(|meta| meta.ino())
}

fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses, which may hold anything; fields 3 and on follow the last one.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let ticks = fields.nth(18)?.parse().ok()?;
    // A zombie has ended; whoever started it will reap it.
    (state != "Z" && state != "X").then_some(ticks)
}
