//! Starts a cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use crate::command::{exists, run};
use crate::error::{Error, InFile, Result};
use crate::image::Image;
use crate::layout::{Layout, cache};
use crate::process::{Place, start};
use crate::tools::{self, Programs};
use crate::{down, forward, network, parts, pki, process};

/// How a cluster is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Port of the host's loopback for the API server; a free one if absent.
    pub port: Option<u16>,
    /// Whether kwok keeps fake nodes (label `type=kwok`) alive.
    pub kwok: bool,
}

/// Starts a cluster and waits until it is ready. What an earlier one of this name left is cleaned up first.
pub fn up(layout: &Layout, options: Options) -> Result<()> {
    check_machine()?;
    let programs = if options.kwok {
        tools::build(&["kwok"])?
    } else {
        Programs::find()?
    };
    let begun = Instant::now();
    if layout.state.exists() || Path::new(&layout.netns_path()).exists() {
        eprintln!("An earlier cluster {:?} was not ended: cleaning up", layout.name);
        down::down(layout)?;
    }
    let port = forward::choose_port(options.port)?;
    fs::create_dir_all(&layout.state).in_file(&layout.state)?;
    parts::write_files(layout, &programs)?;
    pki::create(layout, port)?;
    create_cgroups(layout)?;
    network::create(layout)?;
    start_outside_and_forward(layout, port)?;

    parts::start_part(layout, &programs, "etcd")?;
    parts::start_part(layout, &programs, "kube-apiserver")?;
    parts::start_part(layout, &programs, "containerd")?;
    import(layout, &programs, &base_images(&programs)?)?;
    wait("the API server", "kube-apiserver", 60, || {
        kubectl(layout, &programs, &["get", "--raw=/readyz"]).is_ok()
    })?;
    for part in ["kube-controller-manager", "kube-scheduler"] {
        parts::start_part(layout, &programs, part)?;
    }
    network::guard(layout)?;
    parts::start_part(layout, &programs, "policy-engine")?;
    parts::start_part(layout, &programs, "kube-proxy")?;
    parts::start_part(layout, &programs, "kubelet")?;
    if options.kwok {
        let stages = layout.file("kwok.yaml");
        fs::write(&stages, include_str!("../config/kwok-stages.yaml")).in_file(&stages)?;
        parts::start_part(layout, &programs, "kwok")?;
    }
    let base = layout.file("base.yaml");
    wait("the base manifests", "kube-apiserver", 30, || {
        kubectl(layout, &programs, &["apply", "-f", &base.to_string_lossy()]).is_ok()
    })?;
    wait("the node", "kubelet", 60, || {
        let path = "-o=jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        kubectl(layout, &programs, &["get", "node", &layout.name, path]).is_ok_and(|status| status == "True")
    })?;
    wait("the cluster's DNS", "kubelet", 60, || {
        let path = "-o=jsonpath={.status.readyReplicas}";
        kubectl(
            layout,
            &programs,
            &["get", "deployment", "-n", "kube-system", "coredns", path],
        )
        .is_ok_and(|n| n == "1")
    })?;
    wait(
        "the default service account",
        "kube-controller-manager",
        30,
        || kubectl(layout, &programs, &["get", "serviceaccount", "default"]).is_ok(),
    )?;
    eprintln!(
        "Cluster {:?} is ready after {:.1} s",
        layout.name,
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Imports OCI archives into the cluster's containerd.
pub fn import(layout: &Layout, programs: &Programs, archives: &[PathBuf]) -> Result<()> {
    let socket = layout.file("containerd/containerd.sock");
    let ctr = |arguments: &[&str]| {
        let mut command = Command::new(programs.path("containerd", "ctr"));
        command
            .arg("-a")
            .arg(&socket)
            .args(["-n", "k8s.io"])
            .args(arguments);
        run(&mut command)
    };
    wait("containerd", "containerd", 30, || ctr(&["version"]).is_ok())?;
    for archive in archives {
        ctr(&["images", "import", &archive.to_string_lossy()])?;
    }
    Ok(())
}

/// Runs kubectl as the cluster's administrator.
pub fn kubectl(layout: &Layout, programs: &Programs, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(programs.kubectl());
    command
        .arg("--kubeconfig")
        .arg(layout.kubeconfig())
        .args(arguments)
        .env("KUBECACHEDIR", layout.file("kubectl-cache"));
    run(&mut command)
}

/// Waits until something holds.
pub fn wait(what: &str, part: &'static str, seconds: u64, mut holds: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > Duration::from_secs(seconds) {
            return Err(Error::NotReady {
                what: what.to_owned(),
                seconds,
                part,
            });
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Whether this machine can hold a cluster, and what it lacks.
fn check_machine() -> Result<()> {
    let lacks = |what: &str| Err(Error::Prerequisite(what.to_owned()));
    if !geteuid().is_root() {
        return lacks("a cluster needs root: namespaces, cgroups and packet filters are made");
    }
    for (program, package) in [
        ("ip", "iproute2"),
        ("nsenter", "util-linux"),
        ("iptables", "iptables"),
        ("nft", "nftables"),
        ("runc", "runc"),
        ("conntrack", "conntrack"),
    ] {
        if !exists(program) {
            return Err(Error::Prerequisite(format!(
                "{program} is missing: run `cluster build`, or install Debian's package {package}"
            )));
        }
    }
    if cgroup_hierarchies().is_empty() {
        return lacks(
            "no cgroup hierarchy is mounted at /sys/fs/cgroup: mount one before a cluster is started",
        );
    }
    Ok(())
}

/// Roots of the mounted hierarchies: one for version 2, one per controller for version 1.
#[must_use]
pub fn cgroup_hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && path.join("cgroup.procs").exists())
        .collect()
}

/// The kubelet wants its root group to be there in every hierarchy.
fn create_cgroups(layout: &Layout) -> Result<()> {
    for hierarchy in cgroup_hierarchies() {
        let group = hierarchy.join(layout.cgroup());
        fs::create_dir_all(&group).in_file(&group)?;
        // A new group of version 1's cpuset has no processors until it is given its parent's.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read_to_string(hierarchy.join(file)) {
                let _ = fs::write(group.join(file), value);
            }
        }
    }
    Ok(())
}

fn start_outside_and_forward(layout: &Layout, port: u16) -> Result<()> {
    let own = std::env::current_exe().in_file("/proc/self/exe")?;
    // A copy of its own: the program may be rebuilt while the cluster is up.
    let copy = layout.file("cluster");
    fs::copy(&own, &copy).in_file(&copy)?;
    start(
        layout,
        "outside",
        Place::Outside,
        &copy,
        &["serve-outside".to_owned()],
        &[],
    )?;
    let arguments = ["--name", &layout.name, "forward", &port.to_string()].map(str::to_owned);
    start(layout, "forward", Place::Host, &copy, &arguments, &[]).map(|_| ())
}

/// Lets a program play the outside world, in place of what answers there since the cluster's start. `{state}` in its
/// arguments is the cluster's state folder.
pub fn play_outside(layout: &Layout, program: &Path, arguments: &[String]) -> Result<()> {
    stop(layout, "outside");
    // A copy of its own: the program may be rebuilt while the cluster is up. A new file each time: the kernel refuses to
    // write to one that a process still runs.
    let (new, copy) = (layout.file("world.new"), layout.file("world"));
    fs::copy(program, &new).in_file(program)?;
    fs::rename(&new, &copy).in_file(&copy)?;
    let authority = layout.outside_authority();
    let _ = fs::remove_file(&authority);
    let state = layout.state.to_string_lossy();
    let arguments: Vec<String> = arguments
        .iter()
        .map(|argument| argument.replace("{state}", &state))
        .collect();
    start(layout, "outside", Place::Outside, &copy, &arguments, &[])?;
    wait("the outside world", "outside", 20, || authority.exists())
}

/// Images that every cluster needs, built once.
fn base_images(programs: &Programs) -> Result<Vec<PathBuf>> {
    let folder = cache().join("images");
    fs::create_dir_all(&folder).in_file(&folder)?;
    let mut archives = Vec::new();
    for (name, reference, tool, program) in [
        ("pause", "agent-sandbox.local/pause:1", "pause", "pause"),
        ("coredns", "agent-sandbox.local/coredns:1", "coredns", "coredns"),
    ] {
        let source = programs.path(tool, program);
        let key = programs
            .folder(tool)
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let archive = folder.join(format!("{key}.tar"));
        if !archive.exists() {
            let image = Image {
                reference: reference.to_owned(),
                files: vec![(source, format!("/{name}"), 0o755)],
                entrypoint: vec![format!("/{name}")],
                ..Image::default()
            };
            image.write(&archive)?;
        }
        archives.push(archive);
    }
    Ok(archives)
}

/// Restarts one part, for tests of what happens without it.
pub fn restart(layout: &Layout, part: &str) -> Result<()> {
    stop(layout, part);
    parts::start_part(layout, &Programs::find()?, part).map(|_| ())
}

/// Sends one part a signal.
pub fn signal(layout: &Layout, part: &str, signal: Signal) {
    if let Some(process) = process::find(layout, part) {
        process.signal(signal);
    }
}

/// Ends one part at once.
pub fn stop(layout: &Layout, part: &str) {
    if let Some(process) = process::find(layout, part) {
        process::end(&[process], Duration::from_secs(5));
    }
}
