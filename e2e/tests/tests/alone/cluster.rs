//! The cluster itself: two side by side, one of them killed and started again, and nothing left of it.

use std::collections::BTreeSet;
use std::fs;

use std::process::Command;

use cluster::down::leftovers;
use cluster::{Cluster, Layout, PARTS, find_process};
use e2e::Harness;
use nix::sys::signal::Signal;

/// Mounts and network namespaces of the machine.
fn machine() -> BTreeSet<String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mounts = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(str::to_owned);
    let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    mounts
        .chain(namespaces.map(|entry| entry.path().display().to_string()))
        .collect()
}

/// Runs the program `cluster`, which is built beside the tests.
fn run(action: &str) {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().unwrap().with_file_name("cluster");
    let status = Command::new(program)
        .args(["--name", "other", action])
        .status()
        .unwrap();
    assert!(status.success(), "cluster {action}: {status}");
}

/// What kubectl says, without the line's end.
fn ask(cluster: &Cluster, question: &str) -> String {
    let answer = cluster.kubectl().args(question.split(' ')).output().unwrap();
    String::from_utf8_lossy(&answer.stdout).trim().to_owned()
}

const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "held"}, "spec": {
    "runtimeClassName": "gvisor", "containers": [{"name": "main", "image": "agent-sandbox.local/pause:1", "imagePullPolicy": "Never"}]}}"#;

#[tokio::test]
async fn a_second_cluster_lives_beside_the_first_survives_a_crash_and_leaves_nothing() {
    let first = Harness::start("beside").await.unwrap();
    let layout = Layout::new("other").unwrap();
    let before = machine();
    run("up");
    let other = Cluster::attach("other").unwrap();
    assert_eq!(ask(&other, "get nodes -o name"), "node/other");
    assert_eq!(ask(&first.cluster, "get nodes -l !type -o name"), "node/test");
    let manifest = layout.file("held.json");
    fs::write(&manifest, POD).unwrap();
    ask(&other, &format!("apply -f {}", manifest.display()));
    assert!(ask(&other, "wait pod/held --for=condition=Ready --timeout=60s").contains("condition met"));

    // A crash of everything that was started, in no order; what containerd started lives on.
    for part in PARTS {
        if let Some(process) = find_process(&layout, part) {
            process.signal(Signal::SIGKILL);
        }
    }
    assert!(!leftovers(&layout).is_empty());
    run("up");
    assert_eq!(
        ask(&other, "get pods -n default -o name"),
        "",
        "a new cluster, not the old one's data"
    );
    assert_eq!(ask(&other, "get nodes -o name"), "node/other");
    run("down");
    assert_eq!(leftovers(&layout), Vec::<String>::new());
    let added: Vec<String> = machine().difference(&before).cloned().collect();
    assert_eq!(added, Vec::<String>::new());
    assert_eq!(
        ask(&first.cluster, "get nodes -l !type -o name"),
        "node/test",
        "the first one is untouched"
    );
    first.finish().await.unwrap();
}
