//! Ends a cluster and leaves nothing.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::error::{Error, InFile, Result};
use crate::layout::Layout;
use crate::network;
use crate::parts::END_ORDER;
use crate::process::{self, Started};
use crate::tools::Programs;
use crate::up::{cgroup_hierarchies, kubectl};

/// Ends the cluster: pods, processes, mounts, cgroups, namespaces, files. Says what could not be removed.
pub fn down(layout: &Layout) -> Result<()> {
    delete_pods(layout);
    for part in END_ORDER {
        if let Some(process) = process::find(layout, part) {
            process::end(&[process], Duration::from_secs(5));
        }
    }
    end_strays(layout);
    unmount(layout);
    remove_cgroups(layout);
    network::remove(layout);
    if layout.state.exists() {
        fs::remove_dir_all(&layout.state).in_file(&layout.state)?;
    }
    let left = leftovers(layout);
    if left.is_empty() {
        Ok(())
    } else {
        Err(Error::LeftOver(left.join("; ")))
    }
}

/// Pods first, so that shims and sandboxes end by themselves.
fn delete_pods(layout: &Layout) {
    let alive = |part| process::find(layout, part).is_some_and(Started::is_alive);
    let (Ok(programs), true) = (Programs::find(), alive("kube-apiserver") && alive("kubelet")) else {
        return;
    };
    // Without the workloads' controllers nothing makes them again.
    for part in ["kube-controller-manager", "kube-scheduler", "kwok"] {
        crate::up::stop(layout, part);
    }
    let _ = kubectl(
        layout,
        &programs,
        &[
            "delete",
            "pods",
            "-A",
            "--all",
            "--force",
            "--grace-period=0",
            "--wait=false",
        ],
    );
    let begun = Instant::now();
    let shims = || {
        process::strays(layout)
            .iter()
            .any(|(_, command)| command.contains("containerd-shim"))
    };
    while shims() && begun.elapsed() < Duration::from_secs(8) {
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn end_strays(layout: &Layout) {
    for _ in 0..20 {
        let strays = process::strays(layout);
        if strays.is_empty() {
            return;
        }
        for (process, _) in &strays {
            process.signal(Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn unmount(layout: &Layout) {
    let below = format!("{}/", layout.state.display());
    for _ in 0..10 {
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let mut ours: Vec<&str> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|path| path.starts_with(&below))
            .collect();
        if ours.is_empty() {
            return;
        }
        // What lies deeper was mounted later.
        ours.sort_unstable_by(|one, other| other.cmp(one));
        for path in ours {
            let _ = umount2(Path::new(path), MntFlags::MNT_DETACH);
        }
    }
}

fn remove_cgroups(layout: &Layout) {
    for _ in 0..20 {
        let mut left = false;
        for hierarchy in cgroup_hierarchies() {
            let group = hierarchy.join(layout.cgroup());
            remove_group(&group);
            left |= group.exists();
        }
        if !left {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Removes a group and those below it; a group of which the files can't be deleted is a folder to `rmdir`.
fn remove_group(group: &Path) {
    let Ok(entries) = fs::read_dir(group) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// What is still there of a cluster.
#[must_use]
pub fn leftovers(layout: &Layout) -> Vec<String> {
    let mut left: Vec<String> = process::strays(layout)
        .into_iter()
        .map(|(process, command)| format!("process {} ({command})", process.pid))
        .collect();
    for namespace in [layout.netns(), layout.outside_netns()] {
        if Path::new("/run/netns").join(&namespace).exists() {
            left.push(format!("network namespace {namespace}"));
        }
    }
    let below = format!("{}/", layout.state.display());
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    left.extend(
        mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|path| path.starts_with(&below))
            .map(|path| format!("mount {path}")),
    );
    left.extend(
        cgroup_hierarchies()
            .iter()
            .map(|root| root.join(layout.cgroup()))
            .filter(|group| group.exists())
            .map(|group| format!("cgroup {}", group.display())),
    );
    if layout.state.exists() {
        left.push(format!("folder {}", layout.state.display()));
    }
    left
}
